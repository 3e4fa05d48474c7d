"""The daemon under a real containerd: attach, detach, and what can go wrong between the two."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

from hack.cri import CriError
from hack.node import NRI_SOCKET, NodeError
from hack.plugin import RUN, Plugin, RefusedError
from nri_dranet.testing.kubelet import KubeletError

if TYPE_CHECKING:
    from hack.world import World

# The user's example of the interface status.
EXAMPLE = {
    "interface": {"name": "eth99", "addresses": ["169.254.169.13/32"]},
    "routes": [
        {"destination": "169.254.169.0/24", "gateway": "169.254.169.1"},
        {"destination": "169.254.169.1/32", "scope": 253},
    ],
}


def test_attach_and_detach(world: World) -> None:
    """A pod has the interface as its claim says, the status says so, and the interface comes home as it was."""
    world.start_daemon()
    before = world.nic("nic1", address="192.0.2.10/24", mtu=1400)
    pod = world.pod("pod", world.claim("claim", "nic1", config=EXAMPLE))
    cdi = world.prepare(pod)
    assert world.state("nic1") == before, "Prepare moves nothing"
    assert world.receipts() == []
    sandbox = world.client.run_sandbox(pod.cri)

    assert world.state("nic1") == {}
    inside = world.state("eth99", netns=world.client.netns(sandbox))
    assert inside["up"]
    assert inside["addresses"] == ["169.254.169.13/32 global"]
    assert {(route["dst"], route["gateway"], route["scope"]) for route in inside["routes"]} >= {
        ("169.254.169.0/24", "169.254.169.1", "global"),
        ("169.254.169.1", "", "link"),
    }
    container = world.container(sandbox, pod, cdi)
    assert "169.254.169.13/32" in world.client.exec(container, "ip", "address", "show", "dev", "eth99")
    ready, network = world.condition("claim", "Ready", "True"), world.condition("claim", "NetworkReady", "True")
    assert (ready["reason"], network["reason"]) == ("NetworkDeviceReady", "NetworkReady")
    [entry] = world.status("claim")
    assert entry["networkData"] == {
        "interfaceName": "eth99",
        "hardwareAddress": before["address"],
        "ips": ["169.254.169.13/32"],
    }

    world.client.stop_sandbox(sandbox)
    assert world.state("nic1") == before
    assert world.receipts() == []
    world.client.remove_sandbox(sandbox)
    world.unprepare(pod)
    world.wait_for(lambda: not world.namespaces(), "no namespace is left")


def test_what_the_host_has_is_kept(world: World) -> None:
    """Without a configuration the interface has its own name, address and MTU in the pod."""
    world.start_daemon()
    before = world.nic("nic1", address="192.0.2.10/24", mtu=1400)
    pod = world.pod("pod", world.claim("claim", "nic1"))
    world.prepare(pod)
    sandbox = world.client.run_sandbox(pod.cri)
    inside = world.state("nic1", netns=world.client.netns(sandbox))
    assert (inside["addresses"], inside["mtu"]) == (before["addresses"], 1400)
    world.end(sandbox)
    assert world.state("nic1") == before


def test_a_failing_attach_refuses_the_sandbox(world: World) -> None:
    """A name that is taken in the pod is known in the hook only: refused by name, and the host is as before."""
    world.start_daemon()
    before = world.nic("nic1", address="192.0.2.10/24"), world.nic("nic2", address="198.51.100.10/24")
    pod = world.pod("pod", world.claim("first", "nic2"), world.claim("second", "nic1", config=EXAMPLE))
    cdi = world.prepare(pod)
    take = [True]

    def take_the_name(method: str, sandbox: Any) -> None:
        if method == RUN and take:
            [netns] = [item.path for item in sandbox.linux.namespaces if item.type == "network"]
            world.node.ip("link", "add", "eth99", "type", "bridge", netns=netns)

    with Plugin(world.node.path(NRI_SOCKET), index="10", handler=take_the_name):
        with pytest.raises(CriError, match=r"nic1.*eth99"):
            world.client.run_sandbox(pod.cri)
        assert (world.state("nic1"), world.state("nic2")) == before, "all devices of the pod are undone"
        assert world.receipts() == []
        assert world.client.sandboxes() == {}
        assert "eth99" in world.condition("second", "Ready", "False")["message"]
        take.clear()
        sandbox = world.client.run_sandbox(pod.cri)
    world.container(sandbox, pod, cdi)
    world.condition("second", "Ready", "True")
    world.end(sandbox)
    assert (world.state("nic1"), world.state("nic2")) == before


@pytest.mark.parametrize("request_timeout", ["300ms"])
def test_f03_a_slow_attach_is_refused_before_the_runtime_gives_up(world: World) -> None:
    """With more work than the runtime's timeout allows the answer is an error, and everything is undone behind it."""
    world.start_daemon()
    names = [f"nic{number}" for number in range(30)]
    before = {name: world.nic(name) for name in names}
    pod = world.pod("pod", world.claim("claim", *names))
    cdi = world.prepare(pod)
    with pytest.raises(CriError, match=r"in time|deadline|time was up"):
        world.client.run_sandbox(pod.cri)
    world.wait_for(lambda: {name: world.state(name) for name in names} == before, "all interfaces are home")
    assert world.receipts() == []
    assert cdi
    world.condition("claim", "Ready", "False")


