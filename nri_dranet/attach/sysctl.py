"""Sysctls of an interface, and of a network namespace, through /proc/sys.

Only for what netlink cannot set, or sets without its side effects. ``/proc/sys/net`` shows the network namespace of the
thread that opens a file (``net/sysctl_net.c``), so the thread enters the namespace for the time of the calls.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nri_dranet.netlink.namespaces import NetNs

_ROOT: Final = "/proc/sys/net/"


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
                failed.append((key, error))
    return failed


def _path(key: str, interface: str) -> str:
    if not interface:
        return _ROOT + key
    directory, _, name = key.rpartition("/")
    return f"{_ROOT}{directory}/{interface}/{name}"


# os.open and os.read take a fifth of the time of open(): this runs in hooks.
def _read(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 4096).decode().strip()
    finally:
        os.close(descriptor)


def _write(path: str, value: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)
