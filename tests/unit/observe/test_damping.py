"""When the observer looks: at once, gathered, ever later while a device flaps, soon again after a calm."""

from __future__ import annotations

from typing import Any

import pytest

from nri_dranet.claims.facts import DeviceFacts, ObservedInterface, ObservedRdma, Phase
from nri_dranet.claims.model import DeviceKey
from nri_dranet.claims.plan import DeviceKind, DevicePlan, RdmaPlan
from nri_dranet.netlink.model import Address, Link
from nri_dranet.netlink.namespaces import NetNs
from nri_dranet.netlink.rtnl import Event
from nri_dranet.observe import pods
from nri_dranet.observe.pods import PodObserver

KEY = DeviceKey(pool="node", device="n0")


def _facts(phase: Phase = Phase.ATTACHED, index: int = 7) -> DeviceFacts:
    seen = ObservedInterface(name="net1", hardware_address="", index=index) if phase is Phase.ATTACHED else None
    return DeviceFacts(key=KEY, request="nic", phase=phase, interface=seen)


def _watch(*facts: DeviceFacts) -> Any:
    space: Any = None
    watch = pods._Watch("uid", (), space, (), {}, due=None)
    watch.remember(facts)
    return watch


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Give the time."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Put the observer's clock into the test's hand."""
    found = Clock()
    monkeypatch.setattr("nri_dranet.observe.pods.time", found)
    return found


@pytest.fixture
def observer() -> Any:
    """An observer that is not started; its looks give a new address each time."""
    counter = iter(range(10**6))

    def look(*_: object) -> tuple[DeviceFacts, ...]:
        seen = ObservedInterface(name="net1", hardware_address="", index=7, addresses=(f"10.0.0.{next(counter)}/24",))
        return (DeviceFacts(key=KEY, request="nic", phase=Phase.ATTACHED, interface=seen),)

    found = PodObserver(lambda _uid, _facts: None, look)
    yield found
    found.stop()


def _waits(observer: Any, clock: Clock, watch: Any, count: int, pause: float) -> list[float]:
    waits = []
    for _ in range(count):
        clock.now += pause
        watch.due = None
        observer._schedule(watch)
        waits.append(round(watch.due - clock.now, 2))
        clock.now = watch.due
        observer._examine(watch)
    return waits


def test_flapping_is_reported_ever_more_slowly(observer: Any, clock: Clock) -> None:
    """Each report that follows another doubles the wait, up to five seconds."""
    watch = _watch(_facts())
    watch.space = type("Space", (), {"netns": None})()
    observer._watches["uid"] = watch
    assert _waits(observer, clock, watch, 9, 0.01) == [0.05, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    observer._watches.clear()


def test_flapping_for_days_is_still_looked_at(clock: Clock) -> None:
    """However many reports follow one another, the wait is five seconds."""
    watch = _watch(_facts())
    watch.reported, watch.streak = clock.now, 100_000
    assert watch.pause(clock.now) == 5.0


def test_calm_makes_it_quick_again(observer: Any, clock: Clock) -> None:
    """After ten seconds without a report the next change is looked at soon."""
    watch = _watch(_facts())
    watch.space = type("Space", (), {"netns": None})()
    observer._watches["uid"] = watch
    _waits(observer, clock, watch, 6, 0.01)
    assert _waits(observer, clock, watch, 2, 11) == [0.05, 0.05]
    observer._watches.clear()


def test_burst_is_one_look(observer: Any, clock: Clock) -> None:
    """An event while a look is due already does not put it off."""
    watch = _watch(_facts())
    observer._schedule(watch)
    due = watch.due
    clock.now += 0.04
    observer._schedule(watch)
    assert watch.due == due


@pytest.mark.parametrize(("kind", "looked"), [(DeviceKind.RDMA, True), (DeviceKind.ADMIN, False)])
def test_a_claim_with_an_rdma_device_is_looked_at_every_second(kind: DeviceKind, looked: bool, clock: Clock) -> None:
    """The kernel tells nobody of the state of its port. What is only reported, not moved, is no pod's matter."""
    port = ["ACTIVE"]

    def look(*_: object) -> tuple[DeviceFacts, ...]:
        seen = ObservedRdma(link="mlx5_0", in_pod=True, port_state=port[0])
        return (DeviceFacts(key=KEY, request="nic", phase=Phase.ATTACHED, rdma=seen),)

    reports: list[DeviceFacts] = []
    observer = PodObserver(lambda _uid, facts: reports.extend(facts), look)
    plan = DevicePlan(key=KEY, request="nic", kind=kind, rdma=RdmaPlan(link="mlx5_0", exclusive=True))
    with NetNs.current() as own:
        observer.watch("uid", [plan], own, look())
    try:
        (watch,) = observer._watches.values()
        watch.space.monitor = object()  # type: ignore[assignment]  # one in whose namespace nothing happens
        assert observer._take_due() == [watch]
        assert (watch.due is not None) is looked
        for state in ("ACTIVE", "DOWN", "DOWN", "ACTIVE") if looked else ():
            port[0] = state
            assert observer._take_due() == []
            clock.now += 1
            assert observer._take_due() == [watch]
            observer._examine(watch)
        assert [fact.rdma.port_state for fact in reports if fact.rdma] == (["DOWN", "ACTIVE"] if looked else [])
    finally:
        watch.space.monitor = None
        observer.stop()


def test_a_port_that_flaps_is_damped_too(observer: Any, clock: Clock) -> None:
    """Looked at ever more slowly, up to five seconds; after a calm every second again."""
    watch = _watch(_facts())
    watch.space = type("Space", (), {"netns": None, "monitor": object()})()
    watch.ports, watch.due = True, clock.now
    observer._watches["uid"] = watch
    pauses = []
    for _ in range(10):
        clock.now = watch.due
        observer._take_due()
        pauses.append(round(watch.due - clock.now, 1))
        observer._examine(watch)
    assert pauses == [1, 1, 1, 1, 1, 1, 1.6, 3.2, 5, 5]
    clock.now += 20
    observer._take_due()
    assert watch.due == clock.now + 1
    observer._watches.clear()


@pytest.mark.parametrize(
    ("item", "concerned"),
    [
        (Link(index=7, name="net1"), True),
        (Link(index=8, name="eth0"), False),
        (Address(family=2, address="10.0.0.1", prefix_length=24, index=7), True),
        (Address(family=2, address="10.0.0.1", prefix_length=24, index=8), False),
    ],
)
def test_events_of_the_device(item: Any, concerned: bool) -> None:
    """Events are of concern by the index of their interface."""
    kind = "link" if isinstance(item, Link) else "address"
    assert _watch(_facts()).concerned_by(Event(kind, gone=False, object=item)) is concerned


def test_lost_device_may_come_back_as_any_link() -> None:
    """While a device is lost, every link event is of concern, and where it was is remembered."""
    watch = _watch(_facts())
    watch.remember([_facts(Phase.LOST)])
    assert watch.concerned_by(Event("link", gone=False, object=Link(index=99, name="new0")))
    assert watch.hints[KEY].index == 7
