"""A scripted kernel at the other end of a socket."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest

from nri_dranet.netlink import transport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nri_dranet.netlink.namespaces import NetNs

Received = list[tuple[int, int, int, bytes]]
"""Type, flags, sequence and body of the messages that one call sent."""


class Kernel:
    """The other end: ``answer`` is called for each datagram and gives the datagrams to send back."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self.received: list[Received] = []
        self.answer: Callable[[Received], list[bytes]] = lambda _: []
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        """Answer until the program's end is closed, in the middle of an answer too."""
        with contextlib.suppress(ConnectionError):
            while data := self.end.recv(1 << 20):
                found: Received = []
                while data:
                    length, kind, flags, sequence, _ = struct.unpack_from("=IHHII", data)
                    found.append((kind, flags, sequence, data[16:length]))
                    data = data[(length + 3) & ~3 :]
                self.received.append(found)
                for one in self.answer(found):
                    self.end.send(one)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """Give a scripted kernel, which the next socket that is made speaks to."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made = Kernel(theirs)

    def fake(protocol: int, netns: NetNs | None, *, strict: bool, groups: object = ()) -> socket.socket:
        del protocol, netns, strict, groups
        return ours

    monkeypatch.setattr(transport, "open_socket", fake)
    made.thread.start()
    yield made
    ours.close()
    theirs.shutdown(socket.SHUT_RDWR)
    made.thread.join()
    theirs.close()


@pytest.fixture
def message() -> Callable[..., bytes]:
    """Make the bytes of a message: ``message(type, flags, sequence, body)``."""

    def make(kind: int, flags: int, sequence: int, body: bytes = b"") -> bytes:
        return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body + bytes(-len(body) % 4)

    return make


@pytest.fixture
def ack(message: Callable[..., bytes]) -> Callable[..., bytes]:
    """Make an acknowledgement: ``ack(sequence, errno, text)``."""

    def make(sequence: int, number: int = 0, text: str = "") -> bytes:
        body = struct.pack("=iIHHII", -number, 16, 0, 0, sequence, 0)
        flags = 0x100
        if text:
            raw = text.encode() + b"\0"
            body += struct.pack("=HH", 4 + len(raw), 1) + raw + bytes(-len(raw) % 4)
            flags |= 0x200
        return message(2, flags, sequence, body)

    return make
