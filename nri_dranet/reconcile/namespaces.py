"""The namespaces of pods that hold a device, kept open.

A device that is in a namespace when that dies comes home under a foreign name, or is destroyed when it is virtual. So
the daemon holds each such namespace by a descriptor of its own until the device is back.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from nri_dranet.netlink.namespaces import NamespaceGoneError, NetNs

if TYPE_CHECKING:
    from nri_dranet.claims.record import Holder


class Namespaces:
    """Open namespaces by sandbox ID. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, NetNs] = {}

    def enter(self, sandbox_id: str, path: str) -> NetNs:
        """Return the namespace of a sandbox that runs, opened if need be; ``path`` "": the host's.

        Raises:
            NamespaceGoneError: there is no network namespace at ``path``.
            OSError: it cannot be opened (no descriptors left).
        """
        with self._lock:
            found = NetNs.open(path) if path else NetNs.current()
            known = self._open.get(sandbox_id)
            if known is not None and known.same(found):
                found.close()
                return known
            if known is not None:
                known.close()
            self._open[sandbox_id] = found
            return found

    def of(self, holder: Holder) -> NetNs | None:
        """Return the namespace that a holder's devices are in; None when it is gone.

        The path alone proves nothing: after a restart another namespace may be there. The inode tells.

        Raises:
            OSError: it cannot be opened (no descriptors left).
        """
        with self._lock:
            known = self._open.get(holder.sandbox_id)
            if known is not None or not holder.netns_path:
                return known
            try:
                found = NetNs.open(holder.netns_path)
            except NamespaceGoneError:
                return None
            if holder.netns_inode and found.inode != holder.netns_inode:
                found.close()
                return None
            self._open[holder.sandbox_id] = found
            return found

    def descriptors(self) -> dict[str, int]:
        """Return the descriptors of all that are open, by sandbox ID."""
        with self._lock:
            return {sandbox_id: namespace.fd for sandbox_id, namespace in self._open.items()}

    def adopt(self, holder: Holder, descriptor: int) -> bool:
        """Hold a namespace by a descriptor that somebody else has opened, unless it is held; False: it is another one.

        Raises:
            OSError: it is no open descriptor.
        """
        found = NetNs(descriptor, holder.netns_path)
        if found.inode != holder.netns_inode:
            return False
        with self._lock:
            return self._open.setdefault(holder.sandbox_id, found) is found

    def release(self, sandbox_id: str) -> None:
        """Close the descriptor of a sandbox that holds no device any more."""
        with self._lock:
            known = self._open.pop(sandbox_id, None)
        if known is not None:
            known.close()

    def close(self) -> None:
        """Close all descriptors; the namespaces of running pods live on by their processes."""
        with self._lock:
            left, self._open = self._open, {}
        for namespace in left.values():
            namespace.close()
