"""Events: what users see, counted when they repeat, never in anybody's way."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.kube import events
from nri_dranet.kube.client import ApiError
from nri_dranet.kube.events import MAX_MESSAGE, EventRecorder, ObjectRef
from nri_dranet.kube.resources import kind_of
from nri_dranet.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nri_dranet.kube.client import KubeClient
    from nri_dranet.testing.apiserver import ApiServerStandIn

EVENTS = "/api/v1/namespaces/default/events"
POD = ObjectRef("Pod", "default", "p", "uid-1", "v1")


@pytest.fixture
def recorder(client: KubeClient) -> Iterator[EventRecorder]:
    """Run a recorder."""
    made = EventRecorder(client, "dra.net", "n1")
    made.start()
    yield made
    made.stop()


def until(condition: Callable[[], Any]) -> None:
    """Wait until something holds."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


def dropped() -> float:
    """Return how many Events were dropped."""
    return float(metrics.EVENTS_DROPPED._value.get())


def test_an_event_says_who_what_and_where(api: ApiServerStandIn, recorder: EventRecorder) -> None:
    """The object, the reason, the text, the component and the node are on the Event."""
    recorder.event(POD, "NameInUse", "eth0 is taken")
    until(lambda: api.list(EVENTS))
    (found,) = api.list(EVENTS)
    assert found["involvedObject"] == {
        "apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "p", "uid": "uid-1",
    }  # fmt: skip
    assert (found["type"], found["reason"], found["message"]) == ("Warning", "NameInUse", "eth0 is taken")
    assert found["source"] == {"component": "dra.net", "host": "n1"}
    assert found["count"] == 1
    assert found["firstTimestamp"] == found["lastTimestamp"]


