"""The state of an interface in the pod: addresses, limits of the device, hardware addresses, settings, offloads."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nri_dranet.api.errors import ConfigError
from nri_dranet.claims.allocation import AllocatedConfig, AllocationResult, Claim
from nri_dranet.claims.model import ClaimRef
from nri_dranet.claims.plan import DeviceLimits, DevicePlan, HostState, PodState, VrfPlan
from nri_dranet.dra.planner import DeviceFactsIn, PlanError, plan_claim
from nri_dranet.netlink.model import FOREVER, Address, Link, Neighbour

RESULT = AllocationResult("req", "dra.net", "node", "ens5")
GUID = "80:00:02:08:fe:80:00:00:00:00:00:00"


def link(**fields: Any) -> Link:
    """Return an Ethernet link with the limits of a veth."""
    base: dict[str, Any] = {
        "name": "ens5",
        "index": 7,
        "mtu": 1500,
        "min_mtu": 68,
        "max_mtu": 65535,
        "address": "02:00:00:00:00:07",
        "tso_max_size": 65536,
        "flags": 1,
    }
    return Link(**(base | fields))


def plan_one(parameters: Any, device: DeviceFactsIn, host: HostState | None) -> DevicePlan:
    """Plan a claim of one device with one configuration."""
    claim = Claim(
        ref=ClaimRef("ns", "c", "u"),
        allocated=True,
        results=(RESULT,),
        configs=(AllocatedConfig(0, "FromClaim", (), "dra.net", parameters),),
        pods=(),
        other_consumers=(),
        node_name=None,
        pod_claim_name=None,
    )
    return plan_claim(claim, "dra.net", {"ens5": device}, {"ens5": host} if host else {}).devices[0]


LIMITS = {"virtual_function", "pf_mtu", "lower", "fixed_features"}


def plan(parameters: Any, *, link_fields: dict[str, Any] | None = None, host: Any = None, **facts: Any) -> PodState:
    """Plan one interface with one configuration."""
    own = link(**(link_fields or {}))
    limits = {name: facts.pop(name) for name in LIMITS & facts.keys()}
    device = DeviceFactsIn(name="ens5", link=own, limits=DeviceLimits(**limits), **facts)
    found = plan_one(parameters, device, HostState(link=own, **(host or {})))
    assert found.pod is not None
    return found.pod


def refused(parameters: Any, **known: Any) -> str:
    """Plan one interface and return the one problem of it."""
    with pytest.raises(PlanError) as caught:
        plan(parameters, **known)
    (error,) = caught.value.errors
    assert "device ens5, request req" in error.origin
    return f"{error.path}: {error.value}: {error.message}"


def interface(**fields: Any) -> dict[str, Any]:
    """Return a document with these fields of the interface."""
    return {"interface": fields}


def test_everything_configured_is_in_the_plan() -> None:
    """Each field of the interface is found in the plan as the engine needs it."""
    pod = plan(
        interface(
            name="net1",
            addresses=["10.0.0.5/24", "FD00::5/64", "10.0.0.6/32"],
            mtu=1400,
            hardwareAddr="02-11-22-33-44-55",
            gsoMaxSize=40000,
            groMaxSize=41000,
            gsoIPv4MaxSize=42000,
            groIPv4MaxSize=43000,
            disableEbpfPrograms=True,
            forwarding=True,
            arpIgnore=1,
            arpAnnounce=0,
            vrf={"name": "red", "table": 100},
        ),
        pinned_bpf_links=(3, 4),
    )
    assert pod == PodState(
        name="net1",
        mtu=1400,
        hardware_address="02:11:22:33:44:55",
        gso_max_size=40000,
        gro_max_size=41000,
        gso_ipv4_max_size=42000,
        gro_ipv4_max_size=43000,
        addresses=(
            Address(family=2, address="10.0.0.5", prefix_length=24, broadcast="10.0.0.255"),
            Address(family=10, address="fd00::5", prefix_length=64),
            Address(family=2, address="10.0.0.6", prefix_length=32),
        ),
        sysctls={
            "ipv4/conf/forwarding": "1",
            "ipv6/conf/forwarding": "1",
            "ipv4/conf/arp_ignore": "1",
            "ipv4/conf/arp_announce": "0",
        },
        namespace_sysctls={"ipv4/tcp_l3mdev_accept": "1", "ipv4/udp_l3mdev_accept": "1"},
        vrf=VrfPlan(name="red", table=100),
        detach_bpf=True,
        pinned_bpf_links=(3, 4),
    )


def test_nothing_configured_leaves_everything() -> None:
    """Without configuration nothing is set and no program is detached."""
    assert plan({}, pinned_bpf_links=(3,)) == PodState(name="ens5")


def test_forwarding_can_be_switched_off() -> None:
    """An explicit false is written for both families."""
    assert plan(interface(forwarding=False)).sysctls == {"ipv4/conf/forwarding": "0", "ipv6/conf/forwarding": "0"}


# ---- addresses of the host

V4: dict[str, Any] = {
    "family": 2,
    "address": "10.0.0.5",
    "prefix_length": 24,
    "index": 7,
    "flags": 0x80,
    "broadcast": "10.0.0.255",
}
V6: dict[str, Any] = {"family": 10, "address": "fd00::5", "prefix_length": 64, "index": 7, "flags": 0x80}


@pytest.mark.parametrize(
    "address",
    [
        Address(**V4 | {"scope": 253}),
        Address(**V4 | {"scope": 254}),
        Address(**V4 | {"valid_lifetime": 3600}),
        Address(**V6 | {"address": "fe80::5", "scope": 253}),
        Address(**V6 | {"flags": 0x81}),
        Address(**V6 | {"flags": 0xA0}),
        Address(**V6 | {"flags": 0x88}),
        Address(**V6 | {"flags": 0x100, "valid_lifetime": 86400}),
    ],
    ids=["link", "host", "dhcp", "link-local", "temporary", "deprecated", "duplicate", "slaac"],
)
def test_addresses_that_do_not_stay_are_not_copied(address: Address) -> None:
    """Only permanent global addresses come along: none that expires, is made by the kernel, or is known as a double."""
    pod = plan({}, host={"addresses": (address,)})
    assert (pod.addresses, pod.copied_addresses) == ((), False)


def test_copied_addresses_keep_what_is_theirs() -> None:
    """Peer, broadcast, metric, secondary place and no-prefix-route come along; index, label and state flags do not."""
    pod = plan(
        interface(name="net1"),
        host={
            "addresses": (
                Address(**V4 | {"label": "ens5", "metric": 7}),
                Address(**V4 | {"address": "10.0.0.6", "label": "ens5:1", "flags": 0x81, "valid_lifetime": FOREVER}),
                Address(**V4 | {"address": "10.9.0.1", "prefix_length": 32, "peer": "10.9.0.2", "flags": 0x280}),
                Address(**V6 | {"flags": 0x680, "protocol": 3}),
            )
        },
    )
    assert pod.copied_addresses
    assert pod.addresses == (
        Address(family=2, address="10.0.0.5", prefix_length=24, broadcast="10.0.0.255", metric=7),
        Address(family=2, address="10.0.0.6", prefix_length=24, broadcast="10.0.0.255", label="net1:1"),
        Address(family=2, address="10.9.0.1", prefix_length=32, broadcast="10.0.0.255", peer="10.9.0.2", flags=0x200),
        Address(family=10, address="fd00::5", prefix_length=64, flags=0x600),
    )


def test_a_label_that_does_not_fit_the_new_name_is_dropped() -> None:
    """A label has to begin with the interface's name and to fit the kernel's field."""
    pod = plan(interface(name="abcdefghijklmno"), host={"addresses": (Address(**V4 | {"label": "ens5:1"}),)})
    assert pod.addresses[0].label == ""


def test_configured_addresses_replace_the_hosts() -> None:
    """With configured addresses none of the host's comes along."""
    pod = plan(interface(addresses=["10.77.0.5/24"]), host={"addresses": (Address(**V4), Address(**V6))})
    assert [address.cidr for address in pod.addresses] == ["10.77.0.5/24"]
    assert not pod.copied_addresses


