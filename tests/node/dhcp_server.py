"""A small DHCP server for tests: it runs in a thread, in a namespace, and does on demand what servers do wrong."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from nri_dranet.dhcp import message, options
from nri_dranet.dhcp.message import ANY, Kind, Message, Op

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from nri_dranet.netlink.namespaces import NetNs

_SO_BINDTODEVICE = 25
_PATIENCE = 10.0


@dataclass(slots=True)
class DhcpServer:
    """Answers on one interface, which has ``address`` (CIDR) already.

    Attributes:
        asked: Every message that came, in order.
        given: Which client (option 61 as hex) has which address.
        silent: Kinds of messages that it does not answer.
        refused: It says no (NAK) to every REQUEST, with these words.
        options: More options of its answers.
        spoil: Changes an answer before it is sent.
    """

    netns: NetNs
    interface: str
    address: str = "10.99.0.1/24"
    pool: Iterable[str] = ("10.99.0.100", "10.99.0.101", "10.99.0.102", "10.99.0.103")
    lifetime: int = 3600
    options: dict[int, bytes] = field(default_factory=dict)
    silent: set[Kind] = field(default_factory=set)
    refused: str = ""
    spoil: Callable[[Message], Message] = lambda answer: answer
    asked: list[Message] = field(default_factory=list)
    given: dict[str, str] = field(default_factory=dict)
    released: list[str] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _socket: socket.socket | None = None
    _thread: threading.Thread | None = None
    _stopping: bool = False

    def __enter__(self) -> Self:
        with self.netns.entered():
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            made.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, self.interface.encode())
            made.bind(("", 67))
        made.settimeout(0.1)
        self._socket = made
        self._thread = threading.Thread(target=self._run, args=(made,), name="dhcp-server", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        if self._thread is not None:
            self._thread.join()
        if self._socket is not None:
            self._socket.close()

    @property
    def ip(self) -> str:
        """Its own address."""
        return self.address.partition("/")[0]

    def kinds(self) -> list[Kind]:
        """Return the kinds of what was asked."""
        with self._changed:
            return [each.kind for each in self.asked]

    def wait_for(self, kind: Kind, count: int = 1, *, patience: float = _PATIENCE) -> list[Message]:
        """Wait until so many messages of a kind have come; return them."""
        end = time.monotonic() + patience
        with self._changed:
            while len(found := [each for each in self.asked if each.kind is kind]) < count:
                assert self._changed.wait(end - time.monotonic()), f"no {count} {kind.name}: {self.asked}"
        return found

    def _run(self, made: socket.socket) -> None:
        while not self._stopping:
            try:
                data, _ = made.recvfrom(4096)
            except TimeoutError:
                continue
            asked = message.decode(data)
            answer = self._answer(asked)
            with self._changed:
                self.asked.append(asked)
                self._changed.notify_all()
            if answer is not None:
                self._send(made, asked, answer)

    def _send(self, made: socket.socket, asked: Message, answer: Message) -> None:
        # RFC 2131, section 4.1.
        unicast = asked.ciaddr != ANY and answer.kind is not Kind.NAK
        made.sendto(message.encode(self.spoil(answer)), (asked.ciaddr if unicast else "255.255.255.255", 68))

    def _answer(self, asked: Message) -> Message | None:
        client = asked.options.get(options.CLIENT_ID, b"").hex() or asked.chaddr
        server = asked.options.get(options.SERVER)
        if asked.kind is Kind.RELEASE:
            self.released.append(asked.ciaddr)
            self.given.pop(client, None)
            return None
        if asked.kind in self.silent or (server is not None and options.address(server) != self.ip):
            return None
        if asked.kind is Kind.DISCOVER:
            return self._reply(asked, Kind.OFFER, self._address_for(client, asked))
        if asked.kind is not Kind.REQUEST:
            return None
        wanted = asked.ciaddr
        if options.REQUESTED_ADDRESS in asked.options:
            wanted = options.address(asked.options[options.REQUESTED_ADDRESS])
        if self.refused or wanted != self._address_for(client, asked):
            return self._reply(asked, Kind.NAK, ANY)
        self.given[client] = wanted
        return self._reply(asked, Kind.ACK, wanted)

    def _address_for(self, client: str, asked: Message) -> str:
        if client in self.given:
            return self.given[client]
        free = [each for each in self.pool if each not in self.given.values()]
        if options.REQUESTED_ADDRESS in asked.options:
            wanted = options.address(asked.options[options.REQUESTED_ADDRESS])
            if wanted in free:
                return wanted
        return free[0]

    def _reply(self, asked: Message, kind: Kind, ip: str) -> Message:
        server = {options.SERVER: options.pack_address(self.ip)}
        if kind is Kind.NAK:
            given = server | ({options.ERROR_TEXT: self.refused.encode()} if self.refused else {})
        else:
            mask = ipaddress.IPv4Interface(self.address).netmask.packed
            times = {options.SUBNET_MASK: mask, options.LEASE_TIME: options.pack_number(self.lifetime, 4)}
            given = server | times | self.options
        return Message(
            op=Op.REPLY,
            kind=kind,
            xid=asked.xid,
            flags=asked.flags,
            chaddr=asked.chaddr,
            ciaddr=asked.ciaddr if kind is Kind.ACK else ANY,
            yiaddr=ip,
            options=given,
        )
