"""DHCP from end to end: the lease is there before the pod, is prolonged in it, and is given back."""

from __future__ import annotations

import json
import signal
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from nri_dranet.dhcp import options
from nri_dranet.dhcp.message import ANY, Kind
from nri_dranet.netlink.namespaces import NetNs
from nri_dranet.testing.stage import DRIVER, NODE
from tests.node.dhcp_server import DhcpServer
from tests.node.driver.conftest import ip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nri_dranet.testing.stage import Stage, StagedPod
    from tests.node.driver.conftest import MakeStage

DHCP: dict[str, Any] = {"interface": {"name": "net1", "dhcp": True}}
PEER = "nictest0p"


@pytest.fixture
def server(nic: str) -> Iterator[DhcpServer]:
    """Run a DHCP server at the other end of the interface."""
    del nic
    ip("addr", "add", "10.99.0.1/24", "dev", PEER)
    routes = options.pack_routes({"0.0.0.0/0": "10.99.0.1", "10.5.0.0/16": "10.99.0.2", "10.99.0.0/24": ANY})
    given = {
        options.CLASSLESS_ROUTES: routes,
        options.DNS_SERVERS: options.pack_address("10.99.0.53"),
        options.DOMAIN: b"example.org",
        options.MTU: options.pack_number(1400, 2),
    }
    with NetNs.current() as here, DhcpServer(here, PEER, options=given) as made:
        yield made


def pod_of(stage: Stage, claim: str, nic: str, config: dict[str, Any] | None = None) -> StagedPod:
    """Return a pod whose claim has the interface."""
    stage.claim(claim, [config or DHCP])
    stage.allocate(claim, nic)
    return stage.pod(f"pod-{claim}", claim)


def prepared(stage: Stage, pod: StagedPod) -> None:
    """Let kubelet prepare a pod's claims."""
    for answer in stage.prepare(pod).values():
        assert not answer.get("error"), answer


def address_in(pod: StagedPod, name: str = "net1") -> dict[str, Any] | None:
    """Return the IPv4 address of the pod's interface, as ``ip`` shows it."""
    (link,) = json.loads(pod.run("ip", "-j", "addr", "show", "dev", name))
    return next((dict(each) for each in link["addr_info"] if each["family"] == "inet"), None)


def routes_in(pod: StagedPod, name: str = "net1") -> list[dict[str, Any]]:
    """Return the routes over the pod's interface."""
    found: list[dict[str, Any]] = json.loads(pod.run("ip", "-j", "route", "show", "dev", name))
    return found


def metric(stage: Stage, action: str, result: str) -> float:
    """Return how many DHCP exchanges of a kind there were."""
    for line in stage.http("/metrics")[1].splitlines():
        if line.startswith(f'nri_dranet_dhcp_requests_total{{action="{action}",result="{result}"}}'):
            return float(line.rpartition(" ")[2])
    return 0.0


