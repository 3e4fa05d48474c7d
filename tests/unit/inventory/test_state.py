"""From what the kernel tells to devices."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.inventory.attributes import Programs
from nri_dranet.inventory.hardware import Hardware
from nri_dranet.inventory.pcidb import PciDatabase
from nri_dranet.inventory.state import NodeState, Policy
from nri_dranet.netlink.model import Address, Link
from nri_dranet.telemetry import metrics

if TYPE_CHECKING:
    from nri_dranet.inventory.device import Device

PF = "0000:8a:00.0"
BARE = "pci-0000-8a-00-0"


class Node:
    """A state, and what is told to it."""

    def __init__(self, tree: Any, policy: Policy | None = None) -> None:
        self.hardware = Hardware(tree.sysfs, PciDatabase([]))
        self.hardware.look()
        self.state = NodeState(hardware=self.hardware, policy=policy or Policy())

    def add(self, *links: Link) -> bool:
        """Take links in."""
        for link in links:
            self.state.link_changed(link)
        return self.state.rebuild()

    def remove(self, index: int) -> bool:
        """Take a link out."""
        self.state.link_gone(index)
        return self.state.rebuild()

    def address(self, index: int, text: str, *, gone: bool = False) -> bool:
        """Take an address in or out."""
        self.state.address_changed(Address(family=2, address=text, prefix_length=24, index=index), gone=gone)
        return self.state.rebuild()

    def programs(self, index: int, programs: Programs) -> bool:
        """Take programs in."""
        self.state.programs_changed(index, programs)
        return self.state.rebuild()

    def look(self) -> bool:
        """Look at the hardware anew."""
        self.hardware.look()
        self.state.hardware_changed()
        return self.state.rebuild()

    def hold(self, held: dict[str, Any]) -> bool:
        """Tell which devices are in pods."""
        self.state.held_changed(held)
        return self.state.rebuild()

    def refused(self) -> dict[str, str]:
        """Return why each device may not be given away."""
        return {name: device.refused for name, device in sorted(self.state.devices.items())}

    def device(self, name: str) -> Device:
        """Return a device."""
        return self.state.devices[name]


def tap(index: int, name: str, **more: Any) -> Link:
    """Return a link of software."""
    return Link(index=index, name=name, kind="tun", **more)


def held(name: str, address: str, interface: str) -> dict[str, Any]:
    """Return a device as it was published before it went into a pod."""
    attributes = {"dra.net/pciAddress": {"string": address}, "dra.net/ifName": {"string": interface}}
    return {name: {"name": name, "attributes": attributes}}


def test_link_comes_changes_and_goes(tree: Any) -> None:
    """A link is a device while it is there; the same again is no change."""
    node = Node(tree)
    assert node.add(tap(2, "eth1"))
    assert not node.add(tap(2, "eth1"))
    assert not node.add(tap(2, "eth1", txqlen=500))
    assert node.add(tap(2, "eth1", mtu=1400))
    assert node.device("eth1").attributes["dra.net/mtu"] == {"int": 1400}
    assert node.remove(2)
    assert not node.remove(2)
    assert node.refused() == {}


def test_rename_is_another_device(tree: Any) -> None:
    """A renamed link is another device; two that swap names in one burst are both there."""
    node = Node(tree)
    node.add(tap(2, "eth1"), tap(3, "eth2"))
    node.add(tap(2, "eth9"))
    assert list(node.refused()) == ["eth2", "eth9"]
    node.add(tap(2, "tmp"), tap(3, "eth9"), tap(2, "eth2"))
    assert {name: device.link.index for name, device in node.state.devices.items() if device.link} == {
        "eth2": 2,
        "eth9": 3,
    }


def test_addresses_and_programs(tree: Any) -> None:
    """Addresses and programs are attributes; those of an unknown link are passed over."""
    node = Node(tree)
    node.add(tap(2, "eth1"))
    assert node.address(2, "10.0.0.1")
    assert not node.address(2, "10.0.0.1")
    assert node.device("eth1").attributes["dra.net/ipv4"] == {"string": "10.0.0.1/24"}
    assert node.address(2, "10.0.0.1", gone=True)
    assert not node.address(9, "10.0.0.1")
    assert node.programs(2, Programs(filters=("a",)))
    assert not node.programs(2, Programs(filters=("a",)))
    assert node.device("eth1").attributes["dra.net/tcFilterNames"] == {"string": "a"}
    assert node.programs(2, Programs())
    assert not node.programs(9, Programs(filters=("a",)))
    assert node.device("eth1").attributes["dra.net/ebpf"] == {"bool": False}


def test_whole_dump(tree: Any) -> None:
    """A dump brings what is new, takes what is gone, and says which interfaces changed."""
    node = Node(tree)
    node.add(tap(2, "eth1"), tap(3, "eth2"))
    address = Address(family=2, address="10.0.0.1", prefix_length=24, index=3)
    node.state.replace([tap(3, "eth2"), tap(4, "eth3")], [address])
    assert node.state.pending == {2, 3, 4}
    assert node.state.rebuild()
    assert list(node.refused()) == ["eth2", "eth3"]
    node.state.replace([tap(3, "eth2"), tap(4, "eth3")], [address])
    assert node.state.pending == set()


def test_uplink_appears_and_moves(tree: Any) -> None:
    """The interface of a default route is refused from the moment it is known, and free again after."""
    node = Node(tree)
    node.add(tap(2, "eth1"), tap(3, "eth2"))
    node.state.defaults_changed({2: "an IPv4 default route leaves by it"})
    assert node.state.rebuild()
    assert node.refused() == {"eth1": "an IPv4 default route leaves by it", "eth2": ""}
    node.state.defaults_changed({3: "an IPv4 default route leaves by it"})
    assert node.state.rebuild()
    assert node.refused()["eth1"] == ""
    assert node.refused()["eth2"]


def test_uplink_gains_a_bond(tree: Any) -> None:
    """What is enslaved to an uplink, and what an uplink is moved onto, is refused with the same change."""
    node = Node(tree)
    node.add(tap(2, "eth1"), Link(index=3, name="bond0", kind="bond"))
    node.state.defaults_changed({3: "because"})
    node.state.rebuild()
    assert node.refused()["eth1"] == ""
    node.add(tap(2, "eth1", master=3))
    assert node.refused()["eth1"] == "it is a port of the uplink bond0"
    node.add(tap(2, "eth1"))
    assert node.refused()["eth1"] == ""
    node.add(Link(index=3, name="bond0", kind="vlan", lower=2))
    assert node.refused()["eth1"] == "the uplink bond0 stands on it"
    node.remove(3)
    assert node.refused() == {"eth1": ""}


def test_node_address(tree: Any) -> None:
    """The interface that carries the node's address is refused, whichever comes first; a host name is no address."""
    node = Node(tree)
    node.add(tap(2, "eth1"), tap(3, "eth2"))
    node.address(2, "10.0.0.1")
    node.state.node_addresses_changed(["node-1", "10.0.0.1"])
    node.state.rebuild()
    assert node.refused() == {"eth1": "it carries the node's address 10.0.0.1", "eth2": ""}
    node.address(2, "10.0.0.1", gone=True)
    node.address(3, "10.0.0.1")
    assert node.refused() == {"eth1": "", "eth2": "it carries the node's address 10.0.0.1"}
    node.remove(3)
    node.add(tap(4, "eth3"))
    assert node.refused() == {"eth1": "", "eth3": ""}


