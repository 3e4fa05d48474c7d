"""What a claim's ``status.devices`` shall hold of this driver, compared with what it holds. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nri_dranet.status.conditions import OWN_TYPES, device_status, same

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from nri_dranet.claims.facts import ClaimFacts

Key = tuple[str, str, str, str | None]


def key_of(entry: Mapping[str, Any]) -> Key:
    """Return what tells an entry apart: driver, pool, device, share."""
    return (
        str(entry.get("driver", "")),
        str(entry.get("pool", "")),
        str(entry.get("device", "")),
        entry.get("shareID") or None,
    )


@dataclass(frozen=True, slots=True)
class Desired:
    """The entries to write.

    Attributes:
        entries: One for each device that is allocated and known.
        differs: Whether the claim says something else now.
    """

    entries: tuple[Mapping[str, Any], ...]
    differs: bool

    def altered(self, claim: Mapping[str, Any]) -> bool:
        """Tell whether a claim does not say any more what was written, as far as its devices are still allocated."""
        allocated = allocated_keys(claim)
        present = present_entries(claim)
        return any(key_of(entry) in allocated and not same(entry, present.get(key_of(entry))) for entry in self.entries)


def desired_status(
    facts: ClaimFacts, claim: Mapping[str, Any], driver: str, now: datetime, *, written: Desired | None = None
) -> Desired:
    """Return what the claim's status shall say.

    Devices that are not allocated any more are left out: the API server refuses entries for them.

    Args:
        facts: what is known.
        claim: the claim as it is in the API.
        driver: the driver's name.
        now: the time, with a zone.
        written: what was written last; its times count where somebody has altered the entry since.
    """
    own = {key_of(entry): entry for entry in written.entries} if written else {}
    allocated = allocated_keys(claim)
    present = present_entries(claim)
    entries: dict[Key, Mapping[str, Any]] = {}
    differs = False
    for device in facts.devices:
        key: Key = (driver, device.key.pool, device.key.device, device.key.share_id)
        if key not in allocated or key in entries:
            continue
        entries[key] = device_status(device, driver, _previous(present.get(key), own.get(key)), now)
        differs = differs or not same(entries[key], present.get(key))
    return Desired(tuple(entries.values()), differs)


def _previous(present: Mapping[str, Any] | None, own: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the entry as it would be, had nobody altered what is ours in it."""
    if own is None:
        return present
    foreign = [item for item in (present or {}).get("conditions") or [] if item.get("type") not in OWN_TYPES]
    return {**own, "conditions": [*own["conditions"], *foreign]}


def allocated_keys(claim: Mapping[str, Any]) -> set[Key]:
    """Return the keys of the devices that a claim has allocated."""
    allocation = (claim.get("status") or {}).get("allocation") or {}
    return {key_of(result) for result in (allocation.get("devices") or {}).get("results") or []}


def present_entries(claim: Mapping[str, Any]) -> dict[Key, Mapping[str, Any]]:
    """Return the entries of a claim's status by key."""
    return {key_of(entry): entry for entry in (claim.get("status") or {}).get("devices") or []}


def merged(claim: Mapping[str, Any], desired: Desired) -> list[dict[str, Any]]:
    """Return the whole ``status.devices`` with our entries put in; others' entries and conditions stay as they are."""
    ours = {key_of(entry): entry for entry in desired.entries}
    whole: list[dict[str, Any]] = []
    for entry in (claim.get("status") or {}).get("devices") or []:
        mine = ours.pop(key_of(entry), None)
        whole.append(dict(entry) if mine is None else _over(entry, mine))
    whole += [dict(entry) for entry in ours.values()]
    return whole


def _over(present: Mapping[str, Any], mine: Mapping[str, Any]) -> dict[str, Any]:
    foreign = [item for item in present.get("conditions") or [] if item.get("type") not in OWN_TYPES]
    kept = {name: value for name, value in present.items() if name not in ("conditions", "networkData")}
    return {**kept, **mine, "conditions": [*mine["conditions"], *foreign]}
