"""sysfs, read from a tree like the kernel's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nri_dranet.sysfs import CharDevice, RdmaPort, Sysfs, pci_address_in, root_in

if TYPE_CHECKING:
    from collections.abc import Callable

PF = "0000:01:00.0"
VF = "0000:01:10.0"
ROOT_PORT = "devices/pci0000:00/0000:00:05.0"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], None]:
    """Write a file below the root."""

    def run(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text + "\n")

    return run


@pytest.fixture
def link(tmp_path: Path) -> Callable[[str, str], None]:
    """Make a relative link below the root, as the kernel's are."""

    def run(path: str, target: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / target).mkdir(parents=True, exist_ok=True)
        # Relative to where the link's folder really is: some folders on the way are links.
        folder = (tmp_path / path).parent.resolve()
        (folder / Path(path).name).symlink_to(os.path.relpath(tmp_path / target, folder))

    return run


@pytest.fixture
def sysfs(tmp_path: Path, write: Callable[[str, str], None], link: Callable[[str, str], None]) -> Sysfs:
    """Give a node with an SR-IOV NIC (one VF), RDMA on the VF, a virtio NIC, a software link and rxe on it."""
    lay_pci(write, link)
    lay_rdma(write, link)
    (tmp_path / f"{ROOT_PORT}/{VF}/infiniband/mlx5_1/ports/1/gid_attrs/ndevs/10").mkdir()
    for node, distances in ((0, "10 21"), (1, "21 10")):
        write(f"devices/system/node/node{node}/distance", distances)
        write(f"devices/system/node/node{node}/cpulist", f"{node * 4}-{node * 4 + 3}")
        write(f"devices/system/cpu/cpu{node * 4}/topology/physical_package_id", str(node))
    write("devices/system/node/node2/cpulist", "")
    return Sysfs(tmp_path)


def lay_pci(write: Callable[[str, str], None], link: Callable[[str, str], None]) -> None:
    """Write the PCI functions and interfaces."""
    for address, code, device in ((PF, "0x020000", "0x10c9"), (VF, "0x020000", "0x10ca")):
        folder = f"{ROOT_PORT}/{address}"
        link(f"bus/pci/devices/{address}", folder)
        for name, text in (
            ("class", code),
            ("vendor", "0x8086"),
            ("device", device),
            ("subsystem_device", "0x0001"),
            ("numa_node", "1"),
        ):
            write(f"{folder}/{name}", text)
    write(f"{ROOT_PORT}/{PF}/sriov_totalvfs", "7")
    write(f"{ROOT_PORT}/{PF}/sriov_numvfs", "1")
    link(f"{ROOT_PORT}/{PF}/virtfn0", f"{ROOT_PORT}/{VF}")
    link(f"{ROOT_PORT}/{VF}/physfn", f"{ROOT_PORT}/{PF}")
    link(f"{ROOT_PORT}/{PF}/driver", "bus/pci/drivers/igb")
    for name, address in (("eth1", PF), ("eth2", VF)):
        folder = f"{ROOT_PORT}/{address}/net/{name}"
        link(f"class/net/{name}", folder)
        link(f"{folder}/device", f"{ROOT_PORT}/{address}")
    write(f"{ROOT_PORT}/{PF}/net/eth1/speed", "100000")
    write(f"{ROOT_PORT}/{VF}/net/eth2/speed", "-1")

    folder = "devices/pci0000:00/0000:00:03.0"
    link("bus/pci/devices/0000:00:03.0", folder)
    write(f"{folder}/class", "0x010000")
    write(f"{folder}/numa_node", "-1")
    link("class/net/eth0", f"{folder}/virtio2/net/eth0")
    link("class/net/lo", "devices/virtual/net/lo")
    link("class/net/d0", "devices/virtual/net/d0")
    write("class/net/bonding_masters", "")


def lay_rdma(write: Callable[[str, str], None], link: Callable[[str, str], None]) -> None:
    """Write the RDMA devices and their character devices."""
    folder = f"{ROOT_PORT}/{VF}/infiniband/mlx5_1"
    link("class/infiniband/mlx5_1", folder)
    write(f"{folder}/node_guid", "506b:4b03:00f7:e9aa")
    write(f"{folder}/fw_ver", "16.35.3006")
    for port, state, physical in ((2, "1: DOWN", "3: Disabled"), (1, "4: ACTIVE", "5: LinkUp"), (10, "", "")):
        write(f"{folder}/ports/{port}/state", state)
        write(f"{folder}/ports/{port}/phys_state", physical)
        write(f"{folder}/ports/{port}/link_layer", "Ethernet")
    write(f"{folder}/ports/1/gid_attrs/ndevs/0", "eth2")
    write(f"{folder}/ports/1/gid_attrs/ndevs/1", "eth2")
    write(f"{folder}/ports/1/gid_attrs/ndevs/2", "vlan7")

    folder = "devices/virtual/infiniband/rxe0"
    link("class/infiniband/rxe0", folder)
    write(f"{folder}/parent", "d0")

    for name, device, numbers in (("uverbs0", "rxe0", "231:192"), ("uverbs1", "mlx5_1", "231:193")):
        write(f"devices/x/infiniband_verbs/{name}/ibdev", device)
        write(f"devices/x/infiniband_verbs/{name}/dev", numbers)
        link(f"class/infiniband_verbs/{name}", f"devices/x/infiniband_verbs/{name}")
    write("class/infiniband_verbs/abi_version", "6")
    for name, numbers in (("umad1", "231:1"), ("issm1", "231:65"), ("umad9", "broken")):
        write(f"class/infiniband_mad/{name}/ibdev", "mlx5_1")
        write(f"class/infiniband_mad/{name}/dev", numbers)
    write("class/misc/rdma_cm/dev", "10:122")


