"""Pods come and go while the daemon is killed, the runtime restarts, the API server is away and links flap.

Nothing goes missing and nothing grows. ``NRI_DRANET_SOAK`` is the number of pods of each part (``make soak``: 1000),
``NRI_DRANET_SOAK_SEED`` another course of the dice.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from hack.audit import audit
from nri_dranet.testing.runtime import RuntimeRefusedError
from nri_dranet.testing.stage import RESOURCE_API, StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nri_dranet.testing.stage import Stage, StagedPod

    HostState = Callable[[str], dict[str, Any]]

CYCLES: Final = int(os.environ.get("NRI_DRANET_SOAK", "16"))
SEED: Final = int(os.environ.get("NRI_DRANET_SOAK_SEED", "20261124"))

NICS: Final = ("soak1", "soak2", "soak3")
RESIDENT: Final = "soak0"
"""Given to a pod that lives through all of it."""

MOMENTS: Final = ("before prepare", "before run", "during run", "in the pod", "during stop", "before unprepare")

# Seconds: a busy machine may take its time to start a Python program.
PATIENCE: Final = 60.0

# KiB of resident memory that a daemon may have more at the end than after the warm-up: 1 MiB in 500 pods, and what
# Python's allocator keeps of a busy moment.
GROWTH: Final = 1024
SLACK: Final = 1536
# A status worker and its connection may be there or not.
SPARE: Final = 2
# As many looks, some 50 ms apart, are longer than the longest pause of a watch that broke once.
_LOOKS: Final = 80


@dataclass
class Cluster:
    """A stage, and who makes trouble on it."""

    stage: Stage
    dice: random.Random
    before: dict[str, Any]
    host_state: HostState
    course: list[str] = field(default_factory=list)

    def same(self, names: Sequence[str]) -> None:
        """Wait until interfaces are on the host as they were.

        Raises:
            AssertionError: they are not; the text says what differs and what was done last.
        """
        try:
            self.stage.wait_for(lambda: all(self._state(name) == self.before[name] for name in names), "as before")
        except StageError as error:
            now = {name: self._state(name) for name in names}
            different = {
                name: {part: (self.before[name][part], state.get(part)) for part in self.before[name]}
                for name, state in now.items()
                if state != self.before[name]
            }
            raise AssertionError(f"not as before: {different}; last: {self.course[-4:]}") from error

    def _state(self, name: str) -> dict[str, Any]:
        """Return how an interface is on the host; empty: it is not there."""
        try:
            return self.host_state(name)
        except subprocess.CalledProcessError:
            return {}

    def kill(self) -> None:
        """Let the daemon die at this instruction, and start it again."""
        self.stage.stop_daemon(signal.SIGKILL)
        self.stage.runtime.wait_for_loss()
        self.stage.start_daemon()

    def flap(self) -> None:
        """Let all links lose their carrier for a moment."""
        for state in ("down", "up"):
            for name in (RESIDENT, *NICS):
                subprocess.run(["ip", "link", "set", f"{name}p", state], check=True)

    def calm(self) -> None:
        """Wait until whatever was disturbed is there again."""
        self.stage.api.resume()
        self.stage.wait_for(
            lambda: self.stage.daemon_pid() and self.stage.runtime.plugins, "the daemon joins the runtime", PATIENCE
        )


TROUBLES: Final[dict[str, Callable[[Cluster], None]]] = {
    "none": lambda _: None,
    "runtime": lambda cluster: cluster.stage.runtime.restart(),
    "outage": lambda cluster: cluster.stage.api.pause(),
    "flap": Cluster.flap,
    "kill": Cluster.kill,
}


@contextlib.contextmanager
def _beside(trouble: Callable[[], None], delay: float) -> Iterator[None]:
    """Make trouble in the midst of what is done meanwhile."""

    def work() -> None:
        time.sleep(delay)
        trouble()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@pytest.fixture
def soaked(make_stage: Callable[..., Stage]) -> Iterator[Stage]:
    """A stage with four interfaces, published by a daemon that is ready."""
    names = (RESIDENT, *NICS)
    for number, name in enumerate(names):
        commands = (
            f"link add {name} type veth peer name {name}p",
            f"link set {name}p addrgenmode none up",
            f"link set {name} addrgenmode none mtu 1400 up",
            f"addr add 192.0.2.{number * 8 + 1}/29 dev {name}",
            f"route add 198.51.100.{number * 8}/29 via 192.0.2.{number * 8 + 2} dev {name} metric 77",
        )
        for command in commands:
            subprocess.run(["ip", *command.split()], check=True)
    made = make_stage()
    made.start_daemon()
    made.wait_ready()
    made.wait_for(lambda: set(names) <= made.devices().keys(), "the devices are published")
    yield made
    for name in names:
        subprocess.run(["ip", "link", "del", f"{name}p"], check=False, capture_output=True)


def _pod(stage: Stage, name: str, nics: tuple[str, ...]) -> StagedPod:
    """Make a pod with a claim for interfaces, which get an address each in a network of the pod's own."""
    requests = [f"nic{number}" for number in range(len(nics))]
    stage.claim(name, [{"interface": {"mtu": 1300}}], requests)
    stage.allocate(name, *nics)
    return stage.pod(f"pod-{name}", name)


