"""A stand-in for a container runtime's NRI side: the real protocol over a real socket, without root or containers.

It has the Go peer's manners (containerd/nri ``pkg/adaptation``, ``pkg/net/multiplex``; containerd/ttrpc
``channel.go``): one plugin is taken at a time; a frame that holds a ttrpc header has 4096 bytes at most, else the
connection is closed; at most 256 frames wait for a connection; one event at a time for the whole node; a plugin that
does not answer in time is dropped and the event goes on as if it had succeeded; after a refused RunPodSandbox, Stop
and Remove go to every plugin that is still there.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nri_dranet.pb import nri_pb2
from nri_dranet.ttrpc.connection import Client, RequestReceived, Server, Status
from nri_dranet.ttrpc.frames import HEADER_SIZE as TTRPC_HEADER
from nri_dranet.ttrpc.frames import ProtocolError
from nri_dranet.ttrpc.mux import FIRST_FRAME, PLUGIN_CONNECTION, RUNTIME_CONNECTION, cut

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from google.protobuf.message import Message

PLUGIN: Final = "nri.pkg.api.v1alpha1.Plugin"

RUN: Final = 1
STOP: Final = 2
REMOVE: Final = 3
CREATE_CONTAINER: Final = 4

_QUEUE: Final = 256
_READ: Final = 64 << 10
_PATIENCE: Final = 20.0
_MUX: Final = struct.Struct(">II")
_TTRPC: Final = struct.Struct(">IIBB")
_VALID_OLD: Final = 0x7FF
_VALID: Final = 0x3FFF


class RuntimeRefusedError(Exception):
    """A call to the runtime failed: a plugin refused it, or a container's CDI device cannot be resolved."""


class _DroppedError(Exception):
    """A plugin is not there any more, or did not answer in time."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod sandbox. ``netns_path`` "" means the host's network."""

    id: str
    name: str
    namespace: str
    uid: str
    netns_path: str = ""
    pid: int = 1

    def message(self, *, with_netns: bool = True) -> nri_pb2.PodSandbox:
        """Return the sandbox as NRI sends it."""
        pod = nri_pb2.PodSandbox(id=self.id, name=self.name, namespace=self.namespace, uid=self.uid, pid=self.pid)
        if self.netns_path and with_netns:
            pod.linux.namespaces.add(type="network", path=self.netns_path)
            pod.linux.namespaces.add(type="ipc", path=f"/proc/{self.pid}/ns/ipc")
        return pod


class GoPeer:
    """Takes a plugin's bytes as the Go peer does, and says when that would close the connection."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._frame: tuple[int, bytearray, int] | None = None
        self._owed: dict[int, int] = {}
        self._headers: dict[int, bytearray] = {}

    def receive(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return connection and payload of each whole frame.

        Raises:
            ProtocolError: the Go peer would close the connection; the text has its reason.
        """
        found = []
        view = memoryview(data)
        while view:
            if self._frame is None:
                need = _MUX.size - len(self._head)
                self._head += view[:need]
                view = view[need:]
                if len(self._head) == _MUX.size:
                    connection, length = _MUX.unpack(self._head)
                    self._head.clear()
                    self._frame = (connection, bytearray(), length)
                continue
            connection, body, length = self._frame
            piece = view[: length - len(body)]
            body += piece
            view = view[len(piece) :]
            if len(body) == length:
                self._frame = None
                self._check(connection, bytes(body))
                found.append((connection, bytes(body)))
        if len(found) > _QUEUE:
            raise ProtocolError(f"failed to queue payload for reading: {len(found)} frames at once")
        return found

    def _check(self, connection: int, body: bytes) -> None:
        """A frame in which a ttrpc header begins must fit in the 4096 bytes that are read at once."""
        rest = body
        while rest:
            owed = self._owed.get(connection, 0)
            if owed:
                taken = min(owed, len(rest))
                self._owed[connection] = owed - taken
                rest = rest[taken:]
                continue
            if len(body) > FIRST_FRAME:
                raise ProtocolError(f"ENOMEM: a frame of {len(body)} bytes holds a ttrpc header")
            head = self._headers.setdefault(connection, bytearray())
            need = TTRPC_HEADER - len(head)
            head += rest[:need]
            rest = rest[need:]
            if len(head) == TTRPC_HEADER:
                self._owed[connection] = _TTRPC.unpack(head)[0]
                head.clear()


