"""Addresses and neighbours over rtnetlink: requests for them and the reading of them. Pure.

Source of the facts: ``linux/if_addr.h``, ``linux/neighbour.h``, ``net/ipv4/devinet.c``, ``net/ipv6/addrconf.c``.
"""

from __future__ import annotations

import struct
from typing import Final

from nri_dranet.netlink import codec, routing
from nri_dranet.netlink.codec import (
    AF_INET,
    DecodeError,
    Request,
    attribute,
    attribute_text,
    attribute_u8,
    attribute_u32,
    attributes,
)
from nri_dranet.netlink.model import FOREVER, Address, Neighbour

_IFADDRMSG: Final = struct.Struct("=BBBBI")
_CACHEINFO: Final = struct.Struct("=IIII")
_NDMSG: Final = struct.Struct("=BxxxiHBB")

_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_LABEL: Final = 3
_IFA_BROADCAST: Final = 4
_IFA_CACHEINFO: Final = 6
_IFA_FLAGS: Final = 8
_IFA_RT_PRIORITY: Final = 9
_IFA_PROTO: Final = 11

_NDA_DST: Final = 1
_NDA_LLADDR: Final = 2
_NDA_IFINDEX: Final = 8


def dump_addresses(index: int = 0, family: int = 0) -> Request:
    """Ask for the addresses of a link (0: of all), of a family (0: both)."""
    body = _IFADDRMSG.pack(family, 0, 0, 0, index)
    return Request(
        routing.RTM_GETADDR, codec.NLM_F_DUMP, body, f"list addresses of link {index}" if index else "list addresses"
    )


def _address_body(address: Address, index: int) -> list[bytes]:
    flags = address.flags & routing.IFA_SETTABLE
    local = codec.ip_bytes(address.address, address.family)
    peer = codec.ip_bytes(address.peer, address.family) if address.peer else local
    parts = [
        _IFADDRMSG.pack(address.family, address.prefix_length, flags & 0xFF, address.scope, index or address.index),
        attribute(_IFA_LOCAL, local),
        attribute(_IFA_ADDRESS, peer),
    ]
    if address.label and address.family == AF_INET:
        parts.append(attribute_text(_IFA_LABEL, address.label))
    return parts


def add_address(address: Address, index: int, *, replace: bool = False) -> Request:
    """Add an address (EEXIST if it is there; with ``replace`` its lifetimes and flags are changed instead).

    Flags that only the kernel sets (tentative, permanent, secondary) are left out.
    """
    parts = _address_body(address, index)
    parts.append(attribute_u32(_IFA_FLAGS, address.flags & routing.IFA_SETTABLE))
    if address.broadcast and address.family == AF_INET:
        parts.append(attribute(_IFA_BROADCAST, codec.ip_bytes(address.broadcast, AF_INET)))
    if (address.valid_lifetime, address.preferred_lifetime) != (FOREVER, FOREVER):
        parts.append(
            attribute(_IFA_CACHEINFO, _CACHEINFO.pack(address.preferred_lifetime, address.valid_lifetime, 0, 0))
        )
    if address.metric:
        parts.append(attribute_u32(_IFA_RT_PRIORITY, address.metric))
    if address.protocol:
        parts.append(attribute_u8(_IFA_PROTO, address.protocol))
    return Request(
        routing.RTM_NEWADDR, routing.add_flags(replace=replace), b"".join(parts), f"add address {address.cidr}"
    )


def delete_address(address: Address, index: int) -> Request:
    """Remove an address (EADDRNOTAVAIL if it is not there)."""
    return Request(routing.RTM_DELADDR, 0, b"".join(_address_body(address, index)), f"delete address {address.cidr}")


