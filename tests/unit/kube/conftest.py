"""A server whose answers a test writes itself, and the stand-in of the API server."""

from __future__ import annotations

import http.server
import json
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.kube.client import KubeClient
from nri_dranet.testing.apiserver import ApiServerStandIn

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from pathlib import Path


@dataclass
class Asked:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Reply:
    """What to answer: whole bodies, or chunks one by one; ``hang_up`` closes without an answer."""

    status: int = 200
    body: Any = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    chunks: Iterator[bytes] | None = None
    hang_up: bool = False
    close_after: bool = False


class Scripted:
    """A server on loopback that asks ``answer`` for each reply and notes what was asked."""

    def __init__(self, answer: Callable[[Asked], Reply], context: ssl.SSLContext | None = None) -> None:
        """Listen at once."""
        self.asked: list[Asked] = []
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                asked = Asked(self.command, self.path, dict(self.headers), self.rfile.read(length))
                owner.asked.append(asked)
                reply = answer(asked)
                if reply.hang_up:
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if reply.chunks is not None:
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    for chunk in reply.chunks:
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                        self.wfile.flush()
                    self.wfile.write(b"0\r\n\r\n")
                    return
                body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                if reply.close_after:
                    self.close_connection = True

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 - the base class names them so

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
                """Write no log."""

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """Say nothing of clients that hang up."""

        self._server = Server(("127.0.0.1", 0), Handler)
        scheme = "http"
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def asked_type() -> type[Asked]:
    """Give the type of a request."""
    return Asked


@pytest.fixture
def reply() -> type[Reply]:
    """Give the type of an answer."""
    return Reply


@pytest.fixture
def serve() -> Iterator[Callable[..., Scripted]]:
    """Start servers with scripted answers; all end with the test."""
    servers: list[Scripted] = []

    def start(answer: Callable[[Asked], Reply], context: ssl.SSLContext | None = None) -> Scripted:
        servers.append(Scripted(answer, context))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Callable[..., str]:
    """Write a kubeconfig."""

    def write(server: str, user: dict[str, Any] | None = None, **cluster: Any) -> str:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "it",
            "clusters": [{"name": "it", "cluster": {"server": server, **cluster}}],
            "users": [{"name": "it", "user": user or {}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        }
        path = tmp_path / "kubeconfig"
        path.write_text(json.dumps(config))
        return str(path)

    return write


@pytest.fixture
def client_of(kubeconfig: Callable[..., str]) -> Iterator[Callable[..., KubeClient]]:
    """Make clients by kubeconfig; their connections are closed with the test."""
    clients: list[KubeClient] = []

    def make(server: str, user: dict[str, Any] | None = None, **cluster: Any) -> KubeClient:
        clients.append(KubeClient.load(kubeconfig(server, user, **cluster)))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def api() -> Iterator[ApiServerStandIn]:
    """Run the stand-in of the API server."""
    with ApiServerStandIn() as server:
        yield server


@pytest.fixture
def client(api: ApiServerStandIn, client_of: Callable[..., KubeClient]) -> KubeClient:
    """Give a client of the stand-in."""
    return client_of(api.url)
