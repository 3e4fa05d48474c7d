"""DHCP options: from bytes to values and back. Pure.

Sources: RFC 2132 (options, overload), RFC 3396 (an option in several parts), RFC 3442 (121), RFC 3397 (119),
RFC 1035 section 4.1.4 (names). What the network sends is bounded: a message is one datagram, a list is cut at a limit.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from typing import TYPE_CHECKING, Final

from nri_dranet.dhcp.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Mapping

PAD: Final = 0
SUBNET_MASK: Final = 1
ROUTER: Final = 3
DNS_SERVERS: Final = 6
DOMAIN: Final = 15
MTU: Final = 26
STATIC_ROUTES: Final = 33
REQUESTED_ADDRESS: Final = 50
LEASE_TIME: Final = 51
OVERLOAD: Final = 52
MESSAGE_TYPE: Final = 53
SERVER: Final = 54
PARAMETERS: Final = 55
ERROR_TEXT: Final = 56
MAX_SIZE: Final = 57
RENEWAL_TIME: Final = 58
REBINDING_TIME: Final = 59
CLIENT_ID: Final = 61
SEARCH_DOMAINS: Final = 119
CLASSLESS_ROUTES: Final = 121
END: Final = 255

MAX_ROUTES: Final = 256
MAX_SERVERS: Final = 16
MAX_DOMAINS: Final = 32

_MAX_PART: Final = 255
_OVERLOAD_FILE: Final = 1
_OVERLOAD_SNAME: Final = 2
_ADDRESS: Final = 4
_POINTER: Final = 0xC0
_MAX_NAME: Final = 255
_NAME: Final = re.compile(
    r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*"
)


def encode(options: Mapping[int, bytes]) -> bytes:
    """Return options as they stand in a message, with the end mark; one longer than 255 bytes in several parts."""
    found = bytearray()
    for code, value in options.items():
        for start in range(0, max(1, len(value)), _MAX_PART):
            part = value[start : start + _MAX_PART]
            found += bytes((code, len(part))) + part
    found.append(END)
    return bytes(found)


def decode(data: bytes, *, file: bytes = b"", sname: bytes = b"") -> dict[int, bytes]:
    """Return the options of a message by their numbers; parts of one option are joined in the order of RFC 3396.

    Args:
        data: the options field.
        file: the message's ``file`` field, which holds options too where option 52 says so.
        sname: the ``sname`` field, likewise.

    Raises:
        DecodeError: an option is longer than its field, or option 52 has no known value.
    """
    found: dict[int, bytearray] = {}
    _collect(data, found, "options")
    overload = found.pop(OVERLOAD, None)
    if overload is not None:
        if len(overload) != 1 or not 1 <= overload[0] <= _OVERLOAD_FILE | _OVERLOAD_SNAME:
            raise DecodeError(f"option 52 (overload) is {overload.hex()}, it must be 01, 02 or 03")
        if overload[0] & _OVERLOAD_FILE:
            _collect(file, found, "file")
        if overload[0] & _OVERLOAD_SNAME:
            _collect(sname, found, "sname")
    return {code: bytes(value) for code, value in found.items()}


def _collect(data: bytes, found: dict[int, bytearray], where: str) -> None:
    at = 0
    while at < len(data):
        code = data[at]
        if code == END:
            return
        if code == PAD:
            at += 1
            continue
        if at + 1 >= len(data) or at + 2 + data[at + 1] > len(data):
            raise DecodeError(f"option {code} runs over the end of the {where} field")
        end = at + 2 + data[at + 1]
        found.setdefault(code, bytearray()).extend(data[at + 2 : end])
        at = end


# ---- values


def address(value: bytes) -> str:
    """Return an IPv4 address.

    Raises:
        DecodeError: it has not four bytes.
    """
    if len(value) != _ADDRESS:
        raise DecodeError(f"an address has {_ADDRESS} bytes, not {len(value)}")
    return str(ipaddress.IPv4Address(value))


def addresses(value: bytes) -> tuple[str, ...]:
    """Return a list of IPv4 addresses, at most ``MAX_SERVERS``, each once.

    Raises:
        DecodeError: it is empty, or no multiple of four bytes.
    """
    if not value or len(value) % _ADDRESS:
        raise DecodeError(f"a list of addresses has a multiple of {_ADDRESS} bytes, not {len(value)}")
    found = [address(value[at : at + _ADDRESS]) for at in range(0, len(value), _ADDRESS)]
    return tuple(dict.fromkeys(found))[:MAX_SERVERS]


def number(value: bytes, size: int) -> int:
    """Return an unsigned number of so many bytes.

    Raises:
        DecodeError: it has another length.
    """
    if len(value) != size:
        raise DecodeError(f"a number has {size} bytes here, not {len(value)}")
    return int.from_bytes(value, "big")


def prefix_length(value: bytes) -> int:
    """Return the prefix length of a subnet mask, 1 to 32.

    Raises:
        DecodeError: it is no mask: other than four bytes, all zero, or with holes.
    """
    mask = number(value, _ADDRESS)
    length = mask.bit_count()
    if not length or mask != (0xFFFF_FFFF << (32 - length)) & 0xFFFF_FFFF:
        raise DecodeError(f"{address(value)} is no subnet mask")
    return length


def class_prefix_length(ip: str) -> int:
    """Return the prefix length of the class that an address is in (RFC 791): 8, 16 or 24."""
    first = int(ipaddress.IPv4Address(ip)) >> 24
    if first < 0x80:
        return 8
    return 16 if first < 0xC0 else 24


def text(value: bytes) -> str:
    """Return text for people: printable ASCII, anything else as a question mark. Servers may end it with zeros."""
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else "?" for byte in value.rstrip(b"\0"))


def domain(value: bytes) -> str:
    """Return a domain name, "" for what is none."""
    found = text(value).strip().rstrip(".")
    return found.lower() if len(found) < _MAX_NAME and _NAME.fullmatch(found) else ""


def classless_routes(value: bytes) -> tuple[tuple[str, str | None], ...]:
    """Return the routes of option 121 as destination and gateway (None: on the link), each destination once.

    Bits of a destination beyond its prefix are cut off, as RFC 3442 demands.

    Raises:
        DecodeError: a prefix length is over 32, or the list breaks off.
    """
    found: dict[str, str | None] = {}
    at = 0
    while at < len(value):
        length = value[at]
        if length > 32:
            raise DecodeError(f"option 121 has a route with prefix length {length}")
        significant = (length + 7) // 8
        end = at + 1 + significant + _ADDRESS
        if end > len(value):
            raise DecodeError("option 121 breaks off within a route")
        packed = value[at + 1 : at + 1 + significant].ljust(_ADDRESS, b"\0")
        network = ipaddress.IPv4Network((packed, length), strict=False)
        gateway = address(value[end - _ADDRESS : end])
        found.setdefault(str(network), None if gateway == "0.0.0.0" else gateway)  # noqa: S104 - no bind: "on the link"
        at = end
    return tuple(found.items())[:MAX_ROUTES]


def static_routes(value: bytes) -> tuple[tuple[str, str], ...]:
    """Return the routes of option 33 as destination and gateway.

    A destination is a network of its class, or a host where it has more bits than that. The default route is illegal
    there (RFC 2132) and left out.

    Raises:
        DecodeError: the list is no multiple of eight bytes.
    """
    if len(value) % (2 * _ADDRESS):
        raise DecodeError(f"option 33 has a multiple of {2 * _ADDRESS} bytes, not {len(value)}")
    found: dict[str, str] = {}
    for at in range(0, len(value), 2 * _ADDRESS):
        target, gateway = (address(value[at + i : at + i + _ADDRESS]) for i in (0, _ADDRESS))
        if int(ipaddress.IPv4Address(target)) >> 24 == 0:
            continue
        network = ipaddress.IPv4Network(f"{target}/{class_prefix_length(target)}", strict=False)
        is_network = str(network.network_address) == target
        found.setdefault(str(network) if is_network else f"{target}/32", gateway)
    return tuple(found.items())[:MAX_ROUTES]


def search_domains(value: bytes) -> tuple[str, ...]:
    """Return the domains of option 119; names that are none are left out.

    Raises:
        DecodeError: a name breaks off, or points forward or out of the option.
    """
    found: list[str] = []
    at = 0
    while at < len(value) and len(found) < MAX_DOMAINS:
        labels, at = _name(value, at)
        name = domain(b".".join(labels))
        if name and name not in found:
            found.append(name)
    return tuple(found)


def _name(value: bytes, at: int) -> tuple[list[bytes], int]:
    """Read a name; return its labels and where the next one begins."""
    labels: list[bytes] = []
    after, limit, size = -1, at, 0
    while True:
        if at >= len(value):
            raise DecodeError("option 119 breaks off within a name")
        length = value[at]
        if length & _POINTER == _POINTER:
            if at + 1 >= len(value):
                raise DecodeError("option 119 breaks off within a pointer")
            target = (length & ~_POINTER) << 8 | value[at + 1]
            after = at + 2 if after < 0 else after
            # Only ever backwards: a name cannot go round in circles.
            if target >= limit:
                raise DecodeError("option 119 has a pointer that does not lead back")
            at = limit = target
            continue
        if length & _POINTER:
            raise DecodeError(f"option 119 has a label of unknown kind {length:#x}")
        if length == 0:
            return labels, at + 1 if after < 0 else after
        label = value[at + 1 : at + 1 + length]
        size += length + 1
        if len(label) < length or size > _MAX_NAME:
            raise DecodeError("option 119 has a name that is too long")
        labels.append(label)
        at += 1 + length


def pack_address(text: str) -> bytes:
    """Return the four bytes of an IPv4 address (raises ValueError for what is none)."""
    return ipaddress.IPv4Address(text).packed


def pack_number(value: int, size: int) -> bytes:
    """Return a number in so many bytes."""
    return value.to_bytes(size, "big")


def pack_routes(routes: Mapping[str, str]) -> bytes:
    """Return option 121 for destinations and their gateways (``0.0.0.0``: on the link)."""
    found = bytearray()
    for destination, gateway in routes.items():
        network = ipaddress.IPv4Network(destination)
        found += struct.pack("B", network.prefixlen) + network.network_address.packed[: (network.prefixlen + 7) // 8]
        found += pack_address(gateway)
    return bytes(found)
