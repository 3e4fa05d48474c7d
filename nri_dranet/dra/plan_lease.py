"""What a DHCP lease makes of a plan: address and routes, and who asks for it. Pure."""

from __future__ import annotations

import hashlib
import ipaddress
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from nri_dranet.api.config import SCOPE_LINK, TABLE_MAIN
from nri_dranet.api.values import broadcast_address
from nri_dranet.claims.plan import DeviceKind
from nri_dranet.dra import plan_routes
from nri_dranet.netlink.codec import AF_INET
from nri_dranet.netlink.model import Address, Route
from nri_dranet.netlink.routing import RTNH_F_ONLINK

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from nri_dranet.claims.model import DeviceKey
    from nri_dranet.claims.plan import ClaimPlan, DevicePlan, SubInterface
    from nri_dranet.dhcp.lease import Lease
    from nri_dranet.dra.plan_model import Problems
    from nri_dranet.netlink.model import Link

ARPHRD_ETHER: Final = 1

DEFAULT_METRIC: Final = 1024
"""Metric of a lease's default route: the pod's own default route, which has none, stays the one that is used."""

_DEFAULT: Final = "0.0.0.0/0"

# RFC 4361: a client identifier of type 255 is an IAID and a DUID; RFC 6355: a DUID of type 4 is a UUID.
_TYPE: Final = b"\xff"
_DUID_UUID: Final = b"\x00\x04"


def check(link: Link, child: SubInterface | None, problems: Problems) -> None:
    """Refuse DHCP where it cannot be right."""
    where = ("interface", "dhcp")
    if link.type != ARPHRD_ETHER:
        problems.field(where, True, "must be left out: the device is not Ethernet")
    elif child is not None and child.kind == "vlan":
        text = (
            f"must be left out: a lease cannot be asked for in VLAN {child.vlan_id} before the sub-interface is there"
        )
        problems.field(where, True, text)
    elif child is not None and child.kind == "ipvlan" and child.mode != "l2":
        text = f"must be left out: nobody answers ARP for an ipvlan in mode {child.mode}, as a DHCP server expects"
        problems.field(where, True, text)


def client_id(uid: str, plan: DevicePlan) -> bytes:
    """Return the client identifier (option 61) of a device of a claim: the same one in each Prepare of it.

    The claim's UID is the DUID (RFC 6355), request and device make the IAID (RFC 4361).
    """
    iaid = hashlib.sha256(f"{plan.request} {plan.key}".encode()).digest()[:4]
    try:
        duid = uuid.UUID(uid).bytes
    except ValueError:
        duid = hashlib.sha256(uid.encode()).digest()[:16]
    return _TYPE + iaid + _DUID_UUID + duid


def hardware_address(plan: DevicePlan) -> str:
    """Return the Ethernet address that the interface has in the pod."""
    if plan.pod is not None and plan.pod.hardware_address:
        return plan.pod.hardware_address
    return plan.host.link.address if plan.host is not None else ""


def fits(plan: DevicePlan, uid: str) -> bool:
    """Tell whether a device needs no lease, or has one that was asked for as it would be asked for now."""
    pod = plan.pod
    if pod is None or not pod.dhcp or plan.kind is DeviceKind.ADMIN:
        return True
    return (
        pod.lease is not None
        and pod.lease.hardware_address == hardware_address(plan)
        and pod.lease.client_id == client_id(uid, plan).hex()
    )


def address(lease: Lease) -> Address:
    """Return the address of a lease. Its end is reckoned when it is given to the interface."""
    return Address(
        family=AF_INET,
        address=lease.ip,
        prefix_length=int(lease.address.partition("/")[2]),
        broadcast=broadcast_address(lease.address),
    )


def routes(lease: Lease, vrf_table: int | None, taken: Collection[tuple[str, int]] = ()) -> list[Route]:
    """Return the routes of a lease, those on the link first.

    A route to the address's own network is left out: the kernel makes it. A gateway that is on no network of the
    interface is said to be on the link, as servers mean it that give addresses without a network.

    Args:
        lease: what the server gave.
        vrf_table: the table of the interface's VRF, if it is in one.
        taken: destinations and tables of configured routes, which win.
    """
    table = TABLE_MAIN if vrf_table is None else vrf_table
    own = ipaddress.IPv4Network(lease.address, strict=False)
    found = [
        Route(
            family=AF_INET,
            destination=given.destination,
            gateway=given.gateway,
            table=table,
            scope=0 if given.gateway else SCOPE_LINK,
            protocol=plan_routes.RTPROT_DHCP,
            metric=DEFAULT_METRIC if given.destination == _DEFAULT else 0,
        )
        for given in lease.routes
        if given.destination != str(own) and (given.destination, table) not in taken and given.gateway != lease.ip
    ]
    found.sort(key=lambda route: bool(route.gateway))
    reach = plan_routes.Reach([address(lease)], found, table)
    return [route if reach.leads_on(route) else replace(route, flags=RTNH_F_ONLINK) for route in found]


def with_lease(plan: DevicePlan, lease: Lease | None, lost: str = "") -> DevicePlan:
    """Return a device's plan with another lease in the place of the one that it has.

    Args:
        plan: the device, which has a lease.
        lease: the lease; None: the same.
        lost: why the lease must not be used any more, "" where it may.
    """
    pod = plan.pod
    if pod is None:
        return plan
    if lease is None or lease == pod.lease:
        return replace(plan, pod=replace(pod, lease_lost=lost))
    own = [route for route in pod.routes if route.protocol != plan_routes.RTPROT_DHCP]
    vrf_table = pod.vrf.table if pod.vrf else None
    fresh = routes(lease, vrf_table, {(route.destination, route.table) for route in own})
    changed = replace(
        pod, lease=lease, lease_lost=lost, addresses=(address(lease),), routes=in_order([*own, *fresh]), dhcp=True
    )
    return replace(plan, pod=changed)


def with_other_lease(
    plan: ClaimPlan, key: DeviceKey, request: str, former: Lease, lease: Lease | None, *, lost: str = ""
) -> ClaimPlan:
    """Return a claim's plan with another lease for one of its devices, if that still has the former one.

    Args:
        plan: the claim.
        key: the device.
        request: the request that it serves.
        former: the lease that it had.
        lease: the lease that it has now; None: the same.
        lost: why that must not be used any more, "" where it may.
    """
    return replace(
        plan,
        devices=tuple(
            with_lease(each, lease, lost)
            if (each.key, each.request) == (key, request) and each.pod is not None and each.pod.lease == former
            else each
            for each in plan.devices
        ),
    )


def in_order(found: Sequence[Route]) -> tuple[Route, ...]:
    """Return routes with those on the link first, which others need to reach their gateways."""
    return tuple(sorted(found, key=lambda route: bool(plan_routes.hops(route))))
