"""Claims that are looked at again: at their time, sooner when something changes, and not for ever."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from nri_dranet.claims.model import ClaimRef
from nri_dranet.dra.retries import Retries

if TYPE_CHECKING:
    from collections.abc import Iterator

REF = ClaimRef("default", "c", "u1")
OTHER = ClaimRef("default", "d", "u2")


class Attempts:
    """Counts tries; fails as often as told."""

    def __init__(self, failures: int) -> None:
        """Fail so often, then succeed."""
        self.failures = failures
        self.refs: list[ClaimRef] = []
        self.changed = threading.Condition()
        self.retries: Retries | None = None
        self.during: threading.Event | None = None

    def __call__(self, ref: ClaimRef) -> None:
        """Try."""
        assert self.retries is not None
        if self.during is not None:
            self.retries.wake()
            self.during.set()
        with self.changed:
            self.refs.append(ref)
            failed = len(self.refs) <= self.failures
            if failed:
                self.retries.put(ref)
            else:
                self.retries.drop(ref.uid)
            self.changed.notify_all()

    def wait(self, times: int) -> None:
        """Wait for so many tries."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.refs) >= times, 20)


def made(attempts: Attempts, first: float, longest: float) -> Retries:
    """Return retries that try these."""
    attempts.retries = Retries(attempts, first=first, longest=longest)
    return attempts.retries


@pytest.fixture
def soon() -> Iterator[tuple[Attempts, Retries]]:
    """Return retries that wait for hundredths of a second, with three failures."""
    attempts = Attempts(3)
    retries = made(attempts, 0.01, 0.02)
    retries.start()
    yield attempts, retries
    retries.stop()


def test_it_is_tried_until_it_succeeds(soon: tuple[Attempts, Retries]) -> None:
    """Nothing needs to change for that."""
    attempts, retries = soon
    retries.put(REF)
    attempts.wait(4)
    assert attempts.refs == [REF] * 4
    assert not retries.drop(REF.uid)


def test_an_error_ends_nothing(soon: tuple[Attempts, Retries], monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim is tried again all the same."""
    attempts, retries = soon
    attempts.failures = 0
    real = retries.drop
    failed = threading.Event()

    def failing(uid: str) -> bool:
        monkeypatch.setattr(retries, "drop", real)
        failed.set()
        raise OSError(uid)

    monkeypatch.setattr(retries, "drop", failing)
    retries.put(REF)
    attempts.wait(2)
    assert failed.is_set()


def test_a_change_is_not_waited_out() -> None:
    """What waits long is tried at once when something has changed, and what is dropped is not."""
    attempts = Attempts(0)
    retries = made(attempts, 0.01, 3600)
    retries.put(REF)
    for _ in range(20):
        # Ten days by now.
        retries.put(REF)
    retries.put(OTHER)
    assert retries.drop(OTHER.uid)
    retries.start()
    retries.wake()
    attempts.wait(1)
    retries.stop()
    assert attempts.refs == [REF]


def test_a_change_during_a_try_is_not_lost() -> None:
    """The try may have read what was before it."""
    attempts = Attempts(2)
    attempts.during = threading.Event()
    retries = made(attempts, 0.01, 3600)
    for _ in range(20):
        retries.put(REF)
    retries.start()
    retries.wake()
    attempts.wait(3)
    retries.stop()


def test_it_can_be_stopped_before_it_has_begun() -> None:
    """A start that failed elsewhere stops what was never started."""
    made(Attempts(0), 1, 1).stop()
