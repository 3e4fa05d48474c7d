"""BPF programs on a network interface: find and remove them by bpf(2), without libbpf.

Interface indices count in the network namespace of the calling thread; the caller enters the right one first.

Source of the facts: ``linux/bpf.h`` (``union bpf_attr``, ``struct bpf_link_info``), ``kernel/bpf/tcx.c``,
``kernel/bpf/syscall.c``. TCX came with Linux 6.6, netkit with 6.7, links on XDP with 5.9.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_OBJ_PIN: Final = 6
_OBJ_GET: Final = 7
_PROG_ATTACH: Final = 8
_PROG_DETACH: Final = 9
PROG_GET_FD_BY_ID: Final = 13
OBJ_GET_INFO_BY_FD: Final = 15
PROG_QUERY: Final = 16
_LINK_GET_FD_BY_ID: Final = 30
_LINK_GET_NEXT_ID: Final = 31
_LINK_DETACH: Final = 34

_LINK_XDP: Final = 6
_LINK_TCX: Final = 11
_LINK_NETKIT: Final = 13
_LINKS_ON_INTERFACES: Final = {_LINK_XDP: "XDP", _LINK_TCX: "TCX", _LINK_NETKIT: "netkit"}

HOOKS: Final = {"TCX ingress": 46, "TCX egress": 47, "netkit primary": 54, "netkit peer": 55}

# BPF_MPROG_MAX, the most programs that the kernel keeps on one hook.
_MOST_PROGRAMS: Final = 64

# What kernels say that do not know the hook (EINVAL), not these fields (E2BIG), or for a device of another kind
# (netkit answers ENXIO or EACCES for a device that is no netkit, EOPNOTSUPP without the support built in).
_NO_SUCH_HOOK: Final = frozenset({errno.EINVAL, errno.E2BIG, errno.ENXIO, errno.EOPNOTSUPP, errno.EACCES})

SYSCALL_NUMBERS: Final = {"x86_64": 321, "aarch64": 280}

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class AttachedProgram:
    """A program on a hook of an interface; ``link_id`` is 0 if it was attached without a BPF link."""

    hook: str
    program_id: int
    link_id: int = 0


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """A BPF link on an interface: ``kind`` is XDP, TCX or netkit, ``index`` the interface's (0: it is detached)."""

    id: int
    program_id: int
    kind: str
    index: int


@dataclass(frozen=True, slots=True)
class PinnedLink:
    """A BPF link on an interface and the path that it is pinned at."""

    path: str
    link: LinkInfo


def programs(index: int) -> tuple[AttachedProgram, ...]:
    """Give the programs on the TCX and netkit hooks of an interface of this thread's network namespace.

    A kernel without these hooks, or an interface that has none, gives an empty tuple.

    Raises:
        OSError: the kernel refuses to tell (EPERM: CAP_NET_ADMIN is missing; ENODEV: no such interface).
    """
    found: list[AttachedProgram] = []
    for hook, number in HOOKS.items():
        try:
            found += _query(index, hook, number)
        except OSError as error:
            if error.errno not in _NO_SUCH_HOOK:
                raise
    return tuple(found)


def remove(index: int, found: AttachedProgram) -> None:
    """Take a program off its hook. One that is gone already is fine.

    A program that a BPF link holds is detached by that link, so that no process keeps it attached by holding the link.

    Raises:
        OSError: the kernel refuses.
    """
    with contextlib.suppress(FileNotFoundError):
        if found.link_id:
            detach_link(found.link_id)
            return
        descriptor = program(found.program_id)
        try:
            _bpf(_PROG_DETACH, struct.pack("=IIII", index, descriptor, HOOKS[found.hook], 0))
        finally:
            os.close(descriptor)


def attach(index: int, hook: str, descriptor: int) -> None:
    """Attach a program to a TCX or netkit hook of an interface, behind those that are there, without a BPF link.

    Raises:
        OSError: the kernel refuses (EEXIST: it is there already).
    """
    _bpf(_PROG_ATTACH, struct.pack("=IIII", index, descriptor, HOOKS[hook], 0))


def program(program_id: int) -> int:
    """Open a program by its ID; the caller closes the descriptor, which keeps the program alive.

    Raises:
        FileNotFoundError: there is none.
        OSError: the kernel refuses.
    """
    return _bpf(PROG_GET_FD_BY_ID, struct.pack("=III", program_id, 0, 0))[0]


