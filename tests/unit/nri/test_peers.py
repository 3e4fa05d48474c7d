"""The session with runtimes that are driven by hand: broken, silent, or other than the Go peer."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nri_dranet.nri import session as module
from nri_dranet.nri.hooks import EVENTS, Hooks
from nri_dranet.nri.session import NriSession
from nri_dranet.pb import nri_pb2
from nri_dranet.ttrpc.connection import Client, ResponseReceived, Server, Status
from nri_dranet.ttrpc.mux import PLUGIN_CONNECTION, RUNTIME_CONNECTION, Demultiplexer, cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nri_dranet.claims.model import PodRef
    from nri_dranet.reconcile.hooktypes import Adjustment, ContainerRef
    from nri_dranet.reconcile.sandboxes import SandboxRef

PATIENCE = 20.0


class NoDevices:
    """Stands where the keeper does, on a node whose pods have no devices."""

    def run_sandbox(self, sandbox: SandboxRef, deadline: float) -> bool:
        """Attach nothing."""
        del sandbox, deadline
        return False

    def create_container(self, sandbox: SandboxRef, container: ContainerRef, deadline: float) -> Adjustment | None:
        """Add nothing."""
        del sandbox, container, deadline
        return None

    def stop_sandbox(self, sandbox: SandboxRef, deadline: float) -> bool:
        """Give nothing back."""
        del sandbox, deadline
        return False

    def remove_sandbox(self, sandbox: SandboxRef) -> None:
        """Forget nothing."""

    def synchronize(self, sandboxes: Sequence[SandboxRef]) -> None:
        """Take the list."""

    def late(self, sandbox: SandboxRef) -> None:
        """Take nothing back."""

    def has_claims(self, pod: PodRef) -> bool:
        """Say yes of a pod by its name."""
        return pod.name == "with-claim"


@pytest.fixture
def path() -> Iterator[Path]:
    """Return where the runtime listens; the paths of sockets must be short."""
    folder = Path(tempfile.mkdtemp(prefix="nri-"))
    yield folder / "nri.sock"
    shutil.rmtree(folder)


@pytest.fixture
def begin(path: Path) -> Iterator[Callable[[], NriSession]]:
    """Return what begins a session; it ends with the test."""
    with contextlib.ExitStack() as stack:

        def session() -> NriSession:
            found = NriSession(path, "dra.net", "90", Hooks(NoDevices()), events=EVENTS)
            found.start()
            stack.callback(found.stop)
            return found

        yield session


class Peer:
    """The runtime's end of one connection, driven by hand."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        self.sock = sock
        self.demultiplexer = Demultiplexer((PLUGIN_CONNECTION, RUNTIME_CONNECTION))
        self.client, self.server = Client(), Server()
        self.answers: list[ResponseReceived] = []
        self.streams: list[int] = []

    def read_until(self, what: Callable[[], bool]) -> None:
        """Read until something is true of what came."""
        while not what():
            data = self.sock.recv(1 << 16)
            assert data
            for chunk in self.demultiplexer.receive(data):
                if chunk.connection == PLUGIN_CONNECTION:
                    self.answers += self.client.receive(chunk.data)
                else:
                    self.streams += [event.stream for event in self.server.receive(chunk.data)]

    def call(self, method: str, payload: bytes, service: str = "nri.pkg.api.v1alpha1.Plugin") -> ResponseReceived:
        """Call the plugin and return its answer."""
        stream, message = self.client.call(service, method, payload)
        self.sock.sendall(b"".join(cut(PLUGIN_CONNECTION, message)))
        self.read_until(lambda: any(answer.stream == stream for answer in self.answers))
        return next(answer for answer in self.answers if answer.stream == stream)

    def ended(self) -> bool:
        """Wait for the end of the connection."""
        with contextlib.suppress(ConnectionError):
            while self.sock.recv(1 << 16):
                pass
        return True


@pytest.fixture
def listener(path: Path) -> Iterator[socket.socket]:
    """Return a listening socket where the runtime's is."""
    with socket.socket(socket.AF_UNIX) as found:
        found.bind(str(path))
        found.listen()
        found.settimeout(PATIENCE)
        yield found


@pytest.fixture
def peer(begin: Callable[[], NriSession], listener: socket.socket) -> Iterator[Peer]:
    """Return the runtime's end of a session's first connection."""
    begin()
    sock, _ = listener.accept()
    with sock:
        yield Peer(sock)


