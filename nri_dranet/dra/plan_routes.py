"""Routes, rules and neighbours of a plan: those of the configuration, and those that come with the host's interface.

What is copied must be right in the pod. The kernel makes connected routes with the addresses, so that they are never
copied; a route is left out whose source the pod has not, whose gateway it cannot reach, or which would take over the
pod's own default route. A rule is copied with all that it says or not at all. Numbers are those of
``linux/rtnetlink.h``, ``linux/fib_rules.h`` and ``linux/neighbour.h``.
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from nri_dranet.api.config import SCOPE_LINK, TABLE_LOCAL, TABLE_MAIN
from nri_dranet.api.values import broadcast_address
from nri_dranet.netlink.codec import AF_INET, AF_INET6
from nri_dranet.netlink.model import Address, Neighbour, NextHop, Route, Rule
from nri_dranet.netlink.routing import FIB_RULE_INVERT, IFA_F_NOPREFIXROUTE, NUD_PERMANENT, RTNH_F_ONLINK

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from nri_dranet.api.config import NetworkConfig
    from nri_dranet.claims.plan import HostState, PodState
    from nri_dranet.dra.plan_model import Problems

RTPROT_REDIRECT: Final = 1
RTPROT_KERNEL: Final = 2
RTPROT_RA: Final = 9
RTPROT_DHCP: Final = 16
_MADE_BY_KERNEL: Final = frozenset({RTPROT_REDIRECT, RTPROT_KERNEL, RTPROT_RA})
_RTM_F_CLONED: Final = 0x200

_FR_ACT_TO_TBL: Final = 1
_OWN_TABLES: Final = frozenset({0, 253, 254, 255})
"""The tables that every namespace has rules for: unspecified, default, main, local."""

_NTF_PROXY: Final = 0x8
_NTF_ROUTER: Final = 0x80

_DEFAULTS: Final = frozenset({"0.0.0.0/0", "::/0"})
_LINK_LOCAL: Final = ipaddress.IPv6Network("fe80::/10")
_MULTICAST: Final = ipaddress.IPv6Network("ff00::/8")

_BITS: Final = {AF_INET: 32, AF_INET6: 128}


def family(text: str) -> int:
    """Return the address family (``AF_INET``, ``AF_INET6``) of a canonical address or network."""
    return AF_INET6 if ":" in text else AF_INET


class Reach:
    """Which gateways are on the link: in the network of an address, or in the destination of a route without gateway.

    The kernel looks for a gateway in the route's own table and, where nothing is found, by its rules, which lead to the
    table main (``fib_check_nh``, ``ip6_route_check_nh``).
    """

    def __init__(self, addresses: Iterable[Address], routes: Iterable[Route], connected_table: int) -> None:
        self.own = {address.address for address in addresses}
        self._broadcast: set[str | None] = set()
        self._networks: dict[tuple[int, int], dict[int, set[int]]] = {}
        for address in addresses:
            self._broadcast |= {address.broadcast, broadcast_address(address.cidr)}
            if not address.flags & IFA_F_NOPREFIXROUTE:
                network = f"{address.peer or address.address}/{address.prefix_length}"
                self._add(network, connected_table)
        for route in routes:
            if not hops(route):
                self._add(route.destination, route.table)

    def _add(self, network: str, table: int) -> None:
        address, _, length = network.partition("/")
        kind = family(address)
        prefix = int(ipaddress.ip_address(address)) >> (_BITS[kind] - int(length))
        self._networks.setdefault((kind, int(length)), {}).setdefault(prefix, set()).add(table)

    def on_link(self, gateway: str, table: int) -> bool:
        """Tell whether a route of ``table`` can have this gateway.

        The interface's own address as an IPv4 gateway means that the destination is on the link; IPv6 does not know it.
        """
        address = ipaddress.ip_address(gateway)
        if address.version == 6 and address.is_link_local:
            return True
        if gateway in self.own:
            return address.version == 4
        if gateway in self._broadcast:
            return False
        kind, value = family(gateway), int(address)
        return any(
            not {table, TABLE_MAIN}.isdisjoint(prefixes.get(value >> (_BITS[kind] - length), ()))
            for (own_kind, length), prefixes in self._networks.items()
            if own_kind == kind
        )

    def leads_on(self, route: Route) -> bool:
        """Tell whether the gateways of a route, if any, are on the link or said to be."""
        if route.flags & RTNH_F_ONLINK or (route.next_hops and all(h.flags & RTNH_F_ONLINK for h in route.next_hops)):
            return True
        return all(self.on_link(gateway, route.table) for gateway in hops(route))


def hops(route: Route) -> tuple[str, ...]:
    """Return the gateways of a route; empty where its destination is on the link."""
    found = [hop.gateway for hop in route.next_hops if hop.gateway] if route.next_hops else [route.gateway]
    return tuple(gateway for gateway in found if gateway)


def configured_routes(config: NetworkConfig, vrf_table: int | None) -> list[Route]:
    """Return the routes of a configuration, in its order. With a VRF they are all in its table."""
    return [
        Route(
            family=family(route.destination),
            destination=route.destination,
            gateway=route.gateway,
            source=route.source,
            table=vrf_table if vrf_table is not None else route.table or TABLE_MAIN,
            scope=SCOPE_LINK if route.scope == SCOPE_LINK and family(route.destination) == AF_INET else 0,
        )
        for route in config.routes
    ]


def without_connected(
    routes: Sequence[Route], addresses: Iterable[Address], connected_table: int, problems: Problems
) -> list[Route]:
    """Return configured routes without those that the kernel makes for the interface's IPv4 addresses anyway.

    It has one route to a destination in a table, so that another one to an own network would not be taken. IPv6 tells
    them by their metric.
    """
    networks: dict[str, list[str]] = {}
    for address in addresses:
        if address.family == AF_INET and not address.flags & IFA_F_NOPREFIXROUTE:
            network = ipaddress.ip_network(f"{address.peer or address.address}/{address.prefix_length}", strict=False)
            networks.setdefault(str(network), []).append(address.address)
    kept = []
    for i, route in enumerate(routes):
        own = networks.get(route.destination) if route.table == connected_table else None
        if own is None or route.destination.endswith("/32"):
            kept.append(route)
        elif route.gateway is not None or route.source not in {None, *own}:
            problems.field(
                ("routes", i, "destination"),
                route.destination,
                f"must not be the network of the interface's own address {own[0]}, to which the kernel makes a route; "
                "give the route another table",
            )
    return kept


def check_routes(routes: Sequence[Route], reach: Reach, problems: Problems) -> None:
    """Refuse configured routes whose source the pod has not or whose gateway it cannot reach: the kernel would too."""
    for i, route in enumerate(routes):
        if route.source and route.source not in reach.own:
            known = ", ".join(sorted(reach.own)) or "none"
            problems.field(
                ("routes", i, "source"),
                route.source,
                f"must be an address of the interface, which has {known}",
            )
        if route.gateway and not reach.on_link(route.gateway, route.table):
            problems.field(
                ("routes", i, "gateway"),
                route.gateway,
                "must not be an address of the interface itself"
                if route.gateway in reach.own
                else "cannot be reached through the interface: give it an address whose network has the gateway, "
                f"or add a route to {route.gateway}/{_BITS[route.family]} with scope 253",
            )


def copied_routes(
    host: HostState, addresses: Sequence[Address], configured: Sequence[Route], vrf_table: int | None
) -> list[Route]:
    """Return the host's routes that are right in the pod, in the order of the host.

    A configured route replaces those of the host to the same destination in the same table. With a VRF only those of
    the table main come along, into the VRF's.
    """
    taken = {(route.destination, route.table) for route in configured}
    own = {address.address for address in addresses}
    candidates = [
        route
        for original in host.routes
        if (route := _for_pod(original, host.link.index, vrf_table)) is not None
        and (route.source is None or route.source in own)
        and (route.destination, route.table) not in taken
    ]
    connected = vrf_table if vrf_table is not None else TABLE_MAIN
    reach = Reach(addresses, [*configured, *candidates], connected)
    return [route for route in candidates if reach.leads_on(route)]


def not_of_host(pod: PodState, host: HostState | None) -> frozenset[tuple[str, int]]:
    """Return destination and table of the routes of a plan that are neither copies of the host's nor of its lease."""
    copies: list[Route | None] = []
    if host is not None and pod.sub_interface is None:
        vrf_table = pod.vrf.table if pod.vrf else None
        copies = [_for_pod(route, host.link.index, vrf_table) for route in host.routes]
    return frozenset(
        (route.destination, route.table)
        for route in pod.routes
        if route not in copies and not (pod.dhcp and route.protocol == RTPROT_DHCP)
    )


