"""docs/dev/reliability.md names a test for each promise, and the tests are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
TEXT = (ROOT / "docs" / "dev" / "reliability.md").read_text(encoding="utf-8")

SHORT = {
    "faults": "node/driver/faults/test_fault_table.py",
    "node faults": "node/driver/faults/test_fault_table_node.py",
    "keeper": "unit/reconcile/test_keeper.py",
    "keeper faults": "unit/reconcile/test_keeper_faults.py",
    "succession": "node/driver/test_succession.py",
}
ROWS = {f"F{number}" for number in range(1, 32)}


@cache
def names_in(path: Path) -> frozenset[str]:
    """Return the names of a file's tests."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    )


def named(text: str) -> list[tuple[str, str]]:
    """Return the references in a text: file, and test or the beginning of its name, "" for all of the file."""
    found, last = [], ""
    for reference in re.findall(r"`([^`]*)`", text):
        place, _, test = reference.partition("::")
        if not place and not test:
            continue
        if place in SHORT or "/" in place:
            last = SHORT.get(place, place)
        elif place or not test:
            continue
        found.append((last, test))
    return found


def resolved(file: str, test: str) -> frozenset[str]:
    """Return the tests that a reference means."""
    path = TESTS / file
    files = sorted(path.parent.glob(path.name)) if path.suffix else sorted(path.rglob("test_*.py"))
    all_tests = frozenset().union(*(names_in(each) for each in files if each.is_file()))
    if test.endswith("…"):
        return frozenset(name for name in all_tests if name.startswith(test[:-1]))
    return all_tests & {test} if test else all_tests


def table(title: str) -> list[list[str]]:
    """Return the rows of the table in a section."""
    section = TEXT.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


REFERENCES = [
    reference
    for title in ("Guards, from the outside in", "Kills", "Two instances", "The fault table")
    for row in table(title)
    for reference in named(row[-1])
]


def test_the_short_names_are_explained() -> None:
    """The document says what it means by them."""
    head = TEXT.partition("\n## ")[0]
    for short, file in SHORT.items():
        assert f"`{short}`" in head
        assert f"`{file}`" in head.replace("\n", " ")


@pytest.mark.parametrize(("file", "test"), sorted(set(REFERENCES)))
def test_each_test_that_is_named_is_there(file: str, test: str) -> None:
    """As a file, and as a test in it."""
    assert resolved(file, test), f"{file}::{test}"


def test_each_row_of_the_fault_table_has_a_test_of_its_name() -> None:
    """From F1 to F31, once each; one of the tests has the row in its name."""
    rows = table("The fault table")
    assert [row[0] for row in rows] == sorted(ROWS, key=lambda row: int(row[1:]))
    for name, _, where in rows:
        found = frozenset().union(*(resolved(*reference) for reference in named(where)))
        mark = f"test_f{int(name[1:]):02d}_"
        assert any(test.startswith(mark) for test in found), name


def test_each_test_of_a_row_is_named_in_it() -> None:
    """A test that has a row in its name stands in that row, or its file does."""
    where = {
        row[0]: frozenset().union(*(resolved(*reference) for reference in named(row[2])))
        for row in table("The fault table")
    }
    for path in sorted(TESTS.rglob("test_*.py")):
        for test in names_in(path):
            if found := re.match(r"test_f(\d\d)_", test):
                assert test in where[f"F{int(found[1])}"], f"{path.name}::{test}"
