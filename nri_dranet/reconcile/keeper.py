"""The keeper of claims: takes their devices into sandboxes and back, and records each step before and after it.

The container runtime's hooks and kubelet's calls come in here. Whoever changes a claim holds the locks of its devices.
Nothing here talks to the API server, resolves a name or starts a program: hooks run under a lock of the whole node.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from nri_dranet.attach.engine import AttachError
from nri_dranet.claims.facts import DeviceFacts, Phase
from nri_dranet.claims.lifecycle import State
from nri_dranet.claims.record import ClaimRecord, Holder
from nri_dranet.netlink.namespaces import NamespaceGoneError
from nri_dranet.receipt.receipts import ReceiptError, Receipts
from nri_dranet.reconcile import lookups, words
from nri_dranet.reconcile.hooktypes import Adjustment, ContainerRef, HookError
from nri_dranet.reconcile.judge import Judge
from nri_dranet.reconcile.locks import DeviceBusyError, DeviceLocks
from nri_dranet.reconcile.namespaces import Namespaces
from nri_dranet.reconcile.returns import NotReturnedError, Returns
from nri_dranet.reconcile.sandboxes import Sandboxes, SandboxRef
from nri_dranet.store.database import JournalError
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from nri_dranet.claims.model import ClaimRef, PodRef
    from nri_dranet.claims.plan import ClaimPlan
    from nri_dranet.netlink.namespaces import NetNs
    from nri_dranet.reconcile.ports import Attacher, Inlets, Observer, Outlets
    from nri_dranet.store.journal import Journal

LOG = logging.getLogger(__name__)

LOCK_SECONDS = 20.0
"""How long Prepare and Unprepare wait for a device that is being moved; kubelet waits 45 s for them."""


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
        lift_memlock: bool = True,
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
        self._lift_memlock = lift_memlock
        # Held while facts are read and told, so that the last that is told is the last that is recorded.
        self._telling = threading.RLock()
        self.judge = Judge(journal, outlets, inlets, self._telling)
        self.returns = Returns(
            driver=driver,
            journal=journal,
            engine=engine,
            observer=observer,
            receipts=receipts,
            outlets=outlets,
            namespaces=self.namespaces,
            tell=self.tell,
        )

    @contextlib.contextmanager
    def holding(self, uids: Iterable[str], *, until: float, more: Iterable[str] = ()) -> Iterator[list[ClaimRecord]]:
        """Hold the locks of all devices of claims; gives their records as they are once the locks are held.

        A claim may be planned anew while its locks are waited for, so that its devices are looked at again then.

        Args:
            uids: the claims; those that are not in the journal are passed over.
            until: time of ``time.monotonic()`` after which it is given up.
            more: names of further devices.

        Raises:
            DeviceBusyError: a device is being moved by somebody else.
        """
        wanted, names = list(uids), set(more)
        names |= lookups.all_names(self._present(wanted))
        while True:
            with self.locks.hold(names, until=until):
                records = self._present(wanted)
                now = lookups.all_names(records)
                if now <= names:
                    yield records
                    return
            names |= now

    def _present(self, uids: Iterable[str]) -> list[ClaimRecord]:
        return [record for uid in uids if (record := self.journal.get(uid)) is not None]

    # ---- kubelet

    def prepare(self, plan: ClaimPlan) -> ClaimRecord:
        """Record a claim that kubelet prepares. Repeating it changes nothing that is in a pod.

        Raises:
            ConflictError: a device of it is in another claim.
            DeviceBusyError: a device is being moved just now.
            JournalError: it cannot be recorded; nothing has changed.
        """
        until = time.monotonic() + LOCK_SECONDS
        with self.holding([plan.ref.uid], until=until, more=lookups.names(plan)) as found:
            old = found[0] if found else None
            plan = lookups.with_newest_leases(lookups.with_receipts(plan, old, self._driver), old)
            self.judge.refuse_conflicts(plan)
            if old is None or not old.held:
                record = ClaimRecord(plan=plan, facts=words.facts(plan, Phase.PREPARED))
            elif old.plan.allocation_hash == plan.allocation_hash:
                kept = replace(old.plan, pods=plan.pods, listed_by=plan.listed_by, pod_claim_name=plan.pod_claim_name)
                record = replace(old, plan=kept, successor=None)
            else:
                record = replace(old, successor=plan)
            record = self.journal.put(record)
        self._outlets.held()
        self.tell(record)
        return record

    def adopt(self, record: ClaimRecord) -> bool:
        """Record a claim whose devices are in a pod already, attached by another life or driver; False: it is known.

        Raises:
            DeviceBusyError: a device is being moved just now.
            JournalError: it cannot be recorded; nothing has changed.
        """
        until = time.monotonic() + LOCK_SECONDS
        with self.holding([record.uid], until=until, more=lookups.names(record.plan)) as found:
            if found:
                return False
            plan = lookups.with_receipts(record.plan, None, self._driver)
            self.journal.put(replace(record, plan=plan))
        self._outlets.held()
        self.tell(record)
        return True

    def replan(self, plan: ClaimPlan) -> None:
        """Let a claim's new allocation take effect now; no sandbox runs with the former one.

        Raises:
            ConflictError: a device of it is in another claim.
            DeviceBusyError: a device is being moved just now.
            JournalError: it cannot be recorded.
            NotReturnedError: a device of the former allocation is stuck in a pod's namespace.
        """
        self.prepare(plan)
        with self.holding([plan.ref.uid], until=time.monotonic() + LOCK_SECONDS) as found:
            self.returns.give_back([record for record in found if record.holder is not None])

    def remember_pods(
        self,
        uid: str,
        pods: Sequence[PodRef],
        listed_by: dict[str, tuple[str, ...]] | None = None,
        *,
        allocation_hash: str = "",
    ) -> ClaimRecord | None:
        """Note which pods may use a claim now; None when the claim is not in the journal.

        Args:
            uid: the claim.
            pods: the pods that it is reserved for.
            listed_by: containers that list it; None: as before.
            allocation_hash: which allocation they use, the one in effect or the next one; "": the one in effect.

        Raises:
            DeviceBusyError: a device is being moved just now.
            JournalError: it cannot be recorded; nothing has changed.
        """
        with self.holding([uid], until=time.monotonic() + LOCK_SECONDS) as found:
            if not found:
                return None
            (record,) = found
            plan, successor = record.plan, record.successor
            if successor is not None and allocation_hash == successor.allocation_hash != plan.allocation_hash:
                changed = replace(record, successor=words.with_pods(successor, pods, listed_by))
            else:
                # The claim is allocated as before again: what was planned for the next allocation is void.
                kept = None if allocation_hash else successor
                changed = replace(record, plan=words.with_pods(plan, pods, listed_by), successor=kept)
            return record if changed == record else self.journal.put(changed)

    def unprepare(self, ref: ClaimRef) -> None:
        """Give back what a claim still holds and forget it. An unknown claim is no error.

        Raises:
            DeviceBusyError: a device is being moved just now; kubelet tries again.
            JournalError: it cannot be recorded; kubelet tries again.
            NotReturnedError: a device is stuck in its pod's namespace; kubelet tries again.
        """
        with self.holding([ref.uid], until=time.monotonic() + LOCK_SECONDS) as found:
            if not found:
                self.journal.remove(ref.uid)
                return
            (record,) = found
            if record.held:
                (record,) = self.returns.give_back([record])
            self.returns.remove_receipts(record)
            released = replace(record, facts=words.facts(record.plan, Phase.DETACHED, reason="Unprepared"))
            with self._telling:
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
        try:
            records = self.judge.claims_of(sandbox.pod)
            if not records:
                self.judge.refuse_unreadable(sandbox.pod)
                self.sandboxes.add(sandbox)
                return False
            attached = self._run(sandbox, records, deadline)
        except HookError:
            if self.sandboxes.get(sandbox.id) is not None:
                # The runtime went on without this answer and has listed the sandbox.
                self._outlets.compare()
            raise
        finally:
            self.sandboxes.end(sandbox.id)
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
        # A runtime that went on without this program's answer tells of the sandbox here for the first time.
        self.sandboxes.seen(sandbox)
        records = self.judge.claims_of(sandbox.pod)
        if not records:
            self.judge.refuse_unreadable(sandbox.pod)
            return None
        for record in records:
            reason = self.judge.missing(record, sandbox)
            if reason is not None:
                self._outlets.compare()
                raise HookError(
                    f"container {container.name}: device {words.devices_text(record.plan)} of claim {record.ref.name} "
                    f"is not attached to pod {sandbox.pod}{': ' + reason if reason else ''}"
                )
        nodes = {
            node.path: node
            for record in records
            for node in words.nodes_for(record.plan, record.facts, container.name)
            # The receipt has brought it: a container gets nothing twice.
            if (node.major, node.minor) not in container.devices
        }
        memlock = self._lift_memlock and any(device.rdma for record in records for device in record.plan.devices)
        return Adjustment(devices=tuple(nodes.values()), memlock=memlock) if nodes or memlock else None

    def stop_sandbox(self, sandbox: SandboxRef, deadline: float) -> bool:
        """Give back the devices of a sandbox that stops; True when it had any. Never raises."""
        self.sandboxes.stop(sandbox.id)
        records = self.journal.of_sandbox(sandbox.id)
        if not records:
            claims = self.judge.claims_of(sandbox.pod)
            if any(record.held for record in claims):
                self._outlets.compare()
            return bool(claims)
        try:
            with self.holding([record.uid for record in records], until=deadline) as current:
                self.leave([r for r in current if r.holder is not None and r.holder.sandbox_id == sandbox.id])
        except Exception as error:  # the end of a sandbox cannot be refused
            known = isinstance(error, DeviceBusyError | JournalError | NotReturnedError)
            LOG.warning(
                "devices are given back later",
                exc_info=not known,
                extra=fields(pod=sandbox.pod, sandbox=sandbox.id, error=error),
            )
            self._outlets.compare()
        return True

    def remove_sandbox(self, sandbox: SandboxRef) -> None:
        """Forget a sandbox that is removed; what it still holds is the reconciler's work."""
        self.sandboxes.remove(sandbox.id)
        if self.journal.of_sandbox(sandbox.id):
            self._outlets.compare()

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
        self.judge.check(records, sandbox)
        try:
            netns = self.namespaces.enter(sandbox.id, sandbox.netns_path)
        except (NamespaceGoneError, OSError) as error:
            raise self.judge.refused(records, sandbox.pod, "NamespaceGone", str(error)) from error
        holder = Holder(pod=sandbox.pod, sandbox_id=sandbox.id, netns_path=sandbox.netns_path, netns_inode=netns.inode)
        try:
            records = list(self.journal.update([r.uid for r in records], state=State.ATTACHING, holder=holder))
        except JournalError:
            self.returns.let_go(sandbox.id)
            raise
        plans = [device for record in records for device in record.plan.devices]
        try:
            facts = self._engine.attach(plans, netns, deadline=deadline)
            records = self._settle(records, holder, facts, deadline)
        except Exception as error:  # whatever failed, the devices come home before the pod is refused
            raise self._take_back(records, sandbox.pod, error) from error
        metrics.ATTACHES.labels("attached", "").inc(len(plans))
        for text in words.mode_changes(plans, facts):
            LOG.warning("RDMA mode switched", extra=fields(pod=sandbox.pod, what=text))
            self._outlets.event(sandbox.pod, "RDMAModeSwitched", text, True)
        for record in records:
            self.watch(record, netns)
            self.tell(record)
        self._outlets.held()
        return records

    def leave(self, records: Sequence[ClaimRecord]) -> None:
        """Let claims leave a sandbox that has ended: to another pod that uses them too, else home.

        Raises:
            JournalError, NotReturnedError: as ``Returns.give_back`` says.
        """
        self.returns.give_back([record for record in records if not self._hand_over(record)])

    def watch(self, record: ClaimRecord, netns: NetNs, *, anew: bool = False) -> None:
        """Follow an attached claim's devices in their namespace, unless they are followed already. Never raises.

        ``anew``: somebody else has seen something else than the observer, which looks at once and compares with that.
        """
        if record.uid in self._observer.watched and not anew:
            return
        try:
            self._observer.watch(record.uid, record.plan.devices, netns, record.facts)
        except (OSError, ValueError) as error:
            LOG.warning("devices are not watched yet", extra=fields(claim=record.uid, error=error))

    def observed(self, uid: str, facts: Sequence[DeviceFacts]) -> None:
        """Take what was seen of an attached claim; what could not be looked at keeps its interface, the hint to it."""
        with self._telling:
            record = self.journal.get(uid)
            if record is None or record.state is not State.ATTACHED:
                return
            shown = {(fact.key, fact.request): fact.interface for fact in record.facts}
            facts = tuple(
                replace(f, interface=shown.get((f.key, f.request))) if f.phase is Phase.UNKNOWN else f for f in facts
            )
            if record.facts == facts:
                return
            try:
                changed = self.journal.set_facts(uid, facts, state=State.ATTACHED)
            except JournalError as error:
                LOG.warning("facts not recorded", extra=fields(claim=uid, error=error))
                changed = replace(record, facts=facts)
            if changed is not None:
                self._outlets.facts(words.of_record(changed))
                self._outlets.refresh(uid)

    def look_anew(self, record: ClaimRecord) -> None:
        """Look at an attached claim's devices by its plan as it is recorded now, and follow them by that.

        The caller holds the locks of the devices. Never raises.
        """
        if record.holder is None:
            return
        self._observer.forget(record.uid)
        hints = {fact.key: fact.interface for fact in record.facts if fact.interface is not None}
        try:
            netns = self.namespaces.of(record.holder)
        except OSError as error:
            LOG.warning("devices are looked at later", extra=fields(claim=record.uid, error=error))
            return
        self.observed(record.uid, self._engine.look(record.plan.devices, netns, hints))
        if netns is not None:
            self.watch(self.journal.get(record.uid) or record, netns)

    def late(self, sandbox: SandboxRef) -> None:
        """Give back what a hook attached after the runtime had been told that it failed.

        A sandbox that the runtime has listed since runs in spite of that, and keeps its devices.
        """
        if not self.sandboxes.listed(sandbox.id):
            self.stop_sandbox(sandbox, time.monotonic() + LOCK_SECONDS)

    def hold_namespaces(self, passed: Mapping[str, int]) -> None:
        """Hold the namespaces of all sandboxes that have devices, before somebody else who held them lets go.

        Args:
            passed: descriptors of them, by sandbox ID, which are the keeper's from now on: one that is not needed is
                closed. A namespace whose pod is dead can be had by nothing else.
        """
        left = dict(passed)
        for record in self.journal.records():
            holder = record.holder
            if holder is None:
                continue
            try:
                known = self.namespaces.of(holder)
                mine = left.get(holder.sandbox_id)
                if known is None and mine is not None and self.namespaces.adopt(holder, mine):
                    del left[holder.sandbox_id]
            except OSError as error:
                LOG.warning("a namespace is not held", extra=fields(claim=record.uid, error=error))
        for descriptor in left.values():
            os.close(descriptor)

    def has_claims(self, pod: PodRef) -> bool:
        """Tell whether a pod has a claim of this driver, from memory; the journal may be closed."""
        return bool(self.judge.claims_of(pod))

    # ---- inside

    def _run(self, sandbox: SandboxRef, records: Sequence[ClaimRecord], deadline: float) -> list[ClaimRecord]:
        """Attach the claims of a sandbox that starts; whatever fails ends in a refusal in words.

        Raises:
            HookError: they cannot be attached; everything is as before.
        """
        try:
            with self.holding([record.uid for record in records], until=deadline) as current:
                return self._run_held(sandbox, records, current, deadline)
        except HookError:
            raise
        except DeviceBusyError as error:
            # Whoever has the device now tells what becomes of it.
            raise self.judge.refused(records, sandbox.pod, "DeviceBusy", str(error), keep=True) from error
        except JournalError as error:
            raise self.judge.refused(records, sandbox.pod, "JournalFailed", str(error)) from error
        except NotReturnedError as error:
            raise self.judge.refused(records, sandbox.pod, "DeviceNotReturned", str(error)) from error
        except Exception as error:  # a pod is refused in words, whatever the cause
            LOG.exception("a pod's devices cannot be attached", extra=fields(pod=sandbox.pod, sandbox=sandbox.id))
            raise self.judge.refused(
                records, sandbox.pod, "AttachFailed", f"{type(error).__name__}: {error}"
            ) from error

    def _run_held(
        self, sandbox: SandboxRef, records: Sequence[ClaimRecord], current: Sequence[ClaimRecord], deadline: float
    ) -> list[ClaimRecord]:
        """Attach claims whose locks are held: ``current`` is what is left of ``records`` now."""
        if len(current) < len(records):
            left = {record.uid for record in current}
            gone = ", ".join(str(record.ref) for record in records if record.uid not in left)
            raise self.judge.refused(current, sandbox.pod, "ClaimReleased", f"claim {gone} was released meanwhile")
        attached = self.admit(sandbox, [record.uid for record in current], deadline)
        if not self.sandboxes.add(sandbox):
            raise self._take_back(attached, sandbox.pod, TimeoutError("the sandbox was stopped meanwhile"))
        return attached

    def _hand_over(self, record: ClaimRecord) -> bool:
        """Let another running pod of a claim whose devices stay on the host hold it from now on; False: there is none.

        Raises:
            JournalError: it cannot be recorded.
        """
        former = record.holder
        if record.plan.moves or record.state is not State.ATTACHED or former is None:
            return False
        others = [each for pod in record.plan.pods for each in self.sandboxes.of_pod(pod.uid)]
        other = next((each for each in others if each.id != former.sandbox_id), None)
        if other is None:
            return False
        try:
            netns = self.namespaces.enter(other.id, other.netns_path)
        except (NamespaceGoneError, OSError) as error:
            LOG.warning(
                "a claim's next pod cannot be entered", extra=fields(pod=other.pod, claim=record.uid, error=error)
            )
            return False
        holder = Holder(pod=other.pod, sandbox_id=other.id, netns_path=other.netns_path, netns_inode=netns.inode)
        (record,) = self.journal.update([record.uid], state=State.ATTACHED, holder=holder)
        self._observer.forget(record.uid)
        self.watch(record, netns)
        self.returns.let_go(former.sandbox_id)
        self.tell(record)
        LOG.info("claim stays with another pod", extra=fields(claim=record.uid, pod=other.pod, former=former.pod))
        return True

    def _vacate(self, record: ClaimRecord, sandbox: SandboxRef) -> ClaimRecord:
        """Return the claim ready to be attached to ``sandbox``, taken from a former sandbox that has gone."""
        holder = record.holder
        if holder is not None and holder.sandbox_id != sandbox.id:
            former = self.sandboxes.get(holder.sandbox_id)
            if former is not None and holder.pod.uid != sandbox.pod.uid:
                if record.plan.moves:
                    text = words.in_use(record, sandbox.pod)
                    raise self.judge.refused([record], sandbox.pod, "ClaimInUse", text, keep=True)
                if record.state is State.ATTACHED:
                    # Its devices stay on the host for all its pods: nothing is attached, and the receipt is there.
                    self.judge.check([record], sandbox)
                    return record
            (record,) = self.returns.give_back([record])
        elif record.state is State.DETACHING or (holder is not None and lookups.elsewhere(holder, sandbox)):
            (record,) = self.returns.give_back([record])
        return self.returns.promote(record) if record.holder is None else record

    def tell(self, record: ClaimRecord) -> None:
        """Tell what is recorded of a claim now, which may be more than the caller knows."""
        with self._telling:
            self._outlets.facts(words.of_record(self.journal.get(record.uid) or record))

    def _take_back(self, records: Sequence[ClaimRecord], pod: PodRef, error: Exception) -> HookError:
        """Undo an attach that failed or came too late; return the refusal.

        The engine has undone its own part by then. Looking once more finds what it could not move home.
        """
        reason, step = (error.reason, error.step) if isinstance(error, AttachError) else ("AttachFailed", "")
        metrics.ATTACHES.labels("failed", reason if isinstance(error, AttachError) else type(error).__name__).inc()
        text = str(error)
        if not isinstance(error, AttachError | ReceiptError | JournalError | TimeoutError):
            LOG.error("an attach failed in an unknown way", exc_info=error, extra=fields(pod=pod))
            text = f"{type(error).__name__}: {error}"
        try:
            self.returns.give_back(records)
        except (JournalError, NotReturnedError) as problem:
            LOG.warning("devices are given back later", extra=fields(pod=pod, error=problem))
            self._outlets.compare()
        return self.judge.refused(records, pod, reason, text, step=step)

    def _settle(
        self, records: Sequence[ClaimRecord], holder: Holder, facts: Sequence[DeviceFacts], deadline: float
    ) -> list[ClaimRecord]:
        for record in records:
            nodes = words.char_devices(record.plan, facts) if record.plan.listed_by else []
            self._receipts.write(record.plan, facts, nodes)
        if self.sandboxes.stopped(holder.sandbox_id):
            raise TimeoutError("the runtime has stopped the sandbox meanwhile")
        if time.monotonic() > deadline:
            raise TimeoutError("attaching took longer than the runtime waits; everything is given back")
        return list(self.journal.update([r.uid for r in records], state=State.ATTACHED, holder=holder, facts=facts))
