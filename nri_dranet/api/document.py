"""From what a claim carries to plain JSON data of bounded size and depth, before anything looks at its meaning.

The API server has parsed and bounded the parameters already (``OpaqueParametersMaxLength``, 10 KiB, in
``k8s.io/api/resource/v1``); ``explain`` reads them from files. Both are put through the same limits here, so that no
later step has to fear a document: 1,600 levels of nesting fit in 10 KiB and exhaust a recursive parser.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

from nri_dranet.api.errors import MAX_ERRORS, FieldError, show, show_path

MAX_BYTES = 10 * 1024
"""Size of one document, in bytes: what the API server allows for opaque parameters."""

MAX_DEPTH = 16
"""Levels of objects and lists in one document; the schema itself needs four."""

MAX_ITEMS = 1024
"""Entries of one list or object in one document; no list of the schema takes more than a quarter of it."""

_MAX_DIGITS = 40
_TOKENS = re.compile(r'"(?:[^"\\]|\\.?)*+(?:"|\Z)|[\[{]|[\]}]', re.DOTALL)

Location = tuple[str | int, ...]


class _Object(dict[str, Any]):
    """A parsed object that remembers which of its members were written more than once."""

    repeated: tuple[str, ...] = ()


class DocumentError(ValueError):
    """The parameters are no JSON document that can be looked into; the text says why."""


def read_document(parameters: Any) -> tuple[dict[str, Any], list[FieldError]]:
    """Return the parameters as plain JSON data, and every problem that makes parts of them unreadable.

    Members that are null count as absent and are left out, as Kubernetes does it. Parameters that are absent, null or
    empty are an empty document.

    Args:
        parameters: decoded JSON data, or JSON text as ``str`` or UTF-8 ``bytes``.
    """
    try:
        data = _decode(parameters) if isinstance(parameters, str | bytes | bytearray) else parameters
    except DocumentError as error:
        return {}, [FieldError("", "", str(error))]
    if data is None:
        return {}, []
    if not isinstance(data, dict):
        return {}, [FieldError("", show(data), "must be an object")]
    reader = _Reader()
    cleaned = reader.clean(data, ())
    if reader.too_large:
        return {}, [FieldError("", "", f"must have at most {MAX_BYTES} bytes")]
    return cleaned or {}, reader.errors


def _decode(raw: str | bytes | bytearray) -> Any:
    text = _bounded_text(raw)
    if not text.strip():
        return None
    if _depth(text) > MAX_DEPTH:
        raise DocumentError(f"must have at most {MAX_DEPTH} levels of nesting")
    try:
        return json.loads(text, object_pairs_hook=keep_repeated, parse_int=_whole)
    except json.JSONDecodeError as error:
        raise DocumentError(f"must be JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None


def _bounded_text(raw: str | bytes | bytearray) -> str:
    if len(raw) > MAX_BYTES:
        raise DocumentError(f"must have at most {MAX_BYTES} bytes, has {len(raw)}")
    try:
        data = raw.encode() if isinstance(raw, str) else bytes(raw)
        text = data.decode()
    except (UnicodeEncodeError, UnicodeDecodeError) as error:
        raise DocumentError(f"must be UTF-8 text: {error.reason}") from None
    if len(data) > MAX_BYTES:
        raise DocumentError(f"must have at most {MAX_BYTES} bytes, has {len(data)}")
    return text


def _depth(text: str) -> int:
    """Return the deepest nesting of a JSON text; brackets within texts do not count."""
    depth = deepest = 0
    for token in _TOKENS.finditer(text):
        if token[0] in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif token[0] in "]}":
            depth -= 1
    return deepest


def keep_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object that remembers members written more than once (``json.loads``: object_pairs_hook).

    Who parses a claim itself uses this, so that ``read_document`` can refuse what a plain parser would swallow.
    """
    found = _Object(pairs)
    if len(found) != len(pairs):
        times = Counter(name for name, _ in pairs)
        found.repeated = tuple(name for name, count in times.items() if count > 1)
    return found


def _whole(digits: str) -> int | float:
    """Read an integer; one that is too long for any field reads as infinity, which no field takes."""
    return int(digits) if len(digits) <= _MAX_DIGITS else math.inf


class _Reader:
    """Copies a document without its nulls and collects what no document may contain."""

    def __init__(self) -> None:
        self.errors: list[FieldError] = []
        self._left = MAX_BYTES

    @property
    def too_large(self) -> bool:
        """Tell whether the document has more than ``MAX_BYTES``; what was read of it is not the whole then."""
        return self._left < 0

    def clean(self, value: Any, where: Location) -> Any:
        self._left -= 1 + (len(value) if isinstance(value, str) else 0)
        if self.too_large:
            return None
        if isinstance(value, dict | list) and len(where) >= MAX_DEPTH:
            self._refuse(where, value, f"must have at most {MAX_DEPTH} levels of nesting")
            return None
        if isinstance(value, dict | list) and len(value) > MAX_ITEMS:
            self._refuse(where, value, f"must have at most {MAX_ITEMS} entries, has {len(value)}")
            return None
        if isinstance(value, dict):
            return self._members(value, where)
        if isinstance(value, list):
            return [self.clean(item, (*where, i)) for i, item in enumerate(value)]
        return self._scalar(value, where)

    def _members(self, value: dict[Any, Any], where: Location) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in getattr(value, "repeated", ()):
            self._refuse((*where, name), value[name], "must be given once")
        for name, item in value.items():
            if not isinstance(name, str):
                self._refuse(where, name, "must have text as the name of a field")
            elif not _encodable(name):
                self._refuse(where, name, "must have valid Unicode as the name of a field")
            elif item is not None:
                self._left -= len(name)
                found[name] = self.clean(item, (*where, name))
        return found

    def _scalar(self, value: Any, where: Location) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            self._refuse(where, "", "must be a number that fits a field, not infinite, NaN or beyond all bounds")
            return 0
        if isinstance(value, str) and not _encodable(value):
            self._refuse(where, value, "must be valid Unicode")
            return ""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        self._refuse(where, value, "must be JSON: text, a number, true, false, a list or an object")
        return None

    def _refuse(self, where: Location, value: Any, message: str) -> None:
        if len(self.errors) <= MAX_ERRORS:
            self.errors.append(FieldError(show_path(where), show(value) if value != "" else "", message))


def _encodable(text: str) -> bool:
    """Tell whether the text is Unicode: JSON escapes can write half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
