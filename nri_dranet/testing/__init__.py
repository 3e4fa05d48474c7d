"""Stand-ins that speak the real protocols: kubelet, container runtime, API server. For tests and the demo alone."""
