"""Reading the journal beside the daemon: the same claims, and nothing of its file or its locks is touched."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from nri_dranet.claims.record import ClaimRecord
from nri_dranet.store.database import JournalError
from nri_dranet.store.journal import Journal
from nri_dranet.store.reading import read_records
from nri_dranet.store.schema import VERSION

MakeRecord = Callable[..., ClaimRecord]


def files(path: Path) -> dict[str, int]:
    """Return the files beside the journal, and their size."""
    return {each.name: each.stat().st_size for each in path.parent.iterdir() if each.is_file()}


def test_the_claims_of_a_running_daemon(journal: Journal, path: Path, make_record: MakeRecord) -> None:
    """What was written a moment ago is seen while the file is open, and the daemon writes on meanwhile."""
    first = journal.put(make_record("u1"))
    before = files(path)
    assert read_records(path, "boot-1") == ((first,), 0)
    assert files(path) == before
    second = journal.put(make_record("u2", device="eth2"))
    assert read_records(path, "boot-1")[0] == (first, second)


def test_a_writer_is_not_waited_for(journal: Journal, path: Path, make_record: MakeRecord) -> None:
    """A transaction that is open is not seen, and does not hold the reader up."""
    first = journal.put(make_record("u1"))
    with journal._transaction("hold the file"):
        journal._connection.execute("DELETE FROM claims")
        assert read_records(path, "boot-1") == ((first,), 0)


def test_the_claims_of_a_daemon_that_was_stopped(path: Path, make_record: MakeRecord) -> None:
    """A file that nobody has open is read without leaving another one behind."""
    journal = Journal(path, "boot-1")
    first = journal.put(make_record("u1"))
    journal.close()
    before = files(path)
    assert read_records(path, "boot-1") == ((first,), 0)
    assert files(path) == before


def test_rows_of_another_boot_are_passed_over(journal: Journal, path: Path, make_record: MakeRecord) -> None:
    """After a reboot nothing is in a pod."""
    journal.put(make_record("u1"))
    assert read_records(path, "boot-2") == ((), 0)


def test_a_row_that_cannot_be_read_is_counted(journal: Journal, path: Path, make_record: MakeRecord) -> None:
    """The others are given."""
    journal.put(make_record("u1"))
    second = journal.put(make_record("u2", device="eth2"))
    journal._connection.execute("UPDATE claims SET plan='{}' WHERE uid='u1'")
    assert read_records(path, "boot-1") == ((second,), 1)


@pytest.mark.parametrize("content", [None, b"no database at all, but a text of some length" * 100])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    """None there, or a damaged one; no file is made."""
    path = tmp_path / "journal.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(JournalError, match=r"journal\.db cannot be read"):
        read_records(path, "boot-1")
    assert path.exists() is (content is not None)
    with pytest.raises(JournalError):
        read_records(Path(tmp_path), "boot-1")


def test_a_path_with_odd_letters(tmp_path: Path, make_record: MakeRecord) -> None:
    """SQLite is given a URI: what has a meaning there is a letter of the path like any other."""
    path = tmp_path / "a?b#c%20d" / "journal.db"
    journal = Journal(path, "boot-1")
    journal.put(make_record("u1"))
    assert len(read_records(path, "boot-1")[0]) == 1
    journal.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
    connection.close()
