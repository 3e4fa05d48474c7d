"""Keeps the DHCP leases of the journal's claims: prolongs them in time, notes a loss, gives back what is over.

A lease belongs to a device of a claim. Where the device is in a pod, its server is asked from the pod's network
namespace and the address's lifetime is set anew; on the host, where nobody has the address, everybody is asked. What a
server said is recorded with the claim's plan, under the locks of its devices and never while an answer is awaited.

RFC 2131, section 4.4.5: a lease is prolonged from T1 on by its server, from T2 on by any; after a no, or when its time
is over, the address is taken off the interface at once. The kernel does that too, whether this program runs or not.
Afterwards a new lease is asked for until there is one.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from nri_dranet.claims.lifecycle import State
from nri_dranet.dhcp import client
from nri_dranet.dhcp.errors import DhcpError, LeaseLostError
from nri_dranet.dhcp.link import running
from nri_dranet.dra import leaseapply, leasing, plan_lease
from nri_dranet.reconcile.locks import DeviceBusyError
from nri_dranet.store.database import JournalError
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nri_dranet.claims.model import DeviceKey
    from nri_dranet.claims.plan import ClaimPlan, DevicePlan
    from nri_dranet.claims.record import ClaimRecord
    from nri_dranet.dhcp.lease import Lease
    from nri_dranet.dra.turns import Turns
    from nri_dranet.netlink.namespaces import NetNs
    from nri_dranet.reconcile.keeper import Keeper

LOG = logging.getLogger(__name__)

THREAD: Final = "leases"

_WORKERS: Final = 8
_ASK_SECONDS: Final = 10.0
"""How long an answer is waited for at a time."""
_LOCK_SECONDS: Final = 5.0
_RETRY: Final = 60.0
"""RFC 2131: the least time (seconds) between two attempts to prolong a lease."""
_LOST_RETRY: Final = 10.0
_LOST_RETRY_MOST: Final = 300.0
_BUSY_RETRY: Final = 1.0
_FUZZ: Final = 0.1
_RELEASES: Final = 3
_IDLE: Final = 300.0

Identity = tuple["str", "DeviceKey", "str"]
"""Claim UID, device and request."""


@dataclass(slots=True)
class _Held:
    """A lease as the journal has it, when it is to be worked at next (CLOCK_BOOTTIME), and how often that failed."""

    uid: str
    device: DevicePlan
    lease: Lease
    lost: bool
    due: float
    failures: int = 0
    busy: bool = False


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a device can be asked on; ``configured``: the interface has the address."""

    index: int
    netns: NetNs | None
    configured: bool


