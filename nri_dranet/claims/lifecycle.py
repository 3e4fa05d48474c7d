"""The life of a claim on this node, as one transition table.

prepared → attaching → attached → detaching → prepared (the pod has gone, the claim is still held by kubelet) → gone.
Every state in which the process can die names what has to be done after a restart.
"""

from __future__ import annotations

import enum


class State(enum.StrEnum):
    """State of a claim in the journal."""

    PREPARED = "prepared"
    """Planned; all devices are on the host."""
    ATTACHING = "attaching"
    """A hook has begun; devices may be anywhere. After a restart: finish or undo."""
    ATTACHED = "attached"
    """All devices are in the holder's namespace."""
    DETACHING = "detaching"
    """Devices are being given back. After a restart: go on giving back."""


class LifecycleError(RuntimeError):
    """A claim was asked to make a step that its state does not allow. This is an error of the program."""


TRANSITIONS: dict[State, frozenset[State]] = {
    State.PREPARED: frozenset({State.PREPARED, State.ATTACHING, State.DETACHING}),
    State.ATTACHING: frozenset({State.ATTACHED, State.DETACHING, State.ATTACHING}),
    State.ATTACHED: frozenset({State.DETACHING, State.ATTACHED}),
    State.DETACHING: frozenset({State.PREPARED, State.DETACHING}),
}


def check(old: State, new: State) -> None:
    """Refuse a step that the table does not have.

    Raises:
        LifecycleError: ``new`` does not follow ``old``.
    """
    if new not in TRANSITIONS[old]:
        raise LifecycleError(f"a claim that is {old.value} cannot become {new.value}")
