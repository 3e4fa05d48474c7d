"""Which link is the device of a plan? By identity, never by name alone.

Facts that a device cannot lose (kind, PCI address, permanent hardware address, port, the other end of a veth, the
parent of a macvlan) must all agree. Hardware is told by them alone. A software link needs evidence besides: its name,
hardware address or index, which a pod can change one by one. A move keeps the index where it is free in the new
namespace (``net/core/dev.c``, ``__dev_change_net_namespace``).
"""

from __future__ import annotations

import enum
import errno
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nri_dranet.claims.plan import DeviceKind
from nri_dranet.netlink.model import Link

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nri_dranet.claims.plan import DevicePlan
    from nri_dranet.netlink.sockets import Reply, RtnlSocket

# IFLA_LINK is fixed for these: the peer of a veth (its index changes only if it is moved), the parent of the others. A
# VXLAN gives its own index there as soon as it is not where it was made, and its underlay apart.
_WITH_LOWER: Final = frozenset({"veth", "macvlan", "macvtap", "ipvlan", "ipvtap", "vlan", "netkit"})

_ARPHRD_INFINIBAND: Final = 32
_GUID_DIGITS: Final = len("00:11:22:33:44:55:66:77")

SPARE_INDEX: Final = 100_000
"""Added to a host index that is taken in the pod: asked for explicitly, so that nobody need look for it."""


class Place(enum.Enum):
    """Where a device is."""

    HOST = "host"
    POD = "pod"
    NOWHERE = "nowhere"


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where a device is now, and its link there; ``word`` says why it is nowhere."""

    place: Place
    link: Link | None = None
    word: str = ""


def could_be(plan: DevicePlan, link: Link, *, in_pod: bool) -> bool:
    """Tell whether all lasting facts of a link agree with the device's."""
    if plan.host is None:
        return False
    if plan.kind is DeviceKind.CHILD and in_pod:
        return _is_child(plan, link)
    own = plan.host.link
    return _fixed(own) == _fixed(link) and _agree(own, link) and _lower_agrees(own, link, in_pod=in_pod)


def _fixed(link: Link) -> tuple[object, ...]:
    return link.kind, link.type, link.parent_bus, link.parent_device, link.vlan_id, link.underlay


def _agree(own: Link, link: Link) -> bool:
    """Compare what a kernel or driver may leave untold."""
    pairs = (
        (_lasting(own), _lasting(link)),
        (own.phys_port_name, link.phys_port_name),
        (own.phys_switch_id, link.phys_switch_id),
    )
    return all(mine == other for mine, other in pairs if mine and other)


def _lasting(link: Link) -> str | None:
    """Give the part of the permanent address that lasts; of IPoIB's the GUID: the rest is a queue pair and a prefix."""
    found = link.permanent_address
    return found[-_GUID_DIGITS:] if found and link.type == _ARPHRD_INFINIBAND else found


def same_guid(link: Link, other: Link) -> bool:
    """Tell whether two links are of InfiniBand and have the same port GUID in their address."""
    return link.type == other.type == _ARPHRD_INFINIBAND and (
        link.address[-_GUID_DIGITS:] == other.address[-_GUID_DIGITS:]
    )


def _lower_agrees(own: Link, link: Link, *, in_pod: bool) -> bool:
    if own.kind not in _WITH_LOWER:
        return True
    # The other end was on the host: seen from there it is near, seen from the pod it is far.
    near = own.lower_netnsid is None and (link.lower_netnsid is None) == in_pod
    return link.lower == own.lower and not near


def is_device(plan: DevicePlan, link: Link, *, in_pod: bool, index: int = 0) -> bool:
    """Tell whether a link is the device.

    Args:
        plan: the device.
        link: the candidate.
        in_pod: where the link was seen.
        index: the index that the device is known to have there, 0 if that is not known.
    """
    enough = _needed(plan, in_pod=in_pod)
    return could_be(plan, link, in_pod=in_pod) and _evidence(plan, link, index, in_pod=in_pod) >= enough


def pick(plan: DevicePlan, links: Iterable[Link], *, in_pod: bool, index: int = 0) -> tuple[Link | None, str]:
    """Choose the device among links.

    Returns:
        The link, or None and a word where several could be it with equal right (empty: none could).
    """
    found = [link for link in links if is_device(plan, link, in_pod=in_pod, index=index)]
    if len(found) > 1:
        weights = {link.index: _evidence(plan, link, index, in_pod=in_pod) for link in found}
        found.sort(key=lambda link: weights[link.index], reverse=True)
        if weights[found[0].index] == weights[found[1].index]:
            names = ", ".join(sorted(link.name for link in found))
            where = "in the pod" if in_pod else "on the host"
            return None, f"several interfaces {where} could be it: {names}"
    return (found[0], "") if found else (None, "")


