"""BPF programs on the node's interfaces by name: tc filters and TCX programs.

Filters are announced by the kernel (``RTNLGRP_TC``), TCX programs are not: those are looked for when an interface is
new or changes, and with the slow scan. Source of the facts: ``linux/rtnetlink.h``, ``linux/pkt_cls.h``,
``linux/bpf.h``, ``net/sched/cls_bpf.c``, ``kernel/bpf/tcx.c``.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import platform
import socket
import struct
from typing import TYPE_CHECKING, Final

from nri_dranet import bpf
from nri_dranet.inventory.attributes import NO_PROGRAMS, Programs
from nri_dranet.inventory.pace import breathe
from nri_dranet.netlink import codec, traffic
from nri_dranet.netlink.sockets import NETLINK_ROUTE, EventsLostError
from nri_dranet.netlink.transport import KernelSocket, open_socket
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

LOG = logging.getLogger(__name__)

_RTNLGRP_TC: Final = 4
_TCA_BPF_NAME: Final = 7
_FILTER_QDISCS: Final = frozenset({"clsact", "ingress"})
# A kernel without traffic control, or an interface that is gone or has no such place for filters.
_NOTHING_THERE: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV})

_TCX_HOOKS: Final = tuple(number for name, number in bpf.HOOKS.items() if name.startswith("TCX"))
_QUERY_SIZE: Final = 64
_COUNT_OFFSET: Final = 24
_INFO_SIZE: Final = 128
_NAME_OFFSET: Final = 64
_NAME_SIZE: Final = 16

_EVENTS: Final = frozenset({traffic.RTM_NEWQDISC, traffic.RTM_DELQDISC, traffic.RTM_NEWTFILTER, traffic.RTM_DELTFILTER})
_EVENT_BUFFER: Final = 64 << 10
_EVENTS_AT_ONCE: Final = 256
_SLICE: Final = 64


class ProgramScout:
    """Looks for programs in the namespace where it is made. For one thread, which is in that namespace.

    Raises:
        OSError: the socket cannot be made.
    """

    def __init__(self) -> None:
        self._socket = KernelSocket(NETLINK_ROUTE)
        self._bpf = _Bpf()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def all(self, indices: Iterable[int], known: Mapping[int, Programs]) -> dict[int, Programs]:
        """Give the programs of interfaces, by one dump; where the kernel does not tell, the filters that were known."""
        hooked = self._with_filters()
        found: dict[int, Programs] = {}
        for place, index in enumerate(indices):
            if place % _SLICE == 0:
                breathe()
            before = known.get(index, NO_PROGRAMS)
            if hooked is None:
                found[index] = self.tcx_of(index, before)
            elif index in hooked:
                found[index] = self.of(index, before)
            else:
                found[index] = self.tcx_of(index, NO_PROGRAMS)
        return found

    def of(self, index: int, known: Programs) -> Programs:
        """Give the programs of one interface, none for one that is gone; the known filters if the kernel fails."""
        filters = self._filters(index)
        return self.tcx_of(index, known if filters is None else Programs(filters=filters))

    def tcx_of(self, index: int, filters: Programs) -> Programs:
        """Give the programs of an interface whose filters are known."""
        tcx = self._bpf.tcx_names(index)
        if not filters.filters and not tcx:
            return NO_PROGRAMS
        return Programs(filters=filters.filters, tcx=tcx) if tcx != filters.tcx else filters

    def _with_filters(self) -> set[int] | None:
        """Give the interfaces that have a queueing discipline for filters; None when the kernel fails to tell."""
        messages = self._list(traffic.dump_qdiscs())
        if messages is None:
            return None
        found = (traffic.parse_qdisc(each.body) for each in messages if each.type == traffic.RTM_NEWQDISC)
        return {qdisc.index for qdisc in found if qdisc.kind in _FILTER_QDISCS}

    def _filters(self, index: int) -> tuple[str, ...] | None:
        names: set[str] = set()
        for parent in (traffic.INGRESS_FILTERS, traffic.EGRESS_FILTERS):
            messages = self._list(traffic.dump_filters(index, parent))
            if messages is None:
                return None
            names |= {_filter_name(message.body) for message in messages}
        return tuple(sorted(name for name in names if name))

    def _list(self, request: codec.Request) -> Sequence[codec.Message] | None:
        """Ask for a dump; empty where there is nothing to list, None when the kernel failed."""
        try:
            answer = self._socket.exchange((request,))[0]
            if answer.error:
                raise answer.error
        except OSError as error:
            if error.errno in _NOTHING_THERE:
                return ()
            LOG.warning("filters cannot be listed, those known stay", extra=fields(what=request.label, error=error))
            return None
        return answer.messages


class ProgramMonitor:
    """Hears of filters and their queueing disciplines in the namespace where it is made. For one thread.

    Raises:
        OSError: the socket cannot be made.
    """

    def __init__(self) -> None:
        self._socket = open_socket(NETLINK_ROUTE, None, strict=True, groups=(_RTNLGRP_TC,))

    def fileno(self) -> int:
        """Give the descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def receive(self) -> set[int]:
        """Give the interfaces on which something changed, without waiting.

        Raises:
            EventsLostError: the kernel dropped events.
        """
        found: set[int] = set()
        for _ in range(_EVENTS_AT_ONCE):
            try:
                data, (port, _) = self._socket.recvfrom(_EVENT_BUFFER, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    raise EventsLostError("the kernel dropped traffic control events") from error
                raise
            if port == 0:
                found |= changed_interfaces(data)
        return found


def changed_interfaces(data: bytes) -> set[int]:
    """Read which interfaces a datagram of traffic control events is about.

    Raises:
        EventsLostError: it cannot be read.
    """
    try:
        found = {traffic.index_of(message.body) for message in codec.messages(data) if message.type in _EVENTS}
    except codec.DecodeError as error:
        raise EventsLostError(f"a traffic control event cannot be read: {error}") from error
    return found - {0}


def _filter_name(body: bytes) -> str:
    """Give the name of a BPF filter (``TCA_BPF_NAME``), empty for filters of another kind."""
    try:
        found = traffic.parse_filter(body)
        options = codec.attributes(found.options) if found.kind == "bpf" else {}
    except codec.DecodeError:
        return ""
    return codec.string(options.get(_TCA_BPF_NAME, b""))


class _Bpf:
    """bpf(2) with one buffer for all calls: every interface is asked, and nearly all answer 0."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._number = bpf.SYSCALL_NUMBERS.get(platform.machine(), 0)
        self._buffer = ctypes.create_string_buffer(_QUERY_SIZE)
        self._address = ctypes.addressof(self._buffer)
        self._libc.syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint)
        self._known = self._number > 0
        self._names: dict[int, str] = {}

    def tcx_names(self, index: int) -> tuple[str, ...]:
        """Give the names of the TCX programs of an interface; a kernel that does not tell has none."""
        if not self._known or not any(self._count(index, hook) for hook in _TCX_HOOKS):
            return ()
        try:
            ids = {program.program_id for program in bpf.programs(index) if program.hook.startswith("TCX")}
        except OSError:
            return ()
        return tuple(sorted({self._name(number) for number in ids}))

    def _count(self, index: int, hook: int) -> int:
        struct.pack_into("=IIIIQIIQQQ", self._buffer, 0, index, hook, 0, 0, 0, 0, 0, 0, 0, 0)
        if self._libc.syscall(self._number, bpf.PROG_QUERY, self._address, _QUERY_SIZE) < 0:
            if ctypes.get_errno() in {errno.EINVAL, errno.EPERM, errno.ENOSYS}:
                # Before Linux 6.6 there is no TCX; without the capability nobody tells.
                self._known = False
                LOG.info("TCX programs are not published", extra=fields(reason=os.strerror(ctypes.get_errno())))
            return 0
        count: int = struct.unpack_from("=I", self._buffer, _COUNT_OFFSET)[0]
        return count

    def _name(self, program: int) -> str:
        """Give a program's name, its number where it has none; numbers are never used again."""
        known = self._names.get(program)
        if known is None:
            known = self._names[program] = self._read_name(program) or str(program)
        return known

    def _read_name(self, program: int) -> str:
        struct.pack_into("=III", self._buffer, 0, program, 0, 0)
        descriptor = self._libc.syscall(self._number, bpf.PROG_GET_FD_BY_ID, self._address, 12)
        if descriptor < 0:
            return ""
        try:
            info = ctypes.create_string_buffer(_INFO_SIZE)
            struct.pack_into("=IIQ", self._buffer, 0, descriptor, _INFO_SIZE, ctypes.addressof(info))
            if self._libc.syscall(self._number, bpf.OBJ_GET_INFO_BY_FD, self._address, 16) < 0:
                return ""
            name = info.raw[_NAME_OFFSET : _NAME_OFFSET + _NAME_SIZE]
            return name.partition(b"\0")[0].decode("utf-8", "replace")
        finally:
            os.close(descriptor)
