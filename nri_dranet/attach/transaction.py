"""One attach: all devices of a pod, in order; all or nothing."""

from __future__ import annotations

import errno
import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from nri_dranet.attach import facts, locate, offloads, programs, rdma, state, steps, sysctl
from nri_dranet.attach.errors import AttachError
from nri_dranet.attach.home import NO_RULE, Homeward
from nri_dranet.attach.locate import SPARE_INDEX, Location, Place, link_of
from nri_dranet.attach.steps import Found
from nri_dranet.claims.plan import DeviceKind
from nri_dranet.netlink import rtnl
from nri_dranet.netlink.codec import NetlinkError
from nri_dranet.netlink.ethtool import Ethtool
from nri_dranet.netlink.model import Address
from nri_dranet.netlink.nldev import NoRdmaError
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nri_dranet.attach.kept import KeptPrograms
    from nri_dranet.attach.steps import Step
    from nri_dranet.claims.facts import DeviceFacts, ObservedInterface
    from nri_dranet.claims.plan import DevicePlan, PodState, RdmaPlan, SubInterface, VrfPlan
    from nri_dranet.netlink.codec import Request
    from nri_dranet.netlink.model import Link, Route
    from nri_dranet.netlink.namespaces import NetNs
    from nri_dranet.netlink.sockets import Reply, RtnlSocket

LOG = logging.getLogger(__name__)

_TABLE_MAIN: Final = 254
# Seconds: what a kernel call is given at the least, so that it can answer at all.
_LEAST_TIME: Final = 0.01
_ARPHRD_INFINIBAND: Final = 32
_MOVES: Final = frozenset({DeviceKind.INTERFACE, DeviceKind.CHILD})


@dataclass(slots=True)
class _Survey:
    """What is known of a device before anything moves."""

    plan: DevicePlan
    pod: PodState
    link: Link
    """The device itself, or the parent of a child."""
    in_pod: bool
    index: int
    """The index to have in the pod."""
    colliding: tuple[str, ...] = ()
    """Alternative names of the device that the pod has already."""


