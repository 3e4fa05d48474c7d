"""The writer: latest wins, durable, patient, and never in anybody's way."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.claims.facts import ClaimFacts, ObservedInterface, Phase
from nri_dranet.kube.client import ApiError, KubeClient
from nri_dranet.kube.listwatch import SYNC, Closer, watch
from nri_dranet.status import writer as module
from nri_dranet.status.wire import StatusWire, UnwritableError
from nri_dranet.status.writer import StatusWriter
from nri_dranet.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nri_dranet.claims.model import ClaimRef
    from nri_dranet.testing.apiserver import ApiServerStandIn

CLAIMS = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims"


def shown(address: str = "10.0.0.1/24", **more: Any) -> ObservedInterface:
    """Return an interface with an address."""
    return ObservedInterface(name="eth99", hardware_address="86:d7:86:e6:f3:dd", addresses=(address,), **more)


def writes(result: str) -> float:
    """Return how many writes had a result."""
    return float(metrics.STATUS_WRITES.labels(result)._value.get())


@pytest.fixture
def follow(client: KubeClient) -> Iterator[Callable[[StatusWriter, ClaimRef], None]]:
    """Show a writer its claims by watches, as the daemon does."""
    closers: list[Closer] = []
    threads: list[threading.Thread] = []

    def start(writer: StatusWriter, ref: ClaimRef) -> None:
        closer = Closer()
        ready = threading.Event()

        def run() -> None:
            selector = f"metadata.name={ref.name}"
            for event in watch(client, CLAIMS, field_selector=selector, closer=closer):
                claim = (event.objects[0] if event.objects else None) if event.type == SYNC else event.object
                writer.observed(ref, None if event.type == "DELETED" else claim)
                ready.set()

        closers.append(closer)
        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()
        assert ready.wait(10)

    yield start
    for closer in closers:
        closer.close()
    for thread in threads:
        thread.join(10)


def test_facts_become_status(
    claims: Any, facts: Callable[..., ClaimFacts], make_writer: Callable[..., StatusWriter], until: Any, store: Any
) -> None:
    """What is submitted is written; nothing waits afterwards."""
    writer = make_writer()
    ref = claims.make()
    before = writes("written")
    writer.submit(facts(ref))
    until(lambda: writer.pending == 0)
    assert claims.condition()["reason"] == "NetworkDeviceReady"
    assert writes("written") == before + 1
    assert store.rows == {}


def test_equal_status_is_not_written_again(
    claims: Any, facts: Callable[..., ClaimFacts], make_writer: Callable[..., StatusWriter], until: Any
) -> None:
    """Also a new life of the program finds the status as it shall be, and leaves it alone."""
    ref = claims.make()
    for _ in range(2):
        writer = make_writer()
        for _ in range(2):
            writer.submit(facts(ref))
            until(lambda: writer.pending == 0)  # noqa: B023 - called at once
    assert claims.writes() == 1


def test_the_last_facts_win(
    claims: Any,
    facts: Callable[..., ClaimFacts],
    make_writer: Callable[..., StatusWriter],
    until: Any,
    client: KubeClient,
) -> None:
    """However fast they come and from how many threads: at rest the newest is written, in few writes."""
    del client
    writer = make_writer()
    refs = [claims.make(f"c{i}") for i in range(6)]

    def pour(ref: ClaimRef) -> None:
        for number in range(100):
            writer.submit(facts(ref, interface=shown(f"10.0.{number}.1/24")))

    threads = [threading.Thread(target=pour, args=(ref,)) for ref in refs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: writer.pending == 0)
    for ref in refs:
        assert claims.entries(ref.name)[0]["networkData"]["ips"] == ["10.0.99.1/24"]
    assert claims.writes() < 600


def test_one_write_at_a_time_for_a_claim_and_a_few_for_all(
    *,
    claims: Any,
    facts: Callable[..., ClaimFacts],
    store: Any,
    told: Any,
    until: Any,
    client: KubeClient,
) -> None:
    """However many claims wait, the API server sees no more writes at once than there are workers."""
    at_once: list[int] = []
    busy: dict[str, int] = {}
    lock = threading.Lock()

    class Counting(StatusWire):
        def write(self, ref: ClaimRef, *args: Any) -> dict[str, Any]:
            with lock:
                busy[ref.uid] = busy.get(ref.uid, 0) + 1
                assert busy[ref.uid] == 1
                at_once.append(sum(busy.values()))
            try:
                return super().write(ref, *args)
            finally:
                with lock:
                    busy[ref.uid] -= 1

    writer = StatusWriter(Counting(client, "dra.net", "n1"), "dra.net", store, event=told, workers=3)
    writer.start()
    refs = [claims.make(f"c{i}") for i in range(30)]
    for number in range(3):
        for ref in refs:
            writer.submit(facts(ref, interface=shown(f"10.0.{number}.1/24")))
    until(lambda: writer.pending == 0)
    writer.stop()
    assert max(at_once) <= 3


def test_submitting_never_waits_for_the_server(
    claims: Any, facts: Callable[..., ClaimFacts], make_writer: Callable[..., StatusWriter], api: ApiServerStandIn
) -> None:
    """With the server away submitting returns; the facts wait."""
    ref = claims.make()
    api.pause()
    writer = make_writer()
    done = threading.Event()

    def pour() -> None:
        for _ in range(100):
            writer.submit(facts(ref))
        done.set()

    threading.Thread(target=pour, daemon=True).start()
    assert done.wait(5)
    assert writer.pending == 1


def test_prepared_is_written_only_when_it_lasts(
    claims: Any, facts: Callable[..., ClaimFacts], make_writer: Callable[..., StatusWriter], until: Any
) -> None:
    """A pod that starts at once costs one write; one that waits shows why."""
    writer = make_writer(prepared_delay=0.2)
    quick, slow = claims.make("c1"), claims.make("c2")
    writer.submit(facts(quick, Phase.PREPARED))
    writer.submit(facts(slow, Phase.PREPARED))
    writer.submit(facts(quick))
    until(lambda: writer.pending == 0)
    assert claims.condition(name="c1")["status"] == "True"
    assert claims.condition(name="c2")["reason"] == "Prepared"
    assert claims.writes() == 2


@pytest.mark.parametrize("status", [409, 429, 500, 503, 504, 401])
def test_failures_are_tried_again(
    *,
    claims: Any,
    facts: Callable[..., ClaimFacts],
    make_writer: Callable[..., StatusWriter],
    until: Any,
    api: ApiServerStandIn,
    status: int,
) -> None:
    """Whatever the server says for a moment, the status is written in the end."""
    writer = make_writer()
    ref = claims.make()
    before = writes("failed")
    api.fail_next(3, status, method="PATCH")
    writer.submit(facts(ref))
    until(lambda: writer.pending == 0)
    assert claims.condition()["status"] == "True"
    assert writes("failed") > before


def test_the_server_is_given_the_time_that_it_asks_for(
    claims: Any,
    facts: Callable[..., ClaimFacts],
    make_writer: Callable[..., StatusWriter],
    until: Any,
    api: ApiServerStandIn,
) -> None:
    """Retry-After holds the next try back."""
    writer = make_writer()
    ref = claims.make()
    api.fail_next(1, 429, retry_after=1, method="PATCH")
    writer.submit(facts(ref))
    until(lambda: claims.writes() == 1)
    until(lambda: not writer._entries[ref.uid].busy)
    entry = writer._entries[ref.uid]
    assert entry.due - time.monotonic() > 0.5
    until(lambda: writer.pending == 0)
    assert claims.condition()["status"] == "True"


def test_a_long_retry_after_is_bounded(store: Any, told: Any, claims: Any, facts: Callable[..., ClaimFacts]) -> None:
    """No answer silences a claim for longer than a minute and a half."""
    ref = claims.make()

    class Busy:
        def read(self, _: ClaimRef) -> dict[str, Any]:
            raise ApiError(429, "TooManyRequests", "later", retry_after=10_000.0)

    writer = StatusWriter(Busy(), "dra.net", store, event=told, workers=0)  # type: ignore[arg-type]  # only read is used
    writer.submit(facts(ref))
    writer._write(writer._entries[ref.uid])
    assert writer._entries[ref.uid].due - time.monotonic() <= 90


def test_an_outage_is_waited_out_by_one_and_survived_by_all(
    *,
    claims: Any,
    facts: Callable[..., ClaimFacts],
    make_writer: Callable[..., StatusWriter],
    until: Any,
    api: ApiServerStandIn,
    store: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Fifty claims change while the server is away: one write at a time looks for it, then all are written."""
    caplog.set_level("INFO", module.__name__)
    writer = make_writer()
    refs = [claims.make(f"c{i}") for i in range(50)]
    api.pause()
    for ref in refs:
        writer.submit(facts(ref))
    until(lambda: writer._away)
    until(lambda: len(store.rows) == 50)
    until(lambda: writer._away_pause == module._AWAY_PAUSE)
    assert sum(entry.busy for entry in writer._entries.values()) <= 1
    api.resume()
    until(lambda: writer.pending == 0)
    assert all(claims.condition(name=ref.name)["status"] == "True" for ref in refs)
    assert store.rows == {}
    assert claims.writes() == 50
    assert [record.message for record in caplog.records] == [
        "the API server does not answer, statuses wait",
        "the API server answers again",
    ]