def test_a_pod_gets_what_the_server_gave(
    stage: Stage, nic: str, server: DhcpServer, host_state: Callable[[str], Any]
) -> None:
    """Address with the lease's end, routes by metric behind the pod's own default, status; all is given back."""
    before = host_state(nic)
    pod = pod_of(stage, "one", nic)
    prepared(stage, pod)
    assert server.kinds() == [Kind.DISCOVER, Kind.REQUEST]
    assert host_state(nic) == before
    stage.runtime.run_pod(pod.sandbox)
    address = address_in(pod)
    assert address is not None
    assert (address["local"], address["prefixlen"], address["broadcast"]) == ("10.99.0.100", 24, "10.99.0.255")
    assert 3500 < address["valid_life_time"] <= 3600
    found = {(each["dst"], each.get("gateway"), each.get("metric"), each["protocol"]) for each in routes_in(pod)}
    assert found == {
        ("default", "10.99.0.1", 1024, "dhcp"),
        ("10.5.0.0/16", "10.99.0.2", None, "dhcp"),
        ("10.99.0.0/24", None, None, "kernel"),
    }
    (link,) = json.loads(pod.run("ip", "-j", "link", "show", "dev", "net1"))
    assert link["mtu"] == 1500
    entry = stage.wait_condition("one", "NetworkReady", "True")
    assert entry["networkData"]["ips"] == ["10.99.0.100/24"]
    (file,) = (stage.kubelet_root / "plugins" / DRIVER / "dra-device-metadata").iterdir()
    (device,) = json.loads(file.read_text().splitlines()[0])["requests"][0]["devices"]
    told = {name: value for name, value in device["attributes"].items() if name.startswith("dra.net/dhcp")}
    assert told == {
        "dra.net/dhcpServer": {"string": "10.99.0.1"},
        "dra.net/dhcpDNSServers": {"string": "10.99.0.53"},
        "dra.net/dhcpDomain": {"string": "example.org"},
        "dra.net/dhcpMTU": {"int": 1400},
    }
    stage.end_pod(pod)
    stage.unprepare(pod)
    server.wait_for(Kind.RELEASE)
    assert server.released == ["10.99.0.100"]
    stage.wait_for(lambda: metric(stage, "release", "ok") == 1, "counted")
    assert host_state(nic) == before


def test_an_interface_that_is_down_is_asked_on_and_left_down(stage: Stage, nic: str, server: DhcpServer) -> None:
    """It is up only while its server is asked, in Prepare and at the end."""
    ip("link", "set", nic, "down")
    pod = pod_of(stage, "one", nic)
    prepared(stage, pod)
    assert json.loads(ip("-j", "link", "show", "dev", nic))[0]["operstate"] == "DOWN"
    stage.runtime.run_pod(pod.sandbox)
    assert (address_in(pod) or {}).get("local") == "10.99.0.100"
    stage.end_pod(pod)
    stage.unprepare(pod)
    server.wait_for(Kind.RELEASE)
    stage.wait_for(lambda: metric(stage, "release", "ok") == 1, "given back")
    assert json.loads(ip("-j", "link", "show", "dev", nic))[0]["operstate"] == "DOWN"


def test_preparing_again_takes_no_second_lease(stage: Stage, nic: str, server: DhcpServer) -> None:
    """What is recorded is used; after a crash before that the same client gets the same address."""
    pod = pod_of(stage, "one", nic)
    prepared(stage, pod)
    prepared(stage, pod)
    assert server.kinds() == [Kind.DISCOVER, Kind.REQUEST]
    stage.stop_daemon(signal.SIGKILL)
    stage.start_daemon()
    stage.wait_ready()
    prepared(stage, pod)
    assert server.kinds() == [Kind.DISCOVER, Kind.REQUEST]
    assert list(server.given.values()) == ["10.99.0.100"]
    stage.unprepare(pod)
    server.wait_for(Kind.RELEASE)


def test_killed_before_the_lease_is_recorded_the_next_life_gets_the_same(
    stage: Stage, nic: str, server: DhcpServer
) -> None:
    """The server has given an address whose ACK nobody read: there is no second lease."""
    server.spoil = lambda answer: replace(answer, xid=answer.xid ^ (answer.kind is Kind.ACK))
    pod = pod_of(stage, "one", nic)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stage.prepare, pod)
        server.wait_for(Kind.REQUEST)
        stage.stop_daemon(signal.SIGKILL)
        with pytest.raises(grpc.RpcError):
            waiting.result()
    server.spoil = lambda answer: answer
    stage.start_daemon()
    stage.wait_ready()
    prepared(stage, pod)
    assert list(server.given.values()) == ["10.99.0.100"]
    stage.unprepare(pod)
    server.wait_for(Kind.RELEASE)


