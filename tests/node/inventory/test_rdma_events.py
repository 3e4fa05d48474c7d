"""RDMA events reach the inventory. This kernel may have no RDMA: the monitor is a pipe here, sysfs a folder."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.inventory.inventory import pause_between_looks
from nri_dranet.netlink.nldev import NoRdmaError, RdmaEvent
from nri_dranet.netlink.sockets import EventsLostError
from nri_dranet.telemetry import metrics
from tests.unit.inventory.conftest import Tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Kernel:
    """What tells of RDMA events in a test."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe2(os.O_NONBLOCK)
        self.opened = 0
        self.closed = 0
        self.refusing: Exception | None = None
        self.lost = False

    def monitor(self) -> Kernel:
        """Open it, as the inventory does."""
        self.opened += 1
        if self.refusing is not None:
            raise self.refusing
        return self

    def fileno(self) -> int:
        """Give the descriptor to poll."""
        return self.reader

    def tell(self) -> None:
        """Send an event."""
        os.write(self.writer, b"x")

    def receive(self) -> list[RdmaEvent]:
        """Read the events."""
        try:
            told = os.read(self.reader, 100)
        except BlockingIOError:
            return []
        if self.lost:
            self.lost = False
            raise EventsLostError("dropped on purpose")
        return [RdmaEvent(kind="register", device_index=0, device="mlx5_0") for _ in told]

    def close(self) -> None:
        """Close it, as the inventory does."""
        self.closed += 1


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """A kernel with RDMA events."""
    found = Kernel()
    monkeypatch.setattr("nri_dranet.inventory.inventory.RdmaMonitor", found.monitor)
    yield found
    os.close(found.reader)
    os.close(found.writer)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """The node's sysfs: an RDMA card's function whose driver has made no RDMA device yet."""
    found = Tree(tmp_path / "sys")
    found.function("0000:81:00.0", class_code=0x020700)
    return found


def scans(cause: str) -> float:
    """Return how many scans a cause had."""
    return float(metrics.INVENTORY_RESYNCS.labels(cause)._value.get())


def test_an_rdma_device_that_comes_and_goes_is_followed_without_a_scan(
    make_node: Callable[..., Any], kernel: Kernel, tree: Tree
) -> None:
    """Its function is offered as soon as it has its RDMA device, and no longer when that is gone."""
    node = make_node(root=str(tree.root))
    node.start()
    before = metrics.INVENTORY_RESYNCS.collect()
    assert node.refused("pci-0000-81-00-0") == "it has neither an interface on the host nor an RDMA device"
    changes = node.changes
    tree.rdma("mlx5_0", "devices/pci0000:80/0000:81:00.0")
    kernel.tell()
    node.until(lambda: node.refused("pci-0000-81-00-0") == "")
    assert node.value("pci-0000-81-00-0", "rdmaDevice") == "mlx5_0"
    assert node.changes == changes + 1
    tree.unlink("class/infiniband/mlx5_0")
    (tree.root / "devices/pci0000:80/0000:81:00.0/infiniband").rename(tree.root / "gone")
    kernel.tell()
    node.until(lambda: node.value("pci-0000-81-00-0", "rdma") is False)
    assert metrics.INVENTORY_RESYNCS.collect() == before


def test_a_software_rdma_device_on_an_interface_is_seen(
    make_node: Callable[..., Any], kernel: Kernel, tree: Tree
) -> None:
    """RXE on an Ethernet interface: the interface becomes an RDMA device by the event alone."""
    node = make_node(root=str(tree.root))
    node.ip("link add eth1 type veth peer name p1")
    tree.virtual("eth1")
    node.start()
    assert node.value("eth1", "rdma") is False
    tree.rdma("rxe0", "devices/virtual/rxe", interface="eth1")
    kernel.tell()
    node.until(lambda: node.value("eth1", "rdmaDevice") == "rxe0")
    assert node.value("eth1", "rdmaPortState") == "ACTIVE"


