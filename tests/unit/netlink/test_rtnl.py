"""rtnetlink messages: what is built is read back, hostile bytes are refused, golden bytes stay."""

from __future__ import annotations

import dataclasses
import struct
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nri_dranet.netlink import codec, links, routing, rtnl
from nri_dranet.netlink.codec import AF_INET, AF_INET6, DecodeError, Message
from nri_dranet.netlink.model import FOREVER, Address, Link, Neighbour, NextHop, Route, Rule

if TYPE_CHECKING:
    from collections.abc import Callable

U8, U16, U32 = st.integers(0, 0xFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF_FFFF)
INDEX = st.integers(1, 0x7FFF_FFFF)
FAMILY = st.sampled_from([AF_INET, AF_INET6])
NAME = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=1, max_size=15)
MAC = st.binary(min_size=6, max_size=6).map(codec.hardware_address)


def ip(family: int) -> st.SearchStrategy[str]:
    """Give addresses of a family."""
    return st.ip_addresses(v=4 if family == AF_INET else 6).map(str)


def prefix(family: int) -> st.SearchStrategy[str]:
    """Give prefixes of a family in canonical form."""
    size = 32 if family == AF_INET else 128
    return st.tuples(ip(family), st.integers(0, size)).map(
        lambda pair: codec.prefix_text(codec.prefix_bytes(f"{pair[0]}/{pair[1]}", family)[0], family, pair[1])
    )


@st.composite
def addresses(draw: st.DrawFn) -> Address:
    """Any address that a request can carry."""
    family = draw(FAMILY)
    local = draw(ip(family))
    peer = draw(st.none() | ip(family))
    return Address(
        family=family,
        address=local,
        prefix_length=draw(st.integers(0, 32 if family == AF_INET else 128)),
        scope=draw(U8),
        flags=draw(U32) & routing.IFA_SETTABLE,
        label=draw(NAME) if family == AF_INET else "",
        broadcast=draw(st.none() | ip(family)) if family == AF_INET else None,
        peer=None if peer == local else peer,
        valid_lifetime=draw(U32),
        preferred_lifetime=draw(U32),
        protocol=draw(U8),
        metric=draw(U32),
    )


@st.composite
def routes(draw: st.DrawFn) -> Route:
    """Any route that a request can carry."""
    family = draw(FAMILY)
    gateways = st.none() | ip(AF_INET) | ip(AF_INET6)
    hops = draw(
        st.lists(
            st.builds(
                NextHop,
                index=INDEX,
                gateway=gateways,
                weight=st.integers(1, 256),
                flags=st.sampled_from([0, 4]),
                realm=U32,
            ),
            max_size=3,
        )
    )
    kind = draw(st.sampled_from([1, 2, 6, 7, 8, 9]))
    nowhere = kind in routing.WITHOUT_INTERFACE
    return Route(
        family=family,
        destination=draw(prefix(family)),
        gateway=None if hops or nowhere else draw(gateways),
        source=draw(st.none() | ip(family)),
        table=draw(U32),
        scope=draw(U8),
        type=kind,
        protocol=draw(U8),
        metric=draw(U32),
        tos=draw(U8),
        flags=draw(st.sampled_from([0, 4])),
        preference=draw(st.none() | U8) if family == AF_INET6 else None,
        next_hops=tuple(hops),
        metrics=draw(st.dictionaries(st.sampled_from(sorted(routing.METRICS.values())), U32, max_size=4)),
        realm=draw(U32),
        congestion_control=draw(st.sampled_from(["", "cubic", "bbr"])),
    )


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    """Any rule that a request can carry."""
    family = draw(FAMILY)
    some = prefix(family).filter(lambda text: not text.endswith("/0"))
    optional = st.none() | U32
    mask = draw(optional)
    l3mdev = draw(st.booleans())
    return Rule(
        family=family,
        table=0 if l3mdev else draw(U32),
        priority=draw(U32),
        action=draw(U8),
        flags=draw(st.sampled_from([0, routing.FIB_RULE_INVERT])),
        source=draw(st.none() | some),
        destination=draw(st.none() | some),
        iif=draw(st.none() | NAME),
        oif=draw(st.none() | NAME),
        mark=draw(U32) if mask is not None else None,
        mask=mask,
        tos=draw(U8),
        ip_protocol=draw(st.none() | U8),
        source_ports=draw(st.none() | st.tuples(U16, U16)),
        destination_ports=draw(st.none() | st.tuples(U16, U16)),
        uid_range=draw(st.none() | st.tuples(U32, U32)),
        suppress_prefix_length=draw(st.none() | st.integers(0, 128)),
        suppress_group=draw(st.none() | st.integers(0, 1000)),
        goto=draw(optional),
        l3mdev=l3mdev,
        protocol=draw(U8),
        realm=draw(U32),
    )