def test_allow_and_deny(tree: Any) -> None:
    """Only what is allowed is offered if there is such a list; deny wins; patterns, alternative names and PCI count."""
    tree.interface("ens1", tree.function(PF))
    node = Node(tree, Policy(allow=frozenset({"eth*", "alt", PF}), deny=frozenset({"eth2"})))
    node.add(tap(2, "eth1"), tap(3, "eth2"), tap(4, "x", altnames=("alt",)), tap(5, "y"), Link(index=6, name="ens1"))
    assert node.refused() == {
        "eth1": "",
        "eth2": "it is on the list of denied interfaces",
        BARE: "",
        "x": "",
        "y": "it is not on the list of allowed interfaces",
    }
    node.state.defaults_changed({2: "needed"})
    node.state.rebuild()
    assert node.refused()["eth1"] == "needed"


def test_function_with_its_interface(tree: Any) -> None:
    """The interface of a PCI function is named by it; while it is away the function is there, and refused."""
    folder = tree.function(PF, sriov_totalvfs=4, sriov_numvfs=0)
    tree.interface("ens1", folder)
    node = Node(tree)
    assert node.look()
    assert node.refused() == {BARE: "it has neither an interface on the host nor an RDMA device"}
    assert node.add(Link(index=2, name="ens1"))
    assert node.refused() == {BARE: ""}
    assert node.device(BARE).link is not None
    assert node.device(BARE).attributes["resource.kubernetes.io/pciBusID"] == {"string": PF}
    assert node.remove(2)
    assert node.device(BARE).link is None


