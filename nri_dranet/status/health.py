"""From facts to the health of a device (KEP-4680) and the taints that it earns (KEP-5055). Pure.

Health speaks of the device, not of the claim: a device that could not be attached because of its configuration is not
ill, nor is one whose address something in the pod removed. The words are those of the claim's conditions, so that both
say the same.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.claims.facts import DeviceFacts, Phase
from nri_dranet.status.conditions import device_status, port_is_down

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

NO_SCHEDULE: Final = "NoSchedule"
NO_EXECUTE: Final = "NoExecute"
EFFECTS: Final = (NO_SCHEDULE, NO_EXECUTE)
"""Effects of a device taint (``resource.k8s.io/v1`` DeviceTaint): keep new pods away, or end those that run too."""

UNHEALTHY_REASONS: Final = frozenset({"LinkDown", "NoCarrier", "RDMALinkNotInPod", "RDMAPortDown"})
"""Reasons of conditions that are False under which a device in its pod is unhealthy."""

_GONE_REASON: Final = "DeviceGone"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Status(enum.StrEnum):
    """Whether a device works."""

    HEALTHY = "healthy"
    UNKNOWN = "unknown"
    UNHEALTHY = "unhealthy"


_SEVERITY: Final = {Status.HEALTHY: 0, Status.UNKNOWN: 1, Status.UNHEALTHY: 2}


@dataclass(frozen=True, slots=True)
class Health:
    """The health of a device; ``message`` says why it is not healthy."""

    status: Status
    message: str = ""


class Ailment(enum.StrEnum):
    """What a device is tainted for: the name of the taint's key, behind the driver's name."""

    DEVICE_MISSING = "device-missing"
    """It was in a pod and is not there any more, nor on the node."""
    NO_CARRIER = "no-carrier"
    """The interface is up and has no carrier: cable, switch port or peer."""
    RDMA_PORT_DOWN = "rdma-port-down"
    """The port of its RDMA device is not active."""


def health(facts: DeviceFacts) -> Health:
    """Return the health of a claim's device."""
    told = [(item["status"], item["reason"], item["message"]) for item in _conditions(facts)]
    if facts.phase is Phase.ATTACHED:
        for status, reason, message in told:
            if status == "False" and reason in UNHEALTHY_REASONS:
                return Health(Status.UNHEALTHY, message)
        return Health(Status.HEALTHY)
    _, reason, message = told[0]
    gone = facts.phase is Phase.LOST or (facts.phase is Phase.ATTACH_FAILED and reason == _GONE_REASON)
    return Health(Status.UNHEALTHY if gone else Status.UNKNOWN, message)


def worst(healths: Iterable[Health]) -> Health:
    """Return the health of a device of which several claims speak: one that is ill is ill for all.

    Raises:
        ValueError: nobody speaks of it.
    """
    return max(healths, key=lambda each: _SEVERITY[each.status])


def ailments(facts: DeviceFacts) -> frozenset[Ailment]:
    """Return what a claim's device is to be tainted for. That a pod set its interface down is no ailment."""
    if facts.phase is Phase.LOST:
        return frozenset({Ailment.DEVICE_MISSING})
    if facts.phase is not Phase.ATTACHED:
        return frozenset()
    found = set()
    seen = facts.interface
    if seen is not None and seen.up and seen.carrier is False:
        found.add(Ailment.NO_CARRIER)
    if facts.rdma is not None and port_is_down(facts.rdma.port_state):
        found.add(Ailment.RDMA_PORT_DOWN)
    return frozenset(found)


def ailments_on_node(*, up: bool, carrier: bool | None, rdma_port_state: str = "") -> frozenset[Ailment]:
    """Return what a device that no pod has is to be tainted for.

    An interface that is down has no carrier and needs none: it is set up when it is attached.

    Args:
        up: whether its interface is administratively up; False without one.
        carrier: whether that has a carrier; None: not known.
        rdma_port_state: state of its RDMA port by the kernel's word, ``""`` without one.
    """
    found = set()
    if up and carrier is False:
        found.add(Ailment.NO_CARRIER)
    if port_is_down(rdma_port_state):
        found.add(Ailment.RDMA_PORT_DOWN)
    return frozenset(found)


def tainted(entry: Mapping[str, Any], found: Iterable[Ailment], driver: str, effect: str) -> Mapping[str, Any]:
    """Return a device entry of a ResourceSlice with a taint for each ailment; the same entry when there is none.

    Args:
        entry: as in ``spec.devices``; it is not changed.
        found: its ailments, at most three of the 16 taints that a device may have.
        driver: the driver's name, prefix of the taints' keys.
        effect: one of ``EFFECTS``.
    """
    taints = [{"key": f"{driver}/{ailment.value}", "effect": effect} for ailment in sorted(found)]
    return {**entry, "taints": taints} if taints else entry


def _conditions(facts: DeviceFacts) -> list[dict[str, Any]]:
    conditions: list[dict[str, Any]] = device_status(facts, "", None, _EPOCH)["conditions"]
    return conditions
