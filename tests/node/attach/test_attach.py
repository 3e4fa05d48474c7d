"""What an attach does in the pod, and what it refuses before anything moves."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from nri_dranet.attach.engine import AttachError, Place
from nri_dranet.claims.facts import Phase
from nri_dranet.claims.model import DeviceKey
from nri_dranet.claims.plan import DeviceKind, SubInterface
from nri_dranet.netlink.ethtool import Ethtool
from nri_dranet.netlink.model import Neighbour, NextHop, Rule
from nri_dranet.netlink.sockets import RtnlMonitor


def _link(world: Any, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(world.pod("-j", "-d", "link", "show", name))[0]
    return found


def test_interface_in_the_pod(world: Any) -> None:
    """Name, MTU, MAC, sizes, sysctls, addresses, routes, rule and neighbour are as planned; facts say what is there."""
    world.veth("n0")
    plan = world.plan(
        "n0",
        "net1",
        mtu=4321,
        hardware_address="02:11:22:33:44:77",
        gso_max_size=40000,
        gro_max_size=41000,
        addresses=(world.address("10.77.0.5/24"), world.address("fd77:9::5/64")),
        routes=(
            world.route("0.0.0.0/0", "10.77.0.1", table=201),
            world.route("10.99.0.0/16", "169.254.169.1", source="10.77.0.5"),
            world.route("169.254.169.1/32"),
            world.route("fd98::/64", "fd77:9::1", source="fd77:9::5", metric=50),
        ),
        rules=(Rule(family=2, source="10.77.0.0/24", table=201, priority=501),),
        neighbours=(Neighbour(family=10, address="fd77:9::9", hardware_address="02:aa:bb:cc:dd:ee"),),
        sysctls={"ipv4/conf/arp_ignore": "1", "ipv4/conf/arp_announce": "2", "ipv6/conf/forwarding": "1"},
    )
    (fact,) = world.attach(plan)
    assert fact.phase is Phase.ATTACHED
    seen = fact.interface
    assert (seen.name, seen.hardware_address, seen.up, seen.carrier) == ("net1", "02:11:22:33:44:77", True, True)
    assert seen.addresses == ("10.77.0.5/24", "fd77:9::5/64")
    assert seen.missing_addresses == ()
    link = _link(world, "net1")
    assert (link["mtu"], link["gso_max_size"], link["gro_max_size"], link["ifindex"]) == (
        4321,
        40000,
        41000,
        seen.index,
    )
    assert "tentative" not in world.pod("-6", "addr", "show", "net1", "scope", "global")
    assert "default via 10.77.0.1 dev net1" in world.pod("route", "show", "table", "201")
    assert "10.99.0.0/16 via 169.254.169.1 dev net1 proto static src 10.77.0.5" in world.pod("route")
    assert "fd98::/64 via fd77:9::1 dev net1 proto static src fd77:9::5 metric 50" in world.pod("-6", "route")
    assert "from 10.77.0.0/24 lookup 201" in world.pod("rule")
    assert "02:aa:bb:cc:dd:ee PERMANENT" in world.pod("-6", "neigh")
    conf = "/proc/sys/net/ipv{}/conf/net1/{}"
    values = [conf.format(4, "arp_ignore"), conf.format(4, "arp_announce"), conf.format(6, "forwarding")]
    assert world.in_pod("cat", *values).split() == ["1", "2", "1"]
    assert "n0:" not in world.host("-br", "link")


def test_forwarding_is_written_through_the_file(world: Any) -> None:
    """Forwarding set for the interface is what its file shows."""
    world.veth("n0")
    world.attach(world.plan("n0", "net1", sysctls={"ipv4/conf/forwarding": "1"}))
    assert world.in_pod("cat", "/proc/sys/net/ipv4/conf/net1/forwarding") == "1\n"


def test_ipv6_is_switched_on_where_addresses_want_it(world: Any) -> None:
    """A pod without IPv6 gets it on the interface of a claim that has an IPv6 address, and nowhere else."""
    world.in_pod("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
    world.veth("n0")
    world.veth("n1")
    first = world.plan("n0", "net1", addresses=(world.address("fd77::5/64"),))
    second = world.plan("n1", "net2", addresses=(world.address("10.77.0.5/24"),))
    facts = world.attach(first, second)
    assert facts[0].interface.addresses == ("fd77::5/64",)
    files = [f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6" for name in ("net1", "net2")]
    assert world.in_pod("cat", *files).split() == ["0", "1"]


def test_multipath_route_follows_the_interface(world: Any) -> None:
    """A route with several next hops over the interface works although its index differs in the pod."""
    world.veth("n0")
    index = world.index("n0")
    world.pod("link", "add", "other", "index", str(index), "type", "bridge")
    hops = (NextHop(index=index, gateway="10.77.0.1"), NextHop(index=index, gateway="10.77.0.2", weight=3))
    route = world.route("10.99.0.0/16", next_hops=hops, scope=0)
    plan = world.plan("n0", "net1", addresses=(world.address("10.77.0.5/24"),), routes=(route,))
    (fact,) = world.attach(plan)
    assert fact.interface.index != index
    shown = world.pod("route")
    assert "nexthop via 10.77.0.1 dev net1 weight 1" in shown
    assert "nexthop via 10.77.0.2 dev net1 weight 3" in shown
    before = world.detach(plan)
    assert before[0].home
    assert world.index("n0") == index


def test_four_calls_for_a_device(world: Any) -> None:
    """One device with an address and two routes takes four calls to the kernel, also when its index is taken."""
    world.veth("n0")
    world.pod("link", "add", "other", "index", str(world.index("n0")), "type", "bridge")
    routes = (world.route("10.99.0.0/16", "10.77.0.1"), world.route("10.98.0.0/16"))
    plan = world.plan("n0", "net1", addresses=(world.address("10.77.0.5/24"),), routes=routes)
    engine, fault = world.faulty(-1, "refuse")
    engine.attach([plan], world.pod_netns, deadline=1e12)
    engine.close()
    assert fault.calls == 4


def test_own_name_kept(world: Any) -> None:
    """Without another name the interface keeps its own, and with its index free in the pod that too."""
    world.veth("n0")
    index = world.index("n0")
    (fact,) = world.attach(world.plan("n0"))
    assert (fact.interface.name, fact.interface.index) == ("n0", index)


def test_pod_interface_of_the_devices_host_name(world: Any) -> None:
    """A pod may have an interface with the device's host name, as long as the device gets another there."""
    world.veth("eth0", "10.71.0.2/24")
    world.pod("link", "add", "eth0", "type", "bridge")
    before = world.state()
    plan = world.plan("eth0", "net1", addresses=(world.address("10.77.0.5/24"),))
    world.attach(plan)
    assert world.addresses_in_pod("net1") == ["10.77.0.5/24"]
    assert not world.detach(plan)[0].problems
    assert not world.changes(before)


