"""From facts to what the claim's status says about a device (KEP-4817). Pure.

The contract is the user's: ``Ready`` with reason ``NetworkDeviceReady``, ``NetworkReady``, and ``RDMALinkReady``
where an RDMA link moves. Limits are those of ``resource.k8s.io/v1`` AllocatedDeviceStatus and of
``metav1.Condition``.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.claims.facts import DeviceFacts, ObservedInterface, ObservedRdma, Phase, addresses_to_show
from nri_dranet.status import reasons
from nri_dranet.text import within_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_MESSAGE: Final = 32768
MAX_REASON: Final = 1024
MAX_NAME: Final = 256
MAX_HARDWARE_ADDRESS: Final = 128
MAX_CONDITIONS: Final = 8

OWN_TYPES: Final = (reasons.READY, reasons.NETWORK_READY, reasons.RDMA_LINK_READY)
"""The condition types that this driver writes; all others on its entries belong to somebody else."""

_REASON: Final = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?")
_TRUE: Final = "True"
_FALSE: Final = "False"
_UNKNOWN: Final = "Unknown"
_ACTIVE: Final = frozenset({"ACTIVE", "ACTIVE_DEFER"})

Verdict = tuple[str, str, str]
"""Status, reason and message of a condition."""


def device_status(facts: DeviceFacts, driver: str, previous: Mapping[str, Any] | None, now: datetime) -> dict[str, Any]:
    """Return the entry of ``status.devices`` for one device.

    ``lastTransitionTime`` moves only when ``status`` does, and never backwards. Conditions of other types are not in
    the entry: they belong to other managers. Where those have taken the room (8 conditions for an entry), the last of
    ours are left out.

    Args:
        facts: what is known of the device.
        driver: the driver's name.
        previous: the entry as it is now, where there is one.
        now: the time, with a zone.
    """
    entry: dict[str, Any] = {"driver": driver, "pool": facts.key.pool, "device": facts.key.device}
    if facts.key.share_id is not None:
        entry["shareID"] = facts.key.share_id
    present = (previous or {}).get("conditions") or []
    before = {item.get("type"): item for item in present}
    room = MAX_CONDITIONS - sum(item.get("type") not in OWN_TYPES for item in present)
    conditions = [_condition(kind, verdict, before.get(kind), now) for kind, verdict in _verdicts(facts).items()]
    entry["conditions"] = conditions[: max(0, room)]
    shown = ((previous or {}).get("networkData") or {}).get("ips") or []
    data = _network_data(facts, shown)
    if data:
        entry["networkData"] = data
    return entry


def same(wanted: Mapping[str, Any], present: Mapping[str, Any] | None) -> bool:
    """Tell whether the entry in the API says already what is wanted; other managers' conditions do not count."""
    if present is None:
        return False
    conditions = {item.get("type"): item for item in present.get("conditions") or [] if item.get("type") in OWN_TYPES}
    if conditions.keys() != {item["type"] for item in wanted["conditions"]}:
        return False
    for item in wanted["conditions"]:
        other = conditions[item["type"]]
        if any(item[name] != (other.get(name) or "") for name in item):
            return False
    return (wanted.get("networkData") or {}) == (present.get("networkData") or {})


# ---- verdicts


def _verdicts(facts: DeviceFacts) -> dict[str, Verdict]:
    """Return the verdict of each condition that the device has."""
    ready = _ready(facts)
    found = {reasons.READY: ready}
    if facts.admin:
        return found
    if not facts.rdma_only:
        found[reasons.NETWORK_READY] = _network_ready(facts, ready)
    if facts.exclusive_rdma:
        found[reasons.RDMA_LINK_READY] = _rdma_ready(facts, ready)
    return found


def _ready(facts: DeviceFacts) -> Verdict:
    device = facts.label or facts.key.device
    status, reason, message = {
        Phase.PREPARED: (_UNKNOWN, "Prepared", f"device {device} is prepared; the pod's sandbox has not started yet"),
        Phase.PREPARE_FAILED: (_FALSE, "PrepareFailed", f"device {device} could not be prepared"),
        Phase.ATTACHED: (_TRUE, "", ""),
        Phase.ATTACH_FAILED: (_FALSE, "AttachFailed", f"device {device} could not be attached"),
        Phase.LOST: (_FALSE, "DeviceMissing", f"device {device} is not in the pod any more"),
        Phase.UNKNOWN: (_UNKNOWN, "LookFailed", f"device {device} could not be looked at"),
        Phase.DETACHED: (_FALSE, "Detached", f"device {device} was given back to the node"),
    }[facts.phase]
    if facts.phase is Phase.ATTACHED:
        return _ready_in_pod(facts, device)
    message = facts.message or message
    if facts.phase is Phase.ATTACH_FAILED:
        if facts.step and facts.step not in message:
            message = f"{facts.step}: {message}"
        if device not in message:
            message = f"device {device}: {message}"
    return status, facts.reason or reason, message


def _ready_in_pod(facts: DeviceFacts, device: str) -> Verdict:
    if facts.admin:
        return _TRUE, reasons.ADMIN_ACCESS, f"device {device} is reported for admin access; it is not moved"
    if facts.rdma_only:
        # With a link that is moved, RDMALinkReady speaks of the port.
        down = "" if facts.exclusive_rdma else _port_down(facts.rdma)
        return (_FALSE, "RDMAPortDown", down) if down else (_TRUE, reasons.RDMA_ONLY_READY, "")
    if facts.reason == reasons.RENAMED:
        return _TRUE, reasons.RENAMED, facts.message
    return _TRUE, reasons.DEVICE_READY, ""


