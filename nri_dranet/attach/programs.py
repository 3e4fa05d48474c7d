"""BPF programs of the host that a claim does not want on its device in the pod."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from nri_dranet import bpf
from nri_dranet.netlink import rtnl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nri_dranet.netlink.namespaces import NetNs
    from nri_dranet.netlink.sockets import RtnlSocket

# EBUSY: a BPF link holds the XDP program, which must be detached itself.
_HELD_BY_LINK: Final = errno.EBUSY


def remove_all(netns: NetNs, pod: RtnlSocket, index: int, pinned: Sequence[int]) -> None:
    """Remove TCX, netkit and XDP programs from an interface of the pod and verify that none is left.

    Filters of tc need no work: a move destroys all queueing disciplines of an interface, clsact with its filters too
    (``dev_shutdown`` in ``net/core/dev.c``).

    Args:
        netns: the pod's namespace.
        pod: a socket in it.
        index: the interface there.
        pinned: IDs of BPF links that were pinned for it on the host.

    Raises:
        OSError: the kernel refuses.
        ValueError: programs are still there.
    """
    with netns.entered():
        for link_id in pinned:
            info = bpf.link_info(link_id)
            if info is not None and info.index == index:
                bpf.detach_link(link_id)
        for program in bpf.programs(index):
            bpf.remove(index, program)
        left = bpf.programs(index)
    link = pod.link(index=index)
    if link is not None and link.xdp_program_id:
        _remove_xdp(pod, index, link.xdp_program_id)
        link = pod.link(index=index)
    words = [f"{program.hook} program {program.program_id}" for program in left]
    if link is not None and link.xdp_program_id:
        words.append(f"XDP program {link.xdp_program_id}")
    if words:
        raise ValueError(f"BPF programs are still attached: {', '.join(words)}")


def _remove_xdp(pod: RtnlSocket, index: int, program_id: int) -> None:
    error = pod.batch([rtnl.set_link(index, xdp_fd=-1)])[0].error
    if error is None:
        return
    if error.errno != _HELD_BY_LINK:
        raise error
    for info in bpf.links():
        if info.kind == "XDP" and info.index == index and info.program_id == program_id:
            bpf.detach_link(info.id)