def test_a_port_that_goes_down_is_seen_without_an_event(
    make_node: Callable[..., Any], kernel: Kernel, tree: Tree
) -> None:
    """The kernel tells of no port's state and of no new name: both are looked at, and nothing is scanned for it."""
    assert kernel.opened == 0
    tree.rdma("mlx5_0", "devices/pci0000:80/0000:81:00.0")
    node = make_node(root=str(tree.root))
    node.start()
    before = metrics.INVENTORY_RESYNCS.collect()
    assert node.value("pci-0000-81-00-0", "rdmaPortState") == "ACTIVE"
    tree.write("devices/pci0000:80/0000:81:00.0/infiniband/mlx5_0/ports/1/state", "1: DOWN")
    node.until(lambda: node.value("pci-0000-81-00-0", "rdmaPortState") == "DOWN")
    tree.unlink("class/infiniband/mlx5_0")
    (tree.root / "devices/pci0000:80/0000:81:00.0/infiniband").rename(tree.root / "gone")
    tree.rdma("renamed", "devices/pci0000:80/0000:81:00.0")
    node.until(lambda: node.value("pci-0000-81-00-0", "rdmaDevice") == "renamed")
    assert metrics.INVENTORY_RESYNCS.collect() == before


def test_lost_rdma_events_cost_one_scan(make_node: Callable[..., Any], kernel: Kernel, tree: Tree) -> None:
    """The kernel dropped some: everything is looked at, then events count again."""
    node = make_node(root=str(tree.root))
    node.start()
    before = scans("lost events")
    tree.rdma("mlx5_0", "devices/pci0000:80/0000:81:00.0")
    kernel.lost = True
    kernel.tell()
    node.until(lambda: node.refused("pci-0000-81-00-0") == "")
    assert scans("lost events") == before + 1


@pytest.mark.parametrize("refusing", [NoRdmaError("no RDMA"), OSError(24, "too many files")])
def test_a_kernel_that_gets_rdma_later_is_heard_then(
    make_node: Callable[..., Any], kernel: Kernel, tree: Tree, refusing: Exception
) -> None:
    """Without RDMA the inventory works; each scan tries again, until events come."""
    kernel.refusing = refusing
    node = make_node(root=str(tree.root))
    node.start()
    assert node.find("lo")
    kernel.refusing = None
    before = scans("asked for")
    node.inventory.refresh()
    node.until(lambda: scans("asked for") > before)
    tree.rdma("mlx5_0", "devices/pci0000:80/0000:81:00.0")
    kernel.tell()
    node.until(lambda: node.refused("pci-0000-81-00-0") == "")
    node.inventory.refresh()
    node.until(lambda: scans("asked for") > before + 1)
    assert kernel.opened == 2
    node.inventory.stop()
    assert kernel.closed == 1


def test_a_node_with_many_rdma_devices_looks_at_their_ports_less_often() -> None:
    """Twice a second at most, and never more than a two hundredth of the time."""
    assert pause_between_looks(0.0001) == pause_between_looks(0.0) == 0.5
    assert pause_between_looks(0.04) == pytest.approx(8.0)


def test_the_state_of_a_port_is_followed_without_any_event(
    make_node: Callable[..., Any], kernel: Kernel, tree: Tree
) -> None:
    """The kernel announces none; there is no periodic scan here."""
    tree.rdma("mlx5_0", "devices/pci0000:80/0000:81:00.0")
    node = make_node(root=str(tree.root))
    node.start()
    assert node.value("pci-0000-81-00-0", "rdmaPortState") == "ACTIVE"
    tree.write("devices/pci0000:80/0000:81:00.0/infiniband/mlx5_0/ports/1/state", "1: DOWN")
    node.until(lambda: node.value("pci-0000-81-00-0", "rdmaPortState") == "DOWN")
    assert kernel.opened == 1