def test_a_crash_loses_nothing(
    *,
    claims: Any,
    facts: Callable[..., ClaimFacts],
    make_writer: Callable[..., StatusWriter],
    until: Any,
    api: ApiServerStandIn,
    store: Any,
) -> None:
    """What an earlier life could not write is written by the next one."""
    ref = claims.make()
    api.pause()
    dead = make_writer(start=False)
    dead.submit(facts(ref, Phase.ATTACH_FAILED, reason="NameInUse", message="eth0 is taken"))
    assert list(store.rows) == [ref.uid]
    api.resume()
    writer = make_writer()
    until(lambda: writer.pending == 0)
    assert claims.condition()["reason"] == "NameInUse"
    assert store.rows == {}


def test_what_was_true_before_a_crash_is_looked_at_first(
    claims: Any, facts: Callable[..., ClaimFacts], make_writer: Callable[..., StatusWriter], until: Any, store: Any
) -> None:
    """A device that was in its pod then may be elsewhere now: newer facts go before the kept ones."""
    ref = claims.make()
    store.rows[ref.uid] = facts(ref)
    writer = make_writer()
    writer.submit(facts(ref, Phase.LOST))
    until(lambda: writer.pending == 0)
    assert claims.condition()["reason"] == "DeviceMissing"
    assert claims.writes() == 1


