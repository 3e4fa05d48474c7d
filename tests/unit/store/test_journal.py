"""The journal: what was written is there after a restart, and nothing that is damaged takes the rest with it."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nri_dranet.claims.facts import ClaimFacts, Phase
from nri_dranet.claims.lifecycle import LifecycleError, State
from nri_dranet.claims.model import PodRef
from nri_dranet.claims.record import ClaimRecord, Holder
from nri_dranet.store.database import JournalError, JournalTooNewError, check_version
from nri_dranet.store.journal import Journal

MakeRecord = Callable[..., ClaimRecord]
HOLDER = Holder(pod=PodRef("default", "pod-p1", "p1"), sandbox_id="s1", netns_path="/run/netns/x", netns_inode=42)


def reopen(journal: Journal, path: Path, boot_id: str = "boot-1") -> Journal:
    """Close the journal and open its file again."""
    journal.close()
    return Journal(path, boot_id)


def test_a_claim_survives_a_restart_whole(journal: Journal, path: Path, make_record: MakeRecord) -> None:
    """Every field of a recorded claim is the same after the file was opened again."""
    written = journal.put(make_record())
    again = reopen(journal, path)
    assert again.get("u1") == written
    assert again.records() == (written,)
    again.close()


def test_an_update_changes_state_holder_and_facts_together(
    journal: Journal, path: Path, make_record: MakeRecord
) -> None:
    """A change of state with its holder and facts is on disk when the call returns."""
    record = journal.put(make_record())
    journal.update(["u1"], state=State.ATTACHING, holder=HOLDER)
    facts = tuple(replace(fact, phase=Phase.ATTACHED) for fact in record.facts)
    (attached,) = journal.update(["u1"], state=State.ATTACHED, holder=HOLDER, facts=facts)
    assert (attached.state, attached.holder, attached.facts) == (State.ATTACHED, HOLDER, facts)
    again = reopen(journal, path)
    assert again.get("u1") == attached
    assert again.of_sandbox("s1") == (attached,)
    again.close()


def test_an_update_of_several_claims_gives_each_its_own_facts(journal: Journal, make_record: MakeRecord) -> None:
    """The facts of a pod's devices are shared out by device."""
    one, two = journal.put(make_record("u1")), journal.put(make_record("u2", device="eth2"))
    changed = journal.update(["u1", "u2"], state=State.ATTACHING, holder=HOLDER, facts=(*one.facts, *two.facts))
    assert [record.facts for record in changed] == [one.facts, two.facts]


def test_a_step_that_the_life_cycle_lacks_is_refused(journal: Journal, make_record: MakeRecord) -> None:
    """A prepared claim cannot become attached without being attached; nothing changes."""
    record = journal.put(make_record())
    with pytest.raises(LifecycleError, match="prepared cannot become attached"):
        journal.update(["u1"], state=State.ATTACHED, holder=HOLDER)
    assert journal.get("u1") == record


def test_claims_are_found_by_pod_sandbox_and_device(journal: Journal, make_record: MakeRecord) -> None:
    """A claim is found by each pod that may use it, also by one of its next allocation."""
    record = make_record()
    successor = replace(record.plan, pods=(PodRef("default", "pod-p2", "p2"),))
    record = journal.put(replace(record, successor=successor))
    assert journal.of_pod("p1") == (record,)
    assert journal.of_pod("p2") == (record,)
    assert journal.of_pod("p3") == ()
    assert journal.of_device("eth1") == (record,)
    assert journal.of_device("eth9") == ()


def test_a_removed_claim_is_gone(journal: Journal, path: Path, make_record: MakeRecord) -> None:
    """Removing a claim removes its row; removing it again is no error."""
    journal.put(make_record())
    journal.remove("u1")
    journal.remove("u1")
    again = reopen(journal, path)
    assert again.records() == ()
    again.close()


def test_facts_of_an_unknown_claim_are_not_kept(journal: Journal, make_record: MakeRecord) -> None:
    """Facts that come after a claim was released change nothing."""
    assert journal.set_facts("u1", ()) is None
    record = journal.put(make_record())
    changed = journal.set_facts("u1", (replace(record.facts[0], phase=Phase.LOST),))
    assert changed is not None
    assert changed.facts[0].phase is Phase.LOST


def test_rows_of_another_boot_are_void(journal: Journal, path: Path, make_record: MakeRecord) -> None:
    """After a reboot nothing is attached and nothing is prepared; what was is told, as far as it can be read."""
    record = journal.put(make_record())
    other = journal.put(make_record("u2"))
    with journal._transaction("damage a row"):
        journal._connection.execute("UPDATE claims SET plan='{' WHERE uid=?", (other.uid,))
    again = reopen(journal, path, "boot-2")
    assert again.records() == ()
    assert again.voided == (record,)
    assert again.quarantined == ()
    again.close()


