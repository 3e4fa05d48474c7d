"""The flags of the daemon that runs on this node, for commands that shall answer as it would."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from nri_dranet.cli.options import add_run_arguments, journal_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_COMMAND: Final = "run"
_PROGRAMS: Final = ("nri-dranet", "nri_dranet")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def with_daemons(given: Mapping[str, object], proc: Path = Path("/proc")) -> tuple[argparse.Namespace, str]:
    """Return the flags that count: those that were given, then the running daemon's, then the defaults.

    The daemon is found by the process ID in the lock beside its journal, which it may have in another PID namespace.

    Args:
        given: flags that the user gave, by their names in ``argparse``.
        proc: where procfs is mounted.

    Returns:
        The flags, and why the daemon's are not known; empty: they are.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    add_run_arguments(parser)
    args = parser.parse_args([], argparse.Namespace(**given))
    journal = journal_of(args)
    lock = journal.with_name(f"{journal.name}.lock")
    try:
        pid = lock.read_text(encoding="ascii").strip()
        words = (proc / pid / "cmdline").read_text(encoding="utf-8", errors="surrogateescape").split("\0")[:-1]
    except (OSError, ValueError):
        return args, f"no daemon is seen that works with {journal}: flags that were not given have their defaults"
    flags = _flags_in(words)
    if not pid.isdecimal() or flags is None:
        return args, f"process {pid} of {lock} is no daemon here: flags that were not given have their defaults"
    try:
        known, _ = parser.parse_known_args(flags)
    except ValueError as error:
        return args, f"the flags of process {pid} are another version's ({error}): those not given have their defaults"
    return argparse.Namespace(**{**vars(known), **given}), ""


def _flags_in(words: Sequence[str]) -> Sequence[str] | None:
    """Return what follows ``nri-dranet run`` or ``python -m nri_dranet run``; None: it is another program's."""
    for place, word in enumerate(words[1:], 1):
        if word == _COMMAND and Path(words[place - 1]).name in _PROGRAMS:
            return words[place + 1 :]
    return None
