"""The runtime's calls, from protobuf to the keeper and back.

Up to NRI 0.11 the sandbox events come as ``StateChange``, from 0.12 on as calls of their own; both end in the same
place. Stop and Remove never fail: CRI-O would repeat a Stop for ever, and an error helps nobody then.

Source of the facts: containerd/nri, ``pkg/api/api.proto`` and ``pkg/adaptation/plugin.go``.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final, Protocol

from nri_dranet.nri.listing import sandbox_of
from nri_dranet.pb import nri_pb2
from nri_dranet.reconcile.hooktypes import Adjustment, ContainerRef, HookError
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nri_dranet.claims.model import PodRef
    from nri_dranet.nri.listing import Listing
    from nri_dranet.reconcile.sandboxes import SandboxRef

LOG = logging.getLogger(__name__)

RUN: Final = 1 << 0
STOP: Final = 1 << 1
REMOVE: Final = 1 << 2
CREATE_CONTAINER: Final = 1 << 3
EVENTS: Final = RUN | STOP | REMOVE | CREATE_CONTAINER
"""The events that this plugin takes part in. All four are known to every release since NRI 0.2."""

_UNLIMITED: Final = (1 << 64) - 1

_EVENTS: Final = {
    nri_pb2.RUN_POD_SANDBOX: "RunPodSandbox",
    nri_pb2.STOP_POD_SANDBOX: "StopPodSandbox",
    nri_pb2.REMOVE_POD_SANDBOX: "RemovePodSandbox",
}
_SandboxRequest = nri_pb2.RunPodSandboxRequest | nri_pb2.StopPodSandboxRequest | nri_pb2.RemovePodSandboxRequest
_REQUESTS: Final[dict[str, type[_SandboxRequest]]] = {
    "RunPodSandbox": nri_pb2.RunPodSandboxRequest,
    "StopPodSandbox": nri_pb2.StopPodSandboxRequest,
    "RemovePodSandbox": nri_pb2.RemovePodSandboxRequest,
}


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

    def has_claims(self, pod: PodRef) -> bool:
        """Tell whether a pod has a claim of this driver."""
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
            return self._create_container(nri_pb2.CreateContainerRequest.FromString(payload), deadline)
        if method != "StateChange" and method not in _REQUESTS:
            return None
        name, pod = _event(method, payload)
        if name == "RunPodSandbox":
            sandbox = sandbox_of(pod)
            _counted(name, lambda: self._sandboxer.run_sandbox(sandbox, deadline))
        elif name:
            self._end_sandbox(name, sandbox_of(pod), deadline)
        return b""

    def overdue(self, method: str, payload: bytes) -> str | None:
        """Return what to answer to a call that did not end in time.

        Args:
            method: the method's bare name.
            payload: the encoded request, which could be decoded before.

        Returns:
            The text of the error; None: it is answered as if it had succeeded, and goes on behind that.
        """
        if method == "CreateContainer":
            name, pod = method, nri_pb2.CreateContainerRequest.FromString(payload).pod
        elif method == "StateChange" or method in _REQUESTS:
            name, pod = _event(method, payload)
        else:
            return f"{method} did not end in time"
        if name not in {"CreateContainer", "RunPodSandbox"}:
            return None
        return (
            f"{name} of pod {pod.namespace}/{pod.name} did not end in time: it is undone, and can then be tried again"
        )

    def late(self, method: str, payload: bytes) -> None:
        """Take back a call that succeeded after it had been answered with an error.

        Args:
            method: the method's bare name.
            payload: the encoded request.
        """
        if method in {"RunPodSandbox", "StateChange"}:
            name, pod = _event(method, payload)
            if name == "RunPodSandbox":
                self._sandboxer.late(sandbox_of(pod))

    def concerns(self, method: str, payload: bytes) -> bool:
        """Tell whether a call starts a pod or a container that needs a device (``nri.gate.Shut``).

        Args:
            method: the method's bare name.
            payload: the encoded request.

        Raises:
            google.protobuf.message.DecodeError: the request cannot be decoded.
        """
        if method == "CreateContainer":
            pod = nri_pb2.CreateContainerRequest.FromString(payload).pod
        elif method in {"RunPodSandbox", "StateChange"}:
            name, pod = _event(method, payload)
            if name != "RunPodSandbox":
                return False
        else:
            return False
        return self._sandboxer.has_claims(sandbox_of(pod).pod)

    def synchronize(self, listing: Listing) -> None:
        """Take the whole list of sandboxes; those that have stopped are left out.

        It is never refused: the runtime would drop this plugin, and then nothing would guard the pods that follow.

        Args:
            listing: the list, complete.
        """
        running = listing.running()
        LOG.info("the runtime listed its sandboxes", extra=fields(sandboxes=len(listing), running=len(running)))
        try:
            self._sandboxer.synchronize(running)
        except Exception:  # the runtime waits for the answer with a lock of the whole node, and the list is kept
            LOG.exception("the runtime's list of sandboxes could not be taken in")

    # ---- inside

    def _end_sandbox(self, name: str, sandbox: SandboxRef, deadline: float) -> None:
        def forget() -> bool:
            self._sandboxer.remove_sandbox(sandbox)
            return True

        def stop() -> bool:
            return self._sandboxer.stop_sandbox(sandbox, deadline)

        try:
            _counted(name, stop if name == "StopPodSandbox" else forget)
        except Exception:  # the end of a sandbox cannot be refused; the reconciler finds what is left
            LOG.exception(
                "the end of a sandbox was not handled", extra=fields(call=name, pod=sandbox.pod, id=sandbox.id)
            )

    def _create_container(self, request: nri_pb2.CreateContainerRequest, deadline: float) -> bytes:
        response = nri_pb2.CreateContainerResponse()
        container = ContainerRef(
            name=request.container.name,
            devices=frozenset((device.major, device.minor) for device in request.container.linux.devices),
        )
        sandbox = sandbox_of(request.pod)

        def ask() -> bool:
            adjustment = self._sandboxer.create_container(sandbox, container, deadline)
            if adjustment is None:
                return False
            _adjust(response.adjust, adjustment)
            return True

        _counted("CreateContainer", ask)
        return response.SerializeToString()


def _event(method: str, payload: bytes) -> tuple[str, nri_pb2.PodSandbox]:
    """Return which sandbox event a call is, under its newer name, and the pod; "" for one that is not asked for.

    Raises:
        google.protobuf.message.DecodeError: the request cannot be decoded.
    """
    if method == "StateChange":
        change = nri_pb2.StateChangeEvent.FromString(payload)
        return _EVENTS.get(change.event, ""), change.pod
    return method, _REQUESTS[method].FromString(payload).pod


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
