"""The session with the container runtime: join, serve, come back when it is lost. On threads of its own, blocking.

One thread reads the trunk and runs the hooks: the runtime sends one event at a time, so that nothing is gained by
handing them over, and a hand-over costs more than a hook's own work. Beside it a watchdog looks at the time. The
runtime drops a plugin that does not answer in time and goes on as if it had: the pod would run without its device. So
the watchdog answers with an error before that, even while the hook hangs in the kernel, and makes a fresh thread the
reader. The thread that hung finds itself replaced when it comes back; what it achieved then is taken back.
"""

from __future__ import annotations

import logging
import math
import os
import random
import re
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol

from google.protobuf.message import DecodeError

from nri_dranet.nri.connection import PLUGIN_SERVICE, Call, Connection
from nri_dranet.pb import nri_pb2
from nri_dranet.reconcile.hooktypes import HookError
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields
from nri_dranet.ttrpc.connection import Code, Status
from nri_dranet.ttrpc.frames import ProtocolError
from nri_dranet.ttrpc.trunk import Trunk

if TYPE_CHECKING:
    from pathlib import Path

    from nri_dranet.nri.listing import Listing

LOG = logging.getLogger(__name__)

SOCKET_VARIABLE: Final = "NRI_PLUGIN_SOCKET"
"""Names the descriptor of the connection in the environment of a plugin that the runtime itself started."""

MAX_HUNG: Final = 32
"""Hooks that may hang at once, each with its thread. Beyond that the kernel is not asked any more."""

CONFIGURE_PATIENCE: Final = 20.0
"""Seconds until the runtime must have begun with this plugin: it takes one at a time, and each may stall for 5."""

_CONNECT_TIMEOUT: Final = 5.0
_FIRST_PAUSE: Final = 0.05
# Each moment in which the runtime is back and this plugin is not, pods may start without it.
_LONGEST_PAUSE: Final = 1.0
_STOP_PATIENCE: Final = 5.0
_NOT_IN_NAME: Final = re.compile(r"[^A-Za-z0-9_.+-]")
_INDEX: Final = re.compile(r"[0-9]{2}", re.ASCII)


_LOST: Final = "the container runtime is lost, trying to join again"
_NOT_JOINED: Final = "the container runtime cannot be joined, trying on"
_MORE: Final = nri_pb2.SynchronizeResponse(more=True).SerializeToString()


class HookService(Protocol):
    """Carries the calls out (``nri.hooks.Hooks``)."""

    def call(self, method: str, payload: bytes, deadline: float) -> bytes | None:
        """Return the encoded response; None for an unknown method. Raises ``HookError``."""
        ...

    def overdue(self, method: str, payload: bytes) -> str | None:
        """Return the error for a call that did not end in time; None: answer it as a success."""
        ...

    def late(self, method: str, payload: bytes) -> None:
        """Take back a call that succeeded too late."""
        ...

    def synchronize(self, listing: Listing) -> None:
        """Take the list of sandboxes."""
        ...


