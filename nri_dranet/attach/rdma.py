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
    found = _search(plan, host, pod)
    if found is None:
        raise NetlinkError(errno.ENODEV, f"find the RDMA device {plan.link}")
    place, device = found
    if place is host:
        with RdmaSocket(host) as there:
            there.move(device.index, pod)


def stands_on_interface(plan: RdmaPlan, sysfs: Sysfs | None = None) -> bool:
    """Tell whether an RDMA device is software on an interface, and ends when that leaves the namespace (rxe)."""
    return bool((sysfs or Sysfs()).read_text(f"class/infiniband/{plan.link}/parent"))


def leave(plan: RdmaPlan, host: NetNs, pod: NetNs | None) -> str:
    """Move an RDMA device home, from where it was renamed under its own name; one that the host sees stays.

    In shared mode that is every one. One that cannot be found is missed only if it was to be moved: a software device
    ends with the move of its interface.

    Returns:
        What could not be restored, "" for nothing: another device has its name meanwhile.

    Raises:
        as ``enter``.
    """
    found = _search(plan, host, pod)
    if found is None:
        if plan.exclusive:
            raise NetlinkError(errno.ENODEV, f"find the RDMA device {plan.link} on the host")
        return ""
    place, device = found
    if place is not host:
        with RdmaSocket(place) as away:
            away.move(device.index, host)
    if device.name == plan.link:
        return ""
    with RdmaSocket(host) as there:
        try:
            there.rename(device.index, plan.link)
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
            return f"its RDMA device {plan.link} is called {device.name} now: another one has taken its name"
    return ""


def observe(plan: RdmaPlan, host: NetNs, pod: NetNs | None, sysfs: Sysfs | None = None) -> ObservedRdma:
    """Read whether the pod sees an RDMA device, and the state of its port (the best one where it has several).

    Args:
        plan: the RDMA device.
        host: the host's namespace.
        pod: the pod's, None if that is gone.
        sysfs: where its character devices are told.

    Raises:
        NetlinkError: the kernel refuses to tell.
        NoRdmaError: this kernel has no RDMA.
        OSError: no socket can be made.
    """
    found = _search(plan, pod, host)
    if found is None:
        return ObservedRdma(link=plan.link)
    place, device = found
    with RdmaSocket(place) as there:
        port = _best(there.ports(device.index))
    return ObservedRdma(
        link=plan.link,
        in_pod=place is pod,
        port_state=port.state if port else "",
        physical_state=port.physical_state if port else "",
        char_devices=_char_devices(plan, device.name, sysfs or Sysfs()),
    )


def _search(plan: RdmaPlan, *places: NetNs | None) -> tuple[NetNs, RdmaDevice] | None:
    """Find an RDMA device in the first namespace that has it.

    It is the one with its name and GUID, else the one with its GUID, which was renamed; at last the one with
    its name, whose GUID was set anew. Another device may have taken a name that was given up.
    """
    seen: list[tuple[NetNs, list[RdmaDevice]]] = []
    for place in places:
        if place is None:
            continue
        with RdmaSocket(place) as there:
            devices = there.devices()
        for device in devices:
            if device.name == plan.link and device.node_guid == (plan.node_guid or device.node_guid):
                return place, device
        seen.append((place, devices))
    if plan.node_guid:
        for place, devices in seen:
            alike = [device for device in devices if device.node_guid == plan.node_guid]
            if len(alike) == 1:
                return place, alike[0]
    named = ((place, device) for place, devices in seen for device in devices if device.name == plan.link)
    return next(named, None)


def _char_devices(plan: RdmaPlan, name: str, sysfs: Sysfs) -> tuple[CharDevice, ...]:
    """Give the character devices as they are numbered now; mode and owner are those of the former node of the kind.

    All are looked for only if one is another's now: that costs as much as the node has RDMA devices.
    """
    if plan.char_devices and all(_is_still(one, name, sysfs) for one in plan.char_devices):
        return plan.char_devices
    former = {_kind(one.path): one for one in plan.char_devices}
    return tuple(
        _node(one.path, one.major, one.minor, former.get(_kind(one.path))) for one in sysfs.rdma_char_devices(name)
    )


def _is_still(node: CharDevice, name: str, sysfs: Sysfs) -> bool:
    now = sysfs.rdma_char_device(name, node.path.rpartition("/")[2])
    return now is not None and (now.major, now.minor) == (node.major, node.minor)


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


def _best(ports: list[RdmaPort]) -> RdmaPort | None:
    return max(ports, key=lambda port: port.active, default=None)