@st.composite
def neighbours(draw: st.DrawFn) -> Neighbour:
    """Any neighbour that a request can carry."""
    family = draw(FAMILY)
    return Neighbour(
        family=family,
        address=draw(ip(family)),
        hardware_address=draw(st.just("") | MAC),
        state=draw(U16),
        flags=draw(U8),
    )


@given(addresses(), INDEX)
def test_an_address_is_read_as_it_was_built(address: Address, index: int) -> None:
    """Every field survives; the index given counts."""
    request = rtnl.add_address(address, index)
    assert rtnl.parse_address(request.body) == dataclasses.replace(address, index=index)
    found = rtnl.parse_address(rtnl.delete_address(address, index).body)
    assert (found.address, found.peer, found.prefix_length) == (address.address, address.peer, address.prefix_length)


@given(routes(), INDEX)
def test_a_route_is_read_as_it_was_built(route: Route, index: int) -> None:
    """Every field survives; routes that lead nowhere have no interface."""
    found = rtnl.parse_route(rtnl.add_route(route, index).body)
    nowhere = route.type in routing.WITHOUT_INTERFACE or route.next_hops
    assert found == dataclasses.replace(route, index=0 if nowhere else index)
    found = rtnl.parse_route(rtnl.delete_route(route, index).body)
    assert (found.destination, found.table, found.gateway) == (route.destination, route.table, route.gateway)
    assert found.next_hops == route.next_hops


@given(rules())
def test_a_rule_is_read_as_it_was_built(rule: Rule) -> None:
    """Every qualifier survives, in both requests."""
    assert rtnl.parse_rule(rtnl.add_rule(rule).body) == rule
    assert rtnl.parse_rule(rtnl.delete_rule(rule).body) == rule


@given(neighbours(), INDEX)
def test_a_neighbour_is_read_as_it_was_built(neighbour: Neighbour, index: int) -> None:
    """Every field survives, in both requests."""
    expected = dataclasses.replace(neighbour, index=index)
    assert rtnl.parse_neighbour(rtnl.add_neighbour(neighbour, index).body) == expected
    assert rtnl.parse_neighbour(rtnl.delete_neighbour(neighbour, index).body) == expected


@given(st.tuples(INDEX, U32, U32, st.integers(0, 3)), st.tuples(NAME, MAC, NAME))
def test_a_link_is_read_as_it_was_built(numbers: tuple[int, int, int, int], texts: tuple[str, str, str]) -> None:
    """What can be set is read from the request as from an answer."""
    index, mtu, size, mode = numbers
    name, address, alias = texts
    request = rtnl.set_link(
        index,
        name=name,
        up=True,
        mtu=mtu,
        address=address,
        master=mtu,
        alias=alias,
        txqlen=size,
        group=size,
        gso_max_size=size,
        gro_max_size=size,
        gso_ipv4_max_size=size,
        gro_ipv4_max_size=size,
        addr_gen_mode=mode,
        new_index=index,
    )
    assert rtnl.parse_link(request.body) == Link(
        index=index,
        name=name,
        type=0,
        flags=1,
        mtu=mtu,
        address=address,
        master=mtu,
        alias=alias,
        txqlen=size,
        group=size,
        gso_max_size=size,
        gro_max_size=size,
        gso_ipv4_max_size=size,
        gro_ipv4_max_size=size,
        addr_gen_mode=mode,
        new_index=index,
    )


