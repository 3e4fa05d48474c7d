"""A keeper over a real journal and real receipts, with a kernel and an observer that only take notes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from nri_dranet.attach.engine import Detached
from nri_dranet.attach.errors import AttachError
from nri_dranet.claims.facts import ClaimFacts, DeviceFacts, ObservedInterface, Phase
from nri_dranet.claims.model import ClaimRef, DeviceKey, PodRef
from nri_dranet.claims.plan import ClaimPlan, DeviceKind, DevicePlan, HostState, PodState
from nri_dranet.netlink.model import Link
from nri_dranet.receipt.receipts import Receipts
from nri_dranet.reconcile import words
from nri_dranet.reconcile.keeper import Keeper
from nri_dranet.reconcile.ports import Inlets, Outlets
from nri_dranet.reconcile.reconciler import Reconciler
from nri_dranet.reconcile.sandboxes import SandboxRef
from nri_dranet.store.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from nri_dranet.netlink.namespaces import NetNs


@dataclass
class Kernel:
    """Stands for the attach engine: it keeps where each device is."""

    inside: dict[str, str] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    failure: Exception | None = None
    on_attach: Callable[[], None] | None = None
    problems: tuple[str, ...] = ()
    stuck: bool = False
    stuck_only: str = ""
    on_look: Callable[[], None] | None = None

    def attach(self, plans: Sequence[DevicePlan], netns: NetNs, *, deadline: float) -> tuple[DeviceFacts, ...]:
        """Note the attach, or fail as the test says."""
        del deadline
        self.calls.append("attach " + ",".join(plan.key.device for plan in plans))
        if self.on_attach is not None:
            self.on_attach()
        if self.failure is not None:
            raise self.failure
        for plan in plans:
            self.inside[plan.key.device] = netns.path
        return tuple(self._attached(plan) for plan in plans)

    def detach(
        self, plans: Sequence[DevicePlan], netns: NetNs | None, *, hints: Mapping[DeviceKey, ObservedInterface]
    ) -> tuple[Detached, ...]:
        """Note the return."""
        del netns, hints
        self.calls.append("detach " + ",".join(plan.key.device for plan in plans))
        return tuple(self._detached(plan) for plan in plans)

    def _detached(self, plan: DevicePlan) -> Detached:
        if self.stuck or plan.key.device == self.stuck_only:
            return Detached(key=plan.key, home=False, problems=("it is busy",))
        self.inside.pop(plan.key.device, None)
        return Detached(key=plan.key, home=True, problems=self.problems)

    def look(
        self, plans: Sequence[DevicePlan], netns: NetNs | None, hints: Mapping[DeviceKey, ObservedInterface]
    ) -> tuple[DeviceFacts, ...]:
        """Tell what was attached, or that it is lost."""
        if self.on_look is not None:
            self.on_look()
        del netns, hints
        return tuple(
            self._attached(plan) if plan.key.device in self.inside else words.fact(plan, Phase.LOST) for plan in plans
        )

    @staticmethod
    def _attached(plan: DevicePlan) -> DeviceFacts:
        shown = ObservedInterface(name="net1", hardware_address="02:00:00:00:00:01")
        return replace(words.fact(plan, Phase.ATTACHED), interface=shown)


@dataclass
class Watched:
    """Stands for the observer."""

    uids: set[str] = field(default_factory=set)
    failure: Exception | None = None
    calls: list[str] = field(default_factory=list)

    @property
    def watched(self) -> frozenset[str]:
        """Return what is watched."""
        return frozenset(self.uids)

    def watch(self, uid: str, plans: Sequence[DevicePlan], netns: NetNs, facts: Sequence[DeviceFacts]) -> None:
        """Note it."""
        del plans, netns
        if self.failure is not None:
            raise self.failure
        self.uids.add(uid)
        self.calls.append(f"watch {uid} {','.join(fact.phase.value for fact in facts)}")

    def forget(self, uid: str) -> None:
        """Note it."""
        self.uids.discard(uid)


@dataclass
class Bench:
    """All of it, as a test needs it."""

    keeper: Keeper
    reconciler: Reconciler
    kernel: Kernel
    watched: Watched
    receipts: Receipts
    facts: list[ClaimFacts] = field(default_factory=list)
    events: list[tuple[str, str, str]] = field(default_factory=list)
    uplinks: dict[str, str] = field(default_factory=dict)
    named: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    compared: list[str] = field(default_factory=list)
    refreshed: list[str] = field(default_factory=list)

    def plan(self, uid: str = "u1", *, devices: Sequence[str] = ("eth1",), pods: Sequence[str] = ("p1",)) -> ClaimPlan:
        """Return a claim's plan."""
        return ClaimPlan(
            ref=ClaimRef("default", f"claim-{uid}", uid),
            allocation_hash="-".join(devices),
            devices=tuple(
                DevicePlan(
                    key=DeviceKey("node", name),
                    request="nic",
                    kind=DeviceKind.INTERFACE,
                    host=HostState(link=Link(index=7, name=name)),
                    pod=PodState(name="net1"),
                )
                for name in devices
            ),
            pods=tuple(PodRef("default", f"pod-{pod}", pod) for pod in pods),
        )

    def sandbox(self, pod: str = "p1", sandbox: str = "s1", *, host_network: bool = False) -> SandboxRef:
        """Return a sandbox; every one has this process's own namespace."""
        path = "" if host_network else "/proc/self/ns/net"
        return SandboxRef(pod=PodRef("default", f"pod-{pod}", pod), id=sandbox, netns_path=path)

    def run(self, pod: str = "p1", sandbox: str = "s1", *, seconds: float = 5) -> bool:
        """Run a sandbox."""
        return self.keeper.run_sandbox(self.sandbox(pod, sandbox), time.monotonic() + seconds)

    def stop(self, pod: str = "p1", sandbox: str = "s1") -> bool:
        """Stop a sandbox."""
        return self.keeper.stop_sandbox(self.sandbox(pod, sandbox), time.monotonic() + 5)

    def refuse(self, message: str = "name net1 is taken") -> None:
        """Let the next attach fail."""
        self.kernel.failure = AttachError("eth1", "rename", "NameInUse", message)

    def phase(self, uid: str = "u1") -> Phase | None:
        """Return the phase that was last told of a claim."""
        told = [fact for fact in self.facts if fact.ref.uid == uid]
        return told[-1].devices[0].phase if told else None


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Return a keeper with all around it."""
    journal = Journal(tmp_path / "journal.db", "boot")
    kernel, watched = Kernel(), Watched()
    receipts = Receipts(tmp_path / "cdi", "dra.net")
    facts: list[ClaimFacts] = []
    events: list[tuple[str, str, str]] = []
    uplinks: dict[str, str] = {}
    named: dict[str, tuple[tuple[str, str], ...]] = {}
    compared: list[str] = []
    refreshed: list[str] = []
    outlets = Outlets(
        facts=facts.append,
        event=lambda subject, reason, text, _warning: events.append((subject.name, reason, text)),
        held=lambda: None,
        compare=lambda: compared.append(""),
        refresh=refreshed.append,
    )
    inlets = Inlets(uplink=lambda plan: uplinks.get(plan.key.device, ""), claims_of_pod=lambda uid: named.get(uid, ()))
    keeper = Keeper(
        driver="dra.net",
        journal=journal,
        engine=kernel,
        observer=watched,
        receipts=receipts,
        outlets=outlets,
        inlets=inlets,
    )
    reconciler = Reconciler(keeper, kernel, receipts, outlets)
    yield Bench(keeper, reconciler, kernel, watched, receipts, facts, events, uplinks, named, compared, refreshed)
    keeper.namespaces.close()
    journal.close()
