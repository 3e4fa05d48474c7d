"""Traffic control over rtnetlink: queueing disciplines, their classes and filters, as the kernel dumps them. Pure.

What a discipline, class or filter means is its module's business: options are kept as bytes. Source of the facts:
``linux/rtnetlink.h`` (``tcmsg``, ``TCA_*``), ``linux/pkt_sched.h``, ``net/sched/sch_api.c``, ``net/sched/cls_api.c``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from nri_dranet.netlink import codec
from nri_dranet.netlink.codec import DecodeError, Request, attribute, attribute_text, attribute_u32, attributes

RTM_NEWQDISC: Final = 36
RTM_DELQDISC: Final = 37
RTM_GETQDISC: Final = 38
RTM_NEWTCLASS: Final = 40
RTM_DELTCLASS: Final = 41
RTM_GETTCLASS: Final = 42
RTM_NEWTFILTER: Final = 44
RTM_DELTFILTER: Final = 45
RTM_GETTFILTER: Final = 46

ROOT: Final = 0xFFFF_FFFF
"""The parent of an interface's own discipline (TC_H_ROOT)."""
INGRESS: Final = 0xFFFF_FFF1
"""The parent of ``ingress`` and ``clsact`` (TC_H_INGRESS, TC_H_CLSACT)."""
INGRESS_FILTERS: Final = 0xFFFF_FFF2
EGRESS_FILTERS: Final = 0xFFFF_FFF3
"""The parents of their filters: TC_H_MIN_INGRESS and TC_H_MIN_EGRESS in TC_H_CLSACT."""

_NLM_F_ECHO: Final = 0x8
_TCMSG: Final = struct.Struct("=BxxxiIII")

_KIND: Final = 1
_OPTIONS: Final = 2
_STAB: Final = 8
_CHAIN: Final = 11
_INGRESS_BLOCK: Final = 13
_EGRESS_BLOCK: Final = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Qdisc:
    """A queueing discipline of an interface.

    ``handle`` 0 means that the kernel chose it. ``options`` and ``stab`` are the attributes' values as they came.
    Blocks are those that it shares with other interfaces, 0 without.
    """

    index: int
    kind: str
    handle: int
    parent: int
    options: bytes = b""
    stab: bytes = b""
    ingress_block: int = 0
    egress_block: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficClass:
    """A class of a discipline."""

    index: int
    kind: str
    handle: int
    parent: int
    options: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """A filter. ``info`` holds preference (upper half) and protocol (lower half, in the order of the network).

    The kernel dumps a filter's head too: without a handle, and without options.
    """

    index: int
    kind: str
    handle: int
    parent: int
    info: int
    chain: int = 0
    options: bytes = b""


def _body(index: int, handle: int = 0, parent: int = 0, info: int = 0) -> bytes:
    return _TCMSG.pack(0, index, handle, parent, info)


def _options(value: bytes) -> bytes:
    return attribute(_OPTIONS | codec.NLA_F_NESTED, value) if value else b""


def get_qdisc(index: int, parent: int) -> Request:
    """Ask for the discipline at a place of an interface; ENOENT if there is none."""
    # Without this flag some kernels answer to those alone who listen for events (qdisc_notify).
    return Request(RTM_GETQDISC, _NLM_F_ECHO, _body(index, parent=parent), f"read the qdisc of link {index}")


def dump_qdiscs() -> Request:
    """Ask for the disciplines of all interfaces: the kernel does not choose here."""
    return Request(RTM_GETQDISC, codec.NLM_F_DUMP, _body(0), "list qdiscs")


def dump_classes(index: int) -> Request:
    """Ask for the classes of an interface."""
    return Request(RTM_GETTCLASS, codec.NLM_F_DUMP, _body(index), f"list traffic classes of link {index}")


def dump_filters(index: int, parent: int) -> Request:
    """Ask for the filters of a discipline or class of an interface."""
    words = f"list filters of link {index} at {handle_text(parent)}"
    return Request(RTM_GETTFILTER, codec.NLM_F_DUMP, _body(index, parent=parent), words)


