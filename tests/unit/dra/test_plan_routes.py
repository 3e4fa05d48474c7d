"""Routes and rules of a plan: the configured ones checked, the host's copied where they are right in the pod."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nri_dranet.claims.allocation import AllocatedConfig, AllocationResult, Claim
from nri_dranet.claims.model import ClaimRef
from nri_dranet.claims.plan import HostState, PodState
from nri_dranet.dra.planner import DeviceFactsIn, NodeFacts, PlanError, plan_claim
from nri_dranet.netlink.model import Address, Link, NextHop, Route, Rule

RESULT = AllocationResult("req", "dra.net", "node", "ens5")
LINK = Link(name="ens5", index=7, mtu=1500, min_mtu=68, max_mtu=65535, address="02:00:00:00:00:07")
HOST4 = Address(family=2, address="10.71.0.2", prefix_length=24, index=7, flags=0x80)
HOST6 = Address(family=10, address="fd71::2", prefix_length=64, index=7, flags=0x80)


def v4(destination: str, gateway: str | None = None, **fields: Any) -> Route:
    """Return an IPv4 route of the host."""
    fields.setdefault("scope", 0 if gateway else 253)
    return Route(family=2, destination=destination, gateway=gateway, index=7, **fields)


def v6(destination: str, gateway: str | None = None, **fields: Any) -> Route:
    """Return an IPv6 route of the host."""
    return Route(family=10, destination=destination, gateway=gateway, index=7, **{"metric": 1024} | fields)


def plan(
    parameters: Any = None,
    *routes: Route,
    addresses: tuple[Address, ...] = (HOST4, HOST6),
    rules: tuple[Rule, ...] = (),
) -> PodState:
    """Plan one interface with routes of the host."""
    claim = Claim(
        ref=ClaimRef("ns", "c", "u"),
        allocated=True,
        results=(RESULT,),
        configs=(AllocatedConfig(0, "FromClaim", (), "dra.net", parameters),),
        pods=(),
        other_consumers=(),
        node_name=None,
        pod_claim_name=None,
    )
    devices = {"ens5": DeviceFactsIn(name="ens5", link=LINK)}
    hosts = {"ens5": HostState(link=LINK, addresses=addresses, routes=routes)}
    (found,) = plan_claim(claim, "dra.net", devices, hosts, node=NodeFacts(rules=rules)).devices
    assert found.pod is not None
    return found.pod


def problems(parameters: Any, *routes: Route, addresses: tuple[Address, ...] = ()) -> list[str]:
    """Plan one interface and return why it is refused."""
    with pytest.raises(PlanError) as caught:
        plan(parameters, *routes, addresses=addresses)
    return [f"{error.path}: {error.message}" for error in caught.value.errors]


def configured(*routes: dict[str, Any], addresses: tuple[str, ...] = ("10.77.0.5/24",)) -> dict[str, Any]:
    """Return a document with routes and addresses."""
    return {"interface": {"addresses": list(addresses)}, "routes": list(routes)}


# ---- configured routes


def test_configured_routes_in_the_order_of_their_need() -> None:
    """A route on the link comes before the one whose gateway it leads to; tables and sources are as configured."""
    pod = plan(
        configured(
            {"destination": "10.99.0.0/16", "gateway": "169.254.169.1", "source": "169.254.169.13"},
            {"destination": "169.254.169.1/32", "scope": 253},
            {"destination": "fd99::/64", "gateway": "fd77::1", "table": 201},
            {"destination": "fd98::/64", "scope": 253, "table": 254},
            addresses=("169.254.169.13/32", "fd77::5/64"),
        )
    )
    assert pod.routes == (
        Route(family=2, destination="169.254.169.1/32", scope=253),
        Route(family=10, destination="fd98::/64"),
        Route(family=2, destination="10.99.0.0/16", gateway="169.254.169.1", source="169.254.169.13"),
        Route(family=10, destination="fd99::/64", gateway="fd77::1", table=201),
    )


@pytest.mark.parametrize(
    ("document", "start"),
    [
        (
            configured({"destination": "10.99.0.0/16", "gateway": "10.200.0.1"}),
            "routes[0].gateway: cannot be reached through the interface",
        ),
        (
            configured({"destination": "10.99.0.0/16", "gateway": "10.77.0.1"}, addresses=("10.77.0.5/32",)),
            "routes[0].gateway: cannot be reached",
        ),
        (
            configured({"destination": "fd99::/64", "gateway": "fd78::1"}, addresses=("fd77::5/64",)),
            "routes[0].gateway: cannot be reached",
        ),
        (
            configured({"destination": "fd99::/64", "gateway": "fd77::5"}, addresses=("fd77::5/64",)),
            "routes[0].gateway: must not be an address of the interface itself",
        ),
        (
            configured({"destination": "10.99.0.0/16", "gateway": "10.77.0.255"}),
            "routes[0].gateway: cannot be reached",
        ),
        (
            configured({"destination": "10.99.0.0/16", "gateway": "10.77.0.1", "source": "10.77.0.6"}),
            "routes[0].source: must be an address of the interface, which has 10.77.0.5",
        ),
        (
            configured(
                {"destination": "10.99.0.0/16", "gateway": "10.88.0.1"},
                {"destination": "10.88.0.0/16", "scope": 253, "table": 7},
            ),
            "routes[0].gateway: cannot be reached",
        ),
        ({"routes": [{"destination": "10.9.0.0/16", "scope": 253, "source": "10.9.0.1"}]}, "routes[0].source: must be"),
    ],
)
def test_routes_that_the_kernel_would_refuse_are_refused(document: dict[str, Any], start: str) -> None:
    """A gateway that is not on the link and a source that is not the interface's are refused at Prepare, by path."""
    (problem,) = problems(document)
    assert problem.startswith(start)


