"""Links that not every kernel can make: in pods and back, and below the node's own uplink."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from nri_dranet.claims.plan import DeviceKind, PodState, SubInterface, VrfPlan
from nri_dranet.netlink.model import Address, Route
from tests.vm.bed import conditions, eventually, links, run

if TYPE_CHECKING:
    from nri_dranet.claims.plan import DevicePlan
    from tests.vm.bed import Bed

pytestmark = pytest.mark.vm


def test_a_dummy_goes_and_comes_home(bed: Bed) -> None:
    """With its address and its index."""
    bed.link("d0", "type", "dummy")
    run("ip", "addr", "add", "192.0.2.1/24", "dev", "d0")
    run("ip", "link", "set", "d0", "up")
    index = links()["d0"]["ifindex"]
    plan = bed.plan(bed.device("d0"))
    pod = bed.pod()
    (facts,) = bed.attach(pod, plan)
    assert conditions(facts)["NetworkReady"] == ("True", "NetworkReady")
    assert "d0" not in links()
    (done,) = bed.detach(pod, plan)
    assert (done.home, done.problems) == (True, ())
    assert links()["d0"]["ifindex"] == index
    assert "192.0.2.1/24" in run("ip", "addr", "show", "dev", "d0")


def test_a_vrf_is_made_and_entered_before_addresses_and_routes(bed: Bed) -> None:
    """Address and route are in the VRF's table; it goes with the last of its devices."""
    bed.link("d0", "type", "dummy")
    address = Address(family=2, address="192.0.2.1", prefix_length=24)
    route = Route(family=2, destination="198.51.100.0/24", gateway="192.0.2.9", table=1007)
    vrf = VrfPlan(name="blue", table=1007)
    plan = bed.plan(bed.device("d0"), addresses=(address,), routes=(route,), vrf=vrf)
    pod = bed.pod()
    bed.attach(pod, plan)
    shown = links(pod)
    assert shown["blue"]["linkinfo"]["info_data"]["table"] == 1007
    assert shown["net1"]["master"] == "blue"
    routes = run("ip", "-n", pod, "route", "show", "table", "1007")
    assert "192.0.2.0/24 dev net1" in routes
    assert "198.51.100.0/24 via 192.0.2.9 dev net1" in routes
    assert run("ip", "-n", pod, "route", "show") == ""
    (done,) = bed.detach(pod, plan)
    assert (done.home, done.problems) == (True, ())
    assert "blue" not in links(pod)


@pytest.mark.parametrize(
    "child",
    [
        SubInterface(kind="macvlan", mode="bridge"),
        SubInterface(kind="ipvlan", mode="l2"),
        SubInterface(kind="ipvlan", mode="l3"),
        SubInterface(kind="vlan", vlan_id=100),
    ],
    ids=["macvlan", "ipvlan l2", "ipvlan l3", "vlan"],
)
def test_a_child_is_made_in_the_pod_and_its_parent_stays(bed: Bed, child: SubInterface) -> None:
    """Every kind in its mode, with its VLAN; gone after the pod."""
    bed.link("d0", "type", "dummy")
    run("ip", "link", "set", "d0", "up")
    plan = bed.plan(bed.device("d0"))
    plan = _as(plan, DeviceKind.CHILD, PodState(name="net1", sub_interface=child))
    pod = bed.pod()
    (facts,) = bed.attach(pod, plan)
    assert conditions(facts)["NetworkReady"] == ("True", "NetworkReady")
    info = links(pod)["net1"]["linkinfo"]
    assert info["info_kind"] == child.kind
    assert child.mode is None or info["info_data"]["mode"] == child.mode
    assert child.vlan_id is None or info["info_data"]["id"] == child.vlan_id
    assert "d0" in links()
    (done,) = bed.detach(pod, plan)
    assert (done.home, done.problems) == (True, ())
    assert "net1" not in links(pod)


def _as(plan: DevicePlan, kind: DeviceKind, pod: PodState) -> DevicePlan:
    return replace(plan, kind=kind, pod=pod)


