"""How the entries get to the API server: server-side apply, and the second way where that is refused.

``status.allocation`` repeats the claim's opaque parameters. If those are not compact JSON with sorted keys, the API
server refuses every server-side apply on the status, because it takes its own re-encoding for a change of the
allocation. A JSON merge patch of ``status.devices`` works in most of these cases. A claim stays on the way that
worked first.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.kube.client import APPLY, BAD_ANSWER, MERGE, ApiError, KubeClient
from nri_dranet.kube.resources import claim_path, claim_status_path
from nri_dranet.status.conditions import same
from nri_dranet.status.desired import Desired, key_of, merged, present_entries
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nri_dranet.claims.model import ClaimRef

LOG = logging.getLogger(__name__)

_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404
_CONFLICT: Final = 409
_INVALID: Final = 422
_MAX_MANAGER: Final = 128
_REMEMBERED: Final = 4096
_MAY_NOT_READ: Final = (
    "this program may not read claims: it needs the verb get on resourceclaims (API group resource.k8s.io)"
)
_MAY_NOT_WRITE: Final = (
    "this program may not write the status of claims: it needs the verbs patch and update on resourceclaims/status, "
    "and from Kubernetes 1.36 on associated-node:patch and associated-node:update on resourceclaims/driver for the "
    "name of the driver (API group resource.k8s.io)"
)


class ClaimGoneError(Exception):
    """The claim does not exist any more, or another one has its name."""


class UnwritableError(Exception):
    """The API server refuses any write of this claim's status; the text says why and what to do."""


class StatusWire:
    """Reads and writes the status of claims. Thread-safe; one write at a time for one claim."""

    def __init__(self, client: KubeClient, driver: str, node: str) -> None:
        """Write as the field manager of this driver on this node, so that two nodes never take each other's entries."""
        self._client = client
        self._manager = field_manager(driver, node)
        self._lock = threading.Lock()
        self._second: dict[str, None] = {}

    def read(self, ref: ClaimRef) -> dict[str, Any]:
        """Read a claim.

        Raises:
            ClaimGoneError: it is gone.
            ApiError: it cannot be read now.
        """
        try:
            claim = self._client.get(claim_path(ref.namespace, ref.name))
        except ApiError as error:
            if _claim_not_found(ref, error):
                raise ClaimGoneError from error
            raise
        if _uid(ref, claim, "GET") != ref.uid:
            raise ClaimGoneError
        return claim

    def write(self, ref: ClaimRef, desired: Desired, claim: Mapping[str, Any]) -> dict[str, Any]:
        """Write the entries and return the claim as it is then.

        Raises:
            ClaimGoneError: the claim is gone.
            UnwritableError: the API server refuses both ways for good.
            ApiError: it cannot be written now.
        """
        if self._takes_second_way(ref, claim):
            return self._merge(ref, desired, claim)
        try:
            answer = self._apply(ref, desired)
        except ApiError as error:
            if not _trapped(error):
                raise self._judged(ref, error) from error
            LOG.info(
                "server-side apply is refused for this claim's parameters, a merge patch is used",
                extra=fields(claim=ref.uid, name=ref, error=error),
            )
            answer = self._merge(ref, desired, claim)
            self._remember(ref)
            return answer
        if _holds(answer, desired):
            return answer
        # Another manager, the reference's or a former one of this driver, still holds what was withdrawn: an update
        # takes it away from all.
        return self._merge(ref, desired, answer)

    def _takes_second_way(self, ref: ClaimRef, claim: Mapping[str, Any]) -> bool:
        """Tell whether the claim was written by the second way before, in this life or in an earlier one."""
        if ref.uid in self._second:
            return True
        managed = claim.get("metadata", {}).get("managedFields") or []
        ways = {item.get("operation") for item in managed if item.get("manager") == self._manager}
        return ways == {"Update"}

    def _remember(self, ref: ClaimRef) -> None:
        with self._lock:
            self._second[ref.uid] = None
            while len(self._second) > _REMEMBERED:
                self._second.pop(next(iter(self._second)))

    def _apply(self, ref: ClaimRef, desired: Desired) -> dict[str, Any]:
        body = {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceClaim",
            "metadata": {"name": ref.name, "namespace": ref.namespace, "uid": ref.uid},
            "status": {"devices": list(desired.entries)},
        }
        return self._patch(ref, body, APPLY, {"force": "true"})

    def _merge(self, ref: ClaimRef, desired: Desired, claim: Mapping[str, Any]) -> dict[str, Any]:
        meta = claim.get("metadata", {})
        body = {
            "metadata": {"uid": ref.uid, "resourceVersion": meta.get("resourceVersion")},
            "status": {"devices": merged(claim, desired)},
        }
        try:
            return self._patch(ref, body, MERGE, {})
        except ApiError as error:
            if _trapped(error):
                raise UnwritableError(
                    f"the API server refuses every change of the status of claim {ref}: it cannot keep the claim's "
                    "opaque parameters as they were written (spaces after ':' or ',', or one of <, >, &). "
                    f"Create the claim with compact JSON, as kubectl does. The server's words: {error.message}"
                ) from error
            raise self._judged(ref, error) from error

    def _patch(self, ref: ClaimRef, body: Any, content_type: str, params: Mapping[str, str]) -> dict[str, Any]:
        path = claim_status_path(ref.namespace, ref.name)
        answer = self._client.patch(
            path, body, content_type=content_type, params={"fieldManager": self._manager, **params}
        )
        _uid(ref, answer, "PATCH")
        return answer

    def _judged(self, ref: ClaimRef, error: ApiError) -> Exception:
        """Tell a claim that is gone from a write that failed."""
        if _claim_not_found(ref, error):
            return ClaimGoneError()
        about_uid = "uid" in error.message.lower()
        if error.status == _NOT_FOUND or (error.status in (_CONFLICT, _INVALID) and about_uid):
            try:
                self.read(ref)
            except ClaimGoneError as gone:
                return gone
            except ApiError as other:
                return other
        return error


