"""What is made of answers: times that make sense, routes by their options, data that cannot be read passed over."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nri_dranet.dhcp import dialogue, options
from nri_dranet.dhcp.dialogue import Client
from nri_dranet.dhcp.errors import DecodeError
from nri_dranet.dhcp.lease import FOREVER, Lease, LeaseRoute
from nri_dranet.dhcp.message import ANY, Kind, Message, Op

CLIENT = Client(7, "02:00:00:00:00:01", b"\xff\0\0\0\1id")


def ack(ip: str = "10.0.0.5", /, **more: bytes) -> Message:
    """Return an ACK; options by names of ``options``, empty ones left out."""
    given_options = {"SUBNET_MASK": b"\xff\xff\xff\0", "LEASE_TIME": b"\0\0\x0e\x10", "SERVER": b"\x0a\0\0\1"} | more
    found = {getattr(options, name): value for name, value in given_options.items() if value}
    return Message(op=Op.REPLY, kind=Kind.ACK, xid=7, chaddr=CLIENT.hardware_address, yiaddr=ip, options=found)


def lease(message: Message, former: Lease | None = None) -> Lease:
    """Return what is made of a message."""
    return dialogue.lease_of(message, CLIENT, 1000.0, former=former)


def four(number: int) -> bytes:
    """Return a number in four bytes."""
    return options.pack_number(number, 4)


@pytest.mark.parametrize(
    ("more", "times"),
    [
        ({}, (1800, 3150)),
        ({"RENEWAL_TIME": four(100), "REBINDING_TIME": four(200)}, (100, 200)),
        ({"RENEWAL_TIME": four(300), "REBINDING_TIME": four(200)}, (1800, 3150)),
        ({"RENEWAL_TIME": four(0), "REBINDING_TIME": four(200)}, (1800, 3150)),
        ({"REBINDING_TIME": four(9000)}, (1800, 3150)),
        ({"RENEWAL_TIME": b"\1", "REBINDING_TIME": b"\1\2"}, (1800, 3150)),
        ({"RENEWAL_TIME": four(100)}, (100, 3150)),
    ],
    ids=["none", "given", "crossed", "zero", "too late", "broken", "one"],
)
def test_times_that_make_no_sense_are_those_of_the_rfc(more: dict[str, bytes], times: tuple[int, int]) -> None:
    """Half and seven eighths of the lease time, unless the server says what can be so."""
    found = lease(ack(**more))
    assert (found.renewal, found.rebinding) == times
    assert (found.renews, found.rebinds, found.expires) == (1000 + times[0], 1000 + times[1], 4600)


def test_what_is_left_of_a_lease() -> None:
    """Whole seconds, none below zero; what never ends has no times."""
    found = lease(ack())
    assert (found.left(1000.5), found.left(4600), found.left(9999)) == (3599, 0, 0)
    forever = lease(ack(LEASE_TIME=four(FOREVER), RENEWAL_TIME=four(5)))
    assert (forever.left(9e9), forever.renews) == (FOREVER, float("inf"))


def test_option_121_stands_alone() -> None:
    """RFC 3442: where it is there, 33 and 3 are ignored."""
    found = lease(
        ack(
            CLASSLESS_ROUTES=options.pack_routes({"10.5.0.0/16": "10.0.0.2", "10.6.0.0/16": "224.0.0.1"}),
            ROUTER=b"\x0a\0\0\x09",
            STATIC_ROUTES=b"\x0a\1\0\0\x0a\0\0\x09",
        )
    )
    assert found.routes == (LeaseRoute(destination="10.5.0.0/16", gateway="10.0.0.2"),)


def test_without_121_there_are_33_and_the_first_router() -> None:
    """Static routes first, then the default by the first router that can be one."""
    found = lease(ack(STATIC_ROUTES=b"\xc0\xa8\1\0\x0a\0\0\2", ROUTER=b"\0\0\0\0\x0a\0\0\1\x0a\0\0\2"))
    assert found.routes == (
        LeaseRoute(destination="192.168.1.0/24", gateway="10.0.0.2"),
        LeaseRoute(destination="0.0.0.0/0", gateway="10.0.0.1"),
    )


def test_routes_that_cannot_be_read_make_the_answer_useless() -> None:
    """Without its routes the address would be of no use, and nobody would know why."""
    with pytest.raises(DecodeError, match="option 121"):
        lease(ack(CLASSLESS_ROUTES=b"\x21\0"))


def test_data_that_cannot_be_read_is_passed_over() -> None:
    """Names and servers that are none do not keep a pod from its address."""
    found = lease(ack(DNS_SERVERS=b"\x0a", DOMAIN=b"a b", SEARCH_DOMAINS=b"\xc0\0", MTU=b"\0\1"))
    assert (found.dns_servers, found.domain, found.search_domains, found.mtu) == ((), "", (), None)


def test_a_prolonged_lease_keeps_what_is_not_said_again() -> None:
    """Servers may answer a renewal with times alone."""
    first = lease(
        ack(ROUTER=b"\x0a\0\0\1", DNS_SERVERS=b"\x0a\0\0\x35", DOMAIN=b"example.org", SUBNET_MASK=b"\xff\xff\0\0")
    )
    again = lease(ack(SUBNET_MASK=b""), former=replace(first, obtained=0))
    assert again == first


@pytest.mark.parametrize("ip", [ANY, "0.1.2.3", "127.0.0.1", "224.0.0.1", "255.255.255.255", "10.0.0.0", "10.0.0.255"])
def test_what_no_interface_can_have_is_refused(ip: str) -> None:
    """Unspecified, loopback, multicast, reserved, the network's own and its broadcast address."""
    with pytest.raises(DecodeError, match=ip.replace(".", r"\.")):
        lease(ack(ip))


@pytest.mark.parametrize("ip", ["10.0.0.4", "10.0.0.5"])
def test_point_to_point_networks_use_both_addresses(ip: str) -> None:
    """RFC 3021: a /31 has neither network nor broadcast address."""
    assert lease(ack(ip, SUBNET_MASK=b"\xff\xff\xff\xfe")).address == f"{ip}/31"


@given(st.dictionaries(st.integers(1, 254), st.binary(max_size=60), max_size=8), st.ip_addresses(v=4).map(str))
def test_hostile_answers_are_a_lease_or_refused(more: dict[int, bytes], ip: str) -> None:
    """No options make anything else, and what comes out can be told."""
    message = ack(ip)
    message = replace(message, options=message.options | more)
    try:
        found = lease(message)
    except DecodeError:
        return
    assert 0 < found.renewal <= found.rebinding <= found.lifetime
    assert dialogue.refusal_of(message).isprintable()


def test_an_answer_is_for_who_asked() -> None:
    """Direction, xid, hardware address, and the client identifier where the server sends it back."""
    assert CLIENT.is_answered_by(ack())
    for wrong in (
        replace(ack(), op=Op.REQUEST),
        replace(ack(), xid=8),
        replace(ack(), chaddr="02:00:00:00:00:02"),
        replace(ack(), options={options.CLIENT_ID: b"other"}),
    ):
        assert not CLIENT.is_answered_by(wrong)
