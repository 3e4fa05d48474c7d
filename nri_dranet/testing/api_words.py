"""Checks of single values, with the words of the API server (``k8s.io/apimachinery/pkg/util/validation``)."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.testing.api_errors import bad, duplicate, required, too_long, too_many, unsupported
from nri_dranet.testing.api_json import RawJson, canonical

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nri_dranet.testing.api_errors import FieldError

MAX_PARAMETERS: Final = 10240

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAME: Final = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_REASON: Final = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?")
_SEMVER: Final = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(-((0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
    r"(\+([0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*))?",
    re.ASCII,
)
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAX_LABEL: Final = 63
_MAX_SUBDOMAIN: Final = 253
_MAX_IDENTIFIER: Final = 32

_LABEL_WORDS: Final = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    "an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_SUBDOMAIN_WORDS: Final = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_IDENTIFIER_WORDS: Final = (
    "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters "
    "or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')"
)
_QUALIFIED_WORDS: Final = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
_REASON_WORDS: Final = (
    "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric "
    "characters or '_,:', and must end with an alphanumeric character or '_' (e.g. 'my_name',  or 'MY_NAME',  or "
    "'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for validation is "
    "'[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')"
)
_IP_WORDS: Final = "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)"

_CONDITION_STATUS: Final = ("False", "True", "Unknown")
_MAX_REASON: Final = 1024
_MAX_MESSAGE: Final = 32768


def size(text: str) -> int:
    """Return the bytes of a text."""
    return len(text.encode())


def label(path: str, value: str) -> list[FieldError]:
    """Check a DNS label."""
    if size(value) > _MAX_LABEL:
        return [bad(path, value, f"must be no more than {_MAX_LABEL} characters")]
    return [] if _LABEL.fullmatch(value) else [bad(path, value, _LABEL_WORDS)]


def device_name(path: str, value: str) -> list[FieldError]:
    """Check a device's name: a DNS label."""
    return [bad(path, value, "must not contain dots")] if "." in value else label(path, value)


def subdomain(path: str, value: str, limit: int = _MAX_SUBDOMAIN) -> list[FieldError]:
    """Check a DNS subdomain."""
    if not value:
        return [required(path)]
    if size(value) > limit:
        return [too_long(path, limit)]
    return [] if _SUBDOMAIN.fullmatch(value) else [bad(path, value, _SUBDOMAIN_WORDS)]


def driver_name(path: str, value: str) -> list[FieldError]:
    """Check a driver's name: a DNS subdomain of at most 63 bytes; upper case is tolerated."""
    if value and value != value.lower() and _SUBDOMAIN.fullmatch(value.lower()):
        value = value.lower()
    return subdomain(path, value, _MAX_LABEL)


def pool_name(path: str, value: str) -> list[FieldError]:
    """Check a pool's name: DNS subdomains joined by slashes."""
    if not value:
        return [required(path)]
    if size(value) > _MAX_SUBDOMAIN:
        return [too_long(path, _MAX_SUBDOMAIN)]
    return [error for part in value.split("/") for error in subdomain(path, part)]


def qualified_key(path: str, value: str) -> list[FieldError]:
    """Check the name of an attribute or capacity: an identifier, after a domain and a slash or without."""
    domain, slash, name = value.rpartition("/")
    found: list[FieldError] = []
    if slash:
        found += subdomain(path, domain, _MAX_LABEL) if domain else [bad(path, "", "the domain must not be empty")]
    if slash and not name:
        return [*found, bad(path, "", "the name must not be empty")]
    if size(name) > _MAX_IDENTIFIER:
        return [*found, too_long(path, _MAX_IDENTIFIER)]
    return found if _IDENTIFIER.fullmatch(name) else [*found, bad(path, value, _IDENTIFIER_WORDS)]


def label_key(path: str, value: str) -> list[FieldError]:
    """Check a key in the form of a label's key."""
    prefix, slash, name = value.rpartition("/")
    if slash and (not prefix or subdomain(path, prefix)):
        return [bad(path, value, f"prefix part {_SUBDOMAIN_WORDS}")]
    if not name or size(name) > _MAX_LABEL:
        why = "name part must be no more than 63 characters" if name else "name part must be non-empty"
        return [bad(path, value, why)]
    return [] if _NAME.fullmatch(name) else [bad(path, value, _QUALIFIED_WORDS)]


