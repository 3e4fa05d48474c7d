"""Which device stands in which slice."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nri_dranet.dra.slice_layout import MAX_DEVICES, MAX_DEVICES_GATED, Encoded, Encoder, Layout, encode


def devices(count: int, start: int = 0) -> list[Encoded]:
    """Return devices ``d0000`` and so on."""
    return [encode({"name": f"d{number:04d}", "attributes": {}}) for number in range(start, start + count)]


def sizes(layout: Layout, wanted: list[Encoded]) -> list[int]:
    """Lay devices out and return how many stand in each slice."""
    return [len(each.devices) for each in layout.lay_out(wanted)]


def test_sizes() -> None:
    """0, 1, 128, 129 and 1,000 devices fill as many slices as the limit demands; none make one empty slice."""
    for count, expected in ((0, [0]), (1, [1]), (128, [128]), (129, [128, 1]), (1000, [128] * 7 + [104])):
        assert sizes(Layout(), devices(count)) == expected


def test_new_device_changes_one_slice() -> None:
    """A new device goes into the fullest slice that has room, and no other slice changes."""
    layout = Layout()
    before = layout.lay_out(devices(300))
    gone = [device for device in devices(300) if device.name not in {"d0130", "d0131"}]
    layout.lay_out(gone)
    after = layout.lay_out([*gone, *devices(1, start=900)])
    assert [a.digests == b.digests for a, b in zip(before, after, strict=True)] == [True, False, True]
    assert "d0900" in after[1].digests


def test_a_device_that_gets_another_name_changes_one_slice() -> None:
    """What is new comes where something went, also when another slice has a gap."""
    layout = Layout()
    layout.lay_out(devices(300))
    gaps = [device for device in devices(300) if device.name != "d0005"]
    before = layout.lay_out(gaps)
    renamed = [device for device in gaps if device.name != "d0200"]
    after = layout.lay_out([*renamed, *devices(1, start=900)])
    assert [a.digests == b.digests for a, b in zip(before, after, strict=True)] == [True, False, True]
    assert "d0900" in after[1].digests


def test_several_new_devices_change_one_slice_if_one_has_room() -> None:
    """Gaps in several slices are left for those that come one by one."""
    layout = Layout()
    layout.lay_out(devices(300))
    gaps = [device for device in devices(300) if device.name not in {"d0005", "d0200"}]
    before = layout.lay_out(gaps)
    after = layout.lay_out([*gaps, *devices(3, start=900)])
    assert [a.digests == b.digests for a, b in zip(before, after, strict=True)] == [True, True, False]
    grown = layout.lay_out([*gaps, *devices(100, start=900)])
    assert [len(each.devices) for each in grown] == [128, 128, 128, 14]


def test_emptied_slice_goes() -> None:
    """A slice without devices goes, and the numbers have no gap."""
    layout = Layout()
    layout.lay_out(devices(300))
    kept = [device for device in devices(300) if not "d0128" <= device.name <= "d0255"]
    found = layout.lay_out(kept)
    assert [each.number for each in found] == [0, 1]
    assert [len(each.devices) for each in found] == [128, 44]


def test_gated_features_halve_the_limit() -> None:
    """A taint, a shared counter or a list attribute anywhere makes all slices take 64."""
    for extra in (
        {"taints": [{"key": "a/b", "effect": "NoSchedule"}]},
        {"consumesCounters": [{"counterSet": "a"}]},
        {"attributes": {"resource.kubernetes.io/numaNode": {"ints": [0, 1]}}},
    ):
        wanted = [*devices(128), encode({"name": "x", **extra})]
        assert sizes(Layout(), wanted) == [MAX_DEVICES_GATED, MAX_DEVICES_GATED, 1]


def test_adopted_places_stay() -> None:
    """Devices stay where a former life has put them; those over the limit find another place."""
    layout = Layout()
    layout.adopt(0, ["d0005"])
    layout.adopt(1, ["d0001", "d0002"])
    assert [sorted(each.digests) for each in layout.lay_out(devices(6))] == [
        ["d0005"],
        ["d0000", "d0001", "d0002", "d0003", "d0004"],
    ]
    crowded = Layout(limit=2)
    crowded.adopt(0, [f"d{number:04d}" for number in range(5)])
    assert sizes(crowded, devices(5)) == [2, 2, 1]


def test_encoder_keeps_what_is_the_same() -> None:
    """A device that did not change is not encoded again, one that did is, one that left is forgotten."""
    encoder = Encoder()
    first = {each.name: each for each in encoder.encode([{"name": "a"}, {"name": "b"}])}
    second = {each.name: each for each in encoder.encode([{"name": "a"}, {"name": "b", "attributes": {}}])}
    assert second["a"] is first["a"]
    assert second["b"].digest != first["b"].digest
    list(encoder.encode([]))
    assert next(iter(encoder.encode([{"name": "a"}]))) is not first["a"]


def test_server_times_are_no_difference() -> None:
    """The time that the server puts into a taint makes no other device."""
    mine: dict[str, Any] = {"name": "a", "taints": [{"key": "k", "effect": "NoSchedule"}]}
    theirs = {"name": "a", "taints": [{"key": "k", "effect": "NoSchedule", "timeAdded": "2026-01-01T00:00:00Z"}]}
    assert encode(mine).digest == encode(theirs).digest
    assert json.loads(encode(theirs).data) == mine


@given(st.lists(st.sets(st.integers(min_value=0, max_value=60), max_size=40), max_size=12), st.integers(1, 9))
def test_any_history(history: list[set[int]], limit: int) -> None:
    """Whatever comes and goes: each device once, no slice over the limit, no gap, and who stays keeps its slice."""
    layout = Layout(limit=limit)
    place: dict[str, int] = {}
    count = 0
    for numbers in history:
        wanted = [device for number in numbers for device in devices(1, start=number)]
        slices = layout.lay_out(wanted)
        assert [each.number for each in slices] == list(range(len(slices)))
        assert all(len(each.devices) <= limit for each in slices)
        assert sorted(name for each in slices for name in each.digests) == sorted(device.name for device in wanted)
        assert len(slices) == 1 or all(each.devices for each in slices)
        now = {name: each.number for each in slices for name in each.digests}
        used = {place[name] for name in now.keys() & place.keys()}
        if used == set(range(count)):
            assert all(place[name] == number for name, number in now.items() if name in place)
        place, count = now, len(slices)
    assert MAX_DEVICES == 2 * MAX_DEVICES_GATED
