"""One claim of a pod at a time: kubelet prepares a pod's claims at once, and each is checked against the others."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Turns:
    """A lock for each name that somebody holds or waits for. Thread-safe."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()

    @contextlib.contextmanager
    def hold(self, names: Iterable[str]) -> Iterator[None]:
        """Hold the locks of all names; always in the same order, so that no two wait for each other."""
        with self._guard:
            locks = [self._locks.setdefault(name, threading.Lock()) for name in sorted(set(names))]
        with contextlib.ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            yield
