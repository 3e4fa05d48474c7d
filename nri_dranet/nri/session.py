"""The session with the container runtime: join, serve, come back when it is lost. On threads of its own, blocking.

One thread reads the trunk and runs the hooks: the runtime sends one event at a time, so that nothing is gained by
handing them over, and a hand-over costs more than a hook's own work. Beside it a watchdog looks at the time. The
runtime drops a plugin that does not answer in time and goes on as if it had: the pod would run without its device. So
the watchdog answers with an error before that, even while the hook hangs in the kernel, and makes a fresh thread the
reader. The thread that hung finds itself replaced when it comes back; what it achieved then is taken back.

Source of the facts: containerd/nri, ``pkg/adaptation/plugin.go`` and ``pkg/stub/stub.go``.
"""

from __future__ import annotations

import logging
import os
import random
import re
import select
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from google.protobuf.message import DecodeError

from nri_dranet.pb import nri_pb2
from nri_dranet.reconcile.hooktypes import HookError
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields
from nri_dranet.ttrpc.connection import Client, Code, RequestReceived, Server, Status
from nri_dranet.ttrpc.frames import LocalProtocolError, ProtocolError
from nri_dranet.ttrpc.mux import PLUGIN_CONNECTION, RUNTIME_CONNECTION
from nri_dranet.ttrpc.trunk import Trunk, TrunkClosed

if TYPE_CHECKING:
    from pathlib import Path

LOG = logging.getLogger(__name__)

RUNTIME_SERVICE: Final = "nri.pkg.api.v1alpha1.Runtime"
PLUGIN_SERVICE: Final = "nri.pkg.api.v1alpha1.Plugin"
SOCKET_VARIABLE: Final = "NRI_PLUGIN_SOCKET"
NRI_VERSION: Final = "v0.12.0"

DEFAULT_REQUEST_TIMEOUT: Final = 2.0
"""What a runtime allows that does not say (before NRI 0.7)."""

REGISTRATION_TIMEOUT: Final = 5.0

_MARGIN: Final = 0.2
_LEAST_MARGIN: Final = 0.2
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
_POLL_MS: Final = 1000
_MAX_CHUNKS: Final = 4096
_NOT_IN_NAME: Final = re.compile(r"[^A-Za-z0-9_.+-]")


class HookService(Protocol):
    """Carries the calls out (``nri.hooks.Hooks``)."""

    def call(self, method: str, payload: bytes, deadline: float) -> bytes | None:
        """Return the encoded response; None for an unknown method. Raises ``HookError``."""
        ...

    def late(self, method: str, payload: bytes) -> None:
        """Take back a call that succeeded too late."""
        ...

    def synchronize(self, pods: list[nri_pb2.PodSandbox]) -> None:
        """Take the list of sandboxes."""
        ...


class _Call:
    """A call that waits for its answer. Whoever claims it first answers."""

    __slots__ = ("_lock", "_taken", "answer_by", "connection", "hook_by", "request")

    def __init__(self, connection: _Connection, request: RequestReceived, received: float, timeout: float) -> None:
        margin = max(timeout * _MARGIN, min(_LEAST_MARGIN, timeout / 2))
        self.connection = connection
        self.request = request
        self.hook_by = received + timeout - margin
        self.answer_by = received + timeout - margin / 2
        self._lock = threading.Lock()
        self._taken = False

    def take(self) -> bool:
        """Claim the right to answer; True for the first."""
        with self._lock:
            first, self._taken = not self._taken, True
            return first


class _Connection:
    """One connection to the runtime: its trunk, its state, and the calls that came and were not begun."""

    def __init__(self, trunk: Trunk) -> None:
        self.trunk = trunk
        self.server = Server()
        self.client = Client()
        self.inbox: deque[tuple[RequestReceived, float]] = deque()
        self.registration = 0
        self.registered = False
        self.synchronized = False
        self.request_timeout = DEFAULT_REQUEST_TIMEOUT
        self.pods: list[nri_pb2.PodSandbox] = []
        self.chunks = 0
        self.ended = threading.Event()
        self.why = ""

    def end(self, why: str) -> None:
        """Give the connection up."""
        if not self.ended.is_set():
            self.why = why
            self.ended.set()
            self.trunk.shutdown()