def test_facts_that_came_before_the_start_are_newer_than_kept_ones(
    claims: Any, facts: Callable[..., ClaimFacts], make_writer: Callable[..., StatusWriter], until: Any, store: Any
) -> None:
    """The order of submitting and starting does not matter."""
    ref = claims.make()
    store.rows[ref.uid] = facts(ref, Phase.ATTACH_FAILED)
    writer = make_writer(start=False)
    writer.submit(facts(ref))
    writer.start()
    until(lambda: writer.pending == 0)
    writer.stop()
    assert claims.condition()["status"] == "True"


def test_stopping_writes_what_is_due_and_keeps_the_rest(
    *,
    claims: Any,
    facts: Callable[..., ClaimFacts],
    make_writer: Callable[..., StatusWriter],
    api: ApiServerStandIn,
    store: Any,
) -> None:
    """An orderly end leaves nothing unsaid, and nothing unkept where the server is away."""
    first, second = claims.make("c1"), claims.make("c2")
    writer = make_writer(start=False, prepared_delay=60.0)
    writer.start()
    writer.submit(facts(first, Phase.PREPARED))
    writer.stop()
    assert claims.condition()["reason"] == "Prepared"
    api.pause()
    other = make_writer(start=False)
    other.start()
    other.submit(facts(second))
    other.stop()
    assert list(store.rows) == [second.uid]


