"""Paths of API objects."""

from __future__ import annotations

import pytest

from nri_dranet.kube import resources
from nri_dranet.kube.resources import kind_of


@pytest.mark.parametrize("name", ["../../pods/x", "/etc/passwd", "..", ".", "a?b=c", "a#b", "a b\n", "%2e%2e", "é"])
def test_no_name_leads_to_another_object(name: str) -> None:
    """It stays one part of the path, which no client makes shorter."""
    for path in (
        resources.claim_path(name, name),
        resources.claim_status_path(name, name),
        resources.pod_path(name, name),
        resources.eviction_path(name, name),
        resources.event_path(name, name),
        resources.slice_path(name),
        resources.node_path(name),
    ):
        known = {"", "api", "apis", "v1", "resource.k8s.io", "namespaces", "status", "eviction"}
        known |= {"resourceclaims", "resourceslices", "pods", "events", "nodes"}
        (part,) = {each for each in path.split("/") if each not in known}
        assert part not in {".", ".."}
        assert not set(part) & set("?#\n ")
        assert name not in kind_of(path)


def test_ordinary_names_are_as_they_are() -> None:
    """Dots and hyphens of DNS names need no other form."""
    assert resources.claim_path("team-a", "web.1") == "/apis/resource.k8s.io/v1/namespaces/team-a/resourceclaims/web.1"
