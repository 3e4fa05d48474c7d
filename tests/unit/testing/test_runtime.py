"""The runtime's stand-in has the manners of the Go peer: what it accepts, what it drops, in which order it calls."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nri_dranet.pb import nri_pb2
from nri_dranet.testing import runtime_plugin
from nri_dranet.testing.runtime import Pod, RuntimeRefusedError, RuntimeStandIn
from nri_dranet.testing.runtime_plugin import QUEUE, GoPeer
from nri_dranet.ttrpc.connection import Client, RequestReceived, Server, Status
from nri_dranet.ttrpc.frames import MAX_DATA, Frame, FrameType, ProtocolError, encode
from nri_dranet.ttrpc.mux import PLUGIN_CONNECTION, RUNTIME_CONNECTION, Demultiplexer, cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

POD = Pod("s1", "web", "default", "uid-1", "/var/run/netns/one", pid=7)
SHORT = 0.1
PATIENCE = 20.0


def framed(connection: int, *payloads: bytes) -> bytes:
    """Return frames of the multiplexer, cut as given."""
    heads = (connection.to_bytes(4, "big") + len(payload).to_bytes(4, "big") for payload in payloads)
    return b"".join(head + payload for head, payload in zip(heads, payloads, strict=True))


def message(length: int) -> bytes:
    """Return a ttrpc message of ``length`` bytes, header included."""
    return encode(Frame(1, FrameType.REQUEST, bytes(length - 10)))


def pieces(data: bytes, size: int) -> list[bytes]:
    """Return the bytes in pieces of one size."""
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize(
    "parts",
    [
        [message(4096)],
        [message(5000)[:4096], message(5000)[4096:]],
        [message(MAX_DATA + 10)[:4096], message(MAX_DATA + 10)[4096:]],
        [message(5000)[:10], message(5000)[10:]],
        pieces(message(60), 1),
        [message(2000) + message(2000)],
        [b""],
    ],
)
def test_the_peer_takes_what_go_takes(parts: list[bytes]) -> None:
    """Each way of cutting that the Go peer accepted is accepted, and all payload comes out."""
    found = GoPeer().receive(framed(1, *parts))
    assert b"".join(payload for _, payload in found) == b"".join(parts)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([message(4097)], "ENOMEM: a frame of 4097 bytes, 0 were expected"),
        ([message(12000)[:6000], message(12000)[6000:]], "ENOMEM: a frame of 6000 bytes"),
        ([message(9000)[:4096], message(9000)[4096:] + message(100)], "ENOMEM: a frame of 5004 bytes, 4904 were"),
        (pieces(message(300), 1), "failed to queue payload for reading: 300 frames for 1"),
    ],
)
def test_the_peer_drops_what_go_drops(parts: list[bytes], text: str) -> None:
    """A frame that does not fit where it is read to, and more frames than the queue holds, end the connection."""
    with pytest.raises(ProtocolError, match=text):
        GoPeer().receive(framed(1, *parts))


def test_the_peers_queue_is_that_of_one_connection() -> None:
    """256 frames may wait for each of the two connections."""
    both = framed(1, *[b""] * QUEUE) + framed(2, *[b""] * QUEUE)
    assert len(GoPeer().receive(both)) == 2 * QUEUE


@settings(deadline=None)
@example(lengths=[20], step=3)
@given(lengths=st.lists(st.integers(11, 12_000), min_size=1, max_size=5), step=st.integers(50, 9000))
def test_the_peer_accepts_every_message_that_is_cut_by_our_rule(lengths: list[int], step: int) -> None:
    """Whatever the lengths, and however the trunk cuts the bytes, what ``cut`` makes is accepted."""
    peer = GoPeer()
    for length in lengths:
        data = b"".join(cut(1, message(length)))
        found = [each for piece in pieces(data, step) for each in peer.receive(piece)]
        assert b"".join(payload for _, payload in found) == message(length)


class Plugin:
    """A plugin driven by hand: answers what a test tells it to answer."""

    def __init__(self, path: Path, *, name: str = "by-hand", index: str = "50", events: int = 0xF) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(path))
        self.client, self.server = Client(), Server()
        self.answers: dict[str, bytes | Status | None] = {
            "Configure": nri_pb2.ConfigureResponse(events=events).SerializeToString()
        }
        self.seen: list[str] = []
        self.requests: list[bytes] = []
        self.replies: list[Status | None] = []
        self._name, self._index = name, index
        self._thread = threading.Thread(target=self._read)

    def start(self) -> None:
        """Register and serve."""
        self._thread.start()
        request = nri_pb2.RegisterPluginRequest(plugin_name=self._name, plugin_idx=self._index)
        self.ask("RegisterPlugin", request.SerializeToString())

    def ask(self, method: str, payload: bytes = b"") -> None:
        """Call the runtime."""
        _, data = self.client.call("nri.pkg.api.v1alpha1.Runtime", method, payload)
        self.send(RUNTIME_CONNECTION, data)

    def send(self, connection: int, data: bytes) -> None:
        """Send one message."""
        self.sock.sendall(b"".join(cut(connection, data)))

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        if self._thread.ident is not None:
            self._thread.join()
        self.sock.close()

    def _read(self) -> None:
        demultiplexer = Demultiplexer((1, 2))
        with contextlib.suppress(OSError):
            while data := self.sock.recv(1 << 16):
                for chunk in demultiplexer.receive(data):
                    if chunk.connection == RUNTIME_CONNECTION:
                        self.replies += [answer.status for answer in self.client.receive(chunk.data)]
                        continue
                    for event in self.server.receive(chunk.data):
                        assert isinstance(event, RequestReceived)
                        self._answer(event)

    def _answer(self, event: RequestReceived) -> None:
        self.seen.append(event.method)
        self.requests.append(event.payload)
        answer = self.answers.get(event.method, b"")
        if isinstance(answer, Status):
            self.send(PLUGIN_CONNECTION, self.server.fail(event.stream, answer))
        elif answer is not None:
            self.send(PLUGIN_CONNECTION, self.server.respond(event.stream, answer))


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """Return what ends everything that a test has begun."""
    with contextlib.ExitStack() as found:
        yield found


@pytest.fixture
def path(stack: contextlib.ExitStack) -> Path:
    """Return where the runtime listens; the paths of sockets must be short."""
    folder = tempfile.mkdtemp(prefix="nri-")
    stack.callback(shutil.rmtree, folder)
    return Path(folder) / "run" / "nri.sock"


@pytest.fixture
def runtime(path: Path, stack: contextlib.ExitStack) -> RuntimeStandIn:
    """Return a runtime that has begun, of NRI 0.12."""
    found = RuntimeStandIn(path)
    found.start()
    stack.callback(found.stop)
    return found


@pytest.fixture
def plug(path: Path, stack: contextlib.ExitStack) -> Callable[..., Plugin]:
    """Return what makes plugins, not yet started."""

    def make(*, name: str = "by-hand", index: str = "50", events: int = 0xF) -> Plugin:
        found = Plugin(path, name=name, index=index, events=events)
        stack.callback(found.close)
        return found

    return make


def refused_with(runtime: RuntimeStandIn, text: str) -> bool:
    """Wait until the runtime has not taken a plugin, and say whether it was for that reason."""
    end = threading.Event()
    for _ in range(int(PATIENCE / 0.01)):
        if any("not taken" in line for line in runtime.log):
            return any(text in line for line in runtime.log)
        end.wait(0.01)
    return False


def test_calls_follow_the_order_of_the_protocol(runtime: RuntimeStandIn, plug: Callable[..., Plugin]) -> None:
    """Configure, Synchronize, then events; the times and the version are told."""
    plugin = plug()
    plugin.start()
    assert runtime.wait_for_plugin() == ["50-by-hand"]
    runtime.run_pod(POD)
    runtime.create_container(POD, "app", ["dra.net/claim=x"])
    runtime.stop_pod(POD)
    runtime.remove_pod(POD)
    events = ["RunPodSandbox", "CreateContainer", "StopPodSandbox", "RemovePodSandbox"]
    assert plugin.seen == ["Configure", "Synchronize", *events]
    assert plugin.replies == [None]
    configure = nri_pb2.ConfigureRequest.FromString(plugin.requests[0])
    assert (configure.registration_timeout, configure.request_timeout) == (5000, 2000)
    assert configure.NRI_version
    run = nri_pb2.RunPodSandboxRequest.FromString(plugin.requests[2]).pod
    assert (run.id, run.pid, run.linux.namespaces[1].path) == ("s1", 7, "/var/run/netns/one")
    create = nri_pb2.CreateContainerRequest.FromString(plugin.requests[3]).container
    assert (create.name, create.CDI_devices[0].name) == ("app", "dra.net/claim=x")


@pytest.mark.parametrize(
    ("plugin", "text"),
    [
        (("a b", "50", 1), "invalid plugin name: 'a b'"),
        (("", "50", 1), "invalid plugin name: ''"),
        (("x", "5", 1), "invalid plugin index: '5'"),
        (("x", "50", 0x4001), "invalid plugin events: 0x4000"),
    ],
)
def test_wrong_plugins_are_not_taken(
    runtime: RuntimeStandIn, plug: Callable[..., Plugin], plugin: tuple[str, str, int], text: str
) -> None:
    """A name, an index or an event that NRI does not allow ends the connection, with the reason in the log."""
    name, index, events = plugin
    plug(name=name, index=index, events=events).start()
    assert refused_with(runtime, text)
    assert runtime.plugins == []


def test_an_empty_mask_means_all_events(runtime: RuntimeStandIn, plug: Callable[..., Plugin]) -> None:
    """As in Go: a plugin that asks for nothing gets everything."""
    plugin = plug(events=0)
    plugin.start()
    runtime.wait_for_plugin()
    runtime.run_pod(POD)
    assert plugin.seen[-1] == "RunPodSandbox"


def test_events_go_only_to_those_who_asked(runtime: RuntimeStandIn, plug: Callable[..., Plugin]) -> None:
    """A plugin that wants Stop alone hears of nothing else."""
    plugin = plug(events=0x2)
    plugin.start()
    runtime.wait_for_plugin()
    runtime.run_pod(POD)
    assert runtime.create_container(POD, "app") == []
    runtime.stop_pod(POD)
    assert plugin.seen == ["Configure", "Synchronize", "StopPodSandbox"]


def test_a_plugin_that_does_not_answer_is_dropped_and_the_event_goes_on(
    path: Path, stack: contextlib.ExitStack, plug: Callable[..., Plugin]
) -> None:
    """Fail-open, as in Go: the pod runs as if the plugin had agreed."""
    runtime = RuntimeStandIn(path, request_timeout=SHORT)
    runtime.start()
    stack.callback(runtime.stop)
    plugin = plug()
    plugin.answers["RunPodSandbox"] = None
    plugin.start()
    runtime.wait_for_plugin()
    runtime.run_pod(POD)
    runtime.wait_for_loss()
    assert "closing plugin 50-by-hand, failed to handle RunPodSandbox request: context deadline exceeded" in runtime.log
    assert runtime.create_container(POD, "app") == []


def test_a_plugin_that_leaves_during_a_call_counts_as_agreed(
    runtime: RuntimeStandIn, plug: Callable[..., Plugin]
) -> None:
    """A lost connection is treated like a slow plugin."""
    plugin = plug()
    plugin.answers["CreateContainer"] = None
    plugin.start()
    runtime.wait_for_plugin()
    caller = threading.Thread(target=runtime.create_container, args=(POD, "app"))
    caller.start()
    while "CreateContainer" not in plugin.seen:
        threading.Event().wait(0.01)
    plugin.close()
    caller.join()
    assert any("failed to handle CreateContainer request: closed by the plugin" in line for line in runtime.log)


def test_an_error_refuses_the_event(runtime: RuntimeStandIn, plug: Callable[..., Plugin]) -> None:
    """An error in time fails Run and CreateContainer; of Stop and Remove it is only logged."""
    plugin = plug()
    plugin.start()
    runtime.wait_for_plugin()
    for method in ("RunPodSandbox", "CreateContainer", "StopPodSandbox", "RemovePodSandbox"):
        plugin.answers[method] = Status(2, f"no {method}")
    with pytest.raises(RuntimeRefusedError, match="no RunPodSandbox"):
        runtime.run_pod(POD)
    with pytest.raises(RuntimeRefusedError, match="no CreateContainer"):
        runtime.create_container(POD, "app")
    runtime.stop_pod(POD)
    runtime.remove_pod(POD)
    assert "NRI StopPodSandbox failed: no StopPodSandbox" in runtime.log
    assert "NRI RemovePodSandbox failed: no RemovePodSandbox" in runtime.log
    assert len(runtime.plugins) == 1


def test_a_strict_stop_fails_and_can_be_repeated(
    path: Path, stack: contextlib.ExitStack, plug: Callable[..., Plugin]
) -> None:
    """CRI-O's manner: the sandbox stays until Stop has succeeded once."""
    runtime = RuntimeStandIn(path, strict_stop=True)
    runtime.start()
    stack.callback(runtime.stop)
    plugin = plug()
    plugin.start()
    runtime.wait_for_plugin()
    runtime.run_pod(POD)
    plugin.answers["StopPodSandbox"] = Status(2, "busy")
    with pytest.raises(RuntimeRefusedError, match="busy"):
        runtime.stop_pod(POD)
    assert "s1" in runtime._pods
    plugin.answers["StopPodSandbox"] = b""
    runtime.stop_pod(POD)
    assert "s1" in runtime._stopped_pods