VALID: list[tuple[Callable[[bytes], Any], bytes]] = [
    (
        rtnl.parse_link,
        rtnl.set_link(1, name="a", addr_gen_mode=1, ipv4_conf={"arp_ignore": 1}, xdp_fd=-1).body
        + rtnl.new_link("vlan", "b", vlan_id=7).body[16:]
        + rtnl.add_altname(1, "x").body[16:],
    ),
    (rtnl.parse_link, rtnl.new_link("macvlan", "b", lower=1, mode="bridge").body),
    (rtnl.parse_link, rtnl.new_link("vrf", "b", vrf_table=1).body),
    (rtnl.parse_link_conf, rtnl.set_link(1, ipv4_conf={"arp_ignore": 1}).body),
    (
        rtnl.parse_address,
        rtnl.add_address(
            Address(family=AF_INET, address="10.0.0.1", prefix_length=8, valid_lifetime=5, protocol=3, metric=1), 1
        ).body,
    ),
    (
        rtnl.parse_route,
        rtnl.add_route(
            Route(
                family=AF_INET6,
                destination="::/0",
                preference=1,
                metrics={"mtu": 1},
                congestion_control="x",
                next_hops=(NextHop(gateway="10.0.0.1", realm=1), NextHop(gateway="::1")),
            ),
            1,
        ).body,
    ),
    (
        rtnl.parse_rule,
        rtnl.add_rule(
            Rule(family=AF_INET, source="10.0.0.0/8", uid_range=(1, 2), source_ports=(1, 2), protocol=1)
        ).body,
    ),
    (
        rtnl.parse_neighbour,
        rtnl.add_neighbour(Neighbour(family=AF_INET, address="10.0.0.1", hardware_address="02:00"), 1).body,
    ),
    (rtnl.parse_link, rtnl.new_link("veth", "a", peer="b").body),
    (links.without_statistics, rtnl.set_link(1, name="a").body + codec.attribute(23, bytes(200))),
    (rtnl.parse_nsid, bytes(4) + codec.attribute_s32(1, -1)),
]


@pytest.mark.parametrize(("parse", "body"), VALID)
def test_truncated_messages_are_refused_or_read(parse: Callable[[bytes], Any], body: bytes) -> None:
    """Cut anywhere: an object of what is left, or a decode error; never another exception."""
    for end in range(len(body)):
        try:
            parse(body[:end])
        except DecodeError:
            continue


@given(st.data())
def test_altered_messages_are_refused_or_read(data: st.DataObject) -> None:
    """Any bytes in the middle of a message."""
    parse, body = data.draw(st.sampled_from(VALID))
    place = data.draw(st.integers(0, len(body)))
    other = data.draw(st.binary(max_size=12))
    try:
        parse(body[:place] + other + body[place + len(other) :])
    except DecodeError:
        return


@given(st.sampled_from(sorted(rtnl._PARSERS)), st.binary(max_size=150))
def test_no_bytes_break_the_reading_of_events(kind: int, body: bytes) -> None:
    """An event, nothing, or a decode error."""
    try:
        rtnl.parse_event(Message(kind, 0, 0, 0, body))
    except DecodeError:
        return


def test_golden_bytes_of_an_address() -> None:
    """As in the capture of ``ip address add 169.254.169.13/32 dev eth0``, with flags in full."""
    request = rtnl.add_address(Address(family=AF_INET, address="169.254.169.13", prefix_length=32), 3)
    assert request.type == 20
    assert request.flags == 0x600
    assert request.body.hex() == (
        "02200000" "03000000" "08000200a9fea90d" "08000100a9fea90d" "0800080000000000"
    )  # fmt: skip
    assert request.label == "add address 169.254.169.13/32"


def test_golden_bytes_of_a_move() -> None:
    """One message: index, descriptor of the namespace, new name."""
    request = rtnl.set_link(5, netns_fd=9, name="eth99")
    assert (request.type, request.flags) == (19, 0)
    assert request.body.hex() == (
        "00000000" "05000000" "00000000" "00000000" "08001c0009000000" "0a000300657468393900" "0000"
    )  # fmt: skip
    assert request.label == "move link 5 to another namespace as eth99"


