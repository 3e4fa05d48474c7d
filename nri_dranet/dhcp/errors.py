"""What can go wrong with DHCP, in words for users."""

from __future__ import annotations


class DecodeError(ValueError):
    """Bytes from the network are no message that this program understands; the text says why."""


class DhcpError(Exception):
    """There is no lease. The text says what was asked on which interface, and what came."""


class LeaseLostError(DhcpError):
    """A lease has ended: it expired, or a server said no. The address must not be used any more."""
