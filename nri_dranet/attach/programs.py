"""BPF programs that the host has on a device: read, removed where a claim does not want them in its pod, put back.

A move leaves XDP, TCX and netkit programs in place (measured on 6.18) and destroys the filters of tc (``queueing``).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from nri_dranet import bpf
from nri_dranet.claims.plan import HostProgram
from nri_dranet.netlink import rtnl

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from nri_dranet.netlink.namespaces import NetNs
    from nri_dranet.netlink.sockets import RtnlSocket

# EBUSY: a BPF link holds the XDP program, which must be detached itself.
_HELD_BY_LINK: Final = errno.EBUSY

_XDP: Final = "XDP "


def read(netns: NetNs, index: int, xdp: Mapping[str, int]) -> tuple[HostProgram, ...]:
    """Read the programs on an interface of a namespace, those of each hook in order.

    Args:
        netns: the namespace.
        index: the interface there.
        xdp: its XDP programs by mode (``LinkConf.xdp``).

    Raises:
        OSError: the kernel refuses to tell.
    """
    with netns.entered():
        found = [HostProgram(one.hook, one.program_id, bool(one.link_id)) for one in bpf.programs(index)]
    if xdp:
        held = {info.program_id for info in bpf.links() if info.kind == "XDP" and info.index == index}
        found += [HostProgram(_XDP + mode, program, program in held) for mode, program in xdp.items()]
    return tuple(found)


def restore(
    netns: NetNs, host: RtnlSocket, index: int, wanted: Iterable[HostProgram], opened: Mapping[int, int]
) -> list[str]:
    """Put back the programs that an interface of the host has lost, in the order that they had.

    Args:
        netns: the host's namespace.
        host: a socket in it.
        index: the interface.
        wanted: what it had.
        opened: descriptors of the programs that were kept, by ID.

    Returns:
        What could not be put back, in words.

    Raises:
        OSError: the kernel does not tell what is there.
    """
    conf = host.conf(index)
    present = {(one.hook, one.program_id) for one in read(netns, index, conf.xdp if conf is not None else {})}
    problems = []
    for one in wanted:
        if (one.hook, one.program_id) in present:
            continue
        words = f"the {one.hook} program {one.program_id} cannot be put back: "
        if one.linked:
            problems.append(words + "a process of the host held it by a BPF link, and must attach it anew")
        elif one.program_id not in opened:
            problems.append(words + "it could not be kept")
        else:
            try:
                _attach(netns, host, index, one.hook, opened[one.program_id])
            except OSError as error:
                problems.append(words + str(error))
    return problems


def _attach(netns: NetNs, host: RtnlSocket, index: int, hook: str, descriptor: int) -> None:
    if hook.startswith(_XDP):
        host.request(rtnl.set_link(index, xdp_fd=descriptor, xdp_mode=hook.removeprefix(_XDP), label="put it back"))
        return
    with netns.entered():
        bpf.attach(index, hook, descriptor)


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
