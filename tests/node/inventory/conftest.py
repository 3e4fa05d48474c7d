"""An inventory in a namespace of its own, and iproute2 there."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.inventory.inventory import Inventory
from nri_dranet.sysfs import Sysfs
from tests.node.unshared import unshared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nri_dranet.inventory.device import Device
    from nri_dranet.inventory.state import Policy
    from nri_dranet.netlink.namespaces import NetNs


class Node:
    """A namespace that plays the node, and the inventory of it."""

    def __init__(self, netns: NetNs, sysfs: Sysfs, policy: Policy | None, max_interval: float) -> None:
        self.netns = netns
        self.changes = 0
        with netns.entered():
            self.inventory = Inventory(sysfs, policy=policy, max_interval=max_interval)
        self.inventory.subscribe(self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def start(self) -> None:
        """Start the inventory in the namespace and wait for its first scan."""
        with self.netns.entered():
            self.inventory.start()
        assert self.inventory.wait(10)

    def run(self, *words: str, text: str = "") -> str:
        """Run a program in the namespace."""
        where = f"--net=/proc/{os.getpid()}/fd/{self.netns.fd}"
        done = subprocess.run(
            ("nsenter", where, *words),
            check=True,
            capture_output=True,
            pass_fds=(self.netns.fd,),
            input=text,
            encoding="utf-8",
        )
        return done.stdout

    def ip(self, words: str) -> None:
        """Run ``ip`` with some words."""
        self.run("ip", *words.split())

    def batch(self, lines: list[str]) -> None:
        """Run many ``ip`` commands at once."""
        self.run("ip", "-batch", "-", text="\n".join(lines))

    def find(self, name: str) -> Device | None:
        """Return a device as the inventory knows it now, without a scan for it."""
        return next((device for device in self.inventory.devices() if device.name == name), None)

    def refused(self, name: str) -> str | None:
        """Return why a device may not be given away; None: there is no such device."""
        device = self.find(name)
        return device.refused if device else None

    def value(self, name: str, attribute: str) -> Any:
        """Return an attribute's value; None where there is none."""
        device = self.find(name)
        found = device.attributes.get(f"dra.net/{attribute}") if device else None
        return next(iter(found.values())) if found else None

    def until(self, condition: Callable[[], object], seconds: float = 10.0) -> None:
        """Wait until a condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, (
                f"not in time; devices: {[(d.name, d.refused) for d in self.inventory.devices()]}"
            )
            time.sleep(0.01)


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Make a node; its inventory and namespace end with the test. By default its sysfs is empty."""
    made: list[Node] = []

    def make(*, policy: Policy | None = None, max_interval: float = 3600.0, root: str = "") -> Node:
        made.append(Node(unshared(), Sysfs(root or tmp_path), policy, max_interval))
        return made[-1]

    yield make
    for node in made:
        node.inventory.stop()
        node.netns.close()


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    """A node without a periodic scan: what is seen was announced."""
    found = make_node()
    found.start()
    return found
