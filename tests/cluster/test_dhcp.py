"""DHCP with the chart's own rights: NET_RAW is there, and serves it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hack.cluster.cluster import wait
from nri_dranet.dhcp.message import Kind
from nri_dranet.netlink.namespaces import NetNs
from tests.cluster.bed import LINKS, claim, pod
from tests.node.dhcp_server import DhcpServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.bed import Bed

NIC, PEER = "dhcp0", "dhcp0p"
PATIENCE = 60.0

# The chart's own filter leaves veths out.
NAMES = ", ".join(f'"{name}"' for name in (*LINKS, NIC))
VALUES = {"filter": f'device.attributes["dra.net"].ifName in [{NAMES}]'}


@pytest.fixture
def server(bed: Bed) -> Iterator[DhcpServer]:
    """Run a DHCP server on the node, at the other end of an interface."""
    run = bed.cluster.run
    run("ip", "link", "add", NIC, "type", "veth", "peer", "name", PEER)
    try:
        run("ip", "addr", "add", "10.99.0.1/24", "dev", PEER)
        for name in (PEER, NIC):
            run("ip", "link", "set", name, "up")
        with (
            NetNs.of_pid(bed.cluster.first.first()) as node,
            DhcpServer(node, PEER, lifetime=20) as made,
        ):
            yield made
    finally:
        run("ip", "link", "del", PEER)


def test_a_pod_has_its_address_from_a_server(bed: Bed, namespace: str, server: DhcpServer) -> None:
    """It is there when the container starts, is prolonged in the pod, and is given back with the claim."""
    bed.install(**VALUES)
    wait(lambda: f"{bed.node}/{NIC}" in bed.published(), f"{NIC} is published", PATIENCE)
    documents = [claim("net", NIC, config={"interface": {"name": "net1", "dhcp": True}}), pod("leased", "net")]
    bed.start(documents, "leased", namespace)
    bed.wait_true_status("leased", namespace)
    (address,) = (entry for entry in bed.link("net1", "leased", namespace)["addr_info"] if entry["family"] == "inet")
    assert (address["local"], address["prefixlen"]) == ("10.99.0.100", 24)
    asked = server.wait_for(Kind.REQUEST, 2, patience=PATIENCE)[-1]
    assert asked.ciaddr == address["local"]
    bed.delete_pod("leased", namespace)
    server.wait_for(Kind.RELEASE, patience=PATIENCE)
    assert server.released == [address["local"]]
    wait(lambda: any(link["ifname"] == NIC for link in bed.ip("link", "show")), f"{NIC} is home", PATIENCE)
