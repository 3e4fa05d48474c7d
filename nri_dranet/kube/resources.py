"""Paths of the API objects that this driver reads and writes."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

RESOURCE_API: Final = "/apis/resource.k8s.io/v1"


def _part(name: str) -> str:
    """Make one part of a path of a name, whatever kubelet was told that it is: no name leads to another object."""
    return name.replace(".", "%2E") if name in {".", ".."} else quote(name, safe="")


def claims_path(namespace: str) -> str:
    """Return the path of the ResourceClaims of a namespace."""
    return f"{RESOURCE_API}/namespaces/{_part(namespace)}/resourceclaims"


def claim_path(namespace: str, name: str) -> str:
    """Return the path of a ResourceClaim."""
    return f"{claims_path(namespace)}/{_part(name)}"


def claim_status_path(namespace: str, name: str) -> str:
    """Return the path of a ResourceClaim's status."""
    return f"{claim_path(namespace, name)}/status"


def slices_path() -> str:
    """Return the path of the ResourceSlices."""
    return f"{RESOURCE_API}/resourceslices"


def slice_path(name: str) -> str:
    """Return the path of a ResourceSlice."""
    return f"{slices_path()}/{_part(name)}"


def pods_path() -> str:
    """Return the path of the pods of all namespaces."""
    return "/api/v1/pods"


def pod_path(namespace: str, name: str) -> str:
    """Return the path of a pod."""
    return f"/api/v1/namespaces/{_part(namespace)}/pods/{_part(name)}"


def nodes_path() -> str:
    """Return the path of the nodes."""
    return "/api/v1/nodes"


def node_path(name: str) -> str:
    """Return the path of a node."""
    return f"{nodes_path()}/{_part(name)}"


def eviction_path(namespace: str, name: str) -> str:
    """Return the path of a pod's eviction."""
    return f"{pod_path(namespace, name)}/eviction"


def events_path(namespace: str) -> str:
    """Return the path of the Events of a namespace."""
    return f"/api/v1/namespaces/{_part(namespace)}/events"


def event_path(namespace: str, name: str) -> str:
    """Return the path of an Event."""
    return f"{events_path(namespace)}/{_part(name)}"


def kind_of(path: str) -> str:
    """Return the plural of what a path names, for metrics: ``resourceclaims/status``."""
    parts = path.partition("?")[0].strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    if parts[:1] == ["namespaces"] and len(parts) > 2:
        parts = parts[2:]
    return "/".join(parts[:1] + parts[2:])