def test_code_12_falls_back_to_state_change(runtime: RuntimeStandIn, plug: Callable[..., Plugin]) -> None:
    """NRI 0.12 asks the dedicated call first, each time, and then the old form."""
    plugin = plug()
    plugin.answers["RunPodSandbox"] = Status(12, "method RunPodSandbox")
    plugin.start()
    runtime.wait_for_plugin()
    runtime.run_pod(POD)
    assert plugin.seen[-2:] == ["RunPodSandbox", "StateChange"]
    change = nri_pb2.StateChangeEvent.FromString(plugin.requests[-1])
    assert (change.event, change.pod.id) == (nri_pb2.RUN_POD_SANDBOX, "s1")
    assert any("deprecated" in line for line in runtime.log)


def test_a_plugin_that_answers_parts_wrongly_is_not_taken(
    path: Path, stack: contextlib.ExitStack, plug: Callable[..., Plugin]
) -> None:
    """A list in parts needs an answer that says so."""
    runtime = RuntimeStandIn(path, chunk=1)
    for index in range(3):
        runtime.run_pod(Pod(f"s{index}", "a", "b", "c"))
    runtime.start()
    stack.callback(runtime.stop)
    plug().start()
    assert refused_with(runtime, "plugin does not handle split sync requests")


def test_a_plugin_that_never_registers_is_closed(path: Path, stack: contextlib.ExitStack) -> None:
    """The next one is taken only then: one at a time."""
    runtime = RuntimeStandIn(path, registration_timeout=SHORT)
    runtime.start()
    stack.callback(runtime.stop)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        assert sock.recv(1) == b""
    assert refused_with(runtime, "plugin registration timed out")


