"""Documents of somebody who means harm: each is refused with the path of what is wrong, whatever else it has."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nri_dranet.api import resolve as resolving
from nri_dranet.api.errors import MAX_ERRORS, ConfigError
from nri_dranet.api.resolve import ConfigSource, resolve


def interface(**fields: Any) -> dict[str, Any]:
    """Return a document with these fields of the interface."""
    return {"interface": fields}


def route(**fields: Any) -> dict[str, Any]:
    """Return a document with one route."""
    return {"routes": [{"destination": "10.9.0.0/16", "gateway": "10.0.0.1", **fields}]}


NAMES = (
    "../x", "a/b", "eth%d", "%", "a" * 16, "x\x00y", "a b", "a\n", "\x1b[31m", "ethé", "eth٣", "网卡",
    "lo", "all", "default", ".", "..", "a:b",
)  # fmt: skip
ADDRESSES = (
    "224.0.0.1/24", "ff02::1/64", "0.0.0.0/24", "::/64", "127.0.0.1/8", "::1/128", "255.255.255.255/32",
    "10.0.0.255/24", "10.0.0.5", "10.0.0.5/33", "fd00::5/129", "10.0.0.5/-1", "010.0.0.5/24", "fe80::1%eth0/64",
    "::ffff:10.0.0.5/120", "10.0.0.5/0", "1e9/8", "",
)  # fmt: skip
MACS = ("00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "02:00", "02:00:00:00:00:0g", "0" * 5000)
SIZES = (-1, 0, 2**31, 2**32, 2**63, 10**40)

DOCUMENTS: list[tuple[str, Any]] = [
    *(("interface.name", interface(name=name)) for name in NAMES),
    *(("interface.vrf.name", interface(vrf={"name": name})) for name in (*NAMES, "")),
    *(("interface.addresses[0]", interface(addresses=[text])) for text in ADDRESSES),
    ("interface.addresses", interface(addresses=[f"10.{i // 250}.0.{i % 250 + 1}/16" for i in range(500)])),
    *(("interface.hardwareAddr", interface(hardwareAddr=text)) for text in MACS),
    *(("interface.mtu", interface(mtu=number)) for number in (*SIZES, 67, 65536, 1500.0, "1500", True)),
    *(
        (f"interface.{name}", interface(**{name: number}))
        for name in ("gsoMaxSize", "groMaxSize", "gsoIPv4MaxSize", "groIPv4MaxSize")
        for number in SIZES
    ),
    *(("interface.arpIgnore", interface(arpIgnore=number)) for number in (-1, 4, 9, 2**32)),
    *(("interface.vrf.table", interface(vrf={"name": "r", "table": n})) for n in (-1, 0, 253, 254, 255, 2**32)),
    *(("routes[0].table", route(table=number)) for number in (-1, 255, 2**32, 2**64)),
    *(("routes[0].scope", route(scope=number)) for number in (-1, 1, 200, 254, 255, 256)),
    *(("routes[0].gateway", route(gateway=text)) for text in ("224.0.0.1", "::", "127.0.0.1", "fd00::1", "x")),
    ("", {"routes": [{"destination": f"10.{i // 250}.{i % 250}.0/24", "scope": 253} for i in range(1000)]}),
    ("routes", {"routes": [{"destination": "10.0.0.0/8"}] * 300}),
    *(("rules[0].priority", {"rules": [{"priority": number}]}) for number in (-1, 0, 32768, 2**32)),
    *(("rules[0].table", {"rules": [{"table": number}]}) for number in (-1, 2**32)),
    ("neighbors[0].hardwareAddr", {"neighbors": [{"destination": "10.0.0.9", "hardwareAddr": "x"}]}),
    ("ethtool.features", {"ethtool": {"features": {f"f{i}": True for i in range(500)}}}),
    ('ethtool.features["a\\u0000b"]', {"ethtool": {"features": {"a\x00b": True}}}),
    ("profile", {"profile": "x"}),
    ("__proto__", {"__proto__": {}}),
]


@pytest.mark.parametrize(("path", "document"), DOCUMENTS)
def test_a_hostile_value_is_refused_by_its_path(path: str, document: Any) -> None:
    """As decoded data and as text alike; the message is one line that a terminal can show."""
    for parameters in (document, json.dumps(document)):
        if isinstance(parameters, str) and len(parameters) > 10 * 1024:
            continue
        with pytest.raises(ConfigError) as caught:
            resolve([ConfigSource("claim", parameters)])
        assert path in {error.path for error in caught.value.errors}
        assert len(caught.value.errors) <= MAX_ERRORS
        assert str(caught.value).isprintable()
        assert len(caught.value.summary(1024)) <= 1024


def test_many_hostile_documents_cost_little_more_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim has room for 32 of them: once there are more problems than a message lists, no other is looked at."""
    looked: list[Any] = []
    validate = resolving.validate

    def counted(data: Any) -> Any:
        looked.append(data)
        return validate(data)

    monkeypatch.setattr(resolving, "validate", counted)
    document = {"routes": [{"a": 1, "b": 2}] * 200}
    with pytest.raises(ConfigError) as caught:
        resolve([ConfigSource(f"claim, {i}", document) for i in range(32)])
    assert len(looked) == 1
    assert caught.value.unlisted > 300


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 1600 + "]" * 1600, "levels of nesting"),
        ('{"a":' * 1600 + "1" + "}" * 1600, "levels of nesting"),
        ('{"interface":{"mtu":1400,"mtu":1500}}', "interface.mtu: 1500: must be given once"),
        ('{"interface":{"mtu":NaN}}', "interface.mtu: must be a number that fits"),
        ('{"interface":{"mtu":1e400}}', "interface.mtu: must be a number that fits"),
        ('{"interface":{"mtu":' + "9" * 5000 + "}}", "interface.mtu: must be a number that fits"),
        ('{"interface":{"name":"\\ud800"}}', "interface.name: "),
        ('{"x":"' + "a" * 11000 + '"}', "must have at most 10240 bytes"),
        ('{"interface"', "must be JSON"),
        ("[1]", "must be an object"),
        ('"' + "\\" * 9999, "must be JSON"),
    ],
)
def test_a_hostile_text_is_refused(text: str, words: str) -> None:
    """Depth, size, numbers, repeated fields and broken Unicode are met before anything looks at their meaning."""
    with pytest.raises(ConfigError) as caught:
        resolve([ConfigSource("claim", text)])
    assert words in str(caught.value)
    assert str(caught.value).isprintable()
