"""One connection to the runtime: the way from the first byte to the end, and the calls that wait.

Source of the facts: containerd/nri, ``pkg/adaptation/plugin.go`` and ``pkg/api/api.proto``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nri_dranet.nri.listing import Listing
from nri_dranet.pb import nri_pb2
from nri_dranet.telemetry.logs import fields
from nri_dranet.ttrpc.connection import Client, Code, RequestReceived, Server, Status
from nri_dranet.ttrpc.frames import LocalProtocolError
from nri_dranet.ttrpc.mux import PLUGIN_CONNECTION, RUNTIME_CONNECTION
from nri_dranet.ttrpc.trunk import Trunk, TrunkClosedError

if TYPE_CHECKING:
    from collections.abc import Callable

LOG = logging.getLogger(__name__)

RUNTIME_SERVICE: Final = "nri.pkg.api.v1alpha1.Runtime"
PLUGIN_SERVICE: Final = "nri.pkg.api.v1alpha1.Plugin"
NRI_VERSION: Final = "v0.12.0"

REGISTRATION_TIMEOUT: Final = 5.0
REQUEST_TIMEOUT: Final = 2.0
"""Seconds that a runtime allows which does not say (before NRI 0.7)."""

_LONGEST_TIMEOUT: Final = 3600.0
_MARGIN: Final = 0.2
_LEAST_MARGIN: Final = 0.2
_HOOK_MARGIN: Final = 0.1

# The events up to NRI 0.9, and those of the releases that tell their version (0.12 and later).
_OLD_EVENTS: Final = 0x07FF
_NEW_EVENTS: Final = 0x3FFF


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A call that waits for its answer.

    Attributes:
        connection: Where it came from.
        request: What is asked.
        hook_by: When a hook must have ended, undo included (``time.monotonic``).
        answer_by: When it is answered at the latest, whatever the hook does.
    """

    connection: Connection
    request: RequestReceived
    hook_by: float
    answer_by: float


class Connection:
    """The trunk and what is known of the runtime behind it.

    One thread reads: it alone calls ``take_in`` and ``close``, and changes the inbox. Every thread may call the others.
    """

    def __init__(self, trunk: Trunk) -> None:
        """Begin with a trunk on which nothing was sent yet."""
        self._trunk = trunk
        self._server = Server()
        self._client = Client()
        self._registration = 0
        self._changed = threading.Condition()
        self._listing = Listing()
        self.inbox: deque[Call] = deque()
        self.request_timeout = REQUEST_TIMEOUT
        self.runtime = ""
        self.configured = False
        self.synchronized = False
        self.ended = False
        self.closed = False
        self.why = ""

    # ---- states

    def wait_for(self, what: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until something about this connection is true; False when it did not become so in time (seconds)."""
        with self._changed:
            return self._changed.wait_for(what, timeout)

    def _set(self, name: str) -> None:
        with self._changed:
            setattr(self, name, True)
            self._changed.notify_all()

    def end(self, why: str) -> None:
        """Give the connection up; the first reason counts."""
        with self._changed:
            if self.ended:
                return
            self.why, self.ended = why, True
            self._changed.notify_all()
        self._trunk.shutdown()

    def leave(self) -> None:
        """Take no more calls. What was taken is answered; then the connection ends."""
        self._trunk.shutdown_input()

    def close(self) -> None:
        """Close the trunk. Nothing reads any more."""
        self.end("closed")
        self._trunk.close()
        self._set("closed")

    # ---- joining

    def register(self, name: str, index: str) -> bytes:
        """Return the message that registers this plugin."""
        request = nri_pb2.RegisterPluginRequest(plugin_name=name, plugin_idx=index, NRI_version=NRI_VERSION)
        self._registration, message = self._client.call(
            RUNTIME_SERVICE, "RegisterPlugin", request.SerializeToString(), timeout=REGISTRATION_TIMEOUT
        )
        return message

    def send_to_runtime(self, message: bytes) -> None:
        """Send on the connection that the runtime serves; if that fails the connection ends."""
        try:
            self._trunk.send(RUNTIME_CONNECTION, message)
        except TrunkClosedError as error:
            self.end(str(error))

    def configure(self, payload: bytes, events: int) -> bytes:
        """Answer ``Configure``: the times that the runtime allows, and the events of ours that it can know."""
        request = nri_pb2.ConfigureRequest.FromString(payload)
        if request.request_timeout > 0:
            self.request_timeout = min(request.request_timeout / 1000, _LONGEST_TIMEOUT)
        self.runtime = f"{request.runtime_name} {request.runtime_version}"
        LOG.info(
            "configured by the container runtime",
            extra=fields(runtime=self.runtime, nri=request.NRI_version or "before 0.12", timeout=self.request_timeout),
        )
        self._set("configured")
        known = _NEW_EVENTS if request.NRI_version else _OLD_EVENTS
        return nri_pb2.ConfigureResponse(events=events & known).SerializeToString()

    def synchronize(self, payload: bytes) -> Listing | None:
        """Take a part of the runtime's list; return the list with its last part.

        Raises:
            HookError: it is too long.
        """
        part = nri_pb2.SynchronizeRequest.FromString(payload)
        self._listing.add(part)
        if part.more:
            return None
        whole, self._listing = self._listing, Listing()
        return whole

    def set_synchronized(self) -> None:
        """Note that the runtime's list is known: from now on its events come."""
        self._set("synchronized")

    # ---- reading and answering

    def fileno(self) -> int:
        """Return the descriptor to wait on for input."""
        return self._trunk.fileno()

    def take_in(self) -> None:
        """Read what has arrived; calls go to the inbox.

        Raises:
            TrunkClosedError: the peer has closed the connection.
            ProtocolError: the peer sent what cannot be.
        """
        received = time.monotonic()
        for chunk in self._trunk.receive():
            if chunk.connection == RUNTIME_CONNECTION:
                for answer in self._client.receive(chunk.data):
                    if answer.stream == self._registration and answer.status is not None:
                        self.end(f"the runtime refuses this plugin: {answer.status.message}")
                continue
            for event in self._server.receive(chunk.data):
                if isinstance(event, RequestReceived):
                    self.inbox.append(self._call(event, received))
                else:
                    self._trunk.send(PLUGIN_CONNECTION, event.answer)

    def _call(self, request: RequestReceived, received: float) -> Call:
        timeout = min(self.request_timeout, request.timeout or self.request_timeout)
        answer_by = received + timeout - max(timeout * _MARGIN, min(_LEAST_MARGIN, timeout / 2))
        return Call(self, request, answer_by - timeout * _HOOK_MARGIN, answer_by)

    def answer(self, request: RequestReceived, payload: bytes, status: Status | None) -> None:
        """Answer a call, once. If that fails the connection ends."""
        try:
            if status is not None:
                message = self._server.fail(request.stream, status)
            else:
                try:
                    message = self._server.respond(request.stream, payload)
                except LocalProtocolError as error:
                    message = self._server.fail(request.stream, Status(Code.INTERNAL, str(error)))
            self._trunk.send(PLUGIN_CONNECTION, message)
        except TrunkClosedError as error:
            self.end(str(error))
