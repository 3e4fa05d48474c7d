"""The attach engine: devices into a pod, back home, and where they are now.

All work is synchronous and made of netlink messages; threads may share an engine. Device state is looked for in the
kernel, never remembered, so that an engine can go on where a killed one stopped.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nri_dranet.attach import facts, locate, rdma, sysctl
from nri_dranet.attach.errors import AttachError
from nri_dranet.attach.home import Homeward
from nri_dranet.attach.locate import Location, Place
from nri_dranet.attach.transaction import Transaction
from nri_dranet.claims.facts import DeviceFacts, Phase
from nri_dranet.claims.plan import DeviceKind
from nri_dranet.netlink import rtnl
from nri_dranet.netlink.ethtool import Ethtool
from nri_dranet.netlink.model import Address
from nri_dranet.netlink.nldev import NoRdmaError
from nri_dranet.netlink.sockets import RtnlSocket
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from nri_dranet.attach.kept import KeptPrograms
    from nri_dranet.claims.facts import ObservedInterface
    from nri_dranet.claims.model import DeviceKey
    from nri_dranet.claims.plan import DevicePlan
    from nri_dranet.netlink.namespaces import NetNs

__all__ = ["AttachError", "Detached", "Engine", "Location", "Place"]

LOG = logging.getLogger(__name__)

_STILL = frozenset({DeviceKind.RDMA, DeviceKind.ADMIN})


@dataclass(frozen=True, slots=True)
class Detached:
    """The outcome for one device: whether it is on the host now, and in words what could not be restored."""

    key: DeviceKey
    home: bool
    problems: tuple[str, ...] = ()


class Engine:
    """Move devices between the host and pods.

    Args:
        host_netns: the host's namespace; the engine does not close it.
        connect: makes a netlink socket in a namespace.
        kept: BPF programs that were kept for devices; the engine does not close it.
    """

    def __init__(
        self,
        *,
        host_netns: NetNs,
        connect: Callable[[NetNs], RtnlSocket] = RtnlSocket,
        kept: KeptPrograms | None = None,
    ) -> None:
        self._host_netns = host_netns
        self._kept = kept
        self._connect = connect
        self._lock = threading.Lock()
        self._idle: list[RtnlSocket] = []
        self._closed = False
        self._ethtool: Ethtool | None = None
        # Warm from the start: a hook must not pay for it.
        with self._host():
            self._features()
        sysctl.open_root()

    def close(self) -> None:
        """Close the sockets in the host's namespace. Those in use are closed when they are given back."""
        with self._lock:
            idle, self._idle, self._closed = self._idle, [], True
            ethtool, self._ethtool = self._ethtool, None
        if ethtool is not None:
            ethtool.close()
        for each in idle:
            each.close()

    def attach(self, plans: Sequence[DevicePlan], netns: NetNs, *, deadline: float) -> tuple[DeviceFacts, ...]:
        """Bring all devices of a pod into its namespace and configure them, in order; all or nothing.

        What a former, killed attach left half-done is finished; what is there and right is left alone.

        Args:
            plans: the devices.
            netns: the pod's namespace.
            deadline: when it must have ended (``time.monotonic``). Passing it undoes everything.

        Raises:
            AttachError: a step failed. Everything was undone; what could not be is in the message.
        """
        try:
            with self._host() as host, self._connect(netns) as pod:
                work = Transaction(
                    host,
                    self._host_netns,
                    pod,
                    netns,
                    deadline=deadline,
                    ethtool=self._features(),
                    kept=self._kept,
                )
                return work.run(plans)
        except (OSError, ValueError) as error:
            label = ", ".join(plan.label for plan in plans)
            raise AttachError(
                label, "open the pod's namespace", "AttachFailed", f"cannot reach the kernel: {error}"
            ) from error

    def detach(
        self, plans: Sequence[DevicePlan], netns: NetNs | None, *, hints: Mapping[DeviceKey, ObservedInterface]
    ) -> tuple[Detached, ...]:
        """Bring devices home, last first, and make them what they were. Never raises; may be called again.

        Args:
            plans: the devices.
            netns: the pod's namespace; None if it is gone: the devices are looked for on the host then.
            hints: what was last seen of them in the pod, by key.

        Returns:
            An outcome for each plan, in the order of the plans.
        """
        outcomes: dict[DeviceKey, Detached] = {}
        try:
            with self._host() as host, contextlib.ExitStack() as stack:
                pod = stack.enter_context(self._connect(netns)) if netns is not None else None
                way = Homeward(host, self._host_netns, pod, pod_netns=netns, ethtool=self._features(), kept=self._kept)
                for plan in reversed(plans):
                    hint = hints.get(plan.key)
                    outcomes[plan.key] = self._give_back(plan, way, hint.index if hint else 0)
        except (OSError, ValueError) as error:
            LOG.exception("detach failed", extra=fields(devices=", ".join(plan.label for plan in plans)))
            for plan in plans:
                outcomes.setdefault(plan.key, Detached(plan.key, home=False, problems=(str(error),)))
        return tuple(outcomes[plan.key] for plan in plans)

    def look(
        self,
        plans: Sequence[DevicePlan],
        netns: NetNs | None,
        hints: Mapping[DeviceKey, ObservedInterface],
    ) -> tuple[DeviceFacts, ...]:
        """Read what the kernel shows of devices that should be in a pod. Changes nothing and never raises.

        Args:
            plans: the devices.
            netns: the pod's namespace; None if it is gone.
            hints: what was last seen of them there, by key.
        """
        try:
            with self._host() as host, contextlib.ExitStack() as stack:
                pod = stack.enter_context(self._connect(netns)) if netns is not None else None
                seen = self._look(plans, host, pod, hints)
            return tuple(
                self._with_rdma(rdma.as_it_is(plan, self._host_netns), fact, netns)
                for plan, fact in zip(plans, seen, strict=True)
            )
        except (OSError, ValueError, NoRdmaError) as error:
            words = f"the pod's namespace cannot be looked at: {error}"
            return tuple(facts.not_there(plan, Phase.UNKNOWN, "LookFailed", words) for plan in plans)

    def where(self, plan: DevicePlan, netns: NetNs | None) -> Location:
        """Tell where a device is now.

        Raises:
            OSError: the kernel refuses to tell.
        """
        with self._host() as host, contextlib.ExitStack() as stack:
            pod = stack.enter_context(self._connect(netns)) if netns is not None else None
            return locate.find(plan, host, pod)

    @staticmethod
    def _give_back(plan: DevicePlan, way: Homeward, index: int) -> Detached:
        try:
            problems = way.remove_rules(plan)
            arrived, more = way.give_back(plan, index)
            problems += more
            if plan.pod is not None and plan.pod.vrf is not None:
                problems += way.remove_vrf(plan.pod.vrf)
        except (OSError, ValueError) as error:
            LOG.exception("detach failed", extra=fields(device=plan.label))
            return Detached(plan.key, home=False, problems=(str(error),))
        return Detached(plan.key, home=arrived, problems=tuple(problems))

    def _look(
        self,
        plans: Sequence[DevicePlan],
        host: RtnlSocket,
        pod: RtnlSocket | None,
        hints: Mapping[DeviceKey, ObservedInterface],
    ) -> tuple[DeviceFacts, ...]:
        if pod is None:
            return tuple(self._lost(plan, host, None) for plan in plans)
        moved = [plan for plan in plans if plan.kind not in _STILL]
        known = [hints[plan.key].index if plan.key in hints else 0 for plan in moved]
        only = known[0] if len(known) == 1 else 0
        asked = [rtnl.get_link(index=index) if index else rtnl.get_link(name="lo") for index in known]
        replies = pod.batch([*asked, rtnl.dump_addresses(only)])
        if replies[-1].error is not None and replies[-1].error.errno != errno.ENODEV:
            raise replies[-1].error
        addresses = [item for item in replies[-1].objects if isinstance(item, Address)]
        found: dict[DeviceKey, DeviceFacts] = {}
        for plan, index, reply in zip(moved, known, replies, strict=False):
            link = locate.link_of(reply)
            if not index or link is None or not locate.is_device(plan, link, in_pod=True, index=index):
                found[plan.key] = self._lost(plan, host, pod)
            else:
                found[plan.key] = facts.attached(plan, facts.observed(plan, link, addresses))
        return tuple(found[plan.key] if plan.key in found else facts.attached(plan, None) for plan in plans)

    def _with_rdma(self, plan: DevicePlan, fact: DeviceFacts, netns: NetNs | None) -> DeviceFacts:
        if plan.rdma is None or plan.kind is DeviceKind.ADMIN:
            return fact
        seen = rdma.observe(plan.rdma, self._host_netns, netns)
        if plan.kind is DeviceKind.RDMA and plan.rdma.exclusive and not seen.in_pod:
            words = f"the RDMA device {plan.rdma.link} is not in the pod any more"
            fact = facts.not_there(plan, Phase.LOST, "DeviceMissing" if netns else "NamespaceGone", words)
        return replace(fact, rdma=seen, exclusive_rdma=plan.rdma.exclusive)

    def _lost(self, plan: DevicePlan, host: RtnlSocket, pod: RtnlSocket | None) -> DeviceFacts:
        """Look for a device that is not where it was."""
        if plan.kind in _STILL:
            return facts.attached(plan, None)
        found = locate.find(plan, host, pod)
        if found.place is Place.POD and found.link is not None and pod is not None:
            return facts.attached(plan, facts.observed(plan, found.link, pod.addresses(found.link.index)))
        name = plan.pod.name if plan.pod else plan.label
        if pod is None:
            reason, words = "NamespaceGone", "the pod's network namespace is gone"
        else:
            reason, words = "DeviceMissing", f"the interface {name} is not in the pod any more"
        if found.place is Place.HOST and found.link is not None:
            words += f"; it is on the host as {found.link.name}"
        elif found.word:
            words += f"; {found.word}"
        else:
            words += "; it was destroyed, or moved to another namespace"
        return facts.not_there(plan, Phase.LOST, reason, words)

    def _features(self) -> Ethtool | None:
        """Give the socket for features on the host; None where the kernel has no ethtool over netlink."""
        with self._lock:
            if self._ethtool is None and not self._closed:
                try:
                    self._ethtool = Ethtool(self._host_netns)
                except OSError as error:
                    LOG.warning("features of devices are not restored", extra=fields(error=str(error)))
            return self._ethtool

    @contextlib.contextmanager
    def _host(self) -> Iterator[RtnlSocket]:
        """Lend a socket in the host's namespace to this thread."""
        with self._lock:
            lent = self._idle.pop() if self._idle else None
        if lent is None:
            lent = self._connect(self._host_netns)
        try:
            yield lent
        finally:
            with self._lock:
                keep = not self._closed
                if keep:
                    self._idle.append(lent)
            if not keep:
                lent.close()