def test_golden_bytes_of_settings() -> None:
    """AF_SPEC holds the families, AF_INET the numbers of its settings."""
    request = rtnl.set_link(5, ipv4_conf={"arp_ignore": 1}, addr_gen_mode=1)
    assert request.body[16:].hex() == (
        "20001a80" "10000280" "0c000180" "0800130001000000" "0c000a80" "0500080001000000"
    )  # fmt: skip
    assert links.ipv4_conf_number("forwarding") == 1
    assert links.ipv4_conf_number("arp_evict_nocarrier") == 33


def test_golden_bytes_of_a_route() -> None:
    """rtmsg, table in full, destination, gateway, interface."""
    request = rtnl.add_route(Route(family=AF_INET, destination="10.0.0.0/8", gateway="10.0.0.1", table=300), 7)
    assert request.body.hex() == (
        "0208000000040001" "00000000" "08000f002c010000" "080001000a000000" "080005000a000001" "0800040007000000"
    )  # fmt: skip
    assert request.label == "add route 10.0.0.0/8 via 10.0.0.1 table 300"


@pytest.mark.parametrize(
    ("request_", "label"),
    [
        (rtnl.set_link(1, up=True), "set link 1 up"),
        (rtnl.set_link(1, up=False), "set link 1 down"),
        (rtnl.set_link(1, name="x"), "rename link 1 to x"),
        (rtnl.set_link(1, netns_fd=3), "move link 1 to another namespace"),
        (rtnl.set_link(1, mtu=9), "change link 1"),
        (rtnl.set_link(1, mtu=9, label="own words"), "own words"),
        (rtnl.get_link(name="eth0"), "read link eth0"),
        (rtnl.get_link(index=3), "read link 3"),
        (rtnl.new_link("veth", "x"), "make veth x"),
        (rtnl.delete_link(3), "delete link 3"),
        (rtnl.add_altname(3, "x"), "add alternative name x to link 3"),
        (rtnl.delete_altname(3, "x"), "delete alternative name x of link 3"),
        (rtnl.dump_links(), "list links"),
        (rtnl.dump_addresses(), "list addresses"),
        (rtnl.dump_addresses(3), "list addresses of link 3"),
        (rtnl.dump_routes(), "list routes"),
        (rtnl.dump_routes(3), "list routes over link 3"),
        (rtnl.dump_neighbours(), "list neighbours"),
        (rtnl.dump_neighbours(3), "list neighbours on link 3"),
        (rtnl.dump_rules(), "list rules"),
        (rtnl.add_rule(Rule(family=2, source="10.0.0.0/8", priority=5)), "add rule 5: from 10.0.0.0/8 table 254"),
        (rtnl.delete_rule(Rule(family=2, destination="10.0.0.0/8")), "delete rule to 10.0.0.0/8 table 254"),
        (rtnl.get_nsid(4), "read the number of a namespace"),
    ],
)
def test_labels_are_words(request_: codec.Request, label: str) -> None:
    """Each request says what it does, for errors."""
    assert request_.label == label


def test_dumps_of_links_are_limited_by_the_kernel() -> None:
    """By master and by kind, and with or without virtual functions."""
    assert codec.attribute_u32(10, 5) in rtnl.dump_links(master=5).body
    assert codec.nest(18, codec.attribute_text(1, "veth")) in rtnl.dump_links(kind="veth").body
    assert codec.attribute_u32(29, 8) in rtnl.dump_links().body
    assert codec.attribute_u32(29, 9) in rtnl.dump_links(vfs=True).body
    assert codec.attribute_u32(29, 9) in rtnl.get_link(index=1, vfs=True).body
    assert codec.attribute_text(53, "a" * 16) in rtnl.get_link(name="a" * 16).body
    assert codec.attribute_text(3, "a" * 15) in rtnl.get_link(name="a" * 15).body


