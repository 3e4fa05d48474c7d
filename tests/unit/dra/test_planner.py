"""From a claim to its plan: kinds of devices, which configuration applies, all problems at once, collisions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nri_dranet.api.resolve import resolve
from nri_dranet.claims.allocation import AllocatedConfig, AllocationResult, Claim, parse_claim
from nri_dranet.claims.codec import from_json, to_json
from nri_dranet.claims.model import PodRef
from nri_dranet.claims.plan import CharDevice, ClaimPlan, DeviceKind, HostState, RdmaPlan, SubInterface
from nri_dranet.dra.planner import (
    DeviceFactsIn,
    NodeFacts,
    PlanError,
    config_sources,
    plan_claim,
)
from nri_dranet.netlink.model import Address, Link, Route, Rule

DRIVER = "dra.net"
UVERBS = CharDevice(path="/dev/infiniband/uverbs0", major=231, minor=192)


def link(name: str, index: int = 7, **fields: Any) -> Link:
    """Return an Ethernet link with the limits of a veth."""
    base: dict[str, Any] = {
        "type": 1,
        "mtu": 1500,
        "min_mtu": 68,
        "max_mtu": 65535,
        "address": "02:00:00:00:00:07",
        "flags": 1,
    }
    return Link(name=name, index=index, **(base | fields))


class Node:
    """A node with devices and a claim on them, to plan."""

    def __init__(self) -> None:
        self.devices: dict[str, DeviceFactsIn] = {}
        self.hosts: dict[str, HostState] = {}
        self.facts = NodeFacts()
        self.results: list[dict[str, Any]] = []
        self.configs: list[dict[str, Any]] = []
        self.others: list[ClaimPlan] = []
        self.name = "claim-1"

    def device(self, name: str, request: str = "req", *, host: dict[str, Any] | None = None, **facts: Any) -> None:
        """Add a device and its allocation; ``host`` has what its interface has beside the link."""
        facts.setdefault("link", link(name, 10 + len(self.devices)))
        self.devices[name] = DeviceFactsIn(name=name, **facts)
        if facts["link"] is not None:
            self.hosts[name] = HostState(link=facts["link"], **(host or {}))
        self.allocate(name, request)

    def allocate(self, name: str, request: str = "req", **fields: Any) -> None:
        """Add an allocation of a device."""
        self.results.append({"request": request, "driver": DRIVER, "pool": "node", "device": name} | fields)

    def config(self, parameters: Any, *requests: str, source: str = "FromClaim", driver: str = DRIVER) -> None:
        """Add a configuration."""
        self.configs.append(
            {"source": source, "requests": list(requests), "opaque": {"driver": driver, "parameters": parameters}}
        )

    @property
    def claim(self) -> Claim:
        """The claim as it is now."""
        return parse_claim(
            {
                "metadata": {"namespace": "ns", "name": self.name, "uid": f"uid-{self.name}"},
                "status": {
                    "allocation": {"devices": {"results": self.results, "config": self.configs}},
                    "reservedFor": [{"resource": "pods", "name": "pod", "uid": "pod-uid"}],
                },
            }
        )

    def plan(self) -> ClaimPlan:
        """Plan the claim."""
        return plan_claim(self.claim, DRIVER, self.devices, self.hosts, node=self.facts, others=self.others)

    def problems(self) -> list[str]:
        """Plan the claim and return why it is refused."""
        with pytest.raises(PlanError) as caught:
            self.plan()
        return [str(error) for error in caught.value.errors]


@pytest.fixture
def node() -> Node:
    """Return a node without devices."""
    return Node()


def test_a_claim_without_configuration_keeps_name_and_addresses(node: Node) -> None:
    """A device without configuration moves under its host name with its host address, and everything else as it is."""
    node.device("ens5", host={"addresses": (Address(family=2, address="169.254.169.14", prefix_length=32),)})
    plan = node.plan()
    assert (plan.ref.uid, plan.pods[0].uid, plan.allocation_hash) == (
        "uid-claim-1",
        "pod-uid",
        node.claim.allocation_hash(DRIVER),
    )
    (device,) = plan.devices
    assert device.kind is DeviceKind.INTERFACE
    assert device.host == node.hosts["ens5"]
    assert device.pod is not None
    assert (device.pod.name, device.pod.mtu, device.pod.copied_addresses) == ("ens5", None, True)
    assert [address.cidr for address in device.pod.addresses] == ["169.254.169.14/32"]


def test_the_plan_survives_the_journal(node: Node) -> None:
    """A plan with everything in it is the same after it was written as JSON and read back."""
    node.device(
        "ens5",
        rdma="mlx5_0",
        char_devices=(UVERBS,),
        pci_address="0000:8a:00.0",
        published={"name": "pci-0000-8a-00-0"},
        host={"features": {"rx-gro": True}},
    )
    node.config(
        {
            "interface": {"name": "net1", "addresses": ["10.0.0.5/24"], "vrf": {"name": "red"}, "forwarding": True},
            "routes": [{"destination": "10.9.0.0/16", "gateway": "10.0.0.1"}],
            "neighbors": [{"destination": "10.0.0.9", "hardwareAddr": "02:00:00:00:00:09"}],
            "ethtool": {"features": {"gro": False}},
        }
    )
    plan = node.plan()
    assert from_json(ClaimPlan, to_json(plan)) == plan
    assert plan.devices[0].rdma == RdmaPlan(link="mlx5_0", exclusive=False, char_devices=(UVERBS,))


def test_results_of_other_drivers_are_passed_over(node: Node) -> None:
    """A claim with devices of several drivers is planned for this driver's alone, with this driver's configuration."""
    node.device("ens5")
    node.results.append({"request": "gpu", "driver": "gpu.example.com", "pool": "node", "device": "gpu-0"})
    node.config({"nonsense": True}, driver="gpu.example.com")
    assert [device.key.device for device in node.plan().devices] == ["ens5"]


def test_devices_are_planned_in_the_order_of_the_allocation(node: Node) -> None:
    """The order of the devices is that of the allocation, whatever their names."""
    for name in ("z9", "a1", "m5"):
        node.device(name, name)
    assert [device.key.device for device in node.plan().devices] == ["z9", "a1", "m5"]


# ---- which configuration applies


def configured(node: Node, device: str) -> Any:
    """Return the MTU that the configuration of a device says."""
    claim = node.claim
    (result,) = [result for result in claim.results if result.device == device]
    return resolve(config_sources(claim, result)).config.interface.mtu


def test_class_then_claim_then_request(node: Node) -> None:
    """The claim's configuration wins over the class's, and the one for the request over the one for all."""
    node.device("ens5", "a")
    node.device("ens6", "b")
    node.config({"interface": {"mtu": 1001}}, "a")
    node.config({"interface": {"mtu": 1002, "name": "all1"}})
    node.config({"interface": {"mtu": 1003}}, "a", "b", source="FromClass")
    assert (configured(node, "ens5"), configured(node, "ens6")) == (1001, 1002)
    origins = [source.origin for source in config_sources(node.claim, node.claim.results[0])]
    assert origins == [
        "device class, config[2] of the allocation",
        "claim, config[1] of the allocation",
        "claim, config[0] of the allocation",
    ]


def test_among_equals_the_later_wins(node: Node) -> None:
    """Two configurations of the same kind for the same requests apply in the order of the allocation."""
    node.device("ens5", "a")
    node.config({"interface": {"mtu": 1001}})
    node.config({"interface": {"mtu": 1002}})
    assert configured(node, "ens5") == 1002


def test_parent_and_sub_requests(node: Node) -> None:
    """A configuration for a parent request applies to the chosen sub-request; one for the sub-request wins over it."""
    node.device("ens5", "nic/good")
    node.config({"interface": {"mtu": 1001}}, "nic/good")
    node.config({"interface": {"mtu": 1002}}, "nic")
    node.config({"interface": {"mtu": 1003}}, "nic/best")
    node.config({"interface": {"mtu": 1004}}, "other")
    assert configured(node, "ens5") == 1001
    del node.configs[0]
    assert configured(node, "ens5") == 1002


def test_a_configuration_that_is_repeated_for_each_request_applies_once(node: Node) -> None:
    """Kubernetes 1.34 may repeat a configuration for each request that it matches: nothing changes by that."""
    node.device("ens5", "a")
    node.config({"interface": {"mtu": 1001}}, "a")
    node.config({"interface": {"mtu": 1001}}, "a")
    assert configured(node, "ens5") == 1001


# ---- problems


def test_all_problems_of_all_devices_come_together(node: Node) -> None:
    """Every problem of every device is named, with device, request and configuration."""
    node.device("ens5", "a", refused="it is a port of bond0")
    node.device("ens6", "b")
    node.config({"interface": {"mtu": 99999}}, "a")
    node.config({"routes": [{"destination": "10.9.0.0/16", "gateway": "10.0.0.1"}]}, "b")
    node.allocate("gone", "a")
    assert node.problems() == [
        "interface.mtu: 99999: must be 68 to 65535 (claim, config[0] of the allocation)",
        "device ens5: cannot be given to a pod: it is a port of bond0 (request a)",
        "device gone: is not on this node, or not any more (request a)",
        (
            'routes[0].gateway: "10.0.0.1": cannot be reached through the interface: give it an address whose network '
            "has the gateway, or add a route to 10.0.0.1/32 with scope 253 "
            "(device ens6, request b; claim, config[1] of the allocation)"
        ),
    ]


def test_one_wrong_configuration_of_many_devices_is_named_once(node: Node) -> None:
    """A configuration that applies to several devices gives its problems once."""
    for name in ("ens5", "ens6", "ens7"):
        node.device(name)
    node.config({"interface": {"mtu": 1}})
    assert len(node.problems()) == 1


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"refused": "it carries the node's default route"}, "cannot be given to a pod: it carries the node's default"),
        ({"link": link("br0", netns_immutable=True)}, "does not let it leave the host's network namespace"),
        ({"link": None}, "neither a network interface nor an RDMA device"),
        (
            {"link": None, "rdma": "mlx5_0", "published": {"attributes": {"dra.net/ifName": {"string": "ens5"}}}},
            "has no interface on the host now: another pod may still have it",
        ),
    ],
)
def test_a_device_that_cannot_be_given_is_refused_with_the_reason(
    node: Node, facts: dict[str, Any], words: str
) -> None:
    """Uplinks, links that cannot move and devices that are not there are refused by name, with the reason."""
    node.device("ens5", **facts)
    (problem,) = node.problems()
    assert problem.startswith("device ")
    assert words in problem


def test_an_interface_that_cannot_be_read_is_refused(node: Node) -> None:
    """A device whose interface left between the scan and the snapshot is refused in words."""
    node.device("ens5")
    node.hosts.clear()
    assert node.problems() == [
        "device ens5: has a network interface, but that could not be read on the host (request req)"
    ]


def test_errors_beyond_the_limit_are_counted(node: Node) -> None:
    """What a configuration has of problems beyond the limit stays counted in the claim's error."""
    node.device("ens5")
    node.config({f"x{i}": 1 for i in range(60)})
    with pytest.raises(PlanError) as caught:
        node.plan()
    assert str(caught.value).endswith("and 10 more")


