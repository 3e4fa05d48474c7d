"""One case for each field that a claim can set: a document, and what the pod has then.

``tests/node/attach/test_every_field.py`` runs those that any kernel can do, ``tests/vm/test_every_field.py`` the
others, and ``tests/unit/api/test_every_field.py`` demands that no field of the schema is without one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nri_dranet.claims.facts import Phase
from nri_dranet.netlink.ethtool import Ethtool
from nri_dranet.netlink.sockets import RtnlSocket

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.node.attach.world import World


@dataclass(frozen=True)
class Case:
    """A configuration of the host's n0 and what shall be seen in the pod.

    Attributes:
        fields: The fields of the schema that ``look`` looks at; those of lists as ``routes[].table``.
        document: The configuration.
        look: Asserts what the pod has.
        prepare: Brings the host into the state from which the configuration makes a difference.
        shared: The device is shared.
        guest: Not every kernel can do it.
    """

    fields: tuple[str, ...]
    document: dict[str, Any]
    look: Callable[[World], None]
    prepare: Callable[[World], None] = field(default=lambda _: None)
    shared: bool = False
    guest: bool = False

    def __str__(self) -> str:
        return " ".join(self.fields)


def show(case: Case, world: World) -> None:
    """Attach, look, detach: the host is as before, and so is the pod's namespace.

    The host's device has addresses, routes and neighbours of its own, so that there is something to restore.
    """
    world.veth("n0", "10.71.0.2/24", "fd71::2/64")
    world.host("route", "add", "10.88.0.0/16", "via", "10.71.0.1", "dev", "n0", "metric", "7")
    world.host("neigh", "add", "10.71.0.3", "lladdr", "02:00:00:00:00:03", "dev", "n0", "nud", "permanent")
    case.prepare(world)
    before, empty = world.state(), world.pod_state()
    (plan,) = world.planned(case.document, shared=case.shared).devices
    (fact,) = world.attach(plan)
    assert fact.phase is Phase.ATTACHED
    case.look(world)
    (outcome,) = world.detach(plan)
    assert (outcome.home, outcome.problems) == (True, ())
    assert not world.changes(before)
    assert world.pod_state() == empty


def link(world: World, name: str = "net1") -> dict[str, Any]:
    """Return a link of the pod with all its details."""
    found: dict[str, Any] = json.loads(world.pod("-d", "-j", "link", "show", name))[0]
    return found


def _is(**wanted: Any) -> Callable[[World], None]:
    def look(world: World) -> None:
        found = link(world)
        assert {name: found.get(name) for name in wanted} == wanted

    return look


def _size(**wanted: int) -> Callable[[World], None]:
    """Look by the driver's own codec: older versions of ip do not show it."""

    def look(world: World) -> None:
        with RtnlSocket(world.pod_netns) as pod:
            found = pod.link(name="net1")
        assert {name: getattr(found, name) for name in wanted} == wanted

    return look


def _named(world: World) -> None:
    assert [each["ifname"] for each in json.loads(world.pod("-j", "link", "show"))] == ["lo", "net1"]
    assert "altnames" not in link(world)


def _kept_name(world: World) -> None:
    assert link(world, "n0")["ifname"] == "n0"


def _addressed(world: World) -> None:
    assert world.addresses_in_pod("net1") == ["10.77.0.5/24", "10.77.0.6/32", "fd77::5/64"]
    shown = json.loads(world.pod("-j", "addr", "show", "net1"))[0]["addr_info"]
    # Usable at once: no proof of uniqueness under way.
    assert not any(each.get("tentative") for each in shown if each["local"] == "fd77::5")
    assert next(each for each in shown if each["local"] == "10.77.0.5")["broadcast"] == "10.77.0.255"


def _sysctl(*names: str, value: str) -> Callable[[World], None]:
    def look(world: World) -> None:
        found = world.in_pod("cat", *(f"/proc/sys/net/{name.replace('IF', 'net1')}" for name in names)).split()
        assert found == [value] * len(names)

    return look


def _set(*names: str, value: str) -> Callable[[World], None]:
    def prepare(world: World) -> None:
        for name in names:
            world.in_host("sh", "-c", f"echo {value} > /proc/sys/net/{name.replace('IF', 'n0')}")

    return prepare


FORWARDING = ("ipv4/conf/IF/forwarding", "ipv6/conf/IF/forwarding")


def _routed(world: World) -> None:
    four = world.pod("-4", "route", "show", "table", "all", "dev", "net1")
    assert "10.90.0.0/16 via 10.77.0.1 src 10.77.0.6" in _plain(four)
    assert "10.91.0.0/16 scope link" in _plain(four)
    assert "10.92.0.0/16 via 10.77.0.1 table 100" in _plain(four)
    assert "default via 10.77.0.1 table 101" in _plain(four)
    six = _plain(world.pod("-6", "route", "show", "table", "all", "dev", "net1"))
    assert "fd90::/64 via fd77::1 src fd77::5 metric 1024 pref medium" in six
    # Configured addresses: nothing of what the host has of its own.
    assert "10.88.0.0/16" not in four


