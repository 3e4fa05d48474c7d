"""What a plan is made from, read from inventory, kernel and journal at the time of Prepare."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from nri_dranet.api.checks import SUB_INTERFACE_MODES
from nri_dranet.api.config import GSO_MIN
from nri_dranet.attach.snapshot import take_snapshot
from nri_dranet.bpf import pinned_links
from nri_dranet.claims.plan import DeviceKind, DeviceLimits
from nri_dranet.dra.plan_model import DeviceFactsIn, NodeFacts
from nri_dranet.netlink import rtnl
from nri_dranet.netlink.codec import NetlinkError
from nri_dranet.netlink.ethtool import Ethtool
from nri_dranet.netlink.sockets import RtnlSocket

if TYPE_CHECKING:
    from nri_dranet.claims.allocation import AllocationResult, Claim
    from nri_dranet.claims.plan import DevicePlan, HostState
    from nri_dranet.claims.record import ClaimRecord
    from nri_dranet.dra.hardware import Hardware
    from nri_dranet.netlink.model import Link

_NEVER_MADE = "dra-never-made"
_NO_LINK = 0x7FFF_FFFF
# The kernel's least GSO size is MAX_TCP_HEADER + 1 (net/core/rtnetlink.c, Linux 6.7), which its configuration makes:
# a multiple of the cache line, and no more than this with everything switched on.
_CACHE_LINE = 32
_MOST_TCP_HEADER = 1024

_ON_LOWER = frozenset({"macvlan", "macvtap", "vlan", "ipvlan", "ipvtap"})


class KnownDevice(Protocol):
    """A device of the inventory (``inventory.device.Device``)."""

    @property
    def name(self) -> str:
        """Its name in the ResourceSlice."""
        ...

    @property
    def link(self) -> Link | None:
        """Its interface on the host now."""
        ...

    @property
    def pci_address(self) -> str | None:
        """Its PCI address."""
        ...

    @property
    def rdma(self) -> str | None:
        """Its RDMA link."""
        ...

    @property
    def refused(self) -> str:
        """Why it may not be given away; "" where it may."""
        ...

    @property
    def attributes(self) -> Mapping[str, Mapping[str, Any]]:
        """Its attributes there."""
        ...

    def entry(self) -> dict[str, Any]:
        """Its entry in the ResourceSlice."""
        ...


class Inventory(Protocol):
    """Knows the node's devices (``inventory.inventory.Inventory``)."""

    def device(self, name: str) -> KnownDevice | None:
        """Return a device by its name in the ResourceSlice."""
        ...


class Claims(Protocol):
    """The claims of this node (``store.journal.Journal``)."""

    def of_device(self, device: str) -> tuple[ClaimRecord, ...]:
        """Return those that have a device."""
        ...


