"""Requests: what is sent, what errors become, credentials that run out, connections that break."""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.kube import access
from nri_dranet.kube.client import APPLY, MERGE, ApiError, ConfigurationError, KubeClient
from nri_dranet.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nri_dranet.testing.apiserver import ApiServerStandIn

CLAIMS = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims"


def requests_counted(method: str, resource: str, code: str) -> float:
    """Return how many requests were counted."""
    return float(metrics.API_REQUESTS.labels(method, resource, code)._value.get())


def test_reads_and_writes_reach_the_server(api: ApiServerStandIn, client: KubeClient) -> None:
    """Each verb does what it says, with JSON in and out."""
    api.create("/api/v1/namespaces", {"metadata": {"name": "team"}})
    path = "/api/v1/namespaces/team/pods"
    made = client.create(path, {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
    assert made["metadata"]["uid"]
    changed = client.patch(f"{path}/p", {"metadata": {"labels": {"a": "b"}}}, content_type=MERGE)
    assert changed["metadata"]["labels"] == {"a": "b"}
    changed["metadata"]["labels"] = {"a": "c"}
    assert client.replace(f"{path}/p", changed)["metadata"]["labels"] == {"a": "c"}
    assert client.get(f"{path}/p")["metadata"]["labels"] == {"a": "c"}
    assert [item["metadata"]["name"] for item in client.get(path, {"fieldSelector": "metadata.name=p"})["items"]] == [
        "p"
    ]
    client.delete(f"{path}/p", {"preconditions": {"uid": made["metadata"]["uid"]}})
    with pytest.raises(ApiError, match="not found") as caught:
        client.get(f"{path}/p")
    assert (caught.value.status, caught.value.reason, caught.value.retriable) == (404, "NotFound", False)


def test_bodies_are_compact_sorted_and_in_utf8(
    serve: Callable[..., Any], reply: Any, client_of: Callable[..., KubeClient]
) -> None:
    """The API server compares raw parameters byte by byte: bodies are sent in the form that it keeps them in."""
    server = serve(lambda _: reply())
    client = client_of(server.url, {"token": "abc"})
    client.patch("/api/v1/x", {"b": 1, "a": "é"}, content_type=APPLY, params={"fieldManager": "a/b c"})
    client.create("/api/v1/x", b'{"raw": true}')
    first, second = server.asked
    assert first.body == '{"a":"é","b":1}'.encode()
    assert first.path == "/api/v1/x?fieldManager=a%2Fb+c"
    assert first.headers["Content-Type"] == APPLY
    assert first.headers["Authorization"] == "Bearer abc"
    assert first.headers["User-Agent"].startswith("nri-dranet")
    assert second.body == b'{"raw": true}'


STATUS = {"kind": "Status", "reason": "Conflict", "message": "has been modified", "details": {"name": "c1"}}


@pytest.mark.parametrize(
    ("status", "body", "headers", "expected"),
    [
        (409, STATUS, {}, ("Conflict", "has been modified", None, False)),
        (429, STATUS, {"Retry-After": "7"}, ("Conflict", "has been modified", 7.0, True)),
        (429, STATUS, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, ("Conflict", "has been modified", None, True)),
        (503, b"upstream connect error", {}, ("Unknown", "upstream connect error", None, True)),
        (500, b"", {}, ("Unknown", "no text", None, True)),
        (422, b"[1]", {}, ("Unknown", "[1]", None, False)),
        (403, {"message": "no", "details": "odd"}, {}, ("Unknown", "no", None, False)),
        (500, b"[" * 9000, {}, ("Unknown", "[" * 2048, None, True)),
    ],
)
def test_refusals_become_errors(
    *,
    serve: Callable[..., Any],
    reply: Any,
    client_of: Callable[..., KubeClient],
    status: int,
    body: Any,
    headers: dict[str, str],
    expected: tuple[Any, ...],
) -> None:
    """Reason, text, the time to wait and whether trying again may help are taken from the answer."""
    client = client_of(serve(lambda _: reply(status, body, headers)).url)
    with pytest.raises(ApiError) as caught:
        client.get("/api/v1/pods")
    error = caught.value
    assert (error.reason, error.message, error.retry_after, error.retriable) == expected
    assert (error.status, error.method) == (status, "GET")
    assert str(status) in str(error)
    assert error.details == (STATUS["details"] if body is STATUS else {})


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize("body", [b"<html>", b"", b"[]", b"null", DEEP])
def test_an_answer_that_is_no_object_is_an_error(
    serve: Callable[..., Any], reply: Any, client_of: Callable[..., KubeClient], body: bytes
) -> None:
    """A page of a proxy in between, nothing at all, a list: none of them says what the object is like."""
    client = client_of(serve(lambda _: reply(200, body)).url)
    with pytest.raises(ApiError, match="answer to GET /api/v1/pods is no JSON") as caught:
        client.get("/api/v1/pods")
    assert (caught.value.status, caught.value.reason) == (0, "BadAnswer")
    assert caught.value.retriable
    assert not caught.value.unanswered
    with pytest.raises(ApiError, match="answer to PATCH /api/v1/pods is no JSON"):
        client.patch("/api/v1/pods", {}, content_type=APPLY)
    if body in (b"[]", b""):
        assert client.delete("/api/v1/pods/a") == {}


@pytest.mark.parametrize("body", [b"[]", b"<html>", b'{"items": ' + DEEP])
def test_a_list_that_is_none_is_an_error(
    serve: Callable[..., Any], reply: Any, client_of: Callable[..., KubeClient], body: bytes
) -> None:
    """The same for lists, whose items are decoded one by one."""
    client = client_of(serve(lambda _: reply(200, body)).url)
    with pytest.raises(ApiError, match="is no list") as caught:
        client.items("/api/v1/pods")
    assert caught.value.reason == "BadAnswer"


def test_a_server_that_is_away_gives_an_error_that_may_be_tried_again(client_of: Callable[..., KubeClient]) -> None:
    """Loading needs no server; the first request says that it does not answer, and names it."""
    client = client_of("http://127.0.0.1:9")
    before = requests_counted("GET", "pods", "0")
    with pytest.raises(ApiError, match=r"http://127\.0\.0\.1:9 does not answer") as caught:
        client.get("/api/v1/pods")
    assert caught.value.status == 0
    assert caught.value.unanswered
    assert caught.value.retriable
    assert "no answer" in str(caught.value)
    assert requests_counted("GET", "pods", "0") == before + 1


def test_a_server_that_is_silent_is_given_up(
    serve: Callable[..., Any], reply: Any, client_of: Callable[..., KubeClient]
) -> None:
    """A request ends with its timeout."""
    release = threading.Event()

    def silent(_: Any) -> Any:
        release.wait(10)
        return reply()

    client = client_of(serve(silent).url)
    with pytest.raises(ApiError) as caught:
        client.get("/api/v1/pods", timeout=0.1)
    release.set()
    assert caught.value.status == 0


def test_a_connection_that_the_server_closed_is_replaced(
    serve: Callable[..., Any], reply: Any, client_of: Callable[..., KubeClient]
) -> None:
    """What changes nothing, or to the same again, is sent once more; a creation is not, it might happen twice."""
    failing = iter([True, False, True, False, True, False])
    server = serve(lambda _: reply(hang_up=next(failing)))
    client = client_of(server.url)
    assert client.get("/api/v1/pods") == {}
    assert client.patch("/api/v1/pods", {}, content_type=APPLY) == {}
    with pytest.raises(ApiError):
        client.create("/api/v1/pods", {})
    assert [asked.method for asked in server.asked] == ["GET", "GET", "PATCH", "PATCH", "POST"]


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder of a service account that the client uses."""
    (tmp_path / "token").write_text("old")
    (tmp_path / "ca.crt").write_text("")
    monkeypatch.setattr(access, "tls_context", lambda _: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    return tmp_path


def in_pod(folder: Path, url: str) -> KubeClient:
    """Return a client by service account, of a server without TLS."""
    host, port = url.removeprefix("http://").split(":")
    account = access.ServiceAccount(folder, {access.HOST: host, access.PORT: port})
    account.server = url
    return KubeClient(account)


def test_a_refused_token_is_read_anew_once(serve: Callable[..., Any], reply: Any, account: Path) -> None:
    """On 401 the token file is read again and the request repeated; without a new token the refusal stands."""

    def answer(asked: Any) -> Any:
        (account / "token").write_text("new")
        return reply(200, {"ok": 1}) if asked.headers["Authorization"] == "Bearer new" else reply(401, {"reason": "U"})

    server = serve(answer)
    client = in_pod(account, server.url)
    assert client.get("/api/v1/pods") == {"ok": 1}
    assert len(server.asked) == 2
    client.close()


def test_a_token_that_stays_refused_is_an_error(serve: Callable[..., Any], reply: Any, account: Path) -> None:
    """Without another token the request is not repeated for ever."""
    server = serve(lambda _: reply(401, {"reason": "Unauthorized", "message": "Unauthorized"}))
    client = in_pod(account, server.url)
    with pytest.raises(ApiError, match="401"):
        client.get("/api/v1/pods")
    assert len(server.asked) == 1
    client.close()


def test_a_plugin_that_fails_is_an_error_that_may_be_tried_again(
    serve: Callable[..., Any], reply: Any, account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials that cannot be had now fail the request in words."""
    client = in_pod(account, serve(lambda _: reply()).url)

    def fail(_: Any) -> str:
        raise ConfigurationError("the plugin gives no credentials")

    monkeypatch.setattr(access.ServiceAccount, "authorization", fail)
    with pytest.raises(ApiError, match="gives no credentials") as caught:
        client.get("/api/v1/pods")
    assert caught.value.retriable


def test_watches_never_keep_requests_waiting(
    serve: Callable[..., Any], reply: Any, client_of: Callable[..., KubeClient]
) -> None:
    """Forty open watches leave all connections for requests to the requests."""
    release = threading.Event()

    def lines() -> Iterator[bytes]:
        yield b"{}\n"
        release.wait(10)

    server = serve(lambda asked: reply(chunks=lines()) if "watch" in asked.path else reply(200, {"ok": 1}))
    client = client_of(server.url)
    streams = [client.stream("/api/v1/pods", {"watch": "true"}, read_timeout=10) for _ in range(40)]
    assert client.get("/api/v1/pods") == {"ok": 1}
    release.set()
    for stream in streams:
        stream.close()


def test_a_refused_watch_is_an_error(
    serve: Callable[..., Any], reply: Any, client_of: Callable[..., KubeClient]
) -> None:
    """The text of the refusal is read from the stream."""
    client = client_of(serve(lambda _: reply(403, {"reason": "Forbidden", "message": "not yours"})).url)
    with pytest.raises(ApiError, match="not yours"):
        client.stream("/api/v1/pods", {"watch": "true"}, read_timeout=5)


@pytest.mark.parametrize("chunks", [[b'{"reason": "Forb'], []])
def test_a_refusal_of_a_watch_that_breaks_off_is_an_error(
    serve: Callable[..., Any], reply: Any, client_of: Callable[..., KubeClient], chunks: list[bytes]
) -> None:
    """The status stands, whatever becomes of the text."""

    def broken() -> Iterator[bytes]:
        yield from chunks
        raise OSError("the server breaks off")

    client = client_of(serve(lambda _: reply(503, chunks=broken())).url)
    with pytest.raises(ApiError, match="no text") as caught:
        client.stream("/api/v1/pods", {"watch": "true"}, read_timeout=5)
    assert (caught.value.status, caught.value.retriable) == (503, True)


def test_many_threads_share_a_client(
    serve: Callable[..., Any], reply: Any, client_of: Callable[..., KubeClient]
) -> None:
    """Every thread gets its own answer."""
    client = client_of(serve(lambda asked: reply(200, {"path": asked.path})).url)
    wrong: list[str] = []

    def ask(number: int) -> None:
        for step in range(10):
            path = f"/api/v1/pods/{number}-{step}"
            if client.get(path) != {"path": path}:
                wrong.append(path)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a certificate for the name "kube" and for 127.0.0.1 that is its own authority."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", "key", "-out", "crt", "-subj", "/CN=kube", "-addext", "subjectAltName=DNS:kube,IP:127.0.0.1"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder


def test_tls_is_verified(
    serve: Callable[..., Any],
    reply: Any,
    client_of: Callable[..., KubeClient],
    certificate: Path,
) -> None:
    """The server must show a certificate of the cluster's authority; the server name may be given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "crt", certificate / "key")
    server = serve(lambda _: reply(200, {"ok": 1}), context)
    authority = {"certificate-authority": str(certificate / "crt")}
    assert client_of(server.url, **authority).get("/api/v1/pods") == {"ok": 1}
    assert client_of(server.url, **authority, **{"tls-server-name": "kube"}).get("/api/v1/pods") == {"ok": 1}
    assert client_of(server.url, **{"insecure-skip-tls-verify": True}).get("/api/v1/pods") == {"ok": 1}
    with pytest.raises(ApiError, match="certificate") as caught:
        client_of(server.url).get("/api/v1/pods")
    assert caught.value.retriable
    with pytest.raises(ApiError, match="other"):
        client_of(server.url, **authority, **{"tls-server-name": "other"}).get("/api/v1/pods")


def test_a_replaced_authority_is_read_anew(
    *,
    serve: Callable[..., Any],
    reply: Any,
    client_of: Callable[..., KubeClient],
    certificate: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a certificate was not accepted the authority's file is read again."""
    monkeypatch.setattr("nri_dranet.kube.client._RECONNECT_SECONDS", 0.0)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "crt", certificate / "key")
    server = serve(lambda _: reply(200, {"ok": 1}), context)
    other = tmp_path / "other.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", "/dev/null", "-out", str(other), "-subj", "/CN=other"],
        check=True, capture_output=True,
    )  # fmt: skip
    client = client_of(server.url, **{"certificate-authority": str(other)})
    with pytest.raises(ApiError, match="certificate"):
        client.get("/api/v1/pods")
    other.write_text((certificate / "crt").read_text())
    with contextlib.suppress(ApiError):  # the failure before may have read the old file once more
        client.get("/api/v1/pods")
    assert client.get("/api/v1/pods") == {"ok": 1}


