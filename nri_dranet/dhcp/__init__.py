"""DHCPv4: a pure codec (``options``, ``message``, ``frames``, ``dialogue``) and a blocking client over it."""
