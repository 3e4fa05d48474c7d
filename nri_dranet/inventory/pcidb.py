"""Names of vendors and devices from the system's PCI database, read when there is a device to name.

The file (``pci.ids``) has a line a vendor and, indented by a tab, one a device of that vendor::

    15b3  Mellanox Technologies
    <tab>1017  MT27800 Family [ConnectX-5]

It has 38,000 lines: only those of the vendors asked for are kept.
"""

from __future__ import annotations

import gzip
import logging
import os
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Iterable

LOG = logging.getLogger(__name__)

PLACES: Final = (
    "/usr/share/hwdata/pci.ids",
    "/usr/share/misc/pci.ids",
    "/usr/share/pci.ids",
    "/usr/share/hwdata/pci.ids.gz",
    "/usr/share/misc/pci.ids.gz",
)
VARIABLE: Final = "PCIDB_PATH"
"""The environment variable that names another file, as for the reference."""

_CLASSES: Final = b"C "
_LONGEST_LINE: Final = 512


class PciDatabase:
    """Vendor and device names. For one thread."""

    def __init__(self, places: Iterable[str] | None = None) -> None:
        """Use the first of some files that exists; by default that of ``PCIDB_PATH``, else the usual places."""
        named = os.environ.get(VARIABLE)
        self._places = tuple(places) if places is not None else ((named,) if named else PLACES)
        self._vendors: dict[int, str] = {}
        self._devices: dict[tuple[int, int], str] = {}
        self._asked: set[int] = set()

    def learn(self, vendors: Iterable[int]) -> None:
        """Read the names of vendors and all their devices, in one pass for all that are new."""
        wanted = {vendor for vendor in vendors if vendor >= 0} - self._asked
        if not wanted:
            return
        self._asked |= wanted
        for place in self._places:
            if not Path(place).is_file():
                continue
            try:
                with gzip.open(place, "rb") if place.endswith(".gz") else Path(place).open("rb") as file:
                    self._read(file, wanted)
            except (OSError, EOFError, zlib.error) as error:
                LOG.warning("the PCI database cannot be read", extra=fields(file=place, error=error))
                continue
            return

    def vendor(self, vendor: int) -> str:
        """Give a vendor's name, empty if it is not known."""
        return self._vendors.get(vendor, "")

    def device(self, vendor: int, device: int) -> str:
        """Give a device's name, empty if it is not known."""
        return self._devices.get((vendor, device), "")

    def _read(self, file: IO[bytes] | gzip.GzipFile, wanted: set[int]) -> None:
        current = -1
        while line := file.readline(_LONGEST_LINE):
            if line.startswith(_CLASSES):
                return
            if line.startswith((b"#", b"\n", b"\t\t")):
                continue
            inside = line.startswith(b"\t")
            if inside and current < 0:
                continue
            number, name = _entry(line)
            if not inside:
                current = number if number in wanted else -1
                if current >= 0:
                    self._vendors[current] = name
            elif number >= 0:
                self._devices[current, number] = name


def _entry(line: bytes) -> tuple[int, str]:
    word, _, name = line.strip().partition(b"  ")
    try:
        return int(word, 16), name.strip().decode("utf-8", "replace")
    except ValueError:
        return -1, ""
