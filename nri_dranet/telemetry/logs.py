"""Structured log lines: one an operation, as text for people or JSON for programs.

Rooms use the standard library: ``LOG = logging.getLogger(__name__)`` and
``LOG.info("device attached", extra=fields(pod=…, claim=…, device=…, ms=…))``. Never a whole configuration, never a
secret. Fields that are None are left out.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def fields(**values: object) -> dict[str, dict[str, object]]:
    """Return the ``extra`` argument of a log call for these fields."""
    return {"fields": {name: value for name, value in values.items() if value is not None}}


def set_up(level: str = "info", style: str = "text") -> None:
    """Send the program's log lines to stderr.

    Args:
        level: a key of ``LEVELS``.
        style: ``text`` or ``json``.

    Raises:
        ValueError: an unknown level or style; the text says which are known.
    """
    if level not in LEVELS:
        raise ValueError(f"log level {level!r} is none of {', '.join(LEVELS)}")
    formatters: dict[str, type[logging.Formatter]] = {"text": TextFormatter, "json": JsonFormatter}
    if style not in formatters:
        raise ValueError(f"log format {style!r} is none of {', '.join(formatters)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatters[style]())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("nri_dranet").setLevel(LEVELS[level])


def _extra(record: logging.LogRecord) -> dict[str, object]:
    found: dict[str, object] = getattr(record, "fields", {})
    return found


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


class TextFormatter(logging.Formatter):
    """``time LEVEL room: message key=value …``; values with spaces or quotes are JSON text."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a traceback follows on lines of its own."""
        parts = [f"{_time(record)} {record.levelname} {record.name.removeprefix('nri_dranet.')}: {record.getMessage()}"]
        parts += [f"{name}={_plain(value)}" for name, value in _extra(record).items()]
        line = " ".join(parts)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``message``, the fields, and ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, separators=(",", ":"))


def _plain(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return json.dumps(text) if not text or any(c.isspace() or c in '"=' or not c.isprintable() for c in text) else text
