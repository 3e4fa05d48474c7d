"""The client on a real wire, against a small server of our own that misbehaves on demand."""

from __future__ import annotations

import errno
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from nri_dranet.dhcp import client, options
from nri_dranet.dhcp.errors import DhcpError, LeaseLostError
from nri_dranet.dhcp.lease import FOREVER, LeaseRoute
from nri_dranet.dhcp.link import running
from nri_dranet.dhcp.message import ANY, BROADCAST_FLAG, Kind, Message
from nri_dranet.netlink import rtnl
from nri_dranet.netlink.codec import AF_INET
from nri_dranet.netlink.model import Address
from tests.node.dhcp_server import DhcpServer

if TYPE_CHECKING:
    from nri_dranet.dhcp.lease import Lease
    from tests.node.dhcp.conftest import Wire

ID = b"\xff\0\0\0\1client"
OTHER_MAC = "02:00:00:00:00:77"


def acquire(wire: Wire, seconds: float = 20, mac: str = "", wanted: str = "", client_id: bytes = ID) -> Lease:
    """Get a lease on the client's interface."""
    return client.acquire(
        wire.index,
        hardware_address=mac or wire.hardware_address,
        client_id=client_id,
        deadline=time.monotonic() + seconds,
        netns=wire.client,
        wanted=wanted,
    )


def configure(wire: Wire, lease: Lease) -> None:
    """Give the interface its address."""
    ip, _, length = lease.address.partition("/")
    with wire.rtnl() as socket:
        socket.request(rtnl.add_address(Address(family=AF_INET, address=ip, prefix_length=int(length)), wire.index))


def renew(wire: Wire, lease: Lease, seconds: float = 10, *, configured: bool = True) -> Lease:
    """Ask for more time."""
    return client.renew(
        lease, wire.index, deadline=time.monotonic() + seconds, netns=wire.client, configured=configured
    )


def test_a_lease_has_all_that_the_server_gave(wire: Wire) -> None:
    """Address, times, routes, names and MTU come through, and the interface was not touched."""
    given = {
        options.CLASSLESS_ROUTES: options.pack_routes({"0.0.0.0/0": "10.99.0.1", "10.5.0.0/16": "10.99.0.2"}),
        options.ROUTER: options.pack_address("10.99.0.9"),
        options.DNS_SERVERS: options.pack_address("10.99.0.53"),
        options.DOMAIN: b"example.org\0",
        options.SEARCH_DOMAINS: b"\1a\7example\3org\0\1b\xc0\2",
        options.MTU: b"\x05\xdc",
    }
    before = client.now()
    with DhcpServer(wire.server, "s0", options=given) as server:
        lease = acquire(wire)
    assert before <= lease.obtained <= client.now()
    assert replace(lease, obtained=0, server_hardware_address="") == replace(
        lease,
        obtained=0,
        address="10.99.0.100/24",
        server="10.99.0.1",
        lifetime=3600,
        renewal=1800,
        rebinding=3150,
        hardware_address=wire.hardware_address,
        client_id=ID.hex(),
        server_hardware_address="",
        routes=(
            LeaseRoute(destination="0.0.0.0/0", gateway="10.99.0.1"),
            LeaseRoute(destination="10.5.0.0/16", gateway="10.99.0.2"),
        ),
        dns_servers=("10.99.0.53",),
        domain="example.org",
        search_domains=("a.example.org", "b.example.org"),
        mtu=1500,
    )
    assert server.kinds() == [Kind.DISCOVER, Kind.REQUEST]
    assert all(asked.flags == BROADCAST_FLAG for asked in server.asked)
    assert all(asked.options[options.CLIENT_ID] == ID for asked in server.asked)
    with wire.rtnl() as socket:
        assert not [each for each in socket.addresses(wire.index) if each.family == AF_INET]


def test_it_asks_for_an_ethernet_address_that_the_interface_has_not(wire: Wire) -> None:
    """The server sees the address that the interface will have in the pod."""
    with DhcpServer(wire.server, "s0") as server:
        lease = acquire(wire, mac=OTHER_MAC)
    assert lease.hardware_address == OTHER_MAC
    assert {asked.chaddr for asked in server.asked} == {OTHER_MAC}


def test_the_same_client_gets_the_same_address(wire: Wire) -> None:
    """Asking again with the same identifier takes no second address; another one gets another."""
    with DhcpServer(wire.server, "s0"):
        assert acquire(wire).address == acquire(wire).address
        assert acquire(wire, client_id=b"\xff\0\0\0\2other").address == "10.99.0.101/24"


def test_a_wanted_address_is_asked_for(wire: Wire) -> None:
    """The server gets the wish, and the client has it fulfilled."""
    with DhcpServer(wire.server, "s0") as server:
        assert acquire(wire, wanted="10.99.0.102").ip == "10.99.0.102"
    assert server.asked[0].options[options.REQUESTED_ADDRESS] == options.pack_address("10.99.0.102")


