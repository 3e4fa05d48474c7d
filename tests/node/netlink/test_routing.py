"""Addresses, routes, rules and neighbours on the real kernel: what is written is read back the same."""

from __future__ import annotations

import dataclasses
import errno
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from nri_dranet.netlink import codec, routing, rtnl
from nri_dranet.netlink.codec import AF_INET, AF_INET6, NetlinkError
from nri_dranet.netlink.model import Address, Neighbour, NextHop, Route, Rule

if TYPE_CHECKING:
    from collections.abc import Callable

    from nri_dranet.netlink.namespaces import NetNs
    from nri_dranet.netlink.sockets import RtnlSocket

    Ip = Callable[..., list[dict[str, Any]]]


def made(socket: RtnlSocket, *requests: codec.Request) -> None:
    """Carry out requests of which none may fail."""
    assert [reply.error for reply in socket.batch(requests)] == [None] * len(requests)


@pytest.fixture
def index(rtnl_socket: RtnlSocket) -> int:
    """Give a veth that is up with its peer."""
    made(rtnl_socket, rtnl.new_link("veth", "eth0", index=10, peer="eth1"))
    peer = rtnl_socket.link(name="eth1")
    assert peer is not None
    made(rtnl_socket, rtnl.set_link(10, up=True, addr_gen_mode=1), rtnl.set_link(peer.index, up=True, addr_gen_mode=1))
    # An address made by the kernel before the mode was set would be in the way.
    for address in rtnl_socket.addresses():
        made(rtnl_socket, rtnl.delete_address(address, address.index))
    made(rtnl_socket, rtnl.set_link(1, up=True))
    return 10


def configured(socket: RtnlSocket) -> list[Route]:
    """List the routes that were not made by the kernel: those come and go on their own."""
    return [route for route in socket.routes() if route.protocol != 2]


V4 = Address(family=AF_INET, address="192.0.2.1", prefix_length=24)
V6 = Address(family=AF_INET6, address="2001:db8::1", prefix_length=64, flags=routing.IFA_F_NODAD)


@pytest.mark.parametrize(
    "address",
    [
        V4,
        Address(family=AF_INET, address="169.254.169.13", prefix_length=32),
        dataclasses.replace(V4, scope=253, label="eth0:one", broadcast="192.0.2.255"),
        dataclasses.replace(V4, valid_lifetime=1000, preferred_lifetime=500),
        dataclasses.replace(V4, address="10.0.0.1", prefix_length=32, peer="10.0.0.2"),
        dataclasses.replace(V4, flags=routing.IFA_F_NOPREFIXROUTE, metric=50, protocol=77),
        V6,
        dataclasses.replace(V6, valid_lifetime=1000, preferred_lifetime=500),
        dataclasses.replace(V6, prefix_length=128, peer="2001:db8::2"),
        dataclasses.replace(V6, flags=routing.IFA_F_NODAD | routing.IFA_F_NOPREFIXROUTE, metric=50, protocol=77),
    ],
)
def test_an_address_is_read_as_it_was_added(rtnl_socket: RtnlSocket, index: int, address: Address) -> None:
    """Lifetimes, peer, label, scope, flags, metric and protocol survive the kernel."""
    made(rtnl_socket, rtnl.add_address(address, index))
    (found,) = rtnl_socket.addresses(index)
    forever = address.valid_lifetime > 1000
    assert found.flags & routing.IFA_F_PERMANENT == (routing.IFA_F_PERMANENT if forever else 0)
    settable = routing.IFA_F_NODAD | routing.IFA_F_NOPREFIXROUTE
    expected = dataclasses.replace(
        address,
        index=index,
        flags=found.flags,
        label=address.label or ("eth0" if address.family == AF_INET else ""),
        # The kernel counts down in seconds, and rounds.
        valid_lifetime=found.valid_lifetime,
        preferred_lifetime=found.preferred_lifetime,
    )
    assert found == expected
    assert found.flags & settable == address.flags & settable
    if not forever:
        assert 995 <= found.valid_lifetime <= 1000
        assert 495 <= found.preferred_lifetime <= 500
    # A copy of what was read can be added again, and taken away by what was read.
    made(rtnl_socket, rtnl.delete_address(found, index))
    assert rtnl_socket.addresses(index) == []
    made(rtnl_socket, rtnl.add_address(found, index))


