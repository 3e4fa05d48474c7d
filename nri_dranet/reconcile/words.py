"""Facts and words for what the keeper does: one place where a phase becomes a fact and a refusal a sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nri_dranet.claims.facts import ClaimFacts, DeviceFacts, Phase
from nri_dranet.claims.plan import CharDevice, ClaimPlan, DeviceKind, DevicePlan

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nri_dranet.claims.model import PodRef
    from nri_dranet.claims.record import ClaimRecord


def fact(device: DevicePlan, phase: Phase, *, reason: str = "", message: str = "", step: str = "") -> DeviceFacts:
    """Return the fact that a device is in a phase."""
    return DeviceFacts(
        key=device.key,
        request=device.request,
        phase=phase,
        reason=reason,
        message=message,
        step=step,
        label=device.label,
        rdma_only=device.kind is DeviceKind.RDMA,
        admin=device.kind is DeviceKind.ADMIN,
        exclusive_rdma=device.rdma is not None and device.rdma.exclusive,
    )


def facts(plan: ClaimPlan, phase: Phase, *, reason: str = "", message: str = "") -> tuple[DeviceFacts, ...]:
    """Return the facts that all devices of a claim are in a phase."""
    return tuple(fact(device, phase, reason=reason, message=message) for device in plan.devices)


def of_record(record: ClaimRecord) -> ClaimFacts:
    """Return what is known of a claim."""
    return ClaimFacts(ref=record.ref, devices=record.facts, pod=record.holder.pod if record.holder else None)


def of_earlier_boot(record: ClaimRecord) -> ClaimFacts:
    """Return what is known of a claim of an earlier boot: no pod has its devices, whatever was said of it then."""
    text = "the node was started anew; the device is in no pod until kubelet starts its pod again"
    return ClaimFacts(ref=record.ref, devices=facts(record.plan, Phase.DETACHED, message=text))


def with_pods(
    plan: ClaimPlan, pods: Iterable[PodRef], listed_by: dict[str, tuple[str, ...]] | None = None
) -> ClaimPlan:
    """Return the plan serving these pods; ``listed_by`` None keeps what was known."""
    return replace(plan, pods=tuple(pods), listed_by=plan.listed_by if listed_by is None else listed_by)


def char_devices(plan: ClaimPlan, facts: Iterable[DeviceFacts]) -> list[tuple[str, CharDevice]]:
    """Return the character devices of a claim's RDMA devices, each with its device's receipt ID.

    Those that were seen after a move come before those of Prepare, whose numbers may have changed.
    """
    seen = {fact.key: fact.rdma.char_devices for fact in facts if fact.rdma is not None}
    return [
        (device.receipt_id, node)
        for device in plan.devices
        if device.rdma is not None
        for node in seen.get(device.key) or device.rdma.char_devices
    ]


def nodes_for(plan: ClaimPlan, facts: Iterable[DeviceFacts], container: str) -> list[CharDevice]:
    """Return the character devices of a claim that a container is to have.

    Where no container of the pod lists the claim all get them; else those that do, for the requests that they name ("":
    all). The receipt brings them to these: unless the runtime has no CDI.
    """
    listed = plan.listed_by.get(container, ()) if plan.listed_by else ("",)
    wanted = {
        device.receipt_id for device in plan.devices if not {"", device.request, device.main_request}.isdisjoint(listed)
    }
    return [node for owner, node in char_devices(plan, facts) if owner in wanted]


def mode_changes(plans: Iterable[DevicePlan], facts: Iterable[DeviceFacts]) -> list[str]:
    """Return a sentence for each RDMA device that was attached in another mode than it was prepared for."""
    exclusive = {fact.key: fact.exclusive_rdma for fact in facts}
    found = []
    for device in plans:
        if device.rdma is None or exclusive.get(device.key, device.rdma.exclusive) == device.rdma.exclusive:
            continue
        now, what = ("shared", "stays on the node") if device.rdma.exclusive else ("exclusive", "moved into the pod")
        found.append(
            f"the node's RDMA mode was switched to {now} after device {device.label} was prepared: "
            f"its RDMA device {device.rdma.link} {what}"
        )
    return found


def devices_text(plan: ClaimPlan) -> str:
    """Return the devices of a claim for a sentence."""
    return ", ".join(device.label for device in plan.devices)


def in_use(record: ClaimRecord, pod: PodRef) -> str:
    """Return why a pod cannot have a claim that another pod holds."""
    holder = record.holder.pod if record.holder else None
    return (
        f"claim {record.ref.name} ({devices_text(record.plan)}) is in use by pod {holder}, "
        f"so pod {pod} cannot have it: its devices move into one pod at a time; "
        "delete the other pod, or use a claim template"
    )
