"""Plans without a kernel."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, cast

import pytest

from nri_dranet.claims.model import DeviceKey
from nri_dranet.claims.plan import DeviceKind, DevicePlan, HostState, PodState
from nri_dranet.netlink import rtnl
from nri_dranet.netlink.codec import NetlinkError
from nri_dranet.netlink.links import LinkConf
from nri_dranet.netlink.model import Address, Link, Route
from nri_dranet.netlink.sockets import Reply

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nri_dranet.netlink.codec import Request


Answer = Link | int | None


class Kernel:
    """Answers requests by their labels, in its order; what is not named succeeds without an object."""

    def __init__(self, *script: tuple[str, Answer]) -> None:
        self.script = list(script)
        self.done: list[str] = []
        self.all_links: list[Link] = []

    def answer(self, request: Request) -> Reply:
        """Answer one request."""
        self.done.append(request.label)
        for place, (label, answer) in enumerate(self.script):
            if request.label == label:
                del self.script[place]
                if isinstance(answer, int):
                    return Reply(label, NetlinkError(answer, label, "no"))
                return Reply(label, None, (answer,) if answer else ())
        if request.label.startswith("read link"):
            return Reply(request.label, NetlinkError(errno.ENODEV, request.label))
        return Reply(request.label, None)

    def batch(self, requests: Sequence[Request], *, timeout: float = 0) -> list[Reply]:  # noqa: ARG002
        """Answer requests."""
        return [self.answer(request) for request in requests]

    def link(self, *, index: int = 0, name: str = "") -> Link | None:
        """Answer a request for a link."""
        found = self.answer(rtnl.get_link(index=index, name=name)).objects
        return cast("Link", found[0]) if found else None

    def links(self) -> list[Link]:
        """Answer a request for all links: whatever was put there."""
        return self.all_links

    def link_and_conf(self, index: int) -> tuple[Link, LinkConf] | None:
        """Answer a request for a link with its settings, of which it has none."""
        link = self.link(index=index)
        return (link, LinkConf({}, {})) if link else None

    def addresses(self, index: int = 0) -> list[Address]:  # noqa: ARG002
        """Answer that there are none."""
        return []


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


@pytest.fixture
def kernel() -> type[Kernel]:
    """Script a kernel's answers."""
    return Kernel
