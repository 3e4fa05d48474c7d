"""Namespaces of a test's own, without a name and without a trace: they end with their last descriptor."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.netlink.sockets import RtnlSocket
from tests.node.unshared import unshared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nri_dranet.netlink.namespaces import NetNs


@pytest.fixture
def make_netns() -> Iterator[Callable[[], NetNs]]:
    """Make namespaces that end with the test."""
    made: list[NetNs] = []

    def make() -> NetNs:
        made.append(unshared())
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def netns(make_netns: Callable[[], NetNs]) -> NetNs:
    """Give one namespace."""
    return make_netns()


@pytest.fixture
def rtnl_socket(netns: NetNs) -> Iterator[RtnlSocket]:
    """Give a socket in ``netns``."""
    with RtnlSocket(netns) as made:
        yield made


@pytest.fixture
def ip() -> Callable[..., list[dict[str, Any]]]:
    """Give iproute2 in a namespace, as JSON: ``ip(netns, "addr", "show")``."""

    def run(netns: NetNs, *words: str) -> list[dict[str, Any]]:
        where = f"--net=/proc/{os.getpid()}/fd/{netns.fd}"
        done = subprocess.run(
            ("nsenter", where, "ip", "-j", "-d", *words), check=True, capture_output=True, pass_fds=(netns.fd,)
        )
        found: list[dict[str, Any]] = json.loads(done.stdout or b"[]")
        return found

    return run


@pytest.fixture
def make_tap() -> Iterator[Callable[[NetNs, str], int]]:
    """Make tap devices in a namespace; they end with the test. Gives the descriptor that holds the device's carrier."""
    opened: list[int] = []

    def make(netns: NetNs, name: str) -> int:
        with netns.entered():
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            opened.append(fd)
            # TUNSETIFF with IFF_TAP | IFF_NO_PI.
            fcntl.ioctl(fd, 0x4004_54CA, struct.pack("16sH22x", name.encode(), 0x1002))
        return fd

    yield make
    for fd in opened:
        os.close(fd)
