"""Requests to the API server: blocking, thread-safe, raw JSON in and out.

The ``kubernetes`` package reads the configuration and keeps the credentials fresh (service account token, kubeconfig
with token, certificate or plugin). Its generated client and its models are not used: their import alone costs more
memory than the rest of this program (design decision 10). Transport is urllib3's connection pool, with one pool for
requests and one for watches, so that watches never keep a request waiting. There is no client-side rate limit: a node
has few requests.
"""

from __future__ import annotations

import json
import logging
import threading
import urllib.parse
from typing import TYPE_CHECKING, Any, Final

import urllib3

from nri_dranet.kube.resources import kind_of
from nri_dranet.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Mapping

LOG = logging.getLogger(__name__)

APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"
JSON_PATCH: Final = "application/json-patch+json"

DEFAULT_TIMEOUT: Final = 10.0
"""Seconds that a request may take."""

_CONNECTIONS: Final = 16
_UNAUTHORIZED: Final = 401
_TOO_MANY: Final = 429
_SERVER_ERROR: Final = 500
_MAX_MESSAGE: Final = 2048

_SERVICE_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount/token"


class ConfigurationError(Exception):
    """There is no usable configuration for the API server; the text names the file and the cause."""


class ApiError(Exception):
    """The API server refused a request, or could not be reached.

    Attributes:
        status: The HTTP status; 0 when there was no answer.
        reason: The word of the answer's Status (``NotFound``, ``Conflict``), or of the failure.
        message: The text for people.
        retry_after: Seconds that the server asks to wait; None when it does not.
        details: The ``details`` of the answer's Status.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        retry_after: float | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(status, reason, message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        self.details = dict(details or {})

    def __str__(self) -> str:
        return f"{self.message} ({self.status or 'no answer'}, {self.reason})"

    @property
    def retriable(self) -> bool:
        """Tell whether the same request may succeed later: no answer, overload, or an error of the server."""
        return self.status in (0, _TOO_MANY) or self.status >= _SERVER_ERROR


class KubeClient:
    """The API server. Thread-safe."""

    def __init__(self, configuration: Any, reload: Any) -> None:
        """Use a configuration; see ``load``.

        Args:
            configuration: a ``kubernetes.client.Configuration``.
            reload: reads the configuration anew and returns it.
        """
        self._lock = threading.Lock()
        self._configuration = configuration
        self._reload = reload
        self._requests, self._watches = _pools(configuration)

    @classmethod
    def load(cls, kubeconfig: str = "") -> KubeClient:
        """Read the configuration; nothing is asked of the server, which may be away.

        Args:
            kubeconfig: path of a kubeconfig; empty: the pod's service account.

        Raises:
            ConfigurationError: it cannot be read, or is not complete.
        """

        def read() -> Any:
            return _read(kubeconfig)

        return cls(read(), read)

    @property
    def server(self) -> str:
        """The server's address."""
        host: str = self._configuration.host
        return host

    def get(
        self, path: str, params: Mapping[str, str] | None = None, *, timeout: float = DEFAULT_TIMEOUT
    ) -> dict[str, Any]:
        """Read an object or a list.

        Raises:
            ApiError: it was refused, or there was no answer.
        """
        return self._request("GET", path, params=params, timeout=timeout)

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
        """Change an object by a patch of the given kind (``APPLY``, ``MERGE``, ``JSON_PATCH``).

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
        timeout = urllib3.Timeout(connect=DEFAULT_TIMEOUT, read=read_timeout)
        response = self._send(self._watches, "GET", path, None, "", params, timeout, preload=False)
        if response.status >= 400:
            try:
                raise _error(response.status, response.read(), response.headers)
            finally:
                response.release_conn()
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
    ) -> dict[str, Any]:
        data = None if body is None else body if isinstance(body, bytes) else _encode(body)
        limits = urllib3.Timeout(total=timeout)
        response = self._send(self._requests, method, path, data, content_type, params, limits, preload=True)
        raw = response.data
        if response.status >= 400:
            raise _error(response.status, raw, response.headers)
        try:
            answer = json.loads(raw) if raw else {}
        except ValueError as error:
            raise ApiError(0, "BadAnswer", f"the API server's answer to {method} {path} is no JSON") from error
        return answer if isinstance(answer, dict) else {}

    def _send(  # noqa: PLR0917 - one place where all parts of a request meet
        self,
        pool: urllib3.PoolManager,
        method: str,
        path: str,
        data: bytes | None,
        content_type: str,
        params: Mapping[str, str] | None,
        timeout: urllib3.Timeout,
        *,
        preload: bool,
    ) -> urllib3.BaseHTTPResponse:
        kind = kind_of(path)
        for attempt in (1, 2):
            headers = {"Accept": "application/json", "User-Agent": "nri-dranet", **self._credentials()}
            if data is not None:
                headers["Content-Type"] = content_type
            try:
                response = pool.request(
                    method,
                    self.server + path + ("?" + _query(params) if params else ""),
                    body=data,
                    headers=headers,
                    timeout=timeout,
                    preload_content=preload,
                    retries=urllib3.Retry(
                        total=1, connect=0, read=1, redirect=0, status=0, other=0, allowed_methods=["GET"]
                    ),
                )
            except (urllib3.exceptions.HTTPError, OSError) as error:
                metrics.API_REQUESTS.labels(method, kind, "0").inc()
                cause = getattr(error, "reason", None) or error
                raise ApiError(0, type(cause).__name__, f"{self.server} does not answer: {cause}") from error
            metrics.API_REQUESTS.labels(method, kind, str(response.status)).inc()
            if response.status == _UNAUTHORIZED and attempt == 1 and self._refresh():
                response.drain_conn()
                continue
            return response
        raise AssertionError  # pragma: no cover - the second attempt returns

    def _credentials(self) -> dict[str, str]:
        with self._lock:
            token = self._configuration.get_api_key_with_prefix("BearerToken", "authorization")
        return {"Authorization": token} if token else {}

    def _refresh(self) -> bool:
        """Read the configuration anew after a refusal of the credentials; False when it cannot be read."""
        try:
            fresh = self._reload()
        except ConfigurationError as error:
            LOG.warning("credentials cannot be read anew: %s", error)
            return False
        with self._lock:
            self._configuration = fresh
        return True


def _encode(body: Any) -> bytes:
    # Sorted and compact: a claim's parameters must come back as the API server keeps them (server-side apply compares).
    return json.dumps(body, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()


def _query(params: Mapping[str, str]) -> str:
    return urllib.parse.urlencode(params)


def _read(kubeconfig: str) -> Any:
    from kubernetes.client.configuration import Configuration  # noqa: PLC0415 - only the daemon needs it
    from kubernetes.config import ConfigException, load_incluster_config, load_kube_config  # noqa: PLC0415 - the same

    configuration = Configuration()
    try:
        if kubeconfig:
            load_kube_config(config_file=kubeconfig, client_configuration=configuration)  # type: ignore[no-untyped-call]  # the package has no types
        else:
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]  # the same
    except (ConfigException, OSError, ValueError, TypeError, KeyError) as error:
        where = f"kubeconfig {kubeconfig}" if kubeconfig else f"the pod's service account ({_SERVICE_ACCOUNT})"
        raise ConfigurationError(
            f"{where} cannot be used: {error}" + ("" if kubeconfig else "; outside of a pod give --kubeconfig")
        ) from error
    if not configuration.host:
        raise ConfigurationError(f"kubeconfig {kubeconfig} names no server")
    return configuration


def _pools(configuration: Any) -> tuple[urllib3.PoolManager, urllib3.PoolManager]:
    options: dict[str, Any] = {
        "cert_reqs": "CERT_REQUIRED" if configuration.verify_ssl else "CERT_NONE",
        "ca_certs": configuration.ssl_ca_cert,
        "cert_file": configuration.cert_file,
        "key_file": configuration.key_file,
        "assert_hostname": configuration.assert_hostname,
        "server_hostname": configuration.tls_server_name,
        "timeout": DEFAULT_TIMEOUT,
    }
    options = {name: value for name, value in options.items() if value is not None}
    if not str(configuration.host).startswith("https"):
        options = {"timeout": DEFAULT_TIMEOUT}
    try:
        return (
            urllib3.PoolManager(num_pools=2, maxsize=_CONNECTIONS, **options),
            urllib3.PoolManager(num_pools=2, maxsize=_CONNECTIONS, **options),
        )
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"the configuration for {configuration.host} cannot be used: {error}") from error


def _error(status: int, raw: bytes, headers: Mapping[str, str]) -> ApiError:
    answer: Any = None
    try:
        answer = json.loads(raw)
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
    )