@pytest.mark.parametrize("as_altname", [False, True])
def test_name_taken_in_the_pod(world: Any, as_altname: bool) -> None:
    """A name that the pod has, also as an alternative name, is refused before anything moves, with a hint."""
    world.veth("n0", "10.71.0.2/24")
    world.pod("link", "add", "taken" if as_altname else "net1", "type", "bridge")
    if as_altname:
        world.pod("link", "property", "add", "dev", "taken", "altname", "net1")
    before = world.state()
    with pytest.raises(AttachError) as caught:
        world.attach(world.plan("n0", "net1"))
    assert (caught.value.reason, caught.value.device) == ("NameInUse", "n0")
    assert "net1" in caught.value.message
    assert "interface.name" in caught.value.message
    assert not world.changes(before)


def test_two_devices_with_one_name(world: Any) -> None:
    """Two devices that are to have the same name are refused, both named, before anything moves."""
    world.veth("n0", "10.71.0.2/24")
    world.veth("n1")
    before = world.state()
    with pytest.raises(AttachError, match="n0 and n1 are both to be called net1") as caught:
        world.attach(world.plan("n0", "net1"), world.plan("n1", "net1"))
    assert caught.value.reason == "NameInUse"
    assert not world.changes(before)


def test_altname_of_the_device_that_the_pod_has(world: Any) -> None:
    """An alternative name that the pod has stays away for the time in the pod and is back afterwards."""
    world.veth("n0")
    world.host("link", "property", "add", "dev", "n0", "altname", "enp1s0")
    world.pod("link", "add", "enp1s0", "type", "bridge")
    before = world.state()
    plan = world.plan("n0", "net1")
    world.attach(plan)
    assert "altnames" not in _link(world, "net1")
    assert not world.detach(plan)[0].problems
    assert not world.changes(before)


