"""``nri-dranet devices`` on a real node."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from nri_dranet.claims.facts import DeviceFacts, Phase
from nri_dranet.claims.lifecycle import State
from nri_dranet.claims.model import ClaimRef, DeviceKey, PodRef
from nri_dranet.claims.plan import ClaimPlan, DeviceKind, DevicePlan
from nri_dranet.claims.record import ClaimRecord, Holder
from nri_dranet.cli.devices import Answer, add_arguments, describe, render, run
from nri_dranet.cli.records import Records
from nri_dranet.dra.sharing import Sharing
from nri_dranet.inventory.device import Device
from nri_dranet.inventory.override import NodeFilter
from nri_dranet.netlink.model import Link
from nri_dranet.offers import Offers, held_devices

if TYPE_CHECKING:
    from collections.abc import Callable

COMMAND = (sys.executable, "-m", "nri_dranet", "devices", "--kubelet-root-dir=/nowhere", "--kubeconfig=/nowhere")


@pytest.fixture
def node(make_node: Callable[..., Any]) -> Any:
    """A node with an interface to publish, one that the filter leaves out, and one that cannot be given away."""
    found = make_node()
    found.ip("tuntap add eth1 mode tap")
    found.ip("link add veth0 type veth peer name veth1")
    found.ip("link add br0 type bridge")
    return found


def test_table(node: Any) -> None:
    """The table shows what is published, and below it the rest with the reason of each."""
    head, _, tail = node.run(*COMMAND).partition("Not published:")
    assert "eth1" in head
    assert head.startswith("DEVICE")
    table, _, notes = tail.strip().partition("\n\n")
    reasons = {line.split()[0]: line for line in table.splitlines()}
    assert "the filter leaves it out" in reasons["veth0"]
    assert "does not let a bridge leave" in reasons["br0"]
    assert "loopback" in reasons["lo"]
    # Nobody runs here: what is not known is said.
    assert "Note: no daemon is seen" in notes
    assert "devices in pods are not known" in notes
    assert "its address protects no interface here" in notes


@pytest.mark.parametrize(("output", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_for_programs(node: Any, output: str, read: Callable[[str], Any]) -> None:
    """JSON and YAML hold each device as in a slice, whether it is published and why not."""
    text = node.run(*COMMAND, "-o", output, "--filter", "")
    found = {device["name"]: device for device in read(text)["devices"]}
    assert found["veth0"]["published"] is True
    assert found["veth0"]["attributes"]["dra.net/type"] == {"string": "veth"}
    assert found["br0"]["published"] is False
    assert "bridge" in found["br0"]["reason"]
    assert "&id" not in text


def test_wrong_filter(node: Any) -> None:
    """A filter that is none is told with its place, and exit code 2."""
    text = node.run("sh", "-c", '"$0" -m nri_dranet devices --filter "name ==" 2>&1; echo "code $?"', sys.executable)
    assert "1:8" in text
    assert text.endswith("code 2\n")


@pytest.mark.parametrize("output", ["table", "json", "yaml"])
def test_in_this_process(node: Any, capsys: pytest.CaptureFixture[str], output: str) -> None:
    """The command prints what it found and leaves no thread and no socket behind."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with node.netns.entered():
        assert run(parser.parse_args(["-o", output])) == 0
    assert "eth1" in capsys.readouterr().out
    assert "inventory" not in {thread.name for thread in threading.enumerate()}


