"""The multiplexer below ttrpc: how messages are cut, and how the trunk's bytes are taken apart."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nri_dranet.ttrpc.frames import LocalProtocolError, RemoteProtocolError
from nri_dranet.ttrpc.mux import (
    FIRST_FRAME,
    HEADER_SIZE,
    MAX_MESSAGE,
    MAX_PAYLOAD,
    PLUGIN_CONNECTION,
    RUNTIME_CONNECTION,
    Chunk,
    Demultiplexer,
    cut,
)

BOTH = (PLUGIN_CONNECTION, RUNTIME_CONNECTION)


def joined(chunks: list[Chunk]) -> dict[int, bytes]:
    """Return each connection's stream of bytes."""
    found: dict[int, bytes] = {}
    for chunk in chunks:
        found[chunk.connection] = found.get(chunk.connection, b"") + chunk.data
    return found


@pytest.mark.parametrize(
    ("length", "parts"),
    [
        (1, [1]),
        (FIRST_FRAME - 1, [4095]),
        (FIRST_FRAME, [4096]),
        (FIRST_FRAME + 1, [4096, 1]),
        (6000, [4096, 1904]),
        (MAX_MESSAGE, [4096, MAX_MESSAGE - 4096]),
    ],
)
def test_cut_makes_the_frames_that_the_go_peer_accepts(length: int, parts: list[int]) -> None:
    """One frame up to 4096 bytes, else 4096 and the rest: other cuts make the Go peer close the trunk."""
    message = bytes(index % 251 for index in range(length))
    frames = cut(2, message)
    assert [frame[:HEADER_SIZE] for frame in frames] == [struct.pack(">II", 2, part) for part in parts]
    assert b"".join(frame[HEADER_SIZE:] for frame in frames) == message


@pytest.mark.parametrize(
    ("connection", "message", "text"),
    [
        (0, b"x", "connection id 0"),
        (-1, b"x", "connection id -1"),
        (1 << 32, b"x", "connection id 4294967296"),
        (1, b"", "message of 0 bytes"),
        (1, bytes(MAX_MESSAGE + 1), "message of 4194315 bytes, allowed are 1 to 4194314"),
    ],
)
def test_cut_refuses_what_cannot_be_sent(connection: int, message: bytes, text: str) -> None:
    """The reserved id, ids beyond 32 bits, and messages without or with too many bytes are refused."""
    with pytest.raises(LocalProtocolError, match=text):
        cut(connection, message)


@settings(deadline=None)
@given(
    messages=st.lists(st.tuples(st.integers(1, 4), st.binary(min_size=1, max_size=9000)), max_size=6),
    step=st.integers(1, 5000),
)
def test_demultiplexer_gives_each_connection_its_bytes(messages: list[tuple[int, bytes]], step: int) -> None:
    """Streams of open connections come out whole and in order, however the trunk is cut; others are dropped."""
    trunk = b"".join(frame for connection, message in messages for frame in cut(connection, message))
    demultiplexer = Demultiplexer(BOTH)
    chunks = [chunk for at in range(0, len(trunk), step) for chunk in demultiplexer.receive(trunk[at : at + step])]
    expected: dict[int, bytes] = {}
    for connection, message in messages:
        if connection in BOTH:
            expected[connection] = expected.get(connection, b"") + message
    assert joined(chunks) == expected
    assert demultiplexer.receive(cut(1, b"last")[0]) == [Chunk(1, b"last")], "nothing of the former is left"


def test_demultiplexer_lets_frames_of_connections_interleave() -> None:
    """Between the two frames of a long message may stand a frame of the other connection."""
    first, second = cut(1, b"a" * 5000)
    (other,) = cut(2, b"b")
    found = Demultiplexer(BOTH).receive(first + other + second)
    assert [(chunk.connection, len(chunk.data)) for chunk in found] == [(1, 4096), (2, 1), (1, 904)]


def test_demultiplexer_takes_an_empty_frame() -> None:
    """A frame without a payload says nothing and breaks nothing."""
    demultiplexer = Demultiplexer(BOTH)
    assert demultiplexer.receive(struct.pack(">II", 1, 0) + cut(1, b"x")[0]) == [Chunk(1, b"x")]


def test_demultiplexer_goes_on_in_the_middle_of_a_frame() -> None:
    """A truncated header and a truncated payload wait for the rest."""
    demultiplexer = Demultiplexer(BOTH)
    assert demultiplexer.receive(b"\0\0\0") == []
    assert demultiplexer.receive(b"\1\0\0\0\2a") == [Chunk(1, b"a")]
    assert demultiplexer.receive(b"b") == [Chunk(1, b"b")]
    assert demultiplexer.receive(cut(2, b"next")[0]) == [Chunk(2, b"next")]


def test_demultiplexer_keeps_no_payload() -> None:
    """Payloads are handed on as they come: only an unfinished header is kept."""
    demultiplexer = Demultiplexer(BOTH)
    demultiplexer.receive(struct.pack(">II", 1, MAX_PAYLOAD))
    for _ in range(16):
        assert joined(demultiplexer.receive(bytes(1 << 20))) == {1: bytes(1 << 20)}
    assert not demultiplexer._head


def test_demultiplexer_gives_up_on_an_impossible_length() -> None:
    """A frame longer than any release sends means that the two sides have lost step."""
    with pytest.raises(RemoteProtocolError, match="frame of 16777217 bytes for connection 1, allowed are 16777216"):
        Demultiplexer(BOTH).receive(struct.pack(">II", 1, MAX_PAYLOAD + 1))


@settings(deadline=None)
@given(data=st.binary(max_size=400))
def test_demultiplexer_answers_any_bytes_with_chunks_or_a_protocol_error(data: bytes) -> None:
    """Whatever arrives, nothing but the documented error is raised."""
    try:
        found = Demultiplexer(BOTH).receive(data)
    except RemoteProtocolError:
        return
    assert sum(len(chunk.data) for chunk in found) <= len(data)
