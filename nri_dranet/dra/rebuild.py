"""Claims that pods on this node use and the journal does not know: taken in again from kernel, runtime and API.

The journal and the copies of its rows were lost, or another driver of this name attached the devices before this one
came. Once the runtime has listed its sandboxes, each pod that uses such a claim is looked into: a device that is there
is left as it is, recorded, and given back when the pod ends. One that is not there is prepared as kubelet would have
it, so that the reconciler attaches it.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.api.document import keep_repeated
from nri_dranet.claims.allocation import ClaimError, parse_claim
from nri_dranet.claims.facts import Phase
from nri_dranet.claims.lifecycle import State
from nri_dranet.claims.model import PodRef
from nri_dranet.claims.record import ClaimRecord, Holder
from nri_dranet.dra import remains
from nri_dranet.dra.handler import PrepareError
from nri_dranet.kube.client import ApiError
from nri_dranet.kube.resources import claim_path, slices_path
from nri_dranet.netlink.namespaces import NamespaceGoneError, NetNs
from nri_dranet.netlink.sockets import RtnlSocket
from nri_dranet.reconcile import words
from nri_dranet.reconcile.locks import DeviceBusyError
from nri_dranet.store.database import JournalError
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nri_dranet.claims.allocation import Claim
    from nri_dranet.claims.model import ClaimRef
    from nri_dranet.dra.plan_inputs import PlanInputs
    from nri_dranet.dra.prepare import Preparer
    from nri_dranet.kube.client import KubeClient
    from nri_dranet.kube.pods import PodCache, PodInfo
    from nri_dranet.netlink.model import Link
    from nri_dranet.reconcile.keeper import Keeper
    from nri_dranet.reconcile.ports import Attacher
    from nri_dranet.reconcile.sandboxes import SandboxRef

LOG = logging.getLogger(__name__)

THREAD: Final = "rebuild"

PERIOD: Final = 2.0
"""Seconds between two tries while the API server, or the runtime's list, is waited for."""

_KEPT_SECONDS: Final = 120.0
"""Seconds for which former devices stay published while nobody has judged them: the runtime may never come."""

