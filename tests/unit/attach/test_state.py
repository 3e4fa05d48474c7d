"""What the kernel makes by itself, what is missing, what differs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nri_dranet.attach import state
from nri_dranet.netlink.model import Neighbour, NextHop

MAC = "02:00:5e:10:00:01"


def test_eui64() -> None:
    """RFC 4291, appendix A: ff:fe in the middle, the universal bit turned."""
    assert state.eui64("34:56:78:9a:bc:de") == "fe80::3656:78ff:fe9a:bcde"
    assert state.eui64("") == ""
    assert state.eui64("00:" * 19 + "01") == ""


@given(st.binary(min_size=6, max_size=6))
def test_eui64_differs_for_each_address(raw: bytes) -> None:
    """Two hardware addresses never give one link-local address."""
    assert state.eui64(raw.hex(":")) != state.eui64(bytes([raw[0] ^ 1, *raw[1:]]).hex(":"))


@pytest.mark.parametrize(
    ("cidr", "more", "made"),
    [
        (f"{state.eui64(MAC)}/64", {}, True),
        (f"{state.eui64(MAC)}/64", {"protocol": 3}, True),
        ("fe80::200:5e00:110:1/64", {}, True),
        ("fe80::5/64", {"protocol": 3}, True),
        ("fe80::5/64", {"flags": 0x800}, True),
        ("fe80::5/64", {}, False),
        ("fd71::5/64", {"protocol": 2}, True),
        ("fd71::5/64", {"flags": 0x100}, True),
        ("fd71::5/64", {"flags": 0x01}, True),
        ("fd71::5/64", {"flags": 0x80}, False),
        ("10.0.0.5/24", {"flags": 0x01}, False),
    ],
)
def test_made_by_kernel(make: Any, cidr: str, more: dict[str, Any], made: bool) -> None:
    """Link-local, advertised and temporary IPv6 addresses are the kernel's; a secondary IPv4 address is not."""
    assert state.made_by_kernel(make.address(cidr, **more), MAC) is made


def test_missing_addresses(make: Any) -> None:
    """An address with another prefix length or peer is not the wanted one; order is kept."""
    wanted = [make.address("10.0.0.5/24"), make.address("10.0.0.6/24", peer="10.0.0.7"), make.address("fd71::5/64")]
    assert state.missing_addresses(wanted, [make.address("10.0.0.5/25"), make.address("fd71::5/64")]) == wanted[:2]
    assert state.missing_addresses(wanted, wanted) == []


def test_aged(make: Any) -> None:
    """Lifetimes run on while a device is away; an address whose time is over does not come back."""
    forever = make.address("10.0.0.5/24")
    lease = make.address("10.0.0.6/24", valid_lifetime=600, preferred_lifetime=300)
    endless = make.address("fd71::5/64", valid_lifetime=600)
    assert state.aged([forever, lease, endless], 0) == [forever, lease, endless]
    later = state.aged([forever, lease, endless], 400.5)
    assert [(one.valid_lifetime, one.preferred_lifetime) for one in later[1:]] == [(199, 0), (199, 2**32 - 1)]
    assert state.aged([forever, lease, endless], 599.5) == [forever]


def test_own_routes_and_order(make: Any) -> None:
    """The kernel's and advertised routes are left out; those with a gateway come last, else order is kept."""
    routes = [
        make.route("10.9.0.0/16", "10.0.0.1"),
        make.route("10.0.0.0/24", protocol=2),
        make.route("::/0", "fe80::1", protocol=9),
        make.route("10.0.0.1/32"),
        make.route("10.8.0.0/16", next_hops=(NextHop(gateway="10.0.0.1"),)),
        make.route("10.7.0.0/16"),
    ]
    shown = [route.destination for route in state.in_order(state.own_routes(routes))]
    assert shown == ["10.0.0.1/32", "10.7.0.0/16", "10.9.0.0/16", "10.8.0.0/16"]


@pytest.mark.parametrize(
    "difference",
    [
        {"gateway": "10.0.0.2"},
        {"metric": 5},
        {"table": 9},
        {"tos": 4},
        {"type": 6},
        {"source": "10.0.0.9"},
        {"flags": 4},
        {"metrics": {"mtu": 1300}},
    ],
)
def test_another_route(make: Any, difference: dict[str, Any]) -> None:
    """A route that differs in any of these is missing."""
    wanted = make.route("10.9.0.0/16", "10.0.0.1", source="10.0.0.5", metrics={"mtu": 1400})
    assert state.missing_routes([wanted], [wanted]) == []
    assert state.missing_routes([wanted], [replace(wanted, **difference)]) == [wanted]


def test_same_route_as_the_kernel_shows_it(make: Any) -> None:
    """What the kernel fills in (IPv6 metric, source, index) makes no other route; a scope without gateway does."""
    wanted = make.route("fd98::/64", "fd77::1")
    assert state.missing_routes([wanted], [replace(wanted, metric=1024, index=7, source="fd77::5")]) == []
    link = make.route("10.9.0.0/16", scope=253)
    assert state.missing_routes([link], [replace(link, scope=0)]) == [link]


def test_multipath_routes(make: Any) -> None:
    """Next hops are compared with their weights; a single one is the same as a plain gateway."""
    hops = (NextHop(gateway="10.0.0.1"), NextHop(gateway="10.0.0.2", weight=3))
    wanted = make.route("10.9.0.0/16", next_hops=hops)
    present = replace(wanted, next_hops=tuple(replace(hop, index=7) for hop in hops))
    assert state.missing_routes([wanted], [present]) == []
    assert state.missing_routes([wanted], [replace(present, next_hops=hops[:1])]) == [wanted]
    single = make.route("10.9.0.0/16", next_hops=hops[:1])
    assert state.missing_routes([single], [make.route("10.9.0.0/16", "10.0.0.1")]) == []


def test_next_hops_are_freed_of_the_old_index(make: Any) -> None:
    """Next hops over the interface follow it, those over others stay."""
    hops = (NextHop(index=7, gateway="10.0.0.1"), NextHop(index=8, gateway="10.0.0.2"))
    route = make.route("10.9.0.0/16", next_hops=hops)
    assert [hop.index for hop in state.for_link(route, 7).next_hops] == [0, 8]
    plain = make.route("10.9.0.0/16", "10.0.0.1")
    assert state.for_link(plain, 7) is plain


def test_missing_neighbours() -> None:
    """Only permanent entries count, on both sides, and the hardware address too."""
    entry = Neighbour(family=2, address="10.0.0.9", hardware_address=MAC)
    assert state.missing_neighbours([entry], []) == [entry]
    assert state.missing_neighbours([entry], [replace(entry, state=2)]) == [entry]
    assert state.missing_neighbours([entry], [replace(entry, hardware_address="02:00:00:00:00:02")]) == [entry]
    assert state.missing_neighbours([entry, replace(entry, state=4)], [entry]) == []


def test_differing(make: Any) -> None:
    """Each setting that differs is named; a size that the old kernel did not tell is none."""
    own = make.link(mtu=1500, txqlen=1000, gso_max_size=65536)
    changed = replace(own, mtu=900, address="02:00:00:00:00:99", alias="x", group=3, gso_max_size=1, gro_max_size=7)
    assert state.differing(own, own) == {}
    assert state.differing(changed, own) == {
        "mtu": 1500,
        "address": "02:00:00:00:00:01",
        "gso_max_size": 65536,
        "group": 0,
        "alias": "",
    }
