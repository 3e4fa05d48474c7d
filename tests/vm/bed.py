"""What guest tests stand on: the guest's own namespace as the node, pods' namespaces, and RDMA and SR-IOV devices."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nri_dranet.attach.engine import Engine
from nri_dranet.attach.snapshot import take_snapshot
from nri_dranet.claims.model import DeviceKey
from nri_dranet.claims.plan import DeviceKind, DevicePlan, PodState, RdmaPlan
from nri_dranet.dra.hardware import Hardware
from nri_dranet.inventory.inventory import Inventory
from nri_dranet.netlink.namespaces import NetNs
from nri_dranet.netlink.sockets import RtnlSocket
from nri_dranet.status.conditions import device_status
from nri_dranet.sysfs import Sysfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nri_dranet.attach.engine import Detached
    from nri_dranet.claims.facts import DeviceFacts
    from nri_dranet.inventory.device import Device
    from nri_dranet.netlink.model import Link

MODULE = Path("/project/modules/dranet_test.ko")
PARAMETERS = Path("/sys/module/dranet_test/parameters")
NEAR, FAR = "0000:01:00.0", "0000:81:00.0"
"""The PCI addresses of the two SR-IOV cards: on the first root complex, and on the one of NUMA node 1."""

_NUMBERS = itertools.count(1)


def run(*words: str, check: bool = True) -> str:
    """Run a program and return what it prints."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(words)}: {done.stderr}")
    return done.stdout


def eventually(look: Callable[[], object], what: str, patience: float = 60) -> None:
    """Look until it is true; fail after a time that no working kernel needs."""
    end = time.monotonic() + patience
    while not look():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.02)


@dataclass
class Bed:
    """The node and what a test makes on it; everything is taken away after the test."""

    engine: Engine
    host: NetNs
    stack: contextlib.ExitStack
    pods: dict[str, NetNs] = field(default_factory=dict)
    rdma: list[str] = field(default_factory=list)

    # the node

    def link(self, *words: str) -> str:
        """Make a link on the node and return its name: the first word. It goes with the test."""
        name = words[0]
        run("ip", "link", "add", *words)
        self.stack.callback(run, "ip", "link", "del", name, check=False)
        return name

    def test_rdma(self, name: str, where: str, layer: str = "roce", ports: int = 1) -> str:
        """Make a test RDMA device (roce, iwarp, ib) on an interface, a PCI function or (``-``) nothing."""
        load_module()
        write(PARAMETERS / "add", f"{name} {where} {layer} {ports}")
        self.rdma.append(name)
        return name

    def rxe(self, name: str, interface: str) -> str:
        """Make a software RDMA device on an interface."""
        run("modprobe", "rdma_rxe")
        run("rdma", "link", "add", name, "type", "rxe", "netdev", interface)
        self.stack.callback(run, "rdma", "link", "del", name, check=False)
        return name

    def bare_function(self, number: int = 0, card: str = NEAR) -> str:
        """Return the PCI address of a virtual function that has a driver and no interface."""
        load_module()
        _, address = self.vf(number, card)
        place = Path("/sys/bus/pci/devices") / address
        former = (place / "driver").resolve().name
        self.stack.callback(_give_function, address, former)
        _give_function(address, "dranet_test")
        return address

    def vf(self, number: int = 0, card: str = NEAR) -> tuple[str, str]:
        """Return interface and PCI address of a virtual function of a card, which has two."""
        for module in ("igbvf", "igb"):
            run("modprobe", module)
        place = Path("/sys/bus/pci/devices") / card
        eventually((place / "net").exists, "the card's driver")
        if (place / "sriov_numvfs").read_text().strip() == "0":
            run("ip", "link", "set", self.netdev(card), "up")
            write(place / "sriov_numvfs", "2")
        address = (place / f"virtfn{number}").resolve().name
        eventually(lambda: list((place / f"virtfn{number}" / "net").glob("*")), "the function's interface")
        return self.netdev(address), address

    @staticmethod
    def netdev(address: str) -> str:
        """Return the interface of a PCI function."""
        return next(iter(sorted(Path(f"/sys/bus/pci/devices/{address}/net").iterdir()))).name

    @staticmethod
    def no_vfs(card: str = NEAR) -> None:
        """Take a card's virtual functions away."""
        write(Path("/sys/bus/pci/devices") / card / "sriov_numvfs", "0")

    @staticmethod
    def up(name: str, *, up: bool = True) -> None:
        """Set an interface of the node up or down."""
        run("ip", "link", "set", name, "up" if up else "down")

    # a pod

    def pod(self) -> str:
        """Make a pod's namespace and return its name."""
        name = f"pod{next(_NUMBERS)}"
        run("ip", "netns", "add", name)
        self.pods[name] = NetNs.open(f"/run/netns/{name}")
        return name

    def end(self, pod: str) -> None:
        """Delete a pod's namespace; nothing here keeps it."""
        self.pods.pop(pod).close()
        run("ip", "netns", "del", pod)

    # what the driver does

    @contextlib.contextmanager
    def inventory(self) -> Iterator[Inventory]:
        """Give the real inventory, with its first scan done."""
        inventory = Inventory(Sysfs())
        inventory.start()
        try:
            assert inventory.wait(60)
            yield inventory
        finally:
            inventory.stop()

    def devices(self) -> dict[str, Device]:
        """Return what the inventory finds, by name."""
        with self.inventory() as inventory:
            return {device.name: device for device in inventory.devices()}

    def device(self, interface: str) -> Device:
        """Return the device of an interface."""
        return next(one for one in self.devices().values() if one.link and one.link.name == interface)

    def plan(self, device: Device, pod_name: str = "net1", **pod: Any) -> DevicePlan:
        """Plan a device as Prepare does, with the hardware as it is now."""
        hardware = Hardware(Sysfs(), tuple)
        rdma = None
        if device.rdma:
            rdma = RdmaPlan(
                link=device.rdma,
                exclusive=hardware.rdma_exclusive(),
                node_guid=hardware.node_guid(device.rdma),
                char_devices=hardware.char_devices(device.rdma),
            )
        snapshot = None
        if device.link is not None:
            with RtnlSocket() as host:
                snapshot = take_snapshot(host, device.link.index)
        return DevicePlan(
            key=DeviceKey(pool="node", device=device.name),
            request="nic",
            kind=DeviceKind.INTERFACE if snapshot else DeviceKind.RDMA,
            host=snapshot,
            pod=PodState(name=pod_name, **pod) if snapshot else None,
            rdma=rdma,
            pci_address=device.pci_address,
        )

    def attach(self, pod: str, *plans: DevicePlan) -> tuple[DeviceFacts, ...]:
        """Attach devices to a pod, in ample time."""
        return self.engine.attach(plans, self.pods[pod], deadline=time.monotonic() + 120)

    def detach(self, pod: str | None, *plans: DevicePlan) -> tuple[Detached, ...]:
        """Bring devices home; without a pod its namespace is gone."""
        return self.engine.detach(plans, self.pods[pod] if pod else None, hints={})

    def look(self, pod: str | None, plan: DevicePlan) -> DeviceFacts:
        """Look at a device."""
        return self.engine.look([plan], self.pods[pod] if pod else None, {})[0]


