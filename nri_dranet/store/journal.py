"""The journal: one row a claim that kubelet has prepared on this node, and the statuses that wait to be written.

Reads are answered from memory; every change is on disk before the method returns. Plans are written once, in Prepare;
a hook updates the small columns only.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nri_dranet.claims import codec, lifecycle
from nri_dranet.claims.facts import ClaimFacts, DeviceFacts
from nri_dranet.claims.lifecycle import State
from nri_dranet.claims.model import ClaimRef
from nri_dranet.claims.plan import PLAN_VERSION, ClaimPlan, DevicePlan
from nri_dranet.claims.record import ClaimRecord, Holder
from nri_dranet.store.copies import Copies
from nri_dranet.store.database import JournalError, open_database
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

LOG = logging.getLogger(__name__)

COLUMNS = "uid, namespace, name, state, boot_id, plan, holder, facts, successor"
"""Of a row of ``claims``."""
_COLUMNS_OF_1 = 10


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A row that could not be read and was set aside; the claim is known by its columns only."""

    ref: ClaimRef
    reason: str


class Journal:
    """The claims of this node. Thread-safe."""

    def __init__(self, path: Path, boot_id: str) -> None:
        """Open the journal and read it.

        Rows of another boot are dropped: after a reboot nothing is attached and nothing prepared. Rows that cannot be
        read are set aside; all others work. A row that cannot be read, and every row of a file that is damaged or gone,
        is restored from its copy: where its devices are is not known then, so that it counts as being attached, and the
        reconciler finishes that or gives the devices back.

        Args:
            path: the SQLite file.
            boot_id: the kernel's, from ``/proc/sys/kernel/random/boot_id``.

        Raises:
            JournalError: the file cannot be opened, or is of a newer version.
        """
        self._lock = threading.RLock()
        self._boot_id = boot_id
        self._records: dict[str, ClaimRecord] = {}
        self._copies = Copies(path.with_name(f"{path.name}.copies"))
        begun = not path.exists() or path.stat().st_size == 0
        self._connection, self.moved_aside = open_database(path)
        self.begun = begun or bool(self.moved_aside)
        self.quarantined: tuple[Quarantined, ...] = ()
        self.voided: tuple[ClaimRecord, ...] = ()
        self.restored: tuple[ClaimRef, ...] = ()
        self._strays: dict[str, DevicePlan] = {}
        with self._transaction("read the journal"):
            self._load()
            self._load_strays()
            if self.begun:
                for row in self._copies.all():
                    self._restore(row)
        self._copies.prune([*self._records, *self._unreadable()])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def losses(self) -> list[tuple[ClaimRef | None, str, str]]:
        """Tell what could not be read: the claim (None: the whole node), the reason of an Event, and its text."""
        found: list[tuple[ClaimRef | None, str, str]] = [
            (
                entry.ref,
                "RecordQuarantined",
                f"the node's record of claim {entry.ref} cannot be read and was set aside: {entry.reason}",
            )
            for entry in self.quarantined
        ]
        count = len(self.restored)
        if self.moved_aside:
            text = (
                f"the journal was damaged and was moved to {self.moved_aside}; a new one is begun, with {count} claims "
                "restored from the copies of their rows"
            )
            found.append((None, "JournalDamaged", text))
        elif count:
            text = f"{count} claims could not be read in the journal and were restored from copies"
            found.append((None, "JournalDamaged", text))
        return found

    # ---- reading

    def records(self) -> tuple[ClaimRecord, ...]:
        """Return all claims, in the order in which they were prepared."""
        with self._lock:
            return tuple(self._records.values())

    def get(self, uid: str) -> ClaimRecord | None:
        """Return a claim by UID."""
        with self._lock:
            return self._records.get(uid)

    def of_pod(self, pod_uid: str) -> tuple[ClaimRecord, ...]:
        """Return the claims that a pod may use, by their plan or by the plan of their next allocation."""
        with self._lock:
            return tuple(record for record in self._records.values() if _serves(record, pod_uid))

    def of_sandbox(self, sandbox_id: str) -> tuple[ClaimRecord, ...]:
        """Return the claims whose devices are in a sandbox, or on their way."""
        with self._lock:
            return tuple(r for r in self._records.values() if r.holder and r.holder.sandbox_id == sandbox_id)

    def of_device(self, device: str) -> tuple[ClaimRecord, ...]:
        """Return the claims that have a device of this name."""
        with self._lock:
            return tuple(r for r in self._records.values() if any(d.key.device == device for d in r.plan.devices))

    def devices(self) -> tuple[DevicePlan, ...]:
        """Return all devices of claims, those of their next allocations and those that are missing."""
        with self._lock:
            plans = [plan for record in self._records.values() for plan in (record.plan, record.successor) if plan]
            return (*(device for plan in plans for device in plan.devices), *self._strays.values())

    # ---- writing

    def put(self, record: ClaimRecord) -> ClaimRecord:
        """Write a whole claim, plan included.

        Raises:
            JournalError: it could not be written; the journal is as before.
        """
        with self._lock:
            record = replace(record, boot_id=self._boot_id)
            with self._transaction(f"record claim {record.ref}"):
                self._insert(record)
                try:
                    self._copies.write(record.uid, _row(record))
                except OSError as error:
                    raise JournalError(f"the journal cannot copy claim {record.ref}: {error.strerror}") from error
            self._records[record.uid] = record
            self._readable(record.uid)
            return record

    def update(
        self,
        uids: Iterable[str],
        *,
        state: State,
        holder: Holder | None = None,
        facts: Sequence[DeviceFacts] | None = None,
    ) -> tuple[ClaimRecord, ...]:
        """Take claims to a state, in one transaction.

        Args:
            uids: the claims; each must be in the journal.
            state: the state to go to.
            holder: who holds the devices from now on; None: nobody.
            facts: facts about devices; each claim takes those of its own devices. None: as before.

        Raises:
            LifecycleError: a claim cannot go to that state from where it is.
            JournalError: it could not be written; the journal is as before.
        """
        with self._lock:
            changed = []
            for uid in uids:
                old = self._records[uid]
                lifecycle.check(old.state, state)
                own = old.facts if facts is None else _own(old.plan, facts)
                changed.append(replace(old, state=state, holder=holder, facts=own))
            with self._transaction("record a change"):
                for record in changed:
                    self._connection.execute(
                        "UPDATE claims SET state=?, holder=?, facts=? WHERE uid=?",
                        (
                            record.state.value,
                            codec.dumps(record.holder) if record.holder else None,
                            codec.dumps(record.facts),
                            record.uid,
                        ),
                    )
            for record in changed:
                self._records[record.uid] = record
            return tuple(changed)

    def set_facts(self, uid: str, facts: Sequence[DeviceFacts], *, state: State | None = None) -> ClaimRecord | None:
        """Replace what is known of a claim's devices; None when the claim is not there, or not in that state.

        Args:
            uid: the claim.
            facts: what is known of its devices.
            state: the state that the claim must be in; None: any.

        Raises:
            JournalError: it could not be written; the journal is as before.
        """
        with self._lock:
            old = self._records.get(uid)
            if old is None or state not in {None, old.state}:
                return None
            record = replace(old, facts=tuple(facts))
            with self._transaction("record facts"):
                self._connection.execute("UPDATE claims SET facts=? WHERE uid=?", (codec.dumps(record.facts), uid))
            self._records[uid] = record
            return record

    def remove(self, uid: str) -> None:
        """Forget a claim; nothing happens when it is not there.

        Raises:
            JournalError: it could not be written; the journal is as before.
        """
        with self._lock:
            with self._transaction("remove a claim"):
                self._connection.execute("DELETE FROM claims WHERE uid=?", (uid,))
                self._connection.execute("DELETE FROM quarantine WHERE uid=?", (uid,))
            self._copies.remove(uid)
            self._records.pop(uid, None)
            self._readable(uid)

    def check_writable(self) -> None:
        """Write nothing, durably: tells whether a Prepare could be recorded now.

        Raises:
            JournalError: it could not.
        """
        with self._lock, self._transaction("write the journal"):
            self._connection.execute("UPDATE statuses SET pending=pending WHERE 0")

    # ---- devices that could not be brought home

    def strays(self) -> tuple[DevicePlan, ...]:
        """Return the devices that were nowhere when they should have come home, each with how it was on the host."""
        with self._lock:
            return tuple(self._strays.values())

    def put_stray(self, plan: DevicePlan) -> None:
        """Keep what a device is owed until it appears, also when its claim is released.

        Raises:
            JournalError: it could not be written; the journal is as before.
        """
        with self._lock:
            with self._transaction(f"record that device {plan.label} is missing"):
                self._connection.execute(
                    "INSERT OR REPLACE INTO strays (device, boot_id, plan) VALUES (?,?,?)",
                    (plan.key.device, self._boot_id, codec.dumps(plan)),
                )
            self._strays[plan.key.device] = plan

    def remove_stray(self, device: str) -> None:
        """Forget a device that has appeared, by its name in the ResourceSlice.

        Raises:
            JournalError: it could not be written; the journal is as before.
        """
        with self._lock:
            if device not in self._strays:
                return
            with self._transaction("forget a device that was missing"):
                self._connection.execute("DELETE FROM strays WHERE device=?", (device,))
            del self._strays[device]

    # ---- statuses that wait to be written

    def put_status(self, facts: ClaimFacts) -> None:
        """Keep what a claim's status shall say until ``status_written`` is told.

        Raises:
            JournalError: it could not be written; the journal is as before.
        """
        with self._lock, self._transaction("record a status"):
            self._connection.execute(
                "INSERT OR REPLACE INTO statuses (uid, facts, pending) VALUES (?,?,1)",
                (facts.ref.uid, codec.dumps(facts)),
            )

    def status_written(self, uid: str) -> None:
        """Forget the status of a claim: it is written, or the claim is gone.

        Raises:
            JournalError: it could not be written; the journal is as before.
        """
        with self._lock, self._transaction("remove a status"):
            self._connection.execute("DELETE FROM statuses WHERE uid=?", (uid,))

    def pending_statuses(self) -> list[ClaimFacts]:
        """Return what waits to be written since an earlier life of the program.

        Raises:
            JournalError: it could not be read.
        """
        found = []
        with self._lock, self._transaction("read statuses"):
            for uid, text in self._connection.execute("SELECT uid, facts FROM statuses").fetchall():
                try:
                    found.append(codec.loads(ClaimFacts, text))
                except codec.DecodeError as error:
                    self._set_aside(uid, "statuses", str(error), text)
                    self._connection.execute("DELETE FROM statuses WHERE uid=?", (uid,))
        return found

    # ---- inside

    @contextmanager
    def _transaction(self, what: str) -> Iterator[None]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            # A connection that was closed cannot even be asked.
            with suppress(sqlite3.Error):
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
            raise JournalError(f"the journal cannot {what}: {error}") from error

    def _unreadable(self) -> list[str]:
        return [entry.ref.uid for entry in self.quarantined]

    def _readable(self, uid: str) -> None:
        """Forget that the row of a claim could not be read: it was written anew, or released."""
        if uid in self._unreadable():
            self.quarantined = tuple(entry for entry in self.quarantined if entry.ref.uid != uid)

    def _load(self) -> None:
        quarantined, voided = [], []
        rows = self._connection.execute(f"SELECT {COLUMNS} FROM claims ORDER BY rowid").fetchall()  # noqa: S608 - a constant
        for row in rows:
            uid, namespace, name, _, boot_id, *_ = row
            ref = ClaimRef(namespace, name, uid)
            if boot_id != self._boot_id:
                self._connection.execute("DELETE FROM claims WHERE uid=?", (uid,))
                try:
                    voided.append(record_of(row))
                except codec.DecodeError as error:
                    LOG.warning("a row of an earlier boot cannot be read", extra=fields(claim=uid, error=error))
                continue
            try:
                self._records[uid] = record_of(row)
            except codec.DecodeError as error:
                self._set_aside(uid, "claims", str(error), repr(row))
                copy = self._copies.read(uid)
                if copy is None or not self._restore(copy):
                    # The row stays: the claim's pods are refused until it is written anew or released, in every life.
                    quarantined.append(Quarantined(ref, str(error)))
        self.quarantined, self.voided = tuple(quarantined), tuple(voided)
        if voided:
            LOG.info("claims of an earlier boot dropped", extra=fields(claims=len(voided)))

    def _load_strays(self) -> None:
        for device, boot_id, text in self._connection.execute("SELECT device, boot_id, plan FROM strays").fetchall():
            try:
                plan = codec.loads(DevicePlan, text)
            except codec.DecodeError as error:
                self._set_aside(device, "strays", str(error), text)
                plan = None
            if plan is None or boot_id != self._boot_id:
                self._connection.execute("DELETE FROM strays WHERE device=?", (device,))
            else:
                self._strays[device] = plan

    def _restore(self, row: Sequence[object]) -> bool:
        """Take a claim in from the copy of its row; False when that cannot be read, or is of another boot."""
        try:
            record = record_of(_of_this_version(row))
        except (codec.DecodeError, ValueError) as error:
            LOG.warning("the copy of a claim's row cannot be read", extra=fields(error=error))
            return False
        if record.boot_id != self._boot_id:
            return False
        record = replace(record, state=State.ATTACHING, holder=None, successor=None)
        self._insert(record)
        self._records[record.uid] = record
        self.restored = (*self.restored, record.ref)
        LOG.warning("a claim was restored from the copy of its row", extra=fields(claim=record.uid, name=record.ref))
        return True

    def _insert(self, record: ClaimRecord) -> None:
        self._connection.execute(
            f"INSERT OR REPLACE INTO claims ({COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?)",  # noqa: S608 - a constant
            _row(record),
        )

    def _set_aside(self, uid: str, source: str, reason: str, content: str) -> None:
        metrics.QUARANTINED.inc()
        LOG.error(
            "a row of the journal cannot be read and was set aside", extra=fields(claim=uid, table=source, error=reason)
        )
        known = "SELECT 1 FROM quarantine WHERE uid=? AND source=? AND content=?"
        if self._connection.execute(known, (uid, source, content)).fetchone():
            return
        self._connection.execute(
            "INSERT INTO quarantine (uid, source, reason, content, set_aside) VALUES (?,?,?,?,?)",
            (uid, source, reason, content, time.time()),
        )