def program_id(descriptor: int) -> int:
    """Give the ID of an open program.

    Raises:
        OSError: it is no BPF object.
    """
    info = ctypes.create_string_buffer(64)
    _bpf(OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", descriptor, len(info), ctypes.addressof(info)))
    found: int = struct.unpack_from("=II", info.raw)[1]
    return found


def pin(descriptor: int, path: str) -> None:
    """Pin an open object in a BPF file system, where it outlives this process; removing the file ends that.

    Raises:
        FileExistsError: there is a file.
        OSError: it is no BPF file system (EPERM), or the kernel refuses.
    """
    name = ctypes.create_string_buffer(os.fsencode(path))
    _bpf(_OBJ_PIN, struct.pack("=QII", ctypes.addressof(name), descriptor, 0))


def pinned(path: str) -> int:
    """Open what is pinned at a path; the caller closes the descriptor.

    Raises:
        OSError: nothing is pinned there.
    """
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _bpf(_OBJ_GET, struct.pack("=QII", ctypes.addressof(name), 0, 0))[0]


def detach_link(link_id: int) -> None:
    """Detach a BPF link by its ID; it stays as an object without effect for those who hold or pinned it.

    Raises:
        FileNotFoundError: there is no such link.
        OSError: the kernel refuses (EOPNOTSUPP: links of this kind cannot be detached).
    """
    with _link(link_id) as descriptor:
        _bpf(_LINK_DETACH, struct.pack("=I", descriptor))


def link_info(link_id: int) -> LinkInfo | None:
    """Describe a BPF link by its ID; None if there is none or it is not on an interface.

    Raises:
        OSError: the kernel refuses to tell.
    """
    try:
        with _link(link_id) as descriptor:
            return _describe(descriptor)
    except FileNotFoundError:
        return None


def links() -> Iterator[LinkInfo]:
    """Give all BPF links of the system that are on an interface, of whatever network namespace.

    Raises:
        OSError: the kernel refuses to tell.
    """
    link_id = 0
    while True:
        try:
            _, answer = _bpf(_LINK_GET_NEXT_ID, struct.pack("=III", link_id, 0, 0))
        except OSError as error:
            # EINVAL: a kernel before 5.8, which has no links.
            if error.errno in {errno.ENOENT, errno.EINVAL}:
                return
            raise
        link_id = struct.unpack_from("=I", answer, 4)[0]
        found = link_info(link_id)
        if found is not None:
            yield found


def pinned_links(index: int, root: str = "/sys/fs/bpf", *, xdp_program_id: int = 0) -> tuple[PinnedLink, ...]:
    """Find the BPF links that are pinned in a BPF file system and sit on one interface. Slow: walks the whole tree.

    A link names its interface by an index that may as well be another namespace's, so each is checked against what the
    interface itself has: its hooks, and ``xdp_program_id`` (``Link.xdp_program_id``). Pins that cannot be opened are
    passed over: other programs' directories come and go.

    Args:
        index: the interface, in this thread's network namespace.
        root: where the BPF file system is mounted; a directory that does not exist has no pins.
        xdp_program_id: the XDP program of the interface, 0 for none.

    Raises:
        OSError: the kernel refuses to tell what is on the interface.
    """
    own = {program.link_id for program in programs(index)}
    found: list[PinnedLink] = []
    for directory, _, names in os.walk(root):
        for name in names:
            path = str(Path(directory) / name)
            with contextlib.suppress(OSError):
                link = _pinned(path)
                if link is None or link.index != index:
                    continue
                if link.id in own or (link.kind == "XDP" and xdp_program_id and link.program_id == xdp_program_id):
                    found.append(PinnedLink(path, link))
    return tuple(sorted(found, key=lambda pin: pin.path))


def _pinned(path: str) -> LinkInfo | None:
    descriptor = pinned(path)
    try:
        # A pin may be a map or a program; the three answer to the same "info" call with different structures.
        # The kernel writes bpf-link here and bpf_link for a new link.
        if "link" not in os.readlink(f"/proc/self/fd/{descriptor}"):  # noqa: PTH115 - not a path of a file
            return None
        return _describe(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _link(link_id: int) -> Iterator[int]:
    descriptor = _bpf(_LINK_GET_FD_BY_ID, struct.pack("=III", link_id, 0, 0))[0]
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _describe(descriptor: int) -> LinkInfo | None:
    info = ctypes.create_string_buffer(64)
    _bpf(OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", descriptor, len(info), ctypes.addressof(info)))
    kind, link_id, program_id, _, index = struct.unpack_from("=IIIII", info.raw)
    name = _LINKS_ON_INTERFACES.get(kind)
    return LinkInfo(link_id, program_id, name, index) if name else None


def _query(index: int, hook: str, number: int) -> list[AttachedProgram]:
    ids = (ctypes.c_uint32 * _MOST_PROGRAMS)()
    held = (ctypes.c_uint32 * _MOST_PROGRAMS)()
    request = struct.pack(
        "=IIIIQIIQQQQ", index, number, 0, 0, ctypes.addressof(ids), _MOST_PROGRAMS, 0, 0, ctypes.addressof(held), 0, 0
    )
    _, answer = _bpf(PROG_QUERY, request)
    count: int = struct.unpack_from("=I", answer, 24)[0]
    return [AttachedProgram(hook, ids[place], held[place]) for place in range(count)]


def _bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """Call bpf(2): its result and the attributes as the kernel left them."""
    number = SYSCALL_NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"bpf(2) is not known for the machine type {platform.machine()}")
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = _LIBC.syscall(
        ctypes.c_long(number), ctypes.c_int(command), ctypes.byref(buffer), ctypes.c_uint(len(attributes))
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"bpf: {os.strerror(code)}")
    return result, buffer.raw
