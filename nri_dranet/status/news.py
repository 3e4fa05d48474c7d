"""What of a written status is worth an Event: a device in its pod that is not well, and one that is well again. Pure.

Prepare, attach and detach tell their failures themselves, at each try. Here is told what nobody did: what the kernel
showed of a device in its pod, and that something which was wrong is right. Reasons are those of the conditions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.claims.facts import ClaimFacts, Phase
from nri_dranet.claims.model import PodRef
from nri_dranet.status.conditions import OWN_TYPES
from nri_dranet.status.desired import Key, key_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, MutableMapping

_IN_POD: Final = frozenset({Phase.ATTACHED, Phase.LOST})
_ENDED: Final = frozenset({"Detached", "Unprepared"})
"""Reasons of a condition that is False because all is over: no failure."""

Failing = dict[tuple[Key, str], str]
"""Of each entry and condition type that has failed and has not been well since: the reason."""


@dataclass(frozen=True, slots=True)
class News:
    """An Event to be: what happened to a device."""

    reason: str
    message: str
    warning: bool


def news(
    facts: ClaimFacts,
    before: Mapping[Key, Mapping[str, Any]],
    after: Iterable[Mapping[str, Any]],
    failing: MutableMapping[tuple[Key, str], str],
) -> list[News]:
    """Return what the change of a claim's status tells, each thing once.

    Args:
        facts: what the new status was made from.
        before: the entries of the former status, by key.
        after: the entries of the new one.
        failing: what was wrong; brought up to date. It outlives conditions that are Unknown in between.
    """
    phases = {(fact.key.pool, fact.key.device, fact.key.share_id): fact.phase for fact in facts.devices}
    found: list[News] = []
    for entry in after:
        key = key_of(entry)
        former = _reasons(before.get(key))
        over: set[str] = set()
        for item in entry["conditions"]:
            kind, reason = item["type"], item["reason"]
            was = failing.get((key, kind)) or former.get(kind, "")
            failing.pop((key, kind), None)
            if item["status"] == "True" and was:
                if was in over:
                    # One cause made several conditions False: its end is told once.
                    continue
                over.add(was)
                found.append(News(reason, _well_again(entry, kind, was), warning=False))
            elif item["status"] == "False" and reason not in _ENDED:
                failing[key, kind] = reason
                if was != reason and phases[key[1:]] in _IN_POD:
                    found.append(News(reason, item["message"], warning=True))
            elif item["status"] == "False" and was == "DeviceNotReturned":
                found.append(News(reason, f"device {entry['device']} is back on the node", warning=False))
            elif item["status"] == "Unknown" and was:
                failing[key, kind] = was
    return list(dict.fromkeys(found))


def pods_of(facts: ClaimFacts, claim: Mapping[str, Any]) -> list[PodRef]:
    """Return the pods that a claim's news are of interest to: those that it is reserved for, and its holder."""
    reserved = [
        PodRef(facts.ref.namespace, str(consumer.get("name")), str(consumer.get("uid")))
        for consumer in (claim.get("status") or {}).get("reservedFor") or []
        if consumer.get("resource") == "pods" and not consumer.get("apiGroup")
    ]
    return list(dict.fromkeys([*([facts.pod] if facts.pod is not None else []), *reserved]))


def _reasons(entry: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the reasons of our conditions that are False because of a failure, by type."""
    return {
        item["type"]: str(item.get("reason") or "")
        for item in (entry or {}).get("conditions") or []
        if item.get("type") in OWN_TYPES and item.get("status") == "False" and item.get("reason") not in _ENDED
    }


def _well_again(entry: Mapping[str, Any], kind: str, was: str) -> str:
    share = f" (share {entry['shareID']})" if entry.get("shareID") else ""
    return f"device {entry['device']}{share}: {kind} is True again; it was False with reason {was}"
