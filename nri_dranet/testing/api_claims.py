"""What the API server accepts as a ResourceClaim and as its status (``pkg/apis/resource/validation``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from nri_dranet.testing import api_words as words
from nri_dranet.testing.api_errors import bad, duplicate, forbidden, required, too_long, too_many, unsupported
from nri_dranet.testing.api_json import same
from nri_dranet.testing.api_slices import config_errors, selector_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nri_dranet.testing.api_errors import FieldError

_MAX_REQUESTS: Final = 32
_MAX_RESERVED: Final = 256
_MAX_CONDITIONS: Final = 8
_MAX_ADDRESSES: Final = 16
_MAX_INTERFACE: Final = 256
_MAX_HARDWARE: Final = 128
_SOURCES: Final = ("FromClaim", "FromClass")
_NO_REQUEST: Final = (
    "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'"
)
_MODES: Final = ("All", "ExactCount")

DeviceKey = tuple[str, str, str, str]


def with_defaults(spec: dict[str, Any]) -> None:
    """Fill in what the server fills in."""
    for request in (spec.get("devices") or {}).get("requests") or []:
        for part in (request.get("exactly"), *(request.get("firstAvailable") or ())):
            if part is None:
                continue
            part.setdefault("allocationMode", "ExactCount")
            if part["allocationMode"] == "ExactCount":
                part.setdefault("count", 1)


def spec_errors(claim: Mapping[str, Any], old: Mapping[str, Any] | None) -> list[FieldError]:
    """Check a claim's spec; it may not change."""
    devices = (claim.get("spec") or {}).get("devices") or {}
    requests = devices.get("requests") or []
    found: list[FieldError] = []
    if len(requests) > _MAX_REQUESTS:
        found.append(too_many("spec.devices.requests", len(requests), _MAX_REQUESTS))
    names = set()
    for number, request in enumerate(requests):
        where = f"spec.devices.requests[{number}]"
        name = request.get("name", "")
        found += words.label(f"{where}.name", name)
        if name in names:
            found.append(duplicate(where, name))
        names.add(name)
        found += _request_errors(where, request)
    found += config_errors("spec.devices", devices.get("config") or [])
    if old is not None and not same(claim.get("spec"), old.get("spec")):
        found.append(bad("spec", claim.get("spec"), "field is immutable"))
    return found


def _request_errors(where: str, request: Mapping[str, Any]) -> list[FieldError]:
    exactly, choices = request.get("exactly"), request.get("firstAvailable") or []
    if (exactly is None) == (not choices):
        why = "exactly one of `exactly` or `firstAvailable` is required"
        return [required(where, why) if exactly is None else bad(where, None, f"{why}, but multiple fields are set")]
    found: list[FieldError] = []
    parts = [(f"{where}.exactly", exactly)] if exactly is not None else []
    parts += [(f"{where}.firstAvailable[{number}]", each) for number, each in enumerate(choices)]
    for path, part in parts:
        name = part.get("deviceClassName", "")
        found += words.subdomain(f"{path}.deviceClassName", name)
        found += selector_errors(path, part)
        mode = part.get("allocationMode", "")
        if mode not in _MODES:
            found.append(unsupported(f"{path}.allocationMode", mode, _MODES))
        elif mode == "ExactCount" and part.get("count", 0) <= 0:
            found.append(bad(f"{path}.count", part.get("count", 0), "must be greater than zero"))
    return found


def allocated(claim: Mapping[str, Any]) -> set[DeviceKey]:
    """Return the devices that a claim has."""
    devices = ((claim.get("status") or {}).get("allocation") or {}).get("devices") or {}
    return {key_of(result) for result in devices.get("results") or []}


def key_of(entry: Mapping[str, Any]) -> DeviceKey:
    """Return driver, pool, device and share of a result or of a device's status."""
    return entry.get("driver", ""), entry.get("pool", ""), entry.get("device", ""), entry.get("shareID") or ""


def drop_deallocated(claim: dict[str, Any], old: Mapping[str, Any]) -> None:
    """Drop the status of devices that this change takes from the claim."""
    gone = allocated(old) - allocated(claim)
    status = claim.get("status") or {}
    if gone and status.get("devices"):
        status["devices"] = [entry for entry in status["devices"] if key_of(entry) not in gone]
        if not status["devices"]:
            del status["devices"]


