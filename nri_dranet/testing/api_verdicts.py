"""What the API server accepts and refuses of this driver's objects, with its words. Pure.

Each rule was put to a real kube-apiserver (1.36 and 1.37); the table test replays those verdicts. Source of the rules:
``k8s.io/kubernetes/pkg/apis/resource/validation`` and ``k8s.io/apimachinery``.
"""

from __future__ import annotations

import ipaddress
import json
import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REASON: Final = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?")
_SEMVER: Final = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")
_KINDS: Final = ("string", "int", "bool", "version")
_STATUS_FIELDS: Final = frozenset({"driver", "pool", "device", "shareID", "conditions", "data", "networkData"})
_NETWORK_FIELDS: Final = frozenset({"interfaceName", "ips", "hardwareAddress"})
_CONDITION_FIELDS: Final = frozenset(
    {"type", "status", "reason", "message", "lastTransitionTime", "observedGeneration"}
)
_DEVICES: Final = 128
_DEVICES_GATED: Final = 64
_ATTRIBUTES: Final = 32
_TEXT: Final = 64
_IDENTIFIER_LENGTH: Final = 32
_NAME: Final = 63
_OPAQUE: Final = 10240


class InvalidError(ValueError):
    """The object is refused with 422; the text has every problem."""


class UndeclaredFieldError(ValueError):
    """An apply has a field that the schema does not know; refused as a whole."""


def check_slice(item: Mapping[str, Any]) -> None:
    """Refuse a ResourceSlice that the API server refuses.

    Raises:
        InvalidError: with every problem.
    """
    problems: list[str] = []
    devices = (item.get("spec") or {}).get("devices") or []
    gated = any(device.get("taints") or device.get("consumesCounters") for device in devices)
    limit = _DEVICES_GATED if gated else _DEVICES
    if len(devices) > limit:
        problems.append(f"spec.devices: Too many: {len(devices)}: must have at most {limit} items")
    seen: set[str] = set()
    for number, device in enumerate(devices):
        where = f"spec.devices[{number}]"
        name = str(device.get("name", ""))
        if name in seen:
            problems.append(f'{where}: Duplicate value: "{name}"')
        seen.add(name)
        problems += _device_name(name, where)
        problems += _attributes(device, where)
    _refuse("ResourceSlice", item, problems)