def _answered(call: Callable[[], dict[str, Any]]) -> list[str] | None:
    """Return the CDI IDs of kubelet's call; None when it failed, so that kubelet repeats it."""
    try:
        (answer,) = call().values()
    except Exception:  # noqa: BLE001 - a daemon that is starting does not answer
        return None
    return None if answer["error"] else [cdi for device in answer.get("devices", []) for cdi in device["cdi"]] or [""]


def _runs(stage: Stage, pod: StagedPod) -> bool:
    try:
        stage.runtime.run_pod(pod.sandbox)
    except RuntimeRefusedError:
        return False
    return True


def _container(stage: Stage, pod: StagedPod, cdi: list[str]) -> bool:
    try:
        stage.runtime.create_container(pod.sandbox, "app", cdi)
    except RuntimeRefusedError:
        return False
    return True


def _links(pod: StagedPod) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(pod.run("ip", "-j", "-d", "addr"))
    return found


def _has(pod: StagedPod, nics: tuple[str, ...]) -> bool:
    """Tell whether a pod has its interfaces, up and as its claim says."""
    found = {link["ifname"]: link for link in _links(pod)}
    return all(name in found and found[name]["mtu"] == 1300 and "UP" in found[name]["flags"] for name in nics)


def _right(stage: Stage, name: str, pod: StagedPod) -> bool:
    """Tell whether the status of a claim says what its pod has."""
    return not audit(stage.get_claim(name), _links(pod))


def _comes_home(pod: StagedPod, nics: tuple[str, ...]) -> None:
    """Do for a pod's interfaces what the kernel does for hardware when the namespace dies.

    It destroys a veth instead. Those that the daemon brings home at the same time are not there any more.
    """
    for name in nics:
        command = [
            "nsenter",
            "-t",
            str(pod.process.pid),
            "-n",
            "--",
            "ip",
            "link",
            "set",
            name,
            "netns",
            str(os.getpid()),
        ]
        subprocess.run(command, check=False, capture_output=True)


def _cycle(cluster: Cluster, name: str, nics: tuple[str, ...], trouble: str, moment: str) -> None:
    """Let a pod come and go, with trouble at a moment of its life. What fails is repeated, as kubelet does."""
    stage = cluster.stage

    def disturb() -> None:
        TROUBLES[trouble](cluster)

    delay = cluster.dice.random() * 0.03
    cluster.course.append(f"{name} {nics}: {trouble} {moment} after {delay:.4f} s")
    pod = _pod(stage, name, nics)
    if moment == "before prepare":
        disturb()
        _answered(lambda: stage.prepare(pod))
        cluster.calm()
    cdi = stage.wait_for(lambda: _answered(lambda: stage.prepare(pod)), f"{name} prepared") or []
    ran = False
    if moment == "before run":
        disturb()
        ran = _runs(stage, pod)
    if moment == "during run":
        with _beside(disturb, delay):
            ran = _runs(stage, pod)
    if ran and _container(stage, pod, cdi):
        assert _has(pod, nics), f"{name}: a container was created without the pod's devices"
    cluster.calm()
    if not ran:
        stage.wait_for(lambda: _runs(stage, pod), f"{name} runs")
    stage.wait_for(lambda: _container(stage, pod, cdi), f"{name} has its container")
    assert _has(pod, nics), f"{name}: a container was created without the pod's devices"
    if moment == "in the pod":
        disturb()
        cluster.calm()
    stage.wait_for(lambda: _has(pod, nics), f"{name} has its interfaces")
    stage.wait_for(lambda: _right(stage, name, pod), f"the status of {name} says what its pod has")
    stage.wait_condition(name, "NetworkReady", "True")
    if moment == "during stop":
        with _beside(disturb, delay):
            stage.runtime.stop_pod(pod.sandbox)
        _comes_home(pod, nics)
    else:
        stage.runtime.stop_pod(pod.sandbox)
    if moment == "before unprepare":
        disturb()
        _answered(lambda: stage.unprepare(pod))
    cluster.calm()
    _end(stage, pod, name)
    cluster.same(nics)


