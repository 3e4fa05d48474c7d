"""kubelet's calls: every claim gets an answer, whatever happens with it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from nri_dranet.dra.handler import PreparedDevice, PrepareError, SlowClaimError
from nri_dranet.dra.registration import PluginServer
from nri_dranet.dra.servicer import DraServicer
from nri_dranet.telemetry import metrics
from nri_dranet.testing.kubelet import KubeletStandIn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from nri_dranet.claims.model import ClaimRef

A = ("default", "a", "uid-a")
B = ("default", "b", "uid-b")
PATIENCE = 20.0


class Handler:
    """A handler whose work a test can replace."""

    def __init__(self) -> None:
        self.on_prepare: Callable[[ClaimRef], Sequence[Any]] = lambda ref: [device(ref)]
        self.slow = False
        self.threads: list[str] = []
        self.on_unprepare: Callable[[ClaimRef], None] = lambda _ref: None

    def prepare(self, ref: ClaimRef, *, patient: bool = True) -> Sequence[PreparedDevice]:
        """Prepare a claim; one that is slow must be waited for."""
        self.threads.append(threading.current_thread().name.partition("_")[0])
        if self.slow and not patient:
            raise SlowClaimError
        return self.on_prepare(ref)

    def unprepare(self, ref: ClaimRef) -> None:
        """Release a claim."""
        self.on_unprepare(ref)


def device(ref: ClaimRef) -> PreparedDevice:
    """Return the device of a claim."""
    return PreparedDevice(("nic",), "node", "eth1", (f"dra.net/net={ref.uid}",), "share-1")


class Rig:
    """A plugin and the kubelet that calls it."""

    def __init__(self, loop: Any, root: Path, versions: Sequence[str], *, patience: float | None = None) -> None:
        self.handler = Handler()
        self.servicer = DraServicer(self.handler) if patience is None else DraServicer(patience=patience)
        loop.serve(PluginServer("dra.net", root, self.servicer.handlers()))
        self.kubelet = KubeletStandIn(root / "plugins_registry", driver="dra.net", versions=versions)
        self.kubelet.start()
        self.kubelet.wait_registered()


@pytest.fixture
def make_rig(loop: Any, root: Path) -> Iterator[Callable[..., Rig]]:
    """Give a function that starts a plugin and a kubelet."""
    made: list[Rig] = []

    def make(*versions: str, patience: float | None = None) -> Rig:
        made.append(Rig(loop, root, versions or ("v1", "v1beta1"), patience=patience))
        return made[-1]

    yield make
    for rig in made:
        rig.kubelet.stop()
        rig.servicer.close()


@pytest.mark.parametrize(("version", "share"), [("v1", "share-1"), ("v1beta1", None)])
def test_both_versions_say_the_same(make_rig: Callable[..., Rig], version: str, share: str | None) -> None:
    """A device is told completely in v1; v1beta1 has no share."""
    rig = make_rig(version)
    assert rig.kubelet.wait_registered().version == version
    expected = {"requests": ["nic"], "pool": "node", "device": "eth1", "cdi": ["dra.net/net=uid-a"], "share": share}
    assert rig.kubelet.prepare([A]) == {"uid-a": {"error": "", "devices": [expected]}}
    assert rig.kubelet.unprepare([A]) == {"uid-a": {"error": ""}}


def test_a_refusal_is_the_claims_own(make_rig: Callable[..., Rig]) -> None:
    """One claim is refused with the handler's words, the other is prepared."""
    rig = make_rig()

    def prepare(ref: ClaimRef) -> Sequence[PreparedDevice]:
        if ref.uid == "uid-a":
            raise PrepareError("no such device")
        return [device(ref)]

    rig.handler.on_prepare = prepare
    answers = rig.kubelet.prepare([A, B])
    assert answers["uid-a"] == {"error": "no such device", "devices": []}
    assert not answers["uid-b"]["error"]


