"""The way home against a scripted kernel: old kernels, races, VRF and what is told of it."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

import pytest

from nri_dranet.attach.home import Homeward
from nri_dranet.attach.restore import restore
from nri_dranet.claims.plan import VrfPlan
from nri_dranet.netlink.codec import NetlinkError
from nri_dranet.netlink.model import Rule

VRF = VrfPlan(name="blue", table=1001)
MOVE = "move link 7 to another namespace as n0"


class _Host:
    fd = 5


HOST: Any = _Host()


def test_rename_of_a_link_that_is_up_on_an_old_kernel(make: Any, kernel: Any) -> None:
    """Kernels before 6.2 rename only links that are down: it goes down for that, and up again."""
    wanted = make.plan(make.link(flags=1)).host
    host = kernel(
        ("read link 7", make.link(name="net1", flags=1)),
        ("rename link 7 to n0", errno.EBUSY),
        ("read link 7", make.link(flags=0)),
    )
    assert restore(host, HOST, wanted, 7) == []
    assert host.done[1:4] == ["rename link 7 to n0", "set link 7 down", "rename link 7 to n0"]
    assert host.done[-1] == "set link 7 up"


def test_name_that_the_kernel_refuses(make: Any, kernel: Any) -> None:
    """A refusal that is no collision is told, and no other name is tried."""
    wanted = make.plan().host
    host = kernel(
        ("read link 7", make.link(name="net1")),
        ("rename link 7 to n0", errno.EPERM),
        ("read link 7", make.link(name="net1")),
    )
    (problem,) = restore(host, HOST, wanted, 7)
    assert "n0" in problem
    assert not any("drn" in label for label in host.done)


def test_bond_port_goes_down_first(make: Any, kernel: Any) -> None:
    """A bond takes a port only while that is down."""
    link = make.link(master=3, slave_kind="bond", flags=1)
    wanted = make.plan(link).host
    host = kernel(
        ("read link 7", replace(link, master=0)), ("read link 3", make.link(index=3, name="bond0", kind="bond"))
    )
    assert restore(host, HOST, wanted, 7) == []
    assert host.done[-2:] == ["set link 7 down", "make it a port of bond0"]


def test_device_vanishes_while_it_is_restored(make: Any, kernel: Any) -> None:
    """A device that vanishes meanwhile is an error that names what was being done."""
    plan = make.plan()
    host = kernel(("read link 7", make.link()))
    with pytest.raises(NetlinkError, match="restore link 7") as caught:
        Homeward(host, HOST, None).give_back(plan)
    assert caught.value.errno == errno.ENODEV


def test_arrived_under_its_pod_name(make: Any, kernel: Any) -> None:
    """The kernel moves first and renames then: when that fails the device is looked for on the host and renamed."""
    plan = make.plan(make.link(kind="veth", lower=6, flags=0))
    in_pod = make.link(kind="veth", lower=6, lower_netnsid=0, name="net1", flags=0)
    pod = kernel(("read link 7", in_pod), (MOVE, errno.EEXIST))
    arrived = make.link(kind="veth", lower=6, name="net1", flags=0)
    host = kernel(("read link net1", arrived), ("read link 7", arrived), ("read link 7", replace(arrived, name="n0")))
    assert Homeward(host, HOST, pod).give_back(plan, 7) == (True, [])
    assert "rename link 7 to n0" in host.done


def test_move_that_the_kernel_refuses(make: Any, kernel: Any) -> None:
    """A device that cannot be moved is not home, in the kernel's words."""
    plan = make.plan(make.link(kind="veth", lower=6))
    pod = kernel(("read link 7", make.link(kind="veth", lower=6, lower_netnsid=0, name="net1")), (MOVE, errno.EINVAL))
    arrived, problems = Homeward(kernel(), HOST, pod).give_back(plan, 7)
    assert not arrived
    assert "cannot be moved home" in problems[0]


def test_move_that_never_succeeds(make: Any, kernel: Any) -> None:
    """Collisions that do not end end the attempts."""
    plan = make.plan(make.link(kind="veth", lower=6))
    in_pod = make.link(kind="veth", lower=6, lower_netnsid=0, name="net1")
    pod = kernel(("read link 7", in_pod), *[(MOVE, errno.EEXIST), ("read link 7", in_pod)] * 10)
    arrived, problems = Homeward(kernel(), HOST, pod).give_back(plan, 7)
    assert not arrived
    assert "File exists" in problems[0]
    assert pod.done.count(MOVE) == 6


def test_vrf_is_removed_with_its_last_port(make: Any, kernel: Any) -> None:
    """A VRF goes when nothing is its port any more; another's, or one with ports, stays."""
    vrf = make.link(name="blue", index=20, kind="vrf", vrf_table=1001)
    pod = kernel(("read link blue", vrf))
    assert Homeward(kernel(), HOST, pod).remove_vrf(VRF) == []
    assert pod.done[-1] == "delete link 20"
    pod = kernel(("read link blue", vrf))
    pod.all_links = [make.link(master=20)]
    assert Homeward(kernel(), HOST, pod).remove_vrf(VRF) == []
    assert "delete link 20" not in pod.done
    pod = kernel(("read link blue", replace(vrf, vrf_table=7)))
    assert Homeward(kernel(), HOST, pod).remove_vrf(VRF) == []
    assert "delete link 20" not in pod.done
    assert Homeward(kernel(), HOST, None).remove_vrf(VRF) == []
    pod = kernel(("read link blue", vrf), ("delete link 20", errno.EPERM))
    assert "delete link 20" in Homeward(kernel(), HOST, pod).remove_vrf(VRF)[0]


def test_rules_are_removed(make: Any, kernel: Any) -> None:
    """A rule that is not there is fine, another refusal is told; without a pod there is nothing to do."""
    rule = Rule(family=2, source="10.0.0.0/24", table=201, priority=501)
    plan = make.plan(rules=(rule,))
    label = "delete rule 501: from 10.0.0.0/24 table 201"
    assert Homeward(kernel(), HOST, kernel((label, errno.ENOENT))).remove_rules(plan) == []
    assert label in Homeward(kernel(), HOST, kernel((label, errno.EPERM))).remove_rules(plan)[0]
    assert Homeward(kernel(), HOST, None).remove_rules(plan) == []
