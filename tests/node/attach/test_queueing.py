"""Queueing disciplines, classes and filters: a move destroys them, and they are back when the device is home."""

from __future__ import annotations

import re
from typing import Any

import pytest

from nri_dranet.attach import queueing
from nri_dranet.claims import codec
from nri_dranet.claims.plan import HostState
from nri_dranet.netlink.sockets import RtnlSocket

TREE = (
    "qdisc add dev n0 root handle 1: htb default 10 r2q 5",
    "class add dev n0 parent 1: classid 1:1 htb rate 10mbit ceil 20mbit",
    "class add dev n0 parent 1:1 classid 1:20 htb rate 5mbit ceil 20mbit prio 2 quantum 3000",
    "class add dev n0 parent 1:1 classid 1:10 htb rate 3mbit burst 20k cburst 30k",
    "qdisc add dev n0 parent 1:10 handle 10: tbf rate 3mbit burst 10kb latency 50ms",
    "qdisc add dev n0 parent 1:20 handle 8123: pfifo limit 55",
    "filter add dev n0 parent 1: protocol ip prio 7 u32 match ip dport 80 0xffff flowid 1:10",
    "filter add dev n0 parent 1: protocol ip prio 3 u32 match ip src 10.9.0.0/16 match ip protocol 17 0xff flowid 1:20",
    "filter add dev n0 parent 1: protocol ipv6 prio 9 u32 match ip6 dst fd00::/8 classid 1:10",
)
MIRROR = (
    "filter add dev n0 ingress protocol all prio 5 u32 match u32 0 0 action mirred egress redirect dev other",
    "filter add dev n0 ingress protocol ip prio 4 u32 match ip dst 10.1.2.3 action mirred egress mirror dev other",
)
TABLES = (
    "filter add dev n0 parent 1: protocol ip prio 2 handle 5: u32 divisor 16",
    "filter add dev n0 parent 1: protocol ip prio 2 u32 ht 5:3: match ip src 10.0.0.3 flowid 1:10",
    "filter add dev n0 parent 1: protocol ip prio 2 u32 match u8 0 0 at 0 link 5: hashkey mask 0xf at 12",
)


def _tc(world: Any, *commands: str) -> None:
    for command in commands:
        world.in_host("tc", *command.split())


def _shown(world: Any, netns: Any = None) -> list[str]:
    """Give what tc shows, without counters, and without the numbers that the kernel chooses by itself."""
    run = netns or world.in_host
    parents = ("root", "parent 1:", "parent 1:10", "ingress", "egress")
    text = run("tc", "qdisc", "show", "dev", "n0") + run("tc", "class", "show", "dev", "n0")
    text += "".join(run("sh", "-c", f"tc filter show dev n0 {parent} 2>/dev/null || true") for parent in parents)
    text = re.sub(r"\b8[0-9a-f]{2}(:[0-9a-f]*:|\b)", "own:", text)
    text = re.sub(r"(direct_packets_stat|index|ref|bind|refcnt) \d+", r"\1", text)
    return [line.strip() for line in text.splitlines() if line.strip()]


@pytest.fixture
def nic(world: Any) -> Any:
    """A device with a carrier, and one that packets are mirrored to."""
    world.veth("n0", "10.71.0.2/24")
    world.host("link", "add", "other", "type", "bridge")
    return world


@pytest.mark.parametrize(
    "commands",
    [
        ("qdisc add dev n0 root handle 1: tbf rate 1mbit burst 10kb latency 50ms",),
        ("qdisc add dev n0 root pfifo limit 77",),
        ("qdisc add dev n0 root noqueue",),
        ("qdisc add dev n0 clsact",),
        ("qdisc add dev n0 ingress", MIRROR[0].replace("ingress", "parent ffff:")),
        ("qdisc add dev n0 clsact", *MIRROR, MIRROR[0].replace("ingress", "egress").replace("prio 5", "prio 6")),
        TREE,
        (*TREE, *TABLES),
        (*TREE, "qdisc add dev n0 clsact", *MIRROR),
    ],
    ids=["tbf", "pfifo", "noqueue", "clsact", "ingress", "mirrors", "htb", "tables", "all"],
)
def test_they_come_back(nic: Any, commands: tuple[str, ...]) -> None:
    """The pod's device has none of them; the host's has all again, once, and a second return changes nothing."""
    _tc(nic, *commands)
    before = _shown(nic)
    plan = nic.plan("n0", "net1", addresses=(nic.address("10.77.0.5/24"),))
    nic.attach(plan)
    assert "htb" not in nic.in_pod("tc", "qdisc", "show", "dev", "net1")
    nic.in_pod("tc", "qdisc", "add", "dev", "net1", "root", "handle", "1:", "pfifo", "limit", "3")
    for _ in range(2):
        assert nic.detach(plan)[0].problems == ()
        assert _shown(nic) == before


