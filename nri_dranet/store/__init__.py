"""The journal: what this node has prepared, on disk."""