# ---- kinds


def test_admin_access_moves_nothing(node: Node) -> None:
    """A device with admin access is reported: neither moved nor configured, whatever its state is."""
    node.device("ens5", refused="it carries the node's default route")
    node.results[0]["adminAccess"] = True
    node.config({"interface": {"name": "net1"}})
    (device,) = node.plan().devices
    assert (device.kind, device.host, device.pod, device.rdma, device.moves) == (
        DeviceKind.ADMIN,
        None,
        None,
        None,
        False,
    )


def test_an_rdma_only_device(node: Node) -> None:
    """A device without interface is planned for its character devices, and its link in exclusive mode."""
    node.device("pci-0000-8a-00-0", link=None, rdma="efa_0", char_devices=(UVERBS,), pci_address="0000:8a:00.0")
    node.facts = NodeFacts(rdma_exclusive=True)
    (device,) = node.plan().devices
    assert (device.kind, device.pod, device.host) == (DeviceKind.RDMA, None, None)
    assert device.rdma == RdmaPlan(link="efa_0", exclusive=True, char_devices=(UVERBS,))


def test_network_fields_for_an_rdma_only_device_are_refused_by_name(node: Node) -> None:
    """Every network field that is given for a device without interface is named, those that say nothing are not."""
    node.device("pci-0000-8a-00-0", link=None, rdma="efa_0")
    node.config(
        {
            "interface": {
                "name": "net1",
                "addresses": ["10.0.0.1/24"],
                "dhcp": False,
                "disableEbpfPrograms": False,
                "forwarding": False,
                "vrf": {"name": "red"},
                "arpIgnore": 0,
                "arpAnnounce": 0,
            },
            "routes": [{"destination": "10.9.0.0/16", "scope": 253}],
            "rules": [],
            "ethtool": {"features": {"tso": False}},
        }
    )
    assert [problem.partition(":")[0] for problem in node.problems()] == [
        "interface.name",
        "interface.addresses",
        "interface.forwarding",
        "interface.arpIgnore",
        "interface.arpAnnounce",
        "interface.vrf.name",
        "routes",
        "ethtool.features.tso",
    ]


