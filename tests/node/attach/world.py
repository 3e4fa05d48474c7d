"""Namespaces with veth pairs, plans for them, and the host's state as iproute2 shows it."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.attach.engine import Engine
from nri_dranet.attach.snapshot import take_snapshot
from nri_dranet.claims.allocation import AllocatedConfig, AllocationResult, Claim
from nri_dranet.claims.model import ClaimRef, DeviceKey
from nri_dranet.claims.plan import DeviceKind, DeviceLimits, DevicePlan, PodState
from nri_dranet.dra.plan_inputs import least_gso
from nri_dranet.dra.plan_model import DeviceFactsIn, NodeFacts
from nri_dranet.dra.planner import plan_claim
from nri_dranet.netlink.codec import NetlinkError
from nri_dranet.netlink.ethtool import Ethtool
from nri_dranet.netlink.model import Address, Route, Rule
from nri_dranet.netlink.namespaces import NetNs
from nri_dranet.netlink.sockets import RtnlSocket
from nri_dranet.netlink.transport import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nri_dranet.claims.facts import DeviceFacts
    from nri_dranet.claims.plan import ClaimPlan
    from nri_dranet.netlink.codec import Request

_NUMBERS = itertools.count()


def run(*words: str, check: bool = True) -> str:
    """Run a program and give what it prints."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(words)}: {done.stderr}")
    return done.stdout


def _flat(state: dict[str, Any]) -> set[str]:
    return {f"{part}: {item}" for part, items in state.items() for item in items}


class Fault:
    """Counts netlink messages of all sockets of an engine and does something at one of them.

    ``refuse``: this message is not sent and answered with EPERM. ``before``: the call that holds it fails before it is
    sent. ``after``: the messages up to it are sent, then the call fails. ``kill``: as ``after``, but the process dies.
    """

    def __init__(self, at: int, how: str) -> None:
        self.at = at
        self.how = how
        self.count = 0
        self.calls = 0
        self.label = ""

    def hit(self, requests: Sequence[Request]) -> int:
        """Count messages; give the place among these at which to act, or -1."""
        first = self.count
        self.calls += 1
        self.count += len(requests)
        place = self.at - first
        if 0 <= place < len(requests):
            self.label = requests[place].label
            return place
        return -1


def tampered(fault: Fault) -> type[RtnlSocket]:
    """Give a socket class that has a fault."""

    class Tampered(RtnlSocket):
        def exchange(self, requests: Sequence[Request], *, timeout: float = 10.0) -> list[Answer]:
            place = fault.hit(requests)
            if place < 0:
                return super().exchange(requests, timeout=timeout)
            if fault.how == "before":
                raise TimeoutError(f"{requests[0].label}: no answer (made up)")
            if fault.how == "refuse":
                done = super().exchange([*requests[:place], *requests[place + 1 :]], timeout=timeout)
                refused = Answer(requests[place], NetlinkError(errno.EPERM, requests[place].label, "made up"))
                return [*done[:place], refused, *done[place:]]
            super().exchange(requests[: place + 1], timeout=timeout)
            if fault.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise TimeoutError(f"{requests[place].label}: no answer (made up)")

    return Tampered


