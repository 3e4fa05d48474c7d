"""RDMA devices move in exclusive mode, from where they are, by name."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.attach import rdma
from nri_dranet.attach.errors import AttachError
from nri_dranet.attach.home import Homeward
from nri_dranet.attach.transaction import Transaction
from nri_dranet.claims.plan import CharDevice, DeviceKind, RdmaPlan
from nri_dranet.netlink.codec import NetlinkError
from nri_dranet.netlink.nldev import NetnsMode, NoRdmaError, RdmaDevice, RdmaPort
from nri_dranet.sysfs import Sysfs

if TYPE_CHECKING:
    from pathlib import Path

PLAN = RdmaPlan(link="mlx5_0", exclusive=True)


class Fabric:
    """RDMA devices by namespace, behind the socket that asks for them."""

    def __init__(self) -> None:
        self.where: dict[str, list[str]] = {"host": ["mlx5_0", "mlx5_1"], "pod": []}
        self.ports = [
            RdmaPort(device_index=4, device="mlx5_0", port=1, state="DOWN", physical_state="Polling"),
            RdmaPort(device_index=4, device="mlx5_0", port=2, state="ACTIVE", physical_state="LinkUp"),
        ]
        self.refusal = 0
        self.mode = NetnsMode.EXCLUSIVE
        self.guids = {"mlx5_0": "0200:0000:0000:0001", "mlx5_1": "0200:0000:0000:0002"}

    def socket(self, netns: str) -> Any:
        """Open a socket in a namespace."""
        fabric = self

        class Socket:
            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def devices(self) -> list[RdmaDevice]:
                return [
                    RdmaDevice(index=4, name=one, node_guid=fabric.guids.get(one, "0200:0000:0000:0001"))
                    for one in fabric.where[netns]
                ]

            def netns_mode(self) -> NetnsMode:
                return fabric.mode

            def rename(self, index: int, name: str) -> None:
                assert index == 4
                if name in fabric.where["host"]:
                    raise NetlinkError(errno.EEXIST, "rename")
                fabric.where[netns].remove("mine")
                fabric.where[netns].append(name)

            def ports(self, index: int) -> list[RdmaPort]:
                assert index == 4
                return fabric.ports

            def move(self, index: int, target: str) -> None:
                assert index == 4
                if fabric.refusal:
                    raise NetlinkError(fabric.refusal, "move RDMA device 4")
                (moved,) = (one for one in fabric.where[netns] if one in {"mlx5_0", "mine"})
                fabric.where[netns].remove(moved)
                fabric.where[target].append(moved)

        return Socket()


@pytest.fixture
def fabric(monkeypatch: pytest.MonkeyPatch) -> Fabric:
    """A node with two RDMA devices."""
    found = Fabric()
    monkeypatch.setattr(rdma, "RdmaSocket", found.socket)
    return found


HOST: Any = "host"
POD: Any = "pod"


def test_enter_and_leave(fabric: Fabric) -> None:
    """In and out again; each a second time does nothing."""
    for _ in range(2):
        rdma.enter(PLAN, HOST, POD)
        assert fabric.where == {"host": ["mlx5_1"], "pod": ["mlx5_0"]}
    for _ in range(2):
        rdma.leave(PLAN, HOST, POD)
        assert "mlx5_0" in fabric.where["host"]
    rdma.leave(PLAN, HOST, None)


def test_device_that_is_nowhere(fabric: Fabric) -> None:
    """A device that neither namespace has is an error, on both ways and without a pod."""
    fabric.where["host"].remove("mlx5_0")
    with pytest.raises(NetlinkError, match="mlx5_0") as caught:
        rdma.enter(PLAN, HOST, POD)
    assert caught.value.errno == errno.ENODEV
    with pytest.raises(NetlinkError, match="mlx5_0") as caught:
        rdma.leave(PLAN, HOST, None)
    assert caught.value.errno == errno.ENODEV


def test_device_that_the_pod_renamed(fabric: Fabric) -> None:
    """It is found by its GUID and comes home under its own name."""
    plan = replace(PLAN, node_guid="0200:0000:0000:0001")
    rdma.enter(plan, HOST, POD)
    fabric.where["pod"] = ["mine"]
    assert rdma.observe(plan, HOST, POD).in_pod
    rdma.leave(plan, HOST, POD)
    assert fabric.where == {"host": ["mlx5_1", "mlx5_0"], "pod": []}


def test_name_that_another_device_has_taken(make: Any, fabric: Fabric) -> None:
    """A device of its name and another GUID is not it: it comes home under the name that it has, and that is told."""
    plan = replace(PLAN, node_guid="0200:0000:0000:0001")
    rdma.enter(plan, HOST, POD)
    fabric.where["pod"] = ["mine"]
    fabric.where["host"].append("mlx5_0")
    fabric.guids["mlx5_0"] = "0200:0000:0000:0009"
    assert rdma.observe(plan, HOST, POD).in_pod
    device = replace(make.plan(kind=DeviceKind.RDMA, rdma=plan), host=None, pod=None)
    nothing: Any = None
    arrived, problems = Homeward(nothing, HOST, nothing, pod_netns=POD).give_back(device)
    assert arrived
    assert problems == ["its RDMA device mlx5_0 is called mine now: another one has taken its name"]
    assert fabric.where == {"host": ["mlx5_1", "mlx5_0", "mine"], "pod": []}


def test_software_on_an_interface_is_known_by_its_parent(tmp_path: Path) -> None:
    """Only rxe tells one; it ends when the interface leaves."""
    folder = tmp_path / "class/infiniband/mlx5_0"
    folder.mkdir(parents=True)
    assert not rdma.stands_on_interface(PLAN, Sysfs(tmp_path))
    (folder / "parent").write_text("eth1\n")
    assert rdma.stands_on_interface(PLAN, Sysfs(tmp_path))


def test_guid_that_was_set_anew(fabric: Fabric) -> None:
    """A device of its name is it if no other has its GUID."""
    plan = replace(PLAN, node_guid="0200:0000:0000:0001")
    fabric.guids["mlx5_0"] = "0200:0000:0000:0009"
    rdma.enter(plan, HOST, POD)
    assert fabric.where["pod"] == ["mlx5_0"]
    assert rdma.leave(plan, HOST, POD) == ""
    assert "mlx5_0" in fabric.where["host"]


def test_mode_that_was_switched_after_prepare(make: Any, fabric: Fabric) -> None:
    """The mode of now decides, both ways, and the facts say which it was."""
    prepared = replace(make.plan(kind=DeviceKind.RDMA, rdma=RdmaPlan(link="mlx5_0")), host=None, pod=None)
    (fact,) = _attach(prepared)
    assert fact.exclusive_rdma
    assert fabric.where["pod"] == ["mlx5_0"]
    nothing: Any = None
    assert Homeward(nothing, HOST, nothing, pod_netns=POD).give_back(prepared) == (True, [])
    assert fabric.where["pod"] == []
    fabric.mode = NetnsMode.SHARED
    (fact,) = _attach(replace(prepared, rdma=PLAN))
    assert not fact.exclusive_rdma
    assert fabric.where["pod"] == []


def test_observe(fabric: Fabric) -> None:
    """The best port's state is told; a device on the host is not in the pod; one that is gone has no state."""
    assert rdma.observe(PLAN, HOST, POD).in_pod is False
    rdma.enter(PLAN, HOST, POD)
    seen = rdma.observe(PLAN, HOST, POD)
    assert (seen.in_pod, seen.port_state, seen.physical_state) == (True, "ACTIVE", "LinkUp")
    gone = rdma.observe(PLAN, HOST, None)
    assert (gone.link, gone.in_pod, gone.port_state) == ("mlx5_0", False, "")
    fabric.ports = []
    assert rdma.observe(PLAN, HOST, POD).port_state == ""


