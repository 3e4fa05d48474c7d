"""Pods' namespaces, watched: link and address events become facts."""
