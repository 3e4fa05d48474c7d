"""Which claims a pod has, whether it may have their devices now, and what is said everywhere when it may not."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from nri_dranet.claims.facts import Phase
from nri_dranet.claims.lifecycle import State
from nri_dranet.reconcile import lookups, words
from nri_dranet.reconcile.hooktypes import HookError
from nri_dranet.store.database import JournalError
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Sequence

    from nri_dranet.claims.model import PodRef
    from nri_dranet.claims.plan import ClaimPlan, DevicePlan
    from nri_dranet.claims.record import ClaimRecord
    from nri_dranet.reconcile.ports import Inlets, Outlets
    from nri_dranet.reconcile.sandboxes import SandboxRef
    from nri_dranet.store.journal import Journal

LOG = logging.getLogger(__name__)


class ConflictError(Exception):
    """A device is in another live claim; the text names device, claim and pod."""

    def __init__(self, device: DevicePlan, other: ClaimRecord) -> None:
        holder = f", which pod {other.holder.pod} holds" if other.holder else ""
        super().__init__(
            f"device {device.label} is prepared for claim {other.ref} (UID {other.uid}){holder}; "
            "it is free again when kubelet has released that claim"
        )
        self.other = other


class Judge:
    """Answers by what the journal and the node show. Attaches nothing and gives nothing back."""

    def __init__(
        self, journal: Journal, outlets: Outlets, inlets: Inlets, telling: contextlib.AbstractContextManager[object]
    ) -> None:
        """Judge by a journal.

        Args:
            journal: the claims.
            outlets: where a refusal is announced.
            inlets: what the node and the API server say.
            telling: held while facts are told.
        """
        self._journal = journal
        self._outlets = outlets
        self._inlets = inlets
        self._telling = telling

    def claims_of(self, pod: PodRef) -> list[ClaimRecord]:
        """Return the claims that a pod uses: those that name it, and those that it names."""
        found = {record.uid: record for record in self._journal.of_pod(pod.uid)}
        # A claim of the same name that was made anew is another claim.
        served = {(record.ref.namespace, record.ref.name) for record in found.values()}
        named = set(self._inlets.claims_of_pod(pod.uid)) - served
        if named:
            for record in self._journal.records():
                if (record.ref.namespace, record.ref.name) in named:
                    found.setdefault(record.uid, record)
        return list(found.values())

    def refuse_conflicts(self, plan: ClaimPlan) -> None:
        """Refuse a plan with a device that another claim has.

        Raises:
            ConflictError: there is such a claim.
        """
        for device in plan.devices:
            for other in self._journal.of_device(device.key.device):
                if other.uid != plan.ref.uid and any(device.excludes(theirs) for theirs in other.plan.devices):
                    raise ConflictError(device, other)

    def refuse_unreadable(self, pod: PodRef) -> None:
        """Refuse a pod whose claim's record could not be read: nothing tells any more which device it should get.

        Raises:
            HookError: the pod has such a claim.
        """
        if not self._journal.quarantined:
            return
        named = set(self._inlets.claims_of_pod(pod.uid))
        for entry in self._journal.quarantined:
            if (entry.ref.namespace, entry.ref.name) in named:
                text = (
                    f"the node's record of claim {entry.ref} cannot be read, so pod {pod} cannot get its devices; "
                    "delete the pod, so that kubelet releases the claim"
                )
                raise self.refused([], pod, "RecordQuarantined", text)

    def check(self, records: Sequence[ClaimRecord], sandbox: SandboxRef) -> None:
        """See that a sandbox may have the devices of claims now.

        Raises:
            HookError: it may not.
        """
        for record in records:
            if sandbox.pod.uid not in {pod.uid for pod in record.plan.pods}:
                text = f"claim {record.ref.name} is not known to be reserved for pod {sandbox.pod} yet; kubelet retries"
                raise self.refused(records, sandbox.pod, "NotReservedYet", text, keep=True)
            if record.plan.moves and not sandbox.netns_path:
                text = (
                    f"pod {sandbox.pod} uses the host network (hostNetwork: true), so device "
                    f"{words.devices_text(record.plan)} of claim {record.ref.name} cannot be moved into it"
                )
                raise self.refused(records, sandbox.pod, "HostNetwork", text)
            for device in record.plan.devices:
                if device.moves and (reason := self._inlets.uplink(device)):
                    text = f"device {device.label} is needed by the node itself: {reason}"
                    raise self.refused(records, sandbox.pod, "DeviceIsUplink", text)
                if problem := lookups.lease_problem(device):
                    text = f"device {device.label} has no valid DHCP lease, one is being asked for: {problem}"
                    raise self.refused(records, sandbox.pod, "LeaseExpired", text)
                self._check_other_holders(records, record, device, sandbox)

    def missing(self, record: ClaimRecord, sandbox: SandboxRef) -> str | None:
        """Return why a pod's container must not be created yet ("": no cause is known); None where it may."""
        if not record.plan.moves and record.plan.devices:
            return None
        here = record.holder is not None and record.holder.sandbox_id == sandbox.id
        if here and record.state is State.ATTACHED:
            return next((fact.message for fact in record.facts if fact.phase is Phase.LOST), None)
        if record.holder is not None and not here:
            return words.in_use(record, sandbox.pod)
        return next((f.message for f in record.facts if f.phase is Phase.ATTACH_FAILED and f.message), "")

    def refused(
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
        self._outlets.announce(pod, [record.ref for record in records], reason, text)
        for record in records:
            if keep or (record.holder is not None and record.holder.pod.uid != pod.uid):
                continue
            facts = tuple(
                words.fact(device, Phase.ATTACH_FAILED, reason=reason, message=text, step=step)
                for device in record.plan.devices
            )
            now = self._journal.get(record.uid)
            if now is None or now.state is State.ATTACHED:
                # Somebody else has got on with it meanwhile, and tells what became of it.
                continue
            try:
                changed = self._journal.set_facts(record.uid, facts, state=now.state)
            except JournalError as error:
                LOG.warning("facts not recorded", extra=fields(claim=record.uid, error=error))
                changed = replace(now, facts=facts)
            if changed is not None:
                with self._telling:
                    self._outlets.facts(words.of_record(changed))
        return HookError(text)

    def _check_other_holders(
        self, records: Sequence[ClaimRecord], record: ClaimRecord, device: DevicePlan, sandbox: SandboxRef
    ) -> None:
        for other in self._journal.of_device(device.key.device):
            held = other.uid != record.uid and other.holder is not None
            if held and any(device.excludes(theirs) for theirs in other.plan.devices):
                raise self.refused(records, sandbox.pod, "DeviceInUse", str(ConflictError(device, other)))
