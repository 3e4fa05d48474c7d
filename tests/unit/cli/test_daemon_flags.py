"""Commands that answer as the running daemon would: whose flags count."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nri_dranet.cli.daemon_flags import with_daemons

if TYPE_CHECKING:
    from pathlib import Path


def daemon(root: Path, *words: str, pid: str = "71") -> dict[str, object]:
    """Put a lock with a process into a folder; returns the flag that names it."""
    (root / "journal.db.lock").write_text(f"{pid}\n")
    (root / pid).mkdir(exist_ok=True)
    (root / pid / "cmdline").write_text("".join(f"{word}\0" for word in words))
    return {"state_dir": str(root)}


def test_the_daemons_flags_count_where_none_is_given(tmp_path: Path) -> None:
    """A flag that was given counts before the daemon's, and that before the default."""
    given = daemon(
        tmp_path, "/opt/bin/nri-dranet", "run", "--filter=", "-share", "true", "--v=4", "--deny-interfaces=a,b"
    )
    args, note = with_daemons({**given, "share": "false"}, tmp_path)
    assert note == ""
    assert (args.filter, args.share, args.deny_interfaces) == ("", "false", {"a", "b"})
    assert args.move_ib_interfaces is True
    assert args.state_dir == str(tmp_path)


def test_a_daemon_that_python_runs(tmp_path: Path) -> None:
    """``python -m nri_dranet run``, and a program whose name or folder is the command's word."""
    given = daemon(tmp_path, "/run/python3", "-m", "nri_dranet", "run", "--driver-name=d.example")
    args, note = with_daemons(given, tmp_path)
    assert (args.driver_name, note) == ("d.example", "")


def test_another_process_is_not_believed(tmp_path: Path) -> None:
    """The lock may name a process of another PID namespace."""
    for words in (("/sbin/init",), ("runc", "run"), ()):
        args, note = with_daemons(daemon(tmp_path, *words), tmp_path)
        assert "veth" in args.filter
        assert "is no daemon here" in note


def test_no_daemon(tmp_path: Path) -> None:
    """Without lock or process the defaults count, which is said."""
    args, note = with_daemons({"state_dir": str(tmp_path)}, tmp_path)
    assert "veth" in args.filter
    assert note.startswith(f"no daemon is seen that works with {tmp_path}/journal.db")
    given = daemon(tmp_path, "nri-dranet", "run")
    (tmp_path / "71" / "cmdline").unlink()
    assert "no daemon is seen" in with_daemons(given, tmp_path)[1]


def test_flags_of_another_version(tmp_path: Path) -> None:
    """A flag that is not known is passed over; a value that cannot be read is told."""
    args, note = with_daemons(daemon(tmp_path, "nri-dranet", "run", "--new-flag=1", "--share=true"), tmp_path)
    assert (args.share, note) == ("true", "")
    args, note = with_daemons(daemon(tmp_path, "nri-dranet", "run", "--device-taints=Sometimes"), tmp_path)
    assert args.share == ""
    assert "another version's" in note
    assert "Sometimes" in note
