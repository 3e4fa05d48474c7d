"""What sysfs tells of network, PCI and RDMA devices. Read only; a fact that is not there is None or empty, no error.

A ``/sys/class`` entry is one symbolic link to the device's folder, whose path is the chain of buses above it. What is
under ``/sys/class/net`` depends on the namespace in which sysfs was mounted; ``/sys/bus/pci`` does not. Source of the
facts: the kernel's ``Documentation/ABI/testing/sysfs-class-net``, ``sysfs-bus-pci``, ``stable/sysfs-class-infiniband``.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Container

PCI_CLASS_NETWORK: Final = 0x02

_PCI_ADDRESS: Final = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]\Z")
_PCI_ROOT: Final = re.compile(r"pci[0-9a-f]{4,}:[0-9a-f]{2}\Z")
_VIRTFN: Final = re.compile(r"virtfn(\d+)\Z")
_NODE: Final = re.compile(r"node(\d+)\Z")

# A file that cannot be read now: gone, or its driver does not tell (speed of a link that is down: EINVAL), or refuses.
_NOT_TOLD: Final = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EINVAL,
        errno.ENODEV,
        errno.ENXIO,
        errno.EIO,
        errno.EAGAIN,
        errno.EBUSY,
        errno.EACCES,
        errno.EPERM,
        errno.EOPNOTSUPP,
        524,  # ENOTSUPP, which some drivers let out
    }
)

_FILE_LIMIT: Final = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PciDevice:
    """A PCI function. Numbers are -1 where the kernel does not tell, addresses full (``0000:8a:00.0``), lower case.

    ``class_code`` has three bytes, class on top. ``numa_node`` None: none. ``infiniband`` are the RDMA devices
    below it that this sysfs shows. ``path`` is the folder, below the root.
    """

    address: str
    path: str
    class_code: int
    vendor: int
    device: int
    subsystem_device: int
    driver: str
    numa_node: int | None
    sriov_total_vfs: int
    sriov_num_vfs: int
    physical_function: str | None
    infiniband: tuple[str, ...]

    @property
    def base_class(self) -> int:
        """The class without subclass and interface: 2 is a network controller."""
        return self.class_code >> 16

    @property
    def pcie_root(self) -> str | None:
        """The root complex (``pci0000:00``)."""
        return root_in(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class RdmaPort:
    """A port of an RDMA device: words as in sysfs without their number (``ACTIVE``, ``LinkUp``)."""

    number: int
    state: str
    physical_state: str
    link_layer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RdmaDevice:
    """An RDMA device. ``parent`` is the interface that a software device (rxe) stands on."""

    name: str
    pci_address: str | None
    node_guid: str
    firmware: str
    parent: str | None
    ports: tuple[RdmaPort, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CharDevice:
    """A character device: its name under ``/dev/infiniband``, and its numbers as they are now."""

    name: str
    major: int
    minor: int

    @property
    def path(self) -> str:
        """Where the device node is."""
        return f"/dev/infiniband/{self.name}"


_CHAR_CLASSES: Final = ("infiniband_verbs", "infiniband_mad")


def pci_address_in(path: str) -> str | None:
    """Give the PCI function that is nearest above a device: the last component of its path that is a PCI address."""
    return next((part for part in reversed(path.split("/")) if _PCI_ADDRESS.match(part)), None)


def root_in(path: str) -> str | None:
    """Give the root complex in a device's path."""
    return next((part for part in path.split("/") if _PCI_ROOT.match(part)), None)


