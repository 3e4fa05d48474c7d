"""What an interface has beside its link: which of it the kernel makes by itself, and what is missing."""

from __future__ import annotations

import ipaddress
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from nri_dranet.netlink.codec import AF_INET, AF_INET6
from nri_dranet.netlink.model import FOREVER
from nri_dranet.netlink.routing import (
    IFA_F_MANAGETEMPADDR,
    IFA_F_SECONDARY,
    NUD_PERMANENT,
    RTNH_F_ONLINK,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nri_dranet.dhcp.lease import Lease
    from nri_dranet.netlink.model import Address, Link, Neighbour, Route

# IFAPROT_* of linux/if_addr.h: who added an address (Linux 5.18; 0 on older kernels).
_PROTO_KERNEL_RA: Final = 2
_PROTO_KERNEL_LL: Final = 3
_IFA_F_STABLE_PRIVACY: Final = 0x800

# RTPROT_* of linux/rtnetlink.h: routes that the kernel makes by itself (redirect, kernel, router advertisement).
_KERNEL_ROUTES: Final = frozenset({1, 2, 9})

_DEFAULT_IPV6_METRIC: Final = 1024


def kernel_link_local(address: Address, hardware_address: str) -> bool:
    """Tell whether an IPv6 link-local address is the one that the kernel makes when a link comes up."""
    if address.family != AF_INET6 or not address.address.startswith("fe80:"):
        return False
    if address.protocol:
        return address.protocol == _PROTO_KERNEL_LL
    if address.flags & _IFA_F_STABLE_PRIVACY or address.address == eui64(hardware_address):
        return True
    return _numbered(address.address, hardware_address)


def _numbered(address: str, hardware_address: str) -> bool:
    """Tell whether an address is made as the kernel does for one of several devices with one hardware address (ipvlan).

    Their number stands in the middle (``addrconf_ifid_eui48``).
    """
    parts = bytes.fromhex(hardware_address.replace(":", " "))
    identifier = ipaddress.IPv6Address(address).packed[8:]
    return len(parts) == 6 and identifier[:3] + identifier[5:] == parts


def eui64(hardware_address: str) -> str:
    """Give the link-local address that belongs to an Ethernet address (RFC 4291, appendix A); empty for others."""
    parts = bytes.fromhex(hardware_address.replace(":", " "))
    if len(parts) != 6:
        return ""
    value = bytes((parts[0] ^ 2, *parts[1:3], 0xFF, 0xFE, *parts[3:]))
    return ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + value).compressed


def made_by_kernel(address: Address, hardware_address: str) -> bool:
    """Tell whether the kernel makes an address by itself: link-local, from router advertisements, temporary."""
    if address.family != AF_INET6:
        return False
    return (
        address.protocol == _PROTO_KERNEL_RA
        or bool(address.flags & (IFA_F_SECONDARY | IFA_F_MANAGETEMPADDR))
        or kernel_link_local(address, hardware_address)
    )


def needs_link_up(address: Address) -> bool:
    """Tell whether an address must be added to a link that is up.

    When a link comes up the kernel makes the connected routes of its permanent IPv6 addresses; those with an end do not
    get theirs (``fixup_permanent_addr`` in ``net/ipv6/addrconf.c``).
    """
    return address.family == AF_INET6 and address.valid_lifetime != FOREVER


def aged(addresses: Iterable[Address], seconds: float) -> list[Address]:
    """Give addresses with what is left of their lifetimes after a time; those whose time is over are left out."""
    return [
        address
        if address.valid_lifetime == FOREVER
        else replace(
            address,
            valid_lifetime=int(address.valid_lifetime - seconds),
            preferred_lifetime=FOREVER
            if address.preferred_lifetime == FOREVER
            else max(0, int(address.preferred_lifetime - seconds)),
        )
        for address in addresses
        if address.valid_lifetime == FOREVER or address.valid_lifetime - seconds >= 1
    ]


