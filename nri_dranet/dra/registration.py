"""The plugin as kubelet sees it: its sockets, and the registration service.

kubelet watches a folder for sockets, asks each for its name, type, endpoint and versions, and tells whether it took it
(``k8s.io/kubelet/pkg/apis/pluginregistration/v1``). The DRA socket serves before the registration socket appears. A
registration socket that vanished, or that kubelet did not notice, is made anew.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import socket
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from nri_dranet.dra.servicer import VERSIONS
from nri_dranet.pb import pluginregistration_pb2
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LOG = logging.getLogger(__name__)

MAX_SOCKET_PATH: Final = 107
"""Bytes of a Unix socket's path (``sockaddr_un``), without its zero."""

_LOOK_SECONDS: Final = 2.0
_UNNOTICED_SECONDS: Final = 30.0
_GRACE_SECONDS: Final = 10.0
_MAX_MESSAGE: Final = 16 << 20


class SocketError(Exception):
    """A socket cannot be made; the text names the path and the cause."""


class PluginServer:
    """Serves kubelet on two sockets. All methods but ``registered`` and ``problem`` belong to the event loop."""

    def __init__(
        self,
        driver: str,
        kubelet_root: Path,
        handlers: Sequence[grpc.GenericRpcHandler],
        *,
        instance: str = "",
        versions: Sequence[str] = VERSIONS,
        look_seconds: float = _LOOK_SECONDS,
        unnoticed_seconds: float = _UNNOTICED_SECONDS,
    ) -> None:
        """Prepare to serve.

        Args:
            driver: the driver's name.
            kubelet_root: parent of ``plugins`` and ``plugins_registry``.
            handlers: the services of the DRA socket.
            instance: the pod's UID where two instances may run side by side (KEP-4381, rolling update); empty: one.
            versions: what is advertised.
            look_seconds: time between two looks at the registration socket.
            unnoticed_seconds: time after which a socket that kubelet did not notice is made anew.
        """
        self._driver = driver
        self._handlers = list(handlers)
        self._versions = list(versions)
        self._look_seconds = look_seconds
        self._unnoticed_seconds = unnoticed_seconds
        suffix = f"-{instance}" if instance else ""
        self.endpoint = kubelet_root / "plugins" / driver / f"dra{suffix}.sock"
        self.registration_socket = _registration_path(kubelet_root / "plugins_registry", driver, instance)
        self._server: grpc.aio.Server | None = None
        self._registration: grpc.aio.Server | None = None
        self._registered = False
        self._problem = "kubelet has not registered the plugin yet"
        self._inode = 0

    @property
    def registered(self) -> bool:
        """Whether kubelet has registered the plugin."""
        return self._registered

    @property
    def problem(self) -> str:
        """Why kubelet has not registered the plugin; empty when it has."""
        return "" if self._registered else self._problem

    async def start(self) -> None:
        """Serve on both sockets.

        Raises:
            SocketError: a socket cannot be made.
        """
        self._server = await self._serve(self.endpoint, self._handlers)
        await self._announce()

    async def watch(self) -> None:
        """Make the registration socket anew when it vanished or was not noticed; runs until it is cancelled."""
        waited = 0.0
        while True:
            await asyncio.sleep(self._look_seconds)
            waited = 0.0 if self._registered else waited + self._look_seconds
            gone = not self._is_ours()
            if not gone and waited < self._unnoticed_seconds:
                continue
            LOG.warning(
                "registration socket is made anew",
                extra=fields(
                    path=self.registration_socket, reason="it vanished" if gone else "kubelet did not notice it"
                ),
            )
            waited = 0.0
            with contextlib.suppress(SocketError):
                await self._withdraw()
                await self._announce()

    async def stop(self) -> None:
        """Take no more calls, finish those that run, remove the sockets."""
        await self._withdraw()
        if self._server is not None:
            await self._server.stop(_GRACE_SECONDS)
            self._server = None
        self.endpoint.unlink(missing_ok=True)

    # ---- the registration service

    async def _get_info(self, _request: Any, _context: Any) -> Any:
        return pluginregistration_pb2.PluginInfo(
            type="DRAPlugin", name=self._driver, endpoint=str(self.endpoint), supported_versions=self._versions
        )

    async def _notify(self, request: Any, _context: Any) -> Any:
        self._registered = request.plugin_registered
        metrics.KUBELET_REGISTERED.set(int(self._registered))
        if self._registered:
            LOG.info("kubelet has registered the plugin", extra=fields(driver=self._driver))
        else:
            self._problem = f"kubelet refused the plugin: {request.error}"
            LOG.error("kubelet refused the plugin", extra=fields(driver=self._driver, error=request.error))
        return pluginregistration_pb2.RegistrationStatusResponse()

    # ---- inside

    async def _announce(self) -> None:
        methods = {
            "GetInfo": grpc.unary_unary_rpc_method_handler(
                self._get_info,
                request_deserializer=pluginregistration_pb2.InfoRequest.FromString,
                response_serializer=pluginregistration_pb2.PluginInfo.SerializeToString,
            ),
            "NotifyRegistrationStatus": grpc.unary_unary_rpc_method_handler(
                self._notify,
                request_deserializer=pluginregistration_pb2.RegistrationStatus.FromString,
                response_serializer=pluginregistration_pb2.RegistrationStatusResponse.SerializeToString,
            ),
        }
        handler = grpc.method_handlers_generic_handler("pluginregistration.Registration", methods)
        self._registration = await self._serve(self.registration_socket, [handler])
        self._inode = self.registration_socket.stat().st_ino

    async def _withdraw(self) -> None:
        if self._registration is not None:
            # First the file: kubelet takes its removal as the end of the plugin.
            if self._is_ours():
                self.registration_socket.unlink(missing_ok=True)
            await self._registration.stop(1.0)
            self._registration = None
        self._registered = False
        metrics.KUBELET_REGISTERED.set(0)

    def _is_ours(self) -> bool:
        try:
            return self.registration_socket.stat().st_ino == self._inode
        except OSError:
            return False

    async def _serve(self, path: Path, handlers: Sequence[grpc.GenericRpcHandler]) -> grpc.aio.Server:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            _remove_dead(path)
        except OSError as error:
            raise SocketError(f"socket {path} cannot be made: {error}") from error
        server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ]
        )
        server.add_generic_rpc_handlers(tuple(handlers))
        try:
            server.add_insecure_port(f"unix://{path}")
            await server.start()
        except RuntimeError as error:
            raise SocketError(f"socket {path} cannot be made: {error}") from error
        return server


