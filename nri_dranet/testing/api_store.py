"""The objects, their versions, and what changed since: the part of etcd and its watch cache."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.testing.api_apply import Managers
from nri_dranet.testing.api_errors import StatusError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nri_dranet.testing.api_schema import Kind

_HISTORY: Final = 4096

Key = tuple[str, str]
"""Namespace, empty for what has none, and name."""

Selects = "Callable[[dict[str, Any]], bool]"


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as it is; never changed, only replaced.

    Attributes:
        object: The object without managedFields.
        managers: Who owns which of its fields.
        shown: The object with managedFields, as readers get it.
    """

    object: dict[str, Any]
    managers: Managers = field(default_factory=Managers)
    shown: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """One change: the object before and after; None where it does not exist."""

    version: int
    kind: Kind
    before: dict[str, Any] | None
    after: dict[str, Any] | None

    def seen_by(self, selects: Callable[[dict[str, Any]], bool]) -> tuple[str, dict[str, Any]] | None:
        """Return the event for a watcher of some objects: its type and the object; None where it has none."""
        was = self.before is not None and selects(self.before)
        now = self.after is not None and selects(self.after)
        if now and self.after is not None:
            return ("MODIFIED" if was else "ADDED"), self.after
        if was and self.before is not None:
            last = self.after if self.after is not None else self.before
            return "DELETED", {**last, "metadata": {**last["metadata"], "resourceVersion": str(self.version)}}
        return None


class Store:
    """All objects. Thread-safe; ``lock`` makes several steps one."""

    def __init__(self) -> None:
        self.lock = threading.Condition(threading.RLock())
        self._objects: dict[Kind, dict[Key, Stored]] = {}
        self._changes: deque[Change] = deque(maxlen=_HISTORY)
        self._version = 1
        self._oldest = 1
        self._epoch = 0

    @property
    def version(self) -> int:
        """The version of the last change."""
        with self.lock:
            return self._version

    def find(self, kind: Kind, key: Key) -> Stored | None:
        """Return an object."""
        with self.lock:
            return self._objects.get(kind, {}).get(key)

    def all(self, kind: Kind, namespace: str = "") -> list[tuple[Key, Stored]]:
        """Return the objects of a kind, by namespace and name."""
        with self.lock:
            found = self._objects.get(kind, {})
            return [(key, found[key]) for key in sorted(found) if not namespace or key[0] == namespace]

    def put(self, kind: Kind, key: Key, obj: dict[str, Any], managers: Managers) -> Stored:
        """Keep an object under a new version."""
        with self.lock:
            objects = self._objects.setdefault(kind, {})
            before = objects.get(key)
            self._version += 1
            meta = {**obj["metadata"], "resourceVersion": str(self._version)}
            kept = {**obj, "metadata": meta}
            shown = {**kept, "metadata": {**meta, "managedFields": managers.entries()}}
            objects[key] = stored = Stored(kept, managers, shown)
            self._note(Change(self._version, kind, before.shown if before else None, shown))
            return stored

    def drop(self, kind: Kind, key: Key) -> dict[str, Any]:
        """Remove an object and return it as it was, with the version of its end."""
        with self.lock:
            before = self._objects[kind].pop(key)
            self._version += 1
            self._note(Change(self._version, kind, before.shown, None))
            meta = {**before.shown["metadata"], "resourceVersion": str(self._version)}
            return {**before.shown, "metadata": meta}

    def compact(self) -> None:
        """Forget all changes: who watches from an older version is told that it has expired."""
        with self.lock:
            self._changes.clear()
            self._oldest = self._version + 1

    def break_watches(self) -> None:
        """End all watches that run; they may begin again where they were."""
        with self.lock:
            self._epoch += 1
            self.lock.notify_all()

    @property
    def epoch(self) -> int:
        """How often all watches have been ended; a watch belongs to the epoch in which it began."""
        with self.lock:
            return self._epoch

    def follow(
        self, kind: Kind, version: int, epoch: int, timeout: Callable[[], float], stopped: Callable[[], bool]
    ) -> Iterator[Change | int]:
        """Give the changes of a kind after a version; after ``timeout()`` seconds without one, the version reached.

        It ends when ``timeout()`` is negative, and with its epoch.

        Raises:
            StatusError: the version is too old.
        """
        while True:
            with self.lock:
                fresh = self._since(kind, version)
                if not fresh:
                    seconds = timeout()
                    if seconds < 0 or stopped() or epoch != self._epoch:
                        return
                    self.lock.wait(seconds)
                    if stopped() or epoch != self._epoch:
                        return
                    fresh = self._since(kind, version)
                latest = self._version
            yield from fresh
            version = max(version, latest)
            if not fresh:
                yield version

    def _since(self, kind: Kind, version: int) -> list[Change]:
        if version < self._oldest - 1 or version > self._version:
            if version > self._version:
                text = f"Too large resource version: {version}, current: {self._version}"
                raise StatusError(504, text, retry_after=1)
            raise StatusError(410, f"too old resource version: {version} ({self._oldest})")
        if self._changes and self._changes[-1].version <= version:
            return []
        return [change for change in self._changes if change.version > version and change.kind == kind]

    def _note(self, change: Change) -> None:
        if len(self._changes) == self._changes.maxlen:
            self._oldest = self._changes[0].version + 1
        self._changes.append(change)
        self.lock.notify_all()
