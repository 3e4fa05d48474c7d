"""The metadata of a claim's devices (KEP-5304): what it says, and the file that changes without becoming another."""

from __future__ import annotations

import json
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nri_dranet.claims.facts import MAX_ADDRESSES, DeviceFacts, ObservedInterface, Phase
from nri_dranet.claims.model import ClaimRef, DeviceKey
from nri_dranet.claims.plan import ClaimPlan, DeviceKind, DevicePlan, RdmaPlan
from nri_dranet.receipt.metadata import API_VERSIONS, MetadataFiles, container_path, metadata
from nri_dranet.receipt.receipts import ReceiptError, Receipts, receipt_id

if TYPE_CHECKING:
    from collections.abc import Sequence


DRIVER = "dra.net"
UID = "0b1c2d3e-0000-4000-8000-000000000001"
ROOT = "/var/run/kubernetes.io/dra-device-attributes"
ATTRIBUTES = {"dra.net/ifName": {"string": "eth1"}, "dra.net/mtu": {"int": 1500}}


def device(name: str = "eth1", request: str = "nic", rdma: RdmaPlan | None = None) -> DevicePlan:
    """Return a planned device behind the receipt of its request."""
    return DevicePlan(
        key=DeviceKey("node", name),
        request=request,
        kind=DeviceKind.INTERFACE,
        rdma=rdma,
        published={"name": name, "attributes": ATTRIBUTES},
        receipt_id=receipt_id(DRIVER, UID, request.partition("/")[0], [name]),
    )


def plan(*devices: DevicePlan, name: str = "c", pod_claim_name: str | None = None) -> ClaimPlan:
    """Return a claim with these devices."""
    ref = ClaimRef("default", name, UID)
    return ClaimPlan(ref=ref, allocation_hash="h", devices=devices, pod_claim_name=pod_claim_name)


def fact(each: DevicePlan, *addresses: str, name: str = "net1", phase: Phase = Phase.ATTACHED) -> DeviceFacts:
    """Return the fact that a device is in a pod under a name, with addresses."""
    shown = ObservedInterface(name=name, hardware_address="02:00:00:00:00:01", addresses=addresses)
    return DeviceFacts(key=each.key, request=each.request, phase=phase, interface=shown)


def network(found: dict[str, Any]) -> dict[str, Any]:
    """Return the networkData of the only device."""
    ((only,),) = [request["devices"] for request in found["requests"]]
    return dict(only.get("networkData", {}))


# ---- what it says


def test_it_says_who_the_claim_is_and_what_the_device_is_in_the_pod() -> None:
    """The whole object, field by field."""
    nic = device()
    assert metadata(plan(nic), [nic], [fact(nic, "192.0.2.1/24")], DRIVER) == {
        "kind": "DeviceMetadata",
        "metadata": {"name": "c", "namespace": "default", "uid": UID, "generation": 1},
        "requests": [
            {
                "name": "nic",
                "devices": [
                    {
                        "driver": "dra.net",
                        "pool": "node",
                        "name": "eth1",
                        "attributes": ATTRIBUTES,
                        "networkData": {
                            "interfaceName": "net1",
                            "ips": ["192.0.2.1/24"],
                            "hardwareAddress": "02:00:00:00:00:01",
                        },
                    }
                ],
            }
        ],
    }


def test_an_rdma_device_is_named_among_the_attributes() -> None:
    """The name of the link that comes along, also where it was not published."""
    nic = device(rdma=RdmaPlan(link="mlx5_0", exclusive=True))
    found = metadata(plan(nic), [nic], [], DRIVER)
    assert found["requests"][0]["devices"][0]["attributes"] == {
        **ATTRIBUTES,
        "dra.net/rdmaDevice": {"string": "mlx5_0"},
    }


def test_a_claim_of_a_template_says_the_pods_name_for_it() -> None:
    """The field podClaimName is there for those alone."""
    nic = device()
    assert metadata(plan(nic, pod_claim_name="net"), [nic], [], DRIVER)["podClaimName"] == "net"
    assert "podClaimName" not in metadata(plan(nic), [nic], [], DRIVER)


def test_subrequests_stand_under_their_full_name() -> None:
    """Each of the prioritized list's choices that was taken is a request of its own in the file."""
    first, second, third = device("a", "nic/fast"), device("b", "nic/fast"), device("c", "nic/slow")
    found = metadata(plan(first, second, third), [first, second, third], [], DRIVER)
    assert {request["name"]: [one["name"] for one in request["devices"]] for request in found["requests"]} == {
        "nic/fast": ["a", "b"],
        "nic/slow": ["c"],
    }


