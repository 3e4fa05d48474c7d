"""A sysfs tree as the kernel lays it out, to be filled by tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nri_dranet.sysfs import Sysfs


class Tree:
    """Writes files and links below a root, as the kernel's are."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sysfs = Sysfs(root)

    def write(self, path: str, text: str | int) -> None:
        """Write a file."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(f"{text}\n", encoding="utf-8")

    def link(self, path: str, target: str) -> None:
        """Make a relative link."""
        (self.root / target).mkdir(parents=True, exist_ok=True)
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        folder = (self.root / path).parent.resolve()
        (folder / Path(path).name).symlink_to(os.path.relpath(self.root / target, folder))

    def unlink(self, path: str) -> None:
        """Remove a file or link."""
        (self.root / path).unlink()

    def function(
        self,
        address: str,
        *,
        class_code: int = 0x020000,
        driver: str = "mlx5_core",
        vendor: int = 0x15B3,
        device: int = 0x1017,
        numa: int = -1,
        **files: int | str,
    ) -> str:
        """Add a PCI function; returns its folder."""
        folder = f"devices/pci0000:80/{address}"
        self.link(f"bus/pci/devices/{address}", folder)
        self.write(f"{folder}/class", f"{class_code:#08x}")
        self.write(f"{folder}/vendor", f"{vendor:#06x}")
        self.write(f"{folder}/device", f"{device:#06x}")
        self.write(f"{folder}/subsystem_device", "0x0008")
        self.write(f"{folder}/numa_node", numa)
        if driver:
            self.link(f"{folder}/driver", f"bus/pci/drivers/{driver}")
        for name, value in files.items():
            self.write(f"{folder}/{name}", value)
        return folder

    def interface(self, name: str, folder: str) -> None:
        """Add an interface below a device."""
        self.link(f"class/net/{name}", f"{folder}/net/{name}")

    def virtual(self, name: str) -> None:
        """Add an interface of software."""
        self.link(f"class/net/{name}", f"devices/virtual/net/{name}")

    def rdma(self, name: str, folder: str, *, layer: str = "Ethernet", interface: str = "", ports: int = 1) -> None:
        """Add an RDMA device below a device."""
        place = f"{folder}/infiniband/{name}"
        self.link(f"class/infiniband/{name}", place)
        self.write(f"{place}/node_guid", "0002:c903:00a1:0000")
        for port in range(1, ports + 1):
            self.write(f"{place}/ports/{port}/state", "4: ACTIVE")
            self.write(f"{place}/ports/{port}/phys_state", "5: LinkUp")
            self.write(f"{place}/ports/{port}/link_layer", layer)
            self.write(f"{place}/ports/{port}/gids/0", f"fe80:0000:0000:0000:0002:c903:00a1:2b3{'cdef'[port - 1]}")
        if interface:
            self.write(f"{place}/ports/1/gid_attrs/ndevs/0", interface)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """An empty tree with one NUMA node."""
    found = Tree(tmp_path / "sys")
    found.write("devices/system/node/node0/distance", "10")
    return found