@pytest.mark.parametrize(
    "document",
    [
        configured({"destination": "0.0.0.0/0", "gateway": "10.77.0.1", "table": 201}),
        configured({"destination": "fd99::/64", "gateway": "fe80::1"}),
        configured({"destination": "10.99.0.0/16", "gateway": "10.77.0.5"}),
        configured(
            {"destination": "10.99.0.0/16", "gateway": "10.88.0.1", "table": 7},
            {"destination": "10.88.0.0/16", "scope": 253},
        ),
        configured(
            {"destination": "10.99.0.0/16", "gateway": "10.88.0.1", "table": 7},
            {"destination": "10.88.0.0/16", "scope": 253, "table": 7},
        ),
        configured({"destination": "fd99::/64", "gateway": "fd77::1", "scope": 253}, addresses=("fd77::5/64",)),
    ],
)
def test_routes_that_the_kernel_takes_are_planned(document: dict[str, Any]) -> None:
    """Gateways in an address's network, by a route on the link of the same table or main, and link-local ones work."""
    assert len(plan(document).routes) == len(document["routes"])


def test_a_configured_route_may_use_what_comes_from_the_host() -> None:
    """A gateway in the network of a copied address, or of a copied route on the link, is reached."""
    document = {
        "routes": [
            {"destination": "10.99.0.0/16", "gateway": "10.71.0.1", "source": "10.71.0.2"},
            {"destination": "10.98.0.0/16", "gateway": "172.16.0.1"},
        ]
    }
    pod = plan(document, v4("172.16.0.0/16"))
    assert [route.destination for route in pod.routes] == ["172.16.0.0/16", "10.99.0.0/16", "10.98.0.0/16"]


def test_routes_of_a_vrf_are_in_its_table() -> None:
    """With a VRF every route is in its table, copied ones of main too; those of other tables stay behind."""
    document = {
        "interface": {"vrf": {"name": "red", "table": 100}},
        "routes": [{"destination": "10.99.0.0/16", "gateway": "10.71.0.1"}],
    }
    pod = plan(
        document,
        v4("10.74.0.0/16", "10.71.0.1"),
        v4("10.75.0.0/16", "10.71.0.1", table=7),
        rules=(Rule(family=2, table=7, source="10.0.0.0/8"),),
    )
    assert [(route.destination, route.table) for route in pod.routes] == [("10.99.0.0/16", 100), ("10.74.0.0/16", 100)]
    assert pod.rules == ()


# ---- copied routes


