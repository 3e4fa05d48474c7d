"""The plugin as kubelet sees it: its sockets, and the registration service.

kubelet watches a folder for sockets, asks each for its name, type, endpoint and versions, and tells whether it took it
(``k8s.io/kubelet/pkg/apis/pluginregistration/v1``). The DRA socket serves before the registration socket appears. A
registration socket that vanished, or that kubelet did not notice, is made anew; so is a DRA socket that vanished.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import itertools
import logging
import re
import secrets
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from nri_dranet.dra import health as health_service
from nri_dranet.dra.servicer import VERSIONS
from nri_dranet.pb import pluginregistration_pb2
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from nri_dranet.dra.health import HealthService

LOG = logging.getLogger(__name__)

MAX_SOCKET_PATH: Final = 107
"""Bytes of a Unix socket's path (``sockaddr_un``), without its zero."""

_LOOK_SECONDS: Final = 2.0
_UNNOTICED_SECONDS: Final = 30.0
_GRACE_SECONDS: Final = 10.0
_REGISTRATION_GRACE_SECONDS: Final = 1.0
_PROBE_SECONDS: Final = 1.0
_MAX_MESSAGE: Final = 16 << 20

_POD_UID: Final = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
"""Only sockets with a whole UID in their name are known to be this driver's own, and no other's of a longer name."""

# Two instances, in containers of their own, may have the same process ID.
_OWN: Final = secrets.token_hex(2)
_numbers = itertools.count()


class SocketError(Exception):
    """A socket cannot be made; the text names the path and the cause."""