@pytest.mark.parametrize("phase", [Phase.LOST, Phase.UNKNOWN, Phase.PREPARED])
def test_what_is_not_in_the_pod_has_no_network_data(phase: Phase) -> None:
    """Identity and attributes stay."""
    nic = device()
    assert network(metadata(plan(nic), [nic], [fact(nic, "192.0.2.1/24", phase=phase)], DRIVER)) == {}


def test_a_device_without_interface_has_no_network_data() -> None:
    """An RDMA device has no address to tell."""
    nic = device()
    seen = replace(fact(nic), rdma_only=True)
    assert network(metadata(plan(nic), [nic], [seen], DRIVER)) == {}


def test_at_most_sixteen_addresses_in_a_stable_order() -> None:
    """What is shown already keeps its place, whatever order the kernel lists."""
    nic = device()
    many = [f"10.0.0.{number}/24" for number in range(1, 21)]
    before = metadata(plan(nic), [nic], [fact(nic, *many)], DRIVER)
    assert network(before)["ips"] == many[:MAX_ADDRESSES]
    assert metadata(plan(nic), [nic], [fact(nic, *reversed(many))], DRIVER, before) == before


def test_of_many_addresses_those_that_the_claim_asked_for_are_told() -> None:
    """The file says the same as the claim's status."""
    nic = device()
    many = [f"10.0.0.{number}/24" for number in range(1, 31)]
    seen = fact(nic, *many)
    assert seen.interface is not None
    seen = replace(seen, interface=replace(seen.interface, addresses=("192.0.2.1/24", *many), planned=1))
    before = metadata(plan(nic), [nic], [fact(nic, *many)], DRIVER)
    assert network(metadata(plan(nic), [nic], [seen], DRIVER, before))["ips"] == [*many[:15], "192.0.2.1/24"]


def test_the_generation_counts_changes() -> None:
    """It stays when nothing differs, and is one more when something does."""
    nic = device()
    first = metadata(plan(nic), [nic], [fact(nic)], DRIVER)
    assert metadata(plan(nic), [nic], [fact(nic)], DRIVER, first) == first
    second = metadata(plan(nic), [nic], [fact(nic, name="net2")], DRIVER, first)
    assert second["metadata"]["generation"] == 2


def test_a_kernel_name_that_is_no_unicode_is_still_json() -> None:
    """Interface names may be any bytes."""
    nic = device()
    name = b"net\xff".decode("utf-8", "surrogateescape")
    found = network(metadata(plan(nic), [nic], [fact(nic, name=name)], DRIVER))
    assert found["interfaceName"] == "net\ufffd"
    json.dumps(found, ensure_ascii=False).encode()


# ---- where it is


def test_the_path_names_claim_request_and_driver() -> None:
    """A claim by its own name."""
    assert container_path(plan(), "nic", DRIVER) == f"{ROOT}/resourceclaims/c/nic/dra.net-metadata.json"


def test_the_path_of_a_templates_claim_names_the_pods_claim() -> None:
    """Its own name is random; a container cannot know it."""
    found = container_path(plan(name="pod-net-x7k2p", pod_claim_name="net"), "nic", DRIVER)
    assert found == f"{ROOT}/resourceclaimtemplates/net/nic/dra.net-metadata.json"


@pytest.mark.parametrize("annotation", ["../../../etc", "a/b", "", ".", "UPPER", "x" * 64])
def test_an_annotation_that_is_no_name_is_not_believed(annotation: str) -> None:
    """Whoever makes a claim may write what he likes into its annotations."""
    found = container_path(plan(pod_claim_name=annotation), "nic", DRIVER)
    assert found == f"{ROOT}/resourceclaims/c/nic/dra.net-metadata.json"


@given(st.text(max_size=12), st.text(max_size=12), st.none() | st.text(max_size=12))
def test_no_name_leads_out_of_the_folder(name: str, request: str, annotation: str | None) -> None:
    """Whatever stands in a claim: the path stays below its root, three levels deep, or is refused."""
    try:
        found = container_path(plan(name=name, pod_claim_name=annotation), request, DRIVER)
    except ValueError:
        return
    assert os.path.normpath(found) == found
    assert found.removeprefix(f"{ROOT}/").count("/") == 3


# ---- the file


def files(folder: Path) -> MetadataFiles:
    """Return the files below a folder that is not there yet."""
    return MetadataFiles(folder / "plugin" / "dra-device-metadata", DRIVER)


