"""The row of the journal: one claim that kubelet has prepared on this node."""

from __future__ import annotations

from dataclasses import dataclass

from nri_dranet.claims.facts import DeviceFacts
from nri_dranet.claims.lifecycle import State
from nri_dranet.claims.model import ClaimRef, PodRef
from nri_dranet.claims.plan import ClaimPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The sandbox that the devices of a claim are in, or are on their way into.

    ``netns_path`` is as the runtime named it; ``netns_inode`` tells whether the path still means the same namespace.
    """

    pod: PodRef
    sandbox_id: str
    netns_path: str
    netns_inode: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRecord:
    """One claim: its plan, where it stands in its life, who holds it, what is known of its devices.

    ``successor`` is the plan of the next allocation of the same claim, made while a former pod still holds this one
    (kubelet does not call Prepare for it).
    """

    plan: ClaimPlan
    state: State = State.PREPARED
    holder: Holder | None = None
    facts: tuple[DeviceFacts, ...] = ()
    successor: ClaimPlan | None = None
    boot_id: str = ""

    @property
    def ref(self) -> ClaimRef:
        """The claim."""
        return self.plan.ref

    @property
    def uid(self) -> str:
        """The claim's UID, the key of the row."""
        return self.plan.ref.uid

    @property
    def held(self) -> bool:
        """Tell whether devices may be in a pod: its holder, or one that is not known (of a restored row)."""
        return self.holder is not None or self.state is not State.PREPARED