def test_pod_name_is_an_altname_of_the_device(world: Any) -> None:
    """The name in the pod may be one that the device has as alternative name on the host."""
    world.veth("n0")
    world.host("link", "property", "add", "dev", "n0", "altname", "enp1s0")
    before = world.state()
    plan = world.plan("n0", "enp1s0", addresses=(world.address("10.77.0.5/24"),))
    world.attach(plan)
    assert world.addresses_in_pod("enp1s0") == ["10.77.0.5/24"]
    assert not world.detach(plan)[0].problems
    assert not world.changes(before)


@pytest.mark.parametrize(
    ("pod", "reason", "words"),
    [
        ({"mtu": 70000}, "MTURefused", ["MTU 70000", "68 to 65535"]),
        ({"hardware_address": "01:00:00:00:00:01"}, "HardwareAddressRefused", ["01:00:00:00:00:01"]),
        ({"gso_max_size": 2**31 - 1}, "SizeRefused", ["gso_max_size"]),
        ({"sysctls": {"ipv4/conf/no_such": "1"}}, "SysctlRefused", ["ipv4/conf/no_such"]),
        ({"features": {"no-such-feature": True}}, "EthtoolRefused", ["no-such-feature"]),
    ],
)
def test_refused_settings(world: Any, pod: dict[str, Any], reason: str, words: list[str]) -> None:
    """What the device cannot be given is named with what is allowed, and the host is as before."""
    world.veth("n0", "10.71.0.2/24", "fd71::2/64")
    before = world.state()
    with pytest.raises(AttachError) as caught:
        world.attach(world.plan("n0", "net1", **pod))
    assert caught.value.reason == reason
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not world.changes(before)


def test_route_that_another_interface_has(world: Any) -> None:
    """A route that the pod already has over another interface is refused and named, not passed over."""
    world.veth("n0")
    world.pod("link", "add", "eth0", "type", "bridge")
    world.pod("link", "set", "eth0", "up")
    world.pod("addr", "add", "10.1.0.2/24", "dev", "eth0")
    world.pod("route", "add", "default", "via", "10.1.0.1")
    before = world.state()
    routes = (world.route("0.0.0.0/0", "10.77.0.1"),)
    with pytest.raises(AttachError, match=r"another route to 0\.0\.0\.0/0") as caught:
        world.attach(world.plan("n0", "net1", addresses=(world.address("10.77.0.5/24"),), routes=routes))
    assert caught.value.reason == "RouteRefused"
    assert not world.changes(before)


def test_gateway_that_cannot_be_reached(world: Any) -> None:
    """A route whose gateway is not on the link names the route and carries the kernel's words."""
    world.veth("n0")
    routes = (world.route("10.99.0.0/16", "192.0.2.1"),)
    with pytest.raises(AttachError, match=r"10\.99\.0\.0/16 via 192\.0\.2\.1.*gateway") as caught:
        world.attach(world.plan("n0", "net1", addresses=(world.address("10.77.0.5/24"),), routes=routes))
    assert caught.value.reason == "RouteRefused"


def test_device_is_gone(world: Any) -> None:
    """A device that was destroyed after Prepare is named, and what to do."""
    world.veth("n0")
    plan = world.plan("n0", "net1")
    world.host("link", "del", "n0")
    with pytest.raises(AttachError, match="allocated anew") as caught:
        world.attach(plan)
    assert caught.value.reason == "DeviceGone"