def test_a_frozen_driver_gives_no_container_without_its_device(world: World) -> None:
    """The runtime goes on without a plugin that does not answer; the container is refused until the device is there."""
    world.start_daemon()
    before = world.nic("nic1")
    pod = world.pod("pod", world.claim("claim", "nic1", config=EXAMPLE))
    cdi = world.prepare(pod)
    assert world.daemon is not None
    world.daemon.signal(signal.SIGSTOP)
    sandbox = world.client.run_sandbox(pod.cri)
    with pytest.raises(CriError, match="unresolvable CDI devices"):
        world.container(sandbox, pod, cdi)
    assert world.state("nic1") == before
    world.daemon.signal(signal.SIGCONT)
    world.wait_for(world.receipts, "the device is attached late")
    container = world.container(sandbox, pod, cdi)
    assert "169.254.169.13/32" in world.client.exec(container, "ip", "address", "show", "dev", "eth99")
    world.end(sandbox)
    world.wait_for(lambda: world.state("nic1") == before, "nic1 is home")


@pytest.mark.usefixtures("stops_untold")
@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_f04_containerd_restarts_under_a_running_pod(world: World, *, kill: bool) -> None:
    """The device stays, the daemon joins again, and the device comes home although the runtime calls no Stop."""
    world.start_daemon()
    before = world.nic("nic1", address="192.0.2.10/24")
    pod = world.pod("pod", world.claim("claim", "nic1", config=EXAMPLE))
    cdi = world.prepare(pod)
    sandbox = world.client.run_sandbox(pod.cri)
    container = world.container(sandbox, pod, cdi)
    condition = world.condition("claim", "Ready", "True")

    world.node.stop_containerd(kill=kill)
    world.wait_ready(ready=False)
    world.node.start_containerd()
    world.wait_ready()
    assert "169.254.169.13/32" in world.client.exec(container, "ip", "address", "show", "dev", "eth99")
    assert world.condition("claim", "Ready", "True") == condition
    world.client.remove_container(container)
    assert "eth99" in world.client.exec(world.container(sandbox, pod, cdi), "ip", "link")

    world.end(sandbox)
    world.unprepare(pod)
    world.wait_for(lambda: world.state("nic1") == before, "nic1 is home")
    assert world.receipts() == []
    world.wait_for(lambda: not world.namespaces(), "no namespace is left")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_daemon_restarts_under_a_running_pod(world: World, number: signal.Signals) -> None:
    """The pod keeps its device, its status keeps its times, and the new daemon gives the device back."""
    world.start_daemon()
    before = world.nic("nic1", address="192.0.2.10/24")
    pod = world.pod("pod", world.claim("claim", "nic1", config=EXAMPLE))
    cdi = world.prepare(pod)
    sandbox = world.client.run_sandbox(pod.cri)
    container = world.container(sandbox, pod, cdi)
    condition = world.condition("claim", "Ready", "True")

    world.restart_daemon(number)
    assert world.prepare(pod) == cdi, "kubelet may prepare again, with the same answer"
    assert "169.254.169.13/32" in world.client.exec(container, "ip", "address", "show", "dev", "eth99")
    world.client.remove_container(container)
    world.container(sandbox, pod, cdi)
    assert world.condition("claim", "Ready", "True") == condition

    world.end(sandbox)
    assert world.state("nic1") == before
    world.unprepare(pod)
    world.wait_for(lambda: not world.namespaces(), "no namespace is left")


