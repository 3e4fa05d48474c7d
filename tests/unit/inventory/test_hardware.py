"""What the inventory takes from sysfs and the PCI database."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.inventory.attributes import RdmaFacts, SysfsFacts
from nri_dranet.inventory.hardware import Hardware
from nri_dranet.inventory.pcidb import PciDatabase
from nri_dranet.netlink.model import Link
from nri_dranet.netlink.nldev import RdmaPort

if TYPE_CHECKING:
    from pathlib import Path

PF = "0000:8a:00.0"
VF = "0000:8a:00.2"

IDS = """#
# comment
1234  Other
\t1017  Wrong
15b3  Mellanox Technologies
\t1017  MT27800 Family [ConnectX-5]
\t\t15b3 0008  A subsystem
\t1018  MT27800 Family [ConnectX-5 Virtual Function]
zzzz  Broken
\t1017  Lost
C 02  Network controller
\t00  Ethernet controller
"""


@pytest.fixture
def names(tmp_path: Path) -> PciDatabase:
    """A small PCI database."""
    (tmp_path / "pci.ids").write_text(IDS, encoding="utf-8")
    return PciDatabase([str(tmp_path / "none"), str(tmp_path / "pci.ids")])


def test_database(names: PciDatabase) -> None:
    """Vendors and devices are named, unknown ones are not, and only what was asked for is kept."""
    names.learn([0x15B3, -1])
    assert names.vendor(0x15B3) == "Mellanox Technologies"
    assert names.device(0x15B3, 0x1018) == "MT27800 Family [ConnectX-5 Virtual Function]"
    assert names.device(0x15B3, 0x9999) == ""
    assert names.vendor(0x1234) == ""
    names.learn([0x1234])
    assert names.device(0x1234, 0x1017) == "Wrong"


def test_database_packed_or_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A packed file is read; a broken one is told and the next is taken; ``PCIDB_PATH`` names the file."""
    (tmp_path / "bad.gz").write_bytes(b"no gzip")
    with gzip.open(tmp_path / "good.gz", "wb") as file:
        file.write(IDS.encode())
    found = PciDatabase([str(tmp_path / "bad.gz"), str(tmp_path / "good.gz")])
    found.learn([0x15B3])
    assert found.vendor(0x15B3) == "Mellanox Technologies"
    assert "cannot be read" in caplog.text
    monkeypatch.setenv("PCIDB_PATH", str(tmp_path / "good.gz"))
    named = PciDatabase()
    named.learn([0x15B3])
    assert named.vendor(0x15B3) == "Mellanox Technologies"


def test_interface_of_a_physical_function(tree: Any, names: PciDatabase) -> None:
    """A NIC has its function, speed, SR-IOV numbers and RDMA device."""
    folder = tree.function(PF, numa=0, sriov_totalvfs=8, sriov_numvfs=1)
    tree.interface("ens1", folder)
    tree.write(f"{folder}/net/ens1/speed", 100000)
    tree.rdma("mlx5_0", folder, interface="ens1")
    hardware = Hardware(tree.sysfs, names)
    hardware.look()
    assert hardware.interface(Link(index=2, name="ens1")) == SysfsFacts(
        virtual=False,
        function=PF,
        parent=PF,
        sriov_total_vfs=8,
        sriov_num_vfs=1,
        rdma="mlx5_0",
        speed=100000,
    )
    facts = hardware.function_facts(PF)
    assert facts is not None
    assert (facts.vendor, facts.device) == ("Mellanox Technologies", "MT27800 Family [ConnectX-5]")
    assert (facts.driver, facts.subsystem, facts.pcie_root) == ("mlx5_core", "0008", "pci0000:80")
    assert (facts.numa_node, facts.several_nodes) == (0, False)
    assert hardware.rdma_facts("mlx5_0") == RdmaFacts(
        name="mlx5_0", link_layer="Ethernet", port_state="ACTIVE", port_guid="0002:c903:00a1:2b3c"
    )
    assert hardware.rdma_facts("other") == RdmaFacts(name="other")
    assert hardware.rdma_facts(None) is None


