"""The main job from end to end: a pod gets its interface, the claim's status says so, and the interface comes home."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.driver import BOOT_ID
from nri_dranet.store.reading import read_records
from nri_dranet.testing.runtime import RuntimeRefusedError
from nri_dranet.testing.stage import Stage
from tests.node.driver.acts import CONFIG, home, prepared, running
from tests.node.driver.conftest import ip

if TYPE_CHECKING:
    from nri_dranet.testing.stage import StagedPod

MakeStage = Callable[..., Stage]

DOCUMENT: dict[str, Any] = {
    **CONFIG,
    "routes": [
        {"destination": "169.254.169.0/24", "gateway": "169.254.169.1"},
        {"destination": "169.254.169.1/32", "scope": 253},
    ],
}


def entry(stage: Stage) -> dict[str, Any]:
    """Return the claim's one status entry."""
    (found,) = stage.get_claim("c")["status"]["devices"]
    return dict(found)


def receipts(stage: Stage) -> list[Path]:
    """Return the receipts that are there."""
    return sorted(stage.cdi.glob("*.json")) if stage.cdi.exists() else []


def test_the_users_example_gives_the_users_status(stage: Stage, nic: str, host_state: Callable[[str], Any]) -> None:
    """The claim of the user's document: the same conditions, reasons and networkData, and the routes in the pod."""
    before = host_state(nic)
    pod = running(stage, nic, DOCUMENT)
    found = entry(stage)
    times = [condition.pop("lastTransitionTime") for condition in found["conditions"]]
    assert all(times)
    mac = before["link"]["address"]
    assert found == {
        "driver": "dra.net",
        "pool": "node",
        "device": nic,
        "conditions": [
            {"type": "Ready", "status": "True", "reason": "NetworkDeviceReady", "message": ""},
            {"type": "NetworkReady", "status": "True", "reason": "NetworkReady", "message": ""},
        ],
        "networkData": {"interfaceName": "eth99", "hardwareAddress": mac, "ips": ["169.254.169.13/32"]},
    }
    routes = pod.run("ip", "route")
    assert "169.254.169.0/24 via 169.254.169.1 dev eth99" in routes
    assert "169.254.169.1 dev eth99" in routes
    assert len(receipts(stage)) == 1
    stage.end_pod(pod)
    assert host_state(nic) == before
    assert receipts(stage) == []
    stage.wait_condition("c", "Ready", "False")
    assert "networkData" not in entry(stage)
    (answer,) = stage.unprepare(pod).values()
    assert answer["error"] == ""


def test_a_claim_without_configuration_takes_the_host_addresses_along(stage: Stage, nic: str) -> None:
    """Name, address, route and permanent neighbour of the host are in the pod."""
    pod = running(stage, nic, {})
    assert "192.0.2.10/24" in pod.run("ip", "addr", "show", "dev", nic)
    assert "198.51.100.0/24 via 192.0.2.1" in pod.run("ip", "route")
    assert "02:00:00:00:00:77" in pod.run("ip", "neigh", "show", "dev", nic)


def test_an_older_kubelet_and_runtime_are_served_alike(
    make_stage: MakeStage, nic: str, host_state: Callable[[str], Any]
) -> None:
    """DRA v1beta1 and sandbox events as StateChange."""
    stage = make_stage(kubelet_versions=("v1beta1",), dedicated_calls=False)
    stage.start_daemon()
    stage.wait_ready()
    stage.wait_for(lambda: nic in stage.devices(), "published")
    before = host_state(nic)
    pod = running(stage, nic)
    # A runtime of that age tells no namespaces when a sandbox stops.
    stage.runtime.stop_pod(pod.sandbox, with_netns=False)
    assert host_state(nic) == before


