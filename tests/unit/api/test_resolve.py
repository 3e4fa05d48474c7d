"""Merging of configurations: later wins, field by field; the result is validated again; every value has an origin."""

from __future__ import annotations

from typing import Any

import pytest

from nri_dranet.api.errors import ConfigError
from nri_dranet.api.resolve import ConfigSource, Resolved, given, resolve


def merged(*documents: Any) -> Resolved:
    """Merge documents of the origins class, claim, request, in this order."""
    return resolve(
        [ConfigSource(origin, doc) for origin, doc in zip(("class", "claim", "request"), documents, strict=False)]
    )


def refused(*documents: Any) -> list[str]:
    """Return the problems of a merge."""
    with pytest.raises(ConfigError) as caught:
        merged(*documents)
    return [str(error) for error in caught.value.errors]


def test_no_source_is_the_default() -> None:
    """Without configuration everything has its default and nothing has an origin."""
    assert merged() == Resolved()


def test_fields_of_both_apply() -> None:
    """What only one of two documents gives applies, whichever it is."""
    config = merged({"interface": {"mtu": 1400}}, {"interface": {"name": "net1"}}).config
    assert (config.interface.mtu, config.interface.name) == (1400, "net1")


def test_the_later_value_wins_with_its_origin() -> None:
    """The same field in more than one document has the last value, and the origin tells whose it is."""
    found = merged(
        {"interface": {"mtu": 1400, "arpIgnore": 1}}, {"interface": {"mtu": 1350}}, {"interface": {"mtu": 1300}}
    )
    assert found.config.interface.mtu == 1300
    assert found.origins == {"interface.mtu": "request", "interface.arpIgnore": "class"}


def test_explicit_false_zero_and_empty_win() -> None:
    """A later false, 0, empty text or empty list overrides, as any other value."""
    found = merged(
        {
            "interface": {
                "forwarding": True,
                "disableEbpfPrograms": True,
                "arpAnnounce": 2,
                "name": "net1",
                "addresses": ["10.0.0.1/24"],
            },
            "ethtool": {"features": {"tso": True}},
        },
        {
            "interface": {
                "forwarding": False,
                "disableEbpfPrograms": False,
                "arpAnnounce": 0,
                "name": "",
                "addresses": [],
            },
            "ethtool": {"features": {"tso": False}},
        },
    )
    interface = found.config.interface
    assert interface.forwarding is False
    assert interface.disable_ebpf_programs is False
    assert interface.arp_announce == 0
    assert interface.name == ""
    assert interface.addresses == ()
    assert found.config.ethtool is not None
    assert found.config.ethtool.features == {"tso": False}
    assert set(found.origins.values()) == {"claim"}


def test_null_does_not_override() -> None:
    """A member that is null is absent and overrides nothing."""
    assert merged({"interface": {"mtu": 1400}}, {"interface": {"mtu": None}}).config.interface.mtu == 1400


def test_lists_are_replaced_whole() -> None:
    """Addresses, routes, rules and neighbours of a later document replace those of an earlier one."""
    found = merged(
        {"interface": {"addresses": ["10.0.0.1/24"]}, "routes": [{"destination": "10.9.0.0/16", "scope": 253}]},
        {"routes": [{"destination": "10.8.0.0/16", "scope": 253}]},
    )
    assert [route.destination for route in found.config.routes] == ["10.8.0.0/16"]
    assert found.config.interface.addresses == ("10.0.0.1/24",)
    assert found.origin(("routes", 0, "destination")) == "claim"
    assert found.origin(("interface", "addresses", 3)) == "class"
    assert found.origin(("interface", "mtu")) == ""


def test_maps_of_ethtool_are_merged_by_name() -> None:
    """Features and private flags of both documents apply; the later one wins for the same name."""
    found = merged(
        {"ethtool": {"features": {"tso": True, "gro": True}, "privateFlags": {"a": True}}},
        {"ethtool": {"features": {"gro": False}}},
    )
    assert found.config.ethtool is not None
    assert found.config.ethtool.features == {"tso": True, "gro": False}
    assert found.config.ethtool.private_flags == {"a": True}
    assert found.origins["ethtool.features.gro"] == "claim"


def test_vrf_is_merged_by_field_and_sub_interface_is_not() -> None:
    """A claim can name a VRF in the table of its class; a child interface is asked for as a whole."""
    found = merged(
        {"interface": {"vrf": {"name": "red", "table": 100}, "subInterface": {"type": "macvlan", "mode": "vepa"}}},
        {"interface": {"vrf": {"name": "blue"}, "subInterface": {"type": "vlan", "vlanID": 5}}},
    )
    interface = found.config.interface
    assert interface.vrf is not None
    assert (interface.vrf.name, interface.vrf.table) == ("blue", 100)
    assert interface.sub_interface is not None
    assert (interface.sub_interface.mode, interface.sub_interface.vlan_id) == (None, 5)


def test_errors_of_all_documents_come_together() -> None:
    """Every document is validated by itself and its problems are named with its origin."""
    assert refused({"interface": {"mtu": 1}}, {"x": 1}, {"routes": [{"destination": "10.0.0.0/8"}]}) == [
        "interface.mtu: 1: must be 68 to 65535 (class)",
        "x: 1: is not a known field; known are profile, interface, routes, rules, neighbors, ethtool (claim)",
        "routes[0].gateway: must be given, or the scope be 253: the destination is on the link itself (request)",
    ]


def test_the_merged_result_is_validated_with_both_origins() -> None:
    """What is right in each document and wrong together is refused, and both sides are named."""
    assert refused({"interface": {"vrf": {"name": "red"}}}, {"rules": [{"table": 5}]}) == [
        (
            "rules: must be left out with a VRF: what comes in through its interfaces looks into its table anyway "
            "(claim; interface.vrf.name from class)"
        )
    ]
    assert refused({"interface": {"mtu": 1000}}, {"interface": {"addresses": ["fd00::1/64"]}}) == [
        "interface.mtu: 1000: must be at least 1280 with an IPv6 address (class; interface.addresses from claim)"
    ]


def test_given_tells_what_documents_gave() -> None:
    """Only values that were given are gone through, lists as one value."""
    config = merged(
        {"interface": {"mtu": 1400, "addresses": ["10.0.0.1/24"]}, "ethtool": {"features": {"a": True}}}
    ).config
    assert dict(given(config)) == {
        ("interface", "mtu"): 1400,
        ("interface", "addresses"): ("10.0.0.1/24",),
        ("ethtool", "features", "a"): True,
    }


def test_a_source_is_not_changed() -> None:
    """Merging never writes into the documents that it is given."""
    documents = [{"ethtool": {"features": {"a": True}}}, {"ethtool": {"features": {"b": True}}}]
    copies = [{"ethtool": {"features": {"a": True}}}, {"ethtool": {"features": {"b": True}}}]
    merged(*documents)
    assert documents == copies


def test_what_is_too_much_only_together_is_told_of_both() -> None:
    """Each document has fewer features than a configuration may have."""
    documents = [{"ethtool": {"features": {f"f{number}-{i}": True for i in range(100)}}} for number in range(2)]
    with pytest.raises(ConfigError, match="must have at most 128 entries, has 200"):
        resolve([ConfigSource(f"source {number}", document) for number, document in enumerate(documents)])
