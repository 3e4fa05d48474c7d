"""What the API server does with each verb: defaults, subresources, ownership of fields, checks, and then the store.

Source: ``k8s.io/apiserver/pkg/registry`` and ``pkg/registry/resource`` of Kubernetes.
"""

from __future__ import annotations

import secrets
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.testing import api_claims, api_users
from nri_dranet.testing import api_strategy as strategy
from nri_dranet.testing import api_words as words
from nri_dranet.testing.api_apply import APPLY, UPDATE, Manager, Managers, applied, updated
from nri_dranet.testing.api_errors import (
    StatusError,
    already_exists,
    bad,
    conflict,
    invalid,
    not_found,
    required,
    too_long,
)
from nri_dranet.testing.api_json import clone, same, through_json, through_untyped
from nri_dranet.testing.api_patches import json_patch, merge_patch
from nri_dranet.testing.api_schema import CLAIMS, NAMESPACES, DecodeError, Kind
from nri_dranet.testing.api_select import selector

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nri_dranet.testing.api_errors import FieldError
    from nri_dranet.testing.api_fields import Path
    from nri_dranet.testing.api_store import Key, Store, Stored
    from nri_dranet.testing.api_users import User

APPLY_PATCH: Final = "application/apply-patch+yaml"
MERGE_PATCH: Final = "application/merge-patch+json"
JSON_PATCH: Final = "application/json-patch+json"

_CONFLICT: Final = "the object has been modified; please apply your changes to the latest version and try again"
_SERVER_META: Final = (
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "generation",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)
_MAX_MANAGER: Final = 128


@dataclass(frozen=True, slots=True)
class Call:
    """One request, as far as all verbs share it.

    Attributes:
        kind: The kind of object.
        namespace: The namespace, empty where there is none.
        name: The object's name, empty for a collection.
        subresource: ``status`` or empty.
        user: Who asks.
        verb: The API's verb, e.g. ``patch``.
        manager: Who shall own the fields.
    """

    kind: Kind
    namespace: str
    name: str
    user: User
    verb: str
    subresource: str = ""
    manager: str = "unknown"

    @property
    def key(self) -> Key:
        """Where the store has it."""
        return self.namespace, self.name

    @property
    def resource(self) -> str:
        """The resource as rules name it."""
        return f"{self.kind.plural}/{self.subresource}" if self.subresource else self.kind.plural