def _needed(plan: DevicePlan, *, in_pod: bool) -> int:
    """Give how much evidence beside the lasting facts tells the device from a stranger."""
    if plan.kind is DeviceKind.CHILD and in_pod:
        return 1
    own = plan.host.link if plan.host else None
    if own is None:
        return 9
    if own.parent_device or own.permanent_address:
        return 0
    # A peer is the peer of one; a macvlan's parent may have many children, and a dummy has no lasting fact at all.
    return 1 if own.kind in {"veth", "netkit"} else 2


def _evidence(plan: DevicePlan, link: Link, index: int, *, in_pod: bool) -> int:
    if plan.host is None:
        return 0
    own = plan.host.link
    if plan.kind is DeviceKind.CHILD and in_pod:
        # What is known of the parent says nothing of the child.
        named = plan.pod is not None and link.name in {plan.pod.name, spare_name(plan)}
        return named + 2 * (index != 0 and link.index == index)
    known = {own.index, own.index + SPARE_INDEX}
    # An index that the device was seen with in this very namespace is as good as two other facts.
    found = 2 if index and link.index == index else int(link.index in known)
    names = {own.name, *own.altnames} | ({plan.pod.name} if plan.pod else set())
    found += link.name in names
    addresses = {own.address} | ({plan.pod.hardware_address} if plan.pod and plan.pod.hardware_address else set())
    return found + bool(link.address and link.address in addresses)


def spare_name(plan: DevicePlan) -> str:
    """Return the name that a child has between its making and its renaming, the same one for each attach of a plan."""
    return f"drc{hashlib.sha256(f'{plan.request} {plan.key}'.encode()).hexdigest()[:8]}"


def _is_child(plan: DevicePlan, link: Link) -> bool:
    made = plan.pod.sub_interface if plan.pod else None
    if made is None or plan.host is None:
        return False
    parent = plan.host.link.index
    return (
        link.kind == made.kind
        and link.lower == parent
        and link.lower_netnsid is not None
        and (made.vlan_id is None or link.vlan_id == made.vlan_id)
    )


def link_of(reply: Reply) -> Link | None:
    """Give the link that a request for one brought, None if there is none.

    Raises:
        NetlinkError: the kernel refused to tell.
    """
    if reply.error is not None:
        if reply.error.errno == errno.ENODEV:
            return None
        raise reply.error
    return next((item for item in reply.objects if isinstance(item, Link)), None)


def find(plan: DevicePlan, host: RtnlSocket, pod: RtnlSocket | None, index: int = 0) -> Location:
    """Look for a device, where it most likely is first: by its index, then among all links.

    Args:
        plan: the device.
        host: a socket in the host's namespace.
        pod: a socket in the pod's, None if that is gone.
        index: the index that the device is known to have in the pod, 0 if that is not known.

    Raises:
        NetlinkError: the kernel refuses to tell.
    """
    if plan.host is None:
        return Location(place=Place.HOST)
    link = pod.link(index=index) if pod is not None and index else None
    if link is not None and is_device(plan, link, in_pod=True, index=index):
        return Location(place=Place.POD, link=link)
    on_host = host.link(index=plan.host.link.index)
    if on_host is not None and not is_device(plan, on_host, in_pod=False):
        on_host = None
    word = ""
    # The parent of a child is on the host in any case.
    if pod is not None and (on_host is None or plan.kind is DeviceKind.CHILD):
        link, word = pick(plan, pod.links(), in_pod=True, index=index)
        if link is not None and _peer_agrees(plan, link, host):
            return Location(place=Place.POD, link=link)
    if on_host is None:
        on_host, more = pick(plan, host.links(), in_pod=False)
        word = "; ".join(filter(None, (word, more)))
    return Location(place=Place.HOST if on_host is not None else Place.NOWHERE, link=on_host, word=word)


def _peer_agrees(plan: DevicePlan, link: Link, host: RtnlSocket) -> bool:
    """Ask the other end of a veth, which stayed on the host: does it lead to this link?"""
    if plan.host is None or link.kind not in {"veth", "netkit"} or plan.host.link.lower_netnsid is not None:
        return True
    peer = host.link(index=plan.host.link.lower)
    return peer is not None and peer.lower == link.index and peer.lower_netnsid is not None
