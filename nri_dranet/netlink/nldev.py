"""RDMA devices over netlink (nldev): list them and their ports, move and rename them, hear of them.

A request looks its device up in the namespace of the socket, so moving one back is asked for from within the pod. Names
are unique on the whole system. Source of the facts: ``rdma/rdma_netlink.h``, ``drivers/infiniband/core/nldev.c``.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nri_dranet.netlink import codec
from nri_dranet.netlink.codec import DecodeError, Message, Request
from nri_dranet.netlink.sockets import EventsLostError
from nri_dranet.netlink.transport import KernelSocket, open_socket

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from nri_dranet.netlink.namespaces import NetNs
    from nri_dranet.netlink.transport import Answer

NETLINK_RDMA: Final = 20

# A message type is the client's number (RDMA_NL_NLDEV) above ten bits of command.
_CLIENT: Final = 5 << 10
_GET: Final = _CLIENT + 1
_SET: Final = _CLIENT + 2
_PORT_GET: Final = _CLIENT + 5
_SYS_GET: Final = _CLIENT + 6
_GET_CHARDEV: Final = _CLIENT + 15
_MONITOR: Final = _CLIENT + 28

# RDMA_NL_GROUP_NOTIFY, from Linux 6.12 on.
_GROUP_NOTIFY: Final = 4

_DEV_INDEX: Final = 1
_DEV_NAME: Final = 2
_PORT_INDEX: Final = 3
_FW_VERSION: Final = 5
_NODE_GUID: Final = 6
_SYS_IMAGE_GUID: Final = 7
_SUBNET_PREFIX: Final = 8
_LID: Final = 9
_PORT_STATE: Final = 12
_PORT_PHYS_STATE: Final = 13
_DEV_NODE_TYPE: Final = 14
_NDEV_INDEX: Final = 50
_NDEV_NAME: Final = 51
_NETNS_MODE: Final = 66
_DEV_PROTOCOL: Final = 67
_NET_NS_FD: Final = 68
_CHARDEV_TYPE: Final = 69
_CHARDEV_NAME: Final = 70
_CHARDEV: Final = 72
_PARENT_NAME: Final = 100
_EVENT_TYPE: Final = 102

# The words of sysfs (drivers/infiniband/core/sysfs.c), by the numbers of the InfiniBand specification.
PORT_STATES: Final = {1: "DOWN", 2: "INIT", 3: "ARMED", 4: "ACTIVE", 5: "ACTIVE_DEFER"}
PHYSICAL_STATES: Final = {
    1: "Sleep",
    2: "Polling",
    3: "Disabled",
    4: "PortConfigurationTraining",
    5: "LinkUp",
    6: "LinkErrorRecovery",
    7: "Phy Test",
}
EVENTS: Final = {0: "register", 1: "unregister", 2: "attach", 3: "detach", 4: "rename", 5: "netdev-rename"}

_EVENTS_AT_ONCE: Final = 256


class NetnsMode(enum.StrEnum):
    """Whether RDMA devices belong to all namespaces, or each to one."""

    SHARED = "shared"
    EXCLUSIVE = "exclusive"


class NoRdmaError(Exception):
    """This kernel has no RDMA: no module ``ib_core``, and none to be loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RdmaDevice:
    """An RDMA device. GUIDs are four groups of hex digits as in sysfs; ``protocol`` is ``ib``, ``roce``, ``iw``, …."""

    index: int
    name: str
    ports: int = 0
    firmware: str = ""
    node_guid: str = ""
    system_image_guid: str = ""
    node_type: int = 0
    protocol: str = ""
    parent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RdmaPort:
    """A port of an RDMA device.

    ``netdev_index`` is its interface, 0 where there is none in the socket's namespace. States are sysfs's words.
    """

    device_index: int
    device: str
    port: int
    state: str = ""
    physical_state: str = ""
    netdev_index: int = 0
    netdev: str = ""
    lid: int = 0
    subnet_prefix: str = ""

    @property
    def active(self) -> bool:
        """Tell whether traffic can pass."""
        return self.state == "ACTIVE"


