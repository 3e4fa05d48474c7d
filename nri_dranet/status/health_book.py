"""The health of all devices that claims of this node have, kept up to date fact by fact."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from nri_dranet.claims.facts import Phase
from nri_dranet.status.health import Health, health, worst

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from nri_dranet.claims.facts import ClaimFacts

DeviceName = tuple[str, str]
"""Pool and device."""


class HealthBook:
    """Remembers what each claim says of its devices. Thread-safe and quick: hooks write into it."""

    def __init__(self, tell: Callable[[Mapping[DeviceName, Health]], None]) -> None:
        """Begin with an empty book.

        Args:
            tell: told the health of all devices after each change. It must not block.
        """
        self._tell = tell
        self._lock = threading.Lock()
        self._claims: dict[str, dict[DeviceName, Health]] = {}

    def note(self, *claims: ClaimFacts) -> None:
        """Take in what is known of claims; without any, only tell."""
        with self._lock:
            for claim in claims:
                self._claims[claim.ref.uid] = {
                    (facts.key.pool, facts.key.device): health(facts)
                    for facts in claim.devices
                    # What a pod does to its child of a shared device is no ailment of the device.
                    if facts.key.share_id is None or facts.phase is not Phase.LOST
                }
            self._publish()

    def keep(self, held: Callable[[], Iterable[str]]) -> None:
        """Forget all claims but those that are held now.

        Args:
            held: gives their UIDs. Asked while nothing is noted, so that a claim that comes just now is not lost.
        """
        with self._lock:
            gone = self._claims.keys() - set(held())
            for uid in gone:
                del self._claims[uid]
            if gone:
                self._publish()

    def _publish(self) -> None:
        found: dict[DeviceName, list[Health]] = {}
        for devices in self._claims.values():
            for name, each in devices.items():
                found.setdefault(name, []).append(each)
        self._tell({name: worst(healths) for name, healths in found.items()})
