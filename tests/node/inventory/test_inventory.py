"""The inventory against the real kernel: what appears, changes and goes is known by events alone."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import threading
from typing import TYPE_CHECKING, Any

from nri_dranet.inventory.state import Policy
from nri_dranet.netlink import codec
from nri_dranet.netlink.sockets import NETLINK_ROUTE, EventsLostError
from nri_dranet.netlink.transport import KernelSocket
from nri_dranet.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

GATEWAY = "10.66.0.1"


def resyncs() -> float:
    """Return how many full scans there were."""
    return sum(
        sample.value
        for family in metrics.INVENTORY_RESYNCS.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    )


def test_devices_of_a_new_node(make_node: Callable[..., Any]) -> None:
    """What is there at the start is found by the first scan, and loopback and bridge are refused with the reason."""
    node = make_node()
    node.ip("link add br0 type bridge")
    node.ip("link add eth1 type veth peer name eth1p")
    node.ip("link set eth1p master br0")
    node.start()
    refused = {device.name: device.refused for device in node.inventory.devices()}
    assert refused["eth1"] == ""
    assert "loopback" in refused["lo"]
    assert "bridge leave" in refused["br0"]
    assert refused["eth1p"] == "it is a port of br0, a bridge"


def test_link_appears_changes_and_goes(node: Any) -> None:
    """A new, renamed, changed and removed link is followed without a scan."""
    scans = resyncs()
    node.ip("link add eth1 mtu 1480 type veth peer name eth1p")
    node.until(lambda: node.find("eth1"))
    assert (node.value("eth1", "mtu"), node.value("eth1", "type"), node.value("eth1", "state")) == (
        1480,
        "veth",
        "down",
    )
    node.ip("link set eth1p up")
    node.ip("link set eth1 up")
    node.until(lambda: node.value("eth1", "state") == "up")
    node.ip("link set eth1 alias hello")
    node.until(lambda: node.value("eth1", "alias") == "hello")
    node.ip("link set eth1 down")
    node.ip("link set eth1 name Eth_2")
    node.until(lambda: node.value("net-iv2gqxzs", "ifName") == "Eth_2")
    assert node.find("eth1") is None
    node.ip("link del Eth_2")
    node.until(lambda: not node.find("net-iv2gqxzs") and not node.find("eth1p"))
    assert resyncs() == scans


def test_addresses_follow(node: Any) -> None:
    """Addresses of both families appear and go with their events."""
    node.ip("link add eth1 type veth peer name eth1p")
    node.ip("addr add 10.71.0.2/24 dev eth1")
    node.ip("addr add 10.71.0.1/24 dev eth1")
    node.ip("addr add fd71::2/64 dev eth1 nodad")
    node.until(lambda: node.value("eth1", "ipv4") == "10.71.0.1/24,10.71.0.2/24")
    node.until(lambda: node.value("eth1", "ipv6") == "fd71::2/64")
    node.ip("addr flush dev eth1")
    node.until(lambda: node.value("eth1", "ipv4") is None and node.value("eth1", "ipv6") is None)


def test_default_route_appears_moves_and_goes(node: Any) -> None:
    """The interface of every default route is refused while the route is there, whatever its metric."""
    for number in (1, 2):
        node.ip(f"link add eth{number} type veth peer name p{number}")
        node.ip(f"addr add 10.66.{number}.2/24 dev eth{number}")
        node.ip(f"link set p{number} up")
        node.ip(f"link set eth{number} up")
    node.ip("route add default via 10.66.1.1 dev eth1")
    node.until(lambda: node.refused("eth1") == "an IPv4 default route leaves by it")
    index = node.find("eth1").link.index
    assert node.inventory.is_uplink(index) == "an IPv4 default route leaves by it"
    node.ip("route add default via 10.66.2.1 dev eth2 metric 900")
    node.until(lambda: node.refused("eth2"))
    assert node.refused("eth1")
    node.ip("route del default via 10.66.1.1")
    node.until(lambda: not node.refused("eth1"))
    assert node.refused("eth2")
    assert node.inventory.is_uplink(index) == ""
    node.ip("-6 route add default dev eth1")
    node.until(lambda: node.refused("eth1") == "an IPv6 default route leaves by it")


def test_route_that_vanishes_silently(node: Any) -> None:
    """An interface that goes down loses its IPv4 routes without an event, and is free again all the same."""
    node.ip("link add eth1 type veth peer name p1")
    node.ip("link set p1 up")
    node.ip("addr add 10.66.0.2/24 dev eth1")
    node.ip("link set eth1 up")
    node.ip(f"route add default via {GATEWAY}")
    node.until(lambda: node.refused("eth1"))
    node.ip("link set eth1 down")
    node.until(lambda: not node.refused("eth1"))


def test_everything_below_the_uplink(node: Any) -> None:
    """A macvlan with the default route needs its parent; a bridge with it needs its ports, also a later one."""
    node.ip("link add eth1 type veth peer name p1")
    node.ip("link set p1 up")
    node.ip("link set eth1 up")
    node.ip("link add mv0 link eth1 type macvlan mode bridge")
    node.ip("addr add 10.66.0.2/24 dev mv0")
    node.ip("link set mv0 up")
    node.ip(f"route add default via {GATEWAY} dev mv0")
    node.until(lambda: node.refused("eth1") == "the uplink mv0 stands on it")
    assert node.refused("p1") == ""
    node.ip("link del mv0")
    node.until(lambda: node.refused("eth1") == "")
    node.ip("link add br0 type bridge")
    node.ip("addr add 10.66.0.2/24 dev br0")
    node.ip("link set br0 up")
    node.ip(f"route add default via {GATEWAY} dev br0")
    node.ip("link set eth1 master br0")
    node.until(lambda: node.refused("eth1") == "it is a port of the uplink br0")


def test_vxlan_uplink_needs_what_it_sends_by(node: Any) -> None:
    """A VXLAN with the default route needs its underlay, which the kernel tells only among the data of the kind."""
    node.ip("link add eth1 type veth peer name p1")
    node.ip("link set p1 up")
    node.ip("link set eth1 up")
    node.ip("link add vx0 type vxlan id 7 dstport 4789 dev eth1")
    node.ip("addr add 10.66.0.2/24 dev vx0")
    node.ip("link set vx0 up")
    node.until(lambda: node.find("vx0") and node.refused("eth1") == "")
    node.ip(f"route add default via {GATEWAY} dev vx0")
    node.until(lambda: node.refused("eth1") == "the uplink vx0 stands on it")
    node.ip("link del vx0")
    node.until(lambda: node.refused("eth1") == "")


def test_alias_of_a_link_that_is_down(make_node: Callable[..., Any]) -> None:
    """The kernel announces no alias of a link that is down: the next periodic scan finds it."""
    node = make_node(max_interval=0.2)
    node.ip("link add eth1 type veth peer name p1")
    node.start()
    node.ip("link set eth1 alias hello")
    node.until(lambda: node.value("eth1", "alias") == "hello")


def test_node_address(node: Any) -> None:
    """The interface with the node's address is refused, also when the address moves to another one."""
    for number in (1, 2):
        node.ip(f"link add eth{number} type veth peer name p{number}")
    node.ip("addr add 10.66.0.2/24 dev eth1")
    node.until(lambda: node.value("eth1", "ipv4"))
    node.inventory.set_node_addresses(["the-node", "10.66.0.2"])
    assert node.refused("eth1") == "it carries the node's address 10.66.0.2"
    node.ip("addr del 10.66.0.2/24 dev eth1")
    node.ip("addr add 10.66.0.2/24 dev eth2")
    node.until(lambda: node.refused("eth2") and not node.refused("eth1"))