def test_a_vlan_moves_while_its_parent_stays(bed: Bed) -> None:
    """It is the same VLAN after it has come home."""
    bed.link("d0", "type", "dummy")
    run("ip", "link", "set", "d0", "up")
    bed.link("d0.7", "link", "d0", "type", "vlan", "id", "7")
    plan = bed.plan(bed.device("d0.7"))
    pod = bed.pod()
    bed.attach(pod, plan)
    assert links(pod)["net1"]["linkinfo"]["info_data"]["id"] == 7
    (done,) = bed.detach(pod, plan)
    assert (done.home, done.problems) == (True, ())
    assert links()["d0.7"]["link"] == "d0"


def test_a_bond_is_not_offered_while_the_uplink_is_a_vlan_on_it(bed: Bed) -> None:
    """The VLAN with the default route, the bond below it and the bond's ports are all refused, with a reason."""
    bed.link("bond7", "type", "bond", "mode", "active-backup")
    for name in ("d0", "d1"):
        bed.link(name, "type", "dummy")
        run("ip", "link", "set", name, "master", "bond7")
    bed.link("free", "type", "dummy")
    bed.link("bond7.5", "link", "bond7", "type", "vlan", "id", "5")
    for name in ("bond7", "bond7.5", "free"):
        run("ip", "link", "set", name, "up")
    run("ip", "addr", "add", "192.0.2.1/24", "dev", "bond7.5")
    run("ip", "route", "add", "default", "via", "192.0.2.254", "dev", "bond7.5")
    refused = {device.link.name: device.refused for device in bed.devices().values() if device.link}
    for name in ("bond7", "bond7.5", "d0", "d1"):
        assert refused.get(name, "not published"), name
    assert refused["free"] == ""
    assert "default" in json.dumps(json.loads(run("ip", "-j", "route")))


def test_an_uplink_that_gains_a_bond_is_never_offered(bed: Bed) -> None:
    """Each step by events alone: the bond takes the route, a port joins, a VLAN on it takes the route over."""
    bed.link("bond7", "type", "bond", "mode", "active-backup")
    for name in ("d0", "d1"):
        bed.link(name, "type", "dummy")
    with bed.inventory() as inventory:
        offered: list[set[str]] = []

        def look() -> None:
            offered.append({each.name for each in inventory.devices() if not each.refused})

        inventory.subscribe(look)
        look()
        assert {"d0", "d1"} <= offered[-1]
        run("ip", "addr", "add", "192.0.2.1/24", "dev", "d0")
        run("ip", "link", "set", "d0", "up")
        run("ip", "route", "add", "default", "via", "192.0.2.254", "dev", "d0")
        eventually(lambda: "d0" not in offered[-1], "d0 withdrawn")
        run("ip", "link", "set", "d1", "master", "bond7")
        run("ip", "link", "set", "bond7", "up")
        run("ip", "addr", "add", "192.0.2.2/24", "dev", "bond7")
        run("ip", "route", "add", "default", "via", "192.0.2.254", "dev", "bond7", "metric", "9")
        eventually(lambda: "d1" not in offered[-1], "d1 withdrawn")
        bond = links()["bond7"]["ifindex"]
        eventually(lambda: inventory.is_uplink(bond), "the bond is known as uplink")
        begun = len(offered)
        bed.link("bond7.5", "link", "bond7", "type", "vlan", "id", "5")
        run("ip", "link", "set", "bond7.5", "up")
        run("ip", "addr", "add", "198.51.100.1/24", "dev", "bond7.5")
        run("ip", "route", "add", "default", "via", "198.51.100.254", "dev", "bond7.5", "metric", "3")
        run("ip", "route", "del", "default", "dev", "bond7")
        eventually(lambda: inventory.is_uplink(links()["bond7.5"]["ifindex"]), "the VLAN is known as uplink")
        look()
        assert not {name for state in offered[begun:] for name in state} & {"d0", "d1", "bond7"}
        assert inventory.is_uplink(bond) == "the uplink bond7.5 stands on it"
        assert inventory.is_uplink(links()["d1"]["ifindex"]) == "it is a port of the uplink bond7"
