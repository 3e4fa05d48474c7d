"""Kubernetes network driver: real network interfaces and RDMA devices for pods, through DRA and NRI."""

__version__ = "0.1.0"