def test_registers_with_its_version(peer: Peer) -> None:
    """RegisterPlugin is the first thing that is sent, on the runtime's connection."""
    peer.read_until(lambda: bool(peer.streams))
    assert peer.streams == [1]
    assert peer.answers == []


def test_a_refused_registration_is_told_and_tried_again(
    peer: Peer, listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """The runtime's reason is logged, and the session dials again."""
    peer.read_until(lambda: bool(peer.streams))
    peer.sock.sendall(b"".join(cut(RUNTIME_CONNECTION, peer.server.fail(1, Status(2, "invalid plugin index")))))
    assert peer.ended()
    listener.accept()[0].close()
    assert "cannot be joined" in caplog.text
    assert any(
        "the runtime refuses this plugin: invalid plugin index" in str(getattr(record, "fields", ""))
        for record in caplog.records
    )


def test_an_accepted_registration_says_nothing_more(peer: Peer) -> None:
    """The answer to RegisterPlugin may come at any time; without Configure nothing has begun."""
    peer.read_until(lambda: bool(peer.streams))
    peer.sock.sendall(b"".join(cut(RUNTIME_CONNECTION, peer.server.respond(1, b""))))
    assert peer.call("Configure", b"").status is None


def test_a_runtime_that_never_begins_is_left(
    begin: Callable[[], NriSession], listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection on which no Configure comes is given up for a new one."""
    monkeypatch.setattr(module, "CONFIGURE_PATIENCE", 0.05)
    session = begin()
    for _ in range(2):
        sock, _ = listener.accept()
        with sock:
            assert Peer(sock).ended()
    session.stop()
    assert "did not configure this plugin within 0.05 s" in session.problem


def test_connected_is_not_yet_joined(begin: Callable[[], NriSession], listener: socket.socket) -> None:
    """Until the runtime has listed its sandboxes its events do not come, and the session says so."""
    session = begin()
    sock, _ = listener.accept()
    with sock:
        peer = Peer(sock)
        answer = peer.call("Configure", nri_pb2.ConfigureRequest(request_timeout=1).SerializeToString())
        assert nri_pb2.ConfigureResponse.FromString(answer.payload).events == EVENTS
        assert session.problem == "connected, but the runtime has not synchronized yet"


@pytest.mark.parametrize("milliseconds", [-1, 0, (1 << 63) - 1])
def test_times_that_make_no_sense_are_survived(peer: Peer, milliseconds: int) -> None:
    """None and negative times mean two seconds, and no time is too long to reckon with."""
    configure = nri_pb2.ConfigureRequest(request_timeout=milliseconds).SerializeToString()
    assert peer.call("Configure", configure).status is None
    assert peer.call("Synchronize", b"").status is None
    assert peer.call("RunPodSandbox", b"").status is None


def test_undecodable_requests_and_foreign_services_are_answered(peer: Peer) -> None:
    """Code 3 and code 12; the connection lives on."""
    assert peer.call("Configure", b"\xff").status == Status(3, "request of Configure cannot be decoded")
    assert peer.call("RunPodSandbox", b"\xff").status == Status(3, "request of RunPodSandbox cannot be decoded")
    assert peer.call("Configure", b"", service="x.Y").status == Status(12, "service x.Y")
    assert peer.call("Synchronize", nri_pb2.SynchronizeRequest(more=True).SerializeToString()).payload == b"\x10\x01"
    assert peer.call("Synchronize", b"").payload == b""


def test_broken_streams_are_answered_by_the_protocol(peer: Peer) -> None:
    """A stream id that must not be is refused on that stream, without a hook."""
    message = bytes.fromhex("00000000 00000002 01 00")
    peer.sock.sendall(b"".join(cut(PLUGIN_CONNECTION, message)))
    peer.client._pending.add(2)
    peer.read_until(lambda: bool(peer.answers))
    assert peer.answers[0].status == Status(3, "stream id must be odd")


def test_bytes_that_cannot_be_end_the_connection_alone(peer: Peer, listener: socket.socket) -> None:
    """The session gives that connection up and dials again."""
    peer.sock.sendall(b"\xff" * 8)
    assert peer.ended()
    listener.accept()[0].close()


def test_the_runtimes_own_connection_is_used_first(
    begin: Callable[[], NriSession], listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin that the runtime started has its connection already; when that has ended the socket is dialled."""
    mine, theirs = socket.socketpair()
    monkeypatch.setenv("NRI_PLUGIN_SOCKET", str(mine.detach()))
    begin()
    with theirs:
        Peer(theirs).call("Configure", b"")
    listener.accept()[0].close()