def test_another_address_than_the_wanted_one_is_better_than_none(wire: Wire) -> None:
    """Where nobody offers the wanted address the client takes what there is."""
    with DhcpServer(wire.server, "s0") as server:
        assert acquire(wire, wanted="10.99.0.200").ip == "10.99.0.100"
    assert server.kinds() == [Kind.DISCOVER, Kind.REQUEST]


def test_silence_is_told_in_words(wire: Wire) -> None:
    """Who gets no answer learns what was asked, where, and for whom."""
    with (
        DhcpServer(wire.server, "s0", silent={Kind.DISCOVER}) as server,
        pytest.raises(DhcpError, match=rf"interface c0 for {wire.hardware_address}: sent 2 DISCOVER .* no answer came"),
    ):
        acquire(wire, seconds=2)
    assert server.kinds() == [Kind.DISCOVER, Kind.DISCOVER]


def test_a_lost_message_is_sent_again(wire: Wire) -> None:
    """A server that speaks only at the second DISCOVER gets on with the client; ``secs`` says how long it tries."""
    with DhcpServer(wire.server, "s0") as server:
        seen: list[Message] = []

        def spoil(answer: Message) -> Message:
            seen.append(answer)
            return replace(answer, xid=answer.xid ^ 1) if len(seen) == 1 else answer

        server.spoil = spoil
        assert acquire(wire).ip == "10.99.0.100"
    assert server.kinds() == [Kind.DISCOVER, Kind.DISCOVER, Kind.REQUEST]


def test_an_offer_without_its_ack_is_told(wire: Wire) -> None:
    """A server that offers and then is silent is named."""
    with (
        DhcpServer(wire.server, "s0", silent={Kind.REQUEST}),
        pytest.raises(DhcpError, match=r"10\.99\.0\.1 offered 10\.99\.0\.100 and did not answer"),
    ):
        acquire(wire, seconds=2)


def test_a_no_begins_anew_and_is_told_with_the_servers_words(wire: Wire) -> None:
    """After a NAK the client asks anew, until its deadline; the text has the reason that the server gave."""
    with (
        DhcpServer(wire.server, "s0", refused="not today\n") as server,
        pytest.raises(DhcpError, match=r"10\.99\.0\.1 said no to 10\.99\.0\.100 \(not today\?\)"),
    ):
        acquire(wire, seconds=2.5)
    assert server.kinds()[:4] == [Kind.DISCOVER, Kind.REQUEST, Kind.DISCOVER, Kind.REQUEST]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda answer: replace(answer, yiaddr="224.0.0.1"), "224.0.0.1 cannot be an interface's address"),
        (lambda answer: replace(answer, yiaddr="10.99.0.255"), "broadcast address"),
        (lambda answer: replace(answer, options=answer.options | {options.SUBNET_MASK: b"\xff\0\xff\0"}), "no subnet"),
        (lambda answer: replace(answer, options=answer.options | {options.LEASE_TIME: bytes(4)}), "lease time of 0"),
        (lambda answer: replace(answer, options={1: b"\xff\xff\xff\0", 51: b"\0\0\1\0"}), "names no server"),
    ],
    ids=["multicast", "broadcast", "mask", "time", "server"],
)
def test_an_offer_that_cannot_be_used_is_passed_over(wire: Wire, spoil: object, words: str) -> None:
    """What a server offers is judged before it is asked for; the text says why it was not taken."""
    with DhcpServer(wire.server, "s0", spoil=spoil) as server, pytest.raises(DhcpError, match=words):  # type: ignore[arg-type]
        acquire(wire, seconds=0.5)
    assert Kind.REQUEST not in server.kinds()


def test_answers_to_others_are_not_taken(wire: Wire) -> None:
    """Another chaddr, or another client identifier, is another client's answer."""
    for spoil in (
        lambda answer: replace(answer, chaddr=OTHER_MAC),
        lambda answer: replace(answer, options=answer.options | {options.CLIENT_ID: b"\xff\0\0\0\3else"}),
    ):
        with DhcpServer(wire.server, "s0", spoil=spoil), pytest.raises(DhcpError, match="no answer came"):
            acquire(wire, seconds=0.5)


def test_without_a_mask_the_class_decides(wire: Wire) -> None:
    """A server that says no mask gives an address of its class (RFC 2131)."""

    def spoil(answer: Message) -> Message:
        return replace(answer, options={k: v for k, v in answer.options.items() if k != options.SUBNET_MASK})

    with DhcpServer(wire.server, "s0", spoil=spoil):
        assert acquire(wire).address == "10.99.0.100/8"


def test_a_lease_can_be_for_ever(wire: Wire) -> None:
    """The time without an end needs no renewal."""
    with DhcpServer(wire.server, "s0", lifetime=FOREVER):
        lease = acquire(wire)
    assert lease.expires == lease.renews == float("inf")
    assert lease.left(client.now()) == FOREVER