def test_they_are_back_after_a_failed_attach(nic: Any) -> None:
    """An attach that fails after the move leaves the device as it was, its disciplines too."""
    _tc(nic, *TREE)
    before = _shown(nic)
    plan = nic.plan("n0", "net1", addresses=(nic.address("10.77.0.5/24"),), mtu=70_000)
    with pytest.raises(Exception, match="MTU"):
        nic.attach(plan)
    assert _shown(nic) == before


def test_an_ordinary_device_has_none(nic: Any) -> None:
    """Disciplines that the kernel makes by itself are no state of the host."""
    plan = nic.plan("n0")
    assert plan.host.traffic.qdiscs == ()


def test_what_is_missing_alone_is_put_back(nic: Any) -> None:
    """Of a tree of which a part is there, the rest is made; a foreign discipline at the root is replaced."""
    _tc(nic, *TREE)
    before = _shown(nic)
    plan = nic.plan("n0")
    _tc(nic, "filter del dev n0 parent 1: prio 7", "qdisc del dev n0 parent 1:20 handle 8123:")
    assert nic.detach(plan)[0].problems == ()
    assert _shown(nic) == before
    _tc(nic, "qdisc del dev n0 root", "qdisc add dev n0 root handle 9: pfifo limit 3")
    assert nic.detach(plan)[0].problems == ()
    assert _shown(nic) == before


def test_an_action_that_filters_share_stays_shared(nic: Any) -> None:
    """A filter that runs an action of another one, by its number, does so again."""
    _tc(nic, "qdisc add dev n0 clsact", "actions add action mirred egress redirect dev other index 77")
    _tc(nic, "filter add dev n0 ingress protocol all prio 5 u32 match u32 0 0 action mirred index 77")
    plan = nic.plan("n0", "net1")
    nic.attach(plan)
    assert nic.detach(plan)[0].problems == ()
    assert "index 77 " in nic.in_host("tc", "filter", "show", "dev", "n0", "ingress")


def test_filters_of_one_preference_on_both_sides(nic: Any) -> None:
    """The kernel does not tell which of two u32 filters is at ingress and which at egress: neither is guessed at."""
    _tc(nic, "qdisc add dev n0 clsact", MIRROR[0], MIRROR[0].replace("ingress", "egress"), MIRROR[1])
    plan = nic.plan("n0", "net1")
    nic.attach(plan)
    problems = nic.detach(plan)[0].problems
    assert problems
    assert all("on the other side" in problem for problem in problems)
    assert "Mirror" in nic.in_host("tc", "filter", "show", "dev", "n0", "ingress")


def test_what_cannot_be_put_back_is_told(nic: Any) -> None:
    """The interface that packets were redirected to is gone: this is told by filter, and all else is back."""
    _tc(nic, *TREE, "qdisc add dev n0 clsact", MIRROR[0])
    before = _shown(nic)
    plan = nic.plan("n0", "net1")
    nic.attach(plan)
    nic.host("link", "del", "other")
    (outcome,) = nic.detach(plan)
    assert outcome.home
    assert len(outcome.problems) == 1
    assert "u32 filter" in outcome.problems[0]
    left = _shown(nic)
    assert [line for line in before if "mirred" not in line and "protocol all" not in line][:14] == left[:14]
    assert not any("mirred" in line for line in left)


def test_a_plan_keeps_them_through_the_journal(nic: Any) -> None:
    """What was read is the same after it was written as JSON and read again."""
    _tc(nic, *TREE, *TABLES, "qdisc add dev n0 clsact", *MIRROR)
    with RtnlSocket(nic.host_netns) as host:
        found = queueing.read(host, nic.index("n0"))
    assert found.filters
    state = nic.plan("n0").host
    assert codec.loads(HostState, codec.dumps(state)) == state
