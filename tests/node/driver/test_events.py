"""Events on pod and claim, end to end: what failed, what happened in the pod, and that it is well again."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.testing.runtime import RuntimeRefusedError

if TYPE_CHECKING:
    from nri_dranet.testing.stage import Stage, StagedPod

CONFIG: dict[str, Any] = {"interface": {"name": "eth99"}}


def made(stage: Stage, nic: str, config: dict[str, Any] | None = None) -> StagedPod:
    """Return a pod with an allocated claim."""
    stage.claim("c", [config or CONFIG])
    stage.allocate("c", nic)
    return stage.pod("pod-c", "c")


def events(stage: Stage, kind: str) -> list[dict[str, Any]]:
    """Return the Events on objects of a kind, oldest first."""
    found = [event for event in stage.api.objects("/api/v1/events") if event["involvedObject"]["kind"] == kind]
    return sorted(found, key=lambda event: int(event["metadata"]["resourceVersion"]))


def both_told(stage: Stage, type_: str, reason: str) -> dict[str, Any]:
    """Wait for an Event on pod and claim; return that of the claim."""

    def look() -> dict[str, Any] | None:
        found = [
            [event for event in events(stage, kind) if (event["type"], event["reason"]) == (type_, reason)]
            for kind in ("Pod", "ResourceClaim")
        ]
        return found[1][-1] if all(found) else None

    event = stage.wait_for(look, f"{type_} {reason} on pod and claim")
    assert event is not None
    return event


def test_a_lost_carrier_and_its_return(stage: Stage, nic: str) -> None:
    """A Warning with the condition's reason and message, then a Normal Event; the objects are the right ones."""
    pod = made(stage, nic)
    stage.prepare(pod)
    stage.runtime.run_pod(pod.sandbox)
    stage.wait_condition("c", "NetworkReady", "True")
    assert events(stage, "Pod") == events(stage, "ResourceClaim") == []
    subprocess.run(["ip", "link", "set", f"{nic}p", "down"], check=True)
    entry = stage.wait_condition("c", "NetworkReady", "False")
    lost = both_told(stage, "Warning", "NoCarrier")
    assert lost["message"] == entry["conditions"][1]["message"]
    subprocess.run(["ip", "link", "set", f"{nic}p", "up"], check=True)
    well = both_told(stage, "Normal", "NetworkReady")
    assert "it was False with reason NoCarrier" in well["message"]
    assert well["involvedObject"]["uid"] == stage.get_claim("c")["metadata"]["uid"]
    assert {event["involvedObject"]["uid"] for event in events(stage, "Pod")} == {pod.uid}
    assert well["source"] == {"component": "dra.net", "host": "node"}


def test_an_attach_that_fails_again_and_again_and_then_works(stage: Stage, nic: str) -> None:
    """One Warning on each, counted up by each try; the attach that works is told with the failure's reason."""
    pod = made(stage, nic)
    stage.prepare(pod)
    pod.run("ip", "link", "add", "eth99", "type", "bridge")
    for _ in range(3):
        with pytest.raises(RuntimeRefusedError):
            stage.runtime.run_pod(pod.sandbox)
    failed = both_told(stage, "Warning", "NameInUse")
    assert "eth99" in failed["message"]
    pod.run("ip", "link", "del", "eth99")
    stage.wait_condition("c", "Ready", "False")
    stage.runtime.run_pod(pod.sandbox)
    well = both_told(stage, "Normal", "NetworkDeviceReady")
    assert "it was False with reason NameInUse" in well["message"]
    for kind in ("Pod", "ResourceClaim"):
        assert [event["reason"] for event in events(stage, kind)] == ["NameInUse", "NetworkDeviceReady"]


def test_a_prepare_that_is_refused_and_then_works(stage: Stage, nic: str) -> None:
    """Another claim has the device; when that is released the claim is prepared, and its pod told so."""
    stage.claim("first", [CONFIG])
    stage.allocate("first", nic)
    first = stage.pod("pod-first", "first")
    stage.prepare(first)
    pod = made(stage, nic)
    (answer,) = stage.prepare(pod).values()
    assert answer["error"]
    refused = both_told(stage, "Warning", "DeviceInUse")
    assert refused["message"] in answer["error"]
    stage.wait_condition("c", "Ready", "False")
    stage.unprepare(first)
    (answer,) = stage.prepare(pod).values()
    assert answer["error"] == ""
    stage.runtime.run_pod(pod.sandbox)
    assert "DeviceInUse" in both_told(stage, "Normal", "NetworkDeviceReady")["message"]


def test_after_a_restart_nothing_is_told_twice(stage: Stage, nic: str) -> None:
    """The new life knows from the claim what was wrong; that it is well again is told by whoever sees it."""
    pod = made(stage, nic)
    stage.prepare(pod)
    stage.runtime.run_pod(pod.sandbox)
    stage.wait_condition("c", "NetworkReady", "True")
    subprocess.run(["ip", "link", "set", f"{nic}p", "down"], check=True)
    both_told(stage, "Warning", "NoCarrier")
    stage.stop_daemon()
    stage.start_daemon()
    stage.wait_ready()
    subprocess.run(["ip", "link", "set", f"{nic}p", "up"], check=True)
    both_told(stage, "Normal", "NetworkReady")
    for kind in ("Pod", "ResourceClaim"):
        assert [event["reason"] for event in events(stage, kind)] == ["NoCarrier", "NetworkReady"]
