"""A packet socket that hears the answers to one DHCP exchange, on one interface of one network namespace.

It sees frames before anything else in the kernel does (bridge, VRF, tc, netfilter), and does not touch the interface. A
filter in the kernel passes the answers to one ``xid`` alone, so that other traffic wakes nobody. Source of the facts:
packet(7), ``linux/if_packet.h``, ``linux/filter.h``, ``net/packet/af_packet.c``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
import time
from typing import TYPE_CHECKING, Final

from nri_dranet.dhcp import frames
from nri_dranet.dhcp.errors import DecodeError, DhcpError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from nri_dranet.dhcp.frames import Datagram
    from nri_dranet.netlink.namespaces import NetNs

_ETH_P_ALL: Final = 3
_SOL_PACKET: Final = 263
_PACKET_AUXDATA: Final = 8
_PACKET_IGNORE_OUTGOING: Final = 23
_SO_ATTACH_FILTER: Final = 26
_SIOCGIFNAME: Final = 0x8910

# struct tpacket_auxdata: status, length, captured length, offsets of link and network header, VLAN tag and protocol.
_AUXDATA: Final = struct.Struct("=IIIHHHH")
_STATUS_CHECKSUM_NOT_READY: Final = 1 << 3
_STATUS_VLAN: Final = 1 << 4
_VLAN_ID: Final = 0x0FFF

_ARPHRD_ETHER: Final = 1
_LARGEST: Final = 64 << 10


def _filter(xid: int) -> bytes:
    """Return the program (``struct sock_filter`` each): IPv4, UDP to port 68, no fragment, an answer with this xid."""
    jump_equal, jump_set, load_byte, load_half = 0x15, 0x45, 0x30, 0x28
    load_header, load_byte_x, load_half_x, load_word_x, give = 0xB1, 0x50, 0x48, 0x40, 0x06
    fail = 14
    program = [
        (load_half, 0, 0, 12),
        (jump_equal, 0, fail - 2, frames.ETHERTYPE_IPV4),
        (load_byte, 0, 0, 23),
        (jump_equal, 0, fail - 4, frames.IP_UDP),
        (load_half, 0, 0, 20),
        (jump_set, fail - 6, 0, 0x3FFF),
        (load_header, 0, 0, 14),
        (load_half_x, 0, 0, 14 + 2),
        (jump_equal, 0, fail - 9, frames.CLIENT_PORT),
        (load_byte_x, 0, 0, 14 + 8),
        (jump_equal, 0, fail - 11, 2),
        (load_word_x, 0, 0, 14 + 8 + 4),
        (jump_equal, 0, fail - 13, xid),
        (give, 0, 0, _LARGEST),
        (give, 0, 0, 0),
    ]
    return b"".join(struct.pack("=HBBI", *each) for each in program)


class PacketSocket:
    """Sends frames and hears the answers with one ``xid``. One thread uses it.

    Args:
        index: the interface.
        xid: whose answers are heard.
        netns: the interface's namespace; None: that of the calling thread.

    Raises:
        DhcpError: the interface is not Ethernet.
        OSError: ENODEV: there is no such interface; EPERM: CAP_NET_RAW is missing.
    """

    def __init__(self, index: int, xid: int, netns: NetNs | None = None) -> None:
        # Protocol 0: it hears nothing before it is bound.
        make = netns.socket if netns is not None else socket.socket
        self._socket = make(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            self._attach(xid)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            self.name = self._bind(index)
        except BaseException:
            self._socket.close()
            raise

    def send(self, datagram: Datagram) -> None:
        """Send a frame as it is.

        Raises:
            OSError: ENETDOWN: the interface is down; ENXIO or ENODEV: it is gone.
        """
        self._socket.send(frames.encode(datagram))

    def receive(self, until: float) -> Datagram | None:
        """Return the next whole datagram that is an answer; None when there was none by ``until`` (time.monotonic).

        Raises:
            OSError: the interface went down or away.
        """
        while (left := until - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                frame, ancillary, _, _ = self._socket.recvmsg(_LARGEST, socket.CMSG_SPACE(_AUXDATA.size))
            except TimeoutError:
                return None
            status, tag = _auxiliary(ancillary)
            if status & _STATUS_VLAN and tag & _VLAN_ID:
                # Of another network: the kernel has taken the tag off.
                continue
            try:
                return frames.decode(frame, checksum_is_there=not status & _STATUS_CHECKSUM_NOT_READY)
            except DecodeError:
                continue
        return None

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _bind(self, index: int) -> str:
        """Hear this interface alone; return its name, which bind(2) goes by here and which may change meanwhile."""
        name = self._name_of(index)
        self._socket.bind((name, _ETH_P_ALL))
        if self._name_of(index) != name:
            raise OSError(errno.ENODEV, f"interface {name} was renamed just now")
        kind = self._socket.getsockname()[3]
        if kind != _ARPHRD_ETHER:
            raise DhcpError(f"interface {name} is not Ethernet (its type is {kind}): there is no DHCP on it")
        return name

    def _name_of(self, index: int) -> str:
        """Return the name of an interface in the socket's namespace, which need not be this thread's."""
        answer = fcntl.ioctl(self._socket.fileno(), _SIOCGIFNAME, struct.pack("=16si20x", b"", index))
        return answer[:16].partition(b"\0")[0].decode(errors="surrogateescape")

    def _attach(self, xid: int) -> None:
        program = _filter(xid)
        held = ctypes.create_string_buffer(program, len(program))
        # struct sock_fprog; the kernel copies the program.
        pointer = struct.pack("HP", len(program) // 8, ctypes.addressof(held))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)


def _auxiliary(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, int]:
    """Return status and VLAN tag of a frame."""
    for level, kind, data in ancillary:
        if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA) and len(data) >= _AUXDATA.size:
            status, _, _, _, _, tag, _ = _AUXDATA.unpack_from(data)
            return status, tag
    return 0, 0
