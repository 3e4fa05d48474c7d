"""RDMA under a real containerd with real device rules: who can open the device, and who cannot."""

from __future__ import annotations

import json
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from hack import parts
from hack.cri import CriError
from hack.node import Node
from hack.world import World
from tests.vm.bed import load_module, make_bed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hack.world import Claimed
    from tests.vm.bed import Bed

pytestmark = pytest.mark.vm(guest="runtime")

VERBS = "/dev/infiniband/uverbs"


@pytest.fixture(scope="module")
def machine() -> Iterator[Bed]:
    """Give functions with RDMA devices and without interface: in shared mode each namespace sees them."""
    load_module()
    beds = make_bed()
    bed = next(beds)
    for number, name in enumerate(("efa_0", "efa_1")):
        bed.test_rdma(name, bed.bare_function(number), "ib")
    yield bed
    next(beds, None)


def world_with(containerd: parts.Part, *, enable_cdi: bool = True) -> Iterator[World]:
    """Run the daemon under a containerd."""
    with (
        Node(containerd, request_timeout="10s", enable_cdi=enable_cdi) as node,
        node.client() as client,
        World(node, client) as world,
    ):
        world.start_daemon()
        yield world


@pytest.fixture(scope="module", params=[parts.CONTAINERD_2, parts.CONTAINERD_1], ids=lambda part: part.version)
def world(request: pytest.FixtureRequest, machine: Bed) -> Iterator[World]:
    """Run the daemon under each containerd, once for all tests of it."""
    assert machine
    yield from world_with(request.param)


def started(world: World, name: str, *rdma: str, listed: bool = True) -> tuple[str, Claimed, tuple[str, ...]]:
    """Run the sandbox of a pod with RDMA devices; return it, the pod, and the CDI devices that kubelet gives."""
    pod = world.pod(name, world.claim(f"claim-{name}", *rdma), listed=listed)
    cdi = world.prepare(pod)
    return world.client.run_sandbox(pod.cri), pod, cdi


def nodes(world: World, container: str) -> list[str]:
    """Return the nodes in a container's /dev/infiniband."""
    return world.client.exec(container, "sh", "-c", "ls /dev/infiniband 2>/dev/null || true").split()


def opens(world: World, container: str, node: str) -> str:
    """Open a device node in a container; return what it says, "" when it can be opened."""
    return world.client.exec(container, "sh", "-c", f"(exec 3<>{node}) 2>&1 || true").strip()


def numbers(world: World, node: str) -> list[str]:
    """Return major and minor number of a device node of the machine."""
    return world.node.run("stat", "-c", "%t %T", node).split()


def spec(world: World, container: str) -> dict[str, Any]:
    """Return what runc was told."""
    place = f"/run/containerd/io.containerd.runtime.v2.task/k8s.io/{container}/config.json"
    found: dict[str, Any] = json.loads(world.node.path(place).read_text(encoding="utf-8"))
    return found


def locked(world: World, container: str) -> str:
    """Return a container's limit of locked memory."""
    limits = world.client.exec(container, "cat", "/proc/1/limits").splitlines()
    return next(line.split()[3] for line in limits if line.startswith("Max locked memory"))


def end(world: World, sandbox: str, pod: Claimed) -> None:
    """End a pod."""
    world.end(sandbox)
    world.unprepare(pod)


