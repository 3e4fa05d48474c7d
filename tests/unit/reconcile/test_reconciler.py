"""The reconciler: what a dead process or a vanished sandbox has left is put right, and nothing is judged too early."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from nri_dranet.claims.facts import Phase
from nri_dranet.claims.lifecycle import State
from nri_dranet.claims.model import ClaimRef
from nri_dranet.reconcile.reconciler import Reconciler
from nri_dranet.store.journal import Journal

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.reconcile.conftest import Bench


def attached(bench: Bench) -> None:
    """Prepare and run one claim."""
    bench.keeper.prepare(bench.plan())
    bench.run()
    bench.kernel.calls.clear()


def state(bench: Bench) -> State:
    """Return the state of the claim."""
    record = bench.keeper.journal.get("u1")
    assert record is not None
    return record.state


def test_nothing_is_judged_before_the_runtime_has_spoken(bench: Bench) -> None:
    """An unknown sandbox is not a dead one."""
    attached(bench)
    bench.keeper.sandboxes.remove("s1")
    bench.reconciler.sweep()
    assert bench.kernel.calls == []
    assert state(bench) is State.ATTACHED


def test_a_device_of_a_vanished_sandbox_comes_home(bench: Bench) -> None:
    """The pod ended while nobody was there: its device is given back and the status says so."""
    attached(bench)
    bench.keeper.synchronize([])
    bench.reconciler.sweep()
    assert bench.kernel.calls == ["detach eth1"]
    assert state(bench) is State.PREPARED
    assert bench.phase() is Phase.DETACHED


def test_the_metadata_is_refreshed_once_in_a_life(bench: Bench) -> None:
    """The life before may have died between a fact and the file that says it."""
    attached(bench)
    bench.keeper.synchronize([bench.sandbox()])
    bench.reconciler.sweep()
    bench.reconciler.sweep()
    assert bench.refreshed == ["u1"]


def test_a_running_pod_is_watched_again_and_has_its_receipt(bench: Bench) -> None:
    """After a restart: looked at, watched, and the receipt that somebody removed is written again."""
    attached(bench)
    record = bench.keeper.journal.get("u1")
    assert record is not None
    bench.watched.uids.clear()
    bench.receipts.remove(record.plan)
    told = len(bench.facts)
    bench.keeper.synchronize([bench.sandbox()])
    bench.reconciler.sweep()
    assert bench.watched.uids == {"u1"}
    assert not bench.receipts.missing(record.plan)
    assert bench.kernel.calls == []
    assert len(bench.facts) == told + 1, "told once in this life: the one before may have died before it was written"
    bench.reconciler.sweep()
    assert len(bench.facts) == told + 1


def test_a_device_that_left_its_pod_is_lost(bench: Bench) -> None:
    """The kernel does not show it in the pod any more: the facts follow."""
    attached(bench)
    bench.kernel.inside.clear()
    bench.keeper.synchronize([bench.sandbox()])
    bench.reconciler.sweep()
    assert bench.phase() is Phase.LOST


def test_what_the_reconciler_tells_is_looked_at_again(bench: Bench) -> None:
    """A link may have changed back between its look and its telling, and the observer knows nothing of either."""
    attached(bench)
    bench.keeper.synchronize([bench.sandbox()])
    bench.reconciler.sweep()
    before = len(bench.watched.calls)
    bench.reconciler.sweep()
    assert len(bench.watched.calls) == before
    bench.kernel.inside.clear()
    bench.reconciler.sweep()
    assert bench.watched.calls[before:] == ["watch u1 lost"]


def test_a_pod_that_started_without_us_is_attached_late(bench: Bench) -> None:
    """Its sandbox runs and the claim is only prepared: attached now, with an Event."""
    bench.keeper.prepare(bench.plan())
    bench.keeper.synchronize([bench.sandbox()])
    bench.reconciler.sweep()
    assert state(bench) is State.ATTACHED
    assert ("pod-p1", "DeviceAttachedLate") in [event[:2] for event in bench.events]


def test_a_late_attach_that_fails_is_said_everywhere(bench: Bench) -> None:
    """The pod runs without its device: Event and facts, and the next comparison tries again."""
    bench.keeper.prepare(bench.plan())
    bench.keeper.synchronize([bench.sandbox()])
    bench.refuse()
    bench.reconciler.sweep()
    assert bench.phase() is Phase.ATTACH_FAILED
    assert ("pod-p1", "NameInUse") in [event[:2] for event in bench.events]
    bench.kernel.failure = None
    bench.reconciler.sweep()
    assert state(bench) is State.ATTACHED


def test_an_attach_that_was_cut_off_is_finished(bench: Bench) -> None:
    """The process died after the first kernel message; the sandbox runs: go on."""
    attached(bench)
    record = bench.keeper.journal.get("u1")
    assert record is not None
    bench.keeper.journal.update(["u1"], state=State.DETACHING, holder=record.holder)
    bench.keeper.journal.update(["u1"], state=State.PREPARED)
    bench.keeper.journal.update(["u1"], state=State.ATTACHING, holder=record.holder)
    bench.keeper.synchronize([bench.sandbox()])
    bench.reconciler.sweep()
    assert state(bench) is State.ATTACHED


def test_a_return_that_was_cut_off_is_finished(bench: Bench) -> None:
    """The process died while giving back: go on, also while the sandbox is still listed."""
    attached(bench)
    record = bench.keeper.journal.get("u1")
    assert record is not None
    bench.keeper.journal.update(["u1"], state=State.DETACHING, holder=record.holder)
    bench.keeper.synchronize([])
    bench.reconciler.sweep()
    assert bench.kernel.calls == ["detach eth1"]
    assert state(bench) is State.PREPARED


def test_receipts_without_an_attached_claim_are_removed(bench: Bench) -> None:
    """A receipt that a dead process left would let a container start without its device."""
    attached(bench)
    record = bench.keeper.journal.get("u1")
    assert record is not None
    bench.keeper.journal.remove("u1")
    bench.keeper.synchronize([])
    bench.reconciler.sweep()
    assert bench.receipts.missing(record.plan)


def _missing(bench: Bench, kind: str = "") -> None:
    """Let a pod end whose device is nowhere: in a namespace below the pod's, or destroyed."""
    plan = bench.plan()
    host = plan.devices[0].host
    assert host is not None
    device = replace(plan.devices[0], host=replace(host, link=replace(host.link, kind=kind)))
    bench.keeper.prepare(replace(plan, devices=(device,)))
    bench.run()
    bench.kernel.inside.clear()
    bench.kernel.stuck_only = "eth1"
    bench.keeper.synchronize([])
    bench.stop()