def test_f01_killed_between_prepare_and_the_sandbox(world: World) -> None:
    """A pod whose hook nobody heard has no container without its device, and gets it when the daemon is back."""
    world.start_daemon()
    before = world.nic("nic1")
    pod = world.pod("pod", world.claim("claim", "nic1", config=EXAMPLE))
    cdi = world.prepare(pod)
    world.kill_daemon()
    sandbox = world.client.run_sandbox(pod.cri)
    with pytest.raises(CriError, match="unresolvable CDI devices"):
        world.container(sandbox, pod, cdi)
    assert world.state("nic1") == before
    world.start_daemon()
    world.wait_for(world.receipts, "the device is attached late")
    container = world.container(sandbox, pod, cdi)
    assert "169.254.169.13/32" in world.client.exec(container, "ip", "address", "show", "dev", "eth99")
    world.condition("claim", "Ready", "True")
    world.end(sandbox)
    assert world.state("nic1") == before


def test_killed_while_the_pod_ends(world: World) -> None:
    """A pod that ended while the daemon was dead: its device is home when the daemon is back, or gone with the pod."""
    world.start_daemon()
    world.nic("nic1")
    pod = world.pod("pod", world.claim("claim", "nic1", config=EXAMPLE))
    cdi = world.prepare(pod)
    sandbox = world.client.run_sandbox(pod.cri)
    world.container(sandbox, pod, cdi)
    world.kill_daemon()
    world.end(sandbox)  # nobody holds the namespace: the kernel destroys it, and a virtual link with it
    assert world.namespaces() == []
    world.start_daemon()
    world.unprepare(pod)
    assert world.receipts() == []
    world.wait_for(lambda: world.device("eth99") is None and world.device("nic1") is None, "it is no longer published")


def test_a_container_at_once_after_the_hook_finds_the_receipt(world: World) -> None:
    """The runtime, which learns of new CDI files by events, knows the receipt by the time of the hook's answer."""
    world.start_daemon()
    before = world.nic("nic1", address="192.0.2.10/24")
    world.claim("claim", "nic1", config=EXAMPLE)
    for number in range(20):
        pod = world.pod(f"pod{number}", "claim")
        cdi = world.prepare(pod)
        sandbox = world.client.run_sandbox(pod.cri)
        container = world.container(sandbox, pod, cdi)
        assert "169.254.169.13/32" in world.client.exec(container, "ip", "address", "show", "dev", "eth99")
        world.end(sandbox)
        assert world.state("nic1") == before
        world.unprepare(pod)
        world.api.release("default", "claim", uid=pod.cri.uid)


def test_f31_a_later_plugin_refuses_the_sandbox(world: World) -> None:
    """When a plugin that comes after ours fails, the device comes home, and the next try attaches it again."""
    world.start_daemon()
    before = world.nic("nic1", address="192.0.2.10/24")
    pod = world.pod("pod", world.claim("claim", "nic1", config=EXAMPLE))
    cdi = world.prepare(pod)
    seen: list[bool] = []

    def refuse(method: str, _: object) -> None:
        if method == RUN:
            seen.append(bool(world.receipts()))
            raise RefusedError("the later plugin says no")

    with Plugin(world.node.path(NRI_SOCKET), index="95", handler=refuse):
        with pytest.raises(CriError, match="the later plugin says no"):
            world.client.run_sandbox(pod.cri)
        assert seen == [True], "the device was attached by then"
        assert world.state("nic1") == before
        assert world.receipts() == []
    sandbox = world.client.run_sandbox(pod.cri)
    world.container(sandbox, pod, cdi)
    world.end(sandbox)
    assert world.state("nic1") == before


