"""The threads that must live."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

import pytest

from nri_dranet.telemetry.threads import Threads, log_deaths

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def hook() -> Iterator[None]:
    """Log deaths for the length of a test."""
    before = threading.excepthook
    log_deaths()
    yield
    threading.excepthook = before


@pytest.mark.usefixtures("hook")
def test_a_thread_that_died_is_named_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Readiness says which one, the log says of what."""
    end = threading.Event()

    def work() -> None:
        end.wait(10)
        raise RuntimeError("an error of the program")

    living = threading.Thread(target=end.wait, args=(10,), name="living")
    dying = threading.Thread(target=work, name="dying")
    threads = Threads(["living", "dying"])
    assert threads.problem == "the program is starting"
    living.start()
    dying.start()
    threads.take()
    assert threads.problem == ""
    end.set()
    dying.join()
    assert "dying" in threads.problem
    (record,) = caplog.records
    assert (record.levelname, record.fields) == ("CRITICAL", {"thread": "dying"})  # type: ignore[attr-defined]  # the log room adds it
    assert record.exc_info
    living.join()


@pytest.mark.usefixtures("hook")
def test_a_thread_that_never_began_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """What was to run and does not is a problem too; one that ends by itself is none for the log."""
    threads = Threads(["never"])
    threads.take()
    assert "never" in threads.problem
    leaving = threading.Thread(target=sys.exit)
    leaving.start()
    leaving.join()
    assert not caplog.records