# ---- names


@pytest.mark.parametrize("name", ["eth0", "all"])
def test_a_host_name_that_a_pod_cannot_have_must_be_replaced(name: str) -> None:
    """A device whose host name is reserved in pods needs a configured name."""
    with pytest.raises(PlanError, match=f"interface.name: must be given, as the host's name {name} cannot be kept"):
        plan({}, link_fields={"name": name})
    assert plan(interface(name="net1"), link_fields={"name": name}).name == "net1"


# ---- limits of the device


@pytest.mark.parametrize(
    ("mtu", "fields", "facts", "words"),
    [
        (100, {"min_mtu": 256}, {}, "256 to 65535, the limits of the device"),
        (9001, {"max_mtu": 9000}, {}, "68 to 9000, the limits of the device"),
        (100, {"min_mtu": 256, "max_mtu": 0}, {}, "256 to any, the limits of the device"),
        (
            3000,
            {},
            {"virtual_function": True, "pf_mtu": 1500},
            "at most 1500, the MTU of the device's physical function",
        ),
        (1400, {}, {"virtual_function": True}, "the MTU of the physical function"),
        (3000, {"kind": "macvlan"}, {"lower": Link(name="base", index=3, mtu=1500)}, "at most 1500, the MTU of base"),
        (3000, {"kind": "vlan"}, {"lower": Link(name="base", index=3, mtu=1500)}, "at most 1500, the MTU of base"),
        (3000, {}, {"shared": True}, "at most 1500, the MTU of the shared device"),
    ],
)
def test_an_mtu_beyond_the_device_is_refused(
    mtu: int, fields: dict[str, Any], facts: dict[str, Any], words: str
) -> None:
    """An MTU beyond the device, its physical function or the interface below it is refused by name with the limit."""
    problem = refused(interface(mtu=mtu), link_fields=fields, **facts)
    assert problem.startswith(f"interface.mtu: {mtu}: ")
    assert words in problem


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        ({"max_mtu": 0}, {}),
        ({}, {"virtual_function": True, "pf_mtu": 3000}),
        ({"kind": "macvlan"}, {"lower": Link(name="base", index=3, mtu=3000)}),
        ({"kind": "veth"}, {"lower": Link(name="peer", index=3, mtu=1500)}),
    ],
)
def test_an_mtu_within_the_device_is_planned(fields: dict[str, Any], facts: dict[str, Any]) -> None:
    """An MTU within all limits is planned; a veth is not bound by its other end."""
    assert plan(interface(mtu=3000), link_fields=fields, **facts).mtu == 3000


