"""Addresses, routes, rules and neighbours over rtnetlink: requests for them and the reading of them. Pure.

Source of the facts: ``linux/if_addr.h``, ``linux/rtnetlink.h``, ``linux/fib_rules.h``, ``linux/neighbour.h``.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from nri_dranet.netlink import codec
from nri_dranet.netlink.codec import (
    AF_INET,
    AF_INET6,
    DecodeError,
    Request,
    attribute,
    attribute_text,
    attribute_u8,
    attribute_u32,
    attributes,
    nest,
)
from nri_dranet.netlink.model import FOREVER, Address, Neighbour, NextHop, Route, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable

RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_DELROUTE: Final = 25
RTM_GETROUTE: Final = 26
RTM_NEWNEIGH: Final = 28
RTM_DELNEIGH: Final = 29
RTM_GETNEIGH: Final = 30
RTM_NEWRULE: Final = 32
RTM_DELRULE: Final = 33
RTM_GETRULE: Final = 34

RT_TABLE_MAIN: Final = 254
RT_TABLE_LOCAL: Final = 255
# rtm_table and the rule's table have one byte; larger numbers stand in an attribute, with 0 (unspecified) here.
_TABLE_IN_HEADER: Final = 256

IFA_F_SECONDARY: Final = 0x01
IFA_F_NODAD: Final = 0x02
IFA_F_OPTIMISTIC: Final = 0x04
IFA_F_DADFAILED: Final = 0x08
IFA_F_HOMEADDRESS: Final = 0x10
IFA_F_DEPRECATED: Final = 0x20
IFA_F_TENTATIVE: Final = 0x40
IFA_F_PERMANENT: Final = 0x80
IFA_F_MANAGETEMPADDR: Final = 0x100
IFA_F_NOPREFIXROUTE: Final = 0x200
IFA_F_MCAUTOJOIN: Final = 0x400
# What a request may set; the other flags are states that the kernel reports.
_IFA_SETTABLE: Final = (
    IFA_F_NODAD | IFA_F_OPTIMISTIC | IFA_F_HOMEADDRESS | IFA_F_MANAGETEMPADDR | IFA_F_NOPREFIXROUTE | IFA_F_MCAUTOJOIN
)

RTNH_F_PERVASIVE: Final = 0x2
RTNH_F_ONLINK: Final = 0x4
_RTNH_SETTABLE: Final = RTNH_F_PERVASIVE | RTNH_F_ONLINK

RTN_UNICAST: Final = 1
RTN_BLACKHOLE: Final = 6
RTN_UNREACHABLE: Final = 7
RTN_PROHIBIT: Final = 8
RTN_THROW: Final = 9
# Routes that lead nowhere: they have no interface (IPv6 shows the loopback's).
WITHOUT_INTERFACE: Final = frozenset({RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT, RTN_THROW})

FIB_RULE_INVERT: Final = 0x2

NUD_PERMANENT: Final = 0x80
# What a request may set: use, self, master, proxy, extern_learn, sticky, router.
_NTF_SETTABLE: Final = 0xFF

# RTAX_*, by the names that iproute2 shows. 1 (lock) is a bit mask over the others, 16 (congestion control) is text.
METRICS: Final = {
    1: "lock",
    2: "mtu",
    3: "window",
    4: "rtt",
    5: "rttvar",
    6: "ssthresh",
    7: "cwnd",
    8: "advmss",
    9: "reordering",
    10: "hoplimit",
    11: "initcwnd",
    12: "features",
    13: "rto_min",
    14: "initrwnd",
    15: "quickack",
    17: "fastopen_no_cookie",
}
_METRIC_NUMBER: Final = {name: number for number, name in METRICS.items()}
_RTAX_CC_ALGO: Final = 16

# IPv6 route lifetimes are dumped in clock ticks of USER_HZ, which is 100 on every platform that we know.
_USER_HZ: Final = 100

_IFADDRMSG: Final = struct.Struct("=BBBBI")
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_NDMSG: Final = struct.Struct("=BxxxiHBB")
_CACHEINFO: Final = struct.Struct("=IIII")
_RTNEXTHOP: Final = struct.Struct("=HBBi")
_PORT_RANGE: Final = struct.Struct("=HH")
_UID_RANGE: Final = struct.Struct("=II")

_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_LABEL: Final = 3
_IFA_BROADCAST: Final = 4
_IFA_CACHEINFO: Final = 6
_IFA_FLAGS: Final = 8
_IFA_RT_PRIORITY: Final = 9
_IFA_PROTO: Final = 11

_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RTA_PRIORITY: Final = 6
_RTA_PREFSRC: Final = 7
_RTA_METRICS: Final = 8
_RTA_MULTIPATH: Final = 9
_RTA_FLOW: Final = 11
_RTA_CACHEINFO: Final = 12
_RTA_TABLE: Final = 15
_RTA_VIA: Final = 18
_RTA_PREF: Final = 20
_RTA_PAD: Final = 24
_RTA_NH_ID: Final = 30
_ROUTE_KNOWN: Final = frozenset(
    {
        _RTA_DST,
        _RTA_OIF,
        _RTA_GATEWAY,
        _RTA_PRIORITY,
        _RTA_PREFSRC,
        _RTA_METRICS,
        _RTA_MULTIPATH,
        _RTA_FLOW,
        _RTA_CACHEINFO,
        _RTA_TABLE,
        _RTA_VIA,
        _RTA_PREF,
        _RTA_PAD,
        _RTA_NH_ID,
    }
)
_HOP_KNOWN: Final = frozenset({_RTA_GATEWAY, _RTA_VIA, _RTA_FLOW, _RTA_PAD})

_FRA_DST: Final = 1
_FRA_SRC: Final = 2
_FRA_IIFNAME: Final = 3
_FRA_GOTO: Final = 4
_FRA_PRIORITY: Final = 6
_FRA_FWMARK: Final = 10
_FRA_FLOW: Final = 11
_FRA_SUPPRESS_IFGROUP: Final = 13
_FRA_SUPPRESS_PREFIXLEN: Final = 14
_FRA_TABLE: Final = 15
_FRA_FWMASK: Final = 16
_FRA_OIFNAME: Final = 17
_FRA_PAD: Final = 18
_FRA_L3MDEV: Final = 19
_FRA_UID_RANGE: Final = 20
_FRA_PROTOCOL: Final = 21
_FRA_IP_PROTO: Final = 22
_FRA_SPORT_RANGE: Final = 23
_FRA_DPORT_RANGE: Final = 24
_FRA_SPORT_MASK: Final = 28
_FRA_DPORT_MASK: Final = 29
_RULE_KNOWN: Final = frozenset(
    {
        _FRA_DST,
        _FRA_SRC,
        _FRA_IIFNAME,
        _FRA_GOTO,
        _FRA_PRIORITY,
        _FRA_FWMARK,
        _FRA_FLOW,
        _FRA_SUPPRESS_IFGROUP,
        _FRA_SUPPRESS_PREFIXLEN,
        _FRA_TABLE,
        _FRA_FWMASK,
        _FRA_OIFNAME,
        _FRA_PAD,
        _FRA_L3MDEV,
        _FRA_UID_RANGE,
        _FRA_PROTOCOL,
        _FRA_IP_PROTO,
        _FRA_SPORT_RANGE,
        _FRA_DPORT_RANGE,
    }
)

_NDA_DST: Final = 1
_NDA_LLADDR: Final = 2
_NDA_IFINDEX: Final = 8


def _add_flags(*, replace: bool) -> int:
    return codec.NLM_F_CREATE | (codec.NLM_F_REPLACE if replace else codec.NLM_F_EXCL)


# addresses


def dump_addresses(index: int = 0, family: int = 0) -> Request:
    """Ask for the addresses of a link (0: of all), of a family (0: both)."""
    body = _IFADDRMSG.pack(family, 0, 0, 0, index)
    return Request(
        RTM_GETADDR, codec.NLM_F_DUMP, body, f"list addresses of link {index}" if index else "list addresses"
    )


def _address_body(address: Address, index: int) -> list[bytes]:
    flags = address.flags & _IFA_SETTABLE
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
    parts.append(attribute_u32(_IFA_FLAGS, address.flags & _IFA_SETTABLE))
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
    return Request(RTM_NEWADDR, _add_flags(replace=replace), b"".join(parts), f"add address {address.cidr}")


def delete_address(address: Address, index: int) -> Request:
    """Remove an address (EADDRNOTAVAIL if it is not there)."""
    return Request(RTM_DELADDR, 0, b"".join(_address_body(address, index)), f"delete address {address.cidr}")


def parse_address(body: bytes) -> Address:
    """Read the body of an RTM_NEWADDR or RTM_DELADDR.

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


