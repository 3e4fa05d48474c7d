"""The session with the runtime, over real sockets against the stand-in that has the Go peer's manners."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.claims.model import PodRef
from nri_dranet.nri import session as module
from nri_dranet.nri.connection import Connection
from nri_dranet.nri.hooks import EVENTS, Hooks
from nri_dranet.nri.session import NriSession
from nri_dranet.pb import nri_pb2
from nri_dranet.reconcile.hooktypes import Adjustment, ContainerRef, HookError
from nri_dranet.reconcile.sandboxes import SandboxRef
from nri_dranet.telemetry import metrics
from nri_dranet.testing.runtime import Pod, RuntimeRefusedError, RuntimeStandIn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PATIENCE = 20.0
SHORT = 0.5
POD = Pod("s1", "web", "default", "uid-1", "/var/run/netns/one")
REF = SandboxRef(PodRef("default", "web", "uid-1"), "s1", "/var/run/netns/one")


@dataclass
class Recorder:
    """Stands where the keeper does: notes what comes, hangs or refuses where a test says so."""

    refuse: dict[str, Exception] = field(default_factory=dict)
    hang: dict[str, threading.Event] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    listed: list[list[SandboxRef]] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def _note(self, what: str, sandbox: SandboxRef) -> None:
        with self.changed:
            self.calls.append((what, sandbox.id))
            self.changed.notify_all()
        if gate := self.hang.get(f"{what} {sandbox.id}"):
            assert gate.wait(PATIENCE)
        if error := self.refuse.get(f"{what} {sandbox.id}"):
            raise error

    def wait_for(self, what: Callable[[], bool]) -> None:
        """Wait until something is true of what came."""
        with self.changed:
            assert self.changed.wait_for(what, PATIENCE)

    def run_sandbox(self, sandbox: SandboxRef, deadline: float) -> bool:
        """Note the call."""
        self.margins.append(deadline)
        self._note("run", sandbox)
        return True

    def create_container(self, sandbox: SandboxRef, container: ContainerRef, deadline: float) -> Adjustment | None:
        """Note the call."""
        del deadline
        self._note(f"create {container.name}", sandbox)
        return Adjustment(memlock=True)

    def stop_sandbox(self, sandbox: SandboxRef, deadline: float) -> bool:
        """Note the call."""
        del deadline
        self._note("stop", sandbox)
        return True

    def remove_sandbox(self, sandbox: SandboxRef) -> None:
        """Note the call."""
        self._note("remove", sandbox)

    def synchronize(self, sandboxes: Sequence[SandboxRef]) -> None:
        """Note the list."""
        with self.changed:
            self.listed.append(list(sandboxes))
            self.changed.notify_all()

    def late(self, sandbox: SandboxRef) -> None:
        """Note the call."""
        self._note("late", sandbox)

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
def stack() -> Iterator[contextlib.ExitStack]:
    """Return what ends everything that a test has begun, in reverse order."""
    with contextlib.ExitStack() as found:
        yield found


@pytest.fixture
def recorder(stack: contextlib.ExitStack) -> Recorder:
    """Return what the hooks end in. When the test is over nothing hangs any more."""
    found = Recorder()

    def let_go() -> None:
        for gate in found.hang.values():
            gate.set()

    stack.callback(let_go)
    return found


@dataclass
class Bench:
    """Begins runtimes and sessions, and sees to their end."""

    path: Path
    stack: contextlib.ExitStack
    recorder: Recorder

    def runtime(self, **options: Any) -> RuntimeStandIn:
        """Begin a runtime."""
        found = RuntimeStandIn(self.path, **options)
        found.start()
        self.stack.callback(found.stop)
        return found

    def session(self, *, name: str = "dra.net", index: str = "90", recorder: Recorder | None = None) -> NriSession:
        """Begin a session."""
        found = NriSession(self.path, name, index, Hooks(recorder or self.recorder), events=EVENTS)
        found.start()
        self.stack.callback(found.stop)
        return found


@pytest.fixture
def bench(path: Path, stack: contextlib.ExitStack, recorder: Recorder) -> Bench:
    """Return what begins runtimes and sessions."""
    return Bench(path, stack, recorder)


def no_drop(runtime: RuntimeStandIn) -> bool:
    """Say whether the runtime has dropped no plugin."""
    return not any("closing plugin" in line or "not taken" in line for line in runtime.log)


# ---- joining


@pytest.mark.parametrize("dedicated", [True, False])
@pytest.mark.parametrize("configure_first", [True, False])
@pytest.mark.parametrize("announce", [True, False])
def test_joins_and_serves_each_kind_of_runtime(
    bench: Bench, dedicated: bool, configure_first: bool, announce: bool
) -> None:
    """Events in both forms, Configure before or after the answer to RegisterPlugin, times told or not."""
    runtime = bench.runtime(dedicated_calls=dedicated, configure_first=configure_first, announce_timeouts=announce)
    session = bench.session()
    assert runtime.wait_for_plugin() == ["90-dra.net"]
    runtime.run_pod(POD)
    (adjustment,) = runtime.create_container(POD, "app")
    assert [limit.type for limit in adjustment.rlimits] == ["RLIMIT_MEMLOCK"]
    runtime.stop_pod(POD, with_netns=False)
    runtime.remove_pod(POD)
    assert bench.recorder.calls == [("run", "s1"), ("create app", "s1"), ("stop", "s1"), ("remove", "s1")]
    assert bench.recorder.listed == [[]]
    assert session.problem == ""
    assert no_drop(runtime)
    assert not any("deprecated" in line for line in runtime.log)


def test_subscribes_to_four_events_only(bench: Bench) -> None:
    """Run, Stop, Remove and CreateContainer: a mask of zero would mean all, an unknown bit would be refused."""
    runtime = bench.runtime()
    bench.session()
    runtime.wait_for_plugin()
    assert [plugin.events for plugin in runtime._plugins] == [0xF]


def test_events_beyond_an_old_runtime_are_not_asked_for(bench: Bench) -> None:
    """A runtime that tells no version refuses bits above the eleventh."""
    runtime = bench.runtime(dedicated_calls=False)
    session = NriSession(bench.path, "dra.net", "90", Hooks(bench.recorder), events=EVENTS | 0x2000)
    session.start()
    bench.stack.callback(session.stop)
    runtime.wait_for_plugin()
    assert [plugin.events for plugin in runtime._plugins] == [0xF]


def test_the_name_is_made_legal(bench: Bench) -> None:
    """Characters that NRI 0.12 does not allow in a plugin's name become dashes."""
    runtime = bench.runtime()
    bench.session(name="dra.net/my driver", index="07")
    assert runtime.wait_for_plugin() == ["07-dra.net-my-driver"]


