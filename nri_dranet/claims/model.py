"""Names of the things that a claim speaks of: the claim, the pod, the device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClaimRef:
    """A ResourceClaim by namespace, name and UID. The UID alone is its identity."""

    namespace: str
    name: str
    uid: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class PodRef:
    """A Pod by namespace, name and UID. The UID alone is its identity."""

    namespace: str
    name: str
    uid: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, order=True)
class DeviceKey:
    """A device of a pool, with the share ID of one allocation of it.

    These are the keys of an entry in ``status.devices`` together with the driver's name (KEP-4817, KEP-5075).
    """

    pool: str
    device: str
    share_id: str | None = None

    def __str__(self) -> str:
        share = f" (share {self.share_id})" if self.share_id else ""
        return f"{self.device}{share}"
