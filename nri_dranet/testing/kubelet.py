"""A stand-in for kubelet's plugin manager and its DRA calls: the real protocols over real sockets, without root.

It watches the registration folder, asks each socket for its name and versions, takes the first DRA version that it
knows (in the plugin's order), tells the plugin so, follows its health stream, and calls it as kubelet does: an answer
that lacks a claim, or has one too many, is an error of the plugin. A plugin that does not register well is tried
again with a growing pause; of several instances the one that registered last is called.

Source: ``pkg/kubelet/pluginmanager`` and ``pkg/kubelet/cm/dra`` of Kubernetes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import grpc

from nri_dranet.pb import (
    dra_health_v1_pb2,
    dra_health_v1alpha1_pb2,
    dra_v1_pb2,
    dra_v1beta1_pb2,
    pluginregistration_pb2,
)
from nri_dranet.testing.patience import patience

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import ModuleType

CALL_SECONDS: Final = 45.0
"""What kubelet allows for a call."""

LEASE_SECONDS: Final = 30
"""After this time without a message a device's health is unknown, where the plugin does not say another."""

_LOOK_SECONDS: Final = 0.05
_INFO_SECONDS: Final = patience(1.0)
_NOTIFY_SECONDS: Final = patience(5.0)
_PATIENCE: Final = patience(20.0)
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 122.0
_MODULES: Final[dict[str, ModuleType]] = {"v1": dra_v1_pb2, "v1beta1": dra_v1beta1_pb2}
_HEALTH: Final[dict[str, ModuleType]] = {"v1": dra_health_v1_pb2, "v1alpha1": dra_health_v1alpha1_pb2}

Reference = tuple[str, str, str]
"""A claim: namespace, name, UID."""

Identity = tuple[int, int, int]
"""Device, inode and time of a socket: an inode alone may be used again at once."""


