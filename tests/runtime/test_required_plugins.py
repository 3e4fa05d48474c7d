"""The runtime's default validator: no container without the driver, also where no CDI device keeps it away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hack import parts
from hack.cri import CriError

if TYPE_CHECKING:
    from hack.world import World

CONFIG = {"interface": {"name": "eth99", "addresses": ["169.254.169.13/32"]}}
REQUIRED = {"required-plugins.noderesource.dev": '["dra.net"]'}
TOLERANT = {"example.com/tolerate-missing-plugins": "true"}

# containerd has it from 2.2 on.
pytestmark = pytest.mark.parametrize("containerd", [parts.CONTAINERD_2], ids=["containerd-2"], indirect=True)


@pytest.mark.parametrize("required", [(), ("dra.net",)], ids=["by the pod", "by the node"])
def test_no_container_is_created_while_the_driver_is_dead(world: World, required: tuple[str, ...]) -> None:
    """The claim is named at pod level only: kubelet gives its containers no CDI device that would keep them away."""
    world.start_daemon()
    before = world.nic("nic1")
    world.claim("claim", "nic1", config=CONFIG)
    pod = world.pod("pod", "claim", listed=False, annotations={} if required else REQUIRED)
    world.prepare(pod)
    world.kill_daemon()
    sandbox = world.client.run_sandbox(pod.cri)
    with pytest.raises(CriError, match=r"required plugin .dra\.net. not present"):
        world.container(sandbox, pod, ())
    assert world.state("nic1") == before
    world.start_daemon()
    world.wait_for(world.receipts, "the device is attached late")
    container = world.container(sandbox, pod, ())
    assert "169.254.169.13/32" in world.client.exec(container, "ip", "address", "show", "dev", "eth99")
    world.condition("claim", "Ready", "True")
    world.client.remove_container(container)
    world.end(sandbox)
    assert world.state("nic1") == before


@pytest.mark.parametrize("required", [(), ("dra.net",)], ids=["by the pod", "by the node"])
def test_other_pods_need_no_driver(world: World, required: tuple[str, ...]) -> None:
    """Without the annotation, or with the one that tolerates it on a node that requires it for all."""
    pod = world.pod("pod", annotations=TOLERANT if required else {})
    sandbox = world.client.run_sandbox(pod.cri)
    world.container(sandbox, pod, ())
