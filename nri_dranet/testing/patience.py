"""How long stand-ins wait: longer than any working machine needs, and longer still where the machine is slow."""

from __future__ import annotations

import os
from typing import Final

FACTOR: Final = float(os.environ.get("NRI_DRANET_PATIENCE", "1"))
"""By what all waiting is longer; set where Python runs in an emulated processor."""


def patience(seconds: float) -> float:
    """Return how long to wait here for what takes no longer than ``seconds`` on an ordinary machine."""
    return seconds * FACTOR
