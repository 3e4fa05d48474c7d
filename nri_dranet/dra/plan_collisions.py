"""Devices that cannot all be as planned: same name, address, VRF table or route in one pod, children of one parent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nri_dranet.api.config import TABLE_MAIN
from nri_dranet.dra import plan_routes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nri_dranet.claims.plan import DevicePlan, PodState, SubInterface
    from nri_dranet.dra.plan_model import Problems
    from nri_dranet.netlink.model import Route


@dataclass(frozen=True, slots=True)
class Planned:
    """A device's plan, who it is in words, and the routes of its configuration (the rest are the host's)."""

    plan: DevicePlan
    who: str
    configured: frozenset[tuple[str, int]] = frozenset()


def check(own: Sequence[tuple[Planned, Problems]], others: Iterable[Planned]) -> None:
    """Refuse what collides between the devices of a claim, or with those of other claims of its pod.

    The later device gets the problem; its text names the earlier one.
    """
    known = [(planned, planned.plan.pod) for planned in others if planned.plan.pod is not None]
    for planned, problems in own:
        pod = planned.plan.pod
        if pod is None:
            continue
        for other, theirs in known:
            _pair(planned, pod, other, theirs, problems)
        known.append((planned, pod))


def _pair(planned: Planned, pod: PodState, other: Planned, theirs: PodState, problems: Problems) -> None:
    _names(pod, other, theirs, problems)
    _vrfs(pod, other, theirs, problems)
    _addresses(pod, other, theirs, problems)
    _configured_routes(planned, pod, other, problems)


def _names(pod: PodState, other: Planned, theirs: PodState, problems: Problems) -> None:
    where = ("interface", "name")
    if pod.name == theirs.name:
        problems.field(
            where,
            pod.name,
            f"must differ from the name of {other.who} in the same pod: leave it out, "
            "or name each device by a request of its own",
        )
    if theirs.vrf is not None and pod.name == theirs.vrf.name:
        problems.field(where, pod.name, f"must differ from the VRF of {other.who} in the same pod")
    if pod.vrf is not None and pod.vrf.name == theirs.name:
        problems.field(
            ("interface", "vrf", "name"), pod.vrf.name, f"must differ from the name of {other.who} in the same pod"
        )


def _vrfs(pod: PodState, other: Planned, theirs: PodState, problems: Problems) -> None:
    where = ("interface", "vrf", "table")
    if pod.vrf is not None and theirs.vrf is not None:
        if pod.vrf.name == theirs.vrf.name and pod.vrf.table != theirs.vrf.table:
            problems.field(where, pod.vrf.table, f"must be {theirs.vrf.table}, which the same VRF of {other.who} has")
        elif pod.vrf.name != theirs.vrf.name and pod.vrf.table == theirs.vrf.table:
            problems.field(
                where,
                pod.vrf.table,
                f"must differ from the table of VRF {theirs.vrf.name} of {other.who} in the same pod; give one a table",
            )
    elif pod.vrf is not None and pod.vrf.table in _tables(theirs):
        problems.field(where, pod.vrf.table, f"must not be a table that {other.who} in the same pod uses")
    elif theirs.vrf is not None and theirs.vrf.table in _tables(pod):
        problems.field(
            ("routes",),
            None,
            f"must not use table {theirs.vrf.table}, which is VRF {theirs.vrf.name} of {other.who} in the same pod",
        )


def _tables(pod: PodState) -> set[int]:
    """The tables that an interface outside of any VRF uses, beside main."""
    return ({route.table for route in pod.routes} | {rule.table for rule in pod.rules}) - {TABLE_MAIN}


def _same_domain(pod: PodState, theirs: PodState) -> bool:
    return (pod.vrf.name if pod.vrf else "") == (theirs.vrf.name if theirs.vrf else "")


def _addresses(pod: PodState, other: Planned, theirs: PodState, problems: Problems) -> None:
    if not _same_domain(pod, theirs):
        return
    taken = {address.address for address in theirs.addresses}
    for i, address in enumerate(pod.addresses):
        if address.address in taken:
            where: tuple[str | int, ...] = ("interface", "addresses", i)
            if pod.copied_addresses or pod.dhcp:
                where = ("interface", "dhcp" if pod.dhcp else "addresses")
            problems.field(where, address.cidr, f"must differ from that of {other.who} in the same pod")


def _configured_routes(planned: Planned, pod: PodState, other: Planned, problems: Problems) -> None:
    taken = planned.configured & other.configured
    for route in pod.routes:
        if (route.destination, route.table) in taken:
            problems.field(
                ("routes",),
                route.destination,
                f"must not lead to where a route of {other.who} in table {route.table} of the same pod leads; "
                "give one of them another table",
            )


def check_siblings(own: Sequence[tuple[Planned, Problems]], others: Iterable[Planned]) -> None:
    """Refuse children that cannot be on one device together, in whichever pods they are.

    The kernel has a VLAN once on a device, macvlans or ipvlans but not both, one mode for all ipvlans, and no macvlan
    beside one in mode passthru (``net/8021q/vlan.c``, ``drivers/net/macvlan.c``, ``drivers/net/ipvlan/ipvlan_main.c``).
    """
    known = [each for each in others if each.plan.pod is not None and each.plan.pod.sub_interface is not None]
    for planned, problems in own:
        mine = planned.plan.pod.sub_interface if planned.plan.pod is not None else None
        if mine is None:
            continue
        for other in known:
            theirs = other.plan.pod.sub_interface if other.plan.pod is not None else None
            if theirs is not None and other.plan.key.device == planned.plan.key.device:
                _sibling(mine, theirs, other.who, problems)
        known.append(planned)


def _sibling(mine: SubInterface, theirs: SubInterface, who: str, problems: Problems) -> None:
    where = ("interface", "subInterface")
    both = {mine.kind, theirs.kind}
    if both == {"vlan"} and mine.vlan_id == theirs.vlan_id:
        problems.field((*where, "vlanID"), mine.vlan_id, f"must differ from that of {who} on the same device")
    elif both == {"macvlan", "ipvlan"}:
        problems.field(
            (*where, "type"), mine.kind, f"must not be mixed with the {theirs.kind} of {who} on the same device"
        )
    elif both == {"ipvlan"} and mine.mode != theirs.mode:
        text = f"must be {theirs.mode}, as that of {who}: all ipvlans of a device have one mode"
        problems.field((*where, "mode"), mine.mode, text)
    elif both == {"macvlan"} and "passthru" in {mine.mode, theirs.mode}:
        text = f"cannot be beside the macvlan of {who} in mode {theirs.mode}: one in mode passthru has its device alone"
        problems.field((*where, "mode"), mine.mode, text)


def without_repeats(plans: Sequence[Planned], others: Iterable[Planned]) -> list[DevicePlan]:
    """Return the plans with each rule, and each copied route to one place, only at the first device that has it.

    Two interfaces of a host may have routes to the same place, and rules that lead to the tables of both; the kernel
    takes neither twice in a namespace.
    """
    rules = {rule for other in others if other.plan.pod for rule in other.plan.pod.rules}
    taken = {_key(route) for other in others if other.plan.pod for route in other.plan.pod.routes}
    found = []
    # The configured routes of all devices come before the copied ones of any.
    for planned in plans:
        if planned.plan.pod is not None:
            taken |= {_key(r) for r in planned.plan.pod.routes if (r.destination, r.table) in planned.configured}
    for planned in plans:
        pod = planned.plan.pod
        if pod is None:
            found.append(planned.plan)
            continue
        routes = _first_here(planned, pod, taken)
        own_rules = tuple(rule for rule in pod.rules if rule not in rules)
        rules.update(own_rules)
        found.append(replace(planned.plan, pod=replace(pod, routes=routes, rules=own_rules)))
    return found


def _key(route: Route) -> tuple[int, str, int, int, int]:
    return (route.family, route.destination, route.table, route.metric, route.tos)


def _first_here(planned: Planned, pod: PodState, taken: set[tuple[int, str, int, int, int]]) -> tuple[Route, ...]:
    """Return the configured routes and the copied ones that are not taken, without those that they leave unreachable.

    Adds their keys to ``taken``.
    """

    def stays(route: Route) -> bool:
        return (route.destination, route.table) in planned.configured or _key(route) not in taken

    on_link = [route for route in pod.routes if stays(route) and not plan_routes.hops(route)]
    reach = plan_routes.Reach(pod.addresses, on_link, pod.vrf.table if pod.vrf else TABLE_MAIN)
    routes = tuple(route for route in pod.routes if stays(route) and reach.leads_on(route))
    taken.update(map(_key, routes))
    return routes
