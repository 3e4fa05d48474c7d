"""JSON merge patch (RFC 7386) and JSON patch (RFC 6902), as the API server applies them."""

from __future__ import annotations

from typing import Any, Final

from nri_dranet.testing.api_errors import StatusError
from nri_dranet.testing.api_json import clone, same

_ADD: Final = "add"


def merge_patch(target: Any, patch: Any) -> Any:
    """Return what a merge patch makes of a value."""
    if not isinstance(patch, dict):
        return clone(patch)
    # A plain map: what a patch reaches into has lost the text that it came from.
    found = {name: clone(item) for name, item in target.items()} if isinstance(target, dict) else {}
    for name, item in patch.items():
        if item is None:
            found.pop(name, None)
        else:
            found[name] = merge_patch(found.get(name), item)
    return found


def json_patch(target: Any, operations: Any) -> Any:
    """Return what the operations make of a value.

    Raises:
        StatusError: it is no JSON patch, or an operation does not fit.
    """
    if not isinstance(operations, list):
        raise StatusError(
            400, "error decoding patch: json: cannot unmarshal object into Go value of type []*json.Patch"
        )
    found = clone(target)
    for operation in operations:
        try:
            found = _operate(found, operation)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise StatusError(422, "the server rejected our request due to an error in our request") from error
    return found


def _operate(document: Any, operation: dict[str, Any]) -> Any:
    """Carry out one operation.

    Raises:
        KeyError: a member is not there.
        IndexError: an item is not there.
        ValueError: a test failed, or the operation is not known.
        TypeError: a path leads through a plain value.
    """
    verb, path = operation["op"], _pointer(operation["path"])
    match verb:
        case "test":
            if not same(_look(document, path), operation["value"]):
                raise ValueError(verb)
        case "remove":
            document, _ = _take(document, path)
        case "add" | "replace":
            if verb == "replace":
                _look(document, path)
            document = _put(document, path, clone(operation["value"]), insert=verb == _ADD)
        case "move":
            document, value = _take(document, _pointer(operation["from"]))
            document = _put(document, path, value, insert=True)
        case "copy":
            document = _put(document, path, clone(_look(document, _pointer(operation["from"]))), insert=True)
        case _:
            raise ValueError(verb)
    return document


def _pointer(text: str) -> list[str]:
    if text and not text.startswith("/"):
        raise ValueError(text)
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _look(document: Any, path: list[str]) -> Any:
    for part in path:
        document = document[_index(part)] if isinstance(document, list) else document[part]
    return document


def _index(part: str) -> int:
    if not part.isdecimal():
        raise ValueError(part)
    return int(part)


def _take(document: Any, path: list[str]) -> tuple[Any, Any]:
    if not path:
        raise ValueError(path)
    holder = _look(document, path[:-1])
    taken = holder.pop(_index(path[-1])) if isinstance(holder, list) else holder.pop(path[-1])
    return document, taken


def _put(document: Any, path: list[str], value: Any, *, insert: bool) -> Any:
    if not path:
        return value
    holder, last = _look(document, path[:-1]), path[-1]
    if not isinstance(holder, list):
        if not isinstance(holder, dict):
            raise TypeError(last)
        holder[last] = value
    elif last == "-":
        holder.append(value)
    elif not insert:
        holder[_index(last)] = value
    elif _index(last) > len(holder):
        raise IndexError(last)
    else:
        holder.insert(_index(last), value)
    return document
