"""docs/user/monitoring.md and the code name the same parts and metrics."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nri_dranet.driver import Driver
from nri_dranet.telemetry import metrics

TEXT = (Path(__file__).parents[3] / "docs/user/monitoring.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \|([^|]*)\|", TEXT, re.MULTILINE))


def metric(name: str) -> Any:
    """Return a metric of the code by its name."""
    found = [each for each in vars(metrics).values() if getattr(each, "_name", "") == name]
    assert found, f"no metric is called {name}"
    return found[0]


def test_each_part_of_readiness_is_explained() -> None:
    """No other, and none is missing."""
    listed = {name for name in ROWS if not name.startswith("nri_dranet_")}
    assert listed == set(Driver.__new__(Driver)._readiness())


def test_the_metrics_in_the_text_are_the_codes() -> None:
    """Names and labels."""
    listed = [name for name in ROWS if name.startswith("nri_dranet_")]
    assert len(listed) == 7
    for name in listed:
        assert ROWS[name].strip() == ", ".join(metric(name)._labelnames), name


def test_no_metric_grows_with_pods_or_claims() -> None:
    """Labels are words of short lists."""
    labels = {label for each in vars(metrics).values() for label in getattr(each, "_labelnames", ())}
    assert labels.isdisjoint({"pod", "claim", "uid", "namespace", "device", "node", "name"})
