"""The daemon's own NRI session under a real containerd, with a test in the place of what attaches devices."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from hack import images
from hack.cri import CriError
from hack.node import NRI_SOCKET
from nri_dranet.nri.hooks import EVENTS, HookError, Hooks
from nri_dranet.nri.session import NriSession

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hack.cri import CriClient
    from hack.node import Node
    from nri_dranet.claims.model import PodRef
    from nri_dranet.reconcile.hooktypes import Adjustment, ContainerRef
    from nri_dranet.reconcile.sandboxes import SandboxRef

SLEEP = ("sleep", "3600")


class Recorder:
    """Stands where the keeper does: writes down what comes, and does what a test asks."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, SandboxRef]] = []
        self.listed: list[list[SandboxRef]] = []
        self.refuse: dict[str, str] = {}
        self.hang = threading.Event()
        self.hang.set()

    def run_sandbox(self, sandbox: SandboxRef, deadline: float) -> bool:
        """Attach nothing."""
        del deadline
        self.seen.append(("run", sandbox))
        self.hang.wait(60)
        if text := self.refuse.pop(sandbox.pod.name, ""):
            raise HookError(text)
        return False

    def create_container(self, sandbox: SandboxRef, container: ContainerRef, deadline: float) -> Adjustment | None:
        """Let each container be created."""
        del deadline
        self.seen.append((f"create {container.name}", sandbox))
        return None

    def stop_sandbox(self, sandbox: SandboxRef, deadline: float) -> bool:
        """Give nothing back."""
        del deadline
        self.seen.append(("stop", sandbox))
        return False

    def remove_sandbox(self, sandbox: SandboxRef) -> None:
        """Forget nothing."""
        self.seen.append(("remove", sandbox))

    def synchronize(self, sandboxes: Sequence[SandboxRef]) -> None:
        """Take the list."""
        self.listed.append(list(sandboxes))

    def late(self, sandbox: SandboxRef) -> None:
        """Take nothing back."""
        self.seen.append(("late", sandbox))

    def has_claims(self, pod: PodRef) -> bool:
        """Say yes of a pod by its name."""
        return pod.name == "with-claim"

    def steps(self, name: str) -> list[str]:
        """Return what came for a pod."""
        return [step for step, sandbox in self.seen if sandbox.pod.name == name]


@pytest.fixture
def recorder() -> Recorder:
    """Return what the session's hooks end in."""
    return Recorder()


@pytest.fixture
def session(node: Node, recorder: Recorder) -> Iterator[NriSession]:
    """Join the runtime."""
    session = NriSession(node.path(NRI_SOCKET), "dra.net", "90", Hooks(recorder), events=EVENTS)
    session.start()
    node.wait_for(lambda: not session.problem, "the session is joined")
    yield session
    recorder.hang.set()
    session.stop()


def test_it_joins_and_hears_of_each_sandbox(
    session: NriSession, recorder: Recorder, node: Node, client: CriClient
) -> None:
    """Both forms of the sandbox events end in the same calls, with the path of the network namespace."""
    assert session.problem == ""
    assert recorder.listed == [[]]
    pod = node.pod("heard")
    sandbox = client.run_sandbox(pod)
    client.create_container(sandbox, pod, "main", SLEEP, image=images.BUSYBOX)
    path = client.netns(sandbox)
    client.stop_sandbox(sandbox)
    client.remove_sandbox(sandbox)
    assert recorder.steps("heard") == ["run", "create main", "stop", "remove"]
    _, ref = recorder.seen[0]
    assert (ref.id, ref.netns_path, ref.pod.uid, ref.pod.namespace) == (sandbox, path, pod.uid, "default")


def test_long_messages_arrive(session: NriSession, recorder: Recorder, node: Node, client: CriClient) -> None:
    """A pod whose annotations are longer than the runtime's 4096-byte cut is read whole, and so is what follows."""
    pod = node.pod("long", annotations={"example.com/long": "x" * 200_000})
    sandbox = client.run_sandbox(pod)
    client.stop_sandbox(sandbox)
    assert recorder.steps("long") == ["run", "stop"]
    assert session.problem == ""


def test_an_error_refuses_the_sandbox_and_the_session_goes_on(
    session: NriSession, recorder: Recorder, node: Node, client: CriClient
) -> None:
    """The hook's own words come back to the caller, and the pod can be tried again on the same connection."""
    recorder.refuse["refused"] = "device nic1: refused for a test"
    pod = node.pod("refused")
    with pytest.raises(CriError, match="device nic1: refused for a test"):
        client.run_sandbox(pod)
    client.run_sandbox(pod)
    assert recorder.steps("refused") == ["run", "stop", "remove", "run"]
    assert len(recorder.listed) == 1
    assert session.problem == ""


def test_a_hook_that_hangs_is_an_error_before_the_runtime_gives_up(
    session: NriSession, recorder: Recorder, node: Node, client: CriClient
) -> None:
    """The runtime gets an error in time, does not drop the plugin, and the late success is taken back."""
    recorder.hang.clear()
    pod = node.pod("hangs")
    with pytest.raises(CriError, match="did not end in time"):
        client.run_sandbox(pod)
    assert session.problem == ""
    recorder.hang.set()
    node.wait_for(lambda: "late" in recorder.steps("hangs"), "the late success is taken back")
    client.run_sandbox(pod)
    assert len(recorder.listed) == 1, "the connection is the first one still"


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_it_joins_again_after_a_restart_of_the_runtime(
    session: NriSession, recorder: Recorder, node: Node, client: CriClient, *, kill: bool
) -> None:
    """After a restart the runtime lists the pods that run, and events come again."""
    running = node.pod("running")
    sandbox = client.run_sandbox(running)
    gone = client.run_sandbox(node.pod("gone"))
    client.stop_sandbox(gone)
    node.stop_containerd(kill=kill)
    node.wait_for(lambda: session.problem, "the session is lost")
    node.start_containerd()
    node.wait_for(lambda: not session.problem, "the session is joined again")
    [pod] = recorder.listed[-1]
    assert (pod.pod.uid, pod.id, pod.netns_path) == (running.uid, sandbox, client.netns(sandbox))
    client.run_sandbox(node.pod("next"))
    assert recorder.steps("next") == ["run"]
