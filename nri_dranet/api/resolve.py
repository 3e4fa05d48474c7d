"""From the documents that apply to a device to one configuration: validate each, merge them, validate the result.

Merging: later documents win, field by field, also with ``false`` and ``0``. Objects are merged, lists are replaced
whole, as is ``subInterface``, whose fields mean nothing without each other. Maps of ethtool are merged by name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ValidationError

from nri_dranet.api import checks, config
from nri_dranet.api.checks import Location, Problem
from nri_dranet.api.document import read_document
from nri_dranet.api.errors import MAX_ERRORS, ConfigError, FieldError, show, show_path

_WHOLE: frozenset[Location] = frozenset({("interface", "subInterface")})

_TYPES = {
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "missing": "must be given",
}
_OLD_NAMES = {("neighbors", "ipAddress"): "destination"}


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """One document and where it came from, in words: ``claim, configuration 1``."""

    origin: str
    parameters: Any


@dataclass(frozen=True, slots=True)
class Resolved:
    """The merged configuration, and for every given value the origin that it came from.

    ``origins`` maps a path in the spelling of the document (``interface.mtu``, ``routes``,
    ``ethtool.features["tso"]``) to the origin of the source. A path that is not there holds the default.
    """

    config: config.NetworkConfig = field(default_factory=config.NetworkConfig)
    origins: dict[str, str] = field(default_factory=dict)

    def origin(self, location: Sequence[str | int]) -> str:
        """Return where the value at a path came from; empty for a default."""
        for end in range(len(location), 0, -1):
            found = self.origins.get(show_path(location[:end]))
            if found is not None:
                return found
        return ""


def resolve(sources: Sequence[ConfigSource]) -> Resolved:
    """Validate and merge documents, the most general first; a later one wins.

    Raises:
        ConfigError: with every problem of every document, up to the document with which there are more than a message
            lists; where each is right by itself, with every problem of what they say together.
    """
    errors: list[FieldError] = []
    merged: dict[str, Any] = {}
    origins: dict[Location, str] = {}
    for source in sources:
        data, found = read_document(source.parameters)
        model, problems = validate(data)
        unreadable = {error.path for error in found}
        found += [error for error in map(_field_error, problems) if error.path not in unreadable]
        errors += [replace(error, origin=source.origin) for error in found]
        if len(errors) > MAX_ERRORS:
            # Nobody reads more of them, and each of 32 documents can take as long as this one.
            break
        if model is not None:
            _merge(merged, _plain(model), source.origin, origins, ())
    if errors:
        raise ConfigError(errors)
    result = Resolved(config.NetworkConfig(), {show_path(where): origin for where, origin in origins.items()})
    model, problems = validate(merged)
    if model is None or problems:
        raise ConfigError(_merged_error(problem, result) for problem in problems)
    return Resolved(model, result.origins)


def validate(data: Mapping[str, Any]) -> tuple[config.NetworkConfig | None, list[Problem]]:
    """Return the configuration that plain document data means, or None and every problem in it.

    The problems come in the order of the document's fields. A model is returned only where there is no problem.
    """
    model: config.NetworkConfig | None = None
    problems: list[Problem] = []
    try:
        model = config.NetworkConfig.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=True)
        problems = [_problem(detail, i) for i, detail in enumerate(details)]
    known = {problem.location for problem in problems}
    problems += [problem for problem in checks.check(data) if problem.location not in known]
    problems.sort(key=lambda problem: _order(problem.location))
    return (None if problems else model), problems


def _order(location: Location) -> tuple[int, ...]:
    """Sort by the place of the fields in the schema, then by position; unknown fields come first."""
    model: type[BaseModel] | None = config.NetworkConfig
    key: list[int] = []
    for part in location:
        if isinstance(part, int):
            key.append(part)
            continue
        names = list(_fields(model)) if model else []
        key.append(names.index(part) + 1 if part in names else 0)
        model = _fields(model).get(part) if model else None
    return tuple(key)


_PARTS: dict[str, type[BaseModel]] = {
    "interface": config.Interface,
    "vrf": config.Vrf,
    "subInterface": config.SubInterface,
    "routes": config.Route,
    "rules": config.Rule,
    "neighbors": config.Neighbor,
    "ethtool": config.Ethtool,
}


def _fields(model: type[BaseModel]) -> dict[str, type[BaseModel] | None]:
    """Return the names that the fields of a part have in documents, and the part that is below each."""
    names = [info.alias or name for name, info in model.model_fields.items()]
    return {name: _PARTS.get(name) for name in names}


def _problem(detail: Mapping[str, Any], number: int) -> Problem:
    location: Location = detail["loc"]
    kind: str = detail["type"]
    value = detail["input"]
    if location[:1] == ("ethtool",) and len(location) == 4:
        location = location[:3]
    if kind == "extra_forbidden":
        return Problem(location, value, _unknown(location) if number <= MAX_ERRORS else "is not a known field")
    if kind == "too_long":
        limit, size = detail["ctx"]["max_length"], len(value)
        return Problem(location, None, f"must have at most {limit} entries, has {size}")
    if kind == "literal_error":
        return Problem(location, value, f"must be {detail['ctx']['expected'].replace(chr(39), '')}")
    message = _TYPES.get(kind) or str(detail["msg"])
    return Problem(location, None if kind == "missing" else value, message)


def _unknown(location: Location) -> str:
    """Say that a field is not known, and which one may be meant."""
    name = str(location[-1])
    model: type[BaseModel] | None = config.NetworkConfig
    for part in location[:-1]:
        if model is not None and isinstance(part, str):
            model = _fields(model).get(part)
    names = list(_fields(model)) if model else []
    meant = _OLD_NAMES.get((str(location[0]), name)) or next((n for n in names if n.lower() == name.lower()), None)
    if meant is None and len(name) <= 2 * max(map(len, names), default=0):
        meant = next(iter(difflib.get_close_matches(name, names, 1)), None)
    if meant is not None:
        return f"is not a known field; did you mean {meant}?"
    return f"is not a known field; known are {', '.join(names)}" if names else "is not a known field"


def _field_error(problem: Problem, origin: str = "") -> FieldError:
    value = "" if problem.value is None else show(problem.value)
    return FieldError(show_path(problem.location), value, problem.message, origin)


def _merged_error(problem: Problem, merged: Resolved) -> FieldError:
    origin = merged.origin(problem.location)
    if problem.other:
        origin = f"{origin}; {show_path(problem.other)} from {merged.origin(problem.other)}"
    return _field_error(problem, origin)


def _plain(model: BaseModel) -> dict[str, Any]:
    """Return what a document gave, in canonical form."""
    return model.model_dump(by_alias=True, exclude_unset=True)


def _merge(
    base: dict[str, Any], top: Mapping[str, Any], origin: str, origins: dict[Location, str], where: Location
) -> None:
    for name, value in top.items():
        here = (*where, name)
        if isinstance(value, Mapping) and here not in _WHOLE:
            below = base.setdefault(name, {})
            _merge(below, value, origin, origins, here)
            continue
        base[name] = list(value) if isinstance(value, tuple) else value
        for old in [known for known in origins if known[: len(here)] == here]:
            del origins[old]
        origins[here] = origin


def given(model: BaseModel, where: Location = ()) -> Iterator[tuple[Location, Any]]:
    """Go through the values that documents gave, each with its path; lists are one value."""
    for name, value in _plain(model).items():
        yield from _leaves(value, (*where, name))


def _leaves(value: Any, where: Location) -> Iterator[tuple[Location, Any]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, (*where, name))
    else:
        yield where, value
