"""Pods and claims as users make them, watched with kubectl."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from hack import images
from hack.cluster.cluster import wait
from tests.cluster.bed import CLASS, ROOT, claim, pod

if TYPE_CHECKING:
    from tests.cluster.bed import Bed

# What the driver is installed with, of the examples that say so.
VALUES = {"sub-interface": {"share": 'device.attributes["dra.net"].ifName == "ens5"'}}
# What CI's kernel cannot have is in tests/vm; the class and DHCP have tests of their own.
ELSEWHERE = {"rdma": "no RDMA", "vrf": "no VRF", "device-class": "below", "dhcp": "below"}
EXAMPLES = [path for path in sorted((ROOT / "examples").glob("*.yaml")) if path.stem not in ELSEWHERE]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_applied(bed: Bed, namespace: str, path: Path, request: pytest.FixtureRequest) -> None:
    """The pod of each example becomes ready, has its interfaces as configured, and the status says what it has."""
    if path.stem == "sub-interface" and request.config.getoption("--kubernetes") == "1.34":
        pytest.skip("1.34 has DRAConsumableCapacity off")
    text = path.read_text(encoding="utf-8")
    documents = [document for document in yaml.safe_load_all(text) if document]
    (name,) = (document["metadata"]["name"] for document in documents if document["kind"] == "Pod")
    bed.install(**VALUES.get(path.stem, {}))
    bed.start(text, name, namespace)
    bed.wait_true_status(name, namespace)
    shown = {link["ifname"] for link in bed.links(name, namespace)}
    configs = [
        config["opaque"]["parameters"]["interface"]
        for document in documents
        if document["kind"] == "ResourceClaimTemplate"
        for config in document["spec"]["spec"]["devices"].get("config", [])
    ]
    assert shown >= ({config["name"] for config in configs} or {"ens5"})
    logs = bed.cluster.kubectl("logs", name, "--namespace", namespace)
    for config in configs:
        assert all(address in logs for address in config.get("addresses", ())), (
            "the container sees its addresses when it starts"
        )


def test_the_example_of_dhcp(bed: Bed, namespace: str) -> None:
    """The pod has an address and a route of the server on its interface's network, and the status tells the address."""
    link, address = ("ip", "link"), "10.66.0.1"
    folder = bed.cluster.folder / "dhcp"
    folder.mkdir()
    lines = ("start 10.66.0.20", "end 10.66.0.20", "interface lan", "opt subnet 255.255.255.0", f"opt router {address}")
    config, leases = folder / "udhcpd.conf", folder / "leases"
    leases.touch()
    config.write_text("\n".join([*lines, f"lease_file {leases}", f"pidfile {folder}/pid", ""]), encoding="ascii")
    run = bed.cluster.run
    run(*link, "delete", "ens5")
    run(*link, "add", "ens5", "type", "veth", "peer", "name", "lan")
    try:
        run(*link, "set", "ens5", "up")
        run(*link, "set", "lan", "up")
        run("ip", "address", "add", f"{address}/24", "dev", "lan")
        bed.cluster.first.spawn("udhcpd", [str(images.fetch_busybox()), "udhcpd", "-f", str(config)], {})
        bed.install(filter="true", denyInterfaces="lan")
        text = (ROOT / "examples" / "dhcp.yaml").read_text(encoding="utf-8")
        bed.start(text, "dhcp", namespace)
        bed.wait_true_status("dhcp", namespace)
        (held,) = bed.claims("dhcp", namespace)
        assert held["status"]["devices"][0]["networkData"]["ips"] == ["10.66.0.20/24"]
        assert f"default via {address} dev net1" in bed.cluster.kubectl("logs", "dhcp", "--namespace", namespace)
        bed.delete_pod("dhcp", namespace)
    finally:
        bed.cluster.first.end("udhcpd", signal.SIGKILL)
        run(*link, "delete", "lan")
        run(*link, "add", "ens5", "type", "ifb")
        run(*link, "set", "ens5", "up")
        bed.install()


