"""How many devices have which conditions: the metric ``nri_dranet_conditions``.

Counted are the statuses that were written of claims that this node holds. Types, states and reasons are words of short
lists, so that there are few series whatever the number of pods.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from nri_dranet.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Kind = tuple[str, str, str]
"""Type, status and reason of a condition."""


class Census:
    """Counts conditions claim by claim. Thread-safe."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._lock = threading.Lock()
        self._claims: dict[str, Counter[Kind]] = {}
        self._total: Counter[Kind] = Counter()
        metrics.CONDITIONS.clear()

    def note(self, uid: str, entries: Iterable[Mapping[str, Any]]) -> None:
        """Take the entries of ``status.devices`` that were written for a claim, in the place of former ones."""
        found = Counter(
            (str(item["type"]), str(item["status"]), str(item["reason"]))
            for entry in entries
            for item in entry["conditions"]
        )
        with self._lock:
            before = self._claims.pop(uid, Counter())
            if found:
                self._claims[uid] = found
            if found == before:
                return
            self._total.update(found)
            self._total.subtract(before)
            for kind in before | found:
                if self._total[kind]:
                    metrics.CONDITIONS.labels(*kind).set(self._total[kind])
                else:
                    del self._total[kind]
                    metrics.CONDITIONS.remove(*kind)

    def forget(self, uid: str) -> None:
        """Count a claim no more."""
        self.note(uid, ())
