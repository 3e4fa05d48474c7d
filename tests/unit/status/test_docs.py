"""docs/user/status.md and the code name the same conditions, reasons and limits."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from nri_dranet.claims.facts import MAX_ADDRESSES, DeviceFacts, ObservedInterface, ObservedRdma, Phase
from nri_dranet.claims.model import DeviceKey
from nri_dranet.kube.client import APPLY
from nri_dranet.status import reasons
from nri_dranet.status.conditions import MAX_CONDITIONS, OWN_TYPES, device_status, same
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


EXAMPLES = dict(re.findall(r"^\| `([^`]+)` \| (.+) \|$", section("An example of each message"), re.MULTILINE))
EMPTY = {reasons.DEVICE_READY, reasons.RDMA_ONLY_READY, reasons.NETWORK_READY, reasons.RDMA_LINK_READY}


def test_each_reason_has_an_example_of_its_message() -> None:
    """All but those whose message is empty."""
    assert set(EXAMPLES) == set(reasons.CONDITIONS) - EMPTY


def constants() -> set[str]:
    """Return the longer pieces of text in the program, those of formatted ones too."""
    return {
        node.value.strip()
        for path in (ROOT / "nri_dranet").rglob("*.py")
        if "testing" not in path.parts and path.name != "reasons.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value.strip()) >= 5
    }


def test_the_examples_have_the_programs_words() -> None:
    """A good part of each comes from text constants; the rest are names, values, and the kernel's words."""
    pieces = sorted(constants(), key=len, reverse=True)
    for reason, example in EXAMPLES.items():
        left = example
        for piece in pieces:
            left = left.replace(piece, "")
        assert len(example) - len(left) >= 12, (reason, left)


def shown(**more: Any) -> ObservedInterface:
    """Return an interface in a pod."""
    return ObservedInterface(name="net1", hardware_address="", **more)


PORT = ObservedRdma(link="mlx5_0", in_pod=True, port_state="DOWN", physical_state="POLLING")


@pytest.mark.parametrize(
    ("reason", "phase", "more"),
    [
        ("AdminAccess", Phase.ATTACHED, {"admin": True}),
        ("Prepared", Phase.PREPARED, {}),
        ("PrepareFailed", Phase.PREPARE_FAILED, {}),
        ("LinkDown", Phase.ATTACHED, {"interface": shown(up=False)}),
        ("NoCarrier", Phase.ATTACHED, {"interface": shown(carrier=False)}),
        ("AddressMissing", Phase.ATTACHED, {"interface": shown(missing_addresses=("192.0.2.7/24",))}),
        ("RDMALinkNotInPod", Phase.ATTACHED, {"exclusive_rdma": True, "rdma": replace(PORT, in_pod=False)}),
        ("RDMAPortDown", Phase.ATTACHED, {"exclusive_rdma": True, "rdma": PORT}),
        ("Detached", Phase.DETACHED, {}),
        ("Unprepared", Phase.DETACHED, {"reason": "Unprepared"}),
    ],
)
def test_the_examples_are_what_is_written(reason: str, phase: Phase, more: dict[str, Any]) -> None:
    """Where the status itself makes the message it is the example, letter by letter."""
    more = {"interface": shown(), **more}
    facts = DeviceFacts(key=DeviceKey("node", "eth1"), request="nic", phase=phase, label="eth1", **more)
    entry = device_status(facts, "dra.net", None, datetime(2026, 1, 1, tzinfo=UTC))
    assert {item["message"] for item in entry["conditions"] if item["reason"] == reason} == {EXAMPLES[reason]}


def test_each_field_is_in_an_example() -> None:
    """What the table of fields explains is shown."""
    examples = "".join(part.split("```")[0] for part in TEXT.split("```yaml")[1:])
    for cell in re.findall(r"^\| (`[^|]+`) \|", section("Fields"), re.MULTILINE):
        for field in re.findall(r"`([\w.]+)`", cell):
            assert f"{field.rpartition('.')[2]}:" in examples, field


def test_limits_and_names_are_the_codes() -> None:
    """Numbers and names in the text are those of the code."""
    assert f"At most {MAX_ADDRESSES}" in TEXT
    assert MAX_CONDITIONS == 8
    assert "eight conditions" in TEXT
    assert f"`{field_manager('dra.net', 'worker-1')}`" in TEXT
    assert APPLY == "application/apply-patch+yaml"