class Transaction:
    """Attach devices; whatever fails, everything is taken back in reverse.

    Args:
        host: a socket in the host's namespace.
        host_netns: that namespace.
        pod: a socket in the pod's namespace.
        netns: that namespace.
        deadline: when it must have ended (``time.monotonic``).
        ethtool: to restore features with, in the host's namespace.
        kept: to restore BPF programs with.
    """

    def __init__(
        self,
        host: RtnlSocket,
        host_netns: NetNs,
        pod: RtnlSocket,
        netns: NetNs,
        *,
        deadline: float,
        ethtool: Ethtool | None = None,
        kept: KeptPrograms | None = None,
    ) -> None:
        self._host = host
        self._host_netns = host_netns
        self._pod = pod
        self._netns = netns
        self._deadline = deadline
        self._ethtool = ethtool
        self._kept = kept
        self._touched: list[tuple[DevicePlan, int]] = []
        self._namespace_undo: list[Request] = []
        self._namespace_sysctls: dict[str, str] = {}
        self._made_vrfs: list[VrfPlan] = []
        self._switched: set[str] = set()
        self._current = ""
        self._step = ""

    def run(self, plans: Sequence[DevicePlan]) -> tuple[DeviceFacts, ...]:
        """Attach the devices in order.

        Raises:
            AttachError: a step failed; everything was taken back, and the message ends with what could not be.
        """
        try:
            self._step = "read the RDMA mode"
            prepared, plans = plans, [rdma.as_it_is(plan, self._host_netns) for plan in plans]
            self._switched = {now.label for now, then in zip(plans, prepared, strict=True) if now is not then}
            surveys = self._survey(plans)
            return tuple(self._attach(plan, survey) for plan, survey in zip(plans, surveys, strict=True))
        except AttachError as error:
            left = self._undo()
            if left:
                error.message += f" (and could not be undone fully: {'; '.join(left)})"
            raise
        except (OSError, ValueError, NoRdmaError) as error:
            left = self._undo()
            reason = "DeadlineExceeded" if isinstance(error, TimeoutError) else "AttachFailed"
            words = f"cannot {self._step}: {error}"
            if left:
                words += f" (and could not be undone fully: {'; '.join(left)})"
            raise AttachError(self._current, self._step, reason, words) from error
        except BaseException:
            self._undo()
            raise

    # before anything moves

    def _survey(self, plans: Sequence[DevicePlan]) -> list[_Survey | None]:
        moving = [plan for plan in plans if plan.kind in _MOVES and plan.host is not None and plan.pod is not None]
        self._step = "look for the devices"
        self._current = ", ".join(plan.label for plan in plans)
        self._in_time()
        self._refuse_twins(moving)
        if not moving:
            return [None] * len(plans)
        asked: list[Request] = []
        for plan in moving:
            asked += [rtnl.get_link(name=name) for name in _names(plan)]
            asked.append(rtnl.get_link(index=plan.host.link.index))  # type: ignore[union-attr]
        in_pod = iter(self._pod.batch(asked, timeout=self._left()))
        on_host = iter(
            self._host.batch(
                [rtnl.get_link(index=plan.host.link.index) for plan in moving],  # type: ignore[union-attr]
                timeout=self._left(),
            )
        )
        surveys: list[_Survey | None] = []
        for plan in plans:
            if plan not in moving:
                surveys.append(None)
                continue
            self._current = plan.label
            taken = {name: link_of(next(in_pod)) for name in _names(plan)}
            index_taken = link_of(next(in_pod)) is not None
            surveys.append(self._place(plan, link_of(next(on_host)), taken, index_taken=index_taken))
        return surveys

    def _place(
        self, plan: DevicePlan, on_host: Link | None, taken: dict[str, Link | None], *, index_taken: bool
    ) -> _Survey:
        own, pod = plan.host, plan.pod
        if own is None or pod is None:
            raise ValueError(f"the plan of {plan.label} has no state of the host or of the pod")
        index = own.link.index + SPARE_INDEX if index_taken else own.link.index
        name_holder = taken[pod.name]
        found: Location | None = None
        # A child that is there already is in the pod, while its parent is on the host.
        fast = plan.kind is DeviceKind.INTERFACE or name_holder is None
        if fast and on_host is not None and locate.is_device(plan, on_host, in_pod=False):
            found = Location(place=Place.HOST, link=on_host)
        if found is None:
            found = locate.find(plan, self._host, self._pod)
        if found.place is Place.NOWHERE or found.link is None:
            word = found.word or "it is neither on the host nor in the pod: it was destroyed or moved away"
            raise AttachError(
                plan.label,
                self._step,
                "DeviceGone",
                f"the device is not there: {word}; the claim must be allocated anew",
            )
        if found.place is Place.POD:
            return _Survey(plan, pod, found.link, in_pod=True, index=found.link.index)
        if name_holder is not None:
            held = f"the alternative name {pod.name}" if name_holder.name != pod.name else f"an interface {pod.name}"
            whose = f" (of {name_holder.name})" if name_holder.name != pod.name else ""
            raise AttachError(
                plan.label,
                f"move into the pod as {pod.name}",
                "NameInUse",
                f"the pod already has {held}{whose}; choose another interface.name in the claim's configuration",
            )
        colliding = tuple(name for name in own.link.altnames if taken.get(name) is not None or name == pod.name)
        return _Survey(plan, pod, found.link, in_pod=False, index=index, colliding=colliding)

    def _refuse_twins(self, plans: Sequence[DevicePlan]) -> None:
        seen: dict[str, str] = {}
        for plan in plans:
            name = plan.pod.name if plan.pod else ""
            if name in seen:
                raise AttachError(
                    plan.label,
                    f"move into the pod as {name}",
                    "NameInUse",
                    f"{seen[name]} and {plan.label} are both to be called {name} in the pod; "
                    "choose another interface.name for one of them",
                )
            seen[name] = plan.label

    # one device

    def _attach(self, plan: DevicePlan, survey: _Survey | None) -> DeviceFacts:
        self._current = plan.label
        interface = None
        if survey is not None:
            self._in_time()
            self._touched.append((plan, survey.index if survey.in_pod else 0))
            if plan.rdma is not None and plan.rdma.exclusive:
                if survey.link.type == _ARPHRD_INFINIBAND:
                    survey = self._follow_rdma(plan, plan.rdma, survey)
                elif not survey.in_pod and rdma.stands_on_interface(plan.rdma):
                    # It would end with the move of the interface. Its driver most likely refuses: so nothing is lost.
                    self._move_rdma(plan, plan.rdma)
            interface = self._bring(plan, survey)
        if plan.rdma is None or plan.kind is DeviceKind.ADMIN:
            return facts.attached(plan, interface)
        if plan.rdma.exclusive:
            self._in_time()
            if survey is None:
                self._touched.append((plan, 0))
            self._move_rdma(plan, plan.rdma)
        self._step = f"read the RDMA device {plan.rdma.link}"
        return facts.attached(plan, interface, rdma.observe(plan.rdma, self._host_netns, self._netns))

    def _follow_rdma(self, plan: DevicePlan, wanted: RdmaPlan, survey: _Survey) -> _Survey:
        """Move the RDMA device of an IPoIB interface, which ends with that; the kernel makes another one in the pod."""
        self._move_rdma(plan, wanted)
        self._step = f"find the interface of the RDMA device {wanted.link} in the pod"
        found = locate.find(plan, self._host, self._pod)
        if found.link is None:
            words = found.word or "there is none after the move of the RDMA device; is the module ib_ipoib loaded?"
            raise AttachError(plan.label, self._step, "DeviceGone", words)
        if found.place is Place.HOST:
            return replace(survey, link=found.link)
        return replace(survey, link=found.link, in_pod=True, index=found.link.index)

    def _move_rdma(self, plan: DevicePlan, wanted: RdmaPlan) -> None:
        self._step = f"move the RDMA device {wanted.link} into the pod"
        try:
            rdma.enter(wanted, self._host_netns, self._netns)
        except NetlinkError as error:
            advice = {
                errno.EBUSY: "a process on the host uses it",
                errno.EOPNOTSUPP: "its driver cannot be moved, or the node is in shared mode (rdma system show)",
            }.get(error.errno or 0, "")
            if plan.label in self._switched:
                advice += "; the node was switched to exclusive mode after the claim was prepared"
            raise self._refused(plan, error, "RDMAMoveFailed", advice.removeprefix("; ")) from error

    def _bring(self, plan: DevicePlan, survey: _Survey) -> ObservedInterface:
        vrf = self._vrf(survey)
        if survey.in_pod:
            found = self._settled(survey)
        elif plan.kind is DeviceKind.CHILD:
            found = self._make_child(survey)
        else:
            found = Found(link=survey.link)
        # Made before the move, which ends with a long wait in the kernel and cold caches.
        todo = steps.configure(plan, survey.pod, survey.index, found, vrf=vrf)
        if not survey.in_pod:
            index = self._enter(survey)
            if index != survey.index:
                survey.index = index
                todo = steps.configure(plan, survey.pod, index, found, vrf=vrf)
        self._touched[-1] = (plan, survey.index)
        return self._configure(survey, todo)

    def _enter(self, survey: _Survey) -> int:
        plan, pod = survey.plan, survey.pod
        self._step = f"move into the pod as {pod.name}"
        requests = [rtnl.delete_altname(survey.link.index, name) for name in survey.colliding]
        index = survey.index
        move = rtnl.set_link(survey.link.index, name=pod.name, netns_fd=self._netns.fd, new_index=index)
        reply = self._host.batch([*requests, move], timeout=self._left())[-1]
        if reply.error is not None and reply.error.errno == errno.EBUSY:
            # The index was taken between the look and the move.
            move = rtnl.set_link(survey.link.index, name=pod.name, netns_fd=self._netns.fd)
            reply = self._host.batch([move], timeout=self._left())[-1]
            index = 0
        if reply.error is not None:
            raise self._refused(plan, reply.error, "NameInUse" if reply.error.errno == errno.EEXIST else "MoveFailed")
        if index:
            return index
        arrived = self._pod.link(name=pod.name)
        if arrived is None:
            raise AttachError(plan.label, self._step, "MoveFailed", "the interface left the pod again at once")
        return arrived.index

    def _make_child(self, survey: _Survey) -> Found:
        plan, pod = survey.plan, survey.pod
        made = pod.sub_interface
        if made is None:
            raise ValueError(f"the plan of {plan.label} does not say which kind of child to make")
        self._step = f"make the {made.kind} {pod.name} on {survey.link.name}"
        error = self._new_child(survey, made, pod.name)
        if error is not None and error.errno == errno.EEXIST and self._pod.link(name=pod.name) is None:
            # Linux 6.12 looks for the name in the socket's namespace, where an interface of the node may have it.
            spare = locate.spare_name(plan)
            error = self._new_child(survey, made, spare)
            child = self._pod.link(name=spare) if error is None else None
            if child is not None:
                error = self._pod.batch([rtnl.set_link(child.index, name=pod.name)], timeout=self._left())[0].error
            elif error is not None:
                raise self._refused(plan, error, "ChildRefused")
        if error is not None:
            raise self._refused(plan, error, "NameInUse" if error.errno == errno.EEXIST else "ChildRefused")
        link = self._pod.link(name=pod.name)
        if link is None:
            raise AttachError(plan.label, self._step, "ChildRefused", "the interface left the pod again at once")
        survey.index, survey.in_pod = link.index, True
        return Found(link=link)

    def _new_child(self, survey: _Survey, made: SubInterface, name: str) -> NetlinkError | None:
        request = rtnl.new_link(
            made.kind,
            name,
            netns_fd=self._netns.fd,
            lower=survey.link.index,
            mode=made.mode,
            vlan_id=made.vlan_id,
            address=survey.pod.hardware_address,
        )
        return self._host.batch([request], timeout=self._left())[0].error

    def _settled(self, survey: _Survey) -> Found:
        """A device that a former, unfinished attach left in the pod: give it its name and see what it has."""
        link, pod, up = survey.link, survey.pod, survey.link.up
        if link.name != pod.name:
            self._step = f"rename {link.name} to {pod.name} in the pod"
            requests = [rtnl.delete_altname(link.index, pod.name)] if pod.name in link.altnames else []
            reply = self._pod.batch([*requests, rtnl.set_link(link.index, name=pod.name)], timeout=self._left())[-1]
            if reply.error is not None and reply.error.errno == errno.EBUSY:
                # Kernels before 6.2 do not rename a link that is up.
                requests = [rtnl.set_link(link.index, up=False), rtnl.set_link(link.index, name=pod.name)]
                reply = self._pod.batch(requests, timeout=self._left())[-1]
                up = False
            if reply.error is not None:
                raise self._refused(survey.plan, reply.error, "NameInUse")
        self._step = "look at what it has in the pod"
        return Found(
            link=link,
            up=up,
            master=link.master,
            addresses=tuple(self._pod.addresses(link.index)),
            routes=tuple(self._pod.routes(link.index)),
            neighbours=tuple(self._pod.neighbours(link.index, permanent_only=True)),
        )

    def _configure(self, survey: _Survey, todo: list[Step]) -> ObservedInterface:
        plan, pod, index = survey.plan, survey.pod, survey.index
        if pod.detach_bpf:
            self._step = "remove BPF programs"
            try:
                programs.remove_all(self._netns, self._pod, index, pod.pinned_bpf_links)
            except (OSError, ValueError) as error:
                words = f"cannot remove the BPF programs of the host: {error}"
                raise AttachError(plan.label, self._step, "BPFDetachFailed", words) from error
        self._write_files(survey)
        if pod.features or pod.private_flags:
            self._step = "set ethtool features"
            with Ethtool(self._netns) as ethtool:
                problems = offloads.apply(ethtool, index, pod.features, pod.private_flags)
            if problems:
                raise AttachError(plan.label, self._step, "EthtoolRefused", "; ".join(problems))
        self._in_time()
        self._step = "configure the interface"
        # Before the call: should it end without answers, the kernel may have done all of it.
        self._namespace_undo += [step.undo for step in todo if step.undo is not None]
        replies = self._pod.batch(
            [*(step.do for step in todo), rtnl.get_link(index=index), rtnl.dump_addresses(index)],
            timeout=self._left(),
        )
        self._judge(survey, todo, replies, index)
        link = link_of(replies[-2])
        if link is None:
            raise AttachError(plan.label, "read back", "DeviceGone", "the interface vanished while it was configured")
        if replies[-1].error is not None:
            raise replies[-1].error
        addresses = [item for item in replies[-1].objects if isinstance(item, Address)]
        interface = facts.observed(plan, link, addresses)
        if interface.missing_addresses:
            raise AttachError(
                plan.label,
                "read back",
                "AddressRefused",
                f"the kernel did not keep {', '.join(interface.missing_addresses)}; has the pod the address already?",
            )
        return interface

    def _judge(self, survey: _Survey, todo: Sequence[Step], replies: Sequence[Reply], index: int) -> None:
        plan = survey.plan
        failed: tuple[Step, NetlinkError] | None = None
        doubtful: list[Step] = []
        for step, reply in zip(todo, replies, strict=False):
            if reply.error is None:
                continue
            if step.undo is not None:
                # Refused, or there before us: not ours to take away.
                self._namespace_undo.remove(step.undo)
            if reply.error.errno in step.fine:
                if step.reason == "RouteRefused":
                    doubtful.append(step)
            elif failed is None:
                failed = (step, reply.error)
        if failed is not None:
            step, error = failed
            self._step = step.name
            raise self._refused(plan, error, step.reason, step.advice)
        if doubtful:
            self._same_routes(survey, index)

    def _same_routes(self, survey: _Survey, index: int) -> None:
        """The kernel has a route to the same destination: is it this one, or does another interface have it?"""
        wanted = state.in_order(survey.pod.routes)
        present: list[Route] = self._pod.routes(index)
        missing = state.missing_routes(wanted, present)
        if missing:
            route = missing[0]
            self._step = f"add route {route.destination}"
            table = f" in table {route.table}" if route.table != _TABLE_MAIN else ""
            raise AttachError(
                survey.plan.label,
                self._step,
                "RouteRefused",
                f"the pod already has another route to {route.destination}{table} with metric {route.metric}; "
                "give the claim's route another metric or table",
            )

    def _write_files(self, survey: _Survey) -> None:
        plan, pod = survey.plan, survey.pod
        wanted = steps.files(pod)
        if wanted:
            self._step = "set sysctls"
            if pod.mtu is not None and survey.link.mtu < steps.LEAST_IPV6_MTU:
                # The kernel took IPv6 from the interface, its files too, and gives it back with the MTU.
                self._pod.batch([rtnl.set_link(survey.index, mtu=pod.mtu)], timeout=self._left())
            self._must(plan, sysctl.apply(self._netns, pod.name, wanted), wanted)
        if pod.namespace_sysctls:
            self._step = "set sysctls of the pod's namespace"
            before = sysctl.read_namespace(self._netns, pod.namespace_sysctls)
            self._namespace_sysctls = before | self._namespace_sysctls
            self._must(plan, sysctl.apply(self._netns, "", pod.namespace_sysctls), pod.namespace_sysctls)

    def _must(self, plan: DevicePlan, failed: list[tuple[str, OSError]], wanted: Mapping[str, str]) -> None:
        if failed:
            key, error = failed[0]
            words = f"cannot set the sysctl {key} to {wanted[key]}: {error.strerror}"
            if key == "ipv6/conf/disable_ipv6":
                words += "; the claim has IPv6 addresses, but this node's kernel has IPv6 switched off"
            raise AttachError(plan.label, self._step, "SysctlRefused", words)

    def _vrf(self, survey: _Survey) -> int:
        """Find or make the VRF of a device; give its index, 0 without."""
        vrf = survey.pod.vrf
        if vrf is None:
            return 0
        self._step = f"make the VRF {vrf.name} with table {vrf.table}"
        link = self._pod.link(name=vrf.name)
        if link is None:
            replies = self._pod.batch(
                [rtnl.new_link("vrf", vrf.name, vrf_table=vrf.table, up=True), rtnl.get_link(name=vrf.name)],
                timeout=self._left(),
            )
            if replies[0].error is not None:
                raise self._refused(survey.plan, replies[0].error, "VRFRefused")
            self._made_vrfs.append(vrf)
            link = link_of(replies[1])
        if link is None or link.kind != "vrf":
            raise AttachError(
                survey.plan.label,
                self._step,
                "NameInUse",
                f"the pod already has an interface {vrf.name} that is no VRF; choose another interface.vrf.name",
            )
        if link.vrf_table != vrf.table:
            raise AttachError(
                survey.plan.label,
                self._step,
                "VRFTableDiffers",
                f"the pod's VRF {vrf.name} has table {link.vrf_table}, the claim asks for {vrf.table}; "
                "devices that share a VRF must name the same table",
            )
        return link.index

    # back

    def _undo(self) -> list[str]:
        """Take back what was done, last first. Never raises; gives what is left in words."""
        left: list[str] = []
        way = Homeward(
            self._host, self._host_netns, self._pod, pod_netns=self._netns, ethtool=self._ethtool, kept=self._kept
        )
        for plan, index in reversed(self._touched):
            try:
                _, problems = way.give_back(plan, index)
            except (OSError, ValueError) as error:
                problems = [str(error)]
            left += [f"{plan.label}: {problem}" for problem in problems]
        try:
            left += self._undo_namespace(way)
        except (OSError, ValueError) as error:
            left.append(str(error))
        if left:
            LOG.error("attach was not undone fully", extra=fields(devices=self._current, left="; ".join(left)))
        self._touched.clear()
        return left

    def _undo_namespace(self, way: Homeward) -> list[str]:
        left: list[str] = []
        if self._namespace_undo:
            replies = self._pod.batch(self._namespace_undo[::-1])
            left += [str(reply.error) for reply in replies if reply.error and reply.error.errno not in NO_RULE]
        for vrf in reversed(self._made_vrfs):
            left += way.remove_vrf(vrf)
        if self._namespace_sysctls:
            failed = sysctl.apply(self._netns, "", self._namespace_sysctls)
            left += [f"sysctl {key}: {error.strerror}" for key, error in failed]
        return left

    # words and time

    def _refused(self, plan: DevicePlan, error: NetlinkError, reason: str, advice: str = "") -> AttachError:
        if error.errno == errno.ENODEV:
            reason = "DeviceGone"
        words = f"cannot {self._step}: {error.strerror}"
        if error.kernel_message:
            words += f": {error.kernel_message}"
        return AttachError(plan.label, self._step, reason, words + (f"; {advice}" if advice else ""))

    def _left(self) -> float:
        return max(self._deadline - time.monotonic(), _LEAST_TIME)

    def _in_time(self) -> None:
        late = time.monotonic() - self._deadline
        if late >= 0:
            raise AttachError(
                self._current,
                self._step,
                "DeadlineExceeded",
                f"the time for attaching was over before it could {self._step or 'begin'}; kubelet tries again",
            )


def _names(plan: DevicePlan) -> tuple[str, ...]:
    """Give the names that the device brings into the pod, its new one first."""
    if plan.pod is None or plan.host is None:
        return ()
    own = plan.host.link.altnames if plan.kind is DeviceKind.INTERFACE else ()
    return (plan.pod.name, *(name for name in own if name != plan.pod.name))
