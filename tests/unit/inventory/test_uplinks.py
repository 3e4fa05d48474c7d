"""Which interfaces the node keeps, and why."""

from __future__ import annotations

import pytest

from nri_dranet.inventory.uplinks import cannot_move, default_interfaces, is_default, is_representor, uplinks
from nri_dranet.netlink.model import Link, NextHop, Route


def default(index: int = 0, **more: object) -> Route:
    """Return an IPv4 default route."""
    return Route(family=2, destination="0.0.0.0/0", index=index, **more)  # type: ignore[arg-type]  # fields of a route


def test_default_routes() -> None:
    """All default routes of the main table count, whatever their metric; others do not."""
    assert is_default(default(2))
    assert is_default(Route(family=10, destination="::/0", index=2))
    assert not is_default(default(2, table=100))
    assert not is_default(default(2, type=7))
    assert not is_default(Route(family=2, destination="10.0.0.0/8", index=2))


def test_interfaces_of_default_routes() -> None:
    """Each family, each metric and each next hop is found, with the family in words."""
    found = default_interfaces(
        [
            default(2, metric=100),
            default(3, metric=900),
            Route(family=10, destination="::/0", index=2),
            Route(family=10, destination="::/0", index=4),
            default(next_hops=(NextHop(index=5), NextHop(index=6))),
            Route(family=2, destination="10.0.0.0/8", index=7),
        ]
    )
    assert sorted(found) == [2, 3, 4, 5, 6]
    assert found[2] == "an IPv4 default route leaves by it"
    assert found[4] == "an IPv6 default route leaves by it"


def test_everything_below_an_uplink() -> None:
    """A VLAN on a bond: the bond and its slaves are needed; children and neighbours of the uplink are not."""
    links = {
        link.index: link
        for link in (
            Link(index=1, name="bond0.5", kind="vlan", lower=2),
            Link(index=2, name="bond0", kind="bond"),
            Link(index=3, name="eth0", master=2),
            Link(index=4, name="eth1", master=2),
            Link(index=5, name="mv0", kind="macvlan", lower=2),
            Link(index=6, name="eth2"),
        )
    }
    ports = {2: {3, 4}}
    found = uplinks({1: "because"}, links.get, lambda index: ports.get(index, ()))
    assert found == {
        1: "because",
        2: "the uplink bond0.5 stands on it",
        3: "it is a port of the uplink bond0",
        4: "it is a port of the uplink bond0",
    }


def test_what_is_not_below() -> None:
    """The peer of a veth, a lower device of another namespace and one that is gone are not needed; circles end."""
    links = {
        1: Link(index=1, name="veth0", kind="veth", lower=2),
        3: Link(index=3, name="mv0", kind="macvlan", lower=9, lower_netnsid=0),
        4: Link(index=4, name="a", kind="vlan", lower=5),
        5: Link(index=5, name="b", kind="vlan", lower=4),
        6: Link(index=6, name="c", kind="vlan", lower=6),
    }
    assert sorted(uplinks({1: "x", 3: "x", 6: "x", 7: "x"}, links.get, lambda _: ())) == [1, 3, 6, 7]
    assert sorted(uplinks({4: "x"}, links.get, lambda _: ())) == [4, 5]


@pytest.mark.parametrize(
    ("link", "words"),
    [
        (Link(index=1, name="lo", flags=0x8), "loopback"),
        (Link(index=2, name="docker0", kind="bridge"), "cluster's network"),
        (Link(index=2, name="cilium_host", kind="veth"), "cluster's network"),
        (Link(index=3, name="eth0", master=9), "port of br0, a bridge"),
        (Link(index=4, name="br1", kind="bridge"), "does not let a bridge leave"),
        (Link(index=5, name="bond0", kind="bond"), "does not let a bond leave"),
        (Link(index=5, name="br-ex", kind="openvswitch"), "does not let an openvswitch leave"),
        (Link(index=6, name="x", netns_immutable=True), "does not let this device leave"),
        (Link(index=7, name="tunl0", kind="ipip"), "does not let an ipip leave"),
        (
            Link(index=8, name="rep", phys_switch_id="ab", phys_port_name="pf0vf1"),
            "port of a virtual function (pf0vf1)",
        ),
    ],
)
def test_cannot_move(link: Link, words: str) -> None:
    """What the kernel or the cluster keeps is not offered, with the reason."""
    assert words in cannot_move(link, Link(index=9, name="br0", kind="bridge"))


def test_can_move() -> None:
    """Other interfaces can; the master of a port may be unknown."""
    assert cannot_move(Link(index=2, name="eth0"), None) == ""
    assert cannot_move(Link(index=2, name="tunl1", kind="ipip"), None) == ""
    assert "interface 9" in cannot_move(Link(index=2, name="eth0", master=9), None)


def test_a_switch_of_openvswitch_below_the_nodes_address() -> None:
    """Its own port carries the address and the NICs are ports of the datapath: nothing of it is offered."""
    datapath = Link(index=1, name="ovs-system", kind="openvswitch")
    nic = Link(index=2, name="eth0", master=1)
    bridge = Link(index=3, name="br-ex", kind="openvswitch")
    links = {1: datapath, 2: nic, 3: bridge}
    needed = uplinks({3: "it carries the node's address"}, links.get, lambda index: {1: [2]}.get(index, []))
    assert needed[3]
    assert cannot_move(nic, datapath) == "it is a port of ovs-system, an openvswitch"
    assert all(cannot_move(link, None) for link in (datapath, bridge))


def test_representors() -> None:
    """Ports of a switch for VFs and subfunctions are representors, its own port and plain NICs are not."""
    for port in ("pf0vf0", "pf1vf12", "c1pf0vf3", "pf0sf88"):
        assert is_representor(Link(index=1, name="x", phys_switch_id="ab", phys_port_name=port))
    assert not is_representor(Link(index=1, name="x", phys_switch_id="ab", phys_port_name="p0"))
    assert not is_representor(Link(index=1, name="x", phys_port_name="pf0vf0"))


def test_tunnels_stand_on_what_they_send_by() -> None:
    """GRE and IPIP tell it as their lower link, VXLAN as its underlay; one in another namespace does not count here."""
    links = {
        1: Link(index=1, name="eth1"),
        2: Link(index=2, name="eth2"),
        3: Link(index=3, name="vx0", kind="vxlan", underlay=1),
        4: Link(index=4, name="gre1", kind="gre", lower=2),
        5: Link(index=5, name="vx1", kind="vxlan", underlay=2, lower_netnsid=0),
    }
    assert set(uplinks({3: "seed"}, links.get, lambda _: ())) == {1, 3}
    assert set(uplinks({4: "seed"}, links.get, lambda _: ())) == {2, 4}
    assert set(uplinks({5: "seed"}, links.get, lambda _: ())) == {5}