def test_a_device_in_a_pod_stays_published_as_it_was(stage: Stage, nic: str) -> None:
    """Selectors keep working while the interface is away."""
    before = stage.devices()[nic]
    pod = running(stage, nic)
    # Written after the interface has left: another device has changed meanwhile.
    ip("link", "set", f"{nic}p", "mtu", "1400")
    stage.wait_for(lambda: stage.devices()[f"{nic}p"]["attributes"]["dra.net/mtu"] == {"int": 1400}, "written anew")
    assert stage.devices()[nic] == before
    stage.end_pod(pod)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"interface": {"adresses": ["10.0.0.1/24"]}}, ["interface.adresses"]),
        ({"interface": {"addresses": ["10.0.0.1"]}}, ["interface.addresses[0]", "10.0.0.1"]),
        ({"interface": {"name": "../x"}}, ["interface.name", "../x"]),
        ({"interface": {"name": "sixteen-letters-"}}, ["interface.name"]),
        ({"interface": {"name": "eth0"}}, ["interface.name", "eth0"]),
        ({"interface": {"mtu": 10}}, ["interface.mtu", "10"]),
        ({"interface": {"mtu": "1500"}}, ["interface.mtu", "1500"]),
        ({"interface": {"mtu": 70_000}}, ["mtu", "70000"]),
        ({"interface": {"hardwareAddr": "01:00:00:00:00:01"}}, ["interface.hardwareAddr"]),
        ({"routes": [{"destination": "10.0.0.0/8", "gateway": "fd00::1"}]}, ["routes[0].gateway"]),
        ({"routes": [{"destination": "10.9.0.0/16", "gateway": "10.200.0.1"}]}, ["routes[0]", "10.200.0.1"]),
    ],
)
def test_a_refused_input_is_named_in_prepare_and_touches_nothing(
    stage: Stage, nic: str, host_state: Callable[[str], Any], config: dict[str, Any], said: list[str]
) -> None:
    """Path, value and what is allowed: in kubelet's answer, in the status and in an Event; the interface stays."""
    before = host_state(nic)
    stage.claim("c", [config])
    stage.allocate("c", nic)
    pod = stage.pod("pod-c", "c")
    (answer,) = stage.prepare(pod).values()
    found = stage.wait_condition("c", "Ready", "False")
    message = found["conditions"][0]["message"]
    for word in said:
        assert word in answer["error"]
        assert word in message
    stage.wait_for(
        lambda: [e for e in stage.api.objects("/api/v1/events") if said[0] in e["message"]], "an Event that says so"
    )
    assert host_state(nic) == before


def test_two_mistakes_are_told_at_once(stage: Stage, nic: str) -> None:
    """The user corrects them in one go."""
    stage.claim("c", [{"interface": {"mtu": 10, "addresses": ["10.77.0.5"]}}])
    stage.allocate("c", nic)
    (answer,) = stage.prepare(stage.pod("pod-c", "c")).values()
    assert "interface.mtu" in answer["error"]
    assert "interface.addresses[0]" in answer["error"]


def test_a_second_pod_on_a_held_claim_is_refused_with_both_named(stage: Stage, nic: str) -> None:
    """Kubelet calls no Prepare for it; the first pod keeps its interface and its status."""
    running(stage, nic)
    second = stage.pod("second", "c")
    stage.wait_for(lambda: "second" in _pods_in_journal(stage), "the watch has named the second pod")
    with pytest.raises(RuntimeRefusedError, match=r"default/pod-c.*default/second"):
        stage.runtime.run_pod(second.sandbox)
    with pytest.raises(RuntimeRefusedError, match="default/pod-c"):
        stage.runtime.create_container(second.sandbox, "app")
    assert entry(stage)["conditions"][0]["status"] == "True"


def test_the_next_pod_gets_the_interface_without_a_prepare(stage: Stage, nic: str) -> None:
    """The former pod has ended, kubelet still counts the claim as prepared: the watch names the next pod."""
    first = running(stage, nic)
    second = stage.pod("second", "c")
    stage.end_pod(first)
    stage.wait_for(lambda: _runs(stage, second), "the second pod runs")
    assert "eth99" in second.run("ip", "link")
    stage.wait_condition("c", "Ready", "True")