def test_virtual_function(tree: Any, names: PciDatabase) -> None:
    """A VF says which physical function it belongs to, and its place there."""
    parent = tree.function(PF)
    folder = tree.function(VF)
    tree.link(f"{folder}/physfn", parent)
    tree.function("0000:8a:00.1")
    tree.link(f"{parent}/virtfn0", "devices/pci0000:80/0000:8a:00.1")
    tree.link(f"{parent}/virtfn1", folder)
    tree.interface("ens1v1", folder)
    hardware = Hardware(tree.sysfs, names)
    hardware.look()
    assert hardware.interface(Link(index=2, name="ens1v1")).is_vf
    facts = hardware.function_facts(VF)
    assert facts is not None
    assert (facts.physical_function, facts.vf_index) == (PF, 1)


def test_usb_interface(tree: Any, names: PciDatabase) -> None:
    """An interface on a bus behind a PCI function of another class has no function, but a place in the machine."""
    folder = tree.function("0000:00:14.0", class_code=0x0C0330, driver="xhci_hcd", numa=0)
    tree.link("class/net/enx1", f"{folder}/usb1/1-1/1-1:1.0/net/enx1")
    hardware = Hardware(tree.sysfs, names)
    hardware.look()
    assert hardware.interface(Link(index=2, name="enx1")) == SysfsFacts(virtual=False, parent="0000:00:14.0")
    facts = hardware.function_facts("0000:00:14.0")
    assert facts is not None
    assert facts.numa_node == 0
    assert "0000:00:14.0" not in hardware.functions


def test_software_interface(tree: Any, names: PciDatabase) -> None:
    """An interface of software is virtual; also one that this sysfs does not show, if it has a kind."""
    tree.virtual("br0")
    tree.rdma("rxe0", "devices/virtual/infiniband-parent")
    tree.write("devices/virtual/infiniband-parent/infiniband/rxe0/parent", "br0")
    hardware = Hardware(tree.sysfs, names)
    hardware.look()
    assert hardware.interface(Link(index=2, name="br0", kind="bridge")) == SysfsFacts(rdma="rxe0")
    assert hardware.interface(Link(index=3, name="other", kind="tun")) == SysfsFacts()
    assert hardware.interface(Link(index=4, name="hidden")) == SysfsFacts(virtual=False)


def test_infiniband_interface_is_found_by_the_guid_of_its_port(tree: Any, names: PciDatabase) -> None:
    """Two RDMA devices on one function, one with two ports: the end of the hardware address tells whose it is."""
    folder = tree.function(PF, class_code=0x020700)
    tree.rdma("mlx5_1", folder, layer="InfiniBand", ports=2)
    tree.rdma("mlx5_0", folder, layer="InfiniBand")
    tree.write(f"{folder}/infiniband/mlx5_0/ports/1/gids/0", "fe80:0000:0000:0000:0002:c903:00ff:0001")
    start = "80:00:02:08:fe:80:00:00:00:00:00:00"
    addresses = {"ib0": "00:02:c9:03:00:a1:2b:3c", "ib1": "00:02:c9:03:00:a1:2b:3d", "ib2": "00:02:c9:03:00:ff:00:01"}
    for name in addresses:
        tree.interface(name, folder)
    hardware = Hardware(tree.sysfs, names)
    hardware.look()
    found = {
        name: hardware.interface(Link(index=2, name=name, type=32, address=f"{start}:{guid}")).rdma
        for name, guid in addresses.items()
    }
    assert found == {"ib0": "mlx5_1", "ib1": "mlx5_1", "ib2": "mlx5_0"}
    # An Ethernet address that ends alike is no GUID.
    assert hardware.interface(Link(index=2, name="other", address="02:c9:03:a1:2b:3d")).rdma is None


def test_infiniband_interface_without_a_function(tree: Any, names: PciDatabase) -> None:
    """The GUID is enough where there is no PCI function."""
    tree.rdma("hfi0", "devices/virtual/x", layer="InfiniBand")
    tree.virtual("ib0")
    hardware = Hardware(tree.sysfs, names)
    hardware.look()
    link = Link(index=2, name="ib0", type=32, address="80:00:02:08:fe:80:00:00:00:00:00:00:00:02:c9:03:00:a1:2b:3c")
    assert hardware.interface(link).rdma == "hfi0"


