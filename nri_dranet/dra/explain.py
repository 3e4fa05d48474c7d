"""What would happen with a claim, in words: which value comes from where, the plan step by step, every problem."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from nri_dranet.api.errors import ConfigError, show_path
from nri_dranet.api.resolve import Resolved, given, resolve
from nri_dranet.attach import steps
from nri_dranet.attach.steps import Found
from nri_dranet.claims.plan import DeviceKind
from nri_dranet.dra.plan_lease import hardware_address
from nri_dranet.dra.plan_model import PlanError
from nri_dranet.dra.planner import config_sources, plan_claim
from nri_dranet.netlink.model import Link

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from nri_dranet.api.errors import FieldError
    from nri_dranet.claims.allocation import AllocationResult, Claim
    from nri_dranet.claims.plan import DevicePlan, HostState, PodState
    from nri_dranet.dra.plan_model import DeviceFactsIn, NodeFacts

UNKNOWN: Final = "?"
"""Stands for the device of a request that has none yet."""

FROM_HOST: Final = "the device on the host"
_MADE_UP: Final = "made from the claim"


def explain(
    claim: Claim,
    driver: str,
    devices: Mapping[str, DeviceFactsIn],
    hosts: Mapping[str, HostState],
    *,
    node: NodeFacts | None = None,
    plans: bool = True,
) -> dict[str, Any]:
    """Return what would happen with a claim as plain data.

    Args:
        claim: the claim, allocated.
        driver: the driver's name.
        devices: what is known of devices, by name.
        hosts: how their interfaces are on the host.
        node: facts of the node.
        plans: make plans too; False: only the configuration is looked at.

    Returns:
        ``claim``, ``devices`` (each with ``request``, ``device``, ``configuration`` and ``steps``), and ``errors``;
        there are steps where there are no errors.
    """
    errors: list[FieldError] = []
    planned: dict[tuple[str, str], DevicePlan] = {}
    if plans:
        try:
            made = plan_claim(claim, driver, devices, hosts, node=node)
            planned = {(plan.request, str(plan.key)): plan for plan in made.devices}
        except PlanError as error:
            errors += error.errors
    found = []
    for result in claim.results_of(driver):
        resolved = Resolved()
        try:
            resolved = resolve(config_sources(claim, result))
        except ConfigError as error:
            if not plans:
                errors += [each for each in error.errors if each not in errors]
        found.append(_device(result, resolved, planned.get((result.request, str(result.key)))))
    return {
        "claim": {"namespace": claim.ref.namespace, "name": claim.ref.name},
        "devices": found,
        "errors": [_error(error) for error in errors],
    }


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
