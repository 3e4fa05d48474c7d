"""Each rule of a configuration is tested by its words, and told to those who come from the reference."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import nri_dranet
from tests.unit.dra.refusals import BOTH, NODE, REFUSALS, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(nri_dranet.__file__).parent
MIGRATION = PACKAGE.parent / "docs" / "user" / "migration.md"
MODULES = sorted(
    [*PACKAGE.glob("api/*.py"), *PACKAGE.glob("dra/plan_*.py"), PACKAGE / "dra" / "planner.py"],
)
VERBS = ("must", "is ", "cannot", "has ", "was ")
"""What a refusal begins with: it goes on from the field or the device that it is about."""


def said() -> set[tuple[str, str]]:
    """Return what the code can say: module and words, with … for what differs."""
    return {(str(path.relative_to(PACKAGE)), words) for path in MODULES for words in _texts(path)}


def _texts(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        text = ""
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(each.value) if isinstance(each, ast.Constant) else "…" for each in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            text = node.value
        if text.startswith(VERBS):
            yield text


def test_the_list_is_all_that_the_code_can_say() -> None:
    """A new rule needs an example here; one that is gone leaves nothing behind."""
    listed = {(refusal.module, refusal.words) for refusal in REFUSALS}
    assert said() - listed == set()
    assert listed - said() == set()
    assert len(listed) > 100


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda each: f"{each.module}: {each.words}")
def test_each_rule_refuses_in_its_words(refusal: Refusal) -> None:
    """The example is refused with this rule's words."""
    pattern = ".*".join(map(re.escape, refusal.words.split("…")))
    found = refusal.example()
    assert any(re.match(pattern, message) for message in found), found


def rows() -> list[str]:
    """Return the first column of the migration page's table of what is refused."""
    text = MIGRATION.read_text(encoding="utf-8")
    table = text.partition("## Configurations that are refused")[2].partition("\n## ")[0]
    return [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda each: f"{each.module}: {each.words}")
def test_what_the_reference_accepts_is_in_the_migration_page(refusal: Refusal) -> None:
    """One row tells of it, or the reference refuses it too, or it is no configuration's fault."""
    for part in refusal.rows:
        assert part in {BOTH, NODE} or len([row for row in rows() if part in row]) == 1, part


def test_the_migration_page_has_no_row_without_a_rule() -> None:
    """What is not refused any more is not said to be."""
    named = {part for refusal in REFUSALS for part in refusal.rows}
    assert [row for row in rows() if not any(part in row for part in named - {BOTH, NODE})] == []
