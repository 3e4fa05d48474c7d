"""Journals of older versions are brought up to this one, whole or not at all; those of newer ones are refused."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING

import pytest

from nri_dranet.claims.lifecycle import State
from nri_dranet.store import database
from nri_dranet.store.database import JournalError, JournalTooNewError
from nri_dranet.store.journal import Journal
from nri_dranet.store.schema import STEPS, VERSION

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nri_dranet.claims.record import ClaimRecord

    MakeRecord = Callable[..., ClaimRecord]


def _version(path: Path) -> int:
    with sqlite3.connect(path) as raw:
        found: int = raw.execute("PRAGMA user_version").fetchone()[0]
    raw.close()
    return found


def _columns(path: Path) -> list[str]:
    with sqlite3.connect(path) as raw:
        found = [str(row[1]) for row in raw.execute("PRAGMA table_info(claims)")]
    raw.close()
    return found


@pytest.fixture
def of_version_1(journal: Journal, path: Path, make_record: MakeRecord) -> Path:
    """A journal of version 1 with a claim, and the copy of its row as version 1 wrote it."""
    journal.put(make_record())
    journal.put(make_record("u2", device="eth2"))
    with sqlite3.connect(path) as raw:
        names = "uid, namespace, name, state, boot_id, plan, holder, facts, successor"
        rows = raw.execute(f"SELECT {names} FROM claims ORDER BY rowid").fetchall()  # noqa: S608 - a constant
    raw.close()
    journal.close()
    path.unlink()
    for side in ("-wal", "-shm"):
        path.with_name(path.name + side).unlink(missing_ok=True)
    with sqlite3.connect(path) as raw:
        raw.executescript(STEPS[0])
        raw.execute("PRAGMA user_version = 1")
        for uid, namespace, name, state, boot_id, *rest in rows:
            raw.execute(
                "INSERT INTO claims VALUES (?,?,?,?,?,1,?,?,?,?)", (uid, namespace, name, state, boot_id, *rest)
            )
    raw.close()
    for copy in path.with_name("journal.db.copies").iterdir():
        row = json.loads(copy.read_text())
        copy.write_text(json.dumps([*row[:5], 1, *row[5:]]))
    return path


def test_version_1_is_brought_up(of_version_1: Path, make_record: MakeRecord) -> None:
    """Claims are as they were, the column that nobody needed is gone, and the file has the new version."""
    opened = Journal(of_version_1, "boot-1")
    assert [record.plan for record in opened.records()] == [
        make_record().plan,
        make_record("u2", device="eth2").plan,
    ]
    opened.update(["u1"], state=State.ATTACHING)
    opened.close()
    assert _version(of_version_1) == VERSION
    assert "prepared" not in _columns(of_version_1)
    again = Journal(of_version_1, "boot-1")
    assert [record.state for record in again.records()] == [State.ATTACHING, State.PREPARED]
    again.close()


def test_copies_of_version_1_are_read(of_version_1: Path, make_record: MakeRecord) -> None:
    """Where the file is gone, rows are restored from copies that an older program wrote."""
    of_version_1.unlink()
    opened = Journal(of_version_1, "boot-1")
    assert {ref.uid for ref in opened.restored} == {"u1", "u2"}
    restored = opened.get("u1")
    assert restored is not None
    assert restored.plan == make_record().plan
    opened.close()


def test_a_step_that_fails_changes_nothing(of_version_1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file stays of its version, and the next program that can do the step does it."""
    with monkeypatch.context() as patched:
        broken = (*STEPS[:-1], STEPS[-1] + "DROP TABLE nothing;")
        patched.setattr(database, "STEPS", broken)
        with pytest.raises(JournalError, match="nothing"):
            Journal(of_version_1, "boot-1")
    assert _version(of_version_1) == VERSION - 1
    opened = Journal(of_version_1, "boot-1")
    assert len(opened.records()) == 2
    opened.close()


def test_the_way_down_is_refused_in_words(
    of_version_1: Path, monkeypatch: pytest.MonkeyPatch, make_record: MakeRecord
) -> None:
    """A program of version 1 leaves the file alone and says which versions there are and what to do."""
    Journal(of_version_1, "boot-1").close()
    content = of_version_1.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(database, "VERSION", 1)
        with pytest.raises(JournalTooNewError, match=r"version 3, this program reads up to 1.*newer version again"):
            Journal(of_version_1, "boot-1")
    assert of_version_1.read_bytes() == content
    opened = Journal(of_version_1, "boot-1")
    assert opened.get("u1") is not None
    assert opened.records()[0].plan == make_record().plan
    opened.close()
