"""The one writer of ``ResourceClaim.status.devices``: takes facts, writes until it is written.

Facts come from any thread and never wait. Of each claim the last facts count; one write at a time is under way for a
claim, a few for all. A write that fails is tried again with a growing, jittered pause until it succeeds, the claim is
gone, or another claim has its name. Facts that nobody could tell again after a restart are kept in the journal until
they are written; all others follow from what the kernel shows.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from nri_dranet.claims.facts import ClaimFacts, Phase
from nri_dranet.kube.client import ApiError
from nri_dranet.status.desired import Desired, desired_status
from nri_dranet.status.wire import ClaimGoneError, StatusWire, UnwritableError
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from nri_dranet.claims.model import ClaimRef

LOG = logging.getLogger(__name__)

WORKERS: Final = 4

PREPARED_DELAY: Final = 2.0
"""A claim that is only prepared is mostly attached a moment later: that one write is enough."""

_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 30.0
_FORBIDDEN_PAUSE: Final = 60.0
_REPAIR_PAUSE: Final = 2.0
_MAX_REPAIR_PAUSE: Final = 300.0
_FORBIDDEN: Final = 403
_PASSING: Final = frozenset({Phase.PREPARED, Phase.ATTACHED})


class StatusStore(Protocol):
    """Keeps what waits to be written beyond the life of the process (``store.journal.Journal``)."""

    def put_status(self, facts: ClaimFacts) -> None:
        """Keep the facts of a claim."""
        ...

    def status_written(self, uid: str) -> None:
        """Forget them."""
        ...

    def pending_statuses(self) -> list[ClaimFacts]:
        """Return what an earlier life has left."""
        ...


@dataclass(slots=True)
class _Entry:
    facts: ClaimFacts
    since: float
    due: float
    dirty: bool = True
    busy: bool = False
    pause: float = _FIRST_PAUSE
    repair_pause: float = _REPAIR_PAUSE
    kept: bool = False
    seen: Mapping[str, Any] | None = None
    desired: Desired | None = field(default=None, repr=False)


class StatusWriter:
    """Writes statuses by a few threads of its own. Thread-safe."""

    def __init__(
        self,
        wire: StatusWire,
        driver: str,
        store: StatusStore,
        *,
        event: Callable[[ClaimRef, str, str], None],
        workers: int = WORKERS,
        prepared_delay: float = PREPARED_DELAY,
    ) -> None:
        """Prepare to write.

        Args:
            wire: how entries get to the API server.
            driver: the driver's name.
            store: keeps what waits to be written.
            event: tells the owner of a claim what cannot be written: claim, reason, message.
            workers: how many writes may be under way.
            prepared_delay: seconds before it is written that a claim is only prepared.
        """
        self._wire = wire
        self._driver = driver
        self._store = store
        self._event = event
        self._prepared_delay = prepared_delay
        self._entries: dict[str, _Entry] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._told_forbidden = False
        self._threads = [threading.Thread(target=self._work, name=f"status-{i}", daemon=True) for i in range(workers)]

    def start(self) -> None:
        """Take up what an earlier life has left, and begin to write."""
        for facts in self._store.pending_statuses():
            self._enter(facts, kept=True)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End; writes under way are finished. What is not written is in the journal, or is seen again next time."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout=5)

    def submit(self, facts: ClaimFacts) -> None:
        """Take what is known of a claim now. Never waits for the API server."""
        last_word = any(device.phase not in _PASSING for device in facts.devices)
        kept = False
        if last_word:
            try:
                self._store.put_status(facts)
                kept = True
            except Exception as error:  # noqa: BLE001 - the write itself must be tried whatever the journal says
                LOG.warning("status not kept in the journal", extra=fields(claim=facts.ref.uid, error=error))
        self._enter(facts, kept=kept)

    def observed(self, ref: ClaimRef, claim: Mapping[str, Any] | None) -> None:
        """Take what the watch shows of a claim: entries that somebody altered are written again, ever slower."""
        with self._changed:
            entry = self._entries.get(ref.uid)
            if entry is None:
                return
            entry.seen = claim
            if claim is None or entry.dirty or entry.busy or entry.desired is None:
                return
            if not entry.desired.altered(claim):
                return
            now = time.monotonic()
            entry.dirty, entry.since, entry.due = True, now, now + entry.repair_pause
            entry.repair_pause = min(entry.repair_pause * 2, _MAX_REPAIR_PAUSE)
            self._changed.notify_all()

    def forget(self, held: Iterable[str]) -> None:
        """Drop what is written of claims that are not in ``held`` (UIDs): they are not repaired any more."""
        keep = set(held)
        with self._changed:
            for uid in [uid for uid, entry in self._entries.items() if uid not in keep]:
                if not self._entries[uid].dirty and not self._entries[uid].busy:
                    del self._entries[uid]

    @property
    def pending(self) -> int:
        """How many claims wait to be written."""
        with self._changed:
            return sum(entry.dirty or entry.busy for entry in self._entries.values())

    # ---- inside

    def _enter(self, facts: ClaimFacts, *, kept: bool) -> None:
        now = time.monotonic()
        waits = all(device.phase is Phase.PREPARED for device in facts.devices)
        due = now + (self._prepared_delay if waits else 0.0)
        with self._changed:
            entry = self._entries.get(facts.ref.uid)
            if entry is None:
                entry = self._entries[facts.ref.uid] = _Entry(facts, now, due)
            else:
                entry.since = now if not entry.dirty else entry.since
                entry.facts, entry.due, entry.dirty, entry.pause = facts, due, True, _FIRST_PAUSE
            entry.kept = entry.kept or kept
            self._gauge()
            self._changed.notify_all()

    def _gauge(self) -> None:
        metrics.STATUS_PENDING.set(sum(entry.dirty for entry in self._entries.values()))

    def _work(self) -> None:
        while True:
            entry = self._take()
            if entry is None:
                return
            self._write(entry)

    def _take(self) -> _Entry | None:
        with self._changed:
            while not self._stopping:
                now = time.monotonic()
                waiting = [entry for entry in self._entries.values() if entry.dirty and not entry.busy]
                first = min(waiting, key=lambda entry: entry.due, default=None)
                if first is not None and first.due <= now:
                    first.busy, first.dirty = True, False
                    return first
                self._changed.wait(None if first is None else first.due - now)
        return None

    def _write(self, entry: _Entry) -> None:
        facts, since = entry.facts, entry.since
        try:
            desired = self._write_once(entry, facts)
        except ClaimGoneError:
            self._settled(entry, facts, since, None, "gone")
        except UnwritableError as error:
            metrics.STATUS_WRITES.labels("refused").inc()
            LOG.error("a claim's status cannot be written", extra=fields(claim=facts.ref.uid, error=error))  # noqa: TRY400 - the text says all
            self._event(facts.ref, "StatusNotWritable", str(error))
            self._settled(entry, facts, since, None, "unwritable")
        except ApiError as error:
            self._again(entry, error)
        except Exception as error:
            LOG.exception("a status write failed unexpectedly", extra=fields(claim=facts.ref.uid))
            self._again(entry, ApiError(0, "InternalError", str(error)))
        else:
            self._settled(entry, facts, since, desired, "written")

    def _write_once(self, entry: _Entry, facts: ClaimFacts) -> Desired:
        claim = entry.seen if entry.seen is not None else self._wire.read(facts.ref)
        desired = desired_status(facts, claim, self._driver, datetime.now(UTC))
        if not desired.differs:
            metrics.STATUS_WRITES.labels("unchanged").inc()
            return desired
        # What the watch showed last may be old: a refusal is judged by what the server has now.
        answer = self._wire.write(facts.ref, desired, claim)
        entry.seen = answer
        metrics.STATUS_WRITES.labels("written").inc()
        return desired

    def _settled(self, entry: _Entry, facts: ClaimFacts, since: float, desired: Desired | None, how: str) -> None:
        metrics.STATUS_LAG.observe(time.monotonic() - since)
        with self._changed:
            entry.busy = False
            entry.pause = _FIRST_PAUSE
            entry.desired = desired
            newest = not entry.dirty
            if newest and how == "gone":
                self._entries.pop(facts.ref.uid, None)
            self._gauge()
            self._changed.notify_all()
        if newest and entry.kept:
            try:
                self._store.status_written(facts.ref.uid)
                entry.kept = False
            except Exception as error:  # noqa: BLE001 - it is written again at the next start, which changes nothing
                LOG.warning("a written status stays in the journal", extra=fields(claim=facts.ref.uid, error=error))

    def _again(self, entry: _Entry, error: ApiError) -> None:
        metrics.STATUS_WRITES.labels("failed").inc()
        forbidden = error.status == _FORBIDDEN
        if forbidden and not self._told_forbidden:
            self._told_forbidden = True
            LOG.error(
                "this program may not write claim status: it needs patch on resourceclaims/status, and from Kubernetes "
                "1.36 on associated-node:patch on resourceclaims/driver for its driver name",
                extra=fields(driver=self._driver, error=error),
            )
        elif not forbidden:
            LOG.warning("status not written, trying on", extra=fields(claim=entry.facts.ref.uid, error=error))
        with self._changed:
            pause = error.retry_after or (_FORBIDDEN_PAUSE if forbidden else entry.pause)
            entry.pause = min(entry.pause * 2, _LONGEST_PAUSE)
            entry.seen = None
            entry.busy = False
            if not entry.dirty:
                entry.dirty = True
                entry.due = time.monotonic() + pause * random.uniform(0.6, 1.2)  # noqa: S311 - no secret
            self._gauge()
            self._changed.notify_all()
        if not entry.kept:
            try:
                self._store.put_status(entry.facts)
                entry.kept = True
            except Exception as failure:  # noqa: BLE001 - it is tried again in this life
                LOG.warning("status not kept in the journal", extra=fields(claim=entry.facts.ref.uid, error=failure))
