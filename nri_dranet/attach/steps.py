"""The steps of an attach in the pod's namespace: each with what it does, what takes it back, and what a refusal means.

What belongs to the interface (addresses, routes, neighbours, sizes) ends or is restored when it goes home and needs no
undo of its own; what belongs to the namespace (rules) has one.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from nri_dranet.attach import state
from nri_dranet.netlink import rtnl
from nri_dranet.netlink.codec import AF_INET6
from nri_dranet.netlink.links import IPV4_CONF
from nri_dranet.netlink.routing import IFA_F_NODAD

if TYPE_CHECKING:
    from nri_dranet.claims.plan import DevicePlan, PodState
    from nri_dranet.netlink.codec import Request
    from nri_dranet.netlink.model import Address, Link, Neighbour, Route

_EXISTS: Final = frozenset({errno.EEXIST})
_NONE: Final[frozenset[int]] = frozenset()

# IFLA_INET_CONF sets the value alone; writing the file also switches off LRO, which must not meet forwarding.
_NETLINK_IPV4: Final = {f"ipv4/conf/{name}": name for name in IPV4_CONF if name != "forwarding"}

# RFC 8200, section 5. Below it the kernel takes IPv6 from the interface.
LEAST_IPV6_MTU: Final = 1280

_SIZES: Final = ("gso_max_size", "gro_max_size", "gso_ipv4_max_size", "gro_ipv4_max_size")


@dataclass(frozen=True, slots=True)
class Step:
    """One message and what it means.

    ``name`` says what is done (``set MTU 9000``), ``reason`` is the word for a refusal, ``fine`` are error numbers that
    mean it is so already, ``advice`` tells what to do about a refusal.
    """

    name: str
    reason: str
    do: Request
    undo: Request | None = None
    fine: frozenset[int] = _NONE
    advice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What an interface has in the pod already. One that has just come is down, no port, and has its link alone."""

    link: Link
    up: bool = False
    master: int = 0
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()


def configure(plan: DevicePlan, pod: PodState, index: int, found: Found, *, vrf: int = 0) -> list[Step]:
    """Give the steps that make an interface in the pod what the plan says, in order; none where it is so already.

    Args:
        plan: the device.
        pod: its state in the pod (``plan.pod``).
        index: the interface there.
        found: what it has already.
        vrf: the index of its VRF device, 0 without.

    Raises:
        ValueError: a value of the plan does not fit the kernel's field.
    """
    steps = [*_link_steps(pod, index, found.link, up=found.up)]
    if vrf and found.master != vrf:
        # Before the addresses: enslaving flushes IPv6 ones and connected routes of a link that is up.
        steps.append(Step("enslave to the VRF", "VRFRefused", rtnl.set_link(index, master=vrf)))
    missing = state.missing_addresses(pod.addresses, found.addresses)
    late = [address for address in missing if state.needs_link_up(address)]
    steps += [_address_step(pod, index, address) for address in missing if address not in late]
    if not found.up:
        steps.append(Step("set up", "LinkUpFailed", rtnl.set_link(index, up=True)))
    steps += [_address_step(pod, index, address) for address in late]
    steps += _route_steps(plan, pod, index, found)
    steps += [
        Step(request.label, "RuleRefused", request, rtnl.delete_rule(rule), _EXISTS)
        for rule in pod.rules
        for request in (rtnl.add_rule(rule),)
    ]
    for entry in state.missing_neighbours(pod.neighbours, found.neighbours):
        request = rtnl.add_neighbour(entry, index, replace=True)
        steps.append(Step(request.label, "NeighbourRefused", request))
    return steps


def files(pod: PodState) -> dict[str, str]:
    """Give the sysctls of the interface that only /proc/sys can set, before the link comes up."""
    found = {key: value for key, value in pod.sysctls.items() if key not in _NETLINK_IPV4}
    if any(address.family == AF_INET6 for address in pod.addresses):
        # Many runtimes switch IPv6 off in pods of IPv4 clusters; an address of the claim means that it is wanted here.
        found.setdefault("ipv6/conf/disable_ipv6", "0")
    return found


def _link_steps(pod: PodState, index: int, link: Link, *, up: bool) -> list[Step]:
    steps: list[Step] = []
    if pod.mtu is not None and pod.mtu != link.mtu:
        advice = f"the device allows {link.min_mtu} to {link.max_mtu}" if link.max_mtu else ""
        request = rtnl.set_link(index, mtu=pod.mtu)
        steps.append(Step(f"set MTU {pod.mtu}", "MTURefused", request, advice=advice))
    if pod.hardware_address and pod.hardware_address != link.address:
        if up:
            steps.append(Step("set down to change the MAC", "HardwareAddressRefused", rtnl.set_link(index, up=False)))
        request = rtnl.set_link(index, address=pod.hardware_address)
        steps.append(Step(f"set MAC {pod.hardware_address}", "HardwareAddressRefused", request))
        if up:
            steps.append(Step("set up", "LinkUpFailed", rtnl.set_link(index, up=True)))
    for name in _SIZES:
        size: int | None = getattr(pod, name)
        if size is not None and size != getattr(link, name):
            advice = f"the device allows up to {link.tso_max_size}" if link.tso_max_size and "gso" in name else ""
            sizes: dict[str, int] = {name: size}
            request = rtnl.set_link(index, **sizes)  # type: ignore[arg-type]
            steps.append(Step(f"set {name} {size}", "SizeRefused", request, advice=advice))
    values = {_NETLINK_IPV4[key]: int(value) for key, value in pod.sysctls.items() if key in _NETLINK_IPV4}
    if values:
        words = ", ".join(f"{name}={value}" for name, value in values.items())
        steps.append(Step(f"set {words}", "SysctlRefused", rtnl.set_link(index, ipv4_conf=values)))
    return steps


def _address_step(pod: PodState, index: int, address: Address) -> Step:
    wanted, advice = address, ""
    if pod.lease is not None:
        wanted = state.leased(address, pod.lease)
    if address.family == AF_INET6:
        if pod.mtu is not None and pod.mtu < LEAST_IPV6_MTU:
            advice = f"IPv6 needs an MTU of at least {LEAST_IPV6_MTU}, the claim asks for {pod.mtu}"
        # Routes with a source address are refused while duplicate address detection runs, which takes a second.
        wanted = replace(address, flags=address.flags | IFA_F_NODAD)
    elif address.label and not address.label.startswith(pod.name):
        wanted = replace(address, label="")
    request = rtnl.add_address(wanted, index)
    return Step(request.label, "AddressRefused", request, fine=_EXISTS, advice=advice)


def _route_steps(plan: DevicePlan, pod: PodState, index: int, found: Found) -> list[Step]:
    former = plan.host.link.index if plan.host else 0
    steps: list[Step] = []
    for route in state.missing_routes(state.in_order(pod.routes), found.routes):
        request = rtnl.add_route(state.for_link(route, former), index)
        steps.append(Step(request.label, "RouteRefused", request, fine=_EXISTS))
    return steps