def test_hardware_is_looked_at_again(tree: Any) -> None:
    """The number of VFs and what is plugged out shows after the next look, the speed with the link's event."""
    folder = tree.function(PF, sriov_totalvfs=4, sriov_numvfs=0)
    tree.interface("ens1", folder)
    node = Node(tree)
    node.add(Link(index=2, name="ens1"))
    tree.write(f"{folder}/sriov_numvfs", 4)
    assert node.look()
    assert node.device(BARE).attributes["dra.net/sriovVfs"] == {"int": 4}
    assert not node.look()
    tree.write(f"{folder}/net/ens1/speed", 25000)
    assert node.add(Link(index=2, name="ens1", operstate="up", carrier=True))
    assert node.device(BARE).attributes["dra.net/speed"] == {"int": 25000}
    node.remove(2)
    tree.unlink(f"bus/pci/devices/{PF}")
    assert node.look()
    assert node.refused() == {}


def test_rdma_device_without_interface(tree: Any) -> None:
    """A function with an RDMA device and no interface is offered for it."""
    folder = tree.function(PF, class_code=0x00FF00)
    tree.rdma("erdma_0", folder)
    node = Node(tree)
    node.look()
    assert node.refused() == {BARE: ""}
    assert node.device(BARE).rdma == "erdma_0"
    assert node.device(BARE).attributes["dra.net/rdmaDevice"] == {"string": "erdma_0"}


def test_ipoib_that_stays(tree: Any) -> None:
    """With ``--move-ib-interfaces=false`` an IPoIB interface is no device, and its function is offered for RDMA."""
    folder = tree.function(PF)
    tree.rdma("mlx5_0", folder, layer="InfiniBand")
    tree.interface("ib0", folder)
    ib0 = Link(index=2, name="ib0", kind="ipoib", type=32)
    node = Node(tree, Policy(move_ib_interfaces=False))
    node.add(ib0)
    node.look()
    assert node.device(BARE).link is None
    assert node.refused() == {BARE: ""}
    moving = Node(tree)
    moving.add(ib0)
    assert moving.device(BARE).link == ib0


def test_ipoib_child(tree: Any) -> None:
    """A child interface of IPoIB stands on its parent's function, and leaves the parent its name."""
    folder = tree.function(PF)
    tree.interface("ib0", folder)
    tree.interface("ib0.8001", folder)
    node = Node(tree)
    node.add(
        Link(index=2, name="ib0", kind="ipoib", type=32), Link(index=3, name="ib0.8001", kind="ipoib", type=32, lower=2)
    )
    assert len(node.refused()) == 2
    assert node.device(BARE).link is not None


def test_two_ports_on_one_function(tree: Any) -> None:
    """Interfaces that share a function have names of their own, and keep them while one is away."""
    folder = tree.function(PF)
    for name in ("ens1", "ens1d1"):
        tree.interface(name, folder)
    node = Node(tree)
    one, other = Link(index=2, name="ens1", phys_port_name="p0"), Link(index=3, name="ens1d1", phys_port_name="p1")
    node.add(one)
    assert list(node.refused()) == [BARE]
    node.add(other)
    assert list(node.refused()) == [f"{BARE}-p0", f"{BARE}-p1"]
    node.remove(3)
    assert list(node.refused()) == [f"{BARE}-p0"]
    node.add(Link(index=3, name="ens1d1", phys_port_name="p0"))
    assert list(node.refused()) == [f"{BARE}-ens1", f"{BARE}-ens1d1"]


def test_representors_leave_the_function_its_name(tree: Any) -> None:
    """A switch's ports for virtual functions are refused, and do not change the name of the function's interface."""
    folder = tree.function(PF)
    for name in ("ens1", "ens1_0"):
        tree.interface(name, folder)
    node = Node(tree)
    node.add(Link(index=2, name="ens1", phys_switch_id="ab", phys_port_name="p0"))
    node.add(Link(index=3, name="ens1_0", phys_switch_id="ab", phys_port_name="pf0vf0"))
    assert node.refused()[BARE] == ""
    assert "virtual function (pf0vf0)" in next(why for name, why in node.refused().items() if name != BARE)


def test_held_function(tree: Any) -> None:
    """While its interface is in a pod a function is not offered for RDMA alone; home again it has its old name."""
    folder = tree.function(PF)
    tree.rdma("mlx5_0", folder)
    tree.interface("ens1", folder)
    tree.interface("ens1d1", folder)
    node = Node(tree)
    name = f"{BARE}-ens1"
    node.add(Link(index=2, name="ens1"))
    node.hold(held(name, PF, "ens1"))
    assert list(node.refused()) == [name]
    node.remove(2)
    assert node.refused() == {}
    node.add(Link(index=3, name="ens1d1"))
    assert list(node.refused()) == [f"{BARE}-ens1d1"]
    node.add(Link(index=2, name="ens1"))
    assert list(node.refused()) == [name, f"{BARE}-ens1d1"]
    node.remove(2)
    node.remove(3)
    assert node.hold({})
    assert node.refused() == {BARE: ""}