def test_an_address_that_exists_is_refused_or_replaced(rtnl_socket: RtnlSocket, index: int) -> None:
    """EEXIST by default; replacing changes the lifetime."""
    made(rtnl_socket, rtnl.add_address(V4, index))
    with pytest.raises(NetlinkError) as caught:
        rtnl_socket.request(rtnl.add_address(V4, index))
    assert caught.value.errno == errno.EEXIST
    assert "add address 192.0.2.1/24: File exists (EEXIST)" in str(caught.value)
    shorter = dataclasses.replace(V4, valid_lifetime=100, preferred_lifetime=100)
    made(rtnl_socket, rtnl.add_address(shorter, index, replace=True))
    assert rtnl_socket.addresses(index)[0].valid_lifetime <= 100


def test_dumps_are_filtered_by_the_kernel(rtnl_socket: RtnlSocket, index: int) -> None:
    """Addresses, routes and neighbours of one link only; ENODEV for a link that is not there."""
    other = rtnl_socket.link(name="eth1")
    assert other is not None
    made(
        rtnl_socket,
        rtnl.add_address(V4, index),
        rtnl.add_address(dataclasses.replace(V4, address="198.51.100.1"), other.index),
        rtnl.add_neighbour(Neighbour(family=AF_INET, address="192.0.2.9", hardware_address="02:00:00:00:00:01"), index),
        rtnl.add_neighbour(
            Neighbour(family=AF_INET, address="198.51.100.9", hardware_address="02:00:00:00:00:02"), other.index
        ),
    )
    for request in (
        rtnl.dump_addresses(index),
        rtnl.dump_routes(index, family=AF_INET),
        rtnl.dump_neighbours(index),
    ):
        (answer,) = rtnl_socket.exchange([request])
        found = [rtnl.parse_object(message) for message in answer.messages]
        assert found
        assert {getattr(one, "index", None) for one in found} == {index}, request.label
    for request in (rtnl.dump_addresses(999), rtnl.dump_routes(999)):
        with pytest.raises(NetlinkError) as caught:
            rtnl_socket._ask(request)
        assert caught.value.errno == errno.ENODEV


GATEWAY = Route(family=AF_INET, destination="203.0.113.0/24", gateway="192.0.2.254")
GATEWAY6 = Route(family=AF_INET6, destination="2001:db8:1::/48", gateway="2001:db8::fe", metric=1024)


