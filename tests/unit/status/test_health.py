"""Health and taints of devices: which facts make a device ill, and what is said of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nri_dranet.claims.facts import ClaimFacts, DeviceFacts, ObservedInterface, ObservedRdma, Phase
from nri_dranet.claims.model import ClaimRef, DeviceKey
from nri_dranet.status.health import (
    EFFECTS,
    NO_SCHEDULE,
    Ailment,
    Health,
    Status,
    ailments,
    ailments_on_node,
    health,
    tainted,
    worst,
)
from nri_dranet.status.health_book import HealthBook

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nri_dranet.status.health_book import DeviceName


def facts(
    phase: Phase = Phase.ATTACHED,
    *,
    interface: ObservedInterface | None = None,
    rdma: ObservedRdma | None = None,
    device: str = "eth1",
    exclusive: bool = False,
    rdma_only: bool = False,
    reason: str = "",
    message: str = "",
) -> DeviceFacts:
    """Return the facts of a device."""
    return DeviceFacts(
        key=DeviceKey("node", device),
        request="nic",
        phase=phase,
        label=device,
        interface=interface,
        rdma=rdma,
        exclusive_rdma=exclusive,
        rdma_only=rdma_only,
        reason=reason,
        message=message,
    )


def shown(*, up: bool = True, carrier: bool | None = True, missing: tuple[str, ...] = ()) -> ObservedInterface:
    """Return an interface in a pod."""
    return ObservedInterface(
        name="net1", hardware_address="02:00:00:00:00:01", up=up, carrier=carrier, missing_addresses=missing
    )


def port(state: str, *, in_pod: bool = True) -> ObservedRdma:
    """Return an RDMA link whose port is in a state."""
    return ObservedRdma(link="mlx5_0", in_pod=in_pod, port_state=state)


# ---- health


@pytest.mark.parametrize(
    "found",
    [
        facts(interface=shown()),
        facts(interface=shown(carrier=None)),
        facts(interface=shown(missing=("192.0.2.1/24",))),
        facts(interface=shown(), rdma=port("ACTIVE"), exclusive=True),
        facts(interface=shown(), rdma=port("active_defer"), exclusive=True),
        facts(rdma=port("ACTIVE"), rdma_only=True),
        facts(rdma=port(""), rdma_only=True),
        facts(),
        facts(interface=shown(), reason="Renamed", message="the interface net1 is called x now"),
    ],
)
def test_a_device_that_works_is_healthy(found: DeviceFacts) -> None:
    """Also one whose address somebody removed, or that has another name: the device does its work."""
    assert health(found) == Health(Status.HEALTHY)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (facts(interface=shown(carrier=False)), "net1 has no carrier"),
        (facts(interface=shown(up=False, carrier=False)), "net1 is down in the pod"),
        (facts(interface=shown(), rdma=port("DOWN"), exclusive=True), "mlx5_0 is DOWN"),
        (facts(interface=shown(), rdma=port("ACTIVE", in_pod=False), exclusive=True), "mlx5_0 is not in the pod"),
        (facts(rdma=port("INIT"), rdma_only=True), "mlx5_0 is INIT"),
        (facts(Phase.LOST), "eth1 is not in the pod any more"),
        (facts(Phase.LOST, message="the namespace is gone"), "the namespace is gone"),
        (facts(Phase.ATTACH_FAILED, reason="DeviceGone", message="eth1 is gone"), "eth1 is gone"),
    ],
)
def test_a_device_that_does_not_work_is_unhealthy_and_says_why(found: DeviceFacts, said: str) -> None:
    """In the words of the claim's conditions."""
    assert health(found).status is Status.UNHEALTHY
    assert said in health(found).message


@pytest.mark.parametrize(
    "phase", [Phase.PREPARED, Phase.PREPARE_FAILED, Phase.ATTACH_FAILED, Phase.UNKNOWN, Phase.DETACHED]
)
def test_a_device_that_nobody_could_look_at_in_a_pod_is_unknown(phase: Phase) -> None:
    """A configuration that was refused does not make a device ill."""
    found = health(facts(phase))
    assert found.status is Status.UNKNOWN
    assert "eth1" in found.message


def test_every_phase_has_a_health() -> None:
    """Whatever happens, kubelet is told something."""
    assert {health(facts(phase)).status for phase in Phase} == set(Status)


