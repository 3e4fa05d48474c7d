"""Policy rules over rtnetlink: requests for them and the reading of them. Pure.

Source of the facts: ``linux/fib_rules.h``, ``net/core/fib_rules.c``.
"""

from __future__ import annotations

import struct
from typing import Final

from nri_dranet.netlink import codec, routing
from nri_dranet.netlink.codec import (
    DecodeError,
    Request,
    attribute,
    attribute_text,
    attribute_u8,
    attribute_u32,
    attributes,
)
from nri_dranet.netlink.model import FOREVER, Rule

# fib_rule_hdr has the layout of rtmsg: three of its bytes are reserved.
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_PORT_RANGE: Final = struct.Struct("=HH")
_UID_RANGE: Final = struct.Struct("=II")

_FRA_DST: Final = 1
_FRA_SRC: Final = 2
_FRA_IIFNAME: Final = 3
_FRA_GOTO: Final = 4
_FRA_PRIORITY: Final = 6
_FRA_FWMARK: Final = 10
_FRA_FLOW: Final = 11
_FRA_SUPPRESS_IFGROUP: Final = 13
_FRA_SUPPRESS_PREFIXLEN: Final = 14
_FRA_TABLE: Final = 15
_FRA_FWMASK: Final = 16
_FRA_OIFNAME: Final = 17
_FRA_PAD: Final = 18
_FRA_L3MDEV: Final = 19
_FRA_UID_RANGE: Final = 20
_FRA_PROTOCOL: Final = 21
_FRA_IP_PROTO: Final = 22
_FRA_SPORT_RANGE: Final = 23
_FRA_DPORT_RANGE: Final = 24
_FRA_SPORT_MASK: Final = 28
_FRA_DPORT_MASK: Final = 29
_RULE_KNOWN: Final = frozenset(
    {
        _FRA_DST,
        _FRA_SRC,
        _FRA_IIFNAME,
        _FRA_GOTO,
        _FRA_PRIORITY,
        _FRA_FWMARK,
        _FRA_FLOW,
        _FRA_SUPPRESS_IFGROUP,
        _FRA_SUPPRESS_PREFIXLEN,
        _FRA_TABLE,
        _FRA_FWMASK,
        _FRA_OIFNAME,
        _FRA_PAD,
        _FRA_L3MDEV,
        _FRA_UID_RANGE,
        _FRA_PROTOCOL,
        _FRA_IP_PROTO,
        _FRA_SPORT_RANGE,
        _FRA_DPORT_RANGE,
    }
)


def dump_rules(family: int = 0) -> Request:
    """Ask for the policy rules of a family (0: of both)."""
    return Request(routing.RTM_GETRULE, codec.NLM_F_DUMP, _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0), "list rules")


def _rule_body(rule: Rule) -> bytes:
    source, source_length = codec.prefix_bytes(rule.source, rule.family) if rule.source else (b"", 0)
    target, target_length = codec.prefix_bytes(rule.destination, rule.family) if rule.destination else (b"", 0)
    table = rule.table if rule.table < routing.TABLE_IN_HEADER else 0
    invert = rule.flags & routing.FIB_RULE_INVERT
    parts = [
        _RTMSG.pack(rule.family, target_length, source_length, rule.tos, table, 0, 0, rule.action, invert),
    ]
    if source_length:
        parts.append(attribute(_FRA_SRC, source))
    if target_length:
        parts.append(attribute(_FRA_DST, target))
    parts += [
        attribute_text(kind, name)
        for kind, name in ((_FRA_IIFNAME, rule.iif), (_FRA_OIFNAME, rule.oif))
        if name is not None
    ]
    parts += [
        attribute_u32(kind, number)
        for kind, number in (
            (_FRA_TABLE, None if rule.l3mdev else rule.table or None),
            (_FRA_PRIORITY, rule.priority),
            (_FRA_FWMARK, rule.mark),
            (_FRA_FWMASK, rule.mask),
            (_FRA_SUPPRESS_PREFIXLEN, rule.suppress_prefix_length),
            (_FRA_SUPPRESS_IFGROUP, rule.suppress_group),
            (_FRA_GOTO, rule.goto),
            (_FRA_FLOW, rule.realm or None),
        )
        if number is not None
    ]
    if rule.l3mdev:
        parts.append(attribute_u8(_FRA_L3MDEV, 1))
    if rule.protocol:
        parts.append(attribute_u8(_FRA_PROTOCOL, rule.protocol))
    if rule.ip_protocol is not None:
        parts.append(attribute_u8(_FRA_IP_PROTO, rule.ip_protocol))
    parts += [
        attribute(kind, layout.pack(*values))
        for kind, layout, values in (
            (_FRA_SPORT_RANGE, _PORT_RANGE, rule.source_ports),
            (_FRA_DPORT_RANGE, _PORT_RANGE, rule.destination_ports),
            (_FRA_UID_RANGE, _UID_RANGE, rule.uid_range),
        )
        if values is not None
    ]
    return b"".join(parts)


