"""The way home: whatever the pod did with the device, the host gets it back as it was."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from nri_dranet.attach.engine import Engine, Place
from nri_dranet.attach.snapshot import take_snapshot
from nri_dranet.claims.facts import ObservedInterface
from nri_dranet.netlink.namespaces import NetNs
from nri_dranet.netlink.sockets import RtnlSocket


@pytest.fixture
def full(world: Any) -> Any:
    """A host device with all that must come back, proven to be ordinary (no address tentative any more)."""
    world.veth("n0", "10.71.0.2/24", "10.71.0.3/24", "fd71::2/64")
    world.host("link", "set", "n0", "alias", "uplink of rack 7", "txqueuelen", "777", "mtu", "3000", "group", "5")
    world.host("link", "set", "n0", "gso_max_size", "40000")
    world.host("link", "property", "add", "dev", "n0", "altname", "enp7s0")
    world.host("addr", "add", "10.71.9.1/24", "dev", "n0", "label", "n0:1", "brd", "10.71.9.255", "metric", "77")
    world.host("addr", "add", "10.71.8.1", "peer", "10.71.8.2/32", "dev", "n0", "scope", "link")
    world.host("addr", "add", "fd72::2/64", "dev", "n0", "valid_lft", "5000", "preferred_lft", "4000", "nodad")
    world.host("addr", "add", "fd73::2/64", "dev", "n0", "noprefixroute", "nodad")
    world.host("route", "add", "10.74.0.0/16", "via", "10.71.0.1", "dev", "n0", "metric", "50", "src", "10.71.0.3")
    world.host("route", "add", "10.75.0.0/16", "dev", "n0", "scope", "link", "table", "211")
    world.host("route", "add", "10.76.0.0/16", "via", "192.0.2.1", "dev", "n0", "onlink", "mtu", "1400")
    world.host("-6", "route", "add", "fd99::/64", "via", "fd71::1", "dev", "n0", "src", "fd71::2")
    world.host("neigh", "add", "10.71.0.9", "lladdr", "02:11:22:33:44:55", "dev", "n0", "nud", "permanent")
    world.host("-6", "neigh", "add", "fd71::9", "lladdr", "02:11:22:33:44:56", "dev", "n0", "nud", "permanent")
    settings = ("ipv4.conf.n0.arp_ignore=1", "ipv4.conf.n0.forwarding=1", "ipv6.conf.n0.accept_ra=0")
    more = ("ipv4.conf.n0.rp_filter=2", "ipv6.conf.n0.forwarding=1", "ipv6.conf.n0.dad_transmits=3")
    world.in_host("sysctl", "-qw", *(f"net.{one}" for one in settings + more))
    world.host("link", "set", "n0", "promisc", "on", "allmulticast", "on")
    for command in (
        "qdisc add dev n0 root handle 1: htb default 10",
        "class add dev n0 parent 1: classid 1:10 htb rate 10mbit",
        "filter add dev n0 parent 1: protocol ip prio 7 u32 match ip dport 80 0xffff flowid 1:10",
        "qdisc add dev n0 clsact",
        "filter add dev n0 ingress protocol all prio 5 u32 match u32 0 0 action mirred egress redirect dev lo",
    ):
        world.in_host("tc", *command.split())
    return world


def _plan(world: Any, **more: Any) -> Any:
    more.setdefault("addresses", (world.address("10.77.0.5/24"), world.address("fd77::5/64")))
    return world.plan("n0", "net1", **more)


def _came_home(world: Any, plan: Any, before: dict[str, Any], *, hints: dict[Any, Any] | None = None) -> None:
    (outcome,) = world.engine.detach([plan], world.pod_netns, hints=hints or {})
    assert outcome.home
    assert outcome.problems == ()
    assert not world.changes(before)


def test_link_local_address_given_by_hand(world: Any) -> None:
    """On a link that makes no link-local address itself, the one that was given comes back."""
    world.veth("n0")
    world.host("link", "set", "n0", "down")
    world.host("link", "set", "n0", "addrgenmode", "none")
    world.host("link", "set", "n0", "up")
    world.host("addr", "add", "fe80::77/64", "dev", "n0", "nodad")
    plan = _plan(world)
    world.attach(plan)
    assert not world.detach(plan)[0].problems
    shown = world.host("-6", "addr", "show", "n0")
    assert "inet6 fe80::77/64" in shown
    assert shown.count("inet6") == 1


def test_host_mtu_below_ipv6(world: Any) -> None:
    """A device that has no IPv6 on the host for its small MTU gets it in the pod with a larger one."""
    world.veth("n0", "10.71.0.2/24")
    world.host("link", "set", "n0", "mtu", "1000")
    before = world.state()
    plan = _plan(world, mtu=1500, sysctls={"ipv6/conf/forwarding": "1"})
    (fact,) = world.attach(plan)
    assert fact.interface.addresses == ("10.77.0.5/24", "fd77::5/64")
    _came_home(world, plan, before)


def test_everything_comes_back(full: Any) -> None:
    """Name, sizes, addresses with all their parts, routes, neighbours, sysctls are as they were, also twice."""
    before = full.state()
    own = (full.address("10.77.0.5/24"),)
    # With an MTU below 1280 the interface has no IPv6 at all, so that the settings of that are to be made anew.
    plan = _plan(full, mtu=1000, hardware_address="02:00:00:00:00:07", gso_max_size=30000, addresses=own)
    full.attach(plan)
    _came_home(full, plan, before)
    _came_home(full, plan, before)


def test_address_is_ordinary_again(world: Any) -> None:
    """An IPv6 address that was proven to be unique comes back without a flag and at once usable."""
    world.veth("n0")
    world.host("addr", "add", "fd71::2/64", "dev", "n0")
    deadline = time.monotonic() + 20
    while "tentative" in world.host("-6", "addr", "show", "n0", "scope", "global"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    before = world.state()
    plan = _plan(world)
    world.attach(plan)
    _came_home(world, plan, before)


@pytest.mark.parametrize(
    "deeds",
    [
        ["link set net1 down", "link set net1 name other0", "link set other0 up"],
        ["addr flush dev net1", "link set net1 down"],
        ["addr add 10.88.0.1/24 dev net1", "link set net1 mtu 900", "link set net1 address 02:00:00:00:00:99"],
        ["link set net1 alias mine", "link set net1 group 9", "link property add dev net1 altname podname"],
        ["link property del dev net1 altname enp7s0", "link set net1 txqueuelen 5", "link set net1 addrgenmode none"],
        ["link add br0 type bridge", "link set net1 master br0"],
        ["link set net1 down", "link set net1 name renamed0 address 02:00:00:00:00:98"],
        ["link set net1 arp off multicast off", "link set net1 promisc on allmulticast on"],
    ],
)
@pytest.mark.parametrize("hinted", [False, True])
def test_whatever_the_pod_did(full: Any, deeds: list[str], hinted: bool) -> None:
    """Renamed, down, flushed, other MTU, MAC, alias, names, bridge port: it comes home as it was."""
    before = full.state()
    plan = _plan(full)
    (fact,) = full.attach(plan)
    for deed in deeds:
        full.pod(*deed.split())
    (outcome,) = full.engine.detach([plan], full.pod_netns, hints={plan.key: fact.interface} if hinted else {})
    assert outcome.home
    assert outcome.problems == ()
    assert not full.changes(before)


@pytest.mark.parametrize(
    "kind",
    [
        "link base type macvlan mode bridge",
        "link base type macvtap",
        "type vxlan id 7 dstport 4789 local 127.0.0.1",
        "type vxlan id 7 dstport 4789 dev base",
        "type ifb",
    ],
)
def test_software_links_of_every_kind(world: Any, kind: str) -> None:
    """Two links of a kind are told apart in the pod, whatever they are called there, and come home as they were."""
    world.veth("base")
    for name in ("n0", "n1"):
        world.host("link", "add", name, *kind.replace("id 7", f"id {7 + (name == 'n1')}").split())
        world.host("link", "set", name, "up")
        world.host("addr", "add", f"10.71.{name[1]}.2/24", "dev", name)
    before = world.state()
    plans = [world.plan(name, f"net{name[1]}", addresses=(world.address("10.77.0.5/24"),)) for name in ("n0", "n1")]
    facts = world.attach(*plans)
    hints = {fact.key: fact.interface for fact in facts}
    assert world.lasting(world.engine.look(plans, world.pod_netns, hints)) == world.lasting(facts)
    for old, new in (("net0", "x0"), ("net1", "net0"), ("x0", "net1")):
        world.pod("link", "set", old, "down")
        world.pod("link", "set", old, "name", new)
    seen = world.engine.look(plans, world.pod_netns, hints)
    assert [fact.interface.name for fact in seen] == ["net1", "net0"]
    outcomes = world.detach(*plans)
    assert [(one.home, one.problems) for one in outcomes] == [(True, ()), (True, ())]
    assert not world.changes(before)


def test_bridge_port_is_a_port_again(world: Any) -> None:
    """A port of a bridge is one again; if the bridge is gone the outcome says so and the rest is restored."""
    world.veth("n0", "10.71.0.2/24")
    world.host("link", "add", "br7", "type", "bridge")
    world.host("link", "set", "n0", "master", "br7")
    before = world.state()
    plan = _plan(world)
    world.attach(plan)
    _came_home(world, plan, before)
    world.attach(plan)
    world.host("link", "del", "br7")
    (outcome,) = world.detach(plan)
    assert outcome.home
    assert "bridge" in outcome.problems[0]
    assert "10.71.0.2/24" in world.host("addr", "show", "n0")


def test_flags_that_the_host_had(world: Any) -> None:
    """A device that was promiscuous and without ARP on the host is so again, whatever the pod made of it."""
    world.veth("n0", "10.71.0.2/24")
    world.host("link", "set", "n0", "arp", "off", "multicast", "off")
    world.host("link", "set", "n0", "promisc", "on", "allmulticast", "on")
    before = world.state()
    plan = _plan(world)
    world.attach(plan)
    for deed in ("arp on multicast on", "promisc off allmulticast off"):
        world.pod("link", "set", "net1", *deed.split())
    _came_home(world, plan, before)


def _port(world: Any) -> dict[str, Any]:
    """Give what a bridge keeps for a port, without identifiers and timers of its own."""
    (link,) = json.loads(world.host("-j", "-d", "link", "show", "n0"))
    data: dict[str, Any] = link["linkinfo"]["info_slave_data"]
    own = ("port_", "designated_", "timer", "_ack", "pending", "bridge_id", "root_id", "id", "no")
    return {
        name: value for name, value in data.items() if not any(part in name for part in own[:5]) and name not in own
    }


def test_bridge_port_has_its_settings_again(world: Any) -> None:
    """What the bridge kept for the port (cost, hairpin, isolation, ...) is as before; it forgot it meanwhile."""
    world.veth("n0")
    world.host("link", "add", "br7", "type", "bridge")
    world.host("link", "set", "n0", "master", "br7")
    world.host("link", "set", "br7", "up")
    ordinary = _port(world)
    settings = "cost 55 priority 7 hairpin on guard on root_block on fastleave on learning off flood off"
    more = "mcast_flood off proxy_arp on neigh_suppress on isolated on mcast_router 2 group_fwd_mask 8"
    world.host("link", "set", "n0", "type", "bridge_slave", *settings.split(), *more.split())
    before = _port(world)
    assert sum(before[name] != ordinary[name] for name in before) == 15
    plan = _plan(world)
    world.attach(plan)
    assert world.detach(plan)[0].problems == ()
    world.wait(lambda: _port(world) == before)
    # Of a device that is home and right, nothing is sent again.
    assert world.detach(plan)[0].problems == ()


def test_name_taken_by_a_stranger(full: Any) -> None:
    """A stranger has the name: a temporary one is used and told; when the name is free again it is given back."""
    before = full.state()
    plan = _plan(full)
    full.attach(plan)
    full.host("link", "add", "n0", "type", "bridge")
    (outcome,) = full.detach(plan)
    assert outcome.home
    assert "n0" in outcome.problems[0]
    spare = f"drn{plan.host.link.index}"
    assert spare in outcome.problems[0]
    assert "10.71.0.2/24" in full.host("addr", "show", spare)
    full.host("link", "del", "n0")
    _came_home(full, plan, before)


def test_name_and_index_and_altname_taken(full: Any) -> None:
    """Name, index and alternative name are all taken: it still comes home and each loss is told."""
    plan = _plan(full)
    full.attach(plan)
    full.host("link", "add", "n0", "index", str(plan.host.link.index), "type", "bridge")
    full.host("link", "property", "add", "dev", "n0", "altname", "enp7s0")
    (outcome,) = full.detach(plan)
    assert outcome.home
    words = " ".join(outcome.problems)
    assert "its name n0" in words or "called drn" in words
    assert "enp7s0" in words
    assert "10.71.0.2/24" in full.host("addr", "show", f"drn{plan.host.link.index}")


def test_pod_name_is_taken_on_the_host(full: Any) -> None:
    """The host has an interface of the name that the device has in the pod: no obstacle."""
    full.host("link", "add", "net1", "type", "bridge")
    before = full.state()
    plan = _plan(full)
    full.attach(plan)
    _came_home(full, plan, before)


def test_came_home_by_itself(full: Any) -> None:
    """A device that somebody else moved home, under its pod name and bare, is restored without the namespace."""
    before = full.state()
    plan = _plan(full, mtu=1300, hardware_address="02:00:00:00:00:07")
    full.attach(plan)
    full.pod("link", "set", "net1", "netns", full.host_name)
    assert full.engine.where(plan, None).link.name == "net1"
    (outcome,) = full.engine.detach([plan], None, hints={})
    assert outcome.home
    assert outcome.problems == ()
    assert not full.changes(before)


def test_comes_home_by_itself_while_it_is_brought(full: Any) -> None:
    """The kernel brings it home between the look and the move, as when the pod's namespace ends: it is restored."""
    before = full.state()
    plan = _plan(full, mtu=1300, hardware_address="02:00:00:00:00:07")
    full.attach(plan)

    class Racing(RtnlSocket):
        def exchange(self, requests: Any, *, timeout: float = 10.0) -> Any:
            if any(request.label.startswith("move link") for request in requests) and "net1" in full.pod("link"):
                full.pod("link", "set", "net1", "netns", full.host_name)
            return super().exchange(requests, timeout=timeout)

    engine = Engine(host_netns=full.host_netns, connect=Racing)
    (outcome,) = engine.detach([plan], full.pod_netns, hints={})
    engine.close()
    assert outcome.home
    assert outcome.problems == ()
    assert not full.changes(before)