def test_a_device_that_was_nowhere_is_restored_when_it_comes_home(bench: Bench, tmp_path: Path) -> None:
    """Also when its claim is released meanwhile, and by the next life: it has the name that it had in the pod."""
    _missing(bench)
    bench.keeper.unprepare(ClaimRef("default", "claim-u1", "u1"))
    assert bench.keeper.journal.records() == ()
    assert [each.label for each in bench.keeper.journal.devices()] == ["eth1"], "what is kept for it stays"
    bench.kernel.calls.clear()
    bench.reconciler.sweep()
    assert bench.kernel.calls == ["detach eth1"]
    assert [each.label for each in bench.keeper.journal.strays()] == ["eth1"]
    again = Journal(tmp_path / "journal.db", "boot")
    assert again.strays() == bench.keeper.journal.strays()
    again.close()
    bench.kernel.stuck_only = ""
    bench.reconciler.sweep()
    assert bench.keeper.journal.strays() == ()
    bench.kernel.calls.clear()
    bench.reconciler.sweep()
    assert bench.kernel.calls == []


def test_a_device_that_is_known_again_is_not_taken_from_who_uses_it(bench: Bench) -> None:
    """It came home under another name and the next claim has it: it is restored once that has ended."""
    _missing(bench)
    bench.keeper.unprepare(ClaimRef("default", "claim-u1", "u1"))
    bench.kernel.stuck_only = ""
    bench.keeper.prepare(bench.plan("u2", pods=("p2",)))
    bench.kernel.calls.clear()
    bench.reconciler.sweep()
    assert bench.kernel.calls == []
    bench.keeper.unprepare(ClaimRef("default", "claim-u2", "u2"))
    bench.reconciler.sweep()
    assert bench.keeper.journal.strays() == ()