def _end(stage: Stage, pod: StagedPod, name: str) -> None:
    """Let kubelet and the control plane forget a pod whose sandbox has stopped, and its claim."""
    pod.process.kill()
    pod.process.wait()
    stage.runtime.remove_pod(pod.sandbox)
    stage.wait_for(lambda: _answered(lambda: stage.unprepare(pod)), f"{name} released")
    stage.wait_for(lambda: not audit(stage.get_claim(name), None), f"the status of {name} says that it is in no pod")
    stage.api.release("default", name, uid=pod.uid)
    stage.api.delete(f"/api/v1/namespaces/default/pods/{pod.name}")
    stage.api.delete(f"{RESOURCE_API}/namespaces/default/resourceclaims/{name}")
    stage._pods.remove(pod)


@dataclass(frozen=True)
class Usage:
    """What the daemon uses: open files, threads, KiB of resident memory, and namespaces that are not its own."""

    files: int
    threads: int
    memory: int
    namespaces: int


def _usage(stage: Stage) -> Usage:
    process = Path(f"/proc/{stage.daemon_pid()}")
    own = (process / "ns/net").readlink()
    found, files = set(), list((process / "fd").iterdir())
    for descriptor in files:
        with contextlib.suppress(FileNotFoundError):
            target = descriptor.readlink()
            if target.name.startswith("net:[") and target != own:
                found.add(target)
    lines = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    memory = int(lines["VmRSS"].split()[0])
    return Usage(len(files), len(list((process / "task").iterdir())), memory, len(found))


def _settled(stage: Stage) -> Usage:
    """Return the usage once it has been the same for a while: watches that broke come again after a pause."""
    seen: list[tuple[int, int]] = []

    def same() -> bool:
        usage = _usage(stage)
        seen.append((usage.files, usage.threads))
        return len(seen) >= _LOOKS and len(set(seen[-_LOOKS:])) == 1

    stage.wait_for(same, "the daemon's usage settles")
    return _usage(stage)


@pytest.mark.parametrize("killed", [False, True])
def test_pods_come_and_go_amid_trouble(soaked: Stage, host_state: HostState, killed: bool) -> None:
    """Each pod gets its interfaces and a right status; in the end the host is as before and nothing has grown."""
    stage, dice = soaked, random.Random(SEED)  # noqa: S311 - no secret
    before = {name: host_state(name) for name in (RESIDENT, *NICS)}
    cluster = Cluster(stage, dice, before, host_state)
    resident = _pod(stage, "resident", (RESIDENT,))
    assert _answered(lambda: stage.prepare(resident))
    assert _runs(stage, resident)
    troubles = [name for name in TROUBLES if killed or name != "kill"]

    def rounds(mark: str, count: int) -> None:
        for number in range(count):
            nics = tuple(dice.sample(NICS, dice.choice((1, 1, 2))))
            _cycle(cluster, f"{mark}{number}", nics, dice.choice(troubles), dice.choice(MOMENTS))
            if number % 50 == 49:
                usage = _usage(stage)
                print(f"{mark}{number + 1}: {usage.memory} KiB, {usage.files} files, {usage.threads} threads")  # noqa: T201 - the course of a long soak, with pytest -s
                _at_rest(cluster, resident)

    # Whatever is made once is made in the warm-up.
    for number, trouble in enumerate(troubles):
        _cycle(cluster, f"w{number}", NICS[:2], trouble, MOMENTS[number])
    rounds("x", min(CYCLES // 10, 50))
    TROUBLES["runtime"](cluster)
    cluster.calm()
    _at_rest(cluster, resident)
    first, pid = _settled(stage), stage.daemon_pid()
    rounds("c", CYCLES)
    TROUBLES["runtime"](cluster)
    cluster.calm()
    _at_rest(cluster, resident)
    last = _settled(stage)
    print(f"warm: {first}; after {CYCLES} pods: {last}")  # noqa: T201 - the result of a long soak
    if not killed:
        assert stage.daemon_pid() == pid, "the daemon has not died by itself"
        assert last.memory <= first.memory + SLACK + GROWTH * CYCLES // 500
    assert last.files <= first.files + SPARE
    assert last.threads <= first.threads + SPARE
    stage.end_pod(resident)
    stage.wait_for(lambda: _answered(lambda: stage.unprepare(resident)), "the resident is released")
    stage.wait_for(lambda: _usage(stage).namespaces == 0, "no namespace is held")
    cluster.same([RESIDENT])


def _at_rest(cluster: Cluster, resident: StagedPod) -> None:
    """With one pod that runs, all else is as if no other had ever been there."""
    stage = cluster.stage
    cluster.same(NICS)
    stage.wait_for(lambda: _has(resident, (RESIDENT,)), "the resident has its interface")
    stage.wait_for(lambda: _right(stage, "resident", resident), "the status of the resident is right")
    stage.wait_for(lambda: len(list(stage.cdi.glob("*.json"))) == 1, "the resident's receipt is the only one")
    stage.wait_for(lambda: _usage(stage).namespaces == 1, "the resident's namespace is the only one that is held")