def _remove_dead(path: Path) -> None:
    """Remove the socket of an instance that is dead.

    Raises:
        OSError: it cannot be removed, or an instance listens on it.
    """
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            return
        except OSError:
            path.unlink(missing_ok=True)
            return
    # The former instance may still be on its way out; kubelet's next look finds the new socket.
    LOG.warning("another instance listens on the socket; it is taken over", extra=fields(path=path))
    path.unlink(missing_ok=True)


def _registration_path(folder: Path, driver: str, instance: str) -> Path:
    """Return the registration socket's path, hashed as kubelet's Go helper does it where the plain one is too long."""
    if not instance:
        return _checked(folder / f"{driver}-reg.sock")
    short = base64.urlsafe_b64encode(hashlib.sha256(instance.encode()).digest()[:8]).decode().rstrip("=")
    both = hashlib.sha256(f"{driver}\0{instance}".encode()).digest()[:16]
    names = (
        f"{driver}-{instance}-reg.sock",
        f"{driver}-{short}-reg.sock",
        f"dra-{base64.urlsafe_b64encode(both).decode().rstrip('=')}-reg.sock",
    )
    for name in names:
        path = folder / name
        if len(str(path).encode()) <= MAX_SOCKET_PATH:
            return path
    return _checked(folder / names[-1])


def _checked(path: Path) -> Path:
    if len(str(path).encode()) > MAX_SOCKET_PATH:
        raise SocketError(
            f"socket path {path} has more than {MAX_SOCKET_PATH} bytes: choose a shorter --kubelet-root-dir"
        )
    return path
