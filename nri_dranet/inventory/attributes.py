"""Attributes of a device, as CEL expressions see them: the reference's by name, type and absence, standard ones, ours.

Limits of ``resource.k8s.io/v1``: 64 bytes of text, 32 attributes a device. One value that breaks them would make the
API server refuse the whole slice, so it is left out and told.
"""

from __future__ import annotations

import functools
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nri_dranet.netlink.model import Address, Link

MAX_TEXT: Final = 64
"""Bytes of UTF-8 in a text."""

MAX_ATTRIBUTES: Final = 32
MAX_INT: Final = (1 << 63) - 1

DOMAIN: Final = "dra.net"
STANDARD: Final = "resource.kubernetes.io"

_ARPHRD: Final = {
    0: "generic",
    1: "ether",
    2: "eether",
    3: "ax25",
    6: "ieee802",
    7: "arcnet",
    19: "atm",
    24: "ieee1394",
    32: "infiniband",
    256: "slip",
    271: "x25",
    280: "can",
    512: "ppp",
    513: "hdlc",
    519: "rawip",
    768: "ipip",
    769: "tunnel6",
    772: "loopback",
    776: "sit",
    778: "gre",
    801: "ieee802.11",
    802: "ieee802.11/prism",
    803: "ieee802.11/radiotap",
    804: "ieee802.15.4",
    820: "phonet",
    823: "gre6",
    824: "netlink",
    825: "6lowpan",
    65534: "none",
    65535: "void",
}
"""Words for ARPHRD numbers, as ``ip link`` and the reference print them."""

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
    """What sysfs tells of an interface.

    ``function`` is the PCI network function that it is the interface of; ``parent`` any PCI function above it (a USB
    controller's too). ``speed`` is in Mbit/s.
    """

    virtual: bool = True
    function: str | None = None
    parent: str | None = None
    sriov_total_vfs: int = 0
    sriov_num_vfs: int = 0
    is_vf: bool = False
    rdma: str | None = None
    speed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionFacts:
    """What is published of a PCI function. Empty or None: not known. ``numa_nodes`` the nearest first."""

    address: str
    driver: str = ""
    vendor: str = ""
    device: str = ""
    subsystem: str = ""
    pcie_root: str | None = None
    numa_node: int | None = None
    numa_nodes: tuple[int, ...] = ()
    several_nodes: bool = False
    physical_function: str | None = None
    vf_index: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RdmaFacts:
    """What is published of an RDMA device: its name, and of its first port the layer, state and GUID."""

    name: str
    link_layer: str = ""
    port_state: str = ""
    port_guid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """BPF programs on an interface: names of tc filters and of TCX programs, sorted."""

    filters: tuple[str, ...] = ()
    tcx: tuple[str, ...] = ()


NO_PROGRAMS: Final = Programs()


def interface_attributes(
    link: Link, addresses: Iterable[Address], facts: SysfsFacts, programs: Programs = NO_PROGRAMS
) -> Attributes:
    """Return the attributes of an interface: the reference's, and of hardware its speed, port and switch."""
    found: Attributes = {
        "dra.net/alias": _text(link.alias),
        "dra.net/ebpf": _flag(bool(programs.filters or programs.tcx)),
        "dra.net/encapsulation": _common(_ARPHRD.get(link.type) or f"unknown{link.type}"),
        "dra.net/ifName": {"string": link.name},
        "dra.net/mac": _text(link.address),
        "dra.net/mtu": _number(link.mtu),
        "dra.net/sriov": _flag(facts.sriov_total_vfs > 0),
        "dra.net/state": _common(link.operstate),
        "dra.net/type": _common(link.kind or "device"),
        "dra.net/virtual": _flag(facts.virtual),
    }
    ipv4, ipv6 = _joined(addresses)
    if ipv4:
        found["dra.net/ipv4"] = {"string": ipv4}
    if ipv6:
        found["dra.net/ipv6"] = {"string": ipv6}
    if programs.filters:
        found["dra.net/tcFilterNames"] = {"string": ",".join(programs.filters)}
    if programs.tcx:
        found["dra.net/tcxProgramNames"] = {"string": ",".join(programs.tcx)}
    if facts.sriov_total_vfs > 0:
        found["dra.net/sriovVfs"] = _number(facts.sriov_num_vfs)
    if facts.is_vf:
        found["dra.net/isSriovVf"] = _flag(True)
    if facts.speed is not None:
        found["dra.net/speed"] = _number(facts.speed)
    if link.phys_port_name:
        found["dra.net/physPortName"] = {"string": link.phys_port_name}
    if link.phys_switch_id:
        found["dra.net/physSwitchID"] = {"string": link.phys_switch_id}
    return found


