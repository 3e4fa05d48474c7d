"""The keeper when things go wrong around it: each hook ends in words, no device and no descriptor is lost."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nri_dranet.claims.facts import Phase
from nri_dranet.claims.lifecycle import State
from nri_dranet.claims.model import ClaimRef, PodRef
from nri_dranet.claims.plan import DeviceKind
from nri_dranet.reconcile.hooktypes import ContainerRef, HookError
from nri_dranet.reconcile.returns import NotReturnedError
from nri_dranet.store.database import JournalError
from nri_dranet.store.journal import Journal, Quarantined

if TYPE_CHECKING:
    from collections.abc import Callable

    from nri_dranet.claims.record import ClaimRecord
    from tests.unit.reconcile.conftest import Bench

CONTAINER = ContainerRef(name="app")


def row(bench: Bench, uid: str = "u1") -> ClaimRecord:
    """Return a claim's record."""
    record = bench.keeper.journal.get(uid)
    assert record is not None
    return record


def descriptors() -> int:
    """Count this process's descriptors."""
    return len(list(Path("/proc/self/fd").iterdir()))


def break_update(bench: Bench, monkeypatch: pytest.MonkeyPatch, *states: State) -> Callable[[], None]:
    """Let the journal refuse changes to states; return what heals it."""
    real = Journal.update
    broken = set(states)

    def update(self: Journal, uids: object, *, state: State, **options: object) -> object:
        if state in broken:
            raise JournalError("database or disk is full")
        return real(self, uids, state=state, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Journal, "update", update)
    del bench
    return broken.clear


def test_an_error_of_an_unknown_kind_ends_in_words_and_at_home(bench: Bench) -> None:
    """The engine raises what nobody foresaw: the devices are taken home, the hook says what it was."""
    bench.keeper.prepare(bench.plan())
    bench.kernel.failure = RuntimeError("unforeseen")
    with pytest.raises(HookError, match="RuntimeError: unforeseen"):
        bench.run()
    assert row(bench).state is State.PREPARED
    assert bench.kernel.calls == ["attach eth1", "detach eth1"]