def test_link_that_leaves_and_comes_home(make_node: Callable[..., Any]) -> None:
    """A link that moves to another namespace is gone, and known again when it is back."""
    node, other = make_node(), make_node()
    node.start()
    node.ip("link add eth1 type veth peer name p1")
    node.until(lambda: node.find("eth1"))
    node.run("ip", "link", "set", "eth1", "netns", f"/proc/{os.getpid()}/fd/{other.netns.fd}")
    node.until(lambda: not node.find("eth1"))
    other.run("ip", "link", "set", "eth1", "netns", f"/proc/{os.getpid()}/fd/{node.netns.fd}")
    node.until(lambda: node.find("eth1"))
    assert node.refused("eth1") == ""


def test_burst_of_links(node: Any) -> None:
    """1,000 new links are some few changes, no scan, and every one is a device; then all go in one."""
    before, scans = node.changes, resyncs()
    node.batch([f"tuntap add dev t{number} mode tap" for number in range(1000)])
    node.until(lambda: len(node.inventory.devices()) == 1001, 30)
    assert node.changes - before < 100
    assert resyncs() == scans
    node.batch([f"link set dev t{number} group 77" for number in range(1000)])
    node.ip("link del group 77")
    node.until(lambda: len(node.inventory.devices()) == 1, 30)


