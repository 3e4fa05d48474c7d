"""Plans without a kernel."""

from __future__ import annotations

from typing import Any

import pytest

from nri_dranet.claims.model import DeviceKey
from nri_dranet.claims.plan import DeviceKind, DevicePlan, HostState, PodState
from nri_dranet.netlink.model import Address, Link, Route


class Make:
    """Makes plans, links, addresses and routes with few words."""

    @staticmethod
    def link(**more: Any) -> Link:
        """Make a link ``n0`` with index 7."""
        return Link(**{"index": 7, "name": "n0", "address": "02:00:00:00:00:01", **more})

    @staticmethod
    def address(cidr: str, **more: Any) -> Address:
        """Make an address."""
        text, _, length = cidr.partition("/")
        return Address(family=10 if ":" in text else 2, address=text, prefix_length=int(length), **more)

    @staticmethod
    def route(destination: str, gateway: str | None = None, **more: Any) -> Route:
        """Make a route."""
        return Route(family=10 if ":" in destination else 2, destination=destination, gateway=gateway, **more)

    @staticmethod
    def plan(
        link: Link | None = None, kind: DeviceKind = DeviceKind.INTERFACE, rdma: Any = None, **pod: Any
    ) -> DevicePlan:
        """Make a plan of a link that is to be ``net1``."""
        host = HostState(link=link or Make.link())
        state = PodState(**{"name": "net1", **pod})
        key = DeviceKey(pool="node", device="dev")
        return DevicePlan(key=key, request="nic", kind=kind, host=host, pod=state, rdma=rdma)


@pytest.fixture
def make() -> Make:
    """Make objects."""
    return Make()