@dataclass(frozen=True, slots=True, kw_only=True)
class RdmaCharDevice:
    """A character device of an RDMA device: its name under ``/dev/infiniband`` and its numbers."""

    name: str
    major: int
    minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RdmaEvent:
    """What happened to an RDMA device: a word of ``EVENTS``, or ``unknown``."""

    kind: str
    device_index: int
    device: str = ""
    port: int = 0
    netdev_index: int = 0
    netdev: str = ""


def dump_devices() -> Request:
    """Ask for all devices that the socket's namespace sees."""
    return Request(_GET, codec.NLM_F_DUMP, b"", "list RDMA devices")


def get_device(index: int) -> Request:
    """Ask for one device (EINVAL if there is none)."""
    return Request(_GET, 0, codec.attribute_u32(_DEV_INDEX, index), f"read RDMA device {index}")


def dump_ports(index: int) -> Request:
    """Ask for the ports of a device."""
    return Request(_PORT_GET, codec.NLM_F_DUMP, codec.attribute_u32(_DEV_INDEX, index), f"list RDMA ports of {index}")


def get_netns_mode() -> Request:
    """Ask whether RDMA devices belong to all namespaces."""
    return Request(_SYS_GET, 0, b"", "read the RDMA namespace mode")


def move_device(index: int, netns_fd: int) -> Request:
    """Move a device to another namespace, in exclusive mode alone.

    The kernel answers EOPNOTSUPP in shared mode and for drivers that cannot, EEXIST never: names are unique anyway.
    """
    body = codec.attribute_u32(_DEV_INDEX, index) + codec.attribute_u32(_NET_NS_FD, netns_fd)
    return Request(_SET, 0, body, f"move RDMA device {index} to another namespace")


def rename_device(index: int, name: str) -> Request:
    """Give a device another name (EEXIST if any device of the system has it)."""
    body = codec.attribute_u32(_DEV_INDEX, index) + codec.attribute_text(_DEV_NAME, name)
    return Request(_SET, 0, body, f"rename RDMA device {index} to {name}")


def get_char_device(kind: str, index: int | None = None, port: int | None = None) -> Request:
    """Ask for a character device: ``uverbs`` of a device, ``umad`` or ``issm`` of a port, ``rdma_cm`` of none."""
    body = codec.attribute_text(_CHARDEV_TYPE, kind)
    if index is not None:
        body += codec.attribute_u32(_DEV_INDEX, index)
    if port is not None:
        body += codec.attribute_u32(_PORT_INDEX, port)
    return Request(_GET_CHARDEV, 0, body, f"find {kind} of RDMA device {index}")


def _guid(value: bytes) -> str:
    digits = f"{codec.u64(value):016x}"
    return ":".join(digits[place : place + 4] for place in range(0, 16, 4))


def _attributes(body: bytes) -> dict[int, bytes]:
    found = codec.attributes(body)
    if _DEV_INDEX not in found:
        raise DecodeError("RDMA message without a device")
    return found


def parse_device(body: bytes) -> RdmaDevice:
    """Read a device.

    Raises:
        DecodeError: the message is truncated, malformed or without a device.
    """
    found = _attributes(body)
    return RdmaDevice(
        index=codec.u32(found[_DEV_INDEX]),
        name=codec.string(found.get(_DEV_NAME, b"")),
        ports=codec.u32(found[_PORT_INDEX]) if _PORT_INDEX in found else 0,
        firmware=codec.string(found.get(_FW_VERSION, b"")),
        node_guid=_guid(found[_NODE_GUID]) if _NODE_GUID in found else "",
        system_image_guid=_guid(found[_SYS_IMAGE_GUID]) if _SYS_IMAGE_GUID in found else "",
        node_type=codec.u8(found[_DEV_NODE_TYPE]) if _DEV_NODE_TYPE in found else 0,
        protocol=codec.string(found.get(_DEV_PROTOCOL, b"")),
        parent=codec.string(found.get(_PARENT_NAME, b"")),
    )


