"""A ResourceClaim of the API, read into what the driver needs of it."""

from __future__ import annotations

from typing import Any

import pytest

from nri_dranet.claims.allocation import ClaimError, parse_claim
from nri_dranet.claims.model import ClaimRef, DeviceKey, PodRef


def raw(**status: Any) -> dict[str, Any]:
    """Return a claim as the API server sends it."""
    return {
        "metadata": {"namespace": "ns", "name": "c", "uid": "u", "resourceVersion": "5"},
        "status": status,
    }


ALLOCATION: dict[str, Any] = {
    "devices": {
        "results": [
            {"request": "nic/best", "driver": "dra.net", "pool": "node", "device": "eth1"},
            {"request": "gpu", "driver": "gpu.example.com", "pool": "node", "device": "gpu0"},
            {
                "request": "adm",
                "driver": "dra.net",
                "pool": "node",
                "device": "eth2",
                "adminAccess": True,
                "shareID": "s",
            },
        ],
        "config": [
            {"source": "FromClass", "requests": ["nic"], "opaque": {"driver": "dra.net", "parameters": {"a": 1}}},
            {"source": "FromClaim", "opaque": {"driver": "gpu.example.com", "parameters": {}}},
            {"source": "FromClaim", "requests": []},
        ],
    },
    "nodeSelector": {
        "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node"]}]}]
    },
}


def test_an_allocated_claim_is_read_whole() -> None:
    """Results, configurations, pods and node are there, in the order of the allocation."""
    claim = parse_claim(
        raw(
            allocation=ALLOCATION,
            reservedFor=[
                {"resource": "pods", "name": "p", "uid": "pu"},
                {"resource": "jobs", "apiGroup": "batch", "name": "j", "uid": "ju"},
            ],
        )
    )
    assert claim.ref == ClaimRef("ns", "c", "u")
    assert claim.allocated
    assert [result.device for result in claim.results_of("dra.net")] == ["eth1", "eth2"]
    assert claim.results[0].main_request == "nic"
    assert claim.results[2].key == DeviceKey("node", "eth2", "s")
    assert claim.results[2].admin_access
    assert claim.pods == (PodRef("ns", "p", "pu"),)
    assert claim.other_consumers == ("jobs j",)
    assert claim.node_name == "node"
    assert len(claim.configs) == 2


def test_a_configuration_is_bound_to_its_request_or_the_parent() -> None:
    """A configuration of the parent request applies to the chosen alternative; one without requests to all."""
    claim = parse_claim(raw(allocation=ALLOCATION))
    assert claim.configs[0].applies_to(claim.results[0])
    assert not claim.configs[0].applies_to(claim.results[1])
    assert claim.configs[1].applies_to(claim.results[0])


def test_the_hash_follows_only_what_concerns_the_driver() -> None:
    """Another driver's device changes nothing; our own device or parameters do."""
    one = parse_claim(raw(allocation=ALLOCATION))
    other = parse_claim(raw(allocation={**ALLOCATION, "nodeSelector": {}}))
    assert one.allocation_hash("dra.net") == other.allocation_hash("dra.net")
    changed = {"devices": {**ALLOCATION["devices"], "config": []}}
    assert parse_claim(raw(allocation=changed)).allocation_hash("dra.net") != one.allocation_hash("dra.net")


def test_a_claim_without_allocation_has_no_results() -> None:
    """A claim that waits for the scheduler is read as such."""
    claim = parse_claim(raw())
    assert not claim.allocated
    assert claim.results == ()
    assert claim.node_name is None


@pytest.mark.parametrize(
    "selector",
    [{}, {"nodeSelectorTerms": [{}, {}]}, {"nodeSelectorTerms": [{"matchFields": [{"key": "x", "values": ["n"]}]}]}],
)
def test_a_selector_of_several_nodes_names_none(selector: dict[str, Any]) -> None:
    """Only a selector for exactly one node name pins the claim."""
    assert parse_claim(raw(allocation={"nodeSelector": selector})).node_name is None


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ({"metadata": {"namespace": "ns", "name": "c"}}, "metadata.uid"),
        ({"metadata": []}, "metadata of the claim is no object"),
        (raw(reservedFor=[{"resource": "pods", "name": "p"}]), r"status.reservedFor\[0\].uid"),
        (raw(reservedFor=3), "reservedFor"),
        (raw(allocation={"devices": {"results": [{}]}}), r"results\[0\].request"),
    ],
)
def test_a_claim_of_another_shape_is_refused(claim: dict[str, Any], said: str) -> None:
    """The error names the field."""
    with pytest.raises(ClaimError, match=said):
        parse_claim(claim)
