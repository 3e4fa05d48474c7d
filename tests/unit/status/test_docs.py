"""docs/user/status.md and the code name the same conditions, reasons and limits."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from nri_dranet.claims.facts import MAX_ADDRESSES
from nri_dranet.kube.client import APPLY
from nri_dranet.status import reasons
from nri_dranet.status.conditions import MAX_CONDITIONS, OWN_TYPES, same
from nri_dranet.status.wire import field_manager

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/user/status.md").read_text(encoding="utf-8")

REASON = re.compile(
    r"(?=[A-Z])\w+(Refused|Failed|Gone|Missing|InUse|Busy|Unreadable|IsUplink|Exceeded|Released|Returned|Restored|Removed|"
    r"Written|Writable|Quarantined|Damaged|Late|Differs|InPod|Down|NoCarrier|Yet|Stopped|Detached)|Unprepared|Renamed|"
    r"HostNetwork|ForeignPool|InvalidConfiguration"
)
"""What a reason looks like in the code."""


def section(title: str) -> str:
    """Return the text below a heading, to the next one."""
    found = re.search(rf"^#+ {re.escape(title)}$(.*?)(?=^#|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def listed(title: str) -> set[str]:
    """Return the words in the first column of a section's table."""
    return set(re.findall(r"^\| `([^`]+)` ", section(title), re.MULTILINE))


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("True", reasons.GOOD),
        ("Unknown", reasons.WAITING),
        ("False: the device was never on its way", reasons.REFUSED),
        ("False: the attach failed, and everything was undone", reasons.ATTACH),
        ("False: the device was in the pod, and something changed", reasons.CHANGED),
        ("Events", reasons.EVENTS),
        ("Conditions", dict.fromkeys(OWN_TYPES)),
    ],
)
def test_each_list_is_the_codes(title: str, words: dict[str, str]) -> None:
    """Every word of the code is explained, and no other."""
    assert listed(title) == set(words)


def test_every_reason_that_the_program_says_is_listed() -> None:
    """Each text constant of the rooms that report that looks like a reason is in a list."""
    said: dict[str, str] = {}
    for folder in ("attach", "dra", "reconcile", "observe", "status"):
        for path in sorted((ROOT / "nri_dranet" / folder).glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and REASON.fullmatch(node.value):
                    said[node.value] = str(path.relative_to(ROOT))
    unknown = {word: where for word, where in said.items() if word not in {**reasons.CONDITIONS, **reasons.EVENTS}}
    assert not unknown


def test_the_example_is_what_the_contract_shows() -> None:
    """The good case in the text has the contract's types, reasons and empty messages."""
    example = TEXT.split("```yaml")[1].split("```")[0]
    for words in ("reason: NetworkDeviceReady", "reason: NetworkReady", 'message: ""', "- 169.254.169.13/32"):
        assert words in example
    assert same({"conditions": []}, {})


def test_limits_and_names_are_the_codes() -> None:
    """Numbers and names in the text are those of the code."""
    assert f"At most {MAX_ADDRESSES}" in TEXT
    assert MAX_CONDITIONS == 8
    assert "eight conditions" in TEXT
    assert f"`{field_manager('dra.net', 'worker-1')}`" in TEXT
    assert APPLY == "application/apply-patch+yaml"