def pci_attributes(pci: FunctionFacts, *, list_types: bool = False) -> Attributes:
    """Return the attributes of a PCI function: the reference's, the standard ones, its driver, a VF's place.

    Args:
        pci: the function.
        list_types: publish the standard ``numaNode`` as a list (the cluster has DRAListTypeAttributes).
    """
    found: Attributes = {"dra.net/pciAddress": {"string": pci.address}, f"{STANDARD}/pciBusID": {"string": pci.address}}
    for name, text in (
        ("pciVendor", pci.vendor),
        ("pciDevice", pci.device),
        ("pciSubsystem", pci.subsystem),
        ("driver", pci.driver),
        ("pfPciAddress", pci.physical_function or ""),
    ):
        if text:
            found[f"{DOMAIN}/{name}"] = {"string": text}
    if pci.vf_index is not None:
        found[f"{DOMAIN}/vfIndex"] = _number(pci.vf_index)
    if pci.numa_node is not None and pci.several_nodes:
        found[f"{DOMAIN}/numaNode"] = _number(pci.numa_node)
    return found | placement_attributes(pci, list_types=list_types)


def placement_attributes(pci: FunctionFacts, *, list_types: bool = False) -> Attributes:
    """Return where a PCI function is in the machine, in the standard attributes; also for what is plugged in below."""
    found: Attributes = {}
    if pci.numa_node is not None:
        nodes = list(pci.numa_nodes or (pci.numa_node,))
        found[f"{STANDARD}/numaNode"] = {"ints": nodes} if list_types else _number(pci.numa_node)
    if pci.pcie_root is not None:
        found[f"{STANDARD}/pcieRoot"] = {"string": pci.pcie_root}
    return found


def rdma_attributes(rdma: RdmaFacts | None) -> Attributes:
    """Return the attributes that every device has: whether it has an RDMA device, and which."""
    if rdma is None:
        return {"dra.net/rdma": _flag(False)}
    found: Attributes = {"dra.net/rdma": _flag(True), "dra.net/rdmaDevice": {"string": rdma.name}}
    for name, text in (
        ("rdmaLinkLayer", rdma.link_layer),
        ("rdmaPortState", rdma.port_state),
        ("rdmaPortGUID", rdma.port_guid),
    ):
        if text:
            found[f"{DOMAIN}/{name}"] = _common(text)
    return found


def within_limits(attributes: Attributes) -> tuple[Attributes, tuple[str, ...]]:
    """Return the attributes that the API takes, sorted by name, and the names of those that were left out.

    Too long texts go; of too many attributes the last of our own domain go first, the standard ones last.
    """
    kept = dict(sorted(attributes.items()))
    dropped = [name for name, value in kept.items() if "bool" not in value and not _fits(value)]
    for name in dropped:
        del kept[name]
    if len(kept) > MAX_ATTRIBUTES:
        ranked = sorted(kept, key=lambda name: (_rank(name), name))
        dropped += ranked[MAX_ATTRIBUTES:]
        for name in ranked[MAX_ATTRIBUTES:]:
            del kept[name]
    return kept, tuple(sorted(dropped))


def _rank(name: str) -> int:
    """Which attributes stay when there are too many: the standard ones, then the reference's, then ours."""
    domain, _, short = name.rpartition("/")
    if domain == STANDARD:
        return 0
    return 1 if domain == DOMAIN and short in REFERENCE else 2


def _fits(value: Mapping[str, Any]) -> bool:
    text = value.get("string")
    if text is None:
        return all(-MAX_INT - 1 <= number <= MAX_INT for number in (value.get("int", 0), *value.get("ints", ())))
    if len(text) <= MAX_TEXT and text.isascii():
        return True
    try:
        return len(text.encode()) <= MAX_TEXT
    except UnicodeEncodeError:
        # Bytes that are no UTF-8, which an alias may hold: JSON cannot carry them.
        return False


# One node has the same few values a thousand times: they are shared.
_TRUE: Final = {"bool": True}
_FALSE: Final = {"bool": False}
_EMPTY: Final = {"string": ""}


def _flag(value: bool) -> dict[str, Any]:
    return _TRUE if value else _FALSE


def _text(value: str) -> dict[str, Any]:
    return {"string": value} if value else _EMPTY


@functools.lru_cache(maxsize=256)
def _common(value: str) -> dict[str, Any]:
    return {"string": value}


@functools.lru_cache(maxsize=256)
def _number(value: int) -> dict[str, Any]:
    return {"int": value}


def _joined(addresses: Iterable[Address]) -> tuple[str, str]:
    """Return the global unicast addresses of both families, sorted and joined within the limit of a text."""
    found: dict[bool, list[str]] = {False: [], True: []}
    if not addresses:
        return "", ""
    for address in addresses:
        if _is_global_unicast(address.address):
            found[":" in address.address].append(address.cidr)
    return _fitting(found[False]), _fitting(found[True])


@functools.lru_cache(maxsize=4096)
def _is_global_unicast(text: str) -> bool:
    """Tell whether an address is of no special kind; private ones are global here, as for the reference."""
    ip = ipaddress.ip_address(text)
    special = ip.is_multicast or ip.is_unspecified or ip.is_loopback or ip.is_link_local
    return not special and text != "255.255.255.255"


def _fitting(texts: list[str]) -> str:
    kept = sorted(set(texts))
    while kept and len(",".join(kept)) > MAX_TEXT:
        kept.pop()
    return ",".join(kept)
