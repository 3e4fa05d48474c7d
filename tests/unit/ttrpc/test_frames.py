"""Frames of ttrpc: the bytes, the cuts, and what a hostile peer may send."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nri_dranet.ttrpc.frames import (
    HEADER_SIZE,
    MAX_DATA,
    MAX_STREAM,
    NO_DATA,
    REMOTE_CLOSED,
    Frame,
    FrameReader,
    FrameType,
    LocalProtocolError,
    Oversized,
    encode,
)

LAST = Frame(7, FrameType.REQUEST, b"last")
FRAMES = st.builds(
    Frame,
    stream=st.integers(0, MAX_STREAM),
    type=st.sampled_from(FrameType),
    data=st.binary(max_size=300),
    flags=st.integers(0, 255),
)


def cut_at(data: bytes, places: list[int]) -> list[bytes]:
    """Return the bytes in pieces; places beyond the end are counted from the start again."""
    ends = sorted({place % (len(data) + 1) for place in places})
    return [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]


def test_encode_writes_the_header_in_network_order() -> None:
    """Length, stream, type and flags stand in big endian before the data."""
    frame = Frame(0x01020304, FrameType.DATA, b"xyz", REMOTE_CLOSED | NO_DATA)
    assert encode(frame) == bytes.fromhex("00000003 01020304 03 05") + b"xyz"


def test_encode_takes_the_longest_message() -> None:
    """Exactly 4 MiB of data are allowed."""
    assert len(encode(Frame(1, FrameType.REQUEST, bytes(MAX_DATA)))) == HEADER_SIZE + MAX_DATA


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (Frame(1, FrameType.REQUEST, bytes(MAX_DATA + 1)), "message of 4194305 bytes, allowed are 4194304"),
        (Frame(-1, FrameType.REQUEST, b""), "stream id -1, allowed are 0 to 4294967295"),
        (Frame(MAX_STREAM + 1, FrameType.REQUEST, b""), "stream id 4294967296"),
    ],
)
def test_encode_refuses_what_does_not_fit(frame: Frame, text: str) -> None:
    """Data over 4 MiB and stream ids beyond 32 bits are refused with their value and the limit."""
    with pytest.raises(LocalProtocolError, match=text):
        encode(frame)


@settings(deadline=None)
@given(frames=st.lists(FRAMES, max_size=8), places=st.lists(st.integers(0, 4000), max_size=20))
def test_reader_finds_the_frames_however_the_bytes_are_cut(frames: list[Frame], places: list[int]) -> None:
    """Whatever the pieces in which bytes arrive, the frames come out whole and in order."""
    reader = FrameReader()
    found = [frame for piece in cut_at(b"".join(map(encode, frames)), places) for frame in reader.receive(piece)]
    assert found == frames
    assert reader.receive(encode(LAST)) == [LAST], "nothing of the former is left"


@settings(deadline=None)
@given(data=st.binary(max_size=2000), places=st.lists(st.integers(0, 2000), max_size=10))
def test_reader_gives_every_byte_sequence_one_meaning(data: bytes, places: list[int]) -> None:
    """No bytes make the reader fail, and where they are cut does not change what they mean."""
    whole, pieces = FrameReader(), FrameReader()
    assert whole.receive(data) == [frame for piece in cut_at(data, places) for frame in pieces.receive(piece)]
    assert whole.receive(encode(LAST)) == pieces.receive(encode(LAST))


def test_reader_passes_over_unknown_types() -> None:
    """A frame of a type that this version does not know is skipped with its data, as in Go."""
    unknown = struct.pack(">IIBB", 3, 7, 9, 0) + b"???"
    known = Frame(1, FrameType.RESPONSE, b"ok")
    assert FrameReader().receive(unknown + encode(known)) == [known]


def test_reader_takes_a_message_of_the_greatest_length() -> None:
    """Exactly 4 MiB are delivered."""
    frame = Frame(1, FrameType.REQUEST, bytes(MAX_DATA))
    assert FrameReader().receive(encode(frame)) == [frame]


def test_reader_drains_a_message_that_is_too_long_and_goes_on() -> None:
    """A longer message is told by its header and never kept; the frame behind it is read."""
    reader = FrameReader()
    after = Frame(3, FrameType.REQUEST, b"next")
    found = reader.receive(struct.pack(">IIBB", MAX_DATA + 4, 1, FrameType.REQUEST, 0))
    for _ in range(4):
        found += reader.receive(bytes((MAX_DATA + 4) // 4))
        assert not reader._body
    assert found + reader.receive(encode(after)) == [Oversized(1, FrameType.REQUEST, MAX_DATA + 4), after]


def test_reader_keeps_one_unfinished_frame_at_most() -> None:
    """What is kept never exceeds one message, and nothing of it stays behind."""
    reader = FrameReader()
    head = struct.pack(">IIBB", MAX_DATA, 1, FrameType.REQUEST, 0)
    reader.receive(head + bytes(MAX_DATA - 1))
    assert len(reader._head) + len(reader._body) == MAX_DATA - 1
    assert len(reader.receive(b"\0")) == 1
    assert not reader._body
    assert not reader._head