def _network_ready(facts: DeviceFacts, ready: Verdict) -> Verdict:
    shown = facts.interface
    if facts.phase is not Phase.ATTACHED:
        return ready
    if shown is None:
        return _UNKNOWN, "LookFailed", "the interface was not seen in the pod yet"
    if not shown.up:
        return _FALSE, "LinkDown", f"interface {shown.name} is down in the pod; set it up there"
    if shown.carrier is False:
        return _FALSE, "NoCarrier", f"interface {shown.name} has no carrier: look at cable, switch port or peer"
    return _addresses_there(facts, shown)


def _addresses_there(facts: DeviceFacts, shown: ObservedInterface) -> Verdict:
    if facts.lease_lost:
        text = f"interface {shown.name} has no DHCP lease, a new one is asked for: {facts.lease_lost}"
        return _FALSE, "LeaseLost", text
    if shown.missing_addresses:
        listed = ", ".join(shown.missing_addresses)
        return _FALSE, "AddressMissing", f"interface {shown.name} has lost {listed}; something in the pod removed it"
    return _TRUE, reasons.NETWORK_READY, ""


def _rdma_ready(facts: DeviceFacts, ready: Verdict) -> Verdict:
    if facts.phase is not Phase.ATTACHED:
        return ready
    if facts.rdma is None or not facts.rdma.in_pod:
        link = f"RDMA link {facts.rdma.link}" if facts.rdma else "the RDMA link"
        return _FALSE, "RDMALinkNotInPod", f"{link} is not in the pod's namespace"
    down = _port_down(facts.rdma)
    return (_FALSE, "RDMAPortDown", down) if down else (_TRUE, reasons.RDMA_LINK_READY, "")


def port_is_down(state: str) -> bool:
    """Tell whether an RDMA port does not work, by the kernel's word for its state; "" is not known, and not down."""
    return bool(state) and state.upper() not in _ACTIVE


def _port_down(rdma: ObservedRdma | None) -> str:
    """Say what is wrong with the RDMA port; "" where nothing is, or nothing is known."""
    if rdma is None or not port_is_down(rdma.port_state):
        return ""
    physical = f", physically {rdma.physical_state}" if rdma.physical_state else ""
    return f"the port of RDMA link {rdma.link} is {rdma.port_state}{physical}: look at cable, switch or subnet manager"


def _condition(kind: str, verdict: Verdict, before: Mapping[str, Any] | None, now: datetime) -> dict[str, Any]:
    status, reason, message = verdict
    return {
        "type": kind,
        "status": status,
        "reason": _reason(reason),
        "message": within_bytes(message, MAX_MESSAGE),
        "lastTransitionTime": _transition(status, before, now),
    }


def _transition(status: str, before: Mapping[str, Any] | None, now: datetime) -> str:
    """The time of the last change of status: kept while it is the same, and never earlier than the one before."""
    stamp = _stamp(now)
    last = str((before or {}).get("lastTransitionTime") or "")
    if before is None or not last:
        return stamp
    return last if before.get("status") == status else max(last, stamp)


def _stamp(now: datetime) -> str:
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _reason(text: str) -> str:
    cleaned = re.sub(r"[^A-Za-z0-9_,:]", "", text)[:MAX_REASON].strip("_,:0123456789") or "Unspecified"
    return text if len(text) <= MAX_REASON and _REASON.fullmatch(text) else cleaned


# ---- network data


def _network_data(facts: DeviceFacts, shown: Iterable[str]) -> dict[str, Any]:
    """Return name, hardware address and addresses as they are in the pod; nothing for what is not there."""
    seen = facts.interface
    if facts.phase is not Phase.ATTACHED or seen is None or facts.rdma_only:
        return {}
    # The API server keeps no empty text.
    data: dict[str, Any] = {"interfaceName": within_bytes(seen.name, MAX_NAME)} if seen.name else {}
    if seen.hardware_address:
        data["hardwareAddress"] = within_bytes(seen.hardware_address, MAX_HARDWARE_ADDRESS)
    planned = canonical_addresses(seen.addresses[: seen.planned])
    addresses = addresses_to_show(canonical_addresses(seen.addresses), planned, shown)
    if addresses:
        data["ips"] = addresses
    return data


def canonical_addresses(cidrs: Iterable[str]) -> list[str]:
    """Return addresses in the form that the API server takes: canonical CIDR, each once, in the same order.

    An IPv4 address mapped into IPv6 becomes plain IPv4; a zone is cut off; what is no address is left out.
    """
    found: dict[str, None] = {}
    for cidr in cidrs:
        address, slash, prefix = cidr.partition("/")
        try:
            interface = ipaddress.ip_interface(address.partition("%")[0] + slash + prefix)
        except ValueError:
            continue
        mapped = interface.ip.ipv4_mapped if isinstance(interface, ipaddress.IPv6Interface) else None
        if mapped is not None:
            length = interface.network.prefixlen - 96
            if length < 0:
                continue
            found[f"{mapped}/{length}"] = None
        else:
            found[str(interface)] = None
    return list(found)