def label_value(path: str, value: str) -> list[FieldError]:
    """Check a value in the form of a label's value."""
    if size(value) <= _MAX_LABEL and (not value or _NAME.fullmatch(value)):
        return []
    return [
        bad(path, value, "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.'")
    ]


def version(path: str, value: str) -> list[FieldError]:
    """Check a semantic version."""
    ok = _SEMVER.fullmatch(value)
    return [] if ok else [bad(path, value, "must be a string compatible with semver.org spec 2.0.0")]


def uid(path: str, value: str) -> list[FieldError]:
    """Check a UID."""
    if _UUID.fullmatch(value):
        return []
    return [bad(path, value, "must be a lowercase UUID in 8-4-4-4-12 format")]


def json_object(path: str, value: Any) -> list[FieldError]:
    """Check a raw extension: a JSON object of at most 10 KiB."""
    if value is None:
        return [required(path)]
    raw = value.raw if isinstance(value, RawJson) else canonical(value)
    if size(raw) > MAX_PARAMETERS:
        return [too_long(path, MAX_PARAMETERS)]
    return [] if isinstance(value, dict) else [bad(path, "<value omitted>", "must be a valid JSON object")]


def canonical_address(text: str) -> str | None:
    """Return the canonical form of an address with its prefix; None where it is no address."""
    address, slash, prefix = text.partition("/")
    if not slash or not prefix.isascii() or not prefix.isdigit() or "%" in address:
        return None
    if ":" not in address:
        # The server's parser takes leading zeros, its check of the form does not.
        octets = address.split(".")
        if not all(part.isascii() and part.isdigit() for part in octets):
            return None
        address = ".".join(str(int(part)) for part in octets)
    try:
        found = ipaddress.ip_interface(f"{address}/{int(prefix)}")
    except ValueError:
        return None
    mapped = found.ip.ipv4_mapped if isinstance(found, ipaddress.IPv6Interface) else None
    if mapped is not None:
        return f"{mapped}/{max(found.network.prefixlen - 96, 0)}"
    return str(found)


def addresses(path: str, values: Sequence[str], limit: int) -> list[FieldError]:
    """Check a list of addresses with prefixes."""
    found = [too_many(path, len(values), limit)] if len(values) > limit else []
    seen = set()
    for number, text in enumerate(values):
        where = f"{path}[{number}]"
        form = canonical_address(text)
        if form is None:
            found.append(bad(where, text, _IP_WORDS))
        elif form != text:
            found.append(bad(where, text, f'must be in canonical form ("{form}")'))
        if text in seen:
            found.append(duplicate(where, text))
        seen.add(text)
    return found


def conditions(path: str, values: Sequence[dict[str, Any]], limit: int) -> list[FieldError]:
    """Check a list of conditions (``metav1.Condition``)."""
    found = [too_many(path, len(values), limit)] if len(values) > limit else []
    seen = set()
    for number, condition in enumerate(values):
        where = f"{path}[{number}]"
        kind = condition.get("type", "")
        found += label_key(f"{where}.type", kind) if kind else [required(f"{where}.type", "is required")]
        if kind in seen:
            found.append(duplicate(f"{where}.type", kind))
        seen.add(kind)
        found += _condition(where, condition)
    return found


def _condition(where: str, condition: dict[str, Any]) -> list[FieldError]:
    found: list[FieldError] = []
    if condition.get("status") not in _CONDITION_STATUS:
        found.append(unsupported(f"{where}.status", condition.get("status"), _CONDITION_STATUS))
    if not condition.get("lastTransitionTime"):
        found.append(required(f"{where}.lastTransitionTime"))
    if condition.get("observedGeneration", 0) < 0:
        text = "must be greater than or equal to zero"
        found.append(bad(f"{where}.observedGeneration", condition["observedGeneration"], text))
    reason, message = condition.get("reason") or "", condition.get("message") or ""
    if not reason:
        found.append(required(f"{where}.reason"))
    else:
        if not _REASON.fullmatch(reason):
            found.append(bad(f"{where}.reason", reason, _REASON_WORDS))
        if size(reason) > _MAX_REASON:
            found.append(too_long(f"{where}.reason", _MAX_REASON))
    if size(message) > _MAX_MESSAGE:
        found.append(too_long(f"{where}.message", _MAX_MESSAGE))
    return found