class PlanInputs:
    """Reads what ``planner.plan_claim`` needs. Thread-safe: each read borrows a socket of its own."""

    def __init__(
        self,
        inventory: Inventory,
        journal: Claims,
        hardware: Hardware,
        *,
        bpf_root: str,
        shares: Callable[[KnownDevice], bool] = lambda _: False,
        probe: bool = True,
    ) -> None:
        """Keep sockets in this process's namespace, the host's.

        Args:
            inventory: the node's devices.
            journal: the claims; a device that is in a pod is described by the plan that brought it there.
            hardware: SR-IOV relations and RDMA character devices.
            bpf_root: the BPF file system in which pinned links are looked for.
            shares: tells whether pods get children of a device.
            probe: ask the kernel which kinds of children it makes, which may load a module; False: take it for all.
        """
        self._inventory = inventory
        self._journal = journal
        self._hardware = hardware
        self._bpf_root = bpf_root
        self._shares = shares
        self._probe = probe
        self._kinds: set[str] = set()
        self._least_gso = 0
        self._lock = threading.Lock()
        self._idle: list[_Eyes] = []
        self._closed = False

    def close(self) -> None:
        """Close the sockets."""
        with self._lock:
            idle, self._idle, self._closed = self._idle, [], True
        for each in idle:
            each.close()

    def read(
        self, claim: Claim, results: Sequence[AllocationResult]
    ) -> tuple[dict[str, DeviceFactsIn], dict[str, HostState]]:
        """Return what is known of the devices of a claim, and how their interfaces are on the host.

        Raises:
            OSError: the kernel cannot be asked.
        """
        devices: dict[str, DeviceFactsIn] = {}
        hosts: dict[str, HostState] = {}
        pins, fixed = _wants_bpf_detached(claim), _sets_features(claim)
        with self._eyes() as eyes:
            for name in dict.fromkeys(result.device for result in results):
                held = self._held(name)
                if held is not None:
                    devices[name], state = _of_plan(held)
                    if state is not None:
                        hosts[name] = state
                    continue
                known = self._inventory.device(name)
                if known is None:
                    continue
                state = _snapshot(eyes, known.link)
                if known.link is not None and state is None:
                    continue
                devices[name] = self._describe(eyes, known, state, pins=pins, fixed=fixed)
                if state is not None:
                    hosts[name] = state
        return devices, hosts

    def knows(self, name: str) -> bool:
        """Tell whether a device of this name is on the host."""
        return self._inventory.device(name) is not None

    def any_interface(self, results: Sequence[AllocationResult]) -> bool:
        """Tell whether one of the devices is an interface, as far as the inventory knows."""
        for result in results:
            known = self._inventory.device(result.device)
            if self._held(result.device) is not None or (known is not None and known.link is not None):
                return True
        return False

    def node(self) -> NodeFacts:
        """Return what is needed of the node itself.

        Raises:
            OSError: the kernel cannot be asked.
        """
        with self._eyes() as eyes:
            rules = tuple(eyes.host.rules())
            if not self._least_gso:
                self._least_gso = least_gso(eyes.host)
        return NodeFacts(rules=rules, rdma_exclusive=self._hardware.rdma_exclusive(), least_gso=self._least_gso)

    def _held(self, name: str) -> DevicePlan | None:
        """The plan of a device that is in a pod, or on its way; a shared one stays on the host."""
        for record in self._journal.of_device(name):
            if record.held:
                for device in record.plan.devices:
                    if device.key.device == name and device.kind is not DeviceKind.CHILD:
                        return device
        return None

    def _describe(
        self, eyes: _Eyes, known: KnownDevice, state: HostState | None, *, pins: bool, fixed: bool
    ) -> DeviceFactsIn:
        link = state.link if state else None
        lower = None
        if link is not None and link.kind in _ON_LOWER and link.lower and link.lower_netnsid is None:
            lower = eyes.host.link(index=link.lower)
        virtual = link is not None and self._hardware.is_virtual_function(link)
        shared = self._shares(known)
        return DeviceFactsIn(
            name=known.name,
            link=link,
            pci_address=known.pci_address,
            rdma=known.rdma,
            char_devices=self._hardware.char_devices(known.rdma) if known.rdma else (),
            rdma_guid=self._hardware.node_guid(known.rdma) if known.rdma else "",
            published=known.entry(),
            refused=known.refused,
            limits=DeviceLimits(
                virtual_function=virtual,
                pf_mtu=self._hardware.pf_mtu(link) if virtual and link is not None else None,
                lower=lower,
                fixed_features=eyes.fixed_features(link.index) if fixed and link is not None else None,
            ),
            pinned_bpf_links=(
                tuple(
                    pin.link.id for pin in pinned_links(link.index, self._bpf_root, xdp_program_id=link.xdp_program_id)
                )
                if pins and link is not None and not shared
                else ()
            ),
            shared=shared,
            no_kinds=self._no_kinds(eyes) if shared and self._probe else frozenset(),
        )

    def _no_kinds(self, eyes: _Eyes) -> frozenset[str]:
        """Return the kinds of children that the kernel cannot make; one that it could make once it can make."""
        self._kinds |= {kind for kind in SUB_INTERFACE_MODES if kind not in self._kinds and eyes.makes(kind)}
        return frozenset(SUB_INTERFACE_MODES.keys() - self._kinds)

    @contextmanager
    def _eyes(self) -> Iterator[_Eyes]:
        with self._lock:
            lent = self._idle.pop() if self._idle else None
        lent = lent or _Eyes.open()
        try:
            yield lent
        except BaseException:
            # An answer may still be under way on it.
            lent.close()
            raise
        with self._lock:
            if keep := not self._closed:
                self._idle.append(lent)
        if not keep:
            lent.close()


