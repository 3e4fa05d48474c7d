"""ethtool over netlink on the real kernel: features of a veth, links without private flags, RDMA that is not there."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

import pytest

from nri_dranet.netlink import rtnl
from nri_dranet.netlink.codec import NetlinkError
from nri_dranet.netlink.ethtool import Ethtool, Feature, UnknownNameError
from nri_dranet.netlink.genl import GenlSocket
from nri_dranet.netlink.nldev import NETLINK_RDMA, NetnsMode, NoRdmaError, RdmaMonitor, RdmaSocket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nri_dranet.netlink.namespaces import NetNs
    from nri_dranet.netlink.sockets import RtnlSocket


@pytest.fixture
def ethtool(netns: NetNs, rtnl_socket: RtnlSocket) -> Iterator[Ethtool]:
    """Give ethtool in a namespace with a veth of index 10."""
    rtnl_socket.request(rtnl.new_link("veth", "a", index=10, peer="b"))
    with Ethtool(netns) as made:
        yield made


def test_the_family_is_found_once(netns: NetNs) -> None:
    """Its number and its event group; a family that does not exist is ENOENT."""
    with GenlSocket(netns) as made:
        found = made.family("ethtool")
        assert found.id >= 0x10
        assert "monitor" in found.groups
        calls = made.send_calls
        assert made.family("ethtool") is found
        assert made.send_calls == calls
        with pytest.raises(NetlinkError, match="find the netlink family nonesuch") as caught:
            made.family("nonesuch")
        assert caught.value.errno == errno.ENOENT


def test_features_are_read_by_the_kernels_names(ethtool: Ethtool) -> None:
    """A veth can switch segmentation, cannot do LRO, and never changes what the kernel forbids."""
    found = ethtool.features(10)
    assert len(found) > 50
    segmentation = found["tx-tcp-segmentation"]
    assert segmentation == Feature("tx-tcp-segmentation", changeable=True, wanted=True, active=True)
    assert not found["rx-lro"].changeable
    assert not found["rx-lro"].active
    assert found["vlan-challenged"].never_changes
    assert not found["vlan-challenged"].changeable


def test_features_are_switched_and_read_back(ethtool: Ethtool) -> None:
    """What was asked for is wanted and active afterwards; the rest stays."""
    before = ethtool.features(10)
    assert ethtool.set_features(10, {"tx-tcp-segmentation": False, "rx-gro": True}) == ()
    after = ethtool.features(10)
    assert not after["tx-tcp-segmentation"].wanted
    assert not after["tx-tcp-segmentation"].active
    assert after["rx-gro"].active
    changed = {name for name in before if before[name] != after[name]}
    # This one depends on segmentation: it stays wanted, and comes back by itself.
    assert changed <= {"tx-tcp-segmentation", "rx-gro", "tx-tcp-mangleid-segmentation"}
    assert ethtool.set_features(10, {name: before[name].wanted for name in changed}) == ()
    assert ethtool.features(10) == before


def test_features_that_do_not_take_are_named(ethtool: Ethtool) -> None:
    """The kernel ignores what the hardware cannot do; the caller is told."""
    assert ethtool.set_features(10, {"rx-lro": True, "rx-gro": True}) == ("rx-lro",)
    assert ethtool.set_features(10, {"rx-lro": False}) == ()
    assert ethtool.set_features(10, {}) == ()


def test_features_that_depend_on_another_are_named(ethtool: Ethtool) -> None:
    """Segmentation needs scatter-gather: it is wanted, not active, and comes back with it."""
    assert ethtool.set_features(10, {"tx-scatter-gather": False}) == ()
    assert ethtool.set_features(10, {"tx-tcp-segmentation": True}) == ("tx-tcp-segmentation",)
    found = ethtool.features(10)["tx-tcp-segmentation"]
    assert (found.wanted, found.active) == (True, False)
    assert ethtool.set_features(10, {"tx-scatter-gather": True}) == ()
    assert ethtool.features(10)["tx-tcp-segmentation"].active


def test_what_never_changes_is_refused(ethtool: Ethtool) -> None:
    """The kernel's words are in the error."""
    with pytest.raises(NetlinkError, match="set features of link 10") as caught:
        ethtool.set_features(10, {"vlan-challenged": True})
    assert caught.value.errno == errno.EINVAL
    assert caught.value.kernel_message == "attempt to change non-ethtool features"


def test_unknown_features_change_nothing(ethtool: Ethtool) -> None:
    """The error names what there is."""
    before = ethtool.features(10)
    with pytest.raises(UnknownNameError, match="feature 'rx-grow' is unknown; known are: ") as caught:
        ethtool.set_features(10, {"rx-gro": not before["rx-gro"].wanted, "rx-grow": True})
    assert "rx-gro" in caught.value.known
    assert caught.value.name == "rx-grow"
    with pytest.raises(UnknownNameError):
        ethtool.set_features(10, {"": True})
    assert ethtool.features(10) == before


def test_a_link_that_is_not_there(ethtool: Ethtool) -> None:
    """ENODEV for every question."""
    for call in (
        lambda: ethtool.features(99),
        lambda: ethtool.set_features(99, {"rx-gro": True}),
        lambda: ethtool.private_flags(99),
    ):
        with pytest.raises(NetlinkError) as caught:
            call()
        assert caught.value.errno == errno.ENODEV


def test_a_driver_without_private_flags_has_none(ethtool: Ethtool) -> None:
    """Reading is empty, setting names the flag, setting none is nothing."""
    assert ethtool.private_flags(10) == {}
    assert ethtool.set_private_flags(10, {}) == ()
    with pytest.raises(UnknownNameError, match="private flag 'legacy-rx' is unknown; known are: none"):
        ethtool.set_private_flags(10, {"legacy-rx": True})


def test_reading_features_is_one_call(ethtool: Ethtool) -> None:
    """The names are asked for once in the life of the process."""
    ethtool.features(10)
    calls = ethtool.send_calls
    ethtool.features(10)
    assert ethtool.send_calls == calls + 1


def rdma_is_there() -> bool:
    """Tell whether this kernel has RDMA."""
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_RDMA).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(rdma_is_there(), reason="this kernel has RDMA")
def test_a_kernel_without_rdma_says_so() -> None:
    """An error with words, or None, as the caller likes it; no descriptor stays."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    assert RdmaSocket.open() is None
    with pytest.raises(NoRdmaError, match="this kernel has no RDMA"):
        RdmaSocket()
    with pytest.raises(NoRdmaError, match="this kernel has no RDMA"):
        RdmaMonitor()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.skipif(not rdma_is_there(), reason="this kernel has no RDMA (CONFIG_INFINIBAND)")
def test_rdma_devices_are_listed() -> None:
    """Each device has ports that name it, and the mode is one of two."""
    with RdmaSocket() as made, RdmaMonitor() as monitor:
        assert made.netns_mode() in NetnsMode
        names = {device.name for device in made.devices()}
        assert {port.device for port in made.ports()} <= names
        assert monitor.receive() == []
