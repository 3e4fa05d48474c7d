"""What the API server accepts as a ResourceSlice or DeviceClass (``pkg/apis/resource/validation``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from nri_dranet.inventory.filter import DeviceFilter
from nri_dranet.testing import api_words as words
from nri_dranet.testing.api_errors import bad, duplicate, required, too_long, too_many, unsupported
from nri_dranet.testing.api_json import same

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nri_dranet.testing.api_errors import FieldError

_MAX_DEVICES: Final = 128
_MAX_HEAVY_DEVICES: Final = 64
_MAX_ATTRIBUTES: Final = 32
_MAX_TEXT: Final = 64
_MAX_TAINTS: Final = 16
_MAX_BINDINGS: Final = 4
_MAX_SELECTORS: Final = 32
_EFFECTS: Final = ("NoExecute", "NoSchedule", "None")
_NODE_FIELDS: Final = ("nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection")
_LISTS: Final = ("ints", "bools", "strings", "versions")


def without_gated(spec: dict[str, Any]) -> None:
    """Drop what belongs to features that are off: list attributes."""
    for device in spec.get("devices") or []:
        for attribute in (device.get("attributes") or {}).values():
            for name in _LISTS:
                attribute.pop(name, None)


def slice_errors(item: Mapping[str, Any], old: Mapping[str, Any] | None) -> list[FieldError]:
    """Check a ResourceSlice, and that a change leaves alone what may not change."""
    spec = item.get("spec") or {}
    pool = spec.get("pool") or {}
    found = words.driver_name("spec.driver", spec.get("driver", ""))
    found += words.pool_name("spec.pool.name", pool.get("name", ""))
    if pool.get("resourceSliceCount", 0) <= 0:
        value = pool.get("resourceSliceCount", 0)
        found.append(bad("spec.pool.resourceSliceCount", value, "must be greater than zero"))
    if pool.get("generation", 0) < 0:
        found.append(bad("spec.pool.generation", pool["generation"], "must be greater than or equal to zero"))
    found += _node_errors(spec)
    devices = spec.get("devices") or []
    heavy = any(device.get("taints") or device.get("consumesCounters") for device in devices)
    limit = _MAX_HEAVY_DEVICES if heavy else _MAX_DEVICES
    if len(devices) > limit:
        found.append(too_many("spec.devices", len(devices), limit))
    names = set()
    for number, device in enumerate(devices):
        where = f"spec.devices[{number}]"
        if device.get("name") in names:
            found.append(duplicate(where, device["name"]))
        names.add(device.get("name"))
        found += _device_errors(where, device)
    return found + (_fixed(spec, old.get("spec") or {}) if old is not None else [])


def _fixed(spec: Mapping[str, Any], old: Mapping[str, Any]) -> list[FieldError]:
    now, before = spec.get("pool") or {}, old.get("pool") or {}
    pairs = (
        ("spec.driver", spec.get("driver", ""), old.get("driver", "")),
        ("spec.pool.name", now.get("name", ""), before.get("name", "")),
        ("spec.nodeName", spec.get("nodeName", ""), old.get("nodeName", "")),
    )
    return [bad(path, new, "field is immutable") for path, new, was in pairs if not same(new, was)]


def _node_errors(spec: Mapping[str, Any]) -> list[FieldError]:
    given = [name for name in _NODE_FIELDS if spec.get(name)]
    choice = ", ".join(f"`{name}`" for name in _NODE_FIELDS)
    if not given:
        return [required("spec", f"exactly one of {choice} is required")]
    if len(given) > 1:
        return [
            bad(
                "spec",
                f"{{{', '.join(f'`{name}`' for name in given)}}}",
                f"exactly one of {choice} is required, but multiple fields are set",
            )
        ]
    return words.subdomain("spec.nodeName", spec["nodeName"]) if given == ["nodeName"] else []


def _device_errors(where: str, device: Mapping[str, Any]) -> list[FieldError]:
    found = words.device_name(f"{where}.name", device.get("name", ""))
    attributes, capacity = device.get("attributes") or {}, device.get("capacity") or {}
    for name, value in attributes.items():
        found += words.qualified_key(f"{where}.attributes", name)
        found += _attribute_errors(f"{where}.attributes[{name}]", value)
    for name in capacity:
        found += words.qualified_key(f"{where}.capacity", name)
    total = len(attributes) + len(capacity)
    if total > _MAX_ATTRIBUTES:
        why = f"the total number of attributes and capacities must not exceed {_MAX_ATTRIBUTES}"
        found.append(bad(where, total, why))
    found += _taint_errors(f"{where}.taints", device.get("taints") or [])
    return found + _binding_errors(where, device)


def _attribute_errors(where: str, value: Mapping[str, Any]) -> list[FieldError]:
    if len(value) != 1:
        return [bad(where, dict(value) if value else "", "exactly one value must be specified")]
    text = value.get("string")
    if text is not None and words.size(text) > _MAX_TEXT:
        return [too_long(f"{where}.string", _MAX_TEXT)]
    text = value.get("version")
    if text is None:
        return []
    too = [too_long(f"{where}.version", _MAX_TEXT)] if words.size(text) > _MAX_TEXT else []
    return words.version(f"{where}.version", text) + too


def _taint_errors(where: str, taints: list[dict[str, Any]]) -> list[FieldError]:
    found = [too_many(where, len(taints), _MAX_TAINTS)] if len(taints) > _MAX_TAINTS else []
    for number, taint in enumerate(taints):
        here = f"{where}[{number}]"
        key, effect = taint.get("key", ""), taint.get("effect", "")
        found += words.label_key(f"{here}.key", key)
        found += words.label_value(f"{here}.value", taint.get("value", ""))
        if not effect:
            found.append(required(f"{here}.effect"))
        elif effect not in _EFFECTS:
            found.append(unsupported(f"{here}.effect", effect, _EFFECTS))
    return found


def _binding_errors(where: str, device: Mapping[str, Any]) -> list[FieldError]:
    found: list[FieldError] = []
    for name in ("bindingConditions", "bindingFailureConditions"):
        values = device.get(name) or []
        if len(values) > _MAX_BINDINGS:
            found.append(too_many(f"{where}.{name}", len(values), _MAX_BINDINGS))
        for number, value in enumerate(values):
            found += words.label_key(f"{where}.{name}[{number}]", value)
            if value in values[:number]:
                found.append(duplicate(f"{where}.{name}[{number}]", value))
    given = [name for name in ("bindingConditions", "bindingFailureConditions") if device.get(name)]
    if len(given) == 1:
        other = "bindingFailureConditions" if given == ["bindingConditions"] else "bindingConditions"
        found.append(bad(f"{where}.{other}", None, f"{other} are required to use {given[0]}"))
    return found


def class_errors(item: Mapping[str, Any]) -> list[FieldError]:
    """Check a DeviceClass."""
    spec = item.get("spec") or {}
    return selector_errors("spec", spec) + config_errors("spec", spec.get("config") or [])


def selector_errors(where: str, spec: Mapping[str, Any]) -> list[FieldError]:
    """Check CEL selectors."""
    selectors = spec.get("selectors") or []
    found = [too_many(f"{where}.selectors", len(selectors), _MAX_SELECTORS)] if len(selectors) > _MAX_SELECTORS else []
    for number, selector in enumerate(selectors):
        path = f"{where}.selectors[{number}].cel"
        expression = (selector.get("cel") or {}).get("expression")
        if expression is None:
            found.append(required(path))
            continue
        try:
            DeviceFilter(expression, "driver.example.com")
        except ValueError as error:
            found.append(bad(f"{path}.expression", expression, f"compilation failed: {error}"))
    return found


def config_errors(where: str, configs: list[dict[str, Any]]) -> list[FieldError]:
    """Check opaque configurations."""
    found: list[FieldError] = []
    for number, config in enumerate(configs):
        path = f"{where}.config[{number}].opaque"
        opaque = config.get("opaque")
        if opaque is None:
            found.append(required(path))
            continue
        found += words.driver_name(f"{path}.driver", opaque.get("driver", ""))
        found += words.json_object(f"{path}.parameters", opaque.get("parameters"))
    return found
