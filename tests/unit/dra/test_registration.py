"""The plugin's sockets, and how kubelet finds it again."""

from __future__ import annotations

import contextlib
import socket
import stat
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.dra.registration import MAX_SOCKET_PATH, PluginServer, SocketError, _registration_path
from nri_dranet.dra.servicer import DraServicer
from nri_dranet.telemetry import metrics
from nri_dranet.testing.kubelet import KubeletStandIn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 20.0
CLAIM = ("default", "a", "uid-a")
UID = "0c8a1f6e-4a1b-4c8e-9d1c-5a0f2f4a7b11"


class Handler:
    """A handler that does nothing, or waits."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def prepare(self, _ref: Any, *, patient: bool = True) -> list[Any]:
        """Prepare a claim."""
        del patient
        self.begun.set()
        self.go.wait(PATIENCE)
        return []

    def unprepare(self, _ref: Any) -> None:
        """Release a claim."""


@pytest.fixture
def handler() -> Handler:
    """Give the handler that all plugins of a test have."""
    return Handler()


@pytest.fixture
def servicer(handler: Handler) -> Iterator[DraServicer]:
    """Give a servicer."""
    made = DraServicer(handler)
    yield made
    made.close()


@pytest.fixture
def kubelet(root: Path) -> Iterator[KubeletStandIn]:
    """Give a kubelet that is not started."""
    made = KubeletStandIn(root / "plugins_registry", driver="dra.net")
    yield made
    made.stop()


def until(look: Callable[[], Any]) -> None:
    """Wait until something is true."""
    end = time.monotonic() + PATIENCE
    while not look():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_kubelet_registers_the_plugin(loop: Any, root: Path, servicer: DraServicer, kubelet: KubeletStandIn) -> None:
    """Sockets and folders are where and as kubelet expects them; the registration is kept, shown and counted."""
    plugin = loop.serve(PluginServer("dra.net", root, servicer.handlers()))
    assert (plugin.registered, plugin.problem) == (False, "kubelet has not registered the plugin yet")
    kubelet.start()
    found = kubelet.wait_registered()
    assert found.endpoint == str(root / "plugins" / "dra.net" / "dra.sock")
    assert found.supported == ("v1.DRAPlugin", "v1beta1.DRAPlugin")
    assert found.version == "v1"
    until(lambda: plugin.registered)
    assert plugin.problem == ""
    assert metrics.KUBELET_REGISTERED._value.get() == 1
    assert sorted(path.name for path in root.rglob("*") if path.is_socket()) == ["dra.net-reg.sock", "dra.sock"]
    assert stat.S_IMODE((root / "plugins" / "dra.net").stat().st_mode) & 0o027 == 0


def test_a_stop_leaves_nothing(loop: Any, root: Path, servicer: DraServicer, kubelet: KubeletStandIn) -> None:
    """Both sockets are gone, kubelet has noticed, and the metric says so."""
    plugin = PluginServer("dra.net", root, servicer.handlers())
    loop.run(plugin.start())
    kubelet.start()
    kubelet.wait_registered()
    loop.run(plugin.stop())
    kubelet.wait_gone()
    assert [path for path in root.rglob("*") if path.is_socket()] == []
    assert metrics.KUBELET_REGISTERED._value.get() == 0


def test_a_stop_finishes_the_calls_that_run(
    loop: Any, root: Path, servicer: DraServicer, kubelet: KubeletStandIn, handler: Handler
) -> None:
    """A Prepare that is under way is answered although the plugin stops."""
    plugin = PluginServer("dra.net", root, servicer.handlers())
    loop.run(plugin.start())
    kubelet.start()
    kubelet.wait_registered()
    handler.go.clear()
    answers: list[Any] = []
    call = threading.Thread(target=lambda: answers.append(kubelet.prepare([CLAIM])))
    call.start()
    assert handler.begun.wait(PATIENCE)
    stopping = loop.begin(plugin.stop())
    until(lambda: not plugin.registration_socket.exists())
    handler.go.set()
    stopping.result(PATIENCE)
    call.join(PATIENCE)
    assert answers == [{"uid-a": {"error": "", "devices": []}}]


def test_a_refusal_is_kept_in_kubelets_words(
    loop: Any, root: Path, servicer: DraServicer, caplog: pytest.LogCaptureFixture
) -> None:
    """A kubelet that knows no common version refuses; readiness and log have its words."""
    plugin = loop.serve(PluginServer("dra.net", root, servicer.handlers()))
    kubelet = KubeletStandIn(root / "plugins_registry", driver="dra.net", versions=["v9"])
    kubelet.start()
    try:
        until(lambda: "kubelet refused the plugin: none of the DRA gRPC versions" in plugin.problem)
    finally:
        kubelet.stop()
    assert not plugin.registered
    assert any("v9.DRAPlugin" in str(record.__dict__) for record in caplog.records)


def test_f05_a_new_kubelet_finds_the_plugin(
    loop: Any, root: Path, servicer: DraServicer, kubelet: KubeletStandIn
) -> None:
    """After a restart of kubelet the same sockets are registered again."""
    loop.serve(PluginServer("dra.net", root, servicer.handlers()))
    kubelet.start()
    kubelet.wait_registered()
    kubelet.restart()
    until(lambda: kubelet.registrations == 2)
    assert kubelet.prepare([CLAIM])["uid-a"]["error"] == ""


@pytest.mark.parametrize("which", ["registration_socket", "endpoint"])
def test_a_socket_that_vanished_comes_back(
    loop: Any, root: Path, servicer: DraServicer, kubelet: KubeletStandIn, which: str
) -> None:
    """Somebody removes a socket: the plugin registers anew and can be called."""
    plugin = loop.serve(PluginServer("dra.net", root, servicer.handlers(), look_seconds=0.05))
    watching = loop.begin(plugin.watch())
    kubelet.start()
    kubelet.wait_registered()
    getattr(plugin, which).unlink()
    until(lambda: kubelet.registrations == 2)
    assert kubelet.prepare([CLAIM])["uid-a"]["error"] == ""
    watching.cancel()


def test_f05_a_socket_that_kubelet_did_not_notice_is_made_anew(loop: Any, root: Path, servicer: DraServicer) -> None:
    """Nobody registers the plugin: after a while the registration socket is another one."""
    plugin = loop.serve(PluginServer("dra.net", root, servicer.handlers(), look_seconds=0.02, unnoticed_seconds=0.1))
    first = plugin.registration_socket.stat()
    watching = loop.begin(plugin.watch())
    until(
        lambda: (
            plugin.registration_socket.exists() and plugin.registration_socket.stat().st_mtime_ns > first.st_mtime_ns
        )
    )
    watching.cancel()


def test_a_socket_that_cannot_be_made_is_tried_again(loop: Any, root: Path, servicer: DraServicer) -> None:
    """Something that is no socket stands in the way for a while: it is named in readiness, and not removed."""
    plugin = loop.serve(PluginServer("dra.net", root, servicer.handlers(), look_seconds=0.02))
    plugin.registration_socket.unlink()
    plugin.registration_socket.write_text("mine")
    watching = loop.begin(plugin.watch())
    until(lambda: "exists and is no socket" in plugin.problem)
    assert plugin.registration_socket.read_text() == "mine"
    plugin.registration_socket.unlink()
    until(plugin.registration_socket.is_socket)
    watching.cancel()


def test_the_socket_of_a_dead_instance_is_replaced(
    loop: Any, root: Path, servicer: DraServicer, kubelet: KubeletStandIn
) -> None:
    """Sockets that a killed instance left behind are in nobody's way."""
    for folder, name in (("plugins/dra.net", "dra.sock"), ("plugins_registry", "dra.net-reg.sock")):
        (root / folder).mkdir(parents=True)
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as dead:
            dead.bind(str(root / folder / name))
    loop.serve(PluginServer("dra.net", root, servicer.handlers()))
    kubelet.start()
    assert kubelet.prepare([CLAIM])["uid-a"]["error"] == ""


