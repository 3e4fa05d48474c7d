"""What a DHCP lease changes on an interface that is in a pod: the lifetime of its address, or address and routes.

The kernel leaves routes there when their address goes, unless they name it as their source.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from nri_dranet.attach import state
from nri_dranet.dra.plan_routes import RTPROT_DHCP
from nri_dranet.netlink import rtnl
from nri_dranet.netlink.sockets import RtnlSocket

if TYPE_CHECKING:
    from nri_dranet.claims.plan import PodState
    from nri_dranet.netlink.codec import Request
    from nri_dranet.netlink.model import Address
    from nri_dranet.netlink.namespaces import NetNs

_GONE: Final = frozenset({errno.EADDRNOTAVAIL, errno.ESRCH, errno.ENODEV})
_THERE: Final = frozenset({errno.EEXIST})
_FINE: Final[frozenset[int]] = frozenset()


def apply(netns: NetNs, index: int, old: PodState, new: PodState) -> None:
    """Make an interface what its plan says now; of a lost lease it keeps neither address nor routes.

    Args:
        netns: the pod's namespace.
        index: the interface there.
        old: its plan before.
        new: its plan now.

    Raises:
        NetlinkError: the kernel refuses.
        OSError: the namespace cannot be entered.
    """
    addresses, routes = ((), ()) if new.lease_lost else (new.addresses, new.routes)
    requests: list[tuple[Request, frozenset[int]]] = [
        (rtnl.delete_route(route, index), _GONE)
        for route in old.routes
        if route.protocol == RTPROT_DHCP and route not in routes
    ]
    stay = {address.cidr for address in addresses}
    requests += [(rtnl.delete_address(each, index), _GONE) for each in old.addresses if each.cidr not in stay]
    requests += [(rtnl.add_address(_with_end(each, new), index, replace=True), _FINE) for each in addresses]
    if old.lease_lost or old.routes != new.routes or old.addresses != new.addresses:
        # Configured ones too: the kernel may have taken them away with the address.
        requests += [(rtnl.add_route(state.for_link(route, index), index), _THERE) for route in routes]
    _send(netns, requests)


def _with_end(address: Address, pod: PodState) -> Address:
    return state.leased(address, pod.lease) if pod.lease is not None else address


def _send(netns: NetNs, requests: list[tuple[Request, frozenset[int]]]) -> None:
    with RtnlSocket(netns) as socket:
        replies = socket.batch([request for request, _ in requests])
    for reply, (_, fine) in zip(replies, requests, strict=True):
        if reply.error is not None and reply.error.errno not in fine:
            raise reply.error
