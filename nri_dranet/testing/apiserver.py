"""A stand-in for the Kubernetes API server: the real protocol over real sockets, for tests and for the demo.

It serves ``resource.k8s.io/v1`` and the few core kinds that the driver touches, with field ownership, watches and
the API server's verdicts on what may be written. What it does not have: discovery, paging, admission, garbage
collection, graceful deletion of pods, strategic merge patch, TLS.
"""

from __future__ import annotations

import json
import queue
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Self, cast
from urllib.parse import urlsplit

from nri_dranet.testing.api_errors import StatusError
from nri_dranet.testing.api_http import Faults, HttpFront, Request, resource_of
from nri_dranet.testing.api_json import RawJson, clone
from nri_dranet.testing.api_registry import MERGE_PATCH, Call, Registry
from nri_dranet.testing.api_schema import CLAIMS
from nri_dranet.testing.api_store import Store
from nri_dranet.testing.api_users import ADMIN, User

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = ["ApiServerStandIn", "Request", "StatusError"]

HOST: Final = "127.0.0.1"
NAMESPACES_AT_START: Final = ("default", "kube-system")

_BOOKMARK_SECONDS: Final = 10.0
_REMEMBERED: Final = 10_000
_LISTENER_SECONDS: Final = 10.0


class ApiServerStandIn:
    """The API server. All methods are thread-safe.

    The methods that take a path work on the objects without a request, as an administrator.

    Attributes:
        faults: What goes wrong on purpose.
        requests: The requests that were answered, the newest last.
        bookmark_seconds: Time between two bookmarks of a watch.
    """

    def __init__(self, *, granular: bool = True, trap: bool = True, anonymous: bool = True) -> None:
        """Prepare a server without objects but namespaces.

        Args:
            granular: ask for the finer rights on a claim's status (Kubernetes 1.36 and later).
            trap: encode raw JSON anew in patches, as the real server does: a claim whose parameters are not compact
                JSON with sorted keys then refuses changes of its status.
            anonymous: who has no token, or one that nobody knows, is an administrator; else it gets 401.
        """
        self.faults = Faults()
        self.requests: deque[Request] = deque(maxlen=_REMEMBERED)
        self.bookmark_seconds = _BOOKMARK_SECONDS
        self._store = Store()
        self._registry = Registry(self._store, granular=granular, trap=trap)
        self._anonymous = anonymous
        self._users: dict[str, User] = {}
        self._lock = threading.Lock()
        self._port = 0
        self._listener: _Listener | None = None
        for name in NAMESPACES_AT_START:
            self.create("/api/v1/namespaces", {"metadata": {"name": name}})

    # ---- its life

    def start(self) -> None:
        """Listen on 127.0.0.1, in the network namespace of the calling thread; after a ``stop`` on the same port.

        Raises:
            OSError: it cannot listen.
        """
        with self._lock:
            if self._listener is None:
                self._listener = _Listener(self._front, self._port)
                self._port = self._listener.open()

    def stop(self) -> None:
        """Close the socket and all connections; the objects stay."""
        with self._lock:
            listener, self._listener = self._listener, None
        if listener is not None:
            listener.end()

    def pause(self) -> None:
        """Be out of order: no socket listens, all connections are broken off. ``resume`` ends it."""
        with self._lock:
            if self._listener is not None:
                self._listener.close()

    def resume(self) -> None:
        """Listen again where it did before ``pause``, also in another network namespace than the caller's.

        Raises:
            OSError: it cannot listen.
        """
        with self._lock:
            if self._listener is not None:
                self._listener.open()

    @property
    def serving(self) -> bool:
        """Tell whether it listens: started, and neither stopped nor paused."""
        with self._lock:
            return self._listener is not None and self._listener.is_open

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://{HOST}:{self._port}"

    def write_kubeconfig(self, path: Path, token: str = "") -> Path:
        """Write a kubeconfig for this server and return its path."""
        user = {"token": token} if token else {}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "stand-in",
            "clusters": [{"name": "stand-in", "cluster": {"server": self.url}}],
            "users": [{"name": "stand-in", "user": user}],
            "contexts": [{"name": "stand-in", "context": {"cluster": "stand-in", "user": "stand-in"}}],
        }
        path.write_text(json.dumps(config, indent=2), encoding="utf-8")
        return path

    # ---- users and faults

    def add_user(self, token: str, user: User) -> None:
        """Let someone in who shows this token."""
        with self._lock:
            self._users[token] = user

    def fail_next(
        self,
        count: int,
        status: int = 503,
        *,
        retry_after: int | None = None,
        where: str = "",
        method: str = "",
        message: str = "fault on purpose",
    ) -> None:
        """Answer the next requests with an error; see ``Faults.fail_next``."""
        self.faults.fail_next(count, status, retry_after=retry_after, where=where, method=method, message=message)

    @property
    def latency(self) -> float:
        """Seconds that every answer waits."""
        return self.faults.latency

    @latency.setter
    def latency(self, seconds: float) -> None:
        self.faults.latency = seconds

    def break_watches(self) -> None:
        """End all watches that run; they may go on where they were."""
        self._store.break_watches()

    def drop_connections(self) -> None:
        """Break off all connections, watches too; the server goes on listening."""
        with self._lock:
            if self._listener is not None:
                self._listener.drop_connections()

    def compact(self) -> None:
        """Forget the history and end all watches: who goes on from an old version gets 410."""
        self._store.compact()
        self._store.break_watches()

    # ---- objects, without a request

    def get(self, path: str) -> dict[str, Any]:
        """Return an object.

        Raises:
            StatusError: it does not exist.
        """
        return cast("dict[str, Any]", clone(self._registry.get(self._call(path, "get"))))

    def objects(self, path: str, field_selector: str = "") -> list[dict[str, Any]]:
        """Return the objects of a collection.

        Raises:
            StatusError: the selector is wrong.
        """
        items, _ = self._registry.items(self._call(path, "list"), field_selector)
        return [clone(item) for item in items]

    def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object; a UID in it is kept.

        Raises:
            StatusError: it exists or is wrong.
        """
        created = self._registry.create(self._call(path, "create"), clone(dict(body)), keep_uid=True)
        return cast("dict[str, Any]", clone(created))

    def replace(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Replace an object.

        Raises:
            StatusError: it does not exist, has changed or is wrong.
        """
        replaced = self._registry.replace(self._call(path, "update"), clone(dict(body)))
        return cast("dict[str, Any]", clone(replaced))

    def merge(self, path: str, patch: Mapping[str, Any], manager: str = "admin") -> dict[str, Any]:
        """Change an object by a JSON merge patch.

        Raises:
            StatusError: it does not exist or would be wrong.
        """
        changed = self._registry.patch(self._call(path, "patch", manager), clone(dict(patch)), MERGE_PATCH)
        return cast("dict[str, Any]", clone(changed))

    def delete(self, path: str) -> dict[str, Any]:
        """Remove an object at once, whatever its finalizers; return it.

        Raises:
            StatusError: it does not exist.
        """
        call = self._call(path, "delete")
        with self._store.lock:
            found = self._registry.get(self._call(path, "get"))
            if found["metadata"].get("finalizers"):
                return cast("dict[str, Any]", clone(self._store.drop(call.kind, call.key)))
            return cast("dict[str, Any]", clone(self._registry.delete(call)))

    # ---- what others of a cluster do

    def allocate(
        self,
        namespace: str,
        name: str,
        *,
        results: Sequence[Mapping[str, Any]],
        config: Sequence[Mapping[str, Any]] = (),
        node: str = "",
    ) -> dict[str, Any]:
        """Allocate devices for a claim, as the scheduler does.

        Args:
            namespace: the claim's namespace.
            name: the claim's name.
            results: ``allocation.devices.results``.
            config: ``allocation.devices.config``.
            node: the node that the claim is pinned to, empty for none.

        Raises:
            StatusError: the claim does not exist, or the allocation is refused.
        """
        devices: dict[str, Any] = {"results": [dict(result) for result in results]}
        if config:
            devices["config"] = self._as_written(namespace, name, [dict(each) for each in config])
        allocation: dict[str, Any] = {"devices": devices}
        if node:
            field = {"key": "metadata.name", "operator": "In", "values": [node]}
            allocation["nodeSelector"] = {"nodeSelectorTerms": [{"matchFields": [field]}]}
        return self._schedule(namespace, name, {"allocation": allocation})

    def deallocate(self, namespace: str, name: str) -> dict[str, Any]:
        """Take a claim's allocation and reservations away.

        Raises:
            StatusError: the claim does not exist.
        """
        return self._schedule(namespace, name, {"allocation": None, "reservedFor": None})

    def reserve(self, namespace: str, name: str, *, pod: str, uid: str) -> dict[str, Any]:
        """Reserve an allocated claim for one more pod.

        Raises:
            StatusError: the claim does not exist or is not allocated.
        """
        with self._store.lock:
            users = self._reserved(namespace, name)
            return self._schedule(
                namespace, name, {"reservedFor": [*users, {"resource": "pods", "name": pod, "uid": uid}]}
            )

    def release(self, namespace: str, name: str, *, uid: str) -> dict[str, Any]:
        """Take the reservation of a pod away.

        Raises:
            StatusError: the claim does not exist.
        """
        with self._store.lock:
            users = [user for user in self._reserved(namespace, name) if user["uid"] != uid]
            return self._schedule(namespace, name, {"reservedFor": users or None})

    def list(self, path: str, field_selector: str = "") -> Sequence[dict[str, Any]]:
        """Do the same as ``objects``."""
        return self.objects(path, field_selector)

    # ---- inside

    def _front(self, port: int) -> HttpFront:
        return HttpFront(
            (HOST, port), self._registry, self.faults, self._user, lambda: self.bookmark_seconds, self.requests
        )

    def _user(self, token: str) -> User:
        with self._lock:
            found = self._users.get(token) if token else None
        if found is None and not self._anonymous:
            raise StatusError(401, "Unauthorized")
        return found or ADMIN

    def _call(self, path: str, verb: str, manager: str = "admin") -> Call:
        kind, namespace, name, subresource = resource_of(urlsplit(path).path)
        return Call(kind, namespace, name, ADMIN, verb, subresource, manager)

    def _reserved(self, namespace: str, name: str) -> Sequence[dict[str, Any]]:
        found = self.get(f"{CLAIMS.base}/namespaces/{namespace}/resourceclaims/{name}")
        return found["status"].get("reservedFor") or []

    def _schedule(self, namespace: str, name: str, status: Mapping[str, Any]) -> dict[str, Any]:
        path = f"{CLAIMS.base}/namespaces/{namespace}/resourceclaims/{name}/status"
        return self.merge(path, {"status": dict(status)}, "kube-scheduler")

    def _as_written(self, namespace: str, name: str, config: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        """Give parameters that stand in the claim the text that they have there, as a copy by the scheduler has."""
        claim = self.get(f"{CLAIMS.base}/namespaces/{namespace}/resourceclaims/{name}")
        texts = [
            each["opaque"]["parameters"]
            for each in (claim["spec"].get("devices") or {}).get("config") or []
            if isinstance((each.get("opaque") or {}).get("parameters"), RawJson)
        ]
        for each in config:
            opaque = each.get("opaque") or {}
            for known in texts:
                if opaque.get("parameters") == known:
                    each["opaque"] = {**opaque, "parameters": known}
        return config


class _Listener:
    """Opens and closes the listening socket, always from one thread: a socket belongs to its network namespace."""

    def __init__(self, front: Callable[[int], HttpFront], port: int) -> None:
        self._make = front
        self._port = port
        self._front: HttpFront | None = None
        self._orders: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[OSError | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="api-server", daemon=True)
        self._thread.start()

    def open(self) -> int:
        """Listen, if it does not, and return the port.

        Raises:
            OSError: it cannot.
        """
        if self._front is None:
            self._orders.put(True)
            error = self._answers.get(timeout=_LISTENER_SECONDS)
            if error is not None:
                raise error
        return self._port

    @property
    def is_open(self) -> bool:
        """Tell whether it listens."""
        return self._front is not None

    def close(self) -> None:
        """Stop listening and break off all connections."""
        front, self._front = self._front, None
        if front is None:
            return
        front.closing.set()
        front.registry.store.break_watches()
        front.shutdown()
        front.server_close()
        front.close_connections()

    def drop_connections(self) -> None:
        """Break off all connections."""
        if self._front is not None:
            self._front.close_connections()

    def end(self) -> None:
        """Close, and end the thread."""
        self.close()
        self._orders.put(False)
        self._thread.join()

    def _run(self) -> None:
        while self._orders.get():
            try:
                self._front = front = self._make(self._port)
            except OSError as error:
                self._answers.put(error)
                continue
            self._port = front.server_address[1]
            self._answers.put(None)
            front.serve_forever(poll_interval=0.05)