def test_a_former_instance_does_not_take_its_successors_sockets_away(
    loop: Any, root: Path, servicer: DraServicer, kubelet: KubeletStandIn
) -> None:
    """The new instance takes over while the former one is on its way out; its end changes nothing."""
    former = PluginServer("dra.net", root, servicer.handlers())
    loop.run(former.start())
    loop.serve(PluginServer("dra.net", root, servicer.handlers()))
    loop.run(former.stop())
    kubelet.start()
    assert kubelet.prepare([CLAIM])["uid-a"]["error"] == ""


def test_two_instances_run_side_by_side(loop: Any, root: Path, servicer: DraServicer, kubelet: KubeletStandIn) -> None:
    """In a rolling update each instance has sockets of its own; the last that registered is called."""
    former = PluginServer("dra.net", root, servicer.handlers(), instance="one")
    loop.run(former.start())
    kubelet.start()
    assert kubelet.wait_registered().endpoint.endswith("/dra-one.sock")
    second = loop.serve(PluginServer("dra.net", root, servicer.handlers(), instance="two"))
    until(lambda: second.registered)
    until(lambda: kubelet.wait_registered().endpoint.endswith("/dra-two.sock"))
    loop.run(former.stop())
    assert kubelet.prepare([CLAIM])["uid-a"]["error"] == ""
    assert kubelet.wait_registered().endpoint.endswith("/dra-two.sock")


@pytest.mark.parametrize(
    ("length", "driver", "name"),
    [
        (30, "dra.net", f"dra.net-{UID}-reg.sock"),
        (65, "dra.net", "dra.net-XbI3v8f_UbY-reg.sock"),
        (40, "d" * 60, "dra-x01xwYZM9AuPt5fsPH3VTA-reg.sock"),
    ],
)
def test_a_long_path_is_hashed(length: int, driver: str, name: str) -> None:
    """The registration socket's name is that of kubelet's own helper: plain, with a hash, or nothing but a hash."""
    folder = Path("/" + "f" * (length - 1))
    found = _registration_path(folder, driver, UID)
    assert found == folder / name
    assert len(str(found)) <= MAX_SOCKET_PATH


def test_a_path_that_no_hash_makes_short_enough_is_refused() -> None:
    """A folder that is too long by itself is the flag's fault, and the error says so."""
    with pytest.raises(SocketError, match="--kubelet-root-dir"):
        _registration_path(Path("/" + "f" * 90), "dra.net", UID)


def test_a_path_that_is_too_long_is_refused_clearly(root: Path) -> None:
    """The error names the path, the limit and the flag."""
    with pytest.raises(SocketError, match=r"more than 107 bytes: choose a shorter --kubelet-root-dir"):
        PluginServer("dra.net", root / ("x" * 120), [])


def test_a_folder_that_cannot_be_made_is_refused_clearly(loop: Any, root: Path) -> None:
    """A start that fails names the socket and the cause."""
    (root / "plugins").write_text("a file")
    plugin = PluginServer("dra.net", root, [])
    with pytest.raises(
        SocketError, match=r"dra\.sock cannot be made: .*Not a directory|dra\.sock cannot be made: .*exists"
    ):
        loop.run(plugin.start())