def test_a_shared_device_gets_a_child(node: Node) -> None:
    """On a shared device a macvlan child in bridge mode or the one asked for is planned; nothing is copied."""
    address = Address(family=2, address="10.0.0.1", prefix_length=24)
    node.device("ens5", shared=True, host={"addresses": (address,)})
    node.results[0]["shareID"] = "s-1"
    (device,) = node.plan().devices
    assert device.kind is DeviceKind.CHILD
    assert device.key.share_id == "s-1"
    assert device.pod is not None
    assert device.pod.sub_interface == SubInterface(kind="macvlan", mode="bridge")
    assert device.pod.addresses == ()
    node.config({"interface": {"subInterface": {"type": "vlan", "vlanID": 7}}})
    (device,) = node.plan().devices
    assert device.pod is not None
    assert device.pod.sub_interface == SubInterface(kind="vlan", vlan_id=7)


def test_a_child_of_a_device_that_is_not_shared_is_refused(node: Node) -> None:
    """Without sharing a child interface is refused, and so is a share of what is not shared any more."""
    node.device("ens5")
    node.results[0]["shareID"] = "s-1"
    node.config({"interface": {"subInterface": {"type": "macvlan"}}})
    first, second = node.problems()
    assert first.startswith("device ens5: was allocated as a share (s-1)")
    assert second.startswith('interface.subInterface: "macvlan": must be left out: the device is not shared')


