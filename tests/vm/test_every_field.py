"""The fields that not every kernel can do: in the pod as they say, and everything as before afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.netlink.ethtool import Ethtool
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
