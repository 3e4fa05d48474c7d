"""List and watch, for ever: three generators, one inside the other.

``watch`` never ends by itself: it lists, follows, and lists anew when it must. ``_follow`` lives from one list to the
moment when its position is too old (410) or refused; a connection that breaks or is refused for a while is replaced
from the same position, without a new list. ``_connection`` is one HTTP response.

Source of the facts: Kubernetes API concepts, "Efficient detection of changes" (resourceVersion, bookmarks, 410 Gone).
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

import urllib3

from nri_dranet.kube.client import ApiError
from nri_dranet.kube.decode import decode
from nri_dranet.kube.resources import kind_of
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nri_dranet.kube.client import KubeClient
    from nri_dranet.kube.decode import Members
    from nri_dranet.kube.lists import Keep


LOG = logging.getLogger(__name__)

SYNC: Final = "SYNC"
"""Type of the event that carries the whole list, in ``objects``: what is not in it does not exist any more."""

ADDED: Final = "ADDED"
MODIFIED: Final = "MODIFIED"
DELETED: Final = "DELETED"

_GONE: Final = 410
_LIST_ANEW: Final = "BadWatch"
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 10.0
_STABLE_SECONDS: Final = 5.0
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


class _Pace:
    """How a watch goes: says once that it fails and once that it works again, and waits ever longer in between.

    A node has many watches of the same kind, which fail together: the first and the last of them speak for all.
    """

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _failed: ClassVar[Counter[str]] = Counter()

    def __init__(self, kind: str, selector: str, closer: Closer, turnstile: Turnstile | None = None) -> None:
        self._kind = kind
        self._selector = selector
        self._closer = closer
        self._turnstile = turnstile
        self._pause = _FIRST_PAUSE
        self._failing = False

    def turn(self) -> None:
        """Wait until it is this watch's turn to ask."""
        if self._turnstile is not None:
            self._turnstile.pass_through(self._closer.stop)

    def works(self) -> None:
        """The server answers, or nobody asks any more."""
        if not self._failing:
            return
        self._failing = False
        with self._lock:
            self._failed[self._kind] -= 1
            last = not self._failed[self._kind]
        if last and not self._closer.stop.is_set():
            LOG.info("watches work again", extra=fields(resource=self._kind))

    @property
    def failing(self) -> bool:
        """Whether the server has not answered since the last failure."""
        return self._failing

    def stable(self) -> None:
        """The server has answered for a while: the next failure waits shortly again."""
        self._pause = _FIRST_PAUSE

    def fails(self, error: ApiError) -> None:
        """Wait after a failure."""
        metrics.WATCH_RESTARTS.labels(self._kind).inc()
        if not self._failing:
            self._failing = True
            with self._lock:
                self._failed[self._kind] += 1
                first = self._failed[self._kind] == 1
            if first and not self._closer.stop.is_set():
                LOG.warning("watches fail", extra=fields(resource=self._kind, selector=self._selector, error=error))
        self.wait(error.retry_after)

    def wait(self, asked: float | None = None) -> None:
        """Wait, with jitter, and longer the next time."""
        self._closer.stop.wait(min(asked or self._pause, _LONGEST_PAUSE) * random.uniform(0.6, 1.2))  # noqa: S311 - no secret
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)


class Turnstile:
    """Lets many watches ask one after the other, so that all of them together do not storm the server. Thread-safe."""

    def __init__(self, seconds: float) -> None:
        """Let one pass every so many seconds."""
        self._seconds = seconds
        self._lock = threading.Lock()
        self._free_at = 0.0

    def pass_through(self, stop: threading.Event) -> None:
        """Wait for the next turn, or until ``stop`` is set."""
        with self._lock:
            now = time.monotonic()
            at = max(now, self._free_at)
            self._free_at = at + self._seconds
        if at > now:
            stop.wait(at - now)


