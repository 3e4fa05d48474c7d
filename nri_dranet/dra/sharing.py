"""Which devices are shared (``--share``): many claims have them at once, pods get children of them, they stay here.

A shared device is published with ``allowMultipleAllocations`` (KEP-5075, DRAConsumableCapacity): the scheduler gives it
to any number of claims, each with a share ID of its own.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, Protocol

from nri_dranet.claims.plan import DeviceKind
from nri_dranet.inventory.filter import DeviceFilter
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nri_dranet.claims.record import ClaimRecord
    from nri_dranet.netlink.model import Link

LOG = logging.getLogger(__name__)

ARPHRD_ETHER: Final = 1
"""``linux/if_arp.h``: what macvlan, ipvlan and VLAN children can be made on."""

FLAG: Final = "--share"


class Shareable(Protocol):
    """A device of the inventory (``inventory.device.Device``)."""

    @property
    def name(self) -> str:
        """Its name in the ResourceSlice."""
        ...

    @property
    def link(self) -> Link | None:
        """Its interface on the host now."""
        ...

    @property
    def attributes(self) -> Mapping[str, Mapping[str, Any]]:
        """Qualified name → value."""
        ...


class Claims(Protocol):
    """The claims of this node (``store.journal.Journal``)."""

    def records(self) -> tuple[ClaimRecord, ...]:
        """Return all of them."""
        ...


Claimed = dict[str, set[DeviceKind]]
"""By device name, as what claims of this node have a device."""


class Sharing:
    """Decides by the flag and by what claims have already. Thread-safe."""

    def __init__(self, expression: str, driver: str, journal: Claims) -> None:
        """Compile the expression.

        Args:
            expression: CEL, as for ``--filter``; empty shares nothing, and so does an error of evaluation.
            driver: the driver's name.
            journal: the claims.

        Raises:
            ValueError: it does not compile, or names what there is not; the text has the position.
        """
        self._decide = compiled(expression, driver)
        self._journal = journal
        self._told: set[str] = set()

    def claimed(self) -> Claimed:
        """Return as what claims of this node have their devices."""
        found: Claimed = {}
        for record in self._journal.records():
            for device in record.plan.devices:
                found.setdefault(device.key.device, set()).add(device.kind)
        return found

    def shares(self, device: Shareable, claimed: Claimed | None = None) -> bool:
        """Tell whether a device is shared.

        One that pods have children of stays shared until they are gone, and one that a claim has whole is not shared
        before that claim has ended, whatever the flag says meanwhile.

        Args:
            device: the device.
            claimed: what ``claimed`` gave, where many devices are asked about; None: ask for it.
        """
        if device.link is None:
            return False
        kinds = (self.claimed() if claimed is None else claimed).get(device.name, set())
        if DeviceKind.CHILD in kinds:
            return True
        return DeviceKind.INTERFACE not in kinds and fits(self._decide, device, self._told)


def fits(decide: DeviceFilter | None, device: Shareable, told: set[str] | None = None) -> bool:
    """Tell whether an expression shares a device that can have children; ``told``: of which it was said that not."""
    if decide is None or device.link is None or not decide.keeps(device.name, device.attributes):
        return False
    if device.link.type == ARPHRD_ETHER:
        return True
    if told is not None and device.name not in told:
        told.add(device.name)
        text = "a device is not shared: only Ethernet devices can have children"
        LOG.warning(text, extra=fields(device=device.name, share=decide.expression))
    return False


def shared_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry in a ResourceSlice of a device that is shared."""
    return {**entry, "allowMultipleAllocations": True}


def compiled(expression: str, driver: str) -> DeviceFilter | None:
    """Compile an expression of ``--share``; None for the empty one.

    Raises:
        ValueError: it does not compile, or names what there is not; the text has the position.
    """
    return DeviceFilter(expression, driver, flag=FLAG, on_error=False) if expression.strip() else None
