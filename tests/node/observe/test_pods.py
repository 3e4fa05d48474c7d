"""The observer of pods against real namespaces."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from nri_dranet.claims.facts import DeviceFacts, Phase
from nri_dranet.netlink.namespaces import NetNs
from nri_dranet.netlink.sockets import EventsLostError, RtnlMonitor
from nri_dranet.observe.pods import PodObserver


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _namespaces_held() -> list[str]:
    held = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:
            continue
        if target.startswith("net:"):
            held.append(target)
    return sorted(held)


def test_address_added_in_the_pod(pod: Any) -> None:
    """An address that appears in the pod is reported with the ones before."""
    pod.watch()
    pod.ip("addr", "add", "10.77.3.9/24", "dev", "net1")
    assert pod.report().interface.addresses == ("10.77.0.5/24", "10.77.3.9/24")


def test_planned_address_removed(pod: Any) -> None:
    """A planned address that somebody removes is reported as missing."""
    pod.watch()
    pod.ip("addr", "flush", "dev", "net1", "scope", "global")
    fact = pod.report()
    assert (fact.phase, fact.interface.missing_addresses) == (Phase.ATTACHED, ("10.77.0.5/24",))


def test_link_down_and_up(pod: Any) -> None:
    """Down and up again are both reported."""
    pod.watch()
    pod.ip("link", "set", "net1", "down")
    assert pod.report_where(lambda fact: not fact.interface.up).phase is Phase.ATTACHED
    pod.ip("link", "set", "net1", "up")
    assert pod.report_where(lambda fact: fact.interface.up and fact.interface.carrier)


def test_carrier_lost(pod: Any) -> None:
    """The other end goes down: the link is up without carrier."""
    pod.watch()
    with_peer = ["-n", pod.host_name, "link", "set", "n0p", "down"]
    _ip(*with_peer)
    fact = pod.report_where(lambda fact: fact.interface.carrier is False)
    assert fact.interface.up


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def test_device_destroyed(pod: Any) -> None:
    """A device that is destroyed is reported as lost, with the reason in words."""
    pod.watch()
    _ip("-n", pod.host_name, "link", "del", "n0p")
    fact = pod.report_where(lambda fact: fact.phase is Phase.LOST)
    assert fact.reason == "DeviceMissing"
    assert "net1" in fact.message


def test_device_renamed_in_the_pod(pod: Any) -> None:
    """A device under another name is still there, and the name is reported."""
    pod.watch()
    pod.ip("link", "set", "net1", "name", "other0")
    fact = pod.report_where(lambda fact: fact.interface.name == "other0")
    assert (fact.phase, fact.reason) == (Phase.ATTACHED, "Renamed")


def test_lost_device_comes_back(pod: Any) -> None:
    """A device that was moved away and comes back is attached again."""
    pod.watch()
    pod.ip("link", "set", "net1", "netns", pod.host_name)
    assert pod.report_where(lambda fact: fact.phase is Phase.LOST).message.endswith("it is on the host as net1")
    _ip("-n", pod.host_name, "link", "set", "net1", "netns", pod.pod_name)
    assert pod.report_where(lambda fact: fact.phase is Phase.ATTACHED).interface.missing_addresses == ("10.77.0.5/24",)


def test_change_before_the_watch(pod: Any) -> None:
    """What happened between the attach and the watch is reported by the first look."""
    pod.ip("addr", "add", "10.77.3.9/24", "dev", "net1")
    pod.observer.start()
    pod.observer.watch("uid", [pod.plan], pod.netns, pod.facts)
    assert pod.report().interface.addresses == ("10.77.0.5/24", "10.77.3.9/24")


def test_nothing_new_is_not_reported(pod: Any) -> None:
    """Events that change no fact are no reports; those of other links are not even a look."""
    pod.watch()
    looks = pod.looks
    pod.ip("link", "add", "br0", "type", "bridge")
    pod.ip("link", "set", "br0", "up")
    pod.ip("addr", "add", "10.9.9.9/24", "dev", "br0")
    pod.ip("link", "set", "net1", "txqueuelen", "55")
    pod.until(lambda: pod.looks > looks)
    pod.ip("addr", "add", "10.77.3.9/24", "dev", "net1")
    assert len(pod.report().interface.addresses) == 2
    assert pod.reports.empty()
    assert pod.looks <= looks + 3


def test_flapping_is_damped_and_its_end_is_reported(pod: Any) -> None:
    """Two hundred changes in a row make few reports; the last one tells how it ended."""
    pod.watch()
    for _ in range(100):
        pod.ip("link", "set", "net1", "down")
        pod.ip("link", "set", "net1", "up")
    pod.ip("addr", "add", "10.77.9.9/24", "dev", "net1")
    last = pod.report_where(lambda fact: "10.77.9.9/24" in fact.interface.addresses)
    while not (last.interface.up and last.interface.carrier and last.interface.operstate == "up"):
        last = pod.report()
    assert pod.looks < 40


def test_f23_events_lost(pod: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the kernel dropped events, everything is looked at."""
    pod.watch()
    receive = RtnlMonitor.receive
    seen = threading.Event()

    def lossy(self: RtnlMonitor) -> Any:
        found = receive(self)
        if found and not seen.is_set():
            seen.set()
            raise EventsLostError("made up")
        return found

    monkeypatch.setattr(RtnlMonitor, "receive", lossy)
    pod.ip("addr", "add", "10.77.3.9/24", "dev", "net1")
    assert len(pod.report().interface.addresses) == 2
    assert seen.is_set()