def test_a_lease_is_asked_for_the_configured_hardware_address(stage: Stage, nic: str, server: DhcpServer) -> None:
    """The server sees the address that the interface has in the pod."""
    pod = pod_of(stage, "one", nic, {"interface": {"name": "net1", "dhcp": True, "hardwareAddr": "02:00:00:00:00:99"}})
    prepared(stage, pod)
    stage.runtime.run_pod(pod.sandbox)
    assert {asked.chaddr for asked in server.asked} == {"02:00:00:00:00:99"}
    assert (address_in(pod) or {}).get("local") == "10.99.0.100"


def test_a_lease_is_prolonged_in_the_pod(stage: Stage, nic: str, server: DhcpServer) -> None:
    """Its server is asked from the pod, by unicast, and the address's end moves; a restart of the daemon loses none."""
    server.lifetime = 8
    pod = pod_of(stage, "one", nic)
    prepared(stage, pod)
    stage.runtime.run_pod(pod.sandbox)
    asked = server.wait_for(Kind.REQUEST, 2)[-1]
    assert asked.ciaddr == "10.99.0.100"
    stage.stop_daemon()
    stage.start_daemon()
    stage.wait_ready()
    server.wait_for(Kind.REQUEST, 4)
    assert (address_in(pod) or {}).get("local") == "10.99.0.100"
    server.lifetime = 3600
    stage.wait_for(lambda: ((address_in(pod) or {}).get("valid_life_time") or 0) > 3000, "prolonged")
    assert {each.kind for each in server.asked} == {Kind.DISCOVER, Kind.REQUEST}


def test_a_no_takes_the_address_off_and_a_new_lease_is_asked_for(stage: Stage, nic: str, server: DhcpServer) -> None:
    """RFC 2131: the address goes at once. The status says so, and is well when there is a lease again."""
    server.lifetime = 4
    pod = pod_of(stage, "one", nic)
    prepared(stage, pod)
    stage.runtime.run_pod(pod.sandbox)
    stage.wait_condition("one", "NetworkReady", "True")
    server.refused = "renumbered"
    server.silent = {Kind.DISCOVER}
    entry = stage.wait_condition("one", "NetworkReady", "False")
    (condition,) = [item for item in entry["conditions"] if item["type"] == "NetworkReady"]
    assert condition["reason"] == "LeaseLost"
    assert "10.99.0.1 said no to 10.99.0.100 (renumbered)" in condition["message"]
    assert address_in(pod) is None
    assert not routes_in(pod)
    server.given.clear()
    server.pool = ("10.99.0.150",)
    server.lifetime = 3600
    server.refused = ""
    server.silent = set()
    entry = stage.wait_condition("one", "NetworkReady", "True")
    assert entry["networkData"]["ips"] == ["10.99.0.150/24"]
    assert {each["dst"] for each in routes_in(pod)} == {"default", "10.5.0.0/16", "10.99.0.0/24"}
    stage.end_pod(pod)
    stage.unprepare(pod)
    server.wait_for(Kind.RELEASE)
    assert server.released == ["10.99.0.150"]


def test_the_kernel_ends_a_lease_when_nobody_prolongs_it(stage: Stage, nic: str, server: DhcpServer) -> None:
    """With the daemon dead the address goes when its time is over."""
    server.lifetime = 5
    pod = pod_of(stage, "one", nic)
    prepared(stage, pod)
    stage.runtime.run_pod(pod.sandbox)
    stage.stop_daemon(signal.SIGKILL)
    stage.wait_for(lambda: address_in(pod) is None, "the address is gone")
    server.lifetime = 3600
    stage.start_daemon()
    stage.wait_ready()
    stage.wait_for(lambda: (address_in(pod) or {}).get("local") == "10.99.0.100", "a lease again")
    stage.wait_condition("one", "NetworkReady", "True")


