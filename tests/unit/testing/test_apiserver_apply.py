"""Field ownership under server-side apply, checked line by line against a real API server (1.37.2)."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from nri_dranet.kube.client import APPLY, MERGE, ApiError
from nri_dranet.testing.api_registry import JSON_PATCH

ENTRY = {"driver": "dra.net", "pool": "node1", "device": "eth1"}
READY = {"type": "Ready", "status": "True", "reason": "R", "lastTransitionTime": "2026-01-01T00:00:00Z"}
KEY = 'k:{"device":"eth1","driver":"dra.net","pool":"node1"}'
WHERE = '.status.devices[device="eth1",driver="dra.net",pool="node1"].networkData'


def network(**parts: Any) -> list[dict[str, Any]]:
    """Return the status of eth1 with network data."""
    return [{**ENTRY, "networkData": parts}]


def owners(claim: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the status by manager."""
    return {
        entry["manager"]: entry["fieldsV1"]["f:status"]
        for entry in claim["metadata"]["managedFields"]
        if entry.get("subresource") == "status"
    }


@pytest.mark.parametrize("character", ["\x7f", "\x9f", "\uffff"])
def test_an_apply_is_read_as_yaml(world: Any, character: str) -> None:
    """Which has no control characters as they are (1.37.2 and 1.34.4); other patches are JSON."""
    world.allocated()
    with pytest.raises(ApiError, match="control characters are not allowed") as caught:
        world.apply_status(network(interfaceName=character), "a")
    assert caught.value.status == 400
    world.apply_status(network(interfaceName="\x85\x1b"), "a")


def test_what_is_applied_is_owned(world: Any) -> None:
    """Each applied field has its manager; what the server adds has none."""
    world.allocated()
    answer = world.apply_status([{**ENTRY, "conditions": [READY], "data": {"a": {"b": 1}}}], "a")
    condition: dict[str, Any] = {".": {}, "f:lastTransitionTime": {}, "f:reason": {}, "f:status": {}, "f:type": {}}
    fields: dict[str, Any] = {
        ".": {},
        "f:conditions": {'k:{"type":"Ready"}': condition},
        "f:data": {},
        "f:device": {},
        "f:driver": {},
        "f:pool": {},
    }
    assert owners(answer)["a"] == {"f:devices": {KEY: fields}}
    assert answer["status"]["devices"][0]["conditions"] == [{**READY, "message": ""}]


def test_the_same_apply_again_changes_nothing(world: Any) -> None:
    """No new version, no new time."""
    world.allocated()
    first = world.apply_status(network(interfaceName="net1"))
    assert world.apply_status(network(interfaceName="net1")) == first


def test_what_another_manager_owns_needs_force(world: Any) -> None:
    """Without force a conflict names manager and field; with force the field changes its owner."""
    world.allocated()
    world.apply_status(network(interfaceName="net1", ips=["10.0.0.1/24"]), "a")
    with pytest.raises(ApiError) as one:
        world.apply_status(network(interfaceName="net2"), "b", force=False)
    assert (one.value.status, one.value.reason) == (409, "Conflict")
    assert one.value.message == (
        f'Apply failed with 1 conflict: conflict with "a" with subresource "status": {WHERE}.interfaceName'
    )
    with pytest.raises(ApiError) as two:
        world.apply_status(network(interfaceName="net2", ips=[]), "b", force=False)
    assert two.value.message == (
        'Apply failed with 2 conflicts: conflicts with "a" with subresource "status":\n'
        f"- {WHERE}.interfaceName\n- {WHERE}.ips"
    )
    assert two.value.details["causes"][1]["field"] == f"{WHERE}.ips"
    answer = world.apply_status(network(interfaceName="net2"), "b")
    assert owners(answer)["a"]["f:devices"][KEY]["f:networkData"] == {"f:ips": {}}
    assert owners(answer)["b"]["f:devices"][KEY]["f:networkData"] == {"f:interfaceName": {}}


