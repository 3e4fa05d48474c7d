"""From a claim to its plan: what shall be done with each of its devices, or every reason why it cannot be.

Pure: everything that the kernel, the inventory and the API server know comes in as plain data, so that ``explain`` can
plan a claim without touching anything.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nri_dranet.api.errors import MAX_ERRORS, ConfigError, FieldError
from nri_dranet.api.resolve import ConfigSource, Resolved, given, resolve
from nri_dranet.claims.plan import ClaimPlan, DeviceKind, DeviceLimits, DevicePlan, RdmaPlan
from nri_dranet.dra import plan_collisions
from nri_dranet.dra.plan_collisions import Planned
from nri_dranet.dra.plan_interface import plan_interface
from nri_dranet.dra.plan_model import DeviceFactsIn, NodeFacts, PlanError, Problems
from nri_dranet.dra.plan_routes import configured_routes, not_of_host

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from nri_dranet.claims.allocation import AllocatedConfig, AllocationResult, Claim
    from nri_dranet.claims.model import DeviceKey
    from nri_dranet.claims.plan import HostState
    from nri_dranet.dhcp.lease import Lease

__all__ = ["DeviceFactsIn", "NodeFacts", "PlanError", "config_sources", "plan_claim"]

FROM_CLASS = "FromClass"
"""``AllocationConfigSourceClass`` of ``resource.k8s.io/v1``."""


_SAY_NOTHING: Mapping[tuple[str | int, ...], Any] = {
    ("profile",): "",
    ("interface", "name"): "",
    ("interface", "dhcp"): False,
    ("interface", "disableEbpfPrograms"): False,
}
"""Values that ask for nothing. Every other value, also 0 and false, asks for something that needs an interface."""


def config_sources(claim: Claim, result: AllocationResult) -> list[ConfigSource]:
    """Return the configurations of a claim that apply to a result, the most general first.

    The device class comes before the claim; within the claim what is for all requests comes before what is for the
    request, and that before what is for the sub-request. Among equals the allocation's order decides.
    """

    def rank(config: AllocatedConfig) -> tuple[int, int, int]:
        if config.source == FROM_CLASS:
            return 0, 0, config.position
        if not config.requests:
            return 1, 0, config.position
        return 1, 2 if "/" in result.request and result.request in config.requests else 1, config.position

    applying = [config for config in claim.configs if config.driver == result.driver and config.applies_to(result)]
    return [ConfigSource(_origin(config), config.parameters) for config in sorted(applying, key=rank)]


def _origin(config: AllocatedConfig) -> str:
    source = "device class" if config.source == FROM_CLASS else "claim"
    return f"{source}, config[{config.position}] of the allocation"


def plan_claim(
    claim: Claim,
    driver: str,
    devices: Mapping[str, DeviceFactsIn],
    hosts: Mapping[str, HostState],
    *,
    node: NodeFacts | None = None,
    others: Iterable[ClaimPlan] = (),
    listed_by: Mapping[str, tuple[str, ...]] | None = None,
    leases: Mapping[tuple[DeviceKey, str], Lease] | None = None,
) -> ClaimPlan:
    """Plan all devices of a claim that belong to ``driver``, in the order of the allocation.

    Args:
        claim: the claim, allocated.
        driver: this driver's name; results of others are passed over.
        devices: what the inventory knows, by device name.
        hosts: how the interfaces are on the host, by device name.
        node: the node's policy rules and RDMA mode.
        others: plans of other claims; those that share a pod or a device with this one are checked against it.
        listed_by: which containers list which requests of the claim, where that is known.
        leases: by device and request what DHCP servers gave; a device that lacks one is planned without an address.

    Raises:
        PlanError: with every problem of every device, up to the device with which there are more than a message lists.
    """
    node = node or NodeFacts()
    errors: list[FieldError] = []
    unlisted = 0
    resolved: dict[tuple[str, ...], Resolved | None] = {}
    own: list[tuple[Planned, Problems]] = []
    for result in claim.results_of(driver):
        sources = config_sources(claim, result)
        key = tuple(source.origin for source in sources)
        if key not in resolved and len(errors) >= MAX_ERRORS:
            break
        if key not in resolved:
            try:
                resolved[key] = resolve(sources)
            except ConfigError as error:
                errors += error.errors
                unlisted += error.unlisted
                resolved[key] = None
        config = resolved[key]
        device, host = devices.get(result.device), hosts.get(result.device)
        if config is None:
            problems = Problems(result, _label(result, device, host), Resolved())
            _check_device(result, device, _kind(result, device), problems)
            errors += problems.errors
        else:
            draft = _plan(result, config, device, host, node, lease=(leases or {}).get((result.key, result.request)))
            plan = _with_address(draft.plan, claim.ref.uid)
            own.append((Planned(plan, draft.problems.who, _configured(plan, config)), draft.problems))
    others = list(others)
    neighbours = list(_of_same_pods(claim, others))
    plan_collisions.check(own, neighbours)
    plan_collisions.check_siblings(own, _children(claim, others))
    errors += [error for _, problems in own for error in problems.errors]
    if errors:
        raise PlanError(errors, unlisted)
    return ClaimPlan(
        ref=claim.ref,
        allocation_hash=claim.allocation_hash(driver),
        devices=tuple(plan_collisions.without_repeats([planned for planned, _ in own], neighbours)),
        pods=claim.pods,
        pod_claim_name=claim.pod_claim_name,
        listed_by=dict(listed_by or {}),
    )


@dataclass(frozen=True, slots=True)
class _Draft:
    plan: DevicePlan
    problems: Problems


def _plan(
    result: AllocationResult,
    resolved: Resolved,
    device: DeviceFactsIn | None,
    host: HostState | None,
    node: NodeFacts,
    *,
    lease: Lease | None,
) -> _Draft:
    problems = Problems(result, _label(result, device, host), resolved)
    kind = _kind(result, device)
    plan = DevicePlan(
        key=result.key,
        request=result.request,
        kind=kind,
        host=None if kind is DeviceKind.ADMIN else host,
        rdma=_rdma(kind, device, node),
        pci_address=device.pci_address if device else None,
        published=dict(device.published) if device else {},
        limits=device.limits if device else DeviceLimits(),
    )
    _check_device(result, device, kind, problems)
    if device is None or kind is DeviceKind.ADMIN:
        return _Draft(plan, problems)
    if kind is DeviceKind.RDMA:
        _refuse_network_fields(resolved, problems)
    elif host is None:
        problems.device("has a network interface, but that could not be read on the host")
    else:
        plan = replace(plan, pod=plan_interface(resolved.config, device, host, node, problems, lease=lease))
    return _Draft(plan, problems)


def outline(result: AllocationResult, device: DeviceFactsIn | None, node: NodeFacts) -> DevicePlan:
    """Return as much of a plan as tells whether another claim can have the device too."""
    kind = _kind(result, device)
    return DevicePlan(key=result.key, request=result.request, kind=kind, rdma=_rdma(kind, device, node))


def _with_address(plan: DevicePlan, uid: str) -> DevicePlan:
    """Give a macvlan a hardware address of its own (locally administered), the same in each sandbox of its claim.

    The kernel would make one up each time. In mode passthru it is the parent's.
    """
    pod = plan.pod
    child = pod.sub_interface if pod is not None else None
    if pod is None or child is None or child.kind != "macvlan" or child.mode == "passthru" or pod.hardware_address:
        return plan
    first, *rest = hashlib.sha256(f"{uid} {plan.request} {plan.key}".encode()).digest()[:6]
    return replace(plan, pod=replace(pod, hardware_address=bytes([first & 0xFC | 0x02, *rest]).hex(":")))


def _label(result: AllocationResult, device: DeviceFactsIn | None, host: HostState | None) -> str:
    """Return the name that users know a device by: its interface's on the host, else the published one."""
    link = host.link if host else device.link if device else None
    return link.name if link else result.device