# ---- collisions


def test_count_with_a_name_is_refused_with_both_sides(node: Node) -> None:
    """One configuration with name and address for two devices: both collisions are named with the other device."""
    node.device("ens5")
    node.device("ens6")
    node.config({"interface": {"name": "net1", "addresses": ["10.0.0.5/24"]}})
    name, address = node.problems()
    assert name.startswith(
        'interface.name: "net1": must differ from the name of device ens5, request req in the same pod'
    )
    assert "device ens6, request req; claim" in name
    assert address.startswith(
        'interface.addresses[0]: "10.0.0.5/24": must differ from that of device ens5, request req in the same pod'
    )


def test_a_configured_name_may_not_be_anothers_host_name(node: Node) -> None:
    """A name that another device of the pod keeps from the host is taken."""
    node.device("ens5")
    node.device("ens6", "b")
    node.config({"interface": {"name": "ens5"}}, "b")
    (problem,) = node.problems()
    assert problem.startswith('interface.name: "ens5": must differ from the name of device ens5')


def test_devices_of_other_claims_of_the_pod_count(node: Node) -> None:
    """A name and an address that a device of another claim of the same pod has are refused with that claim's name."""
    first = Node()
    first.name = "claim-0"
    first.device("ens4")
    first.config({"interface": {"name": "net1", "addresses": ["10.0.0.5/24"]}})
    node.others = [first.plan()]
    node.device("ens5")
    node.config({"interface": {"name": "net1", "addresses": ["10.0.0.5/16"]}})
    assert all("device ens4, request req, of claim claim-0 in the same pod" in problem for problem in node.problems())
    assert len(node.problems()) == 2


