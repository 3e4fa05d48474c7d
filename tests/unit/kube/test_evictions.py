"""Evictions: a pod that runs without its device ends, as soon as that is allowed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.kube import evictions
from nri_dranet.kube.client import ApiError
from nri_dranet.kube.events import ObjectRef
from nri_dranet.kube.evictions import Evictor

if TYPE_CHECKING:
    from collections.abc import Iterator

POD = ObjectRef("Pod", "default", "pod-1", "uid-1", "v1")
OTHER = ObjectRef("Pod", "default", "pod-2", "uid-2", "v1")


class Server:
    """Answers evictions as a test says."""

    def __init__(self) -> None:
        self.answers: list[Exception | None] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.heard = threading.Semaphore(0)

    def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Take an eviction."""
        self.asked.append((path, body))
        answer = self.answers.pop(0) if self.answers else None
        self.heard.release()
        if answer is not None:
            raise answer
        return {}

    def wait(self, times: int = 1) -> None:
        """Wait until so many more were asked."""
        for _ in range(times):
            assert self.heard.acquire(timeout=10)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server, and no long pauses."""
    monkeypatch.setattr(evictions, "RETRY_SECONDS", 0.01)
    return Server()


@pytest.fixture
def evictor(server: Server) -> Iterator[Evictor]:
    """Run an evictor."""
    made = Evictor(server)  # type: ignore[arg-type]
    made.start()
    yield made
    made.stop()


def test_a_pod_is_evicted_once_and_by_its_uid(server: Server, evictor: Evictor) -> None:
    """The Eviction names the pod and holds for this very pod only; saying it again changes nothing."""
    evictor.end(POD)
    server.wait()
    evictor.end(OTHER)
    server.wait()
    evictor.end(POD)
    evictor.stop()
    assert [path for path, _ in server.asked] == [
        "/api/v1/namespaces/default/pods/pod-1/eviction",
        "/api/v1/namespaces/default/pods/pod-2/eviction",
    ]
    body = server.asked[0][1]
    assert (body["apiVersion"], body["kind"]) == ("policy/v1", "Eviction")
    assert body["metadata"] == {"name": "pod-1", "namespace": "default"}
    assert body["deleteOptions"] == {"preconditions": {"uid": "uid-1"}}


@pytest.mark.parametrize("status", [404, 409])
def test_a_pod_that_is_gone_is_done_with(server: Server, evictor: Evictor, status: int) -> None:
    """There is no such pod any more, or another one of its name."""
    server.answers = [ApiError(status, "X", "gone")]
    evictor.end(POD)
    server.wait()
    evictor.end(OTHER)
    server.wait()
    evictor.stop()
    assert len(server.asked) == 2


@pytest.mark.parametrize("error", [ApiError(429, "TooManyRequests", "budget"), RuntimeError("unforeseen")])
def test_what_is_not_allowed_yet_is_tried_again(server: Server, evictor: Evictor, error: Exception) -> None:
    """A disruption budget, an outage or anything unforeseen puts it off, and nothing ends the thread."""
    server.answers = [error, error]
    evictor.end(POD)
    server.wait(3)
    evictor.stop()
    assert len(server.asked) == 3


def test_an_evictor_that_was_never_started_stops() -> None:
    """A start that failed before it began leaves nothing to wait for."""
    Evictor(Server()).stop()  # type: ignore[arg-type]
