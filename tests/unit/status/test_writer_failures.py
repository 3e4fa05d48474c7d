"""The writer is patient: whatever the API server says, it tries again, and says so once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.claims.facts import ClaimFacts, Phase
from nri_dranet.kube.client import ApiError, KubeClient
from nri_dranet.status import writer as module
from nri_dranet.status.wire import StatusWire, UnwritableError
from nri_dranet.status.writer import StatusWriter
from nri_dranet.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from nri_dranet.claims.model import ClaimRef
    from nri_dranet.testing.apiserver import ApiServerStandIn


def writes(result: str) -> float:
    """Return how many writes had a result."""
    return float(metrics.STATUS_WRITES.labels(result)._value.get())


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
    assert told.events == [(ref, "StatusNotWritable", "no way for claim default/c1", True)]
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
