"""JSON of the API server, whatever users have put into it.

The API server keeps opaque parameters as they were written: with members given twice, hundreds of levels of nesting,
numbers of thousands of digits. A plain parser swallows the first and fails at the others, and with them at the whole
object. Here what no configuration may have is cut instead, so that the object can be read and the rest be refused in
words.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, Final

Members = Callable[[list[tuple[str, Any]]], dict[str, Any]]
"""Makes a JSON object of its members in the order of the text (``json.loads``: object_pairs_hook)."""

MAX_DEPTH: Final = 100
"""Levels of an answer that are kept; an object of the API needs about 20."""

_MAX_DIGITS: Final = 400
_TOKENS: Final = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]', re.DOTALL)


def decode(raw: str | bytes, members: Members | None = None) -> Any:
    """Decode an answer.

    Lists and objects below ``MAX_DEPTH`` levels are empty; a whole number that Python does not read is infinity.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.loads(raw, object_pairs_hook=members)
    except json.JSONDecodeError:
        raise
    except (RecursionError, ValueError):
        text = raw if isinstance(raw, str) else raw.decode()
        return json.loads(flattened(text), object_pairs_hook=members, parse_int=whole)


def whole(digits: str) -> int | float:
    """Read a whole number; infinity where it is too long for any field."""
    return int(digits) if len(digits) <= _MAX_DIGITS else math.inf


def flattened(text: str) -> str:
    """Return JSON text without what is in lists and objects below ``MAX_DEPTH`` levels."""
    kept: list[str] = []
    depth, begin = 0, 0
    for token in _TOKENS.finditer(text):
        if token[0] in "[{":
            depth += 1
            if depth == MAX_DEPTH:
                kept.append(text[begin : token.end()])
                begin = len(text)
        elif token[0] in "]}":
            if depth == MAX_DEPTH:
                begin = token.start()
            depth -= 1
    return "".join([*kept, text[begin:]])