def add_qdisc(qdisc: Qdisc, index: int) -> Request:
    """Make a discipline on an interface; what is at its place already is replaced."""
    parts = [_body(index, qdisc.handle, qdisc.parent), attribute_text(_KIND, qdisc.kind), _options(qdisc.options)]
    if qdisc.stab:
        parts.append(attribute(_STAB | codec.NLA_F_NESTED, qdisc.stab))
    for kind, block in ((_INGRESS_BLOCK, qdisc.ingress_block), (_EGRESS_BLOCK, qdisc.egress_block)):
        if block:
            parts.append(attribute_u32(kind, block))
    words = f"restore the qdisc {qdisc.kind} {handle_text(qdisc.handle)}"
    return Request(RTM_NEWQDISC, codec.NLM_F_CREATE | codec.NLM_F_REPLACE, b"".join(parts), words)


def add_class(traffic_class: TrafficClass, index: int) -> Request:
    """Make a class of a discipline."""
    body = _body(index, traffic_class.handle, traffic_class.parent)
    body += attribute_text(_KIND, traffic_class.kind) + _options(traffic_class.options)
    words = f"restore the {traffic_class.kind} class {handle_text(traffic_class.handle)}"
    return Request(RTM_NEWTCLASS, codec.NLM_F_CREATE, body, words)


def add_filter(found: Filter, index: int) -> Request:
    """Make a filter with the handle that it has."""
    body = _body(index, found.handle, found.parent, found.info)
    body += attribute_text(_KIND, found.kind) + (attribute_u32(_CHAIN, found.chain) if found.chain else b"")
    words = f"restore the {found.kind} filter {found.handle:#x} at {handle_text(found.parent)}"
    flags = codec.NLM_F_CREATE | codec.NLM_F_EXCL
    return Request(RTM_NEWTFILTER, flags, body + _options(found.options), words)


def handle_text(handle: int) -> str:
    """Write a handle as tc(8) does: ``1:10``, ``root``."""
    if handle == ROOT:
        return "root"
    return f"{handle >> 16:x}:{handle & 0xFFFF:x}" if handle & 0xFFFF else f"{handle >> 16:x}:"


def parse_qdisc(body: bytes) -> Qdisc:
    """Read the body of an RTM_NEWQDISC.

    Raises:
        DecodeError: it is truncated or malformed.
    """
    index, handle, parent, _, found = _read(body)
    return Qdisc(
        index=index,
        kind=codec.string(found.get(_KIND, b"")),
        handle=handle,
        parent=parent,
        options=found.get(_OPTIONS, b""),
        stab=found.get(_STAB, b""),
        ingress_block=codec.u32(found[_INGRESS_BLOCK]) if _INGRESS_BLOCK in found else 0,
        egress_block=codec.u32(found[_EGRESS_BLOCK]) if _EGRESS_BLOCK in found else 0,
    )


def parse_class(body: bytes) -> TrafficClass:
    """Read the body of an RTM_NEWTCLASS (raises DecodeError as ``parse_qdisc``)."""
    index, handle, parent, _, found = _read(body)
    kind = codec.string(found.get(_KIND, b""))
    return TrafficClass(index=index, kind=kind, handle=handle, parent=parent, options=found.get(_OPTIONS, b""))


def parse_filter(body: bytes) -> Filter:
    """Read the body of an RTM_NEWTFILTER (raises DecodeError as ``parse_qdisc``)."""
    index, handle, parent, info, found = _read(body)
    return Filter(
        index=index,
        kind=codec.string(found.get(_KIND, b"")),
        handle=handle,
        parent=parent,
        info=info,
        chain=codec.u32(found[_CHAIN]) if _CHAIN in found else 0,
        options=found.get(_OPTIONS, b""),
    )


def index_of(body: bytes) -> int:
    """Read the interface that a message of traffic control is about; 0: it is too short to tell."""
    index: int = _TCMSG.unpack_from(body)[1] if len(body) >= _TCMSG.size else 0
    return index


def _read(body: bytes) -> tuple[int, int, int, int, dict[int, bytes]]:
    if len(body) < _TCMSG.size:
        raise DecodeError(f"traffic control message of {len(body)} bytes")
    _, index, handle, parent, info = _TCMSG.unpack_from(body)
    return index, handle, parent, info, attributes(body, _TCMSG.size)
