"""The filter of one node: which expression counts, and what is said of one that is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nri_dranet.inventory.override import REFUSED, NodeFilter, annotation
from nri_dranet.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

VETH = {"dra.net/type": {"string": "veth"}}
TAP = {"dra.net/type": {"string": "tun"}}


def state(word: str) -> float:
    """Return the metric."""
    return float(metrics.FILTER_OVERRIDDEN.labels(word)._value.get())


@pytest.fixture
def said() -> list[tuple[str, str]]:
    """What was told for an Event."""
    return []


@pytest.fixture
def node(said: list[tuple[str, str]]) -> Iterator[NodeFilter]:
    """A node whose flag keeps veth alone."""
    found = NodeFilter(
        'attributes["dra.net/type"].StringValue == "veth"', "dra.net", event=lambda *words: said.append(words)
    )
    yield found
    found.override(None)


def kept(node: NodeFilter) -> tuple[bool, bool]:
    """Tell whether veth and tap are published."""
    return node.keeps("v", VETH), node.keeps("t", TAP)


def test_annotation_counts_instead_of_the_flag(node: NodeFilter) -> None:
    """Each text of the annotation counts while it is there; without one the flag's expression does."""
    assert kept(node) == (True, False)
    assert node.override('device.attributes["dra.net"].type != "veth"')
    assert kept(node) == (False, True)
    assert (state("used"), state("refused")) == (1, 0)
    assert node.override("")
    assert kept(node) == (True, True)
    assert node.override(None)
    assert kept(node) == (True, False)
    assert (state("used"), state("refused")) == (0, 0)


def test_what_is_no_expression_changes_nothing_and_is_told(
    node: NodeFilter, said: list[tuple[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    """The last good one counts on: in a log line, an Event with both, a metric; each once."""
    node.override("name == 't'")
    assert kept(node) == (False, True)
    assert not node.override("name ==")
    assert not node.override("name ==")
    assert kept(node) == (False, True)
    assert (state("used"), state("refused")) == (1, 1)
    ((reason, text),) = said
    assert reason == REFUSED
    assert "annotation dra.net/filter: 'name ==' is no CEL expression" in text
    assert "filtered by \"name == 't'\" as before" in text
    assert "annotation dra.net/filter" in node.problem
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert node.override("name == 'v'")
    assert node.problem == ""
    assert state("refused") == 0


def test_unknown_word_is_refused_as_in_the_flag(node: NodeFilter, said: list[tuple[str, str]]) -> None:
    """An expression that would fail on every device, and so keep every one, is none."""
    assert not node.override("nmae == 'v'")
    assert "line 1, column 1: unknown variable 'nmae'" in said[0][1]


def test_the_same_text_says_nothing_new(node: NodeFilter) -> None:
    """The Node changes often for other reasons."""
    node.override("true")
    assert not node.override("true")


def test_without_anybody_to_tell(node: NodeFilter) -> None:
    """A filter that has no Events keeps what counts as well."""
    silent = NodeFilter("", "d.example")
    assert not silent.override("name ==")
    assert silent.expression == ""
    assert annotation("d.example") == "d.example/filter"
    assert kept(node) == (True, False)
