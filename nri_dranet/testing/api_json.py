"""JSON as the API server keeps it: raw extensions hold the very bytes that were sent.

``RawExtension.Raw`` (``k8s.io/apimachinery/pkg/runtime``) is not decoded on its way into the store. Go's encoder
writes it without spaces and with ``<``, ``>`` and ``&`` escaped; what passes through an untyped object comes back with
sorted keys. Two encodings of the same value are different to the server's "field is immutable".
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

_KEY: Final = re.compile(r'"parameters"\s*:\s*')
_ESCAPES: Final = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026", 0x2028: "\\u2028", 0x2029: "\\u2029"}
_WHOLE: Final = 1e21
_INT64: Final = 1 << 63


class RawJson(dict[str, Any]):
    """A map that remembers the text that it came from.

    Attributes:
        raw: The text.
    """

    raw: str

    def __init__(self, value: dict[str, Any], raw: str | None = None) -> None:
        super().__init__(value)
        self.raw = canonical(value) if raw is None else raw


def loads(body: bytes) -> Any:
    """Decode a body; the values of ``parameters`` remember their text.

    Raises:
        ValueError: it is no JSON.
    """
    text = body.decode()
    found = json.loads(text)
    if '"parameters"' in text:
        texts = iter(_texts(text))
        found = _mark(found, texts)
    return found


def _texts(text: str) -> list[str]:
    decoder = json.JSONDecoder()
    found, end = [], 0
    for match in _KEY.finditer(text):
        if match.start() >= end:
            _, end = decoder.raw_decode(text, match.end())
            found.append(text[match.end() : end])
    return found


def _mark(value: Any, texts: Any) -> Any:
    if isinstance(value, dict):
        marked: dict[str, Any] = {}
        for name, item in value.items():
            if name == "parameters":
                raw = next(texts)
                marked[name] = RawJson(item, raw) if isinstance(item, dict) else item
            else:
                marked[name] = _mark(item, texts)
        return marked
    if isinstance(value, list):
        return [_mark(item, texts) for item in value]
    return value


def clone(value: Any) -> Any:
    """Copy JSON deeply; raw maps keep their text."""
    if isinstance(value, RawJson):
        return RawJson({name: clone(item) for name, item in value.items()}, value.raw)
    if isinstance(value, dict):
        return {name: clone(item) for name, item in value.items()}
    if isinstance(value, list):
        return [clone(item) for item in value]
    return value


def through_untyped(value: Any) -> Any:
    """Return what server-side apply makes of a value: raw maps are encoded anew, with sorted keys."""
    return _recoded(value, lambda item: canonical(dict(item)))


def through_json(value: Any) -> Any:
    """Return what the other patches make of a value: raw maps lose their spaces and get Go's escapes."""
    return _recoded(value, lambda item: compact(item.raw))


def _recoded(value: Any, encode: Any) -> Any:
    if isinstance(value, RawJson):
        return RawJson(dict(value), encode(value))
    if isinstance(value, dict):
        return {name: _recoded(item, encode) for name, item in value.items()}
    if isinstance(value, list):
        return [_recoded(item, encode) for item in value]
    return value


def compact(text: str) -> str:
    """Take the spaces between tokens out of a JSON text and escape as Go's encoder does."""
    found, inside, escaped = [], False, False
    for char in text:
        if inside:
            found.append(char)
            inside = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char not in " \t\r\n":
            found.append(char)
            inside = char == '"'
    return "".join(found).translate(_ESCAPES)


def canonical(value: Any) -> str:
    """Encode with sorted keys, as Go does with an untyped value."""
    return json.dumps(_go_numbers(value), separators=(",", ":"), sort_keys=True, ensure_ascii=False).translate(_ESCAPES)


def _go_numbers(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < _WHOLE:
        return int(value)
    if isinstance(value, int) and not -_INT64 <= value < _INT64:
        return float(value)
    if isinstance(value, dict):
        return {name: _go_numbers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_go_numbers(item) for item in value]
    return value


def same(left: Any, right: Any) -> bool:
    """Compare as the server does: 1 and true are different, and so are two texts of one raw value."""
    if isinstance(left, RawJson) and isinstance(right, RawJson) and left.raw != right.raw:
        return False
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(item, right[name]) for name, item in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)
