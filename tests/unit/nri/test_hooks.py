"""The runtime's calls on their way to the keeper: both forms, what is added to a container, and what never fails."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from nri_dranet.claims.model import PodRef
from nri_dranet.claims.plan import CharDevice
from nri_dranet.nri.hooks import EVENTS, Hooks
from nri_dranet.nri.listing import MAX_SANDBOXES, Listing, sandbox_of
from nri_dranet.pb import nri_pb2
from nri_dranet.reconcile.hooktypes import Adjustment, ContainerRef, HookError
from nri_dranet.reconcile.sandboxes import SandboxRef
from nri_dranet.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from google.protobuf.message import Message

NETNS = "/var/run/netns/cni-1"
SANDBOX = SandboxRef(PodRef("default", "web", "uid-1"), "s1", NETNS)
DEADLINE = 12.5


@dataclass
class Recorder:
    """Stands where the keeper does."""

    has: bool = True
    error: Exception | None = None
    adjustment: Adjustment | None = None
    calls: list[tuple[object, ...]] = field(default_factory=list)

    def _note(self, *call: object) -> bool:
        self.calls.append(call)
        if self.error is not None:
            raise self.error
        return self.has

    def run_sandbox(self, sandbox: SandboxRef, deadline: float) -> bool:
        """Note the call."""
        return self._note("run", sandbox, deadline)

    def create_container(self, sandbox: SandboxRef, container: ContainerRef, deadline: float) -> Adjustment | None:
        """Note the call."""
        self._note("create", sandbox, container, deadline)
        return self.adjustment

    def stop_sandbox(self, sandbox: SandboxRef, deadline: float) -> bool:
        """Note the call."""
        return self._note("stop", sandbox, deadline)

    def remove_sandbox(self, sandbox: SandboxRef) -> None:
        """Note the call."""
        self._note("remove", sandbox)

    def synchronize(self, sandboxes: Sequence[SandboxRef]) -> None:
        """Note the call."""
        self._note("synchronize", list(sandboxes))

    def late(self, sandbox: SandboxRef) -> None:
        """Note the call."""
        self._note("late", sandbox)

    def has_claims(self, pod: PodRef) -> bool:
        """Say yes of a pod by its name."""
        return pod.name == "with-claim"


def pod(*, network: str = NETNS, pid: int = 7, name: str = "s1") -> nri_pb2.PodSandbox:
    """Return a sandbox as the runtime tells it."""
    found = nri_pb2.PodSandbox(id=name, name="web", namespace="default", uid="uid-1", pid=pid)
    found.linux.namespaces.add(type="ipc", path="/proc/7/ns/ipc")
    if network:
        found.linux.namespaces.add(type="network", path=network)
    return found


def request(form: str, event: str, sandbox: nri_pb2.PodSandbox | None = None) -> tuple[str, bytes]:
    """Return method and payload of a sandbox event in one of the two forms."""
    sandbox = sandbox if sandbox is not None else pod()
    if form == "dedicated":
        message: Message = getattr(nri_pb2, f"{event}Request")(pod=sandbox)
        return event, message.SerializeToString()
    number = {"RunPodSandbox": 1, "StopPodSandbox": 2, "RemovePodSandbox": 3}[event]
    change = nri_pb2.StateChangeEvent(event=nri_pb2.Event.Name(number), pod=sandbox)
    return "StateChange", change.SerializeToString()


def count(method: str, status: str) -> float:
    """Return how often a call ended so."""
    value = metrics.NRI_REQUESTS.labels(method, status)._value.get()
    assert isinstance(value, float)
    return value


FORMS = pytest.mark.parametrize("form", ["dedicated", "statechange"])


def test_the_events_are_those_of_sandboxes_and_container_creation() -> None:
    """Run, Stop, Remove and CreateContainer: legal with every release."""
    assert EVENTS == 0xF


@FORMS
def test_both_forms_of_an_event_end_in_the_same_call(form: str) -> None:
    """StateChange of NRI 0.11 and the calls of 0.12 say the same to the keeper, and are answered with Empty."""
    recorder = Recorder()
    hooks = Hooks(recorder)
    for event in ("RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"):
        assert hooks.call(*request(form, event), DEADLINE) == b""
    assert recorder.calls == [("run", SANDBOX, DEADLINE), ("stop", SANDBOX, DEADLINE), ("remove", SANDBOX)]


@pytest.mark.parametrize("number", [0, 4, 5, 13, 14, 99])
def test_other_state_changes_just_succeed(number: int) -> None:
    """An event that was not asked for, known or not, is answered with Empty and reaches nobody."""
    recorder = Recorder()
    payload = b"\x08" + bytes([number]) + nri_pb2.StateChangeEvent(pod=pod()).SerializeToString()
    assert Hooks(recorder).call("StateChange", payload, DEADLINE) == b""
    assert recorder.calls == []


@pytest.mark.parametrize("method", ["UpdatePodSandbox", "StopContainer", "ValidateContainerAdjustment", "x", ""])
def test_an_unknown_method_is_none(method: str) -> None:
    """The session then answers code 12, on which NRI 0.12 relies."""
    assert Hooks(Recorder()).call(method, b"", DEADLINE) is None


@FORMS
def test_a_refused_run_is_an_error(form: str) -> None:
    """The keeper's refusal goes through to the session, and is counted as failed."""
    before = count("RunPodSandbox", "failed")
    with pytest.raises(HookError, match="no cable"):
        Hooks(Recorder(error=HookError("no cable"))).call(*request(form, "RunPodSandbox"), DEADLINE)
    assert count("RunPodSandbox", "failed") == before + 1