def test_ipv6_needs_its_least_mtu() -> None:
    """The kernel removes IPv6 below 1280: refused for copied addresses, and for configured ones on such a device."""
    assert "at least 1280: the device's own IPv6" in refused(interface(mtu=1000), host={"addresses": (Address(**V6),)})
    assert refused(interface(addresses=["fd00::1/64"]), link_fields={"mtu": 1000}).startswith(
        "interface.mtu: : must be given as at least 1280"
    )


@pytest.mark.parametrize("name", ["gsoMaxSize", "gsoIPv4MaxSize"])
def test_gso_beyond_the_device_is_refused(name: str) -> None:
    """A GSO size above the device's TSO limit is refused with the limit; GRO has none of the device."""
    assert (
        refused(interface(**{name: 70000}))
        == f"interface.{name}: 70000: must be at most 65536, the limit of the device"
    )
    assert plan(interface(**{name: 70000}), link_fields={"tso_max_size": 0})
    assert plan(interface(groMaxSize=70000)).gro_max_size == 70000


@pytest.mark.parametrize(
    ("address", "fields", "words"),
    [
        (f"{GUID}:02:00:00:00:00:00:00:01", {}, "must have 6 bytes: the device is Ethernet"),
        ("02:00:00:00:00:01", {"type": 32, "address": f"{GUID}:00:00:00:00:00:00:00:07"}, "must have 20 bytes"),
        (
            "81" + f"{GUID}:02:00:00:00:00:00:00:01"[2:],
            {"type": 32, "address": f"{GUID}:00:00:00:00:00:00:00:07"},
            f"must begin with {GUID}: only the GUID can be changed",
        ),
        ("02:00:00:00:00:01", {"type": 65534, "address": ""}, "neither Ethernet nor InfiniBand"),
    ],
)
def test_a_hardware_address_must_fit_the_device(address: str, fields: dict[str, Any], words: str) -> None:
    """A hardware address of another kind of device is refused with what fits."""
    assert words in refused(interface(hardwareAddr=address), link_fields=fields)


