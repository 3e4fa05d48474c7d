"""The watches of held claims: one a claim, begun and ended with it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.claims.model import ClaimRef
from nri_dranet.dra import held as module
from nri_dranet.dra.held import HeldClaims
from nri_dranet.kube.client import KubeClient
from nri_dranet.kube.listwatch import watch
from nri_dranet.telemetry import metrics
from nri_dranet.testing.apiserver import ApiServerStandIn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CLAIMS = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims"


class Seen:
    """What was told of claims, and a way to wait for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.told: list[tuple[ClaimRef, Mapping[str, Any] | None]] = []

    def take(self, ref: ClaimRef, claim: Mapping[str, Any] | None) -> None:
        """Note it."""
        with self._changed:
            self.told.append((ref, claim))
            self._changed.notify_all()

    def wait(self, ref: ClaimRef, *, gone: bool) -> Mapping[str, Any] | None:
        """Wait until a claim was told to be there, or gone."""
        with self._changed:
            assert self._changed.wait_for(lambda: any(r == ref and (c is None) is gone for r, c in self.told), 20)
            found = [c for r, c in self.told if r == ref and (c is None) is gone]
            return found[-1]

    def wait_label(self, ref: ClaimRef, value: str) -> None:
        """Wait until a claim was told with a value of the label ``n``."""

        def told() -> bool:
            return any(r == ref and c and (c["metadata"].get("labels") or {}).get("n") == value for r, c in self.told)

        with self._changed:
            assert self._changed.wait_for(told, 20)


@pytest.fixture
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ApiServerStandIn, KubeClient]]:
    """Return an API server and a client of it."""
    server = ApiServerStandIn()
    server.start()
    config = tmp_path_factory.mktemp("api") / "kubeconfig"
    server.write_kubeconfig(config)
    yield server, KubeClient.load(str(config))
    server.stop()


def make(server: ApiServerStandIn, name: str) -> ClaimRef:
    """Create a claim and return its reference."""
    body = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"devices": {"requests": [{"name": "nic", "exactly": {"deviceClassName": "dra.net"}}]}},
    }
    made = server.create(CLAIMS, body)
    return ClaimRef("default", name, made["metadata"]["uid"])


def test_a_held_claim_is_told_at_once_and_at_its_end(api: tuple[ApiServerStandIn, KubeClient]) -> None:
    """The claim as it is, then that it is gone; a claim that is not held is not told."""
    server, client = api
    ref, other = make(server, "held"), make(server, "other")
    seen = Seen()
    held = HeldClaims(client, lambda: [ref], seen.take)
    held.start()
    claim = seen.wait(ref, gone=False)
    assert claim is not None
    assert claim["metadata"]["uid"] == ref.uid
    server.delete(f"{CLAIMS}/held")
    seen.wait(ref, gone=True)
    held.stop()
    assert other not in [each for each, _ in seen.told]


def test_a_claim_of_another_uid_counts_as_gone(api: tuple[ApiServerStandIn, KubeClient]) -> None:
    """The held claim was deleted and made again under its name while nobody looked."""
    server, client = api
    make(server, "again")
    ref = ClaimRef("default", "again", "00000000-0000-4000-8000-000000000000")
    seen = Seen()
    held = HeldClaims(client, lambda: [ref], seen.take)
    held.start()
    seen.wait(ref, gone=True)
    held.stop()


def test_watches_follow_what_is_held(api: tuple[ApiServerStandIn, KubeClient]) -> None:
    """A claim that comes into the journal is watched, one that left is not; an error in taking it in ends nothing."""
    server, client = api
    one, two = make(server, "one"), make(server, "two")
    now = [one]
    seen = Seen()

    def take(ref: ClaimRef, claim: Mapping[str, Any] | None) -> None:
        seen.take(ref, claim)
        if ref == one:
            raise OSError("not taken in")

    held = HeldClaims(client, lambda: list(now), take)
    held.start()
    seen.wait(one, gone=False)
    now[:] = [two]
    held.refresh()
    seen.wait(two, gone=False)
    held.stop()


def test_a_claim_that_is_gone_and_still_held_is_told_again(api: tuple[ApiServerStandIn, KubeClient]) -> None:
    """It could not be released when it went, as its pod still ran."""
    server, client = api
    ref = make(server, "gone")
    seen = Seen()
    held = HeldClaims(client, lambda: [ref], seen.take)
    held.start()
    seen.wait(ref, gone=False)
    server.delete(f"{CLAIMS}/gone")
    seen.wait(ref, gone=True)
    seen.told.clear()
    held.refresh()
    seen.wait(ref, gone=True)
    held.stop()


def test_parameters_are_read_as_strictly_as_in_prepare(api: tuple[ApiServerStandIn, KubeClient]) -> None:
    """A member that was written twice is seen in the list and in a change."""
    server, client = api
    ref = make(server, "held")
    seen = Seen()
    held = HeldClaims(client, lambda: [ref], seen.take)
    held.start()
    claim = seen.wait(ref, gone=False)
    held.stop()
    assert hasattr(claim["metadata"], "repeated") if claim else False


def test_a_watch_that_died_is_begun_anew(
    api: tuple[ApiServerStandIn, KubeClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a claim's thread died of, the claim is watched again."""
    server, client = api
    ref = make(server, "held")
    seen = Seen()
    died = threading.Event()

    def end(*_: Any, **__: Any) -> Iterator[Any]:
        monkeypatch.setattr(module, "watch", watch)
        died.set()
        return iter(())

    monkeypatch.setattr(module, "watch", end)
    held = HeldClaims(client, lambda: [ref], seen.take)
    held.start()
    assert died.wait(10)
    for thread in threading.enumerate():
        if thread.name == "claim-held":
            thread.join()
    held.refresh()
    seen.wait(ref, gone=False)
    held.stop()


def asked() -> float:
    """Return how many requests about claims were answered."""
    return sum(
        sample.value
        for family in metrics.API_REQUESTS.collect()
        for sample in family.samples
        if sample.name.endswith("_total") and sample.labels["resource"] == "resourceclaims"
    )


def test_what_a_held_claim_costs_the_api_server(api: tuple[ApiServerStandIn, KubeClient]) -> None:
    """One list and one watch a claim, however often it changes."""
    server, client = api
    refs = [make(server, f"c{number}") for number in range(20)]
    before = asked()
    seen = Seen()
    held = HeldClaims(client, lambda: refs, seen.take)
    held.start()
    for ref in refs:
        seen.wait(ref, gone=False)
    for number in range(5):
        for ref in refs:
            server.merge(f"{CLAIMS}/{ref.name}", {"metadata": {"labels": {"n": str(number)}}})
    for ref in refs:
        seen.wait_label(ref, "4")
    held.stop()
    assert asked() - before == 2 * len(refs)
