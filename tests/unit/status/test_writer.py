"""The writer: latest wins, soon, once, and never in anybody's way."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nri_dranet.claims.facts import ClaimFacts, ObservedInterface, Phase
from nri_dranet.status import writer as module
from nri_dranet.status.wire import StatusWire
from nri_dranet.status.writer import StatusWriter
from nri_dranet.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from nri_dranet.claims.model import ClaimRef
    from nri_dranet.kube.client import KubeClient
    from nri_dranet.testing.apiserver import ApiServerStandIn


def shown(address: str = "10.0.0.1/24", **more: Any) -> ObservedInterface:
    """Return an interface with an address."""
    return ObservedInterface(name="eth99", hardware_address="86:d7:86:e6:f3:dd", addresses=(address,), **more)


def writes(result: str) -> float:
    """Return how many writes had a result."""
    return float(metrics.STATUS_WRITES.labels(result)._value.get())


def test_facts_become_status(
    claims: Any, facts: Callable[..., ClaimFacts], make_writer: Callable[..., StatusWriter], until: Any, store: Any
) -> None:
    """What is submitted is written; nothing waits afterwards."""
    writer = make_writer()
    ref = claims.make()
    before = writes("written")
    writer.submit(facts(ref))
    until(lambda: writer.pending == 0)
    assert claims.condition()["reason"] == "NetworkDeviceReady"
    assert writes("written") == before + 1
    assert store.rows == {}


def test_equal_status_is_not_written_again(
    claims: Any, facts: Callable[..., ClaimFacts], make_writer: Callable[..., StatusWriter], until: Any
) -> None:
    """Also a new life of the program finds the status as it shall be, and leaves it alone."""
    ref = claims.make()
    for _ in range(2):
        writer = make_writer()
        for _ in range(2):
            writer.submit(facts(ref))
            until(lambda: writer.pending == 0)  # noqa: B023 - called at once
    assert claims.writes() == 1


def test_the_last_facts_win(
    claims: Any,
    facts: Callable[..., ClaimFacts],
    make_writer: Callable[..., StatusWriter],
    until: Any,
    client: KubeClient,
) -> None:
    """However fast they come and from how many threads: at rest the newest is written, in few writes."""
    del client
    writer = make_writer()
    refs = [claims.make(f"c{i}") for i in range(6)]

    def pour(ref: ClaimRef) -> None:
        for number in range(100):
            writer.submit(facts(ref, interface=shown(f"10.0.{number}.1/24")))

    threads = [threading.Thread(target=pour, args=(ref,)) for ref in refs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: writer.pending == 0)
    for ref in refs:
        assert claims.entries(ref.name)[0]["networkData"]["ips"] == ["10.0.99.1/24"]
    assert claims.writes() < 600


def test_one_write_at_a_time_for_a_claim_and_a_few_for_all(
    *,
    claims: Any,
    facts: Callable[..., ClaimFacts],
    store: Any,
    told: Any,
    until: Any,
    client: KubeClient,
) -> None:
    """However many claims wait, the API server sees no more writes at once than there are workers."""
    at_once: list[int] = []
    busy: dict[str, int] = {}
    lock = threading.Lock()

    class Counting(StatusWire):
        def write(self, ref: ClaimRef, *args: Any) -> dict[str, Any]:
            with lock:
                busy[ref.uid] = busy.get(ref.uid, 0) + 1
                assert busy[ref.uid] == 1
                at_once.append(sum(busy.values()))
            try:
                return super().write(ref, *args)
            finally:
                with lock:
                    busy[ref.uid] -= 1

    writer = StatusWriter(Counting(client, "dra.net", "n1"), "dra.net", store, event=told, workers=3)
    writer.start()
    refs = [claims.make(f"c{i}") for i in range(30)]
    for number in range(3):
        for ref in refs:
            writer.submit(facts(ref, interface=shown(f"10.0.{number}.1/24")))
    until(lambda: writer.pending == 0)
    writer.stop()
    assert max(at_once) <= 3


def test_submitting_never_waits_for_the_server(
    claims: Any, facts: Callable[..., ClaimFacts], make_writer: Callable[..., StatusWriter], api: ApiServerStandIn
) -> None:
    """With the server away submitting returns; the facts wait."""
    ref = claims.make()
    api.pause()
    writer = make_writer()
    done = threading.Event()

    def pour() -> None:
        for _ in range(100):
            writer.submit(facts(ref))
        done.set()

    threading.Thread(target=pour, daemon=True).start()
    assert done.wait(5)
    assert writer.pending == 1


def test_prepared_is_written_only_when_it_lasts(
    claims: Any, facts: Callable[..., ClaimFacts], make_writer: Callable[..., StatusWriter], until: Any
) -> None:
    """A pod that starts at once costs one write; one that waits shows why."""
    writer = make_writer(prepared_delay=0.2)
    quick, slow = claims.make("c1"), claims.make("c2")
    writer.submit(facts(quick, Phase.PREPARED))
    writer.submit(facts(slow, Phase.PREPARED))
    writer.submit(facts(quick))
    until(lambda: writer.pending == 0)
    assert claims.condition(name="c1")["status"] == "True"
    assert claims.condition(name="c2")["reason"] == "Prepared"
    assert claims.writes() == 2


def test_that_looking_failed_is_written_only_when_it_lasts(
    *,
    claims: Any,
    facts: Callable[..., ClaimFacts],
    store: Any,
    told: Any,
    client: KubeClient,
) -> None:
    """Ten seconds from the first time on, however often it is said meanwhile; what is seen again goes at once."""
    ref = claims.make()
    writer = StatusWriter(StatusWire(client, "dra.net", "n1"), "dra.net", store, event=told, workers=0)
    writer.submit(facts(ref))
    entry = writer._entries[ref.uid]
    began = time.monotonic()
    for number in range(3):
        writer.submit(facts(ref, Phase.UNKNOWN, message=f"try {number}"))
        assert round(entry.due - began) == module.UNKNOWN_DELAY == 10
    writer.submit(facts(ref))
    assert entry.due <= time.monotonic()
    time.sleep(0.01)
    writer.submit(facts(ref, Phase.UNKNOWN))
    assert entry.due > began + module.UNKNOWN_DELAY + 0.01
    writer.stop()
    writer.submit(facts(ref, Phase.LOST))
    assert entry.due <= time.monotonic()


def test_a_stop_writes_nothing_that_is_not_known(
    *,
    claims: Any,
    facts: Callable[..., ClaimFacts],
    make_writer: Callable[..., StatusWriter],
    until: Any,
    store: Any,
) -> None:
    """Looking failed a moment ago: the next life looks, and says what it sees."""
    writer = make_writer()
    ref = claims.make()
    writer.submit(facts(ref))
    until(lambda: writer.pending == 0)
    writer.submit(facts(ref, Phase.UNKNOWN))
    writer.stop()
    assert claims.condition()["status"] == "True"
    assert list(store.rows) == [ref.uid]
    following = make_writer()
    following.submit(facts(ref))
    until(lambda: following.pending == 0)
    assert claims.writes() == 1
    assert store.rows == {}


def test_that_looking_fails_for_long_is_written(
    *,
    claims: Any,
    facts: Callable[..., ClaimFacts],
    make_writer: Callable[..., StatusWriter],
    until: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unknown, with the reason."""
    monkeypatch.setattr(module, "UNKNOWN_DELAY", 0.05)
    writer = make_writer()
    ref = claims.make()
    writer.submit(facts(ref, Phase.UNKNOWN, message="the pod's namespace cannot be looked at: busy"))
    until(lambda: writer.pending == 0)
    assert claims.condition()["reason"] == "LookFailed"
    assert "busy" in claims.condition()["message"]