def test_an_ipoib_guid_can_be_set() -> None:
    """An IPoIB address that differs in the GUID alone is planned."""
    wanted = f"{GUID}:02:00:00:00:00:00:00:01"
    fields = {"type": 32, "address": f"{GUID}:00:00:00:00:00:00:00:07"}
    assert plan(interface(hardwareAddr=wanted), link_fields=fields).hardware_address == wanted


def test_an_ipvlan_child_has_its_parents_address() -> None:
    """A hardware address for an ipvlan child is refused."""
    parameters = interface(hardwareAddr="02:00:00:00:00:01", subInterface={"type": "ipvlan"})
    assert "has the address of its parent" in refused(parameters, shared=True)


# ---- neighbours


def test_neighbours_of_configuration_and_host() -> None:
    """Permanent neighbours of the host come along unless the configuration names them; others and proxies do not."""
    host = (
        Neighbour(family=2, address="10.0.0.9", hardware_address="02:00:00:00:00:09", index=7, state=0x80),
        Neighbour(family=10, address="fd00::9", hardware_address="02:00:00:00:00:19", index=7, state=0x80, flags=0x80),
        Neighbour(family=2, address="10.0.0.1", hardware_address="02:00:00:00:00:aa", index=7, state=0x80),
        Neighbour(family=2, address="10.0.0.2", hardware_address="02:00:00:00:00:02", index=7, state=0x2),
        Neighbour(family=2, address="10.0.0.3", hardware_address="", index=7, state=0x80),
        Neighbour(family=2, address="10.0.0.4", hardware_address="02:00:00:00:00:04", index=7, state=0x80, flags=0x8),
        Neighbour(family=10, address="ff02::1", hardware_address="33:33:00:00:00:01", index=7, state=0x80),
    )
    pod = plan(
        {"neighbors": [{"destination": "10.0.0.1", "hardwareAddr": "02:00:00:00:00:01"}]}, host={"neighbours": host}
    )
    assert pod.neighbours == (
        Neighbour(family=2, address="10.0.0.1", hardware_address="02:00:00:00:00:01"),
        Neighbour(family=2, address="10.0.0.9", hardware_address="02:00:00:00:00:09"),
        Neighbour(family=10, address="fd00::9", hardware_address="02:00:00:00:00:19", flags=0x80),
    )


def test_a_neighbours_hardware_address_must_fit_the_device() -> None:
    """A neighbour's hardware address is as long as the device's own."""
    parameters = {"neighbors": [{"destination": "10.0.0.1", "hardwareAddr": "02:00:00:00:00:00:00:01"}]}
    assert refused(parameters).startswith("neighbors[0].hardwareAddr")
    assert plan(parameters, link_fields={"address": ""}).neighbours[0].hardware_address == "02:00:00:00:00:00:00:01"