def forget_copies(path: Path) -> None:
    """Remove the copies of all rows."""
    shutil.rmtree(path.with_name(f"{path.name}.copies"))


def damage(path: Path, column: str, uid: str = "u1") -> None:
    """Make a column of a row unreadable."""
    with sqlite3.connect(path) as raw:
        raw.execute(f"UPDATE claims SET {column}='{{\"future\":1}}' WHERE uid=?", (uid,))  # noqa: S608 - a test's word
    raw.close()


def garble(path: Path) -> None:
    """Fill the file with garbage."""
    for side in ("-wal", "-shm"):
        path.with_name(path.name + side).unlink(missing_ok=True)
    path.write_bytes(os.urandom(20_000))


def empty(path: Path) -> None:
    """Cut the file to nothing."""
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [garble, Path.unlink, empty])
def test_the_claims_of_a_spoiled_file_are_restored(
    journal: Journal, path: Path, make_record: MakeRecord, spoil: Callable[[Path], None]
) -> None:
    """The plans and undos come back from the copies; who holds them is for kernel and runtime to say."""
    record = journal.put(make_record("u1"))
    journal.update(["u1"], state=State.ATTACHING, holder=HOLDER)
    journal.update(["u1"], state=State.ATTACHED, holder=HOLDER)
    journal.put(make_record("u2", device="eth2"))
    journal.remove("u2")
    journal.close()
    spoil(path)
    again = Journal(path, "boot-1")
    assert again.restored == (record.ref,)
    assert again.records() == (replace(record, state=State.ATTACHING),)
    assert again.records()[0].held
    again = reopen(again, path)
    assert [each.uid for each in again.records()] == ["u1"]
    assert again.restored == ()
    again.close()


def test_copies_of_an_earlier_boot_are_not_restored(journal: Journal, path: Path, make_record: MakeRecord) -> None:
    """After a reboot nothing is attached, whatever the copies say, and they go."""
    journal.put(make_record("u1"))
    journal.close()
    garble(path)
    again = Journal(path, "boot-2")
    assert again.records() == ()
    assert list(path.with_name(f"{path.name}.copies").iterdir()) == []
    again.close()


def test_a_damaged_copy_hinders_nothing(journal: Journal, path: Path, make_record: MakeRecord) -> None:
    """A copy that cannot be read is passed over; the others are restored."""
    journal.put(make_record("u1"))
    good = journal.put(make_record("u2", device="eth2"))
    journal.close()
    garble(path)
    folder = path.with_name(f"{path.name}.copies")
    (folder / "x.json").write_bytes(b"[" * 100_000)
    (folder / "y.json").write_bytes(b'["u3"]')
    (folder / "z.json").write_bytes(b"{}")
    for each in list(folder.iterdir()):
        if b'"u1"' in each.read_bytes():
            each.with_suffix(".new").write_bytes(each.read_bytes())
    next(each for each in folder.glob("*.json") if b'"u1"' in each.read_bytes()).write_bytes(b"\xff")
    again = Journal(path, "boot-1")
    assert again.restored == (good.ref,)
    again.close()


def test_a_damaged_row_is_restored_from_its_copy(journal: Journal, path: Path, make_record: MakeRecord) -> None:
    """One row that cannot be read is taken from its copy; nothing is quarantined."""
    record = journal.put(make_record("u1"))
    journal.close()
    damage(path, "plan")
    again = Journal(path, "boot-1")
    assert again.quarantined == ()
    assert again.restored == (record.ref,)
    again.close()


def test_a_claim_that_cannot_be_copied_is_not_recorded(journal: Journal, path: Path, make_record: MakeRecord) -> None:
    """Disk full in the folder of the copies: the claim is refused, and the journal is as before."""
    path.with_name(f"{path.name}.copies").write_text("in the way", encoding="utf-8")
    with pytest.raises(JournalError, match="cannot copy claim default/"):
        journal.put(make_record())
    assert journal.records() == ()
    assert reopen(journal, path).records() == ()


def test_a_damaged_row_is_set_aside_and_the_others_work(journal: Journal, path: Path, make_record: MakeRecord) -> None:
    """One row that cannot be read is quarantined, with its reason; the others are there."""
    journal.put(make_record("u1"))
    good = journal.put(make_record("u2", device="eth2"))
    journal.close()
    damage(path, "plan")
    forget_copies(path)
    again = Journal(path, "boot-1")
    assert again.records() == (good,)
    assert [entry.ref.uid for entry in again.quarantined] == ["u1"]
    assert "future" in again.quarantined[0].reason
    again.remove("u1")
    again = reopen(again, path)
    assert again.quarantined == ()
    again.close()


