"""The API server's lists, decoded item by item. Pure.

A list of a node's pods is a megabyte: decoded at once it would hold the interpreter for ten milliseconds, in which a
hook cannot run, and would leave memory behind that is needed once. Here other threads may run between two items, and
of each item only what is used stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.kube.decode import flattened, whole

if TYPE_CHECKING:
    from nri_dranet.kube.decode import Members

_SPACE: Final = re.compile(r"[ \t\r\n]*")

Keep = Callable[[dict[str, Any]], Mapping[str, Any]]


def decode_list(text: str, keep: Keep, members: Members | None = None) -> tuple[str, list[Mapping[str, Any]]]:
    """Decode a list of the API; what no reader can take of it is cut (``kube.decode``).

    Args:
        text: the answer.
        keep: reduces each item to what is used of it.
        members: makes each JSON object from its members.

    Returns:
        The list's ``resourceVersion`` and its items.

    Raises:
        ValueError: it is no JSON object.
    """
    try:
        return _list(text, keep, json.JSONDecoder(object_pairs_hook=members))
    except json.JSONDecodeError:
        raise
    except (RecursionError, ValueError):
        return _list(flattened(text), keep, json.JSONDecoder(object_pairs_hook=members, parse_int=whole))


def _list(text: str, keep: Keep, decoder: json.JSONDecoder) -> tuple[str, list[Mapping[str, Any]]]:
    version = ""
    items: list[Mapping[str, Any]] = []
    at = _expect(text, 0, "{")
    while not text.startswith("}", at):
        name, at = decoder.raw_decode(text, at)
        at = _expect(text, at, ":")
        if name == "items" and text.startswith("[", at):
            at = _items(text, at, items, keep, decoder)
        else:
            value, at = decoder.raw_decode(text, at)
            if name == "metadata" and isinstance(value, dict):
                version = str(value.get("resourceVersion") or "")
        at = _next(text, at, "}")
    return version, items


def _items(text: str, at: int, items: list[Mapping[str, Any]], keep: Keep, decoder: json.JSONDecoder) -> int:
    at = _expect(text, at, "[")
    while not text.startswith("]", at):
        item, at = decoder.raw_decode(text, at)
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
