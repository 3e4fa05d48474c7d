"""``nri-dranet explain``: the merged configuration with its origins, the plan in words, every error."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from nri_dranet.claims.lifecycle import State
from nri_dranet.claims.model import ClaimRef, DeviceKey, PodRef
from nri_dranet.claims.plan import CharDevice, ClaimPlan, DeviceKind, DevicePlan, HostState
from nri_dranet.claims.record import ClaimRecord, Holder
from nri_dranet.cli import explain as command
from nri_dranet.cli.explain import add_arguments, run
from nri_dranet.cli.explain_input import InputError, allocated, documents
from nri_dranet.dra.explain import Node
from nri_dranet.dra.plan_model import DeviceFactsIn, NodeFacts
from nri_dranet.netlink.model import Address, Link

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CLASS = """
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: fast}
spec:
  config:
  - opaque:
      driver: dra.net
      parameters:
        interface: {mtu: 1400, forwarding: true}
        ethtool: {features: {gro: false}}
"""
CLAIM = """
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: nets}
spec:
  spec:
    devices:
      requests:
      - name: nic
        exactly: {deviceClassName: fast}
      config:
      - requests: [nic]
        opaque:
          driver: dra.net
          parameters:
            interface: {mtu: 1500, addresses: [10.77.0.5/24], vrf: {name: red, table: 100}}
            routes: [{destination: 10.99.0.0/16, gateway: 10.77.0.1}]
            neighbors: [{destination: 10.77.0.9, hardwareAddr: "02:00:00:00:00:09"}]
"""


def link(**fields: Any) -> Link:
    """Return the node's interface."""
    base: dict[str, Any] = {
        "index": 7, "name": "eth1", "type": 1, "mtu": 9000, "max_mtu": 9000, "flags": 1, "address": "02:00:00:00:00:07"
    }  # fmt: skip
    return Link(**(base | fields))


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, records: list[ClaimRecord]) -> dict[str, DeviceFactsIn]:
    """Return the devices of a node that has eth1."""
    devices = {"eth1": DeviceFactsIn(name="eth1", link=link())}
    address = Address(family=2, address="192.0.2.7", prefix_length=24)
    state = {"rx-gro": True}

    def looked_at(*_: object) -> Node:
        hosts = {
            name: HostState(link=one.link, addresses=(address,), features=state)
            for name, one in devices.items()
            if one.link
        }
        return Node(devices, hosts, NodeFacts(), tuple(records))

    monkeypatch.setattr(command, "_node", looked_at)
    return devices


@pytest.fixture
def records() -> list[ClaimRecord]:
    """Return the claims that the node's journal has."""
    return []


def ran(*words: str) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(words))


@pytest.fixture
def files(tmp_path: Path) -> str:
    """Return a file with the class and the claim template."""
    path = tmp_path / "all.yaml"
    path.write_text(f"{CLASS}---\n{CLAIM}")
    return str(path)


