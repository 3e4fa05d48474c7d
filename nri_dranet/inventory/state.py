"""The node's interfaces as the kernel last told them, and what follows from them. No I/O but sysfs; for one thread."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nri_dranet.inventory.attributes import (
    Attributes,
    Programs,
    SysfsFacts,
    interface_attributes,
    pci_attributes,
    rdma_attributes,
    within_limits,
)
from nri_dranet.inventory.device import Device
from nri_dranet.inventory.names import interface_device_name, pci_device_name
from nri_dranet.inventory.uplinks import cannot_move, uplinks
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from nri_dranet.netlink.model import Address, Link
    from nri_dranet.sysfs import PciDevice, Sysfs

LOG = logging.getLogger(__name__)

NETWORK_CLASS: Final = 0x02
UNUSABLE_DRIVERS: Final = frozenset({"vfio-pci", "uio_pci_generic", "igb_uio", "pci-stub"})
"""Drivers that give a function to a program in user space: it has no interface then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the operator decided: interfaces that are never offered, those that alone are, and IPoIB."""

    allow: frozenset[str] = frozenset()
    deny: frozenset[str] = frozenset()
    move_ib_interfaces: bool = True


@dataclass(slots=True)
class NodeState:
    """Links, addresses and routes of the node, and the devices made from them."""

    sysfs: Sysfs
    policy: Policy
    programs_of: Callable[[Link], Programs]
    links: dict[int, Link] = field(default_factory=dict)
    addresses: dict[int, dict[str, Address]] = field(default_factory=dict)
    ports: dict[int, set[int]] = field(default_factory=dict)
    facts: dict[int, SysfsFacts] = field(default_factory=dict)
    functions: dict[str, PciDevice] = field(default_factory=dict)
    on_function: dict[str, set[int]] = field(default_factory=dict)
    defaults: dict[int, str] = field(default_factory=dict)
    node_addresses: frozenset[str] = frozenset()
    needed: dict[int, str] = field(default_factory=dict)
    devices: dict[str, Device] = field(default_factory=dict)
    name_of: dict[int, str] = field(default_factory=dict)
    told: set[tuple[str, str]] = field(default_factory=set)

    # ---- what the kernel tells; each returns the interfaces that it concerns

    def link_changed(self, link: Link) -> set[int]:
        """Take a link in."""
        old = self.links.get(link.index)
        self.links[link.index] = link
        if old is None or old.name != link.name:
            self._forget_facts(link.index)
            self._learn_facts(link)
        if old is not None and old.master != link.master:
            self.ports.get(old.master, set()).discard(link.index)
        if link.master:
            self.ports.setdefault(link.master, set()).add(link.index)
        touched = {link.index}
        if old is None or old.name != link.name or old.kind != link.kind:
            touched |= self.ports.get(link.index, set())
            touched |= self._same_function(link.index)
        return touched

    def link_gone(self, index: int) -> set[int]:
        """Take out a link that was removed or left the namespace."""
        link = self.links.pop(index, None)
        touched = {index} | self._same_function(index) | self.ports.get(index, set())
        self.addresses.pop(index, None)
        self._forget_facts(index)
        self.ports.pop(index, None)
        if link is not None and link.master:
            self.ports.get(link.master, set()).discard(index)
        return touched

    def address_changed(self, address: Address, *, gone: bool) -> set[int]:
        """Take an address in or out."""
        known = self.addresses.setdefault(address.index, {})
        if gone:
            known.pop(address.cidr, None)
        else:
            known[address.cidr] = address
        return {address.index}

    def replace(self, links: Iterable[Link], addresses: Iterable[Address]) -> set[int]:
        """Take in whole dumps; returns every interface, those that went too."""
        before = set(self.links)
        fresh = {link.index: link for link in links}
        for index in before - fresh.keys():
            self.link_gone(index)
        for link in fresh.values():
            self.link_changed(link)
        self.addresses = {}
        for address in addresses:
            self.addresses.setdefault(address.index, {})[address.cidr] = address
        return before | fresh.keys()

    # ---- what follows

    def recompute_uplinks(self) -> set[int]:
        """Find anew what the node needs; returns the interfaces for which that changed."""
        seeds = dict(self.defaults)
        for index, known in self.addresses.items():
            mine = next((a.address for a in known.values() if a.address in self.node_addresses), None)
            if mine is not None:
                seeds.setdefault(index, f"it carries the node's address {mine}")
        needed = uplinks(seeds, self.links.get, lambda index: self.ports.get(index, ()))
        changed = {i for i in needed.keys() | self.needed.keys() if needed.get(i) != self.needed.get(i)}
        self.needed = needed
        return changed

    def rebuild(self, indices: Iterable[int]) -> bool:
        """Make the devices of these interfaces anew; True when a device is another one now."""
        changed = False
        for index in indices:
            link = self.links.get(index)
            device = self._device(link) if link is not None else None
            old_name = self.name_of.pop(index, None)
            if old_name is not None and (device is None or device.name != old_name):
                gone = self.devices.get(old_name)
                if gone is not None and (gone.link is None or gone.link.index == index):
                    del self.devices[old_name]
                    changed = True
            if device is None:
                continue
            self.name_of[index] = device.name
            old = self.devices.get(device.name)
            if old != device:
                self.devices[device.name] = device
                changed = changed or old is None or old.entry() != device.entry() or old.refused != device.refused
        return changed

    def rebuild_functions(self, functions: Iterable[PciDevice]) -> bool:
        """Take in the PCI network functions; True when a device is another one now. Slow: sysfs was walked."""
        self.functions = {function.address: function for function in functions if _usable(function)}
        changed = False
        bare = {}
        for function in self.functions.values():
            if self.on_function.get(function.address):
                continue
            device = self._bare(function)
            bare[device.name] = device
        for name in [n for n, d in self.devices.items() if d.link is None and n not in bare]:
            del self.devices[name]
            changed = True
        for name, device in bare.items():
            if self.devices.get(name) != device:
                self.devices[name] = device
                changed = True
        return changed

    # ---- inside

    def _learn_facts(self, link: Link) -> None:
        sysfs = self.sysfs
        address = link.parent_device if link.parent_bus == "pci" else sysfs.pci_address(link.name)
        virtual = sysfs.is_virtual(link.name)
        function = sysfs.pci_device(address) if address else None
        rdma = next(iter(function.infiniband), None) if function else None
        self.facts[link.index] = SysfsFacts(
            virtual=bool(link.kind and not address) if virtual is None else virtual,
            pci_address=function.address if function else None,
            sriov_total_vfs=max(0, function.sriov_total_vfs) if function else 0,
            sriov_num_vfs=max(0, function.sriov_num_vfs) if function else 0,
            is_vf=bool(function and function.physical_function),
            rdma=rdma,
        )
        if function is not None:
            self.functions[function.address] = function
            self.on_function.setdefault(function.address, set()).add(link.index)

    def _forget_facts(self, index: int) -> None:
        facts = self.facts.pop(index, None)
        if facts is not None and facts.pci_address is not None:
            self.on_function.get(facts.pci_address, set()).discard(index)

    def _same_function(self, index: int) -> set[int]:
        facts = self.facts.get(index)
        address = facts.pci_address if facts else None
        return set(self.on_function.get(address, ())) if address else set()

    def _device(self, link: Link) -> Device | None:
        facts = self.facts.get(link.index, SysfsFacts())
        if link.kind == "ipoib" and not self.policy.move_ib_interfaces:
            return None
        function = self.functions.get(facts.pci_address) if facts.pci_address else None
        name = interface_device_name(link.name)
        attributes: Attributes = {}
        if function is not None:
            several = len(self.on_function.get(function.address, ())) > 1
            name = pci_device_name(function.address, (link.phys_port_name or link.name) if several else "")
            attributes |= pci_attributes(function)
        programs = self.programs_of(link)
        attributes |= interface_attributes(link, self.addresses.get(link.index, {}).values(), facts, programs)
        attributes |= rdma_attributes(facts.rdma)
        return Device(
            name=name,
            link=link,
            pci_address=facts.pci_address,
            rdma=facts.rdma,
            attributes=self._limited(name, attributes),
            refused=self._refused(link),
        )

    def _bare(self, function: PciDevice) -> Device:
        """A PCI function without an interface on the host: an RDMA device, or an interface that is in a pod."""
        rdma = next(iter(function.infiniband), None)
        name = pci_device_name(function.address)
        return Device(
            name=name,
            pci_address=function.address,
            rdma=rdma,
            attributes=self._limited(name, pci_attributes(function) | rdma_attributes(rdma)),
            refused="" if rdma else "it has neither an interface on the host nor an RDMA device",
        )

    def _refused(self, link: Link) -> str:
        names = {link.name, *link.altnames}
        if names & self.policy.deny:
            return "it is on the list of denied interfaces"
        why = self.needed.get(link.index) or cannot_move(link, self.links.get(link.master))
        if not why and self.policy.allow and not names & self.policy.allow:
            return "it is not on the list of allowed interfaces"
        return why

    def _limited(self, name: str, attributes: Mapping[str, Mapping[str, object]]) -> Attributes:
        kept, dropped = within_limits(attributes)
        for attribute in dropped:
            if (name, attribute) not in self.told:
                self.told.add((name, attribute))
                metrics.ATTRIBUTES_DROPPED.labels(attribute).inc()
                LOG.warning(
                    "attribute left out: the API takes 64 bytes of text and 32 attributes a device",
                    extra=fields(device=name, attribute=attribute),
                )
        return kept


def _usable(function: PciDevice) -> bool:
    is_network = function.base_class == NETWORK_CLASS
    return (
        bool(function.driver) and function.driver not in UNUSABLE_DRIVERS and (is_network or bool(function.infiniband))
    )
