"""docs/user/troubleshooting.md speaks of reasons that docs/user/status.md explains."""

from __future__ import annotations

import re
from pathlib import Path

USER = Path(__file__).parents[3] / "docs/user"
OTHERS = {"FailedPrepareDynamicResources", "FailedCreatePodSandBox"}
"""Reasons of kubelet's Events."""


def test_each_reason_is_one_of_the_status() -> None:
    """A reason that does not exist would be looked for in vain."""
    named = set(re.findall(r"`([A-Z][A-Za-z]+)`", (USER / "troubleshooting.md").read_text(encoding="utf-8")))
    explained = set(re.findall(r"`([A-Z][A-Za-z]+)`", (USER / "status.md").read_text(encoding="utf-8")))
    assert named - OTHERS <= explained
