"""Whole configurations from hypothesis, each refused when it is planned or carried out on a real device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nri_dranet.claims.facts import Phase
from nri_dranet.dra.plan_model import PlanError

if TYPE_CHECKING:
    from tests.node.attach.world import World

CIDRS = st.sampled_from(
    ["10.71.0.9/24", "10.71.0.10/24", "10.72.0.1/32", "10.73.0.0/31", "fd71::9/64", "fd72::1/128", "169.254.7.7/16"]
)
NETWORKS = st.sampled_from(
    ["10.99.0.0/16", "10.71.0.0/24", "0.0.0.0/0", "fd99::/64", "::/0", "10.71.0.1/32", "fd71::/64"]
)
HOSTS = st.sampled_from(["10.71.0.1", "10.71.0.9", "10.71.0.2", "fd71::1", "fd71::9", "fe80::1", "192.0.2.1"])
TABLES = st.sampled_from([0, 100, 253, 254, 4294967295])
SIZES = st.sampled_from([193, 320, 1000, 65536, 65537, 200000, 524280])


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return objects with some of these fields."""
    return st.fixed_dictionaries({}, optional=fields)


ROUTES = st.one_of(
    st.fixed_dictionaries({"destination": NETWORKS, "scope": st.just(253)}, optional={"table": TABLES}),
    st.fixed_dictionaries({"destination": NETWORKS, "gateway": st.sampled_from(["10.71.0.1", "fd71::1", "fe80::1"])}),
)

INTERFACE: dict[str, st.SearchStrategy[Any]] = {
    "name": st.sampled_from(["net1", "", "a" * 15]),
    "addresses": st.lists(CIDRS, max_size=3),
    "mtu": st.sampled_from([68, 576, 1279, 1280, 1400, 1500, 9000, 65535]),
    "hardwareAddr": st.sampled_from(["02:00:00:00:77:01", "06:00:00:00:77:02"]),
    "gsoMaxSize": SIZES,
    "groMaxSize": SIZES,
    "gsoIPv4MaxSize": SIZES,
    "groIPv4MaxSize": SIZES,
    "disableEbpfPrograms": st.booleans(),
    "forwarding": st.booleans(),
    "arpIgnore": st.sampled_from([0, 1, 2, 8]),
    "arpAnnounce": st.sampled_from([0, 1, 2]),
    "subInterface": some(type=st.just("macvlan"), mode=st.sampled_from(["bridge", "private", "vepa", "passthru"])),
}

REST: dict[str, st.SearchStrategy[Any]] = {
    "routes": st.lists(
        st.one_of(
            ROUTES,
            some(destination=NETWORKS, gateway=HOSTS, source=HOSTS, scope=st.sampled_from([0, 253]), table=TABLES),
        ),
        max_size=3,
    ),
    "rules": st.lists(
        some(priority=st.sampled_from([1, 100, 32766, 32767]), source=NETWORKS, destination=NETWORKS, table=TABLES),
        max_size=2,
    ),
    "neighbors": st.lists(
        st.fixed_dictionaries(
            {"destination": HOSTS, "hardwareAddr": st.sampled_from(["02:00:00:00:00:09", "02:00:00:00:00:0a"])}
        ),
        max_size=2,
    ),
    "ethtool": some(
        features=st.dictionaries(
            st.sampled_from(["tso", "gro", "tx", "rx", "sg", "lro", "rxvlan", "rx-gro-list", "tx-scatter-gather"]),
            st.booleans(),
            max_size=3,
        )
    ),
}


def documents(**interface: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return configurations with these fields of the interface instead of the usual ones of that name."""
    return some(interface=some(**(INTERFACE | interface)), **REST)


def carry_out(world: World, wanted: st.SearchStrategy[dict[str, Any]], *, shared: bool, examples: int) -> int:
    """Plan each example for the host's n0, and attach and detach what is not refused; return how many were not.

    The kernel refuses nothing of a plan, every address is there, and nothing is left in the pod.
    """
    made = 0

    @given(wanted)
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def carried_out(document: dict[str, Any]) -> None:
        nonlocal made
        try:
            (plan,) = world.planned(document, shared=shared).devices
        except PlanError:
            return
        made += 1
        (fact,) = world.attach(plan)
        try:
            assert fact.phase is Phase.ATTACHED
            assert plan.pod is not None
            assert {address.cidr for address in plan.pod.addresses} <= set(fact.interface.addresses)
        finally:
            (outcome,) = world.detach(plan)
        assert (outcome.home, outcome.problems) == (True, ())
        assert world.pod_state()["links"] == ["lo"]

    carried_out()
    return made
