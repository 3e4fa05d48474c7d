"""The whole daemon on the guest's hardware: from the slices to the claim's status, and what the kernel then shows."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hack.audit import audit
from nri_dranet.testing.stage import DRIVER, NODE
from tests.vm.bed import links, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nri_dranet.testing.stage import Stage, StagedPod

_NUMBERS = itertools.count(1)

READY = {"Ready": ("True", "NetworkDeviceReady"), "NetworkReady": ("True", "NetworkReady")}
"""The conditions of an interface in its pod."""

ALL_READY = {**READY, "RDMALinkReady": ("True", "RDMALinkReady")}
"""The conditions of an interface that is in its pod with its RDMA device."""


@dataclass(frozen=True, slots=True)
class View:
    """What a namespace shows: interfaces by ``ip``, RDMA devices with their interfaces by ``rdma``, both by sysfs."""

    interfaces: frozenset[str]
    rdma: dict[str, str]
    sysfs_interfaces: frozenset[str]
    sysfs_rdma: frozenset[str]


@dataclass
class Node:
    """The daemon between its stand-ins, and a test's pods. Claims and pods of a test end with it."""

    stage: Stage
    pods: list[StagedPod] = field(default_factory=list)

    # what is published

    def find(self, attribute: str, value: str) -> str | None:
        """Return the name of the published device whose attribute has a value."""
        for name, device in self.stage.devices().items():
            if device.get("attributes", {}).get(f"dra.net/{attribute}", {}).get("string") == value:
                return name
        return None

    def published(self, interface: str = "", rdma: str = "") -> str:
        """Wait until a device is published with this interface or (also) this RDMA device; return its name."""

        def look() -> str | None:
            found = self.find("ifName", interface) if interface else self.find("rdmaDevice", rdma)
            return found if found and (not rdma or found == self.find("rdmaDevice", rdma)) else None

        found = self.stage.wait_for(look, f"a device with {interface} {rdma} is published")
        assert found is not None
        return found

    def attributes(self, device: str) -> dict[str, Any]:
        """Return the attributes of a published device, without their types."""
        shown = self.stage.devices()[device]["attributes"]
        return {name.removeprefix("dra.net/"): next(iter(value.values())) for name, value in shown.items()}

    def taints(self, device: str) -> list[str]:
        """Return the keys of a published device's taints."""
        return [taint["key"] for taint in self.stage.devices()[device].get("taints") or []]

    # what kubelet and the runtime do

    def pod(self, *devices: str, config: dict[str, Any] | None = None, share: str = "") -> tuple[StagedPod, str]:
        """Return a pod whose claim has these devices, or a share of one, and why it is refused ("": it is not)."""
        name = f"claim{next(_NUMBERS)}"
        requests = [f"nic{place}" for place in range(len(devices))]
        self.stage.claim(name, [config] if config else [], requests)
        if share:
            (device,) = devices
            result = {"request": "nic0", "driver": DRIVER, "pool": NODE, "device": device, "shareID": share}
            configs = [{"opaque": {"driver": DRIVER, "parameters": config}, "source": "FromClaim"}]
            self.stage.api.allocate("default", name, results=[result], config=configs, node=NODE)
        else:
            self.stage.allocate(name, *devices)
        pod = self.stage.pod(f"pod-{name}", name)
        self.pods.append(pod)
        (answer,) = self.stage.prepare(pod).values()
        return pod, str(answer["error"])

    def prepared(self, *devices: str, config: dict[str, Any] | None = None, share: str = "") -> StagedPod:
        """Return a pod whose claim has these devices, or a share of one, and is prepared."""
        pod, error = self.pod(*devices, config=config, share=share)
        assert not error, error
        return pod

    def run(self, pod: StagedPod) -> None:
        """Run a pod's sandbox."""
        self.stage.runtime.run_pod(pod.sandbox)

    def running(
        self,
        *devices: str,
        config: dict[str, Any] | None = None,
        wanted: dict[str, tuple[str, str]] = READY,
    ) -> StagedPod:
        """Return a pod that has these devices, once its claim's status says so."""
        pod = self.prepared(*devices, config=config or {"interface": {"name": "net1"}})
        self.run(pod)
        self.says(pod, wanted)
        return pod

    def end(self, pod: StagedPod) -> None:
        """End a pod and release its claim."""
        self.stage.end_pod(pod)
        self.release(pod)

    def release(self, pod: StagedPod) -> None:
        """Release the claim of a pod that has ended."""
        self.pods.remove(pod)
        (answer,) = self.stage.unprepare(pod).values()
        assert not answer["error"], answer["error"]
        self.stage.api.release("default", pod.claims[0], uid=pod.uid)

    def restart(self) -> None:
        """Start the daemon after it was killed."""
        self.stage.start_daemon()
        self.stage.wait_ready()

    def close(self) -> None:
        """End what a test left."""
        for pod in list(self.pods):
            self.end(pod)

    # what is to be seen

    def entry(self, pod: StagedPod) -> dict[str, Any]:
        """Return what the status of the pod's claim says of its first device."""
        return next(iter(self.stage.get_claim(pod.claims[0]).get("status", {}).get("devices") or [{}]))

    def conditions(self, pod: StagedPod) -> dict[str, tuple[str, str]]:
        """Return the conditions of the pod's first device: type to status and reason."""
        return {one["type"]: (one["status"], one["reason"]) for one in self.entry(pod).get("conditions") or []}

    def says(self, pod: StagedPod, wanted: dict[str, tuple[str, str]]) -> dict[str, Any]:
        """Wait until the status of the pod's claim has exactly these conditions and return its entry."""
        try:
            self.stage.wait_for(lambda: self.conditions(pod) == wanted, f"the status says {wanted}")
        except Exception as error:
            raise AssertionError(f"{self.entry(pod)} and not {wanted}") from error
        return self.entry(pod)

    def audited(self, pod: StagedPod) -> None:
        """Wait until the status says what ``ip`` shows in the pod."""

        def wrong() -> list[str]:
            return audit(self.stage.get_claim(pod.claims[0]), json.loads(pod.run("ip", "-j", "-d", "addr")))

        try:
            self.stage.wait_for(lambda: not wrong(), "the status says what the pod has")
        except Exception as error:
            raise AssertionError("; ".join(wrong())) from error

    def events(self, word: str) -> list[str]:
        """Return the messages of the Events whose reason or message has a word."""
        shown = self.stage.api.objects("/api/v1/events")
        return [one["message"] for one in shown if word in one["reason"] or word in one["message"]]

    def logged(self, pattern: str) -> list[str]:
        """Return the daemon's log lines that match."""
        lines = self.stage.log.read_text(errors="replace").splitlines()
        return [line for line in lines if re.search(pattern, line)]


