"""RDMA over netlink, by golden bytes of ``rdma/rdma_netlink.h``: this program's tests run on kernels without RDMA."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nri_dranet.netlink import codec, nldev
from nri_dranet.netlink.codec import DecodeError, Message, NetlinkError
from nri_dranet.netlink.nldev import (
    NetnsMode,
    NoRdmaError,
    RdmaCharDevice,
    RdmaDevice,
    RdmaEvent,
    RdmaMonitor,
    RdmaPort,
    RdmaSocket,
)
from nri_dranet.netlink.sockets import EventsLostError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

DEVICE = bytes.fromhex(
    "0800010003000000"  # device index 3
    "0b0002006d6c78355f310000"  # name mlx5_1
    "0800030001000000"  # one port
    "0f000500" + b"16.35.3006\0".hex() + "00"  # firmware
    "0c000600aae9f700034b6b50"  # node GUID 506b:4b03:00f7:e9aa
    "0c000700a9e9f700034b6b50"  # system image GUID
    "05000e0001000000"  # node type: channel adapter
    "09004300" + b"roce\0".hex() + "000000"
)
PORT = bytes.fromhex(
    "0800010003000000"
    "0b0002006d6c78355f310000"
    "0800030001000000"  # port 1
    "0c000800000000000000" + "80fe"  # subnet prefix fe80::
    "0800090007000000"  # LID 7
    "05000c0004000000"  # ACTIVE
    "05000d0005000000"  # LinkUp
    "0800320009000000"  # interface 9
    "09003300" + b"eth2\0".hex() + "000000"
)


def test_requests_are_those_of_the_header_file() -> None:
    """Client 5 above ten bits of command, attributes by number."""
    assert nldev.dump_devices().encode(1).hex() == "10000000011401030100000000000000"
    assert (nldev.get_device(3).type, nldev.get_device(3).body.hex()) == (0x1401, "0800010003000000")
    assert (nldev.dump_ports(3).type, nldev.dump_ports(3).body.hex()) == (0x1405, "0800010003000000")
    assert nldev.get_netns_mode().type == 0x1406
    move = nldev.move_device(3, 11)
    assert (move.type, move.body.hex()) == (0x1402, "0800010003000000080044000b000000")
    rename = nldev.rename_device(3, "net1")
    assert (rename.type, rename.body.hex()) == (0x1402, "0800010003000000090002006e65743100000000")
    chardev = nldev.get_char_device("umad", 3, 1)
    assert (chardev.type, chardev.body.hex()) == (
        0x140F,
        "09004500756d61640000000008000100030000000800030001000000",
    )
    assert nldev.get_char_device("rdma_cm").body.hex() == "0c004500" + b"rdma_cm\0".hex()
    assert move.label == "move RDMA device 3 to another namespace"


def test_a_device_is_read() -> None:
    """GUIDs as in sysfs."""
    assert nldev.parse_device(DEVICE) == RdmaDevice(
        index=3,
        name="mlx5_1",
        ports=1,
        firmware="16.35.3006",
        node_guid="506b:4b03:00f7:e9aa",
        system_image_guid="506b:4b03:00f7:e9a9",
        node_type=1,
        protocol="roce",
    )
    assert nldev.parse_device(codec.attribute_u32(1, 4)) == RdmaDevice(index=4, name="")


def test_a_port_is_read() -> None:
    """States by their words, the interface where this namespace has it."""
    found = nldev.parse_port(PORT)
    assert found == RdmaPort(
        device_index=3,
        device="mlx5_1",
        port=1,
        state="ACTIVE",
        physical_state="LinkUp",
        netdev_index=9,
        netdev="eth2",
        lid=7,
        subnet_prefix="fe80:0000:0000:0000",
    )
    assert found.active
    bare = nldev.parse_port(codec.attribute_u32(1, 4))
    assert (bare.state, bare.physical_state, bare.netdev_index, bare.active) == ("NOP", "<unknown>", 0, False)


def test_the_namespace_mode() -> None:
    """1 is shared, 0 exclusive; a kernel that does not tell is shared."""
    assert nldev.parse_netns_mode(codec.attribute_u8(66, 1)) is NetnsMode.SHARED
    assert nldev.parse_netns_mode(codec.attribute_u8(66, 0)) is NetnsMode.EXCLUSIVE
    assert nldev.parse_netns_mode(b"") is NetnsMode.SHARED


def test_a_character_device() -> None:
    """Numbers as the kernel packs them: major 231, minor 192."""
    body = codec.attribute_text(70, "uverbs0") + codec.attribute(72, struct.pack("=Q", 231 << 8 | 192))
    assert nldev.parse_char_device(body) == RdmaCharDevice(name="uverbs0", major=231, minor=192)
    with pytest.raises(DecodeError, match="without a character device"):
        nldev.parse_char_device(b"")


def test_events() -> None:
    """What happened, to what; other messages are none."""
    body = PORT + codec.attribute_u8(102, 2)
    assert nldev.parse_event(Message(0x141C, 0, 0, 0, body)) == RdmaEvent(
        kind="attach", device_index=3, device="mlx5_1", port=1, netdev_index=9, netdev="eth2"
    )
    gone = nldev.parse_event(Message(0x141C, 0, 0, 0, codec.attribute_u32(1, 3) + codec.attribute_u8(102, 1)))
    assert gone == RdmaEvent(kind="unregister", device_index=3)
    other = nldev.parse_event(Message(0x141C, 0, 0, 0, codec.attribute_u32(1, 3) + codec.attribute_u8(102, 99)))
    assert other is not None
    assert other.kind == "unknown"
    assert nldev.parse_event(Message(0x1401, 0, 0, 0, body)) is None


@given(
    st.sampled_from([nldev.parse_device, nldev.parse_port, nldev.parse_netns_mode, nldev.parse_char_device]),
    st.binary(max_size=80),
    st.integers(0, 100),
)
def test_no_bytes_break_the_reading(parse: Callable[[bytes], Any], garbage: bytes, place: int) -> None:
    """A value or a decode error, for garbage and for messages with garbage inside."""
    for body in (garbage, PORT[:place] + garbage, DEVICE[:place] + garbage + DEVICE[place + len(garbage) :]):
        try:
            parse(body)
            nldev.parse_event(Message(0x141C, 0, 0, 0, body))
        except DecodeError:
            continue


def rdma_kernel(kernel: Any, message: Callable[..., bytes], ack: Callable[..., bytes]) -> None:
    """Make the scripted kernel one with a device 3 of one port, whose namespace can be changed."""

    def answer(found: list[tuple[int, int, int, bytes]]) -> list[bytes]:
        kind, flags, sequence, body = found[0]
        done = message(3, 2, sequence, struct.pack("=i", 0))
        given = codec.attributes(body)
        mine = codec.u32(given.get(1, bytes(4))) == 3
        if kind == 0x1401 and flags & 0x300:
            return [message(kind, 2, sequence, DEVICE), done]
        if kind == 0x1405:
            return [message(kind, 2, sequence, PORT), done] if mine else [ack(sequence, errno.EINVAL)]
        if kind == 0x1406:
            return [message(kind, 0, sequence, codec.attribute_u8(66, 0)), ack(sequence)]
        if kind == 0x140F:
            if not mine:
                return [ack(sequence, errno.EOPNOTSUPP)]
            text = codec.attribute_text(70, "uverbs1") + codec.attribute(72, struct.pack("=Q", 231 << 8 | 193))
            return [message(kind, 0, sequence, text), ack(sequence)]
        return [ack(sequence, 0 if mine else errno.EOPNOTSUPP)]

    kernel.answer = answer


def test_a_socket_asks_and_changes(kernel: Any, message: Callable[..., bytes], ack: Callable[..., bytes]) -> None:
    """Devices, ports, mode, move, rename and character devices over a scripted kernel."""
    rdma_kernel(kernel, message, ack)

    class Namespace:
        fd = 11

    with RdmaSocket() as made:
        assert [device.name for device in made.devices()] == ["mlx5_1"]
        assert made.device("mlx5_1") == nldev.parse_device(DEVICE)
        assert made.device("mlx5_9") is None
        assert [port.netdev for port in made.ports()] == ["eth2"]
        assert [port.port for port in made.ports(3)] == [1]
        assert made.ports(9) == []
        assert made.netns_mode() is NetnsMode.EXCLUSIVE
        made.move(3, Namespace())  # type: ignore[arg-type]
        made.rename(3, "net1")
        assert made.char_device("uverbs", 3) == RdmaCharDevice(name="uverbs1", major=231, minor=193)
        assert made.char_device("uverbs", 9) is None
        with pytest.raises(NetlinkError, match="rename RDMA device 9 to x: Operation not supported"):
            made.rename(9, "x")


def test_other_errors_are_raised(kernel: Any, ack: Callable[..., bytes]) -> None:
    """Only "there is none" is an answer."""
    kernel.answer = lambda found: [ack(found[0][2], errno.EPERM)]
    with RdmaSocket() as made:
        for call in (made.devices, lambda: made.ports(3), made.netns_mode, lambda: made.char_device("uverbs", 3)):
            with pytest.raises(NetlinkError) as caught:
                call()
            assert caught.value.errno == errno.EPERM
    del kernel


def test_only_a_missing_protocol_means_no_rdma(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lack of descriptors is another matter."""

    def refuse(number: int) -> Callable[..., socket.socket]:
        def run(*_: object, **__: object) -> socket.socket:
            raise OSError(number, os.strerror(number))

        return run

    for place in ("nri_dranet.netlink.transport.open_socket", "nri_dranet.netlink.nldev.open_socket"):
        monkeypatch.setattr(place, refuse(errno.EPROTONOSUPPORT))
    assert RdmaSocket.open() is None
    with pytest.raises(NoRdmaError):
        RdmaMonitor()
    for place in ("nri_dranet.netlink.transport.open_socket", "nri_dranet.netlink.nldev.open_socket"):
        monkeypatch.setattr(place, refuse(errno.EMFILE))
    for make in (RdmaSocket, RdmaSocket.open, RdmaMonitor):
        with pytest.raises(OSError, match="Too many open files"):
            make()


