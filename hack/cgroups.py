"""Remove the cgroups of processes that were ended."""

from __future__ import annotations

import os
import time
from pathlib import Path


def remove(top: Path) -> None:
    """Remove a cgroup and all below it; nothing happens when it is not there.

    Args:
        top: its folder in one hierarchy.
    """
    for folder, _, _ in os.walk(top, topdown=False):
        for _ in range(100):  # busy for a moment after its last process
            try:
                Path(folder).rmdir()
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(0.02)
            else:
                break