def field_manager(driver: str, node: str) -> str:
    """Return the field manager's name: ``driver/node``, within the API's 128 characters and still told apart."""
    name = f"{driver}/{node}"
    if len(name) <= _MAX_MANAGER:
        return name
    return f"{name[: _MAX_MANAGER - 17]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def missing_permission(error: ApiError) -> str:
    """Say which permissions this program needs, where one of them was missing; "" for any other error.

    A rule for ``resourceclaims/status`` that is missing gives 403; one for ``resourceclaims/driver`` (Kubernetes 1.36
    and later) gives 422 with the word Forbidden at ``status.devices``.
    """
    if error.status == _FORBIDDEN:
        return _MAY_NOT_READ if error.method == "GET" else _MAY_NOT_WRITE
    return _MAY_NOT_WRITE if error.status == _INVALID and "status.devices: Forbidden" in error.message else ""


def _uid(ref: ClaimRef, answer: Mapping[str, Any], method: str) -> str:
    """Return the UID of the claim that was answered.

    Raises:
        ApiError: it is no claim: something in between answered in the server's place.
    """
    meta = answer.get("metadata")
    uid = meta.get("uid") if isinstance(meta, dict) else None
    if not isinstance(uid, str) or not uid:
        text = f"what was answered to {method} of claim {ref} is no claim: it has no metadata.uid"
        raise ApiError(0, BAD_ANSWER, text, method=method)
    return uid


def _claim_not_found(ref: ClaimRef, error: ApiError) -> bool:
    """Tell a claim that does not exist from a server that does not serve claims, or does not serve them yet."""
    named = error.details.get("name") == ref.name or f'"{ref.name}" not found' in error.message
    return error.status == _NOT_FOUND and named


def _trapped(error: ApiError) -> bool:
    return error.status == _INVALID and "status.allocation" in error.message and "metadata.uid" not in error.message


def _holds(claim: Mapping[str, Any], desired: Desired) -> bool:
    present = present_entries(claim)
    return all(same(entry, present.get(key_of(entry))) for entry in desired.entries)
