"""Kubernetes Events on pods and claims: what a user sees with ``kubectl describe``.

Sent by a thread of its own, never in anybody's way. An Event that repeats is counted on the same object, as kubectl
shows it (``core/v1`` Event: count, firstTimestamp, lastTimestamp).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import queue
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.kube.client import MERGE, ApiError
from nri_dranet.kube.resources import event_path, events_path
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields
from nri_dranet.text import within_characters

if TYPE_CHECKING:
    from nri_dranet.kube.client import KubeClient

LOG = logging.getLogger(__name__)

MAX_MESSAGE: Final = 1024
"""Characters of a message (``k8s.io/api/core/v1``: NoteLengthLimit)."""

MAX_REASON: Final = 128

_QUEUED: Final = 512
_REMEMBERED: Final = 1024
_TRIES: Final = 4
_LONGEST_PAUSE: Final = 10.0
_SAME_SECONDS: Final = 600.0
_QUIET_SECONDS: Final = 5.0
_NOT_FOUND: Final = 404
_EXISTS: Final = "AlreadyExists"


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """What an Event is about."""

    kind: str
    namespace: str
    name: str
    uid: str
    api_version: str


@dataclass(frozen=True, slots=True)
class _Said:
    ref: ObjectRef
    warning: bool
    reason: str
    message: str
    at: float
    clock: float


@dataclass(slots=True)
class _Known:
    """An Event that was sent: its name, how often it was said, and when last (monotonic)."""

    name: str
    count: int
    clock: float


class EventRecorder:
    """Sends Events. ``event`` never blocks and never raises."""

    def __init__(self, client: KubeClient, component: str, host: str) -> None:
        """Prepare to send.

        Args:
            client: the API server.
            component: who speaks: the driver's name.
            host: the node's name.
        """
        self._client = client
        self._component = component
        self._host = host
        self._queue: queue.Queue[_Said | None] = queue.Queue(_QUEUED)
        self._known: OrderedDict[tuple[str, str, str], _Known] = OrderedDict()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """Send what waits, for two seconds at most, and end."""
        self._stop.set()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        if self._thread.ident is not None:
            self._thread.join(timeout=2)

    def event(self, ref: ObjectRef, reason: str, message: str, *, warning: bool = True) -> None:
        """Tell something about an object.

        Args:
            ref: the object.
            reason: one CamelCase word.
            message: for people; cut at 1,024 characters.
            warning: whether it is a Warning; else Normal.
        """
        said = _Said(
            ref, warning, reason[:MAX_REASON], within_characters(message, MAX_MESSAGE), time.time(), time.monotonic()
        )
        try:
            self._queue.put_nowait(said)
        except queue.Full:
            metrics.EVENTS_DROPPED.inc()
            LOG.warning("event dropped: too many wait", extra=fields(object=ref.name, reason=reason))

    def _run(self) -> None:
        while True:
            said = self._queue.get()
            if said is None:
                return
            try:
                self._deliver(said)
            except Exception:
                # Whatever is odd about one Event, the thread stays for the next.
                metrics.EVENTS_DROPPED.inc()
                LOG.exception("event not sent", extra=fields(object=said.ref.name, reason=said.reason))

    def _deliver(self, said: _Said) -> None:
        pause = 0.5
        for attempt in range(_TRIES):
            try:
                self._send(said)
            except ApiError as error:
                if not error.retriable or attempt == _TRIES - 1 or self._stop.is_set():
                    metrics.EVENTS_DROPPED.inc()
                    LOG.warning("event not sent", extra=fields(object=said.ref.name, reason=said.reason, error=error))
                    return
                self._stop.wait(min(error.retry_after or pause, _LONGEST_PAUSE))
                pause *= 2
            else:
                return

    def _send(self, said: _Said) -> None:
        key = (said.ref.uid, said.reason, said.message)
        known = self._known.get(key)
        if known is not None and said.clock - known.clock < _SAME_SECONDS:
            if said.clock - known.clock < _QUIET_SECONDS:
                known.count += 1
                return
            try:
                body = {"count": known.count + 1, "lastTimestamp": _stamp(said.at)}
                self._client.patch(event_path(said.ref.namespace, known.name), body, content_type=MERGE)
            except ApiError as error:
                if error.status != _NOT_FOUND:
                    raise
            else:
                known.count, known.clock = known.count + 1, said.clock
                return
        name = f"{said.ref.name[:200].rstrip('.-')}.{hashlib.sha256(repr((key, said.at)).encode()).hexdigest()[:16]}"
        try:
            self._client.create(events_path(said.ref.namespace), self._object(name, said))
        except ApiError as error:
            # Nobody else uses this name: the server made the Event, and its answer was lost.
            if error.reason != _EXISTS:
                raise
        self._known[key] = _Known(name, 1, said.clock)
        self._known.move_to_end(key)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def _object(self, name: str, said: _Said) -> dict[str, Any]:
        stamp = _stamp(said.at)
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": said.ref.namespace},
            "involvedObject": {
                "apiVersion": said.ref.api_version,
                "kind": said.ref.kind,
                "namespace": said.ref.namespace,
                "name": said.ref.name,
                "uid": said.ref.uid,
            },
            "type": "Warning" if said.warning else "Normal",
            "reason": said.reason,
            "message": said.message,
            "source": {"component": self._component, "host": self._host},
            "reportingComponent": self._component,
            "reportingInstance": self._host,
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
        }


def _stamp(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
