"""Settings of a port: what a bridge or bond keeps for each interface below it, and the kernel forgets when it leaves.

Pure. Source of the facts: ``linux/if_link.h`` (``IFLA_BRPORT_*``, ``IFLA_BOND_SLAVE_*``), ``net/bridge/br_netlink.c``
(``br_port_policy``, ``br_setport``), ``drivers/net/bonding/bond_netlink.c``. They stand in ``IFLA_INFO_SLAVE_DATA`` of
an ordinary link message; only RTM_NEWLINK sets them there.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from nri_dranet.netlink import codec
from nri_dranet.netlink.codec import Request, attribute, attribute_text, attributes, nest

if TYPE_CHECKING:
    from collections.abc import Mapping

_RTM_NEWLINK: Final = 16
_LINKINFO: Final = 18
_INFO_SLAVE_KIND: Final = 4
_INFO_SLAVE_DATA: Final = 5
_IFINFOMSG: Final = struct.Struct("=BxHiII")

# By name as iproute2 says it: attribute number and layout. Identifiers, counters and timers of the kernel's are not
# here, nor the state in the spanning tree, which the kernel sets anew with each change of the carrier
# (``br_port_carrier_check``).
_BRIDGE: Final = {
    "priority": (2, "=H"),
    "cost": (3, "=I"),
    "hairpin": (4, "=B"),
    "guard": (5, "=B"),
    "root_block": (6, "=B"),
    "fastleave": (7, "=B"),
    "learning": (8, "=B"),
    "flood": (9, "=B"),
    "proxy_arp": (10, "=B"),
    "learning_sync": (11, "=B"),
    "proxy_arp_wifi": (12, "=B"),
    "mcast_router": (25, "=B"),
    "mcast_flood": (27, "=B"),
    "mcast_to_unicast": (28, "=B"),
    "vlan_tunnel": (29, "=B"),
    "bcast_flood": (30, "=B"),
    "group_fwd_mask": (31, "=H"),
    "neigh_suppress": (32, "=B"),
    "isolated": (33, "=B"),
    "backup_port": (34, "=I"),
    "mcast_eht_hosts_limit": (37, "=I"),
    "locked": (39, "=B"),
    "mab": (40, "=B"),
    "mcast_max_groups": (42, "=I"),
    "neigh_vlan_suppress": (43, "=B"),
    "backup_nhid": (44, "=I"),
}
_BOND: Final = {"queue_id": (5, "=H"), "prio": (9, "=i")}
_KINDS: Final = {"bridge": _BRIDGE, "bond": _BOND}


def parse_settings(kind: str, value: bytes) -> dict[str, int]:
    """Read the settings of a port in ``IFLA_INFO_SLAVE_DATA``, by name; none for masters of other kinds.

    Raises:
        DecodeError: it is malformed.
    """
    known = _KINDS.get(kind)
    if known is None:
        return {}
    found = attributes(value)
    settings: dict[str, int] = {}
    for name, (number, layout) in known.items():
        text = found.get(number, b"")
        if number in found and len(text) != struct.calcsize(layout):
            raise codec.DecodeError(f"setting {name} of a {kind} port has {len(text)} bytes")
        if number in found:
            (settings[name],) = struct.unpack(layout, text)
    return settings


def set_port(index: int, kind: str, settings: Mapping[str, int]) -> Request:
    """Change settings of a port of a bridge or bond.

    Raises:
        ValueError: the kind or the name of a setting is unknown, or a value does not fit its field.
    """
    known = _KINDS.get(kind, {})
    parts = []
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"a port of a {kind} has no setting {name!r}; known are: {', '.join(known) or 'none'}")
        number, layout = known[name]
        try:
            parts.append(attribute(number, struct.pack(layout, value)))
        except struct.error as error:
            raise ValueError(f"setting {name} of a {kind} port: {value} does not fit its field") from error
    info = nest(_LINKINFO, attribute_text(_INFO_SLAVE_KIND, kind), nest(_INFO_SLAVE_DATA, *parts))
    words = ", ".join(f"{name}={value}" for name, value in settings.items())
    return Request(_RTM_NEWLINK, 0, _IFINFOMSG.pack(0, 0, index, 0, 0) + info, f"restore {words} of the {kind} port")
