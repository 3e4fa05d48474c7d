"""ttrpc, and the multiplexer that NRI puts below it.

The protocol is made of pure state machines: bytes in, events and bytes out.

* :mod:`~nri_dranet.ttrpc.frames`: frames of one ttrpc connection, and the protocol errors.
* :mod:`~nri_dranet.ttrpc.mux`: several connections over one stream.
* :mod:`~nri_dranet.ttrpc.connection`: requests and responses, the server's side and the client's.
* :mod:`~nri_dranet.ttrpc.trunk`: the only one that knows sockets.
"""