# routes


def dump_routes(index: int = 0, family: int = 0, table: int = 0) -> Request:
    """Ask for the routes over a link (0: all), of a family (0: both), of a table (0: all).

    The kernel answers ENODEV for a link that is gone and ENOENT for a table that does not exist.
    """
    body = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    if table:
        body += attribute_u32(_RTA_TABLE, table)
    if index:
        body += attribute_u32(_RTA_OIF, index)
    return Request(RTM_GETROUTE, codec.NLM_F_DUMP, body, f"list routes over link {index}" if index else "list routes")


def _via(gateway: str, family: int) -> bytes:
    other = AF_INET6 if ":" in gateway else AF_INET
    if other == family:
        return attribute(_RTA_GATEWAY, codec.ip_bytes(gateway, family))
    return attribute(_RTA_VIA, struct.pack("=H", other) + codec.ip_bytes(gateway, other))


def _next_hops(hops: Iterable[NextHop], family: int, index: int) -> bytes:
    parts = []
    for hop in hops:
        rest = _via(hop.gateway, family) if hop.gateway else b""
        if hop.realm:
            rest += attribute_u32(_RTA_FLOW, hop.realm)
        if not 1 <= hop.weight <= 256:
            raise ValueError(f"next hop weight {hop.weight}: 1 to 256 are allowed")
        flags = hop.flags & _RTNH_SETTABLE
        parts.append(_RTNEXTHOP.pack(_RTNEXTHOP.size + len(rest), flags, hop.weight - 1, hop.index or index) + rest)
    return attribute(_RTA_MULTIPATH, b"".join(parts))


