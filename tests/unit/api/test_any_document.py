"""Whole documents from hypothesis: each is refused in words or means a configuration, nothing else ever happens."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from nri_dranet.api.document import MAX_BYTES
from nri_dranet.api.errors import ConfigError
from nri_dranet.api.resolve import ConfigSource, resolve

TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["net1", "eth0", "lo", "a/b", "eth%d", "10.0.0.5/24", "10.0.0.1", "fd00::5/64", "FD00::1", "0.0.0.0/0", "::/0",
         "02:00:00:00:00:01", "01:00:5e:00:00:01", "224.0.0.1", "255.255.255.255/32", "::ffff:1.2.3.4", "fe80::1%1/64",
         "macvlan", "vlan", "bridge", "l2", "red", "", "\x00", "tso"]
    ),
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(), st.sampled_from([0, 1, 2, 68, 253, 254, 255, 1500, 65535, 32767, 2**31, 2**32 - 1, 2**32, 10**50])
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(), TEXTS)
NAMES = st.one_of(
    st.sampled_from(
        ["profile", "interface", "routes", "rules", "neighbors", "ethtool", "name", "addresses", "dhcp", "mtu",
         "hardwareAddr", "gsoMaxSize", "forwarding", "arpIgnore", "vrf", "subInterface", "type", "mode", "vlanID",
         "destination", "gateway", "source", "scope", "table", "priority", "features", "privateFlags"]
    ),
    st.text(max_size=8),
)  # fmt: skip
ANY = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=5))
)


def _mostly(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(good, good, good, good, good, good, SCALARS)


def _object(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={name: _mostly(value) for name, value in fields.items()})


IPS = st.one_of(st.ip_addresses().map(str), st.sampled_from(["10.0.0.1", "fd00::1"]))
CIDRS = st.builds(lambda ip, size: f"{ip}/{min(size, 32 if '.' in ip else 128)}", IPS, st.integers(0, 128))
MACS = st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))
NEAR = _object(
    profile=st.just(""),
    interface=_object(
        name=st.sampled_from(["net1", "net2", ""]),
        addresses=st.lists(CIDRS, max_size=4),
        dhcp=st.booleans(),
        mtu=st.integers(68, 9000),
        hardwareAddr=MACS,
        gsoMaxSize=st.integers(193, 524280),
        forwarding=st.booleans(),
        arpIgnore=st.sampled_from([0, 1, 2, 3, 8]),
        vrf=_object(name=st.sampled_from(["red", "blue"]), table=st.integers(1, 300)),
        subInterface=_object(
            type=st.sampled_from(["macvlan", "ipvlan", "vlan"]), mode=TEXTS, vlanID=st.integers(0, 5000)
        ),
    ),
    routes=st.lists(
        _object(destination=CIDRS, gateway=IPS, source=IPS, scope=st.sampled_from([0, 253]), table=st.integers(0, 260)),
        max_size=4,
    ),
    rules=st.lists(
        _object(priority=st.integers(0, 40000), source=CIDRS, destination=CIDRS, table=st.integers(0, 300)), max_size=3
    ),
    neighbors=st.lists(_object(destination=IPS, hardwareAddr=MACS), max_size=3),
    ethtool=_object(
        features=st.dictionaries(TEXTS, st.booleans(), max_size=3),
        privateFlags=st.dictionaries(TEXTS, st.booleans(), max_size=3),
    ),
)


def _meant(*documents: Any) -> Any:
    """Resolve documents; return the plain form of what they mean, None if they are refused."""
    try:
        found = resolve([ConfigSource(f"source {i}", doc) for i, doc in enumerate(documents)])
    except ConfigError as error:
        _in_words(error)
        return None
    return found.config.model_dump(by_alias=True, exclude_unset=True, mode="json")


def _in_words(error: ConfigError) -> None:
    """Check that a refusal has problems, each a line that can be shown to anybody."""
    assert error.errors
    assert all(problem.message for problem in error.errors)
    assert str(error).isprintable()
    assert len(error.summary(1024)) <= 1024


@given(ANY)
def test_any_data_is_refused_or_means_a_configuration(document: Any) -> None:
    """No decoded data makes anything but a refusal with words or a configuration."""
    _meant(document)


@given(NEAR)
@settings(max_examples=300)
def test_a_configuration_means_itself(document: Any) -> None:
    """The canonical form of a valid document is valid and means the same."""
    plain = _meant(document)
    if plain is not None:
        assert _meant(plain) == plain
        assert _meant(json.dumps(plain)) == plain
        assert _meant(plain, plain) == plain


@given(NEAR, NEAR)
@settings(max_examples=200)
def test_two_documents_are_refused_or_mean_a_valid_one(first: Any, second: Any) -> None:
    """The merge of two documents is a refusal or a document that is valid by itself."""
    plain = _meant(first, second)
    if plain is not None:
        assert _meant(plain) == plain


@given(st.one_of(st.text(max_size=200), st.binary(max_size=200), ANY.map(json.dumps)))
def test_any_text_is_refused_or_means_a_configuration(text: str | bytes) -> None:
    """No text or bytes make anything but a refusal with words or a configuration."""
    _meant(text)


@given(
    st.sampled_from(["[", '{"a":', '"', "\\", '"\\"', "]", "9", "é", '{"interface":{"name":', ","]),
    st.integers(1, MAX_BYTES),
)
def test_repeated_tokens_are_refused(token: str, times: int) -> None:
    """A token repeated until the limit and beyond is refused, whatever it opens or leaves open."""
    assert _meant(token * times) is None
