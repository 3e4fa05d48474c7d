"""What a client says and what it makes of the answers (RFC 2131, section 4.4). Pure."""

from __future__ import annotations

import contextlib
import ipaddress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.dhcp import options
from nri_dranet.dhcp.errors import DecodeError
from nri_dranet.dhcp.lease import FOREVER, Lease, LeaseRoute
from nri_dranet.dhcp.message import BROADCAST_FLAG, Kind, Message, Op

if TYPE_CHECKING:
    from collections.abc import Callable

WISHES: Final = bytes(
    (
        options.SUBNET_MASK,
        # RFC 3442: before 33 and 3.
        options.CLASSLESS_ROUTES,
        options.ROUTER,
        options.STATIC_ROUTES,
        options.DNS_SERVERS,
        options.DOMAIN,
        options.SEARCH_DOMAINS,
        options.MTU,
        options.LEASE_TIME,
        options.SERVER,
        options.RENEWAL_TIME,
        options.REBINDING_TIME,
    )
)
"""Option 55: what the client wants to know."""

_MAX_SIZE: Final = 1472
"""Option 57 (bytes): what one Ethernet frame carries behind its IPv4 and UDP headers."""

_LEAST_MTU: Final = 68


@dataclass(frozen=True, slots=True)
class Client:
    """A client with its ``xid``, which ties answers to what it asks; ``client_id`` is option 61 as it is sent."""

    xid: int
    hardware_address: str
    client_id: bytes

    def discover(self, wanted: str = "") -> Message:
        """Ask whoever listens for an address, preferably a certain one."""
        asked = {options.REQUESTED_ADDRESS: options.pack_address(wanted)} if wanted else {}
        return self._message(Kind.DISCOVER, asked)

    def select(self, offer: Lease) -> Message:
        """Take an offer."""
        return self._message(
            Kind.REQUEST,
            {
                options.REQUESTED_ADDRESS: options.pack_address(offer.ip),
                options.SERVER: options.pack_address(offer.server),
            },
        )

    def confirm(self, lease: Lease) -> Message:
        """Ask for more time where the interface has not got the address, so that answers must be broadcast.

        This is what INIT-REBOOT is for: the server answers yes, which counts anew, or no.
        """
        return self._message(Kind.REQUEST, {options.REQUESTED_ADDRESS: options.pack_address(lease.ip)})

    def renew(self, lease: Lease) -> Message:
        """Ask for more time where the interface has the address (RENEWING, REBINDING): answers are unicast to it."""
        return replace(self._message(Kind.REQUEST, {}), ciaddr=lease.ip, flags=0)

    def release(self, lease: Lease) -> Message:
        """Give an address back."""
        given = {options.SERVER: options.pack_address(lease.server), options.CLIENT_ID: self.client_id}
        return Message(
            op=Op.REQUEST,
            kind=Kind.RELEASE,
            xid=self.xid,
            chaddr=self.hardware_address,
            ciaddr=lease.ip,
            options=given,
        )

    def is_answered_by(self, message: Message) -> bool:
        """Tell whether a message is for this client. Servers may send the client identifier back (RFC 6842)."""
        return (
            message.op is Op.REPLY
            and message.xid == self.xid
            and message.chaddr == self.hardware_address
            and message.options.get(options.CLIENT_ID, self.client_id) == self.client_id
        )

    def _message(self, kind: Kind, more: dict[int, bytes]) -> Message:
        return Message(
            op=Op.REQUEST,
            kind=kind,
            xid=self.xid,
            chaddr=self.hardware_address,
            flags=BROADCAST_FLAG,
            options={
                options.CLIENT_ID: self.client_id,
                **more,
                options.MAX_SIZE: options.pack_number(_MAX_SIZE, 2),
                options.PARAMETERS: WISHES,
            },
        )


def server_of(message: Message) -> str:
    """Return the server that a message names (option 54).

    Raises:
        DecodeError: it names none.
    """
    if options.SERVER not in message.options:
        raise DecodeError("it names no server (option 54)")
    return options.address(message.options[options.SERVER])


def refusal_of(message: Message) -> str:
    """Return the server's words for its no (option 56), "" where it gave none."""
    return options.text(message.options.get(options.ERROR_TEXT, b""))