def test_its_server_prolongs_by_unicast(wire: Wire) -> None:
    """Before T2 the server alone is asked, from the address; what it says anew is taken."""
    with DhcpServer(wire.server, "s0") as server:
        lease = acquire(wire)
        configure(wire, lease)
        server.options[options.DNS_SERVERS] = options.pack_address("10.99.0.54")
        again = renew(wire, lease)
    asked = server.asked[-1]
    assert (asked.ciaddr, asked.flags) == ("10.99.0.100", 0)
    assert not asked.options.keys() & {options.SERVER, options.REQUESTED_ADDRESS}
    assert again.address == lease.address
    assert again.obtained > lease.obtained
    assert again.dns_servers == ("10.99.0.54",)


def test_everybody_is_asked_after_t2(wire: Wire) -> None:
    """A server that took over from another one prolongs its lease."""
    with DhcpServer(wire.server, "s0") as server:
        lease = replace(acquire(wire), obtained=client.now() - 3200, server="10.99.0.77")
        configure(wire, lease)
        again = renew(wire, lease)
    assert server.asked[-1].ciaddr == "10.99.0.100"
    assert again.server == "10.99.0.1"


def test_an_interface_without_the_address_prolongs_by_broadcast(wire: Wire) -> None:
    """On the host the address is not configured: nobody would answer ARP for it."""
    with DhcpServer(wire.server, "s0") as server:
        lease = acquire(wire)
        again = renew(wire, lease, configured=False)
    assert (server.asked[-1].ciaddr, server.asked[-1].flags) == (ANY, BROADCAST_FLAG)
    assert again.obtained > lease.obtained


def test_a_no_ends_a_lease(wire: Wire) -> None:
    """After a NAK the address must not be used any more."""
    with DhcpServer(wire.server, "s0") as server:
        lease = acquire(wire)
        configure(wire, lease)
        server.refused = "moved"
        with pytest.raises(LeaseLostError, match=r"10\.99\.0\.1 said no to 10\.99\.0\.100 \(moved\)"):
            renew(wire, lease)


def test_an_expired_lease_is_not_asked_for(wire: Wire) -> None:
    """What has expired is lost without a message."""
    with DhcpServer(wire.server, "s0") as server:
        lease = replace(acquire(wire), obtained=client.now() - 3600)
        with pytest.raises(LeaseLostError, match="has expired"):
            renew(wire, lease)
    assert server.kinds() == [Kind.DISCOVER, Kind.REQUEST]


def test_silence_at_renewal_is_no_loss(wire: Wire) -> None:
    """A server that does not answer is asked again later; the lease runs on."""
    with DhcpServer(wire.server, "s0") as server:
        lease = acquire(wire)
        configure(wire, lease)
        server.silent.add(Kind.REQUEST)
        with pytest.raises(DhcpError, match=r"sent 1 REQUEST .* no answer came") as caught:
            renew(wire, lease, seconds=0.5)
    assert not isinstance(caught.value, LeaseLostError)


def test_an_address_is_given_back(wire: Wire) -> None:
    """The server hears the release, by unicast, without the interface having the address."""
    with DhcpServer(wire.server, "s0") as server:
        lease = acquire(wire)
        client.release(lease, wire.index, netns=wire.client)
        (asked,) = server.wait_for(Kind.RELEASE)
    assert (asked.ciaddr, asked.chaddr) == ("10.99.0.100", wire.hardware_address)
    assert asked.options[options.SERVER] == options.pack_address("10.99.0.1")
    assert server.released == ["10.99.0.100"]


def test_an_interface_that_is_down_is_an_error_at_once(wire: Wire) -> None:
    """Nobody waits for answers that cannot come."""
    with wire.rtnl() as socket:
        socket.request(rtnl.set_link(wire.index, up=False))
    with pytest.raises(OSError, match="down") as caught:
        acquire(wire)
    assert caught.value.errno == errno.ENETDOWN


def test_an_interface_that_is_not_there_is_an_error(wire: Wire) -> None:
    """The kernel's word for it comes through."""
    with pytest.raises(OSError, match="No such device") as caught:
        client.acquire(9999, hardware_address=OTHER_MAC, client_id=ID, deadline=time.monotonic() + 1, netns=wire.client)
    assert caught.value.errno == errno.ENODEV


def test_only_ethernet_is_asked(wire: Wire) -> None:
    """The loopback interface has no DHCP."""
    with pytest.raises(DhcpError, match="interface lo is not Ethernet"):
        client.acquire(1, hardware_address=OTHER_MAC, client_id=ID, deadline=time.monotonic() + 1, netns=wire.client)


def test_a_port_of_a_bridge_gets_its_answers(wire: Wire) -> None:
    """The bridge takes all frames of its port; the client sees them first."""
    with wire.rtnl() as socket:
        socket.request(rtnl.new_link("bridge", "b0"))
        bridge = socket.link(name="b0")
        assert bridge is not None
        socket.request(rtnl.set_link(bridge.index, up=True))
        socket.request(rtnl.set_link(wire.index, master=bridge.index))
    with running(wire.index, deadline=time.monotonic() + 10, netns=wire.client):
        pass
    with DhcpServer(wire.server, "s0"):
        assert acquire(wire).ip == "10.99.0.100"
