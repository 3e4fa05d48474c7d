"""Generic netlink: families that are found by name. The header and the lookup are pure, the socket is thin.

Source of the facts: ``linux/genetlink.h``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nri_dranet.netlink import codec
from nri_dranet.netlink.codec import DecodeError, Request
from nri_dranet.netlink.transport import KernelSocket

if TYPE_CHECKING:
    from nri_dranet.netlink.namespaces import NetNs

NETLINK_GENERIC: Final = 16

# genlmsghdr: command, version, 16 bits reserved.
_HEADER: Final = struct.Struct("=BBH")

_GENL_ID_CTRL: Final = 0x10
_CTRL_CMD_GETFAMILY: Final = 3
_CTRL_ATTR_FAMILY_ID: Final = 1
_CTRL_ATTR_FAMILY_NAME: Final = 2
_CTRL_ATTR_MCAST_GROUPS: Final = 7
_CTRL_ATTR_MCAST_GRP_NAME: Final = 1
_CTRL_ATTR_MCAST_GRP_ID: Final = 2


@dataclass(frozen=True, slots=True)
class Family:
    """A generic netlink family: its message type and its event groups by name."""

    id: int
    groups: dict[str, int]


def body(command: int, version: int, *attributes: bytes) -> bytes:
    """Give the body of a generic netlink message."""
    return _HEADER.pack(command, version, 0) + b"".join(attributes)


def parse_body(data: bytes) -> tuple[int, dict[int, bytes]]:
    """Read the body of a generic netlink message: the command and the attributes.

    Raises:
        DecodeError: it is truncated or malformed.
    """
    if len(data) < _HEADER.size:
        raise DecodeError(f"generic netlink message of {len(data)} bytes")
    return data[0], codec.attributes(data, _HEADER.size)


def get_family(name: str) -> Request:
    """Ask for a family by name (ENOENT if the kernel does not have it)."""
    content = body(_CTRL_CMD_GETFAMILY, 1, codec.attribute_text(_CTRL_ATTR_FAMILY_NAME, name))
    return Request(_GENL_ID_CTRL, 0, content, f"find the netlink family {name}")


def parse_family(data: bytes) -> Family:
    """Read the answer to ``get_family``.

    Raises:
        DecodeError: it is truncated or malformed, or without a number.
    """
    _, found = parse_body(data)
    if _CTRL_ATTR_FAMILY_ID not in found:
        raise DecodeError("netlink family without a number")
    groups = {}
    for _, value in codec.attribute_list(found.get(_CTRL_ATTR_MCAST_GROUPS, b"")):
        group = codec.attributes(value)
        if _CTRL_ATTR_MCAST_GRP_NAME in group and _CTRL_ATTR_MCAST_GRP_ID in group:
            groups[codec.string(group[_CTRL_ATTR_MCAST_GRP_NAME])] = codec.u32(group[_CTRL_ATTR_MCAST_GRP_ID])
    return Family(codec.u16(found[_CTRL_ATTR_FAMILY_ID]), groups)


class GenlSocket(KernelSocket):
    """A generic netlink socket in a namespace. Threads may share it.

    Raises:
        OSError: the socket cannot be made.
    """

    # Numbers are the kernel's, not a namespace's, and stay as long as the family's module.
    _families: Final[dict[str, Family]] = {}

    def __init__(self, netns: NetNs | None = None) -> None:
        super().__init__(NETLINK_GENERIC, netns)

    def family(self, name: str) -> Family:
        """Find a family.

        Raises:
            NetlinkError: ENOENT if the kernel does not have it.
        """
        known = self._families.get(name)
        if known is None:
            answer = self.exchange((get_family(name),))[0]
            if answer.error:
                raise answer.error
            known = self._families[name] = parse_family(answer.messages[0].body)
        return known
