"""Sets of fields, and what server-side apply does with two objects: compare, merge, remove.

Source: ``sigs.k8s.io/structured-merge-diff`` (``fieldpath``, ``typed``). A path is a tuple of elements in the form of
``FieldsV1``: ``f:NAME``, ``k:{KEYS}``, ``v:VALUE``. A set of fields is a set of paths; a path may be in it together
with paths below it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.testing.api_json import same
from nri_dranet.testing.api_schema import OPEN, Items, Open, Raw, Record, Scalar, Table, fits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from nri_dranet.testing.api_schema import Shape

Path = tuple[str, ...]

_MISSING: Final = object()


class SchemaError(Exception):
    """A value does not fit its shape; the text names the path."""


@dataclass(slots=True)
class Difference:
    """What changed between two objects, as paths."""

    added: set[Path] = field(default_factory=set)
    removed: set[Path] = field(default_factory=set)
    modified: set[Path] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.modified)


def leaf(shape: Shape) -> bool:
    """Tell whether a shape is owned as a whole."""
    match shape:
        case Scalar() | Raw():
            return True
        case Record() | Items():
            return shape.atomic
        case _:
            return False


def fields_of(value: Any, shape: Shape, path: Path = ()) -> set[Path]:
    """Return the fields that somebody who applies this value owns."""
    if value is None or leaf(shape) or not isinstance(value, dict | list):
        return {path}
    found: set[Path] = set()
    for element, item, inner, declared in children(value, shape):
        found |= fields_of(item, inner, (*path, element))
        if not declared or item is None or item == {}:
            found.add((*path, element))
    return found


def nodes_of(value: Any, shape: Shape, path: Path) -> set[Path]:
    """Return every path of a value, the inner ones too."""
    found = {path}
    if value is not None and not leaf(shape) and isinstance(value, dict | list):
        for element, item, inner, _ in children(value, shape):
            found |= nodes_of(item, inner, (*path, element))
    return found


def children(value: Any, shape: Shape) -> Iterator[tuple[str, Any, Shape, bool]]:
    """Give the parts of a map or list: element, value, shape, and whether it is a field that the schema names.

    Raises:
        SchemaError: an item of a keyed list can have no key.
    """
    match shape:
        case Record():
            for name, item in value.items():
                yield f"f:{name}", item, shape.fields.get(name, OPEN), name in shape.fields
        case Table():
            for name, item in value.items():
                yield f"f:{name}", item, shape.element, False
        case Open() if isinstance(value, dict):
            for name, item in value.items():
                yield f"f:{name}", item, OPEN if isinstance(item, dict) else Raw(), False
        case Items():
            for item in value:
                yield element_of(item, shape), item, shape.element, False


def element_of(item: Any, shape: Items) -> str:
    """Return the path element of a list's item.

    Raises:
        SchemaError: it can have no keys.
    """
    if shape.unique:
        return f"v:{_compact(item)}"
    if item is None:
        raise SchemaError("associative list with keys may not have a null element")
    if not isinstance(item, dict):
        raise SchemaError("associative list with keys may not have non-map elements")
    values = {name: item.get(name, None if name in shape.optional else "") for name in sorted(shape.keys)}
    keys = {name: value for name, value in values.items() if value is not None}
    return f"k:{_compact(keys)}"


def check(value: Any, shape: Shape, path: Path = ()) -> None:
    """Check a configuration that is applied.

    Raises:
        SchemaError: a field is not known, has the wrong type, or an item is there twice.
    """
    if value is None:
        return
    match shape:
        case Record() | Table():
            if not isinstance(value, dict):
                raise SchemaError(f"{written(path)}: expected map, got &{{{value}}}")
            for element, item, inner, _ in children(value, shape):
                if isinstance(shape, Record) and not shape.open and element[2:] not in shape.fields:
                    raise SchemaError(f"{written((*path, element))}: field not declared in schema")
                check(item, inner, (*path, element))
        case Items():
            _check_list(value, shape, path)
        case Scalar():
            if not fits(value, shape.kind):
                word = {"integer": "numeric", "boolean": "boolean"}.get(shape.kind, "string")
                raise SchemaError(f"{written(path)}: expected {word}, got &value.valueUnstructured{{Value:{value}}}")
        case _:
            return


def _check_list(value: Any, shape: Items, path: Path) -> None:
    if not isinstance(value, list):
        raise SchemaError(f"{written(path)}: expected list, got &{{{value}}}")
    seen: set[str] = set()
    for number, item in enumerate(value):
        if shape.atomic:
            check(item, shape.element, (*path, f"i:{number}"))
            continue
        try:
            element = element_of(item, shape)
        except SchemaError as error:
            raise SchemaError(f"{written(path)}: element {number}: {error}") from error
        if element in seen:
            raise SchemaError(f"{written(path)}: duplicate entries for key {_shown(element)}")
        seen.add(element)
        check(item, shape.element, (*path, element))


def compare(old: Any, new: Any, shape: Shape) -> Difference:
    """Compare two values of one shape."""
    found = Difference()
    _compare(old, new, shape, (), found)
    return found


def _compare(old: Any, new: Any, shape: Shape, path: Path, found: Difference) -> None:
    if old is _MISSING:
        found.added |= nodes_of(new, shape, path)
        return
    if new is _MISSING:
        found.removed |= nodes_of(old, shape, path)
        return
    plain = leaf(shape) or not isinstance(old, dict | list) or not isinstance(new, type(old))
    if plain:
        if not same(old, new):
            found.modified.add(path)
            found.removed |= nodes_of(old, shape, path) - {path}
            found.added |= nodes_of(new, shape, path) - {path}
        return
    left = {element: (item, inner) for element, item, inner, _ in children(old, shape)}
    right = {element: (item, inner) for element, item, inner, _ in children(new, shape)}
    for element in left.keys() | right.keys():
        inner = (left.get(element) or right[element])[1]
        before = left[element][0] if element in left else _MISSING
        after = right[element][0] if element in right else _MISSING
        _compare(before, after, inner, (*path, element), found)


def merge(live: Any, config: Any, shape: Shape) -> Any:
    """Lay a configuration over what is there."""
    if config is None or leaf(shape) or not isinstance(config, dict | list) or not isinstance(live, type(config)):
        return config
    if isinstance(config, dict):
        members: dict[str, Any] = dict(live)
        for element, item, inner, _ in children(config, shape):
            name = element[2:]
            members[name] = merge(members[name], item, inner) if name in members else item
        return members
    assert isinstance(shape, Items)  # noqa: S101 - only lists with keys come here
    own = {element_of(item, shape): item for item in config}
    merged = []
    for item in live:
        element = element_of(item, shape)
        merged.append(merge(item, own.pop(element), shape.element) if element in own else item)
    return [*merged, *own.values()]


def remove(value: Any, shape: Shape, paths: set[Path]) -> Any:
    """Return a value without the parts at ``paths``; a map or list that has nothing left is null."""
    if leaf(shape) or not isinstance(value, dict | list) or not paths:
        return value
    kept: dict[str, Any] | list[Any] = {} if isinstance(value, dict) else []
    for element, item, inner, _ in children(value, shape):
        if (element,) in paths:
            continue
        below = {path[1:] for path in paths if path[0] == element}
        left = remove(item, inner, below)
        if isinstance(kept, dict):
            kept[element[2:]] = left
        elif left is not None:
            kept.append(left)
    return kept or None


def with_named(paths: Iterable[Path]) -> set[Path]:
    """Add the named fields that lead to the paths."""
    found = set(paths)
    for path in tuple(found):
        found |= {path[:end] for end in range(1, len(path)) if path[end - 1].startswith("f:")}
    return found


def below(paths: Iterable[Path], prefixes: Iterable[Path]) -> set[Path]:
    """Return the paths that are, or lie below, one of the prefixes."""
    tops = tuple(prefixes)
    return {path for path in paths if any(path[: len(top)] == top for top in tops)}


def to_v1(paths: Iterable[Path]) -> dict[str, Any]:
    """Encode as ``FieldsV1``."""
    tree: dict[str, Any] = {}
    members = set(paths)
    for path in sorted(members):
        node = tree
        for element in path:
            node = node.setdefault(element, {})
    for path in members:
        node = tree
        for element in path:
            node = node[element]
        if node:
            node["."] = {}
    return _sorted(tree)


def _sorted(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _sorted(tree[name]) for name in sorted(tree)}


def written(path: Path) -> str:
    """Write a path as the server does: ``.status.devices[device="eth1"].data``."""
    parts = []
    for element in path:
        kind, text = element[:2], element[2:]
        if kind == "f:":
            parts.append(f".{text}")
        elif kind == "i:":
            parts.append(f"[{text}]")
        else:
            parts.append(_shown(element))
    return "".join(parts)


def _shown(element: str) -> str:
    if element.startswith("v:"):
        return f"[={element[2:]}]"
    keys = json.loads(element[2:])
    return f"[{','.join(f'{name}={_compact(value)}' for name, value in keys.items())}]"


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
