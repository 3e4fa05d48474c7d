"""The receipt: a CDI file that is there exactly while the devices of a claim's request are attached."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.claims.facts import DeviceFacts, ObservedInterface, Phase
from nri_dranet.claims.model import ClaimRef, DeviceKey
from nri_dranet.claims.plan import CharDevice, ClaimPlan, DeviceKind, DevicePlan, RdmaPlan
from nri_dranet.receipt.receipts import ReceiptError, Receipts, receipt_id

if TYPE_CHECKING:
    from pathlib import Path

UID = "0b1c2d3e-0000-4000-8000-000000000001"
NODE = CharDevice(path="/dev/infiniband/uverbs0", major=231, minor=192, mode=0o666)


def device(name: str, request: str = "nic") -> DevicePlan:
    """Return a planned device behind the receipt of its request."""
    identity = receipt_id("dra.net", UID, request.partition("/")[0], [name])
    return DevicePlan(key=DeviceKey("node", name), request=request, kind=DeviceKind.INTERFACE, receipt_id=identity)


def plan(*devices: DevicePlan) -> ClaimPlan:
    """Return a claim with these devices."""
    return ClaimPlan(ref=ClaimRef("default", "c", UID), allocation_hash="h", devices=devices)


def fact(each: DevicePlan, name: str) -> DeviceFacts:
    """Return the fact that a device is attached under a name."""
    shown = ObservedInterface(name=name, hardware_address="02:00:00:00:00:01")
    return DeviceFacts(key=each.key, request=each.request, phase=Phase.ATTACHED, interface=shown)


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the contents of all files that a runtime would read."""
    return [json.loads(path.read_text()) for path in sorted(folder.iterdir()) if path.suffix == ".json"]


def test_the_id_names_the_device_the_request_and_the_claim() -> None:
    """A user who reads the ID in the runtime's error sees which device of which claim is missing."""
    assert receipt_id("dra.net", UID, "nic", ["eth1"]) == f"dra.net/device=eth1_nic_{UID}"


def test_the_id_of_many_devices_stays_short() -> None:
    """Of many devices the first three are named."""
    assert receipt_id("dra.net", "u", "nic", ["a", "b", "c", "d"]) == "dra.net/device=a.b.c_nic_u"


def test_a_receipt_defines_its_id_with_an_edit(tmp_path: Path) -> None:
    """The file resolves the ID and tells the container the name of its interface."""
    nic = device("eth1")
    Receipts(tmp_path / "cdi", "dra.net").write(plan(nic), [fact(nic, "net1")])
    (spec,) = read(tmp_path / "cdi")
    assert spec == {
        "cdiVersion": "0.5.0",
        "kind": "dra.net/device",
        "devices": [{"name": f"eth1_nic_{UID}", "containerEdits": {"env": ["DRA_NET_NIC=net1"]}}],
    }


def test_a_receipt_carries_character_devices_once_each(tmp_path: Path) -> None:
    """The nodes of a request's RDMA devices are in its file, sorted, without repeats."""
    nic = replace(device("eth1"), rdma=RdmaPlan(link="mlx5_0"))
    ucm = CharDevice(path="/dev/infiniband/rdma_cm", major=10, minor=120)
    Receipts(tmp_path, "dra.net").write(plan(nic), [], [(nic.receipt_id, n) for n in (NODE, ucm, NODE)])
    (spec,) = read(tmp_path)
    edits = spec["devices"][0]["containerEdits"]
    assert [node["path"] for node in edits["deviceNodes"]] == ["/dev/infiniband/rdma_cm", "/dev/infiniband/uverbs0"]
    assert edits["deviceNodes"][1]["major"] == 231
    assert edits["env"] == ["DRA_NET_NIC=mlx5_0"]


def test_each_request_has_a_file_of_its_own(tmp_path: Path) -> None:
    """Two requests of a claim have two receipts; the alternative behind a slash does not count."""
    receipts = Receipts(tmp_path, "dra.net")
    claim = plan(device("eth1", "one"), device("eth2", "two/best"))
    assert receipts.missing(claim)
    receipts.write(claim, [])
    assert len(read(tmp_path)) == 2
    assert not receipts.missing(claim)
    receipts.remove(claim)
    receipts.remove(claim)
    assert list(tmp_path.iterdir()) == []