@pytest.mark.parametrize(
    "route",
    [
        GATEWAY,
        Route(family=AF_INET, destination="0.0.0.0/0", gateway="192.0.2.254", metric=77, tos=8),
        Route(family=AF_INET, destination="203.0.113.7/32", scope=253, source="192.0.2.1"),
        dataclasses.replace(GATEWAY, gateway="198.51.100.1", flags=routing.RTNH_F_ONLINK),
        dataclasses.replace(GATEWAY, table=70_000),
        dataclasses.replace(GATEWAY, table=100, protocol=77, metric=5, realm=3),
        dataclasses.replace(GATEWAY, gateway="2001:db8::fe"),
        dataclasses.replace(GATEWAY, metrics={"mtu": 1300, "advmss": 1200, "initcwnd": 20, "rto_min": 100}),
        dataclasses.replace(GATEWAY, congestion_control="cubic"),
        dataclasses.replace(
            GATEWAY,
            gateway=None,
            next_hops=(
                NextHop(gateway="192.0.2.254", weight=1),
                NextHop(gateway="192.0.2.253", weight=200),
                NextHop(gateway="198.51.100.77", weight=3, flags=routing.RTNH_F_ONLINK),
            ),
        ),
        Route(family=AF_INET, destination="203.0.113.0/24", type=routing.RTN_BLACKHOLE, metric=9),
        Route(family=AF_INET, destination="203.0.113.0/24", type=routing.RTN_UNREACHABLE),
        Route(family=AF_INET, destination="203.0.113.0/24", type=routing.RTN_PROHIBIT),
        Route(family=AF_INET, destination="203.0.113.0/24", type=routing.RTN_THROW),
        GATEWAY6,
        Route(family=AF_INET6, destination="::/0", gateway="2001:db8::fe", metric=7, preference=1),
        Route(family=AF_INET6, destination="2001:db8:2::/64", source="2001:db8::1", metric=256),
        dataclasses.replace(GATEWAY6, gateway="2001:db8:99::1", flags=routing.RTNH_F_ONLINK),
        dataclasses.replace(GATEWAY6, table=70_000, metrics={"mtu": 1400, "hoplimit": 9}),
        dataclasses.replace(
            GATEWAY6,
            gateway=None,
            next_hops=(NextHop(gateway="2001:db8::fe", weight=1), NextHop(gateway="2001:db8::fd", weight=3)),
        ),
        Route(family=AF_INET6, destination="2001:db8:3::/48", type=routing.RTN_BLACKHOLE, metric=1024),
    ],
)
def test_a_route_is_read_as_it_was_added(rtnl_socket: RtnlSocket, index: int, route: Route) -> None:
    """On-link, multipath, other family's gateway, blackhole, tables, metrics and preference survive the kernel."""
    made(rtnl_socket, rtnl.add_address(V4, index), rtnl.add_address(V6, index))
    if route.realm:
        made(rtnl_socket, rtnl.add_rule(Rule(family=AF_INET, table=100)))
    assert configured(rtnl_socket) == []
    made(rtnl_socket, rtnl.add_route(route, index))
    (found,) = configured(rtnl_socket)
    nowhere = route.type in routing.WITHOUT_INTERFACE
    expected = dataclasses.replace(
        route,
        index=found.index if nowhere or route.next_hops else index,
        next_hops=tuple(dataclasses.replace(hop, index=index) for hop in route.next_hops),
        preference=found.preference if route.preference is None else route.preference,
    )
    assert found == expected
    assert found.unknown == ()
    # What was read can be removed, and added again.
    made(rtnl_socket, rtnl.delete_route(found, index))
    assert configured(rtnl_socket) == []
    made(rtnl_socket, rtnl.add_route(found, index))
    assert configured(rtnl_socket) == [found]


def test_an_ipv6_route_with_an_end_is_read_with_it(rtnl_socket: RtnlSocket, index: int) -> None:
    """``expires`` counts down in seconds."""
    made(rtnl_socket, rtnl.add_address(V6, index), rtnl.add_route(dataclasses.replace(GATEWAY6, expires=600), index))
    (found,) = [one for one in rtnl_socket.routes() if one.destination == GATEWAY6.destination]
    assert 590 <= found.expires <= 600


def test_a_route_with_an_encapsulation_says_that_it_cannot_be_copied(
    netns: NetNs, rtnl_socket: RtnlSocket, index: int, ip: Ip
) -> None:
    """What stands in no field is listed by number."""
    made(rtnl_socket, rtnl.add_address(V6, index))
    where = ("dev", "eth0", "via", "2001:db8::fe")
    try:
        ip(netns, "-6", "route", "add", "2001:db8:9::/48", "encap", "ip6", "id", "7", "dst", "2001:db8::7", *where)
    except subprocess.CalledProcessError as error:
        if b"CONFIG_LWTUNNEL" not in error.stderr and b"not supported" not in error.stderr:
            raise
        pytest.skip("this kernel has no encapsulating routes (CONFIG_LWTUNNEL)")
    (found,) = [one for one in rtnl_socket.routes() if one.destination == "2001:db8:9::/48"]
    assert found.unknown


