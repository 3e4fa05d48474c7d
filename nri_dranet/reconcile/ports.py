"""What the keeper needs of the other rooms, as narrow protocols; the driver brings them together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from nri_dranet.attach.engine import Detached
    from nri_dranet.claims.facts import ClaimFacts, DeviceFacts, ObservedInterface
    from nri_dranet.claims.model import ClaimRef, DeviceKey, PodRef
    from nri_dranet.claims.plan import DevicePlan
    from nri_dranet.netlink.namespaces import NetNs


class Attacher(Protocol):
    """Moves devices (``attach.engine.Engine``)."""

    def attach(self, plans: Sequence[DevicePlan], netns: NetNs, *, deadline: float) -> tuple[DeviceFacts, ...]:
        """Attach all or none; raises ``AttachError``."""
        ...

    def detach(
        self, plans: Sequence[DevicePlan], netns: NetNs | None, *, hints: Mapping[DeviceKey, ObservedInterface]
    ) -> tuple[Detached, ...]:
        """Bring home and restore; never raises."""
        ...

    def look(
        self, plans: Sequence[DevicePlan], netns: NetNs | None, hints: Mapping[DeviceKey, ObservedInterface]
    ) -> tuple[DeviceFacts, ...]:
        """Tell what the kernel shows now."""
        ...


class Observer(Protocol):
    """Watches pods' namespaces (``observe.pods.PodObserver``)."""

    @property
    def watched(self) -> frozenset[str]:
        """The UIDs of the claims that are watched."""
        ...

    def watch(self, uid: str, plans: Sequence[DevicePlan], netns: NetNs, facts: Sequence[DeviceFacts]) -> None:
        """Begin to watch a claim's devices."""
        ...

    def forget(self, uid: str) -> None:
        """Watch a claim's devices no more."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlets:
    """Where the keeper says what happened. None of them may block or raise.

    ``facts`` goes to the status writer. ``event`` takes subject, reason, message and whether it is a warning. ``held``
    is told when a claim comes into the journal, leaves it, or when devices go into a pod or come home. ``compare`` asks
    for a comparison of journal, kernel and runtime. ``refresh`` has the metadata in a claim's containers brought up to
    date.
    """

    facts: Callable[[ClaimFacts], None]
    event: Callable[[PodRef | ClaimRef, str, str, bool], None]
    held: Callable[[], None]
    compare: Callable[[], None]
    refresh: Callable[[str], None]

    def announce(
        self, pod: PodRef | None, claims: Iterable[ClaimRef], reason: str, message: str, *, warning: bool = True
    ) -> None:
        """Tell the same on a pod, where there is one, and on claims: a user looks at either."""
        subjects: list[PodRef | ClaimRef] = [*([pod] if pod is not None else []), *claims]
        for subject in subjects:
            self.event(subject, reason, message, warning)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inlets:
    """What the keeper asks. All answers come from memory.

    ``uplink`` tells why a device must not be moved now ("" where it may). ``claims_of_pod`` names the claims of a
    pod of this node, as far as the pod is known.
    """

    uplink: Callable[[DevicePlan], str]
    claims_of_pod: Callable[[str], tuple[tuple[str, str], ...]]
