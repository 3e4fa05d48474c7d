"""The HTTP endpoint: alive, ready, metrics."""

from __future__ import annotations

import asyncio

import pytest

from nri_dranet.telemetry.http import BindAddress, HttpServer


async def ask(port: int, request: bytes) -> str:
    """Send raw bytes and return the whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    await writer.drain()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer.decode()


def exchange(*requests: bytes, live: str = "", ready: str = "") -> list[str]:
    """Serve on a free port, send requests, return the answers."""

    async def run() -> list[str]:
        server = HttpServer(
            BindAddress("127.0.0.1", 0),
            live={"loop": lambda: live},
            ready={"nri": lambda: ready, "kubelet": lambda: ""},
        )
        port = await server.start()
        try:
            return [await ask(port, request) for request in requests]
        finally:
            await server.stop()
            await server.stop()

    return asyncio.run(run())


def get(path: str, method: str = "GET") -> bytes:
    """Return a request."""
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def test_healthy_and_ready_are_200() -> None:
    """Both name their checks."""
    healthy, ready = exchange(get("/healthz"), get("/readyz?verbose"))
    assert healthy.startswith("HTTP/1.1 200 OK")
    assert "[+]nri ok" in ready
    assert "[+]kubelet ok" in ready


def test_what_is_wrong_is_named_with_503() -> None:
    """A failing check says why; the others are still listed."""
    (answer,) = exchange(get("/readyz"), ready="not connected")
    assert answer.startswith("HTTP/1.1 503")
    assert "[-]nri: not connected" in answer
    assert "[+]kubelet ok" in answer


def test_metrics_are_prometheus_text() -> None:
    """The reference's names and the process metrics are there."""
    (answer,) = exchange(get("/metrics"))
    assert "text/plain; version=0.0.4" in answer
    assert "dranet_driver_dra_plugin_requests_total" in answer
    assert "process_start_time_seconds" in answer


def test_head_has_no_body() -> None:
    """HEAD gives the headers of GET."""
    (answer,) = exchange(get("/healthz", "HEAD"))
    assert answer.endswith("\r\n\r\n")


def test_other_paths_and_methods_are_refused_in_words() -> None:
    """The answer says what there is."""
    unknown, post = exchange(get("/"), get("/healthz", "POST"))
    assert unknown.startswith("HTTP/1.1 404")
    assert "/readyz" in unknown
    assert post.startswith("HTTP/1.1 405")


def test_a_broken_request_ends_its_connection_only() -> None:
    """Too long or cut-off requests get no answer; the next one does."""
    long, good = exchange(b"GET /" + b"x" * 20_000 + b"\r\n\r\n", get("/healthz"))
    assert long == ""
    assert good.startswith("HTTP/1.1 200")


def test_who_asks_and_does_not_read_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that never takes its answer holds its connection for the timeout and no longer."""
    monkeypatch.setattr("nri_dranet.telemetry.http._TIMEOUT", 0.05)

    async def run() -> None:
        asked = asyncio.Event()

        def much() -> bytes:
            asked.set()
            return b"x" * (64 << 20)

        monkeypatch.setattr("nri_dranet.telemetry.metrics.exposition", much)
        server = HttpServer(BindAddress("127.0.0.1", 0), live={}, ready={})
        port = await server.start()
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(get("/metrics"))
            own = asyncio.current_task()
            await asyncio.wait_for(asked.wait(), 10)
            serving = asyncio.all_tasks() - {own}
            done, _ = await asyncio.wait(serving, timeout=10)
            assert done == serving
        finally:
            writer.transport.abort()
            await server.stop()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [(":9177", "", 9177), ("127.0.0.1:0", "127.0.0.1", 0), ("[::1]:80", "::1", 80), ("localhost:1", "localhost", 1)],
)
def test_addresses_are_read(text: str, host: str, port: int) -> None:
    """The reference's form and IPv6 in brackets."""
    assert BindAddress.parse(text) == BindAddress(host, port)


@pytest.mark.parametrize("text", ["9177", "::1:80", ":port", ":70000", ""])
def test_other_forms_are_refused(text: str) -> None:
    """The refusal shows the allowed form."""
    with pytest.raises(ValueError, match="bind address"):
        BindAddress.parse(text)


def test_an_address_that_becomes_free_is_waited_for() -> None:
    """The instance before this one may still have it; without patience that is an error at once."""

    async def scenario() -> None:
        first = HttpServer(BindAddress("127.0.0.1", 0), live={}, ready={})
        address = BindAddress("127.0.0.1", await first.start())
        second = HttpServer(address, live={}, ready={})
        with pytest.raises(OSError, match="in use"):
            await second.start()
        waiting = asyncio.ensure_future(second.start(20.0))
        await asyncio.sleep(0)
        await first.stop()
        assert await waiting == address.port
        await second.stop()

    asyncio.run(scenario())