def test_two_managers_may_share_a_value(world: Any) -> None:
    """The same value from two managers is no conflict, and it stays until both have let it go."""
    world.allocated()
    world.apply_status(network(interfaceName="net1"), "a")
    world.apply_status(network(interfaceName="net1"), "b", force=False)
    assert world.apply_status([], "a")["status"]["devices"] == [
        {**ENTRY, "conditions": None, "networkData": {"interfaceName": "net1"}}
    ]
    assert "devices" not in world.apply_status([], "b")["status"]


def test_what_a_manager_stops_to_apply_goes(world: Any) -> None:
    """A field, a condition, an entry: gone when its only owner leaves it out; what others own stays."""
    world.allocated()
    world.apply_status([{**ENTRY, "conditions": [READY]}], "b")
    world.apply_status([{**ENTRY, "conditions": [{**READY, "type": "X"}], "networkData": {"interfaceName": "n"}}], "a")
    answer = world.apply_status([ENTRY], "a")
    (entry,) = answer["status"]["devices"]
    assert [condition["type"] for condition in entry["conditions"]] == ["Ready"]
    assert "networkData" not in entry
    (entry,) = world.apply_status([], "a")["status"]["devices"]
    assert entry["conditions"] == [{**READY, "message": ""}]


def test_an_update_takes_over_what_it_changes(world: Any) -> None:
    """After a merge patch its manager owns the fields; an apply is in conflict with it and says so."""
    world.allocated()
    world.apply_status(network(interfaceName="net1"), "a")
    answer = world.merge_status({"devices": network(interfaceName="other")}, "m")
    assert owners(answer)["m"]["f:devices"][KEY]["f:networkData"] == {"f:interfaceName": {}}
    assert "f:interfaceName" not in str(owners(answer)["a"])
    with pytest.raises(ApiError) as refusal:
        world.apply_status(network(interfaceName="net1"), "a", force=False)
    assert 'conflict with "m" with subresource "status" using resource.k8s.io/v1: ' in refusal.value.message


def test_null_in_an_apply_takes_nothing_from_others(world: Any) -> None:
    """Null parts of a configuration count as left out."""
    world.allocated()
    answer = world.apply_status([{**ENTRY, "networkData": None, "data": None, "conditions": None}])
    assert answer["status"]["devices"] == [{**ENTRY, "conditions": None}]


