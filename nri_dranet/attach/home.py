"""The way home of a device: out of the pod's namespace, under its own name and index, then restored."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from nri_dranet.attach import locate, rdma, restore
from nri_dranet.attach.locate import Place
from nri_dranet.claims.plan import DeviceKind
from nri_dranet.netlink import rtnl
from nri_dranet.netlink.nldev import NoRdmaError

if TYPE_CHECKING:
    from nri_dranet.attach.kept import KeptPrograms
    from nri_dranet.claims.plan import DevicePlan, HostState, VrfPlan
    from nri_dranet.netlink.codec import NetlinkError
    from nri_dranet.netlink.ethtool import Ethtool
    from nri_dranet.netlink.model import Link
    from nri_dranet.netlink.namespaces import NetNs
    from nri_dranet.netlink.sockets import RtnlSocket

_MOVE_ATTEMPTS: Final = 6
_STILL: Final = frozenset({DeviceKind.RDMA, DeviceKind.ADMIN})
NO_RULE: Final = frozenset({errno.ENOENT, errno.ESRCH, errno.EAFNOSUPPORT})
"""The kernel's words for a policy rule that is not there; the last: no rules of IPv6 without IPv6."""


class Homeward:
    """The way from a pod to the host.

    Args:
        host: a socket in the host's namespace.
        netns: that namespace.
        pod: a socket in the pod's, None if that is gone.
        pod_netns: the pod's namespace, for an RDMA device in exclusive mode.
        ethtool: for features and private flags, in the host's namespace; None leaves them.
        kept: BPF programs that were kept for devices.
    """

    def __init__(
        self,
        host: RtnlSocket,
        netns: NetNs,
        pod: RtnlSocket | None,
        *,
        pod_netns: NetNs | None = None,
        ethtool: Ethtool | None = None,
        kept: KeptPrograms | None = None,
    ) -> None:
        self._host = host
        self._netns = netns
        self._pod = pod
        self._pod_netns = pod_netns
        self._ethtool = ethtool
        self._kept = kept

    def give_back(self, plan: DevicePlan, index: int = 0) -> tuple[bool, list[str]]:
        """Bring a device home from wherever it is and make it what it was. Right already: nothing is touched.

        Args:
            plan: the device.
            index: its index in the pod, 0 if that is not known.

        Returns:
            Whether the device is on the host now, and in words what could not be done or restored.

        Raises:
            NetlinkError: the kernel does not answer.
        """
        problems: list[str] = []
        renamed = ""
        if plan.rdma is not None and plan.kind is not DeviceKind.ADMIN:
            # Before the interface: some drivers make theirs anew when the RDMA device arrives.
            try:
                renamed = rdma.leave(plan.rdma, self._netns, self._pod_netns)
            except NoRdmaError as error:
                if plan.rdma.exclusive:
                    problems.append(f"the RDMA device {plan.rdma.link} cannot be brought home: {error}")
            except OSError as error:
                problems.append(f"the RDMA device {plan.rdma.link} cannot be brought home: {error}")
        home = not problems
        problems += [renamed] if renamed else []
        if plan.host is None or plan.kind in _STILL:
            return home, problems
        arrived, more = self._interface(plan, plan.host, index)
        return arrived, problems + more

    def _interface(self, plan: DevicePlan, wanted: HostState, index: int) -> tuple[bool, list[str]]:
        found = locate.find(plan, self._host, self._pod, index)
        if plan.kind is DeviceKind.CHILD:
            return self._delete_child(found)
        if found.place is Place.NOWHERE or found.link is None:
            return False, [found.word or _nowhere(plan, self._pod)]
        problems: list[str] = []
        now, fresh = found.link.index, False
        if found.place is Place.POD and self._pod is not None:
            now, fresh = self._leave(plan, wanted.link, self._pod, found.link, problems), True
            if not now:
                # The namespace may have ended meanwhile, so that the kernel brought it home.
                arrived = locate.find(plan, self._host, self._pod)
                if arrived.place is not Place.HOST or arrived.link is None:
                    return False, problems
                now, fresh = arrived.link.index, False
                problems.clear()
        problems += restore.restore(
            self._host, self._netns, wanted, now, ethtool=self._ethtool, kept=self._kept, fresh=fresh
        )
        return True, problems

    def remove_rules(self, plan: DevicePlan) -> list[str]:
        """Remove the plan's policy rules from the pod's namespace; those that are not there are fine."""
        if self._pod is None or plan.pod is None or not plan.pod.rules:
            return []
        replies = self._pod.batch([rtnl.delete_rule(rule) for rule in plan.pod.rules])
        return [str(reply.error) for reply in replies if reply.error and reply.error.errno not in NO_RULE]

    def remove_vrf(self, vrf: VrfPlan) -> list[str]:
        """Remove a VRF device from the pod's namespace, unless it still has ports."""
        link = self._pod.link(name=vrf.name) if self._pod is not None else None
        if self._pod is None or link is None or link.kind != "vrf" or link.vrf_table != vrf.table:
            return []
        if any(other.master == link.index for other in self._pod.links()):
            return []
        error = self._pod.batch([rtnl.delete_link(link.index)])[0].error
        return [str(error)] if error and error.errno != errno.ENODEV else []

    def _leave(self, plan: DevicePlan, own: Link, pod: RtnlSocket, link: Link, problems: list[str]) -> int:
        """Move a device to the host and give its index there; 0 if that failed."""
        # What can be set back in the pod is set there, by the same call: a changed MTU decides over the IPv6 settings
        # that the device gets on arrival. A refusal counts only if it repeats itself on the host.
        settings = restore.link_requests(link, own)
        name, index = own.name, own.index
        error: NetlinkError | None = None
        for _ in range(_MOVE_ATTEMPTS):
            move = rtnl.set_link(link.index, name=name, netns_fd=self._netns.fd, new_index=index or None)
            error = pod.batch([*settings, move])[-1].error
            settings = []
            if error is None:
                return index or self._index_of(plan, name)
            if error.errno == errno.EBUSY and index:
                # Somebody else has the index now.
                index = 0
            elif error.errno == errno.EEXIST:
                if pod.link(index=link.index) is None:
                    # The kernel moves first and renames then: it has arrived, under the name that it had in the pod.
                    return self._index_of(plan, link.name)
                name = self._free_names(link, own, pod)
            else:
                break
        problems.append(f"it cannot be moved home: {error}")
        return 0

    def _index_of(self, plan: DevicePlan, name: str) -> int:
        link = self._host.link(name=name)
        if link is not None and locate.could_be(plan, link, in_pod=False):
            return link.index
        found = locate.find(plan, self._host, None)
        return found.link.index if found.link is not None else 0

    def _free_names(self, link: Link, own: Link, pod: RtnlSocket) -> str:
        """Take away alternative names that collide on the host, and choose a name that does not.

        What is lost by that is found and told when the device is restored.
        """
        for name in link.altnames:
            if name != own.name and self._host.link(name=name) is not None:
                pod.batch([rtnl.delete_altname(link.index, name)])
        if own.name in link.altnames:
            pod.batch([rtnl.delete_altname(link.index, own.name)])
        if self._host.link(name=own.name) is None:
            return own.name
        spare = restore.spare_names(own.index)
        return next((name for name in spare if self._host.link(name=name) is None), own.name)

    def _delete_child(self, found: locate.Location) -> tuple[bool, list[str]]:
        if found.place is not Place.POD or self._pod is None or found.link is None:
            return True, []
        error = self._pod.batch([rtnl.delete_link(found.link.index)])[0].error
        if error is None or error.errno == errno.ENODEV:
            return True, []
        return False, [str(error)]


def _nowhere(plan: DevicePlan, pod: RtnlSocket | None) -> str:
    where = "neither in the pod nor on the host" if pod is not None else "not on the host"
    kind = plan.host.link.kind if plan.host else ""
    if kind and pod is None:
        return f"it is {where}: a {kind} is destroyed together with its network namespace"
    return f"it is {where}: it was destroyed, or moved to another namespace"
