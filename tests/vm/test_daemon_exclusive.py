"""The whole daemon on a kernel whose RDMA devices belong to one namespace each."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nri_dranet.netlink.nldev import NetnsMode, RdmaSocket
from nri_dranet.testing.runtime import RuntimeRefusedError
from tests.vm.bed import PARAMETERS, eventually, links, run, write
from tests.vm.daemon import ALL_READY, READY, only, state_of, view

if TYPE_CHECKING:
    from nri_dranet.testing.stage import StagedPod
    from tests.vm.bed import Bed
    from tests.vm.daemon import Node

pytestmark = pytest.mark.vm(arguments="ib_core.netns_mode=0")

GONE = dict.fromkeys(ALL_READY, ("False", "Detached"))
LOST = dict.fromkeys(ALL_READY, ("False", "DeviceMissing"))


def together(bed: Bed, node: Node) -> tuple[str, str]:
    """Return a virtual function that has an RDMA device, and its published name."""
    vf, _ = bed.vf()
    bed.up(vf)
    bed.test_rdma("mlx5_0", vf)
    return vf, node.published(vf, "mlx5_0")


def killed(node: Node, pod: StagedPod, call: object, sees: object) -> None:
    """Kill the daemon in the middle of a move of an RDMA device, which ends before the process does."""
    assert callable(call)
    assert callable(sees)
    write(PARAMETERS / "slow", "3000")
    thread = threading.Thread(target=call, args=(pod.sandbox,))
    thread.start()
    try:
        eventually(sees, "the RDMA device on its way")
        node.stage.stop_daemon(signal.SIGKILL)
    finally:
        write(PARAMETERS / "slow", "0")
        thread.join()


def test_a_function_and_its_rdma_device_move_together(bed: Bed, node: Node) -> None:
    """Both are in the pod and not on the node, by ip, rdma and sysfs; both come home as they were."""
    vf, device = together(bed, node)
    before, seen = state_of(vf), view()
    pod = node.running(device, wanted=ALL_READY)
    assert view(pod) == only(["net1"], {"mlx5_0": "net1"})
    here = view()
    assert here.interfaces == here.sysfs_interfaces == seen.interfaces - {vf}
    assert here.rdma == {}
    assert here.sysfs_rdma == frozenset()
    assert node.attributes(device)["rdmaDevice"] == "mlx5_0"
    node.audited(pod)
    node.stage.end_pod(pod)
    node.says(pod, GONE)
    assert view() == seen
    assert state_of(vf) == before
    node.release(pod)


def test_a_port_that_goes_down_is_in_the_status_of_its_pod(bed: Bed, node: Node) -> None:
    """Within a second or so, both ways; kubelet hears that the device is not healthy."""
    _, device = together(bed, node)
    pod = node.running(device, wanted=ALL_READY)
    write(PARAMETERS / "state", "mlx5_0 1")
    entry = node.says(pod, {**ALL_READY, "RDMALinkReady": ("False", "RDMAPortDown")})
    assert "mlx5_0 is DOWN" in next(one["message"] for one in entry["conditions"] if one["status"] == "False")
    node.stage.kubelet.wait_health(lambda known: known["node", device].status == "Unhealthy")
    node.stage.wait_for(lambda: "dra.net/rdma-port-down" in node.taints(device), "a taint")
    write(PARAMETERS / "state", "mlx5_0 4")
    node.says(pod, ALL_READY)
    node.stage.kubelet.wait_health(lambda known: known["node", device].status == "Healthy")
    node.stage.wait_for(lambda: not node.taints(device), "no taint")


def test_a_device_without_interface_moves(bed: Bed, node: Node) -> None:
    """Its RDMA device alone is in the pod, and the claim says so."""
    address = bed.bare_function()
    bed.test_rdma("efa_0", address, "ib")
    pod = node.prepared(node.published(rdma="efa_0"))
    node.run(pod)
    node.says(pod, {"Ready": ("True", "RDMAOnlyDeviceReady"), "RDMALinkReady": ("True", "RDMALinkReady")})
    assert view(pod) == only([], {"efa_0": ""})
    assert "efa_0" not in view().rdma
    node.end(pod)
    assert {"efa_0"} == view().rdma.keys() == view().sysfs_rdma


def test_ipoib_is_found_in_the_pod(bed: Bed, node: Node) -> None:
    """The kernel ends the interface with the move of its RDMA device and makes another in the pod, and so at home."""
    run("modprobe", "ib_ipoib")
    address = bed.bare_function()
    bed.test_rdma("ib_0", address, "ib")
    eventually(lambda: "ib0" in links(), "the interface of IPoIB")
    run("ip", "link", "set", "ib0", "up")
    device = node.published("ib0", "ib_0")
    pod = node.prepared(device, config={"interface": {"name": "net1", "addresses": ["192.0.2.9/24"]}})
    node.run(pod)
    # Without a data path there is no subnet manager to join, and no carrier.
    node.says(pod, {**ALL_READY, "NetworkReady": ("False", "NoCarrier")})
    assert node.entry(pod)["networkData"]["ips"] == ["192.0.2.9/24"]
    assert view(pod).interfaces == {"net1"}
    assert view(pod).rdma.keys() == {"ib_0"}
    assert "ib0" not in links()
    node.end(pod)
    eventually(lambda: "ib0" in links() and "UP" in links()["ib0"]["flags"], "home, up as it was")
    assert view().rdma.keys() == {"ib_0"}


def test_a_function_that_is_taken_away_in_its_pod_is_lost(bed: Bed, node: Node) -> None:
    """sriov_numvfs=0 while both are in the pod: no hang, the claim says so, and the pod ends well."""
    _, device = together(bed, node)
    pod = node.running(device, wanted=ALL_READY)
    bed.no_vfs()
    node.says(pod, LOST)
    assert view(pod) == only([], {})
    assert view().rdma == {}
    node.end(pod)


def test_a_namespace_that_dies_with_its_pod_gives_both_back(bed: Bed, node: Node) -> None:
    """The pod's processes are gone before the runtime says so: the daemon holds the namespace until both are home."""
    vf, device = together(bed, node)
    before, seen = state_of(vf), view()
    pod = node.running(device, wanted=ALL_READY)
    pod.process.kill()
    pod.process.wait()
    node.stage.runtime.stop_pod(pod.sandbox)
    node.says(pod, GONE)
    assert view() == seen
    assert state_of(vf) == before
    node.release(pod)