def test_routes_of_a_table_that_nobody_made_are_none(rtnl_socket: RtnlSocket, index: int) -> None:
    """A table is listed alone; one that does not exist is empty, not an error."""
    made(rtnl_socket, rtnl.add_address(V4, index), rtnl.add_route(dataclasses.replace(GATEWAY, table=100), index))
    assert [route.destination for route in rtnl_socket.routes(table=100)] == [GATEWAY.destination]
    assert rtnl_socket.routes(table=4242) == []


def test_a_refused_route_says_why(rtnl_socket: RtnlSocket, index: int) -> None:
    """The kernel's words are in the error."""
    with pytest.raises(NetlinkError) as caught:
        rtnl_socket.request(rtnl.add_route(GATEWAY, index))
    assert caught.value.errno == errno.ENETUNREACH
    assert caught.value.kernel_message == "Nexthop has invalid gateway"
    assert caught.value.label == "add route 203.0.113.0/24 via 192.0.2.254"


SIX = Neighbour(family=AF_INET6, address="2001:db8::9", hardware_address="02:00:00:00:00:02")
RULE = Rule(family=AF_INET, table=100, priority=1000)


@pytest.mark.parametrize(
    "rule",
    [
        RULE,
        dataclasses.replace(RULE, source="192.0.2.0/24", destination="203.0.113.7/32"),
        dataclasses.replace(RULE, iif="eth0", oif="eth1", tos=16),
        dataclasses.replace(RULE, mark=1, mask=0xFF),
        dataclasses.replace(RULE, mark=0, mask=0xFF),
        dataclasses.replace(RULE, flags=routing.FIB_RULE_INVERT, source="192.0.2.0/24", protocol=77),
        dataclasses.replace(RULE, ip_protocol=6, source_ports=(1000, 2000), destination_ports=(443, 443)),
        dataclasses.replace(RULE, uid_range=(1000, 1999)),
        dataclasses.replace(RULE, suppress_prefix_length=0),
        dataclasses.replace(RULE, suppress_group=7),
        dataclasses.replace(RULE, table=0, action=2, goto=32766),
        dataclasses.replace(RULE, table=0, action=6),
        dataclasses.replace(RULE, table=70_000),
        dataclasses.replace(RULE, table=0, l3mdev=True),
        dataclasses.replace(RULE, realm=5),
        Rule(family=AF_INET6, table=100, priority=0, source="2001:db8::/64", ip_protocol=58),
    ],
)
def test_a_rule_is_read_as_it_was_added(rtnl_socket: RtnlSocket, index: int, rule: Rule) -> None:
    """Every qualifier survives the kernel; what was read removes it."""
    del index
    before = rtnl_socket.rules()
    try:
        rtnl_socket.request(rtnl.add_rule(rule))
    except NetlinkError as error:
        if error.errno == errno.EOPNOTSUPP and rule.l3mdev:
            pytest.skip("this kernel has no l3mdev rules (CONFIG_NET_L3_MASTER_DEV)")
        raise
    (found,) = [one for one in rtnl_socket.rules() if one not in before]
    assert dataclasses.replace(found, flags=found.flags & routing.FIB_RULE_INVERT) == rule
    with pytest.raises(NetlinkError) as caught:
        rtnl_socket.request(rtnl.add_rule(found))
    assert caught.value.errno == errno.EEXIST
    made(rtnl_socket, rtnl.delete_rule(found))
    assert rtnl_socket.rules() == before


def test_the_kernel_chooses_a_priority(rtnl_socket: RtnlSocket) -> None:
    """Without one the rule goes before the main table's."""
    before = rtnl_socket.rules()
    made(rtnl_socket, rtnl.add_rule(dataclasses.replace(RULE, priority=None)))
    (found,) = [one for one in rtnl_socket.rules() if one not in before]
    assert found.priority == 32765