def test_a_lease_that_ended_before_the_pod_started_is_not_used(stage: Stage, nic: str, server: DhcpServer) -> None:
    """The sandbox is refused until there is a new lease."""
    server.lifetime = 2
    pod = pod_of(stage, "one", nic)
    prepared(stage, pod)
    server.refused = "gone"
    server.silent = {Kind.DISCOVER}
    stage.wait_for(lambda: metric(stage, "renew", "lost") >= 1, "lost")
    with pytest.raises(Exception, match="no valid DHCP lease"):
        stage.runtime.run_pod(pod.sandbox)
    server.lifetime = 3600
    server.refused = ""
    server.silent = set()
    stage.wait_for(lambda: metric(stage, "acquire", "ok") >= 2, "a lease again")
    stage.runtime.run_pod(pod.sandbox)
    assert (address_in(pod) or {}).get("local") == "10.99.0.100"


def test_children_of_one_device_have_a_lease_each(make_stage: MakeStage, nic: str, server: DhcpServer) -> None:
    """Each macvlan's is asked for on its parent, and prolonged and given back; the parent stays as it is."""
    stage = make_stage(flags=[f'--share=device.attributes["dra.net"].ifName == "{nic}"'])
    stage.start_daemon()
    stage.wait_ready()
    stage.wait_for(lambda: (stage.devices().get(nic) or {}).get("allowMultipleAllocations"), "published as shared")
    server.lifetime = 10
    pods = []
    for claim in ("one", "two"):
        stage.claim(claim, [DHCP])
        result = {"request": "nic", "driver": DRIVER, "pool": NODE, "device": nic, "shareID": str(uuid.uuid4())}
        configs = [{**each, "source": "FromClaim"} for each in stage.get_claim(claim)["spec"]["devices"]["config"]]
        stage.api.allocate("default", claim, results=[result], config=configs, node=NODE)
        pods.append(stage.pod(f"pod-{claim}", claim))
        prepared(stage, pods[-1])
    for pod in pods:
        stage.runtime.run_pod(pod.sandbox)
    macs = [json.loads(pod.run("ip", "-j", "link", "show", "dev", "net1"))[0]["address"] for pod in pods]
    found = [(address_in(pod) or {}).get("local") for pod in pods]
    assert found == ["10.99.0.100", "10.99.0.101"]
    assert {asked.chaddr for asked in server.asked} == set(macs)
    stage.wait_for(lambda: metric(stage, "renew", "ok") >= 2, "both prolonged")
    assert sorted({asked.ciaddr for asked in server.asked} - {ANY}) == found
    for pod in pods:
        stage.end_pod(pod)
        stage.unprepare(pod)
    server.wait_for(Kind.RELEASE, 2)
    assert sorted(server.released) == found


def test_silence_refuses_the_claim_in_words_and_holds_up_no_other(stage: Stage, nic: str, server: DhcpServer) -> None:
    """What was asked and what came is told everywhere; another claim of the pod is prepared meanwhile."""
    ip("link", "add", "nictest1", "type", "veth", "peer", "name", "nictest1p")
    try:
        ip("link", "set", "nictest1", "up")
        stage.wait_for(lambda: "nictest1" in stage.devices(), "published")
        server.silent = {Kind.DISCOVER}
        stage.claim("other", [{"interface": {"name": "net2", "addresses": ["10.98.0.1/24"]}}])
        stage.allocate("other", "nictest1")
        slow = pod_of(stage, "one", nic)
        quick = stage.pod("pod-other", "other")
        stage.api.reserve("default", "other", pod=slow.name, uid=slow.uid)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(stage.prepare, slow)
            server.wait_for(Kind.DISCOVER)
            prepared(stage, quick)
            assert not waiting.done()
            (answer,) = waiting.result().values()
        assert "no DHCP lease on interface nictest0 for " in answer["error"]
        assert "DISCOVER in " in answer["error"]
        assert "no answer came" in answer["error"]
        entry = stage.wait_condition("one", "Ready", "False")
        assert {item["reason"] for item in entry["conditions"]} == {"LeaseNotObtained"}
        assert metric(stage, "acquire", "failed") == 1
        server.silent = set()
        prepared(stage, slow)
        for pod in (slow, quick):
            stage.unprepare(pod)
    finally:
        ip("link", "del", "nictest1")
