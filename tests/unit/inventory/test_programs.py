"""Traffic control messages on the wire."""

from __future__ import annotations

import contextlib
import errno
import struct
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nri_dranet.inventory.attributes import NO_PROGRAMS, Programs
from nri_dranet.inventory.programs import ProgramScout, _filter_name, changed_interfaces
from nri_dranet.netlink import codec
from nri_dranet.netlink.sockets import EventsLostError
from nri_dranet.netlink.traffic import RTM_NEWTFILTER
from nri_dranet.netlink.transport import KernelSocket

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def scout() -> Iterator[ProgramScout]:
    """A scout in this namespace."""
    with contextlib.closing(ProgramScout()) as found:
        yield found


def fail_with(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every netlink exchange fail."""

    def exchange(*_args: Any, **_more: Any) -> Any:
        raise OSError(number, "injected")

    monkeypatch.setattr(KernelSocket, "exchange", exchange)


def test_known_filters_stay_when_the_kernel_fails(scout: ProgramScout, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dump that fails says nothing: what was known of each interface stays, and no attribute flaps."""
    known = {7: Programs(filters=("a",))}
    fail_with(errno.ENOBUFS, monkeypatch)
    assert scout.all([7, 8], known) == {7: known[7], 8: NO_PROGRAMS}
    assert scout.of(7, known[7]) == known[7]


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV])
def test_no_filters_where_there_can_be_none(scout: ProgramScout, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A kernel without traffic control has no filters, and neither has an interface that is gone."""
    fail_with(number, monkeypatch)
    assert scout.all([7], {7: Programs(filters=("a",))}) == {7: NO_PROGRAMS}
    assert scout.of(7, Programs(filters=("a",))) == NO_PROGRAMS


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
