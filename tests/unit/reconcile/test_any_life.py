"""Any life of two claims ends with statuses that say what the kernel shows, whatever happened on the way.

The keeper, the reconciler, the journal and the status writer are the real ones. The kernel, the runtime and the API
server are stand-ins that this test moves.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from nri_dranet.attach.engine import Detached
from nri_dranet.attach.errors import AttachError
from nri_dranet.claims.facts import DeviceFacts, ObservedInterface, Phase
from nri_dranet.claims.lifecycle import State
from nri_dranet.claims.model import ClaimRef, DeviceKey, PodRef
from nri_dranet.claims.plan import ClaimPlan, DeviceKind, DevicePlan, HostState, PodState
from nri_dranet.kube.client import KubeClient
from nri_dranet.netlink.model import Link
from nri_dranet.receipt.receipts import Receipts
from nri_dranet.reconcile import words
from nri_dranet.reconcile.hooktypes import HookError
from nri_dranet.reconcile.keeper import Keeper
from nri_dranet.reconcile.ports import Inlets, Outlets
from nri_dranet.reconcile.reconciler import Reconciler
from nri_dranet.reconcile.returns import NotReturnedError
from nri_dranet.reconcile.sandboxes import SandboxRef
from nri_dranet.status.wire import StatusWire
from nri_dranet.status.writer import StatusWriter
from nri_dranet.store.journal import Journal
from nri_dranet.testing.apiserver import ApiServerStandIn
from tests.unit.status.quick import hurried, kill

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nri_dranet.netlink.namespaces import NetNs

CLAIMS = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims"
DEVICES = {"c1": ("eth1",), "c2": ("eth2", "eth3")}
"""The claims, each with its devices and a pod of its own."""

claims_ = st.sampled_from(sorted(DEVICES))


@dataclass
class Nic:
    """An interface: where it is and how it is there."""

    there: bool = True
    pod: str = ""
    up: bool = True
    address: int = 1


@dataclass
class Kernel:
    """Where each device is, and the engine that moves and sees it."""

    nics: dict[str, Nic] = field(default_factory=lambda: {name: Nic() for each in DEVICES.values() for name in each})
    failing: bool = False
    blind: bool = False
    stuck: bool = False

    def attach(self, plans: Sequence[DevicePlan], netns: NetNs, *, deadline: float) -> tuple[DeviceFacts, ...]:
        """Move devices into the pod, all or none."""
        del deadline, netns
        gone = [plan for plan in plans if not self.nics[plan.key.device].there]
        if gone:
            raise AttachError(gone[0].label, "find it", "DeviceGone", "it is not on the node any more")
        if self.failing:
            raise AttachError(plans[0].label, "rename", "NameInUse", "the name is taken")
        for plan in plans:
            self.nics[plan.key.device] = Nic(pod="pod")
        return tuple(self._seen(plan) for plan in plans)

    def detach(
        self, plans: Sequence[DevicePlan], netns: NetNs | None, *, hints: Mapping[DeviceKey, ObservedInterface]
    ) -> tuple[Detached, ...]:
        """Bring devices home."""
        del netns, hints
        found = []
        for plan in plans:
            nic = self.nics[plan.key.device]
            if self.stuck and nic.pod:
                found.append(Detached(plan.key, home=False, problems=("it is busy",)))
            else:
                nic.pod = ""
                found.append(Detached(plan.key, home=nic.there))
        return tuple(found)

    def look(
        self, plans: Sequence[DevicePlan], netns: NetNs | None, hints: Mapping[DeviceKey, ObservedInterface]
    ) -> tuple[DeviceFacts, ...]:
        """Tell what is there."""
        del netns, hints
        if self.blind:
            return tuple(words.fact(plan, Phase.UNKNOWN, message="no answer") for plan in plans)
        return tuple(self._seen(plan) for plan in plans)

    def shown(self, name: str) -> ObservedInterface | None:
        """Return a device as its pod has it; None: it has not."""
        nic = self.nics[name]
        if not nic.there or not nic.pod:
            return None
        return ObservedInterface(
            name=f"net-{name}",
            hardware_address="02:00:00:00:00:01",
            addresses=(f"10.0.0.{nic.address}/24",),
            up=nic.up,
            index=7,
        )

    def _seen(self, plan: DevicePlan) -> DeviceFacts:
        shown = self.shown(plan.key.device)
        if shown is None:
            return words.fact(plan, Phase.LOST, reason="DeviceMissing")
        return replace(words.fact(plan, Phase.ATTACHED), interface=shown)


@dataclass
class Observed:
    """The observer's book; the test tells what it would see."""

    uids: set[str] = field(default_factory=set)

    @property
    def watched(self) -> frozenset[str]:
        """Return what is watched."""
        return frozenset(self.uids)

    def watch(self, uid: str, plans: Sequence[DevicePlan], netns: NetNs, facts: Sequence[DeviceFacts]) -> None:
        """Note it."""
        del plans, netns, facts
        self.uids.add(uid)

    def forget(self, uid: str) -> None:
        """Note it."""
        self.uids.discard(uid)