def test_an_earlier_plugin_refuses_the_sandbox(world: World) -> None:
    """When a plugin that comes before ours fails, nothing has moved, and the next try attaches the device."""
    world.start_daemon()
    before = world.nic("nic1")
    pod = world.pod("pod", world.claim("claim", "nic1", config=EXAMPLE))
    cdi = world.prepare(pod)

    def refuse(method: str, _: object) -> None:
        if method == RUN:
            assert world.state("nic1") == before
            raise RefusedError("the earlier plugin says no")

    with (
        Plugin(world.node.path(NRI_SOCKET), index="10", handler=refuse),
        pytest.raises(CriError, match="the earlier plugin says no"),
    ):
        world.client.run_sandbox(pod.cri)
    sandbox = world.client.run_sandbox(pod.cri)
    world.container(sandbox, pod, cdi)


def test_a_second_pod_on_a_held_claim_is_refused(world: World) -> None:
    """Kubelet prepares a shared claim once: the second pod is refused in its hook with both pods named."""
    world.start_daemon()
    world.nic("nic1")
    first = world.pod("first", world.claim("claim", "nic1", config=EXAMPLE))
    world.prepare(first)
    sandbox = world.client.run_sandbox(first.cri)
    second = world.pod("second", "claim")
    with pytest.raises(CriError, match=r"first.*second|second.*first"):
        world.client.run_sandbox(second.cri)
    assert world.state("eth99", netns=world.client.netns(sandbox))["up"], "the first pod is not touched"
    world.end(sandbox)


class Load:
    """Pods that start and end one after the other, each with the interface. Whatever fails is remembered."""

    def __init__(self, world: World) -> None:
        self.wrong: list[str] = []
        self.count = 0
        self._world = world
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.is_set() and not self.wrong:
            try:
                self._one()
            except (AssertionError, CriError, KubeletError, NodeError) as error:
                self.wrong.append(f"pod {self.count}: {error}")
            self.count += 1

    def _one(self) -> None:
        world = self._world
        pod = world.pod(f"load{self.count}", "claim")
        cdi = world.prepare(pod)
        sandbox = world.client.run_sandbox(pod.cri)
        container = world.container(sandbox, pod, cdi)
        assert "169.254.169.13/32" in world.client.exec(container, "ip", "address", "show", "dev", "eth99")
        # As kubelet does. A sandbox that is removed with its containers takes a lock of containerd's twice, which
        # blocks it for ever when a plugin joins in between.
        world.client.remove_container(container)
        world.end(sandbox)
        world.unprepare(pod)

    def go_on(self) -> None:
        """Wait until three more pods have come and gone."""
        until = self.count + 3
        self._world.wait_for(lambda: self.count >= until or self.wrong, "pods come and go")
        assert not self.wrong

    def __enter__(self) -> Load:  # noqa: PYI034 - not for subclasses
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def test_pods_start_while_a_newer_daemon_takes_over(world: World) -> None:
    """Two plugins of one name and index are joined for a moment: one acts, no pod waits, none is attached late."""
    flags = [f"--pod-uid=6c9d1a4e-0000-4000-8000-00000000000{number}" for number in range(3)]
    world.start_daemon(flags[0])
    before = world.nic("nic1", address="192.0.2.10/24")
    world.claim("claim", "nic1", config=EXAMPLE)
    with Load(world) as load:
        for flag in flags[1:]:
            load.go_on()
            world.start_successor(flag)
            load.go_on()
            assert world.stop_former() == 0
        load.go_on()
    assert not load.wrong
    assert not world.said("attached late")
    assert world.said("took over from another instance") == 2
    assert world.state("nic1") == before
