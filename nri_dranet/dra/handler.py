"""What the gRPC service asks of Prepare and Unprepare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nri_dranet.claims.model import ClaimRef


class PrepareError(Exception):
    """A claim cannot be prepared or released now; the text is for the pod's Event."""


class SlowClaimError(Exception):
    """A claim cannot be prepared without waiting for others than the kernel and the API server (a DHCP server)."""


@dataclass(frozen=True, slots=True)
class PreparedDevice:
    """A device of a prepared claim, as kubelet is told.

    Attributes:
        request_names: The requests that it serves, without the alternative behind a slash.
        pool: The pool's name.
        device: The device's name.
        cdi_ids: CDI device IDs for the containers that list the claim or the request.
        share_id: The share of a device that is allocated several times.
    """

    request_names: tuple[str, ...]
    pool: str
    device: str
    cdi_ids: tuple[str, ...] = ()
    share_id: str | None = None


class ClaimHandler(Protocol):
    """Prepares and releases one claim. Blocking; called from several threads, never twice at once for one claim."""

    def prepare(self, ref: ClaimRef, *, patient: bool = True) -> Sequence[PreparedDevice]:
        """Prepare a claim; raises ``PrepareError``, and ``SlowClaimError`` where it must wait and is not patient."""
        ...

    def unprepare(self, ref: ClaimRef) -> None:
        """Release a claim; raises ``PrepareError``."""
        ...
