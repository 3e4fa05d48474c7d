"""What comes along from the host: all that it says, as ip shows it there and here, and nothing that is not right."""

from __future__ import annotations

import re
from typing import Any

import pytest


@pytest.fixture
def host(world: Any) -> Any:
    """A host device with every kind of route, rule and neighbour."""
    world.veth("n0", "10.71.0.2/24", "10.71.0.3/24", "fd71::2/64")
    world.veth("n1", "10.72.0.2/24", "fd72::2/64")
    world.host("addr", "add", "10.73.0.2/24", "dev", "n0", "valid_lft", "5000", "preferred_lft", "5000")
    for route in STAYING + LEAVING:
        world.host(*(("-6",) if ":" in route else ()), "route", "add", *route.split())
    world.host("rule", "add", "from", "10.71.0.0/24", "iif", "n0", "tos", "0x10", "table", "100", "priority", "300")
    world.host("rule", "add", "fwmark", "0x7/0xff", "table", "100", "priority", "301", "suppress_prefixlength", "0")
    world.host("rule", "add", "from", "10.72.0.0/24", "iif", "n1", "table", "100", "priority", "302")
    world.host("rule", "add", "from", "10.72.0.0/24", "table", "200", "priority", "303")
    world.host("neigh", "add", "10.71.0.9", "lladdr", "02:00:00:00:00:09", "dev", "n0", "nud", "permanent")
    world.host("neigh", "add", "10.71.0.8", "lladdr", "02:00:00:00:00:08", "dev", "n0", "nud", "reachable")
    world.host("neigh", "add", "proxy", "10.71.0.7", "dev", "n0")
    return world


STAYING = (
    "10.80.0.0/16 via 10.71.0.1 dev n0 metric 7 proto static",
    "10.81.0.0/16 via 10.71.0.1 dev n0 proto 77 mtu 1400 advmss 1300 initcwnd 9 src 10.71.0.3",
    "10.82.0.0/16 dev n0 scope link metric 5",
    "10.83.0.0/16 via 192.0.2.1 dev n0 onlink",
    "10.84.0.0/16 nexthop via 10.71.0.1 dev n0 weight 2 nexthop via 10.71.0.4 dev n0 weight 5",
    "10.85.0.0/16 via 10.71.0.1 dev n0 table 100",
    "10.80.0.0/16 via 10.71.0.4 dev n0 metric 9 proto static",
    "10.86.0.0/16 via 10.71.0.1 dev n0 tos 0x10",
    "fd80::/64 via fd71::1 dev n0 metric 7 proto static",
    "fd81::/64 via fd71::1 dev n0 mtu 1400 pref high",
    "fd82::/64 dev n0 metric 5",
    "fd83::/64 via fe80::1 dev n0 metric 90",
    "fd84::/64 nexthop via fd71::1 dev n0 weight 2 nexthop via fd71::4 dev n0 weight 5",
)

LEAVING = (
    "default via 10.71.0.1 dev n0 metric 500",
    "default via fd71::1 dev n0 metric 500",
    "10.90.0.0/16 via 10.73.0.1 dev n0",
    "10.91.0.0/16 via 10.71.0.1 dev n0 src 10.72.0.2",
    "10.92.0.0/16 dev n0 proto kernel scope link",
    "10.93.0.0/16 via 10.72.0.1 dev n1",
    "fd90::/64 via fd71::1 dev n0 expires 900",
    "fd91::/64 via fd71::1 dev n0 proto ra",
)
"""Defaults; by an address that expires; of a source elsewhere; made by the kernel; of another device; that end."""


def routes(show: Any, name: str) -> list[str]:
    """Return the routes of a device in a namespace that are not the kernel's own, as ip shows them."""
    found: list[str] = []
    for family in ("-4", "-6"):
        text = show(family, "-d", "route", "show", "table", "all")
        # The hops of a route stand below it.
        for line in text.replace("\n\t", " ").splitlines():
            plain = " ".join(re.sub(r"linkdown|dead|\d+sec", "", line).split())
            if f"dev {name}" in plain and "proto kernel" not in plain and "multicast" not in plain:
                found.append(plain.replace(f"dev {name}", "dev IF"))
    return sorted(found)


def test_routes_come_along_as_they_are(host: Any) -> None:
    """Metric, protocol, scope, source, TOS, table, on-link, MTU and preference, weights of hops: all as on the host."""
    before = routes(host.host, "n0")
    wanted = [line for line in before if any(each.split()[0] in line for each in STAYING)]
    assert len(wanted) == len(STAYING)
    (plan,) = host.planned({"interface": {"name": "net1"}}).devices
    host.attach(plan)
    assert routes(host.pod, "net1") == wanted
    assert host.detach(plan)[0].problems == ()
    # What a router advertised the kernel hears again by itself.
    assert routes(host.host, "n0") == [line for line in before if "proto ra" not in line]


def test_connected_routes_come_with_their_address_alone(host: Any) -> None:
    """The kernel makes them with the addresses that come along, with their own source, and no others."""
    (plan,) = host.planned({"interface": {"name": "net1"}}).devices
    host.attach(plan)
    shown = host.pod("-4", "route", "show", "dev", "net1", "proto", "kernel")
    assert [line.split()[0] for line in shown.splitlines()] == ["10.71.0.0/24"]
    assert "src 10.71.0.2" in shown
    assert host.addresses_in_pod("net1") == ["10.71.0.2/24", "10.71.0.3/24", "fd71::2/64"]


def test_with_other_addresses_nothing_stale_comes_along(host: Any) -> None:
    """No route whose source or gateway is of the host's addresses: the kernel would refuse it, and the pod with it."""
    (plan,) = host.planned({"interface": {"name": "net1", "addresses": ["10.99.0.5/24", "fd99::5/64"]}}).devices
    host.attach(plan)
    kept = {line.split()[1] for line in routes(host.pod, "net1")}
    assert kept == {"10.82.0.0/16", "10.83.0.0/16", "fd82::/64", "fd83::/64"}


def test_a_default_route_comes_when_it_is_asked_for(host: Any) -> None:
    """One that the claim has, beside the pod's own by its table."""
    document = {"interface": {"name": "net1"}, "routes": [{"destination": "0.0.0.0/0", "gateway": "10.71.0.1"}]}
    (plan,) = host.planned(document).devices
    host.attach(plan)
    assert len([line for line in routes(host.pod, "net1") if line.startswith("unicast default via 10.71.0.1")]) == 1


def test_rules_come_along_whole_or_not_at_all(host: Any) -> None:
    """Those to tables of copied routes, with every qualifier, the interface by its new name."""
    (plan,) = host.planned({"interface": {"name": "net1"}}).devices
    host.attach(plan)
    shown = [line for line in host.pod("rule", "show").splitlines() if line.startswith("30")]
    assert shown == [
        "300:\tfrom 10.71.0.0/24 tos 0x10 iif net1 lookup 100",
        "301:\tfrom all fwmark 0x7/0xff lookup 100 suppress_prefixlength 0",
    ]


def test_permanent_neighbours_come_along(host: Any) -> None:
    """Neither those that were learnt nor proxies."""
    (plan,) = host.planned({"interface": {"name": "net1"}}).devices
    host.attach(plan)
    shown = host.pod("neigh", "show", "dev", "net1", "nud", "all")
    assert [line.split()[0] for line in shown.splitlines() if "PERMANENT" in line] == ["10.71.0.9"]
    assert "10.71.0.8" not in shown
    assert host.pod("neigh", "show", "proxy") == ""
