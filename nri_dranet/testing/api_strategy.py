"""What each kind of object has of its own: defaults, what a write may not change, checks.

Source: the strategies of ``pkg/registry`` in Kubernetes.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.testing import api_claims, api_slices
from nri_dranet.testing.api_errors import bad
from nri_dranet.testing.api_schema import CLAIMS, CLASSES, EVENTS, NAMESPACES, PODS, SLICES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nri_dranet.testing.api_errors import FieldError
    from nri_dranet.testing.api_schema import Kind

_STATUS_META: Final = ("labels", "annotations", "ownerReferences", "finalizers")


def now() -> str:
    """Return the time as objects have it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def keep_the_other_part(kind: Kind, new: dict[str, Any], before: Mapping[str, Any], *, status: bool) -> None:
    """Undo what a write to the object, or to its status, does not change."""
    if not kind.has_status:
        return
    _restore(new, before, ("spec",) if status else ("status",))
    if status:
        _restore(new["metadata"], before["metadata"], _STATUS_META)


def _restore(new: dict[str, Any], before: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        new.pop(name, None)
        if name in before:
            new[name] = before[name]


def prepare(kind: Kind, new: dict[str, Any], old: Mapping[str, Any] | None) -> None:
    """Fill in defaults, and drop what may not be set."""
    if old is None and kind in (CLAIMS, PODS):
        new["status"] = {"phase": "Pending"} if kind == PODS else {}
    if kind == NAMESPACES:
        new.setdefault("status", {}).setdefault("phase", "Active")
    if kind == CLAIMS:
        api_claims.with_defaults(new.get("spec") or {})
    if kind == SLICES:
        api_slices.without_gated(new.get("spec") or {})
        for device in (new.get("spec") or {}).get("devices") or []:
            for taint in device.get("taints") or []:
                taint.setdefault("timeAdded", now())


def errors(
    kind: Kind, new: Mapping[str, Any], old: Mapping[str, Any] | None, *, status: bool = False
) -> list[FieldError]:
    """Check an object, or its status, and what it was before."""
    if kind == CLAIMS:
        return api_claims.status_errors(new, old or {}) if status else api_claims.spec_errors(new, old)
    if kind == SLICES:
        return api_slices.slice_errors(new, old)
    if kind == EVENTS:
        return _event_errors(new)
    return api_slices.class_errors(new) if kind == CLASSES else []


def _event_errors(event: Mapping[str, Any]) -> list[FieldError]:
    about, namespace = event["involvedObject"].get("namespace", ""), event["metadata"].get("namespace", "")
    if about == namespace or (not about and namespace == "default"):
        return []
    return [bad("involvedObject.namespace", about, "does not match event.namespace")]
