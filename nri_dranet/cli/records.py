"""The claims that the daemon on this node keeps, for commands that look on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nri_dranet.claims.record import ClaimRecord

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Records:
    """Claims that were read from a journal, once."""

    found: tuple[ClaimRecord, ...] = ()

    def records(self) -> tuple[ClaimRecord, ...]:
        """Return all claims."""
        return self.found

    def of_device(self, device: str) -> tuple[ClaimRecord, ...]:
        """Return the claims that have a device."""
        return tuple(one for one in self.found if any(plan.key.device == device for plan in one.plan.devices))


def read(journal: Path, notes: list[str], unknown: str = "devices in pods") -> Records:
    """Read the claims; what cannot be read is added to ``notes``, with ``unknown`` for what is not known then."""
    from nri_dranet.store.database import JournalError  # noqa: PLC0415 - the help text needs none of it
    from nri_dranet.store.reading import read_records  # noqa: PLC0415 - the same

    try:
        found, unreadable = read_records(journal, _BOOT_ID.read_text(encoding="ascii").strip())
    except JournalError as error:
        notes.append(f"{error}: {unknown} are not known")
        return Records()
    if unreadable:
        notes.append(f"{unreadable} claims of the journal cannot be read: their devices are not known")
    return Records(found)