def test_the_example_of_a_device_class(whole_bed: Bed) -> None:
    """It stands for the chart's own: with it alone the pod of an example gets its interface."""
    whole_bed.uninstall()
    try:
        whole_bed.install(deviceClass={"create": False})
        whole_bed.cluster.kubectl("apply", f"--filename={ROOT}/examples/device-class.yaml")
        text = (ROOT / "examples" / "pod.yaml").read_text(encoding="utf-8")
        whole_bed.start(text, "one-interface", "default")
        whole_bed.wait_true_status("one-interface", "default")
    finally:
        whole_bed.cluster.kubectl("delete", "pods", "--all", "--grace-period=1")
        whole_bed.cluster.kubectl("delete", "resourceclaimtemplates", "--all")
        whole_bed.cluster.kubectl("delete", "deviceclass", CLASS, "--ignore-not-found")
        whole_bed.uninstall()


def test_the_quick_start_is_followed_word_for_word(bed: Bed) -> None:
    """Its commands, run one after the other, show the interface in the pod and the status, and end with it at home."""
    page = (ROOT / "docs" / "user" / "quick-start.md").read_text(encoding="utf-8")
    commands = [line.strip() for line in page.splitlines() if re.match(r" {4,}\S", line)]
    assert len(commands) >= 8
    was, printed = bed.home(), ""
    path = f"{Path(sys.executable).parent}:{bed.cluster.environment()['PATH']}"
    try:
        for command in commands:
            words = command.replace("NODE", bed.node)
            if words.startswith("kubectl delete"):
                assert f"{bed.node}/ens5" not in bed.home()
                bed.wait_true("default")
            said = bed.cluster.run("env", f"PATH={path}", "sh", "-ec", f"cd {ROOT}; {words}")
            assert said, f"{command} says nothing"
            printed += said
    finally:
        bed.cluster.kubectl("delete", "pods,resourceclaimtemplates", "--all", "--grace-period=1")
    assert "ens5" in printed
    assert all(words in printed for words in ("NetworkDeviceReady", "interfaceName: ens5")), "the status is shown"
    assert bed.home() == was


def test_the_claim_of_the_status_document(bed: Bed, namespace: str) -> None:
    """The documented claim gives the documented status: conditions, name, addresses, and nothing else."""
    config = {
        "interface": {"name": "eth99", "addresses": ["169.254.169.13/32"]},
        "routes": [
            {"destination": "169.254.169.0/24", "gateway": "169.254.169.1"},
            {"destination": "169.254.169.1/32", "scope": 253},
        ],
    }
    mac = next(link["address"] for link in bed.ip("link", "show", "dummy2"))
    name = "dummy-interface-static-ip-route"
    documented = claim(name, "dummy2", config=config)
    documented["spec"]["devices"]["requests"][0]["name"] = "req-dummy"
    bed.start([documented, pod("pod3", name)], "pod3", namespace)
    bed.wait_true_status("pod3", namespace)
    (found,) = bed.claims("pod3", namespace)
    status = found["status"]
    (entry,) = status["devices"]
    for condition in entry["conditions"]:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", condition.pop("lastTransitionTime"))
    assert entry == {
        "conditions": [
            {"message": "", "reason": "NetworkDeviceReady", "status": "True", "type": "Ready"},
            {"message": "", "reason": "NetworkReady", "status": "True", "type": "NetworkReady"},
        ],
        "device": "dummy2",
        "driver": CLASS,
        "networkData": {"hardwareAddress": mac, "interfaceName": "eth99", "ips": ["169.254.169.13/32"]},
        "pool": bed.node,
    }
    assert status["allocation"]["devices"]["results"] == [
        {"device": "dummy2", "driver": CLASS, "pool": bed.node, "request": "req-dummy"}
    ]
    (source,) = status["allocation"]["devices"]["config"]
    assert source["opaque"] == {"driver": CLASS, "parameters": config}
    assert source["source"] == "FromClaim"
    (user,) = status["reservedFor"]
    assert (user["name"], user["resource"]) == ("pod3", "pods")
    routes = bed.cluster.kubectl("exec", "pod3", "--namespace", namespace, "--", "ip", "route")
    assert "169.254.169.0/24 via 169.254.169.1 dev eth99" in routes
    assert "169.254.169.1 dev eth99 scope link" in routes