class Lives(RuleBasedStateMachine):
    """Two claims, one daemon at a time, and everything that may happen to them."""

    def __init__(self) -> None:
        """Start the API server with the claims in it, and a first daemon."""
        super().__init__()
        self.hurry = hurried()
        self.folder = tempfile.TemporaryDirectory()
        self.api = ApiServerStandIn()
        self.api.start()
        self.client = KubeClient.load(str(self.api.write_kubeconfig(Path(self.folder.name) / "kubeconfig")))
        self.kernel = Kernel()
        self.running: dict[str, SandboxRef] = {}
        self.prepared: set[str] = set()
        self.away = False
        self.number = 0
        self.plans = {name: self.make(name) for name in DEVICES}
        self.begin()

    def make(self, name: str) -> ClaimPlan:
        """Make a claim, allocated to its devices; return its plan."""
        devices = DEVICES[name]
        requests = [{"name": device, "exactly": {"deviceClassName": "class"}} for device in devices]
        made = self.api.create(CLAIMS, {"metadata": {"name": name}, "spec": {"devices": {"requests": requests}}})
        results = [{"request": device, "driver": "dra.net", "pool": "n1", "device": device} for device in devices]
        self.api.allocate("default", name, results=results, node="n1")
        plans = [
            DevicePlan(
                key=DeviceKey("n1", device),
                request=device,
                kind=DeviceKind.INTERFACE,
                host=HostState(link=Link(index=7, name=device)),
                pod=PodState(name=f"net-{device}"),
            )
            for device in devices
        ]
        ref = ClaimRef("default", name, made["metadata"]["uid"])
        pod = PodRef("default", f"pod-{name}", f"pod-{name}")
        return ClaimPlan(ref=ref, allocation_hash=name, devices=tuple(plans), pods=(pod,))

    # ---- the daemon

    def begin(self) -> None:
        """Start a daemon: journal, keeper, reconciler, writer."""
        folder = Path(self.folder.name)
        self.journal = Journal(folder / "journal.db", "boot")
        wire = StatusWire(self.client, "dra.net", "n1")
        self.writer = StatusWriter(wire, "dra.net", self.journal, event=lambda *_: None, prepared_delay=0.01)
        self.observed = Observed()
        receipts = Receipts(folder / "cdi", "dra.net")
        outlets = Outlets(
            facts=self.writer.submit,
            event=lambda *_: None,
            held=self.forget_released,
            compare=lambda: None,
            refresh=lambda _: None,
        )
        inlets = Inlets(uplink=lambda _: "", claims_of_pod=lambda _: ())
        self.keeper = Keeper(
            driver="dra.net",
            journal=self.journal,
            engine=self.kernel,
            observer=self.observed,
            receipts=receipts,
            outlets=outlets,
            inlets=inlets,
        )
        self.reconciler = Reconciler(self.keeper, self.kernel, receipts, outlets)
        self.writer.start()
        self.keeper.synchronize(list(self.running.values()))

    def end(self) -> None:
        """Let go of what a daemon has open."""
        self.keeper.namespaces.close()
        self.journal.close()

    def forget_released(self) -> None:
        """Do what the daemon does after each change of what is held."""
        self.writer.forget(record.uid for record in self.journal.records())

    # ---- what happens

    @initialize(failing=st.booleans())
    def first(self, failing: bool) -> None:
        """Both pods are started."""
        self.attach("c1", failing=failing)
        self.attach("c2", failing=False)

    @rule(name=claims_)
    def prepare(self, name: str) -> None:
        """Kubelet prepares a claim, for the first time or once more."""
        self.keeper.prepare(self.plans[name])
        self.prepared.add(name)

    @rule(name=claims_, failing=st.booleans())
    def attach(self, name: str, failing: bool) -> None:
        """A pod is started: its claim is prepared, its sandbox runs, and the attach works or fails at some step."""
        if name in self.running:
            return
        self.prepare(name)
        self.number += 1
        sandbox = self.sandbox(name)
        self.kernel.failing = failing
        try:
            self.keeper.run_sandbox(sandbox, time.monotonic() + 5)
        except HookError:
            self.keeper.stop_sandbox(sandbox, time.monotonic() + 5)
            self.keeper.remove_sandbox(sandbox)
        else:
            self.running[name] = sandbox
        self.kernel.failing = False

    def sandbox(self, name: str) -> SandboxRef:
        """Return the next sandbox of a claim's pod."""
        (pod,) = self.plans[name].pods
        return SandboxRef(pod=pod, id=f"{name}-{self.number}", netns_path="/proc/self/ns/net")

    @precondition(lambda self: self.running)
    @rule(name=claims_, stuck=st.booleans())
    def stop(self, name: str, stuck: bool) -> None:
        """The runtime stops the pod's sandbox; its devices come home, or cannot be moved now."""
        sandbox = self.running.pop(name, None)
        if sandbox is None:
            return
        self.kernel.stuck = stuck
        self.keeper.stop_sandbox(sandbox, time.monotonic() + 5)
        self.keeper.remove_sandbox(sandbox)
        self.kernel.stuck = False

    @rule(name=claims_, stuck=st.booleans())
    def unprepare(self, name: str, stuck: bool) -> None:
        """Kubelet releases the claim of a pod that has ended, or of one whose end nobody told."""
        self.running.pop(name, None)
        self.kernel.stuck = stuck
        try:
            self.keeper.unprepare(self.plans[name].ref)
            self.prepared.discard(name)
        except NotReturnedError:
            pass
        self.kernel.stuck = False

    @precondition(lambda self: self.running)
    @rule(name=claims_, what=st.sampled_from(["down", "up", "address", "vanish", "return"]), times=st.integers(1, 4))
    def change(self, name: str, what: str, times: int) -> None:
        """Something in the pod changes, maybe several times in a row; the observer sees it."""
        for number in range(times):
            for device in DEVICES[name][:1]:
                self.alter(self.kernel.nics[device], what, number)
            self.look(name)

    @staticmethod
    def alter(nic: Nic, what: str, number: int) -> None:
        """Change a device."""
        if what in ("down", "up"):
            nic.up = (what == "up") ^ bool(number % 2)
        elif what == "address":
            nic.address = nic.address % 5 + 1
        else:
            nic.there = (what == "return") ^ bool(number % 2)

    def look(self, name: str) -> None:
        """Let the observer report a claim that it watches."""
        plan = self.plans[name]
        if plan.ref.uid in self.observed.uids:
            self.keeper.observed(plan.ref.uid, self.kernel.look(plan.devices, None, {}))

    @rule(name=claims_)
    def blind(self, name: str) -> None:
        """Looking fails for a moment."""
        self.kernel.blind = True
        self.look(name)
        self.kernel.blind = False

    @precondition(lambda self: not self.away)
    @rule()
    def outage(self) -> None:
        """The API server goes away."""
        self.api.pause()
        self.away = True

    @precondition(lambda self: self.away)
    @rule()
    def back(self) -> None:
        """It comes back."""
        self.api.resume()
        self.away = False

    @rule(status=st.sampled_from([409, 429, 500, 503]))
    def refuse(self, status: int) -> None:
        """It refuses something."""
        self.api.fail_next(1, status)

    @rule(
        orderly=st.booleans(),
        name=claims_,
        meanwhile=st.sampled_from(["nothing", "start", "stop", "down", "address", "vanish"]),
    )
    def restart(self, orderly: bool, name: str, meanwhile: str) -> None:
        """The daemon is stopped, or killed; something happens while there is none; the next one compares."""
        if orderly:
            self.writer.stop()
        else:
            kill(self.writer)
        self.end()
        if meanwhile == "start" and name in self.prepared - self.running.keys():
            self.number += 1
            self.running[name] = self.sandbox(name)
        elif meanwhile == "stop":
            self.running.pop(name, None)
        elif meanwhile in ("down", "address", "vanish"):
            self.alter(self.kernel.nics[DEVICES[name][0]], meanwhile, 0)
        self.begin()
        self.reconciler.sweep()

    @rule()
    def sweep(self) -> None:
        """The reconciler compares."""
        self.reconciler.sweep()

    @rule(name=claims_)
    def somebody_removes(self, name: str) -> None:
        """Somebody removes the entries of a claim; its watch shows it."""
        self.api.merge(f"{CLAIMS}/{name}/status", {"status": {"devices": None}}, "somebody")
        self.show()

    @rule()
    def show(self) -> None:
        """The watches show the held claims as they are."""
        for name, plan in self.plans.items():
            if self.journal.get(plan.ref.uid) is not None:
                self.writer.observed(plan.ref, self.api.get(f"{CLAIMS}/{name}"))

    # ---- at rest

    def teardown(self) -> None:
        """At rest each claim says what the kernel shows, and nothing waits."""
        try:
            self.rest()
        finally:
            self.writer.stop()
            self.end()
            self.client.close()
            self.api.stop()
            self.folder.cleanup()
            self.hurry.close()

    def rest(self) -> None:
        """Wait until nothing waits any more, and compare."""
        if self.away:
            self.back()
        for nic in self.kernel.nics.values():
            nic.there = nic.there or not nic.pod
        self.reconciler.sweep()
        for name in DEVICES:
            self.look(name)
        end = time.monotonic() + 15
        while wrong := self.wrong():
            assert time.monotonic() < end, wrong
            self.show()
            time.sleep(0.01)

    def wrong(self) -> list[Any]:
        """Return what is not as it should be."""
        if self.writer.pending or self.journal.pending_statuses():
            return ["something waits", self.writer.pending, self.journal.pending_statuses()]
        found: list[Any] = []
        for name, plan in self.plans.items():
            entries = (self.api.get(f"{CLAIMS}/{name}").get("status") or {}).get("devices") or []
            record = self.journal.get(plan.ref.uid)
            if record is not None and not entries:
                found.append(f"nothing is said of {name}")
            if record is not None and record.state not in (State.PREPARED, State.ATTACHED):
                found.append(record)
            found += [entry for entry in entries if not self.is_right(entry)]
        return found

    def is_right(self, entry: Mapping[str, Any]) -> bool:
        """Tell whether an entry says what the kernel shows of its device."""
        shown = self.kernel.shown(entry["device"])
        said = {item["type"]: item["status"] for item in entry["conditions"]}
        if shown is None:
            return said["Ready"] != "True" and said["NetworkReady"] != "True" and "networkData" not in entry
        return bool(
            said == {"Ready": "True", "NetworkReady": "True" if shown.up else "False"}
            and entry["networkData"]["interfaceName"] == shown.name
            and entry["networkData"]["ips"] == list(shown.addresses)
        )


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