class _Plugin:
    """One connected plugin."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.peer = GoPeer()
        self.server = Server()
        self.client = Client()
        self.name = ""
        self.events = 0
        self.registered = threading.Event()
        self.closed = threading.Event()
        self.why = ""
        self._lock = threading.Lock()
        self._answers: dict[int, tuple[bytes, Status | None]] = {}
        self._waiting: set[int] = set()
        self._changed = threading.Condition()
        self.hold_register_answer = False
        self._held: bytes | None = None

    def close(self, why: str) -> None:
        """Drop the plugin."""
        if not self.closed.is_set():
            self.why = why
            self.closed.set()
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
            with self._changed:
                self._changed.notify_all()

    def send(self, connection: int, message: bytes) -> None:
        """Send one ttrpc message."""
        try:
            with self._lock:
                self.sock.sendall(b"".join(cut(connection, message)))
        except OSError as error:
            self.close(f"send failed: {error}")

    def read(self) -> None:
        """Read until the connection ends. For a thread of its own."""
        try:
            while not self.closed.is_set():
                data = self.sock.recv(_READ)
                if not data:
                    self.close("closed by the plugin")
                    break
                for connection, payload in self.peer.receive(data):
                    self._take(connection, payload)
        except (OSError, ProtocolError) as error:
            self.close(str(error))
        finally:
            self.close("ended")
            self.sock.close()

    def call(self, method: str, request: Message, timeout: float) -> bytes:
        """Call a method of the plugin.

        Raises:
            RuntimeRefusedError: the plugin answered with an error.
            _DroppedError: it did not answer in time, or is gone.
        """
        with self._lock:
            stream, message = self.client.call(PLUGIN, method, request.SerializeToString(), timeout=timeout)
            self._waiting.add(stream)
            try:
                self.sock.sendall(b"".join(cut(PLUGIN_CONNECTION, message)))
            except OSError as error:
                self.close(f"send failed: {error}")
        with self._changed:
            answered = self._changed.wait_for(lambda: stream in self._answers or self.closed.is_set(), timeout)
            answer = self._answers.pop(stream, None)
        if answer is None:
            why = f"failed to handle {method} request: " + ("context deadline exceeded" if not answered else self.why)
            self.close(why)
            raise _DroppedError(why)
        payload, status = answer
        if status is not None:
            if status.code == 12:
                raise NotImplementedError(method)
            raise RuntimeRefusedError(status.message)
        return payload

    def release_register_answer(self) -> None:
        """Send the answer to RegisterPlugin that was held back."""
        if self._held is not None:
            self.send(RUNTIME_CONNECTION, self._held)

    def _take(self, connection: int, payload: bytes) -> None:
        if connection == PLUGIN_CONNECTION:
            with self._changed:
                for answer in self.client.receive(payload):
                    self._answers[answer.stream] = (answer.payload, answer.status)
                self._changed.notify_all()
        elif connection == RUNTIME_CONNECTION:
            for event in self.server.receive(payload):
                if isinstance(event, RequestReceived):
                    self._serve(event)
                else:
                    self.send(RUNTIME_CONNECTION, event.answer)

    def _serve(self, event: RequestReceived) -> None:
        if event.method == "RegisterPlugin":
            request = nri_pb2.RegisterPluginRequest.FromString(event.payload)
            if not request.plugin_name or len(request.plugin_idx) != 2 or not request.plugin_idx.isdecimal():
                self.send(RUNTIME_CONNECTION, self.server.fail(event.stream, Status(2, "invalid plugin name or index")))
                return
            self.name = f"{request.plugin_idx}-{request.plugin_name}"
            answer = self.server.respond(event.stream, b"")
            self.registered.set()
            if self.hold_register_answer:
                self._held = answer
            else:
                self.send(RUNTIME_CONNECTION, answer)
        else:
            self.send(RUNTIME_CONNECTION, self.server.fail(event.stream, Status(12, f"method {event.method}")))


class RuntimeStandIn:
    """The container runtime. All methods block, as CRI's calls do."""

    def __init__(
        self,
        socket_path: Path,
        *,
        request_timeout: float = 2.0,
        registration_timeout: float = 5.0,
        dedicated_calls: bool = True,
        announce_timeouts: bool = True,
        configure_first: bool = False,
        chunk: int = 0,
        cdi_dir: Path | None = None,
    ) -> None:
        """Prepare to listen.

        Args:
            socket_path: where plugins dial.
            request_timeout: seconds that a plugin may take for a call.
            registration_timeout: seconds that it may take to register.
            dedicated_calls: NRI 0.12: sandbox events are calls of their own; False: ``StateChange``.
            announce_timeouts: tell them in Configure (NRI 0.7 and later).
            configure_first: call Configure before RegisterPlugin is answered.
            chunk: sandboxes in one part of Synchronize; 0: all in one.
            cdi_dir: where a container's CDI devices must be defined; None: they are not looked at.
        """
        self._path = socket_path
        self._request_timeout = request_timeout
        self._registration_timeout = registration_timeout
        self._dedicated = dedicated_calls
        self._announce = announce_timeouts
        self._configure_first = configure_first
        self._chunk = chunk
        self._cdi_dir = cdi_dir
        self._events = threading.RLock()
        self._changed = threading.Condition()
        self._plugins: list[_Plugin] = []
        self._pods: dict[str, Pod] = {}
        self._stopped_pods: dict[str, Pod] = {}
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self.log: list[str] = []

    # ---- the runtime itself

    def start(self) -> None:
        """Listen for plugins."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._accept, args=(self._listener,), name="runtime", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop listening and drop every plugin; the sandboxes stay known."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for plugin in list(self._plugins):
            plugin.close("the runtime stops")
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def restart(self) -> None:
        """Stop and start: plugins must come again, and no stop is sent for sandboxes from before."""
        self.stop()
        self.start()

    def wait_for_plugin(self, count: int = 1, timeout: float = _PATIENCE) -> list[str]:
        """Return the names of the plugins as soon as ``count`` are synchronized.

        Raises:
            RuntimeRefusedError: they did not come in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._alive()) >= count, timeout):
                raise RuntimeRefusedError(f"{len(self._alive())} plugins came within {timeout:g} s: {self.log[-5:]}")
            return [plugin.name for plugin in self._alive()]

    @property
    def plugins(self) -> list[str]:
        """The names of the plugins that are connected and synchronized."""
        with self._changed:
            return [plugin.name for plugin in self._alive()]

    # ---- what the CRI does

    def run_pod(self, pod: Pod) -> None:
        """Run a sandbox.

        Raises:
            RuntimeRefusedError: a plugin refused; the sandbox is gone again.
        """
        with self._events:
            try:
                self._tell(RUN, pod.message())
            except RuntimeRefusedError:
                for event in (STOP, REMOVE):
                    with contextlib.suppress(RuntimeRefusedError):
                        self._tell(event, pod.message())
                raise
            self._pods[pod.id] = pod

    def stop_pod(self, pod: Pod, *, with_netns: bool = True) -> None:
        """Stop a sandbox; errors of plugins are passed over, as containerd does."""
        with self._events:
            with contextlib.suppress(RuntimeRefusedError):
                self._tell(STOP, pod.message(with_netns=with_netns))
            if self._pods.pop(pod.id, None) is not None:
                self._stopped_pods[pod.id] = pod

    def remove_pod(self, pod: Pod) -> None:
        """Remove a sandbox."""
        with self._events:
            with contextlib.suppress(RuntimeRefusedError):
                self._tell(REMOVE, pod.message())
            self._pods.pop(pod.id, None)
            self._stopped_pods.pop(pod.id, None)

    def create_container(
        self, pod: Pod, name: str, cdi_devices: Sequence[str] = ()
    ) -> list[nri_pb2.ContainerAdjustment]:
        """Create a container and return what the plugins add to it.

        Raises:
            RuntimeRefusedError: a plugin refused, or a CDI device cannot be resolved.
        """
        with self._events:
            request = nri_pb2.CreateContainerRequest(pod=pod.message())
            request.container.id = f"{pod.id}-{name}"
            request.container.pod_sandbox_id = pod.id
            request.container.name = name
            for device in cdi_devices:
                request.container.CDI_devices.add(name=device)
            found = []
            for plugin in self._alive():
                if plugin.events & 1 << CREATE_CONTAINER - 1:
                    with contextlib.suppress(_DroppedError):
                        payload = plugin.call("CreateContainer", request, self._request_timeout)
                        found.append(nri_pb2.CreateContainerResponse.FromString(payload).adjust)
            missing = [device for device in cdi_devices if not self._resolves(device)]
            if missing:
                raise RuntimeRefusedError(f"unresolvable CDI devices {', '.join(missing)}")
            return found

    # ---- inside

    def _alive(self) -> list[_Plugin]:
        return sorted(
            (plugin for plugin in self._plugins if not plugin.closed.is_set()), key=lambda plugin: plugin.name
        )

    def _tell(self, event: int, pod: nri_pb2.PodSandbox) -> None:
        """Send a sandbox event to every plugin that wants it, in order.

        Raises:
            RuntimeRefusedError: a plugin refused; later ones are not asked.
        """
        method = {RUN: "RunPodSandbox", STOP: "StopPodSandbox", REMOVE: "RemovePodSandbox"}[event]
        for plugin in self._alive():
            if not plugin.events & 1 << event - 1:
                continue
            try:
                if self._dedicated:
                    request: Message = getattr(nri_pb2, f"{method}Request")(pod=pod)
                    plugin.call(method, request, self._request_timeout)
                else:
                    plugin.call(
                        "StateChange",
                        nri_pb2.StateChangeEvent(event=nri_pb2.Event.Name(event), pod=pod),
                        self._request_timeout,
                    )
            except _DroppedError as error:
                self.log.append(f"closing plugin {plugin.name}, {error}")

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            plugin = _Plugin(sock)
            plugin.hold_register_answer = self._configure_first
            threading.Thread(target=plugin.read, name="runtime-plugin", daemon=True).start()
            try:
                self._welcome(plugin)
            except (_DroppedError, RuntimeRefusedError, NotImplementedError) as error:
                plugin.close(str(error))
                self.log.append(f"plugin {plugin.name or '?'} not taken: {error}")

    def _welcome(self, plugin: _Plugin) -> None:
        """Register, configure and synchronize a plugin, then let it in.

        Raises:
            RuntimeRefusedError: the plugin did what the runtime does not accept.
            _DroppedError: it did not answer in time.
        """
        if not plugin.registered.wait(self._registration_timeout):
            raise RuntimeRefusedError("plugin registration timed out")
        request = nri_pb2.ConfigureRequest(runtime_name="stand-in", runtime_version="1")
        if self._announce:
            request.registration_timeout = int(self._registration_timeout * 1000)
            request.request_timeout = int(self._request_timeout * 1000)
        if self._dedicated:
            request.NRI_version = "v0.12.3"
        payload = plugin.call("Configure", request, self._request_timeout)
        plugin.release_register_answer()
        plugin.events = nri_pb2.ConfigureResponse.FromString(payload).events
        valid = _VALID if self._dedicated else _VALID_OLD
        if plugin.events & ~valid:
            raise RuntimeRefusedError(f"invalid plugin events: {plugin.events & ~valid:#x}")
        plugin.events = plugin.events or valid
        with self._events:
            self._synchronize(plugin)
            with self._changed:
                self._plugins = [*self._alive(), plugin]
                self._changed.notify_all()
            self.log.append(f"plugin {plugin.name} connected and synchronized")

    def _synchronize(self, plugin: _Plugin) -> None:
        pods = [pod.message() for pod in self._pods.values()]
        for pod in self._stopped_pods.values():
            stopped = pod.message(with_netns=False)
            stopped.pid = 0
            pods.append(stopped)
        size = self._chunk or max(1, len(pods))
        parts = [pods[i : i + size] for i in range(0, len(pods), size)] or [[]]
        end = time.monotonic() + self._request_timeout
        for number, part in enumerate(parts):
            more = number < len(parts) - 1
            request = nri_pb2.SynchronizeRequest(pods=part, more=more)
            payload = plugin.call("Synchronize", request, max(0.01, end - time.monotonic()))
            if more and not nri_pb2.SynchronizeResponse.FromString(payload).more:
                raise RuntimeRefusedError("plugin cannot handle split synchronization requests")

    def _resolves(self, device: str) -> bool:
        if self._cdi_dir is None:
            return True
        kind, _, name = device.partition("=")
        with contextlib.suppress(FileNotFoundError):
            for path in self._cdi_dir.iterdir():
                if path.suffix == ".json":
                    with contextlib.suppress(FileNotFoundError, ValueError):
                        spec = json.loads(path.read_text(encoding="utf-8"))
                        if spec["kind"] == kind and any(each["name"] == name for each in spec["devices"]):
                            return True
        return False