def test_golden_bytes_of_a_veth_and_a_vxlan() -> None:
    """The peer is a link message of its own; a port is in network order."""
    request = rtnl.new_link("veth", "a", peer="b", peer_netns_fd=9, netns_fd=8, up=True)
    assert request.body.hex() == (
        "00000000" "00000000" "01000000" "01000000" "0600030061000000" "08001c0008000000"
        "38001280" "0900010076657468" "00000000" "28000280" "24000180"
        "00000000" "00000000" "00000000" "00000000" "0600030062000000" "08001c0009000000"
    )  # fmt: skip
    request = rtnl.new_link("vxlan", "v", vxlan_id=7, vxlan_port=4789)
    assert codec.nest(2, codec.attribute_u32(1, 7), codec.attribute(15, bytes.fromhex("12b5"))) in request.body
    with pytest.raises(ValueError, match="ipvlan mode 'l4' is unknown; known are: l2, l3, l3s"):
        rtnl.new_link("ipvlan", "x", lower=1, mode="l4")
    assert codec.attribute_u32(1, 4) in rtnl.new_link("macvtap", "x", lower=1, mode="bridge").body


def test_a_route_by_a_next_hop_object() -> None:
    """Where it leads is the object's matter."""
    made = rtnl.add_route(Route(family=AF_INET, destination="10.0.0.0/8", next_hop_id=7), 3)
    found = rtnl.parse_route(made.body)
    assert (found.next_hop_id, found.index, found.gateway) == (7, 0, None)
    assert rtnl.parse_route(rtnl.add_route(Route(family=AF_INET, destination="10.0.0.0/8"), 0).body).index == 0


def test_packet_counters_are_left_out() -> None:
    """Both kinds, wherever they stand; nothing else."""
    before, after = codec.attribute_text(3, "eth0"), codec.attribute_u32(4, 1500)
    counters = codec.attribute(23, bytes(200)) + codec.attribute(7, bytes(96))
    assert links.without_statistics(bytes(16) + before + counters + after) == bytes(16) + before + after
    assert links.without_statistics(bytes(16) + before + counters) == bytes(16) + before
    assert links.without_statistics(bytes(16) + before + after) == bytes(16) + before + after
    assert links.without_statistics(b"") == b""
    with pytest.raises(DecodeError):
        links.without_statistics(bytes(24))


def test_numbers_that_are_cut_are_refused() -> None:
    """In each kind of message."""
    for parse, body in (
        (rtnl.parse_link, bytes(16) + codec.attribute(4, b"\1\2")),
        (rtnl.parse_address, bytes(8) + codec.attribute(1, bytes(4)) + codec.attribute(6, bytes(8))),
        (rtnl.parse_rule, bytes(12) + codec.attribute(20, bytes(4))),
    ):
        with pytest.raises(DecodeError):
            parse(body)


def test_values_that_do_not_fit_are_refused() -> None:
    """Before anything is sent, naming the value."""
    with pytest.raises(ValueError, match="next hop weight 0: 1 to 256 are allowed"):
        rtnl.add_route(Route(family=2, destination="10.0.0.0/8", next_hops=(NextHop(weight=0),)), 1)
    with pytest.raises(ValueError, match="route metric 'mtuu' is unknown; known are lock, mtu"):
        rtnl.add_route(Route(family=2, destination="10.0.0.0/8", metrics={"mtuu": 1}), 1)
    with pytest.raises(ValueError, match="does not fit in 32 bits"):
        rtnl.set_link(1, mtu=1 << 32)
    with pytest.raises(ValueError, match="ipv4 conf 'nonesuch' is unknown"):
        links.ipv4_conf_number("nonesuch")


def test_an_index_in_the_object_counts_without_another() -> None:
    """Objects that were read can be sent as they are."""
    address = Address(family=AF_INET, address="10.0.0.1", prefix_length=8, index=9)
    assert rtnl.parse_address(rtnl.add_address(address, 0).body).index == 9
    route = Route(family=AF_INET, destination="10.0.0.0/8", index=9)
    assert rtnl.parse_route(rtnl.add_route(route, 0).body).index == 9