def content(path: Path) -> dict[str, Any]:
    """Return the newest object of a file; each version says the same."""
    found = [json.loads(line) for line in path.read_text().splitlines() if line]
    assert [each.pop("apiVersion") for each in found] == list(API_VERSIONS)
    assert all(each == found[0] for each in found)
    newest = found[0]
    assert isinstance(newest, dict)
    return newest


def test_the_file_holds_an_object_a_version_that_all_may_read(tmp_path: Path) -> None:
    """The newest version first, for readers take the first that they know. Mode 0644, whatever the daemon's umask."""
    nic = device()
    store = files(tmp_path)
    before = os.umask(0o077)
    try:
        assert store.write(plan(nic), nic.receipt_id, [nic], [fact(nic)])
    finally:
        os.umask(before)
    path = store.path(nic.receipt_id)
    assert [json.loads(line)["apiVersion"] for line in path.read_text().splitlines()] == [
        "metadata.resource.k8s.io/v1beta1",
        "metadata.resource.k8s.io/v1alpha1",
    ]
    assert content(path)["kind"] == "DeviceMetadata"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_change_is_written_into_the_same_file(tmp_path: Path) -> None:
    """Longer or shorter: the inode stays, nothing of the former content does, the generation counts."""
    nic = device()
    store = files(tmp_path)
    store.write(plan(nic), nic.receipt_id, [nic], [fact(nic, "192.0.2.1/24")])
    path = store.path(nic.receipt_id)
    inode = path.stat().st_ino
    steps: list[Sequence[str]] = [("192.0.2.1/24", "2001:db8::1/64"), (), ("10.0.0.1/8",)]
    for number, addresses in enumerate(steps, 2):
        assert store.rewrite(plan(nic), nic.receipt_id, [nic], [fact(nic, *addresses)])
        found = content(path)
        assert found["metadata"]["generation"] == number
        assert network(found).get("ips", []) == list(addresses)
    assert path.stat().st_ino == inode


def test_a_reader_never_finds_half_an_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the write and the cut to the new length the file is whole JSON already."""
    nic = device()
    store = files(tmp_path)
    store.write(plan(nic), nic.receipt_id, [nic], [fact(nic, "192.0.2.1/24", "2001:db8::1/64")])
    path = store.path(nic.receipt_id)
    seen = []
    cut = os.ftruncate

    def look(descriptor: int, length: int) -> None:
        seen.append(content(path)["metadata"]["generation"])
        cut(descriptor, length)

    monkeypatch.setattr(os, "ftruncate", look)
    store.rewrite(plan(nic), nic.receipt_id, [nic], [fact(nic)])
    assert seen == [2]


def test_what_is_as_before_is_not_written(tmp_path: Path) -> None:
    """Neither by the daemon that wrote it nor by the next one."""
    nic = device()
    files(tmp_path).write(plan(nic), nic.receipt_id, [nic], [fact(nic)])
    store = files(tmp_path)
    before = store.path(nic.receipt_id).stat().st_mtime_ns
    assert not store.write(plan(nic), nic.receipt_id, [nic], [fact(nic)])
    assert store.path(nic.receipt_id).stat().st_mtime_ns == before


def test_the_file_of_a_program_with_one_version_is_continued(tmp_path: Path) -> None:
    """After an update the other version is added; what the object says stays, and with it the generation."""
    nic = device()
    store = files(tmp_path)
    store.write(plan(nic), nic.receipt_id, [nic], [fact(nic)])
    store.rewrite(plan(nic), nic.receipt_id, [nic], [fact(nic, "192.0.2.1/24")])
    path = store.path(nic.receipt_id)
    before = content(path)
    path.write_text(path.read_text().splitlines()[1] + "\n")
    assert store.rewrite(plan(nic), nic.receipt_id, [nic], [fact(nic, "192.0.2.1/24")])
    assert content(path) == before
    assert before["metadata"]["generation"] == 2


OURS = '{"apiVersion":"metadata.resource.k8s.io/v1alpha1"'


@pytest.mark.parametrize(
    "damage",
    [
        *("", "{", "[]", "null", '{"apiVersion":"other/v1"}', "\x00\x00", OURS + "}"),
        *(OURS + ',"metadata":[1]}', OURS + ',"metadata":{"generation":"x"}}', OURS + ',"requests":[{}]}'),
    ],
)
def test_a_damaged_file_is_written_anew(tmp_path: Path, damage: str) -> None:
    """Of a daemon that was killed in the middle; the count begins again."""
    nic = device()
    store = files(tmp_path)
    store.write(plan(nic), nic.receipt_id, [nic], [fact(nic)])
    path = store.path(nic.receipt_id)
    path.write_text(damage)
    assert store.write(plan(nic), nic.receipt_id, [nic], [fact(nic)])
    assert content(path)["metadata"]["generation"] == 1


def test_a_file_that_is_not_there_is_not_made_by_a_change(tmp_path: Path) -> None:
    """The claim was given back meanwhile."""
    nic = device()
    store = files(tmp_path)
    assert not store.rewrite(plan(nic), nic.receipt_id, [nic], [fact(nic)])
    assert store.listing() == []


def test_a_link_in_the_files_place_is_not_followed(tmp_path: Path) -> None:
    """The daemon writes as root: it writes into its own file or not at all."""
    nic = device()
    store = files(tmp_path)
    path = store.path(nic.receipt_id)
    path.parent.mkdir(parents=True)
    target = tmp_path / "precious"
    target.write_text("precious")
    path.symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        store.write(plan(nic), nic.receipt_id, [nic], [fact(nic)])
    assert target.read_text() == "precious"


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that is cut short is not taken for a success."""
    nic = device()
    monkeypatch.setattr(os, "pwrite", lambda *_: 5)
    with pytest.raises(OSError, match="No space left"):
        files(tmp_path).write(plan(nic), nic.receipt_id, [nic], [fact(nic)])


