"""The whole daemon on a kernel whose RDMA devices belong to all namespaces."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.vm.bed import FAR, PARAMETERS, eventually, run, write
from tests.vm.daemon import READY, only, state_of, view

if TYPE_CHECKING:
    from tests.vm.bed import Bed
    from tests.vm.daemon import Node

pytestmark = pytest.mark.vm

RDMA_READY = {"Ready": ("True", "RDMAOnlyDeviceReady")}


def test_what_the_node_has_is_published(bed: Bed, node: Node) -> None:
    """A function with its RDMA device on a far root complex, a software device, and one without an interface."""
    vf, address = bed.vf(card=FAR)
    bed.test_rdma("mlx5_0", vf)
    bare = bed.bare_function(1)
    bed.test_rdma("efa_0", bare, "ib")
    bed.link("d0", "type", "dummy")
    bed.rxe("rxe0", "d0")
    told = node.attributes(node.published(vf, "mlx5_0"))
    assert (told["rdma"], told["pciAddress"], told["numaNode"]) == (True, address, 1)
    assert told["resource.kubernetes.io/pcieRoot"] == "pci0000:80"
    assert told["isSriovVf"]
    told = node.attributes(node.published(rdma="efa_0"))
    assert (told["rdma"], told["pciAddress"]) == (True, bare)
    assert "ifName" not in told
    assert node.attributes(node.published("d0", "rxe0"))["rdma"]


def test_software_rdma_that_comes_and_goes_is_followed(bed: Bed, node: Node) -> None:
    """The slices follow an rxe device that is made, renamed and removed; no scan of the node comes meanwhile."""
    bed.link("d1", "type", "dummy")
    bed.up("d1")
    device = node.published("d1")
    assert node.attributes(device)["rdma"] is False
    bed.rxe("rxe0", "d1")
    node.published("d1", "rxe0")
    run("rdma", "dev", "set", "rxe0", "name", "rxe7")
    node.published("d1", "rxe7")
    run("rdma", "link", "del", "rxe7")
    node.stage.wait_for(lambda: node.attributes(device)["rdma"] is False, "the RDMA device gone from the slice")


def test_a_port_follows_its_carrier_in_slices_and_taints(bed: Bed, node: Node) -> None:
    """The peer of an rxe device's interface goes down and comes up again."""
    bed.link("v0", "type", "veth", "peer", "name", "v0p")
    for name in ("v0", "v0p"):
        bed.up(name)
    bed.rxe("rxe0", "v0")
    device = node.published("v0", "rxe0")
    assert says(node, device) == ("ACTIVE", set())
    bed.up("v0p", up=False)
    wanted = ("DOWN", {"dra.net/no-carrier", "dra.net/rdma-port-down"})
    node.stage.wait_for(lambda: says(node, device) == wanted, "the port is down")
    bed.up("v0p")
    node.stage.wait_for(lambda: says(node, device) == ("ACTIVE", set()), "the port is up again")


def says(node: Node, device: str) -> tuple[str, set[str]]:
    """Return what the slices say of a device's port, and its taints."""
    return node.attributes(device)["rdmaPortState"], set(node.taints(device))


def test_shared_attach_moves_the_interface_alone(bed: Bed, node: Node) -> None:
    """The claim's status says the interface is ready, and nothing of a link that stays; home it is as it was."""
    vf, _ = bed.vf()
    bed.test_rdma("mlx5_0", vf)
    device = node.published(vf, "mlx5_0")
    before, seen = state_of(vf), view()
    pod = node.running(device)
    there = view(pod)
    assert there.interfaces == there.sysfs_interfaces == {"net1"}
    assert there.rdma.keys() == there.sysfs_rdma == {"mlx5_0"}
    here = view()
    assert vf not in here.interfaces | here.sysfs_interfaces
    assert "mlx5_0" in here.rdma.keys() & here.sysfs_rdma
    assert node.entry(pod)["networkData"]["interfaceName"] == "net1"
    node.audited(pod)
    assert node.attributes(device)["rdmaDevice"] == "mlx5_0"
    node.stage.end_pod(pod)
    node.says(pod, {"Ready": ("False", "Detached"), "NetworkReady": ("False", "Detached")})
    assert state_of(vf) == before
    assert view() == seen
    node.release(pod)


