"""From facts to the device's status: every phase, every state of interface and RDMA link, and the API's limits."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nri_dranet.claims.facts import DeviceFacts, ObservedInterface, ObservedRdma, Phase
from nri_dranet.claims.model import DeviceKey
from nri_dranet.status import reasons
from nri_dranet.status.conditions import OWN_TYPES, canonical_addresses, device_status, same
from nri_dranet.testing.api_claims import status_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STAMP = "2026-01-02T03:04:05Z"


def shown(**more: Any) -> ObservedInterface:
    """Return the interface of the contract's example."""
    more.setdefault("addresses", ("169.254.169.13/32",))
    return ObservedInterface(name="eth99", hardware_address="86:d7:86:e6:f3:dd", **more)


def verdicts(entry: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return status and reason of each condition."""
    return {item["type"]: (item["status"], item["reason"]) for item in entry["conditions"]}


def claim_with(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a claim that has the entry's device allocated."""
    result = {name: entry[name] for name in ("driver", "pool", "device", "shareID") if name in entry}
    devices = {"results": [{"request": "r0", **result}]}
    return {"spec": {"devices": {"requests": []}}, "status": {"allocation": {"devices": devices}, "devices": [entry]}}


def refusals(entry: Mapping[str, Any]) -> list[str]:
    """Return what the API server would say against an entry."""
    claim = claim_with(entry)
    return [str(error) for error in status_errors(claim, claim) if "status.devices" in str(error)]


def test_the_contracts_example(make_device: Callable[..., DeviceFacts]) -> None:
    """A good device says exactly what the user's contract shows."""
    assert device_status(make_device(interface=shown()), "dra.net", None, NOW) == {
        "driver": "dra.net",
        "pool": "n1",
        "device": "eth1",
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "NetworkDeviceReady",
                "message": "",
                "lastTransitionTime": STAMP,
            },
            {
                "type": "NetworkReady",
                "status": "True",
                "reason": "NetworkReady",
                "message": "",
                "lastTransitionTime": STAMP,
            },
        ],
        "networkData": {
            "interfaceName": "eth99",
            "hardwareAddress": "86:d7:86:e6:f3:dd",
            "ips": ["169.254.169.13/32"],
        },
    }


READY = ("True", "NetworkDeviceReady")
IN_POD = ObservedRdma(link="mlx5_2", in_pod=True, port_state="ACTIVE", physical_state="LINK_UP")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, {"Ready": READY, "NetworkReady": ("True", "NetworkReady")}),
        ({"interface": shown(up=False)}, {"Ready": READY, "NetworkReady": ("False", "LinkDown")}),
        ({"interface": shown(carrier=False)}, {"Ready": READY, "NetworkReady": ("False", "NoCarrier")}),
        ({"interface": shown(carrier=None)}, {"Ready": READY, "NetworkReady": ("True", "NetworkReady")}),
        (
            {"interface": shown(missing_addresses=("10.0.0.1/24",))},
            {"Ready": READY, "NetworkReady": ("False", "AddressMissing")},
        ),
        ({"interface": None}, {"Ready": READY, "NetworkReady": ("Unknown", "LookFailed")}),
        (
            {"reason": "Renamed", "message": "the interface net1 is called eth99 now"},
            {"Ready": ("True", "Renamed"), "NetworkReady": ("True", "NetworkReady")},
        ),
        (
            {"exclusive_rdma": True, "rdma": IN_POD},
            {
                "Ready": READY,
                "NetworkReady": ("True", "NetworkReady"),
                "RDMALinkReady": ("True", "RDMALinkReady"),
            },
        ),
        (
            {"exclusive_rdma": True, "rdma": ObservedRdma(link="mlx5_2", in_pod=True, port_state="DOWN")},
            {"Ready": READY, "NetworkReady": ("True", "NetworkReady"), "RDMALinkReady": ("False", "RDMAPortDown")},
        ),
        (
            {"exclusive_rdma": True, "rdma": ObservedRdma(link="mlx5_2")},
            {"Ready": READY, "NetworkReady": ("True", "NetworkReady"), "RDMALinkReady": ("False", "RDMALinkNotInPod")},
        ),
        (
            {"exclusive_rdma": True},
            {"Ready": READY, "NetworkReady": ("True", "NetworkReady"), "RDMALinkReady": ("False", "RDMALinkNotInPod")},
        ),
        ({"rdma_only": True, "interface": None}, {"Ready": ("True", "RDMAOnlyDeviceReady")}),
        (
            {"rdma_only": True, "interface": None, "rdma": ObservedRdma(link="m", in_pod=True, port_state="INIT")},
            {"Ready": ("False", "RDMAPortDown")},
        ),
        (
            {"rdma_only": True, "exclusive_rdma": True, "interface": None, "rdma": IN_POD},
            {"Ready": ("True", "RDMAOnlyDeviceReady"), "RDMALinkReady": ("True", "RDMALinkReady")},
        ),
        ({"admin": True}, {"Ready": ("True", "AdminAccess")}),
    ],
)
def test_a_device_in_its_pod(
    make_device: Callable[..., DeviceFacts], more: dict[str, Any], expected: dict[str, tuple[str, str]]
) -> None:
    """What the kernel shows in the pod becomes conditions; a link that is not moved has no RDMALinkReady."""
    entry = device_status(make_device(**more), "dra.net", None, NOW)
    assert verdicts(entry) == expected
    for item in entry["conditions"]:
        assert bool(item["message"]) == (
            item["reason"] not in reasons.GOOD or item["reason"] in ("Renamed", "AdminAccess")
        )


