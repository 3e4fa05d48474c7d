"""rtnetlink in one place: every request and every parser of links, addresses, routes, rules and neighbours. Pure.

Requests come from ``links``, ``addresses``, ``routes`` and ``rules``; this module adds what reads a message of any of
these types, and of those of ``traffic``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nri_dranet.netlink import codec
from nri_dranet.netlink.addresses import (
    add_address,
    add_neighbour,
    delete_address,
    delete_neighbour,
    dump_addresses,
    dump_neighbours,
    parse_address,
    parse_neighbour,
)
from nri_dranet.netlink.links import (
    RTM_DELLINK,
    RTM_NEWLINK,
    LinkConf,
    add_altname,
    delete_altname,
    delete_link,
    dump_links,
    get_link,
    new_link,
    parse_link,
    parse_link_conf,
    set_link,
)
from nri_dranet.netlink.model import Address, Link, Neighbour, Route, Rule
from nri_dranet.netlink.routes import add_route, delete_route, dump_routes, parse_route
from nri_dranet.netlink.routing import (
    RTM_DELADDR,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_NEWADDR,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTM_NEWRULE,
)
from nri_dranet.netlink.rules import add_rule, delete_rule, dump_rules, parse_rule
from nri_dranet.netlink.traffic import (
    RTM_DELQDISC,
    RTM_DELTCLASS,
    RTM_DELTFILTER,
    RTM_NEWQDISC,
    RTM_NEWTCLASS,
    RTM_NEWTFILTER,
    Filter,
    Qdisc,
    TrafficClass,
    parse_class,
    parse_filter,
    parse_qdisc,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Event",
    "LinkConf",
    "NamespaceId",
    "Object",
    "add_address",
    "add_altname",
    "add_neighbour",
    "add_route",
    "add_rule",
    "delete_address",
    "delete_altname",
    "delete_link",
    "delete_neighbour",
    "delete_route",
    "delete_rule",
    "dump_addresses",
    "dump_links",
    "dump_neighbours",
    "dump_routes",
    "dump_rules",
    "get_link",
    "get_nsid",
    "new_link",
    "parse_address",
    "parse_event",
    "parse_link",
    "parse_link_conf",
    "parse_neighbour",
    "parse_nsid",
    "parse_object",
    "parse_route",
    "parse_rule",
    "set_link",
]

RTM_NEWNSID: Final = 88
RTM_DELNSID: Final = 89
RTM_GETNSID: Final = 90

_NETNSA_NSID: Final = 1
_NETNSA_FD: Final = 3
# rtgenmsg: a family of one byte, padded to the alignment of attributes.
_RTGENMSG: Final = bytes(4)

_FAMILIES: Final = frozenset({codec.AF_INET, codec.AF_INET6})


@dataclass(frozen=True, slots=True)
class NamespaceId:
    """The number that a namespace knows another one by; -1: it has none for it."""

    id: int


Object = Link | Address | Route | Rule | Neighbour | NamespaceId | Qdisc | TrafficClass | Filter


@dataclass(frozen=True, slots=True)
class Event:
    """What the kernel announced.

    ``kind``: ``link``, ``address``, ``route``, ``rule``, ``neighbour``, ``nsid``, ``qdisc``, ``class`` or ``filter``.
    ``gone`` tells that the object left this namespace; a link that was moved away names its ``new_index`` then.
    """

    kind: str
    gone: bool
    object: Object


def get_nsid(netns_fd: int) -> codec.Request:
    """Ask by which number the socket's namespace knows another one."""
    body = _RTGENMSG + codec.attribute_u32(_NETNSA_FD, netns_fd)
    return codec.Request(RTM_GETNSID, 0, body, "read the number of a namespace")


def parse_nsid(body: bytes) -> NamespaceId:
    """Read the body of an RTM_NEWNSID or RTM_DELNSID.

    Raises:
        DecodeError: it is truncated or malformed.
    """
    if len(body) < 1:
        raise codec.DecodeError("namespace message of 0 bytes")
    found = codec.attributes(body, len(_RTGENMSG))
    return NamespaceId(codec.s32(found[_NETNSA_NSID]) if _NETNSA_NSID in found else -1)


_PARSERS: Final[dict[int, tuple[str, bool, Callable[[bytes], Object]]]] = {
    RTM_NEWLINK: ("link", False, parse_link),
    RTM_DELLINK: ("link", True, parse_link),
    RTM_NEWADDR: ("address", False, parse_address),
    RTM_DELADDR: ("address", True, parse_address),
    RTM_NEWROUTE: ("route", False, parse_route),
    RTM_DELROUTE: ("route", True, parse_route),
    RTM_NEWRULE: ("rule", False, parse_rule),
    RTM_DELRULE: ("rule", True, parse_rule),
    RTM_NEWNEIGH: ("neighbour", False, parse_neighbour),
    RTM_DELNEIGH: ("neighbour", True, parse_neighbour),
    RTM_NEWNSID: ("nsid", False, parse_nsid),
    RTM_DELNSID: ("nsid", True, parse_nsid),
    RTM_NEWQDISC: ("qdisc", False, parse_qdisc),
    RTM_DELQDISC: ("qdisc", True, parse_qdisc),
    RTM_NEWTCLASS: ("class", False, parse_class),
    RTM_DELTCLASS: ("class", True, parse_class),
    RTM_NEWTFILTER: ("filter", False, parse_filter),
    RTM_DELTFILTER: ("filter", True, parse_filter),
}

# Kinds whose family is that of an address; all others have none.
_WITH_FAMILY: Final = frozenset({"address", "route", "rule", "neighbour"})


def parse_event(message: codec.Message) -> Event | None:
    """Read a message of any type that this module knows; None for others, and for those of foreign families.

    Foreign families are the bridge's view of its ports (its RTM_DELLINK only says that a port left the bridge),
    multicast routing, MPLS and the like.

    Raises:
        DecodeError: the body is truncated or malformed.
    """
    known = _PARSERS.get(message.type)
    if known is None:
        return None
    kind, gone, parse = known
    family = message.body[0] if message.body else 0
    if family not in _FAMILIES if kind in _WITH_FAMILY else family != codec.AF_UNSPEC:
        return None
    return Event(kind, gone, parse(message.body))


def parse_object(message: codec.Message) -> Object | None:
    """Read the object in a reply, or None as ``parse_event``.

    Raises:
        DecodeError: the body is truncated or malformed.
    """
    event = parse_event(message)
    return event.object if event else None
