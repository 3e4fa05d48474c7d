"""The node's interfaces as the kernel last told them, and what follows from them. No I/O but sysfs; for one thread."""

from __future__ import annotations

import fnmatch
import ipaddress
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.inventory.attributes import (
    NO_PROGRAMS,
    Attributes,
    Programs,
    SysfsFacts,
    interface_attributes,
    pci_attributes,
    placement_attributes,
    rdma_attributes,
    within_limits,
)
from nri_dranet.inventory.device import Device
from nri_dranet.inventory.names import interface_device_name, pci_device_name
from nri_dranet.inventory.pace import breathe
from nri_dranet.inventory.uplinks import cannot_move, is_representor, uplinks
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nri_dranet.inventory.hardware import Hardware
    from nri_dranet.netlink.model import Address, Link

LOG = logging.getLogger(__name__)

_ARPHRD_INFINIBAND: Final = 32
_SLICE: Final = 16
_MOST_TOLD: Final = 4096

Published = dict[str, Any]
"""A device's entry in a ResourceSlice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the operator decided.

    ``deny`` are never offered, and if ``allow`` is not empty nothing else is; deny wins. Both hold names of interfaces
    or devices, or PCI addresses, and patterns of them (``ens*``). ``list_types``: the cluster has
    DRAListTypeAttributes.
    """

    allow: frozenset[str] = frozenset()
    deny: frozenset[str] = frozenset()
    move_ib_interfaces: bool = True
    list_types: bool = False