@pytest.mark.parametrize("method", ["prepare", "unprepare"])
def test_what_nobody_expected_is_the_claims_error_too(
    make_rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """An exception of the handler names the claim in its answer and is logged with its traceback; the call succeeds."""
    rig = make_rig()

    def fail(_ref: ClaimRef) -> Any:
        raise RuntimeError("broken \udcff")

    rig.handler.on_prepare = rig.handler.on_unprepare = fail
    (answer,) = getattr(rig.kubelet, method)([A]).values()
    assert answer["error"] == "claim default/a: internal error: RuntimeError: broken \\udcff"
    assert any(record.exc_info for record in caplog.records)


def test_a_slow_claim_is_waited_for_where_it_keeps_no_other(make_rig: Callable[..., Rig]) -> None:
    """What must wait for others is begun anew by threads of its own."""
    rig = make_rig()
    rig.handler.slow = True
    assert not rig.kubelet.prepare([A])["uid-a"]["error"]
    assert rig.handler.threads == ["prepare", "patient"]


def test_a_device_that_cannot_be_told_is_the_claims_error(make_rig: Callable[..., Rig]) -> None:
    """An answer that protobuf does not take fails its claim only."""
    rig = make_rig()
    rig.handler.on_prepare = lambda ref: [PreparedDevice(("nic",), "node", 5) if ref.uid == "uid-a" else device(ref)]  # type: ignore[arg-type]  # on purpose
    answers = rig.kubelet.prepare([A, B])
    assert "internal error" in answers["uid-a"]["error"]
    assert not answers["uid-b"]["error"]


def test_a_claim_that_is_named_twice_is_handled_once(make_rig: Callable[..., Rig]) -> None:
    """The same UID twice in a request is one claim."""
    rig = make_rig()
    seen: list[str] = []
    rig.handler.on_unprepare = lambda ref: seen.append(ref.uid)
    assert rig.kubelet.unprepare([A, A, B]) == {"uid-a": {"error": ""}, "uid-b": {"error": ""}}
    assert sorted(seen) == ["uid-a", "uid-b"]


def test_the_claims_of_a_call_are_handled_beside_each_other(make_rig: Callable[..., Rig]) -> None:
    """Two claims meet at a barrier, which they could not one after the other."""
    rig = make_rig()
    barrier = threading.Barrier(2, timeout=PATIENCE)

    def prepare(ref: ClaimRef) -> Sequence[PreparedDevice]:
        barrier.wait()
        return [device(ref)]

    rig.handler.on_prepare = prepare
    assert not any(answer["error"] for answer in rig.kubelet.prepare([A, B]).values())


def test_one_claim_is_handled_by_one_call_at_a_time(make_rig: Callable[..., Rig]) -> None:
    """A call that kubelet gave up on is finished before the next one touches the claim, and leaves no lock."""
    rig = make_rig()
    begun, go, events = threading.Event(), threading.Event(), []

    def slow(ref: ClaimRef) -> Sequence[PreparedDevice]:
        events.append("slow begins")
        begun.set()
        go.wait(PATIENCE)
        events.append("slow ends")
        return [device(ref)]

    rig.handler.on_prepare = slow
    with pytest.raises(grpc.RpcError) as gone:
        rig.kubelet.prepare([A], timeout=0.3)
    assert gone.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert begun.wait(PATIENCE)
    rig.handler.on_unprepare = lambda _ref: events.append("unprepare")
    other = threading.Thread(target=rig.kubelet.unprepare, args=([A],))
    other.start()
    assert rig.kubelet.unprepare([B])["uid-b"] == {"error": ""}
    go.set()
    other.join(PATIENCE)
    assert events == ["slow begins", "unprepare", "slow ends", "unprepare"]
    assert rig.servicer._locks == {}


def test_each_call_is_counted_once(make_rig: Callable[..., Rig]) -> None:
    """A call counts as failed if any of its claims failed; its time is measured."""
    rig = make_rig()

    def count(status: str) -> float:
        return float(metrics.DRA_REQUESTS.labels("PrepareResourceClaims", status)._value.get())

    before = count("success"), count("failed")
    rig.kubelet.prepare([A, B])

    def prepare(ref: ClaimRef) -> Sequence[PreparedDevice]:
        if ref.uid == "uid-b":
            raise PrepareError
        return []

    rig.handler.on_prepare = prepare
    answers = rig.kubelet.prepare([A, B])
    assert answers["uid-b"]["error"] == "refused"
    assert (count("success") - before[0], count("failed") - before[1]) == (1, 1)
    assert metrics.DRA_LATENCY.labels("PrepareResourceClaims")._sum.get() > 0


def test_calls_wait_until_this_instance_works(make_rig: Callable[..., Rig], loop: Any) -> None:
    """Kubelet calls an instance that has not taken over yet: the answer comes when it has."""
    rig = make_rig(patience=PATIENCE)
    answers: list[Any] = []
    calls = [
        threading.Thread(target=lambda method=method: answers.append(method([A])))
        for method in (rig.kubelet.prepare, rig.kubelet.unprepare)
    ]
    for call in calls:
        call.start()

    async def begin() -> None:
        rig.servicer.open(rig.handler)

    loop.run(begin())
    for call in calls:
        call.join()
    assert [answer["uid-a"]["error"] for answer in answers] == ["", ""]


def test_a_call_does_not_wait_for_ever(make_rig: Callable[..., Rig]) -> None:
    """The other instance does not end: the claim is told why, and kubelet tries again."""
    (answer,) = make_rig(patience=0.0).kubelet.prepare([A]).values()
    assert "another instance of the driver did not end" in answer["error"]
