"""What a look says of devices in a pod; it changes nothing."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from nri_dranet.attach.engine import AttachError, Engine, Place
from nri_dranet.claims.facts import ObservedRdma, Phase
from nri_dranet.claims.plan import DeviceKind, RdmaPlan
from nri_dranet.netlink.namespaces import NetNs


def _hints(facts: Any) -> dict[Any, Any]:
    return {fact.key: fact.interface for fact in facts}


def test_look_repeats_the_facts(world: Any) -> None:
    """With and without hints a look says what the attach said, for several devices."""
    world.veth("n0")
    world.veth("n1")
    plans = (
        world.plan("n0", "net1", addresses=(world.address("10.77.0.5/24"), world.address("fd77::5/64"))),
        world.plan("n1", "net2", addresses=(world.address("10.78.0.5/24"),)),
    )
    facts = world.attach(*plans)
    assert world.lasting(world.engine.look(plans, world.pod_netns, _hints(facts))) == world.lasting(facts)
    assert world.lasting(world.engine.look(plans, world.pod_netns, {})) == world.lasting(facts)
    assert world.lasting(world.engine.look(plans[:1], world.pod_netns, _hints(facts))) == world.lasting(facts[:1])
    assert world.engine.look((), world.pod_netns, {}) == ()


def test_link_local_addresses(world: Any) -> None:
    """The kernel's own link-local address is left out; one that was planned, or added by hand, is not."""
    world.veth("n0")
    plan = world.plan("n0", "net1", addresses=(world.address("fe80::5/64"),))
    facts = world.attach(plan)
    world.pod("addr", "add", "fe80::9/64", "dev", "net1", "nodad")
    deadline = time.monotonic() + 20
    while world.pod("-6", "addr", "show", "net1").count("inet6 fe80:") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (fact,) = world.engine.look([plan], world.pod_netns, _hints(facts))
    assert fact.interface.addresses == ("fe80::5/64", "fe80::9/64")
    assert fact.interface.planned == 1


def test_planned_addresses_come_first(world: Any) -> None:
    """In the order of the plan, whatever order the kernel lists."""
    world.veth("n0")
    plan = world.plan("n0", "net1", addresses=(world.address("10.77.1.5/24"), world.address("10.77.0.5/24")))
    facts = world.attach(plan)
    world.pod("addr", "flush", "dev", "net1")
    for each in ("10.77.2.5/24", "10.77.0.5/24", "10.77.1.5/24"):
        world.pod("addr", "add", each, "dev", "net1")
    (fact,) = world.engine.look([plan], world.pod_netns, _hints(facts))
    assert fact.interface.addresses == ("10.77.1.5/24", "10.77.0.5/24", "10.77.2.5/24")
    assert fact.interface.planned == 2


def test_planned_address_is_gone(world: Any) -> None:
    """A planned address that is gone, or has another prefix length now, is missing."""
    world.veth("n0")
    plan = world.plan("n0", "net1", addresses=(world.address("10.77.0.5/24"), world.address("10.77.1.5/24")))
    facts = world.attach(plan)
    world.pod("addr", "del", "10.77.0.5/24", "dev", "net1")
    world.pod("addr", "del", "10.77.1.5/24", "dev", "net1")
    world.pod("addr", "add", "10.77.1.5/25", "dev", "net1")
    (fact,) = world.engine.look([plan], world.pod_netns, _hints(facts))
    assert fact.phase is Phase.ATTACHED
    assert fact.interface.addresses == ("10.77.1.5/25",)
    assert fact.interface.missing_addresses == ("10.77.0.5/24", "10.77.1.5/24")


def test_renamed_in_the_pod(world: Any) -> None:
    """A device under another name, with another MAC and down is found by its index."""
    world.veth("n0")
    plan = world.plan("n0", "net1")
    facts = world.attach(plan)
    world.pod("link", "set", "net1", "down")
    world.pod("link", "set", "net1", "name", "other0", "address", "02:00:00:00:00:98")
    (fact,) = world.engine.look([plan], world.pod_netns, _hints(facts))
    assert (fact.phase, fact.reason) == (Phase.ATTACHED, "Renamed")
    assert (fact.interface.name, fact.interface.up) == ("other0", False)
    assert "net1" in fact.message
    assert "other0" in fact.message


def test_lost(world: Any) -> None:
    """Moved home, destroyed, or in a namespace that is gone: lost, each in its own words."""
    world.veth("n0")
    world.veth("n1")
    plans = (world.plan("n0", "net1"), world.plan("n1", "net2"))
    facts = world.attach(*plans)
    world.pod("link", "set", "net1", "netns", world.host_name)
    world.host("link", "del", "n1p")
    first, second = world.engine.look(plans, world.pod_netns, _hints(facts))
    assert (first.phase, first.reason) == (Phase.LOST, "DeviceMissing")
    assert "on the host as net1" in first.message
    assert (second.phase, second.reason) == (Phase.LOST, "DeviceMissing")
    assert "destroyed" in second.message
    first, second = world.engine.look(plans, None, _hints(facts))
    assert (first.reason, second.reason) == ("NamespaceGone", "NamespaceGone")


def test_pod_that_cannot_be_looked_at(world: Any) -> None:
    """When the kernel does not answer, nothing is known, and that is said."""
    world.veth("n0")
    plan = world.plan("n0", "net1")
    world.attach(plan)
    for how in ("before", "refuse"):
        engine, _ = world.faulty(0, how)
        (fact,) = engine.look([plan], world.pod_netns, {})
        engine.close()
        assert (fact.phase, fact.reason) == (Phase.UNKNOWN, "LookFailed")
        assert "made up" in fact.message


