"""The metric of conditions: few series, and never one more than there are conditions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nri_dranet.claims.facts import ClaimFacts, Phase
from nri_dranet.status.census import Census
from nri_dranet.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from nri_dranet.status.writer import StatusWriter


def shown() -> dict[tuple[str, str, str], float]:
    """Return the metric."""
    (family,) = metrics.CONDITIONS.collect()
    return {(s.labels["type"], s.labels["status"], s.labels["reason"]): s.value for s in family.samples}


def entry(*conditions: tuple[str, str, str]) -> dict[str, Any]:
    """Return an entry of ``status.devices``."""
    return {"conditions": [{"type": kind, "status": status, "reason": reason} for kind, status, reason in conditions]}


GOOD = ("Ready", "True", "NetworkDeviceReady")
BAD = ("NetworkReady", "False", "NoCarrier")


def test_conditions_are_counted_by_their_words() -> None:
    """Claims and devices are no labels; what no device says any more is no series."""
    census = Census()
    census.note("a", [entry(GOOD, BAD), entry(GOOD)])
    census.note("b", [entry(GOOD)])
    assert shown() == {GOOD: 3, BAD: 1}
    census.note("a", [entry(GOOD)])
    assert shown() == {GOOD: 2}
    census.note("a", [entry(GOOD)])
    census.forget("b")
    census.forget("b")
    assert shown() == {GOOD: 1}
    census.forget("a")
    assert shown() == {}


def test_the_writer_counts_what_it_has_written(
    *,
    claims: Any,
    facts: Callable[..., ClaimFacts],
    make_writer: Callable[..., StatusWriter],
    until: Callable[[Callable[[], Any]], None],
    make_device: Callable[..., Any],
) -> None:
    """From the first write to the moment when the claim is not held any more."""
    writer = make_writer()
    one, two = claims.make("c1"), claims.make("c2")
    writer.submit(facts(one))
    writer.submit(facts(two, Phase.ATTACH_FAILED, reason="NameInUse"))
    until(lambda: writer.pending == 0)
    failed = {("Ready", "False", "NameInUse"): 1, ("NetworkReady", "False", "NameInUse"): 1}
    assert shown() == {GOOD: 1, ("NetworkReady", "True", "NetworkReady"): 1, **failed}
    writer.forget([two.uid])
    assert shown() == failed
    claims.api.delete(f"/apis/resource.k8s.io/v1/namespaces/default/resourceclaims/{two.name}")
    writer.submit(ClaimFacts(ref=two, devices=(make_device(),)))
    until(lambda: writer.pending == 0)
    assert shown() == {}


def test_the_last_word_on_a_claim_that_is_not_held_is_not_counted(
    *,
    claims: Any,
    facts: Callable[..., ClaimFacts],
    make_writer: Callable[..., StatusWriter],
    until: Callable[[Callable[[], Any]], None],
) -> None:
    """The node has nothing to do with it any more."""
    writer = make_writer(start=False)
    ref = claims.make()
    writer.submit(facts(ref, Phase.DETACHED))
    writer.forget([])
    writer.start()
    until(lambda: writer.pending == 0)
    writer.stop()
    assert claims.condition()["reason"] == "Detached"
    assert shown() == {}
