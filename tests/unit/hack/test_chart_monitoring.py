"""Dashboard and alerts of the chart: every metric and label in them exists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

import pytest
from prometheus_client import REGISTRY

from nri_dranet.telemetry import metrics  # noqa: F401 - makes the metrics

CHART: Final = Path(__file__).resolve().parents[3] / "charts" / "nri-dranet"
_USE: Final = re.compile(r"\b((?:nri_dranet|dranet_driver)_\w+)(?:\{([^}]*)\})?")
_BY: Final = re.compile(r"sum by \(([^)]*)\)")


def _known() -> dict[str, set[str]]:
    """Give the metrics of the program as Prometheus stores them, with their labels."""
    found: dict[str, set[str]] = {}
    for collector, names in REGISTRY._collector_to_names.items():
        for name in names:
            found[name] = set(getattr(collector, "_labelnames", ()))
    return found


def _expressions() -> list[str]:
    board = json.loads((CHART / "dashboards" / "nri-dranet.json").read_text(encoding="utf-8"))
    alerts = (CHART / "templates" / "monitoring.yaml").read_text(encoding="utf-8")
    return [
        *(target["expr"] for panel in board["panels"] for target in panel["targets"]),
        *(line.partition("expr: ")[2] for line in alerts.splitlines() if "expr: " in line),
    ]


@pytest.mark.parametrize("expression", _expressions())
def test_metrics_and_labels_exist(expression: str) -> None:
    """An expression asks for metrics of the program, by labels that they have."""
    known = _known()
    used = _USE.findall(expression)
    assert used
    for name, selector in used:
        assert name in known
        labels = {part.partition("=")[0].rstrip("~!").strip() for part in selector.split(",") if part}
        # The scrape adds the pod.
        assert labels <= known[name] | {"pod"}
    for by in _BY.findall(expression):
        labels = {label.strip() for label in by.split(",")} - {"le"}
        assert labels <= set.union(*(known[name] for name, _ in used))


def test_panels_have_room() -> None:
    """No two panels of the dashboard lie on each other, and each has a title and a number of its own."""
    board = json.loads((CHART / "dashboards" / "nri-dranet.json").read_text(encoding="utf-8"))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert len({panel["title"] for panel in board["panels"]}) == len(board["panels"])
