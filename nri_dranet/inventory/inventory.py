"""The inventory: one scan, then kernel events. Knows every device of the node and which of them may be given away.

A thread of its own listens. A burst of events is one change; a lost event means one scan, then events again. What has
no events is looked at: names and port states of RDMA devices every second, where there are any, PCI functions and TCX
programs with the slow scan.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nri_dranet.inventory.attributes import NO_PROGRAMS
from nri_dranet.inventory.device import Device
from nri_dranet.inventory.hardware import Hardware
from nri_dranet.inventory.pace import breathe
from nri_dranet.inventory.programs import ProgramMonitor, ProgramScout
from nri_dranet.inventory.state import NodeState, Policy
from nri_dranet.inventory.uplinks import MAIN_TABLE, default_interfaces, is_default
from nri_dranet.netlink.model import Address, Link, Route
from nri_dranet.netlink.nldev import NoRdmaError, RdmaMonitor
from nri_dranet.netlink.sockets import EventsLostError, LinkCache, RtnlMonitor, RtnlSocket
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from nri_dranet.inventory.state import Published
    from nri_dranet.netlink.nldev import RdmaEvent
    from nri_dranet.netlink.rtnl import Event
    from nri_dranet.sysfs import Sysfs

LOG = logging.getLogger(__name__)

_GROUPS: Final = ("link", "ipv4-address", "ipv6-address", "ipv4-route", "ipv6-route")
_SETTLE: Final = 0.03
"""Seconds that a burst is given to end."""

_LONGEST_SETTLE: Final = 0.25
_MAX_INTERFACE_NAME: Final = 15
_LOOK_AGAIN: Final = 1.0
_RETRY: Final = 1.0
_SLICE: Final = 64
_PCI_PREFIX: Final = "pci-"
_PORTS_SECONDS: Final = 0.5
"""Between two looks at the ports of RDMA devices."""

_PORTS_SHARE: Final = 200
"""Looking at RDMA ports takes one part of so many of the time, at most."""


@dataclass(slots=True)
class _Gathered:
    """Events of one burst; ``programs`` are the interfaces whose programs changed."""

    events: list[Event]
    programs: set[int]
    rdma: list[RdmaEvent]

    def __bool__(self) -> bool:
        return bool(self.events or self.programs or self.rdma)

    def add(self, more: _Gathered) -> None:
        """Take in what came later."""
        self.events += more.events
        self.programs |= more.programs
        self.rdma += more.rdma


class Inventory:
    """The node's devices. Must be made and started in the host's network namespace. Thread-safe."""

    def __init__(self, sysfs: Sysfs, *, policy: Policy | None = None, max_interval: float = 60.0) -> None:
        """Open the sockets; ``start`` begins.

        Args:
            sysfs: the host's.
            policy: what the operator decided.
            max_interval: seconds after which everything is scanned anew.

        Raises:
            OSError: a netlink socket cannot be made.
        """
        self._max_interval = max_interval
        self._hardware = Hardware(sysfs)
        self._state = NodeState(hardware=self._hardware, policy=policy or Policy())
        with contextlib.ExitStack() as stack:
            self._socket = stack.enter_context(contextlib.closing(RtnlSocket()))
            self._monitor = stack.enter_context(contextlib.closing(RtnlMonitor(groups=_GROUPS)))
            self._scout = stack.enter_context(contextlib.closing(ProgramScout()))
            self._programs = stack.enter_context(contextlib.closing(ProgramMonitor()))
            self._rdma: RdmaMonitor | None = None
            self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            stack.callback(os.close, self._wake_read)
            stack.callback(os.close, self._wake_write)
            self._resources = stack.pop_all()
        self._cache = LinkCache()
        self._lock = threading.RLock()
        self._subscribers: list[Callable[[], None]] = []
        self._stop = threading.Event()
        self._scanned = threading.Event()
        self._rescan = False
        self._last_scan = 0.0
        self._next_scan = 0.0
        self._next_ports = 0.0
        self._looked: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name="inventory", daemon=True)

    def start(self) -> None:
        """Begin to listen; the first scan is done when ``wait`` returns."""
        self._thread.start()

    def wait(self, timeout: float) -> bool:
        """Wait for the first scan; False when it did not end in time."""
        return self._scanned.wait(timeout)

    def stop(self) -> None:
        """End the thread and close the sockets. A second call does nothing."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join()
        with self._lock:
            self._resources.close()

    # ---- what others ask

    def devices(self) -> tuple[Device, ...]:
        """Return every device by name, refused ones too."""
        with self._lock:
            return tuple(self._state.devices[name] for name in sorted(self._state.devices))

    def device(self, name: str) -> Device | None:
        """Return a device; one that is not known is asked of the kernel by its name each time.

        It may have come home a moment ago. For what has another name than its interface the node is scanned, at most
        once a second.

        Raises:
            OSError: the kernel cannot be asked.
        """
        changed = False
        with self._lock:
            found = self._state.devices.get(name)
            if found is None and not self._stop.is_set():
                # One that is held may be home already: whoever tells which are held comes a moment later.
                held = self._state.held.get(name)
                self._fetch(name if held is None else _interface_of(held))
                changed = self._state.rebuild()
                found = self._known(name)
        if changed:
            self._tell()
        if found is not None:
            return found
        with self._lock:
            found = self._known(name)
            now = time.monotonic()
            if found is not None or self._stop.is_set() or now - self._looked.get(name, -_LOOK_AGAIN) < _LOOK_AGAIN:
                return found
            self._looked = {name: now, **{n: at for n, at in self._looked.items() if now - at < _LOOK_AGAIN}}
            # The lock is kept from the dump on: events that are newer must not be taken in before it.
            changed = self._scan("a device was asked for that is not known", hardware=name.startswith(_PCI_PREFIX))
            found = self._known(name)
        if changed:
            self._tell()
        return found

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
            self._state.node_addresses_changed(addresses)
            changed = self._state.rebuild()
        if changed:
            self._tell()

    def set_held(self, held: Mapping[str, Published]) -> None:
        """Tell which devices are in pods, by name, each with its entry as it was published.

        An interface that comes home gets the name back that it had, and is known when this returns: between a pod's end
        and the kernel's event it would be published by nobody. A PCI function whose interface is in a pod is not
        offered for its RDMA device alone. ``device`` answers for a held one without a scan.
        """
        state = self._state
        with self._lock:
            if held == state.held or self._stop.is_set():
                return
            home = {name: entry for name, entry in state.held.items() if name not in held}
            state.held_changed(held)
            for name, entry in home.items():
                if name not in state.devices:
                    self._fetch(_interface_of(entry))
            changed = state.rebuild()
        if changed:
            self._tell()

    def _fetch(self, name: str) -> None:
        """Take one interface in that should be on the node again; its events, which come later, say nothing new."""
        try:
            link = self._socket.link(name=name) if 0 < len(name.encode()) <= _MAX_INTERFACE_NAME else None
            if link is None:
                return
            self._state.link_changed(link)
            for address in self._socket.addresses(link.index):
                self._state.address_changed(address, gone=False)
        except OSError as error:
            # It was there a moment ago; the events say what became of it.
            LOG.debug("an interface that came home cannot be read", extra=fields(interface=name, error=error))

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called after each change of a device. It must not block."""
        self._subscribers.append(callback)

    def refresh(self) -> None:
        """Ask for a scan soon. Never blocks."""
        self._rescan = True
        self._wake()

    def _known(self, name: str) -> Device | None:
        found = self._state.devices.get(name)
        if found is None and (entry := self._state.held.get(name)) is not None:
            return Device(name=name, attributes=entry.get("attributes", {}), refused="it is in a pod")
        return found

    # ---- the thread

    def _run(self) -> None:
        poll = select.poll()
        for source in (self._monitor.fileno(), self._programs.fileno(), self._wake_read):
            poll.register(source, select.POLLIN)
        cause = "start"
        while not self._stop.is_set():
            try:
                if cause:
                    self._hear_rdma(poll)
                    self._scan_now(cause)
                next_look = min(self._next_scan, self._next_ports) if self._hardware.rdma else self._next_scan
                poll.poll(max(0.0, next_look - time.monotonic()) * 1000 + 1)
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
                self._take_in(self._gather())
                self._look_at_ports()
                cause = self._due()
            except EventsLostError as error:
                LOG.info("network events were lost, the node is scanned anew", extra=fields(error=error))
                cause = "lost events"
            except Exception as error:
                # A node that cannot be read now may be read later; its devices stay as they were last known.
                unforeseen = not isinstance(error, OSError)
                LOG.warning("the node cannot be scanned, trying again", extra=fields(error=error), exc_info=unforeseen)
                # A device may be another one already; nobody was told yet.
                self._tell()
                self._stop.wait(_RETRY)
                cause = "failure"

    def _look_at_ports(self) -> None:
        """See whether RDMA devices or the states of their ports have changed; nothing is done where there are none."""
        now = time.monotonic()
        if not self._hardware.rdma or now < self._next_ports:
            return
        changed = self._hardware.rdma_changed()
        self._next_ports = now + pause_between_looks(time.monotonic() - now)
        if not changed:
            return
        with self._lock:
            self._hardware.look()
            self._state.hardware_changed()
            changed = self._state.rebuild()
            metrics.INVENTORY_DEVICES.set(len(self._state.devices))
        if changed:
            self._tell()

    def _due(self) -> str:
        if self._rescan:
            self._rescan = False
            return "asked for"
        return "interval" if time.monotonic() >= self._next_scan else ""

    def _hear_rdma(self, poll: select.poll) -> None:
        """Listen to RDMA events, if that is not done yet; a kernel gets RDMA when its first device is there."""
        if self._rdma is not None:
            return
        try:
            self._rdma = self._resources.enter_context(contextlib.closing(RdmaMonitor()))
        except (NoRdmaError, OSError) as error:
            # The slow scan finds RDMA devices as well, only later.
            LOG.debug("RDMA events cannot be heard, the next scan tries again", extra=fields(error=error))
        else:
            poll.register(self._rdma.fileno(), select.POLLIN)

    def _gather(self) -> _Gathered:
        """Read events until they pause, for a quarter of a second at most.

        Raises:
            EventsLostError: the kernel dropped some.
        """
        found = self._receive()
        end = time.monotonic() + _LONGEST_SETTLE
        while found and not self._stop.wait(_SETTLE) and time.monotonic() < end:
            more = self._receive()
            if not more:
                break
            found.add(more)
        return found

    def _receive(self) -> _Gathered:
        rdma = self._rdma.receive() if self._rdma is not None else []
        return _Gathered(self._monitor.receive(), self._programs.receive(), rdma)

    def _take_in(self, found: _Gathered) -> None:
        if not found:
            return
        state = self._state
        with self._lock:
            links, routes = self._apply(found.events)
            if routes:
                self._read_defaults()
            for index in links & state.links.keys() - found.programs:
                state.programs_changed(index, self._scout.tcx_of(index, state.programs.get(index, NO_PROGRAMS)))
            for index in found.programs & state.links.keys():
                state.programs_changed(index, self._scout.of(index, state.programs.get(index, NO_PROGRAMS)))
            for _ in found.rdma:
                metrics.INVENTORY_EVENTS.labels("rdma").inc()
            if found.rdma:
                # An event says too little of a device; there are few of them.
                self._hardware.look()
                state.hardware_changed()
            changed = state.rebuild()
            metrics.INVENTORY_DEVICES.set(len(state.devices))
        if changed:
            self._tell()

    def _apply(self, events: list[Event]) -> tuple[set[int], bool]:
        """Take events in; returns the interfaces that changed themselves, and whether routes did."""
        state = self._state
        links: set[int] = set()
        routes = False
        for place, event in enumerate(events, 1):
            if place % _SLICE == 0:
                breathe()
            thing = event.object
            metrics.INVENTORY_EVENTS.labels(event.kind).inc()
            if isinstance(thing, Link):
                links.add(thing.index)
                if event.gone:
                    state.link_gone(thing.index)
                else:
                    state.link_changed(thing)
                # IPv4 routes of a link that goes down vanish without an event.
                routes = routes or thing.index in state.needed
            elif isinstance(thing, Address):
                state.address_changed(thing, gone=event.gone)
            elif isinstance(thing, Route):
                routes = routes or is_default(thing)
        return links, routes

    def _scan_now(self, cause: str) -> None:
        """Scan everything, on the inventory's own thread."""
        self._drain()
        # Only this thread takes events in, so that none newer than the dumps can have been.
        with self._lock:
            changed = self._scan(cause, hardware=True)
            for index, found in self._scout.all(self._state.links, self._state.programs).items():
                self._state.programs_changed(index, found)
            changed = self._state.rebuild() or changed
        self._next_scan = time.monotonic() + self._max_interval
        self._scanned.set()
        if changed:
            self._tell()

    def _drain(self) -> None:
        """Throw away events that are older than the dumps to come: taken in after them, they would undo them."""
        end = time.monotonic() + _LONGEST_SETTLE
        while time.monotonic() < end:
            with contextlib.suppress(EventsLostError):
                if not self._receive():
                    return

    def _scan(self, cause: str, *, hardware: bool) -> bool:
        metrics.INVENTORY_RESYNCS.labels(cause).inc()
        if hardware:
            self._hardware.look()
        # The first scan has nothing to compare with, and its cost is part of the start.
        cache = self._cache if self._scanned.is_set() else None
        self._state.replace(self._socket.iter_links(cache), self._socket.addresses())
        if hardware:
            self._state.hardware_changed()
        self._read_defaults()
        changed = self._state.rebuild()
        metrics.INVENTORY_DEVICES.set(len(self._state.devices))
        self._last_scan = time.monotonic()
        return changed

    def _read_defaults(self) -> None:
        self._state.defaults_changed(default_interfaces(self._socket.routes(table=MAIN_TABLE)))

    def _tell(self) -> None:
        for callback in self._subscribers:
            callback()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_write, b"x")


def pause_between_looks(took: float) -> float:
    """Return the seconds until the RDMA ports are looked at again, by how long the last look took.

    A card may ask its firmware for each port's state: a node with many functions looks less often.
    """
    return max(_PORTS_SECONDS, took * _PORTS_SHARE)


def _interface_of(entry: Published) -> str:
    """Give the name that the interface of a published device has on the host; "" where it has none."""
    return str((entry.get("attributes", {}).get("dra.net/ifName") or {}).get("string", ""))
