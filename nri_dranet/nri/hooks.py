"""The runtime's calls, from protobuf to the keeper and back.

Up to NRI 0.11 the sandbox events come as ``StateChange``, from 0.12 on as calls of their own; both end in the same
place. ``StopPodSandbox`` never fails: CRI-O would repeat it for ever.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from nri_dranet.claims.model import PodRef
from nri_dranet.pb import nri_pb2
from nri_dranet.reconcile.hooktypes import Adjustment, ContainerRef, HookError
from nri_dranet.reconcile.sandboxes import SandboxRef
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from google.protobuf.message import Message

LOG = logging.getLogger(__name__)

RUN: Final = 1 << 0
STOP: Final = 1 << 1
REMOVE: Final = 1 << 2
CREATE_CONTAINER: Final = 1 << 3
EVENTS: Final = RUN | STOP | REMOVE | CREATE_CONTAINER
"""The events that this plugin takes part in. All four are known to every release since NRI 0.2."""

_UNLIMITED: Final = (1 << 64) - 1

_RUN_EVENT: Final = 1
_STOP_EVENT: Final = 2
_REMOVE_EVENT: Final = 3


class Sandboxer(Protocol):
    """Carries the hooks out (``reconcile.keeper.Keeper``)."""

    def run_sandbox(self, sandbox: SandboxRef, deadline: float) -> bool:
        """Attach the devices of a pod; True if it has any. Raises ``HookError``."""
        ...

    def create_container(self, sandbox: SandboxRef, container: ContainerRef, deadline: float) -> Adjustment | None:
        """Let a container be created; tell what to add. Raises ``HookError``."""
        ...

    def stop_sandbox(self, sandbox: SandboxRef, deadline: float) -> bool:
        """Give the devices of a pod back; True if it had any."""
        ...

    def remove_sandbox(self, sandbox: SandboxRef) -> None:
        """Forget a sandbox."""
        ...

    def synchronize(self, sandboxes: Sequence[SandboxRef]) -> None:
        """Take the list of sandboxes; returns at once."""
        ...

    def late(self, sandbox: SandboxRef) -> None:
        """Take back what a hook did after the runtime had been told that it failed."""
        ...


class Hooks:
    """The calls of the service ``Plugin`` that concern pods."""

    def __init__(self, sandboxer: Sandboxer) -> None:
        self._sandboxer = sandboxer

    def call(self, method: str, payload: bytes, deadline: float) -> bytes | None:
        """Carry a call out.

        Args:
            method: the method's bare name.
            payload: the encoded request.
            deadline: when it must have ended (``time.monotonic``).

        Returns:
            The encoded response; None: there is no such method here.

        Raises:
            HookError: the call is refused.
            google.protobuf.message.DecodeError: the request cannot be decoded.
        """
        if method == "CreateContainer":
            request = nri_pb2.CreateContainerRequest.FromString(payload)
            return self._create_container(request, deadline).SerializeToString()
        if method == "StateChange":
            change = nri_pb2.StateChangeEvent.FromString(payload)
            self._sandbox_event(change.event, change.pod, deadline)
            return b""
        if method == "RunPodSandbox":
            self._sandbox_event(_RUN_EVENT, nri_pb2.RunPodSandboxRequest.FromString(payload).pod, deadline)
            return b""
        if method == "StopPodSandbox":
            self._sandbox_event(_STOP_EVENT, nri_pb2.StopPodSandboxRequest.FromString(payload).pod, deadline)
            return b""
        if method == "RemovePodSandbox":
            self._sandbox_event(_REMOVE_EVENT, nri_pb2.RemovePodSandboxRequest.FromString(payload).pod, deadline)
            return b""
        return None

    def late(self, method: str, payload: bytes) -> None:
        """Take back a call that succeeded after it had been answered with an error."""
        if method == "StateChange":
            change = nri_pb2.StateChangeEvent.FromString(payload)
            if change.event == _RUN_EVENT:
                self._sandboxer.late(sandbox_of(change.pod))
        elif method == "RunPodSandbox":
            self._sandboxer.late(sandbox_of(nri_pb2.RunPodSandboxRequest.FromString(payload).pod))

    def synchronize(self, pods: Sequence[nri_pb2.PodSandbox]) -> None:
        """Take the whole list of sandboxes; those that have stopped are left out."""
        running = [sandbox_of(pod) for pod in pods if _runs(pod)]
        LOG.info("the runtime listed its sandboxes", extra=fields(sandboxes=len(pods), running=len(running)))
        self._sandboxer.synchronize(running)

    # ---- inside

    def _sandbox_event(self, event: int, pod: nri_pb2.PodSandbox, deadline: float) -> None:
        sandbox = sandbox_of(pod)
        if event == _RUN_EVENT:
            _counted("RunPodSandbox", lambda: self._sandboxer.run_sandbox(sandbox, deadline))
        elif event == _STOP_EVENT:
            try:
                _counted("StopPodSandbox", lambda: self._sandboxer.stop_sandbox(sandbox, deadline))
            except Exception:
                LOG.exception("a sandbox's stop failed", extra=fields(pod=sandbox.pod, sandbox=sandbox.id))
        elif event == _REMOVE_EVENT:
            self._sandboxer.remove_sandbox(sandbox)
            metrics.NRI_REQUESTS.labels("RemovePodSandbox", "success").inc()

    def _create_container(self, request: nri_pb2.CreateContainerRequest, deadline: float) -> Message:
        response = nri_pb2.CreateContainerResponse()
        container = ContainerRef(
            id=request.container.id,
            name=request.container.name,
            cdi_devices=tuple(device.name for device in request.container.CDI_devices) or None,
        )
        sandbox = sandbox_of(request.pod)
        given: list[Adjustment] = []

        def ask() -> bool:
            adjustment = self._sandboxer.create_container(sandbox, container, deadline)
            if adjustment is not None:
                given.append(adjustment)
            return adjustment is not None

        _counted("CreateContainer", ask)
        for adjustment in given:
            _adjust(response.adjust, adjustment)
        return response


def sandbox_of(pod: nri_pb2.PodSandbox) -> SandboxRef:
    """Return a sandbox as the keeper knows it; a pod on the host's network has no network namespace."""
    path = next((each.path for each in pod.linux.namespaces if each.type == "network"), "")
    return SandboxRef(pod=PodRef(pod.namespace, pod.name, pod.uid), id=pod.id, netns_path=path)


