"""List and watch, for ever: three generators, one inside the other.

``watch`` never ends by itself: it lists, follows, and begins anew with a growing pause when something fails.
``_follow`` lives from one list to the moment when its position is too old (410). ``_connection`` is one HTTP
response.

Source of the facts: Kubernetes API concepts, "Efficient detection of changes" (resourceVersion, bookmarks, 410 Gone).
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import urllib3

from nri_dranet.kube.client import ApiError
from nri_dranet.kube.resources import kind_of
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nri_dranet.kube.client import KubeClient

LOG = logging.getLogger(__name__)

SYNC: Final = "SYNC"
"""Type of the event that carries the whole list, in ``objects``: what is not in it does not exist any more."""

ADDED: Final = "ADDED"
MODIFIED: Final = "MODIFIED"
DELETED: Final = "DELETED"

_GONE: Final = 410
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 30.0
_SERVER_SECONDS: Final = 300
_SILENCE: Final = _SERVER_SECONDS + 30.0
_MAX_LINE: Final = 16 << 20
_READ_SIZE: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change, or the whole list.

    Attributes:
        type: ``ADDED``, ``MODIFIED``, ``DELETED``, or ``SYNC``.
        object: The object; empty for ``SYNC``.
        objects: The list, for ``SYNC``.
    """

    type: str
    object: Mapping[str, Any] = field(default_factory=dict)
    objects: tuple[Mapping[str, Any], ...] = ()


class _ExpiredError(Exception):
    """The position is too old: list again."""


class Closer:
    """Ends a watch from another thread: sets the event and breaks the connection that a read waits on."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self._response: urllib3.BaseHTTPResponse | None = None

    def close(self) -> None:
        """End the watch; its generator returns soon."""
        self.stop.set()
        with self._lock:
            if self._response is not None:
                _shut(self._response)

    def hold(self, response: urllib3.BaseHTTPResponse | None) -> None:
        """Note the response that is being read, or that none is."""
        with self._lock:
            self._response = response
            if response is not None and self.stop.is_set():
                _shut(response)


def watch(client: KubeClient, path: str, *, field_selector: str = "", closer: Closer) -> Iterator[WatchEvent]:
    """Give the list as it is, then every change, for ever.

    Failures are logged when they begin and when they end, and tried again with a growing pause. After each list a
    ``SYNC`` event comes first.

    Args:
        client: the API server.
        path: the collection.
        field_selector: restricts it.
        closer: ends it.
    """
    kind = kind_of(path)
    pause = _FIRST_PAUSE
    failing = False
    while not closer.stop.is_set():
        try:
            for event in _follow(client, path, field_selector, closer):
                if failing:
                    LOG.info("watch works again", extra=fields(resource=kind, selector=field_selector))
                failing, pause = False, _FIRST_PAUSE
                yield event
        except _ExpiredError:
            metrics.WATCH_RESTARTS.labels(kind).inc()
        except ApiError as error:
            if closer.stop.is_set():
                return
            if not failing:
                LOG.warning("watch fails", extra=fields(resource=kind, selector=field_selector, error=error))
            failing = True
            metrics.WATCH_RESTARTS.labels(kind).inc()
            closer.stop.wait(error.retry_after or pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            pause = min(pause * 2, _LONGEST_PAUSE)


def _follow(client: KubeClient, path: str, field_selector: str, closer: Closer) -> Iterator[WatchEvent]:
    """List, then follow on one connection after the other."""
    selector = {"fieldSelector": field_selector} if field_selector else {}
    listed = client.get(path, selector)
    items = listed.get("items") or []
    yield WatchEvent(SYNC, objects=tuple(item for item in items if isinstance(item, dict)))
    version = str(listed.get("metadata", {}).get("resourceVersion") or "")
    while not closer.stop.is_set():
        params = {
            **selector,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(random.randint(_SERVER_SECONDS // 2, _SERVER_SECONDS)),  # noqa: S311 - no secret
        }
        for line in _connection(client, path, params, closer):
            change = line.get("object")
            if line.get("type") == "ERROR" or not isinstance(change, dict):
                _raise(change)
                continue
            version = str(change.get("metadata", {}).get("resourceVersion") or version)
            if line.get("type") in (ADDED, MODIFIED, DELETED):
                yield WatchEvent(str(line["type"]), change)


def _connection(
    client: KubeClient, path: str, params: Mapping[str, str], closer: Closer
) -> Iterator[Mapping[str, Any]]:
    """Give the lines of one response until the server ends it."""
    try:
        response = client.stream(path, params, read_timeout=_SILENCE)
    except ApiError as error:
        if error.status == _GONE:
            raise _ExpiredError from error
        raise
    closer.hold(response)
    rest = b""
    try:
        for piece in response.stream(_READ_SIZE):
            rest += piece
            *lines, rest = rest.split(b"\n")
            if len(rest) > _MAX_LINE:
                raise ApiError(0, "BadAnswer", "a line of the watch is too long")
            for line in lines:
                if line.strip():
                    yield _decode(line)
    except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError) as error:
        if not closer.stop.is_set():
            raise ApiError(0, type(error).__name__, f"the watch broke off: {error}") from error
    finally:
        closer.hold(None)
        response.close()


def _decode(line: bytes) -> Mapping[str, Any]:
    found = json.loads(line)
    return found if isinstance(found, dict) else {}


def _raise(status: Any) -> None:
    code = status.get("code") if isinstance(status, dict) else None
    if code == _GONE:
        raise _ExpiredError
    message = str(status.get("message")) if isinstance(status, dict) else "an event without an object"
    raise ApiError(int(code) if isinstance(code, int) else 0, "WatchError", message)


def _shut(response: urllib3.BaseHTTPResponse) -> None:
    """Break a connection off, so that the thread that reads it wakes up."""
    connection = getattr(response, "connection", None) or getattr(response, "_connection", None)
    sock = getattr(connection, "sock", None)
    with contextlib.suppress(OSError):
        if sock is not None:
            sock.shutdown(socket.SHUT_RDWR)
