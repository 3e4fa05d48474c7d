"""Requests to the API server: blocking, thread-safe, raw JSON in and out.

``kube.access`` knows the server and the credentials. The generated client of the ``kubernetes`` package and its models
are not used: their import alone costs more memory than the rest of this program (design decision 10). Transport is
urllib3's connection pool, with one pool for requests and one for watches, so that watches never keep a request
waiting. There is no client-side rate limit: a node has few requests.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
import urllib.parse
from typing import TYPE_CHECKING, Any, Final

import urllib3
from urllib3.connection import HTTPConnection

from nri_dranet.kube import access
from nri_dranet.kube.access import ConfigurationError
from nri_dranet.kube.decode import decode
from nri_dranet.kube.lists import decode_list
from nri_dranet.kube.resources import kind_of
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from nri_dranet.kube.access import Access
    from nri_dranet.kube.decode import Members

__all__ = ["APPLY", "BAD_ANSWER", "DEFAULT_TIMEOUT", "MERGE", "ApiError", "ConfigurationError", "KubeClient"]

LOG = logging.getLogger(__name__)

APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"

DEFAULT_TIMEOUT: Final = 10.0
"""Seconds that a request may take."""

CONNECT_TIMEOUT: Final = 3.0
"""Seconds that a connection may take: a server that is away is noticed soon."""

BAD_ANSWER: Final = "BadAnswer"
"""Reason of an ``ApiError`` with status 0: something answered, and it was not what was asked for."""

_CONNECTIONS: Final = 16
_UNAUTHORIZED: Final = 401
_TOO_MANY: Final = 429
_SERVER_ERROR: Final = 500
_MAX_MESSAGE: Final = 2048
_RECONNECT_SECONDS: Final = 30.0

# A server that vanished without a word (power, network) is noticed after about a minute, also by a silent watch.
_KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


class ApiError(Exception):
    """The API server refused a request, or could not be reached.

    Attributes:
        status: The HTTP status; 0 when there was no answer.
        reason: The word of the answer's Status (``NotFound``, ``Conflict``), or of the failure.
        message: The text for people.
        retry_after: Seconds that the server asks to wait; None when it does not.
        details: The ``details`` of the answer's Status.
        method: The HTTP method of the request, where it is known.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        retry_after: float | None = None,
        details: Mapping[str, Any] | None = None,
        method: str = "",
    ) -> None:
        super().__init__(status, reason, message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        self.details = dict(details or {})
        self.method = method

    def __str__(self) -> str:
        return f"{self.message} ({self.status or 'no answer'}, {self.reason})"

    @property
    def unanswered(self) -> bool:
        """Tell whether the server could not be reached at all."""
        return self.status == 0 and self.reason != BAD_ANSWER

    @property
    def retriable(self) -> bool:
        """Tell whether the same request may succeed later: no answer, overload, or an error of the server."""
        return self.status in (0, _TOO_MANY) or self.status >= _SERVER_ERROR


class KubeClient:
    """The API server. Thread-safe."""

    def __init__(self, way: Access) -> None:
        """Use a way to the server; see ``load``.

        Raises:
            ConfigurationError: its certificates cannot be read.
        """
        self._access = way
        self._lock = threading.Lock()
        self._pools = _pools(way)
        self._made = time.monotonic()

    @classmethod
    def load(cls, kubeconfig: str = "") -> Self:
        """Read the configuration; nothing is asked of the server, which may be away.

        Args:
            kubeconfig: path of a kubeconfig; empty: the pod's service account.

        Raises:
            ConfigurationError: it cannot be read, or is not complete.
        """
        return cls(access.load(kubeconfig))

    def close(self) -> None:
        """Close the connections that nobody uses now. The client still works afterwards, with new ones."""
        with self._lock:
            for pool in self._pools:
                pool.clear()

    @property
    def server(self) -> str:
        """The server's address."""
        return self._access.server

    def get(
        self,
        path: str,
        params: Mapping[str, str] | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        members: Members | None = None,
    ) -> dict[str, Any]:
        """Read an object or a list.

        Args:
            path: the object, or a collection.
            params: of the query.
            timeout: seconds that it may take.
            members: makes each JSON object from its members, for who must see those that stand there twice.

        Raises:
            ApiError: it was refused, or there was no answer.
        """
        return self._request("GET", path, params=params, timeout=timeout, members=members)

    def items(
        self,
        path: str,
        params: Mapping[str, str] | None = None,
        *,
        keep: Callable[[dict[str, Any]], Mapping[str, Any]] = dict,
        members: Members | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> tuple[str, list[Mapping[str, Any]]]:
        """Read a list: its ``resourceVersion``, and its items, each reduced by ``keep``; ``members`` as for ``get``.

        Raises:
            ApiError: it was refused, or there was no answer.
        """
        raw = self._raw("GET", path, params=params, timeout=timeout)
        try:
            return decode_list(raw.decode(), keep, members)
        except ValueError as error:
            raise _bad_answer("GET", path, f"is no list: {error}") from error

    def create(
        self,
        path: str,
        body: Mapping[str, Any] | bytes,
        params: Mapping[str, str] | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> dict[str, Any]:
        """Create an object; ``body`` as data or as encoded JSON.

        Raises:
            ApiError: it was refused, or there was no answer.
        """
        return self._request("POST", path, body=body, params=params, timeout=timeout)

    def replace(
        self,
        path: str,
        body: Mapping[str, Any] | bytes,
        params: Mapping[str, str] | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> dict[str, Any]:
        """Replace an object; ``body`` as data or as encoded JSON.

        Raises:
            ApiError: it was refused, or there was no answer.
        """
        return self._request("PUT", path, body=body, params=params, timeout=timeout)

    def patch(
        self,
        path: str,
        body: Any,
        *,
        content_type: str,
        params: Mapping[str, str] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> dict[str, Any]:
        """Change an object by a patch of the given kind (``APPLY``, ``MERGE``).

        Raises:
            ApiError: it was refused, or there was no answer.
        """
        return self._request("PATCH", path, body=body, content_type=content_type, params=params, timeout=timeout)

    def delete(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> dict[str, Any]:
        """Delete an object; ``body`` may be DeleteOptions with preconditions.

        Raises:
            ApiError: it was refused, or there was no answer.
        """
        return self._request("DELETE", path, body=body, params=params, timeout=timeout)

    def stream(self, path: str, params: Mapping[str, str], *, read_timeout: float) -> urllib3.BaseHTTPResponse:
        """Begin a watch and return the open response; the caller closes it.

        Args:
            path: the collection.
            params: with ``watch`` and the rest.
            read_timeout: seconds of silence after which reading fails.

        Raises:
            ApiError: it was refused, or there was no answer.
        """
        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT, read=read_timeout)
        response = self._send("GET", path, None, "", params, timeout, watch=True)
        if response.status >= 400:
            try:
                raw = response.read()
            except (urllib3.exceptions.HTTPError, OSError):
                # The status says enough.
                raw = b""
            finally:
                response.release_conn()
            raise _error("GET", response.status, raw, response.headers)
        return response

    # ---- inside

    def _request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        content_type: str = "application/json",
        params: Mapping[str, str] | None = None,
        timeout: float,
        members: Members | None = None,
    ) -> dict[str, Any]:
        raw = self._raw(method, path, body=body, content_type=content_type, params=params, timeout=timeout)
        try:
            answer = decode(raw, members) if raw else None
        except ValueError as error:
            raise _bad_answer(method, path, f"is no JSON: {error}") from error
        if isinstance(answer, dict):
            return answer
        # Of what is deleted nothing is read.
        if method == "DELETE":
            return {}
        raise _bad_answer(method, path, "is no JSON object")

    def _raw(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        content_type: str = "application/json",
        params: Mapping[str, str] | None = None,
        timeout: float,
    ) -> bytes:
        data = None if body is None else body if isinstance(body, bytes) else _encode(body)
        limits = urllib3.Timeout(connect=min(CONNECT_TIMEOUT, timeout), total=timeout)
        response = self._send(method, path, data, content_type, params, limits, watch=False)
        raw = response.data
        if response.status >= 400:
            raise _error(method, response.status, raw, response.headers)
        return raw

    def _send(  # noqa: PLR0917 - one place where all parts of a request meet
        self,
        method: str,
        path: str,
        data: bytes | None,
        content_type: str,
        params: Mapping[str, str] | None,
        timeout: urllib3.Timeout,
        *,
        watch: bool,
    ) -> urllib3.BaseHTTPResponse:
        response = self._attempt(method, path, data, content_type, params, timeout, watch=watch)
        if response.status == _UNAUTHORIZED and self._renew():
            response.drain_conn()
            response = self._attempt(method, path, data, content_type, params, timeout, watch=watch)
        return response

    def _attempt(  # noqa: PLR0917 - the same
        self,
        method: str,
        path: str,
        data: bytes | None,
        content_type: str,
        params: Mapping[str, str] | None,
        timeout: urllib3.Timeout,
        *,
        watch: bool,
    ) -> urllib3.BaseHTTPResponse:
        kind = kind_of(path)
        headers = {"Accept": "application/json", "User-Agent": "nri-dranet"}
        if data is not None:
            headers["Content-Type"] = content_type
        try:
            authorization = self._access.authorization()
        except ConfigurationError as error:
            raise ApiError(0, "NoCredentials", str(error), method=method) from error
        if authorization:
            headers["Authorization"] = authorization
        with self._lock:
            pool = self._pools[watch]
        url = self.server + path + ("?" + urllib.parse.urlencode(params) if params else "")
        try:
            try:
                response = pool.request(
                    method, url, body=data, headers=headers, timeout=timeout, preload_content=not watch, retries=False
                )
            except urllib3.exceptions.ProtocolError:
                # A kept-alive connection that the server has just closed; the next one is fresh. Only what changes
                # nothing, or changes to the same whenever it is repeated, is sent again.
                if method != "GET" and content_type != APPLY:
                    raise
                response = pool.request(
                    method, url, body=data, headers=headers, timeout=timeout, preload_content=not watch, retries=False
                )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            metrics.API_REQUESTS.labels(method, kind, "0").inc()
            cause = getattr(error, "reason", None) or error
            if isinstance(cause, urllib3.exceptions.SSLError):
                self._reconnect()
            raise ApiError(0, type(cause).__name__, f"{self.server} does not answer: {cause}", method=method) from error
        metrics.API_REQUESTS.labels(method, kind, str(response.status)).inc()
        return response

    def _renew(self) -> bool:
        """Get new credentials after the server refused those that we have."""
        if not self._access.renew():
            return False
        self._reconnect(at_once=True)
        return True

    def _reconnect(self, *, at_once: bool = False) -> None:
        """Read certificates and authority anew, which may have been replaced; new connections use them."""
        with self._lock:
            if not at_once and time.monotonic() - self._made < _RECONNECT_SECONDS:
                return
            try:
                self._pools = _pools(self._access)
            except ConfigurationError as error:
                LOG.warning("certificates cannot be read anew", extra=fields(error=error))
            self._made = time.monotonic()


def _encode(body: Any) -> bytes:
    # Sorted and compact: a claim's parameters must come back as the API server keeps them (server-side apply compares).
    return json.dumps(body, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()


def _pools(way: Access) -> tuple[urllib3.PoolManager, urllib3.PoolManager]:
    """Make the pools for requests and for watches."""
    options: dict[str, Any] = {
        "num_pools": 2,
        "maxsize": _CONNECTIONS,
        "socket_options": [*HTTPConnection.default_socket_options, *_KEEPALIVE],
    }
    if way.server.startswith("https:"):
        options["ssl_context"] = access.tls_context(way.tls)
        if way.tls.server_name:
            options["server_hostname"] = way.tls.server_name
        if not way.tls.verify:
            options["cert_reqs"] = "CERT_NONE"
            # urllib3 would warn at each request.
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
            LOG.warning("the API server's certificate is not verified", extra=fields(server=way.server))
    try:
        if way.proxy:
            return urllib3.ProxyManager(way.proxy, **options), urllib3.ProxyManager(way.proxy, **options)
        return urllib3.PoolManager(**options), urllib3.PoolManager(**options)
    except (ValueError, urllib3.exceptions.HTTPError) as error:
        raise ConfigurationError(f"the configuration for {way.server} cannot be used: {error}") from error


def _bad_answer(method: str, path: str, why: str) -> ApiError:
    return ApiError(0, BAD_ANSWER, f"the API server's answer to {method} {path} {why}", method=method)


def _error(method: str, status: int, raw: bytes, headers: Mapping[str, str]) -> ApiError:
    answer: Any = None
    try:
        answer = decode(raw)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        answer = {}
    message = str(answer.get("message") or raw[:_MAX_MESSAGE].decode("utf-8", "replace").strip() or "no text")
    details = answer.get("details")
    after = headers.get("Retry-After", "")
    return ApiError(
        status,
        str(answer.get("reason") or "Unknown"),
        message,
        retry_after=float(after) if after.isdecimal() else None,
        details=details if isinstance(details, dict) else None,
        method=method,
    )
