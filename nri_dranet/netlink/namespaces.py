"""Network namespaces: opening them, entering them with one thread, making sockets in them.

A thread is in one namespace, and a socket stays in the one where it was made. So entering is: switch this thread,
make the socket, switch back; no fork, no helper process. Source of the facts: setns(2), ioctl_nsfs(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import socket
import stat
import sys
from typing import TYPE_CHECKING, Final

from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

LOG = logging.getLogger(__name__)

_CLONE_NEWNET: Final = 0x4000_0000
_NS_GET_NSTYPE: Final = 0xB703
_STUCK: Final = 70
_OWN: Final = "/proc/thread-self/ns/net"


class NamespaceGoneError(Exception):
    """There is no network namespace at the path: it does not exist, or is something else (a file left after umount)."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"no network namespace at {self.path}: {self.why}"


if sys.version_info >= (3, 12):  # pragma: no cover - the other branch is what 3.11 has

    def _setns(fd: int) -> None:
        os.setns(fd, _CLONE_NEWNET)

else:
    # PyDLL keeps the GIL: the call takes a microsecond, losing and regaining the GIL may take five milliseconds.
    _libc_setns = ctypes.PyDLL(None, use_errno=True).setns
    _libc_setns.argtypes = (ctypes.c_int, ctypes.c_int)

    def _setns(fd: int) -> None:
        if _libc_setns(fd, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def _open(path: str) -> int:
    try:
        # A path that anything else was put at (a FIFO) must not block us.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError) as error:
        raise NamespaceGoneError(path, error.strerror or str(error)) from error
    except OSError as error:
        # ENXIO: a socket; ELOOP: links in a circle. EACCES and EMFILE are the caller's to know.
        if error.errno in {errno.ENXIO, errno.ELOOP, errno.ENAMETOOLONG}:
            raise NamespaceGoneError(path, error.strerror or str(error)) from error
        raise
    try:
        kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError as error:
        mode = os.fstat(fd).st_mode
        os.close(fd)
        what = "a plain file" if stat.S_ISREG(mode) else "no namespace"
        raise NamespaceGoneError(path, f"it is {what}") from error
    if kind != _CLONE_NEWNET:
        os.close(fd)
        raise NamespaceGoneError(path, f"it is a namespace of another type ({kind:#x})")
    return fd


class NetNs:
    """An open network namespace. It stays alive as long as this is open, whatever becomes of its path.

    Made by ``open``, ``current`` or ``of_pid``. Threads may share it; ``close`` ends it for all.
    """

    __slots__ = ("_fd", "device", "inode", "path")

    def __init__(self, fd: int, path: str) -> None:
        status = os.fstat(fd)
        self._fd = fd
        self.path = path
        self.device = status.st_dev
        self.inode = status.st_ino

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open the namespace at a path.

        Raises:
            NamespaceGoneError: there is none.
            OSError: it cannot be opened (no permission, no descriptors left).
        """
        text = os.fspath(path)
        return cls(_open(text), text)

    @classmethod
    def current(cls) -> Self:
        """Open the namespace that this thread is in."""
        return cls(_open(_OWN), _OWN)

    @classmethod
    def of_pid(cls, pid: int) -> Self:
        """Open the namespace of a process (raises NamespaceGoneError if it has ended)."""
        return cls.open(f"/proc/{pid}/ns/net")

    @property
    def fd(self) -> int:
        """The descriptor, for a netlink request that names a namespace.

        Raises:
            ValueError: it is closed.
        """
        if self._fd < 0:
            raise ValueError(f"the namespace {self.path} is closed here")
        return self._fd

    @property
    def closed(self) -> bool:
        """Tell whether ``close`` was called."""
        return self._fd < 0

    def same(self, other: NetNs) -> bool:
        """Tell whether both are one namespace."""
        return (self.device, self.inode) == (other.device, other.inode)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be inside with this thread for the length of a ``with`` block; nothing in it may await or change threads.

        A thread that cannot leave would do the node's work in the pod from then on, whatever catches its error. So the
        process ends at once if the way back fails: what is recorded survives that.

        Raises:
            PermissionError: CAP_SYS_ADMIN is missing.
        """
        home = _open(_OWN)
        try:
            try:
                _setns(self.fd)
            except PermissionError as error:
                text = "a network namespace cannot be entered, which takes the capability SYS_ADMIN"
                raise PermissionError(error.errno, text) from error
            try:
                yield
            finally:
                try:
                    _setns(home)
                except OSError as error:
                    LOG.critical("a thread cannot leave a pod's namespace", extra=fields(path=self.path, error=error))
                    os._exit(_STUCK)
        finally:
            os.close(home)

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Make a socket inside. It can be used by every thread, inside or not.

        Raises:
            OSError: the kernel refuses it.
        """
        with self.entered():
            return socket.socket(family, kind, protocol)

    def close(self) -> None:
        """Let go of the namespace. A second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<NetNs {self.path} inode {self.inode}{' closed' if self.closed else ''}>"
