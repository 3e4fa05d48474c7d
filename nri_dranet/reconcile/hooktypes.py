"""What the runtime's hooks speak of: the container that is created, what is added to it, and the refusal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nri_dranet.claims.plan import CharDevice


class HookError(Exception):
    """The runtime's call is refused; the text is for people, who read it in the pod's Events."""


@dataclass(frozen=True, slots=True)
class ContainerRef:
    """A container that is about to be created.

    Attributes:
        name: The container's name in the pod.
        devices: Major and minor of the character devices that it has already, by CDI or otherwise.
    """

    name: str
    devices: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What is added to a container.

    Attributes:
        devices: Character devices.
        memlock: Whether its limit of locked memory is lifted (RDMA registers memory).
    """

    devices: tuple[CharDevice, ...] = ()
    memlock: bool = False
