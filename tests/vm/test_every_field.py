"""The fields that not every kernel can do: in the pod as they say, and everything as before afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import strategies as st

from nri_dranet.netlink.ethtool import Ethtool
from tests.node.attach.documents import carry_out, documents
from tests.node.attach.fields import CASES, Case, link, show
from tests.node.attach.world import World, world
from tests.vm.bed import FAR, run

if TYPE_CHECKING:
    from tests.vm.bed import Bed

__all__ = ["world"]

pytestmark = pytest.mark.vm


@pytest.mark.parametrize("case", [case for case in CASES if case.guest], ids=str)
def test_a_field_does_what_it_says_and_leaves_nothing_behind(world: World, case: Case) -> None:
    """Links, addresses, routes of all tables, rules, neighbours, sysctls, features, queueing: one by one as before."""
    show(case, world)


@pytest.mark.parametrize("child", [{}, {"type": "ipvlan"}, {"type": "vlan", "vlanID": 7}], ids=str)
def test_a_child_may_have_a_name_that_the_node_has(world: World, child: dict[str, Any]) -> None:
    """Its parent's by default: this kernel looks for it on the node and refuses it at first."""
    wanted = {"interface": {"subInterface": child}} if child else {}
    show(Case((), wanted, lambda world: _is_kind(world, child.get("type", "macvlan")), shared=True), world)


def _is_kind(world: World, kind: str) -> None:
    assert link(world, "n0")["linkinfo"]["info_kind"] == kind


VRFS = st.fixed_dictionaries(
    {"name": st.sampled_from(["red", "blue", "net1"])}, optional={"table": st.sampled_from([77, 100, 254, 4294967295])}
)
CHILDREN = st.one_of(
    st.fixed_dictionaries({"type": st.just("ipvlan")}, optional={"mode": st.sampled_from(["l2", "l3", "l3s"])}),
    st.fixed_dictionaries({"type": st.just("vlan"), "vlanID": st.sampled_from([1, 7, 4094])}),
)


@pytest.mark.parametrize("shared", [False, True])
def test_a_plan_that_was_made_can_be_carried_out(world: World, shared: bool) -> None:
    """Whole configurations with a VRF, and with children of the kinds that not every kernel has."""
    world.veth("n0", "10.71.0.2/24", "fd71::2/64")
    world.host("route", "add", "10.88.0.0/16", "via", "10.71.0.1", "dev", "n0", "metric", "7")
    before = world.state()
    wanted = documents(vrf=VRFS, subInterface=CHILDREN) if shared else documents(vrf=VRFS)
    assert carry_out(world, wanted, shared=shared, examples=30) > 3
    assert not world.changes(before)


def test_private_flags_are_switched_in_the_pod_and_back_on_the_host(bed: Bed, world: World) -> None:
    """Of a real driver's card, by the names that it gives them."""
    run("modprobe", "igb")
    name = bed.netdev(FAR)
    run("ip", "link", "set", name, "netns", world.host_name)
    try:
        before = world.state()
        flag, was = next(iter(_flags(world, world.index(name)).items()))
        document: dict[str, Any] = {"interface": {"name": "net1"}, "ethtool": {"privateFlags": {flag: not was}}}
        (plan,) = world.planned(document, name=name).devices
        world.attach(plan)
        assert _flags(world, int(link(world)["ifindex"]), pod=True)[flag] is not was
        (outcome,) = world.detach(plan)
        assert (outcome.home, outcome.problems) == (True, ())
        assert not world.changes(before)
        assert _flags(world, world.index(name))[flag] is was
    finally:
        run("ip", "-n", world.host_name, "link", "set", name, "netns", "1")


def _flags(world: World, index: int, *, pod: bool = False) -> dict[str, bool]:
    with Ethtool(world.pod_netns if pod else world.host_netns) as ethtool:
        return ethtool.private_flags(index)
