"""A device that is on the host again: make it what it was before it left."""

from __future__ import annotations

import errno
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from nri_dranet.attach import locate, offloads, programs, queueing, snapshot, state, sysctl
from nri_dranet.attach.kept import KeptPrograms, programs_of
from nri_dranet.netlink import rtnl
from nri_dranet.netlink.codec import AF_INET6, NetlinkError
from nri_dranet.netlink.links import ADDR_GEN_NONE, IFF_SETTABLE, IPV4_CONF
from nri_dranet.netlink.ports import set_port
from nri_dranet.netlink.routing import IFA_F_DADFAILED, IFA_F_NODAD

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nri_dranet.claims.plan import HostState
    from nri_dranet.netlink.codec import Request
    from nri_dranet.netlink.ethtool import Ethtool
    from nri_dranet.netlink.model import Address, Link
    from nri_dranet.netlink.namespaces import NetNs
    from nri_dranet.netlink.sockets import RtnlSocket

TEMPORARY_NAME: Final = "drn"
"""What the name of a device begins with whose own name a stranger has taken; its index follows."""

_NETLINK_IPV4: Final = {f"ipv4/conf/{name}": name for name in IPV4_CONF if name != "forwarding"}
_EXISTS: Final = frozenset({errno.EEXIST})
_NONE: Final[frozenset[int]] = frozenset()
_NAME_ATTEMPTS: Final = 20

_Wish = tuple["Request", frozenset[int]]
"""A request and the error numbers that mean it is so already."""


def restore(
    host: RtnlSocket,
    netns: NetNs,
    wanted: HostState,
    index: int,
    *,
    ethtool: Ethtool | None = None,
    kept: KeptPrograms | None = None,
    fresh: bool = False,
) -> list[str]:
    """Bring back what differs from the snapshot; what is right already is not touched.

    Args:
        host: a socket in the host's namespace.
        netns: that namespace.
        wanted: the snapshot.
        index: the device's index now.
        ethtool: for its features and private flags; None leaves them.
        kept: the BPF programs that were kept for it; None: none was.
        fresh: it has only just arrived, so that it has no addresses, routes and neighbours yet.

    Returns:
        What could not be restored, in words.

    Raises:
        NetlinkError: ENODEV if the device has gone, or the kernel does not answer.
    """
    work = _Restoration(host, wanted, index, fresh=fresh)
    work.link_itself()
    work.sysctls(netns)
    if ethtool is not None and (wanted.features or wanted.private_flags):
        work.problems += offloads.apply(ethtool, index, wanted.features, wanted.private_flags)
    with (kept or KeptPrograms("")).opened(programs_of(wanted)) as opened:
        if wanted.programs:
            # Before the link is up: a driver may take it down to change its XDP program.
            try:
                work.problems += programs.restore(netns, host, index, wanted.programs, opened)
            except OSError as error:
                # Addresses and routes come back all the same.
                work.problems.append(f"its BPF programs cannot be looked at: {error}")
        work.all_else()
        work.problems += queueing.restore(host, index, wanted.traffic, fresh=fresh, programs=opened)
    return work.problems


