"""Log lines: one an operation, readable by people or by programs."""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING

import pytest

from nri_dranet.telemetry.logs import JsonFormatter, TextFormatter, fields, set_up

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """Return the root logger and put its handlers back."""
    logger = logging.getLogger()
    before, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:] = before
    logger.setLevel(level)
    logging.getLogger("nri_dranet").setLevel(logging.NOTSET)


def record(message: str, **values: object) -> logging.LogRecord:
    """Return a log record with fields."""
    made = logging.LogRecord("nri_dranet.nri.hooks", logging.INFO, "", 0, message, (), None)
    made.created, made.msecs = 0.25, 250.0
    made.__dict__.update(fields(**values))
    return made


def test_text_lines_name_time_level_room_and_fields() -> None:
    """Plain values stand as they are; those with spaces are quoted; None is left out."""
    line = TextFormatter().format(record("attached", pod="ns/p", ms=1.23456, why="no route", none=None, empty=""))
    assert line == '1970-01-01T00:00:00.250Z INFO nri.hooks: attached pod=ns/p ms=1.235 why="no route" empty=""'


def test_json_lines_are_one_object() -> None:
    """Every field is a member, whatever its type."""
    line = json.loads(JsonFormatter().format(record("attached", pod="p", where=object)))
    assert line["time"] == "1970-01-01T00:00:00.250Z"
    assert (line["level"], line["message"], line["pod"]) == ("info", "attached", "p")
    assert "object" in line["where"]


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_a_traceback_is_kept(formatter: logging.Formatter) -> None:
    """An unexpected error is told with where it came from."""
    made = record("failed")
    try:
        int("broken")
    except ValueError:
        made.exc_info = sys.exc_info()
    assert "ValueError: invalid literal" in formatter.format(made)


def test_set_up_speaks_on_stderr(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    """The level holds for this program; libraries speak from warning on."""
    set_up("debug", "json")
    logging.getLogger("nri_dranet.x").debug("hello", extra=fields(a=1))
    logging.getLogger("library").info("chatter")
    out = capsys.readouterr()
    assert json.loads(out.err)["a"] == 1
    assert len(root.handlers) == 1


@pytest.mark.parametrize(("level", "style"), [("loud", "text"), ("info", "xml")])
def test_unknown_settings_are_refused(level: str, style: str) -> None:
    """The refusal says what is allowed."""
    with pytest.raises(ValueError, match="is none of"):
        set_up(level, style)