def _serves(record: ClaimRecord, pod_uid: str) -> bool:
    if record.holder is not None and record.holder.pod.uid == pod_uid:
        return True
    if any(pod.uid == pod_uid for pod in record.plan.pods):
        return True
    return record.successor is not None and any(pod.uid == pod_uid for pod in record.successor.pods)


def _own(plan: ClaimPlan, facts: Sequence[DeviceFacts]) -> tuple[DeviceFacts, ...]:
    keys = {(device.key, device.request) for device in plan.devices}
    return tuple(fact for fact in facts if (fact.key, fact.request) in keys)


def _row(record: ClaimRecord) -> tuple[object, ...]:
    return (
        record.uid,
        record.ref.namespace,
        record.ref.name,
        record.state.value,
        record.boot_id,
        codec.dumps(record.plan),
        codec.dumps(record.holder) if record.holder else None,
        codec.dumps(record.facts),
        codec.dumps(record.successor) if record.successor else None,
    )


def _of_this_version(copy: Sequence[object]) -> Sequence[object]:
    """Give a copy the columns that rows have now: one of version 1 has ``prepared`` at the sixth place."""
    return [*copy[:5], *copy[6:]] if len(copy) == _COLUMNS_OF_1 else copy


def record_of(row: Sequence[object]) -> ClaimRecord:
    """Return the claim of a row (raises DecodeError, also for a plan of another version)."""
    _, _, _, state, boot_id, plan, holder, facts, successor = row
    decoded = codec.loads(ClaimPlan, str(plan))
    if decoded.version != PLAN_VERSION:
        raise codec.DecodeError(f".version: {decoded.version} is not {PLAN_VERSION}")
    return ClaimRecord(
        plan=decoded,
        state=codec.from_json(State, state),
        holder=codec.loads(Holder, str(holder)) if holder is not None else None,
        facts=codec.loads(tuple[DeviceFacts, ...], str(facts)),
        successor=codec.loads(ClaimPlan, str(successor)) if successor is not None else None,
        boot_id=str(boot_id),
    )
