"""Dataclass trees as JSON text: what was written is read again, and what cannot be understood is refused in words."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nri_dranet.claims import codec
from nri_dranet.claims.facts import DeviceFacts, ObservedInterface, Phase
from nri_dranet.claims.model import DeviceKey
from nri_dranet.claims.plan import HostState
from nri_dranet.netlink.model import Address, Link, Neighbour, NextHop, Route


class Colour(enum.StrEnum):
    """An enum for the tests."""

    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    """A nested value."""

    number: int
    text: str = ""


@dataclass(frozen=True)
class Outer:
    """One of every kind of field."""

    colour: Colour
    pair: tuple[int, str]
    many: tuple[Inner, ...] = ()
    maybe: Inner | None = None
    either: int | str = 0
    data: bytes = b""
    ratio: float = 0.0
    flag: bool = False
    table: dict[str, Inner] = field(default_factory=dict)
    free: Any = None


inners = st.builds(Inner, st.integers(), st.text())
outers = st.builds(
    Outer,
    st.sampled_from(Colour),
    st.tuples(st.integers(), st.text()),
    st.lists(inners).map(tuple),
    st.none() | inners,
    st.integers() | st.text(),
    st.binary(),
    st.floats(allow_nan=False),
    st.booleans(),
    st.dictionaries(st.text(), inners),
    st.none() | st.integers() | st.lists(st.text()),
)


@given(outers)
def test_every_value_comes_back(value: Outer) -> None:
    """Writing and reading gives the same value."""
    assert codec.loads(Outer, codec.dumps(value)) == value


@given(st.text() | st.binary())
def test_garbage_is_refused(text: str | bytes) -> None:
    """No text makes anything but a value or a DecodeError."""
    try:
        codec.loads(Outer, text)
    except codec.DecodeError:
        return


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "no object"),
        ("{", "not JSON"),
        ("{}", "missing"),
        ('{"colour":"green","pair":[1,"a"]}', r"\.colour: 'green' is none of red, blue"),
        ('{"colour":"red","pair":[1]}', r"\.pair: 1 items where 2 are expected"),
        ('{"colour":"red","pair":1}', r"\.pair: 1 is no list"),
        ('{"colour":"red","pair":[true,"a"]}', r"\.pair\[0\]: True is no int"),
        ('{"colour":"red","pair":[1,"a"],"many":[{"number":"x"}]}', r"\.many\[0\]\.number: 'x' is no int"),
        ('{"colour":"red","pair":[1,"a"],"new":1}', "unknown field 'new'"),
        ('{"colour":"red","pair":[1,"a"],"data":"!"}', "is not base64"),
        ('{"colour":"red","pair":[1,"a"],"data":1}', "is not base64"),
        ('{"colour":"red","pair":[1,"a"],"either":[]}', "is no int; .*is no str"),
        ('{"colour":"red","pair":[1,"a"],"table":[]}', "is no object"),
    ],
)
def test_a_document_of_another_shape_is_refused_with_its_path(text: str, said: str) -> None:
    """The error names the path within the document and the value."""
    with pytest.raises(codec.DecodeError, match=said):
        codec.loads(Outer, text)


def test_defaults_are_left_out() -> None:
    """Fields at their default take no space, so that a row stays small."""
    assert codec.dumps(Inner(1)) == '{"number":1}'


def test_what_json_cannot_hold_is_an_error_of_the_program() -> None:
    """An object of another kind is refused when it is written, not when it is read."""
    with pytest.raises(TypeError, match="set"):
        codec.dumps({"a": {1}})


def test_an_integer_is_read_where_a_float_is_expected() -> None:
    """JSON does not tell 1 from 1.0."""
    assert codec.from_json(float, 1) == 1.0


def test_host_state_and_facts_come_back_whole() -> None:
    """The types that the journal really keeps survive with every field."""
    state = HostState(
        link=Link(index=1, name="eth1", altnames=("a", "b"), carrier=False, num_vfs=3, vlan_id=7),
        addresses=(Address(family=10, address="fd00::1", prefix_length=64, valid_lifetime=60, peer="fd00::2"),),
        routes=(Route(family=2, destination="0.0.0.0/0", next_hops=(NextHop(gateway="10.0.0.1", weight=2),)),),
        neighbours=(Neighbour(family=2, address="10.0.0.9", hardware_address="02:00:00:00:00:09"),),
        sysctls={"ipv6/conf/disable_ipv6": "1"},
        features={"tx-checksum": True},
    )
    assert codec.loads(HostState, codec.dumps(state)) == state
    fact = DeviceFacts(
        key=DeviceKey("n", "eth1", "share"),
        request="nic/best",
        phase=Phase.ATTACHED,
        interface=ObservedInterface(name="net1", hardware_address="", carrier=None, addresses=("10.0.0.1/24",)),
    )
    assert codec.loads(DeviceFacts, codec.dumps(fact)) == fact
