"""A stand-in for the API server: HTTP with the paths, verdicts, patches and watches that this driver uses.

It is no real API server: no admission, no defaulting, no controllers. What it refuses is what a real one was seen to
refuse (``api_verdicts``). Faults can be injected: an outage that keeps its state, answers that fail, a slow answer.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, urlsplit

from nri_dranet.testing.api_store import KINDS, RESOURCE_GROUP, ApiProblem, Name, Store, matcher

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

RESOURCE_API: Final = f"/apis/{RESOURCE_GROUP}"

_PATCHES: Final = {
    "application/apply-patch+yaml": "apply",
    "application/merge-patch+json": "merge",
    "application/json-patch+json": "json",
}
_BOOKMARK_SECONDS: Final = 5.0
_METHOD_VERBS: Final = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(slots=True)
class Fault:
    """Answers that shall fail: how many, how, and for which paths (a part of them)."""

    count: int
    status: int
    retry_after: int | None = None
    where: str = ""
    message: str = "injected"


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that was answered, for tests that count them."""

    method: str
    path: str
    status: int
    content_type: str = ""


class ApiServerStandIn:
    """The API server on a loopback port. ``stop`` and ``start`` make an outage; the objects stay."""

    def __init__(self, *, trap: bool = False) -> None:
        """Prepare to serve; ``trap`` as in ``api_store.Store``."""
        self.store = Store(trap=trap)
        self.requests: list[Seen] = []
        self.latency = 0.0
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Serve; on the same port as before."""
        self._server = _Server(("127.0.0.1", self._port), _Handler, self)
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="apiserver", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop at once: open connections break off."""
        server, self._server = self._server, None
        if server is None:
            return
        server.stopping.set()
        with self.store.changed:
            self.store.changed.notify_all()
        server.shutdown()
        server.break_connections()
        server.server_close()
        if self._thread is not None:
            self._thread.join()

    def fail_next(
        self, count: int, status: int, *, retry_after: int | None = None, where: str = "", message: str = "injected"
    ) -> None:
        """Let the next answers fail, of requests whose path has ``where`` in it."""
        with self._lock:
            self._faults.append(Fault(count, status, retry_after, where, message))

    def write_kubeconfig(self, path: Path) -> None:
        """Write a kubeconfig for this server."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "stand-in",
            "contexts": [{"name": "stand-in", "context": {"cluster": "stand-in", "user": "driver"}}],
            "clusters": [{"name": "stand-in", "cluster": {"server": self.url}}],
            "users": [{"name": "driver", "user": {"token": "stand-in"}}],
        }
        path.write_text(json.dumps(config), encoding="utf-8")

    # ---- what a cluster's other parts do

    def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object at a collection's path; raises ``ApiProblem``."""
        plural, namespace, _, _ = split_path(path)
        return self.store.create(plural, namespace, body, "user")

    def get(self, path: str) -> dict[str, Any]:
        """Return an object; raises ``ApiProblem``."""
        plural, namespace, name, _ = split_path(path)
        return self.store.get((plural, namespace, name))

    def objects(self, path: str, selector: str = "") -> list[dict[str, Any]]:
        """Return the objects of a collection."""
        plural, namespace, _, _ = split_path(path)
        return self.store.select(plural, namespace, selector)[1]

    def delete(self, path: str) -> None:
        """Delete an object; raises ``ApiProblem``."""
        plural, namespace, name, _ = split_path(path)
        self.store.delete((plural, namespace, name), {})

    def allocate(
        self,
        namespace: str,
        name: str,
        *,
        results: Sequence[Mapping[str, Any]],
        config: Sequence[Mapping[str, Any]] = (),
        node: str,
    ) -> dict[str, Any]:
        """Do what the scheduler does with a claim."""
        term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
        allocation: dict[str, Any] = {
            "devices": {"results": [dict(result) for result in results]},
            "nodeSelector": {"nodeSelectorTerms": [term]},
        }
        if config:
            allocation["devices"]["config"] = [dict(each) for each in config]
        return self._status(namespace, name, lambda status: {**status, "allocation": allocation})

    def deallocate(self, namespace: str, name: str) -> dict[str, Any]:
        """Take the allocation away, and with it every entry of ``status.devices``."""
        return self._status(namespace, name, lambda _: {})

    def reserve(self, namespace: str, name: str, *, pod: str, uid: str) -> dict[str, Any]:
        """Reserve a claim for one more pod."""
        entry = {"resource": "pods", "name": pod, "uid": uid}
        return self._status(
            namespace, name, lambda status: {**status, "reservedFor": [*(status.get("reservedFor") or []), entry]}
        )

    def release(self, namespace: str, name: str, *, uid: str) -> dict[str, Any]:
        """Take a pod's reservation away."""

        def without(status: dict[str, Any]) -> dict[str, Any]:
            return {**status, "reservedFor": [each for each in status.get("reservedFor") or [] if each["uid"] != uid]}

        return self._status(namespace, name, without)

    def _status(self, namespace: str, name: str, change: Any) -> dict[str, Any]:
        key: Name = ("resourceclaims", namespace, name)
        claim = self.store.get(key)
        claim["status"] = change(claim.get("status") or {})
        return self.store.replace(key, claim, "scheduler", status=True)

    # ---- for the handler

    def fault(self, path: str) -> Fault | None:
        """Return the fault that an answer shall have."""
        with self._lock:
            for fault in self._faults:
                if fault.where in path and fault.count > 0:
                    fault.count -= 1
                    return fault
            return None

    def note(self, seen: Seen) -> None:
        """Note an answered request."""
        with self._lock:
            self.requests.append(seen)


