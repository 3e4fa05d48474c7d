"""The writer is durable: what it could not write is in the journal, and the next life writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nri_dranet.claims.facts import ClaimFacts, Phase
from nri_dranet.status.wire import StatusWire
from nri_dranet.status.writer import StatusWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from nri_dranet.kube.client import KubeClient
    from nri_dranet.testing.apiserver import ApiServerStandIn


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
