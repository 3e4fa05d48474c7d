"""Headers, attributes, errors: round trips, golden bytes, and input that is no netlink."""

from __future__ import annotations

import copy
import errno
import pickle
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nri_dranet.netlink import codec
from nri_dranet.netlink.codec import (
    AF_INET,
    AF_INET6,
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLMSG_DONE,
    NLMSG_ERROR,
    DecodeError,
    Message,
    NetlinkError,
    Request,
)

if TYPE_CHECKING:
    import ipaddress
    from collections.abc import Callable


def test_a_request_on_the_wire() -> None:
    """Length without padding, type, REQUEST|ACK and more, sequence, port 0, body, padding."""
    made = Request(24, 0x600, b"\1\2\3\4\5", "x").encode(7)
    assert made == bytes.fromhex("150000001800050607000000000000000102030405000000")
    assert not Request(24, 0x600, b"", "x").dump


def test_a_dump_asks_for_no_acknowledgement() -> None:
    """It ends with DONE anyway."""
    made = Request(18, codec.NLM_F_DUMP, b"", "x")
    assert made.dump
    assert made.encode(1) == bytes.fromhex("10000000120001030100000000000000")


def test_a_replacing_request_is_no_dump() -> None:
    """REPLACE and EXCL share their bits with those of a dump."""
    assert not Request(24, codec.NLM_F_CREATE | codec.NLM_F_REPLACE | codec.NLM_F_EXCL, b"", "x").dump


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=40)), max_size=8))
def test_messages_come_out_as_they_went_in(parts: list[tuple[int, bytes]]) -> None:
    """Any number in one chunk, padded."""
    data = b"".join(Request(kind, 0, body, "").encode(number) for number, (kind, body) in enumerate(parts))
    found = list(codec.messages(data))
    assert [(one.type, one.sequence, one.body) for one in found] == [
        (kind, number, body) for number, (kind, body) in enumerate(parts)
    ]


@given(st.binary(max_size=200))
def test_no_bytes_break_the_splitting(data: bytes) -> None:
    """A list, or a decode error."""
    try:
        found = list(codec.messages(data))
    except DecodeError:
        return
    assert sum(16 + len(one.body) for one in found) <= len(data)


@pytest.mark.parametrize("data", [b"\0", bytes(15), bytes(16), struct.pack("=IHHII", 17, 0, 0, 0, 0)])
def test_cut_messages_are_refused(data: bytes) -> None:
    """Too short for a header, a length below it, a length beyond the end."""
    with pytest.raises(DecodeError, match="netlink message"):
        list(codec.messages(data))


@given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=300), max_size=10))
def test_attributes_come_out_as_they_went_in(parts: dict[int, bytes]) -> None:
    """Whatever their length, padded; in order as a list, by type as a map; also nested."""
    data = b"".join(codec.attribute(kind, value) for kind, value in parts.items())
    assert codec.attributes(data) == parts
    assert codec.attribute_list(data) == list(parts.items())
    outer = codec.nest(5, data)
    assert codec.attributes(outer) == {5: data}
    assert struct.unpack_from("=H", outer, 2)[0] == 0x8005


@given(st.binary(max_size=200), st.integers(0, 8))
def test_no_bytes_break_the_attributes(data: bytes, start: int) -> None:
    """A map, or a decode error; both forms agree."""
    try:
        found = codec.attributes(data, start)
    except DecodeError:
        with pytest.raises(DecodeError):
            codec.attribute_list(data, start)
        return
    assert found == dict(codec.attribute_list(data, start))


def test_the_last_of_equal_attributes_counts() -> None:
    """In the map; the list has both."""
    data = codec.attribute_u8(3, 1) + codec.attribute_u8(3, 2)
    assert codec.attributes(data) == {3: b"\2"}
    assert codec.attribute_list(data) == [(3, b"\1"), (3, b"\2")]


def test_attributes_within_bounds() -> None:
    """The end can be given: what is behind it is not read."""
    data = codec.attribute_u32(1, 7) + b"\xff" * 4
    assert codec.attributes(data, 0, 8) == {1: struct.pack("=I", 7)}


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (codec.attribute_u8, 256),
        (codec.attribute_u8, -1),
        (codec.attribute_u16, 1 << 16),
        (codec.attribute_u32, 1 << 32),
        (codec.attribute_u32, -1),
        (codec.attribute_s32, 1 << 31),
        (codec.attribute_s32, -(1 << 31) - 1),
    ],
)
def test_numbers_must_fit(make: Callable[[int, int], bytes], value: int) -> None:
    """Nothing is cut off silently."""
    with pytest.raises(ValueError, match=rf"attribute 9: {value} does not fit"):
        make(9, value)