def _rule_words(rule: Rule) -> str:
    words = [f"{rule.priority}:" if rule.priority is not None else ""]
    words += [f"{word} {value}" for word, value in (("from", rule.source), ("to", rule.destination)) if value]
    return " ".join(word for word in [*words, f"table {rule.table}"] if word)


def add_rule(rule: Rule) -> Request:
    """Add a policy rule (EEXIST if there is exactly this one).

    Raises:
        ValueError: a value does not fit its field.
    """
    return Request(
        routing.RTM_NEWRULE, routing.add_flags(replace=False), _rule_body(rule), f"add rule {_rule_words(rule)}"
    )


def delete_rule(rule: Rule) -> Request:
    """Remove a policy rule (ENOENT if it is not there); the first that has all of its qualifiers goes."""
    return Request(routing.RTM_DELRULE, 0, _rule_body(rule), f"delete rule {_rule_words(rule)}")


def parse_rule(body: bytes) -> Rule:
    """Read the body of an routing.RTM_NEWRULE or routing.RTM_DELRULE.

    Raises:
        DecodeError: it is truncated or malformed.
    """
    if len(body) < _RTMSG.size:
        raise DecodeError(f"rule message of {len(body)} bytes")
    family, target_length, source_length, tos, table, _, _, action, flags = _RTMSG.unpack_from(body)
    found = attributes(body, _RTMSG.size)

    def number(kind: int) -> int | None:
        return codec.u32(found[kind]) if kind in found else None

    def text(kind: int) -> str | None:
        return codec.string(found[kind]) if kind in found else None

    def span(kind: int, layout: struct.Struct) -> tuple[int, int] | None:
        if kind not in found:
            return None
        if len(found[kind]) < layout.size:
            raise DecodeError(f"rule attribute {kind} of {len(found[kind])} bytes")
        first, last = layout.unpack_from(found[kind])
        return first, last

    suppress_length, suppress_group = number(_FRA_SUPPRESS_PREFIXLEN), number(_FRA_SUPPRESS_IFGROUP)
    return Rule(
        family=family,
        table=codec.u32(found[_FRA_TABLE]) if _FRA_TABLE in found else table,
        # The kernel leaves the attribute out for priority 0.
        priority=number(_FRA_PRIORITY) or 0,
        action=action,
        flags=flags,
        source=codec.prefix_text(found[_FRA_SRC], family, source_length) if _FRA_SRC in found else None,
        destination=codec.prefix_text(found[_FRA_DST], family, target_length) if _FRA_DST in found else None,
        iif=text(_FRA_IIFNAME),
        oif=text(_FRA_OIFNAME),
        # Mark 0 has no attribute, but a mask beside it.
        mark=number(_FRA_FWMARK) if _FRA_FWMASK not in found else number(_FRA_FWMARK) or 0,
        mask=number(_FRA_FWMASK),
        tos=tos,
        ip_protocol=codec.u8(found[_FRA_IP_PROTO]) if _FRA_IP_PROTO in found else None,
        source_ports=span(_FRA_SPORT_RANGE, _PORT_RANGE),
        destination_ports=span(_FRA_DPORT_RANGE, _PORT_RANGE),
        uid_range=span(_FRA_UID_RANGE, _UID_RANGE),
        # -1 stands for "suppresses nothing".
        suppress_prefix_length=None if suppress_length == FOREVER else suppress_length,
        suppress_group=None if suppress_group == FOREVER else suppress_group,
        goto=number(_FRA_GOTO),
        l3mdev=found.get(_FRA_L3MDEV, b"\0") != b"\0",
        protocol=codec.u8(found[_FRA_PROTOCOL]) if _FRA_PROTOCOL in found else 0,
        realm=number(_FRA_FLOW) or 0,
        unknown=tuple(sorted(kind for kind in found if kind not in _RULE_KNOWN and not _full_port_mask(kind, found))),
    )


def _full_port_mask(kind: int, found: dict[int, bytes]) -> bool:
    # Since 6.15 a rule with ports reports a mask over them; all bits set is the plain match.
    return kind in {_FRA_SPORT_MASK, _FRA_DPORT_MASK} and found[kind] in {b"\xff\xff", b"\0\0"}