def explained(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    """Run the command for data and return its exit code and what it printed."""
    code = ran(*words, "-o", "json")
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, found


@pytest.mark.usefixtures("node")
def test_values_have_their_origin_and_the_plan_its_order(capsys: pytest.CaptureFixture[str], files: str) -> None:
    """Class, claim and host are told apart; the steps are those of the attach."""
    code, found = explained(capsys, "-f", files, "--device", "nic=eth1")
    assert (code, found["errors"]) == (0, [])
    (device,) = found["devices"]
    origins = {each["field"]: (each["value"], each["from"]) for each in device["configuration"]}
    assert origins["interface.mtu"] == (1500, "claim, config[1] of the allocation")
    assert origins["interface.forwarding"] == (True, "device class, config[0] of the allocation")
    assert origins["interface.name"] == ("eth1", "the device on the host")
    assert device["steps"][:3] == [
        "make the VRF red with table 100, unless the pod has it",
        "set sysctl ipv4/tcp_l3mdev_accept=1",
        "set sysctl ipv4/udp_l3mdev_accept=1",
    ]
    rest = device["steps"][3:]
    assert rest[0] == "move eth1 into the pod as eth1"
    assert rest.index("switch rx-gro off") < rest.index("set MTU 1500") < rest.index("set up")
    assert "10.99.0.0/16" in rest[-2]


@pytest.mark.usefixtures("node")
def test_dhcp_is_a_step_before_all_others(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The address is not known yet: who asks for it is told, and the host's stay out."""
    path = tmp_path / "claim.yaml"
    path.write_text(CLASS + "---\n" + CLAIM.replace("addresses: [10.77.0.5/24]", "dhcp: true"))
    code, found = explained(capsys, "-f", str(path), "--device", "nic=eth1")
    assert (code, found["errors"]) == (0, [])
    (device,) = found["devices"]
    asked = "before that, in Prepare: ask a DHCP server for address and routes, as "
    assert device["steps"][0].startswith(asked)
    assert not [step for step in device["steps"] if step.startswith("add address")]


@pytest.mark.usefixtures("node")
def test_text_is_for_people(capsys: pytest.CaptureFixture[str], files: str) -> None:
    """Request, device, values with their origin, numbered steps."""
    assert ran("-f", files, "--device", "nic=eth1") == 0
    text = capsys.readouterr().out
    assert text.startswith("Claim default/nets\n\nRequest nic: device eth1\n  Configuration:\n")
    assert "interface.mtu         1500  ← claim, config[1] of the allocation" in text
    assert "destination=10.99.0.0/16, gateway=10.77.0.1" in text
    assert "  Plan:\n    1. make the VRF" in text


@pytest.mark.usefixtures("node")
def test_every_error_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path, files: str) -> None:
    """Errors of values and of the device, with the origin; the exit code says that it would be refused."""
    code, found = explained(capsys, "-f", files, "--device", "nic=eth9")
    assert code == 1
    assert [error["message"] for error in found["errors"]] == ["is not on this node, or not any more"]
    path = tmp_path / "bad.yaml"
    path.write_text(CLASS + "---\n" + CLAIM.replace("mtu: 1500", "mtu: 20, mtu: 30, Name: x"))
    code, found = explained(capsys, "-f", str(path), "--offline")
    assert code == 1
    assert {error["path"]: error["message"] for error in found["errors"]} == {
        "interface.mtu": "must be given once",
        "interface.Name": "is not a known field; did you mean name?",
    }
    assert ran("-f", str(path), "--offline") == 1
    assert "Refused:\n  - interface.mtu: 30: must be given once (claim, config[1]" in capsys.readouterr().out


@pytest.mark.usefixtures("node")
def test_a_claim_without_allocation_has_no_plan(capsys: pytest.CaptureFixture[str], files: str) -> None:
    """The note says how to get one."""
    code, found = explained(capsys, "-f", files)
    assert code == 0
    assert "steps" not in found["devices"][0]
    assert "--device REQUEST=DEVICE (requests: nic)" in found["notes"][0]
    assert ran("-f", files) == 0
    assert "Request nic: not allocated\n" in capsys.readouterr().out
    assert ran("-f", files, "-o", "yaml") == 0
    assert yaml.safe_load(capsys.readouterr().out) == found


def test_other_kinds_of_devices(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, node: dict[str, DeviceFactsIn]
) -> None:
    """Sub-interfaces, RDMA devices and admin access have steps of their own."""
    uverbs = CharDevice(path="/dev/infiniband/uverbs0", major=231, minor=192)
    node["shared"] = DeviceFactsIn(name="shared", link=link(), shared=True)
    node["efa"] = DeviceFactsIn(name="efa", rdma="efa_0", char_devices=(uverbs,))
    results = [
        {"request": "a", "driver": "dra.net", "pool": "n", "device": "shared", "shareID": "s-1"},
        {"request": "b", "driver": "dra.net", "pool": "n", "device": "efa"},
        {"request": "c", "driver": "dra.net", "pool": "n", "device": "eth1", "adminAccess": True},
    ]
    claim = {
        "kind": "ResourceClaim",
        "metadata": {"name": "c", "namespace": "ns", "uid": "u"},
        "status": {"allocation": {"devices": {"results": results}}},
    }
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"kind": "List", "items": [claim]}))
    code, found = explained(capsys, "-f", str(path))
    assert code == 0
    steps = [device["steps"] for device in found["devices"]]
    assert steps[0][0] == "make the macvlan eth1 on eth1 in mode bridge"
    assert steps[1] == ["give the containers /dev/infiniband/uverbs0 (231:192)"]
    assert steps[2] == ["nothing: the claim has admin access, the device is reported and stays"]
    assert ran("-f", str(path)) == 0
    assert "device shared (share s-1)" in capsys.readouterr().out


def test_what_cannot_be_read_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path, files: str) -> None:
    """A missing file, broken YAML, no claim, a class that is missing, wrong arguments."""
    assert ran("-f", str(tmp_path / "none")) == 1
    broken = tmp_path / "broken.yaml"
    for text in ("a: [", "[" * 5000, CLASS, CLAIM, "1: 2"):
        broken.write_text(text)
        assert ran("-f", str(broken), "--offline") == 1
    for words in ((), ("c", "-f", files), ("-f", files, "--device", "nic"), ("-f", files, "--device", "x=y")):
        assert ran(*words) == 2
    assert ran("-f", files, "--offline", "--share", "nothing") == 2
    assert "explain: " in capsys.readouterr().err


def test_numbers_and_dates_are_read_as_kubectl_reads_them(tmp_path: Path) -> None:
    """YAML 1.1 would make an integer of a MAC address of digits, and a date of a text."""
    path = tmp_path / "x.yaml"
    path.write_text("kind: X\nmac: 12:34:56:10:20:30\nday: 2001-12-14\nten: 10\nhex: 0x10\n")
    (found,) = documents(str(path))
    assert found == {"kind": "X", "mac": "12:34:56:10:20:30", "day": "2001-12-14", "ten": 10, "hex": 16}