def split_path(path: str) -> tuple[str, str, str, str]:
    """Return plural, namespace, name and subresource of a path; raises ``ApiProblem`` 404 for another form."""
    parts = path.strip("/").split("/")
    if parts[:2] == ["api", "v1"]:
        parts = parts[2:]
    elif "/" + "/".join(parts[:3]) == RESOURCE_API:
        parts = parts[3:]
    else:
        raise ApiProblem(404, "NotFound", "the server could not find the requested resource")
    namespace = ""
    if parts[:1] == ["namespaces"] and len(parts) > 2:
        namespace, parts = parts[1], parts[2:]
    plural, name, subresource = [*parts, "", ""][:3]
    if plural not in KINDS or len(parts) > 3:
        raise ApiProblem(404, "NotFound", "the server could not find the requested resource")
    return plural, namespace, name, subresource


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], handler: type[_Handler], owner: ApiServerStandIn) -> None:
        self.owner = owner
        self.stopping = threading.Event()
        self._open: set[Any] = set()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def break_connections(self) -> None:
        """Close every connection that is open."""
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(2)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that break off: that is what an outage is."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Write no access log."""

    def do_GET(self) -> None:
        """Get, list or watch."""
        self._answer()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - the base class names them so

    def _answer(self) -> None:
        owner = self.server.owner
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length) if length else b""
        if owner.latency:
            time.sleep(owner.latency)
        kind = self.headers.get("Content-Type", "")
        fault = owner.fault(url.path)
        headers: dict[str, str] = {}
        try:
            if fault is not None:
                _spring(fault, headers)
            query = dict(parse_qsl(url.query))
            if self.command == "GET" and query.get("watch") in ("true", "1"):
                self._watch(url.path, query)
                return
            body = json.loads(raw) if raw else None
            answer = self._serve(url.path, query, body, kind)
            status = 201 if self.command == "POST" else 200
        except ApiProblem as problem:
            status, answer = problem.status, _status(problem)
        except ValueError as error:
            status, answer = 400, _status(ApiProblem(400, "BadRequest", str(error)))
        owner.note(Seen(self.command, url.path, status, kind))
        data = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _serve(  # noqa: C901, PLR0911 - one line a verb
        self, path: str, query: Mapping[str, str], body: Any, kind: str
    ) -> dict[str, Any]:
        store = self.server.owner.store
        plural, namespace, name, subresource = split_path(path)
        key: Name = (plural, namespace, name)
        manager = query.get("fieldManager", "unknown")
        status = subresource == "status"
        if subresource not in ("", "status"):
            raise ApiProblem(404, "NotFound", "the server could not find the requested resource")
        if self.command == "GET" and name:
            return store.get(key)
        if self.command == "GET":
            version, items = store.select(plural, namespace, query.get("fieldSelector", ""))
            list_kind, group = f"{KINDS[plural][0]}List", KINDS[plural][1]
            meta = {"resourceVersion": str(version)}
            return {"kind": list_kind, "apiVersion": group, "metadata": meta, "items": items}
        if self.command == "POST" and not name:
            return store.create(plural, namespace, body, manager)
        if self.command == "PUT" and name:
            return store.replace(key, body, manager, status=status)
        if self.command == "PATCH" and name:
            patch = _PATCHES.get(kind.partition(";")[0])
            if patch is None:
                raise ApiProblem(
                    415, "UnsupportedMediaType", f"the body of the request was in an unknown format: {kind}"
                )
            return store.patch(key, patch, body, manager, force=query.get("force") == "true", status=status)
        if self.command == "DELETE" and name:
            return store.delete(key, (body or {}).get("preconditions") or {})
        if self.command == "DELETE":
            gone = store.select(plural, namespace, query.get("fieldSelector", ""))[1]
            for item in gone:
                store.delete((plural, item["metadata"].get("namespace", ""), item["metadata"]["name"]), {})
            return {"kind": "Status", "apiVersion": "v1", "status": "Success"}
        raise ApiProblem(405, "MethodNotAllowed", f"the server does not allow {_METHOD_VERBS.get(self.command)} here")

    def _watch(self, path: str, query: Mapping[str, str]) -> None:
        """Send changes until the client's time is over or the server stops."""
        store = self.server.owner.store
        plural, namespace, _, _ = split_path(path)
        matches = matcher(query.get("fieldSelector", ""))
        position = int(query.get("resourceVersion") or 0)
        end = time.monotonic() + float(query.get("timeoutSeconds") or 3600)
        store.since(position)
        self.server.owner.note(Seen("WATCH", path, 200))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        bookmark = time.monotonic() + _BOOKMARK_SECONDS
        while not self.server.stopping.is_set() and time.monotonic() < end:
            with store.changed:
                changes = store.since(position)
                if not changes:
                    store.changed.wait(min(0.5, max(0.0, end - time.monotonic())))
                    changes = store.since(position)
            for change in changes:
                position = change.version
                space = change.object["metadata"].get("namespace", "")
                if change.plural == plural and namespace in ("", space) and matches(change.object):
                    self._line({"type": change.type, "object": change.object})
            if time.monotonic() > bookmark and query.get("allowWatchBookmarks") == "true":
                bookmark = time.monotonic() + _BOOKMARK_SECONDS
                kind, group = KINDS[plural]
                mark = {"kind": kind, "apiVersion": group, "metadata": {"resourceVersion": str(position)}}
                self._line({"type": "BOOKMARK", "object": mark})
        if self.server.stopping.is_set():
            self.close_connection = True
            return
        self.wfile.write(b"0\r\n\r\n")

    def _line(self, event: Mapping[str, Any]) -> None:
        data = json.dumps(event).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


def _spring(fault: Fault, headers: dict[str, str]) -> None:
    if fault.retry_after is not None:
        headers["Retry-After"] = str(fault.retry_after)
    raise ApiProblem(fault.status, "Injected", fault.message)


def _status(problem: ApiProblem) -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": problem.message,
        "reason": problem.reason,
        "code": problem.status,
    }
