"""Two instances: the newer one takes the work over while pods start and end, and each may die at any moment."""

from __future__ import annotations

import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from nri_dranet.testing.kubelet import KubeletError
from nri_dranet.testing.runtime import RuntimeRefusedError
from nri_dranet.testing.stage import Stage
from tests.node.driver.acts import CONFIG, error_of, home, running

MakeStage = Callable[..., Stage]
HostState = Callable[[str], Any]

FIRST, SECOND = "--pod-uid=6c9d1a4e-0000-4000-8000-000000000001", "--pod-uid=6c9d1a4e-0000-4000-8000-000000000002"
STEPS = ("drain", "release", "active")


class Load:
    """Pods that start and end one after the other, each with the interface. Whatever fails is remembered."""

    def __init__(self, stage: Stage, nic: str) -> None:
        self.wrong: list[str] = []
        self.count = 0
        self._stage, self._nic = stage, nic
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.is_set() and not self.wrong:
            try:
                self._one(f"load{self.count}")
            except (AssertionError, KubeletError, RuntimeRefusedError) as error:
                self.wrong.append(f"pod {self.count}: {error}")
            self.count += 1

    def _one(self, name: str) -> None:
        """Carry out what kubelet and runtime do for a pod; each step must succeed at once."""
        stage = self._stage
        stage.claim(name, [CONFIG])
        stage.allocate(name, self._nic)
        pod = stage.pod(name, name)
        answer = stage.prepare(pod)
        assert error_of(answer) == ""
        stage.runtime.run_pod(pod.sandbox)
        cdi = [identity for each in answer.values() for device in each["devices"] for identity in device["cdi"]]
        stage.runtime.create_container(pod.sandbox, "app", cdi)
        assert "169.254.169.13/32" in pod.run("ip", "addr", "show", "dev", "eth99")
        stage.end_pod(pod)
        assert error_of(stage.unprepare(pod)) == ""

    def go_on(self, more: int = 2) -> None:
        """Wait until so many more pods have come and gone."""
        until = self.count + more
        self._stage.wait_for(lambda: self.count >= until or self.wrong, f"{until} pods have come and gone", 60)
        assert not self.wrong

    @contextmanager
    def running(self) -> Iterator[Load]:
        """Start pods as long as this is entered."""
        self._thread.start()
        try:
            yield self
        finally:
            self._over.set()
            self._thread.join()


@pytest.fixture
def first(make_stage: MakeStage, nic: str) -> Stage:
    """Return a stage on which one instance works, with sockets of its own."""
    made = make_stage()
    made.start_daemon(FIRST)
    made.wait_ready()
    made.wait_for(lambda: nic in made.devices(), f"device {nic} published")
    return made


def said(stage: Stage, text: str) -> bool:
    """Tell whether an instance has logged a text."""
    return text in stage.log.read_text()


def wait_said(stage: Stage, text: str) -> None:
    """Wait until an instance has logged a text."""
    stage.wait_for(lambda: said(stage, text), f"the log says {text}")


def test_the_newer_instance_takes_over_without_a_gap(first: Stage, nic: str, host_state: HostState) -> None:
    """Not one call of kubelet or runtime fails, no device comes late, and the former one ends when it is told to."""
    before = host_state(nic)
    load = Load(first, nic)
    with load.running():
        load.go_on()
        first.start_successor(SECOND)
        wait_said(first, "another instance works now; this one stands by")
        first.wait_ready()
        load.go_on()
        assert first.stop_former() == 0
        load.go_on()
    assert not load.wrong
    assert not said(first, "attached late")
    assert host_state(nic) == before
    assert len(list(first.kubelet_root.rglob("*.sock"))) == 3


def works(stage: Stage, nic: str, name: str) -> None:
    """See that a pod gets the interface and gives it back."""
    stage.wait_ready()
    load = Load(stage, nic)
    stage.wait_for(lambda: nic in stage.devices(), "the interface is published")
    load._one(name)


@pytest.mark.parametrize("step", STEPS)
def test_the_newer_instance_dies_while_it_takes_over(first: Stage, nic: str, host_state: HostState, step: str) -> None:
    """The former one works again: a running pod keeps its interface and gives it back, and the next pod gets it."""
    before = host_state(nic)
    pod = running(first, nic, claim="steady")
    former = first._daemon
    first.start_successor(SECOND)
    wait_said(first, f"ask={step}")
    first.stop_daemon(signal.SIGKILL)
    first._daemon, first._former = former, None
    first.wait_ready()
    assert "169.254.169.13/32" in pod.run("ip", "addr", "show", "dev", "eth99")
    first.end_pod(pod)
    home(first, nic, host_state, before)
    first.unprepare(pod)
    works(first, nic, "next")
    assert host_state(nic) == before


