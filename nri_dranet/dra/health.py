"""The health of devices as kubelet is told: shown in the pod's ``status.containerStatuses[].allocatedResourcesStatus``.

One stream for each kubelet that asks (KEP-4680; ``k8s.io/kubelet/pkg/apis/dra-health``, v1 and v1alpha1, which are the
same on the wire). Every message has the full set. kubelet takes a device for unknown when it has heard nothing for the
device's lease, so that what is unchanged is said again in time; the end of the stream clears everything.
"""

from __future__ import annotations

import asyncio
import enum
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc

from nri_dranet.pb import dra_health_v1_pb2, dra_health_v1alpha1_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from types import ModuleType

VERSIONS: Final = ("v1.DRAResourceHealth", "v1alpha1.DRAResourceHealth")
"""What is advertised. Kubernetes 1.36 and older ask whatever is advertised; 1.37 takes the first that it knows."""

LEASE_SECONDS: Final = 30
"""How long what was said is valid: kubelet's own default."""

MAX_MESSAGE: Final = 1024
"""Characters of a message that kubelet keeps."""

_SAID_PER_LEASE: Final = 3
_MODULES: Final[dict[str, ModuleType]] = {"v1": dra_health_v1_pb2, "v1alpha1": dra_health_v1alpha1_pb2}

DeviceName = tuple[str, str]
"""Pool and device."""


class Status(enum.IntEnum):
    """The health of a device; the numbers are those on the wire."""

    UNKNOWN = 0
    HEALTHY = 1
    UNHEALTHY = 2


@dataclass(frozen=True, slots=True)
class Health:
    """What is said of a device.

    Attributes:
        status: Its health.
        message: Why, for people; cut at 1,024 characters.
    """

    status: Status
    message: str = ""


@dataclass(frozen=True, slots=True)
class _Said:
    health: Health
    since: int


class HealthService:
    """Streams the health of all devices. ``set`` and ``close`` may be called from any thread."""

    def __init__(self, *, lease: float = LEASE_SECONDS, clock: Callable[[], float] = time.time) -> None:
        """Prepare to serve; nothing is said before the first ``set``.

        Args:
            lease: seconds for which a message is valid; it is said again three times in it.
            clock: gives Unix time.
        """
        self._lease = lease
        self._clock = clock
        self._lock = threading.Lock()
        self._devices: dict[DeviceName, _Said] | None = None
        self._streams: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._closed = False

    def set(self, devices: Mapping[DeviceName, Health]) -> None:
        """Say the health of all devices; who is not among them is not spoken of any more."""
        now = int(self._clock())
        with self._lock:
            known = self._devices or {}
            fresh = {}
            for name, health in devices.items():
                said = known.get(name)
                fresh[name] = said if said is not None and said.health == health else _Said(health, now)
            if self._devices is not None and fresh == self._devices:
                return
            self._devices = fresh
            self._wake()

    def close(self) -> None:
        """End all streams, and those that begin later."""
        with self._lock:
            self._closed = True
            self._wake()

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """Return the services for a ``grpc.aio`` server."""
        found = []
        for version, module in _MODULES.items():
            method = grpc.unary_stream_rpc_method_handler(
                self._bind(module),
                request_deserializer=module.NodeWatchResourcesRequest.FromString,
                response_serializer=module.NodeWatchResourcesResponse.SerializeToString,
            )
            service = f"{version}.DRAResourceHealth"
            found.append(grpc.method_handlers_generic_handler(service, {"NodeWatchResources": method}))
        return found

    def _bind(self, module: ModuleType) -> Callable[[Any, Any], AsyncIterator[Any]]:
        async def watch(_request: Any, _context: Any) -> AsyncIterator[Any]:
            wake = asyncio.Event()
            stream = (asyncio.get_running_loop(), wake)
            with self._lock:
                self._streams.add(stream)
            try:
                while True:
                    with self._lock:
                        wake.clear()
                        closed, devices = self._closed, self._devices
                    if closed:
                        return
                    if devices is not None:
                        yield self._message(module, devices)
                    try:
                        async with asyncio.timeout(self._lease / _SAID_PER_LEASE):
                            await wake.wait()
                    except TimeoutError:
                        continue
            finally:
                with self._lock:
                    self._streams.discard(stream)

        return watch

    def _message(self, module: ModuleType, devices: Mapping[DeviceName, _Said]) -> Any:
        message = module.NodeWatchResourcesResponse()
        for (pool, device), said in sorted(devices.items(), key=lambda item: item[0]):
            message.devices.add(
                device=module.DeviceIdentifier(pool_name=pool, device_name=device),
                health=int(said.health.status),
                last_updated_time=said.since,
                health_check_timeout_seconds=max(1, int(self._lease)),
                message=said.health.message[:MAX_MESSAGE],
            )
        return message

    def _wake(self) -> None:
        for loop, event in self._streams:
            loop.call_soon_threadsafe(event.set)
