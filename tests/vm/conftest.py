"""Tests that need a guest kernel: collected here, run in there, and reported here as pytest's own.

On the machine the tests of this folder are items like any other; whoever runs them boots the guest, which runs the
same selection and sends its reports back. A guest that dies fails the test that it was running, and a fresh one goes
on with the rest.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hack.parts import PartError
from hack.vm.boot import Guest, GuestError
from hack.vm.image import make
from nri_dranet.testing.stage import Stage
from tests.vm.bed import Bed, load_module, make_bed
from tests.vm.daemon import Node

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hack.vm.image import Image

INSIDE = "NRI_DRANET_GUEST" in os.environ


Wish = tuple[str, str]
"""Which guest a test asks for: its kernel's arguments, and a name that sets it apart from others with the same."""


class Runner:
    """Runs the session's guest tests: those that ask for the same guest in one, all guests beside each other."""

    def __init__(self, items: list[pytest.Item], options: list[str]) -> None:
        self._waiting = items
        self._options = options
        self._image: Image | None = None
        self._guests: dict[Wish, tuple[Guest, Iterator[dict[str, Any]]]] = {}

    def reports(self, item: pytest.Item) -> list[dict[str, Any]]:
        """Return the reports of the next test.

        Raises:
            GuestError: The guest died under it.
        """
        wish = wish_of(item)
        try:
            if wish not in self._guests:
                self._boot()
            return self._hear(self._guests[wish][1], item.nodeid)
        except GuestError:
            self._end(wish)
            raise
        finally:
            self._waiting.remove(item)
            if wish not in map(wish_of, self._waiting):
                self._end(wish)

    def _boot(self) -> None:
        """Start the guests that do not run, those of later tests too."""
        if self._image is None:
            try:
                self._image = make()
            except PartError as error:
                raise GuestError(f"the guest cannot be made: {error}") from error
        for wish in dict.fromkeys(map(wish_of, self._waiting)):
            if wish not in self._guests:
                tests = [each.nodeid for each in self._waiting if wish_of(each) == wish]
                guest = Guest(self._image, tests, options=self._options, arguments=wish[0])
                self._guests[wish] = guest, guest.messages()

    @staticmethod
    def _hear(messages: Iterator[dict[str, Any]], nodeid: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for message in messages:
            if "broken" in message:
                raise GuestError(f"the tests cannot be collected in the guest:\n{message['broken']}")
            if "report" in message and message["report"]["nodeid"] == nodeid:
                found.append(message["report"])
            if message.get("finish") == nodeid:
                return found
        raise GuestError(f"the guest has not run {nodeid}")

    def _end(self, wish: Wish) -> None:
        if wish in self._guests:
            self._guests.pop(wish)[0].close()

    def close(self) -> None:
        """End the guests."""
        for wish in list(self._guests):
            self._end(wish)


def wish_of(item: pytest.Item) -> Wish:
    """Return the guest that a test asks for: ``vm(arguments="…", guest="…")``."""
    marker = item.get_closest_marker("vm")
    told = marker.kwargs if marker else {}
    return str(told.get("arguments", "")), str(told.get("guest", ""))


_RUNNER = pytest.StashKey[Runner]()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of one guest together; the order within stays."""
    items.sort(key=wish_of)


def pytest_runtestloop(session: pytest.Session) -> None:
    """Know all tests of the session before the first runs."""
    if not INSIDE:
        waiting = [item for item in session.items if item.get_closest_marker("vm")]
        options = ["--tb=short"] + (["-x"] if session.config.getoption("maxfail") == 1 else [])
        session.config.stash[_RUNNER] = Runner(waiting, options)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Have a test run in the guest and report what came of it."""
    if INSIDE or not item.get_closest_marker("vm"):
        return None
    hook, config = item.ihook, item.config
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    try:
        reports = [
            config.hook.pytest_report_from_serializable(config=config, data=data)
            for data in config.stash[_RUNNER].reports(item)
        ]
    except GuestError as error:
        reports = [
            pytest.TestReport(item.nodeid, item.location, dict(item.keywords), "failed", str(error), "call"),
        ]
    for report in reports:
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave no guest behind."""
    if _RUNNER in config.stash:
        config.stash[_RUNNER].close()


@pytest.fixture
def bed() -> Iterator[Bed]:
    """Give the node and take away what the test made on it."""
    yield from make_bed()


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Run the daemon between its stand-ins, once for a file of tests: its start takes a quarter of a minute here.

    ``FLAGS`` of the file are further flags of the daemon.
    """
    # No slow scan ever comes: what is seen is seen by events, or by the looks at RDMA ports.
    flags = ("--device-taints=NoSchedule", "--inventory-max-poll-interval=1h", *getattr(request.module, "FLAGS", ()))
    with tempfile.TemporaryDirectory(prefix="nd", dir="/tmp") as folder:
        made = Stage(Path(folder), filter_expression="true", flags=flags)
        # A node with RDMA hardware has its modules before the daemon starts.
        load_module()
        try:
            made.start()
            made.start_daemon()
            made.wait_ready()
            yield made
        finally:
            made.close()


@pytest.fixture
def node(bed: Bed, stage: Stage) -> Iterator[Node]:
    """Give the daemon on the node; pods of the test end before the bed takes their devices away."""
    assert bed
    made = Node(stage)
    yield made
    made.close()