def test_forget_lets_go_of_the_namespace(pod: Any) -> None:
    """Two claims share a namespace; when both are forgotten no descriptor of it is left, and nothing is reported."""
    before, held = _descriptors(), _namespaces_held()
    other = pod.device("n1", "net2", "10.78.0.5/24")
    facts = pod.attach(other)
    pod.watch()
    pod.observer.watch("second", [other], pod.netns, facts)
    pod.until(lambda: pod.looks >= 2)
    assert pod.observer.watched == {"uid", "second"}
    assert _descriptors() == before + 2
    pod.observer.forget("uid")
    pod.ip("addr", "add", "10.78.3.9/24", "dev", "net2")
    assert pod.reports.get(timeout=20)[0] == "second"
    pod.observer.forget("second")
    pod.observer.forget("second")
    assert (_descriptors(), _namespaces_held()) == (before, held)
    pod.ip("addr", "add", "10.77.4.9/24", "dev", "net1")
    assert pod.reports.empty()


def test_caller_may_close_its_namespace(pod: Any) -> None:
    """The observer holds the namespace by itself."""
    with NetNs.open(pod.netns.path) as own:
        pod.observer.start()
        pod.observer.watch("uid", [pod.plan], own, pod.facts)
    pod.ip("addr", "add", "10.77.3.9/24", "dev", "net1")
    assert len(pod.report().interface.addresses) == 2


def test_hundred_watches_leave_nothing(pod: Any) -> None:
    """Watching and forgetting in a row, in the midst of looks, leaves no descriptor open."""
    pod.observer.start()
    before = _descriptors()
    for number in range(100):
        pod.observer.watch("uid", [pod.plan], pod.netns, pod.facts)
        if number % 3 == 0:
            time.sleep(0.002)
        pod.observer.forget("uid")
    assert _descriptors() == before


def test_forget_waits_for_a_look(pod: Any) -> None:
    """A namespace is not closed under a look that is under way."""
    started, go_on = threading.Event(), threading.Event()
    closed_early: list[bool] = []

    def look(_plans: Any, netns: Any, _hints: Any) -> tuple[DeviceFacts, ...]:
        started.set()
        go_on.wait(20)
        closed_early.append(netns.closed)
        return pod.facts  # type: ignore[no-any-return]

    observer = PodObserver(lambda _uid, _facts: None, look)
    observer.start()
    observer.watch("uid", [pod.plan], pod.netns, pod.facts)
    assert started.wait(20)
    forgetting = threading.Thread(target=observer.forget, args=("uid",))
    forgetting.start()
    go_on.set()
    forgetting.join()
    observer.stop()
    assert closed_early == [False]