@FORMS
@pytest.mark.parametrize(("event", "word"), [("StopPodSandbox", "stop"), ("RemovePodSandbox", "remove")])
def test_the_end_of_a_sandbox_never_fails(form: str, event: str, word: str, caplog: pytest.LogCaptureFixture) -> None:
    """CRI-O would repeat a failed Stop for ever: what goes wrong is logged and counted, and the answer is good."""
    recorder = Recorder(error=RuntimeError("boom"))
    before = count(event, "failed")
    assert Hooks(recorder).call(*request(form, event), DEADLINE) == b""
    assert [call[0] for call in recorder.calls] == [word]
    assert count(event, "failed") == before + 1
    assert "not handled" in caplog.text
    assert "boom" in caplog.text


def test_a_stop_without_namespaces_is_passed_on() -> None:
    """Old containerd tells neither process nor namespaces in Stop; the sandbox's ID is enough."""
    recorder = Recorder()
    Hooks(recorder).call(*request("dedicated", "StopPodSandbox", nri_pb2.PodSandbox(id="s1", uid="u")), DEADLINE)
    assert recorder.calls == [("stop", SandboxRef(PodRef("", "", "u"), "s1", ""), DEADLINE)]


@pytest.mark.parametrize(("has", "status"), [(True, "success"), (False, "noop")])
def test_pods_without_devices_are_counted_apart(has: bool, status: str) -> None:
    """A noop is a pod that this driver has nothing to do with."""
    hooks = Hooks(Recorder(has=has))
    before = [count(event, status) for event in ("RunPodSandbox", "StopPodSandbox")]
    hooks.call(*request("dedicated", "RunPodSandbox"), DEADLINE)
    hooks.call(*request("statechange", "StopPodSandbox"), DEADLINE)
    after = [count(event, status) for event in ("RunPodSandbox", "StopPodSandbox")]
    assert after == [value + 1 for value in before]


@pytest.mark.parametrize("method", ["CreateContainer", "StateChange", "RunPodSandbox", "StopPodSandbox"])
def test_a_request_that_cannot_be_decoded_is_told(method: str) -> None:
    """The session answers it as an invalid argument; the keeper hears nothing."""
    recorder = Recorder()
    with pytest.raises(DecodeError):
        Hooks(recorder).call(method, b"\xff\xff", DEADLINE)
    assert recorder.calls == []


def create(*devices: tuple[int, int]) -> bytes:
    """Return an encoded CreateContainer."""
    made = nri_pb2.CreateContainerRequest(pod=pod())
    made.container.id, made.container.name = "c1", "app"
    for major, minor in devices:
        made.container.linux.devices.add(major=major, minor=minor)
    return made.SerializeToString()


