"""Every refusal of a configuration: what brings it about, and where users of the reference read of it.

``test_every_refusal.py`` demands that this is all that the code can say, that each example is refused with these words,
and that the migration page's table has a row for each that the reference accepts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nri_dranet.claims.plan import DeviceLimits
from nri_dranet.dra.plan_model import NodeFacts
from nri_dranet.netlink.model import Address
from tests.unit.dra.refusal_examples import (
    children,
    claim,
    document,
    interface,
    nested,
    net,
    old_share,
    route,
    unknown_device,
    unread_interface,
)
from tests.unit.dra.test_planner import link

if TYPE_CHECKING:
    from collections.abc import Callable

BOTH = "both"
"""The reference refuses it too."""

NODE = "node"
"""It is about the device or the node, not about what a claim can say."""


@dataclass(frozen=True)
class Refusal:
    """One refusal.

    Attributes:
        module: Where the code says it.
        words: What it says; … stands for what differs.
        example: Gives what is said of an example.
        rows: The rows of the migration page, by a part of their first column; or ``BOTH``, or ``NODE``.
    """

    module: str
    words: str
    example: Callable[[], list[str]]
    rows: tuple[str, ...]


ROUTE = {"destination": "10.9.0.0/16", "gateway": "10.0.0.1"}
TWICE = {"interface": {"addresses": [f"10.0.{i // 250}.{i % 250 + 1}/16" for i in range(65)]}}
VALUES, CONFIG, CHECKS = "api/values.py", "api/config.py", "api/checks.py"
DOCUMENT, RESOLVE = "api/document.py", "api/resolve.py"
PLANNER, INTERFACE, ROUTES = "dra/planner.py", "dra/plan_interface.py", "dra/plan_routes.py"
LEASE, ETHTOOL, COLLISIONS = "dra/plan_lease.py", "dra/plan_ethtool.py", "dra/plan_collisions.py"

NAMES = "`interface.name` or `vrf.name` `lo`"
NO_HOST = "An address that is unspecified"
NO_PEER = "A gateway, route source or neighbour"
MAC = "`interface.hardwareAddr` of 8 bytes"
MTU = "`interface.mtu` above 65535"
GSO = "`gsoMaxSize`"
CHILD = "`subInterface` on a device"
FEATURE = "An ethtool feature"
TABLES = "A VRF table that routes"
TWO = "Two devices of a pod with one name"
REACH = "`routes[].gateway` that is not on the link"
DHCP = "`interface.dhcp: true` for a device"
MANY = "More than 64 addresses"
WIDE = "`routes[].table` or `rules[].table` above"
ZERO = "`rules[].priority: 0`"
NO_INTERFACE = "Network fields for a device without interface"
SPELLING = "A member that is given twice"
VRF_NAME = "`vrf.name` that is no interface name"

REFUSALS = tuple(
    Refusal(module, words, example, tuple(rows))
    for module, words, example, *rows in (
        # values
        (
            VALUES,
            (
                "must be a name that the kernel takes: 1 to … printable ASCII characters without '/', ':', '%' and "
                "spaces; …"
            ),
            interface(name="a/b"),
            "with letters or digits beyond ASCII",
            VRF_NAME,
        ),
        (VALUES, "must be another name: …", interface(name="lo"), NAMES),
        (
            VALUES,
            "must be a name of 1 to 31 printable ASCII characters",
            document({"ethtool": {"features": {"ü": True}}}),
            FEATURE,
        ),
        (VALUES, "must be a hardware address such as 02:00:5e:10:00:01, of … bytes", interface(hardwareAddr="x"), BOTH),
        (
            VALUES,
            "must be a hardware address of … bytes, has …",
            interface(hardwareAddr="02:00:00:00:00:00:00:01"),
            MAC,
        ),
        (
            VALUES,
            "must be a unicast address: the lowest bit of its first byte must be 0",
            interface(hardwareAddr="01:00:00:00:00:01"),
            MAC,
        ),
        (VALUES, "must not be zero", interface(hardwareAddr="00:00:00:00:00:00"), MAC),
        (VALUES, "must be an IPv4 or IPv6 address", route(destination="10.0.0.0/8", gateway="10.0.0.01"), BOTH),
        (VALUES, "must be an address without a zone", route(destination="fd00::/64", gateway="fe80::1%eth0"), BOTH),
        (VALUES, "must be written as the IPv4 address …", interface(addresses=["::ffff:10.0.0.5/120"]), NO_HOST),
        (
            VALUES,
            "must be an address with prefix length, such as 10.0.0.5/24 or fd00::5/64",
            interface(addresses=["10.0.0.5"]),
            BOTH,
        ),
        (VALUES, "must have a prefix length of at most …", interface(addresses=["10.0.0.5/33"]), BOTH),
        (
            VALUES,
            "must have a prefix length of at least 1: with 0 every address would be on this network",
            interface(addresses=["10.0.0.5/0"]),
            NO_HOST,
        ),
        (VALUES, "must not be the broadcast address of …", interface(addresses=["10.0.0.255/24"]), NO_HOST),
        (VALUES, "must not be the unspecified address", interface(addresses=["::/64"]), NO_HOST, NO_PEER),
        (VALUES, "must not be a multicast address", interface(addresses=["224.0.0.1/24"]), NO_HOST, NO_PEER),
        (VALUES, "must not be a loopback address", interface(addresses=["127.0.0.1/8"]), NO_HOST, NO_PEER),
        (
            VALUES,
            "must not be the broadcast address",
            route(destination="10.0.0.0/8", gateway="255.255.255.255"),
            NO_PEER,
        ),
        # config
        (CONFIG, "must be … to ……", interface(mtu=70000), MTU, GSO, WIDE, ZERO),
        (CONFIG, "must be one of …", interface(arpIgnore=4), BOTH),
        (
            CONFIG,
            "must be left out: profiles are not supported yet, they need a provider and those come later",
            document({"profile": "x"}),
            "`profile` with any text",
        ),
        (
            CONFIG,
            "must not be 255: only the kernel writes the local table, which has the pod's own addresses",
            route(destination="10.0.0.0/8", scope=253, table=255),
            "`routes[].table: 255`",
        ),
        (
            CONFIG,
            "must not be 253, 254 or 255, which are the kernel's tables default, main and local",
            interface(vrf={"name": "red", "table": 254}),
            BOTH,
        ),
        # checks
        (CHECKS, "must not be set together with addresses", interface(dhcp=True, addresses=["10.0.0.5/24"]), BOTH),
        (
            CHECKS,
            "must not repeat … with another prefix length: an IPv6 address is there only once",
            interface(addresses=["fd00::5/64", "fd00::5/128"]),
            "One IPv6 address with two prefix lengths",
        ),
        (CHECKS, "must be at least … with an IPv6 address", interface(addresses=["fd00::5/64"], mtu=1000), MTU),
        (CHECKS, "must be one of …", interface(subInterface={"type": "ipvlan", "mode": "bridge"}), CHILD),
        (CHECKS, "must be left out", interface(subInterface={"type": "vlan", "mode": "l2", "vlanID": 5}), CHILD),
        (CHECKS, "must be given for type vlan", interface(subInterface={"type": "vlan"}), CHILD),
        (CHECKS, "must be left out for type …", interface(subInterface={"type": "ipvlan", "vlanID": 5}), CHILD),
        (CHECKS, "must differ from the interface's own name", interface(name="red", vrf={"name": "red"}), VRF_NAME),
        (
            CHECKS,
            "must be left out with a VRF: what comes in through its interfaces looks into its table anyway",
            document({"interface": {"vrf": {"name": "red"}}, "rules": [{"table": 5}]}),
            BOTH,
        ),
        (
            CHECKS,
            "must be an IPv… address, as the route's destination is",
            route(destination="10.0.0.0/8", gateway="fd00::1"),
            BOTH,
        ),
        (
            CHECKS,
            "must be given, or the scope be 253: the destination is on the link itself",
            route(destination="10.0.0.0/8"),
            BOTH,
        ),
        (
            CHECKS,
            "must be left out with scope 253: the destination is on the link itself",
            route(destination="10.0.0.0/8", gateway="10.0.0.1", scope=253),
            "`routes[].gateway` of IPv4 with scope 253",
        ),
        (
            CHECKS,
            "must be left out or … with a VRF, whose table its routes are in",
            document({"interface": {"vrf": {"name": "red"}}, "routes": [{**ROUTE, "table": 7}]}),
            "`routes[].table` other than 0",
        ),
        (
            CHECKS,
            "must not repeat the destination of routes[…] in table …: one route of a table leads there",
            document({"routes": [ROUTE, {**ROUTE, "gateway": "10.0.0.2"}]}),
            "Two different routes to one destination",
        ),
        (
            CHECKS,
            "must be an IPv… network, as the rule's source is",
            document({"rules": [{"source": "10.0.0.0/8", "destination": "fd00::/64"}]}),
            BOTH,
        ),
        (
            CHECKS,
            "must not repeat neighbors[…], which gives it the hardware address …",
            document(
                {"neighbors": [{"destination": "10.0.0.9", "hardwareAddr": f"02:00:00:00:00:0{i}"} for i in (1, 2)]}
            ),
            "One neighbour with two hardware addresses",
        ),
        # document
        (DOCUMENT, "must be an object", document([1]), BOTH),
        (DOCUMENT, "must have at most … bytes", document({"profile": "x" * 20000}), BOTH),
        (DOCUMENT, "must have at most … levels of nesting", document({"interface": nested(40)}), BOTH),
        (DOCUMENT, "must be JSON: … in line …, column …", document("{"), BOTH),
        (DOCUMENT, "must have at most … bytes, has …", document(" " * 20000), BOTH),
        (DOCUMENT, "must be UTF-8 text: …", document(b"\xff"), BOTH),
        (DOCUMENT, "must have at most … entries, has …", document({"interface": {"addresses": [""] * 1100}}), MANY),
        (DOCUMENT, "must be given once", document('{"profile": "", "profile": ""}'), SPELLING),
        (DOCUMENT, "must have text as the name of a field", document({1: 2}), BOTH),
        (DOCUMENT, "must have valid Unicode as the name of a field", document({"\ud800": 2}), BOTH),
        (
            DOCUMENT,
            "must be a number that fits a field, not infinite, NaN or beyond all bounds",
            interface(mtu=math.inf),
            BOTH,
        ),
        (DOCUMENT, "must be valid Unicode", interface(name="\ud800"), BOTH),
        (DOCUMENT, "must be JSON: text, a number, true, false, a list or an object", interface(name=object()), BOTH),
        # resolve
        (RESOLVE, "must be text", interface(name=1), BOTH),
        (RESOLVE, "must be a whole number", interface(mtu=1500.0), SPELLING),
        (RESOLVE, "must be true or false", interface(forwarding=1), BOTH),
        (RESOLVE, "must be a list", interface(addresses="10.0.0.5/24"), BOTH),
        (RESOLVE, "must be an object", document({"interface": []}), BOTH),
        (RESOLVE, "must be given", document({"neighbors": [{"destination": "10.0.0.9"}]}), BOTH),
        (RESOLVE, "is not a known field", document({"interface": {"vrf": {"name": "red", "zzzzzzzzzzzzzz": 1}}}), BOTH),
        (RESOLVE, "must have at most … entries, has …", document(TWICE), MANY),
        (RESOLVE, "must be …", interface(subInterface={"type": "bridge"}), CHILD),
        (RESOLVE, "is not a known field; did you mean …?", interface(MTU=1), BOTH),
        (RESOLVE, "is not a known field; known are …", interface(qqqqqqqqqq=1), BOTH),
        # planner
        (PLANNER, "has a network interface, but that could not be read on the host", unread_interface, NODE),
        (PLANNER, "is not on this node, or not any more", unknown_device, NODE),
        (PLANNER, "cannot be given to a pod: …", claim(None, refused="it is the uplink"), NODE),
        (
            PLANNER,
            "cannot be given to a pod: the kernel does not let it leave the host's network namespace",
            claim(None, link=link("eth1", netns_immutable=True)),
            NODE,
        ),
        (PLANNER, "was allocated as a share (…), but is not shared on this node any more", old_share, NODE),
        (
            PLANNER,
            "has no interface on the host now: another pod may still have it",
            claim(None, link=None, rdma="mlx5_0", published={"attributes": {"dra.net/ifName": {"string": "x"}}}),
            NODE,
        ),
        (PLANNER, "has neither a network interface nor an RDMA device on the host now", claim(None, link=None), NODE),
        (
            PLANNER,
            "must be left out: the device has no network interface, it is for RDMA alone",
            claim({"interface": {"forwarding": False}}, link=None, rdma="efa_0"),
            NO_INTERFACE,
        ),
        # interface
        (
            INTERFACE,
            "must be left out: the device is not shared, it moves whole",
            claim({"interface": {"subInterface": {"type": "macvlan"}}}),
            CHILD,
        ),
        (
            INTERFACE,
            "must be one of …",
            claim(
                {"interface": {"subInterface": {"type": "vlan", "vlanID": 5}}},
                shared=True,
                no_kinds=frozenset({"vlan"}),
            ),
            CHILD,
        ),
        (
            INTERFACE,
            "cannot be made",
            claim(None, shared=True, no_kinds=frozenset({"macvlan", "ipvlan", "vlan"})),
            CHILD,
        ),
        (
            INTERFACE,
            "is shared but down on the host, so that the … would have no link: set it up (ip link set … up)",
            claim(None, shared=True, link=link("eth1", flags=0)),
            NODE,
        ),
        (
            INTERFACE,
            "must be left out: a sub-interface takes its offloads from the shared device",
            claim({"ethtool": {"features": {"gro": True}}}, shared=True),
            CHILD,
        ),
        (INTERFACE, "must be given, as the host's name … cannot be kept in a pod: …", claim(None, name="eth0"), NAMES),
        (
            INTERFACE,
            "must be given as at least … for …, which is IPv6: the device has …",
            claim(net("fd00::5/64"), link=link("eth1", mtu=1000)),
            MTU,
        ),
        (
            INTERFACE,
            "must be at least … for …, which is IPv6",
            claim(
                {
                    "interface": {"mtu": 1000, "addresses": ["10.0.0.5/24"]},
                    "neighbors": [{"destination": "fd00::9", "hardwareAddr": "02:00:00:00:00:09"}],
                }
            ),
            MTU,
        ),
        (
            INTERFACE,
            "must be at least …: the device's own IPv6 addresses come along",
            claim(
                {"interface": {"mtu": 1000}},
                host={"addresses": (Address(family=10, address="fd00::5", prefix_length=64),)},
            ),
            MTU,
        ),
        (
            INTERFACE,
            "must be … to …, the limits of the device",
            claim({"interface": {"mtu": 9500}}, link=link("eth1", max_mtu=9000)),
            MTU,
        ),
        (
            INTERFACE,
            "cannot be set: the MTU of the physical function, which bounds it, is not known now",
            claim({"interface": {"mtu": 1400}}, limits=DeviceLimits(virtual_function=True)),
            NODE,
        ),
        (
            INTERFACE,
            "must be at most …, the MTU of the device's physical function",
            claim({"interface": {"mtu": 1600}}, limits=DeviceLimits(virtual_function=True, pf_mtu=1500)),
            BOTH,
        ),
        (
            INTERFACE,
            "must be at most …, the MTU of …, which … sits on",
            claim(
                {"interface": {"mtu": 1600}},
                link=link("eth1", kind="vlan"),
                limits=DeviceLimits(lower=link("eth5", mtu=1500)),
            ),
            MTU,
        ),
        (
            INTERFACE,
            "must be at most …, the MTU of the shared device",
            claim({"interface": {"mtu": 1600}}, shared=True),
            MTU,
        ),
        (
            INTERFACE,
            "must be at most …, the limit of the device",
            claim({"interface": {"gsoMaxSize": 70000}}, link=link("eth1", tso_max_size=65536)),
            GSO,
        ),
        (
            INTERFACE,
            "must be at least …, the least of this kernel",
            claim({"interface": {"gsoMaxSize": 320}}, on=NodeFacts(least_gso=321)),
            GSO,
        ),
        (
            INTERFACE,
            "must be left out: an ipvlan child has the address of its parent",
            claim(
                {"interface": {"hardwareAddr": "02:00:00:00:00:09", "subInterface": {"type": "ipvlan"}}}, shared=True
            ),
            MAC,
        ),
        (
            INTERFACE,
            "must be left out: a macvlan in mode passthru has the address of its parent",
            claim(
                {
                    "interface": {
                        "hardwareAddr": "02:00:00:00:00:09",
                        "subInterface": {"type": "macvlan", "mode": "passthru"},
                    }
                },
                shared=True,
            ),
            MAC,
        ),
        (
            INTERFACE,
            "must be left out: the device is neither Ethernet nor InfiniBand",
            claim({"interface": {"hardwareAddr": "02:00:00:00:00:09"}}, link=link("eth1", type=768)),
            MAC,
        ),
        (
            INTERFACE,
            "must have … bytes: the device is …",
            claim({"interface": {"hardwareAddr": "02:00:00:00:00:09"}}, link=link("eth1", type=32)),
            MAC,
        ),
        (
            INTERFACE,
            "must begin with …: only the GUID can be changed",
            claim(
                {"interface": {"hardwareAddr": ":".join(["01"] * 20)}},
                link=link("eth1", type=32, address=":".join(["02"] * 20)),
            ),
            MAC,
        ),
        (
            INTERFACE,
            "must have … bytes, as the device's own hardware address",
            claim({"neighbors": [{"destination": "10.0.0.9", "hardwareAddr": ":".join(["02"] * 20)}]}),
            "One neighbour with two hardware addresses",
        ),
        # lease
        (
            LEASE,
            "must be left out: the device is not Ethernet",
            claim({"interface": {"dhcp": True}}, link=link("eth1", type=32)),
            DHCP,
        ),
        (
            LEASE,
            "must be left out: a lease cannot be asked for in VLAN … before the sub-interface is there",
            claim({"interface": {"dhcp": True, "subInterface": {"type": "vlan", "vlanID": 5}}}, shared=True),
            DHCP,
        ),
        (
            LEASE,
            "must be left out: nobody answers ARP for an ipvlan in mode …, as a DHCP server expects",
            claim({"interface": {"dhcp": True, "subInterface": {"type": "ipvlan", "mode": "l3"}}}, shared=True),
            DHCP,
        ),
        # routes
        (
            ROUTES,
            (
                "must not be the network of the interface's own address …, to which the kernel makes a route; give the "
                "route another table"
            ),
            claim({**net(), "routes": [{"destination": "10.0.0.0/24", "gateway": "10.0.0.1"}]}),
            "A route through a gateway to the network",
        ),
        (
            ROUTES,
            "must be an address of the interface, which has …",
            claim({**net(), "routes": [{**ROUTE, "source": "10.0.0.9"}]}),
            REACH,
        ),
        (
            ROUTES,
            "must not be an address of the interface itself",
            claim({**net("fd00::5/64"), "routes": [{"destination": "fd09::/64", "gateway": "fd00::5"}]}),
            REACH,
        ),
        (
            ROUTES,
            (
                "cannot be reached through the interface: give it an address whose network has the gateway, or add a "
                "route to …/… with scope 253"
            ),
            claim({**net(), "routes": [{**ROUTE, "gateway": "10.1.0.1"}]}),
            REACH,
        ),
        # ethtool
        (
            ETHTOOL,
            "cannot be set: the device did not tell which features it has",
            claim({"ethtool": {"features": {"gro": True}}}),
            FEATURE,
        ),
        (
            ETHTOOL,
            "is no feature that ethtool or the kernel knows; the device can change …, and aliases are …",
            claim({"ethtool": {"features": {"grow": True}}}, host={"features": {"rx-gro": True}}),
            FEATURE,
        ),
        (
            ETHTOOL,
            (
                "is not known to be so on this device, which is still in another pod and can change …; it can be told "
                "once that pod has ended"
            ),
            claim({"ethtool": {"features": {"tso": True}}}, host={"features": {"rx-gro": True}}),
            NODE,
        ),
        (
            ETHTOOL,
            "cannot be switched … on this device, which can change …",
            claim(
                {"ethtool": {"features": {"tso": True}}},
                host={"features": {"rx-gro": True}},
                limits=DeviceLimits(fixed_features={}),
            ),
            FEATURE,
        ),
        (
            ETHTOOL,
            "must be as …, which is the same feature",
            claim(
                {"ethtool": {"features": {"tx": True, "tx-checksumming": False}}},
                host={"features": {"tx-checksum-ip-generic": True}},
            ),
            FEATURE,
        ),
        (
            ETHTOOL,
            "must be one of …",
            claim({"ethtool": {"privateFlags": {"x": True}}}, host={"private_flags": {"y": True}}),
            FEATURE,
        ),
        (ETHTOOL, "must be left out", claim({"ethtool": {"privateFlags": {"x": True}}}), FEATURE),
        # collisions
        (
            COLLISIONS,
            (
                "must differ from the name of … in the same pod: leave it out, or name each device by a request of "
                "its own"
            ),
            claim({"interface": {"name": "net1"}}, {"interface": {"name": "net1"}}),
            TWO,
        ),
        (
            COLLISIONS,
            "must differ from the VRF of … in the same pod",
            claim({"interface": {"vrf": {"name": "red"}}}, {"interface": {"name": "red"}}),
            TWO,
        ),
        (
            COLLISIONS,
            "must differ from the name of … in the same pod",
            claim({"interface": {"name": "red"}}, {"interface": {"vrf": {"name": "red"}}}),
            TWO,
        ),
        (
            COLLISIONS,
            "must be …, which the same VRF of … has",
            claim(
                {"interface": {"vrf": {"name": "red", "table": 5}}}, {"interface": {"vrf": {"name": "red", "table": 6}}}
            ),
            TABLES,
        ),
        (
            COLLISIONS,
            "must differ from the table of VRF … of … in the same pod; give one a table",
            claim(
                {"interface": {"vrf": {"name": "red", "table": 5}}}, {"interface": {"vrf": {"name": "blu", "table": 5}}}
            ),
            TABLES,
        ),
        (
            COLLISIONS,
            "must not be a table that … in the same pod uses",
            claim({"rules": [{"table": 5}]}, {"interface": {"vrf": {"name": "red", "table": 5}}}),
            TABLES,
        ),
        (
            COLLISIONS,
            "must not use table …, which is VRF … of … in the same pod",
            claim({"interface": {"vrf": {"name": "red", "table": 5}}}, {"rules": [{"table": 5}]}),
            TABLES,
        ),
        (COLLISIONS, "must differ from that of … in the same pod", claim(net(), net()), TWO),
        (
            COLLISIONS,
            ("must not lead to where a route of … in table … of the same pod leads; give one of them another table"),
            claim({**net(), "routes": [ROUTE]}, {**net("10.1.0.5/24"), "routes": [{**ROUTE, "gateway": "10.1.0.1"}]}),
            "Two different routes to one destination",
        ),
        (
            COLLISIONS,
            "must differ from that of … on the same device",
            children({"type": "vlan", "vlanID": 5}, {"type": "vlan", "vlanID": 5}),
            CHILD,
        ),
        (
            COLLISIONS,
            "must not be mixed with the … of … on the same device",
            children({"type": "macvlan"}, {"type": "ipvlan"}),
            CHILD,
        ),
        (
            COLLISIONS,
            "must be …, as that of …: all ipvlans of a device have one mode",
            children({"type": "ipvlan", "mode": "l2"}, {"type": "ipvlan", "mode": "l3"}),
            CHILD,
        ),
        (
            COLLISIONS,
            "cannot be beside the macvlan of … in mode …: one in mode passthru has its device alone",
            children({"type": "macvlan"}, {"type": "macvlan", "mode": "passthru"}),
            CHILD,
        ),
    )
)