def test_the_claiming_container_alone_can_open_the_device(world: World) -> None:
    """A sidecar that does not list the claim has no node; one that it makes itself is refused by its device rules."""
    sandbox, pod, cdi = started(world, "sidecar", "efa_0")
    main = world.container(sandbox, pod, cdi)
    sidecar = world.container(sandbox, pod, (), name="sidecar")
    found = nodes(world, main)
    assert [name.rstrip("0123456789") for name in found] == ["issm", "rdma_cm", "umad", "uverbs"]
    assert nodes(world, sidecar) == []
    (verbs,) = (f"/dev/infiniband/{name}" for name in found if name.startswith("uverbs"))
    assert opens(world, main, verbs) == ""
    major, minor = (str(int(number, 16)) for number in numbers(world, verbs))
    world.client.exec(sidecar, "mknod", "/own", "c", major, minor)
    assert "Operation not permitted" in opens(world, sidecar, "/own")
    # The other device is nobody's here.
    other = next(name for name in world.node.run("ls", "/dev/infiniband").split() if f"/dev/infiniband/{name}" > verbs)
    major, minor = (str(int(number, 16)) for number in numbers(world, f"/dev/infiniband/{other}"))
    world.client.exec(main, "mknod", "/other", "c", major, minor)
    assert "Operation not permitted" in opens(world, main, "/other")
    assert locked(world, main) == locked(world, sidecar) == "unlimited"
    assert world.condition(pod.claims[0], "Ready", "True")["reason"] == "RDMAOnlyDeviceReady"
    end(world, sandbox, pod)


def test_a_container_gets_each_node_once(world: World) -> None:
    """By the receipt or by adjustment, never by both: of each there is one node and one rule."""
    sandbox, pod, cdi = started(world, "once", "efa_0", "efa_1")
    main = world.container(sandbox, pod, cdi)
    linux = spec(world, main)["linux"]
    paths = [device["path"] for device in linux["devices"] if "/infiniband/" in device["path"]]
    assert len(paths) == len(set(paths)) == 7
    rules = Counter((rule.get("major"), rule.get("minor")) for rule in linux["resources"]["devices"] if rule["allow"])
    own = [one for one in linux["devices"] if one["path"] in paths and not one["path"].endswith("rdma_cm")]
    assert {rules[(one["major"], one["minor"])] for one in own} == {1}
    end(world, sandbox, pod)


def test_all_containers_of_a_pod_that_lists_nowhere_have_the_devices(world: World) -> None:
    """Two RDMA devices share the connection manager's node: it is given once."""
    sandbox, pod, _ = started(world, "pod-level", "efa_0", "efa_1", listed=False)
    for name in ("main", "sidecar"):
        container = world.container(sandbox, pod, (), name=name)
        found = nodes(world, container)
        assert len(found) == 7
        assert [opens(world, container, f"/dev/infiniband/{each}") for each in found if "uverbs" in each] == ["", ""]
        assert locked(world, container) == "unlimited"
    end(world, sandbox, pod)


def test_no_receipt_no_container(world: World) -> None:
    """While the daemon is dead a container that lists the claim is not made; when it is back it is, and can open it."""
    pod = world.pod("dead", world.claim("claim-dead", "efa_0"))
    cdi = world.prepare(pod)
    world.kill_daemon()
    sandbox = world.client.run_sandbox(pod.cri)
    with pytest.raises(CriError, match="unresolvable CDI devices"):
        world.container(sandbox, pod, cdi)
    world.start_daemon()
    world.condition(pod.claims[0], "Ready", "True")
    main = world.container(sandbox, pod, cdi)
    verbs = next(name for name in nodes(world, main) if name.startswith("uverbs"))
    assert opens(world, main, f"/dev/infiniband/{verbs}") == ""
    end(world, sandbox, pod)
    world.restart_daemon(signal.SIGTERM)


@pytest.mark.parametrize("containerd", [parts.CONTAINERD_1], ids=lambda part: part.version)
def test_a_runtime_without_cdi_gives_the_devices_too(machine: Bed, containerd: parts.Part) -> None:
    """CDI is off by default in containerd 1.7: the container that lists the claim gets them by adjustment."""
    assert machine
    for world in world_with(containerd, enable_cdi=False):
        sandbox, pod, cdi = started(world, "no-cdi", "efa_0")
        main = world.container(sandbox, pod, cdi)
        sidecar = world.container(sandbox, pod, (), name="sidecar")
        verbs = next(name for name in nodes(world, main) if name.startswith("uverbs"))
        assert opens(world, main, f"/dev/infiniband/{verbs}") == ""
        assert nodes(world, sidecar) == []
        end(world, sandbox, pod)