class _Restoration:
    """One device on its way back to what it was; ``problems`` says what could not be."""

    def __init__(self, host: RtnlSocket, wanted: HostState, index: int, *, fresh: bool) -> None:
        self.problems: list[str] = []
        self._host = host
        self._wanted = wanted
        self._index = index
        self._fresh = fresh
        self._link, self._differing = self._read()

    def _read(self) -> tuple[Link, dict[str, str]]:
        """Read the link, and which sysctls differ."""
        found = self._host.link_and_conf(self._index)
        if found is None:
            raise NetlinkError(errno.ENODEV, f"restore link {self._index}")
        link, conf = found
        present = snapshot.settings(conf)
        return link, {key: value for key, value in self._wanted.sysctls.items() if present.get(key) != value}

    def link_itself(self) -> None:
        """Restore name, MTU, hardware address, sizes, queue length, group, alias, flags: what else depends on them."""
        link, own = self._link, self._wanted.link
        renamed = link.name != own.name
        if renamed:
            self._take_name()
            if not self._fresh:
                self._drop_foreign_labels()
        settings = [(request, _NONE) for request in link_requests(link, own)]
        if settings or renamed:
            self._send(settings)
            self._link, self._differing = self._read()

    def sysctls(self, netns: NetNs) -> None:
        """Restore those sysctls that only their files can set."""
        by_file = {key: value for key, value in self._differing.items() if key not in _NETLINK_IPV4}
        if by_file:
            failed = sysctl.apply(netns, self._link.name, by_file)
            self.problems += [f"sysctl {key}={by_file[key]}: {error.strerror}" for key, error in failed]

    def all_else(self) -> None:
        """Restore the rest, by one call: other names, settings, master, addresses, up or down, routes, neighbours."""
        index, wanted = self._index, self._wanted
        self._altnames()
        requests = [*self._settings(), *self._master()]
        addresses = self._missing_addresses()
        late = [one for one in addresses if wanted.link.up and state.needs_link_up(one)]
        requests += _adding((one for one in addresses if one not in late), index)
        if self._link.up != wanted.link.up:
            requests.append((rtnl.set_link(index, up=wanted.link.up), _NONE))
        if wanted.link.up:
            requests += [*_adding(late, index), *self._routes(), *self._neighbours()]
        self._send(requests)
        self._port()

    def _take_name(self) -> None:
        link, name = self._link, self._wanted.link.name
        if name in link.altnames:
            self._host.batch([rtnl.delete_altname(link.index, name)])
        error = self._rename(name)
        if error is None:
            return
        self.problems.append(f"its name {name} cannot be given back: {error.kernel_message or error.strerror}")
        if error.errno != errno.EEXIST or link.name.startswith(TEMPORARY_NAME):
            return
        for spare in spare_names(link.index):
            if self._rename(spare) is None:
                self.problems[-1] += f"; it is called {spare} until the name is free"
                return

    def _rename(self, name: str) -> NetlinkError | None:
        rename = rtnl.set_link(self._index, name=name)
        error = self._host.batch([rename])[0].error
        if error is not None and error.errno == errno.EBUSY:
            # Kernels before 6.2 do not rename a link that is up.
            error = self._host.batch([rtnl.set_link(self._index, up=False), rename])[1].error
        return error

    def _drop_foreign_labels(self) -> None:
        """Remove addresses whose labels a rename changed (``inetdev_changename``): they are added with their own."""
        labels = {(one.address, one.prefix_length, one.peer): one.label for one in self._wanted.addresses if one.label}
        wrong = [
            rtnl.delete_address(one, self._index)
            for one in self._host.addresses(self._index)
            if labels.get((one.address, one.prefix_length, one.peer), one.label) != one.label
        ]
        if wrong:
            self._host.batch(wrong)

    def _altnames(self) -> None:
        """Restore alternative names, and remove those that the pod gave it."""
        present, wanted = self._link.altnames, self._wanted.link.altnames
        if self._fresh:
            strange = [name for name in present if name not in wanted]
            self._send([(rtnl.delete_altname(self._index, name), _NONE) for name in strange])
        for name in wanted:
            if name in present or name == self._link.name:
                continue
            error = self._host.batch([rtnl.add_altname(self._index, name)])[0].error
            if error is None:
                continue
            # The host's device manager may have been quicker.
            holder = self._host.link(name=name)
            if holder is None or holder.index != self._index:
                self.problems.append(str(error))

    def _settings(self) -> list[_Wish]:
        link, own = self._link, self._wanted.link
        requests: list[_Wish] = []
        if own.addr_gen_mode is not None and link.addr_gen_mode != own.addr_gen_mode:
            requests.append((rtnl.set_link(link.index, addr_gen_mode=own.addr_gen_mode), _NONE))
        values = {_NETLINK_IPV4[key]: int(value) for key, value in self._differing.items() if key in _NETLINK_IPV4}
        if values:
            label = "restore sysctls " + ", ".join(f"ipv4/conf/{name}={value}" for name, value in values.items())
            requests.append((rtnl.set_link(link.index, ipv4_conf=values, label=label), _NONE))
        return requests

    def _master(self) -> list[_Wish]:
        link, own = self._link, self._wanted.link
        if not own.master or link.master == own.master:
            return []
        master = self._host.link(index=own.master)
        if master is None or (own.slave_kind and master.kind != own.slave_kind):
            kind = own.slave_kind or "link"
            self.problems.append(f"it was a port of the {kind} with index {own.master}, which is gone")
            return []
        requests = [(rtnl.set_link(link.index, master=master.index, label=f"make it a port of {master.name}"), _NONE)]
        if link.up and master.kind == "bond":
            requests.insert(0, (rtnl.set_link(link.index, up=False), _NONE))
        return requests

    def _port(self) -> None:
        """Restore what the bridge or bond kept for its port; it has forgotten that when the port left."""
        wanted, own = self._wanted.port, self._wanted.link
        if not wanted:
            return
        found = self._host.link_and_conf(self._index)
        if found is None or found[0].master != own.master:
            # That it is no port is told already.
            return
        present = found[1].port
        self._send(
            [
                (set_port(self._index, own.slave_kind, {name: value}), _NONE)
                for name, value in wanted.items()
                if present.get(name) != value
            ]
        )

    def _missing_addresses(self) -> list[Address]:
        wanted = self._wanted
        # A link that is told to make no link-local address has only those that somebody gave it.
        by_hand = wanted.link.addr_gen_mode == ADDR_GEN_NONE
        passed = time.clock_gettime(time.CLOCK_BOOTTIME) - wanted.taken if wanted.taken else 0
        own = [
            address
            for address in state.aged(wanted.addresses, max(0, passed))
            if not state.made_by_kernel(address, "" if by_hand else wanted.link.address)
        ]
        if not own:
            return []
        present = () if self._fresh else self._host.addresses(self._index)
        return state.missing_addresses(own, present)

    def _routes(self) -> list[_Wish]:
        own = state.in_order(state.own_routes(self._wanted.routes))
        if not own:
            return []
        present = () if self._fresh else self._host.routes(self._index)
        return [
            (rtnl.add_route(state.for_link(route, self._wanted.link.index), self._index), _NONE)
            for route in state.missing_routes(own, present)
        ]

    def _neighbours(self) -> list[_Wish]:
        wanted = self._wanted.neighbours
        if not wanted:
            return []
        present = () if self._fresh else self._host.neighbours(self._index, permanent_only=True)
        return [
            (rtnl.add_neighbour(entry, self._index, replace=True), _NONE)
            for entry in state.missing_neighbours(wanted, present)
        ]

    def _send(self, requests: Sequence[_Wish]) -> None:
        if not requests:
            return
        replies = self._host.batch([request for request, _ in requests])
        for (_, fine), reply in zip(requests, replies, strict=True):
            if reply.error is not None and reply.error.errno not in fine:
                self.problems.append(str(reply.error))