def test_routes_of_other_claims_of_the_pod_count(node: Node) -> None:
    """A configured route where one of another claim's configuration leads is refused; one that it copied gives way."""
    copied = Route(family=2, destination="10.8.0.0/16", gateway="10.1.0.1", index=10)
    first = Node()
    first.name = "claim-0"
    address = Address(family=2, address="10.1.0.2", prefix_length=24)
    first.device("ens4", host={"addresses": (address,), "routes": (copied,)})
    first.config({"routes": [{"destination": "10.9.0.0/16", "gateway": "10.1.0.1"}]})
    node.others = [first.plan()]
    node.device("ens5")
    node.config(
        {
            "interface": {"addresses": ["10.2.0.2/24"]},
            "routes": [
                {"destination": "10.8.0.0/16", "gateway": "10.2.0.1"},
                {"destination": "10.9.0.0/16", "gateway": "10.2.0.1"},
            ],
        }
    )
    (problem,) = node.problems()
    assert problem.startswith(
        'routes: "10.9.0.0/16": must not lead to where a route of device ens4, request req, of claim claim-0'
    )


def test_claims_of_other_pods_and_the_claim_itself_do_not_count(node: Node) -> None:
    """Plans that share no pod with the claim, and an earlier plan of the same claim, are no collision."""
    node.device("ens5")
    node.config({"interface": {"name": "net1", "addresses": ["10.0.0.5/24"]}})
    same = node.plan()
    other = from_json(ClaimPlan, to_json(same) | {"ref": {"namespace": "ns", "name": "x", "uid": "x"}, "pods": []})
    node.others = [same, other]
    assert node.plan() == same


@pytest.mark.parametrize(
    ("one", "two", "words"),
    [
        (
            {"vrf": {"name": "red", "table": 100}},
            {"vrf": {"name": "red", "table": 200}},
            "interface.vrf.table: 200: must be 100, which the same VRF of device ens5",
        ),
        (
            {"vrf": {"name": "red", "table": 100}},
            {"vrf": {"name": "blue", "table": 100}},
            "interface.vrf.table: 100: must differ from the table of VRF red of device ens5",
        ),
        ({"vrf": {"name": "net2"}}, {}, 'interface.name: "net2": must differ from the VRF of device ens5'),
        ({}, {"vrf": {"name": "net1"}}, 'interface.vrf.name: "net1": must differ from the name of device ens5'),
    ],
)
def test_vrf_collisions(node: Node, one: dict[str, Any], two: dict[str, Any], words: str) -> None:
    """Names and tables of VRFs that collide within a pod are refused with both sides."""
    node.device("ens5", "a")
    node.device("ens6", "b")
    node.config({"interface": {"name": "net1", **one}}, "a")
    node.config({"interface": {"name": "net2", **two}}, "b")
    (problem,) = node.problems()
    assert problem.startswith(words)


def test_a_vrf_is_shared_by_name(node: Node) -> None:
    """Two interfaces that name the same VRF share it, and one address may be in two VRFs."""
    node.device("ens5", "a")
    node.device("ens6", "b")
    node.device("ens7", "c")
    node.config({"interface": {"addresses": ["10.0.0.5/24"], "vrf": {"name": "red"}}}, "a")
    node.config({"interface": {"addresses": ["10.0.0.6/24"], "vrf": {"name": "red"}}}, "b")
    node.config({"interface": {"addresses": ["10.0.0.5/24"], "vrf": {"name": "blue"}}}, "c")
    pods = [device.pod for device in node.plan().devices]
    assert [pod.vrf.name for pod in pods if pod and pod.vrf] == ["red", "red", "blue"]


