"""A device that this node has: an interface, a PCI network function, an RDMA device, or several of these in one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nri_dranet.netlink.model import Link


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device by its name in the ResourceSlice.

    Attributes:
        name: A DNS label, unique on the node.
        link: Its interface on the host now; None where it has none, or it is in a pod.
        pci_address: Its PCI address.
        rdma: The name of its RDMA link.
        attributes: Qualified name → value, within the API's limits.
        refused: Why it may not be given to a pod, in words; empty: it may.
    """

    name: str
    link: Link | None = None
    pci_address: str | None = None
    rdma: str | None = None
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    refused: str = ""

    def entry(self) -> dict[str, Any]:
        """Return the device as it stands in a ResourceSlice."""
        return {"name": self.name, "attributes": self.attributes}
