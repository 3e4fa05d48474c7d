"""What happens around pods that run: restarts, updates, a drain, the end of the driver."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from hack.cluster.cluster import wait
from hack.cluster.host import ClusterError
from tests.cluster.bed import CLASS, LINKS, RELEASE, SYSTEM, claim, pod

if TYPE_CHECKING:
    from tests.cluster.bed import Bed


@pytest.fixture
def running(bed: Bed, namespace: str) -> dict[str, Any]:
    """Start a pod with a device; return the status of its claim."""
    config = {"interface": {"name": "net1", "addresses": ["10.1.1.1/24"]}}
    bed.start([claim("net", "ens5", config=config), pod("steady", "net")], "steady", namespace)
    bed.wait_true_status("steady", namespace)
    return devices(bed, namespace)


def devices(bed: Bed, namespace: str) -> dict[str, Any]:
    """Return what the status of the claim says of its device."""
    (found,) = bed.claims("steady", namespace)
    (entry,) = found["status"]["devices"]
    result: dict[str, Any] = entry
    return result


def as_before(bed: Bed, namespace: str, running: dict[str, Any]) -> None:
    """Check that the pod has its device and status as it had, and that other pods can be started and ended."""
    assert bed.link("net1", "steady", namespace)
    assert devices(bed, namespace) == running
    restarts = bed.get("pod", "steady", namespace)["status"]["containerStatuses"][0]["restartCount"]
    assert restarts == 0
    bed.start([claim("more", "ens6"), pod("next", "more")], "next", namespace)
    assert bed.link("ens6", "next", namespace)
    bed.wait_true_status("next", namespace)
    bed.delete_pod("next", namespace)


def test_the_driver_is_killed(bed: Bed, namespace: str, running: dict[str, Any]) -> None:
    """A pod keeps device and status, times included, and the driver that comes back gives the next pod its own."""
    first = bed.driver_pid()
    bed.cluster.run("kill", "-KILL", first)
    wait(lambda: restarted(bed, first), "the driver runs again", 120)
    bed.wait_devices()
    as_before(bed, namespace, running)


def restarted(bed: Bed, former: str) -> bool:
    """Say whether another driver runs than the former."""
    try:
        return bed.driver_pid() != former
    except AssertionError:
        return False


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_kubelet_is_restarted(bed: Bed, namespace: str, running: dict[str, Any], kill: bool) -> None:
    """The driver registers again and publishes again what kubelet deleted at its start."""
    bed.cluster.restart("kubelet", kill=kill)
    bed.wait_devices()
    as_before(bed, namespace, running)


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_containerd_is_restarted(bed: Bed, namespace: str, running: dict[str, Any], kill: bool) -> None:
    """The driver joins the new one; the device of a pod from before comes home when that pod ends."""
    bed.cluster.restart("containerd", kill=kill)
    bed.wait_devices()
    as_before(bed, namespace, running)


def test_the_api_server_is_away_for_a_while(bed: Bed, namespace: str, running: dict[str, Any]) -> None:
    """Pods keep their devices meanwhile; a change in a pod is in the status when the API server is back."""
    address = bed.get("pod", "steady", namespace)["status"]["podIP"]
    bed.cluster.end("apiserver", kill=True)
    netns = next(
        each["name"] for each in bed.ip("netns", "list") if address in json.dumps(bed.ip("address", netns=each["name"]))
    )
    bed.cluster.run("ip", "-n", netns, "address", "add", "10.1.1.9/24", "dev", "net1")
    bed.cluster.start("apiserver")
    wait(lambda: "10.1.1.9/24" in devices(bed, namespace)["networkData"]["ips"], "the status has the new address", 60)
    bed.wait_true_status("steady", namespace)
    assert devices(bed, namespace)["conditions"] == running["conditions"]


def test_the_driver_is_updated_while_pods_start(bed: Bed, namespace: str, running: dict[str, Any]) -> None:
    """No pod that starts or ends meanwhile fails or runs without its device."""
    wrong: list[str] = []
    over = threading.Event()
    count = 0

    def load() -> None:
        nonlocal count
        while not over.is_set():
            name = f"load-{count}"
            try:
                bed.apply([claim(name, "ens6"), pod(name, name)], namespace)
                bed.wait_ready(name, namespace, timeout=180)
                bed.link("ens6", name, namespace)
                bed.delete_pod(name, namespace)
                bed.cluster.kubectl("delete", "resourceclaim", name, "--namespace", namespace)
            except (ClusterError, AssertionError) as error:
                wrong.append(f"{name}: {error}")
                return
            count += 1

    thread = threading.Thread(target=load)
    thread.start()
    try:
        bed.install(podAnnotations={"example.com/update": "1"})
    finally:
        over.set()
        thread.join()
    assert not wrong
    assert count > 0
    as_before(bed, namespace, running)


def test_the_node_is_drained(bed: Bed, running: dict[str, Any]) -> None:
    """The pod is evicted, its device comes home, and the driver stays."""
    assert running["networkData"]
    node = bed.node
    try:
        bed.cluster.kubectl("drain", node, "--ignore-daemonsets", "--force", "--delete-emptydir-data", "--timeout=120s")
        wait(lambda: set(bed.home()) == bed.all_links, "every device is home", 60)
        assert bed.driver_pods()
    finally:
        bed.cluster.kubectl("uncordon", node)


@pytest.mark.skipif("config.getoption('--kubernetes') == '1.34'", reason="1.34 has DRADeviceTaints off")
def test_a_pod_is_evicted_from_a_device_without_carrier(bed: Bed, namespace: str) -> None:
    """With NoExecute taints a running pod is evicted when its device loses the carrier; the next waits for that."""
    names = ", ".join(f'"{name}"' for name in (*LINKS, "ens9"))
    bed.cluster.run("ip", "link", "add", "ens9", "type", "veth", "peer", "name", "cable")
    try:
        for name in ("ens9", "cable"):
            bed.cluster.run("ip", "link", "set", name, "up")
        bed.install(deviceTaints="NoExecute", filter=f'attributes["dra.net/ifName"].StringValue in [{names}]')
        wait(lambda: f"{bed.node}/ens9" in bed.published(), "ens9 is published", 60)
        bed.start([claim("net", "ens9"), pod("first", "net")], "first", namespace)
        bed.cluster.run("ip", "link", "set", "cable", "down")
        wait(lambda: not bed.get("pods", "", namespace)["items"], "the pod is evicted", 60)
        bed.apply([pod("second", "net")], namespace)
        wait(lambda: "FailedScheduling" in bed.events("second", namespace), "the scheduler has no device", 60)
        assert bed.taints() == {"ens9": [("dra.net/no-carrier", "NoExecute")]}
        bed.cluster.run("ip", "link", "set", "cable", "up")
        bed.wait_ready("second", namespace)
        bed.wait_true_status("second", namespace)
        bed.delete_pod("second", namespace)
    finally:
        bed.cluster.run("ip", "link", "delete", "cable")
        bed.install()


def test_uninstalling_leaves_nothing(bed: Bed) -> None:
    """No object of the chart stays in the API, no registration and no CDI file on the node, no slice."""
    bed.uninstall()
    kinds = "daemonset,serviceaccount,configmap,secret,deviceclass,clusterrole,clusterrolebinding,role,rolebinding"
    policies = "validatingadmissionpolicy,validatingadmissionpolicybinding"
    left = bed.cluster.kubectl(
        "get",
        f"{kinds},{policies}",
        "--all-namespaces",
        f"--selector=app.kubernetes.io/instance={RELEASE}",
        "--output=name",
    )
    assert left == ""
    assert RELEASE not in bed.cluster.run("helm", "list", "--all-namespaces", "--short")
    assert not list(bed.cluster.first.path("/var/lib/kubelet/plugins_registry").glob(f"*{CLASS}*"))
    assert not list(bed.cluster.first.path("/run/cdi").iterdir())
    wait(lambda: not bed.published(), "the driver's slices are gone", 90)
    assert set(bed.home()) == bed.all_links


# What the driver cannot do without a capability, in its own words; the claim asks for what takes it.
NEEDED = {
    "NET_ADMIN": "network namespace cannot be opened, which takes the capability NET_ADMIN",
    "SYS_ADMIN": "network namespace cannot be entered, which takes the capability SYS_ADMIN",
    "NET_RAW": "DHCP needs the capability NET_RAW",
}


@pytest.mark.parametrize("missing", NEEDED)
def test_each_capability_is_needed(whole_bed: Bed, missing: str) -> None:
    """Without one of the chart's capabilities the pod does not start, and the driver says what it cannot do."""
    bed = whole_bed
    bed.install()
    chart = json.loads(bed.cluster.kubectl("get", "daemonset", RELEASE, "--namespace", SYSTEM, "--output=json"))
    (container,) = chart["spec"]["template"]["spec"]["containers"]
    capabilities = container["securityContext"]["capabilities"]["add"]
    assert set(capabilities) == set(NEEDED), "a capability without a test that it is needed"
    bed.uninstall()
    name = f"without-{missing.lower().replace('_', '-')}"
    config = {"interface": {"dhcp": True}} if missing == "NET_RAW" else None

    def said() -> str:
        return f"{bed.events(name, 'default')}\n{bed.driver_log()}"

    try:
        bed.begin_install({"capabilities": [each for each in capabilities if each != missing]})
        wait(lambda: bed.published() >= bed.all_links or NEEDED[missing] in bed.driver_log(), "the driver began", 120)
        bed.apply([claim("net", "ens5", config=config), pod(name, "net")], "default")
        try:
            wait(lambda: NEEDED[missing] in said(), f"somebody says {NEEDED[missing]}", 120)
        except ClusterError as error:
            raise AssertionError(f"{error}: {said()}") from None
        assert bed.get("pod", name)["status"]["phase"] == "Pending"
        assert bed.home().keys() == bed.all_links
    finally:
        bed.cluster.kubectl("delete", "pods", "--all", "--grace-period=1")
        bed.cluster.kubectl("delete", "resourceclaims", "--all", "--wait=false")
        bed.uninstall()
