"""The API server is away while pods start and the daemon is killed: afterwards every status is right, soon."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from hack.audit import audit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nri_dranet.testing.stage import Stage, StagedPod

PODS: Final = 50
RIGHT_WITHIN: Final = 5.0
"""Seconds after the API server's return."""


@pytest.fixture
def nics() -> Iterator[list[str]]:
    """Make a veth pair for each pod; return the ends that pods get."""
    names = [f"out{number}" for number in range(PODS)]
    lines = [f"link add {name} type veth peer name {name}p" for name in names]
    lines += [f"link set {name}p addrgenmode none up" for name in names]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
    yield names
    for name in names:
        subprocess.run(["ip", "link", "del", f"{name}p"], check=False, capture_output=True)


def wrong(stage: Stage, pods: list[StagedPod]) -> list[str]:
    """Return what the auditor finds wrong."""
    found = []
    for pod in pods:
        links: list[dict[str, Any]] = json.loads(pod.run("ip", "-j", "-d", "addr"))
        found += [f"{pod.name}: {why}" for why in audit(stage.get_claim(pod.claims[0]), links)]
    return found


def test_fifty_pods_in_an_outage_with_a_daemon_that_is_killed(
    make_stage: Callable[..., Stage], nics: list[str]
) -> None:
    """Prepared before, started while the API server is away, half of them before a SIGKILL and half after it."""
    stage = make_stage()
    stage.start_daemon()
    stage.wait_ready()
    stage.wait_for(lambda: set(nics) <= stage.devices().keys(), "published")
    pods = []
    for number, nic in enumerate(nics):
        name = f"c{number}"
        stage.claim(name, [{"interface": {"name": "net1", "addresses": [f"192.0.2.{number + 1}/24"]}}])
        stage.allocate(name, nic)
        pods.append(stage.pod(f"pod-{name}", name))
        (answer,) = stage.prepare(pods[-1]).values()
        assert not answer["error"]
    stage.api.pause()
    half = PODS // 2
    for pod in pods[:half]:
        stage.runtime.run_pod(pod.sandbox)
    stage.stop_daemon(signal.SIGKILL)
    stage.start_daemon()
    stage.runtime.wait_for_plugin()
    for pod in pods[half:]:
        stage.runtime.run_pod(pod.sandbox)
    stage.api.resume()
    began = time.monotonic()
    while found := wrong(stage, pods):
        assert time.monotonic() - began < RIGHT_WITHIN, found
