"""The sysctls that kubelet sets for the whole machine: noted before the first cluster starts, put back by the last.

Clusters may run side by side, and the second one sees what the first one's kubelet set. So the values are in one record
for the machine, with the folders of the clusters that use it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAMES = (
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
)
RECORD = Path(tempfile.gettempdir()) / "nri-dranet-cluster-sysctls.json"

_TREE = Path("/proc/sys")


def note(cluster: Path, runs: Callable[[Path], bool]) -> None:
    """Note the values before a cluster starts, unless another one that runs has.

    Args:
        cluster: Its folder.
        runs: Whether the cluster in a folder runs.
    """
    with _record() as record:
        users = [each for each in record.get("clusters", []) if runs(Path(each))]
        # Of clusters that were killed the record stays: its values are those of before them, until the machine starts
        # anew.
        if record.get("boot") != _boot():
            users = []
            record["boot"] = _boot()
            record["values"] = {name: _value(name) for name in NAMES}
        record["clusters"] = sorted({*users, str(cluster)})


def restore(cluster: Path, runs: Callable[[Path], bool]) -> None:
    """Put the values back after a cluster's end, unless another one runs. Nothing happens when none were noted.

    Args:
        cluster: Its folder.
        runs: Whether the cluster in a folder runs.
    """
    with _record() as record:
        record["clusters"] = [each for each in record.get("clusters", []) if each != str(cluster) and runs(Path(each))]
        if record["clusters"]:
            return
        if record.get("boot") == _boot():
            for name, value in record["values"].items():
                if _value(name) != value:
                    (_TREE / name).write_text(value, encoding="ascii")
        record.clear()


@contextlib.contextmanager
def _record() -> Iterator[dict[str, Any]]:
    """Read the record, let nobody else change it, write it at the end; an empty one leaves no file."""
    with _locked() as file:
        record: dict[str, Any] = {}
        with contextlib.suppress(ValueError):
            record = json.loads(file.read())
        yield record
        if record:
            file.truncate(0)
            file.write(json.dumps(record))
        else:
            RECORD.unlink()


@contextlib.contextmanager
def _locked() -> Iterator[TextIO]:
    while True:
        with RECORD.open("a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Who had the lock before may have removed the file.
            if _is_record(file):
                file.seek(0)
                yield file
                return


def _is_record(file: TextIO) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(RECORD.stat(), os.fstat(file.fileno()))
    return False


def _boot() -> str:
    return (_TREE / "kernel/random/boot_id").read_text(encoding="ascii").strip()


def _value(name: str) -> str:
    return (_TREE / name).read_text(encoding="ascii").strip()
