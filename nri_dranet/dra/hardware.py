"""What of a device's hardware a plan needs: SR-IOV relations, RDMA character devices and the RDMA mode."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nri_dranet.claims.plan import CharDevice
from nri_dranet.netlink.nldev import NetnsMode, RdmaSocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nri_dranet.netlink.model import Link
    from nri_dranet.sysfs import Sysfs

DEFAULT_MODE: Final = 0o600
"""Mode of a character device whose node is not there to look at."""


class Hardware:
    """Reads sysfs and RDMA netlink. Thread-safe."""

    def __init__(self, sysfs: Sysfs, links: Callable[[], Iterable[Link]]) -> None:
        """Read from here.

        Args:
            sysfs: the host's.
            links: gives the host's interfaces.
        """
        self._sysfs = sysfs
        self._links = links

    def is_virtual_function(self, link: Link) -> bool:
        """Tell whether an interface is an SR-IOV virtual function."""
        return self._sysfs.is_sriov_vf(link.name)

    def pf_mtu(self, link: Link) -> int | None:
        """Return the MTU of the physical function that a virtual function belongs to, where that is on the host."""
        parents = set(self._sysfs.physical_interfaces(link.name))
        return next((each.mtu for each in self._links() if each.name in parents), None)

    def char_devices(self, rdma: str) -> tuple[CharDevice, ...]:
        """Return the character devices of an RDMA device, with number, mode and owner as they are on the host now."""
        return tuple(
            _as_on_host(device.path, device.major, device.minor) for device in self._sysfs.rdma_char_devices(rdma)
        )

    def node_guid(self, rdma: str) -> str:
        """Return the node GUID of an RDMA device, empty where it is not told or means nothing (all zero)."""
        found = self._sysfs.rdma_device(rdma)
        return found.node_guid if found is not None and found.node_guid.strip("0:") else ""

    def rdma_exclusive(self) -> bool:
        """Tell whether RDMA devices belong to one network namespace each; False on a kernel without RDMA.

        Raises:
            OSError: the kernel has RDMA and does not tell.
        """
        found = RdmaSocket.open()
        if found is None:
            return False
        with found:
            return found.netns_mode() is NetnsMode.EXCLUSIVE


def _as_on_host(path: str, major: int, minor: int) -> CharDevice:
    try:
        node = Path(path).stat()
    except OSError:
        return CharDevice(path=path, major=major, minor=minor, mode=DEFAULT_MODE)
    return CharDevice(
        path=path, major=major, minor=minor, mode=stat.S_IMODE(node.st_mode), uid=node.st_uid, gid=node.st_gid
    )