@dataclass
class World:
    """A node's namespace and a pod's, with the engine between them."""

    host_name: str
    pod_name: str
    host_netns: NetNs
    pod_netns: NetNs
    engine: Engine
    spare: list[str] = field(default_factory=list)

    def host(self, *words: str, check: bool = True) -> str:
        """Run ``ip`` on the host."""
        return run("ip", "-n", self.host_name, *words, check=check)

    def pod(self, *words: str, check: bool = True) -> str:
        """Run ``ip`` in the pod."""
        return run("ip", "-n", self.pod_name, *words, check=check)

    def in_host(self, *words: str) -> str:
        """Run a program on the host."""
        return run("ip", "netns", "exec", self.host_name, *words)

    def in_pod(self, *words: str) -> str:
        """Run a program in the pod."""
        return run("ip", "netns", "exec", self.pod_name, *words)

    def veth(self, name: str, *addresses: str, index: int = 0) -> None:
        """Make a veth on the host, up, with its other end ``<name>p`` up too."""
        numbered = ("index", str(index)) if index else ()
        self.host("link", "add", name, *numbered, "type", "veth", "peer", "name", f"{name}p")
        self.host("link", "set", f"{name}p", "up")
        self.host("link", "set", name, "up")
        for address in addresses:
            self.host("addr", "add", address, "dev", name, *(("nodad",) if ":" in address else ()))

    def index(self, name: str) -> int:
        """Give the index of a link of the host."""
        return int(json.loads(self.host("-j", "link", "show", name))[0]["ifindex"])

    def plan(self, name: str, pod_name: str = "", *, kind: DeviceKind = DeviceKind.INTERFACE, **pod: Any) -> DevicePlan:
        """Plan an interface of the host: snapshot now, the pod's state as told."""
        with RtnlSocket(self.host_netns) as host:
            snapshot = take_snapshot(host, self.index(name))
        return DevicePlan(
            key=DeviceKey(pool="node", device=f"dev-{name}"),
            request="nic",
            kind=kind,
            host=snapshot,
            pod=PodState(name=pod_name or name, **pod),
        )

    @staticmethod
    def address(cidr: str, **more: Any) -> Address:
        """Make an address of a plan."""
        text, _, length = cidr.partition("/")
        return Address(family=10 if ":" in text else 2, address=text, prefix_length=int(length), **more)

    @staticmethod
    def route(destination: str, gateway: str | None = None, **more: Any) -> Route:
        """Make a route of a plan."""
        family = 10 if ":" in destination else 2
        more.setdefault("scope", 0 if gateway or family == 10 else 253)
        return Route(family=family, destination=destination, gateway=gateway, **more)

    def addresses_in_pod(self, name: str) -> list[str]:
        """Give the addresses of a link of the pod without the kernel's own link-local one."""
        info = json.loads(self.pod("-j", "addr", "show", name))[0]["addr_info"]
        return [f"{a['local']}/{a['prefixlen']}" for a in info if not a["local"].startswith("fe80:")]

    @staticmethod
    def lasting(facts: Sequence[DeviceFacts]) -> list[DeviceFacts]:
        """Give facts without what the kernel tells only up to a second later: carrier and operational state."""
        return [
            replace(fact, interface=replace(fact.interface, carrier=None, operstate="") if fact.interface else None)
            for fact in facts
        ]

    def rules_in_pod(self) -> list[Rule]:
        """Give the pod's policy rules as the kernel tells them."""
        with RtnlSocket(self.pod_netns) as pod:
            return pod.rules()

    def attach(self, *plans: DevicePlan) -> Any:
        """Attach with plenty of time."""
        return self.engine.attach(plans, self.pod_netns, deadline=time.monotonic() + 60)

    def detach(self, *plans: DevicePlan) -> Any:
        """Detach without hints."""
        return self.engine.detach(plans, self.pod_netns, hints={})

    def faulty(self, at: int, how: str) -> tuple[Engine, Fault]:
        """Give an engine with a fault at a message."""
        fault = Fault(at, how)
        return Engine(host_netns=self.host_netns, connect=tampered(fault)), fault

    def killed(self, at: int, work: Callable[[Engine], object]) -> bool:
        """Do work in a process of its own that dies at a message; tell whether it came that far."""
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(self.faulty(at, "kill")[0])
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            return True
        assert os.WEXITSTATUS(status) == 0
        return False

    def state(self) -> dict[str, Any]:
        """Give all of the host but what moves by itself, once the kernel has told of carriers that came."""
        deadline = time.monotonic() + 10
        while _unsettled(text := self.host("-j", "-d", "addr", "show")) and time.monotonic() < deadline:
            time.sleep(0.05)
        return {
            **_links(text),
            "routes": _routes(self, "-4") + _routes(self, "-6"),
            "neighbours": sorted(self.host("neigh", "show", "nud", "permanent").splitlines()),
            "sysctls": _sysctls(self),
            "traffic": _traffic(self),
            "rules": self.host("-4", "rule", "show").splitlines() + self.host("-6", "rule", "show").splitlines(),
            "features": _features(self),
        }

    @staticmethod
    def wait(look: Callable[[], object], patience: float = 20) -> None:
        """Wait for what the kernel does by itself, a second later."""
        deadline = time.monotonic() + patience
        while not look():
            assert time.monotonic() < deadline, "it did not come"
            time.sleep(0.1)

    def changes(self, before: dict[str, Any], *, patience: float = 10) -> list[str]:
        """List what is gone (-) from a former state and what is new (+); empty if nothing differs.

        Whether a link has its carrier back the kernel tells up to a second later: a difference must last to count.
        """
        deadline = time.monotonic() + patience
        while True:
            old, new = _flat(before), _flat(self.state())
            found = sorted([f"- {item}" for item in old - new] + [f"+ {item}" for item in new - old])
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.1)

    def pod_state(self) -> dict[str, Any]:
        """Give what a pod has, to see that nothing is left.

        The rule of all VRFs, which the kernel makes with a namespace's first one and keeps, is no device's.
        """
        return {
            "links": sorted(link["ifname"] for link in json.loads(self.pod("-j", "link", "show"))),
            "rules": [rule for rule in json.loads(self.pod("-j", "rule", "show")) if "l3mdev" not in rule],
            "routes": sorted(self.pod("route", "show", "table", "all").splitlines()),
            "neighbours": self.pod("neigh", "show", "nud", "permanent").splitlines(),
        }

    def planned(self, document: dict[str, Any], *, name: str = "n0", shared: bool = False) -> ClaimPlan:
        """Plan a claim with one configuration for a link of the host, from what the kernel tells of it.

        Raises:
            PlanError: it is refused.
        """
        with RtnlSocket(self.host_netns) as host, Ethtool(self.host_netns) as ethtool:
            state = take_snapshot(host, self.index(name), ethtool=ethtool)
            found = ethtool.features(state.link.index)
            node = NodeFacts(rules=tuple(host.rules()), least_gso=least_gso(host))
        fixed = {feature: one.active for feature, one in found.items() if not one.changeable}
        device = DeviceFactsIn(name=name, link=state.link, limits=DeviceLimits(fixed_features=fixed), shared=shared)
        claim = Claim(
            ref=ClaimRef("ns", "c", "u"),
            allocated=True,
            results=(AllocationResult("nic", "dra.net", "node", name, "s-1" if shared else None),),
            configs=(AllocatedConfig(0, "FromClaim", (), "dra.net", document),),
            pods=(),
            other_consumers=(),
            node_name=None,
            pod_claim_name=None,
        )
        return plan_claim(claim, "dra.net", {name: device}, {name: state}, node=node)