def test_a_namespace_that_dies_while_the_daemon_is_dead(bed: Bed, node: Node) -> None:
    """The kernel brings both home, the interface under its pod's name and down; the next daemon restores it."""
    vf, device = together(bed, node)
    before, seen = state_of(vf), view()
    pod = node.running(device, wanted=ALL_READY)
    node.stage.stop_daemon(signal.SIGKILL)
    pod.process.kill()
    pod.process.wait()
    node.stage.runtime.stop_pod(pod.sandbox)
    eventually(lambda: "net1" in links() and "mlx5_0" in view().rdma, "both at home")
    assert "UP" not in links()["net1"]["flags"]
    node.restart()
    node.says(pod, GONE)
    assert view() == seen
    assert state_of(vf) == before
    node.release(pod)


def test_killed_while_the_rdma_device_moves_in(bed: Bed, node: Node) -> None:
    """The interface and the RDMA device are in the pod when the process dies; the next one finishes the attach."""
    vf, device = together(bed, node)
    before, seen = state_of(vf), view()
    pod = node.prepared(device, config={"interface": {"name": "net1", "addresses": ["192.0.2.9/24"]}})
    killed(node, pod, node.stage.runtime.run_pod, lambda: "mlx5_0" in view(pod).rdma)
    assert view(pod) == only(["net1"], {"mlx5_0": "net1"})
    node.restart()
    node.says(pod, ALL_READY)
    assert node.entry(pod)["networkData"]["ips"] == ["192.0.2.9/24"]
    assert node.events("DeviceAttachedLate")
    node.end(pod)
    assert view() == seen
    assert state_of(vf) == before


def test_killed_while_the_rdma_device_comes_home(bed: Bed, node: Node) -> None:
    """The RDMA device is home and the interface is not when the process dies; the next one brings it."""
    vf, device = together(bed, node)
    before, seen = state_of(vf), view()
    pod = node.running(device, wanted=ALL_READY)
    killed(node, pod, node.stage.runtime.stop_pod, lambda: "mlx5_0" in view().rdma)
    assert view(pod) == only(["net1"], {})
    node.restart()
    node.says(pod, GONE)
    assert view() == seen
    assert state_of(vf) == before
    node.end(pod)


def test_an_interface_name_that_is_taken_in_the_pod(bed: Bed, node: Node) -> None:
    """The sandbox is refused with name and field; both halves are where they were; the next sandbox has them."""
    _, device = together(bed, node)
    seen = view()
    pod = node.prepared(device, config={"interface": {"name": "net1"}})
    pod.run("ip", "link", "add", "net1", "type", "veth")
    with pytest.raises(RuntimeRefusedError, match=r"net1.*interface\.name"):
        node.run(pod)
    node.says(pod, dict.fromkeys(ALL_READY, ("False", "NameInUse")))
    assert view() == seen
    pod.run("ip", "link", "del", "net1")
    node.run(pod)
    node.says(pod, ALL_READY)