def parse_port(body: bytes) -> RdmaPort:
    """Read a port.

    Raises:
        DecodeError: the message is truncated, malformed or without a device.
    """
    found = _attributes(body)
    state = codec.u8(found[_PORT_STATE]) if _PORT_STATE in found else 0
    physical = codec.u8(found[_PORT_PHYS_STATE]) if _PORT_PHYS_STATE in found else 0
    return RdmaPort(
        device_index=codec.u32(found[_DEV_INDEX]),
        device=codec.string(found.get(_DEV_NAME, b"")),
        port=codec.u32(found[_PORT_INDEX]) if _PORT_INDEX in found else 0,
        state=PORT_STATES.get(state, "NOP"),
        physical_state=PHYSICAL_STATES.get(physical, "<unknown>"),
        netdev_index=codec.u32(found[_NDEV_INDEX]) if _NDEV_INDEX in found else 0,
        netdev=codec.string(found.get(_NDEV_NAME, b"")),
        lid=codec.u32(found[_LID]) if _LID in found else 0,
        subnet_prefix=_guid(found[_SUBNET_PREFIX]) if _SUBNET_PREFIX in found else "",
    )


def parse_netns_mode(body: bytes) -> NetnsMode:
    """Read the namespace mode; a kernel that does not tell has only the shared one.

    Raises:
        DecodeError: the message is truncated or malformed.
    """
    value = codec.attributes(body).get(_NETNS_MODE)
    return NetnsMode.EXCLUSIVE if value is not None and codec.u8(value) == 0 else NetnsMode.SHARED


def parse_char_device(body: bytes) -> RdmaCharDevice:
    """Read a character device.

    Raises:
        DecodeError: the message is truncated, malformed or without a number.
    """
    found = codec.attributes(body)
    if _CHARDEV not in found:
        raise DecodeError("RDMA message without a character device")
    number = codec.u64(found[_CHARDEV])
    return RdmaCharDevice(
        name=codec.string(found.get(_CHARDEV_NAME, b"")), major=os.major(number), minor=os.minor(number)
    )


def parse_event(message: Message) -> RdmaEvent | None:
    """Read an event; None for a message of another kind.

    Raises:
        DecodeError: the message is truncated, malformed or without a device.
    """
    if message.type != _MONITOR:
        return None
    found = _attributes(message.body)
    kind = codec.u8(found[_EVENT_TYPE]) if _EVENT_TYPE in found else -1
    return RdmaEvent(
        kind=EVENTS.get(kind, "unknown"),
        device_index=codec.u32(found[_DEV_INDEX]),
        device=codec.string(found.get(_DEV_NAME, b"")),
        port=codec.u32(found[_PORT_INDEX]) if _PORT_INDEX in found else 0,
        netdev_index=codec.u32(found[_NDEV_INDEX]) if _NDEV_INDEX in found else 0,
        netdev=codec.string(found.get(_NDEV_NAME, b"")),
    )


