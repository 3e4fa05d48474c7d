"""The schema of the opaque parameters that a claim or a device class carries for this driver.

Field names, types and ranges are those of the network configuration that ``dra.net`` users know; every rule that is
stricter is in docs/user/migration.md. Integers are bounded by what the kernel's field or driver interface takes
(``linux/if_link.h``, ``linux/rtnetlink.h``, ``linux/fib_rules.h``). Rules that look at more than one field are in
``checks``.

There is no ``from __future__ import annotations`` here: pydantic reads the annotations when the module is loaded.
"""

from collections.abc import Callable, Hashable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from nri_dranet.api import values

MAX_ADDRESSES = 64
MAX_ROUTES = 256
MAX_RULES = 128
MAX_NEIGHBORS = 128
MAX_FEATURES = 128

MTU_MIN, MTU_MAX = 68, 65535
"""RFC 791 wants 68 bytes; no interface that can be moved takes more than ``ETH_MAX_MTU``."""

GSO_MIN = 193
"""``MAX_TCP_HEADER`` + 1 (``net/tcp.h``): no kernel takes a smaller ``IFLA_GSO_MAX_SIZE``; some want up to 321."""

GSO_MAX = 8 * 65535
"""``GSO_MAX_SIZE`` and ``GRO_MAX_SIZE`` (``linux/netdevice.h``)."""

TABLE_MAX = 2**32 - 1
TABLE_MAIN, TABLE_DEFAULT, TABLE_LOCAL = 254, 253, 255
SCOPE_UNIVERSE, SCOPE_LINK = 0, 253
PRIORITY_MAX = 32767
VLAN_MAX = 4094

VRF_TABLES = 1000
"""A VRF without a table gets one of as many tables from this number on, by the FNV-1a hash of its name."""


def _rule(check: Callable[[Any], Any]) -> AfterValidator:
    """Make a validator of a function that raises ValueError, with its text as the whole message."""

    def validate(value: Any) -> Any:
        try:
            return check(value)
        except ValueError as error:
            raise PydanticCustomError("rule", "{text}", {"text": str(error)}) from None

    return AfterValidator(validate)


def _within(low: int, high: int, *, why: str = "") -> Any:
    def check(value: int) -> int:
        if not low <= value <= high:
            raise ValueError(f"must be {low} to {high}{': ' + why if why else ''}")
        return value

    return check


def _whole(low: int, high: int, *, why: str = "") -> tuple[AfterValidator, WithJsonSchema]:
    return _rule(_within(low, high, why=why)), WithJsonSchema({"type": "integer", "minimum": low, "maximum": high})


def _one_of(*allowed: int) -> tuple[AfterValidator, WithJsonSchema]:
    def check(value: int) -> int:
        if value not in allowed:
            raise ValueError(f"must be one of {', '.join(map(str, allowed))}")
        return value

    return _rule(check), WithJsonSchema({"type": "integer", "enum": list(allowed)})


def _once(key: Callable[[Any], Hashable] = lambda item: item) -> AfterValidator:
    """Make a validator that drops exact repeats from a list."""

    def first_of_each(items: tuple[Any, ...]) -> tuple[Any, ...]:
        found: dict[Hashable, Any] = {}
        for item in items:
            found.setdefault(key(item), item)
        return tuple(found.values())

    return AfterValidator(first_of_each)


def _no_profile(text: str) -> str:
    if text:
        raise ValueError("must be left out: profiles are not supported yet, they need a provider and those come later")
    return text


def _name_or_none(text: str) -> str:
    return values.interface_name(text) if text else text


def _route_table(number: int) -> int:
    number = int(_within(0, TABLE_MAX)(number))
    if number == TABLE_LOCAL:
        raise ValueError("must not be 255: only the kernel writes the local table, which has the pod's own addresses")
    return number


def _vrf_table(number: int) -> int:
    number = int(_within(1, TABLE_MAX)(number))
    if number in {TABLE_DEFAULT, TABLE_MAIN, TABLE_LOCAL}:
        raise ValueError("must not be 253, 254 or 255, which are the kernel's tables default, main and local")
    return number


