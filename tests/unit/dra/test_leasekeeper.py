"""The keeper of leases by its clock: when it asks, what it records, what it gives back. Nothing is sent."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.claims.lifecycle import State
from nri_dranet.claims.model import ClaimRef, DeviceKey
from nri_dranet.claims.plan import ClaimPlan, DeviceKind, DevicePlan, HostState, PodState
from nri_dranet.claims.record import ClaimRecord
from nri_dranet.dhcp import client
from nri_dranet.dhcp.errors import DhcpError, LeaseLostError
from nri_dranet.dhcp.lease import FOREVER, Lease
from nri_dranet.dra import leasekeeper, leasing
from nri_dranet.dra.leasekeeper import LeaseKeeper
from nri_dranet.dra.turns import Turns
from nri_dranet.netlink.model import Address, Link
from nri_dranet.store.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENCE = 20.0
MAC = "02:00:00:00:00:07"


@dataclass
class World:
    """A journal, a clock, and DHCP servers that answer as told."""

    journal: Journal
    keeper: LeaseKeeper
    now: float = 1000.0
    renewals: list[str] = field(default_factory=list)
    acquired: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    error: Exception | None = None
    next_address: str = "10.0.0.5/24"
    changed: threading.Condition = field(default_factory=threading.Condition)

    # what the keeper of leases needs of the keeper of claims

    @contextmanager
    def holding(self, uids: list[str], *, until: float) -> Iterator[list[ClaimRecord]]:
        """Hold nothing."""
        del until
        yield [record for uid in uids if (record := self.journal.get(uid)) is not None]

    # servers

    def renew(self, lease: Lease, *_: Any, **__: Any) -> Lease:
        """Prolong a lease."""
        self._note(self.renewals, lease.ip)
        if self.error is not None:
            raise self.error
        return replace(lease, obtained=self.now)

    def acquire(self, *_: Any, **asked: Any) -> Lease:
        """Give a lease."""
        self._note(self.acquired, str(asked["wanted"]))
        if self.error is not None:
            raise self.error
        return lease(self.next_address, obtained=self.now)

    def release(self, given: Lease, _index: int) -> None:
        """Take a lease back."""
        self._note(self.released, given.ip)

    def _note(self, where: list[str], what: str) -> None:
        with self.changed:
            where.append(what)
            self.changed.notify_all()

    def wait(self, look: Callable[[], object]) -> None:
        """Wait until something is so."""
        with self.changed:
            assert self.changed.wait_for(look, PATIENCE)

    def after(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        self.keeper.refresh()

    def step(self) -> None:
        """Do once what the thread does, and wait for what that began."""
        self.keeper._follow()
        self.keeper._begin_due()
        self.keeper._pool.shutdown(wait=True)
        self.keeper._pool = ThreadPoolExecutor(1)

    def pod(self) -> PodState:
        """Return what is recorded of the device."""
        (record,) = self.journal.records()
        found = record.plan.devices[0].pod
        assert found is not None
        return found


def lease(address: str = "10.0.0.5/24", *, obtained: float = 1000.0, lifetime: int = 3600) -> Lease:
    """Return a lease."""
    return Lease(
        address=address,
        server="10.0.0.1",
        obtained=obtained,
        lifetime=lifetime,
        renewal=lifetime // 2,
        rebinding=lifetime * 7 // 8,
        hardware_address=MAC,
        client_id="ff00",
    )


def record(given: Lease, uid: str = "u1", *, state: State = State.PREPARED) -> ClaimRecord:
    """Return a claim whose device has a lease."""
    ip, _, length = given.address.partition("/")
    device = DevicePlan(
        key=DeviceKey("node", "eth1"),
        request="nic",
        kind=DeviceKind.INTERFACE,
        host=HostState(link=Link(index=7, name="eth1", address=MAC)),
        pod=PodState(
            name="net1",
            dhcp=True,
            lease=given,
            addresses=(Address(family=2, address=ip, prefix_length=int(length)),),
        ),
    )
    plan = ClaimPlan(ref=ClaimRef("default", "c", uid), allocation_hash="h", devices=(device,))
    return ClaimRecord(plan=plan, state=state)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Return a keeper of leases that has not begun."""
    journal = Journal(tmp_path / "journal.db", "boot")
    made = World(journal, None)  # type: ignore[arg-type]
    made.keeper = LeaseKeeper(made, Turns())  # type: ignore[arg-type]
    monkeypatch.setattr(client, "now", lambda: made.now)
    monkeypatch.setattr(client, "renew", made.renew)
    monkeypatch.setattr(client, "acquire", made.acquire)
    monkeypatch.setattr(leasing, "release", made.release)
    monkeypatch.setattr(leasing, "host_index", lambda _: 7)

    @contextmanager
    def running(*_: Any, **__: Any) -> Iterator[None]:
        yield

    monkeypatch.setattr(leasekeeper, "running", running)
    yield made
    made.keeper.stop()
    journal.close()


def test_a_lease_is_prolonged_from_half_of_its_time_on(world: World) -> None:
    """Not before nine tenths of T1, and at T1 at the latest; the new times are recorded."""
    world.journal.put(record(lease()))
    world.now = 1000 + 0.89 * 1800
    world.step()
    assert not world.renewals
    world.now = 1000 + 1800
    world.step()
    assert world.renewals == ["10.0.0.5"]
    recorded = world.pod().lease
    assert recorded is not None
    assert recorded.obtained == world.now
    world.step()
    assert world.renewals == ["10.0.0.5"]


