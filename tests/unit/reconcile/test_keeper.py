"""The keeper: a pod gets all its devices or none, and each step is recorded before and after it."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from nri_dranet.claims.facts import Phase
from nri_dranet.claims.lifecycle import State
from nri_dranet.claims.model import ClaimRef, PodRef
from nri_dranet.claims.plan import ClaimPlan, DeviceKind, RdmaPlan
from nri_dranet.reconcile.hooktypes import ContainerRef, HookError
from nri_dranet.reconcile.judge import ConflictError
from nri_dranet.reconcile.locks import DeviceBusyError

if TYPE_CHECKING:
    from tests.unit.reconcile.conftest import Bench

CONTAINER = ContainerRef(name="app")


def state(bench: Bench, uid: str = "u1") -> State | None:
    """Return a claim's state in the journal."""
    record = bench.keeper.journal.get(uid)
    return record.state if record else None


def test_a_pod_gets_its_device_and_gives_it_back(bench: Bench) -> None:
    """Prepare, run, stop, unprepare: the whole way, with the receipt there only in between."""
    record = bench.keeper.prepare(bench.plan())
    assert bench.phase() is Phase.PREPARED
    assert bench.receipts.missing(record.plan)
    assert bench.run()
    assert state(bench) is State.ATTACHED
    assert bench.phase() is Phase.ATTACHED
    assert not bench.receipts.missing(record.plan)
    assert bench.watched.uids == {"u1"}
    assert bench.stop()
    assert state(bench) is State.PREPARED
    assert bench.phase() is Phase.DETACHED
    assert bench.receipts.missing(record.plan)
    assert bench.watched.uids == set()
    bench.keeper.unprepare(record.ref)
    assert state(bench) is None
    assert bench.kernel.inside == {}


def test_a_pod_without_claims_is_no_business_of_ours(bench: Bench) -> None:
    """Its sandbox is noted, and nothing else happens."""
    assert not bench.run("stranger", "s9")
    assert bench.keeper.sandboxes.get("s9") is not None
    assert bench.keeper.create_container(bench.sandbox("stranger", "s9"), CONTAINER, 0) is None
    assert not bench.stop("stranger", "s9")
    bench.keeper.remove_sandbox(bench.sandbox("stranger", "s9"))


def test_preparing_again_answers_the_same(bench: Bench) -> None:
    """A repeated Prepare keeps the receipt's ID, and does not touch a device that is in a pod."""
    first = bench.keeper.prepare(bench.plan())
    again = bench.keeper.prepare(bench.plan())
    assert first.plan.devices[0].receipt_id == again.plan.devices[0].receipt_id != ""
    bench.run()
    bench.kernel.calls.clear()
    record = bench.keeper.prepare(bench.plan(pods=("p1", "p2")))
    assert record.state is State.ATTACHED
    assert [pod.uid for pod in record.plan.pods] == ["p1", "p2"]
    assert bench.kernel.calls == []


def test_a_second_claim_on_a_device_is_refused_with_both_named(bench: Bench) -> None:
    """Two live claims on one device: the second Prepare says which claim and pod have it."""
    bench.keeper.prepare(bench.plan())
    bench.run()
    with pytest.raises(ConflictError, match=r"eth1 .*claim-u1.*pod default/pod-p1 holds"):
        bench.keeper.prepare(bench.plan("u2", pods=("p2",)))
    assert bench.keeper.journal.get("u2") is None


def test_a_failing_attach_leaves_the_claim_prepared_and_says_why(bench: Bench) -> None:
    """The hook's error, the Event and the facts name device and cause; the next try may succeed."""
    bench.keeper.prepare(bench.plan())
    bench.refuse()
    with pytest.raises(HookError, match="name net1 is taken"):
        bench.run()
    assert state(bench) is State.PREPARED
    assert bench.phase() is Phase.ATTACH_FAILED
    assert [event[:2] for event in bench.events] == [("pod-p1", "NameInUse"), ("claim-u1", "NameInUse")]
    bench.kernel.failure = None
    assert bench.run(sandbox="s2")
    assert bench.phase() is Phase.ATTACHED


