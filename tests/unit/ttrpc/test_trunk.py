"""The trunk: real sockets under the multiplexer."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from nri_dranet.ttrpc.frames import LocalProtocolError, RemoteProtocolError
from nri_dranet.ttrpc.mux import Chunk, Demultiplexer
from nri_dranet.ttrpc.trunk import Trunk, TrunkClosedError

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def ends() -> Iterator[tuple[Trunk, socket.socket]]:
    """Return a trunk and the peer's socket."""
    mine, peer = socket.socketpair()
    trunk = Trunk(mine, send_timeout=0.2)
    with contextlib.closing(trunk), peer:
        yield trunk, peer


def take(trunk: Trunk) -> list[Chunk]:
    """Wait for input and take it."""
    select.select([trunk.fileno()], [], [])
    return trunk.receive()


def test_receive_does_not_wait(ends: tuple[Trunk, socket.socket]) -> None:
    """Where nothing has arrived there is nothing to return, at once."""
    assert ends[0].receive() == []


def test_messages_travel_both_ways(ends: tuple[Trunk, socket.socket]) -> None:
    """What is sent arrives in frames; frames that arrive come out as chunks."""
    trunk, peer = ends
    trunk.send(1, b"hello")
    assert peer.recv(100) == bytes.fromhex("00000001 00000005") + b"hello"
    peer.sendall(bytes.fromhex("00000002 00000002") + b"ok" + bytes.fromhex("00000007 00000001") + b"?")
    assert take(trunk) == [Chunk(2, b"ok")]


def test_the_end_of_the_peer_is_told(ends: tuple[Trunk, socket.socket]) -> None:
    """A closed peer ends receiving, and sending too."""
    trunk, peer = ends
    peer.close()
    with pytest.raises(TrunkClosedError, match="closed by the peer"):
        take(trunk)
    with pytest.raises(TrunkClosedError, match="message not sent"):
        trunk.send(1, b"x")


def test_a_broken_stream_is_told(ends: tuple[Trunk, socket.socket]) -> None:
    """An impossible frame is a protocol error of the peer."""
    trunk, peer = ends
    peer.sendall(bytes.fromhex("00000001 ffffffff"))
    with pytest.raises(RemoteProtocolError):
        take(trunk)


def test_a_closed_trunk_neither_receives_nor_sends(ends: tuple[Trunk, socket.socket]) -> None:
    """After close every use says so; shutting down what is closed is no error."""
    trunk, _ = ends
    trunk.close()
    with pytest.raises(TrunkClosedError, match="broken"):
        trunk.receive()
    with pytest.raises(TrunkClosedError, match="not sent"):
        trunk.send(1, b"x")
    trunk.shutdown()


def test_shutdown_wakes_both_sides(ends: tuple[Trunk, socket.socket]) -> None:
    """Both ends see the end of the stream, without a byte having been sent."""
    trunk, peer = ends
    trunk.shutdown()
    assert peer.recv(1) == b""
    with pytest.raises(TrunkClosedError):
        take(trunk)


def test_a_message_that_is_not_allowed_leaves_the_trunk_whole(ends: tuple[Trunk, socket.socket]) -> None:
    """A wrong use of this program's own sends nothing and closes nothing."""
    trunk, peer = ends
    with pytest.raises(LocalProtocolError):
        trunk.send(0, b"x")
    trunk.send(1, b"y")
    assert peer.recv(100)[8:] == b"y"


def test_a_peer_that_does_not_read_is_given_up(ends: tuple[Trunk, socket.socket]) -> None:
    """After the time that a message may lie unread the trunk is closed: the rest of it would be misread."""
    trunk, peer = ends
    with pytest.raises(TrunkClosedError, match="message not sent: timed out"):
        trunk.send(1, bytes(4 << 20))
    with pytest.raises(TrunkClosedError):
        trunk.send(1, b"x")
    while peer.recv(1 << 20):
        pass


def test_concurrent_senders_never_mix_their_frames() -> None:
    """Messages of several threads arrive whole, also those of two frames."""
    mine, peer = socket.socketpair()
    trunk = Trunk(mine)
    found: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}

    def read() -> None:
        demultiplexer = Demultiplexer((1, 2))
        while data := peer.recv(1 << 16):
            for chunk in demultiplexer.receive(data):
                found[chunk.connection] += chunk.data

    def write(connection: int, letter: bytes) -> None:
        for _ in range(20):
            trunk.send(connection, letter * 5000)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(c, x)) for c, x in ((1, b"a"), (1, b"b"), (2, b"c"), (2, b"d"))]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    trunk.shutdown()
    reader.join()
    trunk.close()
    peer.close()
    for connection, letters in ((1, b"ab"), (2, b"cd")):
        stream = bytes(found[connection])
        messages = [stream[at : at + 5000] for at in range(0, len(stream), 5000)]
        assert sorted(messages) == sorted([letters[:1] * 5000] * 20 + [letters[1:] * 5000] * 20)
