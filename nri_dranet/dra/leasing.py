"""DHCP leases as Prepare asks for them: on the host, before the device moves, with a deadline.

kubelet waits 45 seconds for Prepare, a container runtime two for a hook. Nothing is recorded here: whoever asks again
with the same claim gets the same lease, because the client identifier is made from it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from nri_dranet.claims.plan import DeviceKind
from nri_dranet.dhcp import client
from nri_dranet.dhcp.errors import DhcpError
from nri_dranet.dhcp.link import running
from nri_dranet.dra import plan_lease
from nri_dranet.netlink.sockets import RtnlSocket
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nri_dranet.claims.model import DeviceKey
    from nri_dranet.claims.plan import ClaimPlan, DevicePlan
    from nri_dranet.claims.record import ClaimRecord
    from nri_dranet.dhcp.lease import Lease
    from nri_dranet.dra.turns import Turns
    from nri_dranet.netlink.model import Link
    from nri_dranet.netlink.namespaces import NetNs
    from nri_dranet.reconcile.namespaces import Namespaces

    Leases = Mapping[tuple[DeviceKey, str], Lease]
    """By device and request."""

LOG = logging.getLogger(__name__)

SECONDS: Final = 15.0
"""How long a Prepare waits for its leases; kubelet tries again."""

_GIVE_BACK_SECONDS: Final = 3.0
_AT_ONCE: Final = 8


def known(record: ClaimRecord | None, now: float) -> Leases:
    """Return the leases of a claim that need not be asked for again: neither lost nor due."""
    plans = [record.successor, record.plan] if record is not None else []
    found: dict[tuple[DeviceKey, str], Lease] = {}
    for plan in plans:
        for device in plan.devices if plan is not None else ():
            pod = device.pod
            if pod is not None and pod.lease is not None and not pod.lease_lost and now < pod.lease.renews:
                found.setdefault((device.key, device.request), pod.lease)
    return found


def wanting(plan: ClaimPlan) -> list[DevicePlan]:
    """Return the devices of a plan that need a lease and have none that fits."""
    return [device for device in plan.devices if not plan_lease.fits(device, plan.ref.uid)]


def check_complete(plan: ClaimPlan) -> None:
    """Refuse a plan that still lacks a lease: what a lease was asked for with has changed meanwhile.

    Raises:
        DhcpError: a device lacks one; the text names it.
    """
    if missing := ", ".join(device.label for device in wanting(plan)):
        raise DhcpError(f"device {missing} changed while its lease was asked for; kubelet tries again")


class Leasing:
    """Gets and gives back leases for devices that are on the host. Thread-safe."""

    def __init__(self, namespaces: Namespaces, turns: Turns, *, seconds: float = SECONDS) -> None:
        """Ask from here.

        Args:
            namespaces: those of pods that still hold a device which its claim's next pod gets.
            turns: held for a device that moves whole while it is asked on: nobody may take its state meanwhile.
            seconds: how long the leases of a claim are waited for.
        """
        self._namespaces = namespaces
        self._turns = turns
        self._seconds = seconds

    def acquire(self, plan: ClaimPlan, record: ClaimRecord | None) -> Leases:
        """Get the leases of all devices of a plan that want one, all at once.

        Args:
            plan: the claim's plan, without those leases.
            record: what is recorded of the claim; a device that its former pod still has is asked on there.

        Raises:
            DhcpError: a device got none in time; the text names the device. Those that others got are given back.
        """
        devices = wanting(plan)
        deadline = time.monotonic() + self._seconds
        whole = set().union(*map(turn, devices))
        if len(devices) == 1:
            with self._turns.hold(whole):
                return {(devices[0].key, devices[0].request): self._acquire(plan.ref.uid, devices[0], record, deadline)}
        with self._turns.hold(whole), ThreadPoolExecutor(min(_AT_ONCE, len(devices)), "lease") as pool:
            asked = {
                (device.key, device.request): pool.submit(self._acquire, plan.ref.uid, device, record, deadline)
                for device in devices
            }
        found = {key: future.result() for key, future in asked.items() if future.exception() is None}
        problems = [error for future in asked.values() if (error := future.exception()) is not None]
        if problems:
            self.give_back(plan, found, record)
            raise next((each for each in problems if not isinstance(each, DhcpError)), problems[0])
        return found

    def give_back(self, plan: ClaimPlan, leases: Leases, record: ClaimRecord | None) -> None:
        """Give back leases that come to nothing. Never raises: what cannot be given back ends by itself.

        Args:
            plan: the devices.
            leases: their leases.
            record: what is recorded of the claim now. A server gives who asks again the same address, so that the
                lease may be one that is in use: those are kept.
        """
        used = _addresses(record)
        for device in plan.devices:
            lease = leases.get((device.key, device.request))
            if lease is not None and device.host is not None and (device.key, lease.ip) not in used:
                with contextlib.suppress(OSError, DhcpError):
                    release(lease, device.host.link.index)

    def _acquire(self, uid: str, device: DevicePlan, record: ClaimRecord | None, deadline: float) -> Lease:
        try:
            index, netns = self._place(device, record)
            former = device.pod.lease if device.pod is not None else None
            with running(index, deadline=deadline, netns=netns):
                lease = client.acquire(
                    index,
                    hardware_address=plan_lease.hardware_address(device),
                    client_id=plan_lease.client_id(uid, device),
                    deadline=deadline,
                    netns=netns,
                    wanted=former.ip if former is not None else "",
                )
        except (DhcpError, OSError, ValueError) as error:
            # A namespace that was closed meanwhile is a ValueError.
            metrics.DHCP.labels("acquire", "failed").inc()
            raise DhcpError(f"device {device.label}, request {device.request}: {words(error)}") from error
        metrics.DHCP.labels("acquire", "ok").inc()
        LOG.info(
            "DHCP lease obtained",
            extra=fields(claim=uid, device=device.label, address=lease.address, server=lease.server),
        )
        return lease

    def _place(self, device: DevicePlan, record: ClaimRecord | None) -> tuple[int, NetNs | None]:
        """Return where a device can be asked on: its index, and the namespace (None: the host's).

        Raises:
            DhcpError: it is on its way between the two.
            OSError: the namespace cannot be opened.
        """
        host = device.host.link.index if device.host is not None else 0
        if device.kind is DeviceKind.CHILD or record is None or record.holder is None:
            return host, None
        seen = {fact.key: fact.interface for fact in record.facts}.get(device.key)
        if not any(each.key == device.key for each in record.plan.devices):
            return host, None
        netns = self._namespaces.of(record.holder)
        if seen is None or netns is None:
            raise DhcpError(f"it is still with pod {record.holder.pod}")
        return seen.index, netns


def _addresses(record: ClaimRecord | None) -> set[tuple[DeviceKey, str]]:
    """Return the devices of a claim that have a lease, each with the address."""
    plans = (record.plan, record.successor) if record is not None else ()
    devices = [device for plan in plans if plan is not None for device in plan.devices]
    return {(each.key, each.pod.lease.ip) for each in devices if each.pod is not None and each.pod.lease is not None}


def turn(device: DevicePlan) -> set[str]:
    """Return whose turn is held while a device is asked on: that of one that moves whole, whose link may be set up."""
    return set() if device.kind is DeviceKind.CHILD else {f"device {device.key.device}"}


def host_index(device: DevicePlan) -> int:
    """Return the index of a device that is on the host now, of a child its parent's.

    Raises:
        DhcpError: it is not there.
        OSError: the kernel cannot be asked.
    """
    if device.host is None:
        raise DhcpError(f"device {device.label} has no interface")
    with RtnlSocket() as socket:
        found = socket.link(name=device.host.link.name)
    if found is None or _identity(found) != _identity(device.host.link):
        raise DhcpError(f"device {device.label} is not on the host")
    return found.index


def _identity(link: Link) -> tuple[str, int, str]:
    return link.kind, link.type, link.permanent_address or link.parent_device


def release(lease: Lease, index: int) -> None:
    """Give a lease back on the host; an interface that is down is set up for it.

    Raises:
        DhcpError: the interface has no carrier.
        OSError: it is gone, or CAP_NET_RAW is missing.
    """
    try:
        with running(index, deadline=time.monotonic() + _GIVE_BACK_SECONDS):
            client.release(lease, index)
    except (DhcpError, OSError):
        metrics.DHCP.labels("release", "failed").inc()
        raise
    metrics.DHCP.labels("release", "ok").inc()


def words(error: Exception) -> str:
    """Return what is told of an error: what the kernel's word means here."""
    if isinstance(error, OSError) and error.errno in {errno.EPERM, errno.EACCES}:
        return "DHCP needs the capability NET_RAW, which this program lacks: see the chart's value capabilities"
    return str(error)