def view(pod: StagedPod | None = None) -> View:
    """Return what the node (None) or a pod shows; loopback left out."""

    def tell(*command: str) -> str:
        return pod.run(*command) if pod else run(*command)

    shown = json.loads(tell("rdma", "-j", "link", "show") or "[]")
    # The node's own sysfs is there already; a pod's is that of its namespace.
    mount = "mount -t sysfs sys /sys && " if pod else ""
    script = f"{mount}ls /sys/class/net && echo - && ls /sys/class/infiniband 2>/dev/null || true"
    nets, _, rdma = tell("unshare", "--mount", "sh", "-c", script).partition("-\n")
    return View(
        frozenset(link["ifname"] for link in json.loads(tell("ip", "-j", "link"))) - {"lo"},
        {link["ifname"]: link.get("netdev", "") for link in shown},
        frozenset(nets.split()) - {"lo", "bonding_masters"},
        frozenset(rdma.split()),
    )


def only(interfaces: Sequence[str], rdma: dict[str, str]) -> View:
    """Return the view of a namespace that has these alone."""
    return View(frozenset(interfaces), rdma, frozenset(interfaces), frozenset(rdma))


def state_of(interface: str) -> dict[str, Any]:
    """Return of an interface on the node what must come back with it."""
    link = links()[interface]
    wanted = ("ifindex", "address", "mtu", "parentdev", "txqlen", "group")
    return {"up": "UP" in link["flags"], **{key: link.get(key) for key in wanted}}
