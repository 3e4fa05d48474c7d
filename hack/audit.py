"""The auditor: does a claim's status say what ``ip -j`` shows in its pod? For the suites, after each step. Pure.

It shares no code with the driver: what the kernel shows is taken from iproute2, what must be written from the contract
of the status (``docs/user/status.md``).
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

Link = dict[str, Any]

MAX_IPS: Final = 16

_NOBODYS: Final = frozenset(
    {"bridge", "vrf", "sit", "ipip", "gre", "gretap", "erspan", "ip6tnl", "ip6gre", "vti", "vti6"}
)
"""Kinds of links that are in a pod without being anybody's device: made there, or by the kernel in each namespace."""


def audit(
    claim: Mapping[str, Any],
    links: Sequence[Link] | None,
    *,
    driver: str = "dra.net",
    others: Collection[str] = ("lo",),
) -> list[str]:
    """Return what is wrong with a claim's status; nothing when it says what there is.

    Args:
        claim: the ResourceClaim.
        links: what ``ip -j -d addr`` prints in the network namespace of the pod that has the claim's devices; None when
            no pod has them.
        driver: whose devices are looked at.
        others: interfaces of the pod that belong to nobody's claim.
    """
    status = claim.get("status") or {}
    results = ((status.get("allocation") or {}).get("devices") or {}).get("results") or []
    allocated = {_key(item): item for item in results if item["driver"] == driver}
    entries = {_key(item): item for item in status.get("devices") or [] if item["driver"] == driver}
    wrong = [f"{key}: nothing is said of this device" for key in allocated if key not in entries]
    wrong += [f"{key}: it is not allocated, and something is said of it" for key in entries if key not in allocated]
    named = set(others)
    for key, entry in entries.items():
        named.add((entry.get("networkData") or {}).get("interfaceName", ""))
        wrong += [f"{key}: {why}" for why in _entry(entry, links)]
    wrong += [
        f"interface {each['ifname']} is in the pod, and no device has it"
        for each in links or ()
        if each["ifname"] not in named
    ]
    return wrong


def audit_all(
    claims: Iterable[Mapping[str, Any]], links: Sequence[Link] | None, *, driver: str = "dra.net"
) -> list[str]:
    """Return what is wrong with the statuses of all claims of one pod."""
    claims = list(claims)
    names = {
        (entry.get("networkData") or {}).get("interfaceName", "")
        for claim in claims
        for entry in (claim.get("status") or {}).get("devices") or []
    }
    return [
        f"claim {claim['metadata']['name']}, {why}"
        for claim in claims
        for why in audit(claim, links, driver=driver, others={"lo", *names})
    ]


def audit_at_rest(
    claims: Iterable[Mapping[str, Any]],
    pods: Sequence[Sequence[Link]],
    *,
    foreign: Collection[str] = ("lo", "eth0"),
) -> list[str]:
    """Return what is wrong with the statuses of a node's claims, whichever of its pods has which.

    A claim of which nothing is said is passed over: it may never have been prepared.

    Args:
        claims: the claims.
        pods: what ``ip -j -d addr`` prints in each pod that lives.
        foreign: interfaces of pods that belong to nobody's claim.
    """
    claims = list(claims)
    said = {
        (data.get("interfaceName"), data.get("hardwareAddress"))
        for claim in claims
        for entry in (claim.get("status") or {}).get("devices") or []
        if (data := entry.get("networkData"))
    }
    wrong = [
        f"interface {link['ifname']} is in a pod, and no claim says so"
        for links in pods
        for link in links
        if link["ifname"] not in foreign
        and (link.get("linkinfo") or {}).get("info_kind") not in _NOBODYS
        and (link["ifname"], link["address"]) not in said
    ]
    for claim in claims:
        if not (claim.get("status") or {}).get("devices"):
            continue
        verdicts = [audit(claim, links, others=[each["ifname"] for each in links]) for links in pods]
        if [] not in verdicts and (found := audit(claim, None)):
            wrong.append(f"claim {claim['metadata']['name']}: {verdicts or found}")
    return wrong


def _key(item: Mapping[str, Any]) -> str:
    return "/".join(str(item[part]) for part in ("pool", "device", "shareID") if item.get(part))


def _entry(entry: Mapping[str, Any], links: Sequence[Link] | None) -> list[str]:
    said = {item["type"]: item for item in entry.get("conditions") or []}
    ready = (said.get("Ready") or {}).get("status", "missing")
    data = entry.get("networkData") or {}
    if ready != "True" or links is None:
        wrong = [f"networkData {data} of a device that is in no pod"] if data else []
        return wrong + (["Ready=True, and no pod has it"] if ready == "True" else [])
    if said["Ready"]["reason"] in ("AdminAccess", "RDMAOnlyDeviceReady"):
        return [f"networkData {data} of a device without an interface in the pod"] if data else []
    found = [link for link in links if link["ifname"] == data.get("interfaceName")]
    if not found:
        return [f"interface {data.get('interfaceName')!r} is not in the pod, which has {[x['ifname'] for x in links]}"]
    return _network(data, said.get("NetworkReady") or {}, found[0])


def _network(data: Mapping[str, Any], condition: Mapping[str, Any], link: Link) -> list[str]:
    wrong = []
    if data.get("hardwareAddress") != link["address"]:
        wrong.append(f"hardwareAddress {data.get('hardwareAddress')}, the pod has {link['address']}")
    shown, real = data.get("ips") or [], _addresses(link)
    if len(shown) != min(MAX_IPS, len(real)) or not set(shown) <= set(real):
        wrong.append(f"ips {shown}, the pod has {real}")
    down, silent = "UP" not in link["flags"], "NO-CARRIER" in link["flags"]
    expected = "LinkDown" if down else "NoCarrier" if silent else ""
    state, reason = condition.get("status"), condition.get("reason")
    if expected and (state, reason) != ("False", expected):
        wrong.append(f"NetworkReady={state} ({reason}), the link has flags {link['flags']}")
    if not expected and reason in ("LinkDown", "NoCarrier"):
        wrong.append(f"NetworkReady={state} ({reason}), the link has flags {link['flags']}")
    return wrong


def _addresses(link: Link) -> list[str]:
    """Return the addresses but the link-local one that the kernel makes by itself."""
    own = _link_locals(link["address"])
    return [
        str(ipaddress.ip_interface(f"{item['local']}/{item['prefixlen']}"))
        for item in link["addr_info"]
        # iproute2 names the kernel's own since 6.3 (IFAPROT_KERNEL_LL); before that it is known by its interface ID.
        if item.get("protocol") != "kernel_ll" and not own.fullmatch(item["local"])
    ]


def _link_locals(mac: str) -> re.Pattern[str]:
    """Match the addresses that are made of a MAC (RFC 4291, appendix A), and of that of an ipvlan, which has a number.

    Source of the latter: ``addrconf_ifid_eui48`` of the kernel, for devices with a ``dev_id``.
    """
    octets = bytes.fromhex(mac.replace(":", ""))
    if len(octets) != 6:
        return re.compile("")
    made = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    numbered = (octets[:3] + number.to_bytes(2, "big") + octets[3:] for number in range(1, 256))
    found = {str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + each)) for each in (made, *numbered)}
    return re.compile("|".join(found))