@pytest.mark.parametrize(
    "route",
    [
        v4("10.71.0.0/24", protocol=2, source="10.71.0.2"),
        v6("fd71::/64", protocol=2),
        v6("fe80::/64", protocol=2),
        v6("fe80::/64"),
        v6("ff00::/8", table=255, type=5),
        v4("10.71.0.2/32", table=255, type=2),
        v6("fd71::2/128", table=255, type=2),
        v6("fd75::/64", "fe80::1", protocol=9),
        v6("fd75::1/128", "fe80::1", protocol=1),
        v6("fd75::/64", "fe80::1", expires=500),
        v4("10.75.0.0/16", "10.71.0.1", flags=0x200),
        v4("10.75.0.0/16", "10.71.0.1", unknown=(22,)),
        v4("0.0.0.0/0", "10.71.0.1"),
        v4("0.0.0.0/0", "10.71.0.1", table=253),
        v6("::/0", "fe80::1"),
        v4("10.75.0.0/16", "10.71.0.1", source="10.0.0.9"),
        v4("10.75.0.0/16", "10.200.0.1"),
        v6("fd75::/64", "fd71::2"),
        v4("10.75.0.0/16", next_hops=(NextHop(index=8, gateway="10.71.0.1"),)),
        v4("10.75.0.0/16", next_hops=(NextHop(index=7, gateway="10.71.0.1", unknown=(22,)),)),
    ],
)
def test_routes_that_are_not_right_in_the_pod_stay(route: Route) -> None:
    """What the kernel makes, what ends by itself, defaults, foreign sources and unreachable gateways are not copied."""
    assert plan({}, route).routes == ()


@pytest.mark.parametrize(
    "route",
    [
        v4("10.74.0.0/16", "10.71.0.1"),
        v4("10.74.0.0/16", "10.71.0.1", metric=50, metrics={"mtu": 1400}, source="10.71.0.2", tos=8),
        v4("10.74.0.0/16", "10.200.0.1", flags=0x4),
        v4("172.16.0.0/16"),
        v4("172.16.0.0/16", metric=9, table=211),
        v4("0.0.0.0/0", "10.71.0.1", table=211),
        v6("fd75::/64", "fd71::1", preference=1),
        v6("fd75::/64", "fe80::1"),
        v4("10.74.0.0/16", "fe80::1"),
    ],
)
def test_routes_come_along_with_all_that_they_say(route: Route) -> None:
    """Metric, table, source, on-link, preference and route metrics come along; the index is left to the engine."""
    assert plan({}, route).routes == (replace(route, index=0),)


def test_multipath_routes_come_with_the_hops_over_the_interface() -> None:
    """Of a multipath route the hops over this interface come along, with their weights."""
    route = v4(
        "10.74.0.0/16",
        next_hops=(
            NextHop(index=7, gateway="10.71.0.1", weight=2, flags=0x10),
            NextHop(index=8, gateway="10.72.0.1"),
            NextHop(index=7, gateway="10.200.0.1", flags=0x4),
        ),
        scope=0,
        next_hop_id=5,
    )
    onlink = replace(route, next_hops=tuple(replace(hop, flags=4) for hop in route.next_hops if hop.index == 7))
    assert plan({}, route).routes == ()
    assert plan({}, onlink).routes == (
        replace(
            onlink,
            index=0,
            next_hop_id=0,
            next_hops=(
                NextHop(gateway="10.71.0.1", weight=2, flags=0x4),
                NextHop(gateway="10.200.0.1", flags=0x4),
            ),
        ),
    )


def test_link_down_is_a_state_and_does_not_come_along() -> None:
    """Flags that the kernel reports (dead, link down, offload) are not copied."""
    assert plan({}, v4("10.74.0.0/16", "10.71.0.1", flags=0x11)).routes[0].flags == 0


def test_configured_addresses_leave_what_needs_the_hosts() -> None:
    """With configured addresses only those routes are copied that work with them."""
    pod = plan(
        {"interface": {"addresses": ["10.77.0.5/24"]}},
        v4("10.71.0.0/24", protocol=2, source="10.71.0.2"),
        v4("10.74.0.0/16", "10.71.0.1"),
        v4("10.75.0.0/16", "10.77.0.1"),
        v4("172.16.0.0/16"),
        v4("172.17.0.0/16", source="10.71.0.2"),
    )
    assert [route.destination for route in pod.routes] == ["172.16.0.0/16", "10.75.0.0/16"]


