"""Devices into a pod's namespace and back, as a transaction."""
