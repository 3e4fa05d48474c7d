"""List and watch: what is given, what happens when positions grow old, connections break and servers refuse."""

from __future__ import annotations

import itertools
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nri_dranet.kube.client import ApiError
from nri_dranet.kube.listwatch import ADDED, DELETED, MODIFIED, SYNC, Closer, WatchEvent, watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nri_dranet.kube.client import KubeClient
    from nri_dranet.testing.apiserver import ApiServerStandIn

PODS = "/api/v1/namespaces/default/pods"


def pod(name: str) -> dict[str, Any]:
    """Return a pod."""
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}}


def names(event: WatchEvent) -> list[str]:
    """Return the names of what an event is about."""
    return [item["metadata"]["name"] for item in event.objects or (event.object,)]


@pytest.fixture
def closer() -> Iterator[Closer]:
    """Give a closer that is closed with the test."""
    made = Closer()
    yield made
    made.close()


def test_the_list_comes_first_then_every_change(api: ApiServerStandIn, client: KubeClient, closer: Closer) -> None:
    """SYNC carries the list; then each change comes in its order."""
    api.create(PODS, pod("a"))
    events = watch(client, PODS, closer=closer)
    first = next(events)
    assert (first.type, names(first)) == (SYNC, ["a"])
    api.create(PODS, pod("b"))
    api.merge(f"{PODS}/b", {"metadata": {"labels": {"x": "y"}}})
    api.delete(f"{PODS}/a")
    assert [(event.type, names(event)) for event in itertools.islice(events, 3)] == [
        (ADDED, ["b"]),
        (MODIFIED, ["b"]),
        (DELETED, ["a"]),
    ]


def test_one_object_is_watched_by_its_name(api: ApiServerStandIn, client: KubeClient, closer: Closer) -> None:
    """A field selector restricts list and watch to one object, which need not exist yet."""
    events = watch(client, PODS, field_selector="metadata.name=b", closer=closer)
    api.create(PODS, pod("a"))
    assert next(events).objects == ()
    api.create(PODS, pod("c"))
    api.create(PODS, pod("b"))
    found = next(events)
    assert (found.type, names(found)) == (ADDED, ["b"])


def test_a_position_that_is_too_old_begins_with_a_new_list(
    api: ApiServerStandIn, client: KubeClient, closer: Closer
) -> None:
    """After 410 the whole list comes again, so that nothing that was missed stays unknown."""
    events = watch(client, PODS, closer=closer)
    next(events)
    api.create(PODS, pod("a"))
    api.create(PODS, pod("b"))
    api.compact()
    seen = next(events)
    assert (seen.type, names(seen)) == (SYNC, ["a", "b"])


def test_objects_are_reduced_to_what_is_used(api: ApiServerStandIn, client: KubeClient, closer: Closer) -> None:
    """List and changes pass through the same function."""
    api.create(PODS, pod("a"))
    events = watch(client, PODS, closer=closer, keep=lambda item: {"is": item["metadata"]["name"]})
    assert next(events).objects == ({"is": "a"},)
    api.create(PODS, pod("b"))
    assert next(events).object == {"is": "b"}


def test_a_broken_connection_goes_on_where_it_was(api: ApiServerStandIn, client: KubeClient, closer: Closer) -> None:
    """A watch that breaks off is begun again from its position, without another list."""
    events = watch(client, PODS, closer=closer)
    next(events)
    api.create(PODS, pod("a"))
    assert next(events).type == ADDED
    api.drop_connections()
    api.create(PODS, pod("b"))
    assert names(next(events)) == ["b"]
    api.break_watches()
    api.create(PODS, pod("c"))
    assert names(next(events)) == ["c"]


def test_an_outage_is_waited_out(
    api: ApiServerStandIn, client: KubeClient, closer: Closer, caplog: pytest.LogCaptureFixture
) -> None:
    """While the server is away the watch tries on; it is logged when that begins and when it ends."""
    caplog.set_level("INFO", "nri_dranet.kube.listwatch")
    events = watch(client, PODS, closer=closer)
    next(events)
    api.pause()
    threading.Timer(0.5, api.resume).start()
    threading.Timer(0.7, lambda: api.create(PODS, pod("a"))).start()
    found = next(events)
    assert names(found) == ["a"]
    assert [record.message for record in caplog.records] == ["watches fail", "watches work again"]


