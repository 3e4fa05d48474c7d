"""What is wrong with a configuration: every problem with its path, its value and what is allowed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_ERRORS = 50
"""More problems than this are counted, not listed: an Event has room for 1,024 characters."""

MAX_VALUE = 64
"""Characters of a refused value that a message repeats."""

_MAX_BITS = 256


@dataclass(frozen=True, slots=True)
class FieldError:
    """One problem of one field.

    Attributes:
        path: Where, in the spelling of the document: ``interface.addresses[0]``. Empty for the whole document.
        value: The refused value as shortened JSON text; empty when the field is missing.
        message: What is allowed, and why where that is not plain.
        origin: Which configuration the value came from, where more than one was read.
    """

    path: str
    value: str
    message: str
    origin: str = ""

    def __str__(self) -> str:
        where = self.path or "configuration"
        text = f"{where}: {self.value}: {self.message}" if self.value else f"{where}: {self.message}"
        return f"{text} ({self.origin})" if self.origin else text


class ConfigError(ValueError):
    """A configuration is refused. ``errors`` has every problem found, in the order of the schema.

    The text form is one line, fit for an Event, a condition or the answer to the kubelet. ``unlisted`` counts the
    problems beyond ``MAX_ERRORS``.
    """

    def __init__(self, errors: Iterable[FieldError], unlisted: int = 0) -> None:
        found = tuple(errors)
        self.errors: tuple[FieldError, ...] = found[:MAX_ERRORS]
        self.unlisted = unlisted + len(found) - len(self.errors)
        super().__init__(self._text(self.errors, self.unlisted))

    def summary(self, limit: int = 1024) -> str:
        """Return the text in at most ``limit`` characters, cut between problems where that is possible."""
        text = str(self)
        if len(text) <= limit:
            return text
        total = len(self.errors) + self.unlisted
        for listed in range(len(self.errors) - 1, 0, -1):
            text = self._text(self.errors[:listed], total - listed)
            if len(text) <= limit:
                return text
        return text[: limit - 1] + "…"

    @staticmethod
    def _text(errors: Sequence[FieldError], unlisted: int) -> str:
        parts = [str(error) for error in errors]
        if unlisted:
            parts.append(f"and {unlisted} more")
        return "; ".join(parts)


def show(value: Any) -> str:
    """Return ``value`` as JSON text of at most ``MAX_VALUE`` characters, control characters escaped."""
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str):
        value = value[: MAX_VALUE + 1]
    elif isinstance(value, dict):
        return "{…}" if value else "{}"
    elif isinstance(value, list | tuple):
        return "[…]" if value else "[]"
    elif not isinstance(value, bool | int | float | None):
        return f"a {type(value).__name__}"
    text = json.dumps(value)
    return text if len(text) <= MAX_VALUE + 2 else text[:MAX_VALUE] + "…"


def show_path(location: Sequence[str | int]) -> str:
    """Return a path in the spelling of messages: ``routes[0].gateway``, ``ethtool.features["a b"]``."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part and len(part) <= MAX_VALUE and part.isascii() and part.replace("-", "_").isidentifier():
            text += f".{part}" if text else part
        else:
            text += f"[{show(part)}]"
    return text
