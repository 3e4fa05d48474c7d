"""What is left of a claim whose record was lost: its device in a pod, and how it was on the host as far as is known.

Pure. The kernel shows the interface in the pod, the published slice says what it was called and how it was on the host,
the claim's own status under which name the pod has it. That is less than a record: what nobody knows is left as it is
when the device goes home.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.claims.plan import ClaimPlan, DeviceKind, DevicePlan, HostState, PodState
from nri_dranet.dra.plan_model import DeviceFactsIn, NodeFacts, PlanError
from nri_dranet.dra.planner import plan_claim
from nri_dranet.inventory.names import interface_device_name, pci_device_name
from nri_dranet.netlink.codec import AF_INET, AF_INET6
from nri_dranet.netlink.links import IFF_UP
from nri_dranet.netlink.model import Address

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from nri_dranet.claims.allocation import AllocationResult, Claim
    from nri_dranet.netlink.model import Link

    Entry = Mapping[str, Any]

# What each fact is worth that a link has in common with the device; a name alone is enough, if no other link has more.
_CERTAIN: Final = 8
_TELLING: Final = 2
_NAME: Final = 1
_NOT_OURS: Final = frozenset({"lo", "eth0"})


@dataclass(frozen=True, slots=True)
class Found:
    """A device in a pod: the result that it was allocated by, its interface there, its entry in the slice."""

    result: AllocationResult
    link: Link
    entry: Entry


def find(
    results: Iterable[AllocationResult], links: Sequence[Link], published: Mapping[str, Entry], claim: Entry
) -> list[Found]:
    """Find devices among the links of a pod, each at most once.

    Args:
        results: what was allocated.
        links: the pod's interfaces.
        published: the node's devices as its slices had them, by name.
        claim: the claim as the API server has it, with its status.
    """
    found: list[Found] = []
    taken = set()
    for result in results:
        entry = published.get(result.device, {})
        shown = _shown(result, claim)
        ranked = sorted(
            ((_weight(result.device, entry, shown, link), link) for link in links if link.index not in taken),
            key=lambda pair: pair[0],
            reverse=True,
        )
        if ranked and ranked[0][0] and (len(ranked) == 1 or ranked[0][0] > ranked[1][0]):
            found.append(Found(result, ranked[0][1], entry))
            taken.add(ranked[0][1].index)
    return found


def plan(claim: Claim, driver: str, found: Sequence[Found], node: NodeFacts, listed_by: Mapping[str, Any]) -> ClaimPlan:
    """Make the plan of a claim whose devices are in a pod, from what is left.

    The configuration may be one that this driver refuses (another driver attached the device): the plan then says of
    the pod only what it is called there.
    """
    devices = {
        each.result.device: DeviceFactsIn(
            name=each.result.device,
            link=_on_host(each),
            pci_address=_pci_address(each.link),
            rdma=_text(each.entry, "rdmaDevice") or None,
            published=each.entry,
        )
        for each in found
    }
    hosts = {name: HostState(link=link) for name, device in devices.items() if (link := device.link) is not None}
    results = {each.result.key: each for each in found}
    try:
        made = plan_claim(claim, driver, devices, hosts, node=node, listed_by=listed_by)
    except PlanError:
        plans = tuple(
            DevicePlan(
                key=each.result.key,
                request=each.result.request,
                kind=DeviceKind.INTERFACE,
                host=hosts[each.result.device],
                pod=PodState(name=each.link.name),
                pci_address=_pci_address(each.link),
                published=dict(each.entry),
            )
            for each in found
        )
        made = ClaimPlan(
            ref=claim.ref,
            allocation_hash=claim.allocation_hash(driver),
            devices=plans,
            pods=claim.pods,
            pod_claim_name=claim.pod_claim_name,
            listed_by=dict(listed_by),
        )
    return replace(made, devices=tuple(_as_it_was(device, results[device.key]) for device in made.devices))


def known_of_host(device: DevicePlan) -> str:
    """Say what of a device's former state is known."""
    own = device.host
    if own is None:
        return "nothing"
    parts = [f"its name {own.link.name}"]
    parts += [f"MTU {own.link.mtu}"] if own.link.mtu else []
    parts += [f"hardware address {own.link.address}"] if own.link.address else []
    parts += [f"addresses {', '.join(each.cidr for each in own.addresses)}"] if own.addresses else []
    return ", ".join(parts)


