"""What is kept of a pod, and how the cache follows the API."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.kube.pods import PodCache, _trimmed, parse_pod

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nri_dranet.kube.client import KubeClient
    from nri_dranet.testing.apiserver import ApiServerStandIn

PODS = "/api/v1/namespaces/default/pods"


def raw(name: str = "p", *, node: str = "n1", **status: Any) -> dict[str, Any]:
    """Return a pod with a named claim and one from a template."""
    return {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "nodeName": node,
            "resourceClaims": [
                {"name": "nic", "resourceClaimName": "shared"},
                {"name": "own", "resourceClaimTemplateName": "t"},
            ],
            "initContainers": [{"name": "init", "image": "i", "resources": {"claims": [{"name": "own"}]}}],
            "containers": [
                {"name": "main", "image": "i", "resources": {"claims": [{"name": "nic", "request": "a"}]}},
                {"name": "side", "image": "i"},
            ],
        },
        "status": status,
    }


MADE: dict[str, Any] = {"resourceClaimStatuses": [{"name": "own", "resourceClaimName": "p-own-x7"}]}


def test_a_pod_is_reduced_to_how_it_uses_claims() -> None:
    """Claims by name, the containers that list them, and the requests that these name."""
    pod = parse_pod({**raw(**MADE), "metadata": {"name": "p", "namespace": "default", "uid": "u"}})
    assert (pod.namespace, pod.name, pod.uid, pod.host_network, pod.complete) == ("default", "p", "u", False, True)
    assert pod.claims == {"nic": "shared", "own": "p-own-x7"}
    assert pod.requests_of("shared") == {"main": ("a",)}
    assert pod.requests_of("p-own-x7") == {"init": ("",)}
    assert pod.requests_of("other") == {}


def test_a_claim_that_is_not_made_yet_leaves_the_pod_incomplete() -> None:
    """Until the controller has noted the claim of a template nobody knows its name."""
    assert not parse_pod(raw()).complete


def test_a_claim_that_is_not_needed_leaves_the_pod_complete() -> None:
    """A null name in the status says that no claim was made on purpose."""
    pod = parse_pod(raw(resourceClaimStatuses=[{"name": "own"}]))
    assert pod.complete
    assert pod.claims == {"nic": "shared"}


def test_a_name_that_was_known_stays_known() -> None:
    """A status whose list of claims is cleared by somebody does not make the pod forget them."""
    known = parse_pod(raw(**MADE))
    later = parse_pod(raw(), known)
    assert later.claims == known.claims
    assert later.complete


def test_extended_resources_name_their_containers() -> None:
    """The claim that the scheduler makes for extended resources maps requests to containers in the status."""
    mapping = {"containerName": "side", "resourceName": "example.com/nic", "requestName": "container-1-request-0"}
    pod = parse_pod(
        raw(**MADE, extendedResourceClaimStatus={"resourceClaimName": "p-ext", "requestMappings": [mapping]})
    )
    assert pod.requests_of("p-ext") == {"side": ("container-1-request-0",)}


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"metadata": None, "spec": [], "status": 1},
        {"spec": {"resourceClaims": "x", "containers": [1, {"resources": []}, {"resources": {"claims": {}}}]}},
    ],
)
def test_an_odd_pod_counts_as_empty(odd: dict[str, Any]) -> None:
    """A pod that cannot be understood must not stop a Prepare."""
    pod = parse_pod(odd)
    assert (pod.uid, pod.claims, pod.containers) == ("", {}, {})


@pytest.mark.parametrize("status", [{}, MADE, {"extendedResourceClaimStatus": {"resourceClaimName": "x"}}])
def test_trimming_takes_nothing_away_that_is_read(status: dict[str, Any]) -> None:
    """What passes through the watch is parsed to the same."""
    whole = {**raw(**status), "metadata": {"name": "p", "namespace": "default", "uid": "u", "labels": {"a": "b"}}}
    assert parse_pod(_trimmed(whole)) == parse_pod(whole)
    assert parse_pod(_trimmed({})) == parse_pod({})


@pytest.fixture
def cache(client: KubeClient) -> Iterator[PodCache]:
    """Run a cache of node n1."""
    made = PodCache(client, "n1")
    made.start()
    yield made
    made.stop()


def until(condition: Callable[[], Any]) -> None:
    """Wait until something holds."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


def test_the_cache_follows_the_pods_of_its_node(api: ApiServerStandIn, cache: PodCache) -> None:
    """Pods of the node come, change and go; those of other nodes are not kept."""
    uid = api.create(PODS, raw())["metadata"]["uid"]
    other = api.create(PODS, raw("elsewhere", node="n2"))["metadata"]["uid"]
    until(lambda: cache.get(uid))
    api.merge(f"{PODS}/p/status", {"status": MADE})
    until(lambda: (found := cache.get(uid)) and found.complete)
    assert cache.get(other) is None
    api.delete(f"{PODS}/p")
    until(lambda: cache.get(uid) is None)


def test_what_memory_does_not_know_is_fetched(api: ApiServerStandIn, client: KubeClient) -> None:
    """A pod that the watch has not shown yet, or not complete, is read from the API server; once complete, never."""
    cache = PodCache(client, "n1")
    uid = api.create(PODS, raw())["metadata"]["uid"]
    found = cache.fetch("default", "p", uid)
    assert found
    assert not found.complete
    cache._pods[uid] = found
    api.merge(f"{PODS}/p/status", {"status": MADE})
    complete = cache.fetch("default", "p", uid)
    assert complete
    assert complete.claims["own"] == "p-own-x7"
    cache._pods[uid] = complete
    api.pause()
    assert cache.fetch("default", "p", uid) is complete
    cache.stop()


def test_a_pod_that_cannot_be_read_is_none(api: ApiServerStandIn, client: KubeClient) -> None:
    """A pod that is gone, or is another one of the same name, gives None and never an error."""
    cache = PodCache(client, "n1")
    api.create(PODS, raw())
    assert cache.fetch("default", "nothing", "u") is None
    assert cache.fetch("default", "p", "another uid") is None
    api.pause()
    assert cache.fetch("default", "p", "u") is None
