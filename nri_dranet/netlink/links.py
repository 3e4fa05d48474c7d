"""Links over rtnetlink: requests for them and the reading of them. Pure.

Source of the facts: ``linux/if_link.h``, ``linux/rtnetlink.h``, ``net/core/rtnetlink.c`` (``do_setlink``,
``rtnl_fill_ifinfo``), ``linux/ip.h`` and ``linux/ipv6.h`` for the order of the per-interface settings.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.netlink import codec, ports
from nri_dranet.netlink.codec import (
    AF_INET,
    AF_INET6,
    DecodeError,
    Request,
    attribute,
    attribute_list,
    attribute_s32,
    attribute_text,
    attribute_u8,
    attribute_u16,
    attribute_u32,
    attributes,
    nest,
)
from nri_dranet.netlink.model import Link

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_SETLINK: Final = 19
RTM_NEWLINKPROP: Final = 108
RTM_DELLINKPROP: Final = 109

IFF_UP: Final = 0x1
IFF_SETTABLE: Final = 0x1 << 2 | 0x1 << 7 | 0x1 << 8 | 0x1 << 9 | 0x1 << 12 | 0x1 << 15
"""Flags that an administrator sets, beside up: DEBUG, NOARP, PROMISC, ALLMULTI, MULTICAST, DYNAMIC."""

_HEADER: Final = struct.Struct("=BxHiII")
_U32: Final = struct.Struct("=I")
_ZERO: Final = bytes(4)

_ADDRESS: Final = 1
_BROADCAST: Final = 2
_IFNAME: Final = 3
_MTU: Final = 4
_LINK: Final = 5
_MASTER: Final = 10
_TXQLEN: Final = 13
_OPERSTATE: Final = 16
_STATISTICS: Final = frozenset({7, 23})  # IFLA_STATS, IFLA_STATS64
_LINKINFO: Final = 18
_IFALIAS: Final = 20
_NUM_VF: Final = 21
_AF_SPEC: Final = 26
_GROUP: Final = 27
_NET_NS_FD: Final = 28
_EXT_MASK: Final = 29
_PROMISCUITY: Final = 30
_CARRIER: Final = 33
_PHYS_SWITCH_ID: Final = 36
_LINK_NETNSID: Final = 37
_PHYS_PORT_NAME: Final = 38
_GSO_MAX_SIZE: Final = 41
_XDP: Final = 43
_NEW_NETNSID: Final = 45
_NEW_IFINDEX: Final = 49
_MIN_MTU: Final = 50
_MAX_MTU: Final = 51
_PROP_LIST: Final = 52
_ALT_IFNAME: Final = 53
_PERM_ADDRESS: Final = 54
_PARENT_DEV_NAME: Final = 56
_PARENT_DEV_BUS_NAME: Final = 57
_GRO_MAX_SIZE: Final = 58
_TSO_MAX_SIZE: Final = 59
_GSO_IPV4_MAX_SIZE: Final = 63
_GRO_IPV4_MAX_SIZE: Final = 64
_NETNS_IMMUTABLE: Final = 67

_INFO_KIND: Final = 1
_INFO_DATA: Final = 2
_INFO_SLAVE_KIND: Final = 4
_INFO_SLAVE_DATA: Final = 5
_VETH_INFO_PEER: Final = 1
_MACVLAN_MODE: Final = 1
_IPVLAN_MODE: Final = 1
_VLAN_ID: Final = 1
_VRF_TABLE: Final = 1
_VXLAN_ID: Final = 1
_VXLAN_LINK: Final = 3
_VXLAN_PORT: Final = 15

_XDP_FD: Final = 1
_XDP_ATTACHED: Final = 2
_XDP_FLAGS: Final = 3
_XDP_PROG_ID: Final = 4

XDP_MODES: Final = {"driver": (5, 1 << 2), "generic": (6, 1 << 1), "hardware": (7, 1 << 3)}
"""Ways to run an XDP program: the attribute that names its ID, and the flag that asks for it (XDP_FLAGS_*_MODE)."""

_INET_CONF: Final = 1
_INET6_CONF: Final = 2
_INET6_ADDR_GEN_MODE: Final = 8

# RTEXT_FILTER_VF asks for the virtual functions, RTEXT_FILTER_SKIP_STATS leaves out half of the message.
_FILTER_VF: Final = 1
_FILTER_SKIP_STATS: Final = 8

# The kernel's IFNAMSIZ, the ending zero included. Longer names are alternative names.
IFNAMSIZ: Final = 16
# dev_valid_name() and dev_alloc_name(): what a name may not hold. ``%`` makes a pattern of it.
ALTIFNAMSIZ: Final = 128
IFALIASZ: Final = 256

OPERSTATES: Final = ("unknown", "not-present", "down", "lower-layer-down", "testing", "dormant", "up")

MACVLAN_MODES: Final = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8, "source": 16}
IPVLAN_MODES: Final = {"l2": 0, "l3": 1, "l3s": 2}

ADDR_GEN_EUI64: Final = 0
ADDR_GEN_NONE: Final = 1
ADDR_GEN_STABLE: Final = 2
ADDR_GEN_RANDOM: Final = 3

# Names as under /proc/sys/net/ipv4/conf/<interface>/, in the order of IPV4_DEVCONF_*, which counts from 1.
IPV4_CONF: Final = (
    "forwarding",
    "mc_forwarding",
    "proxy_arp",
    "accept_redirects",
    "secure_redirects",
    "send_redirects",
    "shared_media",
    "rp_filter",
    "accept_source_route",
    "bootp_relay",
    "log_martians",
    "tag",
    "arp_filter",
    "medium_id",
    "disable_xfrm",
    "disable_policy",
    "force_igmp_version",
    "arp_announce",
    "arp_ignore",
    "promote_secondaries",
    "arp_accept",
    "arp_notify",
    "accept_local",
    "src_valid_mark",
    "proxy_arp_pvlan",
    "route_localnet",
    "igmpv2_unsolicited_report_interval",
    "igmpv3_unsolicited_report_interval",
    "ignore_routes_with_linkdown",
    "drop_unicast_in_l2_multicast",
    "drop_gratuitous_arp",
    "bc_forwarding",
    "arp_evict_nocarrier",
)
_IPV4_CONF_NUMBER: Final = {name: number for number, name in enumerate(IPV4_CONF, 1)}

# Names as under /proc/sys/net/ipv6/conf/<interface>/, in the order of DEVCONF_*, which counts from 0. An empty name is
# a number that has no plain value there (the secret, values in other units than the file's).
IPV6_CONF: Final = (
    "forwarding",
    "hop_limit",
    "mtu",
    "accept_ra",
    "accept_redirects",
    "autoconf",
    "dad_transmits",
    "router_solicitations",
    "",  # router_solicitation_interval: milliseconds here, seconds in the file
    "",  # router_solicitation_delay: the same
    "use_tempaddr",
    "temp_valid_lft",
    "temp_prefered_lft",
    "regen_max_retry",
    "max_desync_factor",
    "max_addresses",
    "force_mld_version",
    "accept_ra_defrtr",
    "accept_ra_pinfo",
    "accept_ra_rtr_pref",
    "",  # router_probe_interval
    "accept_ra_rt_info_max_plen",
    "proxy_ndp",
    "optimistic_dad",
    "accept_source_route",
    "mc_forwarding",
    "disable_ipv6",
    "accept_dad",
    "force_tllao",
    "ndisc_notify",
    "mldv1_unsolicited_report_interval",
    "mldv2_unsolicited_report_interval",
    "suppress_frag_ndisc",
    "accept_ra_from_local",
    "use_optimistic",
    "accept_ra_mtu",
    "",  # stable_secret
    "use_oif_addrs_only",
    "accept_ra_min_hop_limit",
    "ignore_routes_with_linkdown",
    "drop_unicast_in_l2_multicast",
    "drop_unsolicited_na",
    "keep_addr_on_down",
    "",  # router_solicitation_max_interval
    "seg6_enabled",
    "seg6_require_hmac",
    "enhanced_dad",
    "addr_gen_mode",
    "disable_policy",
    "accept_ra_rt_info_min_plen",
    "ndisc_tclass",
    "rpl_seg_enabled",
    "ra_defrtr_metric",
    "ioam6_enabled",
    "ioam6_id",
    "ioam6_id_wide",
    "ndisc_evict_nocarrier",
    "accept_untracked_na",
    "accept_ra_min_lft",
)


@dataclass(frozen=True, slots=True)
class LinkConf:
    """The per-interface settings of a link, by their names under ``/proc/sys/net/ipv4/conf`` and ``…/ipv6/conf``.

    A family that is switched off on the link has none. Settings whose unit differs from the file's are left out.
    ``port`` are those that its bridge or bond keeps for it (``ports``), ``xdp`` the IDs of its XDP programs by mode
    (``XDP_MODES``).
    """

    ipv4: dict[str, int]
    ipv6: dict[str, int]
    port: dict[str, int] = field(default_factory=dict)
    xdp: dict[str, int] = field(default_factory=dict)


def _header(index: int = 0, flags: int = 0, change: int = 0, family: int = 0) -> bytes:
    return _HEADER.pack(family, 0, index, flags, change)


def _name_attribute(name: str) -> bytes:
    return attribute_text(_IFNAME if len(name.encode()) < IFNAMSIZ else _ALT_IFNAME, name)


def get_link(*, index: int = 0, name: str = "", vfs: bool = False) -> Request:
    """Ask for one link by index or by name (an alternative name too); ENODEV if there is none."""
    body = _header(index) + attribute_u32(_EXT_MASK, _FILTER_SKIP_STATS | (_FILTER_VF if vfs else 0))
    if not index:
        body += _name_attribute(name)
    return Request(RTM_GETLINK, 0, body, f"read link {name or index}")


def dump_links(*, master: int = 0, kind: str = "", vfs: bool = False) -> Request:
    """Ask for all links, or for the ports of a master, or for those of a kind: the kernel does the choosing."""
    body = _header() + attribute_u32(_EXT_MASK, _FILTER_SKIP_STATS | (_FILTER_VF if vfs else 0))
    if master:
        body += attribute_u32(_MASTER, master)
    if kind:
        body += nest(_LINKINFO, attribute_text(_INFO_KIND, kind))
    return Request(RTM_GETLINK, codec.NLM_F_DUMP, body, "list links")


def ipv4_conf_number(name: str) -> int:
    """Give the IPV4_DEVCONF_* number of a setting.

    Raises:
        ValueError: the name is none of ``IPV4_CONF``.
    """
    try:
        return _IPV4_CONF_NUMBER[name]
    except KeyError:
        raise ValueError(f"ipv4 conf {name!r} is unknown; known are {', '.join(IPV4_CONF)}") from None


def _af_spec(addr_gen_mode: int | None, ipv4_conf: Mapping[str, int] | None) -> bytes:
    families = []
    if ipv4_conf:
        values = (attribute_u32(ipv4_conf_number(name), value & 0xFFFF_FFFF) for name, value in ipv4_conf.items())
        families.append(nest(AF_INET, nest(_INET_CONF, *values)))
    if addr_gen_mode is not None:
        families.append(nest(AF_INET6, attribute_u8(_INET6_ADDR_GEN_MODE, addr_gen_mode)))
    return nest(_AF_SPEC, *families) if families else b""


def set_link(
    index: int,
    *,
    name: str | None = None,
    netns_fd: int | None = None,
    up: bool | None = None,
    flags: int | None = None,
    mtu: int | None = None,
    address: str | None = None,
    master: int | None = None,
    alias: str | None = None,
    txqlen: int | None = None,
    group: int | None = None,
    gso_max_size: int | None = None,
    gro_max_size: int | None = None,
    gso_ipv4_max_size: int | None = None,
    gro_ipv4_max_size: int | None = None,
    addr_gen_mode: int | None = None,
    ipv4_conf: Mapping[str, int] | None = None,
    xdp_fd: int | None = None,
    xdp_mode: str = "",
    new_index: int | None = None,
    label: str = "",
) -> Request:
    """Change a link; what is None stays.

    The kernel moves the link first (``netns_fd``), then sets the rest in the order MAC, MTU, name, alias, master, up,
    queue length, sizes, per-interface settings, XDP, and stops at the first thing that it refuses without taking back
    the ones before. It moves under the old name and renames afterwards: if ``name`` is taken in the new namespace the
    link has moved, under its old name, when EEXIST comes. Only where the old name is taken there ``name`` counts in
    the move itself. ``master`` 0 frees a port, an empty ``alias`` removes it, ``xdp_fd`` -1 removes
    the XDP program, and ``xdp_mode`` says how a new one is run. ``ipv4_conf`` sets values as they are, without the side
    effects of writing the file: ``forwarding`` does not switch off LRO. ``new_index`` counts only together with
    ``netns_fd``. ``flags`` sets all of ``IFF_SETTABLE``, those that are not in it to off.

    Raises:
        ValueError: a value does not fit its field, or the name of a setting is unknown.
    """
    now, change = IFF_UP if up else 0, 0 if up is None else IFF_UP
    if flags is not None:
        now, change = now | flags & IFF_SETTABLE, change | IFF_SETTABLE
    parts = [_header(index, now, change)]
    parts += _given(
        (_NET_NS_FD, attribute_u32, netns_fd),
        (_IFNAME, attribute_text, name),
        (_ADDRESS, _hardware_attribute, address),
        (_IFALIAS, _alias_attribute, alias),
        (_NEW_IFINDEX, attribute_s32, new_index),
        (_MTU, attribute_u32, mtu),
        (_MASTER, attribute_u32, master),
        (_TXQLEN, attribute_u32, txqlen),
        (_GROUP, attribute_u32, group),
        (_GSO_MAX_SIZE, attribute_u32, gso_max_size),
        (_GRO_MAX_SIZE, attribute_u32, gro_max_size),
        (_GSO_IPV4_MAX_SIZE, attribute_u32, gso_ipv4_max_size),
        (_GRO_IPV4_MAX_SIZE, attribute_u32, gro_ipv4_max_size),
        (_XDP, _xdp_attribute, None if xdp_fd is None else (xdp_fd, xdp_mode)),
    )
    parts.append(_af_spec(addr_gen_mode, ipv4_conf))
    label = label or _set_label(index, name=name, moves=netns_fd is not None, up=up)
    return Request(RTM_SETLINK, 0, b"".join(parts), label)


def _given(*parts: tuple[int, Callable[[int, Any], bytes], Any]) -> list[bytes]:
    return [build(kind, value) for kind, build, value in parts if value is not None]


def _set_label(index: int, *, name: str | None, moves: bool, up: bool | None) -> str:
    if moves:
        return f"move link {index} to another namespace" + (f" as {name}" if name else "")
    if name is not None:
        return f"rename link {index} to {name}"
    return f"change link {index}" if up is None else f"set link {index} {'up' if up else 'down'}"


def _hardware_attribute(kind: int, address: str) -> bytes:
    return attribute(kind, codec.hardware_bytes(address))


def _alias_attribute(kind: int, alias: str) -> bytes:
    # The kernel takes the attribute's length for the text's: an ending zero would become part of it. But no text at all
    # is refused.
    return attribute(kind, alias.encode("utf-8", "surrogateescape") or b"\0")


def _xdp_attribute(kind: int, program: tuple[int, str]) -> bytes:
    fd, mode = program
    flags = attribute_u32(_XDP_FLAGS, XDP_MODES[mode][1]) if mode else b""
    return nest(kind, attribute_s32(_XDP_FD, fd), flags)


def new_link(
    kind: str,
    name: str,
    *,
    netns_fd: int | None = None,
    index: int = 0,
    lower: int | None = None,
    address: str | None = None,
    mtu: int | None = None,
    up: bool = False,
    mode: str | None = None,
    vlan_id: int | None = None,
    vrf_table: int | None = None,
    vxlan_id: int | None = None,
    vxlan_port: int | None = None,
    peer: str | None = None,
    peer_netns_fd: int | None = None,
) -> Request:
    """Make a software link of a kind (``veth``, ``macvlan``, ``ipvlan``, ``vlan``, ``vrf``, ``bridge``, ``vxlan``, …).

    Args:
        kind: the driver's kind.
        name: the new name.
        netns_fd: where the link shall be; None for the socket's namespace.
        index: the index to have, 0 lets the kernel choose.
        lower: the parent's index, counted in the socket's namespace also where ``netns_fd`` is another.
        address: the hardware address.
        mtu: bytes.
        up: set it up at once.
        mode: of a macvlan (``bridge``, …) or ipvlan (``l2``, ``l3``, ``l3s``), by its kernel name.
        vlan_id: of a VLAN.
        vrf_table: of a VRF.
        vxlan_id: of a VXLAN.
        vxlan_port: UDP port of a VXLAN.
        peer: the name of a veth's other end.
        peer_netns_fd: where that other end shall be.

    Raises:
        ValueError: the mode is unknown, or a value does not fit its field.
    """
    flags = IFF_UP if up else 0
    parts = [_header(index, flags, flags), attribute_text(_IFNAME, name)]
    parts += _given(
        (_NET_NS_FD, attribute_u32, netns_fd),
        (_LINK, attribute_u32, lower),
        (_ADDRESS, _hardware_attribute, address),
        (_MTU, attribute_u32, mtu),
    )
    data = _given(
        (_VLAN_ID, attribute_u16, vlan_id),
        (_VRF_TABLE, attribute_u32, vrf_table),
        (_VXLAN_ID, attribute_u32, vxlan_id),
        (_VXLAN_PORT, _port_attribute, vxlan_port),
    )
    if mode is not None:
        data.append(_mode_attribute(kind, mode))
    if peer is not None:
        data.append(_peer_attribute(peer, peer_netns_fd))
    info = [attribute_text(_INFO_KIND, kind)]
    if data:
        info.append(nest(_INFO_DATA, *data))
    parts.append(nest(_LINKINFO, *info))
    return Request(RTM_NEWLINK, codec.NLM_F_CREATE | codec.NLM_F_EXCL, b"".join(parts), f"make {kind} {name}")


def _port_attribute(kind: int, port: int) -> bytes:
    return attribute(kind, port.to_bytes(2, "big"))


def _peer_attribute(name: str, netns_fd: int | None) -> bytes:
    body = _header() + attribute_text(_IFNAME, name)
    return nest(_VETH_INFO_PEER, body, *_given((_NET_NS_FD, attribute_u32, netns_fd)))


def _mode_attribute(kind: str, mode: str) -> bytes:
    modes = {"macvlan": MACVLAN_MODES, "macvtap": MACVLAN_MODES, "ipvlan": IPVLAN_MODES}.get(kind, {})
    if mode not in modes:
        raise ValueError(f"{kind} mode {mode!r} is unknown; known are: {', '.join(modes) or 'none'}")
    if kind == "ipvlan":
        return attribute_u16(_IPVLAN_MODE, modes[mode])
    return attribute_u32(_MACVLAN_MODE, modes[mode])


def delete_link(index: int) -> Request:
    """Remove a software link (EOPNOTSUPP for hardware)."""
    return Request(RTM_DELLINK, 0, _header(index), f"delete link {index}")


def add_altname(index: int, name: str) -> Request:
    """Give a link one more name (EEXIST if any link has it)."""
    body = _header(index) + nest(_PROP_LIST, attribute_text(_ALT_IFNAME, name))
    flags = codec.NLM_F_CREATE | codec.NLM_F_EXCL | codec.NLM_F_APPEND
    return Request(RTM_NEWLINKPROP, flags, body, f"add alternative name {name} to link {index}")


def delete_altname(index: int, name: str) -> Request:
    """Take an alternative name from a link (EINVAL if it is not its own)."""
    body = _header(index) + nest(_PROP_LIST, attribute_text(_ALT_IFNAME, name))
    return Request(RTM_DELLINKPROP, 0, body, f"delete alternative name {name} of link {index}")


def parse_link(body: bytes) -> Link:
    """Read the body of an RTM_NEWLINK or RTM_DELLINK.

    Raises:
        DecodeError: it is truncated or malformed.
    """
    if len(body) < _HEADER.size:
        raise DecodeError(f"link message of {len(body)} bytes")
    _, kind, index, flags, _ = _HEADER.unpack_from(body)
    found = attributes(body, _HEADER.size)
    get, u32 = found.get, _U32.unpack
    try:
        info = attributes(found[_LINKINFO]) if _LINKINFO in found else {}
        link_kind = codec.string(info[_INFO_KIND]) if _INFO_KIND in info else ""
        vlan_id, macvlan_mode, vrf_table = _kind_data(link_kind, info.get(_INFO_DATA))
        return Link(
            index=index,
            name=codec.string(found[_IFNAME]) if _IFNAME in found else "",
            type=kind,
            flags=flags,
            mtu=u32(get(_MTU, _ZERO))[0],
            min_mtu=u32(get(_MIN_MTU, _ZERO))[0],
            max_mtu=u32(get(_MAX_MTU, _ZERO))[0],
            address=get(_ADDRESS, b"").hex(":"),
            permanent_address=get(_PERM_ADDRESS, b"").hex(":"),
            broadcast=get(_BROADCAST, b"").hex(":"),
            operstate=_operstate(get(_OPERSTATE)),
            carrier=found[_CARRIER] != b"\0" if _CARRIER in found else None,
            kind=link_kind,
            slave_kind=codec.string(info[_INFO_SLAVE_KIND]) if _INFO_SLAVE_KIND in info else "",
            master=u32(get(_MASTER, _ZERO))[0],
            lower=u32(get(_LINK, _ZERO))[0],
            lower_netnsid=codec.s32(found[_LINK_NETNSID]) if _LINK_NETNSID in found else None,
            underlay=_underlay(link_kind, info.get(_INFO_DATA)),
            alias=codec.string(found[_IFALIAS]) if _IFALIAS in found else "",
            altnames=_altnames(found[_PROP_LIST]) if _PROP_LIST in found else (),
            group=u32(get(_GROUP, _ZERO))[0],
            txqlen=u32(get(_TXQLEN, _ZERO))[0],
            promiscuity=u32(get(_PROMISCUITY, _ZERO))[0],
            gso_max_size=u32(get(_GSO_MAX_SIZE, _ZERO))[0],
            gro_max_size=u32(get(_GRO_MAX_SIZE, _ZERO))[0],
            gso_ipv4_max_size=u32(get(_GSO_IPV4_MAX_SIZE, _ZERO))[0],
            gro_ipv4_max_size=u32(get(_GRO_IPV4_MAX_SIZE, _ZERO))[0],
            tso_max_size=u32(get(_TSO_MAX_SIZE, _ZERO))[0],
            parent_bus=codec.string(found[_PARENT_DEV_BUS_NAME]) if _PARENT_DEV_BUS_NAME in found else "",
            parent_device=codec.string(found[_PARENT_DEV_NAME]) if _PARENT_DEV_NAME in found else "",
            phys_port_name=codec.string(found[_PHYS_PORT_NAME]) if _PHYS_PORT_NAME in found else "",
            phys_switch_id=found[_PHYS_SWITCH_ID].hex() if _PHYS_SWITCH_ID in found else "",
            num_vfs=codec.u32(found[_NUM_VF]) if _NUM_VF in found else None,
            netns_immutable=found.get(_NETNS_IMMUTABLE, b"\0") != b"\0",
            xdp_program_id=_xdp_program(found[_XDP]) if _XDP in found else 0,
            addr_gen_mode=_addr_gen_mode(found[_AF_SPEC]) if _AF_SPEC in found else None,
            vlan_id=vlan_id,
            macvlan_mode=macvlan_mode,
            vrf_table=vrf_table,
            new_index=u32(get(_NEW_IFINDEX, _ZERO))[0],
            new_netnsid=codec.s32(found[_NEW_NETNSID]) if _NEW_NETNSID in found else None,
        )
    except struct.error as error:
        raise DecodeError(f"link {index}: an attribute is too short ({error})") from error


def without_statistics(body: bytes) -> bytes:
    """Give the body of a link message without its packet counters, to tell whether anything else has changed.

    Raises:
        DecodeError: it is malformed.
    """
    unpack = codec.ATTRIBUTE.unpack_from
    offset, last = _HEADER.size, len(body) - 4
    start = 0
    while offset <= last:
        length, kind = unpack(body, offset)
        if length < 4:
            raise DecodeError(f"netlink attribute {kind}: length {length}")
        if kind in _STATISTICS:
            start = start or offset
        elif start:
            # The kernel puts both kinds of counters side by side.
            break
        offset += (length + 3) & -4
    return body[:start] + body[offset:] if start else body


def parse_link_conf(body: bytes) -> LinkConf:
    """Read the per-interface settings in the body of an RTM_NEWLINK.

    Raises:
        DecodeError: it is truncated or malformed.
    """
    if len(body) < _HEADER.size:
        raise DecodeError(f"link message of {len(body)} bytes")
    found = attributes(body, _HEADER.size)
    families = attributes(found.get(_AF_SPEC, b""))
    info = attributes(found.get(_LINKINFO, b""))
    ipv4 = attributes(families.get(AF_INET, b"")).get(_INET_CONF, b"")
    ipv6 = attributes(families.get(AF_INET6, b"")).get(_INET6_CONF, b"")
    master = codec.string(info.get(_INFO_SLAVE_KIND, b""))
    port = ports.parse_settings(master, info.get(_INFO_SLAVE_DATA, b""))
    xdp = attributes(found.get(_XDP, b""))
    programs = {mode: codec.u32(xdp[kind]) for mode, (kind, _) in XDP_MODES.items() if kind in xdp}
    return LinkConf(ipv4=_conf(IPV4_CONF, ipv4), ipv6=_conf(IPV6_CONF, ipv6), port=port, xdp=programs)


def _conf(names: tuple[str, ...], values: bytes) -> dict[str, int]:
    # A kernel that is younger than the list has more values, an older one fewer: both lists only ever grow at the end.
    numbers = (number for (number,) in struct.iter_unpack("=i", values[: len(values) & ~3]))
    return {name: number for name, number in zip(names, numbers, strict=False) if name}


def _operstate(value: bytes | None) -> str:
    number = value[0] if value else 0
    return OPERSTATES[number] if number < len(OPERSTATES) else "unknown"


def _altnames(value: bytes) -> tuple[str, ...]:
    return tuple(codec.string(name) for kind, name in attribute_list(value) if kind == _ALT_IFNAME)


def _xdp_program(value: bytes) -> int:
    found = attributes(value)
    # With several programs (driver and generic) the kernel names none at the top: any of theirs will do as a sign.
    for kind in (_XDP_PROG_ID, _XDP_PROG_ID + 1, _XDP_PROG_ID + 2, _XDP_PROG_ID + 3):
        if kind in found:
            return codec.u32(found[kind])
    return 0


def _addr_gen_mode(value: bytes) -> int | None:
    ipv6 = attributes(value).get(AF_INET6)
    found = attributes(ipv6).get(_INET6_ADDR_GEN_MODE) if ipv6 else None
    return codec.u8(found) if found is not None else None


def _underlay(kind: str, value: bytes | None) -> int:
    """Read the interface that a VXLAN sends by: alone of the tunnels it does not tell it as ``IFLA_LINK``."""
    if kind != "vxlan" or value is None:
        return 0
    return codec.u32(attributes(value).get(_VXLAN_LINK, _ZERO))


def _kind_data(kind: str, value: bytes | None) -> tuple[int | None, int | None, int | None]:
    if value is None or kind not in {"vlan", "macvlan", "macvtap", "vrf"}:
        return None, None, None
    found = attributes(value)
    if kind == "vlan":
        return (codec.u16(found[_VLAN_ID]) if _VLAN_ID in found else None), None, None
    if kind == "vrf":
        return None, None, (codec.u32(found[_VRF_TABLE]) if _VRF_TABLE in found else None)
    return None, (codec.u32(found[_MACVLAN_MODE]) if _MACVLAN_MODE in found else None), None
