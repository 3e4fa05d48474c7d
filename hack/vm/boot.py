"""Boot the guest in QEMU, without hardware virtualisation, and hand on what its tests report.

Its hardware: two root complexes, each with a NUMA node of its own; on each an SR-IOV network card.
"""

from __future__ import annotations

import json
import queue
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hack.vm.image import cpio

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

    from hack.vm.image import Image

SILENCE = 480.0
"""Seconds without a report after which a guest is taken for dead."""

_CONSOLE_LINES = 60
_ARGUMENTS = (
    "console=ttyS0 quiet panic=-1 oops=panic reboot=t mitigations=off nokaslr tsc=reliable no_timer_check "
    "rcupdate.rcu_expedited=1 net.ifnames=0"
)
_MACHINE = (
    *("-M", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "1536", "-nodefaults", "-display", "none"),
    *("-no-reboot", "-object", "memory-backend-ram,id=m0,size=1024M", "-object", "memory-backend-ram,id=m1,size=512M"),
    *("-numa", "node,nodeid=0,memdev=m0,cpus=0", "-numa", "node,nodeid=1,memdev=m1"),
    *("-device", "pcie-root-port,id=near,bus=pcie.0,chassis=1"),
    *("-device", "pxb-pcie,id=far,bus=pcie.0,bus_nr=128,numa_node=1"),
    *("-device", "pcie-root-port,id=beyond,bus=far,chassis=2"),
    *("-netdev", "user,id=n0,restrict=on,ipv6=off", "-device", "igb,bus=near,netdev=n0,mac=52:54:00:00:00:01"),
    *("-netdev", "user,id=n1,restrict=on,ipv6=off", "-device", "igb,bus=beyond,netdev=n1,mac=52:54:00:00:00:02"),
)


class GuestError(Exception):
    """The guest ended or fell silent; the text has the end of its console."""


class Guest:
    """One boot of the guest.

    Args:
        image: What to boot.
        tests: The tests' node IDs, in order.
        options: More of pytest's options inside.
        arguments: More of the kernel's arguments.
    """

    def __init__(self, image: Image, tests: Sequence[str], *, options: Sequence[str] = (), arguments: str = "") -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="nri-dranet-guest-")
        folder = Path(self._folder.name)
        wanted = json.dumps({"tests": list(tests), "options": list(options)})
        root = folder / "root"
        base = image.first_root.read_bytes()
        # The kernel looks for a further archive at the next multiple of four.
        root.write_bytes(base + b"\0" * (-len(base) % 4) + cpio({"run.json": wanted.encode()}))
        self._console = folder / "console"
        command, environment = image.packages.tool("qemu-system-x86_64")
        disks = [
            word
            for number, disk in enumerate(image.disks)
            for word in (
                *("-drive", f"file={disk},if=none,format=raw,readonly=on,id=d{number}"),
                *("-device", f"virtio-blk-pci,bus=pcie.0,drive=d{number},addr={number + 16:#x}"),
            )
        ]
        self._process = subprocess.Popen(
            [
                # Whatever becomes of the test run, its guest ends with it.
                *("setpriv", "--pdeathsig", "KILL", *command, "-L", str(image.packages.tools / "usr/share/qemu"), "-L"),
                *(str(image.packages.tools / "usr/share/seabios"), *_MACHINE, *disks),
                *("-kernel", str(image.kernel), "-initrd", str(root), "-append", f"{_ARGUMENTS} {arguments}"),
                *("-serial", f"file:{self._console}", "-device", "virtio-serial-pci,bus=pcie.0"),
                *("-chardev", "stdio,id=reports,signal=off", "-device", "virtserialport,chardev=reports"),
            ],
            env=environment,
            # An end of its input would close the port to QEMU, and the guest's writes would wait for ever.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

        # Read at once: whoever asks for the messages may do so later, and a full pipe would stop the guest.
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the guest and remove its files."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()
        self._folder.cleanup()

    def messages(self) -> Iterator[dict[str, Any]]:
        """Give what the guest reports until its tests have ended.

        Raises:
            GuestError: it ended before its tests, or fell silent.
        """
        while True:
            try:
                line = self._lines.get(timeout=SILENCE)
            except queue.Empty:
                raise GuestError(f"the guest was silent for {SILENCE:g} s\n{self.console()}") from None
            if line is None:
                raise GuestError(f"the guest ended before its tests did\n{self.console()}")
            if not line.startswith("{"):
                raise GuestError(f"QEMU says: {line}{self.console()}")
            try:
                message = json.loads(line)
            except ValueError as error:
                raise GuestError(f"the guest's report is torn: {error}: {line}{self.console()}") from error
            yield message
            if "end" in message:
                return

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._lines.put(line)
        self._lines.put(None)

    def console(self) -> str:
        """Return the end of the guest's console."""
        text = self._console.read_text(errors="replace") if self._console.exists() else ""
        return "\n".join(text.splitlines()[-_CONSOLE_LINES:])
