"""RDMA devices: moved along in exclusive mode, looked at in both.

In exclusive mode an RDMA device belongs to one namespace and is named and moved from there; in shared mode every
namespace sees all, and nothing moves. Drivers without ``disassociate_ucontext`` cannot move at all (EOPNOTSUPP).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from nri_dranet.claims.facts import ObservedRdma
from nri_dranet.netlink.codec import NetlinkError
from nri_dranet.netlink.nldev import RdmaSocket

if TYPE_CHECKING:
    from nri_dranet.claims.plan import RdmaPlan
    from nri_dranet.netlink.namespaces import NetNs
    from nri_dranet.netlink.nldev import RdmaPort


def enter(plan: RdmaPlan, host: NetNs, pod: NetNs) -> None:
    """Move an RDMA device into a pod's namespace; one that is there already is left alone.

    Raises:
        NetlinkError: the kernel refuses (EBUSY: a process uses it; EOPNOTSUPP: shared mode, or a driver that cannot;
            ENODEV: it is in neither namespace).
        NoRdmaError: this kernel has no RDMA.
        OSError: no socket can be made.
    """
    _move(plan.link, host, pod)


def leave(plan: RdmaPlan, host: NetNs, pod: NetNs | None) -> None:
    """Move an RDMA device home; one that is there already is left alone.

    Raises:
        as ``enter``.
    """
    if pod is None:
        with RdmaSocket(host) as there:
            if there.device(plan.link) is None:
                raise NetlinkError(errno.ENODEV, f"find the RDMA device {plan.link} on the host")
        return
    _move(plan.link, pod, host)


def observe(plan: RdmaPlan, host: NetNs, pod: NetNs | None) -> ObservedRdma:
    """Read whether the pod sees an RDMA device, and the state of its port (the best one where it has several).

    Raises:
        NetlinkError: the kernel refuses to tell.
        NoRdmaError: this kernel has no RDMA.
        OSError: no socket can be made.
    """
    for netns in (pod, host):
        if netns is None:
            continue
        with RdmaSocket(netns) as there:
            device = there.device(plan.link)
            if device is not None:
                port = _best(there.ports(device.index))
                return ObservedRdma(
                    link=plan.link,
                    in_pod=netns is pod,
                    port_state=port.state if port else "",
                    physical_state=port.physical_state if port else "",
                )
    return ObservedRdma(link=plan.link)


def _move(name: str, source: NetNs, target: NetNs) -> None:
    with RdmaSocket(source) as there:
        device = there.device(name)
        if device is not None:
            there.move(device.index, target)
            return
    with RdmaSocket(target) as there:
        if there.device(name) is None:
            raise NetlinkError(errno.ENODEV, f"find the RDMA device {name}")


def _best(ports: list[RdmaPort]) -> RdmaPort | None:
    return max(ports, key=lambda port: port.active, default=None)