def parse_address(body: bytes) -> Address:
    """Read the body of an routing.RTM_NEWADDR or routing.RTM_DELADDR.

    Raises:
        DecodeError: it is truncated or malformed.
    """
    if len(body) < _IFADDRMSG.size:
        raise DecodeError(f"address message of {len(body)} bytes")
    family, length, flags, scope, index = _IFADDRMSG.unpack_from(body)
    found = attributes(body, _IFADDRMSG.size)
    local = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if local is None:
        raise DecodeError("address message without an address")
    other = found.get(_IFA_ADDRESS)
    preferred = valid = FOREVER
    if _IFA_CACHEINFO in found:
        if len(found[_IFA_CACHEINFO]) < _CACHEINFO.size:
            raise DecodeError(f"address lifetimes of {len(found[_IFA_CACHEINFO])} bytes")
        preferred, valid, _, _ = _CACHEINFO.unpack_from(found[_IFA_CACHEINFO])
    return Address(
        family=family,
        address=codec.ip_text(local),
        prefix_length=length,
        index=index,
        scope=scope,
        flags=codec.u32(found[_IFA_FLAGS]) if _IFA_FLAGS in found else flags,
        label=codec.string(found.get(_IFA_LABEL, b"")),
        broadcast=codec.ip_text(found[_IFA_BROADCAST]) if _IFA_BROADCAST in found else None,
        peer=codec.ip_text(other) if other and other != local else None,
        valid_lifetime=valid,
        preferred_lifetime=preferred,
        protocol=codec.u8(found[_IFA_PROTO]) if _IFA_PROTO in found else 0,
        metric=codec.u32(found[_IFA_RT_PRIORITY]) if _IFA_RT_PRIORITY in found else 0,
    )


def dump_neighbours(index: int = 0) -> Request:
    """Ask for the neighbours on a link (0: on all), both families."""
    body = _NDMSG.pack(0, 0, 0, 0, 0)
    if index:
        body += attribute_u32(_NDA_IFINDEX, index)
    return Request(
        routing.RTM_GETNEIGH, codec.NLM_F_DUMP, body, f"list neighbours on link {index}" if index else "list neighbours"
    )


def _neighbour_body(neighbour: Neighbour, index: int) -> bytes:
    state, flags = neighbour.state, neighbour.flags & routing.NTF_SETTABLE
    body = _NDMSG.pack(neighbour.family, index or neighbour.index, state, flags, 0)
    body += attribute(_NDA_DST, codec.ip_bytes(neighbour.address, neighbour.family))
    if neighbour.hardware_address:
        body += attribute(_NDA_LLADDR, codec.hardware_bytes(neighbour.hardware_address))
    return body


def add_neighbour(neighbour: Neighbour, index: int, *, replace: bool = False) -> Request:
    """Add a neighbour entry (EEXIST if there is one for the address; ``replace`` takes its place).

    Raises:
        ValueError: an address is malformed.
    """
    label = f"add neighbour {neighbour.address}"
    return Request(routing.RTM_NEWNEIGH, routing.add_flags(replace=replace), _neighbour_body(neighbour, index), label)


def delete_neighbour(neighbour: Neighbour, index: int) -> Request:
    """Remove a neighbour entry (ENOENT if there is none)."""
    return Request(routing.RTM_DELNEIGH, 0, _neighbour_body(neighbour, index), f"delete neighbour {neighbour.address}")


def parse_neighbour(body: bytes) -> Neighbour:
    """Read the body of an routing.RTM_NEWNEIGH or routing.RTM_DELNEIGH.

    Raises:
        DecodeError: it is truncated or malformed.
    """
    if len(body) < _NDMSG.size:
        raise DecodeError(f"neighbour message of {len(body)} bytes")
    family, index, state, flags, _ = _NDMSG.unpack_from(body)
    found = attributes(body, _NDMSG.size)
    if _NDA_DST not in found:
        raise DecodeError("neighbour message without an address")
    return Neighbour(
        family=family,
        address=codec.ip_text(found[_NDA_DST]),
        hardware_address=codec.hardware_address(found.get(_NDA_LLADDR, b"")),
        index=index,
        state=state,
        flags=flags,
    )