@dataclass(slots=True)
class NodeState:
    """Links, addresses and routes of the node, and the devices made from them.

    ``pending`` are the interfaces about which something new was told and whose devices were not made anew since. What
    fails on the way to ``rebuild`` leaves them there, so that the next call makes up for it.
    """

    hardware: Hardware
    policy: Policy
    links: dict[int, Link] = field(default_factory=dict)
    addresses: dict[int, dict[str, Address]] = field(default_factory=dict)
    programs: dict[int, Programs] = field(default_factory=dict)
    needed: dict[int, str] = field(default_factory=dict)
    devices: dict[str, Device] = field(default_factory=dict)
    held: dict[str, Published] = field(default_factory=dict)
    pending: set[int] = field(default_factory=set)
    _news: bool = False
    _ports: dict[int, set[int]] = field(default_factory=dict)
    _facts: dict[int, SysfsFacts] = field(default_factory=dict)
    _on_function: dict[str, set[int]] = field(default_factory=dict)
    _shared: set[str] = field(default_factory=set)
    _held_on: dict[str, dict[str, Published]] = field(default_factory=dict)
    _stale_functions: set[str] = field(default_factory=set)
    _defaults: dict[int, str] = field(default_factory=dict)
    _node_addresses: frozenset[str] = frozenset()
    _carriers: dict[int, str] = field(default_factory=dict)
    _topology_changed: bool = True
    _name_of: dict[int, str] = field(default_factory=dict)
    _told: set[tuple[str, str]] = field(default_factory=set)

    # ---- what the kernel tells

    def link_changed(self, link: Link) -> None:
        """Take a link in.

        Raises:
            OSError: sysfs cannot be read; nothing was taken in.
        """
        index = link.index
        old = self.links.get(index)
        if old is link or old == link:
            return
        renamed = old is None or (old.name, old.kind) != (link.name, link.kind)
        # The speed of hardware changes with its link.
        if old is None or renamed or (self._facts[index].parent is not None and _linked(old) != _linked(link)):
            self._learn(link)
        self.links[index] = link
        self.pending.add(index)
        if old is None or _place(old) != _place(link):
            self._topology_changed = True
            if old is not None:
                self._ports.get(old.master, set()).discard(index)
            if link.master:
                self._ports.setdefault(link.master, set()).add(index)
        if renamed:
            self.pending |= self._ports.get(index, set())

    def link_gone(self, index: int) -> None:
        """Take out a link that was removed or left the namespace."""
        link = self.links.pop(index, None)
        if link is None:
            return
        self._topology_changed = True
        self.addresses.pop(index, None)
        self.programs.pop(index, None)
        self._carriers.pop(index, None)
        self._ports.get(link.master, set()).discard(index)
        self.pending |= {index} | self._ports.pop(index, set())
        self._forget(index)

    def address_changed(self, address: Address, *, gone: bool) -> None:
        """Take an address in or out."""
        index = address.index
        if index not in self.links:
            return
        known = self.addresses.setdefault(index, {})
        if gone:
            known.pop(address.cidr, None)
        elif known.get(address.cidr) == address:
            return
        else:
            known[address.cidr] = address
        self._find_carrier(index)
        self.pending.add(index)

    def programs_changed(self, index: int, programs: Programs) -> None:
        """Take in the programs of an interface."""
        if index not in self.links or self.programs.get(index, NO_PROGRAMS) == programs:
            return
        if programs == NO_PROGRAMS:
            del self.programs[index]
        else:
            self.programs[index] = programs
        self.pending.add(index)

    def defaults_changed(self, defaults: dict[int, str]) -> None:
        """Take in which interfaces default routes leave by, and why."""
        if defaults != self._defaults:
            self._defaults = defaults
            self._topology_changed = True

    def replace(self, links: Iterable[Link], addresses: Iterable[Address]) -> None:
        """Take in whole dumps.

        Raises:
            OSError: sysfs cannot be read; the links before that one were taken in.
        """
        seen = set()
        for place, link in enumerate(links, 1):
            if place % _SLICE == 0:
                breathe()
            seen.add(link.index)
            self.link_changed(link)
        for index in [index for index in self.links if index not in seen]:
            self.link_gone(index)
        fresh: dict[int, dict[str, Address]] = {}
        for address in addresses:
            if address.index in seen:
                fresh.setdefault(address.index, {})[address.cidr] = address
        for index in fresh.keys() | self.addresses.keys():
            if fresh.get(index, {}) != self.addresses.get(index, {}):
                self.pending.add(index)
        self.addresses = fresh
        self._find_carriers()

    def hardware_changed(self) -> None:
        """Take in what the hardware says after a look at it.

        Raises:
            OSError: sysfs cannot be read.
        """
        self._stale_functions |= self.hardware.functions.keys()
        self._stale_functions |= {
            device.pci_address for device in self.devices.values() if device.link is None and device.pci_address
        }
        for index, facts in list(self._facts.items()):
            link = self.links[index]
            if facts.parent is not None or link.name in self.hardware.rdma_of_interface or facts.rdma is not None:
                self._learn(link)
                self.pending.add(index)

    # ---- what others tell

    def node_addresses_changed(self, addresses: Iterable[str]) -> None:
        """Take in the addresses of the node; what is no address (its name) is passed over."""
        found = set()
        for text in addresses:
            try:
                found.add(str(ipaddress.ip_address(text)))
            except ValueError:
                continue
        self._node_addresses = frozenset(found)
        self._find_carriers()

    def held_changed(self, held: Mapping[str, Published]) -> None:
        """Take in the devices that are in pods."""
        before = self._held_on
        self.held = dict(held)
        self._held_on = {}
        for name, entry in self.held.items():
            address = (entry.get("attributes", {}).get("dra.net/pciAddress") or {}).get("string")
            if address:
                self._held_on.setdefault(address, {})[name] = entry
        changed = {a for a in before.keys() | self._held_on.keys() if before.get(a) != self._held_on.get(a)}
        self._stale_functions |= changed
        # The name of an interface may depend on what else is on its function.
        self.pending |= {index for address in changed for index in self._on_function.get(address, ())}

    # ---- what follows

    def rebuild(self) -> bool:
        """Make anew the devices of pending interfaces, of functions without one, and of uplinks that came or went.

        Returns:
            Whether a device is another now than when this last returned.

        Raises:
            OSError: sysfs cannot be read; what was not made anew yet is, with the next call.
        """
        self._find_uplinks()
        for place, index in enumerate(list(self.pending), 1):
            if place % _SLICE == 0:
                breathe()
            self._news = self._rebuild(index) or self._news
            self.pending.discard(index)
        for address in list(self._stale_functions):
            self._news = self._rebuild_bare(address) or self._news
            self._stale_functions.discard(address)
        news, self._news = self._news, False
        return news

    # ---- inside

    def _find_uplinks(self) -> None:
        """Find anew what the node needs, if that can have changed."""
        if not self._topology_changed:
            return
        seeds = {
            **{index: f"it carries the node's address {a}" for index, a in self._carriers.items()},
            **self._defaults,
        }
        needed = uplinks(seeds, self.links.get, lambda index: self._ports.get(index, ()))
        self.pending |= {i for i in needed.keys() | self.needed.keys() if needed.get(i) != self.needed.get(i)}
        self.needed = needed
        self._topology_changed = False

    def _rebuild(self, index: int) -> bool:
        link = self.links.get(index)
        device = self._device(link) if link is not None else None
        old_name = self._name_of.pop(index, None)
        changed = False
        if old_name is not None and (device is None or device.name != old_name):
            gone = self.devices.get(old_name)
            # Two interfaces may have swapped names within one burst.
            if gone is not None and gone.link is not None and gone.link.index == index:
                del self.devices[old_name]
                changed = True
        if device is None:
            return changed
        self._name_of[index] = device.name
        old = self.devices.get(device.name)
        self.devices[device.name] = device
        return changed or old is None or old.refused != device.refused or old.attributes != device.attributes

    def _rebuild_bare(self, address: str) -> bool:
        name = pci_device_name(address)
        old = self.devices.get(name)
        device = self._bare(address, name)
        if device is None:
            if old is None or old.link is not None:
                return False
            del self.devices[name]
            return True
        self.devices[name] = device
        return old != device

    def _find_carriers(self) -> None:
        for index in self.addresses.keys() | self._carriers.keys():
            self._find_carrier(index)

    def _find_carrier(self, index: int) -> None:
        known = self.addresses.get(index, {}).values() if self._node_addresses else ()
        mine = next((a.address for a in known if a.address in self._node_addresses), None)
        if mine == self._carriers.get(index):
            return
        self._topology_changed = True
        if mine is None:
            del self._carriers[index]
        else:
            self._carriers[index] = mine

    def _learn(self, link: Link) -> None:
        """Learn what sysfs tells of an interface; the others of its PCI function are pending when their number changed.

        Raises:
            OSError: sysfs cannot be read; what was known stays.
        """
        facts = self.hardware.interface(link)
        if facts.function is not None and (is_representor(link) or self._is_stacked(link) or self._stays_ib(link)):
            facts = SysfsFacts(virtual=facts.virtual, parent=facts.parent, rdma=facts.rdma, speed=facts.speed)
        before = self._facts.get(link.index)
        if before is None or before.function != facts.function:
            self._forget(link.index)
            if facts.function is not None:
                self._stale_functions.add(facts.function)
                on_function = self._on_function.setdefault(facts.function, set())
                on_function.add(link.index)
                if len(on_function) > 1:
                    self._shared.add(facts.function)
                    self.pending |= on_function
        self._facts[link.index] = facts

    def _forget(self, index: int) -> None:
        facts = self._facts.pop(index, None)
        if facts is None or facts.function is None:
            return
        self._stale_functions.add(facts.function)
        others = self._on_function.get(facts.function, set())
        others.discard(index)
        self.pending |= others

    def _is_stacked(self, link: Link) -> bool:
        """Tell whether an interface stands on another one of its function (an IPoIB child with its own partition)."""
        below = self._facts.get(link.lower) if link.lower and link.lower_netnsid is None else None
        return below is not None and below.function is not None

    def _stays_ib(self, link: Link) -> bool:
        return not self.policy.move_ib_interfaces and _is_ib(link)

    def _device(self, link: Link) -> Device | None:
        if self._stays_ib(link):
            return None
        facts = self._facts[link.index]
        attributes: Attributes = {}
        name = interface_device_name(link.name)
        place = self.hardware.function_facts(facts.parent) if facts.parent else None
        if place is not None and facts.function:
            name = self._pci_name(facts.function, link)
            attributes |= pci_attributes(place, list_types=self.policy.list_types)
        elif place is not None:
            attributes |= placement_attributes(place, list_types=self.policy.list_types)
        programs = self.programs.get(link.index, NO_PROGRAMS)
        attributes |= interface_attributes(link, self.addresses.get(link.index, {}).values(), facts, programs)
        attributes |= rdma_attributes(self.hardware.rdma_facts(facts.rdma))
        return Device(
            name=name,
            link=link,
            pci_address=facts.function,
            rdma=facts.rdma,
            attributes=self._limited(name, attributes),
            refused=self._refused(name, link, facts),
        )

    def _pci_name(self, address: str, link: Link) -> str:
        """Name an interface of a PCI function so that no name ever means another one of the same function."""
        held = self._held_on.get(address, {})
        for name, entry in held.items():
            if _is_interface_of(entry, link):
                return name
        if not held and address not in self._shared:
            return pci_device_name(address)
        ports = [self.links[index].phys_port_name for index in self._on_function.get(address, ())]
        by_port = bool(link.phys_port_name) and ports.count(link.phys_port_name) == 1
        return pci_device_name(address, link.phys_port_name if by_port else link.name)

    def _bare(self, address: str, name: str) -> Device | None:
        """A PCI function without an interface on the host: an RDMA device, or an interface that is in a pod."""
        function = self.hardware.functions.get(address)
        if function is None or self._on_function.get(address) or address in self._held_on:
            return None
        rdma = next(iter(function.infiniband), None)
        facts = self.hardware.function_facts(address)
        attributes = pci_attributes(facts, list_types=self.policy.list_types) if facts is not None else {}
        refused = "" if rdma else "it has neither an interface on the host nor an RDMA device"
        if _listed(self.policy.deny, {name, address}):
            refused = "it is on the list of denied interfaces"
        elif not refused and self.policy.allow and not _listed(self.policy.allow, {name, address}):
            refused = "it is not on the list of allowed interfaces"
        return Device(
            name=name,
            pci_address=address,
            rdma=rdma,
            attributes=self._limited(name, attributes | rdma_attributes(self.hardware.rdma_facts(rdma))),
            refused=refused,
        )

    def _refused(self, name: str, link: Link, facts: SysfsFacts) -> str:
        names = {name, link.name, *link.altnames, *((facts.function,) if facts.function else ())}
        if _listed(self.policy.deny, names):
            return "it is on the list of denied interfaces"
        why = self.needed.get(link.index) or cannot_move(link, self.links.get(link.master))
        if not why and self.policy.allow and not _listed(self.policy.allow, names):
            return "it is not on the list of allowed interfaces"
        return why

    def _limited(self, name: str, attributes: Attributes) -> Attributes:
        kept, dropped = within_limits(attributes)
        for attribute in dropped:
            if (name, attribute) not in self._told:
                if len(self._told) >= _MOST_TOLD:
                    self._told.clear()
                self._told.add((name, attribute))
                metrics.ATTRIBUTES_DROPPED.labels(attribute).inc()
                LOG.warning(
                    "attribute left out: the API takes 64 bytes of text and 32 attributes a device",
                    extra=fields(device=name, attribute=attribute),
                )
        return kept


def _linked(link: Link) -> tuple[str, bool | None]:
    return link.operstate, link.carrier


def _place(link: Link) -> tuple[object, ...]:
    return link.name, link.kind, link.master, link.lower, link.lower_netnsid, link.underlay


def _is_ib(link: Link) -> bool:
    return link.kind == "ipoib" or link.type == _ARPHRD_INFINIBAND


def _is_interface_of(entry: Published, link: Link) -> bool:
    """Tell whether a device that counts as in a pod is this interface, which came home."""
    attributes = entry.get("attributes", {})
    macs = {link.address, link.permanent_address} - {""}
    return bool(
        (attributes.get("dra.net/ifName") or {}).get("string") == link.name
        or (attributes.get("dra.net/mac") or {}).get("string") in macs
    )


def _listed(patterns: frozenset[str], names: set[str]) -> bool:
    return bool(patterns) and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns for name in names)
