"""What the container runtime has told about its pod sandboxes."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nri_dranet.claims.model import PodRef


@dataclass(frozen=True, slots=True)
class SandboxRef:
    """A sandbox of a pod; ``netns_path`` is empty for a pod on the host's network."""

    pod: PodRef
    id: str
    netns_path: str


class Sandboxes:
    """The sandboxes that run, by ID. Thread-safe.

    A sandbox whose RunPodSandbox this driver refused never gets in; one that has stopped is out, although the runtime
    may list it for a while.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, SandboxRef] = {}
        self._stopped: set[str] = set()
        self._starting: set[str] = set()
        self._removed: set[str] = set()
        self._listed: set[str] = set()
        self._synchronized = False

    @property
    def synchronized(self) -> bool:
        """Tell whether the runtime has listed its sandboxes at least once, so that an absent one does not exist."""
        return self._synchronized

    def begin(self, sandbox_id: str) -> None:
        """Note that the runtime starts a sandbox, maybe one that had stopped before."""
        with self._lock:
            self._stopped.discard(sandbox_id)
            self._starting.add(sandbox_id)

    def end(self, sandbox_id: str) -> None:
        """Note that a start has ended, in whatever way."""
        with self._lock:
            self._starting.discard(sandbox_id)
            if sandbox_id in self._removed:
                self._removed.discard(sandbox_id)
                self._stopped.discard(sandbox_id)

    def add(self, sandbox: SandboxRef) -> bool:
        """Note that a sandbox runs; False when it has stopped since ``begin``."""
        with self._lock:
            if sandbox.id in self._stopped:
                return False
            self._running[sandbox.id] = sandbox
            return True

    def stop(self, sandbox_id: str) -> None:
        """Note that a sandbox stops, also one whose start is still under way."""
        with self._lock:
            self._running.pop(sandbox_id, None)
            self._stopped.add(sandbox_id)

    def seen(self, sandbox: SandboxRef) -> None:
        """Note a sandbox that runs without its start having been told; nothing for one that starts or has stopped."""
        with self._lock:
            if sandbox.id not in self._stopped and sandbox.id not in self._starting:
                self._running.setdefault(sandbox.id, sandbox)

    def remove(self, sandbox_id: str) -> None:
        """Forget a sandbox; one whose start is still under way is remembered as stopped until that has ended."""
        with self._lock:
            self._running.pop(sandbox_id, None)
            if sandbox_id in self._starting:
                self._stopped.add(sandbox_id)
                self._removed.add(sandbox_id)
            else:
                self._stopped.discard(sandbox_id)

    def listed(self, sandbox_id: str) -> bool:
        """Tell whether the runtime's last list had the sandbox, and it has not stopped since."""
        with self._lock:
            return sandbox_id in self._listed and sandbox_id in self._running

    def stopped(self, sandbox_id: str) -> bool:
        """Tell whether a sandbox has stopped and was not removed yet."""
        with self._lock:
            return sandbox_id in self._stopped

    def replace(self, sandboxes: Iterable[SandboxRef]) -> None:
        """Take the runtime's whole list (NRI Synchronize)."""
        with self._lock:
            self._running = {sandbox.id: sandbox for sandbox in sandboxes}
            self._listed = set(self._running)
            # What was starting and is not listed was given up by the runtime.
            self._stopped = self._starting - self._listed
            self._removed = set(self._stopped)
            self._synchronized = True

    def get(self, sandbox_id: str) -> SandboxRef | None:
        """Return the sandbox if it runs."""
        with self._lock:
            return self._running.get(sandbox_id)

    def of_pod(self, pod_uid: str) -> tuple[SandboxRef, ...]:
        """Return the running sandboxes of a pod, the newest last."""
        with self._lock:
            return tuple(sandbox for sandbox in self._running.values() if sandbox.pod.uid == pod_uid)