def test_a_proxy_is_used(serve: Callable[..., Any], reply: Any, client_of: Callable[..., KubeClient]) -> None:
    """With proxy-url in the kubeconfig requests go through the proxy."""
    proxy = serve(lambda _: reply(200, {"ok": 1}))
    client = client_of("http://kube.invalid:6443", **{"proxy-url": proxy.url})
    assert client.get("/api/v1/pods") == {"ok": 1}
    assert proxy.asked[0].path == "http://kube.invalid:6443/api/v1/pods"


def test_a_wrong_proxy_is_refused_at_the_start(kubeconfig: Callable[..., str]) -> None:
    """A proxy of an unknown kind is named."""
    with pytest.raises(ConfigurationError, match="cannot be used"):
        KubeClient.load(kubeconfig("http://kube.invalid", **{"proxy-url": "gopher://x"}))


def test_requests_are_counted_by_what_they_are_about(api: ApiServerStandIn, client: KubeClient) -> None:
    """The metric has verb, resource with subresource, and code."""
    before = requests_counted("GET", "resourceclaims", "404")
    with pytest.raises(ApiError):
        client.get(f"{CLAIMS}/nothing")
    assert requests_counted("GET", "resourceclaims", "404") == before + 1
    assert json.dumps(client.server) == json.dumps(api.url)