def test_stranger_with_the_devices_name(world: Any) -> None:
    """A new interface under the old name is not taken for the device."""
    world.veth("n0")
    plan = world.plan("n0", "net1")
    world.host("link", "del", "n0")
    world.veth("n0")
    with pytest.raises(AttachError) as caught:
        world.attach(plan)
    assert caught.value.reason == "DeviceGone"
    assert "n0" in world.host("-br", "link")


def test_renamed_on_the_host_before_the_attach(world: Any) -> None:
    """A device that got another name on the host is found all the same."""
    world.veth("n0")
    plan = world.plan("n0", "net1")
    world.host("link", "set", "n0", "name", "renamed0")
    (fact,) = world.attach(plan)
    assert fact.interface.name == "net1"


def test_attach_again_is_quiet(world: Any) -> None:
    """A second attach of a device that is there and right changes nothing: no event in the pod."""
    world.veth("n0")
    plan = world.plan("n0", "net1", addresses=(world.address("10.77.0.5/24"),), routes=(world.route("10.98.0.0/16"),))
    facts = world.attach(plan)
    with RtnlMonitor(world.pod_netns, groups=("link", "ipv4-address", "ipv6-address", "ipv4-route")) as monitor:
        assert world.lasting(world.attach(plan)) == world.lasting(facts)
        assert [event for event in monitor.receive() if event.kind != "address"] == []


def test_half_configured_device_is_finished(world: Any) -> None:
    """A device in the pod under another name, down and without its address is made what the plan says."""
    world.veth("n0")
    plan = world.plan("n0", "net1", mtu=1400, addresses=(world.address("10.77.0.5/24"),))
    world.host("link", "set", "n0", "netns", world.pod_name)
    assert world.engine.where(plan, world.pod_netns).place is Place.POD
    (fact,) = world.attach(plan)
    assert fact.interface.addresses == ("10.77.0.5/24",)
    assert _link(world, "net1")["mtu"] == 1400


def test_child_is_made_and_deleted(world: Any) -> None:
    """A macvlan child of a shared parent appears in the pod, the parent stays; at detach the child is gone."""
    world.veth("n0", "10.71.0.2/24")
    before = world.state()
    child = {
        "sub_interface": SubInterface(kind="macvlan", mode="bridge"),
        "addresses": (world.address("10.77.0.5/24"),),
    }
    plan = world.plan("n0", "net1", kind=DeviceKind.CHILD, **child)
    other = replace(world.plan("n0", "net2", kind=DeviceKind.CHILD, **child), key=DeviceKey(pool="node", device="b"))
    facts = world.attach(plan)
    assert facts[0].interface.addresses == ("10.77.0.5/24",)
    assert world.lasting(world.attach(plan)) == world.lasting(facts)
    world.attach(plan, other)
    assert world.engine.where(plan, world.pod_netns).link.name == "net1"
    assert world.engine.where(other, world.pod_netns).link.name == "net2"
    assert _link(world, "net1")["linkinfo"]["info_data"]["mode"] == "bridge"
    assert [outcome.home for outcome in world.detach(plan, other)] == [True, True]
    assert world.pod_state()["links"] == ["lo"]
    assert not world.changes(before)


def test_admin_access_moves_nothing(world: Any) -> None:
    """A device with admin access is reported and stays where it is."""
    world.veth("n0", "10.71.0.2/24")
    before = world.state()
    plan = world.plan("n0", kind=DeviceKind.ADMIN)
    (fact,) = world.attach(plan)
    assert (fact.phase, fact.admin, fact.interface) == (Phase.ATTACHED, True, None)
    assert world.detach(plan)[0].home
    assert not world.changes(before)


def test_offload_features(world: Any) -> None:
    """Features are switched in the pod and are on the host what they were afterwards."""
    world.veth("n0")
    before = world.plan("n0").host.features
    plan = world.plan("n0", "net1", features={"rx-gro": not before["rx-gro"]})
    world.attach(plan)
    with Ethtool(world.pod_netns) as ethtool:
        assert (
            ethtool.features(world.engine.where(plan, world.pod_netns).link.index)["rx-gro"].active != before["rx-gro"]
        )
    assert not world.detach(plan)[0].problems
    assert world.plan("n0").host.features == before