def _attach(plan: Any) -> Any:
    nothing: Any = None
    return Transaction(nothing, HOST, nothing, POD, deadline=float("inf")).run([plan])


def test_exclusive_device_without_interface(make: Any, fabric: Fabric) -> None:
    """A device that has only RDMA moves in, is reported, and moves home."""
    plan = replace(make.plan(kind=DeviceKind.RDMA, rdma=PLAN), host=None, pod=None)
    (fact,) = _attach(plan)
    assert fact.rdma_only
    assert fact.exclusive_rdma
    assert fact.rdma.in_pod
    nothing: Any = None
    assert Homeward(nothing, HOST, nothing, pod_netns=POD).give_back(plan) == (True, [])
    assert "mlx5_0" in fabric.where["host"]


def test_shared_device_stays(make: Any, fabric: Fabric) -> None:
    """In shared mode nothing moves, in or out."""
    fabric.mode = NetnsMode.SHARED
    plan = replace(make.plan(kind=DeviceKind.RDMA, rdma=RdmaPlan(link="mlx5_0")), host=None, pod=None)
    (fact,) = _attach(plan)
    assert fact.rdma.port_state == "ACTIVE"
    assert "mlx5_0" in fabric.where["host"]


def test_refused_move_after_a_switch_of_the_mode(make: Any, fabric: Fabric) -> None:
    """Prepared in shared mode, the device's driver cannot move: the error says why it had to."""
    fabric.refusal = errno.EOPNOTSUPP
    plan = replace(make.plan(kind=DeviceKind.RDMA, rdma=RdmaPlan(link="mlx5_0")), host=None, pod=None)
    with pytest.raises(AttachError, match="switched to exclusive mode after the claim was prepared"):
        _attach(plan)