def test_a_next_hop_without_interface_gets_the_one_given() -> None:
    """Plans carry no index."""
    route = Route(family=AF_INET, destination="10.0.0.0/8", next_hops=(NextHop(), NextHop(index=3)))
    assert [hop.index for hop in rtnl.parse_route(rtnl.add_route(route, 7).body).next_hops] == [7, 3]


def test_flags_of_the_kernel_are_not_sent() -> None:
    """What was read as tentative, permanent or offloaded is not asked for."""
    address = Address(family=AF_INET6, address="::1", prefix_length=128, flags=0xFFFF)
    assert rtnl.parse_address(rtnl.add_address(address, 1).body).flags == routing.IFA_SETTABLE
    route = Route(family=AF_INET, destination="10.0.0.0/8", flags=0xFFFF)
    assert rtnl.parse_route(rtnl.add_route(route, 1).body).flags == 6
    rule = Rule(family=AF_INET, flags=0xFF)
    assert rtnl.parse_rule(rtnl.add_rule(rule).body).flags == 2


def test_what_has_no_field_is_listed() -> None:
    """Encapsulated routes, routes by source, rules by tunnel: their numbers."""
    base = struct.pack("=BBBBBBBBI", 10, 0, 0, 0, 254, 4, 0, 1, 0)
    assert rtnl.parse_route(base + codec.attribute(22, b"x") + codec.attribute_u16(21, 1)).unknown == (21, 22)
    by_source = struct.pack("=BBBBBBBBI", 10, 0, 64, 0, 254, 4, 0, 1, 0)
    assert rtnl.parse_route(by_source + codec.attribute(2, bytes(16))).unknown == (2,)
    hop = struct.pack("=HBBi", 16, 0, 0, 1) + codec.attribute_u16(21, 1)
    assert rtnl.parse_route(base + codec.attribute(9, hop)).next_hops[0].unknown == (21,)
    assert rtnl.parse_rule(base + codec.attribute(12, bytes(8))).unknown == (12,)


def test_a_full_port_mask_is_no_qualifier() -> None:
    """Newer kernels report one beside the ports; another mask is one."""
    base = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 0, 0, 1, 0)
    assert rtnl.parse_rule(base + codec.attribute_u16(28, 0xFFFF)).unknown == ()
    assert rtnl.parse_rule(base + codec.attribute_u16(28, 0xFF00)).unknown == (28,)


def test_an_expiring_route() -> None:
    """Ticks are hundredths of a second; less than one second is still alive; none and negative is for ever."""
    base = struct.pack("=BBBBBBBBI", 10, 0, 0, 0, 254, 4, 0, 1, 0)
    for ticks, seconds in ((1234, 12), (5, 1), (0, 0), (-5, 0)):
        info = struct.pack("=IIiIIIII", 0, 0, ticks, 0, 0, 0, 0, 0)
        assert rtnl.parse_route(base + codec.attribute(12, info)).expires == seconds
    made = rtnl.add_route(Route(family=AF_INET6, destination="::/0", expires=60), 1)
    assert codec.attribute_u32(23, 60) in made.body


def test_addresses_and_neighbours_without_an_address_are_refused() -> None:
    """The kernel never sends such; garbage does."""
    with pytest.raises(DecodeError, match="address message without an address"):
        rtnl.parse_address(bytes(8))
    with pytest.raises(DecodeError, match="neighbour message without an address"):
        rtnl.parse_neighbour(bytes(12))


def test_next_hops_that_are_cut_are_refused() -> None:
    """A length that cannot be must not lead into a circle."""
    base = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 4, 0, 1, 0)
    for length in (0, 7, 99):
        with pytest.raises(DecodeError, match=f"next hop: length {length}"):
            rtnl.parse_route(base + codec.attribute(9, struct.pack("=HBBi", length, 0, 0, 1)))


def test_xdp_programs_are_seen_wherever_they_are() -> None:
    """With one program its number stands on top, with several only below; none is 0."""
    base = bytes(16)
    assert (
        rtnl.parse_link(base + codec.nest(43, codec.attribute_u8(2, 1), codec.attribute_u32(4, 7))).xdp_program_id == 7
    )
    assert (
        rtnl.parse_link(base + codec.nest(43, codec.attribute_u8(2, 4), codec.attribute_u32(6, 9))).xdp_program_id == 9
    )
    assert rtnl.parse_link(base + codec.nest(43, codec.attribute_u8(2, 0))).xdp_program_id == 0


