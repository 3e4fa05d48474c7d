"""A claim that Prepare refuses: the words for kubelet, the facts for the claim's status, the Event for its owner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nri_dranet.claims.facts import ClaimFacts, DeviceFacts, Phase

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nri_dranet.claims.allocation import AllocationResult, Claim


def prepare_failed(claim: Claim, results: Sequence[AllocationResult], reason: str, message: str) -> ClaimFacts:
    """Return the facts of a claim of which no device was prepared."""
    return ClaimFacts(
        ref=claim.ref,
        devices=tuple(
            DeviceFacts(
                key=result.key,
                request=result.request,
                phase=Phase.PREPARE_FAILED,
                reason=reason,
                message=message,
                label=result.device,
                admin=result.admin_access,
            )
            for result in results
        ),
    )