@pytest.mark.parametrize("vrf_first", [True, False])
def test_a_table_is_of_a_vrf_or_of_routes(node: Node, vrf_first: bool) -> None:
    """A table that one device's routes use cannot be another device's VRF table, in whichever order they come."""
    node.device("ens5", "a")
    node.device("ens6", "b")
    vrf = {"interface": {"vrf": {"name": "red", "table": 100}}}
    routes = {"routes": [{"destination": "10.9.0.0/16", "scope": 253, "table": 100}]}
    node.config(vrf if vrf_first else routes, "a")
    node.config(routes if vrf_first else vrf, "b")
    (problem,) = node.problems()
    assert "table" in problem
    assert "of device ens5" in problem or "that device ens5" in problem


def test_two_routes_to_one_place_are_refused(node: Node) -> None:
    """Configured routes of two devices to the same destination in the same table are refused; in two tables not."""
    for name, request in (("ens5", "a"), ("ens6", "b")):
        node.device(name, request)
        node.config({"routes": [{"destination": "10.9.0.0/16", "scope": 253}]}, request)
    (problem,) = node.problems()
    assert problem.startswith('routes: "10.9.0.0/16": must not lead to where a route of device ens5')
    node.configs[1]["opaque"]["parameters"]["routes"][0]["table"] = 7
    assert len(node.plan().devices) == 2


def test_copied_routes_and_rules_are_there_once(node: Node) -> None:
    """What two interfaces of the host have alike comes with the first; a configured route comes before it."""
    rule = Rule(family=2, table=7, priority=500, source="10.1.0.0/16", action=1)
    node.facts = NodeFacts(rules=(rule,))
    for index, (name, request) in enumerate((("ens5", "a"), ("ens6", "b"))):
        node.device(
            name,
            request,
            host={
                "routes": (
                    Route(family=2, destination="10.9.0.0/16", index=10 + index, scope=253, table=7),
                    Route(family=2, destination="10.8.0.0/16", index=10 + index, scope=253),
                    Route(family=2, destination="10.7.0.0/16", index=10 + index, gateway="10.8.0.1"),
                    Route(family=2, destination=f"10.{index}.0.0/16", index=10 + index, scope=253),
                )
            },
        )
    node.config({"routes": [{"destination": "10.8.0.0/16", "scope": 253}]}, "b")
    first, second = (device.pod for device in node.plan().devices)
    assert first is not None
    assert second is not None
    assert [route.destination for route in first.routes] == ["10.9.0.0/16", "10.0.0.0/16"]
    assert [route.destination for route in second.routes] == ["10.8.0.0/16", "10.1.0.0/16", "10.7.0.0/16"]
    assert first.rules == (rule,)
    assert second.rules == ()


def test_a_device_without_interface_collides_with_nothing(node: Node) -> None:
    """A device for RDMA alone, between two interfaces, is no side of any collision."""
    node.device("ens5", "a")
    node.device("efa", "b", link=None, rdma="efa_0")
    node.device("ens6", "c")
    assert [device.pod.name if device.pod else None for device in node.plan().devices] == ["ens5", None, "ens6"]


def test_rules_that_a_claim_repeats_for_each_device_are_there_once(node: Node) -> None:
    """One rule in a configuration for two devices is added once."""
    node.device("ens5")
    node.device("ens6")
    node.config({"rules": [{"source": "10.0.0.0/8", "table": 7, "priority": 100}]})
    assert [len(device.pod.rules) for device in node.plan().devices if device.pod] == [1, 0]


def child(name: str, kind: str, **fields: Any) -> dict[str, Any]:
    """Return a configuration with a sub-interface."""
    return {"interface": {"name": name, "subInterface": {"type": kind, **fields}}}