def test_a_claim_named_at_pod_level_only(bed: Bed, namespace: str) -> None:
    """A pod whose containers list no claim has the interface of its claim all the same."""
    bed.start([claim("net", "ens5"), pod("plain", "net", listed=False)], "plain", namespace)
    assert bed.link("ens5", "plain", namespace)["operstate"] != "DOWN"
    bed.wait_true_status("plain", namespace)


def test_one_claim_of_two_devices_and_a_claim_beside_it(bed: Bed, namespace: str) -> None:
    """A pod has the devices of all its claims."""
    documents = [claim("pair", "ens5", "ens6"), claim("single", "dummy2"), pod("rich", "pair", "single")]
    bed.start(documents, "rich", namespace)
    assert {link["ifname"] for link in bed.links("rich", namespace)} >= {"ens5", "ens6", "dummy2"}
    bed.wait_true_status("rich", namespace)


def test_a_claim_is_used_by_one_pod_after_another(bed: Bed, namespace: str) -> None:
    """The device goes from pod to pod with the claim, and the status is that of the pod that has it."""
    bed.apply([claim("net", "ens5", config={"interface": {"name": "net1", "addresses": ["10.1.1.1/24"]}})], namespace)
    for name in ("first", "second", "third"):
        bed.start([pod(name, "net")], name, namespace)
        assert bed.link("net1", name, namespace)
        bed.wait_true_status(name, namespace)
        bed.delete_pod(name, namespace)


def test_a_second_pod_on_a_claim_in_use_waits_and_is_told_why(bed: Bed, namespace: str) -> None:
    """It does not run without the device; its events name the pod that has it, and it starts when that ends."""
    bed.start([claim("net", "ens5"), pod("first", "net")], "first", namespace)
    bed.apply([pod("second", "net")], namespace)
    wait(lambda: "first" in bed.events("second", namespace), "the second pod's events name the first", 60)
    assert bed.get("pod", "second", namespace)["status"]["phase"] == "Pending"
    assert bed.link("ens5", "first", namespace)
    bed.wait_true_status("first", namespace)
    bed.delete_pod("first", namespace)
    bed.wait_ready("second", namespace, timeout=180)
    assert bed.link("ens5", "second", namespace)
    bed.wait_true_status("second", namespace)


def test_a_link_that_goes_down_in_the_pod_is_seen_with_kubectl(bed: Bed, namespace: str) -> None:
    """NetworkReady says False while the interface is down, and True again; Ready stays as it is."""
    bed.start([claim("net", "ens5"), pod("watched", "net")], "watched", namespace)
    bed.wait_true_status("watched", namespace)
    address = bed.get("pod", "watched", namespace)["status"]["podIP"]
    netns = next(
        each["name"]
        for each in bed.ip("netns", "list")
        if any(
            a.get("local") == address
            for link in bed.ip("address", "show", netns=each["name"])
            for a in link["addr_info"]
        )
    )

    def ready(kind: str) -> str:
        path = f'{{.status.devices[0].conditions[?(@.type=="{kind}")].status}}'
        return bed.cluster.kubectl("get", "resourceclaim", "net", "--namespace", namespace, f"--output=jsonpath={path}")

    bed.cluster.run("ip", "-n", netns, "link", "set", "ens5", "down")
    wait(lambda: ready("NetworkReady") == "False", "NetworkReady is False", 60)
    assert ready("Ready") == "True"
    bed.cluster.run("ip", "-n", netns, "link", "set", "ens5", "up")
    wait(lambda: ready("NetworkReady") == "True", "NetworkReady is True", 60)


def test_the_kubectl_plugin_shows_the_status(bed: Bed, namespace: str) -> None:
    """`kubectl dranet status` shows device, interface and pod of a claim."""
    bed.start([claim("net", "ens5"), pod("shown", "net")], "shown", namespace)
    bed.wait_true_status("shown", namespace)
    plugin = Path(sys.executable).parent / "kubectl-dranet"
    shown = bed.cluster.run(plugin, "status", "--namespace", namespace)
    assert "ens5" in shown
    assert "net" in shown
