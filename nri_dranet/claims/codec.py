"""Frozen dataclasses to JSON and back, by their type hints.

The journal keeps plans and facts as JSON text. Fields that a row lacks take their default, so that a newer program
reads the rows of an older one. Fields that the program does not know are an error: a row of a newer program must be
refused in words instead of half understood.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import functools
import json
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


class DecodeError(ValueError):
    """A JSON value does not fit the type that it should become; the text names the path and the value."""


def to_json(value: Any) -> Any:
    """Return plain JSON data (dict, list, str, int, float, bool, None) for a dataclass tree.

    Bytes become base64 text, enums their value, tuples lists. Fields that hold their default are left out.
    """
    if value is None or isinstance(value, bool | int | float) or type(value) is str:
        return value
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value):
        return {
            name: to_json(getattr(value, name))
            for name, default in _defaults(typing.cast("type", type(value)))
            if getattr(value, name) != default
        }
    raise TypeError(f"cannot be kept as JSON: {type(value).__name__}")


def dumps(value: Any) -> str:
    """Return compact JSON text of a dataclass tree, keys in the order of the fields."""
    return json.dumps(to_json(value), separators=(",", ":"))


def from_json(kind: type[T], data: Any, path: str = "") -> T:
    """Build a value of type ``kind`` from plain JSON data.

    Raises:
        DecodeError: the data does not fit; the text names the path within the document.
    """
    return typing.cast("T", _decode(kind, data, path or "."))


def loads(kind: type[T], text: str | bytes) -> T:
    """Build a value of type ``kind`` from JSON text.

    Raises:
        DecodeError: no JSON, or JSON of another shape.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"not JSON: {error}") from error
    return from_json(kind, data)


_MISSING = object()


@functools.cache
def _defaults(kind: type) -> tuple[tuple[str, Any], ...]:
    """Each field with the default value under which it need not be written."""
    found = []
    for field in dataclasses.fields(kind):
        default: Any = _MISSING
        if field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        found.append((field.name, default))
    return tuple(found)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _decode(kind: Any, data: Any, path: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(kind, data, path)
    if origin is tuple:
        return _decode_tuple(kind, data, path)
    if origin is dict:
        if not isinstance(data, dict):
            raise DecodeError(f"{path}: {data!r} is no object")
        _, value_kind = typing.get_args(kind)
        return {key: _decode(value_kind, item, f"{path}.{key}") for key, item in data.items()}
    if kind is Any:
        return data
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(typing.cast("type", kind), data, path)
    return _decode_scalar(kind, data, path)


def _decode_scalar(kind: Any, data: Any, path: str) -> Any:
    if kind is bytes:
        try:
            return base64.b64decode(data, validate=True)
        except (ValueError, TypeError) as error:
            raise DecodeError(f"{path}: {data!r} is not base64") from error
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(data)
        except ValueError as error:
            allowed = ", ".join(str(member.value) for member in kind)
            raise DecodeError(f"{path}: {data!r} is none of {allowed}") from error
    if kind is float and type(data) is int:
        return float(data)
    if kind in (str, int, bool, float) and type(data) is kind:
        return data
    raise DecodeError(f"{path}: {data!r} is no {getattr(kind, '__name__', kind)}")


def _decode_union(kind: Any, data: Any, path: str) -> Any:
    choices = [choice for choice in typing.get_args(kind) if choice is not type(None)]
    if data is None and len(choices) < len(typing.get_args(kind)):
        return None
    problems = []
    for choice in choices:
        try:
            return _decode(choice, data, path)
        except DecodeError as error:
            problems.append(str(error))
    raise DecodeError("; ".join(problems))


def _decode_tuple(kind: Any, data: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise DecodeError(f"{path}: {data!r} is no list")
    kinds = typing.get_args(kind)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(_decode(kinds[0], item, f"{path}[{i}]") for i, item in enumerate(data))
    if len(kinds) != len(data):
        raise DecodeError(f"{path}: {len(data)} items where {len(kinds)} are expected")
    return tuple(_decode(each, item, f"{path}[{i}]") for i, (each, item) in enumerate(zip(kinds, data, strict=True)))


def _decode_dataclass(kind: type, data: Any, path: str) -> Any:
    if not isinstance(data, dict):
        raise DecodeError(f"{path}: {data!r} is no object")
    hints = _hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(data) - names)
    if unknown:
        raise DecodeError(f"{path}: unknown field {unknown[0]!r}")
    values = {name: _decode(hints[name], item, f"{path}.{name}") for name, item in data.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise DecodeError(f"{path}: {error}") from error
