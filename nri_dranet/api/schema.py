"""The JSON schema of the configuration, for editors and admission checks. Made when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nri_dranet.api import config

if TYPE_CHECKING:
    from pydantic import BaseModel

DIALECT = "https://json-schema.org/draft/2020-12/schema"

PARTS: tuple[type[BaseModel], ...] = (
    config.NetworkConfig,
    config.Interface,
    config.Vrf,
    config.SubInterface,
    config.Route,
    config.Rule,
    config.Neighbor,
    config.Ethtool,
)
"""The parts of the schema, in the order of the reference."""


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of the opaque parameters.

    It names every field with its type, range and meaning. What JSON schema cannot say well (names, addresses, and
    rules between fields) is checked by ``resolve`` alone.
    """
    made = config.NetworkConfig.model_json_schema(by_alias=True)
    below: dict[str, dict[str, Any]] = made.pop("$defs")
    shapes = {part.__name__: _part(part, below.get(part.__name__, made)) for part in PARTS}
    return {"$schema": DIALECT, **shapes.pop(config.NetworkConfig.__name__), "$defs": shapes}


def _part(part: type[BaseModel], shape: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = shape["properties"]
    for name, info in part.model_fields.items():
        properties[info.alias or name] = _field(properties[info.alias or name], info.description or "")
    return shape


def _field(shape: dict[str, Any], description: str) -> dict[str, Any]:
    """Return the shape of a field as users write it: what is not given is left out, never null."""
    kept = {name: value for name, value in shape.items() if name not in {"title", "anyOf", "default"}}
    for option in shape.get("anyOf", ()):
        if option.get("type") != "null":
            kept.update(option)
    if shape.get("default") is not None:
        kept["default"] = shape["default"]
    return {"description": description, **kept}
