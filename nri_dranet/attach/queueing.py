"""Queueing disciplines, classes and filters of an interface: read before it leaves, put back when it is home.

A move destroys all of them (``dev_shutdown`` in ``net/core/dev.c``; measured on 6.18: the interface has ``noop`` then).
The kernel takes back what it has dumped, with few exceptions, which are mended here. Its own default disciplines
(handle 0) it makes again by itself.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from nri_dranet.claims.plan import Traffic
from nri_dranet.netlink import codec, traffic
from nri_dranet.netlink.codec import attribute, attribute_list, attribute_u32
from nri_dranet.netlink.traffic import Filter, Qdisc, TrafficClass

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from nri_dranet.netlink.codec import Request
    from nri_dranet.netlink.sockets import RtnlSocket

_NO_QDISC: Final = frozenset({errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL})

# Disciplines whose classes an administrator makes; those of all others come with them.
_WITH_CLASSES: Final = frozenset({"htb", "hfsc", "drr", "qfq"})
_INGRESS_KINDS: Final = frozenset({"ingress", "clsact"})

# struct tc_htb_glob: version, rate2quantum, defcls, debug, direct_pkts. The kernel dumps HTB_VER (major and minor
# number) and takes the major number alone (htb_init).
_HTB_INIT: Final = 2
_HTB_GLOB: Final = struct.Struct("=IIIII")

# TCA_*_FLAGS of filters, in which the kernel tells what became of an offload (TCA_CLS_FLAGS_IN_HW, ..._NOT_IN_HW) and
# does not take that back.
_FILTER_FLAGS: Final = {"u32": 11, "flower": 22, "matchall": 3, "bpf": 9}
_IN_HARDWARE: Final = 1 << 2 | 1 << 3
_FILTER_ACTIONS: Final = {"u32": 7, "flower": 3, "matchall": 2, "bpf": 1, "basic": 3, "fw": 4}

_U32_HASH: Final = 2
_U32_DIVISOR: Final = 4
_U32_OWN_TABLES: Final = 0x800 << 20
_U32_TABLE: Final = 0xFFF0_0000
_U32_NODE: Final = 0xFFF
# TC_U32_ROOT: the table that the kernel has made for the filter's preference.
_U32_ROOT: Final = 0xFFF0_0000

_BPF_FD: Final = 6
_BPF_TAG: Final = 10
_BPF_ID: Final = 11

_ACT_KIND: Final = 1
_ACT_OPTIONS: Final = 2
# Which attribute of an action holds its number, at offset 0 (tc_gen, struct tc_police).
_ACTION_PARMS: Final = {
    "mirred": (2,),
    "gact": (2,),
    "skbedit": (2,),
    "vlan": (2,),
    "tunnel_key": (2,),
    "sample": (2,),
    "mpls": (2,),
    "pedit": (2, 4),
    "csum": (1,),
    "connmark": (1,),
    "nat": (1,),
    "ct": (1,),
    "police": (1,),
}
# struct tc_gen: index, capab, action, refcnt, bindcnt.
_GENERIC: Final = struct.Struct("=IIiii")


def read(host: RtnlSocket, index: int) -> Traffic:
    """Read what an administrator has made on an interface. Two messages where that is nothing.

    Raises:
        NetlinkError: the kernel refuses.
    """
    replies = host.batch([traffic.get_qdisc(index, traffic.ROOT), traffic.get_qdisc(index, traffic.INGRESS)])
    own = [item for reply in replies for item in reply.objects if isinstance(item, Qdisc) and item.handle]
    for reply in replies:
        if reply.error is not None and reply.error.errno not in _NO_QDISC:
            raise reply.error
    if not own:
        return Traffic()
    classes: list[TrafficClass] = []
    if any(qdisc.kind not in _INGRESS_KINDS for qdisc in own):
        every = host.batch([traffic.dump_qdiscs()])[0]
        own = [item for item in every.objects if isinstance(item, Qdisc) and item.index == index and item.handle]
        classes = [
            item
            for item in host.batch([traffic.dump_classes(index)])[0].objects
            if isinstance(item, TrafficClass) and item.kind in _WITH_CLASSES and item.handle & 0xFFFF
        ]
    filters = [found for parent in _filter_parents(own, classes) for found in _filters(host, index, parent)]
    return Traffic(
        qdiscs=tuple(replace(qdisc, options=_qdisc_options(qdisc)) for qdisc in own),
        classes=tuple(classes),
        filters=tuple(dict.fromkeys(filters)),
    )


def restore(
    host: RtnlSocket, index: int, wanted: Traffic, *, fresh: bool, programs: Mapping[int, int] | None = None
) -> list[str]:
    """Put back what is missing.

    Args:
        host: a socket in the host's namespace.
        index: the interface.
        wanted: what it had.
        fresh: it has only just arrived, so that it has nothing yet.
        programs: descriptors of BPF programs by their ID, for filters of kind ``bpf``.

    Returns:
        What could not be put back, in words.

    Raises:
        NetlinkError: the kernel does not answer.
    """
    if not wanted.qdiscs:
        return []
    present = Traffic() if fresh else read(host, index)
    requests: list[Request] = []
    for item in _in_order(wanted):
        if isinstance(item, Qdisc):
            if replace(item, index=0) not in [replace(other, index=0) for other in present.qdiscs]:
                requests.append(traffic.add_qdisc(item, index))
        elif replace(item, index=0) not in [replace(other, index=0) for other in present.classes]:
            requests.append(traffic.add_class(item, index))
    have = {_key(found) for found in present.filters}
    missing = [found for found in wanted.filters if _key(found) not in have]
    more, problems = _filter_requests(missing, _doubtful(wanted.filters), index, programs or {})
    requests += more
    if requests:
        problems += [str(reply.error) for reply in host.batch(requests) if reply.error is not None]
    return problems


def _filter_requests(
    missing: Iterable[Filter], doubtful: Sequence[Filter], index: int, programs: Mapping[int, int]
) -> tuple[list[Request], list[str]]:
    """Give the requests that make filters, and in words which cannot be made."""
    requests: list[Request] = []
    problems: list[str] = []
    for found in missing:
        why = ""
        if found in doubtful:
            why = "one of the same preference is on the other side, and the kernel shows both on both"
        else:
            try:
                requests.append(traffic.add_filter(_mended(found, programs), index))
            except ValueError as error:
                why = str(error)
        if why:
            words = f"{found.kind} filter {found.handle:#x} at {traffic.handle_text(found.parent)}"
            problems.append(f"the {words} cannot be put back: {why}")
    return requests, problems


def program_ids(wanted: Traffic) -> tuple[int, ...]:
    """Give the IDs of the BPF programs that the filters run."""
    found = []
    for each in wanted.filters:
        options = dict(attribute_list(each.options)) if each.kind == "bpf" else {}
        if _BPF_ID in options:
            found.append(codec.u32(options[_BPF_ID]))
    return tuple(dict.fromkeys(found))


def _filter_parents(qdiscs: Iterable[Qdisc], classes: Iterable[TrafficClass]) -> list[int]:
    parents: list[int] = []
    for qdisc in qdiscs:
        if qdisc.kind in _INGRESS_KINDS:
            # Filters of a shared block belong to the block.
            parents += [traffic.INGRESS_FILTERS] if not qdisc.ingress_block else []
            parents += [traffic.EGRESS_FILTERS] if qdisc.kind == "clsact" and not qdisc.egress_block else []
        else:
            parents.append(qdisc.handle)
    return parents + [each.handle for each in classes if each.kind in {"htb", "hfsc"}]


def _filters(host: RtnlSocket, index: int, parent: int) -> list[Filter]:
    reply = host.batch([traffic.dump_filters(index, parent)])[0]
    found = [item for item in reply.objects if isinstance(item, Filter) and item.options and item.handle]
    return [item for item in found if not _own_table(item)]


def _own_table(found: Filter) -> bool:
    """Tell whether a filter is the table that the kernel makes for each preference of u32."""
    return (
        found.kind == "u32"
        and found.handle >= _U32_OWN_TABLES
        and any(kind == _U32_DIVISOR for kind, _ in attribute_list(found.options))
    )


def _doubtful(filters: Iterable[Filter]) -> list[Filter]:
    """Give the u32 filters of clsact of which the kernel does not tell whether they are at ingress or at egress.

    It lists all tables of a preference that the discipline has, whichever side they belong to (``u32_walk``).
    """
    sides: dict[tuple[int, int], list[Filter]] = {}
    for each in filters:
        if each.kind == "u32" and each.parent in (traffic.INGRESS_FILTERS, traffic.EGRESS_FILTERS):
            sides.setdefault((each.info, each.handle), []).append(each)
    return [each for same in sides.values() if len({one.parent for one in same}) > 1 for each in same]


def _key(found: Filter) -> tuple[object, ...]:
    handle = found.handle
    if found.kind == "u32" and handle >= _U32_OWN_TABLES:
        handle &= _U32_NODE
    return found.kind, found.parent, found.info, found.chain, handle


def _in_order(wanted: Traffic) -> list[Qdisc | TrafficClass]:
    """Give disciplines and classes, each after the one that it is in."""
    every: list[Qdisc | TrafficClass] = [*wanted.qdiscs, *wanted.classes]
    items = {each.handle: each for each in every}

    def depth(item: Qdisc | TrafficClass) -> int:
        for steps in range(len(items) + 1):
            if item.parent in (traffic.ROOT, traffic.INGRESS):
                return steps + isinstance(item, TrafficClass)
            # A class that came with its discipline is not listed: that stands for it.
            above = items.get(item.parent) or items.get(item.parent & 0xFFFF_0000)
            if above is None or above is item:
                return steps
            item = above
        return len(items) + 1

    return sorted(every, key=depth)


def _qdisc_options(qdisc: Qdisc) -> bytes:
    if qdisc.kind != "htb":
        return qdisc.options
    found = []
    for kind, value in attribute_list(qdisc.options):
        mended = value
        if kind == _HTB_INIT and len(value) == _HTB_GLOB.size:
            version, quantum, default, debug, _ = _HTB_GLOB.unpack(value)
            mended = _HTB_GLOB.pack(version >> 16 or version, quantum, default, debug, 0)
        found.append(attribute(kind, mended))
    return b"".join(found)


def _mended(found: Filter, programs: Mapping[int, int]) -> Filter:
    """Give a filter as the kernel takes it.

    Raises:
        ValueError: it cannot be made again; the text says why.
    """
    parts: list[bytes] = []
    handle, own = found.handle, found.kind == "u32" and found.handle >= _U32_OWN_TABLES
    for kind, value in attribute_list(found.options):
        if kind == _FILTER_FLAGS.get(found.kind) and len(value) == 4:
            parts.append(attribute_u32(kind, codec.u32(value) & ~_IN_HARDWARE))
        elif kind == _FILTER_ACTIONS.get(found.kind):
            parts.append(codec.nest(kind, *(_action(number, action) for number, action in attribute_list(value))))
        elif own and kind == _U32_HASH:
            # Tables are numbered as preferences come: only the kernel knows which one this will get.
            parts.append(attribute_u32(kind, _U32_ROOT | codec.u32(value) & ~_U32_TABLE))
        elif found.kind == "bpf" and kind == _BPF_ID:
            program = codec.u32(value)
            if program not in programs:
                raise ValueError(f"its BPF program {program} could not be kept")
            parts.append(attribute_u32(_BPF_FD, programs[program]))
        elif found.kind != "bpf" or kind != _BPF_TAG:
            parts.append(attribute(kind, value))
    return replace(found, handle=handle & _U32_NODE if own else handle, options=b"".join(parts))


def _action(number: int, value: bytes) -> bytes:
    """Give an action of a filter; one that no other filter has becomes a new one, with a number that is free then."""
    found = attribute_list(value)
    kind = codec.string(dict(found).get(_ACT_KIND, b""))
    if kind not in _ACTION_PARMS:
        raise ValueError(f"nothing is known of actions of kind {kind!r}")
    parts = [
        codec.nest(_ACT_OPTIONS, *(_parms(kind, inner, text) for inner, text in attribute_list(text)))
        if each == _ACT_OPTIONS
        else attribute(each, text)
        for each, text in found
    ]
    return codec.nest(number, *parts)


def _parms(kind: str, number: int, value: bytes) -> bytes:
    if number in _ACTION_PARMS[kind] and len(value) >= _GENERIC.size:
        shared = kind != "police" and _GENERIC.unpack_from(value)[3] > 1
        if not shared:
            value = bytes(4) + value[4:]
    return attribute(number, value)
