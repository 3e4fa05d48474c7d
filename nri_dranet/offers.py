"""What a node publishes of its devices: those on the host as they are, those in pods as they were. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nri_dranet.claims.facts import Phase
from nri_dranet.claims.plan import DeviceKind
from nri_dranet.dra.sharing import shared_entry
from nri_dranet.status.health import ailments, ailments_on_node, tainted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nri_dranet.claims.facts import DeviceFacts
    from nri_dranet.claims.plan import DevicePlan
    from nri_dranet.claims.record import ClaimRecord
    from nri_dranet.inventory.device import Device

    Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Held:
    """A device that is in a pod, or on its way: its claim, its plan and what is known of it."""

    record: ClaimRecord
    plan: DevicePlan
    fact: DeviceFacts | None

    @property
    def lost(self) -> bool:
        """Tell whether it is neither in its pod nor on the host."""
        return self.fact is not None and self.fact.phase is Phase.LOST


def held_devices(records: Iterable[ClaimRecord]) -> dict[str, Held]:
    """Return the devices that are in pods, by name; those that stay on the host are published as they are."""
    found: dict[str, Held] = {}
    for record in records:
        if not record.held:
            continue
        known = {fact.key: fact for fact in record.facts}
        for plan in record.plan.devices:
            if plan.published and plan.moves and plan.kind is not DeviceKind.CHILD:
                found[plan.key.device] = Held(record, plan, known.get(plan.key))
    return found


def published_of(held: Mapping[str, Held]) -> dict[str, dict[str, Any]]:
    """Return the entries of the devices in pods as the inventory is told them: those that are lost are in none."""
    return {name: each.plan.published for name, each in held.items() if not each.lost}


@dataclass(frozen=True, slots=True, kw_only=True)
class Offers:
    """How devices are published. ``taints`` is the effect of device taints, empty for none."""

    driver: str
    taints: str = ""

    def on_host(self, device: Device, *, shared: bool) -> Entry:
        """Return the entry of a device that no pod has."""
        entry = shared_entry(device.entry()) if shared else device.entry()
        if not self.taints:
            return entry
        link = device.link
        found = ailments_on_node(
            up=link is not None and link.up,
            carrier=link.carrier if link is not None else None,
            rdma_port_state=str((device.attributes.get("dra.net/rdmaPortState") or {}).get("string", "")),
        )
        return tainted(entry, found, self.driver, self.taints)

    def in_pod(self, held: Held, *, home: bool) -> Entry | None:
        """Return the entry of a device that a pod has, None: it has none.

        Args:
            held: the device.
            home: whether the host offers a device of that name.
        """
        # A lost device stays only to carry its taint: somebody may have to be told to leave it.
        if held.lost and (home or not self.taints):
            return None
        if not self.taints or held.fact is None:
            return held.plan.published
        return tainted(held.plan.published, ailments(held.fact), self.driver, self.taints)
