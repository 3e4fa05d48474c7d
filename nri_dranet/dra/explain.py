"""What would happen with a claim, in words: which value comes from where, the plan step by step, every problem."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.api.errors import ConfigError, FieldError, show_path
from nri_dranet.api.resolve import Resolved, given, resolve
from nri_dranet.attach import steps
from nri_dranet.attach.steps import Found
from nri_dranet.claims.model import PodRef
from nri_dranet.claims.plan import DeviceKind
from nri_dranet.dra.plan_lease import hardware_address
from nri_dranet.dra.plan_model import NodeFacts, PlanError
from nri_dranet.dra.planner import config_sources, outline, plan_claim
from nri_dranet.netlink.model import Link

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from nri_dranet.claims.allocation import AllocationResult, Claim
    from nri_dranet.claims.plan import ClaimPlan, DevicePlan, HostState, PodState
    from nri_dranet.claims.record import ClaimRecord
    from nri_dranet.dra.plan_model import DeviceFactsIn

UNKNOWN: Final = "?"
"""Stands for the device of a request that has none yet."""

FROM_HOST: Final = "the device on the host"
_MADE_UP: Final = "made from the claim"


@dataclass(slots=True)
class Node:
    """What is known of a node: devices by name, how their interfaces are on the host, its other claims."""

    devices: dict[str, DeviceFactsIn] = field(default_factory=dict)
    hosts: dict[str, HostState] = field(default_factory=dict)
    facts: NodeFacts | None = None
    records: Sequence[ClaimRecord] = ()


def explain_together(claims: Sequence[Claim], driver: str, node: Node | None) -> list[dict[str, Any]]:
    """Return what would happen with the claims of one pod, prepared in this order, as plain data.

    Args:
        claims: the claims, allocated.
        driver: the driver's name.
        node: the node; None: only the configuration is looked at.

    Returns:
        Of each claim ``claim``, ``devices`` (each with ``request``, ``device``, ``configuration`` and ``steps``), and
        ``errors``; there are steps where there are no errors.
    """
    together = PodRef("", "", "explained") if len(claims) > 1 else None
    before: list[ClaimPlan] = []
    found = []
    for claim in claims:
        asked = replace(claim, pods=(*claim.pods, together)) if together is not None else claim
        told, plan = _explain(asked, driver, node, before)
        found.append(told)
        if plan is not None:
            before.append(plan)
    return found


def _explain(
    claim: Claim, driver: str, node: Node | None, before: Sequence[ClaimPlan]
) -> tuple[dict[str, Any], ClaimPlan | None]:
    errors: list[FieldError] = []
    made: ClaimPlan | None = None
    if node is not None:
        others = [*(record.plan for record in node.records), *before]
        try:
            made = plan_claim(claim, driver, node.devices, node.hosts, node=node.facts, others=others)
        except PlanError as error:
            errors += error.errors
        errors += _taken_devices(claim, driver, node, before)
    planned = {(plan.request, str(plan.key)): plan for plan in made.devices} if made and not errors else {}
    found = []
    for result in claim.results_of(driver):
        resolved = Resolved()
        try:
            resolved = resolve(config_sources(claim, result))
        except ConfigError as error:
            if node is None:
                errors += [each for each in error.errors if each not in errors]
        found.append(_device(result, resolved, planned.get((result.request, str(result.key)))))
    told = {
        "claim": {"namespace": claim.ref.namespace, "name": claim.ref.name},
        "devices": found,
        "errors": [_error(error) for error in errors],
    }
    return told, made


def _taken_devices(claim: Claim, driver: str, node: Node, before: Sequence[ClaimPlan]) -> Iterator[FieldError]:
    """Give the devices that another claim has, as the node's program would refuse them."""
    holders = {one.uid: f", which pod {one.holder.pod} holds" for one in node.records if one.holder is not None}
    others = [*(record.plan for record in node.records), *before]
    for result in claim.results_of(driver):
        device = outline(result, node.devices.get(result.device), node.facts or NodeFacts())
        for other in others:
            if any(device.excludes(theirs) for theirs in other.devices):
                text = f"is prepared for claim {other.ref}{holders.get(other.ref.uid, '')}: it cannot be in both"
                yield FieldError(f"device {result.device}", "", text, f"request {result.request}")


def _device(result: AllocationResult, resolved: Resolved, plan: DevicePlan | None) -> dict[str, Any]:
    values = [
        {"field": show_path(where), "value": _plain(value), "from": resolved.origin(where)}
        for where, value in given(resolved.config)
    ]
    found: dict[str, Any] = {"request": result.request, "device": result.device}
    if result.share_id is not None:
        found["shareID"] = result.share_id
    if plan is not None:
        found["kind"] = plan.kind.value
        values += _taken(plan, {value["field"] for value in values})
    found["configuration"] = values
    if plan is not None:
        found["steps"] = list(describe(plan))
    return found


