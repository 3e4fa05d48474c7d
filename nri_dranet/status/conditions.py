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

from nri_dranet.claims.facts import DeviceFacts, Phase
from nri_dranet.status import reasons

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_MESSAGE: Final = 32768
MAX_REASON: Final = 1024
MAX_ADDRESSES: Final = 16
MAX_NAME: Final = 256
MAX_HARDWARE_ADDRESS: Final = 128

OWN_TYPES: Final = (reasons.READY, reasons.NETWORK_READY, reasons.RDMA_LINK_READY)
"""The condition types that this driver writes; all others on its entries belong to somebody else."""

_REASON: Final = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?")
_TRUE: Final = "True"
_FALSE: Final = "False"
_UNKNOWN: Final = "Unknown"

Verdict = tuple[str, str, str]
"""Status, reason and message of a condition."""


def device_status(facts: DeviceFacts, driver: str, previous: Mapping[str, Any] | None, now: datetime) -> dict[str, Any]:
    """Return the entry of ``status.devices`` for one device.

    ``lastTransitionTime`` moves only when ``status`` does, and never backwards.

    Args:
        facts: what is known of the device.
        driver: the driver's name.
        previous: the entry as it is now in the API, where there is one.
        now: the time, with a zone.
    """
    entry: dict[str, Any] = {"driver": driver, "pool": facts.key.pool, "device": facts.key.device}
    if facts.key.share_id is not None:
        entry["shareID"] = facts.key.share_id
    before = {item.get("type"): item for item in (previous or {}).get("conditions") or []}
    entry["conditions"] = [
        _condition(kind, verdict, before.get(kind), now) for kind, verdict in _verdicts(facts).items()
    ]
    data = _network_data(facts)
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
        if any(item.get(name, "") != other.get(name, "") for name in ("status", "reason", "message")):
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
    if facts.phase is Phase.ATTACHED:
        if facts.admin:
            return _TRUE, reasons.ADMIN_ACCESS, f"device {device} is reported for admin access; it is not moved"
        return _TRUE, reasons.RDMA_ONLY_READY if facts.rdma_only else reasons.DEVICE_READY, ""
    if facts.phase is Phase.PREPARED:
        return (
            _UNKNOWN,
            facts.reason or "Prepared",
            f"device {device} is prepared; the pod's sandbox has not started yet",
        )
    if facts.phase is Phase.UNKNOWN:
        return _UNKNOWN, facts.reason or "LookFailed", facts.message or f"device {device} could not be looked at"
    if facts.phase is Phase.DETACHED:
        return _FALSE, facts.reason or "Detached", facts.message or f"device {device} was given back to the node"
    defaults = {
        Phase.PREPARE_FAILED: ("PrepareFailed", f"device {device} could not be prepared"),
        Phase.ATTACH_FAILED: ("AttachFailed", f"device {device} could not be attached"),
        Phase.LOST: ("DeviceMissing", f"device {device} is not in the pod any more"),
    }
    reason, message = defaults[facts.phase]
    text = facts.message or message
    if facts.step and facts.step not in text:
        text = f"step {facts.step}: {text}"
    return _FALSE, facts.reason or reason, text


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
    if shown.missing_addresses:
        listed = ", ".join(shown.missing_addresses)
        return _FALSE, "AddressMissing", f"interface {shown.name} has lost {listed}; something in the pod removed it"
    return _TRUE, reasons.NETWORK_READY, ""


def _rdma_ready(facts: DeviceFacts, ready: Verdict) -> Verdict:
    if facts.phase is not Phase.ATTACHED:
        return ready
    if facts.rdma is not None and facts.rdma.in_pod:
        return _TRUE, reasons.RDMA_LINK_READY, ""
    link = facts.rdma.link if facts.rdma else "the RDMA link"
    return _FALSE, "RDMALinkNotInPod", f"{link} is not in the pod's namespace"


def _condition(kind: str, verdict: Verdict, before: Mapping[str, Any] | None, now: datetime) -> dict[str, Any]:
    status, reason, message = verdict
    return {
        "type": kind,
        "status": status,
        "reason": _reason(reason),
        "message": _within(message, MAX_MESSAGE),
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


def _within(text: str, limit: int) -> str:
    data = text.encode("utf-8", "replace")
    return text if len(data) <= limit else data[: limit - 3].decode("utf-8", "ignore") + "…"


# ---- network data


def _network_data(facts: DeviceFacts) -> dict[str, Any]:
    """Return name, hardware address and addresses as they are in the pod; nothing for what is not there."""
    shown = facts.interface
    if facts.phase is not Phase.ATTACHED or shown is None or facts.rdma_only:
        return {}
    data: dict[str, Any] = {"interfaceName": _within(shown.name, MAX_NAME)}
    if shown.hardware_address:
        data["hardwareAddress"] = shown.hardware_address[:MAX_HARDWARE_ADDRESS]
    addresses = canonical_addresses(shown.addresses)
    if addresses:
        data["ips"] = addresses
    return data


def canonical_addresses(cidrs: Iterable[str]) -> list[str]:
    """Return addresses in the form that the API server takes: canonical CIDR, each once, at most 16, in the same order.

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
    return list(found)[:MAX_ADDRESSES]