def test_other_values_must_fit() -> None:
    """A text with a zero byte, and a value longer than an attribute can be."""
    with pytest.raises(ValueError, match="holds a zero byte"):
        codec.attribute_text(1, "a\0b")
    with pytest.raises(ValueError, match="attribute 1 has 65532 bytes, at most 65531 fit"):
        codec.attribute(1, bytes(65532))
    assert len(codec.attribute(1, bytes(65531))) == 65536


@pytest.mark.parametrize(
    ("read", "size"), [(codec.u8, 1), (codec.u16, 2), (codec.u32, 4), (codec.s32, 4), (codec.u64, 8)]
)
def test_numbers_that_are_cut_are_refused(read: Callable[[bytes], int], size: int) -> None:
    """And whole ones are read, also with something behind them."""
    assert read(b"\1" + bytes(size - 1)) == (1 if codec._BYTE_ORDER == "little" or size == 1 else 1 << 8 * (size - 1))
    with pytest.raises(DecodeError):
        read(bytes(size - 1))


def test_negative_numbers() -> None:
    """A namespace number of -1 is one."""
    assert codec.s32(codec.attributes(codec.attribute_s32(1, -1))[1]) == -1


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=30))
def test_text(text: str) -> None:
    """Text survives; behind its zero byte nothing counts."""
    raw = codec.attributes(codec.attribute_text(1, text))[1]
    assert codec.string(raw) == text
    assert codec.string(raw + b"more") == text


@given(st.binary(max_size=20).filter(lambda raw: b"\0" not in raw))
def test_names_of_any_bytes_survive(raw: bytes) -> None:
    """A link's name need not be UTF-8, and must be sent back as it was."""
    assert codec.attributes(codec.attribute_text(1, codec.string(raw)))[1] == raw + b"\0"


@given(st.binary(min_size=1, max_size=20))
def test_hardware_addresses(raw: bytes) -> None:
    """Six bytes, or twenty, or any."""
    assert codec.hardware_bytes(codec.hardware_address(raw)) == raw
    assert codec.hardware_bytes(codec.hardware_address(raw).upper()) == raw


@pytest.mark.parametrize("text", ["", "02", "0", "02:0", "02:00:5e:10:00:0g", "02-00", "02::00", "0200", " 02:00"])
def test_what_is_no_hardware_address(text: str) -> None:
    """Anything but hex pairs with colons; one pair is an address of one byte."""
    if text == "02":
        assert codec.hardware_bytes(text) == b"\2"
        return
    with pytest.raises(ValueError, match="is no hardware address"):
        codec.hardware_bytes(text)