def _as_it_was(device: DevicePlan, found: Found) -> DevicePlan:
    """Take from the host's state what the claim has changed in the pod and nobody knows any more."""
    if device.host is None:
        return device
    pod, entry, link = device.pod or PodState(name=""), found.entry, device.host.link
    own = found.link.permanent_address or (found.link.address if pod.hardware_address is None else "")
    link = replace(
        link,
        mtu=_number(entry, "mtu") or (found.link.mtu if pod.mtu is None else 0),
        address=_text(entry, "mac") or own,
        gso_max_size=link.gso_max_size if pod.gso_max_size is None else 0,
        gro_max_size=link.gro_max_size if pod.gro_max_size is None else 0,
        gso_ipv4_max_size=link.gso_ipv4_max_size if pod.gso_ipv4_max_size is None else 0,
        gro_ipv4_max_size=link.gro_ipv4_max_size if pod.gro_ipv4_max_size is None else 0,
    )
    return replace(device, host=replace(device.host, link=link, addresses=tuple(_addresses(entry))))


def _on_host(found: Found) -> Link:
    """Give the link as it was on the host, as far as the planner needs it."""
    link, entry = found.link, found.entry
    name = _text(entry, "ifName") or _name_of_device(found.result.device) or link.name
    # The other end of a veth was on the host, in whose namespace its index counts.
    return replace(
        link,
        name=name,
        mtu=_number(entry, "mtu") or link.mtu,
        address=_text(entry, "mac") or link.address,
        alias=_text(entry, "alias"),
        altnames=tuple(other for other in link.altnames if other != name),
        flags=link.flags | IFF_UP,
        master=0,
        slave_kind="",
        lower_netnsid=None,
    )


def _name_of_device(device: str) -> str:
    """Give the interface that a device is named after; empty where the name does not say it."""
    return "" if device.startswith("pci-") or interface_device_name(device) != device else device


def _weight(device: str, entry: Entry, shown: Entry, link: Link) -> int:
    """Tell how much of a device a link has: 0 if it is none of its."""
    if link.name in _NOT_OURS:
        return 0
    address = _pci_address(link)
    wanted = _text(entry, "pciAddress")
    if wanted and address != wanted:
        return 0
    kind = _text(entry, "type")
    if kind and kind != (link.kind or "device"):
        return 0
    weight = _CERTAIN if address and (address == wanted or device.startswith(pci_device_name(address))) else 0
    own = {link.address, link.permanent_address} - {""}
    weight += _TELLING * bool(own & {_text(entry, "mac")})
    weight += _TELLING * (str(shown.get("hardwareAddress")) in own)
    names = {link.name, *link.altnames}
    weight += _NAME * bool(names & {_text(entry, "ifName"), _name_of_device(device)} - {""})
    return weight + _NAME * (shown.get("interfaceName") in names)


def _shown(result: AllocationResult, claim: Entry) -> Entry:
    """Give the ``networkData`` that a claim's status has of a device."""
    for entry in (claim.get("status") or {}).get("devices") or []:
        same = all(entry.get(part) == getattr(result, part) for part in ("driver", "pool", "device"))
        if same and (entry.get("shareID") or None) == result.share_id:
            data = entry.get("networkData")
            return data if isinstance(data, dict) else {}
    return {}


def _pci_address(link: Link) -> str | None:
    return link.parent_device if link.parent_bus == "pci" else None


def _attribute(entry: Entry, name: str) -> Entry:
    found = (entry.get("attributes") or {}).get(f"dra.net/{name}")
    return found if isinstance(found, dict) else {}


def _text(entry: Entry, name: str) -> str:
    return str(_attribute(entry, name).get("string") or "")


def _number(entry: Entry, name: str) -> int:
    value = _attribute(entry, name).get("int")
    return value if isinstance(value, int) else 0


def _addresses(entry: Entry) -> Iterable[Address]:
    for name, family in (("ipv4", AF_INET), ("ipv6", AF_INET6)):
        for cidr in filter(None, _text(entry, name).split(",")):
            found = ipaddress.ip_interface(cidr)
            yield Address(family=family, address=str(found.ip), prefix_length=found.network.prefixlen)
