"""A pod's namespace with an interface, and an observer that notes what it reports."""

from __future__ import annotations

import itertools
import os
import queue
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.attach.engine import Engine
from nri_dranet.attach.snapshot import take_snapshot
from nri_dranet.claims.model import DeviceKey
from nri_dranet.claims.plan import DeviceKind, DevicePlan, PodState
from nri_dranet.netlink.model import Address
from nri_dranet.netlink.namespaces import NetNs
from nri_dranet.netlink.sockets import RtnlSocket
from nri_dranet.observe.pods import PodObserver

if TYPE_CHECKING:
    from collections.abc import Iterator

_NUMBERS = itertools.count()


def ip(*words: str) -> None:
    """Run ``ip``."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Pod:
    """One interface ``net1`` of claim ``uid`` in a pod, attached."""

    def __init__(self, host_name: str, pod_name: str, host: NetNs, pod: NetNs) -> None:
        self.host_name = host_name
        self.pod_name = pod_name
        self.host_netns = host
        self.netns = pod
        self.engine = Engine(host_netns=host)
        self.reports: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.looks = 0
        self.observer = PodObserver(lambda uid, facts: self.reports.put((uid, facts)), self._look)
        self.plan = self.device("n0", "net1", "10.77.0.5/24")
        self.facts = self.attach(self.plan)

    def _look(self, plans: Any, netns: Any, hints: Any) -> Any:
        self.looks += 1
        return self.engine.look(plans, netns, hints)

    def device(self, name: str, pod_name: str, cidr: str) -> DevicePlan:
        """Make a veth on the host and plan it."""
        ip("-n", self.host_name, "link", "add", name, "type", "veth", "peer", "name", f"{name}p")
        ip("-n", self.host_name, "link", "set", f"{name}p", "up")
        text, _, length = cidr.partition("/")
        with RtnlSocket(self.host_netns) as host:
            link = host.link(name=name)
            assert link is not None
            snapshot = take_snapshot(host, link.index)
        return DevicePlan(
            key=DeviceKey(pool="node", device=name),
            request="nic",
            kind=DeviceKind.INTERFACE,
            host=snapshot,
            pod=PodState(name=pod_name, addresses=(Address(family=2, address=text, prefix_length=int(length)),)),
        )

    def attach(self, *plans: DevicePlan) -> Any:
        """Attach devices."""
        return self.engine.attach(plans, self.netns, deadline=time.monotonic() + 60)

    def ip(self, *words: str) -> None:
        """Run ``ip`` in the pod."""
        ip("-n", self.pod_name, *words)

    def watch(self) -> None:
        """Start the observer and watch the claim; returns when the first look has found nothing new."""
        self.observer.start()
        self.observer.watch("uid", [self.plan], self.netns, self.facts)
        self.until(lambda: self.looks > 0)

    def report(self) -> Any:
        """Wait for the next report; give its first device's facts."""
        uid, facts = self.reports.get(timeout=20)
        assert uid == "uid"
        return facts[0]

    def report_where(self, condition: Any) -> Any:
        """Wait for a report that fulfils a condition: a change may come as several events."""
        while True:
            fact = self.report()
            if condition(fact):
                return fact

    @staticmethod
    def until(condition: Any) -> None:
        """Wait for a condition."""
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "it did not come to be"
            time.sleep(0.02)


@pytest.fixture
def pod() -> Iterator[Pod]:
    """A pod with an attached interface, and an observer that is not started yet."""
    mark = f"obs{os.getpid()}x{next(_NUMBERS)}"
    names = (f"{mark}h", f"{mark}p")
    made: list[str] = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        with NetNs.open(f"/run/netns/{names[0]}") as host, NetNs.open(f"/run/netns/{names[1]}") as netns:
            found = Pod(*names, host, netns)
            try:
                yield found
            finally:
                found.observer.stop()
                found.engine.close()
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=False)