@dataclass(frozen=True, slots=True)
class _Served:
    """A server and the file of its socket."""

    server: grpc.aio.Server
    path: Path
    identity: tuple[int, int, int]

    def is_there(self) -> bool:
        """Tell whether the file is still this server's."""
        try:
            return _identity(self.path) == self.identity
        except OSError:
            return False

    def remove(self) -> None:
        """Remove the file, unless another instance has put its own there."""
        if self.is_there():
            self.path.unlink(missing_ok=True)


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
        health: HealthService | None = None,
        look_seconds: float = _LOOK_SECONDS,
        unnoticed_seconds: float = _UNNOTICED_SECONDS,
    ) -> None:
        """Prepare to serve.

        Args:
            driver: the driver's name.
            kubelet_root: parent of ``plugins`` and ``plugins_registry``.
            handlers: the services of the DRA socket.
            instance: the pod's UID where two instances may run side by side (KEP-4381, rolling update); empty: one.
            versions: what is advertised, the best first.
            health: the health service; it is served and advertised too, and closed at the stop.
            look_seconds: time between two looks at the sockets.
            unnoticed_seconds: time after which a socket that kubelet did not notice is made anew.

        Raises:
            SocketError: a path would be too long for a socket.
        """
        self._driver = driver
        self._handlers = [*handlers, *(health.handlers() if health is not None else ())]
        self._versions = [*versions, *(health_service.VERSIONS if health is not None else ())]
        self._health = health
        self._look_seconds = look_seconds
        self._unnoticed_seconds = unnoticed_seconds
        suffix = f"-{instance}" if instance else ""
        self.endpoint = _checked(kubelet_root / "plugins" / driver / f"dra{suffix}.sock")
        self.registration_socket = _registration_path(kubelet_root / "plugins_registry", driver, instance)
        self._dra: _Served | None = None
        self._registration: _Served | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._registered = False
        self._problem = "kubelet has not registered the plugin yet"

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
            SocketError: a socket cannot be made; nothing is served then.
        """
        self._dra = await self._serve(self.endpoint, self._handlers)
        try:
            await self._announce()
        except SocketError:
            await self.stop()
            raise
        self._sweep()

    async def watch(self) -> None:
        """Make the sockets anew when they vanished or were not noticed; runs until it is cancelled."""
        waited = 0.0
        while True:
            await asyncio.sleep(self._look_seconds)
            waited = 0.0 if self._registered else waited + self._look_seconds
            reason = self._reason(unnoticed=waited >= self._unnoticed_seconds)
            if not reason:
                continue
            LOG.warning("registration socket is made anew", extra=fields(path=self.registration_socket, reason=reason))
            waited = 0.0
            try:
                await self._withdraw()
                await self._serve_again()
                await self._announce()
            except SocketError as error:
                self._problem = str(error)
                LOG.error("kubelet cannot reach this plugin, trying on", extra=fields(error=error))  # noqa: TRY400 - the text says all

    async def stop(self) -> None:
        """Take no more calls, finish those that run, remove the sockets."""
        await self._withdraw()
        if self._health is not None:
            # A stream has no end of its own, which the grace would wait for.
            self._health.close()
        served, self._dra = self._dra, None
        if served is not None:
            await served.server.stop(_GRACE_SECONDS)
            served.remove()
        if self._ending:
            await asyncio.gather(*self._ending)

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

    def _reason(self, *, unnoticed: bool) -> str:
        """Say why the sockets must be made anew; empty where they need not."""
        if self._dra is None or not self._dra.is_there():
            return "the DRA socket vanished"
        if self._registration is None or not self._registration.is_there():
            return "it vanished"
        return "kubelet did not notice it" if unnoticed else ""

    def _sweep(self) -> None:
        """Remove the sockets of instances that are dead: kubelet would dial them for ever."""
        folders = self.registration_socket.parent, self.endpoint.parent
        patterns = f"{re.escape(self._driver)}(-{_POD_UID})?-reg\\.sock", f"dra(-{_POD_UID})?\\.sock"
        for folder, pattern in zip(folders, patterns, strict=True):
            for path in folder.iterdir():
                if re.fullmatch(pattern, path.name) and path.is_socket() and not _listens(path):
                    with contextlib.suppress(OSError):
                        path.unlink()
                        LOG.info("socket of a dead instance removed", extra=fields(path=path))

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

    async def _withdraw(self) -> None:
        served, self._registration = self._registration, None
        if served is not None:
            # First the file: kubelet takes its removal as the end of the plugin.
            served.remove()
            await served.server.stop(_REGISTRATION_GRACE_SECONDS)
        self._registered = False
        metrics.KUBELET_REGISTERED.set(0)

    async def _serve_again(self) -> None:
        """Give the DRA socket back its file, while calls that came by the former one are finished."""
        former = self._dra
        if former is not None and former.is_there():
            return
        self._dra = await self._serve(self.endpoint, self._handlers)
        if former is not None:
            task = asyncio.create_task(_end(former.server), name="former DRA server")
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _serve(self, path: Path, handlers: Sequence[grpc.GenericRpcHandler]) -> _Served:
        server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ]
        )
        server.add_generic_rpc_handlers(tuple(handlers))
        # Bound beside its place and renamed when it serves: kubelet passes over names that begin with a dot, and gRPC
        # unlinks, when a server stops, whatever has the name that the server was bound to by then.
        made = path.with_name(f".{_OWN}-{next(_numbers)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            made.unlink(missing_ok=True)
            server.add_insecure_port(f"unix://{made}")
            await server.start()
            _tell_former(path)
            identity = _identity(made)
            made.rename(path)
        except (OSError, RuntimeError) as error:
            await server.stop(None)
            with contextlib.suppress(OSError):
                made.unlink(missing_ok=True)
            raise SocketError(f"socket {path} cannot be made: {error}") from error
        return _Served(server, path, identity)


async def _end(server: grpc.aio.Server) -> None:
    await server.stop(_GRACE_SECONDS)


def _identity(path: Path) -> tuple[int, int, int]:
    """Tell one socket from another that has its name and, as inodes are used again, its number.

    Raises:
        OSError: there is none.
    """
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns


def _tell_former(path: Path) -> None:
    """Say what is about to be replaced: the socket of a dead instance, or of one that still listens.

    Raises:
        OSError: what is there is no socket.
    """
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_socket():
        raise FileExistsError(f"{path} exists and is no socket: remove it")
    if not _listens(path):
        LOG.info("socket of a dead instance replaced", extra=fields(path=path))
        return
    # The former instance may still be on its way out; kubelet's next look finds the new socket.
    LOG.warning("another instance listens on the socket; it is taken over", extra=fields(path=path))


def _listens(path: Path) -> bool:
    """Tell whether somebody listens on a socket."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except OSError as error:
            # A full backlog is that of a live one.
            return isinstance(error, BlockingIOError | TimeoutError)
        return True


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
