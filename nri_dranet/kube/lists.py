"""The API server's lists, decoded item by item. Pure.

A list of a node's pods is a megabyte: decoded at once it would hold the interpreter for ten milliseconds, in which a
hook cannot run, and would leave memory behind that is needed once. Here other threads may run between two items, and
of each item only what is used stays.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SPACE: Final = re.compile(r"[ \t\r\n]*")
_DECODER: Final = json.JSONDecoder()


def decode_list(text: str, keep: Callable[[dict[str, Any]], Mapping[str, Any]]) -> tuple[str, list[Mapping[str, Any]]]:
    """Decode a list of the API.

    Args:
        text: the answer.
        keep: reduces each item to what is used of it.

    Returns:
        The list's ``resourceVersion`` and its items.

    Raises:
        ValueError: it is no JSON object.
    """
    version = ""
    items: list[Mapping[str, Any]] = []
    at = _expect(text, 0, "{")
    while not text.startswith("}", at):
        name, at = _DECODER.raw_decode(text, at)
        at = _expect(text, at, ":")
        if name == "items" and text.startswith("[", at):
            at = _items(text, at, items, keep)
        else:
            value, at = _DECODER.raw_decode(text, at)
            if name == "metadata" and isinstance(value, dict):
                version = str(value.get("resourceVersion") or "")
        at = _next(text, at, "}")
    return version, items


def _items(
    text: str, at: int, items: list[Mapping[str, Any]], keep: Callable[[dict[str, Any]], Mapping[str, Any]]
) -> int:
    at = _expect(text, at, "[")
    while not text.startswith("]", at):
        item, at = _DECODER.raw_decode(text, at)
        if isinstance(item, dict):
            items.append(keep(item))
        at = _next(text, at, "]")
    return at + 1


def _expect(text: str, at: int, sign: str) -> int:
    """Return where the text goes on behind a sign and spaces."""
    at = _skip(text, at)
    if not text.startswith(sign, at):
        raise ValueError(f"{sign} expected at {at}")
    return _skip(text, at + 1)


def _next(text: str, at: int, end: str) -> int:
    """Return where the next member begins, or the end sign is."""
    at = _skip(text, at)
    return at if text.startswith(end, at) else _expect(text, at, ",")


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at
