"""Pods come and go on a real containerd while it restarts and the daemon is killed or restarted.

``NRI_DRANET_SOAK_RUNTIME`` is the number of pods on each version (``make soak``: 50).
"""

from __future__ import annotations

import os
import random
import signal
from typing import TYPE_CHECKING, Final

import pytest

from hack.cri import CriError

if TYPE_CHECKING:
    from collections.abc import Callable

    from hack.world import Claimed, World

PODS: Final = int(os.environ.get("NRI_DRANET_SOAK_RUNTIME", "4"))
SEED: Final = int(os.environ.get("NRI_DRANET_SOAK_SEED", "20261124"))

MOMENTS: Final = ("before run", "before container", "in the pod", "before stop", "before unprepare")
CONFIG: Final = {"interface": {"name": "eth99", "addresses": ["169.254.169.13/32"], "mtu": 1300}}


def _restart_containerd(world: World, *, kill: bool) -> None:
    world.node.stop_containerd(kill=kill)
    world.node.start_containerd()
    world.wait_ready()


TROUBLES: Final[dict[str, Callable[[World], None]]] = {
    "none": lambda _: None,
    "kill": lambda world: world.restart_daemon(signal.SIGKILL),
    "restart": lambda world: world.restart_daemon(signal.SIGTERM),
    "containerd": lambda world: _restart_containerd(world, kill=False),
    "containerd killed": lambda world: _restart_containerd(world, kill=True),
}


def _container(world: World, sandbox: str, pod: Claimed, cdi: tuple[str, ...]) -> str:
    """Create the pod's container, as often as kubelet would: it is refused until the pod has its device."""

    def attempt() -> str:
        try:
            return world.container(sandbox, pod, cdi)
        except CriError:
            return ""

    container: str = world.wait_for(attempt, "the container is created")
    return container


@pytest.mark.usefixtures("stops_untold")
def test_pods_come_and_go_amid_trouble(world: World) -> None:
    """Each container has its interface, each status is right, and in the end the node is as before."""
    dice = random.Random(SEED)  # noqa: S311 - no secret
    world.start_daemon()
    before = world.nic("nic1", address="192.0.2.10/24", mtu=1400)
    for number in range(PODS):
        trouble, moment = dice.choice(sorted(TROUBLES)), dice.choice(MOMENTS)

        def disturb(now: str, trouble: str = trouble, moment: str = moment) -> None:
            if now == moment:
                TROUBLES[trouble](world)

        name = f"c{number}"
        pod = world.pod(f"pod-{name}", world.claim(name, "nic1", config=CONFIG))
        cdi = world.prepare(pod)
        disturb("before run")
        sandbox = world.client.run_sandbox(pod.cri)
        disturb("before container")
        container = _container(world, sandbox, pod, cdi)
        shown = world.client.exec(container, "ip", "address", "show", "dev", "eth99")
        assert "169.254.169.13/32" in shown, f"{name}: {trouble} {moment}"
        disturb("in the pod")
        world.condition(name, "NetworkReady", "True")
        world.wait_for(lambda: not world.audit(), f"the status of {name} says what its pod has")
        disturb("before stop")
        world.end(sandbox)
        disturb("before unprepare")
        world.unprepare(pod)
        world.wait_for(lambda: world.state("nic1") == before, f"nic1 is as before {name}: {trouble} {moment}")
        assert world.receipts() == []
        world.wait_for(lambda: not world.namespaces(), "no namespace is left")
        world.wait_for(lambda: not world.audit(), "the statuses at rest are right")