def load_module() -> None:
    """Load the test module, and those that make character devices of RDMA devices."""
    if not PARAMETERS.exists():
        for module in ("ib_uverbs", "ib_umad", "rdma_ucm"):
            run("modprobe", module)
        run("insmod", str(MODULE))


def _give_function(address: str, driver: str) -> None:
    place = Path("/sys/bus/pci/devices") / address
    if not place.exists():
        return
    if (place / "driver").exists():
        write(place / "driver" / "unbind", address)
    write(place / "driver_override", driver if driver == "dranet_test" else "\n")
    write(Path("/sys/bus/pci/drivers") / driver / "bind", address)


def conditions(facts: DeviceFacts) -> dict[str, tuple[str, str]]:
    """Return the claim's conditions as the status writer would have them: type to status and reason."""
    entry = device_status(facts, "dra.net", None, datetime.now(UTC))
    return {each["type"]: (each["status"], each["reason"]) for each in entry["conditions"]}


def write(path: Path, text: str) -> None:
    """Write to a file of sysfs in one call; what the kernel refuses is raised."""
    with path.open("wb", buffering=0) as file:
        file.write(text.encode())


def rdma_links(netns: str = "") -> dict[str, dict[str, Any]]:
    """Return the RDMA links that a namespace sees, as the rdma command shows them."""
    prefix = ("ip", "netns", "exec", netns) if netns else ()
    shown: list[dict[str, Any]] = json.loads(run(*prefix, "rdma", "-j", "link", "show") or "[]")
    return {link["ifname"]: link for link in shown}


def links(netns: str = "") -> dict[str, dict[str, Any]]:
    """Return the interfaces of a namespace, as the ip command shows them."""
    prefix = ("-n", netns) if netns else ()
    return {link["ifname"]: link for link in json.loads(run("ip", *prefix, "-j", "-d", "link", "show"))}


def link_of(netns: str, name: str) -> Link | None:
    """Return a link of a pod by the driver's own codec."""
    with NetNs.open(f"/run/netns/{netns}") as where, RtnlSocket(where) as socket:
        return socket.link(name=name)


def make_bed() -> Iterator[Bed]:
    """Give a bed and clean up after it: RDMA devices, links, pods."""
    with contextlib.ExitStack() as stack, NetNs.current() as host:
        engine = Engine(host_netns=host)
        stack.callback(engine.close)
        bed = Bed(engine, host, stack)
        yield bed
        for name in list(bed.pods):
            bed.end(name)
        # A namespace is taken apart behind the command's back, and its RDMA devices come home then.
        for name in bed.rdma:
            eventually(lambda name=name: remove(name), f"{name} removed")  # type: ignore[misc]
        # The module goes by a function's RDMA device, so those that gave up their interface get it back after that.


def remove(name: str) -> bool:
    """Remove a test RDMA device; one that went with its interface is fine."""
    with contextlib.suppress(OSError):
        write(PARAMETERS / "remove", name)
    return name not in rdma_links()


def names(items: Sequence[Any]) -> list[str]:
    """Return the names of things."""
    return [item.name for item in items]
