"""ethtool over generic netlink: bit sets, strings, features and private flags, against a scripted driver."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nri_dranet.netlink import codec, ethtool, genl
from nri_dranet.netlink.codec import DecodeError, NetlinkError
from nri_dranet.netlink.ethtool import Ethtool, Feature, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAMILY = 21
NAMES = {0: "tx-scatter-gather", 1: "rx-gro", 2: "", 40: "vlan-challenged"}


@given(st.sets(st.integers(0, 199)))
def test_bits_survive(bits: set[int]) -> None:
    """Words of 32 bits, as many as the size needs."""
    packed = ethtool.pack_bits(bits, 200)
    assert len(packed) == 28
    assert ethtool.unpack_bits(packed) == sum(1 << bit for bit in bits)


def test_bits_beyond_the_size_are_refused() -> None:
    """Nothing is dropped."""
    with pytest.raises(ValueError, match="bit 33 is not within 33"):
        ethtool.pack_bits([33], 33)


def test_bit_sets_with_and_without_mask() -> None:
    """Without one all bits of the size count; the form with names is refused."""
    assert ethtool.parse_bitset(b"".join(ethtool.bitset(40, [33], [1, 33]))) == (1 << 33, 1 << 33 | 2)
    plain = codec.attribute_u32(2, 3) + codec.attribute(4, struct.pack("=I", 5))
    assert ethtool.parse_bitset(plain) == (5, 7)
    with pytest.raises(DecodeError, match="not compact"):
        ethtool.parse_bitset(codec.nest(3))


def test_a_request_for_features_on_the_wire() -> None:
    """Command 11, version 1, header with index and the flag for compact sets."""
    assert ethtool.get_features(FAMILY, 10).body.hex() == (
        "0b010000" "14000180" "080001000a000000" "0800030001000000"
    )  # fmt: skip


def features_body(hardware: int, wanted: int, active: int, never: int) -> bytes:
    """Give an answer with features."""
    parts = [
        codec.nest(kind, codec.attribute_u32(2, 64), codec.attribute(4, struct.pack("=Q", value)))
        for kind, value in ((2, hardware), (3, wanted), (4, active), (5, never))
    ]
    return genl.body(11, 1, *parts)


def test_features_are_read_by_name() -> None:
    """What never changes is not changeable, whatever the hardware says; numbers without a name are left out."""
    found = ethtool.parse_features(features_body(1 | 1 << 40, 3, 2, 1 << 40), NAMES)
    assert found == {
        "tx-scatter-gather": Feature("tx-scatter-gather", changeable=True, wanted=True, active=False),
        "rx-gro": Feature("rx-gro", changeable=False, wanted=True, active=True),
        "vlan-challenged": Feature("vlan-challenged", changeable=False, wanted=False, active=False, never_changes=True),
    }
    assert not ethtool.parse_features(genl.body(11, 1), NAMES)["rx-gro"].active


def strings_body(names: dict[int, str]) -> bytes:
    """Give an answer with a string set."""
    items = [
        codec.nest(1, codec.attribute_u32(1, number), codec.attribute_text(2, name)) for number, name in names.items()
    ]
    broken = codec.nest(1, codec.attribute_u32(1, 7))
    return genl.body(1, 1, codec.nest(2, codec.nest(1, codec.attribute_u32(1, 2), codec.nest(3, *items, broken))))


@given(st.dictionaries(st.integers(0, 999), st.text("abc-", min_size=1, max_size=20), max_size=10))
def test_strings_are_read(names: dict[int, str]) -> None:
    """By number; an item without text is none."""
    assert ethtool.parse_strings(strings_body(names)) == names


@given(
    st.sampled_from(
        [
            genl.parse_family,
            ethtool.parse_strings,
            lambda body: ethtool.parse_features(body, NAMES),
            lambda body: ethtool.parse_private_flags(body, NAMES),
        ]
    ),
    st.binary(max_size=60),
    st.integers(0, 120),
)
def test_no_bytes_break_the_reading(parse: Callable[[bytes], Any], garbage: bytes, place: int) -> None:
    """A value or a decode error."""
    good = features_body(1, 1, 1, 1)
    for body in (garbage, good[:place] + garbage + good[place + len(garbage) :], strings_body(NAMES)[:place] + garbage):
        try:
            parse(body)
        except DecodeError:
            continue


def test_a_family_is_read() -> None:
    """Number and groups; a group without a number is none; a family without a number is refused."""
    groups = codec.nest(
        7,
        codec.nest(1, codec.attribute_text(1, "monitor"), codec.attribute_u32(2, 5)),
        codec.nest(2, codec.attribute_text(1, "half")),
    )
    assert genl.parse_family(genl.body(1, 2, codec.attribute_u16(1, 21), groups)) == genl.Family(21, {"monitor": 5})
    with pytest.raises(DecodeError, match="netlink family without a number"):
        genl.parse_family(genl.body(1, 2))
    with pytest.raises(DecodeError, match="generic netlink message of 3 bytes"):
        genl.parse_body(b"abc")


class Driver:
    """A driver with two private flags, of which the second cannot be switched on, and the names above as features."""

    def __init__(self) -> None:
        self.flags = 0
        self.flag_names: dict[int, str] = {0: "legacy-rx", 3: "stuck"}
        self.quiet = False

    def answer(
        self, found: list[tuple[int, int, int, bytes]], message: Callable[..., bytes], ack: Callable[..., bytes]
    ) -> list[bytes]:
        """Answer one request."""
        kind, _, sequence, data = found[0]
        if kind == 0x10:
            return [message(kind, 0, sequence, genl.body(1, 2, codec.attribute_u16(1, FAMILY))), ack(sequence)]
        command, given = genl.parse_body(data)
        index = codec.u32(codec.attributes(given[1]).get(1, bytes(4)))
        body = b""
        if index == 99:
            return [ack(sequence, errno.ENODEV)]
        if command == 1:
            if index == 98:
                return [ack(sequence, errno.EOPNOTSUPP)]
            body = strings_body(self.flag_names if index else NAMES)
        elif command == 12 and not self.quiet:
            value, mask = ethtool.parse_bitset(given[3])
            body = genl.body(12, 1, codec.nest(3, *ethtool.bitset(64, [], [0] if value & mask & 1 else [])))
        elif command == 11:
            body = features_body(1, 1, 1, 0)
        elif command == 13:
            body = genl.body(13, 1, codec.nest(2, *ethtool.bitset(4, [n for n in range(4) if self.flags >> n & 1], [])))
        elif command == 14:
            value, mask = ethtool.parse_bitset(given[2])
            self.flags = (self.flags & ~mask | value & mask) & ~8
        return [message(kind, 0, sequence, body), ack(sequence)] if body else [ack(sequence)]


@pytest.fixture
def driver(kernel: Any, message: Callable[..., bytes], ack: Callable[..., bytes]) -> Driver:
    """Give a driver behind the scripted kernel."""
    made = Driver()
    kernel.answer = lambda found: made.answer(found, message, ack)
    return made


@pytest.fixture
def tool(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ethtool]:
    """Give ethtool on it, which knows nothing yet."""
    del driver
    monkeypatch.setattr(genl.GenlSocket, "_families", {})
    monkeypatch.setattr(Ethtool, "_feature_names", {})
    with Ethtool() as made:
        yield made


def test_private_flags_are_switched_and_read_back(tool: Ethtool, driver: Driver) -> None:
    """One that does not take is named; the others are untouched."""
    assert tool.private_flags(5) == {"legacy-rx": False, "stuck": False}
    assert tool.set_private_flags(5, {"legacy-rx": True, "stuck": True}) == ("stuck",)
    assert driver.flags == 1
    assert tool.private_flags(5) == {"legacy-rx": True, "stuck": False}
    assert tool.set_private_flags(5, {"stuck": False}) == ()
    assert driver.flags == 1
    with pytest.raises(UnknownNameError, match="private flag 'x' is unknown; known are: legacy-rx, stuck"):
        tool.set_private_flags(5, {"x": True})


def test_drivers_without_private_flags(tool: Ethtool, driver: Driver) -> None:
    """An empty set and a refusal are both none; a link that is gone is an error."""
    assert tool.private_flags(98) == {}
    driver.flag_names = {}
    assert tool.private_flags(5) == {}
    with pytest.raises(NetlinkError) as caught:
        tool.private_flags(99)
    assert caught.value.errno == errno.ENODEV


def test_features_that_do_not_take_are_named(tool: Ethtool, driver: Driver) -> None:
    """The answer's mask names them; a kernel that sends none is believed."""
    assert tool.set_features(5, {"tx-scatter-gather": True, "rx-gro": True}) == ("tx-scatter-gather",)
    assert tool.set_features(5, {"tx-scatter-gather": False}) == ()
    driver.quiet = True
    assert tool.set_features(5, {"tx-scatter-gather": True}) == ()