def test_a_plugin_that_breaks_the_rules_of_frames_is_closed(path: Path, runtime: RuntimeStandIn) -> None:
    """The reason of the Go peer is logged."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.sendall(framed(1, message(5000)))
        while sock.recv(100):
            pass
    assert refused_with(runtime, "ENOMEM")


def test_other_calls_to_the_runtime_are_unimplemented(runtime: RuntimeStandIn, plug: Callable[..., Plugin]) -> None:
    """Only registration is served; broken requests and frames of other connections do no harm."""
    plugin = plug()
    plugin.ask("UpdateContainers")
    plugin.sock.sendall(framed(9, b"?"))
    plugin.client.call("x", "y", b"")
    plugin.send(RUNTIME_CONNECTION, encode(Frame(2, FrameType.REQUEST, b"")))
    plugin.start()
    runtime.wait_for_plugin()
    assert plugin.replies[0] == Status(12, "method UpdateContainers")


def test_a_plugin_that_does_not_read_is_dropped(
    path: Path, stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long list for a plugin with a full socket ends in a drop, not in a runtime that stands still."""
    monkeypatch.setattr(runtime_plugin, "_SEND_SECONDS", 1)
    runtime = RuntimeStandIn(path)
    runtime.run_pod(Pod("s1", "n" * (3 << 20), "b", "c"))
    runtime.start()
    stack.callback(runtime.stop)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        client, server = Client(), Server()
        request = nri_pb2.RegisterPluginRequest(plugin_name="x", plugin_idx="10").SerializeToString()
        sock.sendall(b"".join(cut(2, client.call(runtime_plugin.RUNTIME_SERVICE, "RegisterPlugin", request)[1])))
        demultiplexer, configured = Demultiplexer((1, 2)), False
        while not configured:
            for chunk in demultiplexer.receive(sock.recv(1 << 10)):
                if chunk.connection == PLUGIN_CONNECTION:
                    configured = bool(server.receive(chunk.data))
        sock.sendall(b"".join(cut(1, server.respond(1, b"\x10\x01"))))
        assert refused_with(runtime, "message not sent")


