"""The state of an interface in the pod: from the configuration and from how the interface is on the host."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from nri_dranet.api import values
from nri_dranet.api.checks import IPV6_MIN_MTU, SUB_INTERFACE_MODES
from nri_dranet.api.config import TABLE_MAIN
from nri_dranet.claims.plan import PodState, SubInterface, VrfPlan
from nri_dranet.dra import plan_lease, plan_routes
from nri_dranet.dra.plan_ethtool import plan_features, plan_private_flags
from nri_dranet.netlink.codec import AF_INET, AF_INET6
from nri_dranet.netlink.model import FOREVER, Address
from nri_dranet.netlink.routing import (
    IFA_F_DADFAILED,
    IFA_F_DEPRECATED,
    IFA_F_MCAUTOJOIN,
    IFA_F_NOPREFIXROUTE,
    IFA_F_SECONDARY,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nri_dranet.api.config import Interface, NetworkConfig
    from nri_dranet.claims.plan import HostState
    from nri_dranet.dhcp.lease import Lease
    from nri_dranet.dra.plan_model import DeviceFactsIn, NodeFacts, Problems
    from nri_dranet.netlink.model import Link, Neighbour, Route

ARPHRD_ETHER: Final = 1
ARPHRD_INFINIBAND: Final = 32

_KEPT_FLAGS: Final = IFA_F_NOPREFIXROUTE | IFA_F_MCAUTOJOIN
_IPOIB_FIXED_BYTES: Final = 12
"""QPN and subnet prefix of an IPoIB address, which cannot be changed (``ipoib_check_lladdr``)."""

_MODULES: Final = {"vlan": "8021q"}
"""Kernel modules that are not called like the kind of link that they bring."""

_WITHIN_LOWER: Final = frozenset({"macvlan", "macvtap", "vlan"})
"""Kinds whose MTU the kernel holds to that of the interface below them."""

_L3MDEV_SYSCTLS: Final = ("ipv4/tcp_l3mdev_accept", "ipv4/udp_l3mdev_accept")


def plan_interface(
    config: NetworkConfig,
    device: DeviceFactsIn,
    host: HostState,
    node: NodeFacts,
    problems: Problems,
    *,
    lease: Lease | None = None,
) -> PodState:
    """Return how the interface shall be in the pod; what cannot be so is added to ``problems``.

    With DHCP and without a lease there are neither address nor routes of the host yet, and the gateways of configured
    routes are not looked at: the plan is made again when the lease is there.
    """
    interface = config.interface
    link = host.link
    child = _child(interface, device, problems)
    if child is not None:
        _check_child(config, child, device, link, problems)
    vrf = VrfPlan(name=interface.vrf.name, table=interface.vrf.effective_table) if interface.vrf else None
    name = interface.name or link.name
    if not interface.name:
        _check_host_name(name, problems)
    addresses, copied = _addresses(interface, host, name, copy=child is None and not interface.dhcp)
    if interface.dhcp:
        plan_lease.check(link, child, problems)
        addresses = (plan_lease.address(lease),) if lease is not None else ()
    _check_mtu(interface, device, link, problems)
    _check_sizes(interface, link, node, problems)
    _check_hardware_address(interface, link, child, problems)
    _check_neighbours(config, link, problems)
    vrf_table = vrf.table if vrf else None
    configured = plan_routes.configured_routes(config, vrf_table)
    pending = interface.dhcp and lease is None
    leased = plan_lease.routes(lease, vrf_table, _places(configured)) if interface.dhcp and lease is not None else []
    given = [*configured, *leased]
    from_host = plan_routes.copied_routes(host, addresses, given, vrf_table) if child is None and not pending else []
    if interface.dhcp:
        # Another client's, of a lease that the pod has not.
        from_host = [route for route in from_host if route.protocol != plan_routes.RTPROT_DHCP]
    connected = vrf_table if vrf_table is not None else TABLE_MAIN
    if not pending:
        reach = plan_routes.Reach(addresses, [*given, *from_host], connected)
        plan_routes.check_routes(configured, reach, problems)
        configured = plan_routes.without_connected(configured, addresses, connected, problems)
    neighbours = plan_routes.neighbours(config, replace(host, neighbours=()) if child else host)
    _check_ipv6(config, link, [*addresses, *from_host, *neighbours], problems)
    rules = plan_routes.configured_rules(config)
    if vrf is None:
        rules += plan_routes.copied_rules(node.rules, from_host, link.name, name)
    ethtool = config.ethtool if child is None else None
    return PodState(
        name=name,
        mtu=interface.mtu,
        hardware_address=interface.hardware_addr,
        gso_max_size=interface.gso_max_size,
        gro_max_size=interface.gro_max_size,
        gso_ipv4_max_size=interface.gso_ipv4_max_size,
        gro_ipv4_max_size=interface.gro_ipv4_max_size,
        addresses=addresses,
        copied_addresses=copied,
        routes=plan_lease.in_order([*configured, *leased, *from_host]),
        rules=tuple(dict.fromkeys(rules)),
        neighbours=tuple(neighbours),
        sysctls=_sysctls(interface),
        namespace_sysctls=dict.fromkeys(_L3MDEV_SYSCTLS, "1") if vrf else {},
        features=plan_features(ethtool, host.features, device.limits.fixed_features, problems) if ethtool else {},
        private_flags=plan_private_flags(ethtool, host.private_flags, problems) if ethtool else {},
        vrf=vrf,
        sub_interface=child,
        # Nobody on the host can have put a program on a child.
        detach_bpf=interface.disable_ebpf_programs and child is None,
        pinned_bpf_links=device.pinned_bpf_links if interface.disable_ebpf_programs and child is None else (),
        dhcp=interface.dhcp,
        lease=lease if interface.dhcp else None,
    )


def _places(routes: Iterable[Route]) -> set[tuple[str, int]]:
    """Return where routes lead, and in which table."""
    return {(route.destination, route.table) for route in routes}


def _child(interface: Interface, device: DeviceFactsIn, problems: Problems) -> SubInterface | None:
    """Return the child to make on a shared device: what is asked for, by default a macvlan in bridge mode."""
    wanted = interface.sub_interface
    if not device.shared:
        if wanted is not None:
            problems.field(
                ("interface", "subInterface"), wanted.type, "must be left out: the device is not shared, it moves whole"
            )
        return None
    if wanted is None:
        return SubInterface(kind="macvlan", mode="bridge")
    modes = SUB_INTERFACE_MODES[wanted.type]
    return SubInterface(kind=wanted.type, mode=wanted.mode or (modes[0] if modes else None), vlan_id=wanted.vlan_id)


def _check_child(
    config: NetworkConfig, child: SubInterface, device: DeviceFactsIn, link: Link, problems: Problems
) -> None:
    """Refuse a child that the kernel would refuse, and what it could only have of its parent."""
    given = config.interface.sub_interface is not None
    if child.kind in device.no_kinds:
        known = ", ".join(kind for kind in SUB_INTERFACE_MODES if kind not in device.no_kinds)
        allowed = f"must be one of {known}" if known else "cannot be made"
        text = f"{allowed}: the node's kernel has no {child.kind} (module {_MODULES.get(child.kind, child.kind)})"
        problems.field(("interface", "subInterface", "type"), child.kind if given else None, text)
    if not link.up:
        problems.device(
            f"is shared but down on the host, so that the {child.kind} would have no link: "
            f"set it up (ip link set {link.name} up)"
        )
    if config.ethtool is not None and (config.ethtool.features or config.ethtool.private_flags):
        problems.field(
            ("ethtool",), None, "must be left out: a sub-interface takes its offloads from the shared device"
        )


def _check_host_name(name: str, problems: Problems) -> None:
    try:
        values.interface_name(name)
    except ValueError as error:
        problems.field(
            ("interface", "name"), None, f"must be given, as the host's name {name} cannot be kept in a pod: {error}"
        )


def _addresses(interface: Interface, host: HostState, name: str, *, copy: bool) -> tuple[tuple[Address, ...], bool]:
    """Return the addresses in the pod, and whether they are the host's."""
    if interface.addresses:
        return tuple(_configured_address(cidr) for cidr in interface.addresses), False
    found = tuple(_copied_address(address, host.link.name, name) for address in host.addresses if _stays(address))
    return (found, bool(found)) if copy else ((), False)


