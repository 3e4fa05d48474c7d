"""BPF programs of the host that must outlive their place on an interface, so that they can be put back there.

A program ends with its last user. A move takes the filters of tc from an interface, and a claim may ask that the
others go too. So each is pinned in the BPF file system, where it survives this process; where there is none it is held
open, and lost with the process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nri_dranet import bpf
from nri_dranet.attach import queueing
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from nri_dranet.claims.plan import ClaimPlan, DevicePlan, HostState

LOG = logging.getLogger(__name__)

FOLDER: Final = "nri-dranet"


def programs_of(state: HostState | None) -> set[int]:
    """Give the IDs of the programs that a snapshot of the host needs to be put back."""
    if state is None:
        return set()
    own = {each.program_id for each in state.programs if not each.linked}
    return own | set(queueing.program_ids(state.traffic))


class KeptPrograms:
    """The programs that are kept, by ID. Thread-safe."""

    def __init__(self, root: str) -> None:
        """Keep programs below a BPF file system; the folder is made with the first."""
        self._folder = Path(root) / FOLDER
        self._lock = threading.Lock()
        self._open: dict[int, int] = {}
        self._empty = False

    def keep(self, plan: ClaimPlan) -> None:
        """Keep the programs that the devices of a plan have on the host. What cannot be kept is told in the log."""
        wanted = {program for device in plan.devices for program in programs_of(device.host)}
        if not wanted:
            return
        with self._lock:
            self._empty = False
            for program in sorted(wanted - self._open.keys()):
                try:
                    self._keep(program)
                except OSError as error:
                    LOG.warning("a BPF program of the host is not kept", extra=fields(program=program, error=error))

    def prune(self, devices: Callable[[], Iterable[DevicePlan]]) -> None:
        """Let go of all programs but those of devices, which are asked for once nobody else can keep one meanwhile."""
        with self._lock:
            if self._empty:
                return
            wanted = {program for device in devices() for program in programs_of(device.host)}
            for program in self._open.keys() - wanted:
                os.close(self._open.pop(program))
            pins = self._pins()
            for program, path in pins.items():
                if program not in wanted:
                    with contextlib.suppress(OSError):
                        path.unlink()
            self._empty = not (wanted or self._open)

    @contextlib.contextmanager
    def opened(self, programs: Iterable[int]) -> Iterator[dict[int, int]]:
        """Lend descriptors of kept programs by ID; those that are not kept are not there."""
        found: dict[int, int] = {}
        try:
            for program in programs:
                with contextlib.suppress(OSError):
                    found[program] = self._lend(program)
            yield found
        finally:
            for descriptor in found.values():
                os.close(descriptor)

    def close(self) -> None:
        """Close what is held open. Pins stay: pods run on, and so does what they will give back."""
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])

    # ---- inside

    def _keep(self, program: int) -> None:
        path = self._path(program)
        with contextlib.suppress(OSError):
            os.close(self._opened_pin(program))
            return
        descriptor = bpf.program(program)
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            # A pin that is no program of this ID is of another life.
            path.unlink(missing_ok=True)
            bpf.pin(descriptor, str(path))
        except OSError as error:
            LOG.warning(
                "a BPF program of the host is held open only, and lost if this process ends",
                extra=fields(program=program, error=error, path=path),
            )
            self._open[program] = descriptor
        else:
            os.close(descriptor)

    def _lend(self, program: int) -> int:
        with self._lock:
            if program in self._open:
                return os.dup(self._open[program])
        return self._opened_pin(program)

    def _opened_pin(self, program: int) -> int:
        descriptor = bpf.pinned(str(self._path(program)))
        try:
            if bpf.program_id(descriptor) != program:
                raise FileNotFoundError(str(self._path(program)))
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _path(self, program: int) -> Path:
        return self._folder / f"program-{program}"

    def _pins(self) -> dict[int, Path]:
        try:
            paths = list(self._folder.iterdir())
        except OSError:
            return {}
        names = {path: path.name.partition("program-")[2] for path in paths}
        return {int(number): path for path, number in names.items() if number.isdecimal()}
