"""Failures and kills at every message: the transaction ends attached or with the host exactly as it was."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.attach.engine import AttachError, Engine
from nri_dranet.netlink.model import Neighbour, Rule

if TYPE_CHECKING:
    from nri_dranet.claims.plan import DevicePlan

# The child runs the engine alone and ends by a signal; it shares nothing with threads that other tests may have left.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture
def two(world: Any) -> tuple[DevicePlan, DevicePlan]:
    """A veth with all that a host device can have, and a macvlan, both planned with all that a pod's can have."""
    world.veth("n0", "10.71.0.2/24", "fd71::2/64")
    world.host("link", "set", "n0", "alias", "uplink of rack 7", "txqueuelen", "777", "mtu", "3000", "group", "5")
    world.host("link", "property", "add", "dev", "n0", "altname", "enp7s0")
    world.host("route", "add", "10.74.0.0/16", "via", "10.71.0.1", "dev", "n0", "metric", "50")
    world.host("route", "add", "10.75.0.0/16", "dev", "n0", "scope", "link", "table", "211")
    world.host("-6", "route", "add", "fd99::/64", "via", "fd71::1", "dev", "n0", "src", "fd71::2")
    world.host("neigh", "add", "10.71.0.9", "lladdr", "02:11:22:33:44:55", "dev", "n0", "nud", "permanent")
    world.in_host("sysctl", "-qw", "net.ipv4.conf.n0.arp_ignore=1", "net.ipv6.conf.n0.accept_ra=0")
    world.host("link", "set", "n0", "promisc", "on")
    for command in (
        "qdisc add dev n0 root handle 1: htb default 10",
        "class add dev n0 parent 1: classid 1:10 htb rate 10mbit",
        "qdisc add dev n0 parent 1:10 handle 10: tbf rate 3mbit burst 10kb latency 50ms",
        "filter add dev n0 parent 1: protocol ip prio 7 u32 match ip dport 80 0xffff flowid 1:10",
        "qdisc add dev n0 ingress",
    ):
        world.in_host("tc", *command.split())
    world.veth("base")
    world.host("link", "add", "n1", "link", "base", "type", "macvlan", "mode", "bridge")
    world.host("link", "set", "n1", "up")
    world.host("addr", "add", "10.72.0.2/24", "dev", "n1")
    first = world.plan(
        "n0",
        "net1",
        mtu=1400,
        hardware_address="02:00:00:00:00:07",
        addresses=(world.address("10.77.0.5/24"), world.address("fd77::5/64")),
        routes=(world.route("10.99.0.0/16", "10.77.0.1"), world.route("fd98::/64", "fd77::1", source="fd77::5")),
        rules=(Rule(family=2, source="10.77.0.0/24", table=201, priority=501),),
        neighbours=(Neighbour(family=2, address="10.77.0.9", hardware_address="02:11:22:33:44:66"),),
        sysctls={"ipv4/conf/arp_ignore": "2", "ipv4/conf/forwarding": "1"},
    )
    second = world.plan("n1", "net2", addresses=(world.address("10.78.0.5/24"),))
    return first, second


def _attach(engine: Engine, world: Any, plans: tuple[DevicePlan, ...]) -> Any:
    return engine.attach(plans, world.pod_netns, deadline=time.monotonic() + 60)


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _messages(world: Any, plans: tuple[DevicePlan, ...]) -> tuple[int, int]:
    """Count the messages of an attach and of a detach without a fault."""
    engine, fault = world.faulty(-1, "refuse")
    _attach(engine, world, plans)
    attach = fault.count
    engine.detach(plans, world.pod_netns, hints={})
    engine.close()
    return attach, fault.count - attach


@pytest.mark.parametrize("how", ["refuse", "before", "after"])
def test_f07_failed_attach_is_undone(world: Any, two: tuple[DevicePlan, ...], how: str) -> None:
    """Whatever message fails, all devices are on the host as they were, the pod is empty, and the error says why."""
    before, pod = world.state(), world.pod_state()
    total, _ = _messages(world, two)
    assert not world.changes(before)
    for at in range(total):
        engine, fault = world.faulty(at, how)
        with pytest.raises(AttachError) as caught:
            _attach(engine, world, two)
        engine.close()
        assert "made up" in caught.value.message
        assert caught.value.device
        assert caught.value.step
        assert caught.value.reason
        assert not world.changes(before), f"message {at}: {fault.label}"
        assert world.pod_state() == pod, f"message {at}: {fault.label}"
    assert total > 20