def _for_pod(route: Route, index: int, vrf_table: int | None) -> Route | None:
    """Return a host's route as it would be in the pod; None where it has no place there."""
    if (
        route.protocol in _MADE_BY_KERNEL
        or route.table == TABLE_LOCAL
        or route.flags & _RTM_F_CLONED
        or route.expires
        or route.unknown
        or _of_link_local_or_multicast(route.destination)
        or (route.destination in _DEFAULTS and route.table in _OWN_TABLES)
    ):
        return None
    if vrf_table is not None and route.table != TABLE_MAIN:
        return None
    next_hops = tuple(
        NextHop(gateway=hop.gateway, weight=hop.weight, flags=hop.flags & RTNH_F_ONLINK, realm=hop.realm)
        for hop in route.next_hops
        if hop.index == index and not hop.unknown
    )
    if len(next_hops) != len(route.next_hops) and not next_hops:
        return None
    return replace(
        route,
        index=0,
        table=vrf_table if vrf_table is not None else route.table,
        flags=route.flags & RTNH_F_ONLINK,
        next_hop_id=0,
        next_hops=next_hops,
    )


def _of_link_local_or_multicast(destination: str) -> bool:
    if family(destination) == AF_INET:
        return False
    network = ipaddress.IPv6Network(destination)
    return network.subnet_of(_LINK_LOCAL) or network.subnet_of(_MULTICAST)