class KubeletError(Exception):
    """The plugin did what kubelet does not accept; the text is kubelet's way of saying it."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """A registered plugin.

    Attributes:
        name: The driver's name.
        endpoint: The socket of its calls.
        version: The DRA version that is spoken with it.
        supported: All versions that it offers.
        health: The version of its health service that is followed, empty for none.
    """

    name: str
    endpoint: str
    version: str
    supported: tuple[str, ...]
    health: str = ""


@dataclass(frozen=True, slots=True)
class DeviceHealth:
    """What kubelet knows of a device.

    Attributes:
        status: ``Healthy``, ``Unhealthy`` or ``Unknown``.
        message: Why.
        until: When it is unknown again, by the monotonic clock.
    """

    status: str
    message: str
    until: float


@dataclass(slots=True)
class _Socket:
    """A registration socket that was found."""

    identity: Identity
    due: float = 0.0
    pause: float = _FIRST_PAUSE
    plugin: Plugin | None = None
    told: bool = False
    calls: int = 0
    channel: grpc.Channel | None = None
    health: dict[tuple[str, str], DeviceHealth] = field(default_factory=dict)
    messages: int = 0


class KubeletStandIn:
    """kubelet, as far as a DRA plugin sees it. All methods are thread-safe.

    Attributes:
        registrations: How often a plugin was registered.
        problems: Why a plugin was not registered, one line each time.
    """

    def __init__(
        self,
        registry: Path,
        *,
        driver: str,
        versions: Sequence[str] = ("v1", "v1beta1"),
        health_versions: Sequence[str] = ("v1", "v1alpha1"),
    ) -> None:
        """Prepare to watch.

        Args:
            registry: the registration folder.
            driver: the driver that is called.
            versions: the DRA versions that this kubelet knows.
            health_versions: the versions of the health service that it knows, the best first.
        """
        self._registry = registry
        self._driver = driver
        self._versions = tuple(versions)
        self._health_versions = tuple(health_versions)
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._sockets: dict[str, _Socket] = {}
        self.registrations = 0
        self.problems: list[str] = []
        self._thread = threading.Thread(target=self._run, name="kubelet", daemon=True)

    def start(self) -> None:
        """Begin to watch the registration folder."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self.restart()

    def restart(self) -> None:
        """Forget all plugins, as a new kubelet does: what is in the registration folder registers again."""
        with self._changed:
            for found in self._sockets.values():
                self._close(found)
            self._sockets = {}
            self._changed.notify_all()

    def wait_registered(self, timeout: float = _PATIENCE) -> Plugin:
        """Return the plugin as soon as it is registered; of several, the last.

        Raises:
            KubeletError: it did not register in time.
        """
        return self._registered(timeout)[1]

    def wait_gone(self, timeout: float = _PATIENCE) -> None:
        """Wait until no plugin is registered.

        Raises:
            KubeletError: one still was.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._latest() is None, timeout):
                raise KubeletError(f"plugin {self._driver} is still registered after {timeout:g} s")

    def prepare(self, claims: Sequence[Reference], *, timeout: float = CALL_SECONDS) -> dict[str, dict[str, Any]]:
        """Call NodePrepareResources and return the answers by claim UID: ``devices`` and ``error``.

        Raises:
            KubeletError: the answer does not fit the request.
            grpc.RpcError: the call failed, or was not answered within ``timeout`` seconds.
        """
        return self._call("NodePrepareResources", claims, timeout)

    def unprepare(self, claims: Sequence[Reference], *, timeout: float = CALL_SECONDS) -> dict[str, dict[str, Any]]:
        """Call NodeUnprepareResources and return the answers by claim UID: ``error``.

        Raises:
            KubeletError: the answer does not fit the request.
            grpc.RpcError: the call failed, or was not answered within ``timeout`` seconds.
        """
        return self._call("NodeUnprepareResources", claims, timeout)

    def health(self) -> dict[tuple[str, str], DeviceHealth]:
        """Return what is known now of the devices, by pool and device; old news is unknown."""
        now = time.monotonic()
        with self._changed:
            found = self._latest()
            return {
                key: device if now < device.until else replace(device, status="Unknown")
                for key, device in (found.health if found is not None else {}).items()
            }

    def wait_health(
        self, test: Callable[[dict[tuple[str, str], DeviceHealth]], bool], timeout: float = _PATIENCE
    ) -> dict[tuple[str, str], DeviceHealth]:
        """Return what is known of the devices as soon as a test holds.

        Raises:
            KubeletError: it did not hold in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: test(self.health()), timeout):
                raise KubeletError(f"waited {timeout:g} s in vain for the health of devices; now {self.health()}")
            return self.health()

    @property
    def health_messages(self) -> int:
        """How many messages the health stream has brought."""
        with self._changed:
            found = self._latest()
            return found.messages if found is not None else 0

    # ---- the plugin manager

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            present = self._look()
            with self._changed:
                for path, found in list(self._sockets.items()):
                    if present.get(path) != found.identity:
                        self._close(self._sockets.pop(path))
                        self._changed.notify_all()
                for path, identity in present.items():
                    self._sockets.setdefault(path, _Socket(identity))
                waiting = [
                    (path, found)
                    for path, found in self._sockets.items()
                    if found.plugin is None and found.due <= time.monotonic()
                ]
            for path, found in waiting:
                self._register(path, found)

    def _look(self) -> dict[str, Identity]:
        present: dict[str, Identity] = {}
        with contextlib.suppress(FileNotFoundError):
            for path in self._registry.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if path.is_socket() and not path.name.startswith("."):
                        stat = path.stat()
                        present[str(path)] = (stat.st_dev, stat.st_ino, stat.st_mtime_ns)
        return present

    def _register(self, path: str, found: _Socket) -> None:
        """Ask a plugin who it is, take it in, and tell it; what fails is tried again later."""
        pb = pluginregistration_pb2
        problem = ""
        with grpc.insecure_channel(f"unix://{path}") as channel:
            try:
                info = channel.unary_unary(
                    "/pluginregistration.Registration/GetInfo",
                    request_serializer=pb.InfoRequest.SerializeToString,
                    response_deserializer=pb.PluginInfo.FromString,
                )(pb.InfoRequest(), timeout=_INFO_SECONDS)
                problem = self._accept(found, info)
                channel.unary_unary(
                    "/pluginregistration.Registration/NotifyRegistrationStatus",
                    request_serializer=pb.RegistrationStatus.SerializeToString,
                    response_deserializer=pb.RegistrationStatusResponse.FromString,
                )(pb.RegistrationStatus(plugin_registered=not problem, error=problem), timeout=_NOTIFY_SECONDS)
            except grpc.RpcError as failure:
                # A plugin that cannot be told is not kept.
                problem = f"{path}: {failure}"
        with self._changed:
            if problem:
                self.problems.append(problem)
                self._close(found)
                found.due = time.monotonic() + found.pause
                found.pause = min(found.pause * 2, _LONGEST_PAUSE)
            elif self._sockets.get(path) is found:
                found.told = True
                self.registrations += 1
            else:
                self._close(found)
            self._changed.notify_all()

    def _accept(self, found: _Socket, info: pluginregistration_pb2.PluginInfo) -> str:
        """Take a plugin in; return why not."""
        if info.type != "DRAPlugin":
            return f"no handler registered for plugin type: {info.type}"
        if info.name != self._driver:
            return f"unknown driver {info.name}"
        known = [f"{version}.DRAPlugin" for version in self._versions]
        version = next((offered for offered in info.supported_versions if offered in known), None)
        if version is None:
            return f"none of the DRA gRPC versions {list(info.supported_versions)} is supported, known are {known}"
        with self._changed:
            others = [each.plugin.endpoint for each in self._sockets.values() if each.plugin is not None]
            if info.endpoint in others:
                return f"endpoint {info.endpoint} is already registered for plugin {info.name}"
            health = [each for each in self._health_versions if f"{each}.DRAResourceHealth" in info.supported_versions]
            found.plugin = Plugin(
                info.name,
                info.endpoint,
                version.partition(".")[0],
                tuple(info.supported_versions),
                health[0] if health else "",
            )
            found.channel = channel = grpc.insecure_channel(f"unix://{info.endpoint}")
            # The last that registered comes last, also when its socket was found before others.
            for path, each in list(self._sockets.items()):
                if each is found:
                    self._sockets[path] = self._sockets.pop(path)
            self._changed.notify_all()
        if health:
            follow = threading.Thread(target=self._follow, args=(found, channel, health[0]), name="health", daemon=True)
            follow.start()
        return ""

    def _close(self, found: _Socket) -> None:
        """Forget a plugin. The connection ends with the last call that runs on it."""
        found.plugin, found.told, found.health = None, False, {}
        if found.channel is not None and not found.calls:
            found.channel.close()
            found.channel = None

    def _latest(self) -> _Socket | None:
        registered = [found for found in self._sockets.values() if found.told]
        return registered[-1] if registered else None

    def _registered(self, timeout: float) -> tuple[_Socket, Plugin]:
        with self._changed:
            self._changed.wait_for(lambda: self._latest() is not None, timeout)
            found = self._latest()
            if found is None or found.plugin is None:
                raise KubeletError(f"no plugin {self._driver} registered within {timeout:g} s; {self.problems}")
            return found, found.plugin

    @contextlib.contextmanager
    def _connection(self) -> Iterator[tuple[Plugin, grpc.Channel]]:
        with self._changed:
            found, plugin = self._registered(_PATIENCE)
            channel = found.channel
            found.calls += 1
        try:
            yield plugin, channel
        finally:
            with self._changed:
                found.calls -= 1
                if found.plugin is None:
                    self._close(found)

    # ---- the calls

    def _follow(self, found: _Socket, channel: grpc.Channel, version: str) -> None:
        """Follow a health stream until it ends, which clears what is known."""
        pb = _HEALTH[version]
        with contextlib.suppress(grpc.RpcError, ValueError):
            stream = channel.unary_stream(
                f"/{version}.DRAResourceHealth/NodeWatchResources",
                request_serializer=pb.NodeWatchResourcesRequest.SerializeToString,
                response_deserializer=pb.NodeWatchResourcesResponse.FromString,
            )(pb.NodeWatchResourcesRequest())
            for message in stream:
                with self._changed:
                    now = time.monotonic()
                    found.messages += 1
                    found.health = {
                        (each.device.pool_name, each.device.device_name): DeviceHealth(
                            pb.HealthStatus.Name(each.health).capitalize(),
                            each.message,
                            now + (each.health_check_timeout_seconds or LEASE_SECONDS),
                        )
                        for each in message.devices
                    }
                    self._changed.notify_all()
        with self._changed:
            found.health = {}
            self._changed.notify_all()

    def _call(self, method: str, claims: Sequence[Reference], timeout: float) -> dict[str, dict[str, Any]]:
        with self._connection() as (plugin, channel):
            module = _MODULES[plugin.version]
            request = getattr(module, f"{method}Request")()
            for namespace, name, uid in claims:
                request.claims.add(namespace=namespace, name=name, uid=uid)
            response = channel.unary_unary(
                f"/k8s.io.kubelet.pkg.apis.dra.{plugin.version}.DRAPlugin/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=getattr(module, f"{method}Response").FromString,
            )(request, timeout=timeout)
        asked = {uid for _, _, uid in claims}
        missing, extra = asked - set(response.claims), set(response.claims) - asked
        if missing:
            raise KubeletError(f"{method} skipped {len(missing)} ResourceClaims")
        if extra:
            raise KubeletError(f"{method} returned results for unknown claims: {sorted(extra)}")
        return {uid: _answer(answer) for uid, answer in response.claims.items()}


def _answer(answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"error": answer.error}
    if hasattr(answer, "devices"):
        found["devices"] = [
            {
                "requests": list(device.request_names),
                "pool": device.pool_name,
                "device": device.device_name,
                "cdi": list(device.cdi_device_ids),
                "share": device.share_id if hasattr(device, "share_id") and device.HasField("share_id") else None,
            }
            for device in answer.devices
        ]
    return found
