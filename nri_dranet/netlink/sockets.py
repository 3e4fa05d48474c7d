"""rtnetlink sockets: ask and change (``RtnlSocket``), listen (``RtnlMonitor``)."""

from __future__ import annotations

import errno
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nri_dranet.netlink import codec, rtnl
from nri_dranet.netlink.links import RTM_NEWLINK, without_statistics
from nri_dranet.netlink.model import Address, Link, Neighbour, Route, Rule
from nri_dranet.netlink.routing import NUD_PERMANENT
from nri_dranet.netlink.rtnl import Event, NamespaceId, Object
from nri_dranet.netlink.transport import DEFAULT_TIMEOUT, KernelSocket, open_socket

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from nri_dranet.netlink.codec import NetlinkError, Request
    from nri_dranet.netlink.links import LinkConf
    from nri_dranet.netlink.namespaces import NetNs
    from nri_dranet.netlink.transport import Answer

__all__ = ["GROUPS", "Event", "EventsLostError", "LinkCache", "Reply", "RtnlMonitor", "RtnlSocket"]

NETLINK_ROUTE: Final = 0

# RTNLGRP_* of linux/rtnetlink.h.
GROUPS: Final = {
    "link": 1,
    "neigh": 3,
    "ipv4-address": 5,
    "ipv4-route": 7,
    "ipv4-rule": 8,
    "ipv6-address": 9,
    "ipv6-route": 11,
    "ipv6-rule": 19,
    "nsid": 28,
}

# A link takes about 20 µs to parse: a slice keeps the GIL for less than a millisecond.
_SLICE: Final = 32

# Datagrams that one ``receive`` reads at most, so that a storm cannot hold the caller for ever.
_EVENTS_AT_ONCE: Final = 256


class EventsLostError(Exception):
    """The kernel dropped events because this socket was not read fast enough: look at everything again."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The outcome of one request of a batch: the kernel's error, or None, and the objects that it sent."""

    label: str
    error: NetlinkError | None
    objects: tuple[Object, ...] = ()


class LinkCache:
    """The links of the last dump by their bytes, almost a kilobyte each. One dump at a time uses it."""

    __slots__ = ("links",)

    def __init__(self) -> None:
        self.links: dict[bytes, Link] = {}