def test_look_and_report_that_fail(pod: Any) -> None:
    """A look or a report that raises ends neither the thread nor the watch."""
    calls: list[int] = []
    reports: list[Any] = []

    def look(plans: Any, netns: Any, hints: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("made up")
        return pod.engine.look(plans, netns, hints)

    def on_change(_uid: str, facts: Any) -> None:
        reports.append(facts)
        raise RuntimeError("made up")

    observer = PodObserver(on_change, look)
    observer.start()
    try:
        observer.watch("uid", [pod.plan], pod.netns, pod.facts)
        pod.until(lambda: calls)
        pod.ip("addr", "add", "10.77.3.9/24", "dev", "net1")
        pod.until(lambda: len(reports) == 1)
        pod.ip("addr", "add", "10.77.4.9/24", "dev", "net1")
        pod.until(lambda: len(reports) == 2)
    finally:
        observer.stop()


def test_monitor_that_cannot_be_opened(pod: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a monitor the pod is looked at again and again, and the monitor is opened when that is possible."""
    made = RtnlMonitor
    failures = iter([OSError(24, "Too many open files")])

    def opening(*args: Any, **more: Any) -> Any:
        for failure in failures:
            raise failure
        return made(*args, **more)

    monkeypatch.setattr("nri_dranet.observe.pods.RtnlMonitor", opening)
    monkeypatch.setattr("nri_dranet.observe.pods._RETRY", 0.05)
    pod.watch()
    pod.ip("addr", "add", "10.77.3.9/24", "dev", "net1")
    assert len(pod.report().interface.addresses) == 2


def test_an_error_of_the_program_does_not_end_the_thread(pod: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong while the observer listens, it goes on and hears of the next change."""
    made = RtnlMonitor
    failures = iter([RuntimeError("made up")])

    def opening(*args: Any, **more: Any) -> Any:
        for failure in failures:
            raise failure
        return made(*args, **more)

    monkeypatch.setattr("nri_dranet.observe.pods.RtnlMonitor", opening)
    monkeypatch.setattr("nri_dranet.observe.pods._RETRY", 0.05)
    pod.watch()
    pod.ip("addr", "add", "10.77.3.9/24", "dev", "net1")
    assert len(pod.report().interface.addresses) == 2


def test_stop_closes_everything(pod: Any) -> None:
    """After stop nothing is open, a second stop does nothing, and a watch is refused."""
    before = _descriptors()
    observer = PodObserver(lambda _uid, _facts: None, pod.engine.look)
    observer.start()
    observer.start()
    observer.watch("uid", [pod.plan], pod.netns, pod.facts)
    observer.stop()
    observer.stop()
    assert _descriptors() == before
    with pytest.raises(ValueError, match="stopped"):
        observer.watch("uid", [pod.plan], pod.netns, pod.facts)


def test_monitor_that_breaks(pod: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A monitor that cannot be read any more is replaced, and the pod is looked at."""
    pod.watch()
    receive = RtnlMonitor.receive
    failures = iter([OSError(5, "Input/output error")])

    def breaking(self: RtnlMonitor) -> Any:
        for failure in failures:
            raise failure
        return receive(self)

    monkeypatch.setattr(RtnlMonitor, "receive", breaking)
    pod.ip("addr", "add", "10.77.3.9/24", "dev", "net1")
    assert len(pod.report().interface.addresses) == 2
    pod.ip("addr", "add", "10.77.4.9/24", "dev", "net1")
    assert len(pod.report().interface.addresses) == 3
