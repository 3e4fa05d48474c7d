"""Traffic control messages: what is built is read back, and hostile bytes are refused."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nri_dranet.netlink import codec, rtnl, traffic
from nri_dranet.netlink.codec import DecodeError, Message, Request
from nri_dranet.netlink.traffic import Filter, Qdisc, TrafficClass

U32 = st.integers(0, 0xFFFF_FFFF)
KIND = st.text("abcdefghij_", min_size=1, max_size=15)
OPTIONS = st.binary(max_size=64)
INDEX = st.integers(1, 0x7FFF_FFFF)


def _read(request: Request) -> rtnl.Object | None:
    return rtnl.parse_object(Message(request.type, 0, 0, 0, request.body))


@given(
    st.builds(
        Qdisc,
        index=INDEX,
        kind=KIND,
        handle=U32,
        parent=U32,
        options=OPTIONS,
        stab=OPTIONS,
        ingress_block=U32,
        egress_block=U32,
    ),
    INDEX,
)
def test_a_qdisc_is_read_back(qdisc: Qdisc, index: int) -> None:
    """The kernel would dump what was asked for, on the interface that was named."""
    assert _read(traffic.add_qdisc(qdisc, index)) == dataclasses.replace(qdisc, index=index)


@given(st.builds(TrafficClass, index=INDEX, kind=KIND, handle=U32, parent=U32, options=OPTIONS), INDEX)
def test_a_class_is_read_back(found: TrafficClass, index: int) -> None:
    """A class keeps handle, parent and options."""
    assert _read(traffic.add_class(found, index)) == dataclasses.replace(found, index=index)


@given(
    st.builds(Filter, index=INDEX, kind=KIND, handle=U32, parent=U32, info=U32, chain=U32, options=OPTIONS),
    INDEX,
)
def test_a_filter_is_read_back(found: Filter, index: int) -> None:
    """A filter keeps handle, parent, preference, protocol, chain and options."""
    assert _read(traffic.add_filter(found, index)) == dataclasses.replace(found, index=index)


@given(st.sampled_from([traffic.parse_qdisc, traffic.parse_class, traffic.parse_filter]), st.binary(max_size=80))
def test_hostile_bytes(parse: object, data: bytes) -> None:
    """Any bytes are read or refused with a DecodeError."""
    try:
        found = parse(data)  # type: ignore[operator]
    except DecodeError:
        return
    assert dataclasses.is_dataclass(found)


@pytest.mark.parametrize(
    ("handle", "text"), [(0x10010, "1:10"), (0xFFFF_FFFF, "root"), (0xFFFF_0000, "ffff:"), (0x1_0000, "1:")]
)
def test_handles_are_written_as_tc_does(handle: int, text: str) -> None:
    """A handle is two hexadecimal numbers; the parent of all is the root."""
    assert traffic.handle_text(handle) == text


def test_dumps_are_dumps_and_changes_are_not() -> None:
    """The flags of a dump share their bits with those of a change: only dumps end with NLMSG_DONE."""
    qdisc = Qdisc(index=1, kind="htb", handle=0x10000, parent=traffic.ROOT)
    assert all(one.dump for one in (traffic.dump_qdiscs(), traffic.dump_classes(3), traffic.dump_filters(3, 0x10000)))
    assert not traffic.add_qdisc(qdisc, 1).dump
    assert not traffic.get_qdisc(1, traffic.ROOT).dump
    assert traffic.add_qdisc(qdisc, 1).flags & codec.NLM_F_REPLACE