def _route_parts(route: Route, index: int) -> list[bytes]:
    destination, length = codec.prefix_bytes(route.destination, route.family)
    table = route.table if route.table < _TABLE_IN_HEADER else 0
    parts = [
        _RTMSG.pack(
            route.family,
            length,
            0,
            route.tos,
            table,
            route.protocol,
            route.scope,
            route.type,
            route.flags & _RTNH_SETTABLE,
        ),
        attribute_u32(_RTA_TABLE, route.table),
    ]
    if length:
        parts.append(attribute(_RTA_DST, destination))
    if route.metric:
        parts.append(attribute_u32(_RTA_PRIORITY, route.metric))
    if route.next_hop_id:
        parts.append(attribute_u32(_RTA_NH_ID, route.next_hop_id))
    elif route.next_hops:
        parts.append(_next_hops(route.next_hops, route.family, index))
    elif route.type not in WITHOUT_INTERFACE:
        if route.gateway:
            parts.append(_via(route.gateway, route.family))
        if index or route.index:
            parts.append(attribute_u32(_RTA_OIF, index or route.index))
    return parts


def add_route(route: Route, index: int, *, replace: bool = False) -> Request:
    """Add a route over a link (EEXIST if there is one with its destination, table, TOS and metric).

    Args:
        route: the route; its own interface index counts only where ``index`` is 0.
        index: the interface, also of next hops that name none. Routes that lead nowhere (blackhole, …) have none.
        replace: replace the route of the same destination, table, TOS and metric instead.

    Raises:
        ValueError: a value does not fit its field, or a metric's name is unknown.
    """
    parts = _route_parts(route, index)
    if route.source:
        parts.append(attribute(_RTA_PREFSRC, codec.ip_bytes(route.source, route.family)))
    if route.realm:
        parts.append(attribute_u32(_RTA_FLOW, route.realm))
    if route.preference is not None and route.family == AF_INET6:
        parts.append(attribute_u8(_RTA_PREF, route.preference))
    metrics = [attribute_u32(metric_number(name), value) for name, value in route.metrics.items()]
    if route.congestion_control:
        metrics.append(attribute_text(_RTAX_CC_ALGO, route.congestion_control))
    if metrics:
        parts.append(nest(_RTA_METRICS, *metrics))
    if route.expires and route.family == AF_INET6:
        parts.append(attribute_u32(_RTA_EXPIRES, route.expires))
    return Request(RTM_NEWROUTE, _add_flags(replace=replace), b"".join(parts), f"add route {_words(route)}")


