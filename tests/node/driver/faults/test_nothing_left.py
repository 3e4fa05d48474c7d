"""The journal is lost together with the copies of its rows (F13), or another driver attached the devices."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.testing.stage import RESOURCE_API

if TYPE_CHECKING:
    from collections.abc import Callable

    from nri_dranet.testing.stage import Stage, StagedPod

    HostState = Callable[[str], Any]

CONFIG: dict[str, Any] = {"interface": {"name": "eth99", "mtu": 1300, "addresses": ["169.254.169.13/32"]}}


def _prepared(stage: Stage, nic: str, config: dict[str, Any] = CONFIG) -> StagedPod:
    stage.wait_for(lambda: nic in stage.devices(), "published")
    stage.claim("c", [config])
    stage.allocate("c", nic)
    pod = stage.pod("pod", "c")
    (answer,) = stage.prepare(pod).values()
    assert answer["error"] == ""
    return pod


def _running(stage: Stage, nic: str, config: dict[str, Any] = CONFIG) -> StagedPod:
    pod = _prepared(stage, nic, config)
    stage.runtime.run_pod(pod.sandbox)
    stage.wait_condition("c", "NetworkReady", "True")
    return pod


def _lose(stage: Stage) -> None:
    """End the daemon and remove all that it had written on the node, but for receipts."""
    stage.stop_daemon(signal.SIGKILL)
    for path in stage.folder.rglob("journal.db*"):
        shutil.rmtree(path, ignore_errors=True)
        Path(path).unlink(missing_ok=True)
    assert not list(stage.folder.rglob("*.copies/*"))


def _start(stage: Stage) -> None:
    stage.start_daemon()
    stage.wait_ready()


def _told(stage: Stage) -> str:
    """Wait for the Event that says that a record was rebuilt and how much is known."""
    found = stage.wait_for(
        lambda: [e for e in stage.api.objects("/api/v1/events") if e["reason"] == "RecordRebuilt"], "an Event"
    )
    return str(found[0]["message"])


def _status(stage: Stage) -> Any:
    return stage.get_claim("c")["status"].get("devices")


def _known(state: dict[str, Any]) -> dict[str, Any]:
    """Return what slices tell of an interface."""
    link = state["link"]
    addresses = [f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"] if each["scope"] == "global"]
    return {**{part: link[part] for part in ("ifname", "mtu", "address", "flags")}, "addresses": addresses}


def _known_home(stage: Stage, nic: str, before: dict[str, Any], host_state: HostState) -> None:
    """Wait until the interface has back what slices tell: name, MTU, MAC, addresses, up."""

    def look() -> bool:
        try:
            return _known(host_state(nic)) == _known(before)
        except subprocess.CalledProcessError:
            return False

    stage.wait_for(look, f"{nic} has back what is known of it")


def test_f13_journal_and_copies_lost_under_a_running_pod(stage: Stage, nic: str, host_state: HostState) -> None:
    """The claim is taken in again from the pod's namespace, the status stays, and the interface comes home."""
    before = host_state(nic)
    pod = _running(stage, nic)
    status, shown = _status(stage), pod.run("ip", "-4", "addr", "show", "eth99")
    _lose(stage)
    _start(stage)
    message = _told(stage)
    assert "192.0.2.10/24" in message
    assert f"its name {nic}" in message
    assert pod.run("ip", "-4", "addr", "show", "eth99") == shown, "the pod's interface is left alone"
    stage.wait_for(lambda: nic in stage.devices(), "the device stays published")
    stage.wait_for(lambda: _status(stage) == status, "the status is as before")
    stage.wait_for(lambda: list(stage.cdi.glob("*.json")), "the receipt is there")
    assert 'nri_dranet_reconcile_actions_total{action="record rebuilt"} 1.0' in stage.http("/metrics")[1]
    stage.end_pod(pod)
    _known_home(stage, nic, before, host_state)
    assert not next(iter(stage.unprepare(pod).values()))["error"]


