"""How the entries get to the API server: server-side apply, and the second way where that is refused.

``status.allocation`` repeats the claim's opaque parameters. If those are not compact JSON with sorted keys, the API
server refuses every server-side apply on the status, because it takes its own re-encoding for a change of the
allocation. A JSON merge patch of ``status.devices`` works in most of these cases. A claim stays on the way that
worked first.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.kube.client import APPLY, MERGE, ApiError, KubeClient
from nri_dranet.kube.resources import claim_path, claim_status_path
from nri_dranet.status.conditions import same
from nri_dranet.status.desired import Desired, desired_status, key_of, merged, present_entries
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nri_dranet.claims.model import ClaimRef

LOG = logging.getLogger(__name__)

__all__ = ["ClaimGoneError", "StatusWire", "UnwritableError", "desired_status"]

_NOT_FOUND: Final = 404
_CONFLICT: Final = 409
_INVALID: Final = 422
_MAX_MANAGER: Final = 128
_REMEMBERED: Final = 4096


class ClaimGoneError(Exception):
    """The claim does not exist any more, or another one has its name."""


class UnwritableError(Exception):
    """The API server refuses any write of this claim's status; the text says why and what to do."""


class StatusWire:
    """Reads and writes the status of claims. Thread-safe; one write at a time for one claim."""

    def __init__(self, client: KubeClient, driver: str, node: str) -> None:
        """Write as field manager ``driver/node``, so that two nodes never take each other's entries."""
        self._client = client
        self._manager = f"{driver}/{node}"[:_MAX_MANAGER]
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
            if error.status == _NOT_FOUND:
                raise ClaimGoneError from error
            raise
        if claim.get("metadata", {}).get("uid") != ref.uid:
            raise ClaimGoneError
        return claim

    def write(self, ref: ClaimRef, desired: Desired, claim: Mapping[str, Any]) -> dict[str, Any]:
        """Write the entries and return the claim as it is then.

        Raises:
            ClaimGoneError: the claim is gone.
            UnwritableError: the API server refuses both ways for good.
            ApiError: it cannot be written now.
        """
        if ref.uid not in self._second:
            try:
                answer = self._apply(ref, desired)
            except ApiError as error:
                if not _trapped(error):
                    raise self._judged(ref, error) from error
                LOG.info(
                    "server-side apply is refused for this claim's parameters, a merge patch is used",
                    extra=fields(claim=ref.uid, name=ref, error=error),
                )
            else:
                if _holds(answer, desired):
                    return answer
                # Another manager still holds what was withdrawn.
                claim = answer
        return self._merge(ref, desired, claim)

    def _apply(self, ref: ClaimRef, desired: Desired) -> dict[str, Any]:
        body = {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceClaim",
            "metadata": {"name": ref.name, "namespace": ref.namespace, "uid": ref.uid},
            "status": {"devices": list(desired.entries)},
        }
        return self._client.patch(
            claim_status_path(ref.namespace, ref.name),
            body,
            content_type=APPLY,
            params={"fieldManager": self._manager, "force": "true"},
        )

    def _merge(self, ref: ClaimRef, desired: Desired, claim: Mapping[str, Any]) -> dict[str, Any]:
        meta = claim.get("metadata", {})
        body = {
            "metadata": {"uid": ref.uid, "resourceVersion": meta.get("resourceVersion")},
            "status": {"devices": merged(claim, desired)},
        }
        try:
            answer = self._client.patch(
                claim_status_path(ref.namespace, ref.name),
                body,
                content_type=MERGE,
                params={"fieldManager": self._manager},
            )
        except ApiError as error:
            if _trapped(error):
                raise UnwritableError(
                    f"the API server refuses every change of the status of claim {ref}: it cannot keep the claim's "
                    "opaque parameters as they were written (spaces after ':' or ',', or one of <, >, &). "
                    f"Create the claim with compact JSON, as kubectl does. The server's words: {error.message}"
                ) from error
            raise self._judged(ref, error) from error
        with self._lock:
            self._second[ref.uid] = None
            while len(self._second) > _REMEMBERED:
                self._second.pop(next(iter(self._second)))
        return answer

    def _judged(self, ref: ClaimRef, error: ApiError) -> Exception:
        """Tell a claim that is gone from a write that failed."""
        if error.status == _NOT_FOUND:
            return ClaimGoneError()
        if error.status == _INVALID and "metadata.uid" in error.message:
            return ClaimGoneError()
        if error.status == _CONFLICT and "uid" in error.message.lower():
            try:
                self.read(ref)
            except ClaimGoneError as gone:
                return gone
            except ApiError as other:
                return other
        return error


def _trapped(error: ApiError) -> bool:
    return error.status == _INVALID and "status.allocation" in error.message and "metadata.uid" not in error.message


def _holds(claim: Mapping[str, Any], desired: Desired) -> bool:
    present = present_entries(claim)
    return all(same(entry, present.get(key_of(entry))) for entry in desired.entries)
