"""Blocking I/O for the multiplexer: a connected stream socket that carries whole messages of several connections."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING, Final

from nri_dranet.ttrpc.mux import PLUGIN_CONNECTION, RUNTIME_CONNECTION, Chunk, Demultiplexer, cut

if TYPE_CHECKING:
    from collections.abc import Iterable

_READ_SIZE: Final = 64 << 10

# A peer that does not read its socket for so long is dead. Without a limit its full buffer would hold up the thread
# that watches the deadlines.
SEND_TIMEOUT: Final = 2.0


class TrunkClosedError(ConnectionError):
    """The trunk is closed: by the peer, by this side, or because a message could not be sent whole."""


class Trunk:
    """The stream below the connections.

    One thread owns it: it alone calls ``receive`` and ``close``, so that it never reads from a descriptor which
    something else was given meanwhile. Every thread may call ``send`` and the two shutdowns.
    """

    def __init__(
        self,
        sock: socket.socket,
        connections: Iterable[int] = (PLUGIN_CONNECTION, RUNTIME_CONNECTION),
        *,
        send_timeout: float = SEND_TIMEOUT,
    ) -> None:
        """Take over a socket.

        Args:
            sock: A connected stream socket. It is closed with the trunk.
            connections: The ids of the connections that are open.
            send_timeout: Seconds that the peer may leave a message unread.
        """
        sock.settimeout(send_timeout)
        self._sock = sock
        self._demultiplexer = Demultiplexer(connections)
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """Return the descriptor to wait on for input."""
        return self._sock.fileno()

    def receive(self) -> list[Chunk]:
        """Read what has arrived, without waiting.

        Returns:
            The pieces of the connections' streams; none when nothing has arrived.

        Raises:
            TrunkClosedError: The peer has closed it, or it broke.
            RemoteProtocolError: The peer sent a frame that cannot be. Close the trunk.
        """
        try:
            # Not recv: on a socket with a timeout that waits.
            data = os.read(self._sock.fileno(), _READ_SIZE)
        except BlockingIOError:
            return []
        except OSError as error:
            raise TrunkClosedError(f"connection broken: {error}") from error
        if not data:
            raise TrunkClosedError("connection closed by the peer")
        return self._demultiplexer.receive(data)

    def send(self, connection: int, message: bytes) -> None:
        """Send one message, its frames together.

        Args:
            connection: The id of the connection.
            message: One whole ttrpc frame.

        Raises:
            LocalProtocolError: The connection id or the message's length is not allowed.
            TrunkClosedError: It is closed, it broke, or the peer does not read. After that nothing more can be sent.
        """
        frames = b"".join(cut(connection, message))
        with self._lock:
            try:
                self._sock.sendall(frames)
            except OSError as error:
                # A part of the message may be out: what follows would be read as the rest of it.
                self.shutdown()
                raise TrunkClosedError(f"message not sent: {error}") from error

    def shutdown(self) -> None:
        """End the traffic in both directions: ``receive`` of this side and of the peer see the end."""
        # An error means that it is not connected any more, which is what was wanted.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def shutdown_input(self) -> None:
        """Take no more input: once what has arrived is read, ``receive`` sees the end. Sending goes on."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Close the socket."""
        with self._lock:
            self._sock.close()
