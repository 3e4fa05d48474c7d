"""A UDP datagram in IPv4 in Ethernet, as it is on the wire (RFC 768, 791, 894, 1071). Pure."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import Final

from nri_dranet.dhcp.errors import DecodeError

BROADCAST: Final = "ff:ff:ff:ff:ff:ff"
SERVER_PORT: Final = 67
CLIENT_PORT: Final = 68

ETHERTYPE_IPV4: Final = 0x0800
IP_UDP: Final = 17

_ETHERNET: Final = struct.Struct("!6s6sH")
_IPV4: Final = struct.Struct("!BBHHHBBH4s4s")
_UDP: Final = struct.Struct("!HHHH")
_TTL: Final = 64
_FRAGMENT: Final = 0x3FFF
"""More fragments to come, or an offset other than 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Datagram:
    """A datagram with the addresses that it had. Hardware addresses are lower-case hex pairs with colons."""

    source_hardware: str
    destination_hardware: str
    source: str
    destination: str
    source_port: int
    destination_port: int
    payload: bytes


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071): 0 for data that has its right checksum in it."""
    padded = data + b"\0" if len(data) % 2 else data
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def encode(datagram: Datagram) -> bytes:
    """Return the frame of a datagram, with its checksums (raises ValueError for an address that is none)."""
    source, destination = (ipaddress.IPv4Address(each).packed for each in (datagram.source, datagram.destination))
    size = _UDP.size + len(datagram.payload)
    udp = _UDP.pack(datagram.source_port, datagram.destination_port, size, 0) + datagram.payload
    # 0 means that there is none (RFC 768).
    own = checksum(_pseudo(source, destination, size) + udp) or 0xFFFF
    udp = udp[:6] + own.to_bytes(2, "big") + udp[8:]
    ip = _IPV4.pack(0x45, 0, _IPV4.size + size, 0, 0, _TTL, IP_UDP, 0, source, destination)
    ip = ip[:10] + checksum(ip).to_bytes(2, "big") + ip[12:]
    hardware = (bytes.fromhex(each.replace(":", "")) for each in _hardware(datagram))
    return _ETHERNET.pack(*hardware, ETHERTYPE_IPV4) + ip + udp


def decode(frame: bytes, *, checksum_is_there: bool = True) -> Datagram:
    """Return the datagram in a frame.

    Args:
        frame: the frame, maybe with padding behind the datagram.
        checksum_is_there: False where the kernel says that the UDP checksum was left to hardware that the frame never
            saw (a virtual link): it is not looked at then.

    Raises:
        DecodeError: the frame has no whole IPv4 UDP datagram, or one that was damaged.
    """
    if len(frame) < _ETHERNET.size + _IPV4.size:
        raise DecodeError("the frame is too short")
    to, by, ethertype = _ETHERNET.unpack_from(frame)
    if ethertype != ETHERTYPE_IPV4:
        raise DecodeError("the frame is no IPv4")
    packet = frame[_ETHERNET.size :]
    first, _, total, _, fragment, _, protocol, _, source, destination = _IPV4.unpack_from(packet)
    header = (first & 0xF) * 4
    if first >> 4 != 4 or header < _IPV4.size or not header <= total <= len(packet):
        raise DecodeError("the IPv4 header has wrong lengths")
    if protocol != IP_UDP or fragment & _FRAGMENT:
        raise DecodeError("the packet is no whole UDP datagram")
    if checksum(packet[:header]):
        raise DecodeError("the IPv4 header is damaged")
    udp = packet[header:total]
    if len(udp) < _UDP.size:
        raise DecodeError("the packet has no UDP header")
    source_port, destination_port, size, sent = _UDP.unpack_from(udp)
    if not _UDP.size <= size <= len(udp):
        raise DecodeError("the UDP header has a wrong length")
    udp = udp[:size]
    if sent and checksum_is_there and checksum(_pseudo(source, destination, size) + udp):
        raise DecodeError("the datagram is damaged")
    return Datagram(
        source_hardware=by.hex(":"),
        destination_hardware=to.hex(":"),
        source=str(ipaddress.IPv4Address(source)),
        destination=str(ipaddress.IPv4Address(destination)),
        source_port=source_port,
        destination_port=destination_port,
        payload=udp[_UDP.size :],
    )


def _hardware(datagram: Datagram) -> tuple[str, str]:
    return datagram.destination_hardware, datagram.source_hardware


def _pseudo(source: bytes, destination: bytes, size: int) -> bytes:
    return source + destination + struct.pack("!BBH", 0, IP_UDP, size)