def _configured_address(cidr: str) -> Address:
    address, _, length = cidr.partition("/")
    return Address(
        family=plan_routes.family(address),
        address=address,
        prefix_length=int(length),
        broadcast=values.broadcast_address(cidr),
    )


def _stays(address: Address) -> bool:
    """Tell whether an address of the host stays with the interface: global, and there until somebody removes it.

    ``IFA_F_SECONDARY`` means temporary (RFC 8981) on an IPv6 address alone.
    """
    if address.scope or address.valid_lifetime != FOREVER or address.flags & (IFA_F_DEPRECATED | IFA_F_DADFAILED):
        return False
    return address.family == AF_INET or not address.flags & IFA_F_SECONDARY


def _copied_address(address: Address, host_name: str, name: str) -> Address:
    label = ""
    if address.label.startswith(f"{host_name}:"):
        label = name + address.label[len(host_name) :]
    return replace(
        address,
        index=0,
        flags=address.flags & _KEPT_FLAGS,
        label=label if len(label) <= values.MAX_NAME else "",
        protocol=0,
    )


def _check_ipv6(
    config: NetworkConfig, link: Link, planned: Iterable[Address | Route | Neighbour], problems: Problems
) -> None:
    """Refuse an MTU below which the kernel takes IPv6 from an interface that needs it (RFC 8200)."""
    mtu = config.interface.mtu if config.interface.mtu is not None else link.mtu
    if not 0 < mtu < IPV6_MIN_MTU:
        return
    where, given = ("interface", "mtu"), config.interface.mtu
    texts = [*config.interface.addresses, *(route.destination for route in config.routes)]
    texts += [neighbour.destination for neighbour in config.neighbors]
    asked = next((text for text in texts if ":" in text), None)
    if asked is not None and given is None:
        problems.field(
            where,
            None,
            f"must be given as at least {IPV6_MIN_MTU} for {asked}, which is IPv6: the device has {link.mtu}",
        )
    elif asked is not None:
        problems.field(where, given, f"must be at least {IPV6_MIN_MTU} for {asked}, which is IPv6")
    elif given is not None and any(one.family == AF_INET6 for one in planned):
        problems.field(where, given, f"must be at least {IPV6_MIN_MTU}: the device's own IPv6 addresses come along")


