"""Field and label selectors of lists and watches."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.testing.api_errors import StatusError

if TYPE_CHECKING:
    from collections.abc import Callable

    from nri_dranet.testing.api_schema import Kind

_FIELD: Final = re.compile(r"([^=!]+?)\s*(==|!=|=)\s*(.*)")
_SET: Final = re.compile(r"(\S+)\s+(in|notin)\s+\(([^)]*)\)")
_COMMA: Final = re.compile(r",(?![^(]*\))")

Test = "Callable[[dict[str, Any]], bool]"


def selector(kind: Kind, fields: str, labels: str, namespace: str = "") -> Callable[[dict[str, Any]], bool]:
    """Return a function that tells whether an object is meant.

    Raises:
        StatusError: a selector cannot be read, or names a field that cannot be selected by.
    """
    tests: list[Callable[[dict[str, Any]], bool]] = []
    if namespace:
        tests.append(lambda item: item["metadata"].get("namespace") == namespace)
    tests += [_field(kind, part.strip()) for part in fields.split(",") if part.strip()]
    tests += [_label(part.strip()) for part in _COMMA.split(labels) if part.strip()]
    return lambda item: all(test(item) for test in tests)


def _field(kind: Kind, text: str) -> Callable[[dict[str, Any]], bool]:
    match = _FIELD.fullmatch(text)
    if not match:
        raise StatusError(400, f"invalid selector: '{text}'; can't understand '{text}'")
    path, operator, value = match.groups()
    if path not in kind.selectors:
        raise StatusError(400, f"field label not supported for {kind.api_version}, Kind={kind.kind}: {path}")
    parts = path.split(".")

    def test(item: dict[str, Any]) -> bool:
        found: Any = item
        for part in parts:
            found = found.get(part) if isinstance(found, dict) else None
        text = str(found).lower() if isinstance(found, bool) else "" if found is None else str(found)
        return (text == value) != (operator == "!=")

    return test


def _label(text: str) -> Callable[[dict[str, Any]], bool]:
    if match := _SET.fullmatch(text):
        key, operator, values = match.groups()
        wanted = {value.strip() for value in values.split(",")}
        return lambda item: (_labels(item).get(key) in wanted) == (operator == "in")
    if match := _FIELD.fullmatch(text):
        key, operator, value = match.groups()
        return lambda item: (_labels(item).get(key) == value) != (operator == "!=")
    if text.startswith("!"):
        return lambda item: text[1:] not in _labels(item)
    return lambda item: text in _labels(item)


def _labels(item: dict[str, Any]) -> dict[str, str]:
    found = item["metadata"].get("labels")
    return found if isinstance(found, dict) else {}