_NOT_FOUND: Final = 404


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Whose devices: the driver's name, the node's, and whether the journal was begun anew in this life."""

    driver: str
    name: str
    fresh: bool


class Rebuilder:
    """Looks for claims without a record once in a life, after the runtime's first list. A thread of its own."""

    def __init__(
        self,
        node: Node,
        *,
        api: KubeClient,
        pods: PodCache,
        keeper: Keeper,
        engine: Attacher,
        preparer: Preparer,
        inputs: PlanInputs,
        event: Callable[[ClaimRef, str, str], None],
        compare: Callable[[], None],
        period: float = PERIOD,
    ) -> None:
        """Prepare to look.

        Args:
            node: the driver, the node, the journal's age.
            api: the API server.
            pods: the node's pods.
            keeper: the claims.
            engine: looks at devices in pods.
            preparer: prepares a claim whose device is on the host.
            inputs: tells of the node what a plan needs.
            event: told of each claim that was taken in: claim, reason, message.
            compare: asks the reconciler to look at what was recorded.
            period: seconds between two tries.
        """
        self._node = node
        self._api = api
        self._pods = pods
        self._keeper = keeper
        self._engine = engine
        self._preparer = preparer
        self._inputs = inputs
        self._event = event
        self._compare = compare
        self._period = period
        self._waiting: list[tuple[PodInfo, str]] | None = None
        self._lock = threading.Lock()
        self._published: dict[str, Mapping[str, Any]] | None = None if node.fresh else {}
        self._until = time.monotonic() + _KEPT_SECONDS
        self._done = False
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=THREAD, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is being looked at is finished first."""
        self._stop.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def wake(self) -> None:
        """The runtime may have listed its sandboxes: look soon. Never blocks."""
        self._wake.set()

    def former(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the devices that the slices had before a journal that was begun anew, until all are judged.

        The publisher asks before its first write, which would take from the slices what nobody else knows.
        """
        if self._done or time.monotonic() > self._until:
            return {}
        try:
            return self._former()
        except ApiError as error:
            LOG.info("the former slices cannot be read", extra=fields(error=error))
            return {}

    def _former(self) -> Mapping[str, Mapping[str, Any]]:
        with self._lock:
            if self._published is None:
                selector = f"spec.nodeName={self._node.name},spec.driver={self._node.driver}"
                answer = self._api.get(slices_path(), {"fieldSelector": selector})
                specs = [item.get("spec") or {} for item in answer.get("items") or []]
                self._published = {
                    str(device.get("name")): device
                    for spec in specs
                    if (spec.get("pool") or {}).get("name") == self._node.name
                    for device in spec.get("devices") or []
                }
            return self._published

    # ---- inside

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(None if self._done else self._period)
            self._wake.clear()
            if self._stop.is_set() or self._done:
                continue
            try:
                self._done = self.look()
            except Exception:  # the thread must live: it is tried again after the period
                LOG.exception("claims without a record cannot be looked for now")

    def look(self) -> bool:
        """Judge the pods of the first list; False while something is still to be waited for.

        Those that come later are prepared by kubelet: a claim of theirs without a record was released.
        """
        if not (self._keeper.sandboxes.synchronized and self._pods.listed):
            return False
        if self._waiting is None:
            self._waiting = [(pod, name) for pod in self._pods.all() for name in dict.fromkeys(pod.claims.values())]
        self._waiting = [(pod, name) for pod, name in self._waiting if not self._settled(pod, name)]
        return not self._waiting

    def _settled(self, pod: PodInfo, name: str) -> bool:
        """Judge one claim of a pod; False: it cannot be judged now."""
        if self._stop.is_set():
            # Each of many would wait for an API server that does not answer, and the end of this life with them.
            return False
        running = self._keeper.sandboxes.of_pod(pod.uid)
        if (not running and not self._node.fresh) or self._recorded(pod, name):
            return True
        try:
            self._judge(pod, name, running[-1] if running else None)
        except (ApiError, DeviceBusyError, JournalError, OSError) as error:
            LOG.info("a claim is judged later", extra=fields(claim=f"{pod.namespace}/{name}", error=error))
            return False
        return True

    def _recorded(self, pod: PodInfo, name: str) -> bool:
        return any(
            (record.ref.namespace, record.ref.name) == (pod.namespace, name)
            for record in self._keeper.journal.of_pod(pod.uid)
        )

    def _judge(self, pod: PodInfo, name: str, sandbox: SandboxRef | None) -> None:
        """Take a claim in, where it is this driver's and nothing is known of it.

        Raises:
            ApiError: the API server does not answer.
            DeviceBusyError, JournalError, OSError: it cannot be recorded, or looked at, now.
        """
        try:
            raw = self._api.get(claim_path(pod.namespace, name), members=keep_repeated)
            claim = parse_claim(raw)
        except ClaimError as error:
            LOG.warning("a claim cannot be read", extra=fields(claim=f"{pod.namespace}/{name}", error=error))
            return
        except ApiError as error:
            if error.status == _NOT_FOUND:
                return
            raise
        results = claim.results_of(self._node.driver)
        mine = all(result.pool == self._node.name for result in results)
        reserved = PodRef(pod.namespace, pod.name, pod.uid) in claim.pods
        if not (results and mine and reserved) or self._keeper.journal.get(claim.ref.uid) is not None:
            return
        moving = [result for result in results if not result.admin_access and result.share_id is None]
        if sandbox is not None and sandbox.netns_path and moving:
            found = remains.find(moving, _links(sandbox.netns_path), self._former(), raw)
            if found:
                self._take_in(claim, pod, sandbox, found, len(moving) - len(found))
                return
        strange = [result for result in moving if not self._inputs.knows(result.device)]
        if strange:
            # Hardware that came home by itself has the name that it had in the pod.
            found = remains.find(strange, _links(""), self._former(), raw)
            self._bring_home(claim, pod, found)
        self._prepare(claim, sandbox)

    def _prepare(self, claim: Claim, sandbox: SandboxRef | None) -> None:
        """Do what kubelet had done before the record was lost; it does it once for a pod only."""
        try:
            self._preparer.prepare(claim.ref)
        except PrepareError as error:
            # It is told already, in the claim's status and by an Event.
            LOG.warning("a claim without a record is not prepared", extra=fields(claim=claim.ref.uid, error=error))
            return
        LOG.info("a claim without a record was prepared", extra=fields(claim=claim.ref.uid, name=claim.ref))
        if sandbox is not None:
            self._compare()

    def _bring_home(self, claim: Claim, pod: PodInfo, found: Sequence[remains.Found]) -> None:
        """Give devices that are on the host under a foreign name what is known of their former state.

        Raises:
            DeviceBusyError, JournalError, OSError: it cannot be done now.
        """
        if not found:
            return
        plan = remains.plan(claim, self._node.driver, found, self._inputs.node(), pod.requests_of(claim.ref.name))
        for device, outcome in zip(plan.devices, self._engine.detach(plan.devices, None, hints={}), strict=True):
            metrics.RECONCILE_ACTIONS.labels("record rebuilt").inc()
            text = (
                f"the node had no record of this claim; its device {device.label} was on the host under another name "
                f"and was given what is known of its former state: {remains.known_of_host(device)}"
            )
            problems = "; ".join(outcome.problems)
            LOG.warning(
                "a device was brought home without a record",
                extra=fields(claim=claim.ref.uid, name=claim.ref, device=device.label, problems=problems or None),
            )
            self._event(claim.ref, "RecordRebuilt", f"{text}; but: {problems}" if problems else text)

    def _take_in(
        self, claim: Claim, pod: PodInfo, sandbox: SandboxRef, found: Sequence[remains.Found], missing: int
    ) -> None:
        """Record that a claim's devices are in a pod.

        Raises:
            DeviceBusyError, JournalError, OSError: it cannot be recorded now.
        """
        plan = remains.plan(claim, self._node.driver, found, self._inputs.node(), pod.requests_of(claim.ref.name))
        with NetNs.open(sandbox.netns_path) as netns:
            facts = self._engine.look(plan.devices, netns, {})
            holder = Holder(
                pod=sandbox.pod, sandbox_id=sandbox.id, netns_path=sandbox.netns_path, netns_inode=netns.inode
            )
        lost = [fact.message for fact in facts if fact.phase is Phase.LOST]
        record = ClaimRecord(plan=plan, state=State.ATTACHED, holder=holder, facts=facts)
        if not self._keeper.adopt(record):
            return
        self._compare()
        metrics.RECONCILE_ACTIONS.labels("record rebuilt").inc()
        known = "; ".join(f"of {device.label} {remains.known_of_host(device)}" for device in plan.devices)
        text = (
            f"the node had no record of this claim; its devices were found in pod {sandbox.pod} "
            f"({words.devices_text(plan)}) and are left as they are. When the pod ends they are given back with what "
            f"is known of their former state: {known}"
        )
        if missing or lost:
            text += f"; {missing + len(lost)} further device(s) of the claim were not found"
        LOG.warning(
            "a claim's record was rebuilt",
            extra=fields(
                claim=claim.ref.uid, name=claim.ref, pod=sandbox.pod, devices=words.devices_text(plan), known=known
            ),
        )
        self._event(claim.ref, "RecordRebuilt", text)


def _links(path: str) -> list[Link]:
    """Read the interfaces of a pod, "" of the host; none where the namespace is gone.

    Raises:
        OSError: the kernel refuses.
    """
    try:
        netns = NetNs.open(path) if path else NetNs.current()
    except NamespaceGoneError:
        return []
    with netns, RtnlSocket(netns) as socket:
        return socket.links()
