"""What a lease makes of a plan."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import pytest

from nri_dranet.api.resolve import ConfigSource, resolve
from nri_dranet.claims.allocation import AllocationResult
from nri_dranet.claims.model import DeviceKey
from nri_dranet.claims.plan import DeviceKind, DevicePlan, HostState, PodState
from nri_dranet.dhcp.lease import Lease, LeaseRoute
from nri_dranet.dra import plan_lease
from nri_dranet.dra.plan_interface import plan_interface
from nri_dranet.dra.plan_model import DeviceFactsIn, NodeFacts, Problems
from nri_dranet.netlink.model import Address, Link, Route
from nri_dranet.netlink.routing import RTNH_F_ONLINK

LINK = Link(index=7, name="eth1", address="02:00:00:00:00:07", mtu=1500)
LEASE = Lease(
    address="10.0.0.5/24",
    server="10.0.0.1",
    obtained=0,
    lifetime=3600,
    renewal=1800,
    rebinding=3150,
    hardware_address=LINK.address,
    client_id="00",
)


def given(*routes: tuple[str, str | None], **more: Any) -> Lease:
    """Return a lease with routes."""
    return replace(LEASE, routes=tuple(LeaseRoute(destination=to, gateway=via) for to, via in routes), **more)


def planned(
    config: dict[str, Any],
    lease: Lease | None,
    *,
    link: Link = LINK,
    host: HostState | None = None,
    shared: bool = False,
) -> tuple[PodState, list[str]]:
    """Plan an interface; return its state and the problems as text."""
    resolved = resolve([ConfigSource("claim", config)])
    result = AllocationResult("nic", "dra.net", "node", "eth1")
    problems = Problems(result, "eth1", resolved)
    device = DeviceFactsIn(name="eth1", link=link, shared=shared)
    pod = plan_interface(resolved.config, device, host or HostState(link=link), NodeFacts(), problems, lease=lease)
    return pod, [f"{error.path}: {error.message}" for error in problems.errors]


def test_the_hosts_addresses_stay() -> None:
    """With DHCP the pod has the lease's address alone, and no route of another client's lease."""
    host = HostState(
        link=LINK,
        addresses=(Address(family=2, address="192.0.2.5", prefix_length=24),),
        routes=(
            Route(family=2, destination="10.7.0.0/16", gateway="10.0.0.7", index=7),
            Route(family=2, destination="10.8.0.0/16", gateway="10.0.0.8", index=7, protocol=16),
            Route(family=2, destination="10.9.0.0/16", gateway="192.0.2.1", index=7),
        ),
    )
    pod, problems = planned({"interface": {"dhcp": True}}, LEASE, host=host)
    assert not problems
    assert [each.cidr for each in pod.addresses] == ["10.0.0.5/24"]
    assert [each.destination for each in pod.routes] == ["10.7.0.0/16"]


def test_before_the_lease_is_there_nothing_is_judged_by_it() -> None:
    """A configured gateway may be on the network that is not known yet."""
    config = {"interface": {"dhcp": True}, "routes": [{"destination": "10.7.0.0/16", "gateway": "10.0.0.7"}]}
    pod, problems = planned(config, None)
    assert (pod.dhcp, pod.lease, pod.addresses, problems) == (True, None, (), [])
    _, problems = planned(config, given(address="10.1.0.5/24"))
    assert "routes[0].gateway: cannot be reached" in problems[0]


def test_a_configured_route_wins() -> None:
    """The lease's route to the same destination is left out."""
    config = {"interface": {"dhcp": True}, "routes": [{"destination": "10.7.0.0/16", "gateway": "10.0.0.7"}]}
    pod, problems = planned(config, given(("10.7.0.0/16", "10.0.0.8"), ("10.8.0.0/16", "10.0.0.8")))
    assert not problems
    assert [(each.destination, each.gateway) for each in pod.routes] == [
        ("10.7.0.0/16", "10.0.0.7"),
        ("10.8.0.0/16", "10.0.0.8"),
    ]


def test_routes_of_a_lease() -> None:
    """On the link first, none to the own network or itself, the default behind the pod's own, a far gateway on link."""
    lease = given(
        ("0.0.0.0/0", "10.0.0.1"),
        ("10.0.0.0/24", "10.0.0.1"),
        ("10.4.0.0/16", "10.0.0.5"),
        ("10.5.0.0/16", "10.9.9.9"),
        ("10.6.0.0/16", "10.8.8.8"),
        ("10.8.0.0/16", None),
    )
    found = plan_lease.routes(lease, 100)
    assert [(each.destination, each.gateway, each.metric, each.flags) for each in found] == [
        ("10.8.0.0/16", None, 0, 0),
        ("0.0.0.0/0", "10.0.0.1", plan_lease.DEFAULT_METRIC, 0),
        ("10.5.0.0/16", "10.9.9.9", 0, RTNH_F_ONLINK),
        ("10.6.0.0/16", "10.8.8.8", 0, 0),
    ]
    assert {(each.table, each.protocol) for each in found} == {(100, 16)}


