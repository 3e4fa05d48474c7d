"""What is kept of the Node, and how its changes are followed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.kube.node import NodeInfo, NodeWatch, parse_node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nri_dranet.kube.client import KubeClient
    from nri_dranet.testing.apiserver import ApiServerStandIn

NODES = "/api/v1/nodes"


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


class Seen:
    """What a watch told."""

    def __init__(self) -> None:
        self.nodes: list[NodeInfo] = []
        self.failing = False

    def __call__(self, node: NodeInfo) -> None:
        """Take a Node in."""
        self.nodes.append(node)
        if self.failing:
            self.failing = False
            raise RuntimeError("on purpose")


@pytest.fixture
def seen() -> Seen:
    """What was told."""
    return Seen()


@pytest.fixture
def watch(api: ApiServerStandIn, client: KubeClient, seen: Seen) -> Iterator[NodeWatch]:
    """A watch of the node n1, which exists beside another one."""
    for name in ("n1", "n2"):
        api.create(NODES, {"metadata": {"name": name, "annotations": {"of": name}}})
    found = NodeWatch(client, "n1", seen)
    found.start()
    yield found
    found.stop()


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"metadata": None, "status": None},
        {"metadata": {"annotations": None}, "status": {"addresses": None}},
        {"metadata": {"resourceVersion": "x"}, "status": {"addresses": ["10.0.0.1", {}, {"address": ""}]}},
    ],
)
def test_missing_parts_count_as_empty(raw: dict[str, Any]) -> None:
    """A Node that cannot be understood stops nothing."""
    assert parse_node(raw) == NodeInfo()


def test_what_is_kept() -> None:
    """Addresses of every type, and annotations."""
    raw = {
        "metadata": {"uid": "u", "resourceVersion": "7", "annotations": {"dra.net/filter": "true"}},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": "n"}]},
    }
    assert parse_node(raw) == NodeInfo(
        uid="u", version=7, addresses=("10.0.0.1", "n"), annotations={"dra.net/filter": "true"}
    )


def test_changes_are_told_and_nothing_else(api: ApiServerStandIn, watch: NodeWatch, seen: Seen) -> None:
    """Addresses that come late and annotations are told; another label or another node is not."""
    until(lambda: seen.nodes)
    assert seen.nodes[0].annotations == {"of": "n1"}
    api.merge(f"{NODES}/n2", {"metadata": {"annotations": {"of": "other"}}})
    api.merge(f"{NODES}/n1", {"metadata": {"labels": {"a": "b"}}})
    api.merge(f"{NODES}/n1/status", {"status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}})
    until(lambda: seen.nodes[-1].addresses == ("10.0.0.1",))
    api.merge(f"{NODES}/n1", {"metadata": {"annotations": {"of": None, "dra.net/filter": "false"}}})
    until(lambda: seen.nodes[-1].annotations == {"dra.net/filter": "false"})
    assert len(seen.nodes) == 3
    api.delete(f"{NODES}/n1")
    api.create(NODES, {"metadata": {"name": "n1", "annotations": {"of": "its successor"}}})
    until(lambda: seen.nodes[-1].annotations == {"of": "its successor"})
    assert watch._thread.is_alive()


def test_an_older_reading_does_not_count(api: ApiServerStandIn, watch: NodeWatch, seen: Seen) -> None:
    """Somebody else may have read the Node before the watch told what is newer."""
    until(lambda: seen.nodes)
    old = api.get(f"{NODES}/n1")
    api.merge(f"{NODES}/n1", {"metadata": {"annotations": {"of": "newer"}}})
    until(lambda: seen.nodes[-1].annotations == {"of": "newer"})
    watch.note(old)
    assert seen.nodes[-1].annotations == {"of": "newer"}


def test_a_change_that_is_not_taken_in_does_not_end_the_watch(
    api: ApiServerStandIn, watch: NodeWatch, seen: Seen, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, and the next change counts."""
    until(lambda: seen.nodes)
    seen.failing = True
    api.merge(f"{NODES}/n1", {"metadata": {"annotations": {"of": "bad"}}})
    until(lambda: "not taken in" in caplog.text)
    api.merge(f"{NODES}/n1", {"metadata": {"annotations": {"of": "good"}}})
    until(lambda: seen.nodes[-1].annotations == {"of": "good"})
    assert watch._thread.is_alive()


def test_a_watch_that_was_never_started_can_be_stopped(client: KubeClient, seen: Seen) -> None:
    """The daemon's start may fail before."""
    NodeWatch(client, "n1", seen).stop()
    assert seen.nodes == []