# ---- ethtool

CHANGEABLE = {
    "tx-tcp-segmentation": True,
    "tx-tcp6-segmentation": True,
    "rx-gro": True,
    "tx-checksum-ip-generic": True,
    "made-up-feature": False,
}


def features(**wanted: bool) -> dict[str, Any]:
    """Return a document with these features; ``_`` in their names stands for ``-``."""
    return {"ethtool": {"features": {name.replace("_", "-"): on for name, on in wanted.items()}}}


@pytest.mark.parametrize(
    ("wanted", "planned"),
    [
        ({"tso": True}, {"tx-tcp-segmentation": True, "tx-tcp6-segmentation": True}),
        ({"tcp_segmentation_offload": False}, {"tx-tcp-segmentation": False, "tx-tcp6-segmentation": False}),
        ({"generic_receive_offload": False}, {"rx-gro": False}),
        ({"tx": False}, {"tx-checksum-ip-generic": False}),
        ({"made_up_feature": True}, {"made-up-feature": True}),
        ({"lro": False}, {}),
        ({"large_receive_offload": False}, {}),
        ({"rx_all": False}, {}),
        ({"rx_checksum": True}, {}),
        ({"tso": False, "tx_tcp6_segmentation": True}, {"tx-tcp-segmentation": False, "tx-tcp6-segmentation": True}),
        ({"tx_tcp6_segmentation": True, "tso": False}, {"tx-tcp-segmentation": False, "tx-tcp6-segmentation": True}),
        ({"tso": True, "tcp_segmentation_offload": True}, {"tx-tcp-segmentation": True, "tx-tcp6-segmentation": True}),
    ],
)
def test_features_are_expanded_to_what_the_device_can_change(wanted: dict[str, bool], planned: dict[str, bool]) -> None:
    """Aliases stand for what the device can change; what it has not is off already; exact names win over aliases."""
    pod = plan(features(**wanted), host={"features": CHANGEABLE}, fixed_features={"rx-checksum": True, "rx-lro": False})
    assert pod.features == planned


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"lro": True}, "ethtool.features.lro: true: cannot be switched on on this device, which can change made-up-"),
        ({"rx_checksum": False}, "ethtool.features.rx-checksum: false: cannot be switched off"),
        ({"rx_checksumming": False}, "ethtool.features.rx-checksumming: false: cannot be switched off"),
        ({"warp_drive": False}, "ethtool.features.warp-drive: false: is no feature that ethtool or the kernel knows"),
        ({"tso": True, "tcp_segmentation_offload": False}, "must be as tso, which is the same feature"),
    ],
)
def test_features_that_cannot_be_so_are_refused(wanted: dict[str, bool], words: str) -> None:
    """A feature that is unknown, cannot be changed, or is asked for in two ways is refused by its name."""
    with pytest.raises(PlanError) as caught:
        plan(features(**wanted), host={"features": CHANGEABLE}, fixed_features={"rx-checksum": True})
    assert words in str(caught.value)


def test_features_that_were_not_asked_for_are_refused() -> None:
    """Of a device in another pod only those are known that can be changed: nothing is taken for switched off."""
    words = refused(features(lro=False), host={"features": CHANGEABLE})
    assert words.startswith(
        "ethtool.features.lro: false: is not known to be so on this device, which is still in anoth"
    )
    assert plan(features(gro=True), host={"features": CHANGEABLE}).features == {"rx-gro": True}


def test_features_of_a_device_that_tells_none_are_refused() -> None:
    """Where the device did not tell its features nothing is assumed."""
    assert refused(features(tso=False)).startswith("ethtool.features: : cannot be set: the device did not tell")


