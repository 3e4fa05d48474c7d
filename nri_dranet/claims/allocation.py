"""A ResourceClaim of the API, reduced to what this driver needs of it.

Field names and rules: ``resource.k8s.io/v1`` ResourceClaim, ``status.allocation`` and ``status.reservedFor``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nri_dranet.claims.model import ClaimRef, DeviceKey, PodRef

POD_CLAIM_NAME = "resource.kubernetes.io/pod-claim-name"


class ClaimError(ValueError):
    """A claim of the API has not the shape that it must have; the text names the field."""


@dataclass(frozen=True, slots=True)
class AllocationResult:
    """One entry of ``status.allocation.devices.results``."""

    request: str
    driver: str
    pool: str
    device: str
    share_id: str | None = None
    admin_access: bool = False

    @property
    def key(self) -> DeviceKey:
        """The device that was allocated."""
        return DeviceKey(self.pool, self.device, self.share_id)

    @property
    def main_request(self) -> str:
        """The request without its sub-request: ``req`` of ``req/sub`` (KEP-4816)."""
        return self.request.partition("/")[0]


@dataclass(frozen=True, slots=True)
class AllocatedConfig:
    """One opaque entry of ``status.allocation.devices.config`` and its position there."""

    position: int
    source: str
    requests: tuple[str, ...]
    driver: str
    parameters: Any

    def applies_to(self, result: AllocationResult) -> bool:
        """Tell whether this configuration is bound to the request of ``result``, to its parent or to all."""
        return not self.requests or result.request in self.requests or result.main_request in self.requests


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim: identity, what was allocated, which configuration came with it, who may use it."""

    ref: ClaimRef
    allocated: bool
    results: tuple[AllocationResult, ...]
    configs: tuple[AllocatedConfig, ...]
    pods: tuple[PodRef, ...]
    other_consumers: tuple[str, ...]
    node_name: str | None
    pod_claim_name: str | None

    def results_of(self, driver: str) -> tuple[AllocationResult, ...]:
        """The results that belong to ``driver``, in the order of the allocation."""
        return tuple(result for result in self.results if result.driver == driver)

    def allocation_hash(self, driver: str) -> str:
        """A short text that changes when anything of ``driver`` in the allocation changes."""
        mine = [
            [[r.request, r.pool, r.device, r.share_id, r.admin_access] for r in self.results_of(driver)],
            [[list(c.requests), c.source, _told(c.parameters)] for c in self.configs if c.driver == driver],
        ]
        text = json.dumps(mine, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _told(value: Any) -> Any:
    """Return data with the members that were written twice beside the rest: such an allocation is another one."""
    if isinstance(value, Mapping):
        found = {name: _told(item) for name, item in value.items()}
        repeated = getattr(value, "repeated", ())
        return [found, list(repeated)] if repeated else found
    return [_told(item) for item in value] if isinstance(value, list) else value


def parse_claim(raw: Mapping[str, Any]) -> Claim:
    """Read a ResourceClaim as the API server sends it.

    Raises:
        ClaimError: a field that must be there is missing or has another type; the text names it.
    """
    meta = _object(raw, "metadata")
    status = _object(raw, "status")
    allocation = status.get("allocation")
    devices = _object(allocation, "devices") if isinstance(allocation, Mapping) else {}
    namespace = _text(meta, "namespace", "metadata")
    pods, others = [], []
    for i, consumer in enumerate(_items(status, "reservedFor")):
        where = f"status.reservedFor[{i}]"
        name, uid = _text(consumer, "name", where), _text(consumer, "uid", where)
        if consumer.get("resource") == "pods" and not consumer.get("apiGroup"):
            pods.append(PodRef(namespace, name, uid))
        else:
            others.append(f"{consumer.get('resource')} {name}")
    return Claim(
        ref=ClaimRef(namespace, _text(meta, "name", "metadata"), _text(meta, "uid", "metadata")),
        allocated=isinstance(allocation, Mapping),
        results=tuple(_result(item, i) for i, item in enumerate(_items(devices, "results"))),
        configs=tuple(_config(item, i) for i, item in enumerate(_items(devices, "config")) if "opaque" in item),
        pods=tuple(pods),
        other_consumers=tuple(others),
        node_name=_node_name(allocation) if isinstance(allocation, Mapping) else None,
        pod_claim_name=_object(meta, "annotations").get(POD_CLAIM_NAME),
    )


def _object(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = parent.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ClaimError(f"{name} of the claim is no object")
    return value


def _items(parent: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    value = parent.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise ClaimError(f"{name} of the claim is no list of objects")
    return value


def _text(parent: Mapping[str, Any], name: str, where: str) -> str:
    value = parent.get(name)
    if not isinstance(value, str) or not value:
        raise ClaimError(f"{where}.{name} of the claim is missing")
    return value


def _result(item: Mapping[str, Any], position: int) -> AllocationResult:
    where = f"status.allocation.devices.results[{position}]"
    return AllocationResult(
        request=_text(item, "request", where),
        driver=_text(item, "driver", where),
        pool=_text(item, "pool", where),
        device=_text(item, "device", where),
        share_id=item.get("shareID") or None,
        admin_access=item.get("adminAccess") is True,
    )


def _config(item: Mapping[str, Any], position: int) -> AllocatedConfig:
    where = f"status.allocation.devices.config[{position}]"
    opaque = _object(item, "opaque")
    requests = item.get("requests") or []
    return AllocatedConfig(
        position=position,
        source=str(item.get("source", "")),
        requests=tuple(str(request) for request in requests),
        driver=_text(opaque, "driver", f"{where}.opaque"),
        parameters=opaque.get("parameters"),
    )


def _node_name(allocation: Mapping[str, Any]) -> str | None:
    """The one node that the allocation is pinned to, where it is (matchFields metadata.name In [node])."""
    terms = _items(_object(allocation, "nodeSelector"), "nodeSelectorTerms")
    if len(terms) != 1:
        return None
    for field in _items(terms[0], "matchFields"):
        values = field.get("values") or []
        if field.get("key") == "metadata.name" and field.get("operator") == "In" and len(values) == 1:
            return str(values[0])
    return None
