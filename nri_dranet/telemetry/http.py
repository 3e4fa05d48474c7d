"""One small HTTP server for ``/healthz``, ``/readyz`` and ``/metrics``. GET and HEAD only, one request a connection."""

from __future__ import annotations

import asyncio
import http
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

LOG = logging.getLogger(__name__)

_MAX_HEAD: Final = 8 << 10
_TIMEOUT: Final = 5.0
_LOOK: Final = 0.05
_MAX_PORT: Final = 65535

Check = Callable[[], str]
"""Tells what is wrong, or "" when all is well. Must not block."""


@dataclass(frozen=True, slots=True)
class BindAddress:
    """Where to listen; ``host`` "" means every address."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> BindAddress:
        """Read ``:9177``, ``127.0.0.1:9177`` or ``[::1]:9177``.

        Raises:
            ValueError: it has another form; the text says which forms are allowed.
        """
        host, colon, port = text.rpartition(":")
        if not colon or not port.isdecimal() or int(port) > _MAX_PORT:
            raise ValueError(f"bind address {text!r} is not of the form :PORT, ADDRESS:PORT or [IPV6]:PORT")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"bind address {text!r}: an IPv6 address stands in brackets, [{host}]:{port}")
        return cls(host, int(port))


class HttpServer:
    """The endpoint. ``live`` and ``ready`` name each check; a check that tells a reason makes the answer 503."""

    def __init__(self, address: BindAddress, *, live: Mapping[str, Check], ready: Mapping[str, Check]) -> None:
        self._address = address
        self._live = live
        self._ready = ready
        self._server: asyncio.Server | None = None

    async def start(self, patience: float = 0.0) -> int:
        """Listen; return the port.

        Args:
            patience: seconds for which somebody else may still have the address.

        Raises:
            OSError: the address cannot be listened on.
        """
        end = time.monotonic() + patience
        while self._server is None:
            try:
                self._server = await asyncio.start_server(
                    self._serve, self._address.host or None, self._address.port, limit=_MAX_HEAD
                )
            except OSError:
                if time.monotonic() >= end:
                    raise
                await asyncio.sleep(_LOOK)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """Close the listening sockets."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(head))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            LOG.debug("request not served", extra=fields(error=error))
        finally:
            writer.close()
            try:
                async with asyncio.timeout(_TIMEOUT):
                    await writer.wait_closed()
            except (TimeoutError, OSError):
                # Who does not take the answer would keep the connection for ever.
                writer.transport.abort()

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.split(b"\r\n", 1)[0].decode("latin-1").partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        status, kind, body = self._look_up(method, path)
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Content-Type: {kind}; charset=utf-8",
            f"Content-Length: {len(body)}",
            "Connection: close",
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if method == "HEAD" else body)

    def _look_up(self, method: str, path: str) -> tuple[http.HTTPStatus, str, bytes]:
        if method not in ("GET", "HEAD"):
            return http.HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", b"GET and HEAD are served\n"
        if path == "/metrics":
            return http.HTTPStatus.OK, "text/plain; version=0.0.4", metrics.exposition()
        checks = {"/healthz": self._live, "/readyz": self._ready}.get(path)
        if checks is None:
            return http.HTTPStatus.NOT_FOUND, "text/plain", b"there are /healthz, /readyz and /metrics\n"
        reasons = {name: check() for name, check in checks.items()}
        text = "".join(
            f"{'[-]' if why else '[+]'}{name}{': ' + why if why else ' ok'}\n" for name, why in reasons.items()
        )
        good = not any(reasons.values())
        return (
            (http.HTTPStatus.OK if good else http.HTTPStatus.SERVICE_UNAVAILABLE),
            "text/plain",
            text.encode() or b"ok\n",
        )