def test_a_receipt_that_cannot_be_written_undoes_the_attach(bench: Bench) -> None:
    """Without its receipt a container could not be created: the devices go home and the pod is refused."""
    bench.keeper.prepare(bench.plan())
    bench.receipts._folder.parent.joinpath("cdi").touch()
    with pytest.raises(HookError, match="receipt"):
        bench.run()
    assert bench.kernel.inside == {}
    assert state(bench) is State.PREPARED


def test_an_attach_that_took_too_long_is_undone(bench: Bench) -> None:
    """A runtime that has given up must not find a device in its sandbox later."""
    bench.keeper.prepare(bench.plan())
    bench.kernel.on_attach = lambda: time.sleep(0.05)
    with pytest.raises(HookError, match="longer than the runtime waits"):
        bench.run(seconds=0.01)
    assert bench.kernel.inside == {}


def test_a_sandbox_that_stops_during_its_attach_keeps_nothing(bench: Bench) -> None:
    """The stop comes while the attach hangs: it returns in time, and the attach is undone behind it."""
    bench.keeper.prepare(bench.plan())

    def stop_meanwhile() -> None:
        thread = threading.Thread(
            target=bench.keeper.stop_sandbox, args=(bench.sandbox(), time.monotonic() + 0.01), daemon=True
        )
        thread.start()
        thread.join()

    bench.kernel.on_attach = stop_meanwhile
    with pytest.raises(HookError, match="stopped the sandbox"):
        bench.run()
    assert bench.kernel.inside == {}
    assert state(bench) is State.PREPARED
    assert bench.keeper.sandboxes.get("s1") is None


def test_a_second_pod_on_a_held_claim_is_refused_with_both_named(bench: Bench) -> None:
    """The first pod keeps its device and its status; the second is told whose it is."""
    bench.keeper.prepare(bench.plan(pods=("p1", "p2")))
    bench.run()
    with pytest.raises(HookError, match=r"in use by pod default/pod-p1, so pod default/pod-p2"):
        bench.run("p2", "s2")
    assert bench.phase() is Phase.ATTACHED
    with pytest.raises(HookError, match="in use by pod default/pod-p1"):
        bench.keeper.create_container(bench.sandbox("p2", "s2"), CONTAINER, 0)
    assert "eth1" in bench.kernel.inside


def test_a_pod_that_names_a_held_claim_is_known_without_a_prepare(bench: Bench) -> None:
    """Kubelet calls no Prepare for it: the pod's own list of claims tells, and it is refused."""
    bench.keeper.prepare(bench.plan())
    bench.run()
    bench.named["p2"] = (("default", "claim-u1"),)
    with pytest.raises(HookError, match="in use by pod"):
        bench.run("p2", "s2")


def test_a_pod_that_is_not_reserved_yet_waits(bench: Bench) -> None:
    """The claim is free, but nothing says yet that it is this pod's: the next try will know."""
    bench.keeper.prepare(bench.plan())
    bench.named["p2"] = (("default", "claim-u1"),)
    with pytest.raises(HookError, match="not known to be reserved"):
        bench.run("p2", "s2")
    bench.keeper.remember_pods("u1", [PodRef("default", "pod-p2", "p2")])
    assert bench.run("p2", "s2")


def test_the_next_pod_takes_over_from_a_sandbox_that_has_gone(bench: Bench) -> None:
    """The former sandbox is no more, though nobody told: its devices come home and go to the next pod."""
    bench.keeper.prepare(bench.plan(pods=("p1", "p2")))
    bench.run()
    bench.keeper.synchronize([])
    assert bench.run("p2", "s2")
    assert bench.kernel.calls == ["attach eth1", "detach eth1", "attach eth1"]


def test_a_new_sandbox_of_the_same_pod_gets_the_device_from_the_old_one(bench: Bench) -> None:
    """The runtime made the pod's sandbox anew; the old one holds nothing any more."""
    bench.keeper.prepare(bench.plan())
    bench.run()
    assert bench.run(sandbox="s2")
    record = bench.keeper.journal.get("u1")
    assert record is not None
    assert record.holder is not None
    assert record.holder.sandbox_id == "s2"


