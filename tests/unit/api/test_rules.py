"""Every validation rule of the configuration: what is refused, where and in which words, and what is taken."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.api import config
from nri_dranet.api.errors import ConfigError, FieldError
from nri_dranet.api.resolve import ConfigSource, resolve

if TYPE_CHECKING:
    from pydantic import BaseModel

ADDRESS = {"interface": {"addresses": ["10.77.0.5/24"]}}


def errors_of(document: Any) -> list[FieldError]:
    """Return the problems of a document."""
    with pytest.raises(ConfigError) as caught:
        resolve([ConfigSource("claim", document)])
    return list(caught.value.errors)


def taken(document: Any) -> config.NetworkConfig:
    """Return the configuration that a document means."""
    return resolve([ConfigSource("claim", document)]).config


def interface(**fields: Any) -> dict[str, Any]:
    """Return a document with these fields of the interface."""
    return {"interface": fields}


def route(**fields: Any) -> dict[str, Any]:
    """Return a document with one route, right but for these fields; None leaves one out."""
    full = {"destination": "10.99.0.0/16", "gateway": "10.77.0.1"} | fields
    return {"routes": [{name: value for name, value in full.items() if value is not None}]}


REFUSED: list[tuple[Any, str, str]] = [
    ([], "", "must be an object"),
    ("text", "", "must be JSON"),
    (7, "", "must be an object"),
    ({"Interface": {}}, "Interface", "did you mean interface?"),
    ({"interfaces": {}}, "interfaces", "did you mean interface?"),
    ({"zzz": 1}, "zzz", "known are profile, interface"),
    ({"profile": "fast"}, "profile", "profiles are not supported yet"),
    ({"profile": 1}, "profile", "must be text"),
    ({"interface": []}, "interface", "must be an object"),
    (interface(adresses=["10.0.0.1/24"]), "interface.adresses", "did you mean addresses?"),
    (interface(MTU=1500), "interface.MTU", "did you mean mtu?"),
    (interface(hardwareaddr="02:00:00:00:00:01"), "interface.hardwareaddr", "did you mean hardwareAddr?"),
    (interface(hardware_addr="02:00:00:00:00:01"), "interface.hardware_addr", "did you mean hardwareAddr?"),
    (interface(name=5), "interface.name", "must be text"),
    (interface(name="../x"), "interface.name", "it has '/'"),
    (interface(name="."), "interface.name", "names of directories"),
    (interface(name=".."), "interface.name", "names of directories"),
    (interface(name="a/b"), "interface.name", "it has '/'"),
    (interface(name="a:b"), "interface.name", "it has ':'"),
    (interface(name="eth%d"), "interface.name", "it has '%'"),
    (interface(name="a b"), "interface.name", "it has ' '"),
    (interface(name="a\tb"), "interface.name", "1 to 15 printable ASCII"),
    (interface(name="a\x00b"), "interface.name", "1 to 15 printable ASCII"),
    (interface(name="a\u0661"), "interface.name", "1 to 15 printable ASCII"),
    (interface(name="\u0436\u0443\u043a"), "interface.name", "1 to 15 printable ASCII"),
    (interface(name="abcdefghijklmnop"), "interface.name", "it has 16 bytes"),
    (interface(name="lo"), "interface.name", "loopback"),
    (interface(name="all"), "interface.name", "all interfaces"),
    (interface(name="default"), "interface.name", "future interfaces"),
    (interface(name="eth0"), "interface.name", "the pod's own interface"),
    (interface(addresses="10.0.0.1/24"), "interface.addresses", "must be a list"),
    (interface(addresses=[1]), "interface.addresses[0]", "must be text"),
    (interface(addresses=[None]), "interface.addresses[0]", "must be text"),
    (interface(addresses=["10.0.0.1"]), "interface.addresses[0]", "prefix length, such as"),
    (interface(addresses=["10.0.0.1/33"]), "interface.addresses[0]", "at most 32"),
    (interface(addresses=["fd00::1/129"]), "interface.addresses[0]", "at most 128"),
    (interface(addresses=["10.0.0.1/024"]), "interface.addresses[0]", "prefix length, such as"),
    (interface(addresses=["10.0.0.1/255.255.255.0"]), "interface.addresses[0]", "prefix length, such as"),
    (interface(addresses=["10.0.0.1/٣"]), "interface.addresses[0]", "prefix length, such as"),
    (interface(addresses=["010.0.0.1/24"]), "interface.addresses[0]", "IPv4 or IPv6 address"),
    (interface(addresses=["host/24"]), "interface.addresses[0]", "IPv4 or IPv6 address"),
    (interface(addresses=["fe80::1%eth0/64"]), "interface.addresses[0]", "without a zone"),
    (interface(addresses=["::ffff:10.0.0.1/120"]), "interface.addresses[0]", "IPv4 address 10.0.0.1"),
    (interface(addresses=["0.0.0.0/0"]), "interface.addresses[0]", "unspecified"),
    (interface(addresses=["::/64"]), "interface.addresses[0]", "unspecified"),
    (interface(addresses=["224.0.0.5/24"]), "interface.addresses[0]", "multicast"),
    (interface(addresses=["ff02::1/64"]), "interface.addresses[0]", "multicast"),
    (interface(addresses=["127.0.0.2/8"]), "interface.addresses[0]", "loopback"),
    (interface(addresses=["::1/128"]), "interface.addresses[0]", "loopback"),
    (interface(addresses=["255.255.255.255/32"]), "interface.addresses[0]", "broadcast"),
    (interface(addresses=["10.0.0.255/24"]), "interface.addresses[0]", "broadcast address of 10.0.0.0/24"),
    (interface(addresses=["10.0.0.1/0"]), "interface.addresses[0]", "at least 1"),
    (interface(addresses=["fd00::1/0"]), "interface.addresses[0]", "at least 1"),
    (interface(addresses=[f"10.0.{i}.1/24" for i in range(65)]), "interface.addresses", "at most 64 entries, has 65"),
    (interface(addresses=["fd00::1/64", "fd00::1/128"]), "interface.addresses[1]", "there only once"),
    (interface(dhcp="yes"), "interface.dhcp", "true or false"),
    (interface(mtu=67), "interface.mtu", "68 to 65535"),
    (interface(mtu=65536), "interface.mtu", "68 to 65535"),
    (interface(mtu=2**31 - 1), "interface.mtu", "68 to 65535"),
    (interface(mtu=-1), "interface.mtu", "68 to 65535"),
    (interface(mtu=10**30), "interface.mtu", "68 to 65535"),
    (interface(mtu=10**90), "interface.mtu", "68 to 65535"),
    (interface(mtu="1500"), "interface.mtu", "whole number"),
    (interface(mtu=1500.0), "interface.mtu", "whole number"),
    (interface(mtu=True), "interface.mtu", "whole number"),
    (interface(mtu=float("nan")), "interface.mtu", "not infinite, NaN"),
    (interface(mtu=float("inf")), "interface.mtu", "not infinite, NaN"),
    (interface(mtu=1000, addresses=["fd00::1/64"]), "interface.mtu", "at least 1280 with an IPv6 address"),
    (interface(hardwareAddr="02:00:00:00:00"), "interface.hardwareAddr", "6 or 20 bytes, has 5"),
    (interface(hardwareAddr="02:00:00:00:00:00:00:01"), "interface.hardwareAddr", "6 or 20 bytes, has 8"),
    (interface(hardwareAddr="02-00:00:00:00:01"), "interface.hardwareAddr", "must be a hardware address such as"),
    (interface(hardwareAddr="020000000001"), "interface.hardwareAddr", "must be a hardware address such as"),
    (interface(hardwareAddr="02:00:00:00:00:0g"), "interface.hardwareAddr", "must be a hardware address such as"),
    (interface(hardwareAddr=""), "interface.hardwareAddr", "must be a hardware address such as"),
    (interface(hardwareAddr="01:00:5e:00:00:01"), "interface.hardwareAddr", "unicast"),
    (interface(hardwareAddr="ff:ff:ff:ff:ff:ff"), "interface.hardwareAddr", "unicast"),
    (interface(hardwareAddr="00:00:00:00:00:00"), "interface.hardwareAddr", "must not be zero"),
    (interface(hardwareAddr=":".join(["00"] * 20)), "interface.hardwareAddr", "must not be zero"),
    (interface(gsoMaxSize=192), "interface.gsoMaxSize", "193 to 524280"),
    (interface(gsoMaxSize=524281), "interface.gsoMaxSize", "193 to 524280"),
    (interface(groMaxSize=0), "interface.groMaxSize", "1 to 524280"),
    (interface(groMaxSize=2**31), "interface.groMaxSize", "1 to 524280"),
    (interface(gsoIPv4MaxSize=1), "interface.gsoIPv4MaxSize", "193 to 524280"),
    (interface(groIPv4MaxSize=-1), "interface.groIPv4MaxSize", "1 to 524280"),
    (interface(disableEbpfPrograms=1), "interface.disableEbpfPrograms", "true or false"),
    (interface(forwarding="on"), "interface.forwarding", "true or false"),
    (interface(arpIgnore=4), "interface.arpIgnore", "one of 0, 1, 2, 3, 8"),
    (interface(arpAnnounce=3), "interface.arpAnnounce", "one of 0, 1, 2"),
    (interface(vrf="red"), "interface.vrf", "must be an object"),
    (interface(vrf={}), "interface.vrf.name", "must be given"),
    (interface(vrf={"name": ""}), "interface.vrf.name", "it is empty"),
    (interface(vrf={"name": "v" * 40}), "interface.vrf.name", "it has 40 bytes"),
    (interface(vrf={"name": "eth0"}), "interface.vrf.name", "the pod's own interface"),
    (interface(vrf={"name": "all"}), "interface.vrf.name", "all interfaces"),
    (interface(vrf={"name": "red", "table": 0}), "interface.vrf.table", "1 to 4294967295"),
    (interface(vrf={"name": "red", "table": 253}), "interface.vrf.table", "253, 254 or 255"),
    (interface(vrf={"name": "red", "table": 254}), "interface.vrf.table", "253, 254 or 255"),
    (interface(vrf={"name": "red", "table": 255}), "interface.vrf.table", "253, 254 or 255"),
    (interface(vrf={"name": "red", "table": 2**32}), "interface.vrf.table", "1 to 4294967295"),
    (interface(name="red", vrf={"name": "red"}), "interface.vrf.name", "must differ from the interface's own name"),
    (interface(vrf={"name": "red"}) | {"rules": [{"table": 7}]}, "rules", "must be left out with a VRF"),
    (interface(subInterface={}), "interface.subInterface.type", "must be given"),
    (interface(subInterface={"type": "bond"}), "interface.subInterface.type", "macvlan, ipvlan or vlan"),
    (interface(subInterface={"type": []}), "interface.subInterface.type", "macvlan, ipvlan or vlan"),
    (
        interface(subInterface={"type": "macvlan", "mode": "l2"}),
        "interface.subInterface.mode",
        "one of bridge, private, vepa, passthru",
    ),
    (interface(subInterface={"type": "ipvlan", "mode": "bridge"}), "interface.subInterface.mode", "one of l2, l3, l3s"),
    (
        interface(subInterface={"type": "vlan", "vlanID": 5, "mode": "l2"}),
        "interface.subInterface.mode",
        "must be left out",
    ),
    (interface(subInterface={"type": "vlan"}), "interface.subInterface.vlanID", "must be given for type vlan"),
    (interface(subInterface={"type": "vlan", "vlanID": 0}), "interface.subInterface.vlanID", "1 to 4094"),
    (interface(subInterface={"type": "vlan", "vlanID": 4095}), "interface.subInterface.vlanID", "1 to 4094"),
    (interface(subInterface={"type": "macvlan", "vlanID": 5}), "interface.subInterface.vlanID", "must be left out"),
    ({"routes": {}}, "routes", "must be a list"),
    ({"routes": ["10.0.0.0/8"]}, "routes[0]", "must be an object"),
    ({"routes": [{"scope": 253}]}, "routes[0].destination", "must be given"),
    (route(destination="10.99.0.0"), "routes[0].destination", "prefix length, such as"),
    (route(destination="10.99.0.0/33"), "routes[0].destination", "at most 32"),
    (route(gateway=None), "routes[0].gateway", "must be given, or the scope be 253"),
    (route(gateway="10.77.0.1/24"), "routes[0].gateway", "IPv4 or IPv6 address"),
    (route(gateway=str(ipaddress.IPv4Address(0))), "routes[0].gateway", "unspecified"),
    (route(gateway="224.0.0.1"), "routes[0].gateway", "multicast"),
    (route(gateway="127.0.0.1"), "routes[0].gateway", "loopback"),
    (route(gateway="255.255.255.255"), "routes[0].gateway", "broadcast"),
    (route(gateway="fd77::1"), "routes[0].gateway", "IPv4 address, as the route's destination"),
    (route(destination="fd99::/64"), "routes[0].gateway", "IPv6 address, as the route's destination"),
    (route(scope=253), "routes[0].gateway", "must be left out with scope 253"),
    (route(source="fd77::5"), "routes[0].source", "IPv4 address, as the route's destination"),
    (route(source="10.77.0.5/24"), "routes[0].source", "IPv4 or IPv6 address"),
    (route(source=str(ipaddress.IPv4Address(0))), "routes[0].source", "unspecified"),
    (route(scope=254), "routes[0].scope", "one of 0, 253"),
    (route(scope=200), "routes[0].scope", "one of 0, 253"),
    (route(table=-1), "routes[0].table", "0 to 4294967295"),
    (route(table=255), "routes[0].table", "the local table"),
    (route(table=2**32), "routes[0].table", "0 to 4294967295"),
    (route(metric=5), "routes[0].metric", "is not a known field"),
    (interface(vrf={"name": "red"}) | route(table=7), "routes[0].table", "must be left out or 1596 with a VRF"),
    (interface(vrf={"name": "red", "table": 9}) | route(table=7), "routes[0].table", "left out or 9 with a VRF"),
    (
        {"routes": [route()["routes"][0], route(gateway="10.77.0.2", table=254)["routes"][0]]},
        "routes[1].destination",
        "must not repeat the destination of routes[0] in table 254",
    ),
    (
        {"routes": [{"destination": f"10.{i}.0.0/24" if i < 256 else "11.0.0.0/24", "scope": 253} for i in range(257)]},
        "routes",
        "at most 256 entries, has 257",
    ),
    ({"rules": [{"priority": 0}]}, "rules[0].priority", "1 to 32767: 0 is the priority"),
    ({"rules": [{"priority": 32768}]}, "rules[0].priority", "1 to 32767"),
    ({"rules": [{"priority": -5}]}, "rules[0].priority", "1 to 32767"),
    ({"rules": [{"source": "10.0.0.1"}]}, "rules[0].source", "prefix length, such as"),
    ({"rules": [{"destination": "x"}]}, "rules[0].destination", "prefix length, such as"),
    (
        {"rules": [{"source": "10.0.0.0/8", "destination": "fd00::/8"}]},
        "rules[0].destination",
        "IPv4 network, as the rule's source",
    ),
    ({"rules": [{"table": 4294967551}]}, "rules[0].table", "0 to 4294967295"),
    ({"rules": [{"table": -1}]}, "rules[0].table", "0 to 4294967295"),
    ({"rules": [{"iif": "lo"}]}, "rules[0].iif", "is not a known field"),
    ({"rules": [{"priority": i} for i in range(1, 130)]}, "rules", "at most 128 entries, has 129"),
    ({"neighbors": [{"destination": "10.77.0.9"}]}, "neighbors[0].hardwareAddr", "must be given"),
    ({"neighbors": [{"hardwareAddr": "02:00:00:00:00:01"}]}, "neighbors[0].destination", "must be given"),
    (
        {"neighbors": [{"destination": "10.0.0.1", "ipAddress": "10.0.0.1", "hardwareAddr": "02:00:00:00:00:01"}]},
        "neighbors[0].ipAddress",
        "did you mean destination?",
    ),
    (
        {"neighbors": [{"destination": "224.0.0.1", "hardwareAddr": "02:00:00:00:00:01"}]},
        "neighbors[0].destination",
        "multicast",
    ),
    (
        {"neighbors": [{"destination": "10.0.0.1", "hardwareAddr": "02:00:00:00:01"}]},
        "neighbors[0].hardwareAddr",
        "6, 8 or 20 bytes, has 5",
    ),
    (
        {
            "neighbors": [
                {"destination": "FD00::1", "hardwareAddr": "02:00:00:00:00:01"},
                {"destination": "fd00::1", "hardwareAddr": "02:00:00:00:00:02"},
            ]
        },
        "neighbors[1].destination",
        "must not repeat neighbors[0]",
    ),
    (
        {"neighbors": [{"destination": f"10.0.0.{i + 1}", "hardwareAddr": "02:00:00:00:00:01"} for i in range(129)]},
        "neighbors",
        "at most 128 entries, has 129",
    ),
    ({"ethtool": []}, "ethtool", "must be an object"),
    ({"ethtool": {"feature": {}}}, "ethtool.feature", "did you mean features?"),
    (
        {"ethtool": {"feature-that-nobody-could-have-meant": {}}},
        "ethtool.feature-that-nobody-could-have-meant",
        "known are",
    ),
    ({"ethtool": {"features": ["tso"]}}, "ethtool.features", "must be an object"),
    ({"ethtool": {"features": {"tso": 1}}}, "ethtool.features.tso", "true or false"),
    ({"ethtool": {"features": {"": True}}}, 'ethtool.features[""]', "1 to 31 printable ASCII"),
    ({"ethtool": {"features": {"x" * 32: True}}}, f"ethtool.features.{'x' * 32}", "1 to 31 printable ASCII"),
    ({"ethtool": {"features": {"a\nb": True}}}, 'ethtool.features["a\\nb"]', "1 to 31 printable ASCII"),
    ({"ethtool": {"features": {"[key]": 1}}}, 'ethtool.features["[key]"]', "true or false"),
    ({"ethtool": {"features": {f"f{i}": True for i in range(129)}}}, "ethtool.features", "at most 128 entries"),
    ({"ethtool": {"privateFlags": {"a": None, "b": "x"}}}, "ethtool.privateFlags.b", "true or false"),
    ({"ethtool": {"privateFlags": {"\u00e4": True}}}, 'ethtool.privateFlags["\\u00e4"]', "1 to 31 printable ASCII"),
    ({"ethtool": {"privateFlags": {f"f{i}": True for i in range(129)}}}, "ethtool.privateFlags", "at most 128 entries"),
]


@pytest.mark.parametrize(("document", "path", "words"), REFUSED, ids=[f"{i}-{row[1]}" for i, row in enumerate(REFUSED)])
def test_refused_with_path_and_what_is_allowed(document: Any, path: str, words: str) -> None:
    """A value that breaks one rule gives exactly one problem: its path, the value, and what is allowed."""
    (error,) = errors_of(document)
    assert error.path == path
    assert words in error.message
    assert error.origin == "claim"


TAKEN: list[tuple[Any, str, Any]] = [
    (interface(name="net1"), "interface.name", "net1"),
    (interface(name=""), "interface.name", ""),
    (interface(name="abcdefghijklmno"), "interface.name", "abcdefghijklmno"),
    (interface(name="-a.b_c@9"), "interface.name", "-a.b_c@9"),
    (interface(name="eth1"), "interface.name", "eth1"),
    (interface(addresses=["FD36:0:3::/96"]), "interface.addresses", ("fd36:0:3::/96",)),
    (interface(addresses=["fd00:0:0::0:5/64"]), "interface.addresses", ("fd00::5/64",)),
    (interface(addresses=["10.0.0.0/24"]), "interface.addresses", ("10.0.0.0/24",)),
    (interface(addresses=["10.0.0.255/31"]), "interface.addresses", ("10.0.0.255/31",)),
    (interface(addresses=["fe80::5/64"]), "interface.addresses", ("fe80::5/64",)),
    (interface(addresses=["10.0.0.5/24", "10.0.0.5/32"]), "interface.addresses", ("10.0.0.5/24", "10.0.0.5/32")),
    (
        interface(addresses=["fd00::1/64", "10.0.0.5/24", "FD00::1/64"]),
        "interface.addresses",
        ("fd00::1/64", "10.0.0.5/24"),
    ),
    (interface(addresses=[]), "interface.addresses", ()),
    (interface(dhcp=False, addresses=["10.0.0.5/24"]), "interface.dhcp", False),
    (interface(mtu=68), "interface.mtu", 68),
    (interface(mtu=65535), "interface.mtu", 65535),
    (interface(mtu=1280, addresses=["fd00::1/64"]), "interface.mtu", 1280),
    (interface(hardwareAddr="02-AA-00-00-00-01"), "interface.hardware_addr", "02:aa:00:00:00:01"),
    (interface(hardwareAddr="02aa.0000.0001"), "interface.hardware_addr", "02:aa:00:00:00:01"),
    (
        interface(hardwareAddr=":".join(["80"] * 20)),
        "interface.hardware_addr",
        ":".join(["80"] * 20),
    ),
    (interface(gsoMaxSize=193), "interface.gso_max_size", 193),
    (interface(gsoMaxSize=524280), "interface.gso_max_size", 524280),
    (interface(groMaxSize=1), "interface.gro_max_size", 1),
    (interface(gsoIPv4MaxSize=65536), "interface.gso_ipv4_max_size", 65536),
    (interface(groIPv4MaxSize=65536), "interface.gro_ipv4_max_size", 65536),
    (interface(disableEbpfPrograms=True), "interface.disable_ebpf_programs", True),
    (interface(forwarding=False), "interface.forwarding", False),
    (interface(arpIgnore=8), "interface.arp_ignore", 8),
    (interface(arpAnnounce=0), "interface.arp_announce", 0),
    (interface(vrf={"name": "red"}), "interface.vrf.effective_table", 1596),
    (interface(vrf={"name": "red", "table": 2**32 - 1}), "interface.vrf.effective_table", 2**32 - 1),
    (interface(subInterface={"type": "macvlan"}), "interface.sub_interface.type", "macvlan"),
    (interface(subInterface={"type": "ipvlan", "mode": "l3s"}), "interface.sub_interface.mode", "l3s"),
    (interface(subInterface={"type": "vlan", "vlanID": 4094}), "interface.sub_interface.vlan_id", 4094),
    (route(destination="10.99.1.2/16"), "routes.0.destination", "10.99.0.0/16"),
    (route(destination="0.0.0.0/0"), "routes.0.destination", "0.0.0.0/0"),
    (route(destination="FD99::5/64", gateway="FD77:0::1"), "routes.0.gateway", "fd77::1"),
    (route(destination="fd99::/64", gateway="fd77::1", scope=253), "routes.0.scope", 253),
    (route(gateway=None, scope=253), "routes.0.gateway", None),
    (route(table=0), "routes.0.table", 0),
    (route(table=2**32 - 1), "routes.0.table", 2**32 - 1),
    (route(table=253), "routes.0.table", 253),
    (interface(vrf={"name": "red", "table": 9}) | route(table=9), "routes.0.table", 9),
    ({"routes": route()["routes"] * 3}, "routes", taken(route()).routes),
    ({"rules": [{}]}, "rules.0.table", 0),
    ({"rules": [{"priority": 32767, "source": "10.0.0.5/8"}]}, "rules.0.source", "10.0.0.0/8"),
    ({"rules": [{"table": 255}]}, "rules.0.table", 255),
    (
        {"neighbors": [{"destination": "FD00::1", "hardwareAddr": "00-00-00-00-00-00-00-01"}]},
        "neighbors.0.hardware_addr",
        "00:00:00:00:00:00:00:01",
    ),
    ({"ethtool": {"features": {"tso": False}}}, "ethtool.features", {"tso": False}),
    (
        {"ethtool": {"privateFlags": {"link down on close": True}}},
        "ethtool.private_flags",
        {"link down on close": True},
    ),
    ({"profile": ""}, "profile", ""),
    ({"interface": None, "routes": None}, "routes", ()),
    ("", "routes", ()),
    (b'{"interface": {"mtu": 1500}}', "interface.mtu", 1500),
]


@pytest.mark.parametrize(("document", "path", "value"), TAKEN, ids=[f"{i}-{row[1]}" for i, row in enumerate(TAKEN)])
def test_taken_in_canonical_form(document: Any, path: str, value: Any) -> None:
    """Any valid spelling is taken and made canonical; exact repeats collapse."""
    found: Any = taken(document)
    for part in path.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    assert found == value


def test_every_field_has_a_rule_tested_here() -> None:
    """No field of the schema is without a refused and a taken document in these tables."""
    parts: dict[str, type[BaseModel]] = {
        "": config.NetworkConfig,
        "interface": config.Interface,
        "interface.vrf": config.Vrf,
        "interface.subInterface": config.SubInterface,
        "routes[0]": config.Route,
        "rules[0]": config.Rule,
        "neighbors[0]": config.Neighbor,
        "ethtool": config.Ethtool,
    }
    paths = {
        f"{where}.{info.alias or name}".removeprefix(".")
        for where, part in parts.items()
        for name, info in part.model_fields.items()
    }
    tested = [row[1] for row in REFUSED]
    assert [path for path in sorted(paths) if not any(row.startswith(path) for row in tested)] == []


def test_all_problems_at_once_in_the_order_of_the_schema() -> None:
    """Every problem of a document is named in one go, field rules and rules between fields alike."""
    document = {
        "routes": [{"destination": "10.0.0.0/8"}, {"destination": "fd00::/8", "gateway": "10.0.0.1", "table": 255}],
        "interface": {"mtu": 10, "name": "net/1", "dhcp": False, "addresses": ["10.77.0.5", "10.0.0.1/24"], "x": 1},
        "neighbors": [{"destination": "10.0.0.1"}],
        "oops": {},
    }
    assert [error.path for error in errors_of(document)] == [
        "oops",
        "interface.x",
        "interface.name",
        "interface.addresses[0]",
        "interface.mtu",
        "routes[0].gateway",
        "routes[1].gateway",
        "routes[1].table",
        "neighbors[0].hardwareAddr",
    ]


def test_dhcp_with_addresses_names_dhcp() -> None:
    """DHCP together with addresses is refused at dhcp, once."""
    (error,) = errors_of(interface(dhcp=True, addresses=["10.0.0.1/24"]))
    assert error.path == "interface.dhcp"


def test_duplicate_members_of_a_text_are_refused() -> None:
    """A member that a JSON text gives twice is refused by name."""
    (error,) = errors_of('{"interface": {"mtu": 1400, "mtu": 1500}}')
    assert (error.path, error.message) == ("interface.mtu", "must be given once")


def test_a_value_is_shown_shortened_and_escaped() -> None:
    """Messages repeat a refused value as JSON, at most 64 characters of it."""
    (error,) = errors_of(interface(name="a\n" + "b" * 500))
    assert error.value.startswith('"a\\nbbb')
    assert len(error.value) < 80
