"""Sysctls of an interface, and of a network namespace, through /proc/sys.

Only for what netlink cannot set, or sets without its side effects. ``/proc/sys/net`` shows the network namespace of the
thread that opens a file (``net/sysctl_net.c``), so the thread enters the namespace for the time of the calls.

A container that is not privileged has /proc/sys read-only. A proc of our own, mounted nowhere, is used then: fsopen(2),
fsconfig(2), fsmount(2), for which CAP_SYS_ADMIN is enough.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import logging
import os
from typing import TYPE_CHECKING, Final

from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nri_dranet.netlink.namespaces import NetNs

LOG = logging.getLogger(__name__)

_SYS: Final = "/proc/sys"
_READ_ONLY: Final = (
    "/proc/sys is read-only, and a proc of our own cannot be mounted, which needs CAP_SYS_ADMIN and the calls fsopen, "
    "fsconfig and fsmount (a seccomp profile may forbid them)"
)
# One number on every architecture that this runs on: include/uapi/asm-generic/unistd.h.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOEXEC: Final = 1
_FSCONFIG_CMD_CREATE: Final = 6
_NOSUID_NODEV_NOEXEC: Final = 0xE


def read_namespace(netns: NetNs, keys: Iterable[str]) -> dict[str, str]:
    """Read sysctls of a network namespace itself (``ipv4/tcp_l3mdev_accept``); what this kernel has not is left out."""
    found: dict[str, str] = {}
    with netns.entered():
        for key in keys:
            with contextlib.suppress(OSError):
                found[key] = _read(_path(key, ""))
    return found


def apply(netns: NetNs, interface: str, wanted: Mapping[str, str]) -> list[tuple[str, OSError]]:
    """Set sysctls of an interface, in order; one that has its value already is not written.

    An empty ``interface`` means sysctls of the namespace itself (``ipv4/tcp_l3mdev_accept``).

    Returns:
        The keys that could not be set, each with the error.
    """
    failed: list[tuple[str, OSError]] = []
    with netns.entered():
        for key, value in wanted.items():
            path = _path(key, interface)
            try:
                if _read(path) != value:
                    _write(path, value)
            except OSError as error:
                failed.append((key, OSError(error.errno, _READ_ONLY) if error.errno == errno.EROFS else error))
    return failed


def _path(key: str, interface: str) -> str:
    if not interface:
        return f"net/{key}"
    directory, _, name = key.rpartition("/")
    return f"net/{directory}/{interface}/{name}"


def open_root() -> None:
    """Open what sysctls are written by. It is done at the first use else, which would be in a hook.

    Raises:
        OSError: there is no /proc/sys.
    """
    _root()


@functools.cache
def _root() -> int:
    """Open a directory /proc/sys that can be written, once for the life of the process."""
    if os.statvfs(_SYS).f_flag & os.ST_RDONLY:
        try:
            return _own_sys()
        except OSError as error:
            # What is to be written fails with EROFS then, and is told with its key.
            LOG.warning("/proc/sys is read-only and no proc of our own can be mounted", extra=fields(error=error))
    return os.open(_SYS, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _own_sys() -> int:
    context = _syscall(_FSOPEN, b"proc", _CLOEXEC)
    try:
        _syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        mount = _syscall(_FSMOUNT, context, _CLOEXEC, _NOSUID_NODEV_NOEXEC)
    finally:
        os.close(context)
    try:
        # The mount lives as long as a descriptor of something on it.
        return os.open("sys", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    finally:
        os.close(mount)


def _syscall(number: int, *arguments: bytes | int | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    values = [ctypes.c_long(each) if isinstance(each, int) else ctypes.c_char_p(each) for each in arguments]
    answer = int(libc.syscall(ctypes.c_long(number), *values))
    if answer < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return answer


# os.open and os.read take a fifth of the time of open(): this runs in hooks.
def _read(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=_root())
    try:
        return os.read(descriptor, 4096).decode().strip()
    finally:
        os.close(descriptor)


def _write(path: str, value: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=_root())
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)
