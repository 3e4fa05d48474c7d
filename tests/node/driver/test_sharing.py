"""A shared interface: several pods have a sub-interface of it at once, while it stays on the host."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.testing.stage import DRIVER, NODE, Stage

if TYPE_CHECKING:
    from nri_dranet.testing.stage import StagedPod

MakeStage = Callable[..., Stage]

REACHED = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 9), timeout=5)
except ConnectionRefusedError:
    pass
"""
"""Ends well when the other side answers, if only to refuse."""


@pytest.fixture
def shared(make_stage: MakeStage, nic: str) -> Stage:
    """Return a stage whose daemon shares the interface."""
    made = make_stage(flags=[f'--share=device.attributes["dra.net"].ifName == "{nic}"'])
    made.start_daemon()
    made.wait_ready()
    made.wait_for(lambda: (made.devices().get(nic) or {}).get("allowMultipleAllocations"), "published as shared")
    return made


def allocate(stage: Stage, claim: str, device: str) -> str:
    """Do what the scheduler does for a device that is allocated several times; return the share's ID."""
    share = str(uuid.uuid4())
    result = {"request": "nic", "driver": DRIVER, "pool": NODE, "device": device, "shareID": share}
    configs = [
        {**each, "source": "FromClaim"} for each in stage.get_claim(claim)["spec"]["devices"].get("config") or []
    ]
    stage.api.allocate("default", claim, results=[result], config=configs, node=NODE)
    return share


def pod_of(stage: Stage, claim: str, device: str, config: dict[str, Any]) -> tuple[StagedPod, str, dict[str, Any]]:
    """Return a pod whose claim has a share, the share's ID, and what Prepare answered."""
    stage.claim(claim, [config])
    share = allocate(stage, claim, device)
    pod = stage.pod(f"pod-{claim}", claim)
    (answer,) = stage.prepare(pod).values()
    return pod, share, answer


def macvlan(name: str, address: str, **fields: Any) -> dict[str, Any]:
    """Return a configuration with a macvlan."""
    return {"interface": {"name": name, "addresses": [address], "subInterface": {"type": "macvlan", **fields}}}


def test_two_pods_have_a_child_each_and_reach_each_other(
    shared: Stage, nic: str, host_state: Callable[[str], Any]
) -> None:
    """Share IDs stand in Prepare's answer and in the status; the parent is as before all the time."""
    before, published = host_state(nic), shared.devices()[nic]
    first, share, answer = pod_of(shared, "one", nic, {"interface": {"name": "net1", "addresses": ["10.9.0.1/24"]}})
    second, other, more = pod_of(shared, "two", nic, macvlan("net1", "10.9.0.2/24"))
    assert [device["share"] for device in (*answer["devices"], *more["devices"])] == [share, other]
    for pod in (first, second):
        shared.runtime.run_pod(pod.sandbox)
    seen = shared.wait_condition("one", "NetworkReady", "True")
    assert (seen["device"], seen["shareID"]) == (nic, share)
    (link,) = json.loads(first.run("ip", "-j", "-d", "link", "show", "dev", "net1"))
    assert (link["linkinfo"]["info_kind"], link["linkinfo"]["info_data"]["mode"]) == ("macvlan", "bridge")
    assert seen["networkData"]["hardwareAddress"] == link["address"]
    first.run(sys.executable, "-c", REACHED, "10.9.0.2")
    during = host_state(nic)
    # The kernel counts children that a device has no address filter for.
    during["link"]["promiscuity"] = before["link"]["promiscuity"]
    assert during == before
    assert shared.devices()[nic] == published
    shared.end_pod(first)
    second.run("ip", "link", "show", "dev", "net1")
    shared.wait_condition("one", "Ready", "False")
    for pod in (first, second):
        if pod is second:
            shared.end_pod(pod)
        (released,) = shared.unprepare(pod).values()
        assert released["error"] == ""
    assert host_state(nic) == before


def test_the_next_sandbox_of_a_claim_has_the_same_hardware_address(shared: Stage, nic: str) -> None:
    """Switches, neighbours and DHCP servers know it by that."""
    pod, _, _ = pod_of(shared, "one", nic, macvlan("net1", "10.9.0.1/24"))
    addresses = []
    for _ in range(2):
        shared.runtime.run_pod(pod.sandbox)
        addresses.append(json.loads(pod.run("ip", "-j", "link", "show", "dev", "net1"))[0]["address"])
        shared.runtime.stop_pod(pod.sandbox)
        shared.runtime.remove_pod(pod.sandbox)
    assert addresses[0] == addresses[1]


def test_killed_with_children_in_pods_they_stay_and_go_with_their_pods(
    shared: Stage, nic: str, host_state: Callable[[str], Any]
) -> None:
    """A restarted daemon knows them, also when the flag is gone: the parent stays shared until they are."""
    before = host_state(nic)
    pod, _, _ = pod_of(shared, "one", nic, macvlan("net1", "10.9.0.1/24"))
    shared.runtime.run_pod(pod.sandbox)
    shared.wait_condition("one", "NetworkReady", "True")
    shared.stop_daemon()
    shared._flags.clear()
    shared.start_daemon()
    shared.wait_ready()
    pod.run("ip", "link", "show", "dev", "net1")
    assert shared.devices()[nic]["allowMultipleAllocations"] is True
    shared.end_pod(pod)
    shared.unprepare(pod)
    shared.wait_for(lambda: "allowMultipleAllocations" not in shared.devices()[nic], "published as a whole again")
    assert host_state(nic) == before


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"interface": {"subInterface": {"type": "ipvlan"}}}, "interface.subInterface.type"),
        ({"interface": {"subInterface": {"type": "vlan", "vlanID": 7}}}, "interface.subInterface.type"),
    ],
)
def test_a_kind_that_the_kernel_lacks_is_refused_in_prepare(
    shared: Stage, nic: str, config: dict[str, Any], words: str
) -> None:
    """The kinds that it has are named; where it has the kind the claim is prepared."""
    _, _, answer = pod_of(shared, "one", nic, config)
    if answer["error"]:
        assert f"{words}: " in answer["error"]
        assert "must be one of macvlan" in answer["error"]
        assert "the node's kernel has no" in answer["error"]
    else:
        assert answer["devices"]


def test_a_parent_that_is_down_is_refused(shared: Stage, nic: str) -> None:
    """Its children would have no link; the command that helps is named."""
    subprocess.run(["ip", "link", "set", nic, "down"], check=True)
    shared.wait_for(lambda: shared.devices()[nic]["attributes"]["dra.net/state"] == {"string": "down"}, "seen down")
    _, _, answer = pod_of(shared, "one", nic, macvlan("net1", "10.9.0.1/24"))
    assert f"ip link set {nic} up" in answer["error"]


def test_a_device_that_is_not_shared_has_no_children(make_stage: MakeStage, nic: str) -> None:
    """A share of it is refused, and so is a sub-interface."""
    stage = make_stage()
    stage.start_daemon()
    stage.wait_ready()
    stage.wait_for(lambda: nic in stage.devices(), "published")
    assert "allowMultipleAllocations" not in stage.devices()[nic]
    _, _, answer = pod_of(stage, "one", nic, macvlan("net1", "10.9.0.1/24"))
    assert "is not shared on this node any more" in answer["error"]
    assert "interface.subInterface" in answer["error"]
