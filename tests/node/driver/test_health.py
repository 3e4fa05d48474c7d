"""Health and taints of a device on its way through a pod, as kubelet and scheduler see them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.testing.stage import Stage

if TYPE_CHECKING:
    from nri_dranet.testing.stage import StagedPod

MakeStage = Callable[..., Stage]


def ready(make_stage: MakeStage, nic: str, *flags: str) -> Stage:
    """Return a stage whose daemon has published the interface."""
    stage = make_stage(flags=flags)
    stage.start_daemon()
    stage.wait_ready()
    stage.wait_for(lambda: nic in stage.devices(), "published")
    return stage


def running(stage: Stage, nic: str) -> StagedPod:
    """Return a pod that has the interface."""
    stage.claim("c", [{"interface": {"name": "eth99"}}])
    stage.allocate("c", nic)
    pod = stage.pod("pod-c", "c")
    stage.prepare(pod)
    stage.runtime.run_pod(pod.sandbox)
    return pod


def peer(nic: str, state: str) -> None:
    """Set the other end of the pair up or down: the end in the pod has a carrier, or has none."""
    subprocess.run(["ip", "link", "set", f"{nic}p", state], check=True)


def taints(stage: Stage, nic: str) -> list[dict[str, Any]]:
    """Return the taints of the published device, without the time that the server adds."""
    found = stage.devices().get(nic, {}).get("taints") or []
    return [{key: value for key, value in taint.items() if key != "timeAdded"} for taint in found]


def test_kubelet_hears_of_a_lost_carrier_and_of_its_return(make_stage: MakeStage, nic: str) -> None:
    """Healthy, unhealthy with the reason, healthy; silent when the claim is released."""
    stage = ready(make_stage, nic)
    pod = running(stage, nic)
    key = ("node", nic)
    stage.kubelet.wait_health(lambda seen: key in seen and seen[key].status == "Healthy")
    peer(nic, "down")
    found = stage.kubelet.wait_health(lambda seen: seen[key].status == "Unhealthy")
    assert "no carrier" in found[key].message
    peer(nic, "up")
    stage.kubelet.wait_health(lambda seen: seen[key].status == "Healthy")
    stage.end_pod(pod)
    stage.unprepare(pod)
    stage.kubelet.wait_health(lambda seen: key not in seen)


def test_after_a_restart_the_health_is_told_again(make_stage: MakeStage, nic: str) -> None:
    """Nothing has changed in the pod: what the journal knows is said at once."""
    stage = ready(make_stage, nic)
    running(stage, nic)
    stage.wait_condition("c", "Ready", "True")
    stage.stop_daemon()
    stage.start_daemon()
    stage.wait_ready()
    stage.kubelet.wait_health(lambda seen: ("node", nic) in seen and seen["node", nic].status == "Healthy")


def test_taints_are_off_by_default(make_stage: MakeStage, nic: str) -> None:
    """A device without carrier is published as it is."""
    peer(nic, "down")
    stage = ready(make_stage, nic)
    assert "taints" not in stage.devices()[nic]


@pytest.mark.parametrize(
    ("flag", "effect"), [("--device-taints", "NoSchedule"), ("--device-taints=NoExecute", "NoExecute")]
)
def test_taints_come_and_go_with_the_carrier(make_stage: MakeStage, nic: str, flag: str, effect: str) -> None:
    """On the node and in the pod alike; nobody has to clear them."""
    wanted = [{"key": "dra.net/no-carrier", "effect": effect}]
    stage = ready(make_stage, nic, flag)
    peer(nic, "down")
    stage.wait_for(lambda: taints(stage, nic) == wanted, "tainted on the node")
    peer(nic, "up")
    stage.wait_for(lambda: taints(stage, nic) == [] and nic in stage.devices(), "cleared on the node")
    running(stage, nic)
    peer(nic, "down")
    stage.wait_for(lambda: taints(stage, nic) == wanted, "tainted in the pod")
    peer(nic, "up")
    stage.wait_for(lambda: taints(stage, nic) == [] and nic in stage.devices(), "cleared in the pod")


def test_a_device_that_vanished_stays_published_with_its_taint(make_stage: MakeStage, nic: str) -> None:
    """So that the pod which had it can be told to leave; without the flag the device is withdrawn."""
    stage = ready(make_stage, nic, "--device-taints")
    running(stage, nic)
    stage.wait_condition("c", "Ready", "True")
    subprocess.run(["ip", "link", "del", f"{nic}p"], check=True)
    wanted = [{"key": "dra.net/device-missing", "effect": "NoSchedule"}]
    stage.wait_for(lambda: taints(stage, nic) == wanted, "tainted as missing")
