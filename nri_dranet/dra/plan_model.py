"""What a plan is made from, and what is wrong when none can be made. Plain data, no kernel, no API."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nri_dranet.api.config import GSO_MIN
from nri_dranet.api.errors import ConfigError, FieldError, show, show_path
from nri_dranet.claims.plan import DeviceLimits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nri_dranet.api.resolve import Resolved
    from nri_dranet.claims.allocation import AllocationResult
    from nri_dranet.claims.plan import CharDevice
    from nri_dranet.netlink.model import Link, Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFactsIn:
    """What the inventory knows of a device when its plan is made.

    Attributes:
        name: The device's name in the ResourceSlice.
        link: Its interface on the host; None where it has none.
        pci_address: Its PCI address, where it has one.
        rdma: The name of its RDMA link (``mlx5_0``), where it has one.
        char_devices: The character devices of the RDMA link.
        rdma_guid: Its node GUID, empty if not told.
        published: Its entry in the ResourceSlice.
        refused: Why it may not be given to a pod, in words; empty: it may.
        limits: What bounds its settings beside its link.
        shared: It is published with ``allowMultipleAllocations``: pods get children of it, it stays.
        no_kinds: Kinds of children that the node's kernel cannot make.
        pinned_bpf_links: Ids of the BPF links on it that are pinned in a BPF file system.
    """

    name: str
    link: Link | None = None
    pci_address: str | None = None
    rdma: str | None = None
    char_devices: tuple[CharDevice, ...] = ()
    rdma_guid: str = ""
    published: Mapping[str, Any] = field(default_factory=dict)
    refused: str = ""
    limits: DeviceLimits = field(default_factory=DeviceLimits)
    shared: bool = False
    no_kinds: frozenset[str] = frozenset()
    pinned_bpf_links: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What of the node itself a plan needs.

    Its policy rules, whether RDMA links belong to one namespace each, and the least GSO size (bytes) of its kernel.
    """

    rules: tuple[Rule, ...] = ()
    rdma_exclusive: bool = False
    least_gso: int = GSO_MIN


class PlanError(ConfigError):
    """No plan can be made. ``errors`` has every problem of every device of the claim.

    A problem of a value has the value's path in the configuration; one of a device has ``device NAME``. The origin
    names the device, the request and the configuration that the value came from. Some reasons pass by themselves (the
    MTU of a lower device, a device that another pod still has), so that trying again is right.
    """


class Problems:
    """Collects the problems of one device."""

    def __init__(self, result: AllocationResult, label: str, resolved: Resolved) -> None:
        self.errors: list[FieldError] = []
        self.who = f"device {label}, request {result.request}"
        self._label = label
        self._request = result.request
        self._resolved = resolved

    def device(self, message: str) -> None:
        """Add a problem of the device itself."""
        self.errors.append(FieldError(f"device {self._label}", "", message, f"request {self._request}"))

    def field(self, location: Sequence[str | int], value: Any, message: str) -> None:
        """Add a problem of a value of the configuration; ``None`` as value: there is nothing to show."""
        origin = self._resolved.origin(location)
        where = f"{self.who}; {origin}" if origin else self.who
        self.errors.append(FieldError(show_path(location), "" if value is None else show(value), message, where))
