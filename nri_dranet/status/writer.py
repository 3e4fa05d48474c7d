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
from nri_dranet.status.census import Census
from nri_dranet.status.desired import Desired, desired_status, key_of, present_entries
from nri_dranet.status.news import Failing, news, pods_of
from nri_dranet.status.wire import ClaimGoneError, StatusWire, UnwritableError, missing_permission
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from nri_dranet.claims.model import ClaimRef, PodRef

LOG = logging.getLogger(__name__)

WORKERS: Final = 4

WRITES_A_SECOND: Final = 50
"""How many claims are taken up at most, so that a node with many claims does not storm the API server."""

PREPARED_DELAY: Final = 2.0
"""A claim that is only prepared is mostly attached a moment later: that one write is enough."""

UNKNOWN_DELAY: Final = 10.0
"""What could not be looked at for a moment is mostly as it was: that is not written before this time has passed."""

_CONFLICT: Final = 409
_INTERNAL: Final = 500
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 30.0
_REFUSED_PAUSE: Final = 60.0
_AWAY_PAUSE: Final = 2.0
_RETURN_SPREAD: Final = 1.0
_REPAIR_PAUSE: Final = 1.0
_MAX_REPAIR_PAUSE: Final = 300.0
_LOOK_FIRST_SECONDS: Final = 3.0
_DRAIN_SECONDS: Final = 2.0
_PASSING: Final = frozenset({Phase.PREPARED, Phase.ATTACHED, Phase.UNKNOWN})


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
    """What is known of a claim's status.

    Attributes:
        facts: What it shall say.
        since: When the oldest fact that is not written came (monotonic).
        due: When to write (monotonic).
        dirty: Whether there is something to write.
        busy: Whether a write is under way.
        pause: Seconds to wait after the next failure.
        kept: Whether the facts are in the journal.
        row: Whether the journal has facts of the claim, these or older ones.
        seen: The claim as it was seen last.
        watched: Whether ``seen`` is kept up to date by a watch.
        held: Whether this node holds the claim, as far as was told.
        desired: What was written last.
        repair_pause: Seconds to wait before the next repair.
        repaired: When the last repair was (monotonic).
        blind_since: Since when the devices cannot be looked at (monotonic); None: they can.
        told: The last failure that was logged.
        failing: Which of its conditions were False of a failure and have not been True since.
    """

    facts: ClaimFacts
    since: float
    due: float
    dirty: bool = True
    busy: bool = False
    pause: float = _FIRST_PAUSE
    kept: bool = False
    row: bool = False
    seen: Mapping[str, Any] | None = None
    watched: bool = False
    held: bool = True
    desired: Desired | None = field(default=None, repr=False)
    repair_pause: float = _REPAIR_PAUSE
    repaired: float = float("-inf")
    blind_since: float | None = None
    told: tuple[int, str] | None = None
    failing: Failing = field(default_factory=dict)


