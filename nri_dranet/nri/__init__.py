"""The container runtime's side: the session and its hooks."""