def test_f13_journal_and_copies_lost_and_the_api_server_away(stage: Stage, nic: str, host_state: HostState) -> None:
    """While nobody can tell which claim it is the pod keeps its interface; once the server is back it is known."""
    before = host_state(nic)
    pod = _running(stage, nic)
    _lose(stage)
    stage.api.pause()
    stage.start_daemon()
    stage.runtime.wait_for_plugin()
    assert "eth99" in pod.run("ip", "link")
    stage.api.resume()
    _told(stage)
    stage.end_pod(pod)
    _known_home(stage, nic, before, host_state)


def test_f13_journal_and_copies_lost_between_prepare_and_run(stage: Stage, nic: str, host_state: HostState) -> None:
    """Kubelet calls no Prepare again; the claim is prepared anew from the API, and the pod gets its interface."""
    before = host_state(nic)
    pod = _prepared(stage, nic)
    _lose(stage)
    _start(stage)
    stage.wait_for(lambda: "prepared" in _phases(stage), "the claim is prepared again")
    stage.runtime.run_pod(pod.sandbox)
    stage.wait_condition("c", "NetworkReady", "True")
    assert "169.254.169.13" in pod.run("ip", "addr")
    stage.end_pod(pod)
    stage.wait_for(lambda: host_state(nic) == before, "all of it is back")


def _phases(stage: Stage) -> str:
    return stage.http("/metrics")[1].partition('nri_dranet_claims{state="prepared"} 1.0')[1]


def test_f13_journal_and_copies_lost_and_the_interface_came_home(stage: Stage, nic: str, host_state: HostState) -> None:
    """Meanwhile it came home under the pod's name, as hardware does: it gets its name back, and what is known."""
    before = host_state(nic)
    pod = _running(stage, nic)
    _lose(stage)
    pod.run("ip", "link", "set", "eth99", "netns", str(os.getpid()))
    stage.runtime.stop_pod(pod.sandbox)
    stage.runtime.remove_pod(pod.sandbox)
    _start(stage)
    _told(stage)
    _known_home(stage, nic, before, host_state)


@pytest.mark.parametrize("refused", [False, True])
def test_a_pod_that_another_driver_attached(stage: Stage, nic: str, host_state: HostState, refused: bool) -> None:
    """It is recognised and left as it is, also with a configuration that is refused here; the interface comes home."""
    before = host_state(nic)
    stage.wait_for(lambda: nic in stage.devices(), "published")
    _lose(stage)
    stage.claim("c", [{"interface": {"name": "net7", "mtu": 70_000}} if refused else CONFIG])
    stage.allocate("c", nic)
    pod = stage.pod("pod", "c")
    subprocess.run(["ip", "link", "set", nic, "netns", str(pod.process.pid), "name", "net7"], check=True)
    pod.run("ip", "link", "set", "net7", "mtu", "1234", "up")
    pod.run("ip", "addr", "add", "10.9.9.9/24", "dev", "net7")
    stage.runtime.run_pod(pod.sandbox)
    shown = pod.run("ip", "addr", "show", "net7")
    _start(stage)
    _told(stage)
    stage.wait_condition("c", "Ready", "True")
    assert pod.run("ip", "addr", "show", "net7") == shown
    stage.end_pod(pod)
    _known_home(stage, nic, before, host_state)
    assert not next(iter(stage.unprepare(pod).values()))["error"]


def test_a_claim_of_others_is_nobody_s_business(stage: Stage, nic: str) -> None:
    """Claims of other drivers, of other nodes, and those that are not reserved for the pod are left alone."""
    stage.wait_for(lambda: nic in stage.devices(), "published")
    _lose(stage)
    for name in ("other", "unreserved"):
        stage.claim(name, [])
    result = {"request": "nic", "driver": "gpu.example", "pool": "node", "device": "gpu0"}
    stage.api.allocate("default", "other", results=[result], config=[], node="node")
    pod = stage.pod("pod", "other")
    stage.runtime.run_pod(pod.sandbox)
    _start(stage)
    stage.wait_for(lambda: nic in stage.devices(), "published")
    assert not stage.get_claim("other")["status"].get("devices")
    assert not [e for e in stage.api.objects("/api/v1/events") if e["reason"] == "RecordRebuilt"]
    assert stage.api.list(f"{RESOURCE_API}/resourceclaims")
