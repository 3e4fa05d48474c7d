"""What tests on a stage have in common: pods up to a point, and what is looked at afterwards."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from nri_dranet.testing.stage import Stage, StagedPod

    HostState = Callable[[str], Any]

CONFIG: dict[str, Any] = {"interface": {"name": "eth99", "addresses": ["169.254.169.13/32"]}}


def prepared(stage: Stage, nic: str, config: dict[str, Any] | None = None, *, claim: str = "c") -> StagedPod:
    """Return a pod whose claim is allocated and prepared."""
    stage.claim(claim, [CONFIG if config is None else config])
    stage.allocate(claim, nic)
    pod = stage.pod(f"pod-{claim}", claim)
    assert error_of(stage.prepare(pod)) == ""
    return pod


def running(stage: Stage, nic: str, config: dict[str, Any] | None = None, *, claim: str = "c") -> StagedPod:
    """Return a pod that has its interface, with its status written."""
    pod = prepared(stage, nic, config, claim=claim)
    stage.runtime.run_pod(pod.sandbox)
    stage.wait_condition(claim, "NetworkReady", "True")
    return pod


def error_of(answer: dict[str, Any]) -> str:
    """Return the error of an answer for one claim."""
    (one,) = answer.values()
    return str(one["error"])


def events(stage: Stage, word: str) -> list[dict[str, Any]]:
    """Return the Events whose message or reason has a word."""
    return [e for e in stage.api.objects("/api/v1/events") if word in e["message"] or word in e["reason"]]


def home(stage: Stage, nic: str, host_state: HostState, before: object) -> None:
    """Wait until the interface is on the host as it was."""

    def look() -> bool:
        try:
            return bool(host_state(nic) == before)
        except (OSError, ValueError, subprocess.CalledProcessError):
            return False

    stage.wait_for(look, f"{nic} is home as it was")


def restarted(stage: Stage) -> None:
    """Start the daemon again and wait for it."""
    stage.start_daemon()
    stage.wait_ready()