def test_hardware_links_are_read() -> None:
    """Bus, device, permanent address, port, switch, virtual functions, immutability."""
    body = struct.pack("=BxHiII", 0, 1, 5, 0x1003, 0) + b"".join(
        (
            codec.attribute_text(3, "enp1s0f0"),
            codec.attribute(54, bytes.fromhex("02005e100001")),
            codec.attribute_text(56, "0000:01:00.0"),
            codec.attribute_text(57, "pci"),
            codec.attribute_text(38, "p0"),
            codec.attribute(36, bytes.fromhex("02005e10")),
            codec.attribute_u32(21, 4),
            codec.attribute_u8(67, 1),
            codec.attribute_u8(16, 99),
            codec.attribute_u8(33, 0),
        )
    )
    found = rtnl.parse_link(body)
    assert (found.parent_bus, found.parent_device, found.permanent_address) == (
        "pci",
        "0000:01:00.0",
        "02:00:5e:10:00:01",
    )
    assert (found.phys_port_name, found.phys_switch_id, found.num_vfs) == ("p0", "02005e10", 4)
    assert (found.netns_immutable, found.operstate, found.carrier, found.up) == (True, "unknown", False, True)
    assert (found.kind, found.vlan_id, found.vrf_table) == ("", None, None)


def test_kinds_have_their_numbers() -> None:
    """A VLAN its id, a VRF its table, a macvlan its mode; a kind without data has none."""
    assert rtnl.parse_link(rtnl.new_link("vlan", "x", lower=2, vlan_id=7).body).vlan_id == 7
    assert rtnl.parse_link(rtnl.new_link("vrf", "x", vrf_table=1007).body).vrf_table == 1007
    assert rtnl.parse_link(rtnl.new_link("macvlan", "x", lower=2, mode="private").body).macvlan_mode == 1
    found = rtnl.parse_link(rtnl.new_link("macvlan", "x").body)
    assert (found.kind, found.macvlan_mode) == ("macvlan", None)
    for kind in ("vlan", "vrf", "macvlan"):
        body = bytes(16) + codec.nest(18, codec.attribute_text(1, kind), codec.nest(2))
        found = rtnl.parse_link(body)
        assert (found.vlan_id, found.vrf_table, found.macvlan_mode) == (None, None, None)
    assert codec.attribute_u16(1, 2) in rtnl.new_link("ipvlan", "x", lower=2, mode="l3s").body


def test_settings_of_a_younger_or_older_kernel() -> None:
    """More values than names, and fewer, are both read as far as they go; a family that is off has none."""

    def body(count: int) -> bytes:
        values = codec.attribute(1, struct.pack(f"={count}i", *range(count)))
        return bytes(16) + codec.nest(26, codec.nest(2, values))

    assert len(rtnl.parse_link_conf(body(100)).ipv4) == len(links.IPV4_CONF)
    assert rtnl.parse_link_conf(body(2)).ipv4 == {"forwarding": 0, "mc_forwarding": 1}
    assert rtnl.parse_link_conf(body(2)).ipv6 == {}


def test_a_fresh_kernel_without_ipv6_on_the_link() -> None:
    """The generation mode is unknown then."""
    assert rtnl.parse_link(bytes(16) + codec.nest(26, codec.nest(2))).addr_gen_mode is None
    assert rtnl.parse_link(bytes(16) + codec.nest(26, codec.nest(10, codec.attribute_u32(1, 1)))).addr_gen_mode is None


def test_lifetimes_without_end_are_not_sent() -> None:
    """Only then the kernel marks the address permanent by itself."""
    made = rtnl.add_address(Address(family=AF_INET, address="10.0.0.1", prefix_length=8), 1)
    assert 6 not in codec.attributes(made.body, 8)
    assert rtnl.parse_address(made.body).valid_lifetime == FOREVER