@pytest.mark.parametrize(
    ("name", "index", "events", "text"),
    [
        ("", "90", 1, "name is empty"),
        ("x", "9", 1, "index '9' is not two digits"),
        ("x", "100", 1, "index '100'"),
        ("x", "9a", 1, "index '9a'"),
        ("x", "90", 0, "event mask 0"),
    ],
)
def test_what_no_runtime_accepts_is_refused_at_once(name: str, index: str, events: int, text: str) -> None:
    """A wrong name, index or mask would be a loop of refusals later."""
    with pytest.raises(ValueError, match=text):
        NriSession(Path("/x"), name, index, Hooks(Recorder()), events=events)


def test_two_plugins_are_called_in_order(bench: Bench) -> None:
    """Two instances, as in a rolling update, both join; the lower index is called first, and its refusal ends it."""
    runtime = bench.runtime()
    first = Recorder(refuse={"run s2": HookError("no")})
    bench.session(index="91")
    bench.session(index="10", recorder=first)
    assert runtime.wait_for_plugin(2) == ["10-dra.net", "91-dra.net"]
    runtime.run_pod(POD)
    assert (first.calls, bench.recorder.calls) == ([("run", "s1")], [("run", "s1")])
    second = Pod("s2", "two", "default", "uid-2")
    with pytest.raises(RuntimeRefusedError, match="no"):
        runtime.run_pod(second)
    ends = [("stop", "s2"), ("remove", "s2")]
    assert first.calls[1:] == [("run", "s2"), *ends]
    assert bench.recorder.calls[1:] == ends