class NriSession:
    """Keeps this plugin joined to the runtime, for ever."""

    def __init__(self, socket_path: Path, name: str, index: str, hooks: HookService, *, events: int) -> None:
        """Prepare to join.

        Args:
            socket_path: the runtime's socket. A runtime that started this process gave it in ``NRI_PLUGIN_SOCKET``.
            name: the plugin's name; characters that NRI does not allow become ``-``.
            index: two digits; plugins are called in this order.
            hooks: carries the calls out.
            events: mask of the events to take part in.
        """
        self._socket_path = socket_path
        self._name = _NOT_IN_NAME.sub("-", name)
        self._index = index
        self._hooks = hooks
        self._events = events
        self._stop = threading.Event()
        self._connection: _Connection | None = None
        self._call: _Call | None = None
        self._changed = threading.Condition()
        self._supervisor = threading.Thread(target=self._run, name="nri", daemon=True)
        self._watchdog = threading.Thread(target=self._watch, name="nri-watchdog", daemon=True)

    @property
    def problem(self) -> str:
        """Why the runtime's events do not reach this plugin; empty while they do."""
        connection = self._connection
        if connection is None or connection.ended.is_set():
            return f"not connected to {self._socket_path}"
        return "" if connection.synchronized else "connected, but the runtime has not synchronized yet"

    def start(self) -> None:
        """Begin to join."""
        self._watchdog.start()
        self._supervisor.start()

    def stop(self) -> None:
        """Leave the runtime. A hook that runs is finished first, unless it hangs."""
        self._stop.set()
        connection = self._connection
        if connection is not None:
            connection.end("this program stops")
        with self._changed:
            self._changed.notify_all()
        for thread in (self._supervisor, self._watchdog):
            if thread.ident is not None:
                thread.join(timeout=5)

    # ---- joining

    def _run(self) -> None:
        pause, told = _FIRST_PAUSE, ""
        while not self._stop.is_set():
            began = time.monotonic()
            why = self._join()
            metrics.NRI_CONNECTED.set(0)
            if self._stop.is_set():
                return
            if time.monotonic() - began > _LONGEST_PAUSE:
                pause, told = _FIRST_PAUSE, ""
            if why != told:
                LOG.warning(
                    "not joined to the container runtime, trying on", extra=fields(socket=self._socket_path, error=why)
                )
                told = why
            self._stop.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _join(self) -> str:
        """Connect and serve until the connection ends; return why it ended."""
        try:
            trunk = Trunk(self._connect())
        except OSError as error:
            metrics.NRI_CONNECTS.labels("failed").inc()
            return str(error)
        connection = self._connection = _Connection(trunk)
        try:
            request = nri_pb2.RegisterPluginRequest(
                plugin_name=self._name, plugin_idx=self._index, NRI_version=NRI_VERSION
            )
            connection.registration, message = connection.client.call(
                RUNTIME_SERVICE, "RegisterPlugin", request.SerializeToString(), timeout=REGISTRATION_TIMEOUT
            )
            trunk.send(RUNTIME_CONNECTION, message)
            self._start_reader(connection)
            if not self._wait_joined(connection):
                connection.end("the runtime did not register and configure this plugin in time")
            connection.ended.wait()
            metrics.NRI_CONNECTS.labels("joined" if connection.synchronized else "failed").inc()
        except TrunkClosed as error:
            connection.end(str(error))
        finally:
            trunk.close()
        return connection.why

    def _connect(self) -> socket.socket:
        given = os.environ.get(SOCKET_VARIABLE)
        if given is not None and given.isdecimal():
            return socket.socket(fileno=os.dup(int(given)))
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            found.settimeout(REGISTRATION_TIMEOUT)
            found.connect(str(self._socket_path))
        except OSError:
            found.close()
            raise
        return found

    def _wait_joined(self, connection: _Connection) -> bool:
        """Wait until the runtime has synchronized; it takes one plugin at a time, so others may come first."""
        end = time.monotonic() + REGISTRATION_TIMEOUT * 4
        with self._changed:
            while not connection.synchronized and not connection.ended.is_set():
                if not self._changed.wait(max(0.0, end - time.monotonic())) and time.monotonic() >= end:
                    return False
        return True

    # ---- reading

    def _start_reader(self, connection: _Connection) -> None:
        threading.Thread(target=self._read, args=(connection,), name="nri-reader", daemon=True).start()

    def _read(self, connection: _Connection) -> None:
        """Read and serve until the connection ends or another thread has become the reader."""
        poll = select.poll()
        try:
            poll.register(connection.trunk.fileno(), select.POLLIN)
            while not connection.ended.is_set():
                while connection.inbox:
                    request, received = connection.inbox.popleft()
                    if not self._serve(connection, request, received):
                        return
                if poll.poll(_POLL_MS):
                    self._take_in(connection)
        except (TrunkClosed, ProtocolError) as error:
            connection.end(str(error))
        except (OSError, ValueError) as error:
            connection.end(f"connection broken: {error}")
        except Exception as error:
            LOG.exception("the session with the container runtime failed")
            connection.end(f"internal error: {error}")
        finally:
            with self._changed:
                self._changed.notify_all()

    def _take_in(self, connection: _Connection) -> None:
        received = time.monotonic()
        for chunk in connection.trunk.receive():
            if chunk.connection == RUNTIME_CONNECTION:
                for answer in connection.client.receive(chunk.data):
                    if answer.stream == connection.registration and answer.status is not None:
                        connection.end(f"the runtime refuses this plugin: {answer.status.message}")
                    connection.registered = answer.status is None
                continue
            for event in connection.server.receive(chunk.data):
                if isinstance(event, RequestReceived):
                    connection.inbox.append((event, received))
                else:
                    connection.trunk.send(PLUGIN_CONNECTION, event.answer)

    # ---- serving

    def _serve(self, connection: _Connection, request: RequestReceived, received: float) -> bool:
        """Answer a call; False when another thread has become the reader meanwhile."""
        timeout = min(connection.request_timeout, request.timeout or connection.request_timeout)
        call = _Call(connection, request, received, timeout)
        with self._changed:
            self._call = call
            self._changed.notify_all()
        payload, status = self._carry_out(connection, request, call.hook_by)
        with self._changed:
            if self._call is call:
                self._call = None
        if call.take():
            self._answer(connection, request, payload, status)
            return True
        if status is None:
            LOG.warning(
                "a hook ended after its answer had been sent; it is taken back", extra=fields(method=request.method)
            )
            try:
                self._hooks.late(request.method, request.payload)
            except Exception:
                LOG.exception("what a late hook did could not be taken back", extra=fields(method=request.method))
        return False

    def _carry_out(
        self, connection: _Connection, request: RequestReceived, deadline: float
    ) -> tuple[bytes, Status | None]:
        try:
            if request.service != PLUGIN_SERVICE:
                return b"", Status(Code.UNIMPLEMENTED, f"service {request.service}")
            own = {"Configure": self._configure, "Synchronize": self._synchronize, "Shutdown": _shut_down}
            handler = own.get(request.method)
            payload = (
                handler(connection, request.payload)
                if handler is not None
                else self._hooks.call(request.method, request.payload, deadline)
            )
        except HookError as error:
            return b"", Status(Code.UNKNOWN, str(error))
        except DecodeError:
            return b"", Status(Code.INVALID_ARGUMENT, f"request of {request.method} cannot be decoded")
        except Exception as error:
            LOG.exception("a hook failed unexpectedly", extra=fields(method=request.method))
            return b"", Status(Code.INTERNAL, f"internal error: {type(error).__name__}: {error}")
        if payload is None:
            return b"", Status(Code.UNIMPLEMENTED, f"method {request.method}")
        return payload, None

    def _answer(self, connection: _Connection, request: RequestReceived, payload: bytes, status: Status | None) -> None:
        try:
            if status is not None:
                message = connection.server.fail(request.stream, status)
            else:
                try:
                    message = connection.server.respond(request.stream, payload)
                except LocalProtocolError as error:
                    message = connection.server.fail(request.stream, Status(Code.INTERNAL, str(error)))
            connection.trunk.send(PLUGIN_CONNECTION, message)
        except TrunkClosed as error:
            connection.end(str(error))

    def _configure(self, connection: _Connection, payload: bytes) -> bytes:
        request = nri_pb2.ConfigureRequest.FromString(payload)
        if request.request_timeout > 0:
            connection.request_timeout = request.request_timeout / 1000
        LOG.info(
            "joined the container runtime",
            extra=fields(
                runtime=f"{request.runtime_name} {request.runtime_version}",
                nri=request.NRI_version or "before 0.12",
                timeout=connection.request_timeout,
            ),
        )
        return nri_pb2.ConfigureResponse(events=self._events).SerializeToString()

    def _synchronize(self, connection: _Connection, payload: bytes) -> bytes:
        request = nri_pb2.SynchronizeRequest.FromString(payload)
        connection.chunks += 1
        if connection.chunks > _MAX_CHUNKS:
            raise HookError("the list of sandboxes has too many parts")
        connection.pods += request.pods
        if request.more:
            return nri_pb2.SynchronizeResponse(more=True).SerializeToString()
        pods, connection.pods, connection.chunks = connection.pods, [], 0
        self._hooks.synchronize(pods)
        metrics.NRI_CONNECTED.set(1)
        with self._changed:
            connection.synchronized = True
            self._changed.notify_all()
        return b""

    # ---- the watchdog

    def _watch(self) -> None:
        while not self._stop.is_set():
            with self._changed:
                call = self._call
                left = None if call is None else call.answer_by - time.monotonic()
                if left is None or left > 0:
                    self._changed.wait(left)
                    continue
                self._call = None
            if call is not None and call.take():
                self._give_up(call)

    def _give_up(self, call: _Call) -> None:
        """Answer in the place of a hook that hangs, and let a fresh thread read on."""
        text = f"{call.request.method} did not end in time; what it did is undone, then it can be tried again"
        LOG.error("a hook hangs; it is answered with an error", extra=fields(method=call.request.method))
        self._answer(call.connection, call.request, b"", Status(Code.DEADLINE_EXCEEDED, text))
        if not call.connection.ended.is_set():
            self._start_reader(call.connection)


def _shut_down(connection: _Connection, _payload: bytes) -> bytes:
    del connection
    return b""
