"""Every verdict of a real API server that was recorded, put to the stand-in: same verdict, same words.

Recorded from kube-apiserver 1.36 by server-side apply, and again from 1.37.2, whose words are given where they differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.kube.client import APPLY, ApiError

if TYPE_CHECKING:
    from collections.abc import Callable

LABEL = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    "an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
IDENTIFIER = (
    "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters "
    "or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')"
)
CIDR = "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)"
REASON = "a condition reason must start with alphabetic character, optionally followed by"
ENTRY = {"driver": "dra.net", "pool": "node1", "device": "eth1"}
KEY = '[device="eth1",driver="dra.net",pool="node1"]'
READY = {"type": "Ready", "status": "True", "reason": "R", "lastTransitionTime": "2026-01-01T00:00:00Z"}


def device(name: str = "a", **parts: Any) -> dict[str, Any]:
    """Return a device."""
    return {"name": name, **parts}


def attribute(name: str, value: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one device with one attribute."""
    return [device(attributes={name: value})]


def devices(count: int, **first: Any) -> list[dict[str, Any]]:
    """Return many devices, the first with more."""
    return [device(f"d{number}", **(first if not number else {})) for number in range(count)]


TAINT = [{"key": "example.com/x", "value": "y", "effect": "NoSchedule"}]
POLICY = {"default": "1", "validRange": {"min": "1", "max": "10"}}