def check_slice_change(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse a change of what is immutable.

    Raises:
        InvalidError: with every problem.
    """
    problems = [
        f'spec.{name}: Invalid value: "{new["spec"].get(name)}": field is immutable'
        for name in ("driver", "nodeName")
        if old["spec"].get(name) != new["spec"].get(name)
    ]
    if old["spec"].get("pool", {}).get("name") != new["spec"].get("pool", {}).get("name"):
        problems.append("spec.pool.name: Invalid value: field is immutable")
    _refuse("ResourceSlice", new, problems)


def check_claim(item: Mapping[str, Any]) -> None:
    """Refuse a ResourceClaim that the API server refuses.

    Raises:
        InvalidError: with every problem.
    """
    problems = []
    for number, config in enumerate(((item.get("spec") or {}).get("devices") or {}).get("config") or []):
        where = f"spec.devices.config[{number}].opaque.parameters"
        parameters = (config.get("opaque") or {}).get("parameters")
        if not isinstance(parameters, dict):
            problems.append(f'{where}: Invalid value: "<value omitted>": must be a valid JSON object')
        elif len(json.dumps(parameters, separators=(",", ":"))) > _OPAQUE:
            problems.append(f"{where}: Too long: may not be more than {_OPAQUE} bytes")
    _refuse("ResourceClaim", item, problems)


def check_claim_change(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse a change of a claim's spec.

    Raises:
        InvalidError: with every problem.
    """
    if (old.get("spec") or {}) != (new.get("spec") or {}):
        _refuse("ResourceClaim", new, ["spec: Invalid value: field is immutable"])


def check_declared(entries: Any) -> None:
    """Refuse fields of ``status.devices`` that the schema does not declare.

    Raises:
        UndeclaredFieldError: with the path.
    """
    for entry in entries or []:
        where = ".status.devices[" + ",".join(
            f'{name}="{entry[name]}"' for name in ("device", "driver", "pool") if name in entry
        )
        for name in entry.keys() - _STATUS_FIELDS:
            raise UndeclaredFieldError(f"{where}].{name}: field not declared in schema")
        for name in (entry.get("networkData") or {}).keys() - _NETWORK_FIELDS:
            raise UndeclaredFieldError(f"{where}].networkData.{name}: field not declared in schema")
        for condition in entry.get("conditions") or []:
            for name in condition.keys() - _CONDITION_FIELDS:
                raise UndeclaredFieldError(f"{where}].conditions.{name}: field not declared in schema")


def check_status(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse a claim's status that the API server refuses.

    Raises:
        InvalidError: with every problem.
    """
    problems: list[str] = []
    status = new.get("status") or {}
    before = (old.get("status") or {}).get("allocation")
    allocation = status.get("allocation")
    if before is not None and allocation is not None and allocation != before:
        problems.append("status.allocation: Invalid value: field cannot be modified once set")
    allocated = {_keys(result) for result in ((allocation or {}).get("devices") or {}).get("results") or []}
    for number, entry in enumerate(status.get("devices") or []):
        where = f"status.devices[{number}]"
        if _keys(entry) not in allocated:
            value = dict(zip(("Driver", "Pool", "Device", "ShareID"), _keys(entry), strict=True))
            problems.append(f"{where}: Invalid value: {json.dumps(value)}: must be an allocated device in the claim")
        problems += _conditions(entry.get("conditions") or [], where)
        problems += _network_data(entry.get("networkData") or {}, f"{where}.networkData")
        problems += _data(entry, where)
    _refuse("ResourceClaim", new, problems)


def _refuse(kind: str, item: Mapping[str, Any], problems: list[str]) -> None:
    if problems:
        name = (item.get("metadata") or {}).get("name", "")
        text = problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]"
        raise InvalidError(f'{kind}.resource.k8s.io "{name}" is invalid: {text}')


def _keys(entry: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return tuple(str(entry.get(name) or "") for name in ("driver", "pool", "device", "shareID"))  # type: ignore[return-value]


def _device_name(name: str, where: str) -> list[str]:
    if len(name) > _NAME:
        return [f'{where}.name: Invalid value: "{name}": must be no more than {_NAME} characters']
    if "." in name:
        return [f'{where}.name: Invalid value: "{name}": must not contain dots']
    if not _LABEL.fullmatch(name):
        return [f'{where}.name: Invalid value: "{name}": a lowercase RFC 1123 label must consist of lower case']
    return []


def _attributes(device: Mapping[str, Any], where: str) -> list[str]:
    problems = []
    attributes = device.get("attributes") or {}
    total = len(attributes) + len(device.get("capacity") or {})
    if total > _ATTRIBUTES:
        words = f"the total number of attributes and capacities must not exceed {_ATTRIBUTES}"
        problems.append(f"{where}: Invalid value: {total}: {words}")
    for name, value in attributes.items():
        domain, slash, short = name.rpartition("/")
        at = f"{where}.attributes[{name}]"
        if not _IDENTIFIER.fullmatch(short):
            words = "a valid C identifier must start with alphabetic character or '_'"
            problems.append(f'{where}.attributes: Invalid value: "{name}": {words}')
        elif len(short) > _IDENTIFIER_LENGTH:
            problems.append(f"{where}.attributes: Too long: may not be more than {_IDENTIFIER_LENGTH} bytes")
        if slash and len(domain) > _NAME:
            problems.append(f"{where}.attributes: Too long: may not be more than {_NAME} bytes")
        given = [kind for kind in _KINDS if value.get(kind) is not None]
        if len(given) != 1 or len(value) != 1:
            problems.append(f"{at}: Invalid value: exactly one value must be specified")
            continue
        text = value[given[0]]
        if given[0] in ("string", "version") and len(str(text).encode()) > _TEXT:
            problems.append(f"{at}.{given[0]}: Too long: may not be more than {_TEXT} bytes")
        elif given[0] == "version" and not _SEMVER.fullmatch(str(text)):
            words = "must be a string compatible with semver.org spec 2.0.0"
            problems.append(f'{at}.version: Invalid value: "{text}": {words}')
    return problems


def _conditions(conditions: list[Any], where: str) -> list[str]:
    problems = []
    if len(conditions) > 8:
        problems.append(f"{where}.conditions: Too many: {len(conditions)}: must have at most 8 items")
    for number, item in enumerate(conditions):
        at = f"{where}.conditions[{number}]"
        if item.get("status") not in ("True", "False", "Unknown"):
            words = 'supported values: "False", "True", "Unknown"'
            problems.append(f'{at}.status: Unsupported value: "{item.get("status")}": {words}')
        if not item.get("lastTransitionTime"):
            problems.append(f"{at}.lastTransitionTime: Required value")
        reason = item.get("reason") or ""
        if not reason:
            problems.append(f"{at}.reason: Required value")
        elif not _REASON.fullmatch(reason):
            problems.append(f'{at}.reason: Invalid value: "{reason}": a condition reason must start with alphabetic')
        if len((item.get("message") or "").encode()) > 32768:
            problems.append(f"{at}.message: Too long: may not be more than 32768 bytes")
    return problems


def _network_data(data: Mapping[str, Any], where: str) -> list[str]:
    problems = []
    for name, limit in (("interfaceName", 256), ("hardwareAddress", 128)):
        if len(str(data.get(name) or "").encode()) > limit:
            problems.append(f"{where}.{name}: Too long: may not be more than {limit} bytes")
    addresses = data.get("ips") or []
    if len(addresses) > 16:
        problems.append(f"{where}.ips: Too many: {len(addresses)}: must have at most 16 items")
    for number, text in enumerate(addresses):
        at = f"{where}.ips[{number}]"
        if text in addresses[:number]:
            problems.append(f'{at}: Duplicate value: "{text}"')
        canonical = _canonical(str(text))
        if canonical is None:
            words = "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)"
            problems.append(f'{at}: Invalid value: "{text}": {words}')
        elif canonical != text:
            problems.append(f'{at}: Invalid value: "{text}": must be in canonical form ("{canonical}")')
    return problems


def _canonical(text: str) -> str | None:
    address, slash, prefix = text.partition("/")
    if not slash or not prefix.isdecimal() or "%" in text:
        return None
    if "." in address and ":" not in address:
        # Go's lax parser takes leading zeros here and asks for the canonical form.
        parts = address.split(".")
        if all(part.isdecimal() for part in parts):
            address = ".".join(str(int(part)) for part in parts)
    try:
        found = ipaddress.ip_interface(f"{address}/{prefix}")
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Interface) and found.ip.ipv4_mapped is not None:
        return f"{found.ip.ipv4_mapped}/{found.network.prefixlen - 96}"
    return str(found)


def _data(entry: Mapping[str, Any], where: str) -> list[str]:
    if "data" not in entry or entry["data"] is None:
        return []
    if not isinstance(entry["data"], dict):
        return [f'{where}.data: Invalid value: "<value omitted>": must be a valid JSON object']
    if len(json.dumps(entry["data"], separators=(",", ":"))) > _OPAQUE:
        return [f"{where}.data: Too long: may not be more than {_OPAQUE} bytes"]
    return []
