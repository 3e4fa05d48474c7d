"""Netlink: the kernel's network configuration protocol. Knows interfaces and routes, nothing of pods or claims."""