def test_the_keeper_learns_of_the_container() -> None:
    """Its name and the character devices that it has are passed on."""
    recorder = Recorder()
    assert Hooks(recorder).call("CreateContainer", create((231, 192)), DEADLINE) == b""
    assert recorder.calls == [("create", SANDBOX, ContainerRef("app", frozenset({(231, 192)})), DEADLINE)]


def test_a_container_gets_devices_and_locked_memory() -> None:
    """Numbers, mode and owner of each char device are told, and the limit of locked memory is lifted."""
    device = CharDevice(path="/dev/infiniband/uverbs0", major=231, minor=192, mode=0o660, uid=1, gid=2)
    hooks = Hooks(Recorder(adjustment=Adjustment(devices=(device,), memlock=True)))
    payload = hooks.call("CreateContainer", create(), DEADLINE)
    assert payload is not None
    adjust = nri_pb2.CreateContainerResponse.FromString(payload).adjust
    (added,) = adjust.linux.devices
    assert (added.path, added.type, added.major, added.minor) == ("/dev/infiniband/uverbs0", "c", 231, 192)
    assert (added.file_mode.value, added.uid.value, added.gid.value) == (0o660, 1, 2)
    (limit,) = adjust.rlimits
    assert (limit.type, limit.hard, limit.soft) == ("RLIMIT_MEMLOCK", 2**64 - 1, 2**64 - 1)


def test_an_empty_adjustment_adds_nothing() -> None:
    """Without devices and limits the answer says nothing of them."""
    payload = Hooks(Recorder(adjustment=Adjustment())).call("CreateContainer", create(), DEADLINE)
    assert payload is not None
    assert not nri_pb2.CreateContainerResponse.FromString(payload).adjust.ByteSize()


def test_a_refused_container_is_an_error() -> None:
    """The keeper's refusal goes through to the session."""
    with pytest.raises(HookError, match="not attached"):
        Hooks(Recorder(error=HookError("not attached"))).call("CreateContainer", create(), DEADLINE)


@FORMS
def test_what_is_overdue_is_an_error_only_where_that_helps(form: str) -> None:
    """Run and CreateContainer are refused, with the pod's name; Stop and Remove are answered as if they were done."""
    hooks = Hooks(Recorder())
    text = hooks.overdue(*request(form, "RunPodSandbox"))
    assert text is not None
    assert text.startswith("RunPodSandbox of pod default/web did not end in time")
    assert (hooks.overdue("CreateContainer", create()) or "").startswith("CreateContainer of pod default/web")
    assert hooks.overdue("Synchronize", b"") == "Synchronize did not end in time"
    assert hooks.overdue(*request(form, "StopPodSandbox")) is None
    assert hooks.overdue(*request(form, "RemovePodSandbox")) is None


@FORMS
def test_only_a_late_run_is_taken_back(form: str) -> None:
    """What a late RunPodSandbox attached is given back; a late Stop has done what was wanted."""
    recorder = Recorder()
    hooks = Hooks(recorder)
    hooks.late(*request(form, "StopPodSandbox"))
    hooks.late("CreateContainer", create())
    hooks.late("Synchronize", b"")
    assert recorder.calls == []
    hooks.late(*request(form, "RunPodSandbox"))
    assert recorder.calls == [("late", SANDBOX)]


def listed(*parts: nri_pb2.SynchronizeRequest) -> list[str]:
    """Return the IDs of the sandboxes that run, by a list in parts."""
    listing = Listing()
    for part in parts:
        listing.add(part)
    return [sandbox.id for sandbox in listing.running()]


def test_a_pod_on_the_hosts_network_has_no_path() -> None:
    """No namespace of type network: the path is empty."""
    assert sandbox_of(pod(network="")).netns_path == ""
    assert sandbox_of(pod()) == SANDBOX


