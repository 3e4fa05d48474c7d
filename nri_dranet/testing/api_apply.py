"""Server-side apply and the patches, as far as this driver's objects need them. Pure.

An object is a set of leaves, each known by its path. Lists of ``status.devices`` and ``conditions`` are maps by their
keys, all other lists are leaves (``resource.k8s.io/v1``: listType and listMapKey). Each field manager owns leaves; a
manager that stops to apply a leaf takes it away, unless another owns it too.

Source of the rules: Kubernetes, "Server-Side Apply", and ``sigs.k8s.io/structured-merge-diff``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LIST_KEYS: Final[dict[tuple[str, ...], tuple[str, ...]]] = {
    ("status", "devices"): ("driver", "pool", "device", "shareID"),
    ("status", "devices", "conditions"): ("type",),
}
"""Lists that are maps: path without the items' keys → the keys."""

Key = tuple[tuple[str, Any], ...]
Path = tuple["str | Key", ...]
ITEM: Final = "."
"""Last part of the path that stands for a list item itself."""


class DuplicateKeyError(ValueError):
    """Two items of a list have the same keys; the text is the API server's."""


class ApplyConflictError(Exception):
    """Another manager owns a leaf with another value; the text names both."""


@dataclass(slots=True)
class Managers:
    """Which manager owns which leaves of one object."""

    owned: dict[str, set[Path]] = field(default_factory=dict)

    def others(self, manager: str) -> set[Path]:
        """Return what all managers but one own."""
        return {path for name, paths in self.owned.items() if name != manager for path in paths}

    def updated(self, manager: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """Note what an update, not an apply, has changed."""
        old, new = dict(leaves(before)), dict(leaves(after))
        changed = {path for path, value in new.items() if path not in old or old[path] != value}
        gone = old.keys() - new.keys()
        for name in list(self.owned):
            self.owned[name] -= gone
            if name != manager:
                self.owned[name] -= {path for path in changed if path[-1] != ITEM}
        self.owned.setdefault(manager, set()).update(changed)


def leaves(value: Any, path: Path = (), plain: tuple[str, ...] = ()) -> Iterator[tuple[Path, Any]]:
    """Give each leaf of an object with its path.

    Raises:
        DuplicateKeyError: two items of a list have the same keys.
    """
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from leaves(item, (*path, name), (*plain, name))
    elif isinstance(value, list) and plain in LIST_KEYS:
        seen: set[Key] = set()
        for item in value:
            key = _key(item, LIST_KEYS[plain])
            if key in seen:
                words = ",".join(f'{name}="{part}"' for name, part in sorted(key) if part is not None)
                raise DuplicateKeyError(f".{'.'.join(plain)}: duplicate entries for key [{words}]")
            seen.add(key)
            yield (*path, key, ITEM), None
            yield from leaves(item, (*path, key), plain)
    else:
        yield path, value


def apply(
    present: Mapping[str, Any], wanted: Mapping[str, Any], manager: str, managers: Managers, *, force: bool
) -> dict[str, Any]:
    """Return the object after an apply; ``managers`` is changed.

    Raises:
        ApplyConflictError: another manager owns a leaf with another value, and ``force`` is off.
        DuplicateKeyError: two items of a list have the same keys.
    """
    new = dict(leaves(dict(wanted)))
    have = dict(leaves(dict(present)))
    for name, paths in list(managers.owned.items()):
        if name == manager:
            continue
        clash = {p for p in paths & new.keys() if p[-1] != ITEM and have.get(p) != new[p]}
        if clash and not force:
            where = ".".join(str(part) for part in sorted(map(str, clash)))
            raise ApplyConflictError(f'Apply failed with {len(clash)} conflict: conflict with "{name}": {where}')
        managers.owned[name] = paths - clash
    result = copy.deepcopy(dict(present))
    dropped = managers.owned.get(manager, set()) - new.keys() - managers.others(manager)
    for path in sorted(dropped, key=len, reverse=True):
        _remove(result, path)
    for path, value in new.items():
        _set(result, path, value)
    managers.owned[manager] = set(new)
    return result


def merge_patch(target: Any, patch: Any) -> Any:
    """Return ``target`` after a JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge_patch(result.get(name), value)
    return result


def json_patch(target: Any, operations: list[dict[str, Any]]) -> Any:
    """Return ``target`` after a JSON patch (RFC 6902: add, remove, replace, test).

    Raises:
        ValueError: an operation cannot be carried out; the text says which.
    """
    result = copy.deepcopy(target)
    for operation in operations:
        kind, path = operation.get("op"), str(operation.get("path", ""))
        parts = [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]
        try:
            _operate(result, kind, parts, operation.get("value"))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(
                f"the server rejected our request due to an error in our request: {kind} {path}"
            ) from error
    return result


def _operate(target: Any, kind: Any, parts: list[str], value: Any) -> None:
    *above, last = parts
    for part in above:
        target = target[int(part)] if isinstance(target, list) else target[part]
    place: Any = last
    if isinstance(target, list):
        place = len(target) if last == "-" else int(last)
        if kind == "add":
            target.insert(place, copy.deepcopy(value))
            return
    if kind == "remove":
        del target[place]
    elif kind == "add" or (kind == "replace" and target[place] is not None):
        target[place] = copy.deepcopy(value)
    elif kind != "test" or target[place] != value:
        raise ValueError(kind)


def _key(item: Any, names: tuple[str, ...]) -> Key:
    return tuple((name, item.get(name) if isinstance(item, dict) else None) for name in names)


def _find(container: list[Any], key: Key) -> Any:
    names = tuple(name for name, _ in key)
    return next((item for item in container if _key(item, names) == key), None)


def _set(target: Any, path: Path, value: Any) -> None:
    plain: tuple[str, ...] = ()
    for position, part in enumerate(path[:-1]):
        if isinstance(part, tuple):
            found = _find(target, part)
            if found is None:
                found = {name: each for name, each in part if each is not None}
                target.append(found)
            target = found
        else:
            plain = (*plain, part)
            following = path[position + 1]
            target = target.setdefault(part, [] if isinstance(following, tuple) else {})
    last = path[-1]
    if last != ITEM and isinstance(last, str):
        target[last] = copy.deepcopy(value)


def _remove(target: Any, path: Path) -> None:
    above: list[tuple[Any, Any]] = []
    for part in path[:-1]:
        found = _find(target, part) if isinstance(part, tuple) and isinstance(target, list) else None
        if isinstance(part, str) and isinstance(target, dict):
            found = target.get(part)
        if found is None:
            return
        above.append((target, found))
        target = found
    last = path[-1]
    if last == ITEM:
        container, item = above[-1]
        names = {name for name, _ in path[-2]} if isinstance(path[-2], tuple) else set()
        if isinstance(container, list) and item in container and not item.keys() - names:
            container.remove(item)
    elif isinstance(target, dict) and isinstance(last, str):
        target.pop(last, None)
    for container, item in reversed(above):
        if item in ({}, []) and isinstance(container, dict):
            for name in [name for name, value in container.items() if value is item]:
                del container[name]
