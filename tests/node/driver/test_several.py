"""One claim of several devices and requests, with admin access, shares, and another driver's device beside them."""

from __future__ import annotations

import json
import signal
import subprocess
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.testing.stage import DRIVER, NODE, RESOURCE_API

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nri_dranet.testing.stage import Stage

CLAIMS = f"{RESOURCE_API}/namespaces/default/resourceclaims"
OTHER = "gpu.example.com"
THEIRS = {
    "driver": OTHER,
    "pool": NODE,
    "device": "gpu-0",
    "data": {"k": "v"},
    "conditions": [
        {
            "type": "Ready",
            "status": "False",
            "reason": "Mine",
            "message": "m",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
    ],
}


@pytest.fixture
def second() -> Iterator[str]:
    """Make another interface of the node."""
    subprocess.run(["ip", "link", "add", "nictest1", "type", "veth", "peer", "name", "nictest1p"], check=True)
    for each in ("nictest1p", "nictest1"):
        subprocess.run(["ip", "link", "set", each, "addrgenmode", "none", "up"], check=True)
    yield "nictest1"
    subprocess.run(["ip", "link", "del", "nictest1p"], check=False, capture_output=True)


def made(stage: Stage, results: list[dict[str, Any]], configs: list[dict[str, Any]]) -> None:
    """Make a claim with a request for each result, and allocate it."""
    requests = [
        {
            "name": each["request"],
            "exactly": {
                "deviceClassName": each["driver"],
                **({"adminAccess": True} if each.get("adminAccess") else {}),
            },
        }
        for each in results
    ]
    config = [
        {
            "requests": each["requests"],
            "opaque": {
                "driver": DRIVER,
                "parameters": {"interface": each["interface"]},
            },
        }
        for each in configs
    ]
    body = {"metadata": {"name": "c"}, "spec": {"devices": {"requests": requests, "config": config}}}
    stage.create(CLAIMS, {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", **body})
    whole = [{"pool": NODE, **each} for each in results]
    stage.api.allocate(
        "default", "c", results=whole, config=[{**each, "source": "FromClaim"} for each in config], node=NODE
    )


def entries(stage: Stage) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the entries of the claim, by device and share."""
    found = stage.get_claim("c")["status"].get("devices") or []
    return {(entry["device"], entry.get("shareID", "")): entry for entry in found}


def verdict(entry: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return type, status and reason of an entry's conditions."""
    return [(item["type"], item["status"], item["reason"]) for item in entry["conditions"]]


GOOD = [("Ready", "True", "NetworkDeviceReady"), ("NetworkReady", "True", "NetworkReady")]


def test_several_requests_admin_access_and_another_drivers_device(
    stage: Stage, nic: str, second: str, host_state: Callable[[str], Any]
) -> None:
    """Each device has its own entry through the claim's life; the other driver's is never touched."""
    stage.wait_for(lambda: second in stage.devices(), "published")
    before = host_state(nic), host_state(second)
    made(
        stage,
        [
            {"request": "nic", "driver": DRIVER, "device": nic},
            {"request": "look", "driver": DRIVER, "device": second, "adminAccess": True},
            {"request": "gpu", "driver": OTHER, "device": "gpu-0"},
        ],
        [{"requests": ["nic"], "interface": {"name": "net1", "addresses": ["10.9.0.1/24"]}}],
    )
    stage.api.merge(f"{CLAIMS}/c/status", {"status": {"devices": [THEIRS]}}, "gpu")
    theirs = entries(stage)["gpu-0", ""]
    pod = stage.pod("pod-c", "c")
    (answer,) = stage.prepare(pod).values()
    assert answer["error"] == ""
    assert [device["device"] for device in answer["devices"]] == [nic, second]
    stage.runtime.run_pod(pod.sandbox)

    def said(network: list[tuple[str, str, str]]) -> bool:
        found = entries(stage)
        assert found["gpu-0", ""] == theirs
        if (nic, "") not in found or (second, "") not in found:
            return False
        admin = found[second, ""]
        assert verdict(admin) == [("Ready", "True", "AdminAccess")]
        assert "networkData" not in admin
        return verdict(found[nic, ""]) == network

    stage.wait_for(lambda: said(GOOD), "both are ready")
    assert host_state(second) == before[1], "a device with admin access is not moved"
    subprocess.run(["ip", "link", "set", f"{nic}p", "down"], check=True)
    lost = [GOOD[0], ("NetworkReady", "False", "NoCarrier")]
    stage.wait_for(lambda: said(lost), "the carrier is lost")
    stage.stop_daemon(signal.SIGKILL)
    subprocess.run(["ip", "link", "set", f"{nic}p", "up"], check=True)
    stage.start_daemon()
    stage.wait_ready()
    stage.wait_for(lambda: said(GOOD), "the carrier is back")
    stage.end_pod(pod)
    stage.wait_for(lambda: {verdict(entries(stage)[name, ""])[0][2] for name in (nic, second)} == {"Detached"}, "back")
    (released,) = stage.unprepare(pod).values()
    assert released["error"] == ""
    stage.wait_for(lambda: verdict(entries(stage)[nic, ""])[0][2] == "Unprepared", "released")
    assert entries(stage)["gpu-0", ""] == theirs
    assert (host_state(nic), host_state(second)) == before


def test_two_shares_of_one_device_in_one_claim(make_stage: Callable[..., Stage], nic: str) -> None:
    """Two entries, told apart by their share IDs, each with the address of its own child."""
    stage = make_stage(flags=[f'--share=device.attributes["dra.net"].ifName == "{nic}"'])
    stage.start_daemon()
    stage.wait_ready()
    stage.wait_for(lambda: (stage.devices().get(nic) or {}).get("allowMultipleAllocations"), "published as shared")
    shares = {request: str(uuid.uuid4()) for request in ("one", "two")}
    made(
        stage,
        [{"request": request, "driver": DRIVER, "device": nic, "shareID": share} for request, share in shares.items()],
        [
            {"requests": [request], "interface": {"name": f"net-{request}", "addresses": [f"10.9.0.{number}/24"]}}
            for number, request in enumerate(shares, 1)
        ],
    )
    pod = stage.pod("pod-c", "c")
    (answer,) = stage.prepare(pod).values()
    assert answer["error"] == ""
    stage.runtime.run_pod(pod.sandbox)
    stage.wait_for(lambda: [verdict(entry) for entry in entries(stage).values()] == [GOOD, GOOD], "both are ready")
    for number, (request, share) in enumerate(shares.items(), 1):
        data = entries(stage)[nic, share]["networkData"]
        (link,) = json.loads(pod.run("ip", "-j", "link", "show", "dev", f"net-{request}"))
        assert data == {
            "interfaceName": f"net-{request}",
            "hardwareAddress": link["address"],
            "ips": [f"10.9.0.{number}/24"],
        }
    pod.run("ip", "link", "set", "net-two", "down")
    stage.wait_for(lambda: verdict(entries(stage)[nic, shares["two"]])[1][2] == "LinkDown", "one of them is down")
    assert verdict(entries(stage)[nic, shares["one"]]) == GOOD
    stage.end_pod(pod)
    stage.unprepare(pod)