@pytest.mark.parametrize(
    ("phase", "status", "reason"),
    [
        (Phase.PREPARED, "Unknown", "Prepared"),
        (Phase.UNKNOWN, "Unknown", "LookFailed"),
        (Phase.PREPARE_FAILED, "False", "PrepareFailed"),
        (Phase.ATTACH_FAILED, "False", "AttachFailed"),
        (Phase.LOST, "False", "DeviceMissing"),
        (Phase.DETACHED, "False", "Detached"),
    ],
)
def test_a_device_that_is_not_in_its_pod(
    make_device: Callable[..., DeviceFacts], phase: Phase, status: str, reason: str
) -> None:
    """All conditions say so, with a reason and a message that names the device; networkData is withdrawn."""
    entry = device_status(make_device(phase, interface=shown(), exclusive_rdma=True), "dra.net", None, NOW)
    assert verdicts(entry) == dict.fromkeys(OWN_TYPES, (status, reason))
    assert all("eth1" in item["message"] for item in entry["conditions"])
    assert "networkData" not in entry


def test_a_failed_attach_names_device_and_step(make_device: Callable[..., DeviceFacts]) -> None:
    """Which device, which step, and the kernel's words."""
    failed = make_device(Phase.ATTACH_FAILED, reason="NameInUse", step="rename to eth0", message="File exists")
    (ready, _) = device_status(failed, "dra.net", None, NOW)["conditions"]
    assert (ready["reason"], ready["message"]) == ("NameInUse", "device eth1: rename to eth0: File exists")
    told = make_device(Phase.ATTACH_FAILED, step="rename", message="eth1 cannot be called eth0 in step rename")
    assert device_status(told, "dra.net", None, NOW)["conditions"][0]["message"] == told.message


def test_a_refused_prepare_says_what_the_planner_says(make_device: Callable[..., DeviceFacts]) -> None:
    """The message with the path of the field is passed on as it is."""
    words = "interface.addresses[0]: '10.0.0.1' is no CIDR"
    failed = make_device(Phase.PREPARE_FAILED, reason="InvalidConfiguration", message=words)
    (ready, network) = device_status(failed, "dra.net", None, NOW)["conditions"]
    assert ready["message"] == network["message"] == words


