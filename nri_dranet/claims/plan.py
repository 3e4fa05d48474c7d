"""The attach plan: everything that a hook needs to know about a device, decided in Prepare and recorded there.

A plan holds two states of one device: how it was on the host (to restore) and how it shall be in the pod. Both use the
netlink layer's own types, so that nothing is lost on the way through the journal.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from nri_dranet.claims.model import ClaimRef, DeviceKey, PodRef
from nri_dranet.dhcp.lease import Lease
from nri_dranet.netlink.model import Address, Link, Neighbour, Route, Rule
from nri_dranet.netlink.traffic import Filter, Qdisc, TrafficClass

PLAN_VERSION = 1


class DeviceKind(enum.StrEnum):
    """What is done with a device at attach."""

    INTERFACE = "interface"
    """The interface itself moves into the pod, and with it its RDMA device in exclusive mode."""
    CHILD = "child"
    """A macvlan, ipvlan or VLAN child of a shared parent is made in the pod; the parent stays."""
    RDMA = "rdma"
    """A device without interface: its character devices, and in exclusive mode its RDMA link."""
    ADMIN = "admin"
    """Admin access (KEP-5018): reported, never moved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Queueing disciplines of an interface with their classes and filters, without those that the kernel makes."""

    qdiscs: tuple[Qdisc, ...] = ()
    classes: tuple[TrafficClass, ...] = ()
    filters: tuple[Filter, ...] = ()


@dataclass(frozen=True, slots=True)
class HostProgram:
    """A BPF program on a hook of an interface (``TCX ingress``, ``XDP driver``).

    ``linked``: a process holds it there by a BPF link, which nobody else can make again.
    """

    hook: str
    program_id: int
    linked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HostState:
    """The device on the host at Prepare, as it must come back.

    ``sysctls`` maps ``ipv4/conf/arp_ignore`` (family, directory, name; without the interface) to the value.
    ``features`` and ``private_flags`` are ethtool's, only those that can be changed. A bridge or bond that the
    interface was a port of is ``link.master``, and ``port`` what that kept for it. ``taken`` is when it was read
    (CLOCK_BOOTTIME, seconds; 0: unknown), for what is left of addresses' lifetimes.
    """

    link: Link
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    sysctls: dict[str, str] = field(default_factory=dict)
    features: dict[str, bool] = field(default_factory=dict)
    private_flags: dict[str, bool] = field(default_factory=dict)
    port: dict[str, int] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)
    programs: tuple[HostProgram, ...] = ()
    taken: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VrfPlan:
    """A VRF device of the pod that the interface is enslaved to."""

    name: str
    table: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SubInterface:
    """The child to make on a shared parent: kind ``macvlan``, ``ipvlan`` or ``vlan``; mode by its kernel name."""

    kind: str
    mode: str | None = None
    vlan_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PodState:
    """How the interface shall be in the pod. ``None`` means: leave as it is.

    Addresses, routes and neighbours carry no interface index; the engine fills in the one that the interface has in the
    pod. ``copied_addresses`` tells that they are the host's, not the claim's. ``sysctls`` maps ``ipv4/conf/arp_ignore``
    (without the interface) to its value; ``namespace_sysctls`` maps ``ipv4/tcp_l3mdev_accept``.

    With ``dhcp`` the address is that of ``lease``, which is None before it was asked for; ``lease_lost`` tells why the
    lease must not be used any more, "" where it may.
    """

    name: str
    mtu: int | None = None
    hardware_address: str | None = None
    gso_max_size: int | None = None
    gro_max_size: int | None = None
    gso_ipv4_max_size: int | None = None
    gro_ipv4_max_size: int | None = None
    addresses: tuple[Address, ...] = ()
    copied_addresses: bool = False
    routes: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    sysctls: dict[str, str] = field(default_factory=dict)
    namespace_sysctls: dict[str, str] = field(default_factory=dict)
    features: dict[str, bool] = field(default_factory=dict)
    private_flags: dict[str, bool] = field(default_factory=dict)
    vrf: VrfPlan | None = None
    sub_interface: SubInterface | None = None
    detach_bpf: bool = False
    pinned_bpf_links: tuple[int, ...] = ()
    dhcp: bool = False
    lease: Lease | None = None
    lease_lost: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CharDevice:
    """A character device of an RDMA device as a container shall see it (numbers as the kernel has them now)."""

    path: str
    major: int
    minor: int
    mode: int = 0o666
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RdmaPlan:
    """The RDMA device that belongs to the claim's device: its link name (``mlx5_0``) and whether it moves too.

    A pod can rename the link; ``node_guid`` (empty: not known) tells which it is then.
    """

    link: str
    exclusive: bool = False
    node_guid: str = ""
    char_devices: tuple[CharDevice, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLimits:
    """What bounds a device's settings beside its link, as it was at Prepare: nobody can read it while it is in a pod.

    Attributes:
        virtual_function: It is an SR-IOV virtual function.
        pf_mtu: The MTU of the physical function that it belongs to, where that is known.
        lower: The interface that it sits on (the parent of a macvlan or VLAN), where that is known.
        fixed_features: ethtool features that it cannot change, and their values; None: they were not asked for.
    """

    virtual_function: bool = False
    pf_mtu: int | None = None
    lower: Link | None = None
    fixed_features: dict[str, bool] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """One device of a claim: which, what to do with it, how it was, how it shall be.

    ``published`` is the device entry of the ResourceSlice at Prepare (name, attributes, capacity), kept so that the
    device stays published while it is in a pod. ``limits`` are kept for the plan of the claim's next allocation, which
    is made while the device is still in the former pod. ``receipt_id`` is the CDI device ID that Prepare answered.
    """

    key: DeviceKey
    request: str
    kind: DeviceKind
    host: HostState | None = None
    pod: PodState | None = None
    rdma: RdmaPlan | None = None
    pci_address: str | None = None
    published: dict[str, Any] = field(default_factory=dict)
    limits: DeviceLimits = field(default_factory=DeviceLimits)
    receipt_id: str = ""

    @property
    def main_request(self) -> str:
        """The request without its sub-request (KEP-4816)."""
        return self.request.partition("/")[0]

    @property
    def moves(self) -> bool:
        """Tell whether a second pod cannot have the device at the same time."""
        if self.kind is DeviceKind.RDMA:
            return self.rdma is not None and self.rdma.exclusive
        return self.kind is not DeviceKind.ADMIN

    def excludes(self, other: DevicePlan) -> bool:
        """Tell whether the two cannot be in pods at once: one device twice, or one whole beside a child of it."""
        if not (self.moves and other.moves):
            return False
        whole = (self.kind is DeviceKind.CHILD) != (other.kind is DeviceKind.CHILD)
        return self.key == other.key or (
            whole and (self.key.pool, self.key.device) == (other.key.pool, other.key.device)
        )

    @property
    def label(self) -> str:
        """The device as a user knows it: the interface's host name where there is one, else the device name."""
        return self.host.link.name if self.host else self.key.device


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimPlan:
    """All devices of this driver in one claim, in the order of the allocation."""

    ref: ClaimRef
    allocation_hash: str
    devices: tuple[DevicePlan, ...] = ()
    pods: tuple[PodRef, ...] = ()
    pod_claim_name: str | None = None
    listed_by: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Container name → requests of this claim that it lists (``""`` for the whole claim); empty: nobody lists it."""
    version: int = PLAN_VERSION

    @property
    def moves(self) -> bool:
        """Tell whether the claim can serve only one pod at a time."""
        return any(device.moves for device in self.devices)
