"""DHCP leases where the kernel must have what not every one has: in a VRF, and for an ipvlan."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.dhcp import client, options
from nri_dranet.dhcp.link import running
from nri_dranet.dhcp.message import Kind
from nri_dranet.dra import plan_lease
from tests.node.attach.world import World, world
from tests.node.dhcp_server import DhcpServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nri_dranet.claims.plan import DevicePlan
    from nri_dranet.dhcp.lease import Lease

__all__ = ["world"]

pytestmark = pytest.mark.vm

PATIENCE = 60.0


@pytest.fixture
def server(world: World) -> Iterator[DhcpServer]:
    """Run a server at the other end of the host's n0, which runs."""
    world.veth("n0")
    world.host("addr", "add", "10.99.0.1/24", "dev", "n0p")
    for name in ("n0", "n0p"):
        with running(world.index(name), deadline=time.monotonic() + PATIENCE, netns=world.host_netns):
            pass
    routes = options.pack_routes({"0.0.0.0/0": "10.99.0.1", "10.5.0.0/16": "10.99.0.2"})
    with DhcpServer(world.host_netns, "n0p", options={options.CLASSLESS_ROUTES: routes}) as made:
        yield made


def leased(world: World, document: dict[str, Any], *, shared: bool = False) -> DevicePlan:
    """Plan n0 with a lease, as Prepare does."""
    (plan,) = world.planned(document, shared=shared).devices
    lease = client.acquire(
        world.index("n0"),
        hardware_address=plan_lease.hardware_address(plan),
        client_id=plan_lease.client_id("u", plan),
        deadline=time.monotonic() + PATIENCE,
        netns=world.host_netns,
    )
    return plan_lease.with_lease(plan, lease)


def lease_of(plan: DevicePlan) -> Lease:
    """Return a plan's lease."""
    assert plan.pod is not None
    assert plan.pod.lease is not None
    return plan.pod.lease


def renewed(world: World, plan: DevicePlan) -> Lease:
    """Prolong a plan's lease in the pod."""
    (shown,) = json.loads(world.pod("-j", "link", "show", "net1"))
    with running(shown["ifindex"], deadline=time.monotonic() + PATIENCE, netns=world.pod_netns):
        return client.renew(
            lease_of(plan), shown["ifindex"], deadline=time.monotonic() + PATIENCE, netns=world.pod_netns
        )


def test_a_leases_routes_are_in_the_vrfs_table(world: World, server: DhcpServer) -> None:
    """None is in main, and the server is asked through the VRF's port for more time."""
    plan = leased(world, {"interface": {"name": "net1", "dhcp": True, "vrf": {"name": "blue", "table": 1007}}})
    world.attach(plan)
    assert world.addresses_in_pod("net1") == ["10.99.0.100/24"]
    routes = world.pod("route", "show", "table", "1007")
    assert "default via 10.99.0.1 dev net1 proto dhcp metric 1024" in routes
    assert "10.5.0.0/16 via 10.99.0.2 dev net1 proto dhcp" in routes
    assert world.pod("route", "show") == ""
    assert renewed(world, plan).obtained > lease_of(plan).obtained
    assert server.asked[-1].ciaddr == "10.99.0.100"
    (outcome,) = world.detach(plan)
    assert (outcome.home, outcome.problems) == (True, ())


def test_an_ipvlan_has_a_lease_beside_its_parents(world: World, server: DhcpServer) -> None:
    """Both have one Ethernet address: the client identifier tells them apart. It is prolonged in the pod."""
    own = client.acquire(
        world.index("n0"),
        hardware_address=json.loads(world.host("-j", "link", "show", "n0"))[0]["address"],
        client_id=b"\1parent",
        deadline=time.monotonic() + PATIENCE,
        netns=world.host_netns,
    )
    child = {"type": "ipvlan", "mode": "l2"}
    plan = leased(world, {"interface": {"name": "net1", "dhcp": True, "subInterface": child}}, shared=True)
    assert (own.ip, lease_of(plan).ip) == ("10.99.0.100", "10.99.0.101")
    assert lease_of(plan).hardware_address == own.hardware_address
    world.attach(plan)
    assert world.addresses_in_pod("net1") == ["10.99.0.101/24"]
    assert renewed(world, plan).obtained > lease_of(plan).obtained
    assert [asked.kind for asked in server.asked if asked.ciaddr == "10.99.0.101"] == [Kind.REQUEST]
    (outcome,) = world.detach(plan)
    assert (outcome.home, outcome.problems) == (True, ())
