"""The planner's judgement of gateways against the kernel's own."""

from __future__ import annotations

import os
import random
import subprocess
from typing import TYPE_CHECKING

import pytest

from nri_dranet.dra.plan_routes import Reach
from nri_dranet.netlink.codec import AF_INET, AF_INET6
from nri_dranet.netlink.model import Address, Route

if TYPE_CHECKING:
    from collections.abc import Iterator

CASES = 120


class Namespace:
    """A network namespace with one interface that is up."""

    def __init__(self, name: str) -> None:
        self.name = name

    def ip(self, *words: str) -> bool:
        """Run a command of iproute2 and tell whether the kernel took it."""
        return subprocess.run(["ip", "-n", self.name, *words], capture_output=True, check=False).returncode == 0


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """Make a namespace with a veth pair, both ends up, and take it away again."""
    name = f"plan-reach-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        made = Namespace(name)
        assert made.ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")
        for link in ("lo", "v0", "v1"):
            assert made.ip("link", "set", link, "up")
        yield made
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def case(dice: random.Random, family: int) -> tuple[list[str], list[tuple[str, int]], str, int]:
    """Return addresses, routes on the link with their tables, a gateway, and the table of the route through it."""
    six = family == AF_INET6

    def host(network: int) -> str:
        return f"fd77:{network}::{dice.randint(0, 9)}" if six else f"10.77.{network}.{dice.randint(0, 9)}"

    lengths = (128, 64, 120) if six else (32, 24, 30)
    addresses = [f"{host(dice.randint(1, 2))}/{dice.choice(lengths)}" for _ in range(dice.randint(0, 2))]
    network = dice.randint(1, 3)
    routes = [(f"fd77:{network}::/64" if six else f"10.77.{network}.0/24", dice.choice([254, 7, 8]))]
    return addresses, routes[: dice.randint(0, 1)], host(dice.randint(1, 3)), dice.choice([254, 7])


@pytest.mark.parametrize("family", [AF_INET, AF_INET6])
def test_a_gateway_is_reachable_when_the_kernel_takes_it(namespace: Namespace, family: int) -> None:
    """For addresses, routes on the link and gateways at random the planner says what the kernel says."""
    dice = random.Random(family)  # noqa: S311 - the same cases in every run
    version = "-6" if family == AF_INET6 else "-4"
    target = "fd99::/64" if family == AF_INET6 else "10.99.0.0/16"
    verdicts = set()
    for _ in range(CASES):
        addresses, routes, gateway, table = case(dice, family)
        for address in addresses:
            namespace.ip("address", "add", address, "dev", "v0", *(["nodad"] if family == AF_INET6 else []))
        for destination, number in routes:
            namespace.ip(version, "route", "add", destination, "dev", "v0", "table", str(number), "scope", "link")
        reach = Reach(
            [
                Address(family=family, address=address, prefix_length=int(length))
                for address, _, length in (text.partition("/") for text in addresses)
            ],
            [Route(family=family, destination=destination, table=number) for destination, number in routes],
            254,
        )
        through = (target, "via", gateway, "dev", "v0", "table", str(table))
        taken = namespace.ip(version, "route", "add", *through)
        assert reach.on_link(gateway, table) == taken, (addresses, routes, gateway, table)
        verdicts.add(taken)
        namespace.ip(version, "route", "delete", *through)
        for destination, number in routes:
            namespace.ip(version, "route", "delete", destination, "dev", "v0", "table", str(number))
        for address in addresses:
            namespace.ip("address", "delete", address, "dev", "v0")
    assert verdicts == {True, False}