@dataclass(frozen=True, slots=True)
class _Eyes:
    """Sockets in the host's namespace that one read uses."""

    host: RtnlSocket
    ethtool: Ethtool

    @classmethod
    def open(cls) -> _Eyes:
        host = RtnlSocket()
        try:
            return cls(host, Ethtool())
        except BaseException:
            host.close()
            raise

    def close(self) -> None:
        self.host.close()
        self.ethtool.close()

    def makes(self, kind: str) -> bool:
        """Tell whether the kernel knows a kind of link; asks for one without a parent, which it refuses to make.

        Raises:
            NetlinkError: the kernel does not answer.
        """
        error = self.host.batch([rtnl.new_link(kind, _NEVER_MADE)])[0].error
        return error is None or error.errno != errno.EOPNOTSUPP

    def fixed_features(self, index: int) -> dict[str, bool]:
        """Return the ethtool features that an interface cannot change, and their values; none where it tells none.

        Raises:
            NetlinkError: the kernel refuses.
        """
        try:
            found = self.ethtool.features(index)
        except NetlinkError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return {}
        return {name: feature.active for name, feature in found.items() if not feature.changeable}


def least_gso(host: RtnlSocket) -> int:
    """Return the least GSO size that the kernel takes, in bytes.

    Sizes are checked before the link is looked for, so a link that is not there is asked for.

    Raises:
        NetlinkError: the kernel does not answer.
    """
    sizes = range(_CACHE_LINE + 1, _MOST_TCP_HEADER + _CACHE_LINE, _CACHE_LINE)
    replies = host.batch([rtnl.set_link(_NO_LINK, gso_max_size=size) for size in sizes])
    errors = [reply.error.errno if reply.error is not None else 0 for reply in replies]
    refused = [size for size, error in zip(sizes, errors, strict=True) if error == errno.ERANGE]
    return max(GSO_MIN, max(refused, default=0) + _CACHE_LINE)


def _snapshot(eyes: _Eyes, link: Link | None) -> HostState | None:
    """How the interface is now; None when it has gone since the inventory saw it."""
    if link is None:
        return None
    try:
        return take_snapshot(eyes.host, link.index, ethtool=eyes.ethtool)
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def _of_plan(plan: DevicePlan) -> tuple[DeviceFactsIn, HostState | None]:
    """Describe a device that is in a pod as it was when that pod's plan was made."""
    described = DeviceFactsIn(
        name=plan.key.device,
        link=plan.host.link if plan.host else None,
        pci_address=plan.pci_address,
        rdma=plan.rdma.link if plan.rdma else None,
        char_devices=plan.rdma.char_devices if plan.rdma else (),
        rdma_guid=plan.rdma.node_guid if plan.rdma else "",
        published=plan.published,
        limits=plan.limits,
        # Pins that nobody looked for are told at attach, which verifies that no program is left.
        pinned_bpf_links=plan.pod.pinned_bpf_links if plan.pod else (),
    )
    return described, plan.host


def _wants_bpf_detached(claim: Claim) -> bool:
    """Tell whether a configuration asks for it: only then the BPF file system is walked."""
    for config in claim.configs:
        interface = config.parameters.get("interface") if isinstance(config.parameters, Mapping) else None
        if isinstance(interface, Mapping) and interface.get("disableEbpfPrograms") is True:
            return True
    return False


def _sets_features(claim: Claim) -> bool:
    """Tell whether a configuration sets ethtool features: only then the fixed ones are asked for."""
    return any(isinstance(config.parameters, Mapping) and config.parameters.get("ethtool") for config in claim.configs)