class Registry:
    """Creates, changes and removes objects. Thread-safe.

    Attributes:
        granular: Whether the finer rights on a claim's status are asked for (Kubernetes 1.36 and later).
        trap: Whether patches encode raw JSON anew, so that a claim with unusual JSON refuses changes of its status.
    """

    def __init__(self, store: Store, *, granular: bool = True, trap: bool = True) -> None:
        """Work on a store; see the attributes for the options."""
        self.store = store
        self.granular = granular
        self.trap = trap

    # ---- the verbs

    def get(self, call: Call) -> dict[str, Any]:
        """Return an object.

        Raises:
            StatusError: it does not exist, or may not be read.
        """
        self._authorize(call)
        return self._find(call).shown

    def items(self, call: Call, fields: str = "", labels: str = "") -> tuple[list[dict[str, Any]], int]:
        """Return the objects of a collection and the store's version.

        Raises:
            StatusError: a selector is wrong, or it may not be read.
        """
        self._authorize(call)
        selects = selector(call.kind, fields, labels)
        with self.store.lock:
            found = [stored.shown for _, stored in self.store.all(call.kind, call.namespace) if selects(stored.shown)]
            return found, self.store.version

    def create(self, call: Call, body: Any, *, keep_uid: bool = False) -> dict[str, Any]:
        """Create an object; ``keep_uid`` takes the body's UID.

        Raises:
            StatusError: it exists, is wrong, or may not be created.
        """
        self._authorize(call)
        try:
            new = call.kind.decode(body)
        except DecodeError as error:
            raise _undecodable(call.kind, error) from error
        return self._insert(call, new, None, keep_uid=keep_uid)

    def replace(self, call: Call, body: Any) -> dict[str, Any]:
        """Replace an object.

        Raises:
            StatusError: it does not exist, has changed, is wrong, or may not be replaced.
        """
        self._authorize(call)
        try:
            new = call.kind.decode(body)
        except DecodeError as error:
            raise _undecodable(call.kind, error) from error
        with self.store.lock:
            old = self._find(call)
            _check_name(call, new)
            uid, own = new["metadata"].get("uid"), old.object["metadata"]["uid"]
            if uid and uid != own:
                where = "/".join(part for part in (call.kind.plural, *call.key) if part)
                why = (
                    f"StorageError: invalid object, Code: 4, Key: /registry/{where}, ResourceVersion: 0, "
                    f"AdditionalErrorMsg: Precondition failed: UID in precondition: {uid}, UID in object meta: {own}"
                )
                raise conflict(call.kind.plural, call.kind.group, call.name, why)
            return self._change(call, old, new)

    def patch(self, call: Call, body: Any, content_type: str, *, force: bool = False) -> dict[str, Any]:
        """Change an object by a patch.

        Raises:
            StatusError: the patch is not understood or does not fit, the object does not exist, is in conflict,
                would be wrong, or may not be changed.
        """
        self._authorize(call)
        if content_type == APPLY_PATCH:
            return self._apply(call, body, force=force)
        if content_type not in (MERGE_PATCH, JSON_PATCH):
            known = f"{JSON_PATCH}, {MERGE_PATCH}, {APPLY_PATCH}"
            raise StatusError(
                415, f"the body of the request was in an unknown format - accepted media types include: {known}"
            )
        with self.store.lock:
            old = self._find(call)
            live = through_json(old.shown) if self.trap else old.shown
            merged = merge_patch(live, body) if content_type == MERGE_PATCH else json_patch(live, body)
            try:
                new = call.kind.decode(merged)
            except DecodeError as error:
                raise invalid("", "", "", [bad("patch", merged, str(error))]) from error
            _check_name(call, new)
            return self._change(call, old, new)

    def delete(self, call: Call, preconditions: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Remove an object, or mark it as being removed while it has finalizers; return it.

        Raises:
            StatusError: it does not exist, a precondition does not hold, or it may not be removed.
        """
        self._authorize(call)
        with self.store.lock:
            old = self._find(call)
            meta = old.object["metadata"]
            for name, what in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
                wanted = (preconditions or {}).get(name)
                if wanted is not None and wanted != meta.get(name):
                    why = (
                        f"the {what} in the precondition ({wanted}) does not match the {what} in record ({meta[name]})."
                    )
                    hint = (
                        " The object might have been deleted and then recreated"
                        if name == "uid"
                        else (" The object might have been modified")
                    )
                    raise conflict(call.kind.kind, call.kind.group, call.name, why + hint)
            if meta.get("finalizers"):
                if "deletionTimestamp" in meta:
                    return old.shown
                marks = {"deletionTimestamp": strategy.now(), "deletionGracePeriodSeconds": 0}
                marked = {**old.object, "metadata": {**meta, **marks}}
                return self.store.put(call.kind, call.key, marked, old.managers).shown
            return self.store.drop(call.kind, call.key)

    def delete_collection(self, call: Call, fields: str, labels: str) -> list[dict[str, Any]]:
        """Remove all objects of a collection that are selected, and return them.

        Raises:
            StatusError: a selector is wrong, or they may not be removed.
        """
        self._authorize(call)
        selects = selector(call.kind, fields, labels)
        with self.store.lock:
            keys = [key for key, stored in self.store.all(call.kind, call.namespace) if selects(stored.shown)]
            return [self.store.drop(call.kind, key) for key in keys]

    # ---- inside

    def _authorize(self, call: Call) -> None:
        api_users.check(call.user, call.verb, call.kind.group, call.resource, call.name, call.namespace)

    def _find(self, call: Call) -> Stored:
        found = self.store.find(call.kind, call.key)
        if found is None:
            raise not_found(call.kind.plural, call.kind.group, call.name)
        return found

    def _insert(
        self, call: Call, new: dict[str, Any], managers: Managers | None, *, keep_uid: bool = False
    ) -> dict[str, Any]:
        """Bring a new object into the store; without ``managers`` the caller owns what it has set."""
        kind, meta = call.kind, new["metadata"]
        _name_new(call, meta)
        if not keep_uid or not meta.get("uid"):
            meta["uid"] = str(uuid.uuid4())
        meta["creationTimestamp"] = strategy.now()
        if kind.has_generation:
            meta["generation"] = 1
        with self.store.lock:
            if call.namespace and self.store.find(NAMESPACES, ("", call.namespace)) is None:
                raise not_found("namespaces", "", call.namespace)
            strategy.prepare(kind, new, None)
            errors = words.subdomain("metadata.name", meta["name"]) + strategy.errors(kind, new, None)
            if errors:
                raise invalid(kind.kind, kind.group, meta["name"], errors)
            key = (call.namespace, meta["name"])
            if self.store.find(kind, key) is not None:
                raise already_exists(kind.plural, kind.group, meta["name"])
            if managers is None:
                manager = Manager(call.manager, UPDATE, kind.api_version)
                managers = updated(kind, kind.decode({}), new, Managers(), manager, strategy.now())
            return self.store.put(kind, key, new, managers).shown

    def _apply(self, call: Call, body: Any, *, force: bool) -> dict[str, Any]:
        kind = call.kind
        if not isinstance(body, dict):
            raise StatusError(400, "error decoding YAML: the configuration is no map")
        if (body.get("apiVersion"), body.get("kind")) != (kind.api_version, kind.kind):
            raise StatusError(
                400, f"invalid object type: {body.get('apiVersion') or '/'}, Kind={body.get('kind') or ''}"
            )
        meta = body.setdefault("metadata", {})
        if meta.get("managedFields"):
            raise StatusError(400, "metadata.managedFields must be nil")
        _check_name(call, {"metadata": {"name": call.name, **meta}})
        meta.setdefault("name", call.name)
        if call.namespace:
            meta.setdefault("namespace", call.namespace)
        manager = Manager(call.manager, APPLY, kind.api_version, call.subresource)
        with self.store.lock:
            old = self.store.find(kind, call.key)
            if old is None:
                if call.subresource:
                    raise not_found(kind.plural, kind.group, call.name)
                if meta.get("uid"):
                    uid = meta["uid"]
                    why = f"uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                    raise conflict(kind.plural, kind.group, call.name, why)
                return self._create_applied(call, body, manager)
            version = meta.get("resourceVersion")
            if version and version != old.object["metadata"]["resourceVersion"]:
                raise conflict(kind.plural, kind.group, call.name, _CONFLICT)
            live = through_untyped(old.object) if self.trap else old.object
            try:
                new, managers = applied(
                    kind, live, clone(body), old.managers, manager, strategy.now(), force=force, ignored=_ignored(call)
                )
            except DecodeError as error:
                raise _unconvertible(call, error) from error
            return self._change(call, old, new, managers)

    def _create_applied(self, call: Call, body: dict[str, Any], manager: Manager) -> dict[str, Any]:
        config = clone(body)
        try:
            new = call.kind.decode(config)
        except DecodeError as error:
            raise _unconvertible(call, error) from error
        _, managers = applied(
            call.kind, {}, config, Managers(), manager, strategy.now(), force=True, ignored=_ignored(call)
        )
        return self._insert(call, new, managers)

    def _change(self, call: Call, old: Stored, new: dict[str, Any], managers: Managers | None = None) -> dict[str, Any]:
        """Bring a changed object into the store, if it is allowed and changes anything."""
        kind, before, status = call.kind, old.object, call.subresource == "status"
        meta, was = new["metadata"], before["metadata"]
        wrong = _fix_metadata(call, meta, was)
        strategy.keep_the_other_part(kind, new, before, status=status)
        strategy.prepare(kind, new, before)
        if status and kind == CLAIMS:
            api_claims.drop_deallocated(new, before)
        found = wrong + strategy.errors(kind, new, before, status=status)
        if not found and self.granular and kind == CLAIMS and status:
            found = api_users.status_errors(call.user, call.verb, new, before)
        if found:
            raise invalid(kind.kind, kind.group, call.name, found)
        if managers is None:
            manager = Manager(call.manager, UPDATE, kind.api_version, call.subresource)
            managers = updated(kind, before, new, old.managers, manager, strategy.now())
        if kind.has_generation and not same(new.get("spec"), before.get("spec")):
            meta["generation"] = was.get("generation", 0) + 1
        if same(new, before) and managers.entries() == old.managers.entries():
            return old.shown
        stored = self.store.put(kind, call.key, new, managers).shown
        done = "deletionTimestamp" in was and not meta.get("finalizers")
        return self.store.drop(kind, call.key) if done else stored


def check_manager(name: str) -> str:
    """Check the name of a field manager.

    Raises:
        StatusError: it is too long.
    """
    if len(name.encode()) > _MAX_MANAGER:
        raise invalid("PatchOptions", "meta.k8s.io", "", [too_long("fieldManager", _MAX_MANAGER)])
    return name


def _name_new(call: Call, meta: dict[str, Any]) -> None:
    """Give a new object its name and namespace.

    Raises:
        StatusError: it has none, or one that does not fit the request.
    """
    kind = call.kind
    if meta.setdefault("namespace", call.namespace) != call.namespace:
        raise StatusError(400, "the namespace of the provided object does not match the namespace sent on the request")
    if not call.namespace:
        del meta["namespace"]
    if not meta.get("name") and meta.get("generateName"):
        meta["name"] = f"{meta['generateName']}{secrets.token_hex(3)[:5]}"
    if not meta.get("name"):
        why = required("metadata.name", "name or generateName is required")
        raise invalid(kind.kind, kind.group, "", [why])
    if meta.get("resourceVersion"):
        raise StatusError(500, "resourceVersion should not be set on objects to be created", reason="")
    meta.pop("managedFields", None)


def _fix_metadata(call: Call, meta: dict[str, Any], was: Mapping[str, Any]) -> list[FieldError]:
    """Bring back the metadata that only the server writes; return what is wrong.

    Raises:
        StatusError: the object has changed meanwhile.
    """
    meta.pop("managedFields", None)
    version = meta.pop("resourceVersion", None)
    if version and version != was["resourceVersion"]:
        raise conflict(call.kind.plural, call.kind.group, call.name, _CONFLICT)
    uid = meta.get("uid")
    found = [bad("metadata.uid", uid, "field is immutable")] if uid and uid != was["uid"] else []
    for name in _SERVER_META:
        meta.pop(name, None)
        if name in was:
            meta[name] = was[name]
    if call.namespace:
        meta["namespace"] = call.namespace
    return found


def _check_name(call: Call, new: Mapping[str, Any]) -> None:
    meta = new["metadata"]
    if meta.get("name") != call.name:
        raise StatusError(
            400, f"the name of the object ({meta.get('name', '')}) does not match the name on the URL ({call.name})"
        )
    if meta.get("namespace", call.namespace) != call.namespace:
        raise StatusError(400, "the namespace of the provided object does not match the namespace sent on the request")


def _ignored(call: Call) -> tuple[Path, ...]:
    if not call.kind.has_status:
        return ()
    return (("f:spec",),) if call.subresource == "status" else (("f:status",),)


def _unconvertible(call: Call, error: DecodeError) -> StatusError:
    kind = f"{call.kind.api_version}, Kind={call.kind.kind}"
    where = f"{call.namespace}/{call.name}; {kind}"
    text = (
        f"failed to convert new object ({where}) to proper version: unable to convert unstructured object to {kind}: "
    )
    return StatusError(500, f"{text}{error}", reason="")


def _undecodable(kind: Kind, error: DecodeError) -> StatusError:
    return StatusError(400, f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: {error}')
