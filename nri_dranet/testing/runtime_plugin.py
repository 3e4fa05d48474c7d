"""One plugin as the runtime's stand-in sees it: the socket, the Go peer's rules for frames, calls and their answers.

Source of the facts: containerd/nri ``pkg/net/multiplex/mux.go`` and ``pkg/adaptation/plugin.go``, containerd/ttrpc
``channel.go``.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from collections import Counter
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from nri_dranet.pb import nri_pb2
from nri_dranet.ttrpc.connection import Client, Code, RequestReceived, Server, Status
from nri_dranet.ttrpc.frames import HEADER_SIZE as TTRPC_HEADER
from nri_dranet.ttrpc.frames import ProtocolError
from nri_dranet.ttrpc.mux import FIRST_FRAME, PLUGIN_CONNECTION, RUNTIME_CONNECTION, cut

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

PLUGIN_SERVICE: Final = "nri.pkg.api.v1alpha1.Plugin"
RUNTIME_SERVICE: Final = "nri.pkg.api.v1alpha1.Runtime"

QUEUE: Final = 256
"""Frames that wait for a connection in the Go peer; with one more it closes the trunk."""

_READ: Final = 64 << 10
_SEND_SECONDS: Final = 5
_MUX: Final = struct.Struct(">II")
_TTRPC: Final = struct.Struct(">IIBB")
_NAME: Final = re.compile(r"[A-Za-z0-9_.+-]+", re.ASCII)
_INDEX: Final = re.compile(r"[0-9]{2}", re.ASCII)


class RuntimeRefusedError(Exception):
    """A call to the runtime failed: a plugin refused it, or a container's CDI device cannot be resolved."""


class UnimplementedError(RuntimeRefusedError):
    """The plugin does not know the method (code 12)."""


class DroppedError(Exception):
    """A plugin is not there any more, or did not answer in time. The runtime goes on without it."""


class GoPeer:
    """Takes a plugin's bytes as the Go peer does, and says when that would close the connection."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._frame: tuple[int, int] | None = None
        self._body = bytearray()
        self._owed: Counter[int] = Counter()
        self._headers: dict[int, bytearray] = {}

    def receive(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return connection and payload of each whole frame.

        Args:
            data: What arrived at once.

        Raises:
            ProtocolError: the Go peer would close the connection; the text has its reason.
        """
        found: list[tuple[int, bytes]] = []
        view = memoryview(data)
        while view:
            if self._frame is None:
                need = _MUX.size - len(self._head)
                self._head += view[:need]
                view = view[need:]
                if len(self._head) < _MUX.size:
                    break
                self._frame = _MUX.unpack(self._head)
                self._head.clear()
            connection, length = self._frame
            need = length - len(self._body)
            self._body += view[:need]
            view = view[need:]
            if len(self._body) == length:
                self._check(connection, self._body)
                found.append((connection, bytes(self._body)))
                self._frame = None
                self._body.clear()
        for connection, count in Counter(connection for connection, _ in found).items():
            if count > QUEUE:
                raise ProtocolError(f"failed to queue payload for reading: {count} frames for {connection} at once")
        return found

    def _check(self, connection: int, body: bytearray) -> None:
        """A frame must fit where it is read to: the rest of a message's data, or a buffer of 4096 bytes.

        Raises:
            ProtocolError: it does not.
        """
        owed = self._owed[connection]
        if len(body) > max(FIRST_FRAME, owed):
            raise ProtocolError(f"ENOMEM: a frame of {len(body)} bytes, {owed} were expected")
        head = self._headers.setdefault(connection, bytearray())
        rest = memoryview(body)
        while rest:
            taken = min(owed, len(rest))
            owed -= taken
            rest = rest[taken:]
            need = TTRPC_HEADER - len(head)
            head += rest[:need]
            rest = rest[need:]
            if len(head) == TTRPC_HEADER:
                owed = _TTRPC.unpack(head)[0]
                head.clear()
        self._owed[connection] = owed