def test_a_network_without_prefix_route_is_not_on_the_link() -> None:
    """An address without prefix route reaches no gateway by itself, but by a route on the link."""
    bare = replace(HOST4, flags=0x280)
    assert plan({}, v4("10.74.0.0/16", "10.71.0.1"), addresses=(bare,)).routes == ()
    with_route = plan({}, v4("10.74.0.0/16", "10.71.0.1"), v4("10.71.0.0/24", protocol=4), addresses=(bare,))
    assert len(with_route.routes) == 2


def test_the_peer_of_an_address_is_on_the_link() -> None:
    """A point-to-point address has its peer's network on the link."""
    address = Address(family=2, address="10.9.0.1", prefix_length=32, peer="10.9.0.2", index=7, flags=0x80)
    assert len(plan({}, v4("10.74.0.0/16", "10.9.0.2"), addresses=(address,)).routes) == 1


def test_a_configured_route_replaces_the_hosts() -> None:
    """A configured route to the same destination in the same table keeps the host's one away, whatever its metric."""
    pod = plan(
        {"routes": [{"destination": "10.74.0.0/16", "gateway": "10.71.0.9"}]},
        v4("10.74.0.0/16", "10.71.0.1", metric=100),
        v4("10.74.0.0/16", "10.71.0.1", table=7),
    )
    assert [(route.gateway, route.table) for route in pod.routes] == [("10.71.0.9", 254), ("10.71.0.1", 7)]


# ---- rules


def test_configured_rules() -> None:
    """Rules have the family of their networks; table 0 is main, a network of everything is no condition."""
    pod = plan(
        {
            "rules": [
                {"source": "10.77.0.0/24", "table": 201, "priority": 501},
                {"destination": "fd98::/64", "table": 0},
                {"source": "::/0", "table": 7},
                {"table": 8},
                {"table": 8},
            ]
        }
    )
    assert pod.rules == (
        Rule(family=2, table=201, priority=501, source="10.77.0.0/24"),
        Rule(family=10, table=254, destination="fd98::/64"),
        Rule(family=10, table=7),
        Rule(family=2, table=8),
    )


TABLE_ROUTE = v4("10.73.0.0/16", "10.71.0.1", table=211)


@pytest.mark.parametrize(
    "rule",
    [
        Rule(family=2, table=211, priority=511, source="10.20.30.0/24"),
        Rule(family=2, table=211, priority=511, mark=7, mask=0xFF, flags=0x2, tos=8, protocol=4),
        Rule(family=2, table=211, priority=511, ip_protocol=6, source_ports=(1, 9), uid_range=(0, 99)),
        Rule(family=2, table=211, priority=511, suppress_prefix_length=0),
        Rule(family=2, table=211, priority=511, iif="lo"),
        Rule(family=2, table=211, priority=511),
    ],
)
def test_rules_of_copied_tables_come_along_whole(rule: Rule) -> None:
    """A rule that leads to the table of a copied route is copied with every qualifier."""
    assert plan({}, TABLE_ROUTE, rules=(rule,)).rules == (rule,)


def test_a_rules_interface_is_renamed_with_it() -> None:
    """A rule that names the interface names it as it is called in the pod; state flags are dropped."""
    rule = Rule(family=2, table=211, iif="ens5", oif="ens5", flags=0x8)
    pod = plan({"interface": {"name": "net1"}}, TABLE_ROUTE, rules=(rule,))
    assert pod.rules == (Rule(family=2, table=211, iif="net1", oif="net1"),)