def test_writing_again_leaves_an_equal_file_alone(tmp_path: Path) -> None:
    """The runtime is not woken by a file that did not change."""
    receipts, claim = Receipts(tmp_path, "dra.net"), plan(device("eth1"))
    receipts.write(claim, [])
    (path,) = tmp_path.iterdir()
    before = path.stat().st_ino
    receipts.write(claim, [])
    assert path.stat().st_ino == before


def test_the_folder_is_made_again_when_it_was_removed(tmp_path: Path) -> None:
    """Whoever clears the runtime's folder while this runs makes no attach fail."""
    receipts, claim = Receipts(tmp_path / "etc" / "cdi", "dra.net"), plan(device("eth1"))
    receipts.write(claim, [])
    shutil.rmtree(tmp_path / "etc")
    receipts.write(claim, [])
    assert not receipts.missing(claim)


def test_a_folder_that_cannot_be_written_is_an_error_with_the_path(tmp_path: Path) -> None:
    """An attach without its receipt must fail, in words."""
    (tmp_path / "cdi").touch()
    with pytest.raises(ReceiptError, match=r"receipt .*cdi.* cannot be written"):
        Receipts(tmp_path / "cdi", "dra.net").write(plan(device("eth1")), [])


def test_a_receipt_that_cannot_be_removed_is_an_error(tmp_path: Path) -> None:
    """A directory in a receipt's place is told, not passed over."""
    receipts, claim = Receipts(tmp_path, "dra.net"), plan(device("eth1"))
    receipts.write(claim, [])
    (path,) = tmp_path.iterdir()
    path.unlink()
    path.mkdir()
    with pytest.raises(ReceiptError, match="cannot be removed"):
        receipts.remove(claim)


def test_a_receipt_that_cannot_be_removed_keeps_no_other(tmp_path: Path) -> None:
    """The second request's receipt goes although the first one's cannot: no container starts on it any more."""
    receipts, claim = Receipts(tmp_path, "dra.net"), plan(device("eth1", "one"), device("eth2", "two"))
    receipts.write(claim, [])
    (first,) = (path for path in tmp_path.iterdir() if "_one_" in path.read_text(encoding="utf-8"))
    first.unlink()
    first.mkdir()
    with pytest.raises(ReceiptError, match=first.name):
        receipts.remove(claim)
    assert list(tmp_path.iterdir()) == [first]


def test_a_damaged_receipt_is_written_anew(tmp_path: Path) -> None:
    """Bytes that are no text stand in the way of nothing."""
    receipts, claim = Receipts(tmp_path, "dra.net"), plan(device("eth1"))
    receipts.write(claim, [])
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(b"\xff\xfe")
    receipts.write(claim, [])
    assert path.read_bytes() == whole


def test_a_sweep_tells_of_what_it_cannot_remove(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A receipt that stays would let a container run without its device, so that it is said."""
    receipts, claim = Receipts(tmp_path, "dra.net"), plan(device("eth1"))
    receipts.write(claim, [])
    (path,) = tmp_path.iterdir()
    path.unlink()
    path.mkdir()
    assert receipts.sweep(list) == []
    assert "cannot be removed" in caplog.text


def test_a_sweep_removes_what_is_not_attached_and_nothing_of_others(tmp_path: Path) -> None:
    """Files of dead claims and unfinished ones go; those of attached claims and of other vendors stay."""
    receipts = Receipts(tmp_path, "dra.net")
    kept, dead = plan(device("eth1")), plan(device("eth2"))
    receipts.write(kept, [])
    receipts.write(dead, [])
    (tmp_path / ".dra.net-receipt-half.json.new").touch()
    (tmp_path / "vendor.json").touch()
    assert len(receipts.sweep(lambda: [kept])) == 2
    assert not receipts.missing(kept)
    assert receipts.missing(dead)
    assert (tmp_path / "vendor.json").exists()


def test_a_sweep_of_a_folder_that_is_not_there_does_nothing(tmp_path: Path) -> None:
    """A node where no receipt was ever written has no folder."""
    assert Receipts(tmp_path / "none", "dra.net").sweep(list) == []
