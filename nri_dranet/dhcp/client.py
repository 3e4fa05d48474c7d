"""The DHCP client: get, prolong and give back a lease. Blocking; each call has a socket of its own. Thread-safe.

Source of the facts: RFC 2131 (sections 3.1, 4.1, 4.4). Requests are broadcast, and answers are asked to be, because the
interface has not got the address: neither the kernel nor the interface is touched. So an address can be asked for an
Ethernet address that is not the interface's own: one that it will have in the pod, or that of a child to be made on it.
"""

from __future__ import annotations

import random
import secrets
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

from nri_dranet.dhcp import dialogue, frames, message
from nri_dranet.dhcp.dialogue import Client
from nri_dranet.dhcp.errors import DecodeError, DhcpError, LeaseLostError
from nri_dranet.dhcp.frames import Datagram
from nri_dranet.dhcp.message import ANY, Kind, Message
from nri_dranet.dhcp.packets import PacketSocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nri_dranet.dhcp.lease import Lease
    from nri_dranet.netlink.namespaces import NetNs

T = TypeVar("T")

_EVERYBODY: Final = "255.255.255.255"

_FIRST_WAIT: Final = 1.0
"""Seconds before a message is sent again the first time, doubled each time. RFC 2131 says 4: a pod waits for this."""
_LONGEST_WAIT: Final = 8.0
_JITTER: Final = 0.25

_REQUESTS: Final = 4
"""How often an offer is asked for before another one is looked for."""
_AFTER_NO: Final = 1.0
"""Seconds between a server's no and the next attempt."""
_MOST_WORDS: Final = 3