def test_a_repeated_run_of_the_same_sandbox_changes_nothing(bench: Bench) -> None:
    """The event comes twice; the device is moved once."""
    bench.keeper.prepare(bench.plan())
    bench.run()
    assert bench.run()
    assert bench.kernel.calls == ["attach eth1"]


def test_the_plan_of_the_next_allocation_waits_for_the_former_pod(bench: Bench) -> None:
    """A claim allocated anew while its former pod ends: the next pod gets the new device, under the known receipt."""
    first = bench.keeper.prepare(bench.plan())
    bench.run()
    record = bench.keeper.prepare(bench.plan(devices=("eth2",), pods=("p2",)))
    assert record.successor is not None
    with pytest.raises(HookError, match="in use by pod default/pod-p1"):
        bench.run("p2", "s2")
    bench.stop()
    assert bench.run("p2", "s2")
    assert set(bench.kernel.inside) == {"eth2"}
    after = bench.keeper.journal.get("u1")
    assert after is not None
    assert after.plan.devices[0].receipt_id == first.plan.devices[0].receipt_id


def test_a_host_network_pod_is_refused_in_words(bench: Bench) -> None:
    """There is no namespace to move the device into."""
    bench.keeper.prepare(bench.plan())
    with pytest.raises(HookError, match="host network"):
        bench.keeper.run_sandbox(bench.sandbox(host_network=True), time.monotonic() + 5)
    assert bench.kernel.calls == []


def test_an_uplink_is_never_moved(bench: Bench) -> None:
    """The interface has become the node's uplink since Prepare: checked again in the hook."""
    bench.keeper.prepare(bench.plan())
    bench.uplinks["eth1"] = "it carries the default route"
    with pytest.raises(HookError, match="carries the default route"):
        bench.run()
    assert bench.kernel.calls == []


def test_a_container_is_refused_until_the_device_is_attached(bench: Bench) -> None:
    """The runtime went on without the hook: no container of the pod is created."""
    bench.keeper.prepare(bench.plan())
    with pytest.raises(HookError, match=r"container app: device eth1 of claim claim-u1 is not attached"):
        bench.keeper.create_container(bench.sandbox(), CONTAINER, 0)
    bench.run()
    assert bench.keeper.create_container(bench.sandbox(), CONTAINER, 0) is None


def test_all_claims_of_a_pod_are_one_transaction(bench: Bench) -> None:
    """Two claims, one attach; unpreparing one of them leaves the other's record alone."""
    one = bench.keeper.prepare(bench.plan("u1"))
    bench.keeper.prepare(bench.plan("u2", devices=("eth2", "eth3")))
    bench.run()
    assert bench.kernel.calls == ["attach eth1,eth2,eth3"]
    bench.stop()
    assert bench.kernel.calls[-1] == "detach eth1,eth2,eth3"
    bench.keeper.unprepare(one.ref)
    assert state(bench, "u2") is State.PREPARED


def test_unprepare_gives_back_what_no_stop_did(bench: Bench) -> None:
    """A restarted runtime sends no stop: kubelet's Unprepare brings the device home."""
    record = bench.keeper.prepare(bench.plan())
    bench.run()
    bench.keeper.unprepare(record.ref)
    assert bench.kernel.inside == {}
    assert state(bench) is None
    assert bench.receipts.missing(record.plan)


def test_unprepare_of_an_unknown_claim_succeeds(bench: Bench) -> None:
    """Kubelet unprepares also what was never prepared."""
    bench.keeper.unprepare(ClaimRef("default", "none", "u9"))


def test_what_could_not_be_restored_is_told(bench: Bench) -> None:
    """The device is home but not as it was: an Event on claim and pod says what is missing."""
    bench.keeper.prepare(bench.plan())
    bench.run()
    bench.kernel.problems = ("route 10.0.0.0/8 refused",)
    bench.stop()
    text = "eth1: route 10.0.0.0/8 refused"
    assert bench.events == [(subject, "DeviceNotRestored", text) for subject in ("pod-p1", "claim-u1")]