def test_the_next_pod_gets_a_device_that_comes_later(
    stage: Stage, nic: str, later: str, on_host: Callable[[str], bool]
) -> None:
    """The claim was allocated anew, to what is not there yet: its status says so, until a change of the node helps."""
    first = running(stage, nic)
    stage.end_pod(first)
    stage.api.deallocate("default", "c")
    stage.allocate("c", later)
    second = stage.pod("second", "c")
    stage.wait_for(lambda: "is not on this node" in str(stage.get_claim("c")["status"]), "the status says why")
    with pytest.raises(RuntimeRefusedError):
        stage.runtime.run_pod(second.sandbox)
    ip("link", "add", later, "type", "veth", "peer", "name", f"{later}p")
    stage.wait_for(lambda: _runs(stage, second), "the second pod runs")
    assert "eth99" in second.run("ip", "link")
    assert on_host(nic)
    assert not on_host(later)
    stage.wait_condition("c", "Ready", "True")


@pytest.fixture
def later() -> Iterator[str]:
    """Return the name of an interface that is not there yet, and take it away afterwards."""
    yield "latertest0"
    subprocess.run(["ip", "link", "del", "latertest0p"], check=False, capture_output=True)


def _pods_in_journal(stage: Stage) -> set[str]:
    journal = stage.kubelet_root / "plugins" / "dra.net" / "journal.db"
    records, _ = read_records(journal, BOOT_ID.read_text(encoding="ascii").strip())
    return {pod.name for record in records for pod in record.plan.pods}


def _runs(stage: Stage, pod: StagedPod) -> bool:
    try:
        stage.runtime.run_pod(pod.sandbox)
    except RuntimeRefusedError:
        return False
    return True


def test_a_host_network_pod_is_refused_clearly(stage: Stage, nic: str, on_host: Callable[[str], bool]) -> None:
    """The pod says hostNetwork: Prepare says why this cannot work."""
    stage.claim("c", [CONFIG])
    stage.allocate("c", nic)
    pod = stage.pod("pod-c", "c", host_network=True)
    (answer,) = stage.prepare(pod).values()
    assert "host network" in answer["error"]
    assert on_host(nic)


def test_f06_a_status_is_written_when_the_api_server_is_back(stage: Stage, nic: str) -> None:
    """The API server is away while the pod gets its interface."""
    pod = prepared(stage, nic)
    stage.api.stop()
    stage.runtime.run_pod(pod.sandbox)
    unwritten = re.compile(r'^nri_dranet_status_writes_total\{result="failed"\} [1-9]', re.MULTILINE)
    stage.wait_for(lambda: unwritten.search(stage.http("/metrics")[1]), "a write that failed")
    stage.api.start()
    stage.wait_condition("c", "NetworkReady", "True")


def test_slices_that_kubelet_deletes_are_written_again(stage: Stage, nic: str) -> None:
    """Kubelet deletes all slices of the node at its start."""
    (name,) = [item["metadata"]["name"] for item in stage.api.objects("/apis/resource.k8s.io/v1/resourceslices")]
    stage.api.delete(f"/apis/resource.k8s.io/v1/resourceslices/{name}")
    stage.wait_for(lambda: nic in stage.devices(), "published again")


def test_f04_the_runtime_may_restart_as_often_as_it_likes(stage: Stage, nic: str) -> None:
    """The daemon comes back each time, the running pod keeps its interface, and it comes home afterwards."""
    pod = running(stage, nic)
    pid = stage.daemon_pid()
    for _ in range(7):
        stage.runtime.restart()
        stage.runtime.wait_for_plugin()
    assert stage.daemon_pid() == pid
    assert "eth99" in pod.run("ip", "link")
    stage.end_pod(pod)
    assert nic in Path("/proc/net/dev").read_text()