def now() -> float:
    """Return the time that leases count in (CLOCK_BOOTTIME, seconds): it goes on in suspend, and nobody sets it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def acquire(
    index: int,
    *,
    hardware_address: str,
    client_id: bytes,
    deadline: float,
    netns: NetNs | None = None,
    wanted: str = "",
) -> Lease:
    """Get a lease: DISCOVER, OFFER, REQUEST, ACK, sent again and begun anew until the deadline.

    Args:
        index: the interface, Ethernet and up.
        hardware_address: who asks (``chaddr`` and Ethernet source); need not be the interface's own.
        client_id: option 61: the same one gets the same address again.
        deadline: when to give up (``time.monotonic``).
        netns: the interface's namespace; None: that of the calling thread.
        wanted: the address that is preferred.

    Raises:
        DhcpError: there was none by then; the text says what was asked and what came.
        OSError: ENETDOWN: the interface is down; ENODEV: it is gone; EPERM: CAP_NET_RAW is missing.
    """
    client = Client(secrets.randbits(32), hardware_address, client_id)
    with PacketSocket(index, client.xid, netns) as packets:
        talk = _Talk(packets, client, deadline)
        while True:
            offer = talk.offer(wanted)
            lease = talk.take(offer) if offer is not None else None
            if lease is not None:
                return lease
            if not talk.pause(_AFTER_NO):
                raise DhcpError(talk.story())


def renew(lease: Lease, index: int, *, deadline: float, netns: NetNs | None = None, configured: bool = True) -> Lease:
    """Ask for more time: its server before T2, everybody after it.

    Args:
        lease: what there is.
        index: the interface, up.
        deadline: when to give up this attempt (``time.monotonic``).
        netns: the interface's namespace; None: that of the calling thread.
        configured: the interface has the address, so that it answers ARP for it. Without, everybody is asked, and
            the answer is broadcast.

    Returns:
        The same address with new times; what else the answer says is new too.

    Raises:
        LeaseLostError: a server said no, or the lease has expired: the address must not be used any more.
        DhcpError: no answer came; it may be tried again before the lease expires.
        OSError: the interface is down or gone, or CAP_NET_RAW is missing.
    """
    client = Client(secrets.randbits(32), lease.hardware_address, bytes.fromhex(lease.client_id))
    if now() >= lease.expires:
        raise LeaseLostError(f"the lease of {lease.ip} from DHCP server {lease.server} has expired")
    with PacketSocket(index, client.xid, netns) as packets:
        talk = _Talk(packets, client, deadline)
        renewed = talk.prolong(lease, configured=configured)
    if renewed is None:
        raise DhcpError(talk.story())
    return renewed


def release(lease: Lease, index: int, *, netns: NetNs | None = None) -> None:
    """Give an address back. Servers do not answer, so that nobody knows whether they heard it.

    Args:
        lease: what is given back.
        index: the interface, up.
        netns: the interface's namespace; None: that of the calling thread.

    Raises:
        OSError: the interface is down or gone, or CAP_NET_RAW is missing.
    """
    client = Client(secrets.randbits(32), lease.hardware_address, bytes.fromhex(lease.client_id))
    with PacketSocket(index, client.xid, netns) as packets:
        packets.send(_to_server(client.release(lease), lease))


class _RefusedError(Exception):
    """A server said no to what it had offered."""


class _Talk:
    """One exchange until its deadline, and what is to be told of it."""

    def __init__(self, packets: PacketSocket, client: Client, deadline: float) -> None:
        self._packets = packets
        self._client = client
        self._deadline = deadline
        self._began = time.monotonic()
        self._sent: dict[Kind, int] = {}
        self._words: list[str] = []

    def offer(self, wanted: str) -> Lease | None:
        """Send DISCOVER until an offer comes that can be used; None when none came by the deadline.

        One with another address than the wanted one is taken only when no better one has come until the next turn.
        """
        others: list[Lease] = []

        def judge(answer: Message, by: str) -> Lease | None:
            if answer.kind is not Kind.OFFER:
                return None
            lease = dialogue.lease_of(answer, self._client, now(), server_hardware=by)
            if wanted in {"", lease.ip}:
                return lease
            others.append(lease)
            return None

        asked = self._client.discover(wanted)
        return self._exchange(asked, _to_all, judge, otherwise=lambda: others[0] if others else None)

    def take(self, offer: Lease) -> Lease | None:
        """Send REQUEST for an offer; None when its server says no, or nothing."""
        began = now()

        def judge(answer: Message, by: str) -> Lease | None:
            if answer.kind not in {Kind.ACK, Kind.NAK} or dialogue.server_of(answer) != offer.server:
                return None
            if answer.kind is Kind.NAK:
                raise _RefusedError(_no(answer, offer.ip))
            lease = dialogue.lease_of(answer, self._client, began, server_hardware=by)
            if lease.ip != offer.ip:
                raise DecodeError(f"it gives {lease.ip} after {offer.ip} was offered")
            return lease

        try:
            found = self._exchange(self._client.select(offer), _to_all, judge, tries=_REQUESTS)
        except _RefusedError as error:
            self._say(str(error))
            return None
        if found is None:
            self._say(f"{offer.server} offered {offer.ip} and did not answer the request for it")
        return found

    def prolong(self, lease: Lease, *, configured: bool) -> Lease | None:
        """Send REQUEST for what there is; None when no answer came by the deadline.

        Raises:
            LeaseLostError: a server said no.
        """
        began = now()
        by_server = configured and began < lease.rebinds
        asked = self._client.renew(lease) if configured else self._client.confirm(lease)

        def send(asked: Message) -> Datagram:
            if by_server:
                return _to_server(asked, lease)
            return replace(_to_all(asked), source=lease.ip if configured else ANY)

        def judge(answer: Message, by: str) -> Lease | None:
            if answer.kind not in {Kind.ACK, Kind.NAK}:
                return None
            if by_server and dialogue.server_of(answer) != lease.server:
                return None
            if answer.kind is Kind.NAK:
                raise LeaseLostError(f"DHCP on interface {self._packets.name}: {_no(answer, lease.ip)}")
            found = dialogue.lease_of(answer, self._client, began, server_hardware=by, former=lease)
            if found.ip != lease.ip:
                raise DecodeError(f"it gives {found.ip} where {lease.ip} was to be prolonged")
            return found

        return self._exchange(asked, send, judge)

    def pause(self, seconds: float) -> bool:
        """Wait; False when the deadline comes before."""
        end = time.monotonic() + seconds
        if end >= self._deadline:
            return False
        while self._packets.receive(end) is not None:
            pass
        return True

    def story(self) -> str:
        """Tell what was asked and what came."""
        sent = ", ".join(f"{count} {kind.name}" for kind, count in self._sent.items()) or "nothing"
        came = "; ".join(self._words) or "no answer came"
        seconds = time.monotonic() - self._began
        return (
            f"no DHCP lease on interface {self._packets.name} for {self._client.hardware_address}: "
            f"sent {sent} in {seconds:.1f} s, {came}"
        )

    def _exchange(
        self,
        asked: Message,
        to: Callable[[Message], Datagram],
        judge: Callable[[Message, str], T | None],
        *,
        tries: int = 0,
        otherwise: Callable[[], T | None] = lambda: None,
    ) -> T | None:
        """Send until ``judge`` makes something of an answer; None after the last of ``tries``, or the deadline."""
        for turn, wait in enumerate(_waits()):
            if (tries and turn >= tries) or time.monotonic() >= self._deadline:
                break
            self._sent[asked.kind] = self._sent.get(asked.kind, 0) + 1
            self._packets.send(to(replace(asked, secs=int(time.monotonic() - self._began))))
            end = min(time.monotonic() + wait, self._deadline)
            while (datagram := self._packets.receive(end)) is not None:
                found = self._judged(datagram, judge)
                if found is not None:
                    return found
            spare = otherwise()
            if spare is not None:
                return spare
        return None

    def _judged(self, datagram: Datagram, judge: Callable[[Message, str], T | None]) -> T | None:
        try:
            answer = message.decode(datagram.payload)
            if not self._client.is_answered_by(answer):
                return None
            return judge(answer, datagram.source_hardware)
        except DecodeError as error:
            self._say(f"an answer from {datagram.source} was passed over: {error}")
            return None

    def _say(self, words: str) -> None:
        if words not in self._words and len(self._words) < _MOST_WORDS:
            self._words.append(words)


def _waits() -> Iterator[float]:
    wait = _FIRST_WAIT
    while True:
        yield wait * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - spreads clients, hides nothing
        wait = min(wait * 2, _LONGEST_WAIT)


def _no(answer: Message, ip: str) -> str:
    words = dialogue.refusal_of(answer)
    return f"{dialogue.server_of(answer)} said no to {ip}{f' ({words})' if words else ''}"


def _to_all(asked: Message) -> Datagram:
    return Datagram(
        source_hardware=asked.chaddr,
        destination_hardware=frames.BROADCAST,
        source=ANY,
        destination=_EVERYBODY,
        source_port=frames.CLIENT_PORT,
        destination_port=frames.SERVER_PORT,
        payload=message.encode(asked),
    )


def _to_server(asked: Message, lease: Lease) -> Datagram:
    return replace(
        _to_all(asked),
        destination_hardware=lease.server_hardware_address or frames.BROADCAST,
        source=lease.ip,
        destination=lease.server,
    )