def test_sysctls_of_the_namespace(world: Any) -> None:
    """Sysctls of the pod's namespace are set, and have their former values after a failed attach."""
    world.veth("n0")
    sysctls = {"ipv4/ip_forward": "1", "ipv4/ip_default_ttl": "77"}
    files = ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/ip_default_ttl"]
    before = world.in_pod("cat", *files).split()
    bad = (world.route("10.99.0.0/16", "192.0.2.1"),)
    with pytest.raises(AttachError):
        world.attach(world.plan("n0", "net1", namespace_sysctls=sysctls, routes=bad))
    assert world.in_pod("cat", *files).split() == before
    with pytest.raises(AttachError, match="ipv4/no_such to 1") as caught:
        world.attach(world.plan("n0", "net1", namespace_sysctls={**sysctls, "ipv4/no_such": "1"}))
    assert caught.value.reason == "SysctlRefused"
    assert world.in_pod("cat", *files).split() == before
    world.attach(world.plan("n0", "net1", namespace_sysctls=sysctls))
    assert world.in_pod("cat", *files).split() == ["1", "77"]


def test_rule_that_was_there_before(world: Any) -> None:
    """A rule that the pod already had survives a failed attach that wanted the same one."""
    world.veth("n0")
    world.pod("rule", "add", "from", "10.77.0.0/24", "table", "201", "priority", "501", "protocol", "static")
    rule = next(one for one in world.rules_in_pod() if one.priority == 501)
    plan = world.plan("n0", "net1", rules=(rule,), routes=(world.route("10.99.0.0/16", "192.0.2.1"),))
    with pytest.raises(AttachError):
        world.attach(plan)
    assert "501:" in world.pod("rule")


def test_half_moved_device_with_a_colliding_name_of_its_own(world: Any) -> None:
    """A device left in the pod whose alternative name is its planned one gets that as its name."""
    world.veth("n0")
    world.host("link", "property", "add", "dev", "n0", "altname", "net1")
    before = world.state()
    plan = world.plan("n0", "net1")
    world.host("link", "set", "n0", "netns", world.pod_name)
    (fact,) = world.attach(plan)
    assert fact.interface.name == "net1"
    assert not world.detach(plan)[0].problems
    assert not world.changes(before)


def test_half_moved_device_whose_name_is_taken(world: Any) -> None:
    """A device left in the pod whose planned name somebody took since is sent home, and the error says so."""
    world.veth("n0", "10.71.0.2/24")
    before = world.state()
    plan = world.plan("n0", "net1")
    world.host("link", "set", "n0", "netns", world.pod_name)
    world.pod("link", "add", "net1", "type", "bridge")
    with pytest.raises(AttachError) as caught:
        world.attach(plan)
    assert caught.value.reason == "NameInUse"
    assert not world.changes(before)


def test_many_devices_in_order(world: Any) -> None:
    """Eight devices come in the order of the plans and all go home."""
    for number in range(8):
        world.veth(f"n{number}", f"10.80.{number}.2/24")
    before = world.state()
    plans = [
        world.plan(f"n{number}", f"net{number}", addresses=(world.address(f"10.81.{number}.5/24"),))
        for number in range(8)
    ]
    facts = world.attach(*plans)
    assert [fact.interface.name for fact in facts] == [f"net{number}" for number in range(8)]
    assert all(outcome.home and not outcome.problems for outcome in world.detach(*plans))
    assert not world.changes(before)


def test_thousand_addresses_and_routes(world: Any) -> None:
    """A plan with hundreds of addresses and a thousand routes is carried out."""
    world.veth("n0")
    addresses = tuple(world.address(f"10.77.{number // 250}.{number % 250 + 1}/16") for number in range(300))
    routes = tuple(
        world.route(f"10.{100 + number // 250}.{number % 250}.0/24", "10.77.0.250") for number in range(1000)
    )
    (fact,) = world.attach(world.plan("n0", "net1", addresses=addresses, routes=routes))
    assert len(fact.interface.addresses) == 300
    assert len(world.pod("route").splitlines()) == 1001