def test_alternatives_are_requests_of_their_own() -> None:
    """A sub-request has its class, and is named as in an allocation."""
    raw: Mapping[str, Any] = {
        "spec": {
            "devices": {
                "requests": [{"name": "nic", "firstAvailable": [{"name": "good", "deviceClassName": "fast"}]}],
            }
        }
    }
    found = allocated(raw, {"fast": yaml.safe_load(CLASS)}, "dra.net", {"nic/good": "eth1"})["status"]["allocation"]
    assert found["devices"]["results"][0]["request"] == "nic/good"
    assert found["devices"]["config"][0]["requests"] == ["nic/good"]
    with pytest.raises(InputError, match="device class fast of request nic/good"):
        allocated(raw, {}, "dra.net", {})


POD = """
kind: Pod
metadata: {name: web}
spec:
  resourceClaims:
  - {name: first, resourceClaimTemplateName: nets}
  - {name: second, resourceClaimTemplateName: nets}
"""


@pytest.fixture
def pod(tmp_path: Path) -> str:
    """Return a file with a pod that uses the template twice."""
    path = tmp_path / "pod.yaml"
    path.write_text(f"{CLASS}---\n{CLAIM}---\n{POD}")
    return str(path)


def test_claims_of_a_pod_that_collide_are_refused_with_both_sides(
    capsys: pytest.CaptureFixture[str], node: dict[str, DeviceFactsIn], pod: str
) -> None:
    """The second claim gets what the first one has already: name, address, a route's way."""
    node["eth2"] = DeviceFactsIn(name="eth2", link=link(index=8, name="eth2"))
    words = ("-f", pod, "--device", "web-first:nic=eth1", "--device", "web-second:nic=eth2")
    code, found = explained(capsys, *words)
    assert code == 1
    first, second = found["claims"]
    assert first["claim"]["name"] == "web-first"
    assert first["errors"] == []
    assert first["devices"][0]["steps"]
    assert "steps" not in second["devices"][0]
    assert [error["path"] for error in second["errors"]] == ["interface.addresses[0]", "routes"]
    assert all("device eth1, request nic, of claim web-first" in error["message"] for error in second["errors"])
    assert all("device eth2, request nic" in error["from"] for error in second["errors"])
    assert ran(*words) == 1
    text = capsys.readouterr().out
    assert text.index("Claim default/web-first") < text.index("Claim default/web-second") < text.index("Refused:")


@pytest.mark.usefixtures("node")
def test_one_device_cannot_be_in_two_claims(capsys: pytest.CaptureFixture[str], pod: str) -> None:
    """Both claims are named."""
    words = ("--device", "web-first:nic=eth1", "--device", "web-second:nic=eth1")
    _, found = explained(capsys, "-f", pod, *words)
    error = found["claims"][1]["errors"][-1]
    assert error["path"] == "device eth1"
    assert error["message"] == "is prepared for claim default/web-first: it cannot be in both"


@pytest.mark.usefixtures("node")
def test_a_device_that_a_pod_has_is_refused_with_that_pod(
    capsys: pytest.CaptureFixture[str], files: str, records: list[ClaimRecord]
) -> None:
    """The daemon's journal knows it."""
    plan = DevicePlan(key=DeviceKey("node", "eth1"), request="nic", kind=DeviceKind.INTERFACE)
    holder = Holder(pod=PodRef("prod", "db-0", "p"), sandbox_id="s", netns_path="/x")
    held = ClaimPlan(ref=ClaimRef("prod", "db", "u9"), allocation_hash="h", devices=(plan,))
    records.append(ClaimRecord(plan=held, state=State.ATTACHED, holder=holder))
    code, found = explained(capsys, "-f", files, "--device", "nic=eth1")
    assert code == 1
    (error,) = found["errors"]
    assert error["path"] == "device eth1"
    assert error["message"] == "is prepared for claim prod/db, which pod prod/db-0 holds: it cannot be in both"


@pytest.mark.usefixtures("node")
def test_what_cannot_be_chosen_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path, pod: str) -> None:
    """A request of two claims, a claim that there is not, an allocated one, a pod whose template is missing."""
    for word, said in (
        ("nic=eth1", "claims web-first and web-second have request nic: write --device CLAIM:nic=eth1"),
        ("other:nic=eth1", "there is no claim other; there are web-first, web-second"),
        ("web-first:x=eth1", "no claim without allocation has a request 'x'; requests are nic"),
    ):
        assert ran("-f", pod, "--device", word) == 2
        assert said in capsys.readouterr().err
    path = tmp_path / "x.yaml"
    path.write_text("kind: ResourceClaim\nmetadata: {name: c}\nstatus: {allocation: {devices: {results: []}}}\n")
    assert ran("-f", str(path), "--device", "nic=eth1") == 2
    assert "for claims that are not allocated" in capsys.readouterr().err
    for text, said in (
        (POD, "ResourceClaimTemplate nets of pod web is not among the files"),
        (f"{POD}---\n{POD}", "2 pods"),
        ("kind: Pod", "no claim and no claim template of the pod"),
    ):
        path.write_text(text)
        assert ran("-f", str(path)) == 1
        assert said in capsys.readouterr().err