def test_the_kernels_word_for_a_port_counts(tree: Any, names: PciDatabase) -> None:
    """The iWARP of software has no parent, and before Linux 6.5 no GID that names its interface: netlink tells."""
    tree.rdma("siw0", "devices/virtual/x")
    tree.virtual("eth1")
    ask = [RdmaPort(device_index=0, device="siw0", port=1, netdev_index=7, netdev="eth1")]
    hardware = Hardware(tree.sysfs, names, ask=lambda: ask)
    hardware.look()
    assert hardware.interface(Link(index=7, name="eth1", kind="veth")).rdma == "siw0"


def test_several_ports(tree: Any, names: PciDatabase) -> None:
    """One port that works is enough; the state of each counts as a change."""
    folder = tree.function(PF)
    tree.rdma("mlx4_0", folder, ports=2)
    tree.write(f"{folder}/infiniband/mlx4_0/ports/1/state", "1: DOWN")
    hardware = Hardware(tree.sysfs, names)
    hardware.look()
    facts = hardware.rdma_facts("mlx4_0")
    assert facts is not None
    assert (facts.port_state, facts.port_guid) == ("ACTIVE", "0002:c903:00a1:2b3c")
    assert not hardware.rdma_changed()
    tree.write(f"{folder}/infiniband/mlx4_0/ports/2/state", "2: INIT")
    assert hardware.rdma_changed()
    hardware.look()
    assert not hardware.rdma_changed()
    facts = hardware.rdma_facts("mlx4_0")
    assert facts is not None
    assert facts.port_state == "DOWN"


def test_functions_that_cannot_be_used(tree: Any, names: PciDatabase) -> None:
    """Functions without driver, given to user space or of another class are none; RDMA of another class is one."""
    tree.function("0000:01:00.0", driver="")
    tree.function("0000:01:00.1", driver="vfio-pci")
    tree.function("0000:01:00.2", class_code=0x010802, driver="nvme")
    erdma = tree.function("0000:01:00.3", class_code=0x00FF00, driver="erdma")
    tree.rdma("erdma_0", erdma)
    tree.function("0000:01:00.4")
    hardware = Hardware(tree.sysfs, names)
    hardware.look()
    assert sorted(hardware.functions) == ["0000:01:00.3", "0000:01:00.4"]


def test_function_plugged_in_later(tree: Any, names: PciDatabase) -> None:
    """The interface of a function that came after the last look is known at once."""
    hardware = Hardware(tree.sysfs, names)
    hardware.look()
    tree.interface("ens1", tree.function(PF))
    assert hardware.interface(Link(index=2, name="ens1")).function == PF
    assert PF in hardware.functions
    assert hardware.function_facts("0000:99:00.0") is None


def test_near_numa_nodes(tree: Any, names: PciDatabase) -> None:
    """With several nodes the near ones are those of the same socket at the smallest distance."""
    for node, distances, package in (
        (0, "10 11 12 21", 0),
        (1, "11 10 12 21", 0),
        (2, "12 12 10 21", 0),
        (3, "21 21 21 10", 1),
    ):
        tree.write(f"devices/system/node/node{node}/distance", distances)
        tree.write(f"devices/system/node/node{node}/cpulist", f"{node}")
        tree.write(f"devices/system/cpu/cpu{node}/topology/physical_package_id", package)
    for number, node in enumerate((0, 2, 3)):
        tree.function(f"0000:0{number}:00.0", numa=node)
    hardware = Hardware(tree.sysfs, names)
    hardware.look()
    nodes = [facts.numa_nodes for address in sorted(hardware.functions) if (facts := hardware.function_facts(address))]
    assert nodes == [(0, 1), (2, 0, 1), (3,)]
    assert all(facts.several_nodes for facts in hardware.facts.values())


def test_look_that_fails(tree: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at the hardware that breaks off leaves what is known as it was."""
    tree.rdma("mlx5_0", tree.function(PF), interface="ens1")
    found = Hardware(tree.sysfs, PciDatabase([]))
    found.look()
    before = (found.functions, found.facts, found.rdma, found.rdma_of_interface)

    def fail(*_: Any) -> Any:
        raise OSError(24, "on purpose")

    monkeypatch.setattr(type(tree.sysfs), "pci_devices", fail)
    with pytest.raises(OSError, match="on purpose"):
        found.look()
    assert (found.functions, found.facts, found.rdma, found.rdma_of_interface) == before
