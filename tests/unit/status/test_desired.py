"""What the claim shall say as a whole, compared with what it says."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from nri_dranet.claims.facts import ClaimFacts, DeviceFacts, Phase
from nri_dranet.claims.model import ClaimRef, DeviceKey
from nri_dranet.status.desired import Desired, desired_status, key_of, merged

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = datetime(2026, 1, 2, 4, 0, 0, tzinfo=UTC)
REF = ClaimRef("default", "c1", "u")


def claim(*devices: str, entries: list[dict[str, Any]] | None = None, driver: str = "dra.net") -> dict[str, Any]:
    """Return a claim with devices allocated."""
    results = [{"request": "r", "driver": driver, "pool": "n1", "device": name} for name in devices]
    return {"status": {"allocation": {"devices": {"results": results}}, "devices": entries}}


def test_only_allocated_devices_are_written(make_device: Callable[..., DeviceFacts]) -> None:
    """The API server refuses entries of devices that are not, or not any more, allocated."""
    facts = ClaimFacts(ref=REF, devices=(make_device(), make_device(name="eth2"), make_device(name="eth2")))
    assert [entry["device"] for entry in desired_status(facts, claim("eth1"), "dra.net", NOW).entries] == ["eth1"]
    assert len(desired_status(facts, claim("eth1", "eth2"), "dra.net", NOW).entries) == 2
    for nothing in ({}, {"status": None}, claim("eth1", driver="other.example.com")):
        assert desired_status(facts, nothing, "dra.net", NOW) == Desired((), differs=False)


def test_shares_are_told_apart() -> None:
    """Two shares of one device have two entries."""
    result = {"request": "r", "driver": "dra.net", "pool": "n1", "device": "eth1"}
    results = [{**result, "shareID": "a"}, {**result, "shareID": "b"}]
    keys = [DeviceKey("n1", "eth1", share) for share in ("a", "b", "c")]
    facts = ClaimFacts(ref=REF, devices=tuple(DeviceFacts(key=key, request="r", phase=Phase.LOST) for key in keys))
    found = desired_status(facts, {"status": {"allocation": {"devices": {"results": results}}}}, "dra.net", NOW)
    assert [entry["shareID"] for entry in found.entries] == ["a", "b"]


def test_equal_status_does_not_differ(make_device: Callable[..., DeviceFacts]) -> None:
    """What is as it shall be is not written again, whatever the time."""
    facts = ClaimFacts(ref=REF, devices=(make_device(),))
    first = desired_status(facts, claim("eth1"), "dra.net", NOW)
    assert first.differs
    there = claim("eth1", entries=[dict(entry) for entry in first.entries])
    again = desired_status(facts, there, "dra.net", LATER)
    assert not again.differs
    assert not again.altered(there)
    assert again.altered(claim("eth1"))
    assert not again.altered(claim())


def test_what_somebody_altered_gets_its_former_times(make_device: Callable[..., DeviceFacts]) -> None:
    """A repair is no transition: the times are those that were written, and others' conditions still count."""
    facts = ClaimFacts(ref=REF, devices=(make_device(),))
    first = desired_status(facts, claim("eth1"), "dra.net", NOW)
    assert desired_status(facts, claim("eth1"), "dra.net", LATER, written=first).entries == first.entries
    other = {"type": "Ready", "status": "False", "reason": "Mine", "lastTransitionTime": "2026-05-01T00:00:00Z"}
    probed = [{"type": f"Other{i}", "status": "True"} for i in range(7)]
    there = claim("eth1", entries=[{**first.entries[0], "conditions": [other, *probed]}])
    repaired = desired_status(facts, there, "dra.net", LATER, written=first)
    assert repaired.differs
    assert repaired.entries[0]["conditions"] == first.entries[0]["conditions"][:1]


def test_the_merged_list_keeps_what_is_others(make_device: Callable[..., DeviceFacts]) -> None:
    """Others' entries, conditions and data stay; ours replace ours; what was withdrawn is gone."""
    foreign = {"driver": "other.example.com", "pool": "n1", "device": "gpu", "data": {"k": "v"}}
    probed = {"type": "Probed", "status": "True"}
    mine = {
        "driver": "dra.net",
        "pool": "n1",
        "device": "eth1",
        "data": {"x": 1},
        "conditions": [{"type": "RDMALinkReady", "status": "True"}, probed],
        "networkData": {"interfaceName": "old"},
    }
    there = claim("eth1", "eth2", entries=[foreign, mine])
    facts = ClaimFacts(ref=REF, devices=(make_device(Phase.DETACHED), make_device(name="eth2")))
    desired = desired_status(facts, there, "dra.net", NOW)
    whole = merged(there, desired)
    assert whole[0] == foreign
    assert [key_of(entry)[2] for entry in whole] == ["gpu", "eth1", "eth2"]
    assert whole[1]["data"] == {"x": 1}
    assert "networkData" not in whole[1]
    assert [item["type"] for item in whole[1]["conditions"]] == ["Ready", "NetworkReady", "Probed"]
    assert whole[2] == desired.entries[1]