def test_closed_namespace(world: Any) -> None:
    """A namespace object that is closed is an error of the attach, and unknown to a look; detach does not raise."""
    world.veth("n0")
    plan = world.plan("n0", "net1")
    closed = NetNs.open(world.pod_netns.path)
    closed.close()
    with pytest.raises(AttachError) as caught:
        world.engine.attach([plan], closed, deadline=time.monotonic() + 60)
    assert caught.value.device == "n0"
    (fact,) = world.engine.look([plan], closed, {})
    assert fact.phase is Phase.UNKNOWN
    (outcome,) = world.engine.detach([plan], closed, hints={})
    assert not outcome.home
    assert "closed" in outcome.problems[0]


def test_where(world: Any) -> None:
    """A device is on the host, then in the pod, then nowhere."""
    world.veth("n0")
    plan = world.plan("n0", "net1")
    assert world.engine.where(plan, world.pod_netns).place is Place.HOST
    world.attach(plan)
    found = world.engine.where(plan, world.pod_netns)
    assert (found.place, found.link.name) == (Place.POD, "net1")
    assert world.engine.where(plan, None).place is Place.NOWHERE
    world.host("link", "del", "n0p")
    assert world.engine.where(plan, world.pod_netns).place is Place.NOWHERE


def test_ambiguous_devices(world: Any) -> None:
    """Two links that could be the device with equal right are both left alone, and the word says so."""
    world.host("link", "add", "n0", "type", "ifb")
    plan = world.plan("n0", "net1")
    world.host("link", "del", "n0")
    for name in ("n0", "net1"):
        world.host("link", "add", name, "address", plan.host.link.address, "type", "ifb")
    found = world.engine.where(plan, world.pod_netns)
    assert found.place is Place.NOWHERE
    assert "n0, net1" in found.word
    with pytest.raises(AttachError, match="several interfaces"):
        world.attach(plan)


def test_engine_is_closed_while_in_use(world: Any) -> None:
    """A closed engine can still be asked; it keeps no socket."""
    world.veth("n0")
    plan = world.plan("n0", "net1")
    engine = Engine(host_netns=world.host_netns)
    engine.close()
    engine.close()
    assert engine.where(plan, None).place is Place.HOST
    assert engine._idle == []


def test_rdma_without_the_kernels_support(world: Any) -> None:
    """On a kernel without RDMA an exclusive RDMA device cannot be attached, and everything is undone."""
    world.veth("n0", "10.71.0.2/24")
    before = world.state()
    plan = replace(world.plan("n0", "net1"), rdma=RdmaPlan(link="mlx5_0", exclusive=True))
    with pytest.raises(AttachError) as caught:
        world.attach(plan)
    assert "RDMA" in caught.value.message
    assert not world.changes(before)
    alone = replace(plan, host=None, pod=None, kind=DeviceKind.RDMA)
    (fact,) = world.engine.look([alone], world.pod_netns, {})
    assert fact.phase is Phase.UNKNOWN
    (outcome,) = world.engine.detach([alone], world.pod_netns, hints={})
    assert "mlx5_0" in outcome.problems[0]


def test_rdma_devices(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is seen of an RDMA device is told; one that has left the pod is lost; admin access is not concerned."""
    seen = {"now": ObservedRdma(link="mlx5_0", in_pod=True, port_state="ACTIVE")}
    monkeypatch.setattr("nri_dranet.attach.rdma.observe", lambda *_: seen["now"])
    world.veth("n0")
    base = world.plan("n0", "net1")
    exclusive = replace(base, host=None, pod=None, kind=DeviceKind.RDMA, rdma=RdmaPlan(link="mlx5_0", exclusive=True))
    admin = replace(exclusive, kind=DeviceKind.ADMIN, key=replace(base.key, device="admin"))
    shared = replace(base, rdma=RdmaPlan(link="mlx5_0"), key=replace(base.key, device="shared"))
    world.attach(shared)
    facts = world.engine.look([exclusive, admin, shared], world.pod_netns, {})
    assert [fact.phase for fact in facts] == [Phase.ATTACHED] * 3
    assert [fact.rdma.port_state if fact.rdma else "" for fact in facts] == ["ACTIVE", "", "ACTIVE"]
    seen["now"] = ObservedRdma(link="mlx5_0")
    facts = world.engine.look([exclusive, admin, shared], world.pod_netns, {})
    assert [fact.phase for fact in facts] == [Phase.LOST, Phase.ATTACHED, Phase.ATTACHED]
    assert (facts[0].reason, facts[0].rdma) == ("DeviceMissing", seen["now"])
    facts = world.engine.look([exclusive, admin], None, {})
    assert [fact.reason for fact in facts] == ["NamespaceGone", ""]


def test_addresses_that_cannot_be_listed(world: Any) -> None:
    """A look whose list of addresses is refused knows nothing, instead of saying that all are gone."""
    world.veth("n0")
    plan = world.plan("n0", "net1", addresses=(world.address("10.77.0.5/24"),))
    facts = world.attach(plan)
    engine, _ = world.faulty(1, "refuse")
    (fact,) = engine.look([plan], world.pod_netns, _hints(facts))
    engine.close()
    assert fact.phase is Phase.UNKNOWN
