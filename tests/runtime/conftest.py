"""Fixtures of the runtime suite: a node with a real containerd for each test."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

import pytest

from hack import parts
from hack.node import Node
from hack.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from hack.cri import CriClient

RUNTIMES = (parts.CONTAINERD_2, parts.CONTAINERD_1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything here: it needs a real containerd."""
    for item in items:
        item.add_marker(pytest.mark.runtime)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of each program's log with a test that failed."""
    report = yield
    node = getattr(item, "funcargs", {}).get("node")
    if report.failed and isinstance(node, Node):
        report.sections.extend((f"log of {name}", text) for name, text in node.logs().items())
    return report


@pytest.fixture(params=RUNTIMES, ids=lambda part: f"containerd-{part.version}")
def containerd(request: pytest.FixtureRequest) -> parts.Part:
    """Return a containerd: one that calls a plugin for each event, and one that sends state changes."""
    part: parts.Part = request.param
    return part


@pytest.fixture
def request_timeout() -> str:
    """Return how long the runtime waits for a plugin; tests may say otherwise by parametrisation."""
    return "2s"


@pytest.fixture
def required() -> tuple[str, ...] | None:
    """Return the plugins that the runtime requires for each container; None: it has no validator."""
    return None


@pytest.fixture
def node(containerd: parts.Part, request_timeout: str, required: tuple[str, ...] | None) -> Iterator[Node]:
    """Start a node."""
    with Node(containerd, request_timeout=request_timeout, required=required) as node:
        yield node


@pytest.fixture
def client(node: Node) -> Iterator[CriClient]:
    """Connect a CRI client to the node."""
    with node.client() as client:
        yield client


def _audit_after_each_step(world: World, runtime_steps: Sequence[str]) -> None:
    """Let what a scenario does end with an audit: the statuses become what there is before the next step.

    Steps of other threads are not followed by one, nor are those while the daemon does not answer that it is ready.
    """

    def following(step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(step)
        def done(*args: Any, **options: Any) -> Any:
            try:
                return step(*args, **options)
            finally:
                if threading.current_thread() is threading.main_thread():
                    _audited(world, step.__name__)

        return done

    steps: Any
    for steps, names in (
        (world, ("prepare", "unprepare", "container", "condition", "wait_ready")),
        (world.client, runtime_steps),
    ):
        for name in names:
            setattr(steps, name, following(getattr(steps, name)))


def _audited(world: World, step: str) -> None:
    """Wait until all statuses say what there is, as long as the daemon is ready."""

    def at_work() -> bool:
        return world.daemon is not None and world.ready()

    if at_work():
        world.wait_for(lambda: not world.audit() or not at_work(), f"{step}: each status says what its pod has")


@pytest.fixture
def stops_untold() -> None:
    """Mark a test whose runtime tells of no stop, as after its restart: only Unprepare says that the pod ended."""


@pytest.fixture
def world(node: Node, client: CriClient, request: pytest.FixtureRequest) -> Iterator[World]:
    """Put stand-ins of API server and kubelet beside the node, for the daemon."""
    with World(node, client) as world:
        stops = () if "stops_untold" in request.fixturenames else ("stop_sandbox", "remove_sandbox")
        _audit_after_each_step(world, ("run_sandbox", *stops))
        yield world
        _audited(world, "the end")
