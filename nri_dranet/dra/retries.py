"""Claims to look at again: later and later while nothing changes, soon when something does."""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable

    from nri_dranet.claims.model import ClaimRef

LOG = logging.getLogger(__name__)

FIRST_PAUSE: Final = 1.0
"""Seconds to the first new try, and at least between two tries of a claim."""

LONGEST_PAUSE: Final = 60.0

THREAD: Final = "next-pods"


@dataclass(slots=True)
class _Waiting:
    ref: ClaimRef
    pause: float
    earliest: float
    due: float
    busy: bool = False
    woken: bool = False


class Retries:
    """Calls ``attempt`` for each claim that waits, one after the other, on a thread of its own. Thread-safe."""

    def __init__(
        self, attempt: Callable[[ClaimRef], None], *, first: float = FIRST_PAUSE, longest: float = LONGEST_PAUSE
    ) -> None:
        """Prepare to try.

        Args:
            attempt: tries; it ends with ``put`` where it failed once more, else with ``drop``.
            first: seconds to the first try, and at least between two.
            longest: seconds between two tries at most.
        """
        self._attempt = attempt
        self._first = first
        self._longest = longest
        self._waiting: dict[str, _Waiting] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=THREAD, daemon=True)

    def start(self) -> None:
        """Begin to try."""
        self._thread.start()

    def stop(self) -> None:
        """End; a try that is under way ends first."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def put(self, ref: ClaimRef) -> None:
        """Look at a claim again after a pause, twice as long as the last one."""
        with self._changed:
            known = self._waiting.get(ref.uid)
            pause = min(known.pause * 2, self._longest) if known else self._first
            now = time.monotonic()
            wait = self._first if known and known.woken else pause
            due = now + wait * random.uniform(1.0, 1.2)  # noqa: S311 - no secret
            self._waiting[ref.uid] = _Waiting(ref, pause, now + self._first, due)
            self._changed.notify_all()

    def drop(self, uid: str) -> bool:
        """Look at a claim no more; tell whether it waited."""
        with self._changed:
            return self._waiting.pop(uid, None) is not None

    def wake(self) -> None:
        """Something has changed that may help: look at all that wait soon. Never blocks."""
        with self._changed:
            for each in self._waiting.values():
                each.woken = each.busy
                if not each.busy:
                    each.due = min(each.due, each.earliest)
            self._changed.notify_all()

    def _run(self) -> None:
        while (ref := self._next()) is not None:
            try:
                self._attempt(ref)
            except Exception:  # the thread must live: the claim is looked at again
                LOG.exception("a claim cannot be looked at again now", extra=fields(claim=ref.uid))
                self.put(ref)

    def _next(self) -> ClaimRef | None:
        """Wait for the claim that is due next; None: it is time to end.

        It stays in its place, so that ``put`` knows how long it waited.
        """
        with self._changed:
            while not self._stopping:
                idle = [each for each in self._waiting.values() if not each.busy]
                first = min(idle, key=lambda each: each.due, default=None)
                now = time.monotonic()
                if first is not None and first.due <= now:
                    first.busy = True
                    return first.ref
                self._changed.wait(None if first is None else first.due - now)
            return None