@pytest.mark.parametrize(
    ("link", "shared", "child", "words"),
    [
        (replace(LINK, type=32), False, None, "the device is not Ethernet"),
        (LINK, True, {"type": "vlan", "vlanID": 7}, "in VLAN 7 before the sub-interface is there"),
        (LINK, True, {"type": "ipvlan", "mode": "l3"}, "nobody answers ARP for an ipvlan in mode l3"),
    ],
    ids=["infiniband", "vlan", "ipvlan"],
)
def test_where_dhcp_cannot_be_right_it_is_refused(
    link: Link, shared: bool, child: dict[str, Any] | None, words: str
) -> None:
    """The text says why."""
    config: dict[str, Any] = {"interface": {"dhcp": True}}
    if child is not None:
        config["interface"]["subInterface"] = child
    up = replace(link, flags=1)
    _, problems = planned(config, None, link=up, shared=shared)
    assert [each for each in problems if each.startswith("interface.dhcp: must be left out") and words in each]


@pytest.mark.parametrize("child", [{"type": "macvlan"}, {"type": "ipvlan"}, {"type": "ipvlan", "mode": "l2"}])
def test_children_with_a_link_of_their_own_may_have_leases(child: dict[str, Any]) -> None:
    """macvlan, and ipvlan on layer 2."""
    config = {"interface": {"dhcp": True, "subInterface": child}}
    _, problems = planned(config, None, link=replace(LINK, flags=1), shared=True)
    assert not problems


def plan(pod: PodState | None = None, key: str = "eth1", request: str = "nic") -> DevicePlan:
    """Return a device's plan."""
    return DevicePlan(
        key=DeviceKey("node", key), request=request, kind=DeviceKind.INTERFACE, host=HostState(link=LINK), pod=pod
    )


def test_the_client_identifier_is_the_claims_and_the_devices() -> None:
    """RFC 4361: type 255, IAID, DUID-UUID; the same each time, another one for another device, request or claim."""
    uid = "12345678-1234-4234-8234-123456789abc"
    found = plan_lease.client_id(uid, plan())
    assert found[:1] == b"\xff"
    assert found[5:] == b"\0\4" + uuid.UUID(uid).bytes
    assert found == plan_lease.client_id(uid, plan())
    others = [
        plan_lease.client_id(uid, plan(key="eth2")),
        plan_lease.client_id(uid, plan(request="other")),
        plan_lease.client_id("not-a-uuid", plan()),
    ]
    assert len({found, *others}) == 4
    assert {len(each) for each in (found, *others)} == {23}


def test_a_lease_fits_who_would_ask_for_it_now() -> None:
    """Another hardware address or identifier needs another lease."""
    right = replace(LEASE, client_id=plan_lease.client_id("u1", plan()).hex())
    pod = PodState(name="net1", dhcp=True, lease=right)
    assert plan_lease.fits(plan(pod), "u1")
    assert plan_lease.fits(plan(PodState(name="net1")), "u1")
    assert not plan_lease.fits(plan(pod), "u2")
    assert not plan_lease.fits(plan(replace(pod, hardware_address="02:00:00:00:00:99")), "u1")
    assert not plan_lease.fits(plan(replace(pod, lease=None)), "u1")


def test_another_lease_takes_the_place_of_the_first() -> None:
    """Address and lease routes change, what was configured or copied stays."""
    pod, _ = planned(
        {"interface": {"dhcp": True}, "routes": [{"destination": "10.7.0.0/16", "scope": 253}]},
        given(("0.0.0.0/0", "10.0.0.1")),
    )
    other = given(("0.0.0.0/0", "10.1.0.1"), ("10.7.0.0/16", "10.1.0.7"), address="10.1.0.9/16")
    found = plan_lease.with_lease(plan(pod), other).pod
    assert found is not None
    assert (found.lease, found.lease_lost) == (other, "")
    assert [each.cidr for each in found.addresses] == ["10.1.0.9/16"]
    assert [(each.destination, each.gateway) for each in found.routes] == [
        ("10.7.0.0/16", None),
        ("0.0.0.0/0", "10.1.0.1"),
    ]


def test_a_lost_lease_is_marked() -> None:
    """The plan says why; the lease itself stays known, for the address that is asked for again."""
    pod, _ = planned({"interface": {"dhcp": True}}, LEASE)
    found = plan_lease.with_lease(plan(pod), None, "the server said no").pod
    assert found == replace(pod, lease_lost="the server said no")
    assert plan_lease.with_lease(plan(), LEASE).pod is None