def test_a_restart_drops_all_and_lists_what_was(runtime: RuntimeStandIn, plug: Callable[..., Plugin]) -> None:
    """Sandboxes from before are listed, stopped ones without process and namespaces, with their live containers."""
    plug().start()
    runtime.wait_for_plugin()
    runtime.run_pod(POD)
    runtime.create_container(POD, "app")
    old = Pod("s0", "web", "default", "uid-0", "/var/run/netns/zero")
    runtime.run_pod(old)
    runtime.stop_pod(old)
    runtime.restart()
    assert runtime.plugins == []
    plugin = plug()
    plugin.start()
    runtime.wait_for_plugin()
    listed = nri_pb2.SynchronizeRequest.FromString(plugin.requests[1])
    assert [(pod.id, pod.pid, len(pod.linux.namespaces)) for pod in listed.pods] == [("s1", 7, 2), ("s0", 0, 0)]
    assert [(c.pod_sandbox_id, c.name, c.state) for c in listed.containers] == [("s1", "app", 3)]


def test_a_stop_while_a_plugin_registers_does_not_wait_for_it(path: Path) -> None:
    """The plugin that is being taken is dropped like the others."""
    runtime = RuntimeStandIn(path, registration_timeout=1e6)
    runtime.start()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        while runtime._joining is None:
            threading.Event().wait(0.01)
        runtime.stop()
        assert sock.recv(1) == b""
    assert refused_with(runtime, "the runtime stops")


