"""Which link is taken for a device, and which is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nri_dranet.attach import locate
from nri_dranet.claims.plan import DeviceKind, SubInterface

PCI = {
    "parent_bus": "pci",
    "parent_device": "0000:01:10.0",
    "permanent_address": "02:00:00:00:00:01",
    "phys_port_name": "p0",
}
VETH = {"kind": "veth", "lower": 6}
IN_POD = {"lower_netnsid": 0}


def test_hardware_under_any_name(make: Any) -> None:
    """A NIC with its PCI address and permanent MAC is the device whatever else changed."""
    plan = make.plan(make.link(**PCI))
    changed = make.link(**PCI, index=99, mtu=900)
    other = replace(changed, name="dev99", address="02:00:00:00:00:99")
    assert locate.is_device(plan, other, in_pod=True)
    assert locate.is_device(plan, other, in_pod=False)


@pytest.mark.parametrize(
    "difference",
    [
        {"parent_device": "0000:01:10.2"},
        {"parent_bus": "usb"},
        {"permanent_address": "02:00:00:00:00:02"},
        {"phys_port_name": "p1"},
        {"kind": "veth"},
        {"type": 32},
    ],
)
def test_one_fact_that_differs_makes_a_stranger(make: Any, difference: dict[str, Any]) -> None:
    """Name, index and MAC do not help where a lasting fact differs."""
    plan = make.plan(make.link(**PCI))
    assert not locate.is_device(plan, replace(plan.host.link, **difference), in_pod=False)


def test_fact_that_a_driver_does_not_tell(make: Any) -> None:
    """A permanent MAC or port name that one side does not know is no difference."""
    plan = make.plan(make.link(**PCI))
    silent = replace(plan.host.link, permanent_address="", phys_port_name="")
    assert locate.is_device(plan, silent, in_pod=False)


def test_two_interfaces_of_one_pci_function(make: Any) -> None:
    """The port name tells the interfaces of one PCI function apart."""
    plan = make.plan(make.link(**{**PCI, "permanent_address": ""}))
    twin = make.link(**{**PCI, "permanent_address": "", "phys_port_name": "p1", "index": 8, "name": "n1"})
    own = replace(plan.host.link, name="dev7")
    assert locate.pick(plan, [twin, own], in_pod=False) == (own, "")


def test_twins_that_cannot_be_told_apart(make: Any) -> None:
    """Two links that agree in everything known are none of them, and the word names both."""
    plan = make.plan(make.link(**{**PCI, "permanent_address": "", "phys_port_name": ""}))
    twins = [replace(plan.host.link, index=number, name=f"dev{number}", address="") for number in (98, 99)]
    link, word = locate.pick(plan, twins, in_pod=True)
    assert link is None
    assert "dev98, dev99" in word
    assert "in the pod" in word


def test_veth_by_its_peer(make: Any) -> None:
    """A veth is told by its peer's index, near on the host and far in the pod, and one more fact."""
    plan = make.plan(make.link(**VETH))
    assert locate.is_device(plan, make.link(**VETH, name="x"), in_pod=False)
    far = make.link(**VETH, **IN_POD)
    assert locate.is_device(plan, far, in_pod=True)
    assert not locate.is_device(plan, far, in_pod=False)
    assert not locate.is_device(plan, make.link(**VETH), in_pod=True)
    assert not locate.is_device(plan, replace(far, lower=8), in_pod=True)
    assert not locate.is_device(plan, replace(far, index=50, name="x", address="02:00:00:00:00:99"), in_pod=True)


def test_macvlan_needs_two_facts(make: Any) -> None:
    """The children of one parent are alike: one fact that agrees by chance is not enough, a known index is."""
    plan = make.plan(make.link(kind="macvlan", lower=3))
    sibling = make.link(kind="macvlan", lower=3, lower_netnsid=0, name="net5", address="02:00:00:00:00:55")
    assert not locate.is_device(plan, sibling, in_pod=True)
    assert locate.is_device(plan, replace(sibling, name="net1"), in_pod=True)
    assert locate.is_device(plan, sibling, in_pod=True, index=7)


def test_vxlan_gives_its_own_index_as_that_of_another(make: Any) -> None:
    """A VXLAN that has moved gives its own index as IFLA_LINK; its underlay tells it from others."""
    plan = make.plan(make.link(kind="vxlan"))
    moved = make.link(kind="vxlan", lower=7, lower_netnsid=0, name="net1")
    assert locate.is_device(plan, moved, in_pod=True)
    assert not locate.is_device(plan, replace(moved, underlay=3), in_pod=True)


def test_link_of_no_lasting_fact(make: Any) -> None:
    """A dummy is told by two of name, index and MAC; planned name and MAC count."""
    plan = make.plan(make.link(kind="dummy"), hardware_address="02:00:00:00:00:07")
    assert locate.is_device(plan, make.link(kind="dummy", name="net1", index=4), in_pod=True)
    assert locate.is_device(
        plan, make.link(kind="dummy", name="net1", index=4, address="02:00:00:00:00:07"), in_pod=True
    )
    assert not locate.is_device(plan, make.link(kind="dummy", name="net1", index=4, address=""), in_pod=True)
    spare = make.link(kind="dummy", name="net1", index=7 + locate.SPARE_INDEX, address="")
    assert locate.is_device(plan, spare, in_pod=True)


def test_more_evidence_wins(make: Any) -> None:
    """Of two that could be it, the one with more facts is it."""
    plan = make.plan(make.link(kind="dummy"))
    exact = make.link(kind="dummy")
    partial = make.link(kind="dummy", name="net1", index=20)
    assert locate.pick(plan, [partial, exact], in_pod=False) == (exact, "")
    assert locate.pick(plan, [], in_pod=False) == (None, "")


def test_vlan_by_its_number(make: Any) -> None:
    """A VLAN of another number on the same parent is another link."""
    plan = make.plan(make.link(kind="vlan", lower=3, vlan_id=100))
    assert locate.is_device(plan, make.link(kind="vlan", lower=3, vlan_id=100), in_pod=False)
    assert not locate.is_device(plan, make.link(kind="vlan", lower=3, vlan_id=101), in_pod=False)


def test_child_of_a_parent(make: Any) -> None:
    """A child in the pod is told by kind, parent and name, not by what the parent is like."""
    made = SubInterface(kind="vlan", vlan_id=100)
    plan = make.plan(make.link(**PCI), kind=DeviceKind.CHILD, sub_interface=made)
    child = make.link(kind="vlan", lower=7, lower_netnsid=0, vlan_id=100, name="net1", index=2)
    assert locate.is_device(plan, child, in_pod=True)
    assert locate.is_device(plan, replace(child, name="other0"), in_pod=True, index=2)
    assert not locate.is_device(plan, replace(child, name="other0"), in_pod=True)
    assert not locate.is_device(plan, replace(child, vlan_id=101), in_pod=True)
    assert not locate.is_device(plan, replace(child, lower=8), in_pod=True)
    assert not locate.is_device(plan, replace(child, lower_netnsid=None), in_pod=True)
    assert locate.is_device(plan, plan.host.link, in_pod=False)
    unmade = make.plan(make.link(**PCI), kind=DeviceKind.CHILD)
    assert not locate.is_device(unmade, child, in_pod=True)


def test_device_without_an_interface(make: Any) -> None:
    """Nothing is taken for a device that has no interface."""
    plan = replace(make.plan(), host=None)
    assert not locate.is_device(plan, make.link(), in_pod=False, index=7)