_RTA_EXPIRES: Final = 23


def delete_route(route: Route, index: int) -> Request:
    """Remove a route (ESRCH if it is not there). What it leads to counts too, so that no like one is taken for it."""
    return Request(RTM_DELROUTE, 0, b"".join(_route_parts(route, index)), f"delete route {_words(route)}")


def _words(route: Route) -> str:
    via = f" via {route.gateway}" if route.gateway else ""
    return route.destination + via + (f" table {route.table}" if route.table != RT_TABLE_MAIN else "")


def metric_number(name: str) -> int:
    """Give the RTAX_* number of a route metric.

    Raises:
        ValueError: the name is none of ``METRICS``.
    """
    try:
        return _METRIC_NUMBER[name]
    except KeyError:
        raise ValueError(f"route metric {name!r} is unknown; known are {', '.join(_METRIC_NUMBER)}") from None


def parse_route(body: bytes) -> Route:
    """Read the body of an RTM_NEWROUTE or RTM_DELROUTE.

    Raises:
        DecodeError: it is truncated or malformed.
    """
    if len(body) < _RTMSG.size:
        raise DecodeError(f"route message of {len(body)} bytes")
    family, length, source_length, tos, table, protocol, scope, kind, flags = _RTMSG.unpack_from(body)
    found = attributes(body, _RTMSG.size)
    metrics, congestion_control = _metrics(found.get(_RTA_METRICS, b""))
    unknown = {number for number in found if number not in _ROUTE_KNOWN}
    if source_length:
        # A destination that counts only for some sources (IPv6 subtrees): RTA_SRC has no field either.
        unknown.add(2)
    return Route(
        family=family,
        destination=codec.prefix_text(found.get(_RTA_DST, b""), family, length),
        index=codec.u32(found[_RTA_OIF]) if _RTA_OIF in found else 0,
        gateway=_gateway(found),
        source=codec.ip_text(found[_RTA_PREFSRC]) if _RTA_PREFSRC in found else None,
        table=codec.u32(found[_RTA_TABLE]) if _RTA_TABLE in found else table,
        scope=scope,
        type=kind,
        protocol=protocol,
        metric=codec.u32(found[_RTA_PRIORITY]) if _RTA_PRIORITY in found else 0,
        tos=tos,
        flags=flags,
        preference=codec.u8(found[_RTA_PREF]) if _RTA_PREF in found else None,
        next_hop_id=codec.u32(found[_RTA_NH_ID]) if _RTA_NH_ID in found else 0,
        next_hops=_parse_hops(found.get(_RTA_MULTIPATH, b"")),
        metrics=metrics,
        expires=_expires(found.get(_RTA_CACHEINFO, b"")),
        realm=codec.u32(found[_RTA_FLOW]) if _RTA_FLOW in found else 0,
        congestion_control=congestion_control,
        unknown=tuple(sorted(unknown)),
    )


def _gateway(found: dict[int, bytes]) -> str | None:
    if _RTA_GATEWAY in found:
        return codec.ip_text(found[_RTA_GATEWAY])
    return codec.ip_text(found[_RTA_VIA][2:]) if _RTA_VIA in found else None


def _metrics(value: bytes) -> tuple[dict[str, int], str]:
    found = attributes(value)
    numbers = {METRICS[kind]: codec.u32(data) for kind, data in found.items() if kind in METRICS}
    return numbers, codec.string(found.get(_RTAX_CC_ALGO, b""))


