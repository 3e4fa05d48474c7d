"""A stand-in for a container runtime's NRI side: the real protocol over a real socket, without root or containers.

It has the Go peer's manners (containerd/nri ``pkg/adaptation``): one plugin is taken at a time; one event at a time for
the whole node; plugins in the order of their index; a plugin that does not answer in time is dropped and the event goes
on as if it had succeeded; after a refused RunPodSandbox, Stop and Remove go to every plugin that is still there; after
a restart of the runtime the sandboxes from before are listed, and no Stop is sent for them by itself.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nri_dranet.pb import nri_pb2
from nri_dranet.testing.patience import patience
from nri_dranet.testing.runtime_plugin import ConnectedPlugin, DroppedError, RuntimeRefusedError, UnimplementedError
from nri_dranet.ttrpc.frames import MAX_DATA, LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from google.protobuf.message import Message

RUN: Final = nri_pb2.RUN_POD_SANDBOX
STOP: Final = nri_pb2.STOP_POD_SANDBOX
REMOVE: Final = nri_pb2.REMOVE_POD_SANDBOX
CREATE_CONTAINER: Final = nri_pb2.CREATE_CONTAINER

_PATIENCE: Final = patience(20.0)
_VALID_OLD: Final = 0x7FF
_VALID: Final = 0x3FFF
# Room for what stands around the lists in a message (an estimate from above).
_ROOM: Final = 1 << 10

_REQUESTS: Final[dict[int, tuple[str, Callable[[nri_pb2.PodSandbox], Message]]]] = {
    RUN: ("RunPodSandbox", lambda pod: nri_pb2.RunPodSandboxRequest(pod=pod)),
    STOP: ("StopPodSandbox", lambda pod: nri_pb2.StopPodSandboxRequest(pod=pod)),
    REMOVE: ("RemovePodSandbox", lambda pod: nri_pb2.RemovePodSandboxRequest(pod=pod)),
}


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
            pod.linux.namespaces.add(type="ipc", path=f"/proc/{self.pid}/ns/ipc")
            pod.linux.namespaces.add(type="network", path=self.netns_path)
        return pod


class RuntimeStandIn:
    """The container runtime. All methods block, as CRI's calls do."""

    def __init__(
        self,
        socket_path: Path,
        *,
        request_timeout: float = patience(2.0),
        registration_timeout: float = patience(5.0),
        dedicated_calls: bool = True,
        announce_timeouts: bool = True,
        configure_first: bool = False,
        strict_stop: bool = False,
        chunk: int = 0,
        cdi_dir: Path | None = None,
    ) -> None:
        """Prepare to listen.

        Args:
            socket_path: where plugins dial.
            request_timeout: seconds that a plugin may take for a call.
            registration_timeout: seconds that it may take to register.
            dedicated_calls: NRI 0.12: sandbox events are calls of their own, ``StateChange`` if a plugin does not know
                them; False: NRI 0.8, ``StateChange`` only, and no version told.
            announce_timeouts: tell them in Configure (NRI 0.7 and later).
            configure_first: call Configure before RegisterPlugin is answered.
            strict_stop: a Stop that a plugin refuses fails, as with CRI-O; containerd passes over it.
            chunk: sandboxes in one part of Synchronize; 0: as many as a message holds.
            cdi_dir: where a container's CDI devices must be defined; None: they are not looked at.
        """
        self._path = socket_path
        self._request_timeout = request_timeout
        self._registration_timeout = registration_timeout
        self._dedicated = dedicated_calls
        self._announce = announce_timeouts
        self._configure_first = configure_first
        self._strict_stop = strict_stop
        self._chunk = chunk
        self._cdi_dir = cdi_dir
        self._events = threading.Lock()
        self._changed = threading.Condition()
        self._plugins: list[ConnectedPlugin] = []
        self._joining: ConnectedPlugin | None = None
        self._pods: dict[str, Pod] = {}
        self._stopped_pods: dict[str, Pod] = {}
        self._containers: dict[str, dict[str, nri_pb2.Container]] = {}
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self.log: list[str] = []

    # ---- the runtime itself

    def start(self) -> None:
        """Listen for plugins.

        Raises:
            OSError: the socket cannot be made.
        """
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
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        while self._thread is not None and self._thread.is_alive():
            self._drop_all()
            self._thread.join(0.05)
        self._thread = None
        if listener is not None:
            listener.close()
        for plugin in self._drop_all():
            plugin.join()
        self._plugins = []

    def restart(self) -> None:
        """Stop and start: plugins must come again, and no stop is sent for sandboxes from before."""
        self.stop()
        self.start()

    def wait_for_plugin(self, count: int = 1, timeout: float = _PATIENCE) -> list[str]:
        """Return the names of the plugins as soon as ``count`` are synchronized.

        Raises:
            RuntimeRefusedError: they did not come within ``timeout`` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._alive()) >= count, timeout):
                raise RuntimeRefusedError(f"{len(self._alive())} plugins came within {timeout:g} s: {self.log[-5:]}")
            return [plugin.name for plugin in self._alive()]

    def wait_for_loss(self, timeout: float = _PATIENCE) -> None:
        """Wait until no plugin is connected.

        Raises:
            RuntimeRefusedError: one still is after ``timeout`` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._alive(), timeout):
                raise RuntimeRefusedError(f"still connected after {timeout:g} s: {self.plugins}")

    @property
    def plugins(self) -> list[str]:
        """The names of the plugins that are connected and synchronized, in the order in which they are called."""
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
            except RuntimeRefusedError as error:
                self.log.append(f"NRI RunPodSandbox failed: {error}")
                for event in (STOP, REMOVE):
                    self._tell_anyway(event, pod.message())
                raise
            self._pods[pod.id] = pod

    def stop_pod(self, pod: Pod, *, with_netns: bool = True) -> None:
        """Stop a sandbox.

        Args:
            pod: the sandbox.
            with_netns: tell its namespaces; containerd before 2.1 does not.

        Raises:
            RuntimeRefusedError: a plugin refused, and Stop is strict: the sandbox is as before.
        """
        with self._events:
            error = self._tell_anyway(STOP, pod.message(with_netns=with_netns))
            if error and self._strict_stop:
                raise RuntimeRefusedError(error)
            self._containers.pop(pod.id, None)
            if self._pods.pop(pod.id, None) is not None:
                self._stopped_pods[pod.id] = pod

    def remove_pod(self, pod: Pod) -> None:
        """Remove a sandbox."""
        with self._events:
            self._tell_anyway(REMOVE, pod.message())
            for known in (self._pods, self._stopped_pods, self._containers):
                known.pop(pod.id, None)

    def create_container(
        self, pod: Pod, name: str, cdi_devices: Sequence[str] = ()
    ) -> list[nri_pb2.ContainerAdjustment]:
        """Create a container and return what each plugin adds to it.

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
            found = [
                nri_pb2.CreateContainerResponse.FromString(payload).adjust
                for plugin in self._subscribed(CREATE_CONTAINER)
                if (payload := self._ask(plugin, "CreateContainer", request)) is not None
            ]
            missing = [device for device in cdi_devices if not self._resolves(device)]
            if missing:
                raise RuntimeRefusedError(f"unresolvable CDI devices {', '.join(missing)}")
            made = nri_pb2.Container()
            made.CopyFrom(request.container)
            made.state = nri_pb2.CONTAINER_RUNNING
            self._containers.setdefault(pod.id, {})[name] = made
            return found

    def call_plugins(self, method: str, request: Message) -> list[bytes]:
        """Call any method of every plugin, whatever it subscribed to, and return the encoded responses.

        Raises:
            RuntimeRefusedError: a plugin refused.
        """
        with self._events:
            answers = [self._ask(plugin, method, request) for plugin in self._alive()]
            return [payload for payload in answers if payload is not None]

    # ---- inside

    def _alive(self) -> list[ConnectedPlugin]:
        return sorted((plugin for plugin in self._plugins if plugin.alive), key=lambda plugin: plugin.name[:2])

    def _drop_all(self) -> list[ConnectedPlugin]:
        plugins = [*self._plugins, *([self._joining] if self._joining else [])]
        for plugin in plugins:
            plugin.close("the runtime stops")
        return plugins

    def _note_change(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _subscribed(self, event: int) -> list[ConnectedPlugin]:
        return [plugin for plugin in self._alive() if plugin.events & 1 << event - 1]

    def _ask(self, plugin: ConnectedPlugin, method: str, request: Message) -> bytes | None:
        """Return the encoded response; None when the plugin is gone, which counts as done.

        Raises:
            RuntimeRefusedError: the plugin refused.
        """
        try:
            return plugin.call(method, request, self._request_timeout)
        except DroppedError as error:
            self.log.append(f"closing plugin {plugin.name}, {error}")
            return None

    def _tell(self, event: int, pod: nri_pb2.PodSandbox) -> None:
        """Send a sandbox event to every plugin that wants it, in order.

        Raises:
            RuntimeRefusedError: a plugin refused; later ones are not asked.
        """
        method, request = _REQUESTS[event]
        old_form = nri_pb2.StateChangeEvent(event=nri_pb2.Event.Name(event), pod=pod)
        for plugin in self._subscribed(event):
            if self._dedicated:
                try:
                    self._ask(plugin, method, request(pod))
                    continue
                except UnimplementedError:
                    self.log.append(f"plugin {plugin.name} uses deprecated StateChange for {method}")
            self._ask(plugin, "StateChange", old_form)

    def _tell_anyway(self, event: int, pod: nri_pb2.PodSandbox) -> str:
        """Send a sandbox event; return the error instead of raising it."""
        try:
            self._tell(event, pod)
        except RuntimeRefusedError as error:
            self.log.append(f"NRI {_REQUESTS[event][0]} failed: {error}")
            return str(error)
        return ""

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            plugin = self._joining = ConnectedPlugin(
                sock, hold_register_answer=self._configure_first, on_close=self._note_change
            )
            try:
                self._welcome(plugin)
            except (DroppedError, RuntimeRefusedError, LocalProtocolError) as error:
                plugin.close(str(error))
                plugin.join()
                self.log.append(f"plugin {plugin.name or '?'} not taken: {error}")

    def _welcome(self, plugin: ConnectedPlugin) -> None:
        """Register, configure and synchronize a plugin, then let it in.

        Raises:
            RuntimeRefusedError: the plugin did what the runtime does not accept.
            DroppedError: it did not answer in time.
        """
        plugin.wait_registered(self._registration_timeout)
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
        if extra := plugin.events & ~valid:
            raise RuntimeRefusedError(f"invalid plugin events: {extra:#x}")
        plugin.events = plugin.events or valid
        with self._events:
            self._synchronize(plugin)
            with self._changed:
                gone = [each for each in self._plugins if not each.alive]
                self._plugins = [*self._alive(), plugin]
                self._joining = None
                self._changed.notify_all()
            for each in gone:
                each.join()
            self.log.append(f"plugin {plugin.name} connected and synchronized")

    def _synchronize(self, plugin: ConnectedPlugin) -> None:
        """Send the list; all parts share the time of one request.

        Raises:
            RuntimeRefusedError: the plugin refused a part, or does not know lists in parts.
            DroppedError: it did not answer in time.
        """
        end = time.monotonic() + self._request_timeout
        parts = self._parts()
        for number, part in enumerate(parts, 1):
            part.more = number < len(parts)
            payload = plugin.call("Synchronize", part, max(0.01, end - time.monotonic()))
            if part.more and not nri_pb2.SynchronizeResponse.FromString(payload).more:
                raise RuntimeRefusedError("plugin does not handle split sync requests")

    def _parts(self) -> list[nri_pb2.SynchronizeRequest]:
        """Cut the list as NRI does: sandboxes and containers each by their own number."""
        pods = [pod.message() for pod in self._pods.values()]
        for pod in self._stopped_pods.values():
            stopped = pod.message(with_netns=False)
            stopped.pid = 0
            pods.append(stopped)
        containers = [each for known in self._containers.values() for each in known.values()]
        whole = nri_pb2.SynchronizeRequest(pods=pods, containers=containers).ByteSize()
        count = -(-whole // (MAX_DATA - _ROOM)) or 1
        size = self._chunk or -(-len(pods) // count) or 1
        count = max(count, -(-len(pods) // size))
        width = -(-len(containers) // count) or 1
        return [
            nri_pb2.SynchronizeRequest(
                # The containers come in reverse, so that many stand before their sandbox, as they may.
                pods=pods[i * size : (i + 1) * size],
                containers=containers[::-1][i * width : (i + 1) * width],
            )
            for i in range(count)
        ]

    def _resolves(self, device: str) -> bool:
        if self._cdi_dir is None:
            return True
        kind, _, name = device.partition("=")
        # A file may go while the folder is read.
        with contextlib.suppress(FileNotFoundError):
            for path in self._cdi_dir.glob("*.json"):
                with contextlib.suppress(FileNotFoundError, ValueError):
                    spec = json.loads(path.read_text(encoding="utf-8"))
                    if spec["kind"] == kind and any(each["name"] == name for each in spec["devices"]):
                        return True
        return False


__all__ = ["Pod", "RuntimeRefusedError", "RuntimeStandIn"]