SLICES = {
    "slice": ([device(attributes={"dra.net/ifName": {"string": "eth1"}})], ""),
    "device name with dot": (
        [device("eth1.100")],
        'spec.devices[0].name: Invalid value: "eth1.100": must not contain dots',
    ),
    "device name upper": ([device("Eth1")], f'spec.devices[0].name: Invalid value: "Eth1": {LABEL}'),
    "device name underscore": ([device("enp0_1")], f'spec.devices[0].name: Invalid value: "enp0_1": {LABEL}'),
    "device name 63 chars": ([device("a" * 63)], ""),
    "device name 64 chars": (
        [device("a" * 64)],
        f'spec.devices[0].name: Invalid value: "{"a" * 64}": must be no more than 63 characters',
    ),
    "string attr 64 bytes": (attribute("dra.net/x", {"string": "s" * 64}), ""),
    "string attr 65 bytes": (
        attribute("dra.net/x", {"string": "s" * 65}),
        "spec.devices[0].attributes[dra.net/x].string: Too long: may not be more than 64 bytes",
    ),
    "empty string attr": (attribute("dra.net/x", {"string": ""}), ""),
    "attr name w/o domain": (attribute("x", {"string": "y"}), ""),
    "attr name with dash": (
        attribute("if-name", {"string": "y"}),
        f'spec.devices[0].attributes: Invalid value: "if-name": {IDENTIFIER}',
    ),
    "attr id 32 chars": (attribute("a" * 32, {"string": "y"}), ""),
    "attr id 33 chars": (
        attribute("a" * 33, {"string": "y"}),
        "spec.devices[0].attributes: Too long: may not be more than 32 bytes",
    ),
    "32 attributes": ([device(attributes={f"a{n}": {"int": n} for n in range(32)})], ""),
    "33 attributes": (
        [device(attributes={f"a{n}": {"int": n} for n in range(33)})],
        "spec.devices[0]: Invalid value: 33: the total number of attributes and capacities must not exceed 32",
    ),
    "attr with two values": (
        attribute("dra.net/x", {"string": "y", "int": 1}),
        "exactly one value must be specified",
    ),
    "version attr 1.2.3": (attribute("dra.net/x", {"version": "1.2.3"}), ""),
    "version attr 1.2": (
        attribute("dra.net/x", {"version": "1.2"}),
        'attributes[dra.net/x].version: Invalid value: "1.2": must be a string compatible with semver.org spec 2.0.0',
    ),
    "list attr (strings)": (
        attribute("dra.net/x", {"strings": ["a", "b"]}),
        'spec.devices[0].attributes[dra.net/x]: Invalid value: "": exactly one value must be specified',
    ),
    "same attr twice dra.net/x and x": (
        [device(attributes={"dra.net/x": {"string": "a"}, "x": {"string": "b"}})],
        "",
    ),
    "128 devices": (devices(128), ""),
    "129 devices": (devices(129), "spec.devices: Too many: 129: must have at most 128 items"),
    "dup device names": ([device("a"), device("a")], 'spec.devices[1]: Duplicate value: "a"'),
    "no devices": ([], ""),
    "taint on device": ([device(taints=TAINT)], ""),
    "64 devices, one with taint": (devices(64, taints=TAINT), ""),
    "65 devices, one with taint": (
        devices(65, taints=TAINT),
        "spec.devices: Too many: 65: must have at most 64 items",
    ),
    "no name": ([device("")], f'spec.devices[0].name: Invalid value: "": {LABEL}'),
    "no attribute name": (attribute("", {"int": 1}), f'spec.devices[0].attributes: Invalid value: "": {IDENTIFIER}'),
    "only a domain": (attribute("dra.net/", {"int": 1}), 'attributes: Invalid value: "": the name must not be empty'),
    "bad domain": (attribute("A_b/x", {"int": 1}), 'attributes: Invalid value: "A_b": a lowercase RFC 1123 subdomain'),
    "long domain": (attribute(f"{'a' * 64}/x", {"int": 1}), "attributes: Too long: may not be more than 63 bytes"),
    "no value": (attribute("dra.net/x", {}), 'attributes[dra.net/x]: Invalid value: "": '),
    "long version": (
        attribute("x", {"version": f"1.2.3-{'a' * 64}"}),
        "version: Too long: may not be more than 64 bytes",
    ),
    "taint without anything": ([device(taints=[{}])], "spec.devices[0].taints[0].effect: Required value"),
    "taint with bad parts": (
        [device(taints=[{"key": "a b", "value": "a b", "effect": "Foo"}])],
        'taints[0].effect: Unsupported value: "Foo": supported values: "NoExecute", "NoSchedule", "None"',
    ),
    "17 taints": (
        [device(taints=[{"key": f"k{n}", "effect": "NoSchedule"} for n in range(17)])],
        "spec.devices[0].taints: Too many: 17: must have at most 16 items",
    ),
    "only one kind of binding condition": (
        [device(bindingConditions=["a"])],
        "bindingFailureConditions are required to use bindingConditions",
    ),
    "5 binding conditions": (
        [device(bindingConditions=list("abcde"), bindingFailureConditions=["f", "f"])],
        "spec.devices[0].bindingConditions: Too many: 5: must have at most 4 items",
    ),
    "a condition twice": (
        [device(bindingConditions=["a"], bindingFailureConditions=["f", "f"])],
        'spec.devices[0].bindingFailureConditions[1]: Duplicate value: "f"',
    ),
    "capacity": ([device(capacity={"dra.net/bandwidth": {"value": "10G"}})], ""),
    "allowMultipleAllocations + capacity policy": (
        [
            device(
                allowMultipleAllocations=True,
                capacity={"dra.net/bandwidth": {"value": "10", "requestPolicy": POLICY}},
            )
        ],
        "",
    ),
    "bindsToNode + bindingConditions": (
        [device(bindsToNode=True, bindingConditions=["example.com/a"], bindingFailureConditions=["example.com/b"])],
        "",
    ),
}


def network(**parts: Any) -> list[dict[str, Any]]:
    """Return the status of eth1 with network data."""
    return [{**ENTRY, "networkData": parts}]


def condition(**parts: Any) -> list[dict[str, Any]]:
    """Return the status of eth1 with one condition; None takes a field away."""
    found = {**READY, **parts}
    return [{**ENTRY, "conditions": [{name: value for name, value in found.items() if value is not None}]}]