def test_waiting_has_an_end(runtime: RuntimeStandIn, plug: Callable[..., Plugin]) -> None:
    """Waiting in vain is an error that says what is there."""
    with pytest.raises(RuntimeRefusedError, match="0 plugins came within 0"):
        runtime.wait_for_plugin(timeout=0)
    plug().start()
    runtime.wait_for_plugin()
    with pytest.raises(RuntimeRefusedError, match="still connected after 0 s: \\['50-by-hand'\\]"):
        runtime.wait_for_loss(timeout=0)


def test_an_old_runtime_tells_neither_version_nor_times(
    path: Path, stack: contextlib.ExitStack, plug: Callable[..., Plugin]
) -> None:
    """NRI 0.6: sandbox events as StateChange only, and Configure may come before the registration is answered."""
    runtime = RuntimeStandIn(path, dedicated_calls=False, announce_timeouts=False, configure_first=True)
    runtime.start()
    stack.callback(runtime.stop)
    plugin = plug()
    plugin.start()
    runtime.wait_for_plugin()
    runtime.run_pod(POD)
    assert plugin.seen == ["Configure", "Synchronize", "StateChange"]
    configure = nri_pb2.ConfigureRequest.FromString(plugin.requests[0])
    assert (configure.registration_timeout, configure.request_timeout, configure.NRI_version) == (0, 0, "")
    assert plugin.replies == [None]