def lease_of(
    message: Message, client: Client, obtained: float, *, server_hardware: str = "", former: Lease | None = None
) -> Lease:
    """Return the lease that an OFFER or ACK gives.

    Args:
        message: the answer.
        client: who asked.
        obtained: when that was (CLOCK_BOOTTIME, seconds).
        server_hardware: the Ethernet address that the answer came from.
        former: the lease that it prolongs: what the answer does not say stays as it was.

    Raises:
        DecodeError: it gives none that can be used; the text says why. Options that are not needed and cannot be read
            are passed over.
    """
    found = message.options
    ip = message.yiaddr
    if not _usable(ip):
        raise DecodeError(f"{ip} cannot be an interface's address")
    if options.SUBNET_MASK in found:
        length = options.prefix_length(found[options.SUBNET_MASK])
    elif former is not None:
        length = int(former.address.partition("/")[2])
    else:
        length = options.class_prefix_length(ip)
    network = ipaddress.IPv4Network(f"{ip}/{length}", strict=False)
    if length < 31 and ip in {str(network.network_address), str(network.broadcast_address)}:
        raise DecodeError(f"{ip}/{length} is the address of the network, or its broadcast address")
    if options.LEASE_TIME not in found:
        raise DecodeError("it gives no lease time (option 51)")
    lifetime = options.number(found[options.LEASE_TIME], 4)
    if not lifetime:
        raise DecodeError("it gives a lease time of 0")
    renewal, rebinding = _times(found, lifetime)
    lease = Lease(
        address=f"{ip}/{length}",
        server=server_of(message),
        obtained=obtained,
        lifetime=lifetime,
        renewal=renewal,
        rebinding=rebinding,
        hardware_address=client.hardware_address,
        client_id=client.client_id.hex(),
        server_hardware_address=server_hardware,
    )
    if former is not None:
        lease = replace(
            lease,
            routes=former.routes,
            dns_servers=former.dns_servers,
            domain=former.domain,
            search_domains=former.search_domains,
            mtu=former.mtu,
        )
    return replace(lease, **_extras(found))


def _usable(ip: str) -> bool:
    address = ipaddress.IPv4Address(ip)
    first = int(address) >> 24
    return 0 < first < 224 and not address.is_loopback


def _times(found: dict[int, bytes], lifetime: int) -> tuple[int, int]:
    """Return T1 and T2: the server's where they make sense, else half and seven eighths (RFC 2131, section 4.4.5)."""
    if lifetime == FOREVER:
        return FOREVER, FOREVER
    renewal, rebinding = lifetime // 2, lifetime * 7 // 8
    with contextlib.suppress(KeyError, DecodeError):
        rebinding = options.number(found[options.REBINDING_TIME], 4)
    with contextlib.suppress(KeyError, DecodeError):
        renewal = options.number(found[options.RENEWAL_TIME], 4)
    if 0 < renewal <= rebinding <= lifetime:
        return renewal, rebinding
    return lifetime // 2, lifetime * 7 // 8


def _extras(found: dict[int, bytes]) -> dict[str, Any]:
    """Return what the answer says beside address and times, by the names of ``Lease``; nothing for what it says not."""
    extras: dict[str, Any] = {}
    routes = _routes(found)
    if routes is not None:
        extras["routes"] = routes
    readers: dict[str, tuple[int, Callable[[bytes], Any]]] = {
        "dns_servers": (options.DNS_SERVERS, options.addresses),
        "domain": (options.DOMAIN, options.domain),
        "search_domains": (options.SEARCH_DOMAINS, options.search_domains),
        "mtu": (options.MTU, _mtu),
    }
    for name, (code, read) in readers.items():
        if code in found:
            try:
                extras[name] = read(found[code])
            except DecodeError:
                continue
    return extras


def _mtu(value: bytes) -> int:
    mtu = options.number(value, 2)
    if mtu < _LEAST_MTU:
        raise DecodeError(f"the MTU {mtu} is below {_LEAST_MTU}")
    return mtu


def _routes(found: dict[int, bytes]) -> tuple[LeaseRoute, ...] | None:
    """Return the routes; None where the answer has none.

    Raises:
        DecodeError: there are some that cannot be read: without them the address would be of no use.
    """
    if options.CLASSLESS_ROUTES in found:
        pairs = options.classless_routes(found[options.CLASSLESS_ROUTES])
        return tuple(LeaseRoute(destination=to, gateway=via) for to, via in pairs if via is None or _usable(via))
    if options.STATIC_ROUTES not in found and options.ROUTER not in found:
        return None
    static = options.static_routes(found.get(options.STATIC_ROUTES, b""))
    routes = [LeaseRoute(destination=to, gateway=via) for to, via in static if _usable(via)]
    if options.ROUTER in found:
        gateways = [each for each in options.addresses(found[options.ROUTER]) if _usable(each)]
        routes += [LeaseRoute(destination="0.0.0.0/0", gateway=each) for each in gateways[:1]]
    return tuple(routes)