def test_every_combination_is_legal_and_documented() -> None:
    """All facts that can occur give an entry that the API server takes, with reasons of the documented list."""
    interfaces = [
        None,
        *(
            shown(up=up, carrier=carrier, missing_addresses=missing)
            for up, carrier, missing in itertools.product((True, False), (True, False, None), ((), ("10.0.0.1/24",)))
        ),
    ]
    links = [
        None,
        *(
            ObservedRdma(link="mlx5_2", in_pod=there, port_state=port)
            for there, port in itertools.product((True, False), ("", "ACTIVE", "DOWN", "INIT"))
        ),
    ]
    flags = itertools.product((True, False), repeat=3)
    for phase, interface, rdma, (only, admin, exclusive) in itertools.product(Phase, interfaces, links, flags):
        facts = DeviceFacts(
            key=DeviceKey("n1", "eth1", "share" if only else None),
            request="r0",
            phase=phase,
            interface=interface,
            rdma=rdma,
            rdma_only=only,
            admin=admin,
            exclusive_rdma=exclusive,
        )
        entry = device_status(facts, "dra.net", None, NOW)
        kinds = [item["type"] for item in entry["conditions"]]
        assert kinds[0] == "Ready"
        assert ("NetworkReady" in kinds) == (not admin and not only)
        assert ("RDMALinkReady" in kinds) == (not admin and exclusive)
        for item in entry["conditions"]:
            table = {"True": reasons.GOOD, "Unknown": reasons.WAITING}.get(item["status"], reasons.CONDITIONS)
            assert item["reason"] in table
        assert ("networkData" in entry) == (phase is Phase.ATTACHED and interface is not None and not only)
        if phase is not Phase.ATTACHED:
            assert len(set(verdicts(entry).values())) == 1


# ---- times


def at(seconds: float) -> datetime:
    """Return a time that many seconds after NOW."""
    return NOW + timedelta(seconds=seconds)


def times(entry: Mapping[str, Any]) -> set[str]:
    """Return the times of the conditions."""
    return {item["lastTransitionTime"] for item in entry["conditions"]}


def test_times_move_only_with_the_status(make_device: Callable[..., DeviceFacts]) -> None:
    """Reason, message and data may change without a transition."""
    first = device_status(make_device(), "dra.net", None, NOW)
    renamed = device_status(make_device(reason="Renamed", message="now eth7"), "dra.net", first, at(60))
    assert times(renamed) == {STAMP}
    down = device_status(make_device(interface=shown(up=False)), "dra.net", renamed, at(60))
    assert [item["lastTransitionTime"] for item in down["conditions"]] == [STAMP, "2026-01-02T03:05:05Z"]


@pytest.mark.parametrize("jump", [-3600, -86400, 0])
def test_f19_times_never_go_backwards(make_device: Callable[..., DeviceFacts], jump: int) -> None:
    """A clock that was set back does not make a transition older than the one before it."""
    first = device_status(make_device(), "dra.net", None, NOW)
    lost = device_status(make_device(Phase.LOST), "dra.net", first, at(jump))
    assert times(lost) == {STAMP}


def test_a_time_in_the_future_is_kept(make_device: Callable[..., DeviceFacts]) -> None:
    """A former clock that was ahead has written a time to come: later transitions are not before it."""
    ahead = device_status(make_device(), "dra.net", None, at(86400))
    assert times(device_status(make_device(), "dra.net", ahead, NOW)) == times(ahead)
    assert times(device_status(make_device(Phase.LOST), "dra.net", ahead, NOW)) == times(ahead)


def test_times_are_utc_whatever_the_zone(make_device: Callable[..., DeviceFacts]) -> None:
    """The API server's form: seconds, Z."""
    local = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert times(device_status(make_device(), "dra.net", None, local)) == {STAMP}