def test_a_plugin_that_is_lost_makes_room(runtime: RuntimeStandIn, plug: Callable[..., Plugin]) -> None:
    """One that has gone is forgotten when the next one joins."""
    first = plug()
    first.start()
    runtime.wait_for_plugin()
    first.close()
    runtime.wait_for_loss()
    plug(index="51").start()
    assert runtime.wait_for_plugin() == ["51-by-hand"]
    assert len(runtime._plugins) == 1


def test_any_method_can_be_called(
    path: Path, stack: contextlib.ExitStack, runtime: RuntimeStandIn, plug: Callable[..., Plugin]
) -> None:
    """Every plugin is asked; one that is gone gives no answer, and a refusal is raised."""
    first, second = plug(index="10"), plug(index="20")
    first.answers["Shutdown"] = b"ok"
    second.answers["Shutdown"] = None
    for plugin in (first, second):
        plugin.start()
    runtime.wait_for_plugin(2)
    caller = threading.Thread(target=second.close)
    runtime._request_timeout = SHORT
    caller.start()
    assert runtime.call_plugins("Shutdown", nri_pb2.Empty()) == [b"ok"]
    caller.join()
    first.answers["Shutdown"] = Status(2, "no")
    with pytest.raises(RuntimeRefusedError, match="no"):
        runtime.call_plugins("Shutdown", nri_pb2.Empty())
    assert path.is_socket()
    stack.close()
    assert not path.exists()


def test_a_runtime_that_never_began_can_be_stopped(path: Path) -> None:
    """Stopping twice, or without a start, does nothing."""
    runtime = RuntimeStandIn(path)
    runtime.stop()
    runtime.start()
    runtime.stop()
    runtime.stop()
    assert runtime.plugins == []


def test_an_undecodable_registration_ends_the_connection(runtime: RuntimeStandIn, plug: Callable[..., Plugin]) -> None:
    """What cannot be a registration is logged as such."""
    plug().ask("RegisterPlugin", b"\xff")
    assert refused_with(runtime, "cannot be decoded")


def test_a_container_needs_its_cdi_devices(tmp_path: Path, path: Path) -> None:
    """Without the CDI file that defines its device no container is created; other files do not disturb."""
    runtime = RuntimeStandIn(path, cdi_dir=tmp_path / "cdi")
    with pytest.raises(RuntimeRefusedError, match=r"unresolvable CDI devices dra\.net/claim=a, dra\.net/claim=b"):
        runtime.create_container(POD, "app", ["dra.net/claim=a", "dra.net/claim=b"])
    folder = tmp_path / "cdi"
    folder.mkdir()
    (folder / "broken.json").write_text("{")
    (folder / "note.txt").write_text("")
    (folder / "other.json").write_text(json.dumps({"kind": "x/y", "devices": [{"name": "a"}]}))
    (folder / "mine.json").write_text(json.dumps({"kind": "dra.net/claim", "devices": [{"name": "a"}]}))
    assert runtime.create_container(POD, "app", ["dra.net/claim=a"]) == []
    with pytest.raises(RuntimeRefusedError, match="claim=b"):
        runtime.create_container(POD, "app", ["dra.net/claim=b"])
