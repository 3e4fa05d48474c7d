"""Watch the devices that are in pods: one thread that hears the network events of their namespaces.

An event only says that something happened. What there is now is read anew, once for a burst of events, and reported
only if it differs from what was reported last. A link that flaps is reported ever more slowly, but its last state is.
Of the state of an RDMA port there are no events: claims with an RDMA device are looked at every second.

While a namespace is watched, two descriptors keep it alive; ``forget`` closes both before it returns.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nri_dranet.claims.facts import Phase
from nri_dranet.claims.plan import DeviceKind
from nri_dranet.netlink.model import Address, Link
from nri_dranet.netlink.namespaces import NetNs
from nri_dranet.netlink.sockets import EventsLostError, RtnlMonitor
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from nri_dranet.claims.facts import DeviceFacts, ObservedInterface
    from nri_dranet.claims.model import DeviceKey
    from nri_dranet.claims.plan import DevicePlan
    from nri_dranet.netlink.rtnl import Event

LOG = logging.getLogger(__name__)

_GROUPS: Final = ("link", "ipv4-address", "ipv6-address")

# Seconds. One change comes as several events (link down: carrier, operstate, IPv6 addresses one by one).
_GATHER: Final = 0.05
# A report that follows another within this time doubles the wait for the next, up to the longest.
_CALM: Final = 10.0
_LONGEST: Final = 5.0
_MOST_DOUBLINGS: Final = 10
# How often a namespace is looked at that could not be listened to or looked at.
_RETRY: Final = 2.0
# How often a claim with an RDMA device is looked at: the kernel has no event for the state of its port.
_PORTS: Final = 1.0


@dataclass(slots=True)
class _Space:
    """A namespace with its monitor (None while it cannot be opened) and who watches it."""

    netns: NetNs
    monitor: RtnlMonitor | None = None
    watchers: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Watch:
    """The devices of one claim in one namespace, what was last reported of them, and when to look again."""

    uid: str
    plans: tuple[DevicePlan, ...]
    space: _Space
    facts: tuple[DeviceFacts, ...]
    hints: dict[DeviceKey, ObservedInterface]
    due: float | None
    reported: float = 0.0
    streak: int = 0
    ports: bool = False

    def pause(self, now: float) -> float:
        """Return how long to wait for the next report: ever longer while one follows the other."""
        if now - self.reported > _CALM:
            self.streak = 0
        return min(_GATHER * (1 << min(self.streak, _MOST_DOUBLINGS)), _LONGEST)

    def remember(self, facts: Iterable[DeviceFacts]) -> None:
        self.facts = tuple(facts)
        # Where a lost device was is kept: it may come back.
        self.hints.update((fact.key, fact.interface) for fact in self.facts if fact.interface is not None)

    def concerned_by(self, event: Event) -> bool:
        item = event.object
        if isinstance(item, Link):
            if any(fact.phase is not Phase.ATTACHED for fact in self.facts):
                return True
            return any(hint.index == item.index for hint in self.hints.values())
        return isinstance(item, Address) and any(hint.index == item.index for hint in self.hints.values())


class PodObserver:
    """Reports changes of devices in pods.

    Args:
        on_change: called on the observer's thread with a claim's UID and the facts of all its devices, when they differ
            from the last. A report may still be under way when ``forget`` returns.
        look: reads what the kernel shows of devices in a namespace; gets the last known interfaces as hints.
    """

    def __init__(
        self,
        on_change: Callable[[str, tuple[DeviceFacts, ...]], None],
        look: Callable[
            [Sequence[DevicePlan], NetNs | None, Mapping[DeviceKey, ObservedInterface]], tuple[DeviceFacts, ...]
        ],
    ) -> None:
        self._on_change = on_change
        self._look = look
        self._lock = threading.Lock()
        # Held while a namespace is looked at, so that forget() can wait for the end of that; never while reporting.
        self._looking = threading.RLock()
        self._watches: dict[str, _Watch] = {}
        self._spaces: dict[tuple[int, int], _Space] = {}
        self._by_descriptor: dict[int, _Space] = {}
        self._poll = select.epoll()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll.register(self._wake_read, select.EPOLLIN)
        self._thread: threading.Thread | None = None
        self._stopping = False

    def start(self) -> None:
        """Start the thread. A second call does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pod-observer", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread, forget everything and close every descriptor. A second call does nothing."""
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
        self._wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        for uid in list(self._watches):
            self.forget(uid)
        self._poll.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def watch(self, uid: str, plans: Sequence[DevicePlan], netns: NetNs, facts: Iterable[DeviceFacts]) -> None:
        """Watch the devices of a claim in a pod's namespace; takes the place of an earlier watch of that claim.

        The first look follows at once, on the observer's thread: nothing that happens from now on is missed.

        Args:
            uid: the claim's UID.
            plans: its devices.
            netns: the pod's namespace; the caller may close it.
            facts: what was last reported of the devices.

        Raises:
            OSError: no descriptor is left.
            ValueError: the namespace is closed, or the observer has been stopped.
        """
        self.forget(uid)
        with self._lock:
            if self._stopping:
                raise ValueError("the observer has been stopped")
            key = (netns.device, netns.inode)
            space = self._spaces.get(key)
            if space is None:
                space = self._spaces[key] = _Space(NetNs(os.dup(netns.fd), netns.path))
            space.watchers.add(uid)
            ports = any(plan.rdma is not None and plan.kind is not DeviceKind.ADMIN for plan in plans)
            watch = _Watch(uid, tuple(plans), space, (), {}, due=time.monotonic(), ports=ports)
            watch.remember(facts)
            self._watches[uid] = watch
        self._wake()

    def forget(self, uid: str) -> None:
        """Stop watching a claim. With the last of a namespace every descriptor of that is closed on return."""
        with self._lock:
            watch = self._watches.pop(uid, None)
            if watch is None:
                return
            space = watch.space
            space.watchers.discard(uid)
            if space.watchers:
                return
            self._spaces.pop((space.netns.device, space.netns.inode), None)
            self._close_monitor(space)
        with self._looking:
            space.netns.close()

    @property
    def watched(self) -> frozenset[str]:
        """The UIDs of the claims that are watched."""
        with self._lock:
            return frozenset(self._watches)

    # the observer's thread

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._round()
            except Exception:
                # Without this thread nobody would hear of any pod: it goes on, and not at once.
                LOG.exception("the pods' devices cannot be watched now")
                time.sleep(_RETRY)

    def _round(self) -> None:
        """Wait for events, hear them, and look where it is time to."""
        ready = self._poll.poll(self._pause())
        with self._lock:
            for descriptor, _ in ready:
                self._hear(descriptor)
            self._listen()
        for watch in self._take_due():
            self._examine(watch)

    def _pause(self) -> float:
        """Give the seconds until the next look, -1 for none."""
        with self._lock:
            due = [watch.due for watch in self._watches.values() if watch.due is not None]
        return max(0.0, min(due) - time.monotonic()) if due else -1

    def _hear(self, descriptor: int) -> None:
        if descriptor == self._wake_read:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
            return
        space = self._by_descriptor.get(descriptor)
        if space is None or space.monitor is None:
            return
        watches = [self._watches[uid] for uid in space.watchers]
        try:
            events = space.monitor.receive()
        except EventsLostError:
            LOG.warning("network events of a pod were lost, looking anew", extra=fields(netns=space.netns.path))
            for watch in watches:
                self._schedule(watch)
            return
        except OSError as error:
            LOG.warning("cannot hear a pod's network events", extra=fields(netns=space.netns.path, error=str(error)))
            self._close_monitor(space)
            for watch in watches:
                self._schedule(watch)
            return
        for watch in watches:
            if any(watch.concerned_by(event) for event in events):
                self._schedule(watch)

    def _schedule(self, watch: _Watch) -> None:
        now = time.monotonic()
        due = now + watch.pause(now)
        watch.due = due if watch.due is None else min(watch.due, due)

    def _listen(self) -> None:
        """Open the monitors that are missing. Before the look, so that no event falls between the two."""
        for space in self._spaces.values():
            if space.monitor is not None:
                continue
            try:
                monitor = RtnlMonitor(space.netns, groups=_GROUPS)
            except OSError as error:
                words = "cannot listen to a pod's network events, looking every few seconds"
                LOG.warning(words, extra=fields(netns=space.netns.path, error=str(error)))
                continue
            space.monitor = monitor
            self._by_descriptor[monitor.fileno()] = space
            self._poll.register(monitor.fileno(), select.EPOLLIN)

    def _close_monitor(self, space: _Space) -> None:
        monitor, space.monitor = space.monitor, None
        if monitor is not None:
            self._by_descriptor.pop(monitor.fileno(), None)
            self._poll.unregister(monitor.fileno())
            monitor.close()

    def _take_due(self) -> list[_Watch]:
        now = time.monotonic()
        with self._lock:
            due = [watch for watch in self._watches.values() if watch.due is not None and watch.due <= now]
            for watch in due:
                watch.due = None
                if watch.space.monitor is None:
                    watch.due = now + _RETRY
                elif watch.ports:
                    watch.due = now + max(_PORTS, watch.pause(now))
        return due

    def _examine(self, watch: _Watch) -> None:
        with self._looking:
            if self._watches.get(watch.uid) is not watch:
                return
            try:
                facts = self._look(watch.plans, watch.space.netns, watch.hints)
            except Exception:
                # Others' pods are looked at all the same, and this one again soon.
                LOG.exception("looking at a pod's devices failed", extra=fields(claim=watch.uid))
                facts = None
        now = time.monotonic()
        with self._lock:
            if self._watches.get(watch.uid) is not watch:
                return
            if facts is None or any(fact.phase is Phase.UNKNOWN for fact in facts):
                watch.due = now + _RETRY
            if facts is None or facts == watch.facts:
                return
            watch.remember(facts)
            watch.streak = watch.streak + 1 if now - watch.reported < _CALM else 0
            watch.reported = now
        try:
            self._on_change(watch.uid, facts)
        except Exception:
            # Who takes the report has failed, not the watch: the next change is reported.
            LOG.exception("the report of a change failed", extra=fields(claim=watch.uid))

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"x")
