"""An interface that can be asked on: up, and running."""

from __future__ import annotations

import contextlib
import errno
import select
import time
from typing import TYPE_CHECKING, Final

from nri_dranet.dhcp.errors import DhcpError
from nri_dranet.netlink import rtnl
from nri_dranet.netlink.codec import NetlinkError
from nri_dranet.netlink.sockets import EventsLostError, RtnlMonitor, RtnlSocket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nri_dranet.netlink.model import Link
    from nri_dranet.netlink.namespaces import NetNs

_RUNNING: Final = frozenset({"up", "unknown"})
"""``unknown``: the driver does not tell."""


@contextlib.contextmanager
def running(index: int, *, deadline: float, netns: NetNs | None = None) -> Iterator[Link]:
    """Have an interface up for the length of a ``with`` block; one that was down is set down again after it.

    What the kernel is given before the interface runs is dropped in silence, so this waits until it does.

    Args:
        index: the interface.
        deadline: how long to wait for its carrier (``time.monotonic``).
        netns: its namespace; None: that of the calling thread.

    Yields:
        The interface as it was before.

    Raises:
        DhcpError: it has got no carrier by then.
        OSError: the kernel refuses; ENODEV: there is no such interface.
    """
    with RtnlMonitor(netns, groups=("link",)) as monitor, RtnlSocket(netns) as socket:
        before = _link(socket, index)
        try:
            if not before.up:
                socket.request(rtnl.set_link(index, up=True))
            _wait(socket, monitor, index, deadline)
            yield before
        finally:
            if not before.up:
                _set_down(socket, index)


def _wait(socket: RtnlSocket, monitor: RtnlMonitor, index: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(monitor.fileno(), select.POLLIN)
    began = time.monotonic()
    while (link := _link(socket, index)).operstate not in _RUNNING or link.carrier is False:
        left = deadline - time.monotonic()
        if left <= 0:
            raise DhcpError(
                f"interface {link.name} has no carrier after {time.monotonic() - began:.1f} s "
                f"(it is {link.operstate}): look at cable, switch port or peer"
            )
        poll.poll(left * 1000)
        with contextlib.suppress(EventsLostError):
            monitor.receive()


def _link(socket: RtnlSocket, index: int) -> Link:
    found = socket.link(index=index)
    if found is None:
        raise NetlinkError(errno.ENODEV, f"read link {index}")
    return found


def _set_down(socket: RtnlSocket, index: int) -> None:
    try:
        socket.request(rtnl.set_link(index, up=False))
    except NetlinkError as error:
        if error.errno != errno.ENODEV:
            raise
