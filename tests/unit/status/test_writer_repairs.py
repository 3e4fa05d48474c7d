"""The writer watches: what somebody altered is written again, ever later while that goes on."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.claims.facts import ClaimFacts, Phase
from nri_dranet.kube.listwatch import SYNC, Closer, watch
from nri_dranet.status import writer as module
from nri_dranet.status.wire import StatusWire
from nri_dranet.status.writer import StatusWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nri_dranet.claims.model import ClaimRef
    from nri_dranet.kube.client import KubeClient

CLAIMS = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims"


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