def test_an_rdma_name_that_is_taken_at_home(bed: Bed, node: Node) -> None:
    """The pod renamed its RDMA device, and another took its name: it comes home as it is called, and that is told."""
    vf, device = together(bed, node)
    pod = node.running(device, wanted=ALL_READY)
    pod.run("rdma", "dev", "set", "mlx5_0", "name", "mine")
    node.says(pod, ALL_READY)
    bed.test_rdma("mlx5_0", "-", "ib")
    bed.rdma.append("mine")
    node.stage.end_pod(pod)
    node.says(pod, GONE)
    assert view().rdma == {"mine": vf, "mlx5_0": ""}
    assert any("mlx5_0 is called mine now" in text for text in node.events("DeviceNotRestored"))
    node.release(pod)


def test_a_name_that_the_pod_gave_is_taken_back(bed: Bed, node: Node) -> None:
    """A pod may rename its interface and its RDMA device: the claim says so, and both come home as they were."""
    vf, device = together(bed, node)
    seen = view()
    pod = node.running(device, wanted=ALL_READY)
    pod.run("rdma", "dev", "set", "mlx5_0", "name", "mine")
    pod.run("ip", "link", "set", "net1", "name", "own0")
    node.says(pod, {**ALL_READY, "Ready": ("True", "Renamed")})
    assert node.entry(pod)["networkData"]["interfaceName"] == "own0"
    assert view(pod) == only(["own0"], {"mine": "own0"})
    node.end(pod)
    assert view() == seen
    assert vf in links()


def test_a_driver_that_cannot_move_its_device_leaves_the_interface(bed: Bed, node: Node) -> None:
    """Rxe refuses: the sandbox is refused with the reason, and the interface keeps its RDMA device."""
    bed.link("v0", "type", "veth", "peer", "name", "v0p")
    for name in ("v0", "v0p"):
        bed.up(name)
    bed.rxe("rxe0", "v0")
    pod = node.prepared(node.published("v0", "rxe0"))
    with pytest.raises(RuntimeRefusedError, match=r"rxe0"):
        node.run(pod)
    entry = node.says(pod, dict.fromkeys(ALL_READY, ("False", "RDMAMoveFailed")))
    assert "its driver cannot be moved" in entry["conditions"][0]["message"]
    assert "v0" in links()
    # It would have ended with the move of its interface.
    assert view().rdma == {"rxe0": "v0"}


def test_the_mode_is_switched_between_prepare_and_attach(bed: Bed, node: Node) -> None:
    """Prepared in exclusive mode, attached in shared mode: the interface alone moves, and log and Event say why."""
    vf, device = together(bed, node)
    seen = view()
    pod = node.prepared(device, config={"interface": {"name": "net1"}})
    # The kernel lets the mode be switched while there is no other namespace.
    pod.process.kill()
    pod.process.wait()
    eventually(lambda: switched("shared"), "shared mode")
    try:
        node.stage.new_sandbox(pod)
        node.run(pod)
        node.says(pod, READY)
        assert view(pod).interfaces == {"net1"}
        assert "mlx5_0" in view().rdma
        (text,) = node.events("RDMAModeSwitched")
        assert "switched to shared" in text
        assert "mlx5_0 stays on the node" in text
        assert node.logged("RDMA mode switched")
        node.end(pod)
        assert view() == seen
    finally:
        eventually(lambda: switched("exclusive"), "exclusive mode again")
    assert vf in links()


def switched(mode: str) -> bool:
    """Try to switch the mode; namespaces that were left a moment ago may still be there."""
    run("rdma", "system", "set", "netns", mode, check=False)
    with RdmaSocket() as socket:
        return socket.netns_mode() is NetnsMode(mode)


def test_no_namespace_is_left(node: Node) -> None:
    """After all of these the daemon holds none but its own."""
    process = Path(f"/proc/{node.stage.daemon_pid()}")
    own = (process / "ns/net").readlink()

    def foreign() -> set[Path]:
        held = set()
        for descriptor in (process / "fd").iterdir():
            if (target := descriptor.readlink()).name.startswith("net:["):
                held.add(target)
        return held - {own}

    node.stage.wait_for(lambda: not foreign(), "no foreign namespace is held")
