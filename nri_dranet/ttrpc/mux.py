"""The NRI multiplexer: several connections over one stream (the trunk), in both directions.

A frame is a header of eight bytes (big endian: connection id, length of the payload) and the payload. There are no
frames that open or close a connection; both sides know the ids. Inbound, the payloads of one connection are a plain
stream of bytes: a ttrpc message may span frames, and a frame may hold several messages.

Outbound there is a rule that the Go peer enforces by closing the trunk (ENOMEM). Its reader wants a whole frame to fit
in the caller's buffer, and ttrpc reads its header through a buffer of 4096 bytes. So the frame that holds a ttrpc
header has 4096 bytes at most; what follows may be one frame of any size. Cutting finer is no better: the peer queues
256 frames for a connection and closes the trunk when they are full.

Source of the facts: containerd/nri, ``pkg/net/multiplex/mux.go``, and containerd/ttrpc, ``channel.go``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nri_dranet.ttrpc import frames
from nri_dranet.ttrpc.frames import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Buffer, Iterable  # type: ignore[attr-defined]  # Buffer: in typeshed from 3.12 on

_HEADER: Final = struct.Struct(">II")

HEADER_SIZE: Final = _HEADER.size

# The connection on which the plugin serves and the runtime calls, and the one for the other direction.
PLUGIN_CONNECTION: Final = 1
RUNTIME_CONNECTION: Final = 2

# The longest ttrpc frame, header included. NRI 0.7 and later take no more than this in one frame of theirs.
MAX_MESSAGE: Final = frames.HEADER_SIZE + frames.MAX_DATA

# The Go peer's buffered reader: a frame with a ttrpc header must fit in it.
FIRST_FRAME: Final = 4096

# What NRI 0.6 allows in one frame; later releases allow less. A longer one means that the two sides have lost step.
MAX_PAYLOAD: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of one connection's stream of bytes.

    Attributes:
        connection: The id of the connection.
        data: The piece. It need not be a whole frame.
    """

    connection: int
    data: bytes


def cut(connection: int, message: bytes) -> list[bytes]:
    """Cut one ttrpc message into the frames that the Go peer accepts.

    The frames must be written with no other frame of the same connection between them.

    Args:
        connection: The id of the connection.
        message: One whole ttrpc frame, header included.

    Returns:
        One frame, or two for a message of more than ``FIRST_FRAME`` bytes.

    Raises:
        LocalProtocolError: The connection id is not usable (0 is reserved), or the message is empty or too long.
    """
    if not 0 < connection <= 0xFFFF_FFFF:
        raise LocalProtocolError(f"connection id {connection}, allowed are 1 to {0xFFFF_FFFF}")
    if not 0 < len(message) <= MAX_MESSAGE:
        raise LocalProtocolError(f"message of {len(message)} bytes, allowed are 1 to {MAX_MESSAGE}")
    parts = (message[:FIRST_FRAME], message[FIRST_FRAME:])
    return [_HEADER.pack(connection, len(part)) + part for part in parts if part]


class Demultiplexer:
    """Takes the bytes of the trunk, in pieces of any size, and gives the pieces of each connection.

    It keeps nothing but an unfinished header: payloads are handed on as they come. A frame for a connection that is
    not open is dropped, as in Go.
    """

    __slots__ = ("_connection", "_head", "_left", "_open")

    def __init__(self, connections: Iterable[int]) -> None:
        """Begin at the start of the stream.

        Args:
            connections: The ids that are open.
        """
        self._open = frozenset(connections)
        self._head = bytearray()
        self._connection = 0
        self._left = 0

    def receive(self, data: Buffer) -> list[Chunk]:
        """Take the next bytes of the trunk.

        Args:
            data: What arrived; any number of bytes, cut anywhere.

        Returns:
            The pieces that are in it, in order.

        Raises:
            RemoteProtocolError: A frame is longer than any release sends. The trunk is of no more use.
        """
        found: list[Chunk] = []
        view = memoryview(data)
        while view:
            if self._left:
                piece = view[: self._left]
                self._left -= len(piece)
                view = view[len(piece) :]
                if self._connection in self._open:
                    found.append(Chunk(self._connection, bytes(piece)))
                continue
            wanted = HEADER_SIZE - len(self._head)
            self._head += view[:wanted]
            view = view[wanted:]
            if len(self._head) == HEADER_SIZE:
                self._connection, self._left = _HEADER.unpack(self._head)
                self._head.clear()
                if self._left > MAX_PAYLOAD:
                    raise RemoteProtocolError(
                        f"frame of {self._left} bytes for connection {self._connection}, allowed are {MAX_PAYLOAD}"
                    )
        return found