def _kind(result: AllocationResult, device: DeviceFactsIn | None) -> DeviceKind:
    if result.admin_access:
        return DeviceKind.ADMIN
    if device is not None and device.shared:
        return DeviceKind.CHILD
    if device is not None and device.link is None:
        return DeviceKind.RDMA
    return DeviceKind.INTERFACE


def _rdma(kind: DeviceKind, device: DeviceFactsIn | None, node: NodeFacts) -> RdmaPlan | None:
    if device is None or device.rdma is None or kind not in {DeviceKind.INTERFACE, DeviceKind.RDMA}:
        return None
    return RdmaPlan(
        link=device.rdma,
        exclusive=node.rdma_exclusive,
        node_guid=device.rdma_guid,
        char_devices=device.char_devices,
    )


def _check_device(result: AllocationResult, device: DeviceFactsIn | None, kind: DeviceKind, problems: Problems) -> None:
    if device is None:
        problems.device("is not on this node, or not any more")
        return
    if kind is DeviceKind.ADMIN:
        return
    if device.refused:
        problems.device(f"cannot be given to a pod: {device.refused}")
    elif kind is DeviceKind.INTERFACE and device.link is not None and device.link.netns_immutable:
        problems.device("cannot be given to a pod: the kernel does not let it leave the host's network namespace")
    if result.share_id is not None and not device.shared:
        problems.device(f"was allocated as a share ({result.share_id}), but is not shared on this node any more")
    if kind is DeviceKind.RDMA and _published_with_interface(device):
        # An RDMA NIC whose interface is in a pod looks like one that never had an interface.
        problems.device("has no interface on the host now: another pod may still have it")
    elif kind is DeviceKind.RDMA and device.rdma is None:
        problems.device("has neither a network interface nor an RDMA device on the host now")


def _published_with_interface(device: DeviceFactsIn) -> bool:
    attributes = device.published.get("attributes") or {}
    return any(str(name).rpartition("/")[2] == "ifName" for name in attributes)


def _refuse_network_fields(resolved: Resolved, problems: Problems) -> None:
    for where, value in given(resolved.config):
        if value != () and (where not in _SAY_NOTHING or value != _SAY_NOTHING[where]):
            shown = None if isinstance(value, tuple | list) else value
            problems.field(where, shown, "must be left out: the device has no network interface, it is for RDMA alone")


def _configured(plan: DevicePlan, resolved: Resolved) -> frozenset[tuple[str, int]]:
    vrf = plan.pod.vrf.table if plan.pod and plan.pod.vrf else None
    return frozenset((route.destination, route.table) for route in configured_routes(resolved.config, vrf))


def _children(claim: Claim, others: Iterable[ClaimPlan]) -> Iterator[Planned]:
    for other in others:
        if other.ref.uid != claim.ref.uid:
            for plan in other.devices:
                if plan.kind is DeviceKind.CHILD:
                    yield Planned(plan, f"device {plan.label}, request {plan.request}, of claim {other.ref}")


def _of_same_pods(claim: Claim, others: Iterable[ClaimPlan]) -> Iterator[Planned]:
    pods = {pod.uid for pod in claim.pods}
    for other in others:
        if other.ref.uid != claim.ref.uid and pods & {pod.uid for pod in other.pods}:
            for plan in other.devices:
                who = f"device {plan.label}, request {plan.request}, of claim {other.ref.name}"
                yield Planned(plan, who, not_of_host(plan.pod, plan.host) if plan.pod else frozenset())