def test_the_list_tells_running_from_stopped(bench: Bench) -> None:
    """After a restart of the runtime the list has both; only those that run are passed on, by ID."""
    runtime = bench.runtime()
    bench.session()
    runtime.wait_for_plugin()
    host, old = Pod("s2", "host", "kube-system", "uid-2"), Pod("s0", "web", "default", "uid-1", "/var/run/netns/one")
    for pod in (old, POD, host):
        runtime.run_pod(pod)
    runtime.stop_pod(old)
    runtime.restart()
    runtime.wait_for_plugin()
    assert bench.recorder.listed[-1] == [REF, SandboxRef(PodRef("kube-system", "host", "uid-2"), "s2", "")]


@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_the_list_may_come_in_parts(bench: Bench, chunk: int) -> None:
    """Parts are joined after the last one, and told to the keeper once."""
    runtime = bench.runtime(chunk=chunk)
    pods = [Pod(f"s{index}", f"pod-{index}", "default", f"uid-{index}") for index in range(5)]
    for pod in pods:
        runtime.run_pod(pod)
        runtime.create_container(pod, "app")
    bench.session()
    runtime.wait_for_plugin()
    ((*found,),) = bench.recorder.listed
    assert [sandbox.id for sandbox in found] == [pod.id for pod in pods]


def test_f30_a_list_longer_than_a_message_is_taken(bench: Bench) -> None:
    """A list of more than 4 MiB comes in parts, each cut as the Go peer cuts it."""
    runtime = bench.runtime(request_timeout=PATIENCE)
    pods = [Pod(f"s{index}", "n" * 60_000, "default", f"uid-{index}") for index in range(150)]
    for pod in pods:
        runtime.run_pod(pod)
    assert len(runtime._parts()) > 2
    bench.session()
    runtime.wait_for_plugin()
    assert [sandbox.id for sandbox in bench.recorder.listed[0]] == [pod.id for pod in pods]


