"""Several instances on one node: one works at a time, and gives its work to the next without a gap."""