def test_a_virtual_device_that_is_nowhere_is_not_expected(bench: Bench) -> None:
    """The kernel destroys it together with the namespace that it is in."""
    _missing(bench, "veth")
    assert bench.keeper.journal.strays() == ()


def test_strays_of_another_boot_are_forgotten(bench: Bench, tmp_path: Path) -> None:
    """After a reboot every device is on the host as the host makes it."""
    _missing(bench)
    again = Journal(tmp_path / "journal.db", "another boot")
    assert again.strays() == ()
    again.close()


def test_links_that_change_ask_for_a_comparison(bench: Bench) -> None:
    """A device that comes home is an event; many of them in a row are one comparison a second."""
    _missing(bench)
    bench.reconciler.start()
    try:
        bench.kernel.stuck_only = ""
        bench.reconciler.links_changed()
        end = time.monotonic() + 20
        while bench.keeper.journal.strays() and time.monotonic() < end:
            bench.reconciler.links_changed()
            time.sleep(0.01)
        assert bench.keeper.journal.strays() == ()
        assert bench.kernel.calls.count("detach eth1") < 30
    finally:
        bench.reconciler.stop()


def test_the_thread_sweeps_when_it_is_woken_and_ends(bench: Bench) -> None:
    """A wake-up is followed by a comparison; stop ends the thread."""
    attached(bench)
    bench.keeper.synchronize([])
    bench.reconciler.start()
    bench.reconciler.wake()
    end = time.monotonic() + 10
    while state(bench) is not State.PREPARED and time.monotonic() < end:
        time.sleep(0.01)
    bench.reconciler.stop()
    assert state(bench) is State.PREPARED


def test_a_pod_that_cannot_get_its_device_late_is_to_end(bench: Bench) -> None:
    """Once may be bad luck; the second comparison in a row that finds a pod without its device has it ended."""
    ended: list[str] = []
    reconciler = Reconciler(
        bench.keeper, bench.kernel, bench.receipts, bench.keeper._outlets, end=lambda pod: ended.append(pod.uid)
    )
    bench.keeper.prepare(bench.plan())
    bench.keeper.synchronize([bench.sandbox()])
    bench.refuse()
    reconciler.sweep()
    bench.kernel.failure = None
    reconciler.sweep()
    assert state(bench) is State.ATTACHED
    bench.stop()
    bench.keeper.synchronize([bench.sandbox("p1", "s2")])
    bench.refuse()
    reconciler.sweep()
    assert ended == []
    reconciler.sweep()
    assert ended == ["p1"]


def restored(bench: Bench) -> None:
    """Put a claim into the journal as the copy of its row has it: nobody knows where its devices are."""
    record = bench.keeper.prepare(bench.plan())
    bench.keeper.journal.put(replace(record, state=State.ATTACHING, holder=None))


def test_a_restored_claim_of_a_running_pod_is_attached(bench: Bench) -> None:
    """The journal was lost under a running pod: the device is found there, and what is told stays."""
    restored(bench)
    told = len(bench.facts)
    bench.keeper.synchronize([bench.sandbox()])
    bench.reconciler.sweep()
    assert state(bench) is State.ATTACHED
    assert {fact.devices[0].phase for fact in bench.facts[told:]} == {Phase.ATTACHED}
    assert bench.events == []


def test_a_restored_claim_without_a_pod_is_put_right_on_the_host(bench: Bench) -> None:
    """The pod has ended meanwhile: its device gets its state on the host back, under whatever name it came home."""
    restored(bench)
    bench.keeper.synchronize([])
    bench.reconciler.sweep()
    assert bench.kernel.calls == ["detach eth1"]
    assert state(bench) is State.PREPARED


def test_a_restored_claim_that_is_released_first_is_put_right_too(bench: Bench) -> None:
    """Kubelet releases it before the runtime has spoken."""
    restored(bench)
    bench.keeper.unprepare(bench.plan().ref)
    assert bench.kernel.calls == ["detach eth1"]
    assert bench.keeper.journal.records() == ()


def test_the_end_of_a_pod_of_a_restored_claim_asks_for_its_device(bench: Bench) -> None:
    """Its sandbox stops before anything was compared."""
    restored(bench)
    assert bench.stop()
    assert bench.compared