def test_a_journal_that_fails_does_not_keep_the_status_from_being_written(
    claims: Any, facts: Callable[..., ClaimFacts], make_writer: Callable[..., StatusWriter], until: Any, store: Any
) -> None:
    """The disk is full, the API server is not."""
    store.broken = True
    writer = make_writer()
    ref = claims.make()
    writer.submit(facts(ref, Phase.ATTACH_FAILED))
    until(lambda: writer.pending == 0)
    assert claims.condition()["reason"] == "AttachFailed"
    store.broken = False


def test_newer_facts_are_not_dropped_from_the_journal(
    *,
    monkeypatch: pytest.MonkeyPatch,
    claims: Any,
    facts: Callable[..., ClaimFacts],
    store: Any,
    told: Any,
    client: KubeClient,
) -> None:
    """Facts that come while older ones are being written stay kept until they are written themselves."""
    ref = claims.make()
    writer = StatusWriter(StatusWire(client, "dra.net", "n1"), "dra.net", store, event=told, workers=0)
    writer.submit(facts(ref, Phase.ATTACH_FAILED))
    entry = writer._take()
    assert entry
    newer = facts(ref, Phase.DETACHED)
    write_once = writer._write_once

    def interrupted(*args: Any) -> Any:
        desired = write_once(*args)
        writer.submit(newer)
        return desired

    monkeypatch.setattr(writer, "_write_once", interrupted)
    writer._write(entry)
    assert store.rows == {ref.uid: newer}
    assert entry.dirty


def test_the_journal_is_never_older_than_what_was_told(
    claims: Any, facts: Callable[..., ClaimFacts], store: Any, told: Any, client: KubeClient
) -> None:
    """Kept facts are replaced by newer ones, also by such as are not kept otherwise: no new life says old ones."""
    ref = claims.make()
    wire = StatusWire(client, "dra.net", "n1")
    writer = StatusWriter(wire, "dra.net", store, event=told, workers=0)
    writer.submit(facts(ref, Phase.ATTACH_FAILED))
    writer.submit(facts(ref))
    assert store.rows == {ref.uid: facts(ref)}
    other = StatusWriter(wire, "dra.net", store, event=told, workers=0)
    other.submit(facts(ref, Phase.PREPARED))
    other.start()
    assert store.rows == {ref.uid: facts(ref, Phase.PREPARED)}
    entry = other._entries[ref.uid]
    entry.dirty, entry.busy = False, True
    other._write(entry)
    assert store.rows == {}
    assert claims.condition()["reason"] == "Prepared"


def test_a_claim_that_is_gone_is_forgotten(
    claims: Any,
    facts: Callable[..., ClaimFacts],
    make_writer: Callable[..., StatusWriter],
    until: Any,
    store: Any,
) -> None:
    """Deleted, or made anew under the same name: nothing is written, nothing waits, the journal is clean."""
    writer = make_writer()
    ref = claims.make()
    writer.submit(facts(replace(ref, name="nothing"), Phase.DETACHED))
    writer.submit(facts(replace(ref, uid="00000000-0000-0000-0000-000000000000"), Phase.DETACHED))
    until(lambda: writer.pending == 0)
    assert claims.entries() == []
    assert store.rows == {}
    assert writer._entries == {}


def test_a_device_that_is_not_allocated_any_more_is_left_out(
    claims: Any,
    facts: Callable[..., ClaimFacts],
    make_writer: Callable[..., StatusWriter],
    until: Any,
    api: ApiServerStandIn,
) -> None:
    """Deallocated under our hands: the refusal leads to a look at the claim, and to the end of the matter."""
    writer = make_writer()
    ref = claims.make()
    writer.submit(facts(ref))
    until(lambda: writer.pending == 0)
    old = claims.read()
    api.deallocate("default", "c1")
    writer.observed(ref, old)
    writer.submit(facts(ref, Phase.DETACHED))
    until(lambda: writer.pending == 0)
    assert claims.entries() == []
    # Allocated again: what was said about the former allocation is not said about this one.
    claims.allocate()
    writer.observed(ref, claims.read())
    assert writer.pending == 0


