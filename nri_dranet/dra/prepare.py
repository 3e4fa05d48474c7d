"""Prepare and Unprepare: from kubelet's call to a recorded plan.

Everything slow happens here, so that the hook only carries the plan out: the claim is fetched, its configuration
merged and checked, the host's state read, the plan recorded. What can be known here is refused here: kubelet repeats
a refused Prepare cheaply, a refused sandbox not.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from nri_dranet.api.document import keep_repeated
from nri_dranet.claims.allocation import AllocationResult, Claim, ClaimError, parse_claim
from nri_dranet.claims.facts import ClaimFacts, Phase
from nri_dranet.dhcp import client
from nri_dranet.dhcp.errors import DhcpError
from nri_dranet.dra import leasing
from nri_dranet.dra.handler import PreparedDevice, PrepareError, SlowClaimError
from nri_dranet.dra.plan_model import PlanError
from nri_dranet.dra.planner import plan_claim
from nri_dranet.dra.refusal import prepare_failed
from nri_dranet.dra.retries import Retries
from nri_dranet.kube.client import ApiError
from nri_dranet.kube.events import MAX_MESSAGE
from nri_dranet.kube.resources import claim_path
from nri_dranet.reconcile import words
from nri_dranet.reconcile.judge import ConflictError
from nri_dranet.reconcile.locks import DeviceBusyError
from nri_dranet.reconcile.returns import NotReturnedError
from nri_dranet.store.database import JournalError
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from nri_dranet.claims.model import ClaimRef, PodRef
    from nri_dranet.claims.plan import ClaimPlan
    from nri_dranet.claims.record import ClaimRecord
    from nri_dranet.dra.leasing import Leases, Leasing
    from nri_dranet.dra.plan_inputs import PlanInputs
    from nri_dranet.dra.turns import Turns
    from nri_dranet.kube.decode import Members
    from nri_dranet.reconcile.keeper import Keeper

LOG = logging.getLogger(__name__)

T = TypeVar("T")

_REASONS: Final[Mapping[type[Exception], str]] = {
    PlanError: "InvalidConfiguration",
    DhcpError: "LeaseNotObtained",
    ConflictError: "DeviceInUse",
    DeviceBusyError: "DeviceBusy",
    JournalError: "JournalFailed",
    NotReturnedError: "DeviceNotReturned",
    OSError: "DeviceUnreadable",
}
"""Why a claim is not prepared, in one word (docs/user/status.md)."""

_FAILURES: Final[tuple[type[Exception], ...]] = (PrepareError, ClaimError, *_REASONS)
"""What stands against a plan; all of it may pass."""

_NOT_FOUND: Final = 404


class Reader(Protocol):
    """Reads one object of the API server (``kube.client.KubeClient``)."""

    def get(self, path: str, *, members: Members | None = None) -> dict[str, Any]:
        """Return the object, each JSON object made by ``members``; raises ``ApiError``."""
        ...


@dataclass(frozen=True, slots=True)
class PodUse:
    """How a pod uses a claim: on the host's network or not, and which container lists which of its requests.

    ``requests`` maps a container's name to the requests of this claim that it lists; "" stands for the whole claim.
    """

    host_network: bool = False
    requests: Mapping[str, tuple[str, ...]] | None = None


class Pods(Protocol):
    """Knows the pods of this node."""

    def use_of(self, pod: PodRef, claim_name: str) -> PodUse | None:
        """Return how a pod uses a claim; None when the pod cannot be read. Never raises."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """Where a refusal is told. Neither blocks nor raises."""

    facts: Callable[[ClaimFacts], None]
    event: Callable[[PodRef | ClaimRef, str, str, bool], None]


class Preparer:
    """Kubelet's two calls for one claim. Thread-safe."""

    def __init__(
        self,
        *,
        driver: str,
        node: str,
        api: Reader,
        keeper: Keeper,
        inputs: PlanInputs,
        pods: Pods,
        reports: Reports,
        turns: Turns,
        leasing: Leasing,
        keep: Callable[[ClaimPlan], None] = lambda _: None,
    ) -> None:
        self._driver = driver
        self._node = node
        self._api = api
        self._keeper = keeper
        self._inputs = inputs
        self._pods = pods
        self._reports = reports
        # Told each plan once it is recorded: BPF programs of the host that it will need are kept from then on.
        self._keep_programs = keep
        self._turns = turns
        self._leasing = leasing
        self._told: dict[str, tuple[str, tuple[PodRef, ...]]] = {}
        self.retries = Retries(self.look_again)

    # ---- kubelet's calls

    def prepare(self, ref: ClaimRef, *, patient: bool = True) -> Sequence[PreparedDevice]:
        """Plan and record a claim; answer with its devices.

        Args:
            ref: the claim.
            patient: wait for DHCP servers.

        Raises:
            PrepareError: it cannot be prepared; the text is for the pod's Event.
            SlowClaimError: a DHCP server would have to be waited for; nothing is recorded.
        """
        try:
            claim = self._fetch(ref)
        except PrepareError as error:
            LOG.warning("claim not prepared", extra=fields(claim=ref.uid, name=ref, error=error))
            raise
        results = claim.results_of(self._driver)
        if not results:
            return []
        try:
            record = self._recall(claim) or self._keep(claim, patient=patient)
        except tuple(_REASONS) as error:
            raise self._refusal(claim, error) from error
        plan = record.successor or record.plan
        LOG.info(
            "claim prepared",
            extra=fields(
                claim=claim.ref.uid,
                name=claim.ref,
                pods=",".join(str(pod) for pod in claim.pods),
                devices=",".join(device.label for device in plan.devices),
            ),
        )
        return [
            PreparedDevice(
                request_names=(device.main_request,),
                pool=device.key.pool,
                device=device.key.device,
                cdi_ids=(device.receipt_id,) if device.receipt_id else (),
                share_id=device.key.share_id,
            )
            for device in plan.devices
        ]

    def unprepare(self, ref: ClaimRef) -> None:
        """Release a claim. Needs no API server; an unknown claim is no error.

        Raises:
            PrepareError: something could not be released now; kubelet tries again.
        """
        try:
            self._keeper.unprepare(ref)
        except (DeviceBusyError, JournalError, NotReturnedError) as error:
            LOG.warning("claim not released", extra=fields(claim=ref.uid, name=ref, error=error))
            raise PrepareError(f"claim {ref} cannot be released now: {error}") from error

    # ---- a held claim that changed

    def claim_changed(self, ref: ClaimRef, raw: Mapping[str, Any] | None) -> None:
        """Take in what the watch shows of a held claim: its pods, or another allocation (see ``dra.held``).

        What cannot be planned is told and tried again: nobody else asks for it before kubelet starts the next pod.
        """
        with self._turns.hold([f"claim {ref.uid}"]):
            record = self._keeper.journal.get(ref.uid)
            if record is None or raw is None:
                self._settled(ref)
                if record is not None:
                    self._gone(record)
                return
            claim: Claim | None = None
            try:
                claim = parse_claim(raw)
                if claim.allocated and claim.pods:
                    self._follow(record, claim)
            except _FAILURES as error:
                self._not_planned(record, claim, error)
                return
            if self._settled(ref):
                self._say_planned(ref)

    def look_again(self, ref: ClaimRef) -> None:
        """Try again what ``claim_changed`` could not do."""
        raw: Mapping[str, Any] | None
        try:
            raw = self._api.get(claim_path(ref.namespace, ref.name), members=keep_repeated)
        except ApiError as error:
            if error.status != _NOT_FOUND:
                self.retries.put(ref)
                return
            raw = None
        if raw is not None and (raw.get("metadata") or {}).get("uid") != ref.uid:
            raw = None
        self.claim_changed(ref, raw)

    def _follow(self, record: ClaimRecord, claim: Claim) -> None:
        if claim.allocation_hash(self._driver) in _hashes(record):
            self._remember(record, claim)
        else:
            # Read again: what the watch shows may be old.
            self._keep(self._fetch(claim.ref))

    def _settled(self, ref: ClaimRef) -> bool:
        """Note that nothing of a claim waits to be tried again; tell whether something did."""
        self._told.pop(ref.uid, None)
        return self.retries.drop(ref.uid)

    def _not_planned(self, record: ClaimRecord, claim: Claim | None, error: Exception) -> None:
        """Say why a held claim's next pod cannot be prepared, once for each cause, and try again."""
        ref = record.ref
        self.retries.put(ref)
        pods = [pod for pod in claim.pods if pod not in record.plan.pods] if claim is not None else []
        cause = (str(error), tuple(pods))
        if self._told.get(ref.uid) == cause:
            return
        self._told[ref.uid] = cause
        reason, text = _reason(error), _text(error)
        LOG.warning("next pod of a held claim not prepared", extra=fields(claim=ref.uid, error=text))
        if claim is not None and not isinstance(error, PrepareError | ClaimError):
            self._tell_status(claim, claim.results_of(self._driver), reason, text)
        self._announce(ref, pods, reason, f"the next pod of claim {ref} cannot be prepared: {text}; it is tried again")

    def _say_planned(self, ref: ClaimRef) -> None:
        LOG.info("next pod of a held claim prepared after all", extra=fields(claim=ref.uid))
        record = self._keeper.journal.get(ref.uid)
        if record is not None and record.successor is not None:
            # Else the refusal would stay in the status until the device is in its pod.
            self._reports.facts(ClaimFacts(ref=ref, devices=words.facts(record.successor, Phase.PREPARED)))

    def _gone(self, record: ClaimRecord) -> None:
        """A claim that no longer exists is released, unless a running sandbox still has its devices."""
        holder = record.holder
        if holder is not None and self._keeper.sandboxes.get(holder.sandbox_id) is not None:
            return
        if not self._keeper.sandboxes.synchronized:
            return
        try:
            self._keeper.unprepare(record.ref)
        except (DeviceBusyError, JournalError, NotReturnedError) as error:
            LOG.warning("a claim that is gone is released later", extra=fields(claim=record.uid, error=error))

    # ---- inside

    def _fetch(self, ref: ClaimRef) -> Claim:
        try:
            claim = parse_claim(self._api.get(claim_path(ref.namespace, ref.name), members=keep_repeated))
        except ApiError as error:
            raise PrepareError(f"claim {ref} cannot be read from the API server: {error}") from error
        except ClaimError as error:
            raise PrepareError(f"claim {ref}: {error}") from error
        if claim.ref.uid != ref.uid:
            raise PrepareError(
                f"claim {ref} was replaced: kubelet asks for UID {ref.uid}, the API server has {claim.ref.uid}"
            )
        if not claim.allocated:
            raise PrepareError(f"claim {ref} is not allocated")
        if claim.other_consumers:
            raise PrepareError(
                f"claim {ref} is reserved for {', '.join(claim.other_consumers)}; "
                f"devices of {self._driver} go to pods only"
            )
        if claim.node_name is not None and claim.node_name != self._node:
            raise PrepareError(f"claim {ref} is allocated on node {claim.node_name}, this is node {self._node}")
        return claim

    def _recall(self, claim: Claim) -> ClaimRecord | None:
        """A claim that is in a pod already, or on its way: nothing of it is planned again."""
        record = self._keeper.journal.get(claim.ref.uid)
        if record is None or not record.held:
            return None
        return self._remember(record, claim) if claim.allocation_hash(self._driver) in _hashes(record) else None

    def _remember(self, record: ClaimRecord, claim: Claim) -> ClaimRecord | None:
        allocation = claim.allocation_hash(self._driver)
        current = allocation == record.plan.allocation_hash
        plan = record.plan if current else record.successor
        if plan is not None and set(claim.pods) == set(plan.pods) and not (current and record.successor):
            return record
        return self._keeper.remember_pods(record.uid, claim.pods, self._listed_by(claim), allocation_hash=allocation)

    def _keep(self, claim: Claim, *, patient: bool = True) -> ClaimRecord:
        try:
            return self._planned(claim, self._keeper.prepare, patient=patient)
        except ConflictError as error:
            if not self._makes_way(error.other, patient=patient):
                raise
        return self._planned(claim, self._keeper.prepare, patient=patient)

    def _turn(self, claim: Claim) -> AbstractContextManager[None]:
        """Wait until no claim of the same pods or on the same devices is being planned."""
        pods = {f"pod {pod.uid}" for pod in claim.pods}
        return self._turns.hold(pods | {f"device {result.device}" for result in claim.results_of(self._driver)})

    def _planned(self, claim: Claim, record: Callable[[ClaimPlan], T], *, patient: bool) -> T:
        """Plan a claim and record that; leases are waited for in between, where that holds up nobody else."""
        with self._turn(claim):
            plan = self._plan(claim)
            if not leasing.wanting(plan):
                return self._recorded(plan, record)
            self._keeper.judge.refuse_conflicts(plan)
        if not patient:
            raise SlowClaimError
        fresh = self._leasing.acquire(plan, self._keeper.journal.get(claim.ref.uid))
        try:
            with self._turn(claim):
                plan = self._plan(claim, fresh)
                leasing.check_complete(plan)
                return self._recorded(plan, record)
        except BaseException:
            self._leasing.give_back(plan, fresh, self._keeper.journal.get(claim.ref.uid))
            raise

    def _recorded(self, plan: ClaimPlan, record: Callable[[ClaimPlan], T]) -> T:
        done = record(plan)
        self._keep_programs(plan)
        return done

    def _plan(self, claim: Claim, fresh: Leases | None = None) -> ClaimPlan:
        self._refuse_foreign(claim)
        results = claim.results_of(self._driver)
        devices, hosts = self._inputs.read(claim, results)
        return plan_claim(
            claim,
            self._driver,
            devices,
            hosts,
            node=self._inputs.node(),
            others=[record.plan for record in self._keeper.journal.records() if record.uid != claim.ref.uid],
            listed_by=self._listed_by(claim),
            leases={**leasing.known(self._keeper.journal.get(claim.ref.uid), client.now()), **(fresh or {})},
        )

    def _refuse_foreign(self, claim: Claim) -> None:
        results = claim.results_of(self._driver)
        for result in results:
            if result.pool != self._node:
                text = f"device {result.device} is of pool {result.pool}, this node has pool {self._node}"
                raise self._refuse(claim, results, "ForeignPool", text)
        moves = any(not result.admin_access for result in results)
        for pod in claim.pods:
            use = self._pods.use_of(pod, claim.ref.name)
            if use is not None and use.host_network and moves and self._inputs.any_interface(results):
                text = (
                    f"pod {pod} uses the host network (hostNetwork: true), so no interface of claim {claim.ref.name} "
                    "can be moved into it; remove hostNetwork from the pod, or the claim"
                )
                raise self._refuse(claim, results, "HostNetwork", text)

    def _listed_by(self, claim: Claim) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for pod in claim.pods:
            use = self._pods.use_of(pod, claim.ref.name)
            if use is not None and use.requests:
                found.update(use.requests)
        return found

    def _makes_way(self, other: ClaimRecord, *, patient: bool) -> bool:
        """Release a claim that stands in the way if the API server says that it has these devices no more.

        A claim that is gone is forgotten. One that lives but was allocated anew, or is not allocated now, is planned
        anew: kubelet calls no Prepare for its next pod, which must not start unknown.

        Raises:
            DeviceBusyError, JournalError, NotReturnedError: it cannot be released now.
        """
        sandboxes = self._keeper.sandboxes
        runs = other.holder is not None and sandboxes.get(other.holder.sandbox_id) is not None
        if runs or not sandboxes.synchronized:
            return False
        path = claim_path(other.ref.namespace, other.ref.name)
        try:
            claim = parse_claim(self._api.get(path, members=keep_repeated))
        except (ApiError, ClaimError) as error:
            if not isinstance(error, ApiError) or error.status != _NOT_FOUND:
                return False
            claim = None
        if claim is None or claim.ref.uid != other.uid:
            LOG.info("a claim that is gone is released for the next one", extra=fields(claim=other.uid))
            self._keeper.unprepare(other.ref)
            return True
        if {result.key for result in claim.results_of(self._driver)} & {device.key for device in other.plan.devices}:
            return False
        LOG.info("a claim that was allocated anew makes way", extra=fields(claim=other.uid))
        if claim.allocated and claim.results_of(self._driver):
            return self._replanned(claim, patient=patient)
        self._keeper.replan(
            replace(other.plan, allocation_hash=claim.allocation_hash(self._driver), devices=(), pods=())
        )
        return True

    def _replanned(self, claim: Claim, *, patient: bool) -> bool:
        """Let a claim's new allocation take effect; what stands against that is told of this claim and no other.

        The record stays as it is then: without the new device's plan the claim's next pod would start without it.
        """
        try:
            self._planned(claim, self._keeper.replan, patient=patient)
        except PrepareError:
            return False
        except (PlanError, ConflictError, DhcpError, OSError) as error:
            self._refusal(claim, error)
            return False
        return True

    def _refusal(self, claim: Claim, error: Exception) -> PrepareError:
        """Say everywhere why a claim is not prepared; return the error for kubelet."""
        return self._refuse(claim, claim.results_of(self._driver), _reason(error), _text(error))

    def _refuse(self, claim: Claim, results: Sequence[AllocationResult], reason: str, text: str) -> PrepareError:
        LOG.warning("claim not prepared", extra=fields(claim=claim.ref.uid, name=claim.ref, reason=reason, error=text))
        self._announce(claim.ref, claim.pods, reason, text)
        self._tell_status(claim, results, reason, text)
        return PrepareError(text)

    def _tell_status(self, claim: Claim, results: Sequence[AllocationResult], reason: str, text: str) -> None:
        """Tell the refusal in the claim's status, unless the same devices are in a pod."""
        record = self._keeper.journal.get(claim.ref.uid)
        if record is None or not record.held or claim.allocation_hash(self._driver) not in _hashes(record):
            self._reports.facts(prepare_failed(claim, results, reason, text))

    def _announce(self, ref: ClaimRef, pods: Iterable[PodRef], reason: str, text: str) -> None:
        """Tell the same on the claim and on its pods: a user looks at either."""
        subjects: list[PodRef | ClaimRef] = [ref, *pods]
        for subject in subjects:
            self._reports.event(subject, reason, text, True)


def _reason(error: Exception) -> str:
    return next((word for kind, word in _REASONS.items() if isinstance(error, kind)), "PrepareFailed")


def _text(error: Exception) -> str:
    if isinstance(error, PlanError):
        return error.summary(MAX_MESSAGE)
    if _reason(error) == "DeviceUnreadable":
        return f"the devices of the claim cannot be read from the kernel: {error}"
    return str(error)


def _hashes(record: ClaimRecord) -> set[str]:
    """The allocations that a record knows: the one in effect, and the next one."""
    return {plan.allocation_hash for plan in (record.plan, record.successor) if plan is not None}