def test_a_physical_function(sysfs: Sysfs) -> None:
    """All facts of an SR-IOV physical function."""
    found = sysfs.pci_device(PF)
    assert found is not None
    assert (found.address, found.path) == (PF, f"{ROOT_PORT}/{PF}")
    assert (found.base_class, found.class_code, found.vendor, found.device) == (2, 0x020000, 0x8086, 0x10C9)
    assert found.subsystem_device == 1
    assert (found.driver, found.numa_node, found.pcie_root) == ("igb", 1, "pci0000:00")
    assert (found.sriov_total_vfs, found.sriov_num_vfs) == (7, 1)
    assert (found.physical_function, found.infiniband) == (None, ())


def test_a_virtual_function(sysfs: Sysfs) -> None:
    """It names its physical function; it has no functions of its own, no driver link here, an RDMA device."""
    found = sysfs.pci_device(VF)
    assert found is not None
    assert (found.physical_function, found.sriov_total_vfs) == (PF, 0)
    assert (found.driver, found.infiniband) == ("", ("mlx5_1",))
    assert sysfs.virtual_functions(VF) == ()
    assert sysfs.virtual_functions(PF) == (VF,)
    assert sysfs.is_sriov_vf("eth2") is True
    assert sysfs.is_sriov_vf("eth1") is False
    assert sysfs.physical_interfaces("eth2") == ("eth1",)


def test_virtual_functions_are_in_the_order_of_their_index(sysfs: Sysfs, link: Callable[[str, str], None]) -> None:
    """Ten comes after nine."""
    for number in range(1, 12):
        link(f"{ROOT_PORT}/{PF}/virtfn{number}", f"{ROOT_PORT}/0000:01:1{number // 8}.{number % 8}")
    found = sysfs.virtual_functions(PF)
    assert len(found) == 12
    assert found[2] == "0000:01:10.2"
    assert found[10] == "0000:01:11.2"


def test_pci_functions_are_listed_by_class(sysfs: Sysfs) -> None:
    """Only the classes asked for are read in full."""
    assert [one.address for one in sysfs.pci_devices({2})] == [PF, VF]
    assert [one.address for one in sysfs.pci_devices()] == ["0000:00:03.0", PF, VF]
    assert sysfs.pci_devices(frozenset()) == ()


def test_functions_that_are_not_there(sysfs: Sysfs) -> None:
    """An unknown or malformed address has no device and no functions."""
    for address in ("0000:99:00.0", "eth0", "../../etc", ""):
        assert sysfs.pci_device(address) is None
        assert sysfs.virtual_functions(address) == ()


def test_a_node_number_below_zero_is_no_node(sysfs: Sysfs) -> None:
    """-1 stands for none; numbers that are not there are -1."""
    found = sysfs.pci_device("0000:00:03.0")
    assert found is not None
    assert (found.numa_node, found.vendor) == (None, -1)


def test_interfaces(sysfs: Sysfs) -> None:
    """Their folder, below which the PCI function above them is found, also across another bus."""
    assert sysfs.net_device_path("eth1") == f"{ROOT_PORT}/{PF}/net/eth1"
    assert sysfs.net_device_path("eth0") == "devices/pci0000:00/0000:00:03.0/virtio2/net/eth0"
    assert sysfs.net_device_path("lo") == "devices/virtual/net/lo"
    assert sysfs.net_device_path("none") is None


@pytest.mark.parametrize("name", ["", ".", "..", "../../x", "a/b", "a\0b"])
def test_names_that_would_lead_elsewhere_have_no_facts(sysfs: Sysfs, name: str) -> None:
    """No name opens a file outside of its class."""
    assert sysfs.net_device_path(name) is None
    assert sysfs.speed(name) is None
    assert sysfs.is_sriov_vf(name) is False
    assert sysfs.physical_interfaces(name) == ()
    assert sysfs.rdma_device(name) is None
    assert sysfs.rdma_interfaces(name) == ()