@pytest.mark.parametrize(
    "rule",
    [
        Rule(family=2, table=212, source="10.0.0.0/8"),
        Rule(family=2, table=254, source="10.0.0.0/8"),
        Rule(family=2, table=211, source="10.0.0.0/8", iif="ens6"),
        Rule(family=2, table=211, source="10.0.0.0/8", oif="ens6"),
        Rule(family=2, table=211, source="10.0.0.0/8", action=3, goto=5),
        Rule(family=2, table=211, l3mdev=True),
        Rule(family=2, table=211, source="10.0.0.0/8", unknown=(99,)),
    ],
)
def test_rules_that_would_mean_something_else_stay(rule: Rule) -> None:
    """Rules of other tables, of other interfaces, of VRFs, by goto, or with what is not known are not copied."""
    assert plan({}, TABLE_ROUTE, rules=(rule,)).rules == ()


def test_a_rule_for_everything_never_brings_a_default_route() -> None:
    """A rule without conditions to a table with a default route would take over the pod's own: it is not copied."""
    default = v4("0.0.0.0/0", "10.71.0.1", table=211)
    everything = Rule(family=2, table=211, priority=100)
    some = Rule(family=2, table=211, priority=100, source="10.71.0.2/32")
    assert plan({}, default, rules=(everything, some)).rules == (some,)


# ---- anything

ADDRESSES = st.builds(
    lambda ip, size, flags, scope: Address(
        family=2 if ip.version == 4 else 10,
        address=str(ip),
        prefix_length=min(size, ip.max_prefixlen),
        index=7,
        flags=flags,
        scope=scope,
    ),
    st.ip_addresses(),
    st.integers(0, 128),
    st.integers(0, 0xFFF),
    st.sampled_from([0, 0, 0, 253, 254]),
)
IPS = st.one_of(st.none(), st.ip_addresses().map(str), st.sampled_from(["10.71.0.1", "fe80::1"]))
ROUTES = st.builds(
    lambda ip, size, gateway, source, table, protocol, hops: Route(
        family=2 if ip.version == 4 else 10,
        destination=str(ip) + "/" + str(ip.max_prefixlen) if size else ("0.0.0.0/0" if ip.version == 4 else "::/0"),
        gateway=gateway,
        source=source,
        table=table,
        protocol=protocol,
        index=7,
        next_hops=hops,
    ),
    st.ip_addresses(),
    st.booleans(),
    IPS,
    IPS,
    st.sampled_from([7, 253, 254, 255, 2**32 - 1]),
    st.integers(0, 255),
    st.lists(st.builds(NextHop, index=st.sampled_from([7, 8]), gateway=IPS), max_size=2).map(tuple),
)


@given(
    st.lists(ADDRESSES, max_size=4).map(tuple),
    st.lists(ROUTES, max_size=6).map(tuple),
    st.sampled_from(
        [{}, {"interface": {"name": "net1"}}, {"interface": {"addresses": ["10.71.0.9/24"]}},
         {"interface": {"vrf": {"name": "red"}}}, {"routes": [{"destination": "10.9.0.0/16", "scope": 253}]}]
    ),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_any_host_gives_a_plan(addresses: tuple[Address, ...], routes: tuple[Route, ...], document: Any) -> None:
    """Whatever the host's interface has, the plan has no default route of main, no foreign source, no host index."""
    pod = plan(document, *routes, addresses=addresses)
    own = {address.address for address in pod.addresses}
    for route in pod.routes:
        assert route.index == 0
        assert route.source is None or route.source in own
        assert route.table != 255
        assert route.destination not in {"0.0.0.0/0", "::/0"} or route.table not in {253, 254}
    assert all(address.index == 0 and address.scope == 0 for address in pod.addresses)


def test_the_kernels_own_route_is_not_made_twice() -> None:
    """A route on the link to the network of an own address is there already; another one could not be beside it."""
    own = {"destination": "10.77.0.0/24", "scope": 253}
    assert plan(configured(own)).routes == ()
    assert plan(configured({**own, "source": "10.77.0.5"})).routes == ()
    assert [route.table for route in plan(configured({**own, "table": 7})).routes] == [7]
    (problem,) = problems(configured({"destination": "10.77.0.0/24", "gateway": "10.77.0.1"}))
    assert problem.startswith("routes[0].destination: must not be the network of the interface's own address 10.77.0.5")
    six = configured({"destination": "fd77::/64", "gateway": "fd77::1"}, addresses=("fd77::5/64",))
    assert len(plan(six).routes) == 1
