"""RDMA on a kernel whose RDMA devices belong to all namespaces: what belongs to what, attach, and the way back."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nri_dranet.inventory.device import Device
from nri_dranet.netlink.nldev import NetnsMode, RdmaMonitor, RdmaSocket
from nri_dranet.sysfs import Sysfs
from tests.vm.bed import FAR, NEAR, PARAMETERS, conditions, eventually, link_of, links, rdma_links, run, write

if TYPE_CHECKING:
    from tests.vm.bed import Bed

pytestmark = pytest.mark.vm


def test_netlink_and_sysfs_tell_the_same(bed: Bed) -> None:
    """Names, GUIDs, interfaces, states and character devices of software, RoCE, iWARP and InfiniBand devices."""
    bed.link("d0", "type", "dummy")
    bed.up("d0")
    bed.rxe("rxe0", "d0")
    vf, address = bed.vf()
    other, _ = bed.vf(1)
    bed.test_rdma("mlx5_0", vf)
    bed.test_rdma("irdma0", other, "iwarp")
    bed.test_rdma("ib0dev", "-", "ib", ports=2)
    write(PARAMETERS / "state", "ib0dev 2 2")
    sysfs = Sysfs()
    with RdmaSocket() as socket:
        assert socket.netns_mode() is NetnsMode.SHARED
        devices = {device.name: device for device in socket.devices()}
        assert set(devices) == set(sysfs.rdma_names()) == set(rdma_links()) == {"rxe0", "mlx5_0", "irdma0", "ib0dev"}
        for name, device in devices.items():
            told = sysfs.rdma_device(name)
            assert told is not None
            assert device.node_guid == told.node_guid
            assert device.firmware == told.firmware
            ports = socket.ports(device.index)
            assert len(ports) == device.ports
            assert [(one.port, one.state, one.physical_state) for one in ports] == [
                (one.number, one.state, one.physical_state) for one in told.ports
            ]
            assert [one.netdev for one in ports if one.netdev] == list(sysfs.rdma_interfaces(name))
            assert device.protocol == {"rxe0": "roce", "mlx5_0": "roce", "irdma0": "iw", "ib0dev": "ib"}[name]
            wanted = {(one.name, one.major, one.minor) for one in sysfs.rdma_char_devices(name)}
            asked = [socket.char_device("uverbs", device.index), socket.char_device("rdma_cm")]
            # iWARP has no management datagrams.
            mad = () if name == "irdma0" else range(1, device.ports + 1)
            asked += [socket.char_device("umad", device.index, port) for port in mad]
            # Of issm the kernel tells in sysfs alone.
            found = {(one.name, one.major, one.minor) for one in asked if one}
            assert found == {each for each in wanted if not each[0].startswith("issm")}
            assert any(each[0].startswith("uverbs") for each in wanted)
    assert sysfs.rdma_interfaces("rxe0") == ("d0",)
    assert sysfs.rdma_interfaces("mlx5_0") == (vf,)
    assert sysfs.rdma_interfaces("irdma0") == (other,)
    assert sysfs.rdma_interfaces("ib0dev") == ()
    told = sysfs.rdma_device("mlx5_0")
    assert told is not None
    assert told.pci_address == address


def test_each_interface_is_published_with_its_rdma_device(bed: Bed) -> None:
    """By PCI function, by its port, by GIDs, by the parent of software and by the port's GUID of IPoIB."""
    bed.link("d0", "type", "dummy")
    bed.link("d1", "type", "dummy")
    for name in ("d0", "d1"):
        bed.up(name)
    bed.rxe("rxe0", "d0")
    bed.test_rdma("siw0", "d1", "iwarp")
    vf, address = bed.vf()
    other, _ = bed.vf(1)
    bed.test_rdma("mlx5_0", vf)
    run("modprobe", "ib_ipoib")
    bed.test_rdma("hfi1_0", "-", "ib", ports=2)
    eventually(lambda: {"ib0", "ib1"} <= links().keys(), "the interfaces of IPoIB, one a port")
    devices = {device.link.name: device for device in bed.devices().values() if device.link}
    assert devices["d0"].rdma == "rxe0"
    assert devices["d1"].rdma == "siw0"
    assert devices["ib0"].rdma == devices["ib1"].rdma == "hfi1_0"
    assert devices[vf].rdma == "mlx5_0"
    assert devices[vf].pci_address == address
    assert devices[other].rdma is None
    attributes = devices[vf].attributes
    assert attributes["dra.net/rdma"] == {"bool": True}
    assert attributes["dra.net/rdmaDevice"] == {"string": "mlx5_0"}


def test_functions_say_where_they_are(bed: Bed) -> None:
    """Virtual function, physical function, NUMA node and root complex of cards on two root complexes."""
    near, _ = bed.vf()
    far, _ = bed.vf(card=FAR)
    devices = {device.link.name: device.attributes for device in bed.devices().values() if device.link}
    card = devices[bed.netdev(NEAR)]
    assert card["dra.net/sriov"] == {"bool": True}
    assert card["dra.net/sriovVfs"] == {"int": 2}
    assert devices[near]["dra.net/isSriovVf"] == {"bool": True}
    assert devices[near]["resource.kubernetes.io/pcieRoot"] == {"string": "pci0000:00"}
    assert devices[far]["resource.kubernetes.io/pcieRoot"] == {"string": "pci0000:80"}
    assert devices[far]["dra.net/numaNode"] == {"int": 1}
    assert Path(f"/sys/bus/pci/devices/{FAR}/numa_node").read_text().strip() == "1"


