"""The chart's values: the schema knows each, and no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[3] / "charts" / "nri-dranet"


def test_the_schema_knows_each_value_and_no_other() -> None:
    """A value that is misspelt is refused, on every level that the chart defines."""
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    # Helm adds "global" by itself.
    schema["properties"].pop("global")

    def compare(here: dict[str, Any], given: dict[str, Any]) -> None:
        if "properties" not in here:
            return
        assert here["additionalProperties"] is False
        assert set(here["properties"]) == set(given)
        for name, value in given.items():
            if isinstance(value, dict):
                compare(here["properties"][name], value)

    compare(schema, values)