def test_came_home_under_another_index(full: Any) -> None:
    """A device that came home under another name and index is found by what it cannot lose and restored."""
    plan = _plan(full)
    full.attach(plan)
    full.host("link", "add", "thief", "index", str(plan.host.link.index), "type", "bridge")
    full.pod("link", "set", "net1", "netns", full.host_name)
    (outcome,) = full.engine.detach([plan], None, hints={})
    assert outcome.home
    assert outcome.problems == ()
    assert "10.71.0.2/24" in full.host("addr", "show", "n0")


def test_destroyed_device(world: Any) -> None:
    """A veth that was destroyed is not home, and the outcome says why."""
    world.veth("n0")
    plan = _plan(world)
    world.attach(plan)
    world.host("link", "del", "n0p")
    (outcome,) = world.detach(plan)
    assert not outcome.home
    assert "destroyed" in outcome.problems[0]
    (outcome,) = world.engine.detach([plan], None, hints={})
    assert not outcome.home
    assert "veth" in outcome.problems[0]


def test_stranger_in_the_pod_is_left_alone(world: Any) -> None:
    """After the device was destroyed, another veth under its name in the pod is not taken for it."""
    world.veth("n0")
    plan = _plan(world)
    (fact,) = world.attach(plan)
    world.host("link", "del", "n0p")
    world.host("link", "add", "x0", "type", "veth", "peer", "name", "net1", "netns", world.pod_name)
    (outcome,) = world.engine.detach([plan], world.pod_netns, hints={plan.key: fact.interface})
    assert not outcome.home
    assert "net1" in world.pod("-br", "link")