class FakeMonitorSocket:
    """What a monitor reads: items are bytes with their sender, or an error."""

    def __init__(self, *items: tuple[bytes, int] | OSError) -> None:
        self.items = list(items)

    def recvfrom(self, *_: int) -> tuple[bytes, tuple[int, int]]:
        """Give the next item."""
        if not self.items:
            raise BlockingIOError
        item = self.items.pop(0)
        if isinstance(item, OSError):
            raise item
        return item[0], (item[1], 8)

    def fileno(self) -> int:
        """Give a number."""
        return 5

    def close(self) -> None:
        """Do nothing."""


def monitor_of(monkeypatch: pytest.MonkeyPatch, *items: tuple[bytes, int] | OSError) -> RdmaMonitor:
    """Give a monitor that reads these."""
    monkeypatch.setattr(nldev, "open_socket", lambda *_, **__: FakeMonitorSocket(*items))
    return RdmaMonitor()


def test_a_monitor_hears_the_kernel_alone(monkeypatch: pytest.MonkeyPatch, message: Callable[..., bytes]) -> None:
    """Messages of processes are passed over."""
    event = message(0x141C, 0, 0, PORT + codec.attribute_u8(102, 3))
    with monitor_of(monkeypatch, (event, 4242), (event, 0)) as made:
        assert [one.kind for one in made.receive()] == ["detach"]
        assert made.receive() == []
        assert made.fileno() == 5


def test_lost_events_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropped ones and unreadable ones; other errors stay what they are."""
    made = monitor_of(monkeypatch, OSError(errno.ENOBUFS, ""), (b"\1", 0), OSError(errno.EBADF, "bad"))
    with pytest.raises(EventsLostError, match="dropped RDMA events"):
        made.receive()
    with pytest.raises(EventsLostError, match="an RDMA event cannot be read"):
        made.receive()
    with pytest.raises(OSError, match="bad"):
        made.receive()