def test_shared_attach_moves_the_interface_alone(bed: Bed) -> None:
    """The RDMA device stays visible to all; the interface goes, comes home, and everything is as before."""
    vf, address = bed.vf()
    bed.test_rdma("mlx5_0", vf)
    before = links()[vf]
    device = bed.device(vf)
    plan = bed.plan(device)
    pod = bed.pod()
    (facts,) = bed.attach(pod, plan)
    assert conditions(facts)["Ready"] == ("True", "NetworkDeviceReady")
    assert "RDMALinkReady" not in conditions(facts)
    assert vf not in links()
    assert links(pod)["net1"]["parentdev"] == address
    assert "mlx5_0" in rdma_links(pod)
    assert "mlx5_0" in rdma_links()
    assert plan.rdma is not None
    nodes = [Path(node.path).name.rstrip("0123456789") for node in plan.rdma.char_devices]
    assert nodes == ["uverbs", "umad", "rdma_cm"]
    (done,) = bed.detach(pod, plan)
    assert done.home
    assert not done.problems
    after = links()[vf]
    assert {key: after[key] for key in ("ifindex", "address", "mtu", "parentdev")} == {
        key: before[key] for key in ("ifindex", "address", "mtu", "parentdev")
    }
    assert bed.device(vf).rdma == "mlx5_0"


def test_an_infiniband_device_without_interface_is_reported_as_such(bed: Bed) -> None:
    """Nothing moves; the claim says that the RDMA device is ready, and that its port is down when it is."""
    bed.test_rdma("mlx5_0", "-", "ib")
    plan = bed.plan(Device(name="ib", rdma="mlx5_0"))
    pod = bed.pod()
    (facts,) = bed.attach(pod, plan)
    assert conditions(facts) == {"Ready": ("True", "RDMAOnlyDeviceReady")}
    write(PARAMETERS / "state", "mlx5_0 1")
    assert conditions(bed.look(pod, plan)) == {"Ready": ("False", "RDMAPortDown")}
    write(PARAMETERS / "state", "mlx5_0 4")
    assert conditions(bed.look(pod, plan)) == {"Ready": ("True", "RDMAOnlyDeviceReady")}
    (done,) = bed.detach(pod, plan)
    assert done.home


def test_a_function_that_is_taken_away_in_its_pod_is_lost(bed: Bed) -> None:
    """sriov_numvfs=0 while the interface is in a pod: no hang, the claim says so, and the return says so too."""
    vf, _ = bed.vf()
    bed.test_rdma("mlx5_0", vf)
    plan = bed.plan(bed.device(vf))
    pod = bed.pod()
    bed.attach(pod, plan)
    bed.no_vfs()
    eventually(lambda: link_of(pod, "net1") is None, "the interface gone from the pod")
    assert "mlx5_0" not in rdma_links()
    facts = bed.look(pod, plan)
    assert conditions(facts)["Ready"][0] == "False"
    (done,) = bed.detach(pod, plan)
    assert not done.home
    assert done.problems


def test_a_function_comes_home_from_a_namespace_that_is_deleted(bed: Bed) -> None:
    """The kernel brings it home under its pod's name, down; it is found by its function and restored."""
    vf, _ = bed.vf()
    run("ip", "link", "set", vf, "up")
    bed.test_rdma("mlx5_0", vf)
    plan = bed.plan(bed.device(vf))
    pod = bed.pod()
    bed.attach(pod, plan)
    bed.end(pod)
    eventually(lambda: "net1" in links(), "the interface home")
    assert "UP" not in links()["net1"]["flags"]
    (done,) = bed.detach(None, plan)
    assert done.home
    assert not done.problems
    assert "UP" in links()[vf]["flags"]
    assert bed.device(vf).rdma == "mlx5_0"


def test_json_of_the_rdma_command_is_what_it_was_measured_to_be(bed: Bed) -> None:
    """The test device shows the interface that it stands on, as a NIC's does."""
    vf, _ = bed.vf()
    bed.test_rdma("mlx5_0", vf)
    (shown,) = json.loads(run("rdma", "-j", "link", "show", "mlx5_0/1"))
    assert (shown["netdev"], shown["state"], shown["physical_state"]) == (vf, "ACTIVE", "LINK_UP")


def test_the_kernel_tells_of_rdma_devices_that_come_and_go(bed: Bed) -> None:
    """Register, with its interface, and unregister; this kernel is silent about a new name."""
    vf, _ = bed.vf()
    bed.test_rdma("warm", "-", "ib")
    with contextlib.closing(RdmaMonitor()) as monitor:
        seen: list[tuple[str, str]] = []
        bed.test_rdma("mlx5_0", vf)
        bed.rdma.append("mlx5_9")
        run("rdma", "dev", "set", "mlx5_0", "name", "mlx5_9")
        write(PARAMETERS / "remove", "mlx5_9")

        def gone() -> bool:
            seen.extend((event.kind, event.device) for event in monitor.receive())
            return any(kind == "unregister" for kind, _ in seen)

        eventually(gone, "the last event")
    kinds = [kind for kind, _ in seen]
    assert kinds.index("register") < kinds.index("unregister")
    assert "rename" not in kinds
    assert "attach" in kinds
    assert ("register", "mlx5_0") in seen
