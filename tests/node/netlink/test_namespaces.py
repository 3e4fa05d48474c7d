"""Namespaces on the real kernel: what is one, being inside, coming back."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from nri_dranet.netlink import namespaces
from nri_dranet.netlink.namespaces import NamespaceGoneError, NetNs
from nri_dranet.netlink.sockets import RtnlSocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def mounted(tmp_path: Path, netns: NetNs) -> Iterator[Path]:
    """Give a path at which ``netns`` is mounted, as runtimes do it."""
    path = tmp_path / "cni-1"
    path.touch()
    libc = ctypes.CDLL(None, use_errno=True)
    source = f"/proc/self/fd/{netns.fd}".encode()
    assert libc.mount(source, bytes(path), None, 4096, None) == 0, os.strerror(ctypes.get_errno())
    yield path
    libc.umount2(bytes(path), 2)


def test_a_mounted_namespace_is_opened(mounted: Path, netns: NetNs) -> None:
    """The path gives the same namespace, told by device and inode."""
    with NetNs.open(mounted) as opened, NetNs.current() as own:
        assert opened.same(netns)
        assert not opened.same(own)
        assert opened.path == str(mounted)
        assert opened.inode == netns.inode
        assert os.get_inheritable(opened.fd) is False


def test_a_plain_file_left_behind_is_no_namespace(mounted: Path) -> None:
    """After the umount the runtime's empty file stays: it must not be entered, nor taken for ours."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.umount2(bytes(mounted), 2) == 0
    with pytest.raises(NamespaceGoneError, match="it is a plain file") as caught:
        NetNs.open(mounted)
    assert caught.value.path == str(mounted)


def test_what_is_no_network_namespace_is_refused(tmp_path: Path) -> None:
    """Missing, a folder, a FIFO, a socket, a namespace of another type, an ended process: one error for all."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in (tmp_path / "none", tmp_path, fifo, tmp_path / "socket", loop, fifo / "x", "/proc/self/ns/uts"):
        with pytest.raises(NamespaceGoneError):
            NetNs.open(path)
    ended = subprocess.run(("sh", "-c", "echo $$"), check=True, capture_output=True, text=True)
    with pytest.raises(NamespaceGoneError):
        NetNs.of_pid(int(ended.stdout))


def test_the_namespace_of_a_process(netns: NetNs) -> None:
    """By its number, here this one's: each thread has its own, the process's is its first thread's."""
    with NetNs.of_pid(os.getpid()) as found, NetNs.current() as own:
        assert found.same(own)
        assert not found.same(netns)


def test_being_inside_is_the_threads_own_affair(netns: NetNs) -> None:
    """One thread is inside, the others are not, and it is back afterwards, also after an error."""
    with NetNs.current() as home:
        seen: list[bool] = []

        def look() -> None:
            with NetNs.current() as there:
                seen.append(there.same(home))

        with pytest.raises(RuntimeError, match="inside"), netns.entered():  # noqa: PT012
            with NetNs.current() as here:
                assert here.same(netns)
            thread = threading.Thread(target=look)
            # A thread starts where its maker is, so the one that looks was made before.
            del thread
            raise RuntimeError("inside")
        look()
        assert seen == [True]


def test_what_may_not_be_opened_or_entered_is_an_error_of_its_own(
    netns: NetNs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lack of rights or of descriptors does not mean that the namespace is gone; the right that lacks is named."""
    program = (
        "import sys\n"
        "from nri_dranet.netlink.namespaces import NetNs\n"
        "with NetNs(int(sys.argv[1]), 'given') as netns:\n"
        "    try:\n"
        "        with netns.entered():\n"
        "            print('inside')\n"
        "    except PermissionError as error:\n"
        "        print(error.strerror)\n"
    )
    words = ("unshare", "--user", sys.executable, "-c", program, str(netns.fd))
    done = subprocess.run(words, check=True, capture_output=True, text=True, pass_fds=(netns.fd,))
    assert done.stdout == "a network namespace cannot be entered, which takes the capability SYS_ADMIN\n"

    def full(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(OSError, match="Too many open files"):
        NetNs.open(tmp_path)


def test_entering_nests(make_netns: Callable[[], NetNs]) -> None:
    """Each block returns to where it came from."""
    one, two = make_netns(), make_netns()
    with one.entered():
        with two.entered(), NetNs.current() as here:
            assert here.same(two)
        with NetNs.current() as here:
            assert here.same(one)


class Ended(BaseException):
    """The process would have ended."""


def test_a_thread_that_cannot_come_back_ends_the_process(netns: NetNs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may go on in a thread that stays in a pod's namespace, whatever catches its errors."""
    real = namespaces._setns
    calls: list[int] = []

    def once(fd: int) -> None:
        calls.append(fd)
        if len(calls) > 1:
            raise OSError(1, "Operation not permitted")
        real(fd)

    def work() -> None:
        with pytest.raises(Ended, match="70"), netns.entered():
            pass

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(namespaces, "_setns", once)
    monkeypatch.setattr("os._exit", end)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(calls) == 2


def test_a_socket_made_inside_works_outside_and_keeps_the_namespace(make_netns: Callable[[], NetNs]) -> None:
    """The socket stays in its namespace after every other descriptor of that is closed."""
    netns = make_netns()
    made = RtnlSocket(netns)
    netns.close()
    with made:
        assert [link.name for link in made.links()] == ["lo"]


def test_closing(netns: NetNs) -> None:
    """Twice is once; a closed one cannot be used, and says so."""
    assert repr(netns) == f"<NetNs {netns.path} inode {netns.inode}>"
    netns.close()
    netns.close()
    assert netns.closed
    assert repr(netns).endswith("closed>")
    with pytest.raises(ValueError, match="is closed here"):
        netns.fd  # noqa: B018
    with pytest.raises(ValueError, match="is closed here"), netns.entered():
        pass
    with NetNs.current() as here, NetNs.of_pid(os.getpid()) as own:
        assert here.same(own)