# ---- with the receipt


@pytest.fixture
def receipts(tmp_path: Path) -> Receipts:
    """Return receipts that bring metadata along."""
    return Receipts(tmp_path / "cdi", DRIVER, files(tmp_path))


def spec(folder: Path) -> dict[str, Any]:
    """Return the edits of the one receipt."""
    (path,) = (folder / "cdi").glob("*.json")
    ((only,),) = [json.loads(path.read_text())["devices"]]
    return dict(only["containerEdits"])


def test_the_receipt_binds_the_file_in_read_only(receipts: Receipts, tmp_path: Path) -> None:
    """The environment variable is still there."""
    nic = device()
    receipts.write(plan(nic, pod_claim_name="net"), [fact(nic)])
    assert spec(tmp_path) == {
        "env": ["DRA_NET_NIC=net1"],
        "mounts": [
            {
                "hostPath": str(files(tmp_path).path(nic.receipt_id)),
                "containerPath": f"{ROOT}/resourceclaimtemplates/net/nic/dra.net-metadata.json",
                "options": ["ro", "bind"],
            }
        ],
    }


def test_each_request_has_its_own_file(receipts: Receipts, tmp_path: Path) -> None:
    """A container that lists one request sees nothing of the other."""
    one, other = device("eth1", "one"), device("eth2", "other")
    receipts.write(plan(one, other), [fact(one), fact(other, name="net2")])
    store = files(tmp_path)
    assert len(store.listing()) == 2
    found = content(store.path(other.receipt_id))
    assert [request["name"] for request in found["requests"]] == ["other"]
    assert network(found)["interfaceName"] == "net2"


def test_it_goes_with_the_receipt(receipts: Receipts, tmp_path: Path) -> None:
    """Removing twice is no error."""
    nic = device()
    receipts.write(plan(nic), [fact(nic)])
    receipts.remove(plan(nic))
    receipts.remove(plan(nic))
    assert files(tmp_path).listing() == []
    assert receipts.missing(plan(nic))


def test_metadata_that_is_missing_is_noticed_and_written_again(receipts: Receipts, tmp_path: Path) -> None:
    """A container could not be created: its mount would have no source."""
    nic = device()
    receipts.write(plan(nic), [fact(nic)])
    assert not receipts.missing(plan(nic))
    files(tmp_path).remove(nic.receipt_id)
    assert receipts.missing(plan(nic))
    receipts.write(plan(nic), [fact(nic)])
    assert not receipts.missing(plan(nic))


def test_no_receipt_without_its_metadata(tmp_path: Path) -> None:
    """What cannot be written is named, and the attach fails."""
    (tmp_path / "plugin").write_text("a file where the folder should be")
    nic = device()
    with pytest.raises(ReceiptError, match=r"dra-device-metadata/[0-9a-f]{32}\.json cannot be written: "):
        Receipts(tmp_path / "cdi", DRIVER, files(tmp_path)).write(plan(nic), [fact(nic)])
    assert not (tmp_path / "cdi").exists()


def test_a_claim_name_that_the_api_would_not_take_is_refused(receipts: Receipts) -> None:
    """It would become a path in the container."""
    nic = device()
    with pytest.raises(ReceiptError, match=r"claim name '\.\./c'"):
        receipts.write(plan(nic, name="../c"), [fact(nic)])