def _plain(text: str) -> str:
    return text.replace(" proto static", "").replace(" proto kernel", "")


def _ruled(world: World) -> None:
    rules = json.loads(world.pod("-j", "rule", "show"))
    mine = [rule for rule in rules if rule["table"] in {"100", "main"} and rule["priority"] != 32766]
    assert [(rule["priority"], _side(rule, "src"), _side(rule, "dst"), rule["table"]) for rule in mine] == [
        (500, "10.77.0.0/24", "10.90.0.0/16", "100"),
        (501, "10.78.0.0/24", "all", "main"),
    ]
    assert [rule["dst"] for rule in json.loads(world.pod("-6", "-j", "rule", "show")) if "dst" in rule] == ["fd90::"]


def _side(rule: dict[str, Any], name: str) -> str:
    return f"{rule[name]}/{rule[name + 'len']}" if f"{name}len" in rule else str(rule.get(name, "all"))


def _known(world: World) -> None:
    found = sorted(world.pod("neigh", "show", "dev", "net1", "nud", "permanent").splitlines())
    assert [line.strip() for line in found] == [
        "10.71.0.3 lladdr 02:00:00:00:00:03 PERMANENT",
        "10.77.0.9 lladdr 02:00:00:00:00:09 PERMANENT",
        "fd77::9 lladdr 02:00:00:00:00:0a PERMANENT",
    ]


def _switched(world: World) -> None:
    with Ethtool(world.pod_netns) as ethtool:
        found = ethtool.features(int(link(world)["ifindex"]))
    assert not found["rx-gro"].active
    assert not found["tx-tcp-segmentation"].active
    assert not found["tx-tcp6-segmentation"].active
    assert found["rx-gro-list"].active


def _program(world: World) -> None:
    world.in_host("tc", "qdisc", "add", "dev", "n0", "clsact")
    for side in ("ingress", "egress"):
        world.in_host("tc", "filter", "add", "dev", "n0", side, "bpf", "bytecode", "1,6 0 0 1,", "flowid", "1:1")


def _no_program(world: World) -> None:
    for side in ("ingress", "egress"):
        assert "bpf" not in world.in_pod("tc", "filter", "show", "dev", "net1", side)


def _child(kind: str, **data: Any) -> Callable[[World], None]:
    def look(world: World) -> None:
        info = link(world)["linkinfo"]
        assert info["info_kind"] == kind
        assert {name: info["info_data"][name] for name in data} == data
        assert json.loads(world.host("-j", "link", "show", "n0"))[0]["ifname"] == "n0"

    return look


def _in_vrf(name: str, table: int) -> Callable[[World], None]:
    def look(world: World) -> None:
        vrf = link(world, name)
        assert (vrf["linkinfo"]["info_kind"], vrf["linkinfo"]["info_data"]["table"]) == ("vrf", table)
        assert "UP" in vrf["flags"]
        assert link(world)["master"] == name
        four = _plain(world.pod("-4", "route", "show", "table", str(table)))
        assert "10.77.0.0/24 dev net1 scope link src 10.77.0.5" in four
        assert "10.90.0.0/16 via 10.77.0.1 dev net1" in four
        assert world.pod("-4", "route", "show") == ""
        assert world.addresses_in_pod("net1") == ["10.77.0.5/24", "fd77::5/64"]
        assert "fd77::/64 dev net1" in world.pod("-6", "route", "show", "table", str(table))
        assert world.in_pod("cat", "/proc/sys/net/ipv4/tcp_l3mdev_accept").strip() == "1"

    return look


def _net1(**more: Any) -> dict[str, Any]:
    return {"name": "net1", "addresses": ["10.77.0.5/24"], **more}


def _with_vrf(**vrf: Any) -> dict[str, Any]:
    return {
        "interface": _net1(addresses=["10.77.0.5/24", "fd77::5/64"], vrf=vrf),
        "routes": [{"destination": "10.90.0.0/16", "gateway": "10.77.0.1"}],
    }


_ADDRESSES = ["10.77.0.5/24", "10.77.0.6/32", "fd77::5/64"]