def test_character_devices_are_looked_for_only_when_one_is_anothers(tmp_path: Path, fabric: Fabric) -> None:
    """In both modes they have the numbers of now, and the mode and owner of before."""
    verbs = tmp_path / "class/infiniband_verbs"
    for entry, device, number in (("uverbs0", "mlx5_0", 192), ("uverbs1", "mlx5_1", 193)):
        (verbs / entry).mkdir(parents=True)
        (verbs / entry / "ibdev").write_text(device)
        (verbs / entry / "dev").write_text(f"231:{number}")
    node = CharDevice(path="/dev/infiniband/uverbs0", major=231, minor=192, mode=0o666, uid=7)
    plan = replace(PLAN, exclusive=False, char_devices=(node,))
    sysfs = Sysfs(tmp_path)
    assert rdma.observe(plan, HOST, POD, sysfs).char_devices == (node,)
    (verbs / "uverbs0/ibdev").write_text("mlx5_1")
    (verbs / "uverbs1/ibdev").write_text("mlx5_0")
    fabric.where = {"host": ["mlx5_1"], "pod": ["mlx5_0"]}
    moved = replace(node, path="/dev/infiniband/uverbs1", minor=193)
    assert rdma.observe(plan, HOST, POD, sysfs).char_devices == (moved,)


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EBUSY, "a process"), (errno.EOPNOTSUPP, "shared mode"), (5, "Input")]
)
def test_refused_move(make: Any, fabric: Fabric, number: int, words: str) -> None:
    """A device that is in use or cannot move is named with what to do."""
    fabric.refusal = number
    plan = replace(make.plan(kind=DeviceKind.RDMA, rdma=PLAN), host=None, pod=None)
    with pytest.raises(AttachError, match=words) as caught:
        _attach(plan)
    assert caught.value.reason == "RDMAMoveFailed"
    assert "mlx5_0" in caught.value.message


def test_way_home_without_rdma(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An RDMA device that cannot be brought home is told; a device with admin access is not even tried."""

    def none(*_: object) -> None:
        raise NoRdmaError("this kernel has no RDMA")

    monkeypatch.setattr(rdma, "leave", none)
    plan = replace(make.plan(kind=DeviceKind.RDMA, rdma=PLAN), host=None, pod=None)
    nothing: Any = None
    arrived, problems = Homeward(nothing, HOST, nothing).give_back(plan)
    assert not arrived
    assert "mlx5_0" in problems[0]
    admin = replace(plan, kind=DeviceKind.ADMIN)
    assert Homeward(nothing, HOST, nothing).give_back(admin) == (True, [])


def test_error_names_the_kernel_without_rdma(make: Any, fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node whose kernel lost its RDMA says so in the attach's error."""

    def none(*_: object) -> None:
        raise NoRdmaError("this kernel has no RDMA")

    monkeypatch.setattr(rdma, "enter", none)
    plan = replace(make.plan(kind=DeviceKind.RDMA, rdma=PLAN), host=None, pod=None)
    with pytest.raises(AttachError, match="no RDMA"):
        _attach(plan)
    assert "mlx5_0" in fabric.where["host"]
