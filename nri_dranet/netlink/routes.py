"""Routes over rtnetlink: requests for them and the reading of them. Pure.

Source of the facts: ``linux/rtnetlink.h``, ``net/ipv4/fib_frontend.c``, ``net/ipv6/route.c``.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from nri_dranet.netlink import codec, routing
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
from nri_dranet.netlink.model import NextHop, Route

if TYPE_CHECKING:
    from collections.abc import Iterable

_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_RTNEXTHOP: Final = struct.Struct("=HBBi")

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
_RTA_EXPIRES: Final = 23
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

_METRIC_NUMBER: Final = {name: number for number, name in routing.METRICS.items()}


def dump_routes(index: int = 0, family: int = 0, table: int = 0) -> Request:
    """Ask for the routes over a link (0: all), of a family (0: both), of a table (0: all).

    The kernel answers ENODEV for a link that is gone and ENOENT for a table that does not exist.
    """
    body = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    if table:
        body += attribute_u32(_RTA_TABLE, table)
    if index:
        body += attribute_u32(_RTA_OIF, index)
    return Request(
        routing.RTM_GETROUTE, codec.NLM_F_DUMP, body, f"list routes over link {index}" if index else "list routes"
    )


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
        flags = hop.flags & routing.RTNH_SETTABLE
        parts.append(_RTNEXTHOP.pack(_RTNEXTHOP.size + len(rest), flags, hop.weight - 1, hop.index or index) + rest)
    return attribute(_RTA_MULTIPATH, b"".join(parts))


def _route_parts(route: Route, index: int) -> list[bytes]:
    destination, length = codec.prefix_bytes(route.destination, route.family)
    table = route.table if route.table < routing.TABLE_IN_HEADER else 0
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
            route.flags & routing.RTNH_SETTABLE,
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
    elif route.type not in routing.WITHOUT_INTERFACE:
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
        metrics.append(attribute_text(routing.RTAX_CC_ALGO, route.congestion_control))
    if metrics:
        parts.append(nest(_RTA_METRICS, *metrics))
    if route.expires and route.family == AF_INET6:
        parts.append(attribute_u32(_RTA_EXPIRES, route.expires))
    return Request(
        routing.RTM_NEWROUTE, routing.add_flags(replace=replace), b"".join(parts), f"add route {_words(route)}"
    )


def delete_route(route: Route, index: int) -> Request:
    """Remove a route (ESRCH if it is not there). What it leads to counts too, so that no like one is taken for it."""
    return Request(routing.RTM_DELROUTE, 0, b"".join(_route_parts(route, index)), f"delete route {_words(route)}")


def _words(route: Route) -> str:
    via = f" via {route.gateway}" if route.gateway else ""
    return route.destination + via + (f" table {route.table}" if route.table != routing.RT_TABLE_MAIN else "")


def metric_number(name: str) -> int:
    """Give the RTAX_* number of a route metric.

    Raises:
        ValueError: the name is none of ``routing.METRICS``.
    """
    try:
        return _METRIC_NUMBER[name]
    except KeyError:
        raise ValueError(f"route metric {name!r} is unknown; known are {', '.join(_METRIC_NUMBER)}") from None


def parse_route(body: bytes) -> Route:
    """Read the body of an routing.RTM_NEWROUTE or routing.RTM_DELROUTE.

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
    numbers = {routing.METRICS[kind]: codec.u32(data) for kind, data in found.items() if kind in routing.METRICS}
    return numbers, codec.string(found.get(routing.RTAX_CC_ALGO, b""))


def _expires(value: bytes) -> int:
    # rta_cacheinfo: clntref, lastuse, expires (ticks, signed), error, used, …
    ticks = codec.s32(value[8:12]) if len(value) >= 12 else 0
    return max(1, ticks // routing.USER_HZ) if ticks > 0 else 0


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
