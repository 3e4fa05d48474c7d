"""What sysfs tells of the hardware below interfaces, as the inventory publishes it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nri_dranet.inventory.attributes import FunctionFacts, RdmaFacts, SysfsFacts
from nri_dranet.inventory.pcidb import PciDatabase
from nri_dranet.netlink.nldev import NoRdmaError, RdmaSocket
from nri_dranet.sysfs import PCI_CLASS_NETWORK, pci_address_in
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable

    from nri_dranet.netlink.model import Link
    from nri_dranet.netlink.nldev import RdmaPort as PortNow
    from nri_dranet.sysfs import PciDevice, Sysfs

LOG = logging.getLogger(__name__)

UNUSABLE_DRIVERS: Final = frozenset({"vfio-pci", "uio_pci_generic", "igb_uio", "pci-stub"})
"""Drivers that give a function to a program in user space: it has no interface then."""

_VIRTUAL: Final = "devices/virtual/"
_ARPHRD_INFINIBAND: Final = 32
_INFINIBAND_ADDRESS: Final = 20


def _ports() -> list[PortNow]:
    """Ask the kernel for the ports of the RDMA devices; none where it has no RDMA or does not tell."""
    try:
        with RdmaSocket() as socket:
            return socket.ports()
    except NoRdmaError:
        return []
    except OSError as error:
        # Sysfs tells the same of nearly all.
        LOG.warning("RDMA ports cannot be listed", extra=fields(error=error))
        return []


@dataclass(slots=True)
class Hardware:
    """PCI functions and RDMA devices of the node, as of the last look. For one thread.

    ``functions`` are the usable ones by address; ``rdma`` maps a name to its facts, ``rdma_of_interface`` an
    interface's name to that of its RDMA device where that is found by the kernel's word for a port, by GIDs or by a
    software device's parent. ``ask`` gives the ports as the kernel tells them by netlink.
    """

    sysfs: Sysfs
    names: PciDatabase = field(default_factory=PciDatabase)
    functions: dict[str, PciDevice] = field(default_factory=dict)
    facts: dict[str, FunctionFacts] = field(default_factory=dict)
    rdma: dict[str, RdmaFacts] = field(default_factory=dict)
    rdma_of_interface: dict[str, str] = field(default_factory=dict)
    ask: Callable[[], list[PortNow]] = _ports
    _by_guid: dict[str, str] = field(default_factory=dict)
    _states: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def look(self) -> None:
        """Look at everything anew: sysfs has no events. Costs as much as the node has PCI and RDMA devices.

        Raises:
            OSError: sysfs cannot be read; what is known stays as it was.
        """
        states = self._states_now()
        parents, rdma, rdma_of_interface, by_guid = self._look_at_rdma()
        present = {found.address: found for found in self.sysfs.pci_devices({PCI_CLASS_NETWORK})}
        for address in parents - present.keys():
            # RDMA devices of another class (Alibaba's eRDMA).
            found = self.sysfs.pci_device(address)
            if found is not None:
                present[address] = found
        usable = {address: found for address, found in present.items() if is_usable(found)}
        self.names.learn(found.vendor for found in usable.values())
        facts = {address: self._facts(found) for address, found in usable.items()}
        self.functions, self.facts = usable, facts
        self.rdma, self.rdma_of_interface, self._by_guid, self._states = rdma, rdma_of_interface, by_guid, states

    def rdma_changed(self) -> bool:
        """Tell whether RDMA devices or the states of their ports are others than at the last look.

        The kernel has no event for the state of a port, nor for a new name, and before 6.12 for nothing.
        """
        return self._states_now() != self._states

    def _states_now(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for name in self.sysfs.rdma_names():
            folder = f"class/infiniband/{name}/ports"
            ports = sorted(self.sysfs.listing(folder))
            found[name] = tuple(self.sysfs.read_text(f"{folder}/{port}/state") or "" for port in ports)
        return found

    def interface(self, link: Link) -> SysfsFacts:
        """Give the facts of an interface."""
        path = self.sysfs.net_device_path(link.name)
        parent = link.parent_device if link.parent_bus == "pci" else None
        virtual = bool(link.kind) and parent is None
        if path is not None:
            virtual = path.startswith(_VIRTUAL)
            parent = parent or pci_address_in(path)
        rdma = self.rdma_of_interface.get(link.name) or self._by_guid.get(_port_guid(link))
        if parent is None:
            return SysfsFacts(virtual=virtual, rdma=rdma)
        function = self._function(parent)
        speed = self.sysfs.speed(link.name) if path is not None else None
        if function is None:
            return SysfsFacts(virtual=virtual, parent=parent, rdma=rdma, speed=speed)
        return SysfsFacts(
            virtual=virtual,
            function=function.address,
            parent=function.address,
            sriov_total_vfs=max(0, function.sriov_total_vfs),
            sriov_num_vfs=max(0, function.sriov_num_vfs),
            is_vf=function.physical_function is not None,
            rdma=rdma or next(iter(function.infiniband), None),
            speed=speed,
        )

    def rdma_facts(self, name: str | None) -> RdmaFacts | None:
        """Give the facts of an RDMA device by its name."""
        return (self.rdma.get(name) or RdmaFacts(name=name)) if name else None

    def function_facts(self, address: str) -> FunctionFacts | None:
        """Give the facts of a PCI function; of any class, so that what is plugged into it can be placed."""
        known = self.facts.get(address)
        if known is None:
            found = self.sysfs.pci_device(address)
            if found is None:
                return None
            known = self.facts[address] = self._facts(found)
        return known

    def _function(self, address: str) -> PciDevice | None:
        """Give a usable network function, also one that was plugged in after the last look."""
        known = self.functions.get(address)
        if known is not None:
            return known
        found = self.sysfs.pci_device(address)
        if found is None or not is_usable(found):
            return None
        self.functions[address] = found
        self.names.learn([found.vendor])
        self.facts[address] = self._facts(found)
        return found

    def _facts(self, found: PciDevice) -> FunctionFacts:
        index = None
        if found.physical_function is not None:
            functions = self.sysfs.virtual_functions(found.physical_function)
            index = functions.index(found.address) if found.address in functions else None
        return FunctionFacts(
            address=found.address,
            driver=found.driver,
            vendor=self.names.vendor(found.vendor),
            device=self.names.device(found.vendor, found.device),
            subsystem=f"{found.subsystem_device:04x}" if found.subsystem_device >= 0 else "",
            pcie_root=found.pcie_root,
            numa_node=found.numa_node,
            numa_nodes=self._near(found.numa_node) if found.numa_node is not None else (),
            several_nodes=len(self.sysfs.numa_nodes()) > 1,
            physical_function=found.physical_function,
            vf_index=index,
        )

    def _near(self, node: int) -> tuple[int, ...]:
        """Give a NUMA node and those of the same CPU socket that are as near to it as any of them."""
        nodes = self.sysfs.numa_nodes()
        distances = dict(zip(nodes, self.sysfs.numa_distances(node), strict=False))
        package = self.sysfs.numa_package(node)
        others = [
            other
            for other in nodes
            if other != node
            and package is not None
            and other in distances
            and self.sysfs.numa_package(other) == package
        ]
        nearest = min((distances[other] for other in others), default=0)
        return (node, *(other for other in others if distances[other] == nearest))

    def _look_at_rdma(self) -> tuple[set[str], dict[str, RdmaFacts], dict[str, str], dict[str, str]]:
        """Look at the RDMA devices: the PCI functions that they are on, their facts, names by interface and by GUID."""
        rdma: dict[str, RdmaFacts] = {}
        of_interface = {port.netdev: port.device for port in self.ask() if port.netdev}
        by_guid: dict[str, str] = {}
        parents: set[str] = set()
        for name in self.sysfs.rdma_names():
            found = self.sysfs.rdma_device(name)
            if found is None:
                continue
            if found.pci_address is not None:
                parents.add(found.pci_address)
            guids = [self._guid(name, port.number) for port in found.ports]
            by_guid.update((guid, name) for guid in guids if guid)
            states = [port.state for port in found.ports]
            rdma[name] = RdmaFacts(
                name=name,
                link_layer=found.ports[0].link_layer if found.ports else "",
                # One port that works is enough.
                port_state="ACTIVE" if "ACTIVE" in states else next(iter(states), ""),
                port_guid=next(iter(guids), ""),
            )
            for interface in (*self.sysfs.rdma_interfaces(name), *((found.parent,) if found.parent else ())):
                of_interface.setdefault(interface, name)
        return parents, rdma, of_interface, by_guid

    def _guid(self, name: str, port: int) -> str:
        """Give a port's GUID, the lower half of its first GID, as ``0002:c903:00a1:2b3c``."""
        gid = self.sysfs.read_text(f"class/infiniband/{name}/ports/{port}/gids/0") or ""
        words = gid.split(":")
        lower = words[4:] if len(words) == 8 else []
        return ":".join(lower) if any(word.strip("0") for word in lower) else ""


def _port_guid(link: Link) -> str:
    """Give the GUID of the port that an InfiniBand interface stands on: the end of its hardware address (RFC 4391)."""
    digits = link.address.replace(":", "")
    if link.type != _ARPHRD_INFINIBAND or len(digits) != 2 * _INFINIBAND_ADDRESS:
        return ""
    return ":".join(digits[-16:][place : place + 4] for place in range(0, 16, 4))


def is_usable(found: PciDevice) -> bool:
    """Tell whether a PCI function is a network or RDMA device with a driver of the kernel."""
    if not found.driver or found.driver in UNUSABLE_DRIVERS:
        return False
    return found.base_class == PCI_CLASS_NETWORK or bool(found.infiniband)
