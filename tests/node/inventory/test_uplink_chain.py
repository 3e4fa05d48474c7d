"""From the kernel to the slices: the node's uplink is withdrawn by its event, whatever the rate of writes.

There is no periodic scan here and the bucket is empty for an hour, so that nothing but the event can withdraw it; and
each state of the slices is looked at, as a scheduler may.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.dra.slices import SlicePublisher
from nri_dranet.inventory.override import NodeFilter
from nri_dranet.kube.client import KubeClient
from nri_dranet.testing.apiserver import ApiServerStandIn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SLICES = "/apis/resource.k8s.io/v1/resourceslices"


class Chain:
    """The inventory of a node, a publisher with an empty bucket, and everything that was ever published."""

    def __init__(self, node: Any, server: ApiServerStandIn, client: KubeClient) -> None:
        self.node = node
        self.server = server
        self.seen: list[set[str]] = []
        self.filter = NodeFilter("", "dra.net")
        replace = client.replace

        def looking(*words: Any, **more: Any) -> Any:
            answer = replace(*words, **more)
            self.seen.append(self.published())
            return answer

        client.replace = looking  # type: ignore[method-assign]
        self.publisher = SlicePublisher(client, "dra.net", "n1", interval=3600.0, burst=1, collect=self.collect)
        node.inventory.subscribe(self.publisher.refresh)

    def collect(self) -> list[dict[str, Any]]:
        """Return what is offered, as the daemon does."""
        return [
            device.entry()
            for device in self.node.inventory.devices()
            if not device.refused and self.filter.keeps(device.name, device.attributes)
        ]

    def published(self) -> set[str]:
        """Return the names of all devices in the slices."""
        return {each["name"] for item in self.server.objects(SLICES) for each in item["spec"].get("devices") or []}

    def start(self) -> None:
        """Begin, and wait for the first slice, which takes the bucket's only token."""
        self.node.start()
        self.publisher.start()
        self.node.until(lambda: self.publisher.settled)
        self.seen = [self.published()]

    def withdrawn(self, name: str) -> None:
        """Wait until a device is published no more; afterwards it must not come back."""
        self.node.until(lambda: name not in self.published())
        self.seen.clear()

    def never_offered(self, *names: str) -> None:
        """Check that none of these was published since the last withdrawal."""
        self.seen.append(self.published())
        assert all(name not in state for name in names for state in self.seen)


@pytest.fixture
def chain(make_node: Callable[..., Any], tmp_path: Path) -> Iterator[Chain]:
    """A node with three interfaces that are up, each with an address; nothing was started yet."""
    node = make_node()
    for number in (1, 2, 3):
        node.ip(f"link add eth{number} type veth peer name p{number}")
        node.ip(f"addr add 10.66.{number}.2/24 dev eth{number}")
        node.ip(f"link set p{number} up")
        node.ip(f"link set eth{number} up")
    with ApiServerStandIn() as server:
        server.create("/api/v1/nodes", {"metadata": {"name": "n1"}})
        client = KubeClient.load(str(server.write_kubeconfig(tmp_path / "kubeconfig")))
        found = Chain(node, server, client)
        yield found
        found.publisher.stop()
        client.close()


def test_an_uplink_at_the_start_is_in_no_slice_ever(chain: Chain) -> None:
    """The first slice is written after the first scan, which knows the routes."""
    chain.node.ip("route add default via 10.66.1.1 dev eth1")
    chain.start()
    assert {"eth2", "eth3", "p1"} <= chain.published()
    chain.never_offered("eth1")


def test_a_default_route_that_appears_withdraws_its_interface(chain: Chain) -> None:
    """Of either family, with any metric, and each next hop."""
    chain.start()
    assert {"eth1", "eth2", "eth3"} <= chain.published()
    chain.node.ip("route add default via 10.66.1.1 dev eth1 metric 5000")
    chain.withdrawn("eth1")
    chain.node.ip("-6 route add default dev eth2")
    chain.withdrawn("eth2")
    chain.node.ip("route add default metric 7 nexthop via 10.66.1.1 dev eth1 nexthop via 10.66.3.1 dev eth3")
    chain.withdrawn("eth3")
    chain.never_offered("eth1", "eth2")


def test_a_default_route_that_moves_withdraws_the_new_interface(chain: Chain) -> None:
    """By replacement, as DHCP clients do, and by a new route before the old one goes."""
    chain.node.ip("route add default via 10.66.1.1 dev eth1")
    chain.start()
    chain.node.ip("route replace default via 10.66.2.1 dev eth2")
    chain.withdrawn("eth2")
    chain.node.ip("route add default via 10.66.3.1 dev eth3 metric 9")
    chain.withdrawn("eth3")
    chain.node.ip("route del default via 10.66.2.1 dev eth2")
    chain.node.until(lambda: chain.node.refused("eth2") == "")
    chain.never_offered("eth3")


def test_an_uplink_that_gets_a_bridge_above_it_is_never_offered(chain: Chain) -> None:
    """Port first, then the bridge takes address and route; a port that joins later is withdrawn."""
    chain.node.ip("route add default via 10.66.1.1 dev eth1")
    chain.start()
    for words in (
        "link add br0 type bridge",
        "link set br0 up",
        "link set eth1 master br0",
        "addr flush dev eth1",
        "addr add 10.66.1.2/24 dev br0",
        "route add default via 10.66.1.1 dev br0",
    ):
        chain.node.ip(words)
    chain.node.until(lambda: chain.node.refused("eth1") == "it is a port of the uplink br0")
    chain.never_offered("eth1", "br0")
    chain.node.ip("link set eth2 master br0")
    chain.withdrawn("eth2")
    chain.never_offered("eth1", "br0")


def test_what_a_tunnel_with_the_default_route_sends_by_is_withdrawn(chain: Chain) -> None:
    """A VXLAN's underlay is told only among the data of its kind."""
    chain.start()
    chain.node.ip("link add vx0 type vxlan id 7 dstport 4789 dev eth2")
    chain.node.ip("addr add 10.67.0.2/24 dev vx0")
    chain.node.ip("link set vx0 up")
    chain.node.ip("route add default via 10.67.0.1 dev vx0")
    chain.withdrawn("eth2")
    chain.node.until(lambda: chain.node.refused("eth2") == "the uplink vx0 stands on it")
    chain.never_offered("vx0")


def test_the_nodes_own_address_withdraws_its_interface(chain: Chain) -> None:
    """It needs no default route, and its parent goes with it."""
    chain.node.ip("link add mv0 link eth3 type macvlan mode bridge")
    chain.start()
    chain.node.inventory.set_node_addresses(["10.66.2.2", "10.68.0.2"])
    chain.withdrawn("eth2")
    chain.node.ip("addr add 10.68.0.2/24 dev mv0")
    chain.withdrawn("eth3")
    chain.never_offered("mv0", "eth2")