def test_a_speed_that_is_not_told(sysfs: Sysfs, write: Callable[[str, str], None]) -> None:
    """Unknown, unsigned unknown, unreadable and nonsense are None."""
    assert (sysfs.speed("eth1"), sysfs.speed("eth2"), sysfs.speed("lo")) == (100000, None, None)
    write("devices/virtual/net/lo/speed", "4294967295")
    assert sysfs.speed("lo") is None
    write("devices/virtual/net/lo/speed", "fast")
    assert sysfs.speed("lo") is None


def test_a_link_that_is_down_refuses_its_speed_on_the_real_kernel() -> None:
    """The real loopback answers EINVAL, which is no error here."""
    assert Sysfs().speed("lo") is None


def test_numa(sysfs: Sysfs) -> None:
    """Nodes, distances, and the socket of a node's first CPU; a node of memory alone has no socket."""
    assert sysfs.numa_nodes() == (0, 1, 2)
    assert sysfs.numa_distances(1) == (21, 10)
    assert sysfs.numa_distances(2) == ()
    assert (sysfs.numa_package(0), sysfs.numa_package(1), sysfs.numa_package(2)) == (0, 1, None)


def test_an_rdma_device(sysfs: Sysfs) -> None:
    """Ports in the order of their numbers, states without theirs."""
    assert sysfs.rdma_names() == ("mlx5_1", "rxe0")
    found = sysfs.rdma_device("mlx5_1")
    assert found is not None
    assert (found.pci_address, found.node_guid) == (VF, "506b:4b03:00f7:e9aa")
    assert (found.firmware, found.parent) == ("16.35.3006", None)
    assert found.ports == (
        RdmaPort(number=1, state="ACTIVE", physical_state="LinkUp", link_layer="Ethernet"),
        RdmaPort(number=2, state="DOWN", physical_state="Disabled", link_layer="Ethernet"),
        RdmaPort(number=10, state="", physical_state="", link_layer="Ethernet"),
    )
    assert sysfs.rdma_interfaces("mlx5_1") == ("eth2", "vlan7")


def test_a_software_rdma_device(sysfs: Sysfs) -> None:
    """It stands on an interface and has no PCI function."""
    found = sysfs.rdma_device("rxe0")
    assert found is not None
    assert (found.parent, found.pci_address, found.ports, found.node_guid) == ("d0", None, (), "")
    assert sysfs.rdma_interfaces("rxe0") == ()
    assert sysfs.rdma_device("mlx5_9") is None


def test_the_character_devices_of_an_rdma_device(sysfs: Sysfs) -> None:
    """Those of the device, and rdma_cm; an entry with broken numbers is left out."""
    found = sysfs.rdma_char_devices("mlx5_1")
    assert found == (
        CharDevice(name="uverbs1", major=231, minor=193),
        CharDevice(name="issm1", major=231, minor=65),
        CharDevice(name="umad1", major=231, minor=1),
        CharDevice(name="rdma_cm", major=10, minor=122),
    )
    assert found[0].path == "/dev/infiniband/uverbs1"
    assert [one.name for one in sysfs.rdma_char_devices("rxe0")] == ["uverbs0", "rdma_cm"]


def test_an_empty_tree_has_nothing(tmp_path: Path) -> None:
    """A kernel without PCI, RDMA and NUMA is no error."""
    empty = Sysfs(tmp_path)
    for call in (empty.pci_devices, empty.rdma_names, empty.numa_nodes):
        assert call() == ()
    assert empty.rdma_char_devices("mlx5_0") == ()


def test_absolute_links_are_understood(tmp_path: Path, sysfs: Sysfs) -> None:
    """A link by its full path counts like a relative one."""
    (tmp_path / "class/net/abs").symlink_to(tmp_path / "devices/virtual/net/lo")
    assert sysfs.net_device_path("abs") == "devices/virtual/net/lo"


def test_errors_of_ours_are_raised(sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many open files is no missing fact."""

    def full(*_: object) -> int:
        raise OSError(24, "Too many open files")

    for name in ("open", "listdir", "readlink"):
        monkeypatch.setattr(os, name, full)
    for call in (lambda: sysfs.read_text("x"), lambda: sysfs.listing("x"), lambda: sysfs.target("x")):
        with pytest.raises(OSError, match="Too many open files"):
            call()


def test_the_nearest_address_counts() -> None:
    """A function behind a bridge is the device's, the first root its root."""
    path = "devices/pci0000:00/0000:00:0e.0/pci10000:e1/10000:e1:00.0/10000:e2:00.1/net/eth0"
    assert pci_address_in(path) == "10000:e2:00.1"
    assert root_in(path) == "pci0000:00"
    assert pci_address_in("devices/virtual/net/0000:00:00") is None
    assert root_in("devices/platform/x") is None
