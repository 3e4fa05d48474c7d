"""An interface is made to run for as long as somebody is asked on it, and is as it was after that."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from nri_dranet.dhcp.errors import DhcpError
from nri_dranet.dhcp.link import running
from nri_dranet.netlink import rtnl
from nri_dranet.netlink.sockets import RtnlSocket

if TYPE_CHECKING:
    from nri_dranet.netlink.model import Link
    from tests.node.dhcp.conftest import Wire


def shown(wire: Wire) -> Link:
    """Return the client's interface as it is now."""
    with wire.rtnl() as socket:
        link = socket.link(index=wire.index)
    assert link is not None
    return link


def test_one_that_was_down_runs_and_is_down_again(wire: Wire) -> None:
    """It is up and running inside the block, and down after it, also when the block fails."""
    with wire.rtnl() as socket:
        socket.request(rtnl.set_link(wire.index, up=False))

    def work() -> None:
        with running(wire.index, deadline=time.monotonic() + 10, netns=wire.client) as before:
            assert not before.up
            assert shown(wire).operstate == "up"
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        work()
    assert not shown(wire).up


def test_one_that_was_up_stays_up(wire: Wire) -> None:
    """Nothing is done to an interface that runs."""
    with running(wire.index, deadline=time.monotonic() + 10, netns=wire.client):
        pass
    assert shown(wire).up


def test_one_without_carrier_is_told_and_left_as_it_was(wire: Wire) -> None:
    """Its other end is down: the wait ends at the deadline, in words."""
    with wire.rtnl() as socket, RtnlSocket(wire.server) as there:
        socket.request(rtnl.set_link(wire.index, up=False))
        peer = there.link(name="s0")
        assert peer is not None
        there.request(rtnl.set_link(peer.index, up=False))
    with (
        pytest.raises(DhcpError, match="interface c0 has no carrier after"),
        running(wire.index, deadline=time.monotonic() + 0.2, netns=wire.client),
    ):
        pass
    assert not shown(wire).up


def test_one_that_is_not_there_is_an_error(wire: Wire) -> None:
    """The kernel's word for it comes through."""
    with (
        pytest.raises(OSError, match="No such device"),
        running(9999, deadline=time.monotonic() + 1, netns=wire.client),
    ):
        pass