def _runs(pod: nri_pb2.PodSandbox) -> bool:
    """Tell whether a listed sandbox runs: it has a process, or its namespace is there (CRI-O tells no process)."""
    if pod.pid:
        return True
    path = sandbox_of(pod).netns_path
    return bool(path) and Path(path).exists()


def _adjust(target: nri_pb2.ContainerAdjustment, adjustment: Adjustment) -> None:
    for device in adjustment.devices:
        added = target.linux.devices.add(path=device.path, type="c", major=device.major, minor=device.minor)
        added.file_mode.value = device.mode
        added.uid.value = device.uid
        added.gid.value = device.gid
    if adjustment.memlock:
        target.rlimits.add(type="RLIMIT_MEMLOCK", hard=_UNLIMITED, soft=_UNLIMITED)


def _counted(method: str, call: Callable[[], bool]) -> None:
    """Run a hook and count how it ended: noop where the pod has no device of this driver."""
    began = time.monotonic()
    status = "failed"
    try:
        status = "success" if call() else "noop"
    finally:
        metrics.NRI_REQUESTS.labels(method, status).inc()
        metrics.NRI_LATENCY.labels(method, status).observe(time.monotonic() - began)


__all__ = ["EVENTS", "HookError", "Hooks", "Sandboxer", "sandbox_of"]