def address(text: str, form: str | None = None) -> tuple[list[dict[str, Any]], str]:
    """Return the case of an address that is refused; ``form`` is its canonical form, None where it has none."""
    why = CIDR if form is None else f'must be in canonical form ("{form}")'
    return network(ips=[text]), f'status.devices[0].networkData.ips[0]: Invalid value: "{text}": {why}'


def unallocated(number: int, **parts: str) -> str:
    """Return the error of a device that the claim does not have."""
    key = {**ENTRY, **parts}
    shown = f'{{"Driver":"{key["driver"]}","Pool":"{key["pool"]}","Device":"{key["device"]}","ShareID":""}}'
    return f"status.devices[{number}]: Invalid value: {shown}: must be an allocated device in the claim"


IN = "status.devices[0].conditions[0]"
SSA = "failed to create typed patch object (default/c1; resource.k8s.io/v1, Kind=ResourceClaim): "

STATUSES = {
    "device in allocation": ([ENTRY], ""),
    "device not in allocation (eth2)": ([{**ENTRY, "device": "eth2"}], unallocated(0, device="eth2")),
    "wrong pool": ([{**ENTRY, "pool": "other"}], unallocated(0, pool="other")),
    "other driver": ([{**ENTRY, "driver": "foo.com"}], unallocated(0, driver="foo.com")),
    "device in allocation plus one not": ([ENTRY, {**ENTRY, "device": "eth2"}], unallocated(1, device="eth2")),
    "same device twice": ([ENTRY, ENTRY], f"{SSA}.status.devices: duplicate entries for key {KEY}"),
    "ip without prefix": address("10.10.0.5"),
    "ip with leading zero": address("10.10.0.05/24", "10.10.0.5/24"),
    "ip of a network": (network(ips=["10.10.0.0/24"]), ""),
    "ip long v6": address("2001:0db8::1/64", "2001:db8::1/64"),
    "ip link-local": (network(ips=["fe80::1/64"]), ""),
    "ip upper case": address("FD00::5/64", "fd00::5/64"),
    "ip v4 mapped": address("::ffff:10.0.0.1/96", "10.0.0.1/0"),
    "ip with zone": address("fe80::1%eth0/64"),
    "ip prefix too long": address("10.10.0.5/33"),
    "ip out of range": address("300.1.1.1/24"),
    "ip loopback": (network(ips=["127.0.0.1/8"]), ""),
    "ip empty": address(""),
    "dup ips": (
        network(ips=["10.0.0.1/24", "10.0.0.1/24"]),
        'status.devices[0].networkData.ips[1]: Duplicate value: "10.0.0.1/24"',
    ),
    "16 ips": (network(ips=[f"10.0.0.{n}/24" for n in range(16)]), ""),
    "17 ips": (
        network(ips=[f"10.0.0.{n}/24" for n in range(17)]),
        "status.devices[0].networkData.ips: Too many: 17: must have at most 16 items",
    ),
    "ifname 256": (network(interfaceName="i" * 256), ""),
    "ifname 257": (
        network(interfaceName="i" * 257),
        "status.devices[0].networkData.interfaceName: Too long: may not be more than 256 bytes",
    ),
    "hw 128": (network(hardwareAddress="h" * 128), ""),
    "hw 129": (
        network(hardwareAddress="h" * 129),
        "status.devices[0].networkData.hardwareAddress: Too long: may not be more than 128 bytes",
    ),
    "garbage hw": (network(hardwareAddress="garbage"), ""),
    "IPoIB hw": (network(hardwareAddress=":".join(["00"] * 20)), ""),
    "empty networkData": (network(), ""),
    "unknown field in networkData": (
        network(mtu=1500),
        f"{SSA}.status.devices{KEY}.networkData.mtu: field not declared in schema",
    ),
    "data object": ([{**ENTRY, "data": {"a": [1]}}], ""),
    "data string": (
        [{**ENTRY, "data": "text"}],
        'status.devices[0].data: Invalid value: "<value omitted>": must be a valid JSON object',
    ),
    "data list": (
        [{**ENTRY, "data": [1]}],
        'status.devices[0].data: Invalid value: "<value omitted>": must be a valid JSON object',
    ),
    "data 10240B": ([{**ENTRY, "data": {"a": "x" * (10240 - 8)}}], ""),
    "data 10241B": (
        [{**ENTRY, "data": {"a": "x" * (10241 - 8)}}],
        "status.devices[0].data: Too long: may not be more than 10240 bytes",
    ),
    "8 conditions": ([{**ENTRY, "conditions": [{**READY, "type": f"T{n}"} for n in range(8)]}], ""),
    "9 conditions": (
        [{**ENTRY, "conditions": [{**READY, "type": f"T{n}"} for n in range(9)]}],
        "status.devices[0].conditions: Too many: 9: must have at most 8 items",
    ),
    "condition without reason": (condition(reason=None), f"{IN}.reason: Required value"),
    "condition without lastTransitionTime": (
        condition(lastTransitionTime=None),
        f"{IN}.lastTransitionTime: Required value",
    ),
    "condition without message": (condition(message=None), ""),
    "condition reason with space": (condition(reason="a b"), f'{IN}.reason: Invalid value: "a b": {REASON}'),
    "condition reason empty": (condition(reason=""), f"{IN}.reason: Required value"),
    "condition reason 1025": (condition(reason="a" * 1025), f"{IN}.reason: Too long: may not be more than 1024 bytes"),
    "condition generation -1": (
        condition(observedGeneration=-1),
        f"{IN}.observedGeneration: Invalid value: -1: must be greater than or equal to zero",
    ),
    "condition type with space": (condition(type="a b"), f'{IN}.type: Invalid value: "a b": name part must consist of'),
    "same condition twice": (
        [{**ENTRY, "conditions": [READY, READY]}],
        f'{SSA}.status.devices{KEY}.conditions: duplicate entries for key [type="Ready"]',
    ),
    "condition status 'Yes'": (
        condition(status="Yes"),
        f'{IN}.status: Unsupported value: "Yes": supported values: "False", "True", "Unknown"',
    ),
    "message 32768": (condition(message="m" * 32768), ""),
    "message 32769": (condition(message="m" * 32769), f"{IN}.message: Too long: may not be more than 32768 bytes"),
}