def test_a_previous_condition_without_time_gets_one(make_device: Callable[..., DeviceFacts]) -> None:
    """A damaged entry is made right."""
    broken = {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": None}]}
    assert times(device_status(make_device(), "dra.net", broken, NOW)) == {STAMP}


@given(
    steps=st.lists(st.tuples(st.sampled_from(list(Phase)), st.booleans(), st.integers(-(10**6), 10**6)), max_size=12)
)
def test_any_history_keeps_the_rules_of_time(steps: list[tuple[Phase, bool, int]]) -> None:
    """Whatever happens and whatever the clock does: same status, same time; other status, not earlier."""
    previous: dict[str, Any] | None = None
    for phase, up, seconds in steps:
        facts = DeviceFacts(key=DeviceKey("n1", "eth1"), request="r0", phase=phase, interface=shown(up=up))
        entry = device_status(facts, "dra.net", previous, at(seconds))
        before = {item["type"]: item for item in (previous or {"conditions": []})["conditions"]}
        for item in entry["conditions"]:
            old = before.get(item["type"])
            if old and old["status"] == item["status"]:
                assert item["lastTransitionTime"] == old["lastTransitionTime"]
            elif old:
                assert item["lastTransitionTime"] >= old["lastTransitionTime"]
        assert same(entry, entry)
        previous = entry


# ---- other managers


def foreign(count: int) -> list[dict[str, str]]:
    """Return conditions of other types."""
    return [
        {"type": f"Other{i}", "status": "True", "reason": "R", "message": "", "lastTransitionTime": STAMP}
        for i in range(count)
    ]


@pytest.mark.parametrize(("count", "own"), [(0, 3), (5, 3), (6, 2), (7, 1), (8, 0)])
def test_others_conditions_are_left_alone_and_leave_room(
    make_device: Callable[..., DeviceFacts], count: int, own: int
) -> None:
    """An entry takes eight conditions: others' stay, and ours fill the rest, Ready first."""
    facts = make_device(exclusive_rdma=True, rdma=IN_POD)
    entry = device_status(facts, "dra.net", {"conditions": foreign(count)}, NOW)
    assert [item["type"] for item in entry["conditions"]] == list(OWN_TYPES[:own])
    assert refusals({**entry, "conditions": [*entry["conditions"], *foreign(count)]}) == []


def test_sameness(make_device: Callable[..., DeviceFacts]) -> None:
    """Others' conditions do not count; ours, their times and the data do."""
    entry = device_status(make_device(), "dra.net", None, NOW)
    assert same(entry, {**entry, "conditions": [*reversed(entry["conditions"]), *foreign(2)], "data": {"x": 1}})
    assert not same(entry, None)
    assert not same(entry, {**entry, "conditions": None})
    assert not same(entry, {**entry, "conditions": entry["conditions"][:1]})
    assert not same(entry, {**entry, "networkData": {**entry["networkData"], "ips": []}})
    later = [{**item, "lastTransitionTime": "2026-06-01T00:00:00Z"} for item in entry["conditions"]]
    assert not same(entry, {**entry, "conditions": later})
    bare = device_status(make_device(Phase.LOST), "dra.net", None, NOW)
    without_text = [{name: text for name, text in item.items() if text} for item in entry["conditions"]]
    assert same(entry, {**entry, "conditions": without_text})
    assert same(bare, {**bare, "networkData": None})


# ---- network data


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        (["10.10.0.5/24"], ["10.10.0.5/24"]),
        (["10.10.0.5"], ["10.10.0.5/32"]),
        (["FD77:000A::0005/64"], ["fd77:a::5/64"]),
        (["2001:0db8:0:0:0:0:0:1/64"], ["2001:db8::1/64"]),
        (["::ffff:10.0.0.1/120"], ["10.0.0.1/24"]),
        (["::ffff:10.0.0.1/64"], []),
        (["fe80::1%eth0/64"], ["fe80::1/64"]),
        (["10.0.0.1/24", "10.0.0.1/24", "10.0.0.1/16"], ["10.0.0.1/24", "10.0.0.1/16"]),
        (["", "x", "300.1.1.1/24", "10.0.0.1/33", "10.0.0.01/24"], []),
        (["10.10.0.0/24", "127.0.0.1/8"], ["10.10.0.0/24", "127.0.0.1/8"]),
    ],
)
def test_addresses_are_canonical(given_: list[str], expected: list[str]) -> None:
    """The API server takes one form of each address."""
    assert canonical_addresses(given_) == expected