def test_a_damaged_row_is_refused_in_every_life(journal: Journal, path: Path, make_record: MakeRecord) -> None:
    """A claim that cannot be read stays known as such over restarts, is set aside once, and heals when written anew."""
    record = journal.put(make_record("u1"))
    journal.close()
    damage(path, "facts")
    forget_copies(path)
    again = Journal(path, "boot-1")
    again = reopen(again, path)
    assert [entry.ref.uid for entry in again.quarantined] == ["u1"]
    assert again.records() == ()
    assert again._connection.execute("SELECT count(*) FROM quarantine").fetchone() == (1,)
    again.put(record)
    again = reopen(again, path)
    assert again.quarantined == ()
    assert again.records() == (record,)
    again.close()


def test_a_file_of_garbage_is_moved_aside(journal: Journal, path: Path, make_record: MakeRecord) -> None:
    """A journal that is no database does not stop the start: it is kept beside, and a new one begun."""
    journal.close()
    path.write_bytes(os.urandom(20_000))
    again = Journal(path, "boot-1")
    assert Path(again.moved_aside).read_bytes()
    again.put(make_record())
    again = reopen(again, path)
    assert len(again.records()) == 1
    assert again.moved_aside == ""
    again.close()


def test_a_directory_in_the_journals_place_is_moved_aside(tmp_path: Path) -> None:
    """A directory where the file should be is moved aside like a damaged file."""
    path = tmp_path / "journal.db"
    path.mkdir()
    opened = Journal(path, "boot-1")
    assert Path(opened.moved_aside).is_dir()
    opened.close()


def test_an_empty_file_is_a_new_journal(tmp_path: Path, make_record: MakeRecord) -> None:
    """An empty file is what SQLite begins with."""
    path = tmp_path / "journal.db"
    path.touch()
    opened = Journal(path, "boot-1")
    opened.put(make_record())
    assert opened.moved_aside == ""
    opened.close()


def test_a_newer_version_is_refused_in_words(journal: Journal, path: Path) -> None:
    """A journal of a newer version is left alone and the refusal says what to do."""
    journal.close()
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA user_version = 99")
    raw.close()
    with pytest.raises(JournalTooNewError, match=r"version 99.*drain the node"):
        Journal(path, "boot-1")


def test_a_newer_version_is_seen_beside_the_instance_that_works_with_it(journal: Journal, path: Path) -> None:
    """Nothing is handed over to an instance that could not go on; what cannot be read is judged later."""
    check_version(path)
    check_version(path.with_name("none.db"))
    journal._connection.execute("PRAGMA user_version = 99")
    with pytest.raises(JournalTooNewError, match=r"version 99.*drain the node"):
        check_version(path)
    assert journal.records() == ()


def test_a_failing_disk_changes_nothing(journal: Journal, path: Path, make_record: MakeRecord) -> None:
    """A write that SQLite refuses raises, and memory and file stay as they were."""
    record = journal.put(make_record())
    journal._connection.execute("PRAGMA query_only = 1")
    with pytest.raises(JournalError, match="cannot record claim default/claim-u2"):
        journal.put(make_record("u2"))
    with pytest.raises(JournalError):
        journal.update(["u1"], state=State.ATTACHING, holder=HOLDER)
    with pytest.raises(JournalError):
        journal.remove("u1")
    with pytest.raises(JournalError):
        journal.check_writable()
    assert journal.records() == (record,)
    again = reopen(journal, path)
    assert again.records() == (record,)
    again.check_writable()
    again.close()


def test_a_folder_that_cannot_be_made_is_an_error_in_words(tmp_path: Path) -> None:
    """A path below a file names the journal and the cause."""
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match=r"journal.db cannot be opened"):
        Journal(tmp_path / "file" / "journal.db", "boot-1")


def test_statuses_wait_until_they_are_written(journal: Journal, path: Path, make_record: MakeRecord) -> None:
    """What a status shall say survives a restart until it is told to be written; the last word counts."""
    record = make_record()
    first = ClaimFacts(ref=record.ref, devices=record.facts)
    last = replace(first, devices=(replace(record.facts[0], phase=Phase.DETACHED),))
    journal.put_status(first)
    journal.put_status(last)
    again = reopen(journal, path)
    assert again.pending_statuses() == [last]
    again.status_written("u1")
    assert again.pending_statuses() == []
    again.close()


def test_a_damaged_status_is_set_aside(journal: Journal, path: Path, make_record: MakeRecord) -> None:
    """A waiting status that cannot be read is dropped; the others are still written."""
    good = ClaimFacts(ref=make_record().ref)
    journal.put_status(good)
    journal.close()
    with sqlite3.connect(path) as raw:
        raw.execute("INSERT INTO statuses VALUES ('u9', 'no json', 1)")
    raw.close()
    again = Journal(path, "boot-1")
    assert again.pending_statuses() == [good]
    again.close()
