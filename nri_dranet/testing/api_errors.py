"""What the API server answers when it refuses: a ``Status`` object, and the errors of single fields in it.

The words are those of ``k8s.io/apimachinery`` (``api/errors``, ``util/validation/field``), because drivers and people
read them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_REASONS: Final = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


class StatusError(Exception):
    """A request is refused.

    Attributes:
        code: The HTTP status.
        reason: The word of the Status, empty where the server knows none.
        message: The text for people.
        details: The Status' ``details``.
        retry_after: Seconds to wait, None where the server does not say.
    """

    def __init__(
        self,
        code: int,
        message: str,
        *,
        reason: str | None = None,
        details: dict[str, Any] | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = _REASONS.get(code, "") if reason is None else reason
        self.message = message
        self.details = details
        self.retry_after = retry_after

    def status(self) -> dict[str, Any]:
        """Return the Status object."""
        found: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "code": self.code,
        }
        if self.reason:
            found["reason"] = self.reason
        details = dict(self.details or {})
        if self.retry_after is not None:
            details["retryAfterSeconds"] = self.retry_after
        if details:
            found["details"] = details
        return found


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one field.

    Attributes:
        path: The field, as the server writes it: ``status.devices[0].pool``.
        reason: The machine's word, e.g. ``FieldValueInvalid``.
        text: The text behind the path.
    """

    path: str
    reason: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


def shown(value: Any) -> str:
    """Write a value as it stands in an error."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def bad(path: str, value: Any, why: str) -> FieldError:
    """Make the error of a value that is not allowed."""
    return FieldError(path, "FieldValueInvalid", f"Invalid value: {shown(value)}: {why}")


def required(path: str, why: str = "") -> FieldError:
    """Make the error of a value that is missing."""
    return FieldError(path, "FieldValueRequired", f"Required value: {why}" if why else "Required value")


def too_long(path: str, limit: int) -> FieldError:
    """Make the error of a text with too many bytes."""
    return FieldError(path, "FieldValueTooLong", f"Too long: may not be more than {limit} bytes")


def too_many(path: str, count: int, limit: int) -> FieldError:
    """Make the error of a list with too many items."""
    return FieldError(path, "FieldValueTooMany", f"Too many: {count}: must have at most {limit} items")


def duplicate(path: str, value: Any) -> FieldError:
    """Make the error of a value that is there twice."""
    return FieldError(path, "FieldValueDuplicate", f"Duplicate value: {shown(value)}")


def unsupported(path: str, value: Any, allowed: Iterable[str]) -> FieldError:
    """Make the error of a value that is none of a few."""
    words = ", ".join(shown(word) for word in sorted(allowed))
    return FieldError(path, "FieldValueNotSupported", f"Unsupported value: {shown(value)}: supported values: {words}")


def forbidden(path: str, why: str) -> FieldError:
    """Make the error of a field that may not be set or changed."""
    return FieldError(path, "FieldValueForbidden", f"Forbidden: {why}")


def invalid(kind: str, group: str, name: str, errors: Sequence[FieldError]) -> StatusError:
    """Return the answer for an object with wrong fields."""
    texts = [str(error) for error in errors]
    said = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    details: dict[str, Any] = {
        "kind": kind,
        "causes": [{"reason": error.reason, "message": error.text, "field": error.path} for error in errors],
    }
    if name:
        details["name"] = name
    if group:
        details["group"] = group
    return StatusError(422, f"{_joined(kind, group)} {shown(name)} is invalid: {said}", details=details)


def not_found(plural: str, group: str, name: str) -> StatusError:
    """Return the answer for an object that does not exist."""
    return _about(404, plural, group, name, f"{_joined(plural, group)} {shown(name)} not found")


def already_exists(plural: str, group: str, name: str) -> StatusError:
    """Return the answer for an object that exists."""
    text = f"{_joined(plural, group)} {shown(name)} already exists"
    return _about(409, plural, group, name, text, reason="AlreadyExists")


def conflict(plural: str, group: str, name: str, why: str) -> StatusError:
    """Return the answer for a change of what has changed."""
    return _about(
        409, plural, group, name, f"Operation cannot be fulfilled on {_joined(plural, group)} {shown(name)}: {why}"
    )


def _about(code: int, plural: str, group: str, name: str, text: str, reason: str | None = None) -> StatusError:  # noqa: PLR0917 - private
    details = {"name": name, "kind": plural}
    if group:
        details["group"] = group
    return StatusError(code, text, reason=reason, details=details)


def _joined(kind: str, group: str) -> str:
    return f"{kind}.{group}" if group else kind
