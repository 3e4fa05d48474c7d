"""Claims as this driver sees them: what was asked, what is planned, what happened. Pure data and pure functions."""
