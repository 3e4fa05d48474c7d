"""Ethtool features and private flags of a plan: aliases to the kernel's names, and whether the device can change them.

The kernel's names are those of ``net/ethtool/common.c``; the aliases are those of ``ethtool -K``, long and short.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nri_dranet.api.config import Ethtool
    from nri_dranet.dra.plan_model import Problems

ALIASES: Mapping[str, str] = {
    "rx": "rx-checksum",
    "rx-checksumming": "rx-checksum",
    "tx": "tx-checksum-*",
    "tx-checksumming": "tx-checksum-*",
    "sg": "tx-scatter-gather*",
    "scatter-gather": "tx-scatter-gather*",
    "tso": "tx-tcp*-segmentation",
    "tcp-segmentation-offload": "tx-tcp*-segmentation",
    "ufo": "tx-udp-fragmentation",
    "udp-fragmentation-offload": "tx-udp-fragmentation",
    "gso": "tx-generic-segmentation",
    "generic-segmentation-offload": "tx-generic-segmentation",
    "gro": "rx-gro",
    "generic-receive-offload": "rx-gro",
    "lro": "rx-lro",
    "large-receive-offload": "rx-lro",
    "rxvlan": "rx-vlan-hw-parse",
    "rx-vlan-offload": "rx-vlan-hw-parse",
    "txvlan": "tx-vlan-hw-insert",
    "tx-vlan-offload": "tx-vlan-hw-insert",
    "ntuple": "rx-ntuple-filter",
    "ntuple-filters": "rx-ntuple-filter",
    "rxhash": "rx-hashing",
    "receive-hashing": "rx-hashing",
}
"""Alias to the pattern of the kernel's names that it stands for."""

KERNEL_FEATURES = frozenset(
    {
        "tx-scatter-gather",
        "tx-checksum-ipv4",
        "tx-checksum-ip-generic",
        "tx-checksum-ipv6",
        "highdma",
        "tx-scatter-gather-fraglist",
        "tx-vlan-hw-insert",
        "rx-vlan-hw-parse",
        "rx-vlan-filter",
        "tx-vlan-stag-hw-insert",
        "rx-vlan-stag-hw-parse",
        "rx-vlan-stag-filter",
        "vlan-challenged",
        "tx-generic-segmentation",
        "tx-lockless",
        "netns-local",
        "rx-gro",
        "rx-gro-hw",
        "rx-lro",
        "tx-tcp-segmentation",
        "tx-gso-robust",
        "tx-tcp-ecn-segmentation",
        "tx-tcp-mangleid-segmentation",
        "tx-tcp6-segmentation",
        "tx-fcoe-segmentation",
        "tx-gre-segmentation",
        "tx-gre-csum-segmentation",
        "tx-ipxip4-segmentation",
        "tx-ipxip6-segmentation",
        "tx-udp_tnl-segmentation",
        "tx-udp_tnl-csum-segmentation",
        "tx-gso-partial",
        "tx-tunnel-remcsum-segmentation",
        "tx-sctp-segmentation",
        "tx-esp-segmentation",
        "tx-udp-segmentation",
        "tx-gso-list",
        "tx-tcp-accecn-segmentation",
        "tx-udp-fragmentation",
        "tx-checksum-fcoe-crc",
        "tx-checksum-sctp",
        "fcoe-mtu",
        "rx-ntuple-filter",
        "rx-hashing",
        "rx-checksum",
        "tx-nocache-copy",
        "loopback",
        "rx-fcs",
        "rx-all",
        "l2-fwd-offload",
        "hw-tc-offload",
        "esp-hw-offload",
        "esp-tx-csum-hw-offload",
        "rx-udp_tunnel-port-offload",
        "tls-hw-record",
        "tls-hw-tx-offload",
        "tls-hw-rx-offload",
        "rx-gro-list",
        "macsec-hw-offload",
        "rx-udp-gro-forwarding",
        "hsr-tag-ins-offload",
        "hsr-tag-rm-offload",
        "hsr-fwd-offload",
        "hsr-dup-offload",
    }
)
"""Features that kernels from 5.15 on know: one that the device has not and that shall be off is off."""


def plan_features(
    ethtool: Ethtool, changeable: Mapping[str, bool], fixed: Mapping[str, bool] | None, problems: Problems
) -> dict[str, bool]:
    """Return the features to set, by the kernel's names; a name of the kernel wins over an alias that has it too.

    Args:
        ethtool: the configuration.
        changeable: the features that the device can change.
        fixed: the features that it cannot change and their values; None: they could not be asked for, since the device
            is in a pod whose claim sets no features.
        problems: takes the names that are unknown, cannot be changed, or contradict each other.
    """
    if ethtool.features and not changeable and not fixed:
        problems.field(("ethtool", "features"), None, "cannot be set: the device did not tell which features it has")
        return {}
    wanted: dict[str, bool] = {}
    asked_by: dict[str, str] = {}
    known = KERNEL_FEATURES | changeable.keys() | (fixed or {}).keys()
    names = sorted(ethtool.features.items(), key=lambda item: item[0] not in ALIASES or item[0] in changeable)
    for name, on in names:
        where = ("ethtool", "features", name)
        pattern = name if name in known else ALIASES.get(name, "")
        found = [feature for feature in changeable if fnmatchcase(feature, pattern)] if pattern else []
        if not pattern:
            problems.field(
                where,
                on,
                f"is no feature that ethtool or the kernel knows; the device can change {_list(changeable)}, "
                f"and aliases are {', '.join(ALIASES)}",
            )
        elif not found and fixed is None:
            problems.field(
                where,
                on,
                f"is not known to be so on this device, which is still in another pod and can change "
                f"{_list(changeable)}; it can be told once that pod has ended",
            )
        elif not found and not _is_so(pattern, on, fixed):
            verb = "on" if on else "off"
            problems.field(where, on, f"cannot be switched {verb} on this device, which can change {_list(changeable)}")
        for feature in found:
            other = asked_by.get(feature)
            if other is not None and other in ALIASES and name in ALIASES and wanted[feature] != on:
                problems.field(where, on, f"must be as {other}, which is the same feature")
            wanted[feature], asked_by[feature] = on, name
    return wanted


def _is_so(pattern: str, on: bool, fixed: Mapping[str, bool] | None) -> bool:
    """Tell whether what cannot be changed is as it is wanted; a feature that the device has not is off."""
    values = [value for feature, value in (fixed or {}).items() if fnmatchcase(feature, pattern)]
    return any(values) if on else not any(values)


def plan_private_flags(ethtool: Ethtool, available: Mapping[str, bool], problems: Problems) -> dict[str, bool]:
    """Return the private flags to set; those that the device's driver has not are problems."""
    for name, on in ethtool.private_flags.items():
        if name not in available:
            allowed = f"must be one of {_list(available)}" if available else "must be left out"
            problems.field(("ethtool", "privateFlags", name), on, f"{allowed}: the device's driver has no such flag")
    return {name: on for name, on in ethtool.private_flags.items() if name in available}


def _list(names: Mapping[str, bool]) -> str:
    return ", ".join(sorted(names)) or "none"
