"""What the program says about itself: log lines, metrics, the HTTP endpoint."""