class ConnectedPlugin:
    """One connected plugin."""

    def __init__(self, sock: socket.socket, *, hold_register_answer: bool, on_close: Callable[[], None]) -> None:
        """Take over a connection.

        Args:
            sock: the connected socket; closed with the plugin.
            hold_register_answer: answer to RegisterPlugin only when ``release_register_answer`` is called.
            on_close: called when the plugin is gone.
        """
        # Of the socket's two directions only one may time out: a reader waits for ever, a sender must not.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", _SEND_SECONDS, 0))
        self.name = ""
        self.events = 0
        self.error = ""
        self.why = ""
        self._sock = sock
        self._peer = GoPeer()
        self._server = Server()
        self._client = Client()
        self._on_close = on_close
        self._hold = hold_register_answer
        self._held: bytes | None = None
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._registered = False
        self._closed = False
        self._answers: dict[int, tuple[bytes, Status | None]] = {}
        self._reader = threading.Thread(target=self._read, name="runtime-plugin", daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        """Whether the plugin is connected."""
        return not self._closed

    def close(self, why: str) -> None:
        """Drop the plugin; the first reason counts."""
        with self._changed:
            if self._closed:
                return
            self._closed, self.why = True, why
            self._changed.notify_all()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._on_close()

    def join(self) -> None:
        """Wait until nothing reads from a closed plugin any more."""
        self._reader.join()

    def wait_registered(self, timeout: float) -> None:
        """Wait for RegisterPlugin.

        Raises:
            RuntimeRefusedError: it did not come within ``timeout`` seconds, or with a name or index that is not legal.
        """
        with self._changed:
            known = self._changed.wait_for(lambda: self._registered or self._closed or self.error, timeout)
        if self.error or not self._registered:
            raise RuntimeRefusedError(self.error or self.why if known else "plugin registration timed out")

    def release_register_answer(self) -> None:
        """Send the answer to RegisterPlugin if it was held back."""
        if self._held is not None:
            self._send(RUNTIME_CONNECTION, self._held)

    def call(self, method: str, request: Message, timeout: float) -> bytes:
        """Call a method of the plugin and return the encoded response.

        Raises:
            UnimplementedError: the plugin does not know it.
            RuntimeRefusedError: the plugin answered with an error.
            DroppedError: it did not answer within ``timeout`` seconds, or is gone; it is closed.
        """
        with self._lock:
            stream, message = self._client.call(PLUGIN_SERVICE, method, request.SerializeToString(), timeout=timeout)
            self._send_locked(PLUGIN_CONNECTION, message)
        with self._changed:
            known = self._changed.wait_for(lambda: stream in self._answers or self._closed, timeout)
            answer = self._answers.pop(stream, None)
        if answer is None:
            self._client.abandon(stream)
            why = f"failed to handle {method} request: {self.why if known else 'context deadline exceeded'}"
            self.close(why)
            raise DroppedError(why)
        payload, status = answer
        if status is None:
            return payload
        if status.code == Code.UNIMPLEMENTED:
            raise UnimplementedError(status.message)
        raise RuntimeRefusedError(status.message)

    # ---- inside

    def _read(self) -> None:
        try:
            while data := self._sock.recv(_READ):
                for connection, payload in self._peer.receive(data):
                    self._take(connection, payload)
            self.close("closed by the plugin")
        except (OSError, ProtocolError) as error:
            self.close(str(error))
        with self._lock:
            self._sock.close()

    def _take(self, connection: int, payload: bytes) -> None:
        if connection == PLUGIN_CONNECTION:
            with self._changed:
                for answer in self._client.receive(payload):
                    self._answers[answer.stream] = (answer.payload, answer.status)
                self._changed.notify_all()
        elif connection == RUNTIME_CONNECTION:
            for event in self._server.receive(payload):
                if isinstance(event, RequestReceived):
                    self._serve(event)
                else:
                    self._send(RUNTIME_CONNECTION, event.answer)

    def _serve(self, event: RequestReceived) -> None:
        if event.service != RUNTIME_SERVICE or event.method != "RegisterPlugin":
            status = Status(Code.UNIMPLEMENTED, f"method {event.method}")
            self._send(RUNTIME_CONNECTION, self._server.fail(event.stream, status))
            return
        name, error = _name(event.payload)
        if error:
            self._send(RUNTIME_CONNECTION, self._server.fail(event.stream, Status(Code.UNKNOWN, error)))
        else:
            answer = self._server.respond(event.stream, b"")
            if self._hold:
                self._held = answer
            else:
                self._send(RUNTIME_CONNECTION, answer)
        with self._changed:
            self.name, self.error, self._registered = name, error, not error
            self._changed.notify_all()

    def _send(self, connection: int, message: bytes) -> None:
        with self._lock:
            self._send_locked(connection, message)

    def _send_locked(self, connection: int, message: bytes) -> None:
        """Send one message; if that fails the plugin is dropped."""
        try:
            self._sock.sendall(b"".join(cut(connection, message)))
        except OSError as error:
            self.close(f"message not sent: {error}")


def _name(payload: bytes) -> tuple[str, str]:
    """Return the full name of a plugin that registers, and what is wrong with it."""
    try:
        request = nri_pb2.RegisterPluginRequest.FromString(payload)
    except DecodeError:
        return "", "RegisterPlugin cannot be decoded"
    name = f"{request.plugin_idx}-{request.plugin_name}"
    if not _NAME.fullmatch(request.plugin_name):
        return name, f"invalid plugin name: {request.plugin_name!r}"
    if not _INDEX.fullmatch(request.plugin_idx):
        return name, f"invalid plugin index: {request.plugin_idx!r}"
    return name, ""