def test_metadata_that_cannot_be_removed_is_named(receipts: Receipts, tmp_path: Path) -> None:
    """Here a folder stands in its place."""
    nic = device()
    files(tmp_path).path(nic.receipt_id).mkdir(parents=True)
    with pytest.raises(ReceiptError, match="cannot be removed: Is a directory"):
        receipts.remove(plan(nic))


def test_a_sweep_removes_what_belongs_to_no_attached_claim(receipts: Receipts, tmp_path: Path) -> None:
    """Files of claims that are attached stay."""
    nic, gone = device("eth1"), device("eth2", "other")
    receipts.write(plan(nic), [fact(nic)])
    receipts.write(plan(gone), [fact(gone)])
    removed = receipts.sweep(lambda: [plan(nic)])
    store = files(tmp_path)
    assert store.listing() == [store.path(nic.receipt_id).name]
    assert store.path(gone.receipt_id).name in removed
    assert receipts.sweep(lambda: [plan(nic)]) == []


def test_a_sweep_finds_metadata_without_a_receipt(receipts: Receipts, tmp_path: Path) -> None:
    """The daemon was killed between the two files."""
    nic = device()
    files(tmp_path).write(plan(nic), nic.receipt_id, [nic], [fact(nic)])
    assert receipts.sweep(list) == [files(tmp_path).path(nic.receipt_id).name]


def test_a_change_is_brought_into_the_files(receipts: Receipts, tmp_path: Path) -> None:
    """The claim and its facts are asked for when it is their turn."""
    nic = device()
    receipts.write(plan(nic), [fact(nic)])
    receipts.refresh(lambda: (plan(nic), [fact(nic, "192.0.2.1/24")]))
    assert network(content(files(tmp_path).path(nic.receipt_id)))["ips"] == ["192.0.2.1/24"]


def test_a_claim_that_is_not_attached_any_more_is_left_alone(receipts: Receipts, tmp_path: Path) -> None:
    """Its facts came late."""
    nic = device()
    receipts.write(plan(nic), [fact(nic)])
    receipts.refresh(lambda: None)
    assert content(files(tmp_path).path(nic.receipt_id))["metadata"]["generation"] == 1


def test_a_change_that_cannot_be_written_is_told_in_the_log(
    receipts: Receipts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever reports a change has others to tell: nothing is raised."""
    nic = device()
    files(tmp_path).path(nic.receipt_id).mkdir(parents=True)
    receipts.refresh(lambda: (plan(nic), [fact(nic)]))
    assert "metadata not brought up to date" in caplog.text


def test_without_metadata_nothing_changes(tmp_path: Path) -> None:
    """Receipts alone, as where no container gets any."""
    nic = device()
    only = Receipts(tmp_path / "cdi", DRIVER)
    only.write(plan(nic), [fact(nic)])
    only.refresh(lambda: (plan(nic), [fact(nic)]))
    assert spec(tmp_path) == {"env": ["DRA_NET_NIC=net1"]}
    assert not only.missing(plan(nic))
    only.remove(plan(nic))
    assert only.missing(plan(nic))


def test_a_sweep_tells_of_metadata_that_it_cannot_remove(
    receipts: Receipts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be removed is said with its path, and does not count as removed."""
    nic = device()
    path = files(tmp_path).path(nic.receipt_id)
    path.mkdir(parents=True)
    assert receipts.sweep(list) == []
    assert "cannot be removed" in caplog.text


def test_the_folders_are_made_before_the_first_hook(receipts: Receipts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook makes no folder, unless somebody has removed one meanwhile."""
    nic = device()
    receipts.make_folders()
    made: list[Path] = []
    mkdir = Path.mkdir

    def noted(self: Path, *args: Any, **more: Any) -> None:
        made.append(self)
        mkdir(self, *args, **more)

    monkeypatch.setattr(Path, "mkdir", noted)
    receipts.write(plan(nic), [fact(nic)])
    assert made == []
    assert not receipts.missing(plan(nic))
    receipts.remove(plan(nic))
    for folder in (receipts._folder, files(receipts._folder.parent)._folder):
        shutil.rmtree(folder)
    receipts.write(plan(nic), [fact(nic)])
    assert not receipts.missing(plan(nic))


def test_folders_that_cannot_be_made_are_told_and_tried_again_in_the_hook(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The start goes on: pods without claims must not wait for that."""
    (tmp_path / "cdi").touch()
    receipts = Receipts(tmp_path / "cdi", DRIVER, files(tmp_path))
    receipts.make_folders()
    assert [record.message for record in caplog.records] == ["the folder of receipts or metadata cannot be made"]