def test_failures(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter that is none and a node that cannot be read end with a word and a code of their own."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args(["--filter", "name =="])) == 2

    def refuse(*_: object, **__: object) -> None:
        raise OSError(1, "on purpose")

    monkeypatch.setattr("nri_dranet.inventory.inventory.RtnlSocket", refuse)
    assert run(parser.parse_args([])) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_node_that_is_not_read_in_time(
    node: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan that does not end in time is told."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    monkeypatch.setattr("nri_dranet.inventory.inventory.Inventory.wait", lambda *_: False)
    with node.netns.entered():
        assert run(parser.parse_args([])) == 1
    assert "not read within" in capsys.readouterr().err


def told(*devices: Device, share: str = "", records: Records | None = None, taints: str = "") -> list[dict[str, Any]]:
    """Return the rows for these devices and claims."""
    records = records or Records()
    held = held_devices(records.records())
    offers = Offers(driver="dra.net", taints=taints)
    return describe(devices, held, NodeFilter("", "dra.net"), Sharing(share, "dra.net", records), offers)


def claim(name: str, phase: Phase = Phase.ATTACHED, *, holder: bool = True) -> ClaimRecord:
    """Return a claim whose device of that name is in the pod default/p."""
    plan = DevicePlan(
        key=DeviceKey("n", name),
        request="nic",
        kind=DeviceKind.INTERFACE,
        host=None,
        pod=None,
        published={"name": name, "attributes": {"dra.net/ifName": {"string": name}, "dra.net/mtu": {"int": 9000}}},
    )
    pod = PodRef("default", "p", "pod-uid")
    return ClaimRecord(
        plan=ClaimPlan(ref=ClaimRef("default", "c", "claim-uid"), allocation_hash="h", pods=(pod,), devices=(plan,)),
        state=State.ATTACHED if holder else State.ATTACHING,
        holder=Holder(pod=pod, sandbox_id="s", netns_path="/run/netns/p") if holder else None,
        facts=(DeviceFacts(key=plan.key, request="nic", phase=phase),),
    )


def test_nothing_to_publish() -> None:
    """Without any device the table says so."""
    text = render(Answer(told(Device(name="lo", refused="it is the loopback interface"))), "table")
    assert text.startswith("No device would be published.\n\nNot published:\n  lo  -  it is the loopback interface")


def test_a_shared_device_is_shown_as_such() -> None:
    """With the flag of the daemon the command shows which devices would be shared."""
    device = Device(
        name="eth1", link=Link(index=7, name="eth1", type=1), attributes={"dra.net/type": {"string": "veth"}}
    )
    rows = told(device, share='device.attributes["dra.net"].type == "veth"')
    assert rows[0]["allowMultipleAllocations"] is True
    assert "veth, shared" in render(Answer(rows), "table")
    assert "allowMultipleAllocations" not in told(device)[0]


def test_a_device_in_a_pod_is_published_as_it_was_with_its_pod() -> None:
    """It is not on the node, and still offered: its claim and pod are beside it."""
    (row,) = told(records=Records((claim("eth7"),)))
    assert row == {
        "name": "eth7",
        "attributes": {"dra.net/ifName": {"string": "eth7"}, "dra.net/mtu": {"int": 9000}},
        "published": True,
        "claim": "default/c",
        "pod": "default/p",
    }
    assert render(Answer([row]), "table").splitlines()[1].split()[-1] == "default/p"
    (row,) = told(records=Records((claim("eth7", holder=False),)))
    assert render(Answer([row]), "table").splitlines()[1].split()[-1] == "unknown"


def test_a_lost_device_is_told_as_such() -> None:
    """It is in no slice, unless it carries a taint there; one of its name that is home is published."""
    lost = Records((claim("eth7", Phase.LOST),))
    (row,) = told(records=lost)
    assert (row["published"], row["reason"]) == (False, "it is neither in its pod nor on the node any more")
    (row,) = told(records=lost, taints="NoExecute")
    assert row["published"]
    assert row["taints"][0]["key"] == "dra.net/device-missing"
    home = Device(name="eth7", link=Link(index=7, name="eth7", type=1))
    (row,) = told(home, records=lost)
    assert (row["published"], row.get("claim")) == (True, None)


def test_what_could_not_be_read_is_said() -> None:
    """In every format: an answer that may be wrong says so."""
    answer = Answer([], ["the journal cannot be read"])
    assert render(answer, "table").endswith("\nNote: the journal cannot be read\n")
    assert json.loads(render(answer, "json")) == {"devices": [], "notes": ["the journal cannot be read"]}
    assert yaml.safe_load(render(answer, "yaml"))["notes"] == ["the journal cannot be read"]