def test_lost_events(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that the kernel dropped cost one scan, after which events count again."""
    receive = node.inventory._monitor.receive
    lost = threading.Event()

    def once() -> Any:
        found = receive()
        if found and not lost.is_set():
            lost.set()
            raise EventsLostError("dropped on purpose")
        return found

    monkeypatch.setattr(node.inventory._monitor, "receive", once)
    before = metrics.INVENTORY_RESYNCS.labels("lost events")._value.get()
    node.ip("link add eth1 type veth peer name p1")
    node.until(lambda: node.find("eth1"))
    assert metrics.INVENTORY_RESYNCS.labels("lost events")._value.get() == before + 1
    node.ip("link set eth1 mtu 1400")
    node.until(lambda: node.value("eth1", "mtu") == 1400)
    assert metrics.INVENTORY_RESYNCS.labels("lost events")._value.get() == before + 1


def test_overflowing_socket(node: Any) -> None:
    """A storm that a full receive buffer cuts off ends with the right devices."""
    node.inventory._monitor._socket.setsockopt(1, 33, 4096)  # SO_RCVBUFFORCE
    with node.inventory._lock:
        # While somebody else is busy nobody reads.
        node.batch([f"tuntap add dev t{number} mode tap" for number in range(300)])
        node.batch([f"link set dev t{number} group 77" for number in range(200)])
        node.ip("link del group 77")
    node.until(lambda: len(node.inventory.devices()) == 101, 30)


def test_failure_is_tried_again(node: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A scan that fails is told and tried again; the devices stay as they were known."""
    node.ip("link add eth1 type veth peer name p1")
    node.until(lambda: node.find("eth1"))
    failing = threading.Event()
    addresses = node.inventory._socket.addresses

    def fail() -> Any:
        if not failing.is_set():
            failing.set()
            raise OSError(5, "on purpose")
        return addresses()

    monkeypatch.setattr(node.inventory._socket, "addresses", fail)
    node.inventory.refresh()
    node.until(failing.is_set)
    assert node.find("eth1")
    node.until(lambda: "trying again" in caplog.text)
    node.ip("link set eth1 mtu 1400")
    node.until(lambda: node.value("eth1", "mtu") == 1400)


def test_periodic_scan(make_node: Callable[..., Any]) -> None:
    """The node is scanned in intervals, and the age of the last scan is told."""
    node = make_node(max_interval=0.05)
    assert node.inventory.age == float("inf")
    node.start()
    before = metrics.INVENTORY_RESYNCS.labels("interval")._value.get()
    node.until(lambda: metrics.INVENTORY_RESYNCS.labels("interval")._value.get() > before + 2)
    assert node.inventory.age < 5


def test_device_that_is_not_known_yet(make_node: Callable[..., Any]) -> None:
    """A device that is asked for before its event was read is found by a scan, which is told to subscribers."""
    node = make_node()
    node.ip("link add eth1 type veth peer name p1")
    assert node.inventory.device("eth1").name == "eth1"
    assert node.changes == 1
    scans = resyncs()
    assert node.inventory.device("nosuch") is None
    assert resyncs() == scans + 1
    assert node.inventory.device("nosuch") is None
    assert resyncs() == scans + 1


def test_held_device_needs_no_scan(node: Any) -> None:
    """A device that is in a pod is answered from what was published, without a scan."""
    entry = {"name": "eth9", "attributes": {"dra.net/ifName": {"string": "eth9"}}}
    node.inventory.set_held({"eth9": entry})
    scans = resyncs()
    found = node.inventory.device("eth9")
    assert (found.refused, found.attributes) == ("it is in a pod", entry["attributes"])
    assert node.find("eth9") is None
    assert resyncs() == scans


def test_device_that_came_home(make_node: Callable[..., Any]) -> None:
    """A device that is held no more is known at once, before its events were read; one that is gone is not."""
    node = make_node()
    entries = {
        name: {"name": name, "attributes": {"dra.net/ifName": {"string": name}} if name != "eth3" else {}}
        for name in ("eth1", "eth2", "eth3")
    }
    node.inventory.set_held(entries)
    assert node.changes == 0
    node.ip("link add eth1 type veth peer name p1")
    node.ip("addr add 10.71.0.2/24 dev eth1")
    scans = resyncs()
    node.inventory.set_held({})
    assert node.value("eth1", "ipv4") == "10.71.0.2/24"
    assert node.find("eth2") is None
    assert (node.changes, resyncs()) == (1, scans)
    node.start()
    node.until(lambda: node.find("p1"))
    assert node.refused("eth1") == ""


def test_device_that_came_home_cannot_be_read(make_node: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """If the kernel does not answer, nothing is claimed about the device; its events tell later."""
    node = make_node()

    def fail(**_: Any) -> Any:
        raise OSError(5, "on purpose")

    node.inventory.set_held({"eth1": {"name": "eth1", "attributes": {"dra.net/ifName": {"string": "eth1"}}}})
    monkeypatch.setattr(node.inventory._socket, "link", fail)
    node.inventory.set_held({})
    assert node.find("eth1") is None


def test_allow_and_deny(make_node: Callable[..., Any]) -> None:
    """The operator's lists are kept to."""
    node = make_node(policy=Policy(allow=frozenset({"eth*"}), deny=frozenset({"eth2"})))
    for name in ("eth1", "eth2", "x1"):
        node.ip(f"link add {name} type veth peer name {name}p")
    node.start()
    refused = {device.name: device.refused for device in node.inventory.devices()}
    assert refused["eth1"] == ""
    assert "denied" in refused["eth2"]
    assert "allowed" in refused["x1"]


def test_own_machine_by_its_sysfs(make_node: Callable[..., Any]) -> None:
    """With the machine's own sysfs its PCI functions are read without error, and none without interface is offered."""
    node = make_node(root="/sys")
    node.start()
    bare = [device for device in node.inventory.devices() if device.pci_address]
    assert all(device.rdma or device.refused for device in bare)


def test_stop(make_node: Callable[..., Any]) -> None:
    """An inventory that was never started, or was stopped, can be stopped."""
    node = make_node()
    node.inventory.stop()
    node.inventory.stop()
    assert node.inventory.device("eth1") is None


# ---- programs


def bpf(command: int, attributes: bytes) -> int:
    """Make one call of the BPF system call."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result: int = libc.syscall(number, command, buffer, len(attributes))
    assert result >= 0, os.strerror(ctypes.get_errno())
    return result


def classifier(name: str) -> int:
    """Load a program that lets everything pass; returns its descriptor."""
    code = ctypes.create_string_buffer(struct.pack("<BBhiBBhi", 0xB7, 0, 0, -1, 0x95, 0, 0, 0), 16)
    text = ctypes.create_string_buffer(b"GPL")
    head = struct.pack("<IIQQIIQII", 3, 2, ctypes.addressof(code), ctypes.addressof(text), 0, 0, 0, 0, 0)
    return bpf(5, head + name.encode().ljust(16, b"\0"))


def test_tcx_program(node: Any) -> None:
    """A TCX program shows by its name with the next event of its link, and goes the same way."""
    node.ip("link add eth1 type veth peer name p1")
    node.until(lambda: node.find("eth1"))
    program = classifier("my_tcx")
    with node.netns.entered():
        bpf(8, struct.pack("<IIIIIIQ", node.find("eth1").link.index, program, 46, 0, 0, 0, 0))
    node.ip("link set eth1 mtu 1400")
    node.until(lambda: node.value("eth1", "tcxProgramNames") == "my_tcx")
    assert node.value("eth1", "ebpf") is True
    with node.netns.entered():
        bpf(9, struct.pack("<IIII", node.find("eth1").link.index, program, 46, 0))
    os.close(program)
    node.inventory.refresh()
    node.until(lambda: node.value("eth1", "ebpf") is False)


def test_tc_filter(node: Any) -> None:
    """A BPF filter shows by the name it was given with its own event, and goes with its queueing discipline."""
    node.ip("link add eth1 type veth peer name p1")
    node.until(lambda: node.find("eth1"))
    index = node.find("eth1").link.index
    program = classifier("my_filter")
    node.run("tc", "qdisc", "add", "dev", "eth1", "clsact")
    with node.netns.entered(), KernelSocket(NETLINK_ROUTE) as sock:
        # RTM_NEWTFILTER for IPv4 and IPv6 (ETH_P_ALL) at clsact's ingress, with TCA_BPF_FD, _NAME and _FLAGS.
        body = struct.pack("=BxxxiIII", 0, index, 0, 0xFFFF_FFF2, 0x0001_0300)
        options = codec.attribute_u32(6, program) + codec.attribute_text(7, "flt.o:[x]") + codec.attribute_u32(8, 1)
        body += codec.attribute_text(1, "bpf") + codec.nest(2, options)
        answer = sock.exchange((codec.Request(44, codec.NLM_F_CREATE | codec.NLM_F_EXCL, body, "add a filter"),))[0]
    os.close(program)
    assert answer.error is None
    node.until(lambda: node.value("eth1", "ebpf") is True)
    assert node.value("eth1", "tcFilterNames") == "flt.o:[x]"
    scans = resyncs()
    node.inventory.refresh()
    node.until(lambda: resyncs() > scans)
    assert node.value("eth1", "ebpf") is True
    node.run("tc", "qdisc", "del", "dev", "eth1", "clsact")
    node.until(lambda: node.value("eth1", "ebpf") is False)


def test_a_held_device_that_is_home_is_known_before_anybody_says_that_it_is_held_no_more(node: Any) -> None:
    """The next Prepare may come milliseconds after the device came home, and must not find it in a pod."""
    node.ip("link add eth7 type veth peer name eth7p")
    node.inventory.set_held({"eth7": {"name": "eth7", "attributes": {"dra.net/ifName": {"string": "eth7"}}}})
    found = node.inventory.device("eth7")
    assert found.link is not None
    assert found.refused != "it is in a pod"


def test_every_attribute_of_real_interfaces(make_node: Callable[..., Any]) -> None:
    """Name, kind, state, MTU, MAC, alias and encapsulation are those that ``ip`` prints, for every kind of link."""
    node = make_node()
    for words in (
        "tuntap add tap1 mode tap",
        "tuntap add tun1 mode tun",
        "link add eth1 mtu 1480 type veth peer name p1",
        "link add mv0 link eth1 type macvlan mode bridge",
        "link add vx0 type vxlan id 7 dstport 4789 dev eth1",
        "link add br0 type bridge",
        "link add ifb1 type ifb",
        "link set eth1 alias hello",
        "link set eth1 up",
        "link set p1 up",
    ):
        node.ip(words)
    node.start()
    states = {"UP": "up", "DOWN": "down", "UNKNOWN": "unknown", "LOWERLAYERDOWN": "lower-layer-down"}
    shown = json.loads(node.run("ip", "-j", "-d", "link", "show"))
    assert len(shown) == 9
    for link in shown:
        name = link["ifname"]
        node.until(lambda name=name: node.find(name))
        keys = ("ifName", "mac", "mtu", "encapsulation", "alias", "state", "type", "sriov", "rdma", "ebpf")
        told = {key: node.value(name, key) for key in keys}
        assert told == {
            "ifName": name,
            "mac": link.get("address", ""),
            "mtu": link["mtu"],
            "encapsulation": link["link_type"],
            "alias": link.get("ifalias", ""),
            "state": states[link["operstate"]],
            "type": link.get("linkinfo", {}).get("info_kind", "device"),
            "sriov": False,
            "rdma": False,
            "ebpf": False,
        }
        # Loopback has no kind, and the empty sysfs of this test does not know it.
        assert node.value(name, "virtual") is (name != "lo")
        for absent in ("ipv4", "ipv6", "sriovVfs", "isSriovVf", "pciAddress", "rdmaDevice", "speed", "tcFilterNames"):
            assert node.value(name, absent) is None