def test_a_json_patch_is_applied_or_refused(world: Any) -> None:
    """Operations are carried out in order; a failed test or a path to nothing refuses them all."""
    world.allocated()
    path = f"{world.claims}/c1/status"

    def patch(*operations: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = world.client.patch(path, list(operations), content_type=JSON_PATCH)
        return found

    add = {"op": "add", "path": "/status/devices", "value": [ENTRY]}
    more = {"op": "add", "path": "/status/devices/0/networkData", "value": {"ips": ["10.0.0.1/24"]}}
    last = {"op": "add", "path": "/status/devices/0/networkData/ips/-", "value": "10.0.0.2/24"}
    first = {"op": "add", "path": "/status/devices/0/networkData/ips/0", "value": "10.0.0.3/24"}
    answer = patch(add, more, last, first)
    addresses = ["10.0.0.3/24", "10.0.0.1/24", "10.0.0.2/24"]
    assert answer["status"]["devices"][0]["networkData"]["ips"] == addresses
    ips = "/status/devices/0/networkData/ips"
    answer = patch(
        {"op": "test", "path": "/metadata/name", "value": "c1"},
        {"op": "replace", "path": f"{ips}/0", "value": "10.0.0.9/24"},
        {"op": "move", "from": f"{ips}/1", "path": f"{ips}/0"},
        {"op": "remove", "path": f"{ips}/2"},
        {"op": "copy", "from": "/status/devices/0/device", "path": "/status/devices/0/networkData/interfaceName"},
    )
    data = {"interfaceName": "eth1", "ips": ["10.0.0.1/24", "10.0.0.9/24"]}
    assert answer["status"]["devices"][0]["networkData"] == data
    for wrong in (
        {"op": "test", "path": "/metadata/name", "value": "other"},
        {"op": "remove", "path": "/status/nothing"},
        {"op": "add", "path": f"{ips}/9", "value": "x"},
        {"op": "replace", "path": f"{ips}/x", "value": "x"},
        {"op": "add", "path": "/metadata/name/x", "value": "x"},
        {"op": "remove", "path": ""},
        {"op": "jump", "path": "/metadata"},
        {"op": "remove", "path": "metadata"},
    ):
        with pytest.raises(ApiError) as refusal:
            patch({"op": "add", "path": "/metadata/labels", "value": {"a": "b"}}, wrong)
        assert refusal.value.status == 422
    assert patch({"op": "test", "path": "/status/devices/0/pool", "value": "node1"}) == answer


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"kind": "Foo"}, 400, "invalid object type: resource.k8s.io/v1, Kind=Foo"),
        (
            {"metadata": {"name": "other"}},
            400,
            "the name of the object (other) does not match the name on the URL (c1)",
        ),
        ({"metadata": {"name": "c1", "namespace": "x"}}, 400, "the namespace of the provided object does not match"),
        ({"metadata": {"name": "c1", "managedFields": [{"manager": "x"}]}}, 400, "metadata.managedFields must be nil"),
        ({"metadata": {"name": "c1", "resourceVersion": "1"}}, 409, "the object has been modified"),
        ({"status": {"devices": "x"}}, 500, ".status.devices: expected list, got &{x}"),
        ({"status": {"devices": ["x"]}}, 500, "element 0: associative list with keys may not have non-map elements"),
        ({"status": {"devices": [None]}}, 500, "element 0: associative list with keys may not have a null element"),
        ({"status": {"devices": [{"data": {}}]}}, 422, "status.devices[0].driver: Required value"),
        ({"status": {"devices": [{"driver": 1}]}}, 500, '[device="",driver=1,pool=""].driver: expected string, got'),
        ({"status": {"devices": [{**ENTRY, "networkData": "x"}]}}, 500, "networkData: expected map, got &{x}"),
        ({"status": {"devices": [{**ENTRY, "conditions": [{**READY, "lastTransitionTime": "x"}]}]}}, 500, 'time "x"'),
        ({"status": {"devices": [{**ENTRY, "conditions": [{"status": "True"}]}]}}, 422, "type: Required value"),
        ({"status": {"devices": [{**ENTRY, "shareID": ""}]}}, 422, "must be a lowercase UUID"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(world: Any, body: Any, status: int, text: str) -> None:
    """An apply is refused with the real status and words."""
    world.allocated()
    whole = {**world.head("ResourceClaim", "c1"), **body}
    with pytest.raises(ApiError) as refusal:
        world.client.patch(
            f"{world.claims}/c1/status", whole, content_type=APPLY, params={"fieldManager": "a", "force": "true"}
        )
    assert refusal.value.status == status
    assert text in refusal.value.message


def test_an_apply_needs_a_manager(world: Any) -> None:
    """Without a field manager an apply is refused, with a name that is too long too."""
    for manager, text in (("", "is required for apply patch"), ("m" * 129, "may not be more than 128 bytes")):
        with pytest.raises(ApiError) as refusal:
            world.client.patch(
                f"{world.claims}/c1/status", {}, content_type=APPLY, params={"fieldManager": manager} if manager else {}
            )
        assert refusal.value.status == 422
        assert text in refusal.value.message


def test_an_apply_creates_what_is_missing(world: Any) -> None:
    """On the main resource; but not with the UID of something that was there before."""
    path, params = f"{world.claims}/c1", {"fieldManager": "a", "force": "true"}
    body = world.claim()
    body["metadata"]["uid"] = "00000000-0000-0000-0000-000000000000"
    with pytest.raises(ApiError) as refusal:
        world.client.patch(path, body, content_type=APPLY, params=params)
    assert (refusal.value.status, "uid mismatch" in refusal.value.message) == (409, True)
    created = world.client.patch(path, world.claim(), content_type=APPLY, params=params)
    assert [entry["operation"] for entry in created["metadata"]["managedFields"]] == ["Apply"]
    request = created["spec"]["devices"]["requests"][0]["exactly"]
    assert request == {"deviceClassName": "dranet", "allocationMode": "ExactCount", "count": 1}


# ---- the trap: parameters that are not as the server itself would write them

VARIANTS = {
    "compact and sorted": (b'{"a":{"b":1,"c":"x"},"z":[1,2]}', True, True),
    "keys out of order": (b'{"z":1,"a":2}', False, True),
    "a whole float": (b'{"a":1.0}', False, True),
    "a float": (b'{"a":1.5}', True, True),
    "an exponent": (b'{"a":1e3}', False, True),
    "a very large integer": (b'{"a":123456789012345678901234567890}', False, True),
    "spaces": (b'{"a": 1}', False, False),
    "lines": (b'{\n"a":1}', False, False),
    "less than": (b'{"a":"<"}', False, False),
    "less than, escaped": (b'{"a":"\\u003c"}', True, True),
    "ampersand": (b'{"a":"&"}', False, False),
    "a letter": ('{"a":"é"}'.encode(), True, True),
    "a letter, escaped": (b'{"a":"\\u00e9"}', False, True),
    "a slash, escaped": (b'{"a":"\\/"}', False, True),
}


@pytest.mark.parametrize("case", VARIANTS)
def test_unusual_parameters_refuse_changes_of_the_status(world: Any, case: str) -> None:
    """Apply, merge patch and JSON patch work or fail as they do on the real server."""
    raw, applies, patches = VARIANTS[case]
    head = b'{"apiVersion":"resource.k8s.io/v1","kind":"ResourceClaim","metadata":{"name":"c1"},'
    opaque = b'{"opaque":{"driver":"dra.net","parameters":' + raw + b"}}"
    requests = b'"requests":[{"name":"nic","exactly":{"deviceClassName":"dranet"}}]'
    spec = b'"spec":{"devices":{' + requests + b',"config":[' + opaque + b"]}}}"
    world.client.create(world.claims, head + spec)
    claim = world.api.get(f"{world.claims}/c1")
    configs = [{**config, "source": "FromClaim"} for config in claim["spec"]["devices"]["config"]]
    world.api.allocate("default", "c1", results=world.allocation()["devices"]["results"], config=configs, node="node1")

    def works(write: Any) -> bool:
        with contextlib.suppress(ApiError):
            write()
            return True
        with pytest.raises(ApiError, match=r"status\.allocation: Invalid value: ") as refusal:
            write()
        assert refusal.value.status == 422
        return False

    assert works(lambda: world.apply_status([ENTRY])) == applies
    assert works(lambda: world.merge_status({"devices": [ENTRY]})) == patches
    replace = [{"op": "add", "path": "/status/devices", "value": network(interfaceName="x")}]
    path = f"{world.claims}/c1/status"
    assert works(lambda: world.client.patch(path, replace, content_type=JSON_PATCH)) == patches


def test_labels_and_status_are_different_parts(world: Any) -> None:
    """A write to the status leaves labels alone, a write to the object leaves the status alone."""
    world.allocated()
    path = f"{world.claims}/c1"
    labels = {"metadata": {"labels": {"a": "b"}}}
    assert "labels" not in world.client.patch(f"{path}/status", labels, content_type=MERGE)["metadata"]
    answer = world.client.patch(path, {**labels, "status": {"allocation": None}}, content_type=MERGE)
    assert answer["metadata"]["labels"] == {"a": "b"}
    assert "allocation" in answer["status"]
