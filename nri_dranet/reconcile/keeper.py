"""The keeper of claims: takes their devices into sandboxes and back, and records each step before and after it.

The container runtime's hooks and kubelet's calls come in here. Whoever changes a claim holds the locks of its devices.
Nothing here talks to the API server, resolves a name or starts a program: hooks run under a lock of the whole node.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from nri_dranet.attach.engine import AttachError
from nri_dranet.claims.facts import DeviceFacts, Phase
from nri_dranet.claims.lifecycle import State
from nri_dranet.claims.record import ClaimRecord, Holder
from nri_dranet.netlink.namespaces import NamespaceGoneError, NetNs
from nri_dranet.receipt.receipts import ReceiptError, Receipts, receipt_id
from nri_dranet.reconcile import words
from nri_dranet.reconcile.hooktypes import Adjustment, ContainerRef, HookError
from nri_dranet.reconcile.locks import DeviceBusyError, DeviceLocks
from nri_dranet.reconcile.namespaces import Namespaces
from nri_dranet.reconcile.sandboxes import Sandboxes, SandboxRef
from nri_dranet.store.database import JournalError
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nri_dranet.claims.model import ClaimRef, PodRef
    from nri_dranet.claims.plan import ClaimPlan, DevicePlan
    from nri_dranet.reconcile.ports import Attacher, Inlets, Observer, Outlets
    from nri_dranet.store.journal import Journal

LOG = logging.getLogger(__name__)

LOCK_SECONDS = 20.0
"""How long Prepare and Unprepare wait for a device that is being moved; kubelet waits 45 s for them."""


class ConflictError(Exception):
    """A device is in another live claim; the text names device, claim and pod."""

    def __init__(self, device: DevicePlan, other: ClaimRecord) -> None:
        holder = f", which pod {other.holder.pod} holds" if other.holder else ""
        super().__init__(
            f"device {device.label} is prepared for claim {other.ref} (UID {other.uid}){holder}; "
            "it is free again when kubelet has released that claim"
        )
        self.other = other


class Keeper:
    """The claims of this node and their devices. Thread-safe."""

    def __init__(
        self,
        *,
        driver: str,
        journal: Journal,
        engine: Attacher,
        observer: Observer,
        receipts: Receipts,
        outlets: Outlets,
        inlets: Inlets,
    ) -> None:
        self.journal = journal
        self.sandboxes = Sandboxes()
        self.namespaces = Namespaces()
        self.locks = DeviceLocks()
        self._driver = driver
        self._engine = engine
        self._observer = observer
        self._receipts = receipts
        self._outlets = outlets
        self._inlets = inlets

    # ---- kubelet

    def prepare(self, plan: ClaimPlan) -> ClaimRecord:
        """Record a claim that kubelet prepares. Repeating it changes nothing that is in a pod.

        Raises:
            ConflictError: a device of it is in another claim.
            DeviceBusyError: a device is being moved just now.
            JournalError: it cannot be recorded; nothing has changed.
        """
        with self.locks.hold(_names(plan), until=time.monotonic() + LOCK_SECONDS):
            old = self.journal.get(plan.ref.uid)
            plan = self._with_receipts(plan, old)
            self._refuse_conflicts(plan)
            if old is None or old.holder is None:
                record = ClaimRecord(plan=plan, facts=words.facts(plan, Phase.PREPARED))
            elif old.plan.allocation_hash == plan.allocation_hash:
                kept = replace(old.plan, pods=plan.pods, listed_by=plan.listed_by, pod_claim_name=plan.pod_claim_name)
                record = replace(old, plan=kept, successor=None, prepared=True)
            else:
                record = replace(old, successor=plan, prepared=True)
            record = self.journal.put(record)
        self._outlets.held()
        self._outlets.facts(words.of_record(record))
        return record

    def remember_pods(
        self, uid: str, pods: Sequence[PodRef], listed_by: dict[str, tuple[str, ...]] | None = None
    ) -> ClaimRecord | None:
        """Note which pods may use a claim now; None when the claim is not in the journal.

        Raises:
            JournalError: it cannot be recorded; nothing has changed.
        """
        record = self.journal.get(uid)
        if record is None:
            return None
        with self.locks.hold(_names(record.plan), until=time.monotonic() + LOCK_SECONDS):
            record = self.journal.get(uid)
            if record is None:
                return None
            plan = words.with_pods(record.plan, pods, listed_by)
            return record if plan == record.plan else self.journal.put(replace(record, plan=plan))

    def unprepare(self, ref: ClaimRef) -> None:
        """Give back what a claim still holds and forget it. An unknown claim is no error.

        Raises:
            DeviceBusyError: a device is being moved just now; kubelet tries again.
            JournalError: it cannot be recorded; kubelet tries again.
        """
        record = self.journal.get(ref.uid)
        if record is None:
            self.journal.remove(ref.uid)
            return
        with self.locks.hold(_names(record.plan), until=time.monotonic() + LOCK_SECONDS):
            record = self.journal.get(ref.uid)
            if record is None:
                return
            if record.holder is not None:
                (record,) = self.give_back([record])
            self._remove_receipts(record)
            released = replace(record, facts=words.facts(record.plan, Phase.DETACHED, reason="Unprepared"))
            self._outlets.facts(words.of_record(released))
            self.journal.remove(ref.uid)
        LOG.info("claim released", extra=fields(claim=ref.uid, name=ref, devices=words.devices_text(record.plan)))
        self._outlets.held()

    # ---- the container runtime

    def run_sandbox(self, sandbox: SandboxRef, deadline: float) -> bool:
        """Attach the devices of a pod to its new sandbox; True when it has any.

        Raises:
            HookError: they cannot be attached; everything is as before.
        """
        began = time.monotonic()
        self.sandboxes.begin(sandbox.id)
        records = self._claims_of(sandbox.pod)
        if not records:
            self.sandboxes.add(sandbox)
            return False
        try:
            with self.locks.hold(_all_names(records), until=deadline):
                attached = self.admit(sandbox, [record.uid for record in records], deadline)
                if not self.sandboxes.add(sandbox):
                    self.give_back(attached)
                    raise self._refused(attached, sandbox.pod, "SandboxStopped", "the sandbox was stopped meanwhile")
        except DeviceBusyError as error:
            raise self._refused(records, sandbox.pod, "DeviceBusy", str(error)) from error
        except JournalError as error:
            raise self._refused(records, sandbox.pod, "JournalFailed", str(error)) from error
        LOG.info(
            "pod has its devices",
            extra=fields(
                pod=sandbox.pod,
                sandbox=sandbox.id,
                claims=",".join(record.uid for record in attached),
                devices=",".join(words.devices_text(record.plan) for record in attached),
                ms=(time.monotonic() - began) * 1000,
            ),
        )
        return True

    def create_container(self, sandbox: SandboxRef, container: ContainerRef, deadline: float) -> Adjustment | None:  # noqa: ARG002 - part of the hook's shape; nothing here waits
        """Let a container be created if the pod has all its devices; tell what to add to it.

        Raises:
            HookError: a device of the pod is not attached; the text names it.
        """
        records = self._claims_of(sandbox.pod)
        if not records:
            return None
        for record in records:
            here = record.holder is not None and record.holder.sandbox_id == sandbox.id
            if record.plan.moves and not (here and record.state is State.ATTACHED):
                known = next((f.message for f in record.facts if f.phase is Phase.ATTACH_FAILED and f.message), "")
                reason = words.in_use(record, sandbox.pod) if record.holder and not here else known
                raise HookError(
                    f"container {container.name}: device {words.devices_text(record.plan)} of claim {record.ref.name} "
                    f"is not attached to pod {sandbox.pod}{': ' + reason if reason else ''}"
                )
        nodes = [
            node
            for record in records
            if not record.plan.listed_by
            for device in record.plan.devices
            if device.rdma is not None
            for node in device.rdma.char_devices
        ]
        rdma = any(device.rdma is not None for record in records for device in record.plan.devices)
        return Adjustment(devices=tuple(nodes), memlock=rdma) if nodes or rdma else None

    def stop_sandbox(self, sandbox: SandboxRef, deadline: float) -> bool:
        """Give back the devices of a sandbox that stops; True when it had any. Never raises."""
        self.sandboxes.stop(sandbox.id)
        records = self.journal.of_sandbox(sandbox.id)
        if not records:
            return bool(self._claims_of(sandbox.pod))
        try:
            with self.locks.hold(_all_names(records), until=deadline):
                current = [r for r in self.journal.of_sandbox(sandbox.id) if r.uid in {old.uid for old in records}]
                self.give_back(current)
        except (DeviceBusyError, JournalError) as error:
            LOG.warning("devices are given back later", extra=fields(pod=sandbox.pod, sandbox=sandbox.id, error=error))
            self._outlets.compare()
        return True

    def remove_sandbox(self, sandbox: SandboxRef) -> None:
        """Forget a sandbox that is removed."""
        self.sandboxes.remove(sandbox.id)

    def synchronize(self, sandboxes: Sequence[SandboxRef]) -> None:
        """Take the runtime's list; what follows from it is the reconciler's work."""
        self.sandboxes.replace(sandboxes)
        self._outlets.compare()

    # ---- what the reconciler uses too; the caller holds the locks of the devices

    def admit(self, sandbox: SandboxRef, uids: Sequence[str], deadline: float) -> list[ClaimRecord]:
        """Attach the claims ``uids`` to a sandbox. The caller holds the locks of their devices.

        Raises:
            HookError: they cannot be attached; everything is as before.
            JournalError: the journal failed before anything moved.
        """
        present = [self._vacate(record, sandbox) for uid in uids if (record := self.journal.get(uid))]
        records = [record for record in present if record.state is not State.ATTACHED]
        if not records:
            return present
        self._check(records, sandbox)
        try:
            netns = self.namespaces.enter(sandbox.id, sandbox.netns_path) if sandbox.netns_path else NetNs.current()
        except NamespaceGoneError as error:
            raise self._refused(records, sandbox.pod, "NamespaceGone", str(error)) from error
        holder = Holder(pod=sandbox.pod, sandbox_id=sandbox.id, netns_path=sandbox.netns_path, netns_inode=netns.inode)
        records = list(self.journal.update([r.uid for r in records], state=State.ATTACHING, holder=holder))
        plans = [device for record in records for device in record.plan.devices]
        try:
            facts = self._engine.attach(plans, netns, deadline=deadline)
        except AttachError as error:
            metrics.ATTACHES.labels("failed", error.reason).inc()
            self._after_undo(records)
            raise self._refused(records, sandbox.pod, error.reason, str(error), step=error.step) from error
        try:
            records = self._settle(records, holder, facts, deadline)
        except (ReceiptError, JournalError, TimeoutError) as error:
            metrics.ATTACHES.labels("failed", type(error).__name__).inc()
            self.give_back(records)
            raise self._refused(records, sandbox.pod, "AttachFailed", str(error)) from error
        metrics.ATTACHES.labels("attached", "").inc(len(plans))
        for record in records:
            self.watch(record, netns)
            self._outlets.facts(words.of_record(record))
        self._outlets.held()
        return records

    def give_back(self, records: Sequence[ClaimRecord]) -> tuple[ClaimRecord, ...]:
        """Bring the devices of claims home and restore them. The caller holds the locks of the devices.

        Raises:
            JournalError: a step could not be recorded; the reconciler goes on from there.
        """
        if not records:
            return ()
        began = time.monotonic()
        holder = next((record.holder for record in records if record.holder), None)
        records = [
            self.journal.update([record.uid], state=State.DETACHING, holder=record.holder)[0] for record in records
        ]
        for record in records:
            self._observer.forget(record.uid)
            self._remove_receipts(record)
        netns = self.namespaces.of(holder) if holder else None
        hints = {f.key: f.interface for record in records for f in record.facts if f.interface is not None}
        plans = [device for record in records for device in record.plan.devices]
        labels = {device.key: device.label for device in plans}
        problems: dict[str, str] = {}
        for gone in self._engine.detach(plans, netns, hints=hints):
            metrics.DETACHES.labels("home" if gone.home and not gone.problems else "incomplete").inc()
            if gone.problems:
                problems[labels.get(gone.key, gone.key.device)] = "; ".join(gone.problems)
        after = self.journal.update(
            [record.uid for record in records], state=State.PREPARED, facts=self._detached(records, problems)
        )
        if holder is not None and not self.journal.of_sandbox(holder.sandbox_id):
            self.namespaces.release(holder.sandbox_id)
        self._report_return(after, holder, problems, began)
        for record in after:
            self._outlets.facts(words.of_record(record))
        self._outlets.held()
        return after

    def watch(self, record: ClaimRecord, netns: NetNs) -> None:
        """Follow an attached claim's devices in their namespace."""
        self._observer.watch(record.uid, record.plan.devices, netns, record.facts)

    def observed(self, uid: str, facts: Sequence[DeviceFacts]) -> None:
        """Take what the observer saw of an attached claim."""
        record = self.journal.get(uid)
        if record is None or record.state is not State.ATTACHED or record.facts == tuple(facts):
            return
        try:
            changed = self.journal.set_facts(uid, facts)
        except JournalError as error:
            LOG.warning("facts not recorded", extra=fields(claim=uid, error=error))
            changed = replace(record, facts=tuple(facts))
        if changed is not None:
            self._outlets.facts(words.of_record(changed))

    def late(self, sandbox: SandboxRef) -> None:
        """Give back what a hook attached after the runtime had been told that it failed."""
        self.stop_sandbox(sandbox, time.monotonic() + LOCK_SECONDS)

    # ---- inside

    def _claims_of(self, pod: PodRef) -> list[ClaimRecord]:
        found = {record.uid: record for record in self.journal.of_pod(pod.uid)}
        named = self._inlets.claims_of_pod(pod.uid)
        if named:
            for record in self.journal.records():
                if (record.ref.namespace, record.ref.name) in named:
                    found.setdefault(record.uid, record)
        return list(found.values())

    def _vacate(self, record: ClaimRecord, sandbox: SandboxRef) -> ClaimRecord:
        """Return the claim ready to be attached to ``sandbox``, taken from a former sandbox that has gone."""
        if record.holder is not None and record.holder.sandbox_id != sandbox.id:
            former = self.sandboxes.get(record.holder.sandbox_id)
            if former is not None and record.holder.pod.uid != sandbox.pod.uid and record.plan.moves:
                raise self._refused([record], sandbox.pod, "ClaimInUse", words.in_use(record, sandbox.pod), keep=True)
            (record,) = self.give_back([record])
        elif record.state is State.DETACHING:
            (record,) = self.give_back([record])
        if record.successor is not None and record.holder is None:
            plan = self._with_receipts(record.successor, record)
            record = self.journal.put(ClaimRecord(plan=plan, facts=words.facts(plan, Phase.PREPARED)))
        return record

    def _check(self, records: Sequence[ClaimRecord], sandbox: SandboxRef) -> None:
        for record in records:
            if sandbox.pod.uid not in {pod.uid for pod in record.plan.pods}:
                text = f"claim {record.ref.name} is not known to be reserved for pod {sandbox.pod} yet; kubelet retries"
                raise self._refused(records, sandbox.pod, "NotReservedYet", text, keep=True)
            if record.plan.moves and not sandbox.netns_path:
                text = (
                    f"pod {sandbox.pod} uses the host network (hostNetwork: true), so device "
                    f"{words.devices_text(record.plan)} of claim {record.ref.name} cannot be moved into it"
                )
                raise self._refused(records, sandbox.pod, "HostNetwork", text)
            for device in record.plan.devices:
                if device.moves and (reason := self._inlets.uplink(device)):
                    text = f"device {device.label} is needed by the node itself: {reason}"
                    raise self._refused(records, sandbox.pod, "DeviceIsUplink", text)
                self._check_other_holders(records, record, device, sandbox)

    def _check_other_holders(
        self, records: Sequence[ClaimRecord], record: ClaimRecord, device: DevicePlan, sandbox: SandboxRef
    ) -> None:
        for other in self.journal.of_device(device.key.device):
            held = other.uid != record.uid and other.holder is not None
            if held and device.moves and any(d.key == device.key and d.moves for d in other.plan.devices):
                raise self._refused(records, sandbox.pod, "DeviceInUse", str(ConflictError(device, other)))

    def _settle(
        self, records: Sequence[ClaimRecord], holder: Holder, facts: Sequence[DeviceFacts], deadline: float
    ) -> list[ClaimRecord]:
        for record in records:
            nodes = [
                (device.receipt_id, node)
                for device in record.plan.devices
                if device.rdma is not None and record.plan.listed_by
                for node in device.rdma.char_devices
            ]
            self._receipts.write(record.plan, facts, nodes)
        if self.sandboxes.stopped(holder.sandbox_id):
            raise TimeoutError("the runtime has stopped the sandbox meanwhile")
        if time.monotonic() > deadline:
            raise TimeoutError("attaching took longer than the runtime waits; everything is given back")
        return list(self.journal.update([r.uid for r in records], state=State.ATTACHED, holder=holder, facts=facts))

    def _after_undo(self, records: Sequence[ClaimRecord]) -> None:
        """Record that the engine has brought all devices home by itself."""
        uids = [record.uid for record in records]
        sandbox_id = records[0].holder.sandbox_id if records[0].holder else ""
        self.journal.update(uids, state=State.DETACHING, holder=records[0].holder)
        self.journal.update(uids, state=State.PREPARED)
        self.namespaces.release(sandbox_id)

    def _refused(
        self,
        records: Sequence[ClaimRecord],
        pod: PodRef,
        reason: str,
        text: str,
        *,
        step: str = "",
        keep: bool = False,
    ) -> HookError:
        """Say everywhere why a pod does not get its devices; ``keep``: another pod has them, its facts stay."""
        LOG.warning(
            "pod does not get its devices",
            extra=fields(
                pod=pod, claims=",".join(r.uid for r in records), reason=reason, step=step or None, error=text
            ),
        )
        self._outlets.event(pod, reason, text, True)
        for record in records:
            if keep or (record.holder is not None and record.holder.pod.uid != pod.uid):
                continue
            facts = tuple(
                words.fact(device, Phase.ATTACH_FAILED, reason=reason, message=text, step=step)
                for device in record.plan.devices
            )
            try:
                changed = self.journal.set_facts(record.uid, facts)
            except JournalError:
                changed = replace(record, facts=facts)
            if changed is not None:
                self._outlets.facts(words.of_record(changed))
        return HookError(text)

    def _refuse_conflicts(self, plan: ClaimPlan) -> None:
        for device in plan.devices:
            for other in self.journal.of_device(device.key.device):
                if other.uid == plan.ref.uid or not device.moves:
                    continue
                if any(d.key == device.key and d.moves for d in other.plan.devices):
                    raise ConflictError(device, other)

    def _with_receipts(self, plan: ClaimPlan, old: ClaimRecord | None) -> ClaimPlan:
        """Give each request its receipt ID: the one that kubelet knows already, where there is one."""
        known = {device.main_request: device.receipt_id for device in old.plan.devices} if old else {}
        names: dict[str, list[str]] = {}
        for device in plan.devices:
            names.setdefault(device.main_request, []).append(device.key.device)
        identities = {
            request: known.get(request) or receipt_id(self._driver, plan.ref.uid, request, devices)
            for request, devices in names.items()
        }
        return replace(plan, devices=tuple(replace(d, receipt_id=identities[d.main_request]) for d in plan.devices))

    def _remove_receipts(self, record: ClaimRecord) -> None:
        try:
            self._receipts.remove(record.plan)
        except ReceiptError as error:
            LOG.error("receipt not removed", extra=fields(claim=record.uid, error=error))  # noqa: TRY400 - the text says all
            self._outlets.event(record.ref, "ReceiptNotRemoved", str(error), True)

    def _detached(self, records: Sequence[ClaimRecord], problems: dict[str, str]) -> tuple[DeviceFacts, ...]:
        return tuple(
            words.fact(
                device,
                Phase.DETACHED,
                message=f"given back, but: {problems[device.label]}" if device.label in problems else "",
            )
            for record in records
            for device in record.plan.devices
        )

    def _report_return(
        self, records: Sequence[ClaimRecord], holder: Holder | None, problems: dict[str, str], began: float
    ) -> None:
        LOG.info(
            "devices given back",
            extra=fields(
                pod=holder.pod if holder else None,
                claims=",".join(record.uid for record in records),
                devices=",".join(words.devices_text(record.plan) for record in records),
                problems="; ".join(f"{device}: {text}" for device, text in problems.items()) or None,
                ms=(time.monotonic() - began) * 1000,
            ),
        )
        for record in records:
            texts = [f"{d.label}: {problems[d.label]}" for d in record.plan.devices if d.label in problems]
            if texts:
                self._outlets.event(record.ref, "DeviceNotRestored", "; ".join(texts), True)


def _names(plan: ClaimPlan) -> list[str]:
    return [device.key.device for device in plan.devices]


def _all_names(records: Sequence[ClaimRecord]) -> list[str]:
    plans = [plan for record in records for plan in (record.plan, record.successor) if plan is not None]
    return [device.key.device for plan in plans for device in plan.devices]