def test_a_rule_with_an_unknown_qualifier_says_so(netns: NetNs, rtnl_socket: RtnlSocket, ip: Ip) -> None:
    """A copy without the tunnel id would match more, so the number of the qualifier is listed."""
    ip(netns, "rule", "add", "priority", "99", "tun_id", "7", "table", "100")
    (found,) = [one for one in rtnl_socket.rules() if one.priority == 99]
    assert found.unknown == (12,)


def test_neighbours(rtnl_socket: RtnlSocket, index: int) -> None:
    """Permanent entries of both families are added, told from learnt ones, replaced and removed."""
    four = Neighbour(family=AF_INET, address="192.0.2.9", hardware_address="02:00:00:00:00:01")
    six = dataclasses.replace(SIX, flags=0x80)
    learnt = Neighbour(family=AF_INET, address="192.0.2.10", hardware_address="02:00:00:00:00:03", state=4)
    made(rtnl_socket, *(rtnl.add_neighbour(one, index) for one in (four, six, learnt)))
    found = rtnl_socket.neighbours(index, permanent_only=True)
    assert {one.address for one in found} == {"192.0.2.9", "2001:db8::9"}
    assert dataclasses.replace(four, index=index) in found
    assert dataclasses.replace(six, index=index) in found
    assert dataclasses.replace(learnt, index=index) in rtnl_socket.neighbours(index)
    with pytest.raises(NetlinkError) as caught:
        rtnl_socket.request(rtnl.add_neighbour(four, index))
    assert caught.value.errno == errno.EEXIST
    other = dataclasses.replace(four, hardware_address="02:00:00:00:00:09")
    made(rtnl_socket, rtnl.add_neighbour(other, index, replace=True))
    assert dataclasses.replace(other, index=index) in rtnl_socket.neighbours(index)
    made(rtnl_socket, *(rtnl.delete_neighbour(one, index) for one in (four, six, learnt)))
    assert rtnl_socket.neighbours(index, permanent_only=True) == []


@pytest.mark.parametrize(
    ("request_", "other", "fields"),
    [
        (
            rtnl.add_address(dataclasses.replace(V4, valid_lifetime=9, preferred_lifetime=8, label="eth0:1"), 10),
            ifaddrmsg,
            {"IFA_LOCAL": "192.0.2.1", "IFA_ADDRESS": "192.0.2.1", "IFA_LABEL": "eth0:1", "IFA_FLAGS": 0},
        ),
        (
            rtnl.add_route(dataclasses.replace(GATEWAY, metric=5, source="192.0.2.1", table=300), 10),
            rtmsg,
            {
                "RTA_DST": "203.0.113.0",
                "RTA_GATEWAY": "192.0.2.254",
                "RTA_OIF": 10,
                "RTA_PRIORITY": 5,
                "RTA_PREFSRC": "192.0.2.1",
                "RTA_TABLE": 300,
            },
        ),
        (
            rtnl.add_rule(dataclasses.replace(RULE, source="192.0.2.0/24", iif="eth0", mark=7, uid_range=(1, 2))),
            fibmsg,
            {"FRA_SRC": "192.0.2.0", "FRA_IIFNAME": "eth0", "FRA_FWMARK": 7, "FRA_UID_RANGE": "1:2"},
        ),
        (
            rtnl.add_neighbour(
                Neighbour(family=AF_INET6, address="2001:db8::9", hardware_address="02:00:00:00:00:02"), 3
            ),
            ndmsg,
            {"NDA_DST": "2001:db8::9", "NDA_LLADDR": "02:00:00:00:00:02"},
        ),
    ],
)
def test_another_implementation_reads_our_requests(request_: codec.Request, other: Any, fields: dict[str, Any]) -> None:
    """pyroute2 finds in our bytes what we meant."""
    message = other(request_.encode(1))
    message.decode()
    assert {name: message.get_attr(name) for name in fields} == fields
