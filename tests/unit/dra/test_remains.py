"""What is left of a claim without a record: devices are told by what they cannot lose, and nothing is guessed."""

from __future__ import annotations

from typing import Any

import pytest

from nri_dranet.claims.allocation import AllocationResult, Claim
from nri_dranet.claims.model import ClaimRef, PodRef
from nri_dranet.dra import remains
from nri_dranet.dra.plan_model import NodeFacts
from nri_dranet.inventory.names import interface_device_name
from nri_dranet.netlink.model import Link

MAC = "02:00:00:00:00:01"
LO = Link(index=1, name="lo", type=772)
ETH0 = Link(index=2, name="eth0", kind="veth", address=MAC)


def result(device: str = "ens5", **more: Any) -> AllocationResult:
    """A result of an allocation."""
    return AllocationResult(request="nic", driver="dra.net", pool="node", device=device, **more)


def entry(**attributes: Any) -> dict[str, Any]:
    """An entry of a slice."""
    kinds = {str: "string", int: "int", bool: "bool"}
    return {"attributes": {f"dra.net/{name}": {kinds[type(value)]: value} for name, value in attributes.items()}}


def status(**data: Any) -> dict[str, Any]:
    """A claim whose status has networkData."""
    shown = {"driver": "dra.net", "pool": "node", "device": "ens5", "networkData": data}
    return {"status": {"devices": [{"driver": "gpu", "pool": "node", "device": "ens5"}, shown]}}


NET1 = Link(index=7, name="net1", address=MAC)


@pytest.mark.parametrize(
    ("link", "device", "published", "claim"),
    [
        (Link(index=7, name="x", parent_bus="pci", parent_device="0000:8a:00.0"), "pci-0000-8a-00-0", {}, {}),
        (Link(index=7, name="x", parent_bus="pci", parent_device="0000:8a:00.0"), "pci-0000-8a-00-0-p1", {}, {}),
        (Link(index=7, name="x", permanent_address=MAC, address="02::"), "ens5", entry(mac=MAC), {}),
        (Link(index=7, name="x", altnames=("ens5",)), "ens5", {}, {}),
        (NET1, "ens5", {}, status(interfaceName="net1", hardwareAddress=MAC)),
        (Link(index=7, name="renamed", address=MAC), "ens5", {}, status(interfaceName="net1", hardwareAddress=MAC)),
    ],
    ids=["pci", "port", "permanent", "altname", "status", "renamed"],
)
def test_a_device_is_found(link: Link, device: str, published: dict[str, Any], claim: dict[str, Any]) -> None:
    """By PCI address, permanent hardware address, alternative name, or what its status says of it."""
    (found,) = remains.find([result(device)], [LO, ETH0, link], {device: published}, claim)
    assert found.link is link


@pytest.mark.parametrize(
    ("links", "published"),
    [
        ([NET1, Link(index=8, name="net2", address=MAC)], entry(mac=MAC)),
        ([NET1], entry(mac=MAC, pciAddress="0000:8a:00.0")),
        ([NET1], entry(mac=MAC, type="veth")),
        ([Link(index=2, name="eth0", address=MAC)], entry(mac=MAC)),
        ([Link(index=9, name="other")], entry(mac=MAC)),
        ([], entry(mac=MAC)),
    ],
    ids=["twins", "other hardware", "other kind", "the pod's own", "strangers", "none"],
)
def test_nothing_is_guessed(links: list[Link], published: dict[str, Any]) -> None:
    """Two that could be it, one that cannot, the pod's own interface: none of them is taken for the device."""
    assert remains.find([result()], links, {"ens5": published}, {}) == []


def test_each_link_is_taken_once() -> None:
    """Two devices of a claim are two interfaces."""
    results = [result("ens5"), result("ens6")]
    links = [Link(index=7, name="ens5"), Link(index=8, name="ens6")]
    assert [each.link.index for each in remains.find(results, links, {}, {})] == [7, 8]
    assert len(remains.find([result(), result()], links[:1], {}, {})) == 1


def _plan(found: list[remains.Found]) -> Any:
    pod = PodRef("default", "pod", "p")
    claim = Claim(
        ref=ClaimRef("default", "c", "u"),
        allocated=True,
        results=tuple(each.result for each in found),
        configs=(),
        pods=(pod,),
        other_consumers=(),
        node_name="node",
        pod_claim_name=None,
    )
    made = remains.plan(claim, "dra.net", found, NodeFacts(), {"app": ("nic",)})
    assert made.pods == (pod,)
    assert made.listed_by == {"app": ("nic",)}
    return made.devices[0]


def test_what_the_slice_says_is_restored() -> None:
    """Name, MTU, hardware address and addresses of the slice are the host's state."""
    published = entry(
        ifName="ens5", mac=MAC, mtu=9000, ipv4="192.0.2.1/24,192.0.2.2/24", ipv6="2001:db8::1/64", alias="a"
    )
    link = Link(index=7, name="net1", mtu=1500, address="02:00:00:00:00:99", kind="veth", lower=3, lower_netnsid=0)
    device = _plan([remains.Found(result(), link, published)])
    own = device.host.link
    assert (own.name, own.mtu, own.address, own.alias, own.up) == ("ens5", 9000, MAC, "a", True)
    assert own.lower_netnsid is None
    assert [each.cidr for each in device.host.addresses] == ["192.0.2.1/24", "192.0.2.2/24", "2001:db8::1/64"]
    assert remains.known_of_host(device) == (
        f"its name ens5, MTU 9000, hardware address {MAC}, addresses 192.0.2.1/24, 192.0.2.2/24, 2001:db8::1/64"
    )


@pytest.mark.parametrize(
    ("device", "name"), [("ens5", "ens5"), ("pci-0000-8a-00-0", "net1"), (interface_device_name("Eth_5"), "net1")]
)
def test_without_a_slice_the_device_s_name_tells_the_interface_s(device: str, name: str) -> None:
    """A device that is named after its interface has that name back; another one keeps the name that it has."""
    link = Link(index=7, name="net1", mtu=1500, address=MAC, permanent_address="02:00:00:00:00:77")
    own = _plan([remains.Found(result(device), link, {})]).host.link
    assert own.name == name
    assert own.mtu == 1500
    assert own.address == "02:00:00:00:00:77"
