"""Many claims of one node and an API server that comes back: what it is asked in a second is bounded."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.claims.facts import ClaimFacts, Phase
from nri_dranet.dra import held
from nri_dranet.dra.held import HeldClaims
from nri_dranet.kube.listwatch import Turnstile
from nri_dranet.status.writer import WORKERS, WRITES_A_SECOND

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nri_dranet.claims.model import ClaimRef
    from nri_dranet.kube.client import KubeClient
    from nri_dranet.status.writer import StatusWriter
    from nri_dranet.testing.apiserver import ApiServerStandIn

MANY: Final = 200


def busiest_second(api: ApiServerStandIn, methods: set[str]) -> int:
    """Return how many requests were answered in the busiest second."""
    times = sorted(seen.at for seen in api.requests if seen.method in methods and seen.status)
    return max(sum(begin <= each < begin + 1 for each in times) for begin in times)


def test_two_hundred_statuses_after_an_outage(
    *,
    claims: Any,
    facts: Callable[..., ClaimFacts],
    make_writer: Callable[..., StatusWriter],
    until: Callable[[Callable[[], Any]], None],
    api: ApiServerStandIn,
    store: Any,
) -> None:
    """A read and a write for each claim, no more than so many claims a second, and nothing is lost."""
    refs = [claims.make(f"c{number}") for number in range(MANY)]
    writer = make_writer()
    api.pause()
    for ref in refs:
        writer.submit(facts(ref, Phase.ATTACH_FAILED, reason="NameInUse", message="eth1: eth0 is taken"))
    until(lambda: writer._away and len(store.rows) == MANY)
    api.requests.clear()
    api.resume()
    until(lambda: writer.pending == 0)
    assert all(claims.condition(name=ref.name)["reason"] == "NameInUse" for ref in refs)
    assert claims.writes() == MANY
    # Those that were under way when the second began, and those taken up in it: each asks twice.
    assert busiest_second(api, {"GET", "PATCH"}) <= 2 * (WRITES_A_SECOND + 1 + WORKERS)


def test_two_hundred_watches_after_an_outage(
    *, claims: Any, client: KubeClient, api: ApiServerStandIn, until: Callable[[Callable[[], Any]], None]
) -> None:
    """All are there again, one request after the other."""
    refs = [claims.make(f"c{number}", allocate=False) for number in range(MANY)]
    seen: dict[str, int] = {}

    def on_claim(ref: ClaimRef, claim: Mapping[str, Any] | None) -> None:
        if claim is not None:
            seen[ref.uid] = seen.get(ref.uid, 0) + 1

    watches = HeldClaims(client, lambda: refs, on_claim)
    watches.start()
    try:
        until(lambda: len(seen) == MANY)
        api.pause()
        api.requests.clear()
        api.resume()
        until(lambda: sum("watch" in each.query for each in api.requests) >= MANY)
    finally:
        watches.stop()
    times = [each.at for each in api.requests if "watch" in each.query]
    assert times[MANY - 1] - times[0] >= 0.5 * MANY / held.REQUESTS_A_SECOND


def test_a_turnstile_lets_one_pass_at_a_time() -> None:
    """Whoever comes together goes one after the other; whoever is told to stop waits no longer."""
    turnstile, stop = Turnstile(0.02), threading.Event()
    passed: list[float] = []

    def go() -> None:
        turnstile.pass_through(stop)
        passed.append(time.monotonic())

    began = time.monotonic()
    threads = [threading.Thread(target=go) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(passed) - began >= 9 * 0.02
    slow = Turnstile(60)
    slow.pass_through(stop)
    stop.set()
    slow.pass_through(stop)
