"""HTTP/1.1 before the registry: paths, parameters, watches, and faults on request."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from nri_dranet.testing import api_users
from nri_dranet.testing.api_errors import StatusError, invalid, required
from nri_dranet.testing.api_json import loads
from nri_dranet.testing.api_registry import Call, check_manager
from nri_dranet.testing.api_schema import KINDS, Kind
from nri_dranet.testing.api_select import selector

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nri_dranet.testing.api_registry import Registry
    from nri_dranet.testing.api_users import User

_VERBS: Final = {"POST": "create", "PUT": "update", "PATCH": "patch"}
_KINDS: Final = {(kind.base, kind.plural): kind for kind in KINDS}
_PUBLIC: Final[dict[str, Any]] = {
    "/healthz": "ok",
    "/livez": "ok",
    "/readyz": "ok",
    "/version": {"major": "1", "minor": "37", "gitVersion": "v1.37.2"},
}
"""What everybody may read."""

_MAX_BODY: Final = 3 << 20
_WATCH_SECONDS: Final = 1800.0
_REMEMBERED: Final = 10_000

_NOT_YAML: Final = re.compile("[\x7f-\x84\x86-\x9f\ufffe\uffff]")
"""What JSON may have as it is and YAML may not (YAML 1.2, 5.1); server-side apply is read as YAML."""

_CONTROL_CHARACTERS: Final = (
    "error decoding patch: error converting YAML to JSON: yaml: control characters are not allowed"
)


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was answered.

    Attributes:
        method: The HTTP method.
        path: The path, without parameters.
        query: The parameters.
        content_type: The body's type.
        status: The answer's HTTP status; 0: the connection was closed instead.
        user: Who asked.
        at: When it was answered (monotonic).
    """

    method: str
    path: str
    query: Mapping[str, str]
    content_type: str
    status: int
    user: str
    at: float = 0.0


@dataclass(slots=True)
class _Fault:
    left: int
    status: int
    retry_after: int | None
    where: str
    method: str
    message: str

    def meets(self, method: str, path: str) -> bool:
        return self.left > 0 and self.method in ("", method) and self.where in path


