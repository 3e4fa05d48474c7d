"""A BOOTP/DHCP message (RFC 2131, section 2). Pure: bytes in, values out."""

from __future__ import annotations

import enum
import ipaddress
import struct
from dataclasses import dataclass, field
from typing import Final

from nri_dranet.dhcp import options
from nri_dranet.dhcp.errors import DecodeError

BROADCAST_FLAG: Final = 0x8000
"""Answers shall be broadcast: the client cannot receive unicast before it has its address."""

ANY: Final = "0.0.0.0"  # noqa: S104 - no bind: the address of who has none

_HEADER: Final = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s")
_COOKIE: Final = b"\x63\x82\x53\x63"
_ETHERNET: Final = 1
_ETHERNET_BYTES: Final = 6

_LEAST: Final = 300
"""RFC 1542, section 2.1: relays and servers may drop what is shorter."""


class Op(enum.IntEnum):
    """The direction of a message."""

    REQUEST = 1
    REPLY = 2


class Kind(enum.IntEnum):
    """Option 53 (RFC 2132, section 9.6)."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message. Addresses are text, ``chaddr`` is an Ethernet address in lower-case hex pairs with colons."""

    op: Op
    kind: Kind
    xid: int
    chaddr: str
    secs: int = 0
    flags: int = 0
    hops: int = 0
    ciaddr: str = ANY
    yiaddr: str = ANY
    siaddr: str = ANY
    giaddr: str = ANY
    options: dict[int, bytes] = field(default_factory=dict)
    """All but 53, by number."""


def encode(message: Message) -> bytes:
    """Return the bytes of a message (raises ValueError for an address that is none)."""
    header = _HEADER.pack(
        message.op,
        _ETHERNET,
        _ETHERNET_BYTES,
        message.hops,
        message.xid,
        min(message.secs, 0xFFFF),
        message.flags,
        *(options.pack_address(each) for each in (message.ciaddr, message.yiaddr, message.siaddr, message.giaddr)),
        bytes.fromhex(message.chaddr.replace(":", "")),
        b"",
        b"",
    )
    kind = {options.MESSAGE_TYPE: bytes((message.kind,))}
    return (header + _COOKIE + options.encode(kind | message.options)).ljust(_LEAST, b"\0")


def decode(data: bytes) -> Message:
    """Return the message that bytes are.

    Raises:
        DecodeError: they are none, or one for another kind of link; the text says why.
    """
    if len(data) < _HEADER.size + len(_COOKIE):
        raise DecodeError(f"{len(data)} bytes are too few for a DHCP message")
    op, htype, hlen, hops, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr, sname, file = _HEADER.unpack_from(
        data
    )
    if data[_HEADER.size : _HEADER.size + len(_COOKIE)] != _COOKIE:
        raise DecodeError("it is BOOTP without DHCP (no magic cookie)")
    if htype != _ETHERNET or hlen != _ETHERNET_BYTES:
        raise DecodeError(f"it is for hardware type {htype} with {hlen} bytes of address, not for Ethernet")
    found = options.decode(data[_HEADER.size + len(_COOKIE) :], file=file, sname=sname)
    kind = found.pop(options.MESSAGE_TYPE, b"")
    try:
        return Message(
            op=Op(op),
            kind=Kind(options.number(kind, 1)),
            xid=xid,
            chaddr=chaddr[:_ETHERNET_BYTES].hex(":"),
            secs=secs,
            flags=flags,
            hops=hops,
            ciaddr=str(ipaddress.IPv4Address(ciaddr)),
            yiaddr=str(ipaddress.IPv4Address(yiaddr)),
            siaddr=str(ipaddress.IPv4Address(siaddr)),
            giaddr=str(ipaddress.IPv4Address(giaddr)),
            options=found,
        )
    except ValueError as error:
        raise DecodeError(f"no DHCP message: {error}") from error
