"""Only one instance works with a journal."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from nri_dranet.instance.lock import InstanceLock

if TYPE_CHECKING:
    from pathlib import Path


def test_one_has_it_at_a_time(tmp_path: Path) -> None:
    """The second one is told who has it, and gets it when the first lets go."""
    path = tmp_path / "state" / "journal.db"
    with contextlib.closing(InstanceLock(path)) as second:
        first = InstanceLock(path)
        assert first.take()
        assert not second.take()
        assert second.holder() == str(os.getpid())
        first.close()
        assert second.take()


def test_it_ends_with_its_process(tmp_path: Path) -> None:
    """A process that is killed keeps nothing."""
    path = tmp_path / "journal.db"
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from nri_dranet.instance.lock import InstanceLock\n"
        "assert InstanceLock(Path(sys.argv[1])).take()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -9
    with contextlib.closing(InstanceLock(path)) as lock:
        assert lock.take()