class _Part(BaseModel):
    """What all parts of the schema have in common: nothing is coerced, nothing unknown is taken, nothing changes."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


_Table = {"type": "integer", "minimum": 0, "maximum": TABLE_MAX}
_Name = Annotated[str, _rule(values.interface_name)]
_Address = Annotated[str, _rule(values.interface_address)]
_Host = Annotated[str, _rule(values.host_address)]
_Network = Annotated[str, _rule(values.network)]
_FeatureName = Annotated[str, _rule(values.feature_name)]
_Size = Annotated[int, *_whole(1, GSO_MAX)]
_GsoSize = Annotated[int, *_whole(GSO_MIN, GSO_MAX)]


class Vrf(_Part):
    """A VRF device of the pod, which the interface becomes a port of."""

    name: _Name = Field(description="Name of the VRF device. Interfaces of a pod that name the same VRF share it.")
    table: Annotated[int, _rule(_vrf_table), WithJsonSchema({**_Table, "minimum": 1})] | None = Field(
        default=None,
        description="Its routing table; not 253, 254, 255. Default: 1000 to 1999, by a hash of the name.",
    )

    @property
    def effective_table(self) -> int:
        """The table, or the default: the 32-bit FNV-1a hash of the name modulo 1000, plus 1000."""
        if self.table is not None:
            return self.table
        value = 0x811C9DC5
        for byte in self.name.encode():
            value = (value ^ byte) * 0x01000193 & 0xFFFF_FFFF
        return value % VRF_TABLES + VRF_TABLES


class SubInterface(_Part):
    """The child interface to make on a device that is shared between claims."""

    type: Literal["macvlan", "ipvlan", "vlan"] = Field(description="Kind of the child.")
    mode: str | None = Field(
        default=None,
        description="macvlan: bridge (default), private, vepa, passthru. ipvlan: l2 (default), l3, l3s. vlan: none.",
    )
    vlan_id: Annotated[int, *_whole(1, VLAN_MAX)] | None = Field(
        default=None, alias="vlanID", description="The VLAN, required for type vlan and for it alone."
    )


class Interface(_Part):
    """The interface itself."""

    name: Annotated[str, _rule(_name_or_none)] = Field(
        default="", description="Name in the pod. Default (also if empty): the name that it has on the host."
    )
    addresses: Annotated[tuple[_Address, ...], Field(strict=False, max_length=MAX_ADDRESSES), _once()] = Field(
        default=(),
        description="Addresses in CIDR form. Default (also if empty): the permanent global ones it has on the host.",
    )
    dhcp: bool = Field(
        default=False,
        description="Ask a DHCPv4 server for address and routes, for Ethernet devices. Never together with addresses.",
    )
    mtu: Annotated[int, *_whole(MTU_MIN, MTU_MAX)] | None = Field(
        default=None,
        description="MTU in bytes, within the limits of the device; for a virtual function at most its PF's.",
    )
    hardware_addr: Annotated[str, _rule(values.interface_hardware_address)] | None = Field(
        default=None,
        alias="hardwareAddr",
        description="Hardware address: 6 bytes (unicast, not zero), or the 20 bytes of an IPoIB device.",
    )
    gso_max_size: _GsoSize | None = Field(
        default=None, alias="gsoMaxSize", description="Largest GSO packet in bytes (IPv6; IPv4 up to 65536)."
    )
    gro_max_size: _Size | None = Field(
        default=None, alias="groMaxSize", description="Largest GRO packet in bytes (IPv6; IPv4 up to 65536)."
    )
    gso_ipv4_max_size: _GsoSize | None = Field(
        default=None, alias="gsoIPv4MaxSize", description="Largest GSO packet of IPv4 in bytes (kernel 6.3)."
    )
    gro_ipv4_max_size: _Size | None = Field(
        default=None, alias="groIPv4MaxSize", description="Largest GRO packet of IPv4 in bytes (kernel 6.3)."
    )
    disable_ebpf_programs: bool = Field(
        default=False, alias="disableEbpfPrograms", description="Detach all BPF programs (tc, TCX, XDP, netkit)."
    )
    forwarding: bool | None = Field(
        default=None, description="Forwarding of packets that this interface receives, IPv4 and IPv6."
    )
    arp_ignore: Annotated[int, *_one_of(0, 1, 2, 3, 8)] | None = Field(
        default=None, alias="arpIgnore", description="The arp_ignore setting of this interface."
    )
    arp_announce: Annotated[int, *_one_of(0, 1, 2)] | None = Field(
        default=None, alias="arpAnnounce", description="The arp_announce setting of this interface."
    )
    vrf: Vrf | None = Field(default=None, description="The VRF that the interface belongs to. Not with rules.")
    sub_interface: SubInterface | None = Field(
        default=None, alias="subInterface", description="The child to make on a shared device. Refused on any other."
    )


class Route(_Part):
    """A route through the interface."""

    destination: _Network = Field(description="Network in CIDR form; 0.0.0.0/0 or ::/0 is the default route.")
    gateway: _Host | None = Field(
        default=None, description="Next hop, of the family of the destination. Required with scope 0."
    )
    source: _Host | None = Field(
        default=None, description="Preferred source address: one of the interface's, of the destination's family."
    )
    scope: Annotated[int, *_one_of(SCOPE_UNIVERSE, SCOPE_LINK)] = Field(
        default=SCOPE_UNIVERSE, description="0: through a gateway. 253: the destination is on the link itself."
    )
    table: Annotated[int, _rule(_route_table), WithJsonSchema(_Table)] = Field(
        default=0, description="Routing table; 0 is main (254). Not 255. With a VRF: 0 or the VRF's table."
    )


class Rule(_Part):
    """A policy routing rule: which packets look into which table."""

    priority: (
        Annotated[
            int,
            *_whole(1, PRIORITY_MAX, why="0 is the priority of the kernel's rule for local addresses"),
        ]
        | None
    ) = Field(default=None, description="Lower comes first. Default: the kernel chooses one below the others.")
    source: _Network | None = Field(default=None, description="Source network in CIDR form. Default: any.")
    destination: _Network | None = Field(default=None, description="Destination network in CIDR form. Default: any.")
    table: Annotated[int, *_whole(0, TABLE_MAX)] = Field(
        default=0, description="The table that is looked into; 0 is main (254)."
    )


class Neighbor(_Part):
    """A permanent neighbour (ARP or NDP) entry of the interface."""

    destination: _Host = Field(description="IP address of the neighbour.")
    hardware_addr: Annotated[str, _rule(values.hardware_address)] = Field(
        alias="hardwareAddr", description="Its hardware address, as long as the interface's."
    )


class Ethtool(_Part):
    """Offloads and flags of the driver."""

    features: Annotated[dict[_FeatureName, bool], Field(max_length=MAX_FEATURES)] = Field(
        default_factory=dict,
        description="Feature to on or off, by the kernel's name or ethtool's alias (tso, gro, rx-checksumming, …).",
    )
    private_flags: Annotated[dict[_FeatureName, bool], Field(max_length=MAX_FEATURES)] = Field(
        default_factory=dict, alias="privateFlags", description="Private flag of the device's driver to on or off."
    )


class NetworkConfig(_Part):
    """What a claim or a device class can ask of a network device."""

    profile: Annotated[str, _rule(_no_profile)] = Field(
        default="", description="Not supported yet: any text but the empty one is refused."
    )
    interface: Interface = Field(default_factory=Interface, description="The interface itself.")
    routes: Annotated[
        tuple[Route, ...],
        Field(strict=False, max_length=MAX_ROUTES),
        _once(lambda r: (r.destination, r.gateway, r.source, r.scope, r.table)),
    ] = Field(default=(), description="Routes, before those that come with the host's interface.")
    rules: Annotated[
        tuple[Rule, ...],
        Field(strict=False, max_length=MAX_RULES),
        _once(lambda r: (r.priority, r.source, r.destination, r.table)),
    ] = Field(default=(), description="Policy routing rules. Not with a VRF.")
    neighbors: Annotated[
        tuple[Neighbor, ...],
        Field(strict=False, max_length=MAX_NEIGHBORS),
        _once(lambda n: (n.destination, n.hardware_addr)),
    ] = Field(default=(), description="Permanent neighbour entries.")
    ethtool: Ethtool | None = Field(default=None, description="Offloads and flags of the device's driver.")
