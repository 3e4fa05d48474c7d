"""The published schema and reference: made from the model, complete, and up to date."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from hack import config_docs
from nri_dranet.api.resolve import ConfigSource, resolve
from nri_dranet.api.schema import PARTS, json_schema

SCHEMA: dict[str, Any] = json_schema()


def shapes() -> dict[str, dict[str, Any]]:
    """Return each part of the schema by name."""
    below: dict[str, dict[str, Any]] = SCHEMA["$defs"]
    return {"NetworkConfig": SCHEMA} | below


def test_the_published_schema_is_the_models() -> None:
    """The schema file in the documentation is what the model says today."""
    assert config_docs.SCHEMA.read_text(encoding="utf-8") == config_docs.schema_text()


def test_the_reference_page_is_the_models() -> None:
    """The reference in the documentation is what the model says today."""
    text = config_docs.PAGE.read_text(encoding="utf-8")
    assert text == config_docs.page_text(text)


def test_the_reference_keeps_what_is_written_around_it() -> None:
    """Only what is between the marks is generated."""
    old = f"before {config_docs.BEGIN} old {config_docs.END} after"
    new = config_docs.page_text(old)
    assert new.startswith(f"before {config_docs.BEGIN}\n")
    assert new.endswith(f"{config_docs.END} after")
    assert " old " not in new


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_field_is_described(part: Any) -> None:
    """Each field of each part is there under its name in documents, with type and meaning, and nothing else is."""
    shape = shapes()[part.__name__]
    assert list(shape["properties"]) == [info.alias or name for name, info in part.model_fields.items()]
    assert shape["additionalProperties"] is False
    for field in shape["properties"].values():
        assert field["description"].endswith(".")
        assert {"type", "$ref"} & field.keys()
        assert "anyOf" not in field


def test_limits_are_in_the_schema() -> None:
    """Ranges, choices and lengths of lists are machine readable."""
    interface = SCHEMA["$defs"]["Interface"]["properties"]
    assert (interface["mtu"]["minimum"], interface["mtu"]["maximum"]) == (68, 65535)
    assert interface["arpIgnore"]["enum"] == [0, 1, 2, 3, 8]
    assert interface["addresses"]["maxItems"] == 64
    assert SCHEMA["properties"]["routes"]["maxItems"] == 256
    assert SCHEMA["$defs"]["Ethtool"]["properties"]["features"]["maxProperties"] == 128
    assert SCHEMA["$defs"]["Route"]["required"] == ["destination"]


def test_the_schema_is_plain_json() -> None:
    """The schema can be written and read as JSON."""
    assert json.loads(config_docs.schema_text()) == SCHEMA


def examples() -> list[Any]:
    """Return the parameters of every example in the documentation."""
    found = []
    for block in re.findall(r"```yaml\n(.*?)```", config_docs.PAGE.read_text(encoding="utf-8"), re.DOTALL):
        document = yaml.safe_load(block)
        found += [entry["opaque"]["parameters"] for entry in document["spec"]["devices"]["config"]]
    return found


def test_the_documented_examples_are_valid() -> None:
    """Every example of the page is a valid configuration."""
    assert examples()
    for parameters in examples():
        assert resolve([ConfigSource("example", parameters)]).origins