class Faults:
    """What goes wrong on purpose. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[_Fault] = []
        self.latency = 0.0

    def fail_next(
        self,
        count: int,
        status: int,
        *,
        retry_after: int | None = None,
        where: str = "",
        method: str = "",
        message: str = "fault on purpose",
    ) -> None:
        """Answer the next ``count`` requests with ``status``; 0 closes the connection without an answer.

        Args:
            count: how many.
            status: the HTTP status.
            retry_after: seconds for the header ``Retry-After``.
            where: only requests with this text in their path.
            method: only requests with this method; empty: all.
            message: the text of the Status.
        """
        with self._lock:
            self._faults.append(_Fault(count, status, retry_after, where, method, message))

    def clear(self) -> None:
        """Take back what has not happened yet, latency too."""
        with self._lock:
            self._faults.clear()
        self.latency = 0.0

    def meet(self, method: str, path: str) -> bool:
        """Tell whether a request meets a fault that closes its connection.

        Raises:
            StatusError: it meets one that is an answer.
        """
        with self._lock:
            met = next((fault for fault in self._faults if fault.meets(method, path)), None)
            if met is None:
                return False
            met.left -= 1
        if met.status:
            raise StatusError(met.status, met.message, retry_after=met.retry_after)
        return True


class HttpFront(ThreadingHTTPServer):
    """The listening socket, and the threads that answer."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(  # noqa: PLR0917 - what a front is made of
        self,
        address: tuple[str, int],
        registry: Registry,
        faults: Faults,
        user_of: Callable[[str], User],
        bookmarks: Callable[[], float],
        requests: deque[Request] | None = None,
    ) -> None:
        """Listen.

        Args:
            address: where; port 0 takes a free one.
            registry: answers.
            faults: what goes wrong on purpose.
            user_of: gives the user of a bearer token, empty where there is none.
            bookmarks: seconds between two bookmarks of a watch.
            requests: where answered requests are noted.
        """
        self.registry = registry
        self.faults = faults
        self.user_of = user_of
        self.bookmarks = bookmarks
        self.requests: deque[Request] = deque(maxlen=_REMEMBERED) if requests is None else requests
        self.closing = threading.Event()
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Note the connection, then answer on a thread of its own."""
        with self._open_lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection and close it."""
        with self._open_lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing about a connection that the client closed."""

    def close_connections(self) -> None:
        """Break off all connections."""
        with self._open_lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HttpFront

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class' name
        """Print nothing."""

    def do_GET(self) -> None:
        """Answer a GET."""
        self._answer()

    def do_POST(self) -> None:
        """Answer a POST."""
        self._answer()

    def do_PUT(self) -> None:
        """Answer a PUT."""
        self._answer()

    def do_PATCH(self) -> None:
        """Answer a PATCH."""
        self._answer()

    def do_DELETE(self) -> None:
        """Answer a DELETE."""
        self._answer()

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        body = self.rfile.read(min(int(self.headers.get("Content-Length") or 0), _MAX_BODY))
        if self.server.faults.latency:
            time.sleep(self.server.faults.latency)
        self._request = Request(self.command, path, query, self.headers.get("Content-Type", ""), 0, "")
        try:
            if self.server.faults.meet(self.command, path):
                self._note(0)
                self.close_connection = True
            elif path in _PUBLIC:
                self._send(200, _PUBLIC[path])
            else:
                scheme, _, token = self.headers.get("Authorization", "").partition(" ")
                user = self.server.user_of(token.strip() if scheme == "Bearer" else "")
                self._request = replace(self._request, user=user.name)
                self._route(user, path, query, body)
        except StatusError as error:
            self._send(error.code, error.status(), retry_after=error.retry_after)

    def _note(self, status: int) -> None:
        """Remember the request, before the client has its answer."""
        self.server.requests.append(replace(self._request, status=status, at=time.monotonic()))

    def _send(self, code: int, body: Any, retry_after: int | None = None) -> None:
        self._note(code)
        data = json.dumps(body, separators=(",", ":")).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        # One write for head and body: two would wait for an acknowledgement in between.
        self._headers_buffer += [b"\r\n", data]  # type: ignore[attr-defined]  # private to the base class, typed nowhere
        self.flush_headers()

    def _route(self, user: User, path: str, query: dict[str, str], body: bytes) -> None:
        """Carry out a request and answer it.

        Raises:
            StatusError: it is refused.
        """
        kind, namespace, name, subresource = resource_of(path)
        verb = self._verb(name, query)
        manager = check_manager(query.get("fieldManager") or self._agent())
        call = Call(kind, namespace, name, user, verb, subresource, manager)
        if verb in ("watch", "get", "list"):
            self._read(call, query)
        else:
            self._write(call, query, _decoded(body, self._request.content_type) if body else None)

    def _read(self, call: Call, query: dict[str, str]) -> None:
        registry = self.server.registry
        if call.verb == "watch":
            self._watch(call, query)
        elif call.verb == "get":
            self._send(200, registry.get(call))
        else:
            items, version = registry.items(call, query.get("fieldSelector", ""), query.get("labelSelector", ""))
            self._send(200, list_of(call.kind, items, version))

    def _write(self, call: Call, query: dict[str, str], sent: Any) -> None:
        registry = self.server.registry
        match call.verb:
            case "create":
                self._send(201, registry.create(call, sent))
            case "update":
                self._send(200, registry.replace(call, sent))
            case "delete":
                options = sent if isinstance(sent, dict) else {}
                self._send(200, registry.delete(call, options.get("preconditions")))
            case "deletecollection":
                fields, labels = query.get("fieldSelector", ""), query.get("labelSelector", "")
                gone = registry.delete_collection(call, fields, labels)
                self._send(200, list_of(call.kind, gone, registry.store.version))
            case _:
                self._patch(call, query, sent)

    def _patch(self, call: Call, query: dict[str, str], sent: Any) -> None:
        registry = self.server.registry
        content_type = self.headers.get("Content-Type", "").partition(";")[0].strip()
        if content_type.startswith("application/apply-patch") and not query.get("fieldManager"):
            raise _no_manager()
        existed = registry.store.find(call.kind, call.key) is not None
        force = query.get("force", "").lower() in ("true", "1")
        self._send(200 if existed else 201, registry.patch(call, sent, content_type, force=force))

    def _verb(self, name: str, query: dict[str, str]) -> str:
        if self.command == "GET":
            watches = query.get("watch", "").lower() in ("true", "1")
            return "watch" if watches and not name else "get" if name else "list"
        if self.command == "DELETE":
            return "delete" if name else "deletecollection"
        if (self.command == "POST") == bool(name):
            raise StatusError(405, "the server does not allow this method on the requested resource")
        return _VERBS[self.command]

    def _agent(self) -> str:
        return self.headers.get("User-Agent", "unknown").partition("/")[0] or "unknown"

    # ---- watch

    def _watch(self, call: Call, query: dict[str, str]) -> None:
        api_users.check(call.user, "watch", call.kind.group, call.resource, "", call.namespace)
        selects = selector(call.kind, query.get("fieldSelector", ""), query.get("labelSelector", ""), call.namespace)
        store = self.server.registry.store
        asked = query.get("resourceVersion", "")
        if asked and not asked.isdecimal():
            raise StatusError(400, f"invalid resource version {asked!r}")
        with store.lock:
            # Before the client knows that its watch has begun.
            epoch = store.epoch
            version = int(asked or 0)
            first: list[dict[str, Any]] = []
            if not version:
                first = [stored.shown for _, stored in store.all(call.kind, call.namespace) if selects(stored.shown)]
                version = store.version
        self._note(200)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(OSError):
            for item in first:
                self._event("ADDED", item)
            self._stream(call.kind, version, epoch, query, selects)
            if self.server.closing.is_set():
                # A server that goes away does not end its answers.
                self.close_connection = True
            else:
                self.wfile.write(b"0\r\n\r\n")

    def _stream(
        self, kind: Kind, version: int, epoch: int, query: dict[str, str], selects: Callable[[dict[str, Any]], bool]
    ) -> None:
        wanted = query.get("allowWatchBookmarks", "").lower() in ("true", "1")
        store, front = self.server.registry.store, self.server
        limit = query.get("timeoutSeconds", "")
        end = time.monotonic() + (float(limit) if limit.isdecimal() and int(limit) else _WATCH_SECONDS)
        told = time.monotonic()
        # A bookmark says what this stream has delivered: a change that came since must not be skipped by it.
        reached = version

        def left() -> float:
            pause = end - time.monotonic()
            return min(pause, max(told + front.bookmarks() - time.monotonic(), 0.0)) if wanted and pause >= 0 else pause

        try:
            for change in store.follow(kind, version, epoch, left, front.closing.is_set):
                if isinstance(change, int):
                    reached = change
                    if wanted and time.monotonic() - told >= front.bookmarks():
                        told = time.monotonic()
                        self._bookmark(kind, reached)
                    continue
                seen = change.seen_by(selects)
                if seen is not None:
                    self._event(*seen)
                reached = change.version
        except StatusError as error:
            self._event("ERROR", error.status())
            return
        if wanted and not front.closing.is_set():
            self._bookmark(kind, reached)

    def _bookmark(self, kind: Kind, version: int) -> None:
        meta = {"resourceVersion": str(version), "creationTimestamp": None}
        self._event("BOOKMARK", {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": meta})

    def _event(self, word: str, item: Mapping[str, Any]) -> None:
        data = json.dumps({"type": word, "object": item}, separators=(",", ":")).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


def list_of(kind: Kind, items: list[dict[str, Any]], version: int) -> dict[str, Any]:
    """Return a list object; its items do not say their kind."""
    return {
        "kind": f"{kind.kind}List",
        "apiVersion": kind.api_version,
        "metadata": {"resourceVersion": str(version)},
        "items": [{k: v for k, v in item.items() if k not in ("kind", "apiVersion")} for item in items],
    }


def resource_of(path: str) -> tuple[Kind, str, str, str]:
    """Return what a path names: kind, namespace, name, subresource.

    Raises:
        StatusError: nothing that is served.
    """
    parts = path.strip("/").split("/")
    taken = 2 if parts[0] == "api" else 3
    base, rest = "/" + "/".join(parts[:taken]), parts[taken:]
    namespace = ""
    if len(rest) > 2 and rest[0] == "namespaces" and (base, rest[2]) in _KINDS:
        namespace, rest = rest[1], rest[2:]
    kind = _KINDS.get((base, rest[0])) if rest else None
    name, subresource = (*rest[1:], "", "")[:2]
    known = kind is not None and (not subresource or (subresource == "status" and kind.has_status))
    if kind is None or not known or len(rest) > 3 or bool(namespace) != (kind.namespaced and bool(namespace or name)):
        raise StatusError(404, "the server could not find the requested resource")
    return kind, namespace, name, subresource


def _decoded(body: bytes, content_type: str = "") -> Any:
    if content_type.startswith("application/apply-patch") and _NOT_YAML.search(body.decode("utf-8", "replace")):
        raise StatusError(400, _CONTROL_CHARACTERS)
    try:
        return loads(body)
    except ValueError as error:
        raise StatusError(400, f"the object provided is unrecognized: json parse error: {error}") from error


def _no_manager() -> StatusError:
    return invalid("PatchOptions", "meta.k8s.io", "", [required("fieldManager", "is required for apply patch")])