class RdmaSocket(KernelSocket):
    """Ask for and change RDMA devices of one namespace. Threads may share it.

    Args:
        netns: the namespace; None: the one in which the calling thread is.

    Raises:
        NoRdmaError: the kernel has no RDMA.
        OSError: the socket cannot be made for another reason.
    """

    def __init__(self, netns: NetNs | None = None) -> None:
        try:
            super().__init__(NETLINK_RDMA, netns)
            self._netns = netns
        except OSError as error:
            raise _no_rdma(error) from error

    @classmethod
    def open(cls, netns: NetNs | None = None) -> Self | None:
        """Make a socket, or give None where the kernel has no RDMA (raises OSError otherwise)."""
        try:
            return cls(netns)
        except NoRdmaError:
            return None

    def _ask(self, request: Request) -> Answer:
        answer = self.exchange((request,))[0]
        if answer.error:
            raise answer.error
        return answer

    def devices(self) -> list[RdmaDevice]:
        """List the devices that this namespace sees (raises NetlinkError)."""
        return [parse_device(message.body) for message in self._ask(dump_devices()).messages]

    def device(self, name: str) -> RdmaDevice | None:
        """Give the device of a name, or None if this namespace sees none (raises NetlinkError)."""
        return next((one for one in self.devices() if one.name == name), None)

    def ports(self, index: int | None = None) -> list[RdmaPort]:
        """List the ports of a device, or (``index`` None) of all.

        A device that vanishes meanwhile has none.

        Raises:
            NetlinkError: the kernel refused for another reason.
        """
        found: list[RdmaPort] = []
        for number in [index] if index is not None else [device.index for device in self.devices()]:
            answer = self.exchange((dump_ports(number),))[0]
            # A device that is not there is "invalid" to nldev.
            if answer.error and answer.error.errno not in {errno.EINVAL, errno.ENODEV}:
                raise answer.error
            found += [parse_port(message.body) for message in answer.messages]
        return found

    def netns_mode(self) -> NetnsMode:
        """Tell whether RDMA devices belong to all namespaces (raises NetlinkError)."""
        messages = self._ask(get_netns_mode()).messages
        return parse_netns_mode(messages[0].body) if messages else NetnsMode.SHARED

    def move(self, index: int, netns: NetNs) -> None:
        """Move a device to a namespace.

        Raises:
            NetlinkError: EOPNOTSUPP in shared mode or for a driver that cannot, EBUSY while it is in use.
        """
        with self._netns.entered() if self._netns is not None else contextlib.nullcontext():
            # The device is looked up in the socket's namespace, and must be in the calling thread's (ENODEV if not).
            self._ask(move_device(index, netns.fd))

    def rename(self, index: int, name: str) -> None:
        """Rename a device (raises NetlinkError, EEXIST if any device of the system has the name)."""
        self._ask(rename_device(index, name))

    def char_device(self, kind: str, index: int | None = None, port: int | None = None) -> RdmaCharDevice | None:
        """Find a character device; None where the kernel has none of that kind (its module is not loaded).

        Raises:
            NetlinkError: the kernel refused for another reason.
        """
        answer = self.exchange((get_char_device(kind, index, port),))[0]
        if answer.error:
            if answer.error.errno in {errno.ENOENT, errno.EOPNOTSUPP, errno.ENODEV}:
                return None
            raise answer.error
        return parse_char_device(answer.messages[0].body) if answer.messages else None


def _no_rdma(error: OSError) -> Exception:
    if error.errno == errno.EPROTONOSUPPORT:
        return NoRdmaError("this kernel has no RDMA (NETLINK_RDMA is not there: ib_core is not loaded)")
    return error


class RdmaMonitor:
    """Events of the RDMA devices of one namespace: a socket for epoll.

    Kernels before 6.12 send none; 6.12 sends none of a rename.

    Raises:
        NoRdmaError: the kernel has no RDMA.
        OSError: the socket cannot be made for another reason.
    """

    def __init__(self, netns: NetNs | None = None) -> None:
        try:
            self._socket = open_socket(NETLINK_RDMA, netns, strict=True, groups=(_GROUP_NOTIFY,))
        except OSError as error:
            raise _no_rdma(error) from error

    def fileno(self) -> int:
        """Give the descriptor, -1 when closed."""
        return self._socket.fileno()

    def receive(self) -> list[RdmaEvent]:
        """Read what is there, without waiting; an empty list: nothing is left.

        Raises:
            EventsLostError: the kernel dropped events. The socket stays usable.
            OSError: the socket is closed.
        """
        events: list[RdmaEvent] = []
        for _ in range(_EVENTS_AT_ONCE):
            try:
                data, (port, _) = self._socket.recvfrom(64 << 10, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    raise EventsLostError("the kernel dropped RDMA events") from error
                raise
            if port == 0:
                try:
                    events += [event for message in codec.messages(data) if (event := parse_event(message))]
                except DecodeError as error:
                    raise EventsLostError(f"an RDMA event cannot be read: {error}") from error
        return events

    def close(self) -> None:
        """Close the socket. A second call does nothing."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