class Sysfs:
    """sysfs at a folder. Holds no state and no descriptor; threads may share it."""

    def __init__(self, root: str | os.PathLike[str] = "/sys") -> None:
        self._root = os.fspath(root)

    def read_text(self, path: str) -> str | None:
        """Give the text of a file below the root without its white space around, None where it is not told.

        Raises:
            OSError: it cannot be read for a reason of ours (no descriptors left).
        """
        try:
            fd = os.open(f"{self._root}/{path}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.read(fd, _FILE_LIMIT).decode("utf-8", "replace").strip()
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno in _NOT_TOLD:
                return None
            raise

    def read_number(self, path: str, default: int = -1) -> int:
        """Give the number in a file (``0x…`` too), ``default`` where there is none (raises as ``read_text``)."""
        text = self.read_text(path)
        try:
            return int(text, 0) if text else default
        except ValueError:
            return default

    def listing(self, path: str) -> tuple[str, ...]:
        """Give the names in a folder, sorted; none where there is no such folder."""
        try:
            return tuple(sorted(os.listdir(f"{self._root}/{path}")))  # noqa: PTH208 - names, no objects
        except OSError as error:
            if error.errno in _NOT_TOLD:
                return ()
            raise

    def _link(self, path: str) -> str | None:
        try:
            return os.readlink(f"{self._root}/{path}")  # noqa: PTH115 - one call, where a path object makes many
        except OSError as error:
            if error.errno in _NOT_TOLD:
                return None
            raise

    def target(self, path: str) -> str | None:
        """Give where a symbolic link leads, below the root (``devices/pci0000:00/…``); None where it is none.

        The folders on the way must be no links themselves: true for the entries of classes and buses.
        """
        found = self._link(path)
        if found is None:
            return None
        if found.startswith("/"):
            return found.removeprefix(self._root).lstrip("/")
        return os.path.normpath(f"{path}/../{found}")

    def target_name(self, path: str) -> str | None:
        """Give the last component of where a symbolic link leads: a driver's name, a device's address."""
        found = self._link(path)
        return found.rpartition("/")[2] if found else None

    # interfaces

    def net_device_path(self, name: str) -> str | None:
        """Give the folder of an interface below the root (``devices/virtual/net/lo``), None if there is none."""
        return self.target(f"class/net/{name}") if _plain(name) else None

    def speed(self, name: str) -> int | None:
        """Give the speed of an interface in Mbit/s; None while it is down, or where its driver does not tell."""
        number = self.read_number(f"class/net/{name}/speed") if _plain(name) else -1
        # An unknown speed is -1, which some drivers show as an unsigned number.
        return number if 0 < number < 0xFFFF_FFFF else None

    def is_sriov_vf(self, name: str) -> bool:
        """Tell whether an interface is a virtual function of SR-IOV."""
        return _plain(name) and self._link(f"class/net/{name}/device/physfn") is not None

    def physical_interfaces(self, name: str) -> tuple[str, ...]:
        """Give the interfaces of the physical function that a virtual function's interface belongs to."""
        return self.listing(f"class/net/{name}/device/physfn/net") if _plain(name) else ()

    # PCI

    def pci_devices(self, classes: Container[int] | None = None) -> tuple[PciDevice, ...]:
        """List the PCI functions of some base classes (None: all), by address."""
        found = []
        for address in self.listing("bus/pci/devices"):
            if classes is not None:
                code = self.read_number(f"bus/pci/devices/{address}/class")
                if code < 0 or code >> 16 not in classes:
                    continue
            device = self.pci_device(address)
            if device:
                found.append(device)
        return tuple(found)

    def pci_device(self, address: str) -> PciDevice | None:
        """Give a PCI function, or None if there is none at the address."""
        if not _PCI_ADDRESS.match(address):
            return None
        folder = f"bus/pci/devices/{address}"
        path = self.target(folder)
        if path is None:
            return None
        node = self.read_number(f"{folder}/numa_node")
        names = self.listing(folder)
        return PciDevice(
            address=address,
            path=path,
            class_code=self.read_number(f"{folder}/class", 0),
            vendor=self.read_number(f"{folder}/vendor"),
            device=self.read_number(f"{folder}/device"),
            subsystem_device=self.read_number(f"{folder}/subsystem_device"),
            driver=self.target_name(f"{folder}/driver") or "",
            numa_node=node if node >= 0 else None,
            sriov_total_vfs=self.read_number(f"{folder}/sriov_totalvfs", 0) if "sriov_totalvfs" in names else 0,
            sriov_num_vfs=self.read_number(f"{folder}/sriov_numvfs", 0) if "sriov_numvfs" in names else 0,
            physical_function=self.target_name(f"{folder}/physfn") if "physfn" in names else None,
            infiniband=self.listing(f"{folder}/infiniband") if "infiniband" in names else (),
        )

    def virtual_functions(self, address: str) -> tuple[str, ...]:
        """Give the virtual functions of a physical one, by their index."""
        if not _PCI_ADDRESS.match(address):
            return ()
        folder = f"bus/pci/devices/{address}"
        numbers = sorted(int(match[1]) for name in self.listing(folder) if (match := _VIRTFN.match(name)))
        targets = (self.target_name(f"{folder}/virtfn{number}") for number in numbers)
        return tuple(target for target in targets if target)

    # NUMA

    def numa_nodes(self) -> tuple[int, ...]:
        """List the NUMA nodes by number."""
        names = (_NODE.match(name) for name in self.listing("devices/system/node"))
        return tuple(sorted(int(match[1]) for match in names if match))

    def numa_distances(self, node: int) -> tuple[int, ...]:
        """Give the distances from a node to all, in the order of ``numa_nodes`` (10 is itself); none if not told."""
        text = self.read_text(f"devices/system/node/node{node}/distance") or ""
        return tuple(int(word) for word in text.split() if word.isdecimal())

    def numa_package(self, node: int) -> int | None:
        """Give the CPU socket of a node, that of its first CPU; None for a node without CPUs."""
        first = re.match(r"\d+", self.read_text(f"devices/system/node/node{node}/cpulist") or "")
        number = self.read_number(f"devices/system/cpu/cpu{first[0]}/topology/physical_package_id") if first else -1
        return number if number >= 0 else None

    # RDMA

    def rdma_names(self) -> tuple[str, ...]:
        """List the RDMA devices that this sysfs shows."""
        return self.listing("class/infiniband")

    def rdma_device(self, name: str) -> RdmaDevice | None:
        """Give an RDMA device, or None if this sysfs shows none of the name."""
        folder = f"class/infiniband/{name}"
        path = self.target(folder) if _plain(name) else None
        if path is None:
            return None
        ports = sorted(int(port) for port in self.listing(f"{folder}/ports") if port.isdecimal())
        return RdmaDevice(
            name=name,
            pci_address=pci_address_in(path),
            node_guid=self.read_text(f"{folder}/node_guid") or "",
            firmware=self.read_text(f"{folder}/fw_ver") or "",
            parent=self.read_text(f"{folder}/parent") or None,
            ports=tuple(self._rdma_port(folder, port) for port in ports),
        )

    def _rdma_port(self, folder: str, number: int) -> RdmaPort:
        place = f"{folder}/ports/{number}"
        return RdmaPort(
            number=number,
            state=_word(self.read_text(f"{place}/state")),
            physical_state=_word(self.read_text(f"{place}/phys_state")),
            link_layer=self.read_text(f"{place}/link_layer") or "",
        )

    def rdma_interfaces(self, name: str) -> tuple[str, ...]:
        """Give the interfaces that an RDMA device's GIDs belong to, in the order of the GID table, each once."""
        if not _plain(name):
            return ()
        found: dict[str, None] = {}
        for port in self.listing(f"class/infiniband/{name}/ports"):
            folder = f"class/infiniband/{name}/ports/{port}/gid_attrs/ndevs"
            for slot in sorted(self.listing(folder), key=lambda word: (len(word), word)):
                interface = self.read_text(f"{folder}/{slot}")
                if interface:
                    found[interface] = None
        return tuple(found)

    def rdma_char_devices(self, name: str) -> tuple[CharDevice, ...]:
        """Give the character devices of an RDMA device: its uverbs, umad and issm, and rdma_cm, which serves all.

        The classes are shown in every namespace, so that this works while the RDMA device is in a pod.
        """
        entries = [entry for group in _CHAR_CLASSES for entry in self.listing(f"class/{group}")]
        found = (self.rdma_char_device(name, entry) for entry in (*entries, "rdma_cm"))
        return tuple(one for one in found if one)

    def rdma_char_device(self, name: str, entry: str) -> CharDevice | None:
        """Give the character device ``entry`` if it is one of the RDMA device's, else None."""
        if entry == "rdma_cm":
            return self._char_device("class/misc/rdma_cm", entry)
        group = _CHAR_CLASSES[0] if entry.startswith("uverbs") else _CHAR_CLASSES[1]
        if not _plain(entry) or self.read_text(f"class/{group}/{entry}/ibdev") != name:
            return None
        return self._char_device(f"class/{group}/{entry}", entry)

    def _char_device(self, folder: str, name: str) -> CharDevice | None:
        major, colon, minor = (self.read_text(f"{folder}/dev") or "").partition(":")
        if not colon or not major.isdecimal() or not minor.isdecimal():
            return None
        return CharDevice(name=name, major=int(major), minor=int(minor))


def _plain(name: str) -> bool:
    # A name that would lead elsewhere is no device's.
    return bool(name) and "/" not in name and "\0" not in name and name not in {".", ".."}


def _word(text: str | None) -> str:
    # "4: ACTIVE": the number, then the word.
    return (text or "").rpartition(": ")[2]