def test_what_the_observer_sees_becomes_a_fact_of_the_claim(bench: Bench) -> None:
    """A lost device is recorded and told once; what comes after the end of the claim is not."""
    record = bench.keeper.prepare(bench.plan())
    bench.run()
    attached = bench.keeper.journal.get("u1")
    assert attached is not None
    lost = (replace(attached.facts[0], phase=Phase.LOST),)
    bench.keeper.observed("u1", lost)
    told = len(bench.facts)
    bench.keeper.observed("u1", lost)
    assert (bench.phase(), len(bench.facts)) == (Phase.LOST, told)
    bench.stop()
    bench.keeper.observed("u1", attached.facts)
    assert bench.phase() is Phase.DETACHED
    bench.keeper.unprepare(record.ref)


def test_a_look_that_failed_keeps_the_hint_to_the_interface(bench: Bench) -> None:
    """What could not be looked at is found again under the name and index that it had."""
    bench.keeper.prepare(bench.plan())
    bench.run()
    attached = bench.keeper.journal.get("u1")
    assert attached is not None
    bench.keeper.observed("u1", (replace(attached.facts[0], phase=Phase.UNKNOWN, interface=None),))
    record = bench.keeper.journal.get("u1")
    assert record is not None
    assert record.facts[0].phase is Phase.UNKNOWN
    assert record.facts[0].interface == attached.facts[0].interface
    assert bench.refreshed == ["u1"]


def shared(bench: Bench) -> ClaimPlan:
    """Return a claim of an RDMA device in shared mode that two pods use."""
    plan = bench.plan(pods=("p1", "p2"))
    rdma = RdmaPlan(link="mlx5_0", exclusive=False)
    return replace(plan, devices=tuple(replace(d, kind=DeviceKind.RDMA, rdma=rdma) for d in plan.devices))


@pytest.mark.parametrize("last", ["p1", "p2"])
def test_a_shared_device_outlives_each_of_its_pods_but_the_last(bench: Bench, last: str) -> None:
    """Two pods share a device that stays on the host: the end of one takes nothing from the other."""
    plan = bench.keeper.prepare(shared(bench)).plan
    bench.run("p1", "s1")
    bench.run("p2", "s2")
    assert not bench.receipts.missing(plan)
    first = "p2" if last == "p1" else "p1"
    bench.stop(first, first.replace("p", "s"))
    record = bench.keeper.journal.get("u1")
    assert record is not None
    assert record.state is State.ATTACHED
    assert record.holder is not None
    assert record.holder.pod.uid == last
    assert not bench.receipts.missing(plan)
    assert bench.watched.uids == {"u1"}
    bench.stop(last, last.replace("p", "s"))
    assert state(bench) is State.PREPARED
    assert bench.receipts.missing(plan)
    assert bench.watched.uids == set()


def test_a_device_that_is_being_moved_is_refused_to_everyone(bench: Bench) -> None:
    """While another thread holds the device's lock, a hook gives up at its deadline and says so."""
    bench.keeper.prepare(bench.plan())
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with bench.keeper.locks.hold(["eth1"], until=time.monotonic() + 5):
            held.set()
            done.wait(5)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(5)
    try:
        with pytest.raises(HookError, match="eth1 is still being attached"):
            bench.run(seconds=0.01)
        with pytest.raises(DeviceBusyError), bench.keeper.locks.hold(["eth1"], until=time.monotonic()):
            pass
    finally:
        done.set()
        thread.join()
    assert bench.run()


def test_a_late_hook_is_taken_back(bench: Bench) -> None:
    """The runtime was told that the hook failed, and it succeeded afterwards: the device goes home."""
    bench.keeper.prepare(bench.plan())
    bench.run()
    bench.keeper.late(bench.sandbox())
    assert bench.kernel.inside == {}
