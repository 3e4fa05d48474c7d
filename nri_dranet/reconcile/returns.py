"""The way home: devices leave the pod, get their state on the host back, and their claim is ready for the next pod."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from nri_dranet.claims.facts import ClaimFacts, Phase
from nri_dranet.claims.lifecycle import State
from nri_dranet.claims.record import ClaimRecord
from nri_dranet.receipt.receipts import ReceiptError, Receipts
from nri_dranet.reconcile import lookups, words
from nri_dranet.store.database import JournalError
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from nri_dranet.claims.facts import DeviceFacts
    from nri_dranet.claims.model import DeviceKey
    from nri_dranet.claims.plan import DevicePlan
    from nri_dranet.claims.record import Holder
    from nri_dranet.netlink.namespaces import NetNs
    from nri_dranet.reconcile.namespaces import Namespaces
    from nri_dranet.reconcile.ports import Attacher, Observer, Outlets
    from nri_dranet.store.journal import Journal

LOG = logging.getLogger(__name__)


class NotReturnedError(Exception):
    """A device is still in a pod's namespace and could not be brought home now; the text names it and the cause."""


class Returns:
    """Gives devices back. Whoever calls it holds the locks of the devices."""

    def __init__(
        self,
        *,
        driver: str,
        journal: Journal,
        engine: Attacher,
        observer: Observer,
        receipts: Receipts,
        outlets: Outlets,
        namespaces: Namespaces,
        tell: Callable[[ClaimRecord], None],
    ) -> None:
        self._driver = driver
        self._journal = journal
        self._engine = engine
        self._observer = observer
        self._receipts = receipts
        self._outlets = outlets
        self._namespaces = namespaces
        self._tell = tell

    def give_back(self, records: Sequence[ClaimRecord]) -> tuple[ClaimRecord, ...]:
        """Bring the devices of claims home and restore them.

        A journal that cannot be written does not keep a device in a pod: the row says less than the kernel then, and
        the reconciler goes on from both.

        Raises:
            JournalError: the return could not be recorded; the reconciler goes on from there.
            NotReturnedError: a device is still in the pod's namespace, which stays open; the reconciler tries again.
        """
        if not records:
            return ()
        began = time.monotonic()
        holder = next((record.holder for record in records if record.holder), None)
        records = [self._leaving(record) for record in records]
        for record in records:
            self._observer.forget(record.uid)
            self.remove_receipts(record)
        try:
            netns = self._namespaces.of(holder) if holder else None
        except OSError as error:
            raise NotReturnedError(f"the pod's namespace cannot be opened: {error}") from error
        problems, stuck = self._bring_home(records, netns)
        home = [record for record in records if not lookups.keys(record) & stuck.keys()]
        try:
            after = self._record_return(home, problems)
        except JournalError:
            # The journal cannot say it, the status can.
            for record in home:
                self._outlets.facts(ClaimFacts(ref=record.ref, devices=self._detached([record], problems)))
            raise
        if holder is not None:
            self.let_go(holder.sandbox_id)
        self._report_return(records, holder, problems, stuck, began)
        for record in after:
            self._tell(record)
        self._outlets.held()
        if stuck:
            for record in records:
                self._tell_stuck(record, stuck)
            raise NotReturnedError("; ".join(f"device {text}" for text in stuck.values()))
        return after

    def promote(self, record: ClaimRecord) -> ClaimRecord:
        """Let the plan of the next allocation take effect, now that nothing is left of the former one.

        Raises:
            JournalError: it cannot be recorded.
        """
        if record.successor is None:
            return record
        plan = lookups.with_receipts(record.successor, record, self._driver)
        return self._journal.put(ClaimRecord(plan=plan, facts=words.facts(plan, Phase.PREPARED)))

    def let_go(self, sandbox_id: str) -> None:
        """Close the descriptor of a namespace that no device is in any more."""
        if not self._journal.of_sandbox(sandbox_id):
            self._namespaces.release(sandbox_id)

    def remove_receipts(self, record: ClaimRecord) -> None:
        """Remove the receipts of a claim; what cannot be removed is told in an Event."""
        try:
            self._receipts.remove(record.plan)
        except ReceiptError as error:
            LOG.error("receipt not removed", extra=fields(claim=record.uid, error=error))  # noqa: TRY400 - the text says all
            self._outlets.event(record.ref, "ReceiptNotRemoved", str(error), True)

    # ---- inside

    def _leaving(self, record: ClaimRecord) -> ClaimRecord:
        """Record that a claim's devices are on their way home, if that can be recorded."""
        try:
            return self._journal.update([record.uid], state=State.DETACHING, holder=record.holder)[0]
        except JournalError as error:
            LOG.warning("a return is not recorded in advance", extra=fields(claim=record.uid, error=error))
            return record

    def _bring_home(
        self, records: Sequence[ClaimRecord], netns: NetNs | None
    ) -> tuple[dict[str, str], dict[DeviceKey, str]]:
        """Move devices home; tell what could not be restored, by label, and which are still in the pod, by key."""
        hints = {f.key: f.interface for record in records for f in record.facts if f.interface is not None}
        plans = [device for record in records for device in record.plan.devices]
        known = {device.key: device for device in plans}
        problems: dict[str, str] = {}
        stuck: dict[DeviceKey, str] = {}
        for gone in self._engine.detach(plans, netns, hints=hints):
            metrics.DETACHES.labels("home" if gone.home and not gone.problems else "incomplete").inc()
            device, text = known[gone.key], "; ".join(gone.problems)
            if text:
                problems[device.label] = text
            if not gone.home and device.moves and netns is not None:
                (fact,) = self._engine.look([device], netns, hints)
                if fact.phase is not Phase.LOST:
                    stuck[gone.key] = f"{device.label} is still in the pod's namespace: {text}"
            if not gone.home and gone.key not in stuck and lookups.may_return(device):
                self._expect(device)
        return problems, stuck

    def _expect(self, device: DevicePlan) -> None:
        """Keep what a device that is nowhere is owed: it may be in a namespace below the pod's, and come home yet."""
        try:
            self._journal.put_stray(device)
        except JournalError as error:
            LOG.warning("a missing device is not looked for", extra=fields(device=device.label, error=error))

    def _record_return(self, records: Sequence[ClaimRecord], problems: dict[str, str]) -> tuple[ClaimRecord, ...]:
        """Record that devices are home.

        Raises:
            JournalError: it could not be written; the rows are as before, while the devices are home.
        """
        if not records:
            return ()
        for record in records:
            if record.state is not State.DETACHING:
                self._journal.update([record.uid], state=State.DETACHING, holder=record.holder)
        uids = [record.uid for record in records]
        after = self._journal.update(uids, state=State.PREPARED, facts=self._detached(records, problems))
        return tuple(self.promote(record) for record in after)

    def _tell_stuck(self, record: ClaimRecord, stuck: Mapping[DeviceKey, str]) -> None:
        """Say of a claim which of its devices are still in the pod's namespace; where they are there stays known."""
        texts = {device.key: f"device {stuck[device.key]}" for device in record.plan.devices if device.key in stuck}
        if not texts:
            return
        pod = record.holder.pod if record.holder else None
        self._outlets.announce(pod, [record.ref], "DeviceNotReturned", "; ".join(texts.values()))
        facts = tuple(
            replace(fact, phase=Phase.DETACHED, reason="DeviceNotReturned", message=texts[fact.key])
            if fact.key in texts
            else replace(fact, phase=Phase.DETACHED, reason="", message="", interface=None)
            for fact in record.facts
        )
        try:
            changed = self._journal.set_facts(record.uid, facts, state=State.DETACHING)
        except JournalError as error:
            LOG.warning("facts not recorded", extra=fields(claim=record.uid, error=error))
            return
        if changed is not None:
            self._tell(changed)

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
        self,
        records: Sequence[ClaimRecord],
        holder: Holder | None,
        problems: dict[str, str],
        stuck: Collection[DeviceKey],
        began: float,
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
            home = [device for device in record.plan.devices if device.key not in stuck]
            texts = [f"{device.label}: {problems[device.label]}" for device in home if device.label in problems]
            if texts:
                pod = holder.pod if holder else None
                self._outlets.announce(pod, [record.ref], "DeviceNotRestored", "; ".join(texts))
