"""The steps of an attach: which, in which order, and none for what is so already."""

from __future__ import annotations

from typing import Any

from nri_dranet.attach import steps
from nri_dranet.attach.steps import Found
from nri_dranet.netlink.model import Neighbour, Rule


def _names(plan: Any, found: Found, **more: Any) -> list[str]:
    return [step.name for step in steps.configure(plan, plan.pod, 7, found, **more)]


def test_order(make: Any) -> None:
    """Link settings, VRF, addresses, up, addresses with an end, routes (gateways last), rules, neighbours."""
    plan = make.plan(
        mtu=9000,
        hardware_address="02:00:00:00:00:07",
        gso_max_size=30000,
        sysctls={"ipv4/conf/arp_ignore": "1"},
        addresses=(make.address("fd71::5/64", valid_lifetime=600), make.address("10.0.0.5/24")),
        routes=(make.route("10.9.0.0/16", "10.0.0.1"), make.route("10.0.0.1/32", scope=253)),
        rules=(Rule(family=2, source="10.0.0.0/24", table=201, priority=501),),
        neighbours=(Neighbour(family=2, address="10.0.0.9", hardware_address="02:00:00:00:00:09"),),
    )
    assert _names(plan, Found(link=make.link(mtu=1500)), vrf=9) == [
        "set MTU 9000",
        "set MAC 02:00:00:00:00:07",
        "set gso_max_size 30000",
        "set arp_ignore=1",
        "enslave to the VRF",
        "add address 10.0.0.5/24",
        "set up",
        "add address fd71::5/64",
        "add route 10.0.0.1/32",
        "add route 10.9.0.0/16 via 10.0.0.1",
        "add rule 501: from 10.0.0.0/24 table 201",
        "add neighbour 10.0.0.9",
    ]


def test_nothing_to_do(make: Any) -> None:
    """An interface that is all that already gets no step."""
    addresses = (make.address("10.0.0.5/24"),)
    routes = (make.route("10.9.0.0/16", "10.0.0.1"),)
    plan = make.plan(mtu=1500, hardware_address="02:00:00:00:00:01", addresses=addresses, routes=routes)
    found = Found(link=make.link(mtu=1500), up=True, addresses=addresses, routes=routes, master=9)
    assert _names(plan, found, vrf=9) == []


def test_mac_of_a_link_that_is_up(make: Any) -> None:
    """A link that is up goes down for another MAC and up again."""
    plan = make.plan(hardware_address="02:00:00:00:00:07")
    assert _names(plan, Found(link=make.link(), up=True)) == [
        "set down to change the MAC",
        "set MAC 02:00:00:00:00:07",
        "set up",
    ]


def test_rules_can_be_taken_back(make: Any) -> None:
    """What belongs to the namespace has an undo, what belongs to the interface has none."""
    rule = Rule(family=2, source="10.0.0.0/24", table=201, priority=501)
    plan = make.plan(addresses=(make.address("10.0.0.5/24"),), rules=(rule,))
    found = {step.name: step.undo for step in steps.configure(plan, plan.pod, 7, Found(link=make.link()))}
    assert found["add address 10.0.0.5/24"] is None
    undo = found["add rule 501: from 10.0.0.0/24 table 201"]
    assert undo is not None
    assert undo.label.startswith("delete rule 501")


def test_labels_and_proofs(make: Any) -> None:
    """An IPv6 address is usable at once, and a label of the host's name is not taken along."""
    plan = make.plan(addresses=(make.address("10.0.0.5/24", label="n0:1"), make.address("10.0.1.5/24", label="net1:1")))
    first, second, *_ = steps.configure(plan, plan.pod, 7, Found(link=make.link()))
    assert b"n0:1" not in first.do.body
    assert b"net1:1" in second.do.body
    plan = make.plan(addresses=(make.address("fd71::5/64"),))
    (step, *_) = steps.configure(plan, plan.pod, 7, Found(link=make.link()))
    assert b"\x08\x00\x08\x00\x02\x00\x00\x00" in step.do.body


def test_advice(make: Any) -> None:
    """A refusal is answered with what is allowed."""
    plan = make.plan(mtu=900, gso_max_size=10**6, gro_max_size=10**6, addresses=(make.address("fd71::5/64"),))
    link = make.link(mtu=1500, min_mtu=68, max_mtu=9216, tso_max_size=65536)
    advice = [step.advice for step in steps.configure(plan, plan.pod, 7, Found(link=link))]
    assert advice[:4] == [
        "the device allows 68 to 9216",
        "the device allows up to 65536",
        "",
        "IPv6 needs an MTU of at least 1280, the claim asks for 900",
    ]


def test_files(make: Any) -> None:
    """Files are for what netlink cannot set; an IPv6 address switches IPv6 on unless the plan says otherwise."""
    sysctls = {"ipv4/conf/arp_ignore": "1", "ipv4/conf/forwarding": "1", "ipv6/conf/forwarding": "1"}
    assert steps.files(make.plan(sysctls=sysctls).pod) == {"ipv4/conf/forwarding": "1", "ipv6/conf/forwarding": "1"}
    six = (make.address("fd71::5/64"),)
    assert steps.files(make.plan(addresses=six).pod) == {"ipv6/conf/disable_ipv6": "0"}
    asked = make.plan(addresses=six, sysctls={"ipv6/conf/disable_ipv6": "1"}).pod
    assert steps.files(asked) == {"ipv6/conf/disable_ipv6": "1"}
    assert steps.files(make.plan(addresses=(make.address("10.0.0.5/24"),)).pod) == {}
