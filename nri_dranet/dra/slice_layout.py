"""Which device stands in which ResourceSlice, and what has to be written. Pure.

Rules of ``resource.k8s.io/v1``: at most 128 devices in a slice (64 where one has a taint or another gated feature);
all slices of a pool carry the same generation and the same count. A change that one write makes whole needs no new
generation: a consumer never sees half of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

MAX_DEVICES: Final = 128
MAX_DEVICES_GATED: Final = 64

Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Slice:
    """A slice as it should be: its place in the pool and its devices, by name."""

    number: int
    devices: tuple[Entry, ...]


@dataclass(slots=True)
class Layout:
    """Keeps each device in the slice where it was; new ones fill the first gap."""

    limit: int = MAX_DEVICES
    _place: dict[str, int] = field(default_factory=dict)

    def adopt(self, number: int, devices: Sequence[Entry]) -> None:
        """Learn from a slice of an earlier life where its devices are."""
        for device in devices:
            self._place.setdefault(str(device.get("name")), number)

    def lay_out(self, devices: Sequence[Entry]) -> list[Slice]:
        """Return the slices for these devices, numbered from 0 without gaps; at least one, maybe empty."""
        wanted = {str(device["name"]): device for device in devices}
        self._place = {name: place for name, place in self._place.items() if name in wanted}
        filled: dict[int, int] = {}
        for name, place in sorted(self._place.items()):
            if filled.get(place, 0) >= self.limit:
                del self._place[name]
            else:
                filled[place] = filled.get(place, 0) + 1
        gap = 0
        for name in sorted(wanted.keys() - self._place.keys()):
            while filled.get(gap, 0) >= self.limit:
                gap += 1
            self._place[name] = gap
            filled[gap] = filled.get(gap, 0) + 1
        self._close_gaps(filled)
        count = max(self._place.values(), default=0) + 1
        slices: list[list[Entry]] = [[] for _ in range(count)]
        for name in sorted(wanted):
            slices[self._place[name]].append(wanted[name])
        return [Slice(number, tuple(entries)) for number, entries in enumerate(slices)]

    def _close_gaps(self, filled: Mapping[int, int]) -> None:
        used = sorted(place for place, count in filled.items() if count)
        renumbered = {old: new for new, old in enumerate(used)}
        if any(old != new for old, new in renumbered.items()):
            self._place = {name: renumbered[place] for name, place in self._place.items()}
