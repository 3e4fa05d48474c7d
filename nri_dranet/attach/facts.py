"""What the kernel shows of an interface in a pod, as facts for the status."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nri_dranet.attach import state
from nri_dranet.claims.facts import DeviceFacts, ObservedInterface, Phase
from nri_dranet.claims.plan import DeviceKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nri_dranet.claims.facts import ObservedRdma
    from nri_dranet.claims.plan import DevicePlan
    from nri_dranet.netlink.model import Address, Link


def observed(plan: DevicePlan, link: Link, addresses: Iterable[Address]) -> ObservedInterface:
    """Describe an interface of a pod: all addresses of it but the link-local ones that the kernel made by itself."""
    wanted = plan.pod.addresses if plan.pod else ()
    place = {address.address: number for number, address in enumerate(wanted)}
    present = [address for address in addresses if address.index in {0, link.index}]
    planned = sorted((each for each in present if each.address in place), key=lambda each: place[each.address])
    others = [each for each in present if each.address not in place and not state.kernel_link_local(each, link.address)]
    return ObservedInterface(
        name=link.name,
        hardware_address=link.address,
        addresses=tuple(address.cidr for address in (*planned, *others)),
        up=link.up,
        carrier=link.carrier,
        operstate=link.operstate,
        index=link.index,
        missing_addresses=tuple(address.cidr for address in state.missing_addresses(wanted, present)),
        planned=len(planned),
    )


def attached(plan: DevicePlan, interface: ObservedInterface | None, rdma: ObservedRdma | None = None) -> DeviceFacts:
    """Give the facts of a device that is in its pod."""
    if interface is None or plan.pod is None or interface.name == plan.pod.name:
        return _facts(plan, Phase.ATTACHED, interface=interface, rdma=rdma)
    message = f"the interface {plan.pod.name} is called {interface.name} now"
    return _facts(plan, Phase.ATTACHED, "Renamed", message, interface=interface, rdma=rdma)


def not_there(plan: DevicePlan, phase: Phase, reason: str, message: str) -> DeviceFacts:
    """Give the facts of a device that is not in its pod (``LOST``), or of which that is not known (``UNKNOWN``)."""
    return _facts(plan, phase, reason, message)


def _facts(
    plan: DevicePlan,
    phase: Phase,
    reason: str = "",
    message: str = "",
    *,
    interface: ObservedInterface | None = None,
    rdma: ObservedRdma | None = None,
) -> DeviceFacts:
    return DeviceFacts(
        key=plan.key,
        request=plan.request,
        phase=phase,
        reason=reason,
        message=message,
        interface=interface,
        rdma=rdma,
        label=plan.label,
        rdma_only=plan.kind is DeviceKind.RDMA,
        admin=plan.kind is DeviceKind.ADMIN,
        exclusive_rdma=plan.rdma is not None and plan.rdma.exclusive,
        lease_lost=plan.pod.lease_lost if plan.pod is not None and interface is not None else "",
    )