def verdict(write: Callable[[], Any], text: str) -> None:
    """Check that a write is accepted (empty text), or refused with this text."""
    if not text:
        write()
        return
    with pytest.raises(ApiError) as refusal:
        write()
    assert text in refusal.value.message
    assert refusal.value.status == (500 if text.startswith(SSA) else 422)


def slice_of(world: Any, items: list[dict[str, Any]], **spec: Any) -> dict[str, Any]:
    """Return a slice."""
    pool = {"name": "node1", "generation": 1, "resourceSliceCount": 1}
    body = {"driver": "dra.net", "nodeName": "node1", "pool": pool, "devices": items, **spec}
    return {**world.head("ResourceSlice", "tmp"), "spec": body}


def apply(world: Any, path: str, body: dict[str, Any]) -> Callable[[], Any]:
    """Return the apply of an object."""
    params = {"fieldManager": "test", "force": "true"}
    return lambda: world.client.patch(f"{path}/{body['metadata']['name']}", body, content_type=APPLY, params=params)


@pytest.mark.parametrize("case", SLICES)
def test_a_slice_gets_the_real_verdict(world: Any, case: str) -> None:
    """A ResourceSlice is accepted or refused as by the real server."""
    items, text = SLICES[case]
    verdict(apply(world, world.slices, slice_of(world, items)), text)


