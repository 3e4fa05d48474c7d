"""What the tests of the stand-ins share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.kube.client import APPLY, MERGE, KubeClient
from nri_dranet.testing.apiserver import ApiServerStandIn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RESOURCE_API = "/apis/resource.k8s.io/v1"
CLAIMS = f"{RESOURCE_API}/namespaces/default/resourceclaims"


class World:
    """An API server and a client of it, with the few writes that most tests need."""

    claims = CLAIMS
    slices = f"{RESOURCE_API}/resourceslices"
    classes = f"{RESOURCE_API}/deviceclasses"
    entry = {"driver": "dra.net", "pool": "node1", "device": "eth1"}  # noqa: RUF012 - read only

    def __init__(self, api: ApiServerStandIn, client: KubeClient, folder: Path) -> None:
        self.api = api
        self.client = client
        self._folder = folder

    def as_user(self, token: str) -> KubeClient:
        """Return a client that shows a token."""
        return KubeClient.load(str(self.api.write_kubeconfig(self._folder / f"kubeconfig-{token}", token)))

    def claim(self, name: str = "c1", parameters: Any = None) -> dict[str, Any]:
        """Return a claim with one request."""
        devices: dict[str, Any] = {"requests": [{"name": "nic", "exactly": {"deviceClassName": "dranet"}}]}
        if parameters is not None:
            devices["config"] = [{"opaque": {"driver": "dra.net", "parameters": parameters}}]
        return {**self.head("ResourceClaim", name), "spec": {"devices": devices}}

    def allocation(self, device: str = "eth1", parameters: Any = None) -> dict[str, Any]:
        """Return the allocation of a device for a claim."""
        devices: dict[str, Any] = {
            "results": [{"request": "nic", "driver": "dra.net", "pool": "node1", "device": device}]
        }
        if parameters is not None:
            opaque = {"driver": "dra.net", "parameters": parameters}
            devices["config"] = [{"source": "FromClaim", "opaque": opaque}]
        field = {"key": "metadata.name", "operator": "In", "values": ["node1"]}
        return {"devices": devices, "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [field]}]}}

    def allocated(self, name: str = "c1") -> dict[str, Any]:
        """Create a claim that has eth1."""
        self.client.create(CLAIMS, self.claim(name))
        return self.merge_status({"allocation": self.allocation()}, name=name)

    def head(self, kind: str, name: str) -> dict[str, Any]:
        """Return the beginning of an object."""
        meta = {"name": name, **({"namespace": "default"} if kind == "ResourceClaim" else {})}
        return {"apiVersion": "resource.k8s.io/v1", "kind": kind, "metadata": meta}

    def apply_status(
        self,
        devices: Any,
        manager: str = "driver",
        *,
        name: str = "c1",
        force: bool = True,
        client: KubeClient | None = None,
        **meta: str,
    ) -> dict[str, Any]:
        """Apply ``status.devices``."""
        body = self.head("ResourceClaim", name)
        body["metadata"].update(meta)
        body["status"] = {"devices": devices}
        return (client or self.client).patch(
            f"{CLAIMS}/{name}/status",
            body,
            content_type=APPLY,
            params={"fieldManager": manager, "force": str(force).lower()},
        )

    def merge_status(
        self, status: dict[str, Any], manager: str = "merger", *, name: str = "c1", client: KubeClient | None = None
    ) -> dict[str, Any]:
        """Change the status by a merge patch."""
        return (client or self.client).patch(
            f"{CLAIMS}/{name}/status",
            {"status": status},
            content_type=MERGE,
            params={"fieldManager": manager},
        )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Start an API server and give a client of it."""
    with ApiServerStandIn() as api:
        yield World(api, KubeClient.load(str(api.write_kubeconfig(tmp_path / "kubeconfig"))), tmp_path)
