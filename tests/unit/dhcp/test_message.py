"""Messages and frames: golden bytes, round trips, hostile bytes."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nri_dranet.dhcp import frames, message, options
from nri_dranet.dhcp.errors import DecodeError
from nri_dranet.dhcp.frames import Datagram
from nri_dranet.dhcp.message import BROADCAST_FLAG, Kind, Message, Op

DISCOVER = Message(
    op=Op.REQUEST,
    kind=Kind.DISCOVER,
    xid=0x3903F326,
    chaddr="00:05:3c:04:8d:59",
    secs=3,
    flags=BROADCAST_FLAG,
    options={options.CLIENT_ID: b"\xff\0\0\0\1", options.PARAMETERS: b"\1\x79"},
)
GOLDEN = (
    bytes.fromhex("01010600 3903f326 0003 800000000000 00000000 00000000 0000000000053c048d59 00000000000000000000")
    + bytes(192)
    + bytes.fromhex("63825363 350101 3d05ff00000001 37020179 ff")
).ljust(300, b"\0")

DATAGRAM = Datagram(
    source_hardware="00:05:3c:04:8d:59",
    destination_hardware=frames.BROADCAST,
    source="0.0.0.0",  # noqa: S104 - an address on the wire
    destination="255.255.255.255",
    source_port=68,
    destination_port=67,
    payload=b"hello",
)
# The IPv4 and UDP checksums were computed by hand: see RFC 1071.
GOLDEN_FRAME = (
    bytes.fromhex("ffffffffffff 00053c048d59 08004500 0021 0000 0000 4011 7acd 00000000 ffffffff0044 0043 000d")
    + struct.pack("!H", 0xBB7B)
    + b"hello"
)

messages = st.builds(
    Message,
    op=st.sampled_from(Op),
    kind=st.sampled_from(Kind),
    xid=st.integers(0, 2**32 - 1),
    chaddr=st.binary(min_size=6, max_size=6).map(lambda each: each.hex(":")),
    secs=st.integers(0, 0xFFFF),
    flags=st.sampled_from([0, BROADCAST_FLAG]),
    ciaddr=st.ip_addresses(v=4).map(str),
    yiaddr=st.ip_addresses(v=4).map(str),
    siaddr=st.ip_addresses(v=4).map(str),
    giaddr=st.ip_addresses(v=4).map(str),
    options=st.dictionaries(
        st.integers(1, 254).filter(lambda code: code not in {options.OVERLOAD, options.MESSAGE_TYPE}),
        st.binary(max_size=300),
        max_size=5,
    ),
)


def test_a_message_is_these_bytes() -> None:
    """Every field where RFC 2131 puts it, and 300 bytes at least."""
    assert message.encode(DISCOVER) == GOLDEN
    assert message.decode(GOLDEN) == DISCOVER


@given(messages)
def test_a_message_comes_back(given_message: Message) -> None:
    """What was written is read."""
    assert message.decode(message.encode(given_message)) == given_message


@given(st.binary(max_size=600) | st.binary(max_size=400).map(lambda tail: GOLDEN[:240] + tail))
def test_hostile_bytes_are_a_message_or_refused(data: bytes) -> None:
    """No bytes make anything else."""
    try:
        message.decode(data)
    except DecodeError as error:
        assert str(error)  # noqa: PT017 - that it need not be raised is the point


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (slice(0, 1), "no DHCP message"),
        (slice(1, 2), "hardware type 255"),
        (slice(2, 3), "255 bytes of address"),
        (slice(236, 237), "no magic cookie"),
        (slice(242, 243), "no DHCP message"),
        (slice(240, 300), "no DHCP message"),
    ],
)
def test_a_wrong_field_is_refused_in_words(change: slice, words: str) -> None:
    """The text says what is wrong."""
    data = bytearray(GOLDEN)
    data[change] = b"\xff" * len(data[change])
    with pytest.raises(DecodeError, match=words):
        message.decode(bytes(data))


def test_few_bytes_are_no_message() -> None:
    """The header must be there."""
    with pytest.raises(DecodeError, match="239 bytes are too few"):
        message.decode(GOLDEN[:239])


def test_a_frame_is_these_bytes() -> None:
    """Ethernet, IPv4 and UDP with their checksums."""
    assert frames.encode(DATAGRAM) == GOLDEN_FRAME
    assert frames.decode(GOLDEN_FRAME + b"padding") == DATAGRAM


@given(st.binary(max_size=1400), st.integers(1, 0xFFFF), st.ip_addresses(v=4).map(str), st.ip_addresses(v=4).map(str))
def test_a_frame_comes_back(payload: bytes, port: int, source: str, destination: str) -> None:
    """What was sent is received, with padding behind it too."""
    sent = replace(DATAGRAM, payload=payload, source_port=port, source=source, destination=destination)
    assert frames.decode(frames.encode(sent) + bytes(7)) == sent


@given(st.integers(14, len(GOLDEN_FRAME) - 1), st.integers(1, 255))
def test_a_damaged_frame_is_refused(at: int, bits: int) -> None:
    """Any one byte that changed behind the Ethernet header is found, unless the datagram has no checksum at all."""
    data = bytearray(GOLDEN_FRAME)
    data[at] ^= bits
    with pytest.raises(DecodeError):
        frames.decode(bytes(data))


@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda tail: GOLDEN_FRAME[:14] + tail))
def test_hostile_frames_are_read_or_refused(data: bytes) -> None:
    """No bytes make anything else, and the payload is never longer than the frame."""
    try:
        found = frames.decode(data, checksum_is_there=False)
    except DecodeError:
        return
    assert len(found.payload) <= len(data)


def test_a_checksum_that_hardware_should_have_written_is_not_looked_at() -> None:
    """On a virtual link the kernel leaves it unfinished and says so; without that word it is damage."""
    unfinished = GOLDEN_FRAME[:40] + b"\x12\x34" + GOLDEN_FRAME[42:]
    assert frames.decode(unfinished, checksum_is_there=False) == DATAGRAM
    with pytest.raises(DecodeError, match="damaged"):
        frames.decode(unfinished)


def test_a_datagram_without_checksum_is_taken() -> None:
    """0 means that the sender made none (RFC 768)."""
    assert frames.decode(GOLDEN_FRAME[:40] + b"\0\0" + GOLDEN_FRAME[42:]) == DATAGRAM


def with_header(change: dict[int, int]) -> bytes:
    """Return the golden frame with changed bytes of its IPv4 header and the right header checksum."""
    header = bytearray(GOLDEN_FRAME[14:34])
    for at, value in change.items():
        header[at] = value
    header[10:12] = b"\0\0"
    header[10:12] = struct.pack("!H", frames.checksum(bytes(header)))
    return GOLDEN_FRAME[:14] + bytes(header) + GOLDEN_FRAME[34:]


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (GOLDEN_FRAME[:30], "too short"),
        (GOLDEN_FRAME[:12] + b"\x86\xdd" + GOLDEN_FRAME[14:], "no IPv4"),
        (with_header({0: 0x65}), "wrong lengths"),
        (with_header({0: 0x44}), "wrong lengths"),
        (with_header({3: 0xFF}), "wrong lengths"),
        (with_header({9: 6}), "no whole UDP"),
        (with_header({6: 0x20}), "no whole UDP"),
        (with_header({7: 1}), "no whole UDP"),
        (with_header({3: 22}), "no UDP header"),
        (with_header({3: 30}), "wrong length"),
    ],
)
def test_a_frame_that_is_no_datagram_is_refused(frame: bytes, words: str) -> None:
    """Other protocols, fragments and wrong lengths; the text says which."""
    with pytest.raises(DecodeError, match=words):
        frames.decode(frame)


def test_options_in_the_ip_header_are_passed_over() -> None:
    """The header's length says where the datagram begins."""
    header = bytearray(GOLDEN_FRAME[14:34] + b"\1\1\1\1")
    header[0] = 0x46
    header[2:4] = struct.pack("!H", 24 + 13)
    header[10:12] = b"\0\0"
    header[10:12] = struct.pack("!H", frames.checksum(bytes(header)))
    assert frames.decode(GOLDEN_FRAME[:14] + bytes(header) + GOLDEN_FRAME[34:]) == DATAGRAM


def test_a_checksum_of_zero_is_sent_as_ones() -> None:
    """0 would mean that there is none."""
    payload = struct.pack("!H", int.from_bytes(frames.encode(replace(DATAGRAM, payload=b"\0\0"))[40:42], "big"))
    assert frames.encode(replace(DATAGRAM, payload=payload))[40:42] == b"\xff\xff"