SPECS: dict[str, tuple[dict[str, Any], str]] = {
    "no driver": ({"driver": ""}, "spec.driver: Required value"),
    "driver upper": ({"driver": "Dra.Net"}, ""),
    "driver 64": ({"driver": "a" * 64}, "spec.driver: Too long: may not be more than 63 bytes"),
    "bad pool": ({"pool": {"name": "A_", "resourceSliceCount": 1}}, 'spec.pool.name: Invalid value: "A_": '),
    "long pool": ({"pool": {"name": "a" * 254, "resourceSliceCount": 1}}, "spec.pool.name: Too long: may not be more"),
    "no pool": ({"pool": {}}, "spec.pool.name: Required value"),
    "no slices in the pool": (
        {"pool": {"name": "p"}},
        "resourceSliceCount: Invalid value: 0: must be greater than",
    ),
    "generation -1": (
        {"pool": {"name": "p", "generation": -1, "resourceSliceCount": 1}},
        "spec.pool.generation: Invalid value: -1: must be greater than or equal to zero",
    ),
    "no node": ({"nodeName": None}, "spec: Required value: exactly one of `nodeName`, `nodeSelector`, `allNodes`, "),
    "two kinds of nodes": ({"allNodes": True}, "is required, but multiple fields are set"),
    "all nodes": ({"nodeName": None, "allNodes": True}, ""),
    "bad node": ({"nodeName": "A_"}, 'spec.nodeName: Invalid value: "A_": a lowercase RFC 1123 subdomain'),
}


@pytest.mark.parametrize("case", SPECS)
def test_a_slices_place_gets_the_real_verdict(world: Any, case: str) -> None:
    """Driver, pool and node of a slice are checked as by the real server."""
    spec, text = SPECS[case]
    body = slice_of(world, [], **spec)
    body["spec"] = {name: value for name, value in body["spec"].items() if value is not None}
    verdict(apply(world, world.slices, body), text)


WANTS = {"exactly": {"deviceClassName": "x"}}
CLAIM_SPECS = {
    "bad request name": ({"requests": [{"name": "A", **WANTS}]}, 'spec.devices.requests[0].name: Invalid value: "A": '),
    "no request name": ({"requests": [WANTS]}, f'spec.devices.requests[0].name: Invalid value: "": {LABEL}'),
    "a name twice": ({"requests": [{"name": "a", **WANTS}] * 2}, "spec.devices.requests[1]: Duplicate value: "),
    "nothing wanted": (
        {"requests": [{"name": "a"}]},
        "spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required",
    ),
    "both kinds": (
        {"requests": [{"name": "a", **WANTS, "firstAvailable": [{"name": "b", "deviceClassName": "x"}]}]},
        "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
    ),
    "alternatives": ({"requests": [{"name": "a", "firstAvailable": [{"name": "b", "deviceClassName": "x"}]}]}, ""),
    "no class": ({"requests": [{"name": "a", "exactly": {}}]}, "exactly.deviceClassName: Required value"),
    "bad mode": (
        {"requests": [{"name": "a", "exactly": {"deviceClassName": "x", "allocationMode": "Foo"}}]},
        'exactly.allocationMode: Unsupported value: "Foo": supported values: "All", "ExactCount"',
    ),
    "bad count": (
        {"requests": [{"name": "a", "exactly": {"deviceClassName": "x", "count": -1}}]},
        "exactly.count: Invalid value: -1: must be greater than zero",
    ),
    "33 requests": (
        {"requests": [{"name": f"r{n}", **WANTS} for n in range(33)]},
        "spec.devices.requests: Too many: 33: must have at most 32 items",
    ),
    "selector without CEL": (
        {"requests": [{"name": "a", "exactly": {"deviceClassName": "x", "selectors": [{}]}}]},
        "exactly.selectors[0].cel: Required value",
    ),
    "no opaque": ({"config": [{}]}, "spec.devices.config[0].opaque: Required value"),
    "no driver": ({"config": [{"opaque": {"parameters": {}}}]}, "spec.devices.config[0].opaque.driver: Required value"),
    "no parameters": (
        {"config": [{"opaque": {"driver": "x.y"}}]},
        "spec.devices.config[0].opaque.parameters: Required value",
    ),
}


