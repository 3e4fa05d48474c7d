"""Pods come and go while the daemon is killed, the runtime restarts, the API server is away and links flap.

Nothing goes missing and nothing grows. ``NRI_DRANET_SOAK`` is the number of pods of each part (for a soak: 1000).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from hack.audit import audit
from nri_dranet.testing.runtime import RuntimeRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from nri_dranet.testing.stage import Stage, StagedPod

CYCLES: Final = int(os.environ.get("NRI_DRANET_SOAK", "12"))
SEED: Final = 20_261_124


def _pod(stage: Stage, nic: str, name: str) -> StagedPod:
    stage.claim(name, [{"interface": {"name": "eth99", "addresses": ["169.254.169.13/32"]}}])
    stage.allocate(name, nic)
    return stage.pod(f"pod-{name}", name)


def _prepared(stage: Stage, pod: StagedPod) -> bool:
    try:
        (answer,) = stage.prepare(pod).values()
    except Exception:  # noqa: BLE001 - kubelet repeats what a daemon that is starting does not answer
        return False
    return not answer["error"]


def _runs(stage: Stage, pod: StagedPod) -> bool:
    try:
        stage.runtime.run_pod(pod.sandbox)
    except RuntimeRefusedError:
        return False
    return True


def _released(stage: Stage, pod: StagedPod) -> bool:
    try:
        (answer,) = stage.unprepare(pod).values()
    except Exception:  # noqa: BLE001 - the same
        return False
    return not answer["error"]


def _resources(stage: Stage) -> tuple[int, int]:
    """Return the daemon's descriptors and threads."""
    process = Path(f"/proc/{stage.daemon_pid()}")
    return len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))


def _foreign_namespaces(stage: Stage) -> int:
    process = Path(f"/proc/{stage.daemon_pid()}")
    own = (process / "ns/net").readlink()
    found = set()
    for descriptor in (process / "fd").iterdir():
        try:
            target = descriptor.readlink()
        except FileNotFoundError:
            continue
        if target.name.startswith("net:[") and target != own:
            found.add(target)
    return len(found)


def _cycle(stage: Stage, nic: str, name: str, trouble: Callable[[], None]) -> None:
    pod = _pod(stage, nic, name)
    stage.wait_for(lambda: _prepared(stage, pod), f"{name} prepared")
    assert _runs(stage, pod)
    trouble()
    stage.wait_for(lambda: "169.254.169.13" in pod.run("ip", "addr"), f"{name} has its interface")
    stage.wait_condition(name, "NetworkReady", "True")
    stage.wait_for(
        lambda: not audit(stage.get_claim(name), json.loads(pod.run("ip", "-j", "-d", "addr"))),
        f"the status of {name} says what its pod has",
    )
    stage.end_pod(pod)
    stage.wait_for(lambda: _released(stage, pod), f"{name} released")
    stage.api.release("default", name, uid=pod.uid)


@pytest.mark.parametrize("killed", [False, True])
def test_pods_come_and_go_amid_trouble(stage: Stage, nic: str, host_state: Callable[[str], Any], killed: bool) -> None:
    """Each pod gets its interface and a right status; in the end the host is as before and nothing has grown."""
    dice = random.Random(SEED)  # noqa: S311 - no secret
    before = host_state(nic)

    def kill() -> None:
        stage.stop_daemon(signal.SIGKILL)
        stage.start_daemon()
        stage.runtime.wait_for_plugin()

    def restart_runtime() -> None:
        stage.runtime.restart()
        stage.runtime.wait_for_plugin()

    def outage() -> None:
        stage.api.pause()
        stage.api.resume()

    def flap() -> None:
        for state in ("down", "up"):
            subprocess.run(["ip", "link", "set", f"{nic}p", state], check=True)

    troubles: list[Callable[[], None]] = [lambda: None, restart_runtime, outage, flap]
    if killed:
        troubles.append(kill)
    for trouble in troubles:
        _cycle(stage, nic, f"w{troubles.index(trouble)}", trouble)
    restart_runtime()
    resources = _resources(stage)
    pid = stage.daemon_pid()
    for number in range(CYCLES):
        _cycle(stage, nic, f"c{number}", dice.choice(troubles))
    stage.wait_for(lambda: host_state(nic) == before, "the host is as before")
    assert list(stage.cdi.glob("*.json")) == []
    stage.wait_for(lambda: _foreign_namespaces(stage) == 0, "no namespace is held")
    if not killed:
        assert stage.daemon_pid() == pid
        # A status worker and its connection may be there or not.
        stage.wait_for(
            lambda: all(now <= then + 2 for now, then in zip(_resources(stage), resources, strict=True)), "no growth"
        )