def test_an_event_that_repeats_is_counted(
    api: ApiServerStandIn, recorder: EventRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same words about the same object are one Event with a count, also after it was quiet for a moment."""
    for _ in range(3):
        recorder.event(POD, "NameInUse", "eth0 is taken")
    until(recorder._queue.empty)
    monkeypatch.setattr(events, "_QUIET_SECONDS", -1.0)
    recorder.event(POD, "NameInUse", "eth0 is taken")
    until(lambda: api.list(EVENTS)[0]["count"] == 4)
    recorder.event(POD, "NameInUse", "eth1 is taken", warning=False)
    until(lambda: len(api.list(EVENTS)) == 2)


def test_an_event_that_was_deleted_is_made_again(
    api: ApiServerStandIn, recorder: EventRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API server forgets Events after an hour: counting on one that is gone makes a new one."""
    monkeypatch.setattr(events, "_QUIET_SECONDS", -1.0)
    recorder.event(POD, "NameInUse", "eth0 is taken")
    until(lambda: api.list(EVENTS))
    api.delete(f"{EVENTS}/{api.list(EVENTS)[0]['metadata']['name']}")
    recorder.event(POD, "NameInUse", "eth0 is taken")
    until(lambda: api.list(EVENTS))
    assert api.list(EVENTS)[0]["count"] == 1


def test_a_server_that_fails_for_a_moment_is_tried_again(api: ApiServerStandIn, recorder: EventRecorder) -> None:
    """An Event survives a short failure."""
    api.fail_next(1, 503)
    recorder.event(POD, "NameInUse", "eth0 is taken")
    until(lambda: api.list(EVENTS))


def test_an_answer_that_was_lost_is_no_lost_event(
    api: ApiServerStandIn, recorder: EventRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server made the Event and its answer was lost: that it exists already at the next try is good."""
    before = dropped()
    create = recorder._client.create
    answers = iter([ApiError(0, "ProtocolError", "the connection broke off")])

    def lose(*args: Any, **more: Any) -> dict[str, Any]:
        found = create(*args, **more)
        for error in answers:
            raise error
        return found

    monkeypatch.setattr(recorder._client, "create", lose)
    recorder.event(POD, "NameInUse", "eth0 is taken")
    until(lambda: recorder._known)
    assert [found["count"] for found in api.list(EVENTS)] == [1]
    assert dropped() == before


def test_names_that_are_no_unicode_do_not_lose_an_event(api: ApiServerStandIn, recorder: EventRecorder) -> None:
    """The kernel's names may be any bytes: what is no UTF-8 is replaced."""
    odd = b"eth\xff".decode("utf-8", "surrogateescape")
    recorder.event(POD, "NameInUse", f"{odd} is taken")
    until(lambda: api.list(EVENTS))
    assert api.list(EVENTS)[0]["message"] == "eth\ufffd is taken"


def test_what_cannot_be_sent_is_dropped_and_counted(api: ApiServerStandIn, recorder: EventRecorder) -> None:
    """A refusal ends the matter: metric and log say it, the next Event goes on."""
    before = dropped()
    api.fail_next(1, 403)
    recorder.event(POD, "NameInUse", "eth0 is taken")
    until(lambda: dropped() == before + 1)
    recorder.event(POD, "NameInUse", "eth1 is taken")
    until(lambda: api.list(EVENTS))


def test_an_error_of_the_program_does_not_end_the_thread(
    api: ApiServerStandIn, recorder: EventRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happens to one Event, the next one is sent."""
    with monkeypatch.context() as patch:
        before = dropped()

        def fail(*_: Any) -> None:
            raise RuntimeError("an error of the program")

        patch.setattr(recorder, "_send", fail)
        recorder.event(POD, "NameInUse", "eth0 is taken")
        until(lambda: dropped() == before + 1)
    recorder.event(POD, "NameInUse", "eth1 is taken")
    until(lambda: api.list(EVENTS))


def test_a_full_queue_drops_and_never_blocks(client: KubeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nobody sending, telling returns at once; what has no room is counted."""
    monkeypatch.setattr(events, "_QUEUED", 2)
    recorder = EventRecorder(client, "dra.net", "n1")
    before = dropped()
    for number in range(5):
        recorder.event(POD, "NameInUse", str(number))
    assert dropped() == before + 3
    recorder.stop()


def test_memory_of_what_was_said_is_bounded(
    api: ApiServerStandIn, recorder: EventRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the newest Events are remembered for counting."""
    monkeypatch.setattr(events, "_REMEMBERED", 3)
    for number in range(6):
        recorder.event(POD, "NameInUse", str(number))
    until(lambda: len(api.list(EVENTS)) == 6)
    until(lambda: len(recorder._known) == 3)


def test_names_and_texts_are_within_the_limits(api: ApiServerStandIn, recorder: EventRecorder) -> None:
    """A long object name gives a legal Event name; a long text is cut."""
    recorder.event(ObjectRef("Pod", "default", "a" * 199 + "." + "b" * 50, "u", "v1"), "R" * 200, "x" * 5000)
    until(lambda: api.list(EVENTS))
    (found,) = api.list(EVENTS)
    assert len(found["metadata"]["name"]) <= 253
    assert ".." not in found["metadata"]["name"]
    assert len(found["message"]) == MAX_MESSAGE
    assert len(found["reason"]) == 128


def test_stopping_sends_what_waits(api: ApiServerStandIn, client: KubeClient) -> None:
    """Events that were told before the end are sent."""
    recorder = EventRecorder(client, "dra.net", "n1")
    recorder.event(POD, "NameInUse", "eth0 is taken")
    recorder.start()
    recorder.stop()
    assert len(api.list(EVENTS)) == 1
    assert not [thread for thread in threading.enumerate() if thread is recorder._thread]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/api/v1/pods", "pods"),
        ("/api/v1/namespaces/default/pods/p", "pods"),
        ("/api/v1/nodes/n1", "nodes"),
        ("/api/v1/namespaces/default", "namespaces"),
        ("/apis/resource.k8s.io/v1/resourceslices", "resourceslices"),
        ("/apis/resource.k8s.io/v1/namespaces/d/resourceclaims/c/status?x=y", "resourceclaims/status"),
    ],
)
def test_metrics_name_what_a_path_is_about(path: str, kind: str) -> None:
    """Neither namespaces nor names of objects become labels."""
    assert kind_of(path) == kind