def _adding(addresses: Iterable[Address], index: int) -> list[_Wish]:
    requests: list[_Wish] = []
    for address in addresses:
        if address.family != AF_INET6 or address.flags & (IFA_F_NODAD | IFA_F_DADFAILED):
            requests.append((rtnl.add_address(address, index), _EXISTS))
            continue
        # It was proven to be unique before it left. Added without proof, so that routes may have it as their source at
        # once, and then made an ordinary address again: taking the flag away does not start the proof anew.
        requests.append((rtnl.add_address(replace(address, flags=address.flags | IFA_F_NODAD), index), _EXISTS))
        requests.append((rtnl.add_address(address, index, replace=True), _NONE))
    return requests


def link_requests(link: Link, wanted: Link) -> list[Request]:
    """Give the requests that bring back the settings of the link itself, one each, so that each stands alone."""
    settings = state.differing(link, wanted)
    if locate.same_guid(link, wanted):
        # The rest of IPoIB's address is the queue pair of an interface that was made anew: nobody can set it.
        settings.pop("address", None)
    requests = []
    if "address" in settings and link.up:
        # Not every driver can change the address of a link that is up.
        requests.append(rtnl.set_link(link.index, up=False))
    for name, value in settings.items():
        label = f"restore {name} {value}"
        requests.append(rtnl.set_link(link.index, **{name: value}, label=label))  # type: ignore[arg-type]
    if (link.flags ^ wanted.flags) & IFF_SETTABLE:
        label = f"restore flags {wanted.flags & IFF_SETTABLE:#x}"
        requests.append(rtnl.set_link(link.index, flags=wanted.flags, label=label))
    return requests


def spare_names(index: int) -> Iterable[str]:
    """Give names for a device whose own name is taken, in order of preference."""
    yield f"{TEMPORARY_NAME}{index}"
    for number in range(1, _NAME_ATTEMPTS):
        yield f"{TEMPORARY_NAME}{index}x{number}"