def test_a_lease_without_end_is_left_alone(world: World) -> None:
    """Nothing is asked for ever."""
    world.journal.put(record(lease(lifetime=FOREVER)))
    world.now = 1e9
    world.step()
    assert not world.renewals
    assert world.keeper._pause() == leasekeeper._IDLE


def test_silence_is_borne_until_the_end(world: World) -> None:
    """It is asked again after half of what is left until T2, then of what is left at all; at the end it is lost."""
    world.journal.put(record(lease()))
    world.error = DhcpError("no answer came")
    world.now = 2800.0
    waits = []
    while not world.pod().lease_lost:
        world.step()
        (held,) = world.keeper._held.values()
        waits.append(held.due - world.now)
        world.now = max(held.due, world.now + 1)
    assert waits[0] == pytest.approx((4150 - 2800) / 2)
    assert all(wait >= 60 or world.now >= 4600 - 60 for wait in waits[:3])
    assert "has expired: no answer came" in world.pod().lease_lost
    assert 4600 <= world.now < 4610


def test_a_no_is_a_loss_and_a_new_lease_is_asked_for(world: World) -> None:
    """The former address is wanted; until there is one it is asked ever more slowly."""
    world.journal.put(record(lease()))
    world.error = LeaseLostError("10.0.0.1 said no")
    world.now = 2800.0
    world.step()
    assert world.pod().lease_lost == "10.0.0.1 said no"
    world.error = DhcpError("no answer came")
    waits = []
    world.now += 1
    for _ in range(7):
        world.step()
        (held,) = world.keeper._held.values()
        waits.append(round(held.due - world.now))
        world.now = held.due
    assert waits == [10, 20, 40, 80, 160, 300, 300]
    world.error = None
    world.next_address = "10.0.9.9/24"
    world.step()
    pod = world.pod()
    assert world.acquired == ["10.0.0.5"] * 8
    assert (pod.lease_lost, [each.cidr for each in pod.addresses]) == ("", ["10.0.9.9/24"])


def test_a_lease_is_given_back_when_its_claim_is_gone(world: World) -> None:
    """Once, and not one that is lost or over anyway."""
    world.journal.put(record(lease(), "u1"))
    world.journal.put(record(lease("10.0.0.6/24", lifetime=100), "u2"))
    lost = record(lease("10.0.0.7/24"), "u3")
    device = lost.plan.devices[0]
    assert device.pod is not None
    lost = replace(
        lost, plan=replace(lost.plan, devices=(replace(device, pod=replace(device.pod, lease_lost="said no")),))
    )
    world.error = DhcpError("no answer came")
    world.journal.put(lost)
    world.step()
    world.now += 150
    for uid in ("u1", "u2", "u3"):
        world.journal.remove(uid)
    world.step()
    world.step()
    assert world.released == ["10.0.0.5"]


def test_an_address_that_was_exchanged_is_given_back(world: World) -> None:
    """A claim that was planned anew with another lease needs the former one no more."""
    world.journal.put(record(lease()))
    world.step()
    world.journal.put(record(lease("10.0.0.8/24")))
    world.step()
    assert world.released == ["10.0.0.5"]


def test_what_is_over_at_the_end_is_given_back_first(world: World) -> None:
    """A claim that was released just before the daemon stops."""
    world.journal.put(record(lease()))
    world.keeper.start()
    world.wait(lambda: world.keeper._held)
    world.journal.remove("u1")
    world.keeper.stop()
    assert world.released == ["10.0.0.5"]


def test_a_device_on_its_way_is_asked_for_a_little_later(world: World) -> None:
    """Nothing is asked while nobody knows where it is."""
    world.journal.put(record(lease(), state=State.ATTACHING))
    world.now = 2800.0
    world.step()
    (held,) = world.keeper._held.values()
    assert (world.renewals, held.due) == ([], world.now + 1)


def test_the_thread_asks_when_it_is_time(world: World) -> None:
    """It looks at the journal when it is told that something changed, and asks by itself."""
    world.keeper.start()
    world.journal.put(record(lease()))
    world.after(1800)
    world.wait(lambda: world.renewals)


def test_a_failure_of_one_lease_is_logged_and_bears_on_no_other(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """An error that nobody expected is tried again after a minute."""
    world.journal.put(record(lease()))
    world.error = RuntimeError("unexpected")
    world.now = 2800.0
    world.step()
    (held,) = world.keeper._held.values()
    assert held.due == world.now + 60
    assert "a DHCP lease cannot be kept" in caplog.text


def test_next_attempts() -> None:
    """Half of what is left until T2 or the end, a minute at least, the end at the latest."""
    found = lease()
    assert leasekeeper._next_attempt(found, 2800) == (4150 - 2800) / 2
    assert leasekeeper._next_attempt(found, 4100) == 50
    assert leasekeeper._next_attempt(found, 4150) == 225
    assert leasekeeper._next_attempt(found, 4500) == 60
    assert leasekeeper._next_attempt(found, 4590) == 10
    assert math.isclose(leasekeeper._next_attempt(found, 4600), 0)
