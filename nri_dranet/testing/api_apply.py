"""Who owns which fields: ``metadata.managedFields`` under updates and server-side apply.

Source: ``k8s.io/apimachinery/pkg/util/managedfields`` and ``structured-merge-diff/merge``. An apply merges, takes
away what its manager applied before and nobody owns now, and is refused when it changes what another manager owns,
unless it is forced. Any other write takes over what it changes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.testing.api_errors import StatusError
from nri_dranet.testing.api_fields import (
    SchemaError,
    below,
    check,
    compare,
    fields_of,
    merge,
    remove,
    to_v1,
    with_named,
    written,
)
from nri_dranet.testing.api_schema import Kind, decode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nri_dranet.testing.api_fields import Path

APPLY: Final = "Apply"
UPDATE: Final = "Update"

_META: Final = ("name", "namespace", "creationTimestamp", "selfLink", "uid", "generation", "managedFields")
_STRIPPED: Final[frozenset[Path]] = frozenset(
    {
        ("f:apiVersion",),
        ("f:kind",),
        ("f:metadata",),
        *(("f:metadata", f"f:{name}") for name in (*_META, "resourceVersion", "deletionTimestamp")),
    }
)


@dataclass(frozen=True, slots=True)
class Manager:
    """One line of managedFields, without its fields."""

    name: str
    operation: str
    api_version: str
    subresource: str = ""

    def __str__(self) -> str:
        words = json.dumps(self.name)
        if self.subresource:
            words += f" with subresource {json.dumps(self.subresource)}"
        return f"{words} using {self.api_version}" if self.operation == UPDATE else words


@dataclass(frozen=True, slots=True)
class Owned:
    """The fields of one manager, and since when."""

    paths: frozenset[Path]
    time: str


@dataclass(frozen=True, slots=True)
class Managers:
    """All managers of an object."""

    owned: Mapping[Manager, Owned] = field(default_factory=dict)

    def entries(self) -> list[dict[str, Any]]:
        """Return ``metadata.managedFields``."""
        found = []
        order = sorted(
            self.owned.items(), key=lambda item: (item[0].operation, item[1].time, item[0].name, item[0].subresource)
        )
        for manager, owned in order:
            entry = {
                "manager": manager.name,
                "operation": manager.operation,
                "apiVersion": manager.api_version,
                "time": owned.time,
                "fieldsType": "FieldsV1",
                "fieldsV1": to_v1(owned.paths),
            }
            found.append(entry | ({"subresource": manager.subresource} if manager.subresource else {}))
        return found

    def with_paths(self, manager: Manager, paths: Iterable[Path], now: str) -> Managers:
        """Give a manager its fields; the time moves only when they change."""
        owned = dict(self.owned)
        known, fresh = owned.pop(manager, None), frozenset(paths)
        if fresh:
            owned[manager] = known if known is not None and known.paths == fresh else Owned(fresh, now)
        return Managers(owned)

    def without(self, paths: set[Path], *, but: Manager) -> Managers:
        """Take fields from all managers but one."""
        left = {
            manager: owned if manager == but else Owned(owned.paths - paths, owned.time)
            for manager, owned in self.owned.items()
        }
        return Managers({manager: owned for manager, owned in left.items() if owned.paths})


def updated(  # noqa: PLR0917 - the parts of one write
    kind: Kind, live: Mapping[str, Any], new: Mapping[str, Any], managers: Managers, manager: Manager, now: str
) -> Managers:
    """Return the managers after a write that is no apply."""
    change = compare(dict(live), dict(new), kind.shape)
    managers = managers.without(change.modified | change.added | change.removed, but=manager)
    known = managers.owned.get(manager)
    paths = set(known.paths) if known else set()
    paths = (paths - change.removed) | _kept(change.modified | change.added, ())
    return managers.with_paths(manager, paths, now)


def applied(  # noqa: PLR0917 - the parts of one write
    kind: Kind,
    live: Mapping[str, Any],
    config: Mapping[str, Any],
    managers: Managers,
    manager: Manager,
    now: str,
    *,
    force: bool,
    ignored: tuple[Path, ...],
) -> tuple[dict[str, Any], Managers]:
    """Apply a configuration.

    Args:
        kind: the object's kind.
        live: the object as it is, without managedFields.
        config: what is applied.
        managers: its managers.
        manager: who applies.
        now: the time, RFC 3339.
        force: take over what others own.
        ignored: fields that this way of writing does not change.

    Returns:
        The object and its managers.

    Raises:
        StatusError: the configuration does not fit the schema, or is in conflict with another manager.
        DecodeError: the result is no object of this kind.
    """
    meta = config.get("metadata") or {}
    where = f"{meta.get('namespace', '')}/{meta.get('name', '')}; {kind.api_version}, Kind={kind.kind}"
    try:
        check(config, kind.shape)
        wanted = _kept(fields_of(dict(config), kind.shape), ignored)
        # What this way of writing does not change must not be merged either.
        own = {name: value for name, value in config.items() if (f"f:{name}",) not in ignored}
        merged = merge(dict(live), own, kind.shape)
    except SchemaError as error:
        raise StatusError(500, f"failed to create typed patch object ({where}): {error}", reason="") from error
    last = managers.owned.get(manager)
    managers = managers.with_paths(manager, wanted, now)
    if last is not None:
        everybodys: set[Path] = set().union(*(owned.paths for owned in managers.owned.values()))
        gone = with_named(last.paths) - with_named(everybodys)
        merged = remove(merged, kind.shape, gone) or {}
    change = compare(dict(live), merged, kind.shape)
    conflicts = [
        (other, path)
        for other, owned in managers.owned.items()
        if other != manager
        for path in sorted(owned.paths & (change.modified | change.added))
    ]
    if conflicts and not force:
        raise _refused(conflicts)
    taken = {path for _, path in conflicts} | change.removed
    return decode(merged, kind.shape), managers.without(taken, but=manager)


def _kept(paths: set[Path], ignored: tuple[Path, ...]) -> set[Path]:
    return paths - _STRIPPED - below(paths, ignored)


def _refused(conflicts: list[tuple[Manager, Path]]) -> StatusError:
    conflicts = sorted(conflicts, key=lambda item: (str(item[0]), written(item[1])))
    if len(conflicts) == 1:
        said = f"Apply failed with 1 conflict: conflict with {conflicts[0][0]}: {written(conflicts[0][1])}"
    else:
        lines = []
        for name in sorted({str(manager) for manager, _ in conflicts}):
            lines.append(f"conflicts with {name}:")
            lines += [f"- {written(path)}" for manager, path in conflicts if str(manager) == name]
        said = f"Apply failed with {len(conflicts)} conflicts: " + "\n".join(lines)
    causes = [
        {"reason": "FieldManagerConflict", "message": f"conflict with {manager}", "field": written(path)}
        for manager, path in conflicts
    ]
    return StatusError(409, said, details={"causes": causes})