def test_sixteen_addresses_and_a_stable_choice(make_device: Callable[..., DeviceFacts]) -> None:
    """What is shown stays shown, whatever order the kernel has; what is gone makes room."""
    many = [f"10.0.0.{i}/24" for i in range(1, 31)]
    first = device_status(make_device(interface=shown(addresses=tuple(many))), "dra.net", None, NOW)
    assert first["networkData"]["ips"] == many[:16]
    turned = make_device(interface=shown(addresses=tuple(reversed(many))))
    assert device_status(turned, "dra.net", first, NOW) == first
    fewer = make_device(interface=shown(addresses=tuple(many[1:])))
    assert device_status(fewer, "dra.net", first, NOW)["networkData"]["ips"] == many[1:17]


def test_of_many_addresses_those_that_the_claim_asked_for_are_shown(make_device: Callable[..., DeviceFacts]) -> None:
    """What something in the pod adds never takes their place; a planned one that comes back gets it again."""
    asked = ("10.9.0.2/24", "10.9.0.1/24")
    added = tuple(f"10.0.0.{i}/24" for i in range(1, 31))
    seen = make_device(interface=shown(addresses=asked + added, planned=2))
    first = device_status(seen, "dra.net", None, NOW)
    assert first["networkData"]["ips"] == [*asked, *added[:14]]
    less = make_device(interface=shown(addresses=asked[1:] + added, planned=1))
    without = device_status(less, "dra.net", first, NOW)
    assert without["networkData"]["ips"] == [asked[1], *added[:15]]
    again = device_status(seen, "dra.net", without, NOW)
    assert again["networkData"]["ips"] == [asked[1], *added[:14], asked[0]]
    assert device_status(seen, "dra.net", again, NOW) == again


def test_an_interface_without_address_has_no_list(make_device: Callable[..., DeviceFacts]) -> None:
    """Nothing is said that is not there."""
    bare = make_device(interface=ObservedInterface(name="eth99", hardware_address=""))
    assert device_status(bare, "dra.net", None, NOW)["networkData"] == {"interfaceName": "eth99"}


addresses = st.one_of(
    st.ip_addresses(v=4).flatmap(lambda ip: st.integers(0, 32).map(lambda p: f"{ip}/{p}")),
    st.ip_addresses(v=6).flatmap(lambda ip: st.integers(0, 128).map(lambda p: f"{ip.exploded.upper()}/{p}")),
    st.ip_addresses(v=4).flatmap(lambda ip: st.integers(0, 128).map(lambda p: f"::ffff:{ip}/{p}")),
    st.text(max_size=20),
)
names = st.one_of(st.text(max_size=300), st.binary(max_size=300).map(lambda b: b.decode("utf-8", "surrogateescape")))


@given(
    phase=st.sampled_from(list(Phase)),
    name=names,
    hardware=names,
    ips=st.lists(addresses, max_size=40),
    reason=st.one_of(st.just(""), st.text(max_size=40), st.text("Aa_:, 0", max_size=1100)),
    message=st.one_of(names, st.just("ä" * 33000)),
)
def test_whatever_the_kernel_says_is_legal(  # noqa: PLR0917 - one example
    phase: Phase, name: str, hardware: str, ips: list[str], reason: str, message: str
) -> None:
    """No name, address, reason or message makes an entry that the API server refuses, or that is no JSON."""
    facts = DeviceFacts(
        key=DeviceKey("n1", "eth1"),
        request="r0",
        phase=phase,
        reason=reason,
        message=message,
        interface=ObservedInterface(name=name, hardware_address=hardware, addresses=tuple(ips)),
    )
    entry = device_status(facts, "dra.net", None, NOW)
    assert refusals(entry) == []
    for item in entry["conditions"]:
        item["message"].encode()