class StatusWriter:
    """Writes statuses by a few threads of its own. Thread-safe."""

    def __init__(
        self,
        wire: StatusWire,
        driver: str,
        store: StatusStore,
        *,
        event: Callable[[PodRef | ClaimRef, str, str, bool], None],
        workers: int = WORKERS,
        prepared_delay: float = PREPARED_DELAY,
    ) -> None:
        """Prepare to write.

        Args:
            wire: how entries get to the API server.
            driver: the driver's name.
            store: keeps what waits to be written.
            event: tells what users should see: pod or claim, reason, message, whether it is a warning.
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
        self._census = Census()
        # Keeps "what is in the journal" and "what is the newest" together. Taken before ``_changed``.
        self._keeping = threading.Lock()
        self._stopping = False
        self._drained_by = float("inf")
        # The permissions that are missing, as they were logged.
        self._told_missing: set[str] = set()
        # While the API server is away one write at a time finds out whether it is back.
        self._away = False
        self._away_pause = _FIRST_PAUSE
        self._probe_at = 0.0
        self._next_at = 0.0
        self._threads = [threading.Thread(target=self._work, name=f"status-{i}", daemon=True) for i in range(workers)]

    def start(self) -> None:
        """Take up what an earlier life has left, and begin to write.

        Of a device that was in its pod then, it is looked at first what has become of it: such facts wait a moment for
        newer ones.
        """
        for facts in self._store.pending_statuses():
            passing = all(device.phase in _PASSING for device in facts.devices)
            with self._keeping:
                entry = self._enter(facts, kept=True, delay=_LOOK_FIRST_SECONDS if passing else 0.0, only_if_new=True)
                if entry.facts is not facts:
                    # Newer facts came before the start; the row in the journal is older.
                    entry.row = True
                    self._keep(entry)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End: what is due is written, for two seconds at most; the rest is kept in the journal."""
        with self._changed:
            self._stopping = True
            self._drained_by = time.monotonic() + _DRAIN_SECONDS
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout=_DRAIN_SECONDS + 1)
        with self._keeping:
            with self._changed:
                waiting = [entry for entry in self._entries.values() if entry.dirty or entry.busy]
            for entry in waiting:
                self._keep(entry)

    def submit(self, facts: ClaimFacts) -> None:
        """Take what is known of a claim now. Never waits for the API server."""
        last_word = any(device.phase not in _PASSING for device in facts.devices)
        waits = all(device.phase is Phase.PREPARED for device in facts.devices)
        with self._keeping:
            entry = self._enter(facts, kept=False, delay=self._prepared_delay if waits else 0.0)
            # What is in the journal must never be older than what was told: a new life would say it again.
            if last_word or self._away or self._stopping or entry.row:
                self._keep(entry)

    def observed(self, ref: ClaimRef, claim: Mapping[str, Any] | None) -> None:
        """Take what the watch shows of a claim: entries that somebody altered are written again, ever slower."""
        with self._changed:
            entry = self._entries.get(ref.uid)
            if entry is None:
                return
            entry.watched = True
            if claim is None or _version(claim) >= _version(entry.seen):
                entry.seen = claim
            self._repair(entry)

    def forget(self, held: Iterable[str]) -> None:
        """Drop what is written of claims that are not in ``held`` (UIDs): they are not repaired any more."""
        keep = set(held)
        with self._changed:
            for uid, entry in list(self._entries.items()):
                entry.held = uid in keep
                if not entry.held:
                    entry.watched, entry.seen = False, None
                    self._census.forget(uid)
                    if not entry.dirty and not entry.busy:
                        del self._entries[uid]

    @property
    def pending(self) -> int:
        """How many claims wait to be written, or are being written."""
        with self._changed:
            return sum(entry.dirty or entry.busy for entry in self._entries.values())

    # ---- what waits

    def _enter(self, facts: ClaimFacts, *, kept: bool, delay: float, only_if_new: bool = False) -> _Entry:
        now = time.monotonic()
        with self._changed:
            entry = self._entries.get(facts.ref.uid)
            if entry is None:
                entry = self._entries[facts.ref.uid] = _Entry(facts, now, now + delay, kept=kept, row=kept)
            elif not only_if_new:
                entry.since = entry.since if entry.dirty else now
                entry.facts, entry.due, entry.dirty, entry.kept = facts, now + delay, True, False
                entry.pause, entry.told = _FIRST_PAUSE, None
            if entry.facts is facts:
                entry.blind_since = (entry.blind_since or now) if _is_blind(facts) else None
                if entry.blind_since is not None:
                    entry.due = entry.blind_since + UNKNOWN_DELAY
            self._gauge()
            self._changed.notify_all()
            return entry

    def _keep(self, entry: _Entry) -> None:
        """Put facts into the journal; ``_keeping`` is held."""
        if entry.kept:
            return
        try:
            self._store.put_status(entry.facts)
            entry.kept = entry.row = True
        except Exception as error:  # noqa: BLE001 - the write itself must be tried whatever the journal says
            LOG.warning("status not kept in the journal", extra=fields(claim=entry.facts.ref.uid, error=error))

    def _gauge(self) -> None:
        metrics.STATUS_PENDING.set(self.pending)

    def _repair(self, entry: _Entry) -> None:
        """Write again what somebody altered, soon at first, ever later while it goes on; ``_changed`` is held."""
        if entry.seen is None or entry.dirty or entry.busy or entry.desired is None:
            return
        if not entry.desired.altered(entry.seen):
            return
        now = time.monotonic()
        if now - entry.repaired > 2 * entry.repair_pause:
            entry.repair_pause = _REPAIR_PAUSE
        entry.dirty, entry.since, entry.due = True, now, now + entry.repair_pause
        entry.repaired = entry.due
        entry.repair_pause = min(entry.repair_pause * 2, _MAX_REPAIR_PAUSE)
        LOG.info("status was altered by another and is written again", extra=fields(claim=entry.facts.ref.uid))
        self._changed.notify_all()

    # ---- the workers

    def _work(self) -> None:
        while True:
            entry = self._take()
            if entry is None:
                return
            self._write(entry)

    def _take(self) -> _Entry | None:
        """Wait for the next entry that is due, and mark it busy; None: it is time to end."""
        with self._changed:
            while True:
                now = time.monotonic()
                waiting = [
                    entry
                    for entry in self._entries.values()
                    if entry.dirty and not entry.busy and not (self._stopping and entry.blind_since and entry.due > now)
                ]
                first = min(waiting, key=lambda entry: entry.due, default=None)
                if self._stopping and (first is None or self._away or now > self._drained_by):
                    return None
                at = self._when(first)
                if first is not None and at <= now:
                    first.busy, first.dirty = True, False
                    self._next_at = max(now, self._next_at) + 1 / WRITES_A_SECOND
                    return first
                self._changed.wait(None if at == float("inf") else at - now)

    def _when(self, first: _Entry | None) -> float:
        """Return when an entry may be taken (monotonic); infinity: not before something changes."""
        if first is None:
            return float("inf")
        if self._stopping:
            return 0.0 if first.pause == _FIRST_PAUSE else min(first.due, self._drained_by)
        if not self._away:
            return max(first.due, self._next_at)
        if any(entry.busy for entry in self._entries.values()):
            return float("inf")
        return max(first.due, self._probe_at)

    def _write(self, entry: _Entry) -> None:
        facts, since = entry.facts, entry.since
        try:
            desired = self._write_once(entry, facts)
        except ClaimGoneError:
            self._settled(entry, None, gone=True)
        except UnwritableError as error:
            metrics.STATUS_WRITES.labels("refused").inc()
            LOG.error("a claim's status cannot be written", extra=fields(claim=facts.ref.uid, error=error))  # noqa: TRY400 - the text says all
            self._event(facts.ref, "StatusNotWritable", str(error), True)
            self._settled(entry, None)
        except ApiError as error:
            self._again(entry, error)
        except Exception as error:
            # The worker must live, and the status must not be lost: it is tried again like any failure of the server.
            LOG.exception("a status write failed unexpectedly", extra=fields(claim=facts.ref.uid))
            self._again(entry, ApiError(_INTERNAL, "InternalError", str(error)))
        else:
            metrics.STATUS_LAG.observe(time.monotonic() - since)
            self._settled(entry, desired)

    def _write_once(self, entry: _Entry, facts: ClaimFacts) -> Desired:
        # Without a watch nobody tells that what was seen has become old.
        claim = (entry.seen if entry.watched else None) or self._wire.read(facts.ref)
        desired = desired_status(facts, claim, self._driver, datetime.now(UTC), written=entry.desired)
        if not desired.differs:
            metrics.STATUS_WRITES.labels("unchanged").inc()
            return desired
        answer = self._wire.write(facts.ref, desired, claim)
        with self._changed:
            if _version(answer) >= _version(entry.seen):
                entry.seen = answer
        self._told_missing.clear()
        metrics.STATUS_WRITES.labels("written").inc()
        self._announce(entry, facts, claim, desired)
        return desired

    def _announce(self, entry: _Entry, facts: ClaimFacts, claim: Mapping[str, Any], desired: Desired) -> None:
        """Tell the owners of claim and pods what the new status has of news."""
        written = entry.desired.entries if entry.desired else ()
        before = {**present_entries(claim), **{key_of(each): each for each in written}}
        subjects: list[PodRef | ClaimRef] = [facts.ref, *pods_of(facts, claim)]
        for each in news(facts, before, desired.entries, entry.failing):
            for subject in subjects:
                self._event(subject, each.reason, each.message, each.warning)

    def _settled(self, entry: _Entry, desired: Desired | None, *, gone: bool = False) -> None:
        with self._keeping:
            with self._changed:
                entry.busy = False
                entry.desired = desired
                newest = not entry.dirty
                if newest:
                    entry.pause, entry.told = _FIRST_PAUSE, None
                if desired is not None and entry.held:
                    self._census.note(entry.facts.ref.uid, desired.entries)
                elif gone:
                    self._census.forget(entry.facts.ref.uid)
                if newest and (gone or not entry.held):
                    self._entries.pop(entry.facts.ref.uid, None)
                self._repair(entry)
                self._server_answers()
                self._gauge()
                self._changed.notify_all()
            if newest and entry.row:
                try:
                    self._store.status_written(entry.facts.ref.uid)
                    entry.kept = entry.row = False
                except Exception as error:  # noqa: BLE001 - it is written again at the next start, changing nothing
                    uid = entry.facts.ref.uid
                    LOG.warning("a written status stays in the journal", extra=fields(claim=uid, error=error))

    def _again(self, entry: _Entry, error: ApiError) -> None:
        """Take a failure: the entry waits for the next try."""
        metrics.STATUS_WRITES.labels("failed").inc()
        self._tell(entry, error)
        with self._keeping:
            with self._changed:
                entry.busy = False
                entry.seen = None
                now = time.monotonic()
                if error.unanswered:
                    self._server_is_away(now, error)
                else:
                    self._server_answers()
                    slow = bool(missing_permission(error)) or not (error.retriable or error.status == _CONFLICT)
                    pause = min(error.retry_after or entry.pause, _REFUSED_PAUSE)
                    entry.pause = min(entry.pause * 2, _REFUSED_PAUSE if slow else _LONGEST_PAUSE)
                    if not entry.dirty:
                        entry.due = now + pause * random.uniform(1.0, 1.5)  # noqa: S311 - no secret
                entry.dirty = True
                waiting = [each for each in self._entries.values() if each.dirty] if self._away else [entry]
                self._gauge()
                self._changed.notify_all()
            for each in waiting:
                self._keep(each)

    def _server_is_away(self, now: float, error: ApiError) -> None:
        """Note that the server gave no answer; ``_changed`` is held."""
        if not self._away:
            told = fields(claims=self.pending, error=error)
            LOG.warning("the API server does not answer, statuses wait", extra=told)
        self._away = True
        self._probe_at = now + self._away_pause * random.uniform(0.6, 1.2)  # noqa: S311 - no secret
        self._away_pause = min(self._away_pause * 2, _AWAY_PAUSE)

    def _server_answers(self) -> None:
        """Note that the server answered; what waits is spread over a moment; ``_changed`` is held."""
        if not self._away:
            return
        self._away, self._away_pause = False, _FIRST_PAUSE
        now = time.monotonic()
        waiting = [entry for entry in self._entries.values() if entry.dirty]
        LOG.info("the API server answers again", extra=fields(claims=len(waiting)))
        for entry in waiting:
            entry.due = max(entry.due, now + random.uniform(0, _RETURN_SPREAD))  # noqa: S311 - no secret

    def _tell(self, entry: _Entry, error: ApiError) -> None:
        """Log a failure once, until another one comes."""
        if error.unanswered or entry.told == (error.status, error.reason):
            return
        missing = missing_permission(error)
        if not missing:
            entry.told = (error.status, error.reason)
            # A claim that changes under our hands is no trouble: it is read and tried again.
            usual = error.status == _CONFLICT or "must be an allocated device" in error.message
            level = logging.INFO if usual else logging.WARNING
            LOG.log(level, "status not written, trying on", extra=fields(claim=entry.facts.ref.uid, error=error))
        elif entry.pause > _FIRST_PAUSE:
            # Not at the first refusal: a server that has just started refuses everybody for a moment.
            entry.told = (error.status, error.reason)
            if missing not in self._told_missing:
                self._told_missing.add(missing)
                LOG.error(missing, extra=fields(driver=self._driver, error=error))


def _is_blind(facts: ClaimFacts) -> bool:
    """Tell whether nothing is known of a claim's devices because looking at them failed."""
    return bool(facts.devices) and all(device.phase is Phase.UNKNOWN for device in facts.devices)


def _version(claim: Mapping[str, Any] | None) -> int:
    """Return the version of a claim; 0 where there is none. They grow (Kubernetes, KEP-5504)."""
    text = str(((claim or {}).get("metadata") or {}).get("resourceVersion") or "")
    return int(text) if text.isdecimal() else 0