class NriSession:
    """Keeps this plugin joined to the runtime, for ever."""

    def __init__(self, socket_path: Path, name: str, index: str, hooks: HookService, *, events: int) -> None:
        """Prepare to join.

        Args:
            socket_path: the runtime's socket. A runtime that started this process gave it a connection of its own
                (``NRI_PLUGIN_SOCKET``); that is used first.
            name: the plugin's name; characters that NRI does not allow become ``-``.
            index: two digits; plugins are called in this order.
            hooks: carries the calls out.
            events: mask of the events to take part in.

        Raises:
            ValueError: the name, the index or the mask is none that a runtime accepts.
        """
        if not name:
            raise ValueError("the plugin's name is empty")
        if not _INDEX.fullmatch(index):
            raise ValueError(f"plugin index {index!r} is not two digits")
        if events <= 0:
            raise ValueError(f"event mask {events}: a runtime would take it for all events")
        self._socket_path = socket_path
        self._given = os.environ.get(SOCKET_VARIABLE, "")
        self._name = _NOT_IN_NAME.sub("-", name)
        self._index = index
        self._hooks = hooks
        self._events = events
        self._stop = threading.Event()
        self._connection: Connection | None = None
        self._why = ""
        # The call that is carried out; who takes it out of here answers it. The watchdog sleeps until _wake.
        self._guard = threading.Condition()
        self._current: Call | None = None
        self._wake = math.inf
        self._unguarded = False
        self._hung = 0
        self._supervisor = threading.Thread(target=self._run, name="nri", daemon=True)
        self._watchdog = threading.Thread(target=self._watch, name="nri-watchdog", daemon=True)

    @property
    def problem(self) -> str:
        """Why the runtime's events do not reach this plugin; empty while they do."""
        connection = self._connection
        if connection is None or connection.ended:
            return f"not connected to {self._socket_path}{': ' + self._why if self._why else ''}"
        return "" if connection.synchronized else "connected, but the runtime has not synchronized yet"

    def start(self) -> None:
        """Begin to join. A second call does nothing."""
        if self._watchdog.ident is not None:
            return
        self._watchdog.start()
        self._supervisor.start()

    def stop(self) -> None:
        """Leave the runtime. A hook that runs is finished and answered first, unless it hangs."""
        self._stop.set()
        connection = self._connection
        if connection is not None:
            connection.leave()
        if self._supervisor.ident is not None:
            self._supervisor.join(_STOP_PATIENCE)
        with self._guard:
            self._unguarded = True
            self._guard.notify_all()
        if self._watchdog.ident is not None:
            self._watchdog.join(_STOP_PATIENCE)

    # ---- joining

    def _run(self) -> None:
        pause, told = _FIRST_PAUSE, ""
        while not self._stop.is_set():
            began = time.monotonic()
            joined = False
            try:
                joined = self._join()
            except OSError as error:
                self._why = str(error)
            except Exception as error:  # without this thread no pod gets its device any more
                LOG.exception("the session with the container runtime failed")
                self._why = f"internal error: {error}"
            if not joined:
                metrics.NRI_CONNECTS.labels("failed").inc()
            if self._stop.is_set():
                return
            if joined or self._why != told:
                LOG.warning(_LOST if joined else _NOT_JOINED, extra=fields(socket=self._socket_path, error=self._why))
                told = self._why
            if joined and time.monotonic() - began > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            self._stop.wait(pause * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _join(self) -> bool:
        """Connect and serve until the connection ends; return whether this plugin was joined.

        Raises:
            OSError: there is no connection.
        """
        connection = self._connection = Connection(Trunk(self._connect()))
        try:
            registration = connection.register(self._name, self._index)
        except Exception:  # whatever it was, the connection is closed before it goes on up
            connection.close()
            raise
        # The runtime may configure this plugin before it has answered to the registration.
        self._start_reader(connection)
        connection.send_to_runtime(registration)
        if self._stop.is_set():
            connection.leave()
        if not connection.wait_for(lambda: connection.configured or connection.ended, CONFIGURE_PATIENCE):
            connection.end(f"the runtime did not configure this plugin within {CONFIGURE_PATIENCE:g} s")
        # No limit: the runtime first lets the calls end that are under way.
        connection.wait_for(lambda: connection.synchronized or connection.ended)
        if connection.synchronized:
            metrics.NRI_CONNECTED.set(1)
            metrics.NRI_CONNECTS.labels("joined").inc()
            LOG.info("joined the container runtime", extra=fields(runtime=connection.runtime))
        # The watchdog sees to it that this takes no longer than a call may take.
        connection.wait_for(lambda: connection.closed)
        metrics.NRI_CONNECTED.set(0)
        self._why = connection.why
        return connection.synchronized

    def _connect(self) -> socket.socket:
        given, self._given = self._given, ""
        if given:
            try:
                return socket.socket(fileno=int(given))
            except (ValueError, OSError) as error:
                LOG.warning(
                    "the runtime's connection cannot be used, its socket is dialled",
                    extra=fields(variable=SOCKET_VARIABLE, value=given, error=error),
                )
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            found.settimeout(_CONNECT_TIMEOUT)
            found.connect(str(self._socket_path))
        except OSError:
            found.close()
            raise
        return found

    # ---- reading and serving

    def _start_reader(self, connection: Connection) -> None:
        """Make a fresh thread the reader; where there can be none the connection is closed."""
        try:
            threading.Thread(target=self._read, args=(connection,), name="nri-reader", daemon=True).start()
        except RuntimeError as error:
            connection.end(f"no thread to read with: {error}")
            connection.close()

    def _read(self, connection: Connection) -> None:
        """Read and serve until the connection ends or another thread has become the reader."""
        try:
            poll = select.poll()
            poll.register(connection.fileno(), select.POLLIN)
            while not connection.ended:
                while connection.inbox and not connection.ended:
                    if not self._serve(connection.inbox.popleft()):
                        return
                poll.poll()
                connection.take_in()
        except (OSError, ProtocolError) as error:
            connection.end(str(error))
        except Exception as error:  # the session begins anew with the next connection
            LOG.exception("the session with the container runtime failed")
            connection.end(f"internal error: {error}")
        connection.close()

    def _serve(self, call: Call) -> bool:
        """Answer a call; False when another thread has become the reader meanwhile."""
        with self._guard:
            self._current = call
            if call.answer_by < self._wake:
                self._guard.notify_all()
        payload, status = self._carry_out(call)
        with self._guard:
            mine = self._current is call
            if mine:
                self._current = None
            else:
                self._hung -= 1
        request = call.request
        if mine:
            call.connection.answer(request, payload, status)
            if status is None and request.method == "Synchronize" and payload != _MORE:
                call.connection.set_synchronized()
            return True
        LOG.warning("a hook ended after it had been answered for", extra=fields(call=request.method, status=status))
        if status is None:
            try:
                self._hooks.late(request.method, request.payload)
            except Exception:  # the reconciler takes back what is left of it
                LOG.exception("what a late hook did could not be taken back", extra=fields(call=request.method))
        return False

    def _carry_out(self, call: Call) -> tuple[bytes, Status | None]:
        method = call.request.method
        if call.request.service != PLUGIN_SERVICE:
            return b"", Status(Code.UNIMPLEMENTED, f"service {call.request.service}")
        try:
            payload = self._payload(call, method)
        except HookError as error:
            return b"", Status(Code.UNKNOWN, str(error))
        except DecodeError:
            return b"", Status(Code.INVALID_ARGUMENT, f"request of {method} cannot be decoded")
        except Exception as error:  # the runtime is owed an answer, and an error is the safe one
            LOG.exception("a hook failed unexpectedly", extra=fields(call=method))
            return b"", Status(Code.INTERNAL, f"internal error: {type(error).__name__}: {error}")
        if payload is None:
            return b"", Status(Code.UNIMPLEMENTED, f"method {method}")
        return payload, None

    def _payload(self, call: Call, method: str) -> bytes | None:
        """Return the encoded response; None for an unknown method.

        Raises:
            HookError: the call is refused.
            DecodeError: the request cannot be decoded.
        """
        request = call.request
        if method == "Configure":
            return call.connection.configure(request.payload, self._events)
        if method == "Shutdown":
            return b""
        if method == "Synchronize":
            listing = call.connection.synchronize(request.payload)
            if listing is None:
                return _MORE
            self._hooks.synchronize(listing)
            return b""
        if self._hung >= MAX_HUNG and self._hooks.overdue(method, request.payload) is not None:
            raise HookError(f"{self._hung} hooks hang in the kernel; {method} is not tried before one has ended")
        return self._hooks.call(method, request.payload, call.hook_by)

    # ---- the watchdog

    def _watch(self) -> None:
        while (call := self._overdue_call()) is not None:
            try:
                self._give_up(call)
            except Exception as error:  # the watchdog must not die: the runtime would wait for ever
                LOG.exception("a hook that hangs could not be answered for")
                call.connection.end(f"internal error: {error}")
                call.connection.close()

    def _overdue_call(self) -> Call | None:
        """Wait for a call whose time is over and take it; None when this session has stopped."""
        with self._guard:
            while not self._unguarded:
                call, now = self._current, time.monotonic()
                if call is not None and call.answer_by <= now:
                    self._current = None
                    self._hung += 1
                    return call
                self._wake = math.inf if call is None else call.answer_by
                self._guard.wait(None if call is None else call.answer_by - now)
        return None

    def _give_up(self, call: Call) -> None:
        """Answer in the place of a hook that hangs, and let a fresh thread read on."""
        request = call.request
        text = self._hooks.overdue(request.method, request.payload)
        status = None if text is None else Status(Code.DEADLINE_EXCEEDED, text)
        LOG.error("a hook hangs; it is answered for", extra=fields(call=request.method, error=text, hung=self._hung))
        call.connection.answer(request, b"", status)
        if call.connection.ended:
            call.connection.close()
        else:
            self._start_reader(call.connection)