def test_the_list_leaves_out_what_has_stopped(tmp_path: Path) -> None:
    """A process, a namespace that is there or a living container say that a sandbox runs; else it has stopped."""
    here, gone = tmp_path / "here", tmp_path / "gone"
    here.touch()
    part = nri_pb2.SynchronizeRequest(
        pods=[
            pod(name="running"),
            pod(name="host-network", network=""),
            pod(name="no-process-told", pid=0, network=str(here)),
            pod(name="stopped", pid=0, network=""),
            pod(name="stopped-path-told", pid=0, network=str(gone)),
            pod(name="host-network-no-process-told", pid=0, network=""),
            pod(name="only-dead-containers", pid=0, network=""),
        ],
        containers=[
            nri_pb2.Container(pod_sandbox_id="host-network-no-process-told", state=nri_pb2.CONTAINER_RUNNING),
            nri_pb2.Container(pod_sandbox_id="only-dead-containers", state=nri_pb2.CONTAINER_STOPPED),
        ],
    )
    assert listed(part) == ["running", "host-network", "no-process-told", "host-network-no-process-told"]


def test_the_list_is_joined_after_its_last_part() -> None:
    """A container may come in an earlier part than its sandbox."""
    first = nri_pb2.SynchronizeRequest(
        containers=[nri_pb2.Container(pod_sandbox_id="a", state=nri_pb2.CONTAINER_CREATED)], more=True
    )
    assert listed(first, nri_pb2.SynchronizeRequest(pods=[pod(name="a", pid=0, network="")])) == ["a"]


def test_the_list_has_an_end() -> None:
    """A list without end is refused before it fills the memory."""
    listing = Listing()
    part = nri_pb2.SynchronizeRequest(pods=[nri_pb2.PodSandbox(id=str(index)) for index in range(MAX_SANDBOXES // 4)])
    for _ in range(4):
        listing.add(part)
    with pytest.raises(HookError, match="more than 100000 sandboxes"):
        listing.add(part)
    assert len(listing) == MAX_SANDBOXES


def test_synchronize_passes_the_running_on_and_is_never_refused(caplog: pytest.LogCaptureFixture) -> None:
    """An error there would make the runtime drop the plugin, and nothing would guard the pods that follow."""
    listing = Listing()
    listing.add(nri_pb2.SynchronizeRequest(pods=[pod(), pod(name="s2", pid=0, network="")]))
    recorder = Recorder(error=RuntimeError("boom"))
    Hooks(recorder).synchronize(listing)
    assert recorder.calls == [("synchronize", [SANDBOX])]
    assert "could not be taken in" in caplog.text


@settings(deadline=None)
@given(
    method=st.sampled_from(["CreateContainer", "StateChange", "RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"]),
    payload=st.binary(max_size=200),
)
def test_no_bytes_make_a_hook_fail_otherwise(method: str, payload: bytes) -> None:
    """Whatever the payload, a hook answers or says that it cannot be decoded."""
    try:
        assert Hooks(Recorder()).call(method, payload, DEADLINE) is not None
    except DecodeError:
        return


@pytest.mark.parametrize("name", ["with-claim", "without"])
def test_what_a_pod_with_a_claim_depends_on_is_known_without_a_journal(name: str) -> None:
    """Its start and its containers, in both forms; not its end, and nothing of other pods."""
    sandbox = pod()
    sandbox.name = name
    hooks = Hooks(Recorder())
    starts = {
        "RunPodSandbox": nri_pb2.RunPodSandboxRequest(pod=sandbox),
        "CreateContainer": nri_pb2.CreateContainerRequest(pod=sandbox),
        "StateChange": nri_pb2.StateChangeEvent(event=nri_pb2.RUN_POD_SANDBOX, pod=sandbox),
    }
    ends = {
        "StopPodSandbox": nri_pb2.StopPodSandboxRequest(pod=sandbox),
        "StateChange": nri_pb2.StateChangeEvent(event=nri_pb2.STOP_POD_SANDBOX, pod=sandbox),
    }
    for method, request in starts.items():
        assert hooks.concerns(method, request.SerializeToString()) is (name == "with-claim")
    for method, request in ends.items():
        assert not hooks.concerns(method, request.SerializeToString())
