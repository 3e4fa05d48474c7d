"""Messages of ttrpc, NRI, DRA and kubelet's plugin registration, generated from ``protos/`` by ``hack/protos.py``."""
