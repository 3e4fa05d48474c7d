"""Which device stands in which ResourceSlice. Pure.

Rules of ``resource.k8s.io/v1``: at most 128 devices in a slice (64 where one has a taint or another gated feature);
all slices of a pool carry the same generation and the same count. A change that one write makes whole needs no new
generation: a consumer never sees half of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

MAX_DEVICES: Final = 128
MAX_DEVICES_GATED: Final = 64

Entry = Mapping[str, Any]
"""A device as in ``spec.devices``."""

_GATED_FIELDS: Final = frozenset({"taints", "consumesCounters"})
_LISTS: Final = frozenset({"ints", "bools", "strings", "versions"})


@dataclass(frozen=True, slots=True)
class Encoded:
    """A device, and its JSON: compact and sorted, so that equal devices have equal bytes. ``gated``: 64 to a slice."""

    name: str
    entry: Entry
    data: bytes
    gated: bool

    @property
    def digest(self) -> int:
        """A number that tells other contents; of this process only."""
        return hash(self.data)


@dataclass(frozen=True, slots=True)
class Slice:
    """A slice as it should be: its place in the pool and its devices, by name."""

    number: int
    devices: tuple[Encoded, ...]

    @property
    def digests(self) -> dict[str, int]:
        """The devices by name, in a form to compare."""
        return {device.name: device.digest for device in self.devices}


def encode(entry: Entry) -> Encoded:
    """Encode a device; what the server adds by itself (``timeAdded`` of a taint) is left out."""
    taints = entry.get("taints")
    if taints:
        entry = {**entry, "taints": [{k: v for k, v in taint.items() if k != "timeAdded"} for taint in taints]}
    attributes = entry.get("attributes") or {}
    gated = not _GATED_FIELDS.isdisjoint(entry) or any(not _LISTS.isdisjoint(value) for value in attributes.values())
    data = json.dumps(entry, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
    return Encoded(str(entry["name"]), entry, data, gated)


@dataclass(slots=True)
class Encoder:
    """Keeps the JSON of devices: encoding a thousand would hold the GIL for milliseconds at each change of one."""

    _known: dict[str, Encoded] = field(default_factory=dict)

    def encode(self, entries: Iterable[Entry]) -> Iterable[Encoded]:
        """Encode devices; those that are as they were cost a comparison. Forgets those that are not given."""
        fresh: dict[str, Encoded] = {}
        for entry in entries:
            name = str(entry["name"])
            known = self._known.get(name)
            fresh[name] = known if known is not None and known.entry == entry else encode(entry)
            yield fresh[name]
        self._known = fresh


@dataclass(slots=True)
class Layout:
    """Keeps each device in the slice where it was; new ones come where the fewest slices change."""

    limit: int = MAX_DEVICES
    _place: dict[str, int] = field(default_factory=dict)

    def adopt(self, number: int, names: Iterable[str]) -> None:
        """Learn from a slice of an earlier life where its devices are."""
        for name in names:
            self._place.setdefault(name, number)

    def lay_out(self, devices: Sequence[Encoded]) -> list[Slice]:
        """Return the slices for these devices, numbered from 0 without gaps; at least one, maybe empty."""
        limit = self.limit
        if any(device.gated for device in devices):
            limit = min(limit, MAX_DEVICES_GATED)
        wanted = {device.name: device for device in devices}
        touched = {place for name, place in self._place.items() if name not in wanted}
        self._place = {name: place for name, place in self._place.items() if name in wanted}
        filled: dict[int, int] = dict.fromkeys(touched, 0)
        for name, place in sorted(self._place.items()):
            if filled.get(place, 0) >= limit:
                del self._place[name]
            else:
                filled[place] = filled.get(place, 0) + 1
        self._find_places(sorted(wanted.keys() - self._place.keys()), filled, touched, limit)
        self._close_gaps()
        count = max(self._place.values(), default=0) + 1
        slices: list[list[Encoded]] = [[] for _ in range(count)]
        for name in sorted(wanted):
            slices[self._place[name]].append(wanted[name])
        return [Slice(number, tuple(entries)) for number, entries in enumerate(slices)]

    def _find_places(self, names: Sequence[str], filled: Mapping[int, int], touched: set[int], limit: int) -> None:
        """Give new devices a place: in slices that change anyway, then in the fullest that takes all, then in any."""
        room = {place: limit - used for place, used in filled.items()}

        def rank(place: int) -> tuple[bool, bool, int, int]:
            fits = room[place] >= len(names)
            return place not in touched, not fits, room[place] if fits else -room[place], place

        free = iter([place for place in sorted(room, key=rank) for _ in range(room[place])])
        opened = max(filled, default=-1) + 1
        for number, name in enumerate(names):
            place = next(free, None)
            if place is None:
                rest = names[number:]
                self._place |= {other: opened + index // limit for index, other in enumerate(rest)}
                return
            self._place[name] = place

    def _close_gaps(self) -> None:
        used = sorted(set(self._place.values()))
        if used and used[-1] != len(used) - 1:
            renumbered = {old: new for new, old in enumerate(used)}
            self._place = {name: renumbered[place] for name, place in self._place.items()}