CASES = (
    Case(("interface.name",), {"interface": {"name": "net1"}}, _named),
    Case(("interface.name",), {"interface": {"name": "", "mtu": 1400}}, _kept_name),
    Case(("interface.addresses",), {"interface": _net1(addresses=_ADDRESSES)}, _addressed),
    Case(("interface.mtu",), {"interface": _net1(mtu=1400)}, _is(mtu=1400)),
    Case(("interface.mtu",), {"interface": _net1(mtu=1000)}, _is(mtu=1000)),
    Case(
        ("interface.hardwareAddr",),
        {"interface": _net1(hardwareAddr="02-00-00-00-77-0A")},
        _is(address="02:00:00:00:77:0a"),
    ),
    Case(("interface.gsoMaxSize",), {"interface": _net1(gsoMaxSize=60000)}, _is(gso_max_size=60000)),
    Case(("interface.groMaxSize",), {"interface": _net1(groMaxSize=50000)}, _is(gro_max_size=50000)),
    Case(("interface.gsoIPv4MaxSize",), {"interface": _net1(gsoIPv4MaxSize=40000)}, _size(gso_ipv4_max_size=40000)),
    Case(("interface.groIPv4MaxSize",), {"interface": _net1(groIPv4MaxSize=30000)}, _size(gro_ipv4_max_size=30000)),
    Case(
        ("interface.disableEbpfPrograms",),
        {"interface": _net1(disableEbpfPrograms=True)},
        _no_program,
        prepare=_program,
    ),
    Case(
        ("interface.forwarding",),
        {"interface": _net1(forwarding=True)},
        _sysctl(*FORWARDING, value="1"),
        prepare=_set(*FORWARDING, value="0"),
    ),
    Case(
        ("interface.forwarding",),
        {"interface": _net1(forwarding=False)},
        _sysctl(*FORWARDING, value="0"),
        prepare=_set(*FORWARDING, value="1"),
    ),
    Case(
        ("interface.arpIgnore",),
        {"interface": _net1(arpIgnore=2)},
        _sysctl("ipv4/conf/IF/arp_ignore", value="2"),
        prepare=_set("ipv4/conf/IF/arp_ignore", value="1"),
    ),
    Case(
        ("interface.arpAnnounce",),
        {"interface": _net1(arpAnnounce=2)},
        _sysctl("ipv4/conf/IF/arp_announce", value="2"),
        prepare=_set("ipv4/conf/IF/arp_announce", value="1"),
    ),
    Case(("interface.vrf.name",), _with_vrf(name="red"), _in_vrf("red", 1596), guest=True),
    Case(
        ("interface.vrf.name", "interface.vrf.table"),
        _with_vrf(name="blue", table=77),
        _in_vrf("blue", 77),
        guest=True,
    ),
    *(
        Case(
            ("interface.subInterface.type", "interface.subInterface.mode"),
            {"interface": _net1(subInterface={"type": "macvlan", "mode": mode})},
            _child("macvlan", mode=mode),
            shared=True,
        )
        for mode in ("bridge", "private", "vepa", "passthru")
    ),
    *(
        Case(
            ("interface.subInterface.type", "interface.subInterface.mode"),
            {"interface": _net1(subInterface={"type": "ipvlan", "mode": mode})},
            _child("ipvlan", mode=mode),
            shared=True,
            guest=True,
        )
        for mode in ("l2", "l3", "l3s")
    ),
    Case(
        ("interface.subInterface.type", "interface.subInterface.vlanID"),
        {"interface": _net1(subInterface={"type": "vlan", "vlanID": 4094})},
        _child("vlan", id=4094),
        shared=True,
        guest=True,
    ),
    Case(
        ("routes[].destination", "routes[].gateway", "routes[].source", "routes[].scope", "routes[].table"),
        {
            "interface": _net1(addresses=_ADDRESSES),
            "routes": [
                {"destination": "10.90.0.9/16", "gateway": "10.77.0.1", "source": "10.77.0.6"},
                {"destination": "10.91.0.0/16", "scope": 253},
                {"destination": "10.92.0.0/16", "gateway": "10.77.0.1", "table": 100},
                {"destination": "0.0.0.0/0", "gateway": "10.77.0.1", "table": 101},
                {"destination": "fd90::/64", "gateway": "fd77::1", "source": "fd77::5"},
            ],
        },
        _routed,
    ),
    Case(
        ("rules[].priority", "rules[].source", "rules[].destination", "rules[].table"),
        {
            "interface": _net1(),
            "rules": [
                {"priority": 500, "source": "10.77.0.0/24", "destination": "10.90.0.0/16", "table": 100},
                {"priority": 501, "source": "10.78.0.0/24"},
                {"destination": "fd90::/64", "table": 100},
            ],
        },
        _ruled,
    ),
    Case(
        ("neighbors[].destination", "neighbors[].hardwareAddr"),
        {
            "interface": _net1(addresses=["10.77.0.5/24", "fd77::5/64"]),
            "neighbors": [
                {"destination": "10.77.0.9", "hardwareAddr": "02:00:00:00:00:09"},
                {"destination": "FD77:0::9", "hardwareAddr": "0200.0000.000A"},
            ],
        },
        _known,
    ),
    Case(
        ("ethtool.features",),
        {"interface": _net1(), "ethtool": {"features": {"gro": False, "tso": False, "rx-gro-list": True}}},
        _switched,
    ),
)