def _taken(plan: DevicePlan, known: set[str]) -> Iterator[dict[str, Any]]:
    """Give what the configuration does not say and the plan has: from the host, or made up."""
    pod = plan.pod
    if pod is None:
        return
    if "interface.name" not in known:
        yield {"field": "interface.name", "value": pod.name, "from": FROM_HOST}
    if pod.copied_addresses:
        yield {"field": "interface.addresses", "value": [one.cidr for one in pod.addresses], "from": FROM_HOST}
    if pod.sub_interface is not None and "interface.subInterface.type" not in known:
        yield {"field": "interface.subInterface.type", "value": pod.sub_interface.kind, "from": "default"}
    if pod.hardware_address and "interface.hardwareAddr" not in known:
        yield {"field": "interface.hardwareAddr", "value": pod.hardware_address, "from": _MADE_UP}


def describe(plan: DevicePlan) -> Iterator[str]:
    """Give the steps of an attach in words, in their order."""
    if plan.kind is DeviceKind.ADMIN:
        yield "nothing: the claim has admin access, the device is reported and stays"
        return
    if plan.pod is not None and plan.host is not None:
        yield from _interface_steps(plan, plan.pod, plan.host.link)
    if plan.rdma is not None:
        if plan.rdma.exclusive:
            yield f"move the RDMA device {plan.rdma.link} into the pod"
        for node in plan.rdma.char_devices:
            yield f"give the containers {node.path} ({node.major}:{node.minor})"


def _interface_steps(plan: DevicePlan, pod: PodState, link: Link) -> Iterator[str]:
    if pod.dhcp:
        yield f"before that, in Prepare: ask a DHCP server for address and routes, as {hardware_address(plan)}"
    if pod.vrf is not None:
        yield f"make the VRF {pod.vrf.name} with table {pod.vrf.table}, unless the pod has it"
    yield from (f"set sysctl {name}={value}" for name, value in pod.namespace_sysctls.items())
    child = pod.sub_interface
    if child is not None:
        more = f" in mode {child.mode}" if child.mode else f" with VLAN {child.vlan_id}" if child.vlan_id else ""
        yield f"make the {child.kind} {pod.name} on {link.name}{more}"
        link = Link(index=link.index, name=pod.name, mtu=link.mtu, address=pod.hardware_address or "")
    else:
        yield f"move {link.name} into the pod as {pod.name}"
    if pod.detach_bpf:
        yield "remove BPF programs"
    yield from (f"set sysctl {name}={value}" for name, value in steps.files(pod).items())
    for name, on in (*pod.features.items(), *pod.private_flags.items()):
        yield f"switch {name} {'on' if on else 'off'}"
    for step in steps.configure(plan, pod, link.index, Found(link=link), vrf=1 if pod.vrf else 0):
        yield step.name


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if hasattr(value, "items"):
        return {str(name): _plain(item) for name, item in value.items()}
    return value


def _error(error: FieldError) -> dict[str, str]:
    found = {"path": error.path, "value": error.value, "message": error.message, "from": error.origin}
    return {name: text for name, text in found.items() if text}


def as_text(found: Mapping[str, Any]) -> str:
    """Return the explanation for people."""
    claim = found["claim"]
    lines = [f"Claim {claim['namespace']}/{claim['name']}"]
    for device in found["devices"]:
        share = f" (share {device['shareID']})" if "shareID" in device else ""
        name = f"device {device['device']}" if device["device"] != UNKNOWN else "not allocated"
        lines += ["", f"Request {device['request']}: {name}{share}"]
        lines += _columns(device["configuration"])
        if "steps" in device:
            lines += ["  Plan:", *(f"    {i}. {step}" for i, step in enumerate(device["steps"], 1))]
    lines += _said("Refused", [_line(error) for error in found["errors"]])
    lines += _said("Note", found.get("notes", ()))
    return "\n".join(lines) + "\n"


def _line(error: Mapping[str, str]) -> str:
    head = ": ".join(error[name] for name in ("path", "value", "message") if name in error)
    return f"{head} ({error['from']})" if "from" in error else head


def _said(title: str, texts: Iterable[str]) -> list[str]:
    listed = [f"  - {text}" for text in texts]
    return ["", f"{title}:", *listed] if listed else []


def _columns(values: Iterable[Mapping[str, Any]]) -> list[str]:
    rows = [(str(each["field"]), _shown(each["value"]), str(each["from"])) for each in values]
    if not rows:
        return ["  Configuration: none"]
    wide = max(len(row[0]) for row in rows)
    return ["  Configuration:", *(f"    {field.ljust(wide)}  {value}  ← {origin}" for field, value, origin in rows)]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(_shown(item) for item in value) or "(none)"
    if isinstance(value, dict):
        return ", ".join(f"{name}={_shown(item)}" for name, item in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)