def test_sigterm_ends_it_and_leaves_no_socket(stage: Stage, nic: str) -> None:
    """A clean stop: exit code 0, no sockets, the pod keeps its interface."""
    pod = running(stage, nic)
    assert stage.stop_daemon() == 0
    assert list(stage.kubelet_root.rglob("*.sock")) == []
    assert "eth99" in pod.run("ip", "link")


def test_killed_between_prepare_and_run_no_container_starts_without_the_device(stage: Stage, nic: str) -> None:
    """The runtime goes on without the dead daemon; the container needs the receipt: it comes with the late attach."""
    pod = prepared(stage, nic)
    (answer,) = stage.prepare(pod).values()
    identities = [identity for device in answer["devices"] for identity in device["cdi"]]
    stage.stop_daemon(signal.SIGKILL)
    stage.runtime.run_pod(pod.sandbox)
    with pytest.raises(RuntimeRefusedError, match=f"unresolvable CDI devices .*{nic}"):
        stage.runtime.create_container(pod.sandbox, "app", identities)
    stage.start_daemon()
    stage.wait_condition("c", "Ready", "True")
    assert "eth99" in pod.run("ip", "link")
    stage.runtime.create_container(pod.sandbox, "app", identities)


def test_killed_under_a_running_pod_nothing_changes(stage: Stage, nic: str, host_state: Callable[[str], Any]) -> None:
    """After the restart: the same status with the same times, no write, and the interface comes home as it was."""
    before = host_state(nic)
    pod = running(stage, nic)
    status = entry(stage)
    stage.stop_daemon(signal.SIGKILL)
    stage.api.requests.clear()
    stage.start_daemon()
    stage.wait_ready()
    compared = re.compile(r'^nri_dranet_status_writes_total\{result="unchanged"\} [1-9]', re.MULTILINE)
    stage.wait_for(lambda: compared.search(stage.http("/metrics")[1]), "the status was compared with what there is")
    assert entry(stage) == status
    assert [seen for seen in stage.api.requests if seen.method == "PATCH" and "resourceclaims" in seen.path] == []
    stage.end_pod(pod)
    assert host_state(nic) == before


@pytest.mark.parametrize("milliseconds", [0, 2, 4, 7, 10, 14, 18, 25, 40])
def test_killed_during_an_attach_it_ends_attached_or_home(
    stage: Stage, nic: str, host_state: Callable[[str], Any], milliseconds: int
) -> None:
    """SIGKILL at a moment of the attach: after the restart the pod has the interface; when it ends, the host has it."""
    before = host_state(nic)
    pod = prepared(stage, nic, DOCUMENT)
    run = threading.Thread(target=_runs, args=(stage, pod))
    run.start()
    time.sleep(milliseconds / 1000)
    stage.stop_daemon(signal.SIGKILL)
    run.join()
    stage.start_daemon()
    stage.wait_ready()
    stage.wait_condition("c", "NetworkReady", "True")
    assert "169.254.169.13/32" in pod.run("ip", "addr", "show", "dev", "eth99")
    stage.end_pod(pod)
    assert host_state(nic) == before
    assert receipts(stage) == []


@pytest.mark.parametrize("milliseconds", [0, 2, 4, 7, 10, 14, 18, 25, 40])
def test_killed_during_a_detach_the_interface_comes_home(
    stage: Stage, nic: str, host_state: Callable[[str], Any], milliseconds: int
) -> None:
    """SIGKILL at a moment of the return: after the restart the interface is on the host as it was."""
    before = host_state(nic)
    pod = running(stage, nic, DOCUMENT)
    stop = threading.Thread(target=stage.runtime.stop_pod, args=(pod.sandbox,))
    stop.start()
    time.sleep(milliseconds / 1000)
    stage.stop_daemon(signal.SIGKILL)
    stop.join()
    stage.start_daemon()
    stage.wait_condition("c", "Ready", "False")
    home(stage, nic, host_state, before)
    assert receipts(stage) == []