class Fake:
    """A client whose lists and streams are written down; at the end it stops the watch."""

    def __init__(self, closer: Closer, lists: list[Any], streams: list[Any]) -> None:
        """Answer with these, in their order; an exception is raised."""
        self.closer = closer
        self.lists = lists
        self.streams = streams
        self.versions: list[str] = []

    def items(self, path: str, params: Any, *, keep: Any, members: Any) -> Any:
        """Return the next list."""
        del path, params, keep, members
        found = self._next(self.lists)
        return found["metadata"]["resourceVersion"], found["items"]

    def stream(self, path: str, params: Any, *, read_timeout: float) -> Any:
        """Return the next stream."""
        del path, read_timeout
        self.versions.append(params["resourceVersion"])
        return Stream(self._next(self.streams))

    def _next(self, queue: list[Any]) -> Any:
        if not queue:
            self.closer.close()
            raise ApiError(0, "End", "the script is at its end")
        item = queue.pop(0)
        if isinstance(item, Exception):
            raise item
        return item


class Stream:
    """A response made of pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        """Give these."""
        self.pieces = pieces

    def stream(self, _: int) -> Iterator[bytes]:
        """Give the pieces."""
        yield from self.pieces

    def shutdown(self) -> None:
        """Nothing to break off."""

    def close(self) -> None:
        """Nothing to close."""


def line(kind: str, name: str, version: int) -> bytes:
    """Return a line of a watch."""
    meta = {"name": name, "resourceVersion": str(version)}
    return json.dumps({"type": kind, "object": {"metadata": meta}}).encode() + b"\n"


def refusal(code: int) -> bytes:
    """Return an ERROR line."""
    return json.dumps({"type": "ERROR", "object": {"code": code, "message": "words"}}).encode() + b"\n"


@pytest.fixture
def pauses(closer: Closer, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Note pauses instead of waiting them out."""
    noted: list[float] = []

    def wait(seconds: float | None = None) -> bool:
        noted.append(seconds or 0.0)
        return closer.stop.is_set()

    monkeypatch.setattr(closer.stop, "wait", wait)
    return noted


EMPTY = {"metadata": {"resourceVersion": "5"}, "items": []}


def run(closer: Closer, lists: list[Any], streams: list[Any]) -> tuple[list[WatchEvent], Fake]:
    """Watch until the script is at its end."""
    fake = Fake(closer, lists, streams)
    return list(watch(fake, PODS, closer=closer)), fake  # type: ignore[arg-type]  # a script in the client's place


def test_bookmarks_move_the_position_and_are_not_given(closer: Closer, pauses: list[float]) -> None:
    """The next connection begins at the newest version that was seen, a bookmark's too."""
    events, fake = run(closer, [EMPTY], [[line(ADDED, "a", 6), line("BOOKMARK", "", 9)], [line(MODIFIED, "a", 12)]])
    assert [event.type for event in events] == [SYNC, ADDED, MODIFIED]
    assert fake.versions == ["5", "9", "12"]
    assert pauses


@pytest.mark.parametrize("how", [[refusal(410)], ApiError(410, "Expired", "too old")])
def test_both_forms_of_410_need_a_new_list(closer: Closer, pauses: list[float], how: Any) -> None:
    """The server says that a position is too old by status or by an event."""
    events, fake = run(closer, [EMPTY, {**EMPTY, "metadata": {"resourceVersion": "30"}}], [how, [line(ADDED, "b", 31)]])
    assert [event.type for event in events] == [SYNC, SYNC, ADDED]
    assert fake.versions == ["5", "30", "31"]
    assert pauses


@pytest.mark.parametrize(
    "how",
    [
        [refusal(500)],
        [b"no json\n"],
        [b"[" * 100_000 + b"\n"],
        RuntimeError("an error of the program"),
        [json.dumps({"type": "ADDED"}).encode() + b"\n"],
        [b"[]\n"],
        ApiError(403, "Forbidden", "not yours"),
        ApiError(400, "BadRequest", "what"),
    ],
)
def test_what_cannot_be_followed_needs_a_new_list(closer: Closer, pauses: list[float], how: Any) -> None:
    """A stream that makes no sense, or is refused, is begun anew from a list."""
    events, _ = run(closer, [EMPTY, EMPTY], [how, [line(ADDED, "b", 6)]])
    assert [event.type for event in events] == [SYNC, SYNC, ADDED]
    assert pauses


