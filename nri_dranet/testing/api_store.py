"""The objects of the API stand-in: versions, watches, writes. Thread-safe, without HTTP."""

from __future__ import annotations

import copy
import itertools
import threading
import uuid
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.testing import api_verdicts as verdicts
from nri_dranet.testing.api_apply import (
    ApplyConflictError,
    DuplicateKeyError,
    Managers,
    apply,
    json_patch,
    merge_patch,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

RESOURCE_GROUP: Final = "resource.k8s.io/v1"

KINDS: Final = {
    "resourceclaims": ("ResourceClaim", RESOURCE_GROUP),
    "resourceclaimtemplates": ("ResourceClaimTemplate", RESOURCE_GROUP),
    "resourceslices": ("ResourceSlice", RESOURCE_GROUP),
    "deviceclasses": ("DeviceClass", RESOURCE_GROUP),
    "pods": ("Pod", "v1"),
    "nodes": ("Node", "v1"),
    "events": ("Event", "v1"),
    "namespaces": ("Namespace", "v1"),
}

_HISTORY: Final = 2000
_SELECTABLE: Final = {"metadata.name", "metadata.namespace", "spec.nodeName", "spec.driver", "spec.pool.name"}

Name = tuple[str, str, str]
"""Plural, namespace, name."""


class ApiProblem(Exception):  # noqa: N818 - it is an answer, not an error of this program
    """An answer other than success: HTTP status, reason, message."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(status, reason, message)
        self.status = status
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Change:
    """One change of an object, for watches."""

    version: int
    plural: str
    type: str
    object: dict[str, Any]


@dataclass(slots=True)
class Store:
    """All objects. ``trap`` makes it refuse applies as a real server does for unsorted opaque parameters."""

    trap: bool = False
    objects: dict[Name, dict[str, Any]] = field(default_factory=dict)
    managers: dict[Name, Managers] = field(default_factory=dict)
    history: deque[Change] = field(default_factory=lambda: deque(maxlen=_HISTORY))
    changed: threading.Condition = field(default_factory=threading.Condition)
    oldest: int = 0
    _versions: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    version: int = 0

    # ---- reading

    def get(self, name: Name) -> dict[str, Any]:
        """Return an object; raises ``ApiProblem`` when there is none."""
        with self.changed:
            found = self.objects.get(name)
            if found is None:
                plural, _, plain = name
                raise ApiProblem(404, "NotFound", f'{_group(plural)} "{plain}" not found')
            return copy.deepcopy(found)

    def select(self, plural: str, namespace: str, selector: str) -> tuple[int, list[dict[str, Any]]]:
        """Return the version and the objects that a selector picks; namespace "" means all."""
        matches = _selector(selector)
        with self.changed:
            found = [
                copy.deepcopy(item)
                for (kind, space, _), item in sorted(self.objects.items())
                if kind == plural and namespace in ("", space) and matches(item)
            ]
            return self.version, found

    def since(self, version: int) -> list[Change]:
        """Return the changes after a version; raises ``ApiProblem`` 410 when they are not kept any more."""
        with self.changed:
            if version < self.oldest:
                raise ApiProblem(410, "Expired", f"too old resource version: {version} ({self.oldest})")
            return [change for change in self.history if change.version > version]

    # ---- writing

    def create(self, plural: str, namespace: str, body: Mapping[str, Any], manager: str) -> dict[str, Any]:
        """Create an object; raises ``ApiProblem``."""
        kind, group = KINDS[plural]
        item = copy.deepcopy(dict(body))
        meta = item.setdefault("metadata", {})
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = f"{meta['generateName']}{uuid.uuid4().hex[:5]}"
        name = (plural, namespace, str(meta.get("name", "")))
        with self.changed:
            if name in self.objects:
                raise ApiProblem(409, "AlreadyExists", f'{_group(plural)} "{name[2]}" already exists')
            item["apiVersion"], item["kind"] = group, kind
            meta.setdefault("uid", str(uuid.uuid4()))
            meta["creationTimestamp"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            meta["generation"] = 1
            if namespace:
                meta["namespace"] = namespace
            if plural == "resourceclaims":
                item.pop("status", None)
            _judge(plural, None, item, status=False)
            managers = Managers()
            managers.updated(manager, {}, item)
            return self._keep(name, item, managers, "ADDED")

    def replace(self, name: Name, body: Mapping[str, Any], manager: str, *, status: bool) -> dict[str, Any]:
        """Replace an object or its status; raises ``ApiProblem``."""
        return self._write(name, manager, status=status, change=lambda _: copy.deepcopy(dict(body)))

    def patch(self, name: Name, kind: str, body: Any, manager: str, *, force: bool, status: bool) -> dict[str, Any]:
        """Patch an object or its status: ``apply``, ``merge`` or ``json``; raises ``ApiProblem``."""
        with self.changed:
            if kind == "apply":
                return self._apply(name, body, manager, force=force, status=status)
            change = json_patch if kind == "json" else merge_patch
            return self._write(name, manager, status=status, change=lambda old: change(old, body), trapped="spaces")

    def delete(self, name: Name, preconditions: Mapping[str, Any]) -> dict[str, Any]:
        """Delete an object; raises ``ApiProblem``."""
        with self.changed:
            item = self.get(name)
            for field_name in ("uid", "resourceVersion"):
                wanted = preconditions.get(field_name)
                if wanted is not None and wanted != item["metadata"][field_name]:
                    words = f"Precondition failed: {field_name} in precondition: {wanted}"
                    raise ApiProblem(409, "Conflict", f"Operation cannot be fulfilled on {_group(name[0])}: {words}")
            del self.objects[name]
            self.managers.pop(name, None)
            self._announce(name[0], "DELETED", item)
            return item

    # ---- inside

    def _apply(self, name: Name, body: dict[str, Any], manager: str, *, force: bool, status: bool) -> dict[str, Any]:
        plural, namespace, _ = name
        if name not in self.objects:
            if status or plural == "resourceclaims":
                self.get(name)
            return self.create(plural, namespace, body, manager)
        if not manager:
            raise ApiProblem(400, "BadRequest", "PatchOptions.meta.k8s.io is invalid: fieldManager: Required value")
        present = self.objects[name]
        uid = (body.get("metadata") or {}).get("uid")
        if uid is not None and uid != present["metadata"]["uid"]:
            words = f'metadata.uid: Invalid value: "{uid}": field is immutable'
            raise ApiProblem(422, "Invalid", f'ResourceClaim.resource.k8s.io "{name[2]}" is invalid: {words}')
        part = "status" if status else "spec"
        wanted = {part: body[part]} if part in body else {}
        managers = self.managers.setdefault(name, Managers())
        prefix = "failed to create typed patch object ("
        try:
            if plural == "resourceclaims" and status:
                verdicts.check_declared((body.get("status") or {}).get("devices"))
            fresh = apply({part: present.get(part) or {}}, wanted, manager, managers, force=force)
        except (DuplicateKeyError, verdicts.UndeclaredFieldError) as error:
            words = f"{prefix}{namespace}/{name[2]}; {RESOURCE_GROUP}, Kind={KINDS[plural][0]}): {error}"
            raise ApiProblem(400, "BadRequest", words) from error
        except ApplyConflictError as error:
            raise ApiProblem(409, "Conflict", str(error)) from error
        return self._write(
            name,
            manager,
            status=status,
            change=lambda old: {**old, part: fresh.get(part, {})},
            trapped="order",
            note=False,
        )

    def _write(
        self,
        name: Name,
        manager: str,
        *,
        status: bool,
        change: Callable[[dict[str, Any]], dict[str, Any]],
        trapped: str = "",
        note: bool = True,
    ) -> dict[str, Any]:
        with self.changed:
            old = self.get(name)
            try:
                new = change(copy.deepcopy(old))
            except ValueError as error:
                raise ApiProblem(422, "Invalid", str(error)) from error
            meta = new.get("metadata") or {}
            for field_name in ("uid", "resourceVersion"):
                wanted = meta.get(field_name)
                if wanted not in (None, old["metadata"][field_name]):
                    words = "the object has been modified; please apply your changes to the latest version"
                    what = f'{_group(name[0])} "{name[2]}"'
                    raise ApiProblem(409, "Conflict", f"Operation cannot be fulfilled on {what}: {words}")
            own = "status" if status else "spec"
            merged = {**old, own: new.get(own) or {}}
            if not status:
                kept = {k: old["metadata"][k] for k in ("uid", "creationTimestamp", "generation")}
                merged["metadata"] = {**meta, **kept}
                for extra in new.keys() - {"spec", "status", "metadata"}:
                    merged[extra] = new[extra]
            if not merged[own]:
                merged.pop(own)
            self._spring_trap(name, old, trapped)
            _judge(name[0], old, merged, status=status)
            if merged == old:
                return old
            if not status and merged.get("spec") != old.get("spec"):
                merged["metadata"]["generation"] = old["metadata"]["generation"] + 1
            managers = self.managers.setdefault(name, Managers())
            if note:
                managers.updated(manager, old, merged)
            return self._keep(name, merged, managers, "MODIFIED")

    def _spring_trap(self, name: Name, old: Mapping[str, Any], trapped: str) -> None:
        """Refuse what a real server refuses for parameters that are not compact JSON with sorted keys.

        The raw text is gone here; an annotation on the claim says how it was written: ``order`` or ``spaces``.
        """
        how = (old["metadata"].get("annotations") or {}).get("stand-in/parameters", "")
        if not self.trap or not how or not trapped:
            return
        if how == "spaces" or trapped == "order":
            words = "status.allocation: Invalid value: field cannot be modified once set"
            raise ApiProblem(422, "Invalid", f'ResourceClaim.resource.k8s.io "{name[2]}" is invalid: {words}')

    def _keep(self, name: Name, item: dict[str, Any], managers: Managers, kind: str) -> dict[str, Any]:
        item["metadata"]["managedFields"] = [{"manager": each} for each in sorted(managers.owned)]
        self.objects[name] = item
        self.managers[name] = managers
        self._announce(name[0], kind, item)
        return copy.deepcopy(item)

    def _announce(self, plural: str, kind: str, item: dict[str, Any]) -> None:
        self.version = next(self._versions)
        item["metadata"]["resourceVersion"] = str(self.version)
        if len(self.history) == _HISTORY:
            self.oldest = self.history[0].version
        self.history.append(Change(self.version, plural, kind, copy.deepcopy(item)))
        self.changed.notify_all()


def matcher(selector: str) -> Callable[[Mapping[str, Any]], bool]:
    """Return the test of a field selector; raises ``ApiProblem`` for a field that cannot be selected."""
    return _selector(selector)


def _selector(selector: str) -> Callable[[Mapping[str, Any]], bool]:
    wanted = dict(part.split("=", 1) for part in selector.split(",") if part)
    for name in wanted.keys() - _SELECTABLE:
        raise ApiProblem(400, "BadRequest", f"field label not supported: {name}")

    def matches(item: Mapping[str, Any]) -> bool:
        for path, value in wanted.items():
            found: Any = item
            for part in path.split("."):
                found = (found or {}).get(part)
            if str(found or "") != value:
                return False
        return True

    return matches


def _judge(plural: str, old: Mapping[str, Any] | None, new: Mapping[str, Any], *, status: bool) -> None:
    try:
        if plural == "resourceslices":
            verdicts.check_slice(new)
            if old is not None:
                verdicts.check_slice_change(old, new)
        elif plural == "resourceclaims":
            if status:
                verdicts.check_status(old or {}, new)
            else:
                verdicts.check_claim(new)
                if old is not None:
                    verdicts.check_claim_change(old, new)
    except verdicts.InvalidError as error:
        raise ApiProblem(422, "Invalid", str(error)) from error


def _group(plural: str) -> str:
    return f"{plural}.resource.k8s.io" if KINDS[plural][1] == RESOURCE_GROUP else plural