def configured_rules(config: NetworkConfig) -> list[Rule]:
    """Return the rules of a configuration; one that names no network is one of IPv4, as its users know it."""
    found = []
    for rule in config.rules:
        named = rule.source or rule.destination or ""
        found.append(
            Rule(
                family=family(named),
                table=rule.table or TABLE_MAIN,
                priority=rule.priority,
                source=_unless_any(rule.source),
                destination=_unless_any(rule.destination),
            )
        )
    return found


def _unless_any(network: str | None) -> str | None:
    return None if network in _DEFAULTS else network


def copied_rules(rules: Iterable[Rule], routes: Sequence[Route], host_name: str, pod_name: str) -> list[Rule]:
    """Return the host's rules that lead to a table of the copied routes and mean the same in the pod.

    The interface's own name is changed to the one in the pod; a rule that names another interface, leads on by goto or
    by VRF, or says what this program does not know is left out. So is a rule for all packets where its table has a
    default route: that would take over the pod's own.
    """
    tables = {route.table for route in routes} - _OWN_TABLES
    with_default = {route.table for route in routes if route.destination in _DEFAULTS}
    found = []
    for rule in rules:
        if rule.table not in tables or rule.action != _FR_ACT_TO_TBL or rule.l3mdev or rule.unknown:
            continue
        copy = replace(
            rule,
            flags=rule.flags & FIB_RULE_INVERT,
            iif=pod_name if rule.iif == host_name else rule.iif,
            oif=pod_name if rule.oif == host_name else rule.oif,
        )
        foreign = {copy.iif, copy.oif} - {None, pod_name, "lo"}
        if not foreign and not (rule.table in with_default and _matches_all(copy)):
            found.append(copy)
    return found


def _matches_all(rule: Rule) -> bool:
    bare = Rule(family=rule.family)
    return rule == replace(bare, table=rule.table, priority=rule.priority, protocol=rule.protocol, flags=rule.flags)


def neighbours(config: NetworkConfig, host: HostState) -> list[Neighbour]:
    """Return the permanent neighbours of the configuration and of the host; the configuration wins."""
    found = {entry.address: entry for entry in _host_neighbours(host)}
    for neighbor in config.neighbors:
        found.pop(neighbor.destination, None)
    configured = [
        Neighbour(
            family=family(neighbor.destination),
            address=neighbor.destination,
            hardware_address=neighbor.hardware_addr,
            state=NUD_PERMANENT,
        )
        for neighbor in config.neighbors
    ]
    return [*configured, *found.values()]


def _host_neighbours(host: HostState) -> Iterator[Neighbour]:
    for entry in host.neighbours:
        if (
            entry.state & NUD_PERMANENT
            and entry.hardware_address
            and not entry.flags & _NTF_PROXY
            and not ipaddress.ip_address(entry.address).is_multicast
        ):
            yield replace(entry, index=0, state=NUD_PERMANENT, flags=entry.flags & _NTF_ROUTER)
