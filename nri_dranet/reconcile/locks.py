"""One lock a device: whoever moves a device or changes its record holds it."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class DeviceBusyError(Exception):
    """A device is being attached or given back by somebody else; ``device`` names it."""

    def __init__(self, device: str) -> None:
        super().__init__(f"device {device} is still being attached or given back")
        self.device = device


class DeviceLocks:
    """Locks by device name, taken in sorted order so that two holders of several never wait for each other.

    A hook that the runtime gave up on keeps its locks until its undo has ended; so the device is refused to everyone
    until then.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: dict[str, int] = {}

    @contextlib.contextmanager
    def hold(self, devices: Iterable[str], *, until: float) -> Iterator[None]:
        """Hold the locks of all ``devices``; a thread may take one again that it holds.

        Args:
            devices: device names.
            until: time of ``time.monotonic()`` after which it is given up.

        Raises:
            DeviceBusyError: a lock could not be had in time; none is held then.
        """
        me = threading.get_ident()
        wanted = sorted(set(devices))
        taken: list[str] = []
        try:
            for device in wanted:
                self._take(device, me, until, taken)
            yield
        finally:
            with self._changed:
                for device in taken:
                    del self._held[device]
                self._changed.notify_all()

    def _take(self, device: str, me: int, until: float, taken: list[str]) -> None:
        with self._changed:
            while device in self._held:
                if self._held[device] == me:
                    return
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    raise DeviceBusyError(device)
            self._held[device] = me
            taken.append(device)