def test_usb_nic_is_placed(tree: Any) -> None:
    """A NIC behind a PCI function of another class is named by its interface and says where it is plugged in."""
    folder = tree.function("0000:00:14.0", class_code=0x0C0330, driver="xhci_hcd", numa=0)
    tree.link("class/net/enx1", f"{folder}/usb1/1-1/1-1:1.0/net/enx1")
    node = Node(tree)
    node.add(Link(index=2, name="enx1"))
    found = node.device("enx1")
    assert found.pci_address is None
    assert found.attributes["resource.kubernetes.io/numaNode"] == {"int": 0}
    assert found.attributes["dra.net/virtual"] == {"bool": False}
    assert "dra.net/pciAddress" not in found.attributes


def test_dropped_attribute_is_told_once(tree: Any, caplog: pytest.LogCaptureFixture) -> None:
    """An alias that is too long is left out of this device alone: one line, one count, and no second."""
    node = Node(tree)
    before = metrics.ATTRIBUTES_DROPPED.labels("dra.net/alias")._value.get()
    node.add(tap(2, "eth1", alias="a" * 200), tap(3, "eth2"))
    node.add(tap(2, "eth1", alias="a" * 200, mtu=1400))
    assert "dra.net/alias" not in node.device("eth1").attributes
    assert "dra.net/alias" in node.device("eth2").attributes
    assert metrics.ATTRIBUTES_DROPPED.labels("dra.net/alias")._value.get() == before + 1
    assert len([record for record in caplog.records if "left out" in record.message]) == 1
    for number in range(5000):
        node.state._told.add(("x", str(number)))
    node.add(tap(3, "eth2", alias="b" * 200))
    assert len(node.state._told) == 1


def test_one_event_touches_one_device(tree: Any) -> None:
    """The change of one link is computed from that link alone, however many there are."""
    node = Node(tree)
    node.add(*(tap(index, f"t{index}") for index in range(2, 300)))
    node.state.link_changed(tap(5, "t5", mtu=1400))
    assert node.state.pending == {5}


class Fault:
    """Makes reading an interface from sysfs fail while it is on."""

    def __init__(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on = False
        self._real = node.hardware.interface
        monkeypatch.setattr(Hardware, "interface", lambda _self, link: self.read(link))

    def read(self, link: Link) -> Any:
        """Read it, or fail."""
        if self.on:
            raise OSError(errno.EIO, "sysfs is broken")
        return self._real(link)


def test_a_link_that_cannot_be_read_is_not_known(tree: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """When sysfs fails for a new link nothing of it is taken in, and the next dump takes it in whole."""
    node = Node(tree)
    fault = Fault(node, monkeypatch)
    fault.on = True
    with pytest.raises(OSError, match="sysfs is broken"):
        node.add(tap(2, "eth1"))
    assert node.state.links == {}
    fault.on = False
    node.state.replace([tap(2, "eth1")], [])
    assert node.state.rebuild()
    assert node.refused() == {"eth1": ""}


def test_what_was_told_before_a_failure_is_not_lost(tree: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that went before another one failed is withdrawn with the next change, whatever that is about."""
    node = Node(tree)
    node.add(tap(2, "eth1"), tap(3, "eth2"))
    fault = Fault(node, monkeypatch)
    fault.on = True
    node.state.link_gone(2)
    with pytest.raises(OSError, match="sysfs is broken"):
        node.add(tap(4, "eth3"))
    fault.on = False
    assert node.address(3, "10.0.0.1")
    assert list(node.refused()) == ["eth2"]


def test_devices_that_could_not_be_made_are_made_later(tree: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails while devices are made anew stays pending, and news of those already made is told once."""
    node = Node(tree)
    node.add(tap(2, "eth1"), tap(3, "eth2"))
    real = NodeState._device
    broken = {3}

    def device(state: NodeState, link: Link) -> Any:
        if link.index in broken:
            raise OSError(errno.EIO, "sysfs is broken")
        return real(state, link)

    monkeypatch.setattr(NodeState, "_device", device)
    with pytest.raises(OSError, match="sysfs is broken"):
        node.add(tap(2, "eth1", mtu=1400), tap(3, "eth2", mtu=1400))
    assert 3 in node.state.pending
    broken.clear()
    assert node.state.rebuild()
    assert [node.device(name).attributes["dra.net/mtu"] for name in ("eth1", "eth2")] == [{"int": 1400}] * 2
    assert not node.state.rebuild()