def test_a_list_that_cannot_be_taken_in_is_no_end(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The hooks guard the next pods all the same."""
    runtime = bench.runtime()

    class Broken(Recorder):
        def synchronize(self, sandboxes: Sequence[SandboxRef]) -> None:
            raise RuntimeError(f"boom {sandboxes}")

    bench.session(recorder=Broken())
    runtime.wait_for_plugin()
    runtime.run_pod(POD)
    assert "boom" in caplog.text


def test_a_list_without_end_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The runtime then closes, and the session says why and tries on."""
    monkeypatch.setattr("nri_dranet.nri.listing.MAX_SANDBOXES", 1)
    runtime = bench.runtime()
    for index in range(2):
        runtime.run_pod(Pod(f"s{index}", "a", "b", "c"))
    session = bench.session()
    with pytest.raises(RuntimeRefusedError, match="more than 1 sandboxes"):
        runtime.wait_for_plugin(timeout=SHORT)
    assert session.problem.startswith("not connected")
    assert "cannot be joined" in caplog.text


# ---- hooks


@pytest.mark.parametrize("dedicated", [True, False])
def test_a_refusal_is_an_error_and_not_the_end(bench: Bench, dedicated: bool) -> None:
    """The text reaches the runtime, Stop and Remove follow, and the session serves on."""
    runtime = bench.runtime(dedicated_calls=dedicated)
    bench.recorder.refuse = {"run s1": HookError("device enp3 is in pod x"), "create app s2": HookError("not attached")}
    bench.session()
    runtime.wait_for_plugin()
    with pytest.raises(RuntimeRefusedError, match="device enp3 is in pod x"):
        runtime.run_pod(POD)
    assert bench.recorder.calls == [("run", "s1"), ("stop", "s1"), ("remove", "s1")]
    other = Pod("s2", "two", "default", "uid-2")
    runtime.run_pod(other)
    with pytest.raises(RuntimeRefusedError, match="not attached"):
        runtime.create_container(other, "app")
    assert no_drop(runtime)


def test_an_unexpected_failure_is_an_error_and_not_the_end(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A bug in a hook refuses the pod, with the exception's name, and is logged with its trace."""
    runtime = bench.runtime()
    bench.recorder.refuse = {"run s1": KeyError("mtu")}
    bench.session()
    runtime.wait_for_plugin()
    with pytest.raises(RuntimeRefusedError, match="internal error: KeyError: 'mtu'"):
        runtime.run_pod(POD)
    runtime.run_pod(Pod("s2", "two", "default", "uid-2"))
    assert "Traceback" in caplog.text
    assert no_drop(runtime)


def test_a_failing_stop_is_no_error(bench: Bench) -> None:
    """CRI-O would repeat it for ever."""
    runtime = bench.runtime(strict_stop=True)
    bench.recorder.refuse = {"stop s1": RuntimeError("boom")}
    bench.session()
    runtime.wait_for_plugin()
    runtime.run_pod(POD)
    runtime.stop_pod(POD)
    assert not any("failed" in line for line in runtime.log)


def test_other_methods_are_unimplemented_and_state_changes_succeed(bench: Bench) -> None:
    """Code 12 for what is not served; a StateChange that was not asked for is answered with Empty; so is Shutdown."""
    runtime = bench.runtime()
    bench.session()
    runtime.wait_for_plugin()
    with pytest.raises(RuntimeRefusedError, match="method UpdateContainer"):
        runtime.call_plugins("UpdateContainer", nri_pb2.UpdateContainerRequest())
    change = nri_pb2.StateChangeEvent(event=nri_pb2.START_CONTAINER)
    assert runtime.call_plugins("StateChange", change) == [b""]
    assert runtime.call_plugins("Shutdown", nri_pb2.Empty()) == [b""]
    assert bench.recorder.calls == []
    assert no_drop(runtime)


def test_an_answer_that_is_too_long_is_an_error(bench: Bench) -> None:
    """What does not fit in a message is told as an error, so that the runtime need not wait."""
    runtime = bench.runtime()

    class Long(Hooks):
        def call(self, method: str, payload: bytes, deadline: float) -> bytes | None:
            del method, payload, deadline
            return bytes(5 << 20)

    session = NriSession(bench.path, "dra.net", "90", Long(bench.recorder), events=EVENTS)
    session.start()
    bench.stack.callback(session.stop)
    runtime.wait_for_plugin()
    with pytest.raises(RuntimeRefusedError, match="allowed are 4194304"):
        runtime.run_pod(POD)


# ---- the guard of the deadline


def test_the_hook_is_told_a_deadline_below_the_runtimes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2 s the hook has 1.4 and the answer leaves after 1.6 at the latest, also where the runtime tells no time."""
    now = 1000.0
    monkeypatch.setattr("nri_dranet.nri.connection.time.monotonic", lambda: now)
    runtime = bench.runtime(announce_timeouts=False)
    bench.session()
    runtime.wait_for_plugin()
    runtime.run_pod(POD)
    # The runtime tells the time that is left with each call, which is a little less.
    assert bench.recorder.margins == [pytest.approx(now + 1.4, abs=0.05)]


@pytest.mark.parametrize("dedicated", [True, False])
def test_f03_a_hook_that_hangs_is_answered_for(bench: Bench, dedicated: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The error leaves in time, later events are served meanwhile, and what the hook did in the end is taken back."""
    runtime = bench.runtime(dedicated_calls=dedicated, request_timeout=SHORT)
    gate = bench.recorder.hang["run s1"] = threading.Event()
    bench.session()
    runtime.wait_for_plugin()
    with pytest.raises(RuntimeRefusedError, match="RunPodSandbox of pod default/web did not end in time"):
        runtime.run_pod(POD)
    assert bench.recorder.calls == [("run", "s1"), ("stop", "s1"), ("remove", "s1")]
    for index in range(2, 5):
        runtime.run_pod(Pod(f"s{index}", "next", "default", f"uid-{index}"))
    gate.set()
    bench.recorder.wait_for(lambda: ("late", "s1") in bench.recorder.calls)
    runtime.run_pod(Pod("s9", "last", "default", "uid-9"))
    assert no_drop(runtime)
    assert "a hook hangs" in caplog.text
    assert len(runtime.plugins) == 1


def test_a_late_refusal_needs_nothing_taken_back(bench: Bench) -> None:
    """A hook that failed by itself has undone what it did."""
    runtime = bench.runtime(request_timeout=SHORT)
    gate = bench.recorder.hang["run s1"] = threading.Event()
    bench.recorder.refuse = {"run s1": HookError("deadline")}
    session = bench.session()
    runtime.wait_for_plugin()
    with pytest.raises(RuntimeRefusedError, match="did not end in time"):
        runtime.run_pod(POD)
    gate.set()
    while session._hung:
        runtime.run_pod(Pod("s2", "two", "default", "uid-2"))
    session.stop()
    assert ("late", "s1") not in bench.recorder.calls


def test_a_late_result_that_cannot_be_taken_back_is_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The failure is never silent, and the session goes on."""
    runtime = bench.runtime(request_timeout=SHORT)
    gate = bench.recorder.hang["run s1"] = threading.Event()
    bench.recorder.refuse = {"late s1": RuntimeError("boom")}
    bench.session()
    runtime.wait_for_plugin()
    with pytest.raises(RuntimeRefusedError):
        runtime.run_pod(POD)
    gate.set()
    bench.recorder.wait_for(lambda: ("late", "s1") in bench.recorder.calls)
    while "could not be taken back" not in caplog.text:
        runtime.run_pod(Pod("s2", "two", "default", "uid-2"))
    assert no_drop(runtime)


def test_a_stop_that_hangs_is_answered_as_done(bench: Bench) -> None:
    """Stop is never an error; the devices come home behind the answer."""
    runtime = bench.runtime(request_timeout=SHORT, strict_stop=True)
    gate = bench.recorder.hang["stop s1"] = threading.Event()
    bench.session()
    runtime.wait_for_plugin()
    runtime.run_pod(POD)
    runtime.stop_pod(POD)
    runtime.remove_pod(POD)
    gate.set()
    assert bench.recorder.calls == [("run", "s1"), ("stop", "s1"), ("remove", "s1")]
    assert no_drop(runtime)


def test_hooks_that_hang_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds a thread: beyond the bound the next is refused at once, and goes again when one has ended."""
    monkeypatch.setattr(module, "MAX_HUNG", 2)
    runtime = bench.runtime(request_timeout=SHORT)
    gates = [bench.recorder.hang.setdefault(f"run s{index}", threading.Event()) for index in range(2)]
    session = bench.session()
    runtime.wait_for_plugin()
    for index in range(2):
        with pytest.raises(RuntimeRefusedError, match="did not end in time"):
            runtime.run_pod(Pod(f"s{index}", "hangs", "default", f"uid-{index}"))
    third = Pod("s3", "third", "default", "uid-3")
    with pytest.raises(RuntimeRefusedError, match="2 hooks hang in the kernel"):
        runtime.run_pod(third)
    # Its Stop and Remove were carried out: an end is never refused.
    assert bench.recorder.calls[-2:] == [("stop", "s3"), ("remove", "s3")]
    for gate in gates:
        gate.set()
    bench.recorder.wait_for(lambda: ("late", "s1") in bench.recorder.calls)
    while session._hung:
        runtime.stop_pod(third)
    runtime.run_pod(third)


def test_a_runtime_that_goes_away_while_a_hook_hangs(bench: Bench) -> None:
    """The watchdog finds the connection dead and closes it; the session joins the new runtime."""
    runtime = bench.runtime(request_timeout=SHORT)
    gate = bench.recorder.hang["run s1"] = threading.Event()
    bench.session()
    runtime.wait_for_plugin()
    caller = threading.Thread(target=runtime.run_pod, args=(POD,))
    caller.start()
    bench.recorder.wait_for(lambda: ("run", "s1") in bench.recorder.calls)
    runtime.stop()
    caller.join()
    runtime.start()
    assert runtime.wait_for_plugin() == ["90-dra.net"]
    gate.set()
    bench.recorder.wait_for(lambda: ("late", "s1") in bench.recorder.calls)
    runtime.run_pod(Pod("s2", "two", "default", "uid-2"))


# ---- losing the runtime


def test_comes_back_whenever_the_runtime_does(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Eight restarts are survived; each time the list is taken anew and events are served."""
    monkeypatch.setattr(module, "_LONGEST_PAUSE", 0.1)
    caplog.set_level(logging.INFO)
    runtime = bench.runtime()
    session = bench.session()
    joined = metrics.NRI_CONNECTS.labels("joined")._value.get()
    for index in range(8):
        runtime.wait_for_plugin()
        runtime.run_pod(Pod(f"s{index}", "a", "default", f"uid-{index}"))
        runtime.restart()
    runtime.wait_for_plugin()
    assert [len(listed) for listed in bench.recorder.listed] == list(range(9))
    assert [call for call in bench.recorder.calls if call[0] == "run"] == [("run", f"s{index}") for index in range(8)]
    session.stop()
    assert metrics.NRI_CONNECTS.labels("joined")._value.get() == joined + 9
    assert metrics.NRI_CONNECTED._value.get() == 0
    assert caplog.text.count("the container runtime is lost") == 8


def test_pauses_grow_until_a_session_lasts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """They double up to a limit while the runtime stays away; after a session that lasted the first try is soon."""
    monkeypatch.setattr(module, "_LONGEST_PAUSE", 0.15)
    monkeypatch.setattr("nri_dranet.nri.session.random.uniform", lambda low, high: (low + high) / 2)
    session = NriSession(bench.path, "dra.net", "90", Hooks(bench.recorder), events=EVENTS)
    pauses: list[float | None] = []
    several, real = threading.Event(), session._stop.wait

    def wait(timeout: float | None = None) -> bool:
        pauses.append(timeout)
        if len(pauses) == 4:
            several.set()
        return real(timeout)

    monkeypatch.setattr(session._stop, "wait", wait)
    session.start()
    bench.stack.callback(session.stop)
    assert several.wait(PATIENCE)
    assert pauses[:4] == [0.05, 0.1, 0.15, 0.15]
    runtime = bench.runtime()
    runtime.wait_for_plugin()
    threading.Event().wait(0.2)
    pauses.clear()
    runtime.restart()
    runtime.wait_for_plugin()
    assert pauses[0] == 0.05


def test_waits_for_a_runtime_that_is_not_there_yet(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, not with each try, and the session joins when the runtime comes."""
    failed = metrics.NRI_CONNECTS.labels("failed")
    before = failed._value.get()
    session = bench.session()
    while failed._value.get() < before + 3:
        threading.Event().wait(0.01)
    assert session.problem.startswith(f"not connected to {bench.path}: [Errno 2] No such file")
    assert caplog.text.count("cannot be joined") == 1
    runtime = bench.runtime()
    runtime.wait_for_plugin()


def test_a_runtime_that_does_not_answer_in_time_loses_the_plugin_for_a_moment(bench: Bench) -> None:
    """When the runtime has closed the connection the session comes back, and the list tells what it missed."""
    runtime = bench.runtime()
    bench.session()
    runtime.wait_for_plugin()
    runtime._plugins[0].close("context deadline exceeded")
    runtime.run_pod(POD)
    bench.recorder.wait_for(lambda: [REF] in bench.recorder.listed)
    runtime.wait_for_plugin()


def test_stop_ends_the_running_hook_first(bench: Bench) -> None:
    """Its answer still reaches the runtime; after that the plugin is gone."""
    runtime = bench.runtime()
    gate = bench.recorder.hang["run s1"] = threading.Event()
    bench.recorder.refuse = {"run s1": HookError("no")}
    session = bench.session()
    runtime.wait_for_plugin()
    stopper = threading.Thread(target=session.stop)
    failures: list[str] = []

    def run() -> None:
        try:
            runtime.run_pod(POD)
        except RuntimeRefusedError as error:
            failures.append(str(error))

    caller = threading.Thread(target=run)
    caller.start()
    bench.recorder.wait_for(lambda: ("run", "s1") in bench.recorder.calls)
    stopper.start()
    assert session._stop.wait(PATIENCE)
    gate.set()
    caller.join()
    stopper.join()
    assert failures == ["no"]
    runtime.wait_for_loss()
    assert not session._supervisor.is_alive()
    assert not session._watchdog.is_alive()


def test_stop_without_a_start_or_a_runtime(bench: Bench) -> None:
    """A session that never joined can be stopped, started or not."""
    NriSession(bench.path, "dra.net", "90", Hooks(bench.recorder), events=EVENTS).stop()
    session = bench.session()
    session.stop()
    assert not session._supervisor.is_alive()


@pytest.mark.parametrize("value", ["x", "99999"])
def test_a_useless_descriptor_is_told_and_the_socket_dialled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    """What stands in the environment may be wrong; the session joins all the same."""
    monkeypatch.setenv("NRI_PLUGIN_SOCKET", value)
    runtime = bench.runtime()
    bench.session()
    runtime.wait_for_plugin()
    assert "its socket is dialled" in caplog.text


# ---- when this program's own parts fail


def test_no_thread_to_read_with(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A machine without a thread to spare is a failed try, not the end."""
    runtime = bench.runtime()
    real, left = threading.Thread.start, [2]

    def start(thread: threading.Thread) -> None:
        if thread.name == "nri-reader" and left[0]:
            left[0] -= 1
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    bench.session()
    runtime.wait_for_plugin()
    assert left == [0]
    assert "cannot be joined" in caplog.text


@pytest.mark.parametrize("where", ["register", "take_in"])
def test_a_bug_is_logged_and_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """Whatever fails in joining or reading costs that connection only."""
    runtime = bench.runtime(registration_timeout=0.1)
    real = getattr(Connection, where)
    left = [1]

    def fail(*args: object) -> object:
        if left[0]:
            left[0] = 0
            raise ZeroDivisionError("bug")
        return real(*args)

    monkeypatch.setattr(Connection, where, fail)
    bench.session()
    runtime.wait_for_plugin()
    assert "bug" in caplog.text


def test_a_watchdog_that_fails_gives_the_connection_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the answer for a hanging hook cannot be made the connection is closed, and the watchdog lives on."""
    monkeypatch.setattr(Hooks, "overdue", lambda *_: 1 / 0)
    runtime = bench.runtime(request_timeout=SHORT)
    gates = [bench.recorder.hang.setdefault(f"run s{index}", threading.Event()) for index in range(2)]
    session = bench.session()
    for index in range(2):
        runtime.wait_for_plugin()
        runtime.run_pod(Pod(f"s{index}", "hangs", "default", f"uid-{index}"))
        runtime.wait_for_loss()
    for gate in gates:
        gate.set()
    runtime.wait_for_plugin()
    assert session._watchdog.is_alive()
    assert "could not be answered for" in caplog.text
