"""A stand-in for kubelet's plugin manager and its DRA calls: the real protocols over real sockets, without root.

It watches the registration folder, asks each socket for its name and versions, takes the first DRA version that it
knows (in the plugin's order), tells the plugin so, and calls it as kubelet does: an answer that lacks a claim, or has
one too many, is an error of the plugin.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc

from nri_dranet.pb import dra_v1_pb2, dra_v1beta1_pb2, pluginregistration_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import ModuleType

CALL_SECONDS: Final = 45.0
"""What kubelet allows for a call."""

_LOOK_SECONDS: Final = 0.05
_INFO_SECONDS: Final = 1.0
_NOTIFY_SECONDS: Final = 5.0
_PATIENCE: Final = 20.0
_MODULES: Final[dict[str, ModuleType]] = {"v1": dra_v1_pb2, "v1beta1": dra_v1beta1_pb2}

Reference = tuple[str, str, str]
"""A claim: namespace, name, UID."""


class KubeletError(Exception):
    """The plugin did what kubelet does not accept; the text is kubelet's way of saying it."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """A registered plugin."""

    name: str
    endpoint: str
    version: str
    supported: tuple[str, ...]


class KubeletStandIn:
    """kubelet, as far as a DRA plugin sees it."""

    def __init__(self, registry: Path, *, driver: str, versions: Sequence[str] = ("v1", "v1beta1")) -> None:
        """Prepare to watch.

        Args:
            registry: the registration folder.
            driver: the driver that is called.
            versions: the DRA versions that this kubelet knows.
        """
        self._registry = registry
        self._driver = driver
        self._versions = tuple(versions)
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._plugin: Plugin | None = None
        self._known: dict[str, int] = {}
        self._channel: grpc.Channel | None = None
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
        if self._channel is not None:
            self._channel.close()

    def wait_registered(self, timeout: float = _PATIENCE) -> Plugin:
        """Return the plugin as soon as it is registered.

        Raises:
            KubeletError: it did not register in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._plugin is not None, timeout) or self._plugin is None:
                raise KubeletError(f"no plugin {self._driver} registered within {timeout:g} s; {self.problems}")
            return self._plugin

    def prepare(self, claims: Sequence[Reference]) -> dict[str, dict[str, Any]]:
        """Call NodePrepareResources and return the answers by claim UID: ``devices`` and ``error``.

        Raises:
            KubeletError: the answer does not fit the request.
            grpc.RpcError: the call failed.
        """
        return self._call("NodePrepareResources", claims)

    def unprepare(self, claims: Sequence[Reference]) -> dict[str, dict[str, Any]]:
        """Call NodeUnprepareResources and return the answers by claim UID: ``error``.

        Raises:
            KubeletError: the answer does not fit the request.
            grpc.RpcError: the call failed.
        """
        return self._call("NodeUnprepareResources", claims)

    # ---- inside

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            present: dict[str, int] = {}
            with contextlib.suppress(FileNotFoundError):
                for path in self._registry.iterdir():
                    with contextlib.suppress(FileNotFoundError):
                        if path.is_socket() and not path.name.startswith("."):
                            present[str(path)] = path.stat().st_ino
            for each, inode in present.items():
                if self._known.get(each) != inode:
                    self._register(each)
            if self._known.keys() - present.keys():
                with self._changed:
                    self._plugin = None
            self._known = present

    def _register(self, path: str) -> None:
        pb = pluginregistration_pb2
        with grpc.insecure_channel(f"unix://{path}") as channel:
            try:
                info = channel.unary_unary(
                    "/pluginregistration.Registration/GetInfo",
                    request_serializer=pb.InfoRequest.SerializeToString,
                    response_deserializer=pb.PluginInfo.FromString,
                )(pb.InfoRequest(), timeout=_INFO_SECONDS)
                error = self._accept(info)
                channel.unary_unary(
                    "/pluginregistration.Registration/NotifyRegistrationStatus",
                    request_serializer=pb.RegistrationStatus.SerializeToString,
                    response_deserializer=pb.RegistrationStatusResponse.FromString,
                )(pb.RegistrationStatus(plugin_registered=not error, error=error), timeout=_NOTIFY_SECONDS)
            except grpc.RpcError as failure:
                self.problems.append(f"{path}: {failure}")
                return
        if error:
            self.problems.append(error)
            return
        with self._changed:
            self.registrations += 1
            self._changed.notify_all()

    def _accept(self, info: pluginregistration_pb2.PluginInfo) -> str:
        """Take a plugin in; return why not."""
        if info.type != "DRAPlugin":
            return f"no handler for plugin type {info.type}"
        if info.name != self._driver:
            return f"unknown driver {info.name}"
        version = next(
            (
                known
                for offered in info.supported_versions
                for known in self._versions
                if offered == f"{known}.DRAPlugin"
            ),
            None,
        )
        if version is None:
            return f"none of the DRA gRPC versions {list(info.supported_versions)} is supported"
        with self._changed:
            self._plugin = Plugin(info.name, info.endpoint, version, tuple(info.supported_versions))
            if self._channel is not None:
                self._channel.close()
            self._channel = grpc.insecure_channel(f"unix://{info.endpoint}")
            self._changed.notify_all()
        return ""

    def _call(self, method: str, claims: Sequence[Reference]) -> dict[str, dict[str, Any]]:
        plugin = self.wait_registered()
        module = _MODULES[plugin.version]
        request = getattr(module, f"{method}Request")()
        for namespace, name, uid in claims:
            request.claims.add(namespace=namespace, name=name, uid=uid)
        with self._changed:
            channel = self._channel
        if channel is None:
            raise KubeletError(f"plugin {self._driver} is not connected")
        response = channel.unary_unary(
            f"/k8s.io.kubelet.pkg.apis.dra.{plugin.version}.DRAPlugin/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=getattr(module, f"{method}Response").FromString,
        )(request, timeout=CALL_SECONDS)
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
            }
            for device in answer.devices
        ]
    return found