def test_f02_killed_attach_is_finished(world: Any, two: tuple[DevicePlan, ...]) -> None:
    """Killed after any message, a new engine finishes the attach; a detach then restores the host."""
    before = world.state()
    facts = world.attach(*two)
    world.detach(*two)
    total, _ = _messages(world, two)
    for at in range(total):
        assert world.killed(at, lambda engine: _attach(engine, world, two))
        assert world.lasting(world.attach(*two)) == world.lasting(facts), f"message {at}"
        assert "10.99.0.0/16" in world.pod("route")
        assert all(outcome.home and not outcome.problems for outcome in world.detach(*two)), f"message {at}"
        assert not world.changes(before), f"message {at}"
    assert not world.killed(total, lambda engine: _attach(engine, world, two))
    world.detach(*two)


def test_f02_killed_attach_is_taken_back(world: Any, two: tuple[DevicePlan, ...]) -> None:
    """Killed after any message, a new engine's detach leaves the host as it was and nothing in the pod."""
    before, pod = world.state(), world.pod_state()
    total, _ = _messages(world, two)
    for at in range(total):
        assert world.killed(at, lambda engine: _attach(engine, world, two))
        assert all(outcome.home and not outcome.problems for outcome in world.detach(*two)), f"message {at}"
        assert not world.changes(before), f"message {at}"
        assert world.pod_state() == pod, f"message {at}"


def test_f02_killed_detach_is_finished(world: Any, two: tuple[DevicePlan, ...]) -> None:
    """Killed after any message of a detach, the next detach restores the host fully."""
    before, pod = world.state(), world.pod_state()
    _, total = _messages(world, two)
    for at in range(total):
        world.attach(*two)
        assert world.killed(at, lambda engine: engine.detach(two, world.pod_netns, hints={}))
        assert all(outcome.home and not outcome.problems for outcome in world.detach(*two)), f"message {at}"
        assert not world.changes(before), f"message {at}"
        assert world.pod_state() == pod, f"message {at}"


def test_f02_killed_detach_then_attach(world: Any, two: tuple[DevicePlan, ...]) -> None:
    """Killed after any message of a detach, an attach gives the pod everything again."""
    facts = world.attach(*two)
    world.detach(*two)
    _, total = _messages(world, two)
    for at in range(total):
        world.attach(*two)
        assert world.killed(at, lambda engine: engine.detach(two, world.pod_netns, hints={}))
        assert world.lasting(world.attach(*two)) == world.lasting(facts), f"message {at}"
        world.detach(*two)


@pytest.mark.parametrize("how", ["refuse", "before", "after"])
def test_failing_detach_says_so_and_can_be_repeated(world: Any, two: tuple[DevicePlan, ...], how: str) -> None:
    """Whatever message of a detach fails, it does not raise, it tells of what is left, and a repetition finishes it."""
    before = world.state()
    _, total = _messages(world, two)
    for at in range(total):
        world.attach(*two)
        engine, fault = world.faulty(-1, how)
        fault.at = at
        outcomes = engine.detach(two, world.pod_netns, hints={})
        engine.close()
        # A device that nobody tells of any problem with is as it was, at once or when its carrier is back.
        if not any(outcome.problems for outcome in outcomes):
            assert not world.changes(before), f"message {at}: {fault.label}"
        assert all(outcome.home and not outcome.problems for outcome in world.detach(*two)), f"message {at}"
        assert not world.changes(before), f"message {at}: {fault.label}"


def test_deadline_that_has_passed(world: Any, two: tuple[DevicePlan, ...]) -> None:
    """With no time left nothing moves and the error says so."""
    before = world.state()
    with pytest.raises(AttachError) as caught:
        world.engine.attach(two, world.pod_netns, deadline=time.monotonic() - 1)
    assert caught.value.reason == "DeadlineExceeded"
    assert not world.changes(before)


def test_f03_deadline_between_devices(world: Any, two: tuple[DevicePlan, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The time runs out while the second device is still to come: the first is back home as it was."""
    before = world.state()
    clock = iter([0.0] * 6)
    monkeypatch.setattr("nri_dranet.attach.transaction.time.monotonic", lambda: next(clock, 10.0))
    with pytest.raises(AttachError) as caught:
        world.engine.attach(two, world.pod_netns, deadline=5.0)
    monkeypatch.undo()
    assert caught.value.reason == "DeadlineExceeded"
    assert not world.changes(before)


def test_no_descriptor_is_left_behind(world: Any, two: tuple[DevicePlan, ...]) -> None:
    """Two hundred attaches, good and failing, looks and detaches leave no descriptor open."""
    world.attach(*two)
    world.detach(*two)
    before = _descriptors()
    for round_ in range(200):
        plans = two[:1]
        facts = world.attach(*plans)
        hints = {fact.key: fact.interface for fact in facts}
        world.engine.look(plans, world.pod_netns, hints)
        if round_ % 10 == 0:
            world.pod("link", "add", "net2", "type", "bridge")
            with pytest.raises(AttachError):
                world.attach(*two)
            world.pod("link", "del", "net2")
        world.engine.detach(plans, world.pod_netns, hints=hints)
    assert _descriptors() == before