def _expires(value: bytes) -> int:
    # rta_cacheinfo: clntref, lastuse, expires (ticks, signed), error, used, …
    ticks = codec.s32(value[8:12]) if len(value) >= 12 else 0
    return max(1, ticks // _USER_HZ) if ticks > 0 else 0


def _parse_hops(value: bytes) -> tuple[NextHop, ...]:
    hops = []
    offset = 0
    while offset + _RTNEXTHOP.size <= len(value):
        length, flags, weight, index = _RTNEXTHOP.unpack_from(value, offset)
        if length < _RTNEXTHOP.size or offset + length > len(value):
            raise DecodeError(f"next hop: length {length} with {len(value) - offset} bytes left")
        found = attributes(value, offset + _RTNEXTHOP.size, offset + length)
        hops.append(
            NextHop(
                index=index,
                gateway=_gateway(found),
                weight=weight + 1,
                flags=flags,
                realm=codec.u32(found[_RTA_FLOW]) if _RTA_FLOW in found else 0,
                unknown=tuple(sorted(number for number in found if number not in _HOP_KNOWN)),
            )
        )
        offset += (length + 3) & ~3
    return tuple(hops)


# rules


def dump_rules(family: int = 0) -> Request:
    """Ask for the policy rules of a family (0: of both)."""
    return Request(RTM_GETRULE, codec.NLM_F_DUMP, _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0), "list rules")


def _rule_body(rule: Rule) -> bytes:
    source, source_length = codec.prefix_bytes(rule.source, rule.family) if rule.source else (b"", 0)
    target, target_length = codec.prefix_bytes(rule.destination, rule.family) if rule.destination else (b"", 0)
    table = rule.table if rule.table < _TABLE_IN_HEADER else 0
    invert = rule.flags & FIB_RULE_INVERT
    parts = [
        _RTMSG.pack(rule.family, target_length, source_length, rule.tos, table, 0, 0, rule.action, invert),
    ]
    if source_length:
        parts.append(attribute(_FRA_SRC, source))
    if target_length:
        parts.append(attribute(_FRA_DST, target))
    parts += [
        attribute_text(kind, name)
        for kind, name in ((_FRA_IIFNAME, rule.iif), (_FRA_OIFNAME, rule.oif))
        if name is not None
    ]
    parts += [
        attribute_u32(kind, number)
        for kind, number in (
            (_FRA_TABLE, None if rule.l3mdev else rule.table or None),
            (_FRA_PRIORITY, rule.priority),
            (_FRA_FWMARK, rule.mark),
            (_FRA_FWMASK, rule.mask),
            (_FRA_SUPPRESS_PREFIXLEN, rule.suppress_prefix_length),
            (_FRA_SUPPRESS_IFGROUP, rule.suppress_group),
            (_FRA_GOTO, rule.goto),
            (_FRA_FLOW, rule.realm or None),
        )
        if number is not None
    ]
    if rule.l3mdev:
        parts.append(attribute_u8(_FRA_L3MDEV, 1))
    if rule.protocol:
        parts.append(attribute_u8(_FRA_PROTOCOL, rule.protocol))
    if rule.ip_protocol is not None:
        parts.append(attribute_u8(_FRA_IP_PROTO, rule.ip_protocol))
    parts += [
        attribute(kind, layout.pack(*values))
        for kind, layout, values in (
            (_FRA_SPORT_RANGE, _PORT_RANGE, rule.source_ports),
            (_FRA_DPORT_RANGE, _PORT_RANGE, rule.destination_ports),
            (_FRA_UID_RANGE, _UID_RANGE, rule.uid_range),
        )
        if values is not None
    ]
    return b"".join(parts)


def _rule_words(rule: Rule) -> str:
    words = [f"{rule.priority}:" if rule.priority is not None else ""]
    words += [f"{word} {value}" for word, value in (("from", rule.source), ("to", rule.destination)) if value]
    return " ".join(word for word in [*words, f"table {rule.table}"] if word)


def add_rule(rule: Rule) -> Request:
    """Add a policy rule (EEXIST if there is exactly this one).

    Raises:
        ValueError: a value does not fit its field.
    """
    return Request(RTM_NEWRULE, _add_flags(replace=False), _rule_body(rule), f"add rule {_rule_words(rule)}")


def delete_rule(rule: Rule) -> Request:
    """Remove a policy rule (ENOENT if it is not there); the first that has all of its qualifiers goes."""
    return Request(RTM_DELRULE, 0, _rule_body(rule), f"delete rule {_rule_words(rule)}")


