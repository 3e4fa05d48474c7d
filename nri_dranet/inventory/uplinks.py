"""Which interfaces the node itself needs, and which cannot be given to a pod at all. Pure.

An interface is an uplink if a default route leaves by it, if it carries an address of the node, or if such an interface
stands on it: its ports and slaves, the parent of a VLAN or macvlan, what a tunnel sends by, and theirs in turn.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from nri_dranet.netlink.model import Link, Route

IFF_LOOPBACK: Final = 0x8

MAIN_TABLE: Final = 254

SKIPPED_NAMES: Final = frozenset({"cilium_net", "cilium_host", "docker0"})
"""Interfaces of others that the reference never offers."""

UNMOVABLE_KINDS: Final = frozenset({"bridge", "bond", "team", "vrf", "openvswitch"})
"""Kinds that the kernel keeps in their namespace; a kernel from 6.14 on says so itself (``IFLA_NETNS_IMMUTABLE``)."""

FALLBACK_TUNNELS: Final = frozenset(
    {"tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6tnl0", "ip6gre0", "ip6_vti0", "sit0"}
)
"""Tunnel devices that the kernel makes in every namespace by itself and that stay there."""

_REPRESENTOR: Final = re.compile(r"(c[0-9]+)?pf[0-9]+(vf|sf)[0-9]+")

# IFLA_LINK of a veth is its peer, which is no more than a neighbour.
_PEERS: Final = frozenset({"veth", "netkit"})

_DEFAULTS: Final = frozenset({"0.0.0.0/0", "::/0"})
_UNICAST: Final = 1


def is_default(route: Route) -> bool:
    """Tell whether a route is a default route of the main table."""
    return route.table == MAIN_TABLE and route.destination in _DEFAULTS and route.type == _UNICAST


def default_interfaces(routes: Iterable[Route]) -> dict[int, str]:
    """Return the interfaces that default routes leave by, with why, whatever their metric: each may take over."""
    found: dict[int, str] = {}
    for route in routes:
        if not is_default(route):
            continue
        family = "IPv6" if ":" in route.destination else "IPv4"
        for index in (route.index, *(hop.index for hop in route.next_hops)):
            if index:
                found.setdefault(index, f"an {family} default route leaves by it")
    return found


def uplinks(
    seeds: Mapping[int, str], link_of: Callable[[int], Link | None], ports_of: Callable[[int], Iterable[int]]
) -> dict[int, str]:
    """Return all interfaces that the node needs, with why. Costs as much as the uplinks have relatives.

    Args:
        seeds: interfaces that are needed for themselves, with why.
        link_of: gives a link by index.
        ports_of: gives the indices of a link's ports and slaves.
    """
    found = dict(seeds)
    queue = deque(seeds)
    while queue:
        index = queue.popleft()
        link = link_of(index)
        if link is None:
            continue
        below = dict.fromkeys(ports_of(index), f"it is a port of the uplink {link.name}")
        if link.lower_netnsid is None and link.kind not in _PEERS:
            stands_on = {link.lower, link.underlay} - {0, index}
            below |= dict.fromkeys(stands_on, f"the uplink {link.name} stands on it")
        for other, why in below.items():
            if other not in found:
                found[other] = why
                queue.append(other)
    return found


def is_representor(link: Link) -> bool:
    """Tell whether an interface is a switch's port for a virtual function (devlink names it ``pf0vf1``)."""
    return bool(link.phys_switch_id) and _REPRESENTOR.fullmatch(link.phys_port_name) is not None


def cannot_move(link: Link, master: Link | None) -> str:
    """Return why an interface cannot be given to a pod whatever it is used for; empty: it can."""
    if link.flags & IFF_LOOPBACK:
        return "it is the loopback interface"
    if link.name in SKIPPED_NAMES:
        return "it belongs to the cluster's network"
    if link.master:
        above = f"{master.name}, {_one(master.kind or 'device')}" if master is not None else f"interface {link.master}"
        return f"it is a port of {above}"
    if is_representor(link):
        return f"it is the switch's port of a virtual function ({link.phys_port_name})"
    if link.netns_immutable or link.kind in UNMOVABLE_KINDS or (link.kind and link.name in FALLBACK_TUNNELS):
        what = _one(link.kind) if link.kind else "this device"
        return f"the kernel does not let {what} leave its network namespace"
    return ""


def _one(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