def test_a_device_without_interface_is_ready_for_rdma_alone(bed: Bed, node: Node) -> None:
    """Its character devices go to the container; its port's state is in the claim; a pod on the host network has it."""
    address = bed.bare_function()
    bed.test_rdma("efa_0", address, "ib")
    device = node.published(rdma="efa_0")
    pod = node.prepared(device)
    pod.sandbox = replace(pod.sandbox, netns_path="")
    node.run(pod)
    assert "networkData" not in node.says(pod, RDMA_READY)
    assert "efa_0" in view().rdma
    write(PARAMETERS / "state", "efa_0 1")
    entry = node.says(pod, {"Ready": ("False", "RDMAPortDown")})
    assert "efa_0" in entry["conditions"][0]["message"]
    node.stage.kubelet.wait_health(lambda known: known["node", device].status == "Unhealthy")
    write(PARAMETERS / "state", "efa_0 4")
    node.says(pod, RDMA_READY)
    node.stage.kubelet.wait_health(lambda known: known["node", device].status == "Healthy")
    node.stage.end_pod(pod)
    node.says(pod, {"Ready": ("False", "Detached")})
    node.release(pod)


def test_network_fields_are_refused_where_there_is_no_interface(bed: Bed, node: Node) -> None:
    """Prepare names the fields that a device for RDMA alone cannot have."""
    address = bed.bare_function()
    bed.test_rdma("efa_0", address, "ib")
    device = node.published(rdma="efa_0")
    _, error = node.pod(device, config={"interface": {"addresses": ["192.0.2.1/24"]}})
    assert "interface.addresses" in error


def test_a_function_that_is_taken_away_in_its_pod_is_lost(bed: Bed, node: Node) -> None:
    """sriov_numvfs=0 while the interface is in a pod: the claim says so at once, and the pod still ends well."""
    vf, _ = bed.vf()
    bed.test_rdma("mlx5_0", vf)
    pod = node.running(node.published(vf, "mlx5_0"))
    bed.no_vfs()
    node.says(pod, {"Ready": ("False", "DeviceMissing"), "NetworkReady": ("False", "DeviceMissing")})
    assert view(pod) == only([], {})
    assert "mlx5_0" not in view().rdma
    node.end(pod)


def test_a_namespace_that_dies_with_its_pod_gives_the_function_back(bed: Bed, node: Node) -> None:
    """The pod's processes are gone before the runtime says so: the interface is home with its name, up as it was."""
    vf, _ = bed.vf()
    bed.test_rdma("mlx5_0", vf)
    before, seen = state_of(vf), view()
    pod = node.running(node.published(vf, "mlx5_0"))
    pod.process.kill()
    pod.process.wait()
    node.stage.runtime.stop_pod(pod.sandbox)
    node.says(pod, {"Ready": ("False", "Detached"), "NetworkReady": ("False", "Detached")})
    eventually(lambda: view() == seen, "as before")
    assert state_of(vf) == before
    node.release(pod)


def test_a_carrier_that_goes_is_in_status_and_health(bed: Bed, node: Node) -> None:
    """A veth's peer goes down: its condition and kubelet's health follow, and both come back."""
    bed.link("v0", "type", "veth", "peer", "name", "v0p")
    for name in ("v0", "v0p"):
        bed.up(name)
    device = node.published("v0")
    pod = node.running(device)
    bed.up("v0p", up=False)
    node.says(pod, {**READY, "NetworkReady": ("False", "NoCarrier")})
    bed.up("v0p")
    node.says(pod, READY)
