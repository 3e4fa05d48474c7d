"""What the node has: interfaces and RDMA devices, their attributes, and which of them may be given away."""