def test_a_claim_that_is_gone_is_forgotten(
    claims: Any,
    facts: Callable[..., ClaimFacts],
    make_writer: Callable[..., StatusWriter],
    until: Any,
    store: Any,
) -> None:
    """Deleted, or made anew under the same name: nothing is written, nothing waits, the journal is clean."""
    writer = make_writer()
    ref = claims.make()
    writer.submit(facts(replace(ref, name="nothing"), Phase.DETACHED))
    writer.submit(facts(replace(ref, uid="00000000-0000-0000-0000-000000000000"), Phase.DETACHED))
    until(lambda: writer.pending == 0)
    assert claims.entries() == []
    assert store.rows == {}
    assert writer._entries == {}


def test_a_device_that_is_not_allocated_any_more_is_left_out(
    claims: Any,
    facts: Callable[..., ClaimFacts],
    make_writer: Callable[..., StatusWriter],
    until: Any,
    api: ApiServerStandIn,
) -> None:
    """Deallocated under our hands: the refusal leads to a look at the claim, and to the end of the matter."""
    writer = make_writer()
    ref = claims.make()
    writer.submit(facts(ref))
    until(lambda: writer.pending == 0)
    old = claims.read()
    api.deallocate("default", "c1")
    writer.observed(ref, old)
    writer.submit(facts(ref, Phase.DETACHED))
    until(lambda: writer.pending == 0)
    assert claims.entries() == []
    # Allocated again: what was said about the former allocation is not said about this one.
    claims.allocate()
    writer.observed(ref, claims.read())
    assert writer.pending == 0


def test_an_unwatched_claim_is_read_before_it_is_judged(
    claims: Any,
    facts: Callable[..., ClaimFacts],
    make_writer: Callable[..., StatusWriter],
    until: Any,
    api: ApiServerStandIn,
) -> None:
    """Refused, deallocated, allocated again, refused with the same words: the status is there again."""
    writer = make_writer()
    ref = claims.make()
    for _ in range(2):
        writer.submit(facts(ref, Phase.PREPARE_FAILED, message="interface.mtu: 70000 is too much"))
        until(lambda: writer.pending == 0)
        assert claims.condition()["message"] == "interface.mtu: 70000 is too much"
        api.deallocate("default", "c1")
        claims.allocate()
