"""Traffic control messages on the wire."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nri_dranet.inventory.programs import RTM_NEWTFILTER, _filter_name, changed_interfaces
from nri_dranet.netlink import codec
from nri_dranet.netlink.sockets import EventsLostError


def message(kind: int, body: bytes) -> bytes:
    """Frame a message as the kernel sends it."""
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body + bytes(-len(body) % 4)


def body(index: int = 7, kind: str = "bpf", name: str = "my_filter") -> bytes:
    """Return the body of a filter's message."""
    head = struct.pack("=BxxxiIII", 0, index, 1, 0xFFFF_FFF2, 0)
    return head + codec.attribute_text(1, kind) + codec.nest(2, codec.attribute_text(7, name))


def test_filter_names() -> None:
    """Only BPF filters have a name; what is cut off has none."""
    assert _filter_name(body()) == "my_filter"
    assert _filter_name(body(kind="u32")) == ""
    assert _filter_name(body()[:10]) == ""
    assert _filter_name(body()[:-3]) == ""


def test_changed_interfaces() -> None:
    """Events of filters and queueing disciplines name their interface; others do not count."""
    data = message(RTM_NEWTFILTER, body(7)) + message(36, body(9)) + message(16, body(11)) + message(44, b"short")
    assert changed_interfaces(data) == {7, 9}


def test_broken_events() -> None:
    """Events that cannot be read count as lost."""
    with pytest.raises(EventsLostError, match="cannot be read"):
        changed_interfaces(message(RTM_NEWTFILTER, body())[:-8])


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    """Whatever bytes come, they are read, or count as lost."""
    with contextlib.suppress(EventsLostError):
        assert isinstance(changed_interfaces(data), set)
    assert isinstance(_filter_name(data), str)
