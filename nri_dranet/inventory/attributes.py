"""Attributes of a device, as CEL expressions see them: the reference's by name, type and absence, and standard ones.

Limits of ``resource.k8s.io/v1``: 64 bytes of text, 32 attributes a device. One value that breaks them would make the
API server refuse the whole slice, so it is left out and told.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nri_dranet.netlink.model import Address, Link
    from nri_dranet.sysfs import PciDevice

MAX_TEXT: Final = 64
MAX_ATTRIBUTES: Final = 32

DOMAIN: Final = "dra.net"
STANDARD: Final = "resource.kubernetes.io"

_ARPHRD: Final = {
    1: "ether",
    32: "infiniband",
    512: "ppp",
    768: "ipip",
    769: "ip6tnl",
    772: "loopback",
    776: "sit",
    778: "ipgre",
    823: "ip6gre",
    65534: "none",
    519: "rawip",
}

REFERENCE: Final = frozenset(
    [
        "ifName",
        "mac",
        "mtu",
        "encapsulation",
        "alias",
        "state",
        "type",
        "ipv4",
        "ipv6",
        "ebpf",
        "tcFilterNames",
        "tcxProgramNames",
        "sriov",
        "sriovVfs",
        "isSriovVf",
        "virtual",
        "pciAddress",
        "pciVendor",
        "pciDevice",
        "pciSubsystem",
        "numaNode",
        "rdma",
        "rdmaDevice",
    ]
)
"""The reference's attributes, by their names in its domain."""

Attributes = dict[str, dict[str, Any]]
"""Qualified name → value as the API has it: ``{"string": …}``, ``{"int": …}``, ``{"bool": …}``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SysfsFacts:
    """What sysfs tells of an interface; constant while it lives, but for the number of virtual functions."""

    virtual: bool = True
    pci_address: str | None = None
    sriov_total_vfs: int = 0
    sriov_num_vfs: int = 0
    is_vf: bool = False
    rdma: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """BPF programs on an interface: names of tc filters and of TCX programs."""

    filters: tuple[str, ...] = ()
    tcx: tuple[str, ...] = ()


def interface_attributes(
    link: Link, addresses: Iterable[Address], facts: SysfsFacts, programs: Programs | None = None
) -> Attributes:
    """Return the attributes of an interface (the reference's)."""
    found: Attributes = {}
    _put(found, "ifName", link.name)
    _put(found, "mac", link.address)
    _put(found, "mtu", link.mtu)
    _put(found, "encapsulation", _ARPHRD.get(link.type, str(link.type)))
    _put(found, "alias", link.alias)
    _put(found, "state", link.operstate)
    _put(found, "type", link.kind or "device")
    ipv4, ipv6 = _joined(addresses)
    if ipv4:
        _put(found, "ipv4", ipv4)
    if ipv6:
        _put(found, "ipv6", ipv6)
    programs = programs or Programs()
    _put(found, "ebpf", bool(programs.filters or programs.tcx))
    if programs.filters:
        _put(found, "tcFilterNames", ",".join(sorted(programs.filters)))
    if programs.tcx:
        _put(found, "tcxProgramNames", ",".join(sorted(programs.tcx)))
    _put(found, "sriov", facts.sriov_total_vfs > 0)
    if facts.sriov_total_vfs > 0:
        _put(found, "sriovVfs", facts.sriov_num_vfs)
    if facts.is_vf:
        _put(found, "isSriovVf", True)
    _put(found, "virtual", facts.virtual)
    return found


def pci_attributes(pci: PciDevice) -> Attributes:
    """Return the attributes of a PCI function: the reference's and the standard ones."""
    found: Attributes = {}
    _put(found, "pciAddress", pci.address)
    if pci.subsystem_device >= 0:
        _put(found, "pciSubsystem", f"{pci.subsystem_device:04x}")
    if pci.numa_node is not None:
        _put(found, "numaNode", pci.numa_node)
        found[f"{STANDARD}/numaNode"] = {"int": pci.numa_node}
    found[f"{STANDARD}/pciBusID"] = {"string": pci.address}
    if pci.pcie_root is not None:
        found[f"{STANDARD}/pcieRoot"] = {"string": pci.pcie_root}
    return found


def rdma_attributes(link: str | None) -> Attributes:
    """Return the attributes that every device has: whether it has an RDMA device, and which."""
    found: Attributes = {}
    _put(found, "rdma", link is not None)
    if link is not None:
        _put(found, "rdmaDevice", link)
    return found


def within_limits(attributes: Mapping[str, Mapping[str, Any]]) -> tuple[Attributes, tuple[str, ...]]:
    """Return the attributes that the API takes, sorted by name, and the names of those that were left out.

    Too long texts go; of too many attributes the last of our own domain go first, the standard ones last.
    """
    fitting = {name: dict(value) for name, value in attributes.items() if _fits(value)}
    ranked = sorted(fitting, key=lambda name: (_rank(name), name))[:MAX_ATTRIBUTES]
    kept = {name: fitting[name] for name in sorted(ranked)}
    return kept, tuple(name for name in attributes if name not in kept)


def _rank(name: str) -> int:
    """Which attributes stay when there are too many: the standard ones, then the reference's, then ours."""
    if name.startswith(f"{STANDARD}/"):
        return 0
    return 1 if name.removeprefix(f"{DOMAIN}/") in REFERENCE else 2


def _fits(value: Mapping[str, Any]) -> bool:
    text = value.get("string")
    return text is None or len(str(text).encode()) <= MAX_TEXT


def _put(target: Attributes, name: str, value: str | int | bool) -> None:
    kind = "bool" if isinstance(value, bool) else "int" if isinstance(value, int) else "string"
    target[f"{DOMAIN}/{name}"] = {kind: value}


def _joined(addresses: Iterable[Address]) -> tuple[str, str]:
    """Return the global unicast addresses of both families, sorted and joined within the limit of a text."""
    found: dict[int, list[str]] = {4: [], 6: []}
    for address in addresses:
        ip = ipaddress.ip_address(address.address)
        # 169.254.0.0/16 counts as global unicast to nobody but the kernel, which gives it global scope by default; IPv6
        # link-local addresses never say anything about a network.
        if ip.is_multicast or ip.is_unspecified or ip.is_loopback or ip.is_link_local:
            continue
        found[ip.version].append(address.cidr)
    return _fitting(found[4]), _fitting(found[6])


def _fitting(texts: list[str]) -> str:
    kept: list[str] = []
    for text in sorted(texts):
        if len(",".join([*kept, text])) > MAX_TEXT:
            break
        kept.append(text)
    return ",".join(kept)
