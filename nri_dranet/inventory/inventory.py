"""The inventory: one scan, then kernel events. Knows every device of the node and which of them may be given away.

A thread of its own listens. A burst of events is one change; a lost event means one scan, then events again. What has
no events (PCI functions, RDMA devices) is looked at with the slow scan.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from typing import TYPE_CHECKING, Final

from nri_dranet import bpf
from nri_dranet.inventory.attributes import Programs
from nri_dranet.inventory.state import NodeState, Policy
from nri_dranet.inventory.uplinks import default_interfaces, is_default
from nri_dranet.netlink.model import Address, Link, Route
from nri_dranet.netlink.sockets import EventsLostError, RtnlMonitor, RtnlSocket
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nri_dranet.inventory.device import Device
    from nri_dranet.netlink.rtnl import Event
    from nri_dranet.sysfs import Sysfs

LOG = logging.getLogger(__name__)

_GROUPS: Final = ("link", "ipv4-address", "ipv6-address", "ipv4-route", "ipv6-route")
_SETTLE: Final = 0.03
"""Seconds that a burst is given to end."""

_LONGEST_SETTLE: Final = 0.25
_LOOK_AGAIN: Final = 1.0
_MAIN: Final = 254


class Inventory:
    """The node's devices. Must be made in the host's network namespace. Thread-safe."""

    def __init__(self, sysfs: Sysfs, *, policy: Policy | None = None, max_interval: float = 60.0) -> None:
        """Open the sockets; ``start`` begins.

        Args:
            sysfs: the host's.
            policy: what the operator decided.
            max_interval: seconds after which everything is scanned anew.

        Raises:
            OSError: a netlink socket cannot be made.
        """
        self._sysfs = sysfs
        self._max_interval = max_interval
        self._socket = RtnlSocket()
        self._monitor = RtnlMonitor(groups=_GROUPS)
        self._state = NodeState(sysfs=sysfs, policy=policy or Policy(), programs_of=_programs)
        self._lock = threading.RLock()
        self._subscribers: list[Callable[[], None]] = []
        self._stop = threading.Event()
        self._scanned = threading.Event()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._rescan = False
        self._last_scan = 0.0
        self._looked: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name="inventory", daemon=True)

    def start(self) -> None:
        """Begin to listen; the first scan is done when ``wait`` returns."""
        self._thread.start()

    def wait(self, timeout: float) -> bool:
        """Wait for the first scan; False when it did not end in time."""
        return self._scanned.wait(timeout)

    def stop(self) -> None:
        """End the thread and close the sockets."""
        self._stop.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join()
        self._socket.close()
        self._monitor.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    # ---- what others ask

    def devices(self) -> tuple[Device, ...]:
        """Return every device by name, refused ones too."""
        with self._lock:
            return tuple(self._state.devices[name] for name in sorted(self._state.devices))

    def device(self, name: str) -> Device | None:
        """Return a device; for one that is not known the node is scanned first, at most once a second."""
        with self._lock:
            found = self._state.devices.get(name)
            if found is not None:
                return found
            now = time.monotonic()
            if now - self._looked.get(name, 0.0) < _LOOK_AGAIN:
                return None
            self._looked = {name: now, **{n: at for n, at in self._looked.items() if now - at < _LOOK_AGAIN}}
            self._scan("a device was asked for that is not known")
            return self._state.devices.get(name)

    def is_uplink(self, index: int) -> str:
        """Return why the node itself needs an interface now; empty: it does not. Takes no lock: hooks ask it."""
        return self._state.needed.get(index, "")

    @property
    def age(self) -> float:
        """Seconds since the last scan; infinite before the first."""
        return time.monotonic() - self._last_scan if self._scanned.is_set() else float("inf")

    def set_node_addresses(self, addresses: Iterable[str]) -> None:
        """Tell which addresses are the node's: the interface that carries one is never given away."""
        with self._lock:
            self._state.node_addresses = frozenset(addresses)
            changed = self._state.rebuild(self._state.recompute_uplinks())
        if changed:
            self._tell()

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called after each change of a device. It must not block."""
        self._subscribers.append(callback)

    def refresh(self) -> None:
        """Ask for a scan soon. Never blocks."""
        self._rescan = True
        self._wake()

    # ---- the thread

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._monitor.fileno(), select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        self._scan_now("start")
        while not self._stop.is_set():
            left = max(0.0, self._last_scan + self._max_interval - time.monotonic())
            ready = {fd for fd, _ in poll.poll(left * 1000)}
            if self._stop.is_set():
                return
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
            try:
                if self._monitor.fileno() in ready:
                    self._take_in(self._gather())
                if self._rescan or time.monotonic() - self._last_scan >= self._max_interval:
                    self._rescan = False
                    self._scan_now("interval")
            except EventsLostError as error:
                LOG.info("network events were lost, the node is scanned anew", extra=fields(error=error))
                self._scan_now("lost events")
            except OSError as error:
                LOG.warning("the node cannot be scanned", extra=fields(error=error))
                self._last_scan = time.monotonic()

    def _gather(self) -> list[Event]:
        """Read events until they pause, for a quarter of a second at most.

        Raises:
            EventsLostError: the kernel dropped some.
        """
        events = self._monitor.receive()
        end = time.monotonic() + _LONGEST_SETTLE
        while not self._stop.wait(_SETTLE) and time.monotonic() < end:
            more = self._monitor.receive()
            if not more:
                break
            events += more
        return events

    def _take_in(self, events: list[Event]) -> None:
        touched: set[int] = set()
        routes = False
        with self._lock:
            for event in events:
                thing = event.object
                metrics.INVENTORY_EVENTS.labels(event.kind).inc()
                if isinstance(thing, Link):
                    state = self._state
                    touched |= state.link_gone(thing.index) if event.gone else state.link_changed(thing)
                    routes = routes or thing.index in state.needed
                elif isinstance(thing, Address):
                    touched |= self._state.address_changed(thing, gone=event.gone)
                elif isinstance(thing, Route):
                    routes = routes or is_default(thing)
            if routes:
                self._read_defaults()
            touched |= self._state.recompute_uplinks()
            changed = self._state.rebuild(touched)
            metrics.INVENTORY_DEVICES.set(len(self._state.devices))
        if changed:
            self._tell()

    def _scan_now(self, cause: str) -> None:
        with self._lock:
            changed = self._scan(cause)
        self._scanned.set()
        if changed:
            self._tell()

    def _scan(self, cause: str) -> bool:
        metrics.INVENTORY_RESYNCS.labels(cause).inc()
        touched = self._state.replace(self._socket.iter_links(), self._socket.addresses())
        self._read_defaults()
        touched |= self._state.recompute_uplinks()
        changed = self._state.rebuild(touched)
        changed = self._state.rebuild_functions(self._sysfs.pci_devices()) or changed
        metrics.INVENTORY_DEVICES.set(len(self._state.devices))
        self._last_scan = time.monotonic()
        return changed

    def _read_defaults(self) -> None:
        self._state.defaults = default_interfaces(self._socket.routes(table=_MAIN))

    def _tell(self) -> None:
        for callback in self._subscribers:
            callback()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_write, b"x")


def _programs(link: Link) -> Programs:
    """Return the TCX programs on an interface; a kernel that does not tell has none."""
    try:
        found = bpf.programs(link.index)
    except OSError:
        return Programs()
    return Programs(tcx=tuple(str(program.program_id) for program in found if program.hook.startswith("tcx")))
