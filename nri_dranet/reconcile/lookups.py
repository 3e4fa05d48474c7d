"""Small questions about plans, records and sandboxes that the keeper asks."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from nri_dranet.receipt.receipts import receipt_id

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nri_dranet.claims.model import DeviceKey
    from nri_dranet.claims.plan import ClaimPlan
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


def elsewhere(holder: Holder, sandbox: SandboxRef) -> bool:
    """Tell whether a sandbox's path means another namespace than the one that the holder's devices went into."""
    if not holder.netns_inode or not sandbox.netns_path:
        return False
    try:
        return os.stat(sandbox.netns_path).st_ino != holder.netns_inode  # noqa: PTH116 - a path of the runtime's, as text
    except OSError:
        return False


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
