"""Frames of ttrpc: a header of ten bytes (big endian), then the data.

======  ====  ==================================
offset  size  meaning
======  ====  ==================================
0       4     length of the data
4       4     stream id
8       1     type: request, response or data
9       1     flags
======  ====  ==================================

Source of the facts: containerd/ttrpc, ``PROTOCOL.md`` and ``channel.go``.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined]  # in typeshed from 3.12 on

_HEADER: Final = struct.Struct(">IIBB")

HEADER_SIZE: Final = _HEADER.size

# The Go implementation's messageLengthMax. A longer message is drained by the receiver and never delivered.
MAX_DATA: Final = 4 << 20

# Stream ids are unsigned 32 bit numbers on the wire.
MAX_STREAM: Final = 0xFFFF_FFFF

REMOTE_CLOSED: Final = 0x01
REMOTE_OPEN: Final = 0x02
NO_DATA: Final = 0x04


class ProtocolError(Exception):
    """The protocol was broken, by us or by the peer."""


class LocalProtocolError(ProtocolError):
    """This program tried to send what the protocol does not allow. Nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what cannot be understood. The stream of bytes is of no more use: close it."""


class FrameType(enum.IntEnum):
    """What the data of a frame is."""

    REQUEST = 1
    RESPONSE = 2
    DATA = 3


_KNOWN: Final = frozenset(FrameType)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame.

    Attributes:
        stream: The stream id. Clients use odd ones.
        type: What the data is.
        data: An encoded Request or Response, or the bare payload of a data frame.
        flags: ``REMOTE_CLOSED``, ``REMOTE_OPEN`` and ``NO_DATA``, or-ed.
    """

    stream: int
    type: FrameType
    data: bytes
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Oversized:
    """The header of a frame that is longer than allowed. Its data is drained and not kept.

    Attributes:
        stream: The stream id.
        type: The type as sent, known or not.
        length: The length that the header gave, in bytes.
    """

    stream: int
    type: int
    length: int


def encode(frame: Frame) -> bytes:
    """Return the frame as it travels.

    Args:
        frame: The frame to encode.

    Returns:
        Header and data.

    Raises:
        LocalProtocolError: The data is longer than ``MAX_DATA``, or the stream id does not fit in 32 bits.
    """
    if len(frame.data) > MAX_DATA:
        raise LocalProtocolError(f"message of {len(frame.data)} bytes, allowed are {MAX_DATA}")
    if not 0 <= frame.stream <= MAX_STREAM:
        raise LocalProtocolError(f"stream id {frame.stream}, allowed are 0 to {MAX_STREAM}")
    return _HEADER.pack(len(frame.data), frame.stream, frame.type, frame.flags) + frame.data


class FrameReader:
    """Takes the bytes of one direction of a connection, in pieces of any size, and gives its frames.

    It keeps one unfinished frame at most: never more than ``HEADER_SIZE + MAX_DATA`` bytes. Every byte sequence has
    a meaning, so that nothing it is fed makes it fail: frames of unknown type are passed over, as in Go.
    """

    __slots__ = ("_body", "_head", "_header", "_skip")

    def __init__(self) -> None:
        self._head = bytearray()
        self._header: tuple[int, int, FrameType, int] | None = None
        self._body = bytearray()
        self._skip = 0

    def receive(self, data: Buffer) -> list[Frame | Oversized]:
        """Take the next bytes.

        Args:
            data: What arrived; any number of bytes, cut anywhere.

        Returns:
            What they completed, in order.
        """
        found: list[Frame | Oversized] = []
        view = memoryview(data)
        while view:
            if self._skip:
                taken = min(self._skip, len(view))
                self._skip -= taken
                view = view[taken:]
            elif self._header is None:
                view = self._take_head(view, found)
            else:
                view = self._take_body(view, self._header, found)
        return found

    def _take_head(self, view: memoryview, found: list[Frame | Oversized]) -> memoryview:
        wanted = HEADER_SIZE - len(self._head)
        self._head += view[:wanted]
        if len(self._head) == HEADER_SIZE:
            length, stream, kind, flags = _HEADER.unpack(self._head)
            self._head.clear()
            if length > MAX_DATA:
                found.append(Oversized(stream, kind, length))
                self._skip = length
            elif kind not in _KNOWN:
                self._skip = length
            elif length == 0:
                found.append(Frame(stream, FrameType(kind), b"", flags))
            else:
                self._header = (length, stream, FrameType(kind), flags)
        return view[wanted:]

    def _take_body(
        self, view: memoryview, header: tuple[int, int, FrameType, int], found: list[Frame | Oversized]
    ) -> memoryview:
        length, stream, kind, flags = header
        wanted = length - len(self._body)
        self._body += view[:wanted]
        if len(self._body) == length:
            found.append(Frame(stream, kind, bytes(self._body), flags))
            self._body = bytearray()
            self._header = None
        return view[wanted:]