@pytest.mark.parametrize("same_pod", [True, False])
@pytest.mark.parametrize(
    ("one", "two", "words"),
    [
        (child("a", "vlan", vlanID=7), child("b", "vlan", vlanID=7), "vlanID: 7: must differ from that of device ens5"),
        (child("a", "macvlan"), child("b", "ipvlan"), 'type: "ipvlan": must not be mixed with the macvlan of device'),
        (child("a", "ipvlan"), child("b", "ipvlan", mode="l3"), 'mode: "l3": must be l2, as that of device ens5'),
        (child("a", "macvlan"), child("b", "macvlan", mode="passthru"), 'mode: "passthru": cannot be beside'),
        (child("a", "macvlan", mode="passthru"), child("b", "macvlan"), 'mode: "bridge": cannot be beside'),
        (child("a", "vlan", vlanID=7), child("b", "vlan", vlanID=8), ""),
        (child("a", "vlan", vlanID=7), child("b", "macvlan"), ""),
        (child("a", "macvlan"), child("b", "macvlan", mode="private"), ""),
        (child("a", "ipvlan"), child("b", "ipvlan", mode="l2"), ""),
    ],
)
def test_children_of_one_device(
    node: Node, one: dict[str, Any], two: dict[str, Any], words: str, same_pod: bool
) -> None:
    """What the kernel does not have on one device at once is refused, in one claim and between pods alike."""
    if same_pod:
        node.device("ens5", "a", shared=True)
        node.results[0]["shareID"] = "s-1"
        node.allocate("ens5", "b", shareID="s-2")
        node.config(one, "a")
    else:
        first = Node()
        first.name = "claim-0"
        first.device("ens5", "a", shared=True)
        first.results[0]["shareID"] = "s-1"
        first.config(one)
        node.others = [replace(first.plan(), pods=(PodRef("other", "pod", "another"),))]
        node.device("ens5", "b", shared=True)
        node.results[0]["shareID"] = "s-2"
    node.config(two, "b")
    if words:
        (problem,) = node.problems()
        assert problem.startswith(f"interface.subInterface.{words}")
        assert ("of claim ns/claim-0" in problem) == (not same_pod)
    else:
        assert node.plan()


def test_a_macvlan_keeps_its_hardware_address(node: Node) -> None:
    """Each share has its own, unicast and locally administered, and the same in each sandbox of the claim."""
    node.device("ens5", "a", shared=True)
    node.results[0]["shareID"] = "s-1"
    node.allocate("ens5", "b", shareID="s-2")
    node.config({"interface": {"name": "a"}}, "a")
    node.config({"interface": {"name": "b"}}, "b")
    addresses = [device.pod.hardware_address for device in node.plan().devices if device.pod]
    assert addresses == [device.pod.hardware_address for device in node.plan().devices if device.pod]
    assert len(set(addresses)) == 2
    assert all(address and int(address[:2], 16) & 3 == 2 for address in addresses)
    node.config(child("a", "macvlan", mode="passthru"))
    node.results.pop()
    (device,) = node.plan().devices
    assert device.pod is not None
    assert device.pod.hardware_address is None


@pytest.mark.parametrize(
    ("facts", "parameters", "words"),
    [
        ({"link": link("ens5", flags=0)}, {}, "device ens5: is shared but down on the host"),
        (
            {"no_kinds": frozenset({"macvlan"})},
            {},
            "interface.subInterface.type: must be one of ipvlan, vlan: the node",
        ),
        (
            {"no_kinds": frozenset({"ipvlan", "vlan"})},
            child("a", "vlan", vlanID=7),
            'interface.subInterface.type: "vlan": must be one of macvlan: the node\'s kernel has no vlan (m',
        ),
        (
            {},
            {"ethtool": {"features": {"tso": False}}},
            "ethtool: must be left out: a sub-interface takes its offloads",
        ),
        (
            {},
            {
                "interface": {
                    "hardwareAddr": "02:00:00:00:00:01",
                    "subInterface": {"type": "macvlan", "mode": "passthru"},
                }
            },
            'interface.hardwareAddr: "02:00:00:00:00:01": must be left out: a macvlan in mode passthru',
        ),
    ],
)
def test_a_child_that_cannot_be_made_is_refused(
    node: Node, facts: dict[str, Any], parameters: dict[str, Any], words: str
) -> None:
    """What the kernel would refuse at attach is refused before."""
    node.device("ens5", shared=True, **facts)
    node.results[0]["shareID"] = "s-1"
    node.config(parameters)
    (problem,) = node.problems()
    assert problem.startswith(words)


