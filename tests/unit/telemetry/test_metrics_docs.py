"""docs/user/metrics.md names every metric and every part of readiness, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nri_dranet.driver import Driver
from nri_dranet.telemetry import metrics

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/user/metrics.md").read_text(encoding="utf-8")
METRICS: dict[str, Any] = {key: each for key, each in vars(metrics).items() if hasattr(each, "_labelnames")}


def test_each_metric_is_listed_with_its_type_and_labels() -> None:
    """Both ways: none is missing, none is told that is not there."""
    rows = re.findall(r"^\| `(\w+)` \| (counter|gauge|histogram) \|([^|]*)\|", TEXT, re.MULTILINE)
    listed = {(name, kind, labels.strip()) for name, kind, labels in rows}
    code = {
        (each._name + ("_total" if each._type == "counter" else ""), each._type, ", ".join(each._labelnames))
        for each in METRICS.values()
    }
    assert listed == code
    assert len(rows) == len(listed)


def test_each_metric_is_set_somewhere() -> None:
    """A metric that nothing sets would say that all is well for ever."""
    sources = (path for path in (ROOT / "nri_dranet").rglob("*.py") if path.name != "metrics.py")
    used = set(re.findall(r"\bmetrics\.([A-Z_]+)\b", "\n".join(path.read_text(encoding="utf-8") for path in sources)))
    assert set(METRICS) <= used


def test_each_part_of_readiness_has_its_cure() -> None:
    """The table of /readyz has the parts of the code."""
    table = TEXT.partition("## `/readyz`")[2].partition("## Metrics")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(Driver.__new__(Driver)._readiness())