class LeaseKeeper:
    """A thread that watches the time, and a few that ask."""

    def __init__(self, keeper: Keeper, turns: Turns) -> None:
        """Prepare to keep.

        Args:
            keeper: the claims.
            turns: held for a device on the host that moves whole while it is asked on.
        """
        self._keeper = keeper
        self._turns = turns
        self._held: dict[Identity, _Held] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="lease")
        self._thread = threading.Thread(target=self._run, name=THREAD, daemon=True)

    def start(self) -> None:
        """Begin with what the journal has."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is over by now is given back first."""
        self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
            self._follow()
        self._pool.shutdown(wait=True)

    def refresh(self) -> None:
        """Look at the journal again soon. Never blocks."""
        self._wake.set()

    # ---- the thread

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._follow()
                self._begin_due()
            except Exception:  # leases end when this thread does: it goes on
                LOG.exception("the DHCP leases cannot be kept now")
            self._wake.wait(self._pause())
            self._wake.clear()

    def _pause(self) -> float:
        with self._lock:
            due = min((each.due for each in self._held.values() if not each.busy), default=client.now() + _IDLE)
        return min(max(due - client.now(), 0.0), _IDLE)

    def _follow(self) -> None:
        """Take in what the journal has now; give back the leases that it has no more."""
        with self._lock:
            over = self._take_in(self._recorded())
            for state, lost in (("valid", False), ("lost", True)):
                metrics.DHCP_LEASES.labels(state).set(sum(each.lost is lost for each in self._held.values()))
        for each in over:
            if not each.lost and each.lease.left(client.now()):
                self._pool.submit(self._give_back, each)

    def _recorded(self) -> dict[Identity, DevicePlan]:
        """Return the devices that have a lease; in the plan that is in effect where both plans of a claim have one."""
        found: dict[Identity, DevicePlan] = {}
        for record in self._keeper.journal.records():
            for plan in (record.successor, record.plan):
                for device in plan.devices if plan is not None else ():
                    if device.pod is not None and device.pod.lease is not None:
                        found[record.uid, device.key, device.request] = device
        return found

    def _take_in(self, present: dict[Identity, DevicePlan]) -> list[_Held]:
        """Follow the leases that are recorded now, and no others; return those that are over."""
        over = [self._held.pop(identity) for identity in self._held.keys() - present.keys()]
        for identity, device in present.items():
            if device.pod is None or device.pod.lease is None:
                continue
            lease, lost = device.pod.lease, bool(device.pod.lease_lost)
            known = self._held.get(identity)
            if known is None:
                self._held[identity] = _Held(identity[0], device, lease, lost, _due(lease, lost=lost))
                continue
            if known.lease.ip != lease.ip:
                over.append(replace(known))
            if (known.lease, known.lost) != (lease, lost):
                known.lease, known.lost, known.due, known.failures = lease, lost, _due(lease, lost=lost), 0
            known.device = device
        return over

    def _begin_due(self) -> None:
        now = client.now()
        with self._lock:
            due = [(identity, each) for identity, each in self._held.items() if each.due <= now and not each.busy]
            for _, each in due:
                each.busy = True
        for identity, each in due:
            self._pool.submit(self._work, identity, each)

    # ---- the workers

    def _work(self, identity: Identity, held: _Held) -> None:
        try:
            wait = self._ask_again(identity, held) if held.lost else self._prolong(identity, held)
        except (DeviceBusyError, JournalError) as error:
            LOG.warning("a DHCP lease is looked at again soon", extra=self._fields(held, error))
            wait = _BUSY_RETRY
        except Exception:  # one lease that cannot be kept must not keep the others from it
            LOG.exception("a DHCP lease cannot be kept", extra=self._fields(held))
            wait = _RETRY
        if wait is None:
            self._follow()
        with self._lock:
            held.busy = False
            if wait is not None or held.due <= client.now():
                held.due = client.now() + (_BUSY_RETRY if wait is None else wait)
        self._wake.set()

    def _prolong(self, identity: Identity, held: _Held) -> float | None:
        """Ask for more time; return how long to wait after a failure, None after a success."""
        lease = held.lease
        try:
            with self._place(held) as place:
                if place is None:
                    return _BUSY_RETRY
                renewed = client.renew(
                    lease,
                    place.index,
                    deadline=time.monotonic() + min(_ASK_SECONDS, max(0.0, lease.expires - client.now())),
                    netns=place.netns,
                    configured=place.configured,
                )
        except LeaseLostError as error:
            metrics.DHCP.labels("renew", "lost").inc()
            return self._lose(identity, held, str(error))
        except (DhcpError, OSError, ValueError) as error:
            metrics.DHCP.labels("renew", "failed").inc()
            held.failures += 1
            if client.now() >= lease.expires:
                text = f"the lease of {lease.ip} from DHCP server {lease.server} has expired: {leasing.words(error)}"
                return self._lose(identity, held, text)
            level = logging.WARNING if held.failures == 1 else logging.DEBUG
            LOG.log(level, "a DHCP lease was not prolonged yet", extra=self._fields(held, error))
            return _next_attempt(lease, client.now())
        metrics.DHCP.labels("renew", "ok").inc()
        self._record(identity, lease, renewed)
        LOG.debug("DHCP lease prolonged", extra=self._fields(held))
        return None

    def _ask_again(self, identity: Identity, held: _Held) -> float | None:
        """Ask for a new lease in the place of one that was lost; return how long to wait after a failure."""
        try:
            with self._place(held) as place:
                if place is None:
                    return _BUSY_RETRY
                lease = client.acquire(
                    place.index,
                    hardware_address=held.lease.hardware_address,
                    client_id=bytes.fromhex(held.lease.client_id),
                    deadline=time.monotonic() + _ASK_SECONDS,
                    netns=place.netns,
                    wanted=held.lease.ip,
                )
        except (DhcpError, OSError, ValueError) as error:
            metrics.DHCP.labels("acquire", "failed").inc()
            held.failures += 1
            LOG.debug("no new DHCP lease yet", extra=self._fields(held, error))
            return float(min(_LOST_RETRY * 2 ** min(held.failures - 1, 10), _LOST_RETRY_MOST))
        metrics.DHCP.labels("acquire", "ok").inc()
        self._record(identity, held.lease, lease)
        LOG.info("a new DHCP lease in the place of a lost one", extra=self._fields(held, new=lease.address))
        return None

    def _lose(self, identity: Identity, held: _Held, text: str) -> float | None:
        LOG.warning("a DHCP lease is lost", extra=self._fields(held, text))
        self._record(identity, held.lease, None, lost=text)
        return None

    def _record(self, identity: Identity, former: Lease, lease: Lease | None, lost: str = "") -> None:
        """Record what became of a lease, and let the kernel have it; nothing when the claim has it no more.

        Raises:
            DeviceBusyError: a device of the claim is being moved just now.
            JournalError: it cannot be recorded.
        """
        uid, key, request = identity

        def changed(plan: ClaimPlan) -> ClaimPlan:
            return plan_lease.with_other_lease(plan, key, request, former, lease, lost=lost)

        with self._keeper.holding([uid], until=time.monotonic() + _LOCK_SECONDS) as found:
            for before in found:
                successor = changed(before.successor) if before.successor is not None else None
                after = replace(before, plan=changed(before.plan), successor=successor)
                if after == before:
                    continue
                after = self._keeper.journal.put(after)
                if after.state is State.ATTACHED:
                    self._apply(before.plan, after, key, request)

    def _apply(self, before: ClaimPlan, record: ClaimRecord, key: DeviceKey, request: str) -> None:
        """Let a pod's interface have what its plan says now; the caller holds the locks of the claim's devices."""
        for old, new in zip(before.devices, record.plan.devices, strict=True):
            if (new.key, new.request) != (key, request) or old == new or old.pod is None or new.pod is None:
                continue
            place = self._in_pod(record, new)
            if place is None or place.netns is None:
                continue
            try:
                leaseapply.apply(place.netns, place.index, old.pod, new.pod)
            except OSError as error:
                text = "a pod's interface has not what its DHCP lease says"
                LOG.warning(text, extra=fields(claim=record.uid, device=new.label, error=error))
            if (old.pod.addresses, old.pod.lease_lost) != (new.pod.addresses, new.pod.lease_lost):
                self._keeper.look_anew(record)

    # ---- where

    @contextlib.contextmanager
    def _place(self, held: _Held) -> Iterator[_Place | None]:
        """Give where a device can be asked on for the length of a ``with`` block; None while it is on its way.

        Raises:
            DhcpError: the interface has no carrier.
            OSError: it is gone, or the kernel refuses.
        """
        record = self._keeper.journal.get(held.uid)
        if record is None or record.state in {State.ATTACHING, State.DETACHING}:
            yield None
            return
        if record.state is State.ATTACHED and any(each.key == held.device.key for each in record.plan.devices):
            yield self._in_pod(record, held.device)
            return
        with self._turns.hold(leasing.turn(held.device)):
            index = leasing.host_index(held.device)
            with running(index, deadline=time.monotonic() + _ASK_SECONDS):
                yield _Place(index, None, configured=False)

    def _in_pod(self, record: ClaimRecord, device: DevicePlan) -> _Place | None:
        seen = {fact.key: fact.interface for fact in record.facts}.get(device.key)
        if record.holder is None or seen is None:
            return None
        netns = self._keeper.namespaces.of(record.holder)
        lost = device.pod is not None and bool(device.pod.lease_lost)
        return _Place(seen.index, netns, configured=not lost) if netns is not None else None

    def _give_back(self, held: _Held) -> None:
        """Give a lease back whose claim is over; after a few failures it is left to end by itself."""
        error: Exception | None = None
        for _ in range(_RELEASES):
            try:
                with self._turns.hold(leasing.turn(held.device)):
                    leasing.release(held.lease, leasing.host_index(held.device))
            except (DhcpError, OSError) as problem:
                error = problem
                if isinstance(problem, OSError) or self._stopping:
                    break
            else:
                LOG.info("DHCP lease given back", extra=self._fields(held))
                return
        LOG.warning("a DHCP lease is left to end by itself", extra=self._fields(held, error))

    @staticmethod
    def _fields(
        held: _Held, error: Exception | str | None = None, new: str | None = None
    ) -> dict[str, dict[str, object]]:
        return fields(
            claim=held.uid,
            device=held.device.label,
            address=held.lease.address,
            server=held.lease.server,
            new=new,
            error=str(error) if error is not None else None,
        )


def _due(lease: Lease, *, lost: bool) -> float:
    """Return when a lease is to be worked at next. Clients that began together shall not ask together."""
    if lost:
        return client.now()
    span = lease.renews - lease.obtained
    return lease.renews - random.uniform(0, _FUZZ) * span if span < float("inf") else lease.renews  # noqa: S311


def _next_attempt(lease: Lease, now: float) -> float:
    """Return how long to wait after a failure: half of what is left until T2 or the end, not less than a minute."""
    border = lease.rebinds if now < lease.rebinds else lease.expires
    return min(max((border - now) / 2, _RETRY), max(border - now, 0.0))