def test_features_are_read_with_names_asked_for_once(tool: Ethtool) -> None:
    """The driver above has none on; the second reading is one call."""
    assert {name: one.active for name, one in tool.features(5).items()} == {
        "tx-scatter-gather": True,
        "rx-gro": False,
        "vlan-challenged": False,
    }
    calls = tool.send_calls
    tool.features(5)
    assert tool.send_calls == calls + 1


def test_unknown_names_change_nothing(tool: Ethtool) -> None:
    """Also the empty one, which numbers without a name have."""
    for name in ("rx-grow", ""):
        with pytest.raises(UnknownNameError, match="known are: rx-gro, tx-scatter-gather, vlan-challenged"):
            tool.set_features(5, {name: True})
    assert tool.set_features(5, {}) == tool.set_private_flags(5, {}) == ()


def test_refusals_are_raised(tool: Ethtool, kernel: Any, ack: Callable[..., bytes]) -> None:
    """By a link that is gone, and by a kernel without the family."""
    with pytest.raises(NetlinkError, match="read features of link 99: No such device"):
        tool.features(99)
    genl.GenlSocket._families.clear()
    kernel.answer = lambda found: [ack(found[0][2], errno.ENOENT)]
    with pytest.raises(NetlinkError, match="find the netlink family ethtool: No such file"):
        tool.features(5)


def test_an_answer_without_flags_has_none() -> None:
    """A driver that lost its flags meanwhile."""
    assert ethtool.parse_private_flags(genl.body(13, 1), NAMES) == {}
