"""The whole daemon with links that not every kernel can make: sub-interfaces, VRFs, and a bond below the uplink."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.testing.runtime import RuntimeRefusedError
from tests.vm.bed import links, run
from tests.vm.daemon import READY, state_of

if TYPE_CHECKING:
    from nri_dranet.testing.stage import StagedPod
    from tests.vm.bed import Bed
    from tests.vm.daemon import Node

pytestmark = pytest.mark.vm

FLAGS = ('--share=device.attributes["dra.net"].ifName == "share0"',)


def shared(bed: Bed, node: Node) -> str:
    """Return the published device of an interface that pods get sub-interfaces of."""
    bed.link("share0", "type", "veth", "peer", "name", "share0p")
    for name in ("share0", "share0p"):
        bed.up(name)
    device = node.published("share0")
    node.stage.wait_for(lambda: node.stage.devices()[device].get("allowMultipleAllocations"), "published as shared")
    return device


def config(number: int, **child: Any) -> dict[str, Any]:
    """Return a configuration with a sub-interface."""
    return {"interface": {"name": "net1", "addresses": [f"192.0.2.{number}/24"], "subInterface": child}}


def link(pod: StagedPod) -> dict[str, Any]:
    """Return the pod's interface as ``ip`` shows it."""
    (found,) = json.loads(pod.run("ip", "-j", "-d", "link", "show", "dev", "net1"))
    return dict(found)


@pytest.mark.parametrize("mode", ["l2", "l3"])
def test_two_pods_have_an_ipvlan_each(bed: Bed, node: Node, mode: str) -> None:
    """Both at once, with the hardware address of the device, which stays as it is; both are gone after their pods."""
    device, pods = shared(bed, node), []
    before = state_of("share0")
    for number in (1, 2):
        share = str(uuid.uuid4())
        pod = node.prepared(device, config=config(number, type="ipvlan", mode=mode), share=share)
        node.run(pod)
        entry = node.says(pod, READY)
        assert (entry["shareID"], entry["networkData"]["ips"]) == (share, [f"192.0.2.{number}/24"])
        pods.append(pod)
    for pod in pods:
        shown = link(pod)
        assert (shown["linkinfo"]["info_kind"], shown["linkinfo"]["info_data"]["mode"]) == ("ipvlan", mode)
        assert shown["address"] == before["address"]
        node.audited(pod)
    pods[0].run("ping", "-c", "1", "-W", "30", "192.0.2.2")
    assert state_of("share0") == before
    for pod in pods:
        node.end(pod)
    assert state_of("share0") == before


def test_two_pods_have_vlans_of_one_device(bed: Bed, node: Node) -> None:
    """Each with its tag; the same tag is refused for another claim, which is told whose it is."""
    device, pods = shared(bed, node), []
    for number in (100, 200):
        pod = node.prepared(device, config=config(number, type="vlan", vlanID=number), share=str(uuid.uuid4()))
        node.run(pod)
        node.says(pod, READY)
        assert link(pod)["linkinfo"]["info_data"]["id"] == number
        pods.append(pod)
    _, error = node.pod(device, config=config(3, type="vlan", vlanID=100), share=str(uuid.uuid4()))
    assert pods[0].claims[0] in error
    for pod in pods:
        node.end(pod)
    assert "share0" in links()


def test_a_claim_brings_its_vrf(bed: Bed, node: Node) -> None:
    """Address and route are in the VRF's table alone; the interface comes home as it was."""
    bed.link("d0", "type", "dummy")
    bed.up("d0")
    before = state_of("d0")
    document = {
        "interface": {"name": "net1", "addresses": ["192.0.2.1/24"], "vrf": {"name": "blue", "table": 1007}},
        "routes": [{"destination": "198.51.100.0/24", "gateway": "192.0.2.9"}],
    }
    pod = node.running(node.published("d0"), config=document)
    assert link(pod)["master"] == "blue"
    routes = pod.run("ip", "route", "show", "table", "1007")
    assert "192.0.2.0/24 dev net1" in routes
    assert "198.51.100.0/24 via 192.0.2.9 dev net1" in routes
    assert pod.run("ip", "route", "show") == ""
    assert node.entry(pod)["networkData"]["ips"] == ["192.0.2.1/24"]
    node.end(pod)
    assert state_of("d0") == before


def test_what_is_below_the_uplink_is_not_offered(bed: Bed, node: Node) -> None:
    """A VLAN with the default route on a bond of two: none of them; the VLAN is offered when the route has gone."""
    bed.link("bond7", "type", "bond", "mode", "active-backup")
    for name in ("d0", "d1"):
        bed.link(name, "type", "dummy")
        run("ip", "link", "set", name, "master", "bond7")
    bed.link("bond7.5", "link", "bond7", "type", "vlan", "id", "5")
    bed.up("bond7")
    bed.up("bond7.5")
    run("ip", "addr", "add", "192.0.2.1/24", "dev", "bond7.5")
    run("ip", "route", "add", "default", "via", "192.0.2.254", "dev", "bond7.5")
    bed.link("free", "type", "dummy")
    bed.up("free")
    node.published("free")
    node.stage.wait_for(lambda: node.find("ifName", "bond7.5") is None, "the uplink is not offered")
    assert [node.find("ifName", name) for name in ("bond7", "d0", "d1")] == [None] * 3
    run("ip", "route", "del", "default")
    device = node.published("bond7.5")
    # Back on the way to its pod: what was offered is asked for again at the last moment.
    pod = node.prepared(device, config={"interface": {"name": "net1"}})
    run("ip", "route", "add", "default", "via", "192.0.2.254", "dev", "bond7.5")
    node.stage.wait_for(lambda: node.find("ifName", "bond7.5") is None, "the uplink is not offered")
    with pytest.raises(RuntimeRefusedError, match="default route"):
        node.run(pod)
    node.says(pod, dict.fromkeys(READY, ("False", "DeviceIsUplink")))
    assert "bond7.5" in links()