def test_an_error_before_the_attach_ends_in_words(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what fails before anything moves is a refusal."""
    bench.keeper.prepare(bench.plan())

    def fail(*_: object) -> None:
        raise KeyError("u1")

    monkeypatch.setattr(bench.keeper, "admit", fail)
    with pytest.raises(HookError, match="KeyError: 'u1'"):
        bench.run()


def test_a_namespace_that_cannot_be_opened_ends_in_words(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor is left: a refusal, nothing is recorded."""
    bench.keeper.prepare(bench.plan())

    def fail(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(bench.keeper.namespaces, "enter", fail)
    with pytest.raises(HookError, match="Too many open files"):
        bench.run()
    assert row(bench).state is State.PREPARED


def test_a_journal_that_fails_before_the_attach_moves_nothing_and_holds_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Disk full at the first row: refused, no device moved, the namespace is closed again."""
    bench.keeper.prepare(bench.plan())
    heal = break_update(bench, monkeypatch, State.ATTACHING)
    before = descriptors()
    with pytest.raises(HookError, match="disk is full"):
        bench.run()
    assert descriptors() == before
    assert bench.kernel.calls == []
    heal()
    assert bench.run()


def test_a_journal_that_fails_after_the_attach_brings_the_device_home(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Disk full at every row after the first: the device goes home all the same, and the row follows later."""
    bench.keeper.prepare(bench.plan())
    before = descriptors()
    heal = break_update(bench, monkeypatch, State.ATTACHED, State.DETACHING, State.PREPARED)
    with pytest.raises(HookError, match="disk is full"):
        bench.run()
    assert bench.kernel.inside == {}
    assert bench.receipts.missing(row(bench).plan)
    assert bench.compared
    assert bench.phase() is Phase.ATTACH_FAILED
    heal()
    bench.keeper.synchronize([])
    bench.reconciler.sweep()
    assert row(bench).state is State.PREPARED
    assert descriptors() == before


def test_a_journal_that_fails_in_a_stop_does_not_keep_the_device(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disk full during the return: the device is home and told to be, the stop succeeds, the row follows later."""
    bench.keeper.prepare(bench.plan())
    bench.run()
    heal = break_update(bench, monkeypatch, State.DETACHING, State.PREPARED)
    assert bench.stop()
    assert bench.kernel.inside == {}
    assert bench.phase() is Phase.DETACHED
    assert bench.compared
    heal()
    bench.keeper.synchronize([])
    bench.reconciler.sweep()
    assert (row(bench).state, row(bench).holder) == (State.PREPARED, None)


def test_a_device_that_is_stuck_keeps_its_namespace_open(bench: Bench) -> None:
    """It cannot be moved home: the claim stays in its state, Unprepare fails, and the next try succeeds."""
    bench.keeper.prepare(bench.plan())
    bench.run()
    bench.kernel.stuck = True
    assert bench.stop()
    assert row(bench).state is State.DETACHING
    assert row(bench).holder is not None
    assert {event[:2] for event in bench.events} == {
        ("pod-p1", "DeviceNotReturned"),
        ("claim-u1", "DeviceNotReturned"),
    }
    (told,) = bench.facts[-1].devices
    assert (told.phase, told.reason) == (Phase.DETACHED, "DeviceNotReturned")
    assert "it is busy" in told.message
    assert told.interface is not None, "where it is in the pod stays known"
    open_then = descriptors()
    with pytest.raises(NotReturnedError, match=r"eth1 is still in the pod's namespace: it is busy"):
        bench.keeper.unprepare(row(bench).ref)
    assert descriptors() == open_then
    bench.keeper.synchronize([])
    bench.reconciler.sweep()
    assert row(bench).state is State.DETACHING
    bench.kernel.stuck = False
    bench.reconciler.sweep()
    assert row(bench).state is State.PREPARED
    assert bench.facts[-1].devices[0].reason == ""
    assert descriptors() < open_then


def test_of_several_devices_only_the_stuck_one_is_said_not_to_be_back(bench: Bench) -> None:
    """The other one is on the node."""
    bench.keeper.prepare(bench.plan(devices=("eth1", "eth2")))
    bench.run()
    bench.kernel.stuck_only = "eth2"
    bench.stop()
    assert {fact.key.device: fact.reason for fact in bench.facts[-1].devices} == {
        "eth1": "",
        "eth2": "DeviceNotReturned",
    }
    assert {fact.phase for fact in bench.facts[-1].devices} == {Phase.DETACHED}


def test_a_device_that_was_destroyed_does_not_block_unprepare(bench: Bench) -> None:
    """Nothing is left that could come home."""
    bench.keeper.prepare(bench.plan())
    bench.run()
    ref = row(bench).ref
    bench.kernel.stuck = True
    bench.kernel.inside.clear()
    bench.keeper.unprepare(ref)
    assert bench.keeper.journal.get("u1") is None


def test_the_next_pod_waits_while_a_device_is_stuck(bench: Bench) -> None:
    """The former sandbox has gone, its device has not come home: refused in words, then it succeeds."""
    bench.keeper.prepare(bench.plan(pods=("p1", "p2")))
    bench.run()
    bench.keeper.synchronize([])
    bench.kernel.stuck = True
    with pytest.raises(HookError, match="still in the pod's namespace"):
        bench.run("p2", "s2")
    bench.kernel.stuck = False
    assert bench.run("p2", "s2")


def test_an_undo_that_failed_is_found_and_tried_again(bench: Bench) -> None:
    """The engine's undo left the device in the pod: the claim is not called prepared."""
    bench.keeper.prepare(bench.plan())
    bench.kernel.inside["eth1"] = "pod"
    bench.kernel.stuck = True
    bench.refuse("MTU refused")
    with pytest.raises(HookError, match="MTU refused"):
        bench.run()
    assert row(bench).state is State.DETACHING
    assert bench.compared


def test_the_host_network_leaves_no_descriptor(bench: Bench) -> None:
    """Admin access from a pod on the host's network: attached again and again, nothing stays open."""
    plan = bench.plan()
    bench.keeper.prepare(replace(plan, devices=(replace(plan.devices[0], kind=DeviceKind.ADMIN),)))
    before = descriptors()
    for number in range(5):
        sandbox = bench.sandbox(sandbox=f"s{number}", host_network=True)
        assert bench.keeper.run_sandbox(sandbox, time.monotonic() + 5)
        bench.keeper.stop_sandbox(sandbox, time.monotonic() + 5)
    assert descriptors() == before


def test_a_sandbox_whose_path_means_another_namespace_is_attached_anew(bench: Bench) -> None:
    """The same ID comes with another namespace: the devices leave the old one and go into the new one."""
    bench.keeper.prepare(bench.plan())
    bench.run()
    holder = row(bench).holder
    assert holder is not None
    bench.keeper.journal.update(["u1"], state=State.ATTACHED, holder=replace(holder, netns_inode=1))
    assert bench.run()
    assert bench.kernel.calls == ["attach eth1", "detach eth1", "attach eth1"]


def test_a_path_that_means_another_namespace_after_a_restart_is_not_entered(bench: Bench) -> None:
    """The inode in the record tells: the namespace counts as gone, nothing is looked for in a stranger's."""
    bench.keeper.prepare(bench.plan())
    bench.run()
    holder = row(bench).holder
    assert holder is not None
    bench.keeper.namespaces.release("s1")
    before = descriptors()
    assert bench.keeper.namespaces.of(replace(holder, netns_inode=1)) is None
    assert bench.keeper.namespaces.of(replace(holder, netns_path="/nowhere")) is None
    assert descriptors() == before


@pytest.fixture
def waits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Is set as soon as somebody waits for the lock of a device."""
    found = threading.Event()
    condition = bench.keeper.locks._changed
    real = condition.wait

    def wait(timeout: float | None = None) -> bool:
        found.set()
        return real(timeout)

    monkeypatch.setattr(condition, "wait", wait)
    return found


def test_a_claim_that_is_released_while_its_hook_waits_refuses_the_pod(bench: Bench, waits: threading.Event) -> None:
    """Kubelet unprepares while the hook waits for the device: the pod does not start without it."""
    ref = bench.keeper.prepare(bench.plan()).ref
    ready = threading.Event()

    def release() -> None:
        with bench.keeper.locks.hold(["eth1"], until=time.monotonic() + 5):
            ready.set()
            waits.wait(5)
            bench.keeper.unprepare(ref)

    thread = threading.Thread(target=release)
    thread.start()
    ready.wait(5)
    with pytest.raises(HookError, match="claim-u1 was released meanwhile"):
        bench.run()
    thread.join()
    assert bench.kernel.calls == []


def test_a_claim_that_is_planned_anew_while_its_hook_waits_is_attached_under_the_right_locks(
    bench: Bench, waits: threading.Event
) -> None:
    """Prepare gave it another device meanwhile: the hook takes that device's lock too before it touches it."""
    bench.keeper.prepare(bench.plan())
    ready, held = threading.Event(), list[str]()

    def replan() -> None:
        with bench.keeper.locks.hold(["eth1"], until=time.monotonic() + 5):
            ready.set()
            waits.wait(5)
            bench.keeper.prepare(bench.plan(devices=("eth2",)))

    bench.kernel.on_attach = lambda: held.extend(bench.keeper.locks._held)
    thread = threading.Thread(target=replan)
    thread.start()
    ready.wait(5)
    assert bench.run()
    thread.join()
    assert "eth2" in held
    assert set(bench.kernel.inside) == {"eth2"}


def test_prepare_waits_for_the_devices_of_the_former_allocation(bench: Bench, waits: threading.Event) -> None:
    """A hook attaches the old device while Prepare brings another: the row of the hook is not overwritten."""
    bench.keeper.prepare(bench.plan())
    thread = threading.Thread(target=bench.keeper.prepare, args=(bench.plan(devices=("eth2",)),))

    def prepare_meanwhile() -> None:
        thread.start()
        assert waits.wait(5)

    bench.kernel.on_attach = prepare_meanwhile
    assert bench.run()
    thread.join()
    assert row(bench).state is State.ATTACHED
    assert row(bench).successor is not None


def test_a_report_that_comes_after_the_return_is_not_believed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The observer looked before the device left: neither journal nor status say attached afterwards."""
    bench.keeper.prepare(bench.plan())
    bench.run()
    stale = (replace(row(bench).facts[0], message="stale"),)
    real = Journal.set_facts

    def slow(self: Journal, *arguments: object, **options: object) -> object:
        bench.stop()
        return real(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Journal, "set_facts", slow)
    bench.keeper.observed("u1", stale)
    assert bench.phase() is Phase.DETACHED
    assert row(bench).facts[0].phase is Phase.DETACHED


def test_a_refusal_says_nothing_of_a_claim_that_got_on_meanwhile(bench: Bench) -> None:
    """A hook that gives up must not tell of a claim that another one has attached since that it failed."""
    old = bench.keeper.prepare(bench.plan())
    bench.run()
    bench.keeper.judge.refused([old], old.plan.pods[0], "AttachFailed", "too late")
    assert row(bench).state is State.ATTACHED
    assert row(bench).facts[0].phase is Phase.ATTACHED
    assert bench.phase() is Phase.ATTACHED


def test_an_observer_that_fails_does_not_fail_the_hook(bench: Bench) -> None:
    """The device is attached; it is watched at the next comparison."""
    bench.keeper.prepare(bench.plan())
    bench.watched.failure = OSError(24, "Too many open files")
    assert bench.run()
    bench.watched.failure = None
    bench.keeper.synchronize([bench.sandbox()])
    bench.reconciler.sweep()
    assert bench.watched.uids == {"u1"}


def test_a_stop_of_an_unknown_kind_of_failure_does_not_raise(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop cannot be refused: the return is asked for again."""
    bench.keeper.prepare(bench.plan())
    bench.run()

    def fail(*_: object) -> None:
        raise RuntimeError("unforeseen")

    with monkeypatch.context() as patch:
        patch.setattr(bench.keeper.returns, "give_back", fail)
        assert bench.stop()
    assert bench.compared
    bench.keeper.synchronize([])
    bench.reconciler.sweep()
    assert bench.kernel.inside == {}


def test_a_removal_without_a_stop_asks_for_the_device(bench: Bench) -> None:
    """The runtime removes a sandbox that it never stopped."""
    bench.keeper.prepare(bench.plan())
    bench.run()
    bench.keeper.synchronize([bench.sandbox()])
    bench.compared.clear()
    bench.keeper.remove_sandbox(bench.sandbox())
    assert bench.compared
    bench.reconciler.sweep()
    assert bench.kernel.inside == {}


@pytest.mark.parametrize("end", ["remove", "list"])
def test_a_sandbox_that_ends_during_its_attach_keeps_nothing(bench: Bench, end: str) -> None:
    """Stop and Remove, or a runtime that has restarted without it: the hook that still goes on attaches nothing."""
    bench.keeper.prepare(bench.plan())

    def finish() -> None:
        if end == "remove":
            bench.keeper.sandboxes.stop("s1")
            bench.keeper.remove_sandbox(bench.sandbox())
        else:
            bench.keeper.synchronize([])

    bench.kernel.on_attach = lambda: _elsewhere(finish)
    with pytest.raises(HookError, match="stopped the sandbox"):
        bench.run()
    assert bench.kernel.inside == {}
    assert not bench.keeper.sandboxes.stopped("s1")


def _elsewhere(call: Callable[[], None]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def test_a_late_hook_of_a_sandbox_that_was_listed_since_keeps_its_device(bench: Bench) -> None:
    """The runtime went on without the answer and told so: the pod runs, and has its device."""
    bench.keeper.prepare(bench.plan())
    bench.kernel.on_attach = lambda: _elsewhere(lambda: bench.keeper.synchronize([bench.sandbox()]))
    assert bench.run()
    bench.keeper.late(bench.sandbox())
    assert "eth1" in bench.kernel.inside


def test_a_hook_that_fails_for_a_listed_sandbox_asks_for_a_late_attach(bench: Bench) -> None:
    """The runtime goes on as if it had succeeded: the reconciler must come soon."""
    bench.keeper.prepare(bench.plan())
    bench.keeper.synchronize([bench.sandbox()])
    bench.compared.clear()
    bench.refuse()
    with pytest.raises(HookError):
        bench.run()
    assert bench.compared


def test_a_container_of_a_sandbox_that_nobody_told_of_brings_the_device(bench: Bench) -> None:
    """The runtime dropped the hook and went on: the container is refused, the device comes, the next try succeeds."""
    bench.keeper.prepare(bench.plan())
    bench.keeper.synchronize([])
    with pytest.raises(HookError, match="is not attached to pod"):
        bench.keeper.create_container(bench.sandbox(), CONTAINER, 0)
    assert bench.compared
    bench.reconciler.sweep()
    assert bench.keeper.create_container(bench.sandbox(), CONTAINER, 0) is None


def test_a_container_is_refused_when_the_device_was_lost(bench: Bench) -> None:
    """The device was destroyed in the pod: a container that starts now would be without it."""
    bench.keeper.prepare(bench.plan())
    bench.run()
    lost = replace(row(bench).facts[0], phase=Phase.LOST, message="the interface net1 is not in the pod any more")
    bench.keeper.observed("u1", (lost,))
    with pytest.raises(HookError, match=r"net1 is not in the pod any more"):
        bench.keeper.create_container(bench.sandbox(), CONTAINER, 0)


def test_two_claims_of_a_pod_in_different_states_are_both_attached(bench: Bench) -> None:
    """One is attached since an earlier try, the other is not: the hook attaches what is missing, and no more."""
    bench.keeper.prepare(bench.plan("u1"))
    bench.run()
    bench.keeper.prepare(bench.plan("u2", devices=("eth2",)))
    assert bench.run()
    assert bench.kernel.calls == ["attach eth1", "attach eth2"]
    bench.stop()
    assert bench.kernel.inside == {}


def test_a_claim_made_anew_under_the_same_name_is_another_claim(bench: Bench) -> None:
    """The former claim's record does not stand in the way of the pod that has the new one."""
    bench.keeper.prepare(bench.plan("u1"))
    plan = bench.plan("u2", devices=("eth2",), pods=("p2",))
    bench.keeper.prepare(replace(plan, ref=ClaimRef("default", "claim-u1", "u2")))
    bench.named["p2"] = (("default", "claim-u1"),)
    assert bench.run("p2", "s2")
    assert bench.kernel.calls == ["attach eth2"]


def test_the_next_allocations_pods_are_remembered_with_it(bench: Bench) -> None:
    """A third pod comes for the next allocation before the first has gone: it is the one that gets the device."""
    bench.keeper.prepare(bench.plan())
    bench.run()
    bench.keeper.prepare(bench.plan(devices=("eth2",), pods=("p2",)))
    bench.keeper.remember_pods("u1", [PodRef("default", "pod-p3", "p3")], allocation_hash="eth2")
    bench.stop()
    assert bench.run("p3", "s3")
    assert set(bench.kernel.inside) == {"eth2"}


def test_an_allocation_that_is_as_before_again_voids_the_next_one(bench: Bench) -> None:
    """What was planned ahead is not carried out."""
    bench.keeper.prepare(bench.plan())
    bench.run()
    bench.keeper.prepare(bench.plan(devices=("eth2",), pods=("p2",)))
    bench.keeper.remember_pods("u1", [PodRef("default", "pod-p1", "p1")], allocation_hash="eth1")
    assert row(bench).successor is None


def test_the_next_allocation_takes_effect_as_soon_as_the_device_is_home(bench: Bench) -> None:
    """The former device is free for other claims at once, and the claim stays known."""
    bench.keeper.prepare(bench.plan())
    bench.run()
    bench.keeper.prepare(bench.plan(devices=("eth2",), pods=("p2",)))
    bench.stop()
    assert [device.key.device for device in row(bench).plan.devices] == ["eth2"]
    bench.keeper.prepare(bench.plan("u2", pods=("p3",)))


def test_a_late_attach_follows_the_next_allocation(bench: Bench) -> None:
    """The next pod started while this program was away: it gets the device of the next allocation."""
    bench.keeper.prepare(bench.plan())
    bench.run()
    bench.keeper.prepare(bench.plan(devices=("eth2",), pods=("p2",)))
    bench.keeper.synchronize([bench.sandbox("p2", "s2")])
    bench.reconciler.sweep()
    bench.reconciler.sweep()
    assert set(bench.kernel.inside) == {"eth2"}


def test_a_pod_whose_record_cannot_be_read_does_not_start(bench: Bench) -> None:
    """Nothing tells which device it should get: refused in words until kubelet has released the claim."""
    bench.keeper.journal.quarantined = (Quarantined(ClaimRef("default", "c", "u9"), "no JSON"),)
    bench.named["p9"] = (("default", "c"),)
    with pytest.raises(HookError, match=r"record of claim default/c.* cannot be read"):
        bench.run("p9", "s9")
    with pytest.raises(HookError, match="cannot be read"):
        bench.keeper.create_container(bench.sandbox("p9", "s9"), CONTAINER, 0)
    bench.keeper.unprepare(ClaimRef("default", "c", "u9"))
    assert not bench.run("p9", "s9")


def test_a_return_that_was_cut_off_under_a_running_pod_ends_attached(bench: Bench) -> None:
    """A pod that runs must not stay without its device until the next comparison."""
    bench.keeper.prepare(bench.plan())
    bench.run()
    bench.keeper.journal.update(["u1"], state=State.DETACHING, holder=row(bench).holder)
    bench.keeper.synchronize([bench.sandbox()])
    bench.reconciler.sweep()
    assert row(bench).state is State.ATTACHED


def test_an_unreadable_cdi_folder_does_not_end_the_reconciler(bench: Bench) -> None:
    """The comparison of claims goes on."""
    folder = bench.receipts._folder
    folder.parent.joinpath(folder.name).write_text("no folder")
    bench.keeper.synchronize([])
    bench.reconciler.sweep()
    assert os.path.isfile(folder)  # noqa: PTH113 - as it was


def test_a_receipt_that_outlived_its_claim_goes_before_the_runtime_comes(bench: Bench) -> None:
    """After a reboot the folder may have a receipt of a claim that is not attached any more."""
    bench.keeper.prepare(bench.plan())
    bench.run()
    plan = row(bench).plan
    bench.keeper.journal.remove("u1")
    bench.reconciler.start()
    end = time.monotonic() + 10
    while not bench.receipts.missing(plan) and time.monotonic() < end:
        time.sleep(0.01)
    bench.reconciler.stop()
    assert bench.receipts.missing(plan)