def leased(address: Address, lease: Lease) -> Address:
    """Give the address of a DHCP lease the time that is left of it: the kernel takes it off when that is over.

    Other addresses are given as they are.
    """
    if address.address != lease.ip:
        return address
    left = max(1, lease.left(time.clock_gettime(time.CLOCK_BOOTTIME)))
    return replace(address, valid_lifetime=left, preferred_lifetime=left)


def missing_addresses(wanted: Iterable[Address], present: Iterable[Address]) -> list[Address]:
    """Give the wanted addresses that are not present with their prefix length and peer, in order."""
    have = {(address.family, address.address, address.prefix_length, address.peer) for address in present}
    return [
        address
        for address in wanted
        if (address.family, address.address, address.prefix_length, address.peer) not in have
    ]


def own_routes(routes: Iterable[Route]) -> list[Route]:
    """Leave out the routes that the kernel makes by itself."""
    return [route for route in routes if route.protocol not in _KERNEL_ROUTES]


def in_order(routes: Iterable[Route]) -> list[Route]:
    """Put those routes first that others need to reach a gateway."""
    return sorted(routes, key=_order)


def missing_routes(wanted: Iterable[Route], present: Sequence[Route]) -> list[Route]:
    """Give the wanted routes that are not present, in order. ``present`` are those over the interface."""
    have: dict[tuple[object, ...], list[Route]] = {}
    for route in present:
        have.setdefault(_key(route), []).append(route)
    return [route for route in wanted if not any(_leads_alike(route, other) for other in have.get(_key(route), ()))]


def missing_neighbours(wanted: Iterable[Neighbour], present: Iterable[Neighbour]) -> list[Neighbour]:
    """Give the wanted permanent neighbour entries that are not present, in order."""
    have = {(entry.address, entry.hardware_address) for entry in present if entry.state & NUD_PERMANENT}
    return [
        entry for entry in wanted if entry.state & NUD_PERMANENT and (entry.address, entry.hardware_address) not in have
    ]


def for_link(route: Route, index: int) -> Route:
    """Free a route's next hops from the index that the interface had, so that they follow it to its new one."""
    if not route.next_hops:
        return route
    return replace(
        route,
        next_hops=tuple(replace(hop, index=0) if hop.index == index else hop for hop in route.next_hops),
    )


def differing(link: Link, wanted: Link) -> dict[str, int | str]:
    """Give the settings of a link that differ from what they were, by their names in ``set_link``.

    Only what both kernels know: a size of 0 means that the kernel does not tell it.
    """
    found: dict[str, int | str] = {}
    if wanted.mtu and link.mtu != wanted.mtu:
        found["mtu"] = wanted.mtu
    if wanted.address and link.address != wanted.address:
        found["address"] = wanted.address
    for name in ("gso_max_size", "gro_max_size", "gso_ipv4_max_size", "gro_ipv4_max_size"):
        value: int = getattr(wanted, name)
        if value and getattr(link, name) != value:
            found[name] = value
    for name in ("txqlen", "group", "alias"):
        if getattr(link, name) != getattr(wanted, name):
            found[name] = getattr(wanted, name)
    return found


def _order(route: Route) -> int:
    return 1 if route.gateway or route.next_hops or route.next_hop_id else 0


def _key(route: Route) -> tuple[object, ...]:
    metric = route.metric
    if route.family == AF_INET6 and not metric:
        metric = _DEFAULT_IPV6_METRIC
    return (route.family, route.destination, route.table, metric, route.tos, route.type)


def _leads_alike(route: Route, other: Route) -> bool:
    if route.family == AF_INET and route.scope != other.scope and not route.gateway:
        return False
    if (route.flags ^ other.flags) & RTNH_F_ONLINK and not route.next_hops:
        return False
    if route.source and route.source != other.source:
        return False
    if len(route.next_hops) > 1:
        return [(hop.gateway, hop.weight) for hop in route.next_hops] == [
            (hop.gateway, hop.weight) for hop in other.next_hops
        ]
    gateway = route.next_hops[0].gateway if route.next_hops else route.gateway
    return gateway == other.gateway and all(other.metrics.get(name) == value for name, value in route.metrics.items())
