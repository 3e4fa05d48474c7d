"""RDMA devices: moved along in exclusive mode, looked at in both.

In exclusive mode an RDMA device belongs to one namespace and is named and moved from there; in shared mode every
namespace sees all, and nothing moves. Drivers without ``disassociate_ucontext`` cannot move at all (EOPNOTSUPP). The
numbers of its character devices may change at a move; the classes that tell them are shown in every namespace.
"""

from __future__ import annotations

import errno
import logging
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nri_dranet.claims.facts import ObservedRdma
from nri_dranet.claims.plan import CharDevice, DeviceKind
from nri_dranet.netlink.codec import NetlinkError
from nri_dranet.netlink.nldev import NetnsMode, NoRdmaError, RdmaSocket
from nri_dranet.sysfs import Sysfs
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from nri_dranet.claims.plan import DevicePlan, RdmaPlan
    from nri_dranet.netlink.namespaces import NetNs
    from nri_dranet.netlink.nldev import RdmaDevice, RdmaPort

LOG = logging.getLogger(__name__)

_DIGITS: Final = "0123456789"


def as_it_is(plan: DevicePlan, host: NetNs) -> DevicePlan:
    """Give a plan with the RDMA mode of now: an operator may have switched it since Prepare.

    Raises:
        NetlinkError: the kernel refuses to tell.
        OSError: no socket can be made.
    """
    if plan.rdma is None or plan.kind is DeviceKind.ADMIN:
        return plan
    try:
        with RdmaSocket(host) as there:
            exclusive = there.netns_mode() is NetnsMode.EXCLUSIVE
    except NoRdmaError:
        return plan
    if exclusive == plan.rdma.exclusive:
        return plan
    return replace(plan, rdma=replace(plan.rdma, exclusive=exclusive))


def enter(plan: RdmaPlan, host: NetNs, pod: NetNs) -> None:
    """Move an RDMA device into a pod's namespace; one that is there already is left alone.

    Raises:
        NetlinkError: the kernel refuses (EBUSY: a process uses it; EOPNOTSUPP: shared mode, or a driver that cannot;
            ENODEV: it is in neither namespace).
        NoRdmaError: this kernel has no RDMA.
        OSError: no socket can be made.
    """
    with RdmaSocket(host) as there:
        device = _find(there, plan)
        if device is not None:
            there.move(device.index, pod)
            return
    with RdmaSocket(pod) as there:
        _must_find(there, plan)


def leave(plan: RdmaPlan, host: NetNs, pod: NetNs | None) -> None:
    """Move an RDMA device home, from where it was renamed under its own name; one that the host sees stays.

    In shared mode that is every one. One that cannot be found is missed only if it was to be moved: a software device
    ends with the move of its interface.

    Raises:
        as ``enter``.
    """
    with RdmaSocket(host) as there:
        device = _find(there, plan)
        if device is None and pod is not None:
            with RdmaSocket(pod) as away:
                found = _must_find(away, plan) if plan.exclusive else _find(away, plan)
                if found is not None:
                    away.move(found.index, host)
                    device = _find(there, plan)
        if device is None and plan.exclusive:
            raise NetlinkError(errno.ENODEV, f"find the RDMA device {plan.link} on the host")
        if device is not None and device.name != plan.link:
            there.rename(device.index, plan.link)


def observe(plan: RdmaPlan, host: NetNs, pod: NetNs | None, sysfs: Sysfs | None = None) -> ObservedRdma:
    """Read whether the pod sees an RDMA device, and the state of its port (the best one where it has several).

    Args:
        plan: the RDMA device.
        host: the host's namespace.
        pod: the pod's, None if that is gone.
        sysfs: where the character devices of a device that has moved are told.

    Raises:
        NetlinkError: the kernel refuses to tell.
        NoRdmaError: this kernel has no RDMA.
        OSError: no socket can be made.
    """
    for netns in (pod, host):
        if netns is None:
            continue
        with RdmaSocket(netns) as there:
            device = _find(there, plan)
            if device is not None:
                port = _best(there.ports(device.index))
                moved = plan.exclusive and netns is pod
                return ObservedRdma(
                    link=plan.link,
                    in_pod=netns is pod,
                    port_state=port.state if port else "",
                    physical_state=port.physical_state if port else "",
                    char_devices=_char_devices(plan, device.name, sysfs or Sysfs()) if moved else (),
                )
    return ObservedRdma(link=plan.link)


def _char_devices(plan: RdmaPlan, name: str, sysfs: Sysfs) -> tuple[CharDevice, ...]:
    """Give the character devices as they are numbered now; mode and owner are those of the former node of the kind."""
    former = {_kind(one.path): one for one in plan.char_devices}
    return tuple(
        _node(one.path, one.major, one.minor, former.get(_kind(one.path))) for one in sysfs.rdma_char_devices(name)
    )


def _node(path: str, major: int, minor: int, former: CharDevice | None) -> CharDevice:
    if former is not None:
        return replace(former, path=path, major=major, minor=minor)
    try:
        seen = Path(path).stat()
    except OSError as error:
        LOG.warning("a device node is not there yet", extra=fields(path=path, error=error))
        return CharDevice(path=path, major=major, minor=minor)
    return CharDevice(
        path=path, major=major, minor=minor, mode=stat.S_IMODE(seen.st_mode), uid=seen.st_uid, gid=seen.st_gid
    )


def _kind(path: str) -> str:
    return path.rpartition("/")[2].rstrip(_DIGITS)


def _find(there: RdmaSocket, plan: RdmaPlan) -> RdmaDevice | None:
    """Find a device by its name; one that was renamed by its GUID, if no other there has the same."""
    device = there.device(plan.link)
    if device is not None or not plan.node_guid:
        return device
    alike = [one for one in there.devices() if one.node_guid == plan.node_guid]
    return alike[0] if len(alike) == 1 else None


def _must_find(there: RdmaSocket, plan: RdmaPlan) -> RdmaDevice:
    device = _find(there, plan)
    if device is None:
        raise NetlinkError(errno.ENODEV, f"find the RDMA device {plan.link}")
    return device


def _best(ports: list[RdmaPort]) -> RdmaPort | None:
    return max(ports, key=lambda port: port.active, default=None)