class RtnlSocket(KernelSocket):
    """Ask for and change links, addresses, routes, rules and neighbours of one namespace. Threads may share it.

    Args:
        netns: the namespace; None: the one in which the calling thread is.
        strict: the kernel checks requests fully, and filters dumps by interface itself.

    Raises:
        OSError: the socket cannot be made.
    """

    def __init__(self, netns: NetNs | None = None, *, strict: bool = True) -> None:
        super().__init__(NETLINK_ROUTE, netns, strict=strict)

    def request(self, request: Request, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Carry out one request.

        Raises:
            NetlinkError: the kernel refused it.
            TimeoutError: there was no answer within ``timeout`` seconds.
        """
        error = self.exchange((request,), timeout=timeout)[0].error
        if error:
            raise error

    def batch(self, requests: Sequence[Request], *, timeout: float = DEFAULT_TIMEOUT) -> list[Reply]:
        """Carry out requests with one call to the kernel, in order; one that fails does not stop the next.

        A dump may stand last. Replies are in the order of the requests.

        Raises:
            ValueError: a dump stands before the last place.
            NetlinkError: the call as a whole failed.
            TimeoutError: an answer did not come within ``timeout`` seconds.
        """
        return [
            Reply(answer.request.label, answer.error, tuple(_objects(answer)))
            for answer in self.exchange(requests, timeout=timeout)
        ]

    def _ask(self, request: Request) -> Answer:
        answer = self.exchange((request,))[0]
        if answer.error:
            raise answer.error
        return answer

    def links(self, cache: LinkCache | None = None) -> list[Link]:
        """List all links (as ``iter_links``; raises NetlinkError)."""
        return list(self.iter_links(cache))

    def iter_links(self, cache: LinkCache | None = None) -> Iterator[Link]:
        """List all links; the dump is complete before the first is given, and parsed in slices that let go of the GIL.

        With a cache, a link about which the kernel says the same as in the last dump, packet counters aside, is the
        same object, and costs a fifth.

        Raises:
            NetlinkError: the kernel refused, or was interrupted too often (EINTR).
        """
        known = cache.links if cache else {}
        fresh: dict[bytes, Link] = {}
        parsed = 0
        for message in self._ask(rtnl.dump_links()).messages:
            if message.type != RTM_NEWLINK:
                continue
            key = without_statistics(message.body) if cache else b""
            link = known.get(key) if cache else None
            if link is None:
                parsed += 1
                if parsed % _SLICE == 0:
                    time.sleep(0)
                link = rtnl.parse_link(message.body)
            if cache:
                fresh[key] = link
            yield link
        if cache:
            cache.links = fresh

    def link(self, *, index: int = 0, name: str = "") -> Link | None:
        """Give one link, by index or name (an alternative name too), or None if there is none.

        Raises:
            NetlinkError: the kernel refused for another reason.
        """
        found = self._link_messages(index, name)
        return rtnl.parse_link(found[0].body) if found else None

    def conf(self, index: int) -> LinkConf | None:
        """Give the per-interface settings of a link, or None if there is none (raises NetlinkError)."""
        found = self._link_messages(index, "")
        return rtnl.parse_link_conf(found[0].body) if found else None

    def link_and_conf(self, index: int) -> tuple[Link, LinkConf] | None:
        """Give a link with its per-interface settings by one call, or None if there is none (raises NetlinkError)."""
        found = self._link_messages(index, "")
        return (rtnl.parse_link(found[0].body), rtnl.parse_link_conf(found[0].body)) if found else None

    def _link_messages(self, index: int, name: str) -> list[codec.Message]:
        answer = self.exchange((rtnl.get_link(index=index, name=name),))[0]
        if answer.error:
            if answer.error.errno == errno.ENODEV:
                return []
            raise answer.error
        return answer.messages

    def addresses(self, index: int = 0) -> list[Address]:
        """List the addresses of a link, or of all (raises NetlinkError, ENODEV for a link that is not there)."""
        return [found for found in _objects(self._ask(rtnl.dump_addresses(index))) if isinstance(found, Address)]

    def routes(self, index: int = 0, *, table: int = 0) -> list[Route]:
        """List the routes over a link (0: all), of a table (0: all).

        Raises:
            NetlinkError: ENODEV for a link that is not there.
        """
        answer = self.exchange((rtnl.dump_routes(index, table=table),))[0]
        # The kernel says ENOENT for a table that nobody made yet.
        if answer.error and not (table and answer.error.errno == errno.ENOENT):
            raise answer.error
        return [found for found in _objects(answer) if isinstance(found, Route)]

    def rules(self) -> list[Rule]:
        """List the policy rules of both families (raises NetlinkError)."""
        return [found for found in _objects(self._ask(rtnl.dump_rules())) if isinstance(found, Rule)]

    def neighbours(self, index: int = 0, *, permanent_only: bool = False) -> list[Neighbour]:
        """List the neighbours on a link, or on all (raises NetlinkError, ENODEV for a link that is not there)."""
        return [
            found
            for found in _objects(self._ask(rtnl.dump_neighbours(index)))
            if isinstance(found, Neighbour) and (not permanent_only or found.state & NUD_PERMANENT)
        ]

    def nsid(self, netns_fd: int) -> int:
        """Give the number by which this namespace knows another one; -1: by none (raises NetlinkError)."""
        for found in _objects(self._ask(rtnl.get_nsid(netns_fd))):
            if isinstance(found, NamespaceId):
                return found.id
        return -1


def _objects(answer: Answer) -> Iterator[Object]:
    for message in answer.messages:
        found = rtnl.parse_object(message)
        if found is not None:
            yield found


class RtnlMonitor:
    """Events of one namespace: a socket for epoll. One thread reads it.

    Args:
        netns: the namespace; None: the one in which the calling thread is. It is kept alive while this is open.
        groups: what to hear, names of ``GROUPS``.

    Raises:
        OSError: the socket cannot be made.
        ValueError: a group is unknown.
    """

    def __init__(
        self, netns: NetNs | None = None, *, groups: Sequence[str] = ("link", "ipv4-address", "ipv6-address")
    ) -> None:
        unknown = [name for name in groups if name not in GROUPS]
        if unknown or not groups:
            wrong = ", ".join(unknown) or "(none given)"
            raise ValueError(f"unknown event groups {wrong}; known are {', '.join(GROUPS)}")
        self._socket = open_socket(NETLINK_ROUTE, netns, strict=True, groups=[GROUPS[name] for name in groups])

    def fileno(self) -> int:
        """Give the descriptor, -1 when closed."""
        return self._socket.fileno()

    def receive(self) -> list[Event]:
        """Read what is there, at most some hundred events, without waiting; an empty list: nothing is left.

        Raises:
            EventsLostError: the kernel dropped events. The socket stays usable.
            OSError: the socket is closed.
        """
        events: list[Event] = []
        for _ in range(_EVENTS_AT_ONCE):
            try:
                data, (port, _) = self._socket.recvfrom(_EVENT_BUFFER, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    raise EventsLostError("the kernel dropped network events") from error
                raise
            if port != 0:
                # Who is privileged in a pod's namespace may send to our groups: only the kernel is believed.
                continue
            try:
                for message in codec.messages(data):
                    event = rtnl.parse_event(message)
                    if event is not None:
                        events.append(event)
            except codec.DecodeError as error:
                raise EventsLostError(f"a network event cannot be read: {error}") from error
        return events

    def close(self) -> None:
        """Close the socket. A second call does nothing."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_EVENT_BUFFER: Final = 64 << 10