def test_private_flags_are_those_of_the_driver() -> None:
    """A private flag that the driver has is planned, another one is refused with the list."""
    flags = {"link-down-on-close": False, "disable-fw-lldp": False}
    wanted = {"ethtool": {"privateFlags": {"disable-fw-lldp": True}}}
    assert plan(wanted, host={"private_flags": flags}).private_flags == {"disable-fw-lldp": True}
    assert refused({"ethtool": {"privateFlags": {"x": True}}}, host={"private_flags": flags}) == (
        "ethtool.privateFlags.x: true: must be one of disable-fw-lldp, link-down-on-close: "
        "the device's driver has no such flag"
    )
    assert "must be left out" in refused({"ethtool": {"privateFlags": {"x": True}}})


@pytest.mark.parametrize(
    "document",
    [
        {"routes": [{"destination": "fd99::/64", "scope": 253}]},
        {"neighbors": [{"destination": "fd71::1", "hardwareAddr": "02:00:00:00:00:09"}]},
    ],
)
def test_ipv6_needs_its_mtu(document: dict[str, Any]) -> None:
    """Below 1280 the kernel takes IPv6 from an interface, and with it all routes and neighbours."""
    assert "interface.mtu: 1000: must be at least 1280 for fd" in refused(document | interface(mtu=1000))
    words = refused(document, link_fields={"mtu": 1000})
    assert words.startswith("interface.mtu: : must be given as at least 1280 for fd")
    assert plan(document)


# ---- anything

CIDRS = st.sampled_from(["10.71.0.9/24", "10.0.0.1/32", "fd71::9/64", "fd00::1/128", "169.254.0.0/16", "fe80::9/64"])
IPS = st.sampled_from(["10.71.0.1", "10.71.0.9", "10.71.0.255", "fd71::1", "fe80::1", "192.0.2.1"])
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "interface": st.fixed_dictionaries(
            {},
            optional={
                "name": st.sampled_from(["net1", ""]),
                "addresses": st.lists(CIDRS, max_size=3),
                "mtu": st.integers(68, 65535),
                "hardwareAddr": st.sampled_from(["02:00:00:00:00:01", ":".join(["80"] * 20)]),
                "gsoMaxSize": st.integers(193, 524280),
                "forwarding": st.booleans(),
                "vrf": st.fixed_dictionaries({"name": st.sampled_from(["red", "net1"])}),
                "subInterface": st.fixed_dictionaries({"type": st.sampled_from(["macvlan", "ipvlan"])}),
            },
        ),
        "routes": st.lists(
            st.fixed_dictionaries(
                {"destination": CIDRS},
                optional={
                    "gateway": IPS,
                    "source": IPS,
                    "scope": st.sampled_from([0, 253]),
                    "table": st.sampled_from([0, 7, 254]),
                },
            ),
            max_size=3,
        ),
        "rules": st.lists(
            st.fixed_dictionaries({"table": st.integers(0, 300)}, optional={"source": CIDRS}), max_size=2
        ),
        "neighbors": st.lists(
            st.fixed_dictionaries({"destination": IPS, "hardwareAddr": st.just("02:00:00:00:00:09")}), max_size=2
        ),
        "ethtool": st.fixed_dictionaries(
            {}, optional={"features": st.dictionaries(st.sampled_from(["tso", "gro", "lro", "x"]), st.booleans())}
        ),
    },
)


@given(DOCUMENTS, st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_valid_configuration_is_planned_or_refused_in_words(
    document: Any, interface: bool, shared: bool, host: bool
) -> None:
    """Whatever configuration meets whatever device, there is a plan or problems that can be shown, nothing else."""
    own = link() if interface else None
    device = DeviceFactsIn(name="ens5", link=own, shared=shared and interface, rdma="mlx5_0")
    state = HostState(link=own, addresses=(Address(**V4),), features=CHANGEABLE) if own and host else None
    try:
        found = plan_one(document, device, state)
    except ConfigError as error:
        shown = str(error)
    else:
        shown = found.label
        assert (found.pod is None) == (not interface)
    assert shown
    assert shown.isprintable()
