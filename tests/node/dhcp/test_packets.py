"""What a packet socket hears: the answers to its own exchange on its own network, and nothing else."""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from nri_dranet.dhcp import frames, message
from nri_dranet.dhcp.frames import Datagram
from nri_dranet.dhcp.message import Kind, Message, Op
from nri_dranet.dhcp.packets import PacketSocket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.node.dhcp.conftest import Wire

XID = 0x12345678
ANSWER = Message(op=Op.REPLY, kind=Kind.OFFER, xid=XID, chaddr="02:00:00:00:00:01", yiaddr="10.99.0.5")
DATAGRAM = Datagram(
    source_hardware="02:00:00:00:00:99",
    destination_hardware=frames.BROADCAST,
    source="10.99.0.1",
    destination="255.255.255.255",
    source_port=67,
    destination_port=68,
    payload=message.encode(ANSWER),
)
_SOL_PACKET, _PACKET_STATISTICS = 263, 6


@pytest.fixture
def packets(wire: Wire) -> Iterator[PacketSocket]:
    """Listen on the client's interface."""
    with PacketSocket(wire.index, XID, wire.client) as made:
        yield made


@pytest.fixture
def other(wire: Wire) -> Iterator[socket.socket]:
    """Give a socket that sends frames from the other end."""
    with wire.server.socket(socket.AF_PACKET, socket.SOCK_RAW) as made:
        made.bind(("s0", 0))
        yield made


def heard(packets: PacketSocket) -> int:
    """Return how many frames the kernel has let through since this was asked last."""
    found = packets._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
    return int(struct.unpack("=II", found)[0])


def with_ip_option(frame: bytes) -> bytes:
    """Return a frame with four bytes of options in its IPv4 header."""
    header = bytearray(frame[14:34] + b"\1\1\1\1")
    header[0] = 0x46
    header[2:4] = struct.pack("!H", len(frame) - 14 + 4)
    header[10:12] = b"\0\0"
    header[10:12] = struct.pack("!H", frames.checksum(bytes(header)))
    return frame[:14] + bytes(header) + frame[34:]


def test_an_answer_is_heard(packets: PacketSocket, other: socket.socket) -> None:
    """Broadcast or unicast to whatever address, with options in its header too."""
    for each in (DATAGRAM, replace(DATAGRAM, destination_hardware="02:00:00:00:00:01", destination="10.99.0.5")):
        other.send(frames.encode(each))
        assert packets.receive(time.monotonic() + 10) == each
    other.send(with_ip_option(frames.encode(DATAGRAM)))
    assert packets.receive(time.monotonic() + 10) == DATAGRAM


@pytest.mark.parametrize(
    "frame",
    [
        frames.encode(replace(DATAGRAM, payload=message.encode(replace(ANSWER, xid=XID + 1)))),
        frames.encode(replace(DATAGRAM, payload=message.encode(replace(ANSWER, op=Op.REQUEST)))),
        frames.encode(replace(DATAGRAM, destination_port=67)),
        frames.encode(replace(DATAGRAM, payload=b"short")),
        frames.encode(DATAGRAM)[:12] + b"\x86\xdd" + frames.encode(DATAGRAM)[14:],
        frames.encode(DATAGRAM)[:23] + b"\x06" + frames.encode(DATAGRAM)[24:],
        frames.encode(DATAGRAM)[:20] + b"\x20\x00" + frames.encode(DATAGRAM)[22:],
    ],
    ids=["xid", "request", "port", "short", "ipv6", "tcp", "fragment"],
)
def test_the_kernel_wakes_nobody_for_other_traffic(packets: PacketSocket, other: socket.socket, frame: bytes) -> None:
    """What is no answer to this exchange does not pass the filter."""
    other.send(frame)
    other.send(frames.encode(DATAGRAM))
    assert packets.receive(time.monotonic() + 10) == DATAGRAM
    assert heard(packets) == 1


def test_the_own_requests_are_not_heard(packets: PacketSocket, other: socket.socket) -> None:
    """Not even those that look like answers."""
    packets.send(DATAGRAM)
    other.send(frames.encode(DATAGRAM))
    assert packets.receive(time.monotonic() + 10) == DATAGRAM
    assert heard(packets) == 1


def test_a_tagged_answer_is_of_another_network(packets: PacketSocket, other: socket.socket) -> None:
    """The kernel takes the tag off before it shows the frame; a priority tag (VLAN 0) is of this one."""
    frame = frames.encode(DATAGRAM)
    other.send(frame[:12] + struct.pack("!HH", 0x8100, 5) + frame[12:])
    marked = replace(DATAGRAM, source_hardware="02:00:00:00:00:98")
    frame = frames.encode(marked)
    other.send(frame[:12] + struct.pack("!HH", 0x8100, 0xE000) + frame[12:])
    assert packets.receive(time.monotonic() + 10) == marked


def test_a_damaged_answer_is_passed_over(packets: PacketSocket, other: socket.socket) -> None:
    """Its checksum tells."""
    frame = bytearray(frames.encode(DATAGRAM))
    frame[-1] ^= 1
    other.send(bytes(frame))
    other.send(frames.encode(DATAGRAM))
    assert packets.receive(time.monotonic() + 10) == DATAGRAM


def test_nothing_is_nothing(packets: PacketSocket) -> None:
    """At the given time it ends, also when that has passed."""
    assert packets.receive(time.monotonic() + 0.05) is None
    assert packets.receive(time.monotonic() - 1) is None
