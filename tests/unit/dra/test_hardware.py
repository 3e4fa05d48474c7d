"""What sysfs tells of a device's hardware: virtual functions, and the character devices of an RDMA device."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.dra.hardware import DEFAULT_MODE, Hardware
from nri_dranet.netlink.codec import NetlinkError
from nri_dranet.netlink.model import Link
from nri_dranet.netlink.nldev import RdmaSocket
from nri_dranet.sysfs import Sysfs

if TYPE_CHECKING:
    from pathlib import Path

VF = Link(index=8, name="vf0")
PF = Link(index=7, name="pf0", mtu=9000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a sysfs with a virtual function of pf0, and an RDMA device with one uverbs."""
    devices = tmp_path / "devices/pci0000:00"
    for address, name in (("0000:00:05.0", "pf0"), ("0000:00:05.2", "vf0")):
        (devices / address / "net" / name).mkdir(parents=True)
        (devices / address / "net" / name / "device").symlink_to(devices / address)
        (tmp_path / "class/net").mkdir(parents=True, exist_ok=True)
        (tmp_path / "class/net" / name).symlink_to(devices / address / "net" / name)
    (devices / "0000:00:05.2" / "physfn").symlink_to(devices / "0000:00:05.0")
    verbs = tmp_path / "class/infiniband_verbs/uverbs0"
    verbs.mkdir(parents=True)
    (verbs / "ibdev").write_text("mlx5_0\n")
    (verbs / "dev").write_text("231:192\n")
    return tmp_path


def test_a_virtual_function_and_the_mtu_above_it(root: Path) -> None:
    """The physical function's MTU is known while it is on the host."""
    hardware = Hardware(Sysfs(root), lambda: [PF, VF])
    assert hardware.is_virtual_function(VF)
    assert not hardware.is_virtual_function(PF)
    assert hardware.pf_mtu(VF) == 9000
    assert Hardware(Sysfs(root), lambda: [VF]).pf_mtu(VF) is None


def test_character_devices_have_the_numbers_of_now(root: Path) -> None:
    """A node that is not there has the strictest mode."""
    (device,) = Hardware(Sysfs(root), list).char_devices("mlx5_0")
    assert (device.path, device.major, device.minor) == ("/dev/infiniband/uverbs0", 231, 192)
    assert device.mode in (DEFAULT_MODE, 0o666)
    assert Hardware(Sysfs(root), list).char_devices("mlx5_9") == ()


def test_rdma_that_does_not_tell_its_mode_is_no_answer(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken for shared mode, a device would be left behind on the host."""

    class Silent(contextlib.nullcontext[Any]):
        def netns_mode(self) -> None:
            raise NetlinkError(errno.EIO, "get the mode")

    silent = Silent()
    silent.enter_result = silent
    monkeypatch.setattr(RdmaSocket, "open", lambda: silent)
    with pytest.raises(OSError, match="get the mode"):
        Hardware(Sysfs(root), list).rdma_exclusive()


def test_a_kernel_without_rdma_is_not_exclusive(root: Path) -> None:
    """Asking never fails."""
    assert Hardware(Sysfs(root), list).rdma_exclusive() in (False, True)
