"""Laws of field ownership, for whatever is applied in whatever order."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nri_dranet.testing.api_apply import APPLY, Manager, Managers, applied
from nri_dranet.testing.api_fields import compare, fields_of, merge, nodes_of, remove, to_v1, with_named, written
from nri_dranet.testing.api_json import RawJson, canonical, compact, loads, same
from nri_dranet.testing.api_patches import json_patch, merge_patch
from nri_dranet.testing.api_schema import CLAIMS, decode

IGNORED = (("f:spec",),)
NOW = "2026-01-01T00:00:00Z"

CONDITIONS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["Ready", "NetworkReady"])},
        optional={"status": st.sampled_from(["True", "False"]), "reason": st.sampled_from(["A", "B"])},
    ),
    unique_by=lambda condition: str(condition["type"]),
    max_size=2,
)
NETWORK = st.fixed_dictionaries(
    {},
    optional={
        "interfaceName": st.sampled_from(["net1", "net2"]),
        "ips": st.lists(st.sampled_from(["10.0.0.1/24", "10.0.0.2/24"]), unique=True, max_size=2),
    },
)
ENTRIES = st.lists(
    st.fixed_dictionaries(
        {"driver": st.just("dra.net"), "pool": st.just("p"), "device": st.sampled_from(["eth1", "eth2"])},
        optional={"conditions": CONDITIONS, "networkData": NETWORK, "data": st.just({"a": {"b": 1}})},
    ),
    unique_by=lambda entry: str(entry["device"]),
    max_size=2,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab<&é", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab/~", min_size=1, max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


def claim(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a claim with a status of devices."""
    meta = {"name": "c1", "namespace": "default"}
    return {"metadata": meta, "spec": {"devices": {}}, "status": {"devices": entries}}


def start() -> dict[str, Any]:
    """Return a claim without a status."""
    found = decode(claim([]), CLAIMS.shape)
    assert isinstance(found, dict)
    return found


def put(
    live: dict[str, Any], managers: Managers, name: str, entries: list[dict[str, Any]]
) -> tuple[dict[str, Any], Managers]:
    """Apply a status by force."""
    manager = Manager(name, APPLY, CLAIMS.api_version, "status")
    config = {"metadata": {"name": "c1"}, "status": {"devices": entries}}
    return applied(CLAIMS, live, config, managers, manager, NOW, force=True, ignored=IGNORED)


@given(ENTRIES, ENTRIES)
def test_what_is_applied_is_there(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    """The last apply is in the object as it was sent."""
    live, _ = put(*put(start(), Managers(), "a", first), "b", second)
    present = {entry["device"]: entry for entry in live["status"].get("devices") or []}
    for entry in second:
        for name, value in entry.items():
            if name == "conditions":
                held = {each["type"]: each for each in present[entry["device"]]["conditions"] or []}
                assert all(held[each["type"]].items() >= each.items() for each in value)
            elif name == "networkData":
                assert {**present[entry["device"]]["networkData"], **value}.items() >= {
                    key: part for key, part in value.items() if part
                }.items()
            else:
                assert present[entry["device"]][name] == value


@given(ENTRIES, ENTRIES)
def test_who_lets_go_of_everything_leaves_nothing(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    """Two managers apply and withdraw, in either order: the object is as it was and nobody owns anything."""
    for order in (("a", "b"), ("b", "a")):
        live, managers = put(*put(start(), Managers(), "a", first), "b", second)
        for name in order:
            live, managers = put(live, managers, name, [])
        assert live == start()
        assert managers.entries() == []


@given(ENTRIES)
def test_the_same_apply_again_changes_nothing(entries: list[dict[str, Any]]) -> None:
    """Object and managers are the same."""
    once = put(start(), Managers(), "a", entries)
    assert put(*once, "a", entries) == once


@given(ENTRIES, ENTRIES)
def test_a_merge_and_its_difference(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    """Nothing differs from itself; a merge adds and changes what the configuration has, and removes nothing."""
    shape, old, new = CLAIMS.shape, claim(first), claim(second)
    assert not compare(old, old, shape)
    merged = merge(old, new, shape)
    assert merge(merged, new, shape) == merged
    change = compare(old, merged, shape)
    assert not change.removed
    assert change.added | change.modified <= nodes_of(new, shape, ())


@given(ENTRIES)
def test_without_its_fields_nothing_is_left(entries: list[dict[str, Any]]) -> None:
    """A value without the fields that its owner has is empty; without no fields it is whole."""
    shape, value = CLAIMS.shape, claim([*entries, {"driver": "dra.net", "pool": "p", "device": "eth3"}])
    assert remove(value, shape, with_named(fields_of(value, shape))) is None
    assert remove(value, shape, set()) == value


@given(JSON, JSON)
def test_a_merge_patch_is_idempotent(target: Any, patch: Any) -> None:
    """Applied twice it gives what it gives once (RFC 7386)."""
    once = merge_patch(target, patch)
    assert same(merge_patch(once, patch), once)


@given(st.dictionaries(st.text("ab/~", min_size=1, max_size=2), JSON, min_size=1, max_size=3))
def test_what_a_json_patch_adds_it_can_test_and_remove(members: dict[str, Any]) -> None:
    """Add, test and remove of each member, with escaped names, give back an empty object (RFC 6901, 6902)."""
    operations: list[dict[str, Any]] = []
    for name, value in members.items():
        path = "/" + name.replace("~", "~0").replace("/", "~1")
        operations += [
            {"op": "add", "path": path, "value": value},
            {"op": "test", "path": path, "value": value},
            {"op": "remove", "path": path},
        ]
    assert json_patch({}, operations) == {}


@given(JSON.filter(lambda value: isinstance(value, dict)))
def test_compact_keeps_the_value(value: dict[str, Any]) -> None:
    """Go's compact form of a text has the same value, and the canonical form is compact already."""
    text = canonical(value)
    assert compact(text) == text
    spaced = ' { "opaque" : { "parameters" : ' + text.replace(",", " , ") + " } } "
    held = loads(spaced.encode())["opaque"]["parameters"]
    assert isinstance(held, RawJson)
    assert compact(held.raw) == text
    assert dict(held) == value


def test_paths_are_written_as_the_server_writes_them() -> None:
    """Fields, keys, values and indices, and the form of managedFields."""
    path = ("f:status", 'k:{"device":"eth1","pool":"p"}', 'v:"x"', "i:3", "f:data")
    assert written(path) == '.status[device="eth1",pool="p"][="x"][3].data'
    paths = {("f:b",), ("f:b", "f:c"), ("f:a", "f:d")}
    assert to_v1(paths) == {"f:a": {"f:d": {}}, "f:b": {".": {}, "f:c": {}}}