@pytest.mark.parametrize("case", CLAIM_SPECS)
def test_a_claims_spec_gets_the_real_verdict(world: Any, case: str) -> None:
    """Requests and configurations of a claim are checked as by the real server."""
    spec, text = CLAIM_SPECS[case]
    claim = {**world.head("ResourceClaim", "c1"), "spec": {"devices": spec}}
    verdict(lambda: world.client.create(world.claims, claim), text)


POD = {"resource": "pods", "name": "p", "uid": "u"}
RESERVATIONS = {
    "one": ([POD], ""),
    "empty": ([{}], "status.reservedFor[0].resource: Required value"),
    "twice": ([POD, {**POD, "name": "q"}], "status.reservedFor[1]: Duplicate value: "),
    "257": (
        [{**POD, "uid": f"u{n}"} for n in range(257)],
        "status.reservedFor: Too many: 257: must have at most 256 items",
    ),
}


@pytest.mark.parametrize("case", RESERVATIONS)
def test_a_reservation_gets_the_real_verdict(world: Any, case: str) -> None:
    """Who a claim is reserved for is checked as by the real server."""
    users, text = RESERVATIONS[case]
    world.allocated()
    verdict(lambda: world.merge_status({"reservedFor": users}), text)


def test_an_allocation_is_checked(world: Any) -> None:
    """Results need a request, a driver, a pool and a device; the same entry twice is refused by a merge patch too."""
    world.client.create(world.claims, world.claim())
    where = "status.allocation.devices."
    wrong: dict[str, dict[str, Any]] = {
        'results[0].request: Invalid value: "": must be the name of a request in the claim': {"results": [ENTRY]},
        'results[0].request: Invalid value: "nic/a": must be the name of a request': {
            "results": [{**ENTRY, "request": "nic/a"}]
        },
        "results[0].driver: Required value": {"results": [{"request": "nic", "pool": "p", "device": "d"}]},
        "config[0].source: Required value": {"config": [{"opaque": {"driver": "x.y", "parameters": {}}}]},
        'config[0].source: Unsupported value: "x": supported values: "FromClaim", "FromClass"': {
            "config": [{"source": "x", "opaque": {"driver": "x.y", "parameters": {}}}]
        },
    }
    for text, devices in wrong.items():
        verdict(lambda devices=devices: world.merge_status({"allocation": {"devices": devices}}), where + text)  # type: ignore[misc]
    world.merge_status({"allocation": world.allocation()})
    verdict(lambda: world.merge_status({"devices": [ENTRY, ENTRY]}), "status.devices[1]: Duplicate value: ")


def test_times_are_kept_in_utc_and_seconds(world: Any) -> None:
    """A time with an offset or fractions is accepted and comes back in the server's form."""
    world.allocated()
    answer = world.apply_status(condition(lastTransitionTime="2026-01-01T01:00:00.5+01:00"))
    (written,) = answer["status"]["devices"][0]["conditions"]
    assert written["lastTransitionTime"] == "2026-01-01T00:00:00Z"


def test_a_quantity_is_kept_as_text(world: Any) -> None:
    """A number is taken for a quantity; what is none is refused."""
    answer = apply(world, world.slices, slice_of(world, [device(capacity={"x": {"value": 5}})]))()
    assert answer["spec"]["devices"][0]["capacity"] == {"x": {"value": "5"}}
    with pytest.raises(ApiError, match="quantities must match") as refusal:
        apply(world, world.slices, slice_of(world, [device(capacity={"x": {"value": "zz"}})]))()
    assert refusal.value.status == 500


@pytest.mark.parametrize("case", STATUSES)
def test_a_status_gets_the_real_verdict(world: Any, case: str) -> None:
    """The status of a device is accepted or refused as by the real server."""
    entries, text = STATUSES[case]
    world.allocated()
    verdict(lambda: world.apply_status(entries), text)


