"""A client's interface and a server's, joined by a veth pair, each in a namespace of its own without a name."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from nri_dranet.dhcp.link import running
from nri_dranet.netlink import rtnl
from nri_dranet.netlink.codec import AF_INET
from nri_dranet.netlink.model import Address
from nri_dranet.netlink.sockets import RtnlSocket
from tests.node.unshared import unshared

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nri_dranet.netlink.namespaces import NetNs


@dataclass(frozen=True)
class Wire:
    """The client's interface ``c0`` and the server's ``s0``."""

    client: NetNs
    server: NetNs
    index: int
    hardware_address: str

    def rtnl(self) -> RtnlSocket:
        """Return a netlink socket in the client's namespace."""
        return RtnlSocket(self.client)


@pytest.fixture
def wire() -> Iterator[Wire]:
    """Join the two; both ends are up, the server's has 10.99.0.1/24."""
    with unshared() as client, unshared() as server:
        with RtnlSocket(client) as here, RtnlSocket(server) as there:
            here.request(rtnl.new_link("veth", "c0", peer="s0", peer_netns_fd=server.fd))
            own, peer = here.link(name="c0"), there.link(name="s0")
            assert own is not None
            assert peer is not None
            there.request(rtnl.set_link(peer.index, up=True))
            there.request(rtnl.add_address(Address(family=AF_INET, address="10.99.0.1", prefix_length=24), peer.index))
            here.request(rtnl.set_link(own.index, up=True))
        for netns, index in ((client, own.index), (server, peer.index)):
            with running(index, deadline=time.monotonic() + 10, netns=netns):
                pass
        yield Wire(client, server, own.index, own.address)