@given(st.ip_addresses())
def test_ip_addresses(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """Canonical text both ways, and refused for the other family."""
    family = AF_INET if address.version == 4 else AF_INET6
    assert codec.ip_text(address.packed) == address.compressed
    assert codec.ip_bytes(address.compressed, family) == address.packed
    with pytest.raises(ValueError, match="is no address of family"):
        codec.ip_bytes(address.compressed, AF_INET + AF_INET6 - family)


def test_what_is_no_ip_address() -> None:
    """A wrong length, words, and an address with a zone."""
    with pytest.raises(DecodeError, match="IP address of 5 bytes"):
        codec.ip_text(bytes(5))
    with pytest.raises(ValueError, match="does not appear to be"):
        codec.ip_bytes("here", AF_INET)
    with pytest.raises(ValueError, match="is no address of family"):
        codec.ip_bytes("fe80::1%eth0", AF_INET6)


def test_prefixes() -> None:
    """Host bits go, defaults have no bytes, families are kept apart."""
    assert codec.prefix_bytes("192.0.2.1/24", AF_INET) == (bytes([192, 0, 2, 0]), 24)
    assert codec.prefix_text(bytes([192, 0, 2, 0]), AF_INET, 24) == "192.0.2.0/24"
    assert codec.prefix_text(b"", AF_INET, 0) == "0.0.0.0/0"
    assert codec.prefix_text(b"", AF_INET6, 0) == "::/0"
    with pytest.raises(ValueError, match="is no prefix of family IPv6"):
        codec.prefix_bytes("192.0.2.0/24", AF_INET6)
    with pytest.raises(ValueError, match="is no prefix of family IPv4"):
        codec.prefix_bytes("2001:db8::/32", AF_INET)


HEADER = struct.pack("=IHHII", 24, 16, 5, 1, 0)


def answer(body: bytes, flags: int = 0, kind: int = NLMSG_ERROR) -> Message:
    """Give a message to read an error from."""
    return Message(kind, flags, 1, 0, body)


def test_success() -> None:
    """Number 0, of an acknowledgement and of the end of a dump, also where that is empty."""
    assert codec.error_of(answer(struct.pack("=i", 0) + HEADER), "x") is None
    assert codec.error_of(answer(struct.pack("=i", 0), kind=NLMSG_DONE), "x") is None
    assert codec.error_of(answer(b"", kind=NLMSG_DONE), "x") is None


@pytest.mark.parametrize(("flags", "repeated"), [(NLM_F_ACK_TLVS, bytes(8)), (NLM_F_ACK_TLVS | NLM_F_CAPPED, b"")])
def test_an_error_with_the_kernels_words(flags: int, repeated: bytes) -> None:
    """Behind the whole request, or behind its header where the kernel left the rest out."""
    body = struct.pack("=i", -errno.EEXIST) + HEADER + repeated + codec.attribute_text(1, "Address already assigned")
    found = codec.error_of(answer(body, flags), "add address 10.0.0.1/24")
    assert found is not None
    assert (found.errno, found.label, found.kernel_message, found.code) == (
        errno.EEXIST,
        "add address 10.0.0.1/24",
        "Address already assigned",
        "EEXIST",
    )
    assert str(found) == "add address 10.0.0.1/24: File exists (EEXIST): Address already assigned"


def test_an_error_without_words() -> None:
    """The number alone."""
    found = codec.error_of(answer(struct.pack("=i", -errno.EPERM) + HEADER, NLM_F_CAPPED), "x")
    assert str(found) == "x: Operation not permitted (EPERM)"


def test_an_error_at_the_end_of_a_dump() -> None:
    """It repeats no request."""
    body = struct.pack("=i", -errno.ENODEV) + codec.attribute_text(1, "gone")
    found = codec.error_of(answer(body, NLM_F_ACK_TLVS, NLMSG_DONE), "list links")
    assert str(found) == "list links: No such device (ENODEV): gone"


def test_a_missing_attribute_is_named() -> None:
    """Where the kernel gives its number and no words."""
    body = struct.pack("=i", -errno.EINVAL) + HEADER + codec.attribute_u32(5, 12)
    found = codec.error_of(answer(body, NLM_F_ACK_TLVS | NLM_F_CAPPED), "x")
    assert found is not None
    assert found.kernel_message == "attribute 12 is missing"


def test_error_numbers_with_other_names() -> None:
    """The kernel's own ENOTSUPP reads like the public one; a number without a name is shown."""
    assert str(NetlinkError(524, "x")) == "x: Operation not supported (ENOTSUPP)"
    assert NetlinkError(errno.EOPNOTSUPP, "x").code == "EOPNOTSUPP"
    assert NetlinkError(9999, "x").code == "errno 9999"


def test_errors_can_be_copied() -> None:
    """Between processes and by copy."""
    made = NetlinkError(errno.EEXIST, "add", "words")
    for other in (pickle.loads(pickle.dumps(made)), copy.copy(made)):  # noqa: S301 - our own bytes
        assert (other.errno, other.label, other.kernel_message) == (errno.EEXIST, "add", "words")


@given(st.binary(max_size=120), st.integers(0, 0xFFFF), st.sampled_from([NLMSG_ERROR, NLMSG_DONE]))
def test_no_bytes_break_the_reading_of_errors(body: bytes, flags: int, kind: int) -> None:
    """Success, an error, or a decode error."""
    try:
        found = codec.error_of(answer(body, flags, kind), "x")
    except DecodeError:
        return
    assert found is None or str(found).startswith("x: ")