@pytest.mark.parametrize(
    ("field", "value"),
    [("driver", "other"), ("nodeName", "n2"), ("pool", {"name": "p2", "generation": 1, "resourceSliceCount": 1})],
)
def test_what_a_slice_belongs_to_cannot_change(world: Any, field: str, value: Any) -> None:
    """Driver, node and pool of a slice are immutable."""
    apply(world, world.slices, slice_of(world, []))()
    path, new = (f"spec.{field}.name", value["name"]) if isinstance(value, dict) else (f"spec.{field}", value)
    text = f'{path}: Invalid value: "{new}": field is immutable'
    verdict(apply(world, world.slices, slice_of(world, [], **{field: value})), text)


def test_a_device_class_is_checked(world: Any) -> None:
    """A class with a selector or configuration is accepted, one with a broken expression is not."""

    def of(**spec: Any) -> dict[str, Any]:
        return {**world.head("DeviceClass", "bad"), "spec": spec}

    good = {"cel": {"expression": "device.driver == 'dra.net'"}}
    verdict(apply(world, world.classes, of(selectors=[good])), "")
    opaque = {"driver": "dra.net", "parameters": {"interface": {"mtu": 9000}}}
    verdict(apply(world, world.classes, of(config=[{"opaque": opaque}])), "")
    broken = {"cel": {"expression": "device.attributes["}}
    text = 'spec.selectors[0].cel.expression: Invalid value: "device.attributes[": compilation failed: '
    verdict(apply(world, world.classes, of(selectors=[broken])), text)


def test_a_claim_is_checked(world: Any) -> None:
    """A claim's spec is immutable, and its parameters are a JSON object of at most 10 KiB."""
    verdict(apply(world, world.claims, world.claim()), "")
    changed = world.claim()
    changed["spec"]["devices"]["requests"][0]["name"] = "other"
    verdict(apply(world, world.claims, changed), "spec: Invalid value: ")
    where = "spec.devices.config[0].opaque.parameters: "
    text = f'{where}Invalid value: "<value omitted>": must be a valid JSON object'
    verdict(apply(world, world.claims, world.claim("cx", "text")), text)
    large = world.claim("cx", {"a": "x" * 10240})
    verdict(apply(world, world.claims, large), f"{where}Too long: may not be more than 10240 bytes")


def test_devices_need_an_allocation(world: Any) -> None:
    """The status of a device is refused while the claim is not allocated."""
    world.client.create(world.claims, world.claim())
    verdict(lambda: world.apply_status([ENTRY]), unallocated(0))


def test_an_allocation_can_only_be_taken_away(world: Any) -> None:
    """An allocation cannot change; when it goes, the status of its devices goes too."""
    world.allocated()
    world.apply_status([ENTRY])
    text = "status.allocation: Invalid value: "
    verdict(lambda: world.merge_status({"allocation": world.allocation("eth2")}), text)
    assert world.merge_status({"allocation": None})["status"] == {}


def test_applying_a_status_to_nothing_is_not_found(world: Any) -> None:
    """An apply of the status creates no claim; on the main resource it would."""
    with pytest.raises(ApiError) as refusal:
        world.apply_status([ENTRY], name="nope")
    assert (refusal.value.status, refusal.value.reason) == (404, "NotFound")
    assert refusal.value.message == 'resourceclaims.resource.k8s.io "nope" not found'


def test_a_stale_uid_is_refused(world: Any) -> None:
    """An apply with the UID of a former claim of the same name is refused."""
    world.allocated()
    stale = "00000000-0000-0000-0000-000000000000"
    text = f'metadata.uid: Invalid value: "{stale}": field is immutable'
    verdict(lambda: world.apply_status([ENTRY], uid=stale), text)


def test_the_main_resource_does_not_take_a_status(world: Any) -> None:
    """An apply on the main resource is accepted and leaves the status alone."""
    world.allocated()
    body = {**world.head("ResourceClaim", "c1"), "status": {"devices": [ENTRY]}}
    answer = apply(world, world.claims, body)()
    assert "devices" not in answer["status"]