def _unsettled(text: str) -> bool:
    """Tell whether both ends of a veth are up and one of them is not yet said to work."""
    links = {link["ifname"]: link for link in json.loads(text)}
    up = {name: "UP" in link["flags"] for name, link in links.items()}
    return any(up[name] and up.get(str(link.get("link"))) and link["operstate"] != "UP" for name, link in links.items())


def _links(text: str) -> dict[str, list[dict[str, Any]]]:
    links = json.loads(text)
    addresses = []
    for link in links:
        link.pop("qdisc", None)
        for address in link["addr_info"]:
            for moving in ("valid_life_time", "preferred_life_time"):
                # A lifetime without an end stays; others run.
                if address.get(moving) != 2**32 - 1:
                    address.pop(moving, None)
        # The kernel's own link-local address comes back by itself, its proof of uniqueness a second later.
        kept = [a for a in link.pop("addr_info") if not a.get("local", "").startswith("fe80:")]
        addresses += [{"ifname": link["ifname"], **address} for address in kept]
    return {"links": sorted(links, key=lambda link: str(link["ifname"])), "addresses": addresses}


def _routes(world: World, family: str) -> list[str]:
    lines = world.host(family, "route", "show", "table", "all").splitlines()
    kept = [line for line in lines if not any(word in line for word in ("fe80", "ff00", "anycast"))]
    return sorted(re.sub(r"expires \d+sec", "expires", line).strip() for line in kept)


def _traffic(world: World) -> list[str]:
    """Give queueing disciplines, classes and filters without counters; the kernel's own ones have the handle 0."""
    found = world.in_host(
        "sh",
        "-c",
        "tc qdisc show; tc class show dev n0; tc filter show dev n0; tc filter show dev n0 ingress 2>&1; true",
    )
    lines = re.sub(r"(direct_packets_stat|refcnt|index|ref|bind) \d+", r"\1", found).splitlines()
    return [line.strip() for line in lines if line.strip() and not re.match(r"qdisc \S+ 0: ", line)]


def _features(world: World) -> list[str]:
    """Give what is switched on or off by ethtool on each link, and sizes that older versions of ip do not show."""
    with Ethtool(world.host_netns) as ethtool, RtnlSocket(world.host_netns) as host:
        links = host.links()
        found = [
            f"{link.name} {name} {feature.active}"
            for link in links
            for name, feature in ethtool.features(link.index).items()
        ]
        return found + [f"{link.name} IPv4 GSO {link.gso_ipv4_max_size} GRO {link.gro_ipv4_max_size}" for link in links]


def _sysctls(world: World) -> list[str]:
    # conf/all and conf/default do not belong to a device.
    text = world.in_host("sh", "-c", "grep -rs '' /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf | sort")
    return [line for line in text.splitlines() if "stable_secret" not in line and "/mc_forwarding" not in line]


@pytest.fixture
def world() -> Iterator[World]:
    """A host and a pod, empty but for loopback."""
    mark = f"att{os.getpid()}x{next(_NUMBERS)}"
    names = (f"{mark}h", f"{mark}p")
    made: list[str] = []
    try:
        for name in names:
            run("ip", "netns", "add", name)
            made.append(name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        with NetNs.open(f"/run/netns/{names[0]}") as host, NetNs.open(f"/run/netns/{names[1]}") as pod:
            engine = Engine(host_netns=host)
            try:
                yield World(*names, host, pod, engine)
            finally:
                engine.close()
    finally:
        for name in made:
            run("ip", "netns", "del", name, check=False)