def test_programs_of_the_host_are_not_taken_from_a_parent(node: Node) -> None:
    """A child has none of them, and those of its parent stay."""
    node.device("ens5", shared=True, pinned_bpf_links=(5,))
    node.results[0]["shareID"] = "s-1"
    node.config({"interface": {"disableEbpfPrograms": True}})
    (device,) = node.plan().devices
    assert device.pod is not None
    assert (device.pod.detach_bpf, device.pod.pinned_bpf_links) == (False, ())


def test_what_cannot_be_in_pods_at_once(node: Node) -> None:
    """One device twice, or one whole beside a child of it; two shares of one device can."""
    node.device("ens5")
    (whole,) = node.plan().devices
    one, two = (
        replace(whole, kind=DeviceKind.CHILD, key=replace(whole.key, share_id=share)) for share in ("s-1", "s-2")
    )
    assert whole.excludes(whole)
    assert whole.excludes(one)
    assert one.excludes(whole)
    assert one.excludes(one)
    assert not one.excludes(two)
    assert not one.excludes(replace(whole, key=replace(whole.key, device="ens6")))
    assert not one.excludes(replace(whole, kind=DeviceKind.ADMIN))


def test_results_and_configs_may_be_built_by_hand() -> None:
    """Sources are chosen from plain claim data, without anything of the API in between."""
    result = AllocationResult("nic", DRIVER, "node", "ens5")
    claim = Claim(
        ref=parse_claim({"metadata": {"namespace": "n", "name": "c", "uid": "u"}}).ref,
        allocated=True,
        results=(result,),
        configs=(AllocatedConfig(3, "FromClaim", (), DRIVER, {}),),
        pods=(),
        other_consumers=(),
        node_name=None,
        pod_claim_name=None,
    )
    assert [source.origin for source in config_sources(claim, result)] == ["claim, config[3] of the allocation"]


def test_addresses_of_two_hosts_interfaces_collide_too(node: Node) -> None:
    """Those that come along from the host have no position in a configuration."""
    for name in ("eth1", "eth2"):
        node.device(name, f"req-{name}", host={"addresses": (Address(family=2, address="10.0.0.5", prefix_length=24),)})
    (problem,) = node.problems()
    assert problem.startswith('interface.addresses: "10.0.0.5/24": must differ from that of device eth1')


def test_children_of_different_devices_have_nothing_to_do_with_each_other(node: Node) -> None:
    """The same VLAN on two devices, in one pod and in two."""
    for number, name in enumerate(("eth1", "eth2")):
        node.device(name, f"req{number}", shared=True)
        child = {"type": "vlan", "vlanID": 5}
        node.config({"interface": {"name": f"net{number}", "subInterface": child}}, f"req{number}")
    plan = node.plan()
    other = Node()
    other.name = "claim-2"
    other.device("eth3", shared=True)
    other.config({"interface": {"name": "net9", "subInterface": {"type": "vlan", "vlanID": 5}}})
    other.others = [plan]
    assert [device.kind for device in other.plan().devices] == [DeviceKind.CHILD]


def test_more_problems_than_a_message_lists_end_the_search(node: Node) -> None:
    """A claim has room for 32 configurations of 10 KiB: one that is full of problems is enough."""
    for number in range(3):
        node.device(f"eth{number + 1}", f"req{number}")
        node.config({f"wrong{i}": number for i in range(60)}, f"req{number}")
    with pytest.raises(PlanError) as caught:
        node.plan()
    assert len(caught.value.errors) == 50
    assert caught.value.unlisted < 20