def watch(
    client: KubeClient,
    path: str,
    *,
    field_selector: str = "",
    closer: Closer,
    keep: Keep = dict,
    members: Members | None = None,
    turnstile: Turnstile | None = None,
) -> Iterator[WatchEvent]:
    """Give the list as it is, then every change, for ever.

    Failures are logged when they begin and when they end, and tried again with a growing pause. After each list a
    ``SYNC`` event comes first.

    Args:
        client: the API server.
        path: the collection.
        field_selector: restricts it.
        closer: ends it.
        keep: reduces an object to what is used of it, so that a long list needs little memory.
        members: makes each JSON object from its members, for who must see those that stand there twice.
        turnstile: passed before each request; None: none.
    """
    pace = _Pace(kind_of(path), field_selector, closer, turnstile)
    try:
        while not closer.stop.is_set():
            try:
                yield from _follow(client, path, field_selector, closer, pace, keep, members)
            except _ExpiredError:
                metrics.WATCH_RESTARTS.labels(kind_of(path)).inc()
                pace.wait()
            except ApiError as error:
                pace.fails(error)
            except Exception as error:
                # Whoever follows a watch has nobody who would begin it again: it goes on whatever happens.
                if not pace.failing:
                    LOG.exception("a watch failed unexpectedly", extra=fields(resource=kind_of(path)))
                pace.fails(ApiError(0, type(error).__name__, str(error)))
    finally:
        pace.works()


def _follow(  # noqa: PLR0917 - the parts of a watch
    client: KubeClient,
    path: str,
    field_selector: str,
    closer: Closer,
    pace: _Pace,
    keep: Keep,
    members: Members | None,
) -> Iterator[WatchEvent]:
    """List, then follow on one connection after the other."""
    selector = {"fieldSelector": field_selector} if field_selector else {}
    pace.turn()
    version, items = client.items(path, selector, keep=keep, members=members)
    pace.works()
    yield WatchEvent(SYNC, objects=tuple(items))
    del items
    while not closer.stop.is_set():
        params = {
            **selector,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(random.randint(_SERVER_SECONDS // 2, _SERVER_SECONDS)),  # noqa: S311 - no secret
        }
        began = time.monotonic()
        try:
            for line in _connection(client, path, params, closer, pace, members):
                change = line.get("object")
                if line.get("type") == "ERROR" or not isinstance(change, dict):
                    raise _error(change)
                pace.stable()
                version = str(change.get("metadata", {}).get("resourceVersion") or version)
                if line.get("type") in (ADDED, MODIFIED, DELETED):
                    yield WatchEvent(str(line["type"]), keep(change))
        except ApiError as error:
            # What is refused for another cause than the server's state needs a new list.
            if not error.retriable or error.reason == _LIST_ANEW:
                raise
            pace.fails(error)
            continue
        if time.monotonic() - began > _STABLE_SECONDS:
            pace.stable()
        else:
            pace.wait()


def _connection(  # noqa: PLR0917 - the parts of a watch
    client: KubeClient,
    path: str,
    params: Mapping[str, str],
    closer: Closer,
    pace: _Pace,
    members: Members | None,
) -> Iterator[Mapping[str, Any]]:
    """Give the lines of one response until the server ends it."""
    pace.turn()
    try:
        response = client.stream(path, params, read_timeout=_SILENCE)
    except ApiError as error:
        if error.status == _GONE:
            raise _ExpiredError from error
        raise
    pace.works()
    closer.hold(response)
    rest = b""
    try:
        for piece in response.stream(_READ_SIZE):
            *lines, rest = (rest + piece).split(b"\n")
            if len(rest) > _MAX_LINE:
                raise ApiError(0, _LIST_ANEW, "a line of the watch is too long")
            for line in lines:
                if line.strip():
                    yield _decode(line, members)
    except (urllib3.exceptions.HTTPError, OSError, AttributeError) as error:
        # AttributeError: another thread closed the connection, and its parts with it.
        if not closer.stop.is_set():
            raise ApiError(0, type(error).__name__, f"the watch broke off: {error}") from error
    finally:
        closer.hold(None)
        response.close()


def _decode(line: bytes, members: Members | None) -> Mapping[str, Any]:
    try:
        found = decode(line, members)
    except ValueError as error:
        raise ApiError(0, _LIST_ANEW, f"a line of the watch is no JSON: {error}") from error
    return found if isinstance(found, dict) else {}


def _error(status: Any) -> Exception:
    """Return what an ERROR event means."""
    answer = status if isinstance(status, dict) else {}
    code = answer.get("code")
    if code == _GONE:
        return _ExpiredError()
    message = str(answer.get("message") or "an event without an object")
    return ApiError(code if isinstance(code, int) else 0, _LIST_ANEW, message)


def _shut(response: urllib3.BaseHTTPResponse) -> None:
    """Break a connection off, so that the thread that reads it wakes up."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        response.shutdown()
