"""The door between the runtime's session and the hooks, while the work goes from one instance to the next."""

from __future__ import annotations

import threading

import pytest

from nri_dranet.nri.gate import HookGate
from nri_dranet.nri.listing import Listing
from nri_dranet.reconcile.hooktypes import HookError


class Service:
    """Hooks that remember what was asked of them and can be made to wait."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.entered = threading.Event()

    def call(self, method: str, _payload: bytes, _deadline: float) -> bytes:
        """Carry a call out."""
        self.entered.set()
        self.go_on.wait(20)
        self.seen.append(method)
        return b"done"

    def overdue(self, method: str, _payload: bytes) -> str:
        """Name the call."""
        return f"{method} is late"

    def late(self, method: str, _payload: bytes) -> None:
        """Remember it."""
        self.seen.append(f"late {method}")

    def synchronize(self, listing: Listing) -> None:
        """Remember it."""
        self.seen.append(f"list of {len(listing)}")

    def concerns(self, method: str, payload: bytes) -> bool:
        """Only what starts something, of a pod that has a claim."""
        return method in {"RunPodSandbox", "CreateContainer"} and payload == b"claim"


def never() -> None:
    """Be called by nobody."""
    raise AssertionError("nothing is to be taken over")


def test_an_open_gate_lets_everything_through() -> None:
    """Calls, late ones, and lists."""
    service, gate = Service(), HookGate(never)
    gate.open(service)
    assert gate.call("RunPodSandbox", b"", 0) == b"done"
    assert gate.overdue("RunPodSandbox", b"") == "RunPodSandbox is late"
    gate.late("RunPodSandbox", b"")
    gate.synchronize(Listing())
    assert service.seen == ["RunPodSandbox", "late RunPodSandbox", "list of 0"]


def test_the_list_of_sandboxes_is_the_moment_in_which_the_work_is_taken_over() -> None:
    """The gate is opened by it, and the list goes through."""
    service = Service()
    gate = HookGate(lambda: gate.open(service))
    with pytest.raises(HookError, match="does not work yet"):
        gate.call("RunPodSandbox", b"", 0)
    gate.synchronize(Listing())
    assert service.seen == ["list of 0"]
    assert gate.call("RunPodSandbox", b"", 0) == b"done"


def test_a_list_is_refused_while_the_work_cannot_be_had() -> None:
    """The runtime drops this plugin then, which joins anew: the next list is the next chance."""

    def refuse() -> None:
        raise HookError("a hook still runs")

    gate = HookGate(refuse)
    for _ in range(2):
        with pytest.raises(HookError, match="a hook still runs"):
            gate.synchronize(Listing())
    assert gate.overdue("Synchronize", b"") == "Synchronize did not end in time"


def test_a_closed_gate_leaves_everything_to_the_next_instance() -> None:
    """Each call is answered as done, also that of a pod with a claim: the runtime asks the next instance too."""
    service, gate = Service(), HookGate(never)
    gate.open(service)
    assert gate.close(service, lambda: True, 1)
    for method in ("RunPodSandbox", "CreateContainer", "StopPodSandbox"):
        assert gate.call(method, b"claim", 0) == b""
    gate.late("RunPodSandbox", b"claim")
    gate.synchronize(Listing())
    assert service.seen == []


def test_a_closed_gate_refuses_what_needs_a_device_when_the_next_instance_is_dead() -> None:
    """Nobody would attach it. Other pods start and end."""
    service, gate = Service(), HookGate(never)
    gate.open(service)
    assert gate.close(service, lambda: False, 1)
    for method in ("RunPodSandbox", "CreateContainer"):
        with pytest.raises(HookError, match="begins anew"):
            gate.call(method, b"claim", 0)
        assert gate.call(method, b"none", 0) == b""
    assert gate.call("StopPodSandbox", b"claim", 0) == b""


def test_closing_waits_for_the_hook_that_runs() -> None:
    """None is under way when it returns."""
    service, gate = Service(), HookGate(never)
    gate.open(service)
    service.go_on.clear()
    hook = threading.Thread(target=gate.call, args=("RunPodSandbox", b"", 0))
    hook.start()
    assert service.entered.wait(20)
    assert not gate.close(service, lambda: True, 0.0), "it still runs: nothing has changed"
    assert gate.opened
    closing: list[bool] = []
    closer = threading.Thread(target=lambda: closing.append(gate.close(service, lambda: True, 20)))
    closer.start()
    service.go_on.set()
    closer.join()
    hook.join()
    assert closing == [True]
    assert service.seen == ["RunPodSandbox"]