def _check_mtu(interface: Interface, device: DeviceFactsIn, link: Link, problems: Problems) -> None:
    mtu, where, limits = interface.mtu, ("interface", "mtu"), device.limits
    if mtu is None:
        return
    most = link.max_mtu or mtu
    if mtu < link.min_mtu or mtu > most:
        high = link.max_mtu or "any"
        problems.field(where, mtu, f"must be {link.min_mtu} to {high}, the limits of the device")
    elif limits.virtual_function and limits.pf_mtu is None:
        problems.field(where, mtu, "cannot be set: the MTU of the physical function, which bounds it, is not known now")
    elif limits.pf_mtu is not None and mtu > limits.pf_mtu:
        problems.field(where, mtu, f"must be at most {limits.pf_mtu}, the MTU of the device's physical function")
    elif limits.lower is not None and link.kind in _WITHIN_LOWER and 0 < limits.lower.mtu < mtu:
        problems.field(
            where, mtu, f"must be at most {limits.lower.mtu}, the MTU of {limits.lower.name}, which {link.name} sits on"
        )
    elif device.shared and 0 < link.mtu < mtu:
        problems.field(where, mtu, f"must be at most {link.mtu}, the MTU of the shared device")


def _check_sizes(interface: Interface, link: Link, node: NodeFacts, problems: Problems) -> None:
    limit = link.tso_max_size
    for name, size in (("gsoMaxSize", interface.gso_max_size), ("gsoIPv4MaxSize", interface.gso_ipv4_max_size)):
        if size is not None and limit and size > limit:
            problems.field(("interface", name), size, f"must be at most {limit}, the limit of the device")
        elif size is not None and size < node.least_gso:
            problems.field(("interface", name), size, f"must be at least {node.least_gso}, the least of this kernel")


def _check_hardware_address(interface: Interface, link: Link, child: SubInterface | None, problems: Problems) -> None:
    wanted, where = interface.hardware_addr, ("interface", "hardwareAddr")
    if wanted is None:
        return
    if child is not None and child.kind == "ipvlan":
        problems.field(where, wanted, "must be left out: an ipvlan child has the address of its parent")
        return
    if child is not None and child.mode == "passthru":
        problems.field(where, wanted, "must be left out: a macvlan in mode passthru has the address of its parent")
        return
    size = _size(wanted)
    if link.type not in {ARPHRD_ETHER, ARPHRD_INFINIBAND}:
        problems.field(where, wanted, "must be left out: the device is neither Ethernet nor InfiniBand")
    elif size != (values.ETHERNET_BYTES if link.type == ARPHRD_ETHER else values.IPOIB_BYTES):
        kind, own = ("Ethernet", 6) if link.type == ARPHRD_ETHER else ("InfiniBand", 20)
        problems.field(where, wanted, f"must have {own} bytes: the device is {kind}")
    elif link.type == ARPHRD_INFINIBAND and _size(link.address) == size:
        fixed = 3 * _IPOIB_FIXED_BYTES - 1
        if wanted[:fixed] != link.address[:fixed]:
            problems.field(where, wanted, f"must begin with {link.address[:fixed]}: only the GUID can be changed")


def _size(address: str) -> int:
    return len(address.split(":")) if address else 0


def _check_neighbours(config: NetworkConfig, link: Link, problems: Problems) -> None:
    size = _size(link.address)
    for i, neighbor in enumerate(config.neighbors):
        if size and _size(neighbor.hardware_addr) != size:
            problems.field(
                ("neighbors", i, "hardwareAddr"),
                neighbor.hardware_addr,
                f"must have {size} bytes, as the device's own hardware address",
            )


def _sysctls(interface: Interface) -> dict[str, str]:
    found: dict[str, str] = {}
    if interface.forwarding is not None:
        found["ipv4/conf/forwarding"] = found["ipv6/conf/forwarding"] = str(int(interface.forwarding))
    if interface.arp_ignore is not None:
        found["ipv4/conf/arp_ignore"] = str(interface.arp_ignore)
    if interface.arp_announce is not None:
        found["ipv4/conf/arp_announce"] = str(interface.arp_announce)
    return found
