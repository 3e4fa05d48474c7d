"""Small questions about plans, records and sandboxes that the keeper asks."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from nri_dranet.claims.plan import DeviceKind
from nri_dranet.receipt.receipts import receipt_id

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nri_dranet.claims.model import DeviceKey
    from nri_dranet.claims.plan import ClaimPlan, DevicePlan
    from nri_dranet.claims.record import ClaimRecord, Holder
    from nri_dranet.reconcile.sandboxes import SandboxRef


def names(plan: ClaimPlan) -> set[str]:
    """Return the names of a plan's devices."""
    return {device.key.device for device in plan.devices}


def all_names(records: Iterable[ClaimRecord]) -> set[str]:
    """Return the names of all devices of claims, those of their next allocations too."""
    plans = [plan for record in records for plan in (record.plan, record.successor) if plan is not None]
    return {device.key.device for plan in plans for device in plan.devices}


def keys(record: ClaimRecord) -> set[DeviceKey]:
    """Return the keys of a claim's devices."""
    return {device.key for device in record.plan.devices}


def may_return(device: DevicePlan) -> bool:
    """Tell whether the kernel brings a device home when the namespace that it is in ends: hardware; others end too."""
    return device.kind is DeviceKind.INTERFACE and device.host is not None and not device.host.link.kind


def elsewhere(holder: Holder, sandbox: SandboxRef) -> bool:
    """Tell whether a sandbox's path means another namespace than the one that the holder's devices went into."""
    if not holder.netns_inode or not sandbox.netns_path:
        return False
    try:
        return os.stat(sandbox.netns_path).st_ino != holder.netns_inode  # noqa: PTH116 - a path of the runtime's, as text
    except OSError:
        return False


def with_newest_leases(plan: ClaimPlan, old: ClaimRecord | None) -> ClaimPlan:
    """Give each device whose lease was prolonged since it was planned the lease as it is recorded."""
    known = {(each.key, each.request): each.pod for each in old.plan.devices if each.pod} if old else {}
    devices = []
    for device in plan.devices:
        pod, other = device.pod, known.get((device.key, device.request))
        if pod and pod.lease and other and other.lease and other.lease.address == pod.lease.address:
            newer = max(pod, other, key=lambda each: each.lease.obtained if each.lease else 0.0)
            device = replace(device, pod=replace(pod, lease=newer.lease, lease_lost=newer.lease_lost))  # noqa: PLW2901
        devices.append(device)
    return replace(plan, devices=tuple(devices))


def lease_problem(device: DevicePlan) -> str:
    """Return why the lease of a device must not be used any more, "" where it may or there is none."""
    pod = device.pod
    if pod is None or pod.lease is None:
        return ""
    if pod.lease_lost:
        return pod.lease_lost
    if pod.lease.left(time.clock_gettime(time.CLOCK_BOOTTIME)):
        return ""
    return f"the lease of {pod.lease.ip} from DHCP server {pod.lease.server} has expired"


def with_receipts(plan: ClaimPlan, old: ClaimRecord | None, driver: str) -> ClaimPlan:
    """Give each request its receipt's ID: the one that kubelet knows already, where there is one."""
    known = {device.main_request: device.receipt_id for device in old.plan.devices} if old else {}
    found: dict[str, list[str]] = {}
    for device in plan.devices:
        found.setdefault(device.main_request, []).append(device.key.device)
    identities = {
        request: known.get(request) or receipt_id(driver, plan.ref.uid, request, devices)
        for request, devices in found.items()
    }
    return replace(plan, devices=tuple(replace(d, receipt_id=identities[d.main_request]) for d in plan.devices))