@pytest.mark.parametrize("step", STEPS)
def test_the_former_instance_dies_while_it_hands_over(first: Stage, nic: str, host_state: HostState, step: str) -> None:
    """The newer one finds the lock free and works."""
    before = host_state(nic)
    pod = running(first, nic, claim="steady")
    first.start_successor(SECOND)
    wait_said(first, f"ask={step}")
    first.stop_former(signal.SIGKILL)
    first.wait_ready()
    assert "169.254.169.13/32" in pod.run("ip", "addr", "show", "dev", "eth99")
    first.end_pod(pod)
    home(first, nic, host_state, before)
    first.unprepare(pod)
    works(first, nic, "next")
    assert host_state(nic) == before


def test_a_namespace_that_only_the_daemon_holds_is_handed_over(first: Stage, nic: str, host_state: HostState) -> None:
    """The pod's processes are dead, and a virtual interface is in its namespace: it comes home all the same."""
    before = host_state(nic)
    pod = running(first, nic, claim="steady")
    pod.process.kill()
    pod.process.wait()
    first.start_successor(SECOND)
    wait_said(first, "another instance works now; this one stands by")
    assert first.stop_former() == 0
    # Not by a step that is followed by an audit: nobody can look into the namespace by its pod any more.
    first.wait_for(lambda: first.http("/readyz")[0] == 200, "the newer one is ready")
    first.runtime.stop_pod(pod.sandbox, with_netns=False)
    first.runtime.remove_pod(pod.sandbox)
    assert error_of(first.unprepare(pod)) == ""
    home(first, nic, host_state, before)


def test_an_instance_that_stands_by_takes_the_work_back_when_it_is_offered(first: Stage, nic: str) -> None:
    """The newer one is told to end: without a gap the one that stands by works again."""
    first.start_successor(SECOND)
    wait_said(first, "another instance works now; this one stands by")
    first.wait_ready()
    load = Load(first, nic)
    with load.running():
        load.go_on()
        former, first._former = first._former, None
        assert first.stop_daemon() == 0
        first._daemon = former
        load.go_on()
    assert not load.wrong
    assert not said(first, "attached late")


def test_an_instance_that_ends_stays_until_the_next_one_works(first: Stage, nic: str) -> None:
    """SIGTERM while the next one is on its way: the pods of that time do not notice it."""
    load = Load(first, nic)
    with load.running():
        load.go_on()
        first.start_successor(SECOND)
        wait_said(first, "ask=hello")
        assert first.stop_former() == 0
        load.go_on()
    assert not load.wrong
    assert not said(first, "attached late")


@pytest.mark.parametrize("flags", [(), (SECOND,)], ids=["fixed sockets", "own sockets"])
def test_f16_an_instance_without_this_protocol_is_followed_by_the_lock(
    make_stage: MakeStage, nic: str, flags: tuple[str, ...]
) -> None:
    """An older version has no socket for the next one: that waits until it has ended, and works then."""
    stage = make_stage()
    stage.start_daemon()
    stage.wait_ready()
    pod = running(stage, nic, claim="steady")
    next(stage.kubelet_root.rglob("journal.db.sock")).unlink()
    stage.start_successor(*flags)
    wait_said(stage, "another instance works process=")
    assert stage.http("/readyz")[0] == 200, "it is the older one that answers"
    assert stage.stop_former() == 0
    stage.wait_ready()
    stage.end_pod(pod)
    stage.unprepare(pod)
    works(stage, nic, "next")


def test_f16_an_older_instance_that_cannot_read_the_journal_takes_nothing_over(first: Stage, nic: str) -> None:
    """It ends in words that say what to do; started again and again, it must not stop who works each time."""
    with closing(sqlite3.connect(next(first.kubelet_root.rglob("journal.db")))) as raw:
        raw.execute("PRAGMA user_version = 99")
    former = first._daemon
    first.start_successor(SECOND)
    wait_said(first, "has version 99")
    assert first._daemon is not None
    first._daemon.wait(20)
    first._daemon, first._former = former, None
    assert not said(first, "ask=drain")
    works(first, nic, "next")


def test_sockets_of_dead_instances_are_removed(first: Stage, nic: str) -> None:
    """Kubelet would dial them for ever."""
    first.stop_daemon(signal.SIGKILL)
    first.start_daemon(SECOND)
    first.wait_ready()
    names = sorted(path.name for path in first.kubelet_root.rglob("*.sock"))
    second = SECOND.partition("=")[2]
    assert names == [f"dra-{second}.sock", f"dra.net-{second}-reg.sock", "journal.db.sock"]
    works(first, nic, "next")