def test_an_error_of_the_program_does_not_end_a_watch(
    closer: Closer, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody has thought of is logged once with its traceback, and the watch begins anew."""
    events, _ = run(closer, [ValueError("odd"), ValueError("odd"), EMPTY], [[line(ADDED, "b", 6)]])
    assert [event.type for event in events] == [SYNC, ADDED]
    assert [record.message for record in caplog.records if record.exc_info] == ["a watch failed unexpectedly"]
    assert pauses


def test_an_overloaded_server_is_given_the_time_that_it_asks_for(closer: Closer, pauses: list[float]) -> None:
    """Retry-After counts, and the position is kept."""
    busy = ApiError(429, "TooManyRequests", "busy", retry_after=4.0)
    events, fake = run(closer, [EMPTY], [busy, [line(ADDED, "a", 6)]])
    assert [event.type for event in events] == [SYNC, ADDED]
    assert fake.versions[:2] == ["5", "5"]
    assert 2.0 <= pauses[0] <= 5.0


def test_pauses_grow_while_it_fails_and_stay_bounded(closer: Closer, pauses: list[float]) -> None:
    """Failing lists are tried again ever later, ten seconds at most, with jitter."""
    run(closer, [ApiError(403, "Forbidden", "no")] * 12, [])
    assert pauses[0] < 0.3
    assert 5.0 < pauses[-2] <= 12.0
    assert len(set(pauses)) == len(pauses)


def test_a_server_that_ends_every_watch_at_once_is_not_hammered(closer: Closer, pauses: list[float]) -> None:
    """Also an orderly end is followed by a growing pause when nothing came."""
    run(closer, [EMPTY], [[] for _ in range(8)])
    assert pauses[6] > 5 * pauses[0]


def test_a_line_without_end_is_refused(closer: Closer, pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded whatever is sent."""
    monkeypatch.setattr("nri_dranet.kube.listwatch._MAX_LINE", 100)
    events, _ = run(closer, [EMPTY, EMPTY], [[b"x" * 60, b"x" * 60], []])
    assert [event.type for event in events] == [SYNC, SYNC]
    assert pauses


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(cuts=st.lists(st.integers(0, 400), max_size=12))
def test_lines_may_be_cut_anywhere(monkeypatch: pytest.MonkeyPatch, cuts: list[int]) -> None:
    """How the stream is cut into pieces does not matter."""
    monkeypatch.setattr(threading.Event, "wait", lambda *_: True)
    whole = b"\n" + line(ADDED, "ä", 6) + line(MODIFIED, "b", 7) + b"\n" + line(DELETED, "c", 8)
    places = sorted({0, *(cut for cut in cuts if cut < len(whole)), len(whole)})
    pieces = [whole[start:end] for start, end in itertools.pairwise(places)]
    events, _ = run(Closer(), [EMPTY], [pieces])
    assert [(event.type, event.object.get("metadata", {}).get("name")) for event in events[1:]] == [
        (ADDED, "ä"),
        (MODIFIED, "b"),
        (DELETED, "c"),
    ]


@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}])
def test_closing_wakes_a_reader(
    *,
    serve: Callable[..., Any],
    reply: Any,
    client_of: Callable[..., KubeClient],
    closer: Closer,
    headers: dict[str, str],
) -> None:
    """A watch that waits for the next line ends when another thread closes it."""
    release = threading.Event()
    reading = threading.Event()

    def lines() -> Iterator[bytes]:
        yield line(ADDED, "a", 6)
        release.wait(30)

    server = serve(lambda asked: reply(chunks=lines(), headers=headers) if "watch" in asked.path else reply(200, EMPTY))
    seen: list[WatchEvent] = []

    def follow() -> None:
        for event in watch(client_of(server.url), PODS, closer=closer):
            seen.append(event)
            if event.type == ADDED:
                reading.set()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    assert reading.wait(10)
    closer.close()
    thread.join(10)
    release.set()
    assert not thread.is_alive()


def test_a_watch_that_is_closed_before_it_began_gives_nothing(client: KubeClient, closer: Closer) -> None:
    """Closing first is no race."""
    closer.close()
    assert list(watch(client, PODS, closer=closer)) == []


def test_a_response_that_arrives_after_the_end_is_broken_off(closer: Closer) -> None:
    """A connection that was being made while the watch was closed does not keep it alive."""

    class Response:
        shut = False

        def shutdown(self) -> None:
            self.shut = True

    response = Response()
    closer.close()
    closer.hold(response)  # type: ignore[arg-type]  # only shutdown is used
    assert response.shut
