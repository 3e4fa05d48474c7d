"""Two nodes: each driver has its own node's devices alone, and a pod goes from one node to the other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from hack.cluster.cluster import wait
from hack.cluster.host import ClusterError
from tests.cluster.bed import CLASS, RELEASE, SYSTEM, Bed, claim, pod
from tests.cluster.conftest import started

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NODES = ("node-1", "node-2")


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest, driver_image: Path) -> Iterator[Bed]:
    """Start a cluster of two nodes, beside the one of the other tests, with the driver on both."""
    with started(request.config, nodes=2) as cluster:
        bed = Bed(cluster)
        cluster.load(driver_image)
        bed.make_links()
        bed.install()
        yield bed


def test_each_driver_publishes_its_own_node(pair: Bed) -> None:
    """Every slice is of the node in its pool's name, and both nodes have all their interfaces in them."""
    slices = pair.get("resourceslices", "", "default", f"--field-selector=spec.driver={CLASS}")["items"]
    assert {item["spec"]["nodeName"] for item in slices} == set(NODES)
    assert all(item["spec"]["pool"]["name"] == item["spec"]["nodeName"] for item in slices)
    assert pair.published() >= pair.all_links


def test_a_pod_of_a_drained_node_starts_on_the_other(pair: Bed) -> None:
    """It has the other node's device there, its status says so, and the first node's device is home."""
    home = pair.home()
    template = claim("net", "ens5", config={"interface": {"name": "net1", "addresses": ["10.1.1.1/24"]}})
    template |= {"kind": "ResourceClaimTemplate", "spec": {"spec": template["spec"]}}
    spec = pod("unused", "net")["spec"]
    spec["resourceClaims"] = [{"name": "net", "resourceClaimTemplateName": "net"}]
    labels = {"app": "moves"}
    deployment: dict[str, Any] = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "moves"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }

    def ready() -> tuple[str, str]:
        rollout = ("rollout", "status", "deployment/moves", "--timeout=180s")
        pair.cluster.kubectl(*rollout)
        (found,) = pair.get("pods", "", "default", "--selector=app=moves")["items"]
        name, node = found["metadata"]["name"], found["spec"]["nodeName"]
        pair.wait_true_status(name, "default")
        assert pair.link("net1", name, "default")
        (held,) = pair.claims(name, "default")
        assert [entry["pool"] for entry in held["status"]["devices"]] == [node]
        return name, node

    try:
        pair.apply([template, deployment], "default")
        _, first = ready()
        pair.cluster.kubectl("drain", first, "--ignore-daemonsets", "--timeout=120s")
        wait(lambda: f"{first}/ens5" in pair.home(), f"{first} has its device again", 60)
        _, second = ready()
        assert second != first
        assert pair.home() == {name: flags for name, flags in home.items() if name != f"{second}/ens5"}
    finally:
        for node in NODES:
            pair.cluster.kubectl("uncordon", node)
        pair.cluster.kubectl("delete", "deployment/moves", "resourceclaimtemplate/net", "--ignore-not-found")
    pair.wait_home(home)


def test_a_driver_may_not_write_the_other_nodes_slices(pair: Bed) -> None:
    """The admission policy refuses it in words; those of its own node it may write."""
    for own, other in (NODES, NODES[::-1]):
        token = driver_token(pair, own)
        for node in (own, other):
            slices = pair.get("resourceslices", "", "default", f"--field-selector=spec.nodeName={node}")["items"]
            name = slices[0]["metadata"]["name"]
            words = ("delete", "resourceslice", name, "--dry-run=server", f"--token={token}")
            if node == own:
                assert "deleted" in pair.cluster.kubectl(*words)
            else:
                with pytest.raises(ClusterError, match=f"driver on node {own} may not write ResourceSlices of another"):
                    pair.cluster.kubectl(*words)


def test_a_driver_writes_the_status_of_its_own_nodes_devices(pair: Bed, request: pytest.FixtureRequest) -> None:
    """A claim whose pod is on one node has its status from the driver there; the other one's token may not write it."""
    pinned = pod("pinned", "net")
    pinned["spec"]["nodeSelector"] = {"kubernetes.io/hostname": "node-2"}
    try:
        pair.start([claim("net", "ens5"), pinned], "pinned", "default")
        pair.wait_true_status("pinned", "default")
        (held,) = pair.claims("pinned", "default")
        (entry,) = held["status"]["devices"]
        assert (entry["pool"], entry["device"]) == ("node-2", "ens5")
        managers = {
            field["manager"]
            for field in pair.get("resourceclaim", "net", "default", "--show-managed-fields")["metadata"][
                "managedFields"
            ]
            if "f:devices" in json.dumps(field["fieldsV1"].get("f:status", {}))
        }
        assert CLASS in " ".join(managers)
        assert not pair.wrong("pinned", "default")
        if request.config.getoption("--kubernetes") != "1.34":  # it knows no permissions on the devices of a node
            written = status_of(held)
            assert write_status(pair, "node-2", written)
            with pytest.raises(ClusterError, match="cannot arbitrary-node:patch"):
                write_status(pair, "node-1", written)
    finally:
        pair.cluster.kubectl("delete", "pod/pinned", "resourceclaim/net", "--ignore-not-found")


def driver_token(bed: Bed, node: str) -> str:
    """Return a token as the driver's pod on a node has it."""
    (found,) = [each for each in bed.driver_pods() if each["spec"]["nodeName"] == node]
    name, uid = found["metadata"]["name"], found["metadata"]["uid"]
    bound = ("--bound-object-kind=Pod", f"--bound-object-name={name}", f"--bound-object-uid={uid}")
    return bed.cluster.kubectl("create", "token", RELEASE, "--namespace", SYSTEM, *bound).strip()


def status_of(held: dict[str, Any]) -> dict[str, Any]:
    """Return a claim's manifest with the status of its device, as anybody could apply it."""
    (entry,) = held["status"]["devices"]
    device = {key: entry[key] for key in ("driver", "pool", "device")}
    metadata = {key: held["metadata"][key] for key in ("name", "namespace", "uid")}
    return {
        "apiVersion": held["apiVersion"],
        "kind": held["kind"],
        "metadata": metadata,
        "status": {"devices": [{**device, "networkData": {"interfaceName": "made-up"}}]},
    }


def write_status(bed: Bed, node: str, manifest: dict[str, Any]) -> str:
    """Try, as a node's driver, to write a status; nothing is kept."""
    how = ("--server-side", "--subresource=status", "--dry-run=server", "--force-conflicts", "--field-manager=test")
    token = f"--token={driver_token(bed, node)}"
    return bed.cluster.kubectl("apply", *how, token, "--filename=-", stdin=json.dumps(manifest))
