"""The reconciler: compares journal, kernel and runtime, and puts right what they disagree on.

A dead process, a lost event or a vanished sandbox leave such differences.
It runs after the runtime has listed its sandboxes, whenever something asks for it, when the node's links change, and
slowly all the time. It judges nothing before the runtime has spoken: an unknown sandbox is not a dead one.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from nri_dranet.claims.facts import Phase
from nri_dranet.claims.lifecycle import State
from nri_dranet.receipt.receipts import ReceiptError, Receipts
from nri_dranet.reconcile import words
from nri_dranet.reconcile.hooktypes import HookError
from nri_dranet.reconcile.locks import DeviceBusyError
from nri_dranet.reconcile.returns import NotReturnedError
from nri_dranet.store.database import JournalError
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable

    from nri_dranet.claims.facts import DeviceFacts
    from nri_dranet.claims.model import PodRef
    from nri_dranet.claims.plan import ClaimPlan
    from nri_dranet.claims.record import ClaimRecord
    from nri_dranet.reconcile.keeper import Keeper
    from nri_dranet.reconcile.ports import Attacher, Outlets
    from nri_dranet.reconcile.sandboxes import SandboxRef

LOG = logging.getLogger(__name__)

PERIOD: Final = 30.0
"""Seconds between two comparisons when nothing asks for one."""

LINKS_PAUSE: Final = 1.0
"""Seconds between two comparisons that only links asked for: a storm of events is not a storm of comparisons."""

ATTACH_SECONDS: Final = 10.0
"""What a late attach may take: no runtime waits for it."""

_LOCK_SECONDS: Final = 1.0


class Reconciler:
    """A thread that keeps claims as the runtime's sandboxes demand."""

    def __init__(
        self,
        keeper: Keeper,
        engine: Attacher,
        receipts: Receipts,
        outlets: Outlets,
        *,
        period: float = PERIOD,
        end: Callable[[PodRef], None] = lambda _: None,
    ) -> None:
        """Prepare to compare.

        Args:
            keeper: the claims.
            engine: looks at devices.
            receipts: the receipts, which are swept too.
            outlets: where it says what it did.
            period: seconds between two comparisons when nothing asks for one.
            end: told of a pod that runs without its device and did not get it in two comparisons.
        """
        self._keeper = keeper
        self._engine = engine
        self._receipts = receipts
        self._outlets = outlets
        self._period = period
        self._end = end
        self._told: set[str] = set()
        self._without: dict[str, str] = {}
        self._compared = 0.0
        self._links = False
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is being compared is finished first."""
        self._stop.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def wake(self) -> None:
        """Ask for a comparison soon. Never blocks."""
        self._wake.set()

    def links_changed(self) -> None:
        """The node's interfaces have changed: one may have come home. Never blocks."""
        self._links = True
        if time.monotonic() - self._compared > LINKS_PAUSE:
            self._wake.set()

    def sweep(self) -> None:
        """Compare everything once. Never raises: a claim that cannot be judged now is judged next time."""
        if not self._keeper.sandboxes.synchronized:
            return
        for record in self._keeper.journal.records():
            if self._stop.is_set():
                return
            try:
                with self._keeper.holding([record.uid], until=time.monotonic() + _LOCK_SECONDS) as current:
                    for each in current:
                        self._judge(each)
                        self._tell_once(each.uid)
            except DeviceBusyError:
                # Whoever moves it now may leave a difference behind.
                LOG.debug("claim is judged later", extra=fields(claim=record.uid))
            except (JournalError, NotReturnedError) as error:
                LOG.error("claim cannot be put right", extra=fields(claim=record.uid, error=error))  # noqa: TRY400
            except Exception:  # one claim that cannot be judged must not keep the others from it
                LOG.exception("claim cannot be put right", extra=fields(claim=record.uid))
        self._without = {uid: pod for uid, pod in self._without.items() if self._keeper.journal.get(uid) is not None}
        self._look_for_strays()
        self._sweep_receipts()

    def _look_for_strays(self) -> None:
        """Restore devices that were nowhere when they should have come home, and are on the host now."""
        journal = self._keeper.journal
        for device in journal.strays():
            name = device.key.device
            try:
                with self._keeper.locks.hold({name}, until=time.monotonic() + _LOCK_SECONDS):
                    if any(record.held or device not in record.plan.devices for record in journal.of_device(name)):
                        # It is known again, and who uses it now must not lose it; it is judged when that has ended.
                        continue
                    (outcome,) = self._engine.detach([device], None, hints={})
                    if outcome.home:
                        journal.remove_stray(name)
            except (DeviceBusyError, JournalError) as error:
                LOG.warning("a missing device is looked for later", extra=fields(device=device.label, error=error))
                continue
            if outcome.home:
                metrics.RECONCILE_ACTIONS.labels("came home late").inc()
                problems = "; ".join(outcome.problems) or None
                LOG.warning(
                    "a device that was missing came home and was restored",
                    extra=fields(device=device.label, problems=problems),
                )

    def _tell_once(self, uid: str) -> None:
        """Tell the facts of a claim once in this life, also when they are as recorded.

        The life before may have recorded them and died before they were written.
        """
        record = self._keeper.journal.get(uid)
        if record is not None and uid not in self._told:
            self._keeper.tell(record)
            self._outlets.refresh(uid)
        self._told = {
            known.uid for known in self._keeper.journal.records() if known.uid in self._told or known.uid == uid
        }

    def _run(self) -> None:
        # A receipt that outlived its claim (a reboot, a lost journal row) must not wait for the runtime to come.
        self._sweep_receipts()
        while not self._stop.is_set():
            self._wake.wait(LINKS_PAUSE if self._links else self._period)
            self._wake.clear()
            self._links = False
            if not self._stop.is_set():
                self.sweep()
                self._compared = time.monotonic()

    def _judge(self, record: ClaimRecord) -> None:
        sandbox = self._sandbox_of(record)
        if record.held and sandbox is None:
            self._count("given back", record)
            self._keeper.leave([record])
        elif record.state is State.DETACHING:
            self._count("giving back finished", record)
            (after,) = self._keeper.returns.give_back([record])
            if (running := self._sandbox_of(after)) is not None:
                self._attach_late(after, running)
        elif record.state is State.ATTACHED and sandbox is not None:
            self._verify(record, sandbox)
        elif sandbox is not None:
            self._attach_late(record, sandbox)

    def _sandbox_of(self, record: ClaimRecord) -> SandboxRef | None:
        """The running sandbox that the claim's devices are in, or should be in."""
        if record.holder is not None:
            return self._keeper.sandboxes.get(record.holder.sandbox_id)
        for pod in (record.successor or record.plan).pods:
            running = self._keeper.sandboxes.of_pod(pod.uid)
            if running:
                return running[-1]
        return None

    def _attach_late(self, record: ClaimRecord, sandbox: SandboxRef) -> None:
        """Attach what a sandbox should have got while this program was away."""
        self._count("attached late", record)
        try:
            self._keeper.admit(sandbox, [record.uid], time.monotonic() + ATTACH_SECONDS)
        except HookError as error:
            LOG.error(  # noqa: TRY400 - the text says all
                "a pod runs without its device", extra=fields(pod=sandbox.pod, claim=record.uid, error=error)
            )
            if self._without.get(record.uid) == sandbox.pod.uid:
                self._end(sandbox.pod)
            self._without[record.uid] = sandbox.pod.uid
            return
        self._without.pop(record.uid, None)
        if record.state is State.ATTACHING and record.holder is None:
            # Of a restored row nobody knew that its devices were in the pod all the time.
            return
        text = f"device {words.devices_text(record.plan)} was attached after the pod's sandbox had started"
        self._outlets.announce(sandbox.pod, [record.ref], "DeviceAttachedLate", text, warning=False)

    def _verify(self, record: ClaimRecord, sandbox: SandboxRef) -> None:
        """See that an attached claim is watched, has its receipt, and that its facts are the kernel's."""
        if record.holder is None:
            return
        netns = self._keeper.namespaces.of(record.holder)
        hints = {f.key: f.interface for f in record.facts if f.interface is not None}
        facts = self._engine.look(record.plan.devices, netns, hints)
        self._keeper.observed(record.uid, facts)
        if netns is not None:
            now = self._keeper.journal.get(record.uid) or record
            # What was told here may be old already, and the observer tells only what differs from its own last look.
            self._keeper.watch(now, netns, anew=now.facts != record.facts)
        lost = any(fact.phase is Phase.LOST for fact in facts)
        if not lost and self._receipts.missing(record.plan):
            self._rewrite_receipt(record.plan, facts, sandbox)

    def _rewrite_receipt(self, plan: ClaimPlan, facts: tuple[DeviceFacts, ...], sandbox: SandboxRef) -> None:
        nodes = words.char_devices(plan, facts) if plan.listed_by else []
        try:
            self._receipts.write(plan, facts, nodes)
        except ReceiptError as error:
            self._outlets.announce(sandbox.pod, [plan.ref], "ReceiptNotWritten", str(error))

    def _sweep_receipts(self) -> None:
        try:
            removed = self._receipts.sweep(
                lambda: [r.plan for r in self._keeper.journal.records() if r.state in (State.ATTACHED, State.ATTACHING)]
            )
        except OSError as error:
            LOG.error("receipts cannot be looked at", extra=fields(error=error))  # noqa: TRY400 - the text says all
            return
        if removed:
            LOG.info("receipts without an attached claim removed", extra=fields(files=",".join(removed)))

    def _count(self, action: str, record: ClaimRecord) -> None:
        metrics.RECONCILE_ACTIONS.labels(action).inc()
        LOG.info(
            f"reconcile: {action}",  # noqa: G004 - the action is one of a few fixed words
            extra=fields(
                claim=record.uid, name=record.ref, devices=words.devices_text(record.plan), state=record.state.value
            ),
        )