def test_an_unwatched_claim_is_read_before_it_is_judged(
    claims: Any,
    facts: Callable[..., ClaimFacts],
    make_writer: Callable[..., StatusWriter],
    until: Any,
    api: ApiServerStandIn,
) -> None:
    """Refused, deallocated, allocated again, refused with the same words: the status is there again."""
    writer = make_writer()
    ref = claims.make()
    for _ in range(2):
        writer.submit(facts(ref, Phase.PREPARE_FAILED, message="interface.mtu: 70000 is too much"))
        until(lambda: writer.pending == 0)
        assert claims.condition()["message"] == "interface.mtu: 70000 is too much"
        api.deallocate("default", "c1")
        claims.allocate()


def test_what_somebody_altered_is_written_again(
    *,
    claims: Any,
    facts: Callable[..., ClaimFacts],
    make_writer: Callable[..., StatusWriter],
    until: Any,
    follow: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Removed, or changed: the watch shows it, and the entry comes back as it was, times included."""
    monkeypatch.setattr(module, "_REPAIR_PAUSE", 0.01)
    writer = make_writer()
    ref = claims.make()
    writer.submit(facts(ref))
    until(lambda: writer.pending == 0)
    follow(writer, ref)
    before = claims.entries()
    claims.alter({"devices": None})
    until(lambda: claims.entries() == before)
    changed = [{**before[0], "networkData": {"interfaceName": "wrong"}}]
    claims.alter({"devices": changed})
    until(lambda: claims.entries() == before)


def test_a_fight_is_damped_and_forgotten(
    claims: Any, facts: Callable[..., ClaimFacts], store: Any, told: Any, client: KubeClient
) -> None:
    """Each repair of a claim waits twice as long as the one before; after a time of peace it is quick again."""
    ref = claims.make()
    writer = StatusWriter(StatusWire(client, "dra.net", "n1"), "dra.net", store, event=told, workers=0)
    writer.submit(facts(ref))
    entry = writer._entries[ref.uid]
    entry.dirty, entry.busy = False, True
    writer._write(entry)
    pauses = []
    for _ in range(12):
        claims.alter({"devices": None})
        writer.observed(ref, claims.read())
        assert entry.dirty
        pauses.append(round(entry.due - time.monotonic()))
        entry.dirty, entry.busy = False, True
        writer._write(entry)
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    entry.repaired -= 1000
    claims.alter({"devices": None})
    writer.observed(ref, claims.read())
    assert round(entry.due - time.monotonic()) == 1


def test_an_old_event_of_the_watch_does_not_count(
    claims: Any, facts: Callable[..., ClaimFacts], make_writer: Callable[..., StatusWriter], until: Any
) -> None:
    """The watch lags behind our own write: what it shows then is no alteration."""
    writer = make_writer()
    ref = claims.make()
    old = claims.read()
    writer.observed(ref, old)
    writer.submit(facts(ref))
    until(lambda: writer.pending == 0)
    writer.observed(ref, claims.read())
    writer.observed(ref, old)
    assert writer.pending == 0
    assert claims.writes() == 1


def test_an_alteration_during_a_write_is_not_missed(
    *,
    monkeypatch: pytest.MonkeyPatch,
    claims: Any,
    facts: Callable[..., ClaimFacts],
    store: Any,
    told: Any,
    client: KubeClient,
) -> None:
    """What the watch shows while a write is under way is looked at afterwards."""
    ref = claims.make()
    writer = StatusWriter(StatusWire(client, "dra.net", "n1"), "dra.net", store, event=told, workers=0)
    writer.submit(facts(ref))
    entry = writer._take()
    assert entry
    write_once = writer._write_once

    def interrupted(*args: Any) -> Any:
        desired = write_once(*args)
        claims.alter({"devices": None})
        writer.observed(ref, claims.read())
        return desired

    monkeypatch.setattr(writer, "_write_once", interrupted)
    writer._write(entry)
    assert entry.dirty


def test_claims_that_are_not_held_are_not_repaired(
    claims: Any, facts: Callable[..., ClaimFacts], make_writer: Callable[..., StatusWriter], until: Any
) -> None:
    """What this node does not hold any more belongs to nobody; what waits for it is written all the same."""
    writer = make_writer(prepared_delay=0.2)
    kept, left, waiting = claims.make("c1"), claims.make("c2"), claims.make("c3")
    writer.submit(facts(kept))
    writer.submit(facts(left))
    until(lambda: writer.pending == 0)
    writer.submit(facts(waiting, Phase.PREPARED))
    writer.forget([kept.uid])
    assert set(writer._entries) == {kept.uid, waiting.uid}
    claims.alter({"devices": None}, "c2")
    writer.observed(left, claims.read("c2"))
    until(lambda: writer.pending == 0)
    assert claims.entries("c2") == []
    assert claims.condition(name="c3")["reason"] == "Prepared"
    assert set(writer._entries) == {kept.uid}


def lags() -> float:
    """Return how many times the lag was measured."""
    return sum(
        sample.value for sample in next(iter(metrics.STATUS_LAG.collect())).samples if sample.name.endswith("_count")
    )


def test_a_claim_without_any_way_gets_an_event(
    claims: Any, facts: Callable[..., ClaimFacts], told: Any, store: Any, until: Any
) -> None:
    """The owner is told; nothing is tried for ever, nothing waits in the journal."""
    ref = claims.make()

    class Wall(StatusWire):
        def write(self, *_: Any) -> dict[str, Any]:
            raise UnwritableError("no way for claim default/c1")

        def read(self, _: ClaimRef) -> dict[str, Any]:
            found: dict[str, Any] = claims.read()
            return found

    before = lags()
    writer = StatusWriter(Wall(None, "dra.net", "n1"), "dra.net", store, event=told)  # type: ignore[arg-type]  # not used
    writer.start()
    writer.submit(facts(ref, Phase.DETACHED))
    until(lambda: writer.pending == 0)
    writer.stop()
    assert told.events == [(ref, "StatusNotWritable", "no way for claim default/c1")]
    assert store.rows == {}
    assert lags() == before


class Refusing:
    """A wire that always fails with one error."""

    def __init__(self, error: Exception) -> None:
        """Fail with it."""
        self.error = error

    def read(self, _: ClaimRef) -> dict[str, Any]:
        """Fail."""
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        ApiError(403, "Forbidden", "cannot patch resource"),
        ApiError(422, "Invalid", 'status.devices: Forbidden: changing status.devices requires verb="…"'),
    ],
)
def test_a_missing_permission_is_said_once(
    *,
    claims: Any,
    facts: Callable[..., ClaimFacts],
    store: Any,
    told: Any,
    error: ApiError,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One plain line names the rules; the tries become slow, and a moment's refusal says nothing."""
    writer = StatusWriter(Refusing(error), "dra.net", store, event=told, workers=0)  # type: ignore[arg-type]  # only read
    for name in ("c1", "c2"):
        ref = claims.make(name)
        writer.submit(facts(ref))
        entry = writer._entries[ref.uid]
        for _ in range(12):
            entry.dirty, entry.busy = False, True
            writer._write(entry)
        assert entry.due - time.monotonic() > 55
    (record,) = caplog.records
    assert "resourceclaims/status" in record.message
    assert "associated-node:patch" in record.message
    assert set(store.rows) == set(writer._entries)


def test_a_missing_permission_to_read_is_named(
    *, claims: Any, facts: Callable[..., ClaimFacts], store: Any, told: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What is missing is get on claims then, and not the right to write."""
    error = ApiError(403, "Forbidden", "cannot get resource", method="GET")
    writer = StatusWriter(Refusing(error), "dra.net", store, event=told, workers=0)  # type: ignore[arg-type]  # only read
    ref = claims.make()
    writer.submit(facts(ref))
    for _ in range(3):
        fail(writer, writer._entries[ref.uid])
    (record,) = caplog.records
    assert "verb get on resourceclaims" in record.message
    assert "resourceclaims/status" not in record.message


def fail(writer: StatusWriter, entry: Any) -> None:
    """Let one write of a writer without workers fail."""
    entry.dirty, entry.busy = False, True
    writer._write(entry)


def test_a_permission_that_is_taken_away_again_is_said_again(
    *,
    claims: Any,
    facts: Callable[..., ClaimFacts],
    client: KubeClient,
    store: Any,
    told: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once a write has succeeded, the next missing permission is news."""
    denied = Refusing(ApiError(403, "Forbidden", "cannot patch resource", method="PATCH"))
    granted = StatusWire(client, "dra.net", "n1")
    writer = StatusWriter(granted, "dra.net", store, event=told, workers=0)
    ref = claims.make()
    for phase in (Phase.ATTACHED, Phase.LOST):
        writer.submit(facts(ref, phase))
        entry = writer._entries[ref.uid]
        for wire in (denied, denied, denied, granted):
            writer._wire = wire  # type: ignore[assignment]  # only read is used
            fail(writer, entry)
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert claims.condition()["status"] == "False"


def test_an_outage_is_logged_with_its_cause(
    claims: Any, facts: Callable[..., ClaimFacts], store: Any, told: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever reads that the server does not answer learns why."""
    error = ApiError(0, "NameResolutionError", "https://kube:6443 does not answer: no such host")
    writer = StatusWriter(Refusing(error), "dra.net", store, event=told, workers=0)  # type: ignore[arg-type]  # only read
    ref = claims.make()
    writer.submit(facts(ref))
    for _ in range(3):
        fail(writer, writer._entries[ref.uid])
    (record,) = caplog.records
    assert record.message == "the API server does not answer, statuses wait"
    assert record.fields["error"] is error  # type: ignore[attr-defined]  # the log room adds it


def test_a_claim_whose_answer_makes_no_sense_does_not_stop_the_others(
    *, claims: Any, facts: Callable[..., ClaimFacts], store: Any, told: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The server is there: only this claim waits, and that is logged."""
    error = ApiError(0, "BadAnswer", "the API server's answer is no JSON: too deep", method="GET")
    writer = StatusWriter(Refusing(error), "dra.net", store, event=told, workers=0)  # type: ignore[arg-type]  # only read
    ref = claims.make()
    writer.submit(facts(ref))
    for _ in range(3):
        fail(writer, writer._entries[ref.uid])
    assert [record.message for record in caplog.records] == ["status not written, trying on"]
    assert not writer._away
    assert set(store.rows) == {ref.uid}


def test_a_failure_is_logged_once_until_another_comes(
    claims: Any, facts: Callable[..., ClaimFacts], store: Any, told: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A claim that cannot be written does not fill the log."""
    wire = Refusing(ApiError(422, "Invalid", "what"))
    writer = StatusWriter(wire, "dra.net", store, event=told, workers=0)  # type: ignore[arg-type]  # only read is used
    ref = claims.make()
    writer.submit(facts(ref))
    entry = writer._entries[ref.uid]
    for error in (
        wire.error,
        wire.error,
        ApiError(500, "InternalError", "oh"),
        RuntimeError("an error of the program"),
    ):
        wire.error = error
        entry.dirty, entry.busy = False, True
        writer._write(entry)
        assert entry.dirty
    texts = [record.message for record in caplog.records]
    assert texts == ["status not written, trying on"] * 2 + ["a status write failed unexpectedly"]