def test_of_two_claims_the_one_that_sees_it_ill_is_believed() -> None:
    """A device may serve several claims, by shares or admin access."""
    ill, unknown, well = Health(Status.UNHEALTHY, "x"), Health(Status.UNKNOWN), Health(Status.HEALTHY)
    assert worst([well, ill, unknown]) == ill
    assert worst([well, unknown]) == unknown


# ---- taints


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (facts(interface=shown()), set()),
        (facts(interface=shown(carrier=None)), set()),
        (facts(interface=shown(carrier=False)), {Ailment.NO_CARRIER}),
        (facts(interface=shown(up=False, carrier=False)), set()),
        (facts(interface=shown(), rdma=port("DOWN")), {Ailment.RDMA_PORT_DOWN}),
        (facts(interface=shown(carrier=False), rdma=port("DOWN")), {Ailment.NO_CARRIER, Ailment.RDMA_PORT_DOWN}),
        (facts(rdma=port("ACTIVE"), rdma_only=True), set()),
        (facts(Phase.LOST), {Ailment.DEVICE_MISSING}),
        (facts(Phase.UNKNOWN), set()),
        (facts(Phase.DETACHED), set()),
        (facts(Phase.ATTACH_FAILED), set()),
    ],
)
def test_what_a_device_in_a_claim_is_tainted_for(found: DeviceFacts, expected: set[Ailment]) -> None:
    """Not for what a pod did to it by itself: an interface that it set down is none the worse for it."""
    assert ailments(found) == expected


@pytest.mark.parametrize(
    ("up", "carrier", "state", "expected"),
    [
        (True, True, "", set()),
        (True, None, "", set()),
        (True, False, "", {Ailment.NO_CARRIER}),
        (False, False, "", set()),
        (False, None, "DOWN", {Ailment.RDMA_PORT_DOWN}),
        (True, True, "ACTIVE", set()),
        (True, False, "INIT", {Ailment.NO_CARRIER, Ailment.RDMA_PORT_DOWN}),
    ],
)
def test_what_a_device_on_the_node_is_tainted_for(
    up: bool, carrier: bool | None, state: str, expected: set[Ailment]
) -> None:
    """An interface that is down has no carrier and is set up when a pod gets it."""
    assert ailments_on_node(up=up, carrier=carrier, rdma_port_state=state) == expected


@pytest.mark.parametrize("effect", EFFECTS)
def test_taints_are_added_to_a_copy_in_a_stable_order(effect: str) -> None:
    """The entry of a healthy device is the same object, so that nothing is encoded or written anew."""
    entry: Mapping[str, object] = {"name": "eth1", "attributes": {}}
    found = tainted(entry, {Ailment.RDMA_PORT_DOWN, Ailment.NO_CARRIER}, "dra.net", effect)
    assert found == {
        "name": "eth1",
        "attributes": {},
        "taints": [
            {"key": "dra.net/no-carrier", "effect": effect},
            {"key": "dra.net/rdma-port-down", "effect": effect},
        ],
    }
    assert "taints" not in entry
    assert tainted(entry, (), "dra.net", NO_SCHEDULE) is entry


# ---- the book


def claim(uid: str, *devices: DeviceFacts) -> ClaimFacts:
    """Return the facts of a claim."""
    return ClaimFacts(ref=ClaimRef("default", uid, uid), devices=devices)


def test_the_book_tells_all_devices_after_each_change() -> None:
    """Claims replace what they said before; released claims are silent; nobody speaks of nothing at the start."""
    told: list[Mapping[DeviceName, Health]] = []
    book = HealthBook(told.append)
    book.note()
    book.note(claim("a", facts(interface=shown())), claim("b", facts(Phase.LOST, device="eth2")))
    book.note(claim("a", facts(interface=shown(carrier=False))))
    book.keep(lambda: ["a"])
    book.keep(lambda: ["a"])
    assert [{name: each.status.value for name, each in one.items()} for one in told] == [
        {},
        {("node", "eth1"): "healthy", ("node", "eth2"): "unhealthy"},
        {("node", "eth1"): "unhealthy", ("node", "eth2"): "unhealthy"},
        {("node", "eth1"): "unhealthy"},
    ]


def test_a_device_of_two_claims_is_as_ill_as_the_worse_says() -> None:
    """When that claim is released the other one's word counts."""
    told: list[Mapping[DeviceName, Health]] = []
    book = HealthBook(told.append)
    book.note(claim("a", facts(interface=shown())), claim("b", facts(Phase.LOST)))
    book.keep(lambda: ["a"])
    assert [one["node", "eth1"].status for one in told] == [Status.UNHEALTHY, Status.HEALTHY]
