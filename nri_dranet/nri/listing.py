"""The runtime's list of sandboxes (``Synchronize``), which may come in parts.

A sandbox that has stopped is listed like one that runs, and no release says which is which in a field of its own. What
tells them apart: a process, a container that lives, or a network namespace that is still there. containerd lists a
stopped sandbox with neither process nor namespace; CRI-O may list no process for one that runs, and the path of a
namespace that is gone for one that stopped; a pod on the host's network has a process and no namespace.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from nri_dranet.claims.model import PodRef
from nri_dranet.pb import nri_pb2
from nri_dranet.reconcile.hooktypes import HookError
from nri_dranet.reconcile.sandboxes import SandboxRef

MAX_SANDBOXES: Final = 100_000
"""A node runs some hundreds. More than this is no list to keep in memory."""

_LIVE: Final = frozenset((nri_pb2.CONTAINER_CREATED, nri_pb2.CONTAINER_PAUSED, nri_pb2.CONTAINER_RUNNING))

if TYPE_CHECKING:
    from collections.abc import Sequence


def sandbox_of(pod: nri_pb2.PodSandbox) -> SandboxRef:
    """Return a sandbox as the keeper knows it; a pod on the host's network has no network namespace."""
    path = next((each.path for each in pod.linux.namespaces if each.type == "network"), "")
    return SandboxRef(pod=PodRef(pod.namespace, pod.name, pod.uid), id=pod.id, netns_path=path)


class Listing:
    """Takes the parts of one list. A container may come before its sandbox: they are joined when all is there."""

    def __init__(self) -> None:
        self._sandboxes: list[tuple[SandboxRef, bool]] = []
        self._with_container: set[str] = set()

    def __len__(self) -> int:
        return len(self._sandboxes)

    def add(self, part: nri_pb2.SynchronizeRequest) -> None:
        """Take a part. Nothing of the message is kept: it may have four mebibytes.

        Args:
            part: one call of ``Synchronize``.

        Raises:
            HookError: the list is longer than ``MAX_SANDBOXES``.
        """
        if len(self._sandboxes) + len(part.pods) > MAX_SANDBOXES:
            raise HookError(f"the runtime lists more than {MAX_SANDBOXES} sandboxes")
        self._sandboxes += [(sandbox_of(pod), pod.pid != 0) for pod in part.pods]
        self._with_container.update(each.pod_sandbox_id for each in part.containers if each.state in _LIVE)

    def running(self) -> Sequence[SandboxRef]:
        """Return the sandboxes that run."""
        return [
            sandbox
            for sandbox, process in self._sandboxes
            if process
            or sandbox.id in self._with_container
            or (sandbox.netns_path and Path(sandbox.netns_path).exists())
        ]
