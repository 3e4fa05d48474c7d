"""Facts about a device of a claim: what the halves report and the status writer turns into words for users."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nri_dranet.claims.model import ClaimRef, DeviceKey, PodRef
from nri_dranet.claims.plan import CharDevice

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

MAX_ADDRESSES: Final = 16
"""Addresses that ``networkData`` may have (``resource.k8s.io/v1`` NetworkDeviceData)."""


class Phase(enum.StrEnum):
    """Where a device is on its way through a claim's life."""

    PREPARED = "prepared"
    """Planned and recorded, not in a pod yet."""
    PREPARE_FAILED = "prepare-failed"
    """Refused in Prepare; the message names the field or the cause."""
    ATTACHED = "attached"
    """In its pod, configured."""
    ATTACH_FAILED = "attach-failed"
    """The attach was undone; the message names the step."""
    LOST = "lost"
    """Was in its pod and is not there any more: destroyed, moved or renamed away, or its namespace is gone."""
    UNKNOWN = "unknown"
    """It should be in its pod, but looking there failed."""
    DETACHED = "detached"
    """Given back to the node while the claim lives on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedInterface:
    """The interface as the kernel shows it in the pod.

    ``addresses`` are canonical CIDRs: first those that the claim asked for, ``planned`` of them, in the plan's order,
    then the others in the kernel's. ``up`` is the administrative state, ``carrier`` the link's.
    """

    name: str
    hardware_address: str
    addresses: tuple[str, ...] = ()
    up: bool = True
    carrier: bool | None = True
    operstate: str = "up"
    index: int = 0
    missing_addresses: tuple[str, ...] = ()
    planned: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedRdma:
    """The RDMA link as the kernel shows it: name, whether it is in the pod's namespace, and its port's state.

    ``char_devices`` have the numbers of now, which may be others than those of the plan.
    """

    link: str
    in_pod: bool = False
    port_state: str = ""
    physical_state: str = ""
    char_devices: tuple[CharDevice, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """All that is known of one device of a claim now.

    ``reason`` is a word of the documented list (docs/user/status.md) where the phase alone does not say enough;
    ``step`` names the step of an attach that failed. ``lease_lost`` tells why the interface has no DHCP lease any more.
    """

    key: DeviceKey
    request: str
    phase: Phase
    reason: str = ""
    message: str = ""
    step: str = ""
    label: str = ""
    rdma_only: bool = False
    admin: bool = False
    exclusive_rdma: bool = False
    lease_lost: str = ""
    interface: ObservedInterface | None = None
    rdma: ObservedRdma | None = None


def addresses_to_show(
    present: Sequence[str], planned: Collection[str], shown: Iterable[str], limit: int = MAX_ADDRESSES
) -> list[str]:
    """Return which addresses are told, and in which order: so that the same addresses are always told in the same way.

    Those that the claim asked for come before all others when there are more than ``limit``; then those that are shown
    already. What is shown keeps its place: the kernel may list the same addresses in another order.

    Args:
        present: all that there are.
        planned: those that the claim asked for.
        shown: those that were told last.
        limit: how many may be told.
    """
    before = [cidr for cidr in dict.fromkeys(shown) if cidr in present]
    ranked = [*(cidr for cidr in present if cidr in planned), *before, *present]
    chosen = set(list(dict.fromkeys(ranked))[:limit])
    return [cidr for cidr in dict.fromkeys([*before, *present]) if cidr in chosen]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimFacts:
    """The facts of all devices of this driver in one claim; ``pod`` holds them where one does."""

    ref: ClaimRef
    devices: tuple[DeviceFacts, ...] = ()
    pod: PodRef | None = None
