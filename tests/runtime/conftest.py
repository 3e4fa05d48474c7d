"""Fixtures of the runtime suite: a node with a real containerd for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hack import parts
from hack.node import Node
from hack.world import World

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

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


@pytest.fixture
def world(node: Node, client: CriClient) -> Iterator[World]:
    """Put stand-ins of API server and kubelet beside the node, for the daemon."""
    with World(node, client) as world:
        yield world
        if world.daemon is not None and world.ready():
            world.wait_for(lambda: not world.audit(), "each claim's status says what its pod has")