def status_errors(claim: Mapping[str, Any], old: Mapping[str, Any]) -> list[FieldError]:
    """Check a claim's status."""
    status, before = claim.get("status") or {}, old.get("status") or {}
    reserved = status.get("reservedFor") or []
    found: list[FieldError] = []
    if len(reserved) > _MAX_RESERVED:
        found.append(too_many("status.reservedFor", len(reserved), _MAX_RESERVED))
    uids = set()
    for number, consumer in enumerate(reserved):
        where = f"status.reservedFor[{number}]"
        found += [required(f"{where}.{name}") for name in ("resource", "name", "uid") if not consumer.get(name)]
        if consumer.get("uid") in uids:
            found.append(duplicate(where, consumer))
        uids.add(consumer.get("uid"))
    found += _device_errors(claim)
    if reserved and "allocation" not in status:
        found.append(forbidden("status.reservedFor", "may not be specified when `allocated` is not set"))
    if "allocation" in status:
        found += _allocation_errors(status["allocation"], _request_names(claim))
        if "allocation" in before and not same(status["allocation"], before["allocation"]):
            found.append(bad("status.allocation", status["allocation"], "field is immutable"))
    return found


def _request_names(claim: Mapping[str, Any]) -> set[str]:
    """Return what a result may name: requests, and alternatives behind a slash."""
    found = set()
    for request in ((claim.get("spec") or {}).get("devices") or {}).get("requests") or []:
        choices = request.get("firstAvailable") or []
        found |= {f"{request['name']}/{choice.get('name', '')}" for choice in choices} or {request["name"]}
    return found


def _allocation_errors(allocation: Mapping[str, Any], requests: set[str]) -> list[FieldError]:
    devices = allocation.get("devices") or {}
    found: list[FieldError] = []
    for number, result in enumerate(devices.get("results") or []):
        where = f"status.allocation.devices.results[{number}]"
        if result.get("request", "") not in requests:
            found.append(bad(f"{where}.request", result.get("request", ""), _NO_REQUEST))
        found += words.driver_name(f"{where}.driver", result.get("driver", ""))
        found += words.pool_name(f"{where}.pool", result.get("pool", ""))
        found += words.device_name(f"{where}.device", result.get("device", ""))
    configs = devices.get("config") or []
    for number, config in enumerate(configs):
        where = f"status.allocation.devices.config[{number}].source"
        if not config.get("source"):
            found.append(required(where))
        elif config["source"] not in _SOURCES:
            found.append(unsupported(where, config["source"], _SOURCES))
    return found + config_errors("status.allocation.devices", configs)


def _device_errors(claim: Mapping[str, Any]) -> list[FieldError]:
    found: list[FieldError] = []
    known, seen = allocated(claim), set()
    for number, entry in enumerate((claim.get("status") or {}).get("devices") or []):
        where = f"status.devices[{number}]"
        key = key_of(entry)
        shown = {"Driver": key[0], "Pool": key[1], "Device": key[2], "ShareID": key[3]}
        if key in seen:
            found.append(duplicate(where, entry))
        seen.add(key)
        found += words.driver_name(f"{where}.driver", key[0])
        found += words.pool_name(f"{where}.pool", key[1])
        found += words.label(f"{where}.device", key[2])
        if key not in known:
            found.append(bad(where, shown, "must be an allocated device in the claim"))
        if "shareID" in entry:
            found += words.uid(f"{where}.shareID", entry["shareID"])
        found += words.conditions(f"{where}.conditions", entry.get("conditions") or [], _MAX_CONDITIONS)
        if entry.get("data") is not None:
            found += words.json_object(f"{where}.data", entry["data"])
        found += _network_errors(f"{where}.networkData", entry.get("networkData") or {})
    return found


def _network_errors(where: str, data: Mapping[str, Any]) -> list[FieldError]:
    found: list[FieldError] = []
    if words.size(data.get("interfaceName", "")) > _MAX_INTERFACE:
        found.append(too_long(f"{where}.interfaceName", _MAX_INTERFACE))
    if words.size(data.get("hardwareAddress", "")) > _MAX_HARDWARE:
        found.append(too_long(f"{where}.hardwareAddress", _MAX_HARDWARE))
    return found + words.addresses(f"{where}.ips", data.get("ips") or [], _MAX_ADDRESSES)
