"""An NRI plugin for tests: small, and with nothing of the driver but the message types.

It says what the runtime sends and answers as a test wants: a second plugin beside the driver, or the one that shows
what a runtime does at all.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any

from nri_dranet.pb import nri_pb2, ttrpc_pb2

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RUN, STOP, REMOVE, CREATE = "RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "CreateContainer"

_SERVICE = "nri.pkg.api.v1alpha1"
_TO_PLUGIN, _TO_RUNTIME = 1, 2
_REQUEST, _RESPONSE = 1, 2
_UNKNOWN, _UNIMPLEMENTED = 2, 12
# Longer messages would have to be cut in two (protocol facts, "how to cut messages"); no answer of a test is.
_LONGEST = 4096

# Bit n-1 for event number n: run, stop and remove a sandbox, create a container.
_EVENTS = 0xF
_STATE_CHANGES = {1: RUN, 2: STOP, 3: REMOVE}


class RefusedError(Exception):
    """Raised by a test's handler: the answer is an error with this text."""


class Plugin:
    """A connected plugin on a thread of its own. A context manager.

    Attributes:
        seen: Each event in the order of its coming: method, pod, and the form ("call" or "state change").
        synchronized: The pods that the runtime listed at the start.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str = "test",
        index: str = "95",
        handler: Callable[[str, Any], None] = lambda _method, _pod: None,
    ) -> None:
        """Connect and register; return when the runtime has synchronized.

        Args:
            path: The runtime's NRI socket.
            name: The plugin's name.
            index: Its place among the plugins.
            handler: Called for each event with its method and pod; raises RefusedError to refuse it.
        """
        self.seen: list[tuple[str, Any, str]] = []
        self.synchronized: list[Any] = []
        self._handler = handler
        self._ready = threading.Event()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._streams: dict[int, bytes] = {_TO_PLUGIN: b"", _TO_RUNTIME: b""}
        self._thread = threading.Thread(target=self._serve, name=f"plugin {index}-{name}", daemon=True)
        self._thread.start()
        register = nri_pb2.RegisterPluginRequest(plugin_name=name, plugin_idx=index)
        request = ttrpc_pb2.Request(
            service=f"{_SERVICE}.Runtime", method="RegisterPlugin", payload=register.SerializeToString()
        )
        self._send(_TO_RUNTIME, 1, _REQUEST, request.SerializeToString())
        if not self._ready.wait(10):
            raise TimeoutError(f"plugin {index}-{name} is not synchronized within 10 s")

    def __enter__(self) -> Plugin:  # noqa: PYI034 - not for subclasses
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._socket.close()

    def methods(self, uid: str) -> list[str]:
        """Return the methods that were called for a pod, in their order.

        Args:
            uid: The pod's UID.
        """
        return [method for method, pod, _ in self.seen if pod.uid == uid]

    def _serve(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                connection, length = struct.unpack(">II", self._receive(8))
                self._streams[connection] += self._receive(length)
                while len(buffered := self._streams[connection]) >= 10:
                    size, stream, kind = struct.unpack_from(">IIB", buffered)
                    if len(buffered) < 10 + size:
                        break
                    self._streams[connection] = buffered[10 + size :]
                    if connection == _TO_PLUGIN and kind == _REQUEST:
                        self._answer(stream, ttrpc_pb2.Request.FromString(buffered[10 : 10 + size]))

    def _receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self._socket.recv(length - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def _answer(self, stream: int, request: ttrpc_pb2.Request) -> None:
        response = ttrpc_pb2.Response()
        try:
            response.payload = self._call(request.method, request.payload)
        except RefusedError as refused:
            response.status.code, response.status.message = _UNKNOWN, str(refused)
        except NotImplementedError:
            response.status.code, response.status.message = _UNIMPLEMENTED, f"method {request.method}"
        self._send(_TO_PLUGIN, stream, _RESPONSE, response.SerializeToString())
        if request.method == "Synchronize" and not response.status.code:
            self._ready.set()

    def _call(self, method: str, payload: bytes) -> bytes:
        if method == "Configure":
            return nri_pb2.ConfigureResponse(events=_EVENTS).SerializeToString()
        if method == "Synchronize":
            part = nri_pb2.SynchronizeRequest.FromString(payload)
            self.synchronized.extend(part.pods)
            return nri_pb2.SynchronizeResponse(more=part.more).SerializeToString()
        if method == "StateChange":
            event = nri_pb2.StateChangeEvent.FromString(payload)
            if event.event in _STATE_CHANGES:
                self._event(_STATE_CHANGES[event.event], event.pod, "state change")
            return b""
        if method in (RUN, STOP, REMOVE, CREATE):
            self._event(method, getattr(nri_pb2, f"{method}Request").FromString(payload).pod, "call")
            return b""
        raise NotImplementedError

    def _event(self, method: str, pod: Any, form: str) -> None:
        self.seen.append((method, pod, form))
        self._handler(method, pod)

    def _send(self, connection: int, stream: int, kind: int, data: bytes) -> None:
        message = struct.pack(">IIBB", len(data), stream, kind, 0) + data
        if len(message) > _LONGEST:
            raise ValueError(f"message of {len(message)} bytes")
        self._socket.sendall(struct.pack(">II", connection, len(message)) + message)