def parse_rule(body: bytes) -> Rule:
    """Read the body of an RTM_NEWRULE or RTM_DELRULE.

    Raises:
        DecodeError: it is truncated or malformed.
    """
    if len(body) < _RTMSG.size:
        raise DecodeError(f"rule message of {len(body)} bytes")
    family, target_length, source_length, tos, table, _, _, action, flags = _RTMSG.unpack_from(body)
    found = attributes(body, _RTMSG.size)

    def number(kind: int) -> int | None:
        return codec.u32(found[kind]) if kind in found else None

    def text(kind: int) -> str | None:
        return codec.string(found[kind]) if kind in found else None

    def span(kind: int, layout: struct.Struct) -> tuple[int, int] | None:
        if kind not in found:
            return None
        if len(found[kind]) < layout.size:
            raise DecodeError(f"rule attribute {kind} of {len(found[kind])} bytes")
        first, last = layout.unpack_from(found[kind])
        return first, last

    suppress_length, suppress_group = number(_FRA_SUPPRESS_PREFIXLEN), number(_FRA_SUPPRESS_IFGROUP)
    return Rule(
        family=family,
        table=codec.u32(found[_FRA_TABLE]) if _FRA_TABLE in found else table,
        # The kernel leaves the attribute out for priority 0.
        priority=number(_FRA_PRIORITY) or 0,
        action=action,
        flags=flags,
        source=codec.prefix_text(found[_FRA_SRC], family, source_length) if _FRA_SRC in found else None,
        destination=codec.prefix_text(found[_FRA_DST], family, target_length) if _FRA_DST in found else None,
        iif=text(_FRA_IIFNAME),
        oif=text(_FRA_OIFNAME),
        # Mark 0 has no attribute, but a mask beside it.
        mark=number(_FRA_FWMARK) if _FRA_FWMASK not in found else number(_FRA_FWMARK) or 0,
        mask=number(_FRA_FWMASK),
        tos=tos,
        ip_protocol=codec.u8(found[_FRA_IP_PROTO]) if _FRA_IP_PROTO in found else None,
        source_ports=span(_FRA_SPORT_RANGE, _PORT_RANGE),
        destination_ports=span(_FRA_DPORT_RANGE, _PORT_RANGE),
        uid_range=span(_FRA_UID_RANGE, _UID_RANGE),
        # -1 stands for "suppresses nothing".
        suppress_prefix_length=None if suppress_length == FOREVER else suppress_length,
        suppress_group=None if suppress_group == FOREVER else suppress_group,
        goto=number(_FRA_GOTO),
        l3mdev=found.get(_FRA_L3MDEV, b"\0") != b"\0",
        protocol=codec.u8(found[_FRA_PROTOCOL]) if _FRA_PROTOCOL in found else 0,
        realm=number(_FRA_FLOW) or 0,
        unknown=tuple(sorted(kind for kind in found if kind not in _RULE_KNOWN and not _full_port_mask(kind, found))),
    )


def _full_port_mask(kind: int, found: dict[int, bytes]) -> bool:
    # Since 6.15 a rule with ports reports a mask over them; all bits set is the plain match.
    return kind in {_FRA_SPORT_MASK, _FRA_DPORT_MASK} and found[kind] in {b"\xff\xff", b"\0\0"}


# neighbours


def dump_neighbours(index: int = 0) -> Request:
    """Ask for the neighbours on a link (0: on all), both families."""
    body = _NDMSG.pack(0, 0, 0, 0, 0)
    if index:
        body += attribute_u32(_NDA_IFINDEX, index)
    return Request(
        RTM_GETNEIGH, codec.NLM_F_DUMP, body, f"list neighbours on link {index}" if index else "list neighbours"
    )


def _neighbour_body(neighbour: Neighbour, index: int) -> bytes:
    state, flags = neighbour.state, neighbour.flags & _NTF_SETTABLE
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
    return Request(RTM_NEWNEIGH, _add_flags(replace=replace), _neighbour_body(neighbour, index), label)


def delete_neighbour(neighbour: Neighbour, index: int) -> Request:
    """Remove a neighbour entry (ENOENT if there is none)."""
    return Request(RTM_DELNEIGH, 0, _neighbour_body(neighbour, index), f"delete neighbour {neighbour.address}")


def parse_neighbour(body: bytes) -> Neighbour:
    """Read the body of an RTM_NEWNEIGH or RTM_DELNEIGH.

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