def test_wrong_hint_does_no_harm(full: Any) -> None:
    """A hint that names another interface of the pod is not believed."""
    before = full.state()
    plan = _plan(full)
    full.attach(plan)
    hint = ObservedInterface(name="lo", hardware_address="", index=1)
    _came_home(full, plan, before, hints={plan.key: hint})


def test_lifetimes_run_on(world: Any) -> None:
    """An hour after the snapshot an address has an hour less to live; one whose time is over stays away."""
    world.veth("n0")
    for number, seconds in ((1, "9000"), (2, "3000")):
        world.host("addr", "add", f"10.71.{number}.2/24", "dev", "n0", "valid_lft", seconds, "preferred_lft", seconds)
    plan = _plan(world)
    plan = replace(plan, host=replace(plan.host, taken=plan.host.taken - 3600))
    world.attach(plan)
    assert world.detach(plan)[0].problems == ()
    (left,) = json.loads(world.host("-j", "-4", "addr", "show", "n0"))[0]["addr_info"]
    assert left["local"] == "10.71.1.2"
    assert 5300 < left["valid_life_time"] <= 5400


def test_taken_up_where_admin_left_it(world: Any) -> None:
    """A device that was down on the host is down again, with its addresses."""
    world.veth("n0", "10.71.0.2/24")
    world.host("link", "set", "n0", "down")
    world.host("addr", "add", "fd72::2/64", "dev", "n0", "valid_lft", "5000", "preferred_lft", "4000", "nodad")
    before = world.state()
    plan = _plan(world)
    world.attach(plan)
    _came_home(world, plan, before)


