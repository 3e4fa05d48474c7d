"""Where the API server is, and who we are to it: the pod's service account, or a kubeconfig.

In a pod there are two environment variables and two files, which are read here. The ``kubernetes`` package reads
kubeconfigs, whose users may be tokens, certificates or plugins; it is imported for them alone. Measured in this
program (Python 3.11, kubernetes 37): the package adds 15 MB of memory and 0.19 s to the start, urllib3 alone 2 MB.

Source of the facts: Kubernetes, "Accessing the Kubernetes API from a Pod" and "Organizing Cluster Access Using
kubeconfig Files".
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Mapping

LOG = logging.getLogger(__name__)

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
HOST: Final = "KUBERNETES_SERVICE_HOST"
PORT: Final = "KUBERNETES_SERVICE_PORT"


class ConfigurationError(Exception):
    """There is no usable configuration for the API server; the text names the file and the cause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How the connection is secured. Paths are "" where there is none."""

    verify: bool = True
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    server_name: str = ""


class Access(Protocol):
    """One way to the API server. Thread-safe."""

    @property
    def server(self) -> str:
        """The server's address, without a slash at the end."""
        ...

    @property
    def proxy(self) -> str:
        """The address of the proxy to go through, or ""."""
        ...

    @property
    def tls(self) -> Tls:
        """How the connection is secured."""
        ...

    def authorization(self) -> str:
        """Return the value of the Authorization header, or "" where there is none.

        Raises:
            ConfigurationError: the credentials cannot be had now.
        """
        ...

    def renew(self) -> bool:
        """Read everything anew after the server refused the credentials; False when that is not possible."""
        ...


def load(kubeconfig: str = "") -> Access:
    """Read the configuration: a kubeconfig, or without one the pod's service account.

    Raises:
        ConfigurationError: it cannot be read, or is not complete.
    """
    return Kubeconfig(kubeconfig) if kubeconfig else ServiceAccount()


class ServiceAccount:
    """The service account of the pod that this program runs in. Its token is replaced by kubelet while it is used."""

    proxy = ""

    def __init__(self, folder: Path = SERVICE_ACCOUNT, environ: Mapping[str, str] = os.environ) -> None:
        """Read address and token.

        Raises:
            ConfigurationError: this is no pod, or its service account is not mounted.
        """
        host, port = environ.get(HOST, ""), environ.get(PORT, "")
        if not host or not port:
            raise ConfigurationError(
                f"this is no pod of a cluster ({HOST} and {PORT} are not set): outside of a pod give --kubeconfig"
            )
        self.server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        self.tls = Tls(ca_file=str(folder / "ca.crt"))
        self._token_file = folder / "token"
        self._lock = threading.Lock()
        self._read_of: tuple[int, int, int] | None = None
        self._token = ""
        self._told = False
        self._refresh()
        if not self._token:
            raise ConfigurationError(f"{self._token_file} is missing, empty or not readable: mount a service account")

    def authorization(self) -> str:
        """Return the token as it is in the file now; the last one while the file cannot be read."""
        with self._lock:
            self._refresh()
            return f"Bearer {self._token}"

    def renew(self) -> bool:
        """Read the file again whatever its times say."""
        with self._lock:
            before, self._read_of = self._token, None
            self._refresh()
            return self._token != before

    def _refresh(self) -> None:
        try:
            now = self._token_file.stat()
            stamp = (now.st_ino, now.st_mtime_ns, now.st_size)
            if stamp == self._read_of:
                return
            token = self._token_file.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            if not self._told:
                LOG.warning("service account token not readable", extra=fields(file=self._token_file, error=error))
            self._told = True
            return
        if token:
            self._token, self._read_of, self._told = token, stamp, False


class Kubeconfig:
    """The current context of a kubeconfig, read by the ``kubernetes`` package."""

    def __init__(self, path: str) -> None:
        """Read the file.

        Raises:
            ConfigurationError: it is missing, damaged, or names no server.
        """
        self._path = path
        self._lock = threading.Lock()
        self._take(_read(path))

    def authorization(self) -> str:
        """Return the header; a token that has run out, or a plugin's, is fetched anew by the package.

        Raises:
            ConfigurationError: the plugin failed.
        """
        with self._lock:
            try:
                found = self._configuration.get_api_key_with_prefix("BearerToken", "authorization")
                if not found and self._configuration.username:
                    found = self._configuration.get_basic_auth_token()
            except Exception as error:
                # The package lets errors of plugins, of JSON and of its own through as they come.
                raise ConfigurationError(f"kubeconfig {self._path} gives no credentials: {error}") from error
        return str(found or "")

    def renew(self) -> bool:
        """Read the file again, and run its plugin where it has one."""
        try:
            fresh = _read(self._path)
        except ConfigurationError as error:
            LOG.warning("kubeconfig cannot be read anew", extra=fields(error=error))
            return False
        with self._lock:
            self._take(fresh)
        return True

    def _take(self, configuration: Any) -> None:
        self._configuration = configuration
        self.server = str(configuration.host).rstrip("/")
        self.proxy = str(configuration.proxy or "")
        self.tls = Tls(
            verify=configuration.verify_ssl is not False,
            ca_file=configuration.ssl_ca_cert or "",
            certificate_file=configuration.cert_file or "",
            key_file=configuration.key_file or "",
            server_name=configuration.tls_server_name or "",
        )


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Make the context for all connections, with its files read.

    Raises:
        ConfigurationError: a file cannot be read or is no certificate or key; the text names it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif tls.ca_file:
        try:
            context.load_verify_locations(cafile=tls.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"the cluster's certificate authority {tls.ca_file} is unusable: {error}"
            ) from error
    else:
        context.load_default_certs()
    if tls.certificate_file:
        try:
            context.load_cert_chain(tls.certificate_file, tls.key_file or None)
        except (OSError, ssl.SSLError) as error:
            files = " and ".join(name for name in (tls.certificate_file, tls.key_file) if name)
            raise ConfigurationError(f"client certificate and key ({files}) are unusable: {error}") from error
    return context


def _read(path: str) -> Any:
    from kubernetes.client.configuration import Configuration  # noqa: PLC0415 - 15 MB that a pod does not need
    from kubernetes.config import load_kube_config  # noqa: PLC0415 - the same

    if not Path(path).is_file():
        raise ConfigurationError(f"kubeconfig {path} does not exist, or is no file")
    configuration = Configuration()
    try:
        load_kube_config(config_file=path, client_configuration=configuration)  # type: ignore[no-untyped-call]  # the package has no types
    except Exception as error:
        # The package lets errors of YAML, base64 and of its own through as they come.
        raise ConfigurationError(f"kubeconfig {path} cannot be used: {error}") from error
    if not str(configuration.host or "").startswith(("http://", "https://")):
        raise ConfigurationError(
            f"kubeconfig {path} names no server: clusters[].cluster.server is {configuration.host!r}"
        )
    return configuration
