"""What rtnetlink speaks of: links, addresses, routes, rules, neighbours. Plain frozen data.

Numbers are the kernel's (``linux/if_link.h``, ``linux/if_addr.h``, ``linux/rtnetlink.h``, ``linux/fib_rules.h``,
``linux/neighbour.h``). Addresses are canonical text, hardware addresses lower-case hex pairs with colons.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FOREVER = 0xFFFF_FFFF
"""A lifetime (seconds) without an end (``INFINITY_LIFE_TIME``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An interface (``ifinfomsg`` and its attributes).

    ``lower`` is ``IFLA_LINK``: the other end of a veth, the parent of a macvlan or VLAN; ``lower_netnsid`` says in
    which namespace that index counts (None: this one). ``underlay`` is the interface that a VXLAN sends by, in the same
    namespace as ``lower``. ``parent_device`` is the name on its bus, for PCI the address.
    ``type`` is the ARPHRD number, ``kind`` the driver kind of a software link (``veth``), empty for hardware.
    ``carrier`` is None where the kernel does not tell. Sizes are bytes. ``num_vfs`` is filled only where it was asked
    for. ``new_index`` and ``new_netnsid`` stand only in the event of a link that left for another namespace: its index
    there, and the id that its old namespace knows the new one by.
    """

    index: int
    name: str
    type: int = 1
    flags: int = 0
    mtu: int = 0
    min_mtu: int = 0
    max_mtu: int = 0
    address: str = ""
    permanent_address: str = ""
    broadcast: str = ""
    operstate: str = "unknown"
    carrier: bool | None = None
    kind: str = ""
    slave_kind: str = ""
    master: int = 0
    lower: int = 0
    lower_netnsid: int | None = None
    underlay: int = 0
    alias: str = ""
    altnames: tuple[str, ...] = ()
    group: int = 0
    txqlen: int = 0
    promiscuity: int = 0
    gso_max_size: int = 0
    gro_max_size: int = 0
    gso_ipv4_max_size: int = 0
    gro_ipv4_max_size: int = 0
    tso_max_size: int = 0
    parent_bus: str = ""
    parent_device: str = ""
    phys_port_name: str = ""
    phys_switch_id: str = ""
    num_vfs: int | None = None
    netns_immutable: bool = False
    xdp_program_id: int = 0
    addr_gen_mode: int | None = None
    vlan_id: int | None = None
    macvlan_mode: int | None = None
    vrf_table: int | None = None
    new_index: int = 0
    new_netnsid: int | None = None

    @property
    def up(self) -> bool:
        """Tell whether the link is administratively up (IFF_UP)."""
        return bool(self.flags & 0x1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """An address of an interface (``ifaddrmsg`` and its attributes).

    ``address`` is the local address without prefix, ``peer`` the other end's (None where it is the same). Lifetimes are
    seconds. ``flags`` are IFA_F_*, ``protocol`` IFAPROT_*, ``metric`` the priority of its prefix route.
    """

    family: int
    address: str
    prefix_length: int
    index: int = 0
    scope: int = 0
    flags: int = 0
    label: str = ""
    broadcast: str | None = None
    peer: str | None = None
    valid_lifetime: int = FOREVER
    preferred_lifetime: int = FOREVER
    protocol: int = 0
    metric: int = 0

    @property
    def cidr(self) -> str:
        """The address with its prefix length."""
        return f"{self.address}/{self.prefix_length}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NextHop:
    """One next hop of a multipath route (``rtnexthop``); ``weight`` counts from 1, ``unknown`` as in ``Route``."""

    index: int = 0
    gateway: str | None = None
    weight: int = 1
    flags: int = 0
    realm: int = 0
    unknown: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route (``rtmsg`` and its attributes).

    ``destination`` is a prefix in canonical CIDR form (``0.0.0.0/0`` for the default). ``gateway`` may be of the other
    family (RTA_VIA). ``metrics`` maps the name of a RTAX_* number (``mtu``, ``advmss``) to its value. ``expires`` is
    the rest of an IPv6 route's life in seconds, 0 without an end. ``unknown`` are the RTA_* numbers of what stands in
    no field here (an encapsulation): such a route cannot be copied faithfully.
    """

    family: int
    destination: str
    index: int = 0
    gateway: str | None = None
    source: str | None = None
    table: int = 254
    scope: int = 0
    type: int = 1
    protocol: int = 4
    metric: int = 0
    tos: int = 0
    flags: int = 0
    preference: int | None = None
    next_hop_id: int = 0
    next_hops: tuple[NextHop, ...] = ()
    metrics: dict[str, int] = field(default_factory=dict)
    expires: int = 0
    realm: int = 0
    congestion_control: str = ""
    unknown: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A policy rule (``fib_rule_hdr`` and its attributes). None: the rule does not look at it.

    ``priority`` None lets the kernel choose. Ranges are (first, last), both included. ``unknown`` are the FRA_* numbers
    of qualifiers that stand in no field here: a copy without them would match more than the rule does.
    """

    family: int
    table: int = 254
    priority: int | None = None
    action: int = 1
    flags: int = 0
    source: str | None = None
    destination: str | None = None
    iif: str | None = None
    oif: str | None = None
    mark: int | None = None
    mask: int | None = None
    tos: int = 0
    ip_protocol: int | None = None
    source_ports: tuple[int, int] | None = None
    destination_ports: tuple[int, int] | None = None
    uid_range: tuple[int, int] | None = None
    suppress_prefix_length: int | None = None
    suppress_group: int | None = None
    goto: int | None = None
    l3mdev: bool = False
    protocol: int = 0
    realm: int = 0
    unknown: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A neighbour entry (``ndmsg`` and its attributes); ``state`` NUD_*, ``flags`` NTF_*."""

    family: int
    address: str
    hardware_address: str
    index: int = 0
    state: int = 0x80
    flags: int = 0