def test_restored_device_is_not_touched(full: Any) -> None:
    """A detach of a device that is home and right sends nothing that changes it."""
    plan = _plan(full)
    full.attach(plan)
    full.detach(plan)
    engine, fault = full.faulty(-1, "refuse")
    labels: list[str] = []
    hit = fault.hit
    fault.hit = lambda requests: labels.extend(one.label for one in requests) or hit(requests)  # type: ignore[func-returns-value]
    assert engine.detach([plan], full.pod_netns, hints={})[0].problems == ()
    engine.close()
    assert all(label.startswith(("read", "list")) for label in labels), labels


def test_route_that_another_interface_took(full: Any) -> None:
    """A route that another interface has now cannot come back; this is told and the rest is restored."""
    plan = _plan(full)
    full.attach(plan)
    full.host("link", "add", "br8", "type", "bridge")
    full.host("link", "set", "br8", "up")
    full.host("route", "add", "10.74.0.0/16", "dev", "br8", "metric", "50")
    (outcome,) = full.detach(plan)
    assert outcome.home
    assert len(outcome.problems) == 1
    assert "10.74.0.0/16" in outcome.problems[0]
    assert "10.75.0.0/16" in full.host("route", "show", "table", "211")


def test_several_devices_in_any_state(world: Any) -> None:
    """Of three devices one is home, one destroyed, one in the pod: each gets its own outcome, in the plans' order."""
    for number in range(3):
        world.veth(f"n{number}", f"10.7{number}.0.2/24")
    plans = [world.plan(f"n{number}", f"net{number}") for number in range(3)]
    world.attach(*plans)
    world.engine.detach(plans[:1], world.pod_netns, hints={})
    world.host("link", "del", "n1p")
    outcomes = world.detach(*plans)
    assert [outcome.key for outcome in outcomes] == [plan.key for plan in plans]
    assert [outcome.home for outcome in outcomes] == [True, False, True]
    assert world.engine.where(plans[2], world.pod_netns).place is Place.HOST


def test_snapshot_reads_the_sockets_own_namespace(world: Any) -> None:
    """A snapshot over a socket of another namespace has that namespace's facts, features too."""
    world.veth("n0", "10.71.0.2/24")
    with RtnlSocket(world.host_netns) as host, NetNs.current() as here:
        snapshot = take_snapshot(host, world.index("n0"))
        assert not here.same(world.host_netns)
    assert snapshot.link.name == "n0"
    assert [address.cidr for address in snapshot.addresses if address.family == 2] == ["10.71.0.2/24"]
    assert "rx-gro" in snapshot.features
    shown = json.loads(world.host("-j", "link", "show", "n0"))[0]
    assert snapshot.link.mtu == shown["mtu"]
    assert snapshot.sysctls["ipv4/conf/arp_ignore"] == "0"
