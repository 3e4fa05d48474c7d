"""Attributes: names, types, absence rules, limits."""

from __future__ import annotations

import ipaddress
import json
import re
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nri_dranet.inventory.attributes import (
    MAX_ATTRIBUTES,
    REFERENCE,
    FunctionFacts,
    Programs,
    RdmaFacts,
    SysfsFacts,
    interface_attributes,
    pci_attributes,
    placement_attributes,
    rdma_attributes,
    within_limits,
)
from nri_dranet.netlink.model import Address, Link


def plain(attributes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return name → value without types and our domain."""
    return {name.removeprefix("dra.net/"): next(iter(value.values())) for name, value in attributes.items()}


def address(cidr: str) -> Address:
    """Make an address of a CIDR."""
    found = ipaddress.ip_interface(cidr)
    family = 2 if found.version == 4 else 10
    return Address(family=family, address=str(found.ip), prefix_length=found.network.prefixlen)


def test_software_interface() -> None:
    """A veth has the attributes of the reference with their types; those without a value are absent."""
    link = Link(index=2, name="eth1", address="02:00:00:00:00:01", mtu=1480, operstate="up", kind="veth")
    found = interface_attributes(link, [address("10.71.0.2/24"), address("fd71::2/64")], SysfsFacts())
    assert found == {
        "dra.net/ifName": {"string": "eth1"},
        "dra.net/mac": {"string": "02:00:00:00:00:01"},
        "dra.net/mtu": {"int": 1480},
        "dra.net/encapsulation": {"string": "ether"},
        "dra.net/alias": {"string": ""},
        "dra.net/state": {"string": "up"},
        "dra.net/type": {"string": "veth"},
        "dra.net/ipv4": {"string": "10.71.0.2/24"},
        "dra.net/ipv6": {"string": "fd71::2/64"},
        "dra.net/ebpf": {"bool": False},
        "dra.net/sriov": {"bool": False},
        "dra.net/virtual": {"bool": True},
    }


def test_hardware_interface() -> None:
    """A physical function has its SR-IOV state, speed, port and switch; its kind is ``device``."""
    link = Link(index=2, name="p0", phys_port_name="p0", phys_switch_id="0a0b", address="")
    facts = SysfsFacts(virtual=False, sriov_total_vfs=8, sriov_num_vfs=2, speed=100000)
    found = plain(interface_attributes(link, [], facts))
    assert found["type"] == "device"
    assert (found["sriov"], found["sriovVfs"], found["virtual"]) == (True, 2, False)
    assert (found["speed"], found["physPortName"], found["physSwitchID"]) == (100000, "p0", "0a0b")
    assert found["mac"] == ""
    assert "isSriovVf" not in found
    assert plain(interface_attributes(link, [], SysfsFacts(is_vf=True)))["isSriovVf"] is True


def test_encapsulation_words() -> None:
    """The link layer is told in the words of iproute2; an unknown number is told as such."""
    words = {1: "ether", 32: "infiniband", 65534: "none", 778: "gre", 4242: "unknown4242"}
    for number, word in words.items():
        link = Link(index=2, name="x", type=number)
        assert plain(interface_attributes(link, [], SysfsFacts()))["encapsulation"] == word


def test_programs() -> None:
    """A filter or a TCX program makes ``ebpf`` true; names are joined."""
    link = Link(index=2, name="x")
    found = plain(interface_attributes(link, [], SysfsFacts(), Programs(filters=("a", "b"), tcx=("c",))))
    assert (found["ebpf"], found["tcFilterNames"], found["tcxProgramNames"]) == (True, "a,b", "c")
    only = plain(interface_attributes(link, [], SysfsFacts(), Programs(tcx=("c",))))
    assert only["ebpf"] is True
    assert "tcFilterNames" not in only


def test_special_addresses_are_left_out() -> None:
    """Link-local, loopback and multicast addresses are not told, private ones are."""
    given_ = ["127.0.0.1/8", "169.254.1.1/16", "fe80::1/64", "::1/128", "224.0.0.1/32", "ff02::1/128", "0.0.0.0/8"]
    found = plain(interface_attributes(Link(index=2, name="x"), map(address, given_), SysfsFacts()))
    assert "ipv4" not in found
    assert "ipv6" not in found
    more = [*given_, "255.255.255.255/32", "192.168.1.1/24", "10.0.0.1/8"]
    found = plain(interface_attributes(Link(index=2, name="x"), map(address, more), SysfsFacts()))
    assert found["ipv4"] == "10.0.0.1/8,192.168.1.1/24"


@given(st.lists(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)), max_size=40))
def test_addresses_fit(addresses: list[Any]) -> None:
    """However many addresses there are, whole ones of them are told in 64 bytes, sorted, whatever their order."""
    made = [address(f"{one}/{one.max_prefixlen}") for one in addresses]
    found = interface_attributes(Link(index=2, name="x"), made, SysfsFacts())
    again = interface_attributes(Link(index=2, name="x"), reversed(made), SysfsFacts())
    assert found == again
    for name in ("dra.net/ipv4", "dra.net/ipv6"):
        text = found.get(name, {}).get("string")
        if text is not None:
            assert len(text) <= 64
            parts = text.split(",")
            assert parts == sorted(parts)
            for part in parts:
                assert str(ipaddress.ip_interface(part)) == part


def test_pci_function() -> None:
    """A PCI function has the reference's attributes, the standard ones, and its driver and place among the VFs."""
    facts = FunctionFacts(
        address="0000:8a:00.1",
        driver="mlx5_core",
        vendor="Mellanox",
        device="ConnectX",
        subsystem="0008",
        pcie_root="pci0000:80",
        numa_node=1,
        several_nodes=True,
        physical_function="0000:8a:00.0",
        vf_index=0,
    )
    assert pci_attributes(facts) == {
        "dra.net/pciAddress": {"string": "0000:8a:00.1"},
        "dra.net/pciVendor": {"string": "Mellanox"},
        "dra.net/pciDevice": {"string": "ConnectX"},
        "dra.net/pciSubsystem": {"string": "0008"},
        "dra.net/numaNode": {"int": 1},
        "dra.net/driver": {"string": "mlx5_core"},
        "dra.net/pfPciAddress": {"string": "0000:8a:00.0"},
        "dra.net/vfIndex": {"int": 0},
        "resource.kubernetes.io/pciBusID": {"string": "0000:8a:00.1"},
        "resource.kubernetes.io/pcieRoot": {"string": "pci0000:80"},
        "resource.kubernetes.io/numaNode": {"int": 1},
    }


def test_pci_absence() -> None:
    """What is not known is absent; with one NUMA node the reference's ``numaNode`` is too, the standard one is not."""
    assert pci_attributes(FunctionFacts(address="0000:00:03.0")).keys() == {
        "dra.net/pciAddress",
        "resource.kubernetes.io/pciBusID",
    }
    found = pci_attributes(FunctionFacts(address="0000:00:03.0", numa_node=0))
    assert "dra.net/numaNode" not in found
    assert found["resource.kubernetes.io/numaNode"] == {"int": 0}


def test_numa_as_list() -> None:
    """With the feature of list attributes the standard ``numaNode`` lists the near nodes too."""
    facts = FunctionFacts(address="0000:00:03.0", numa_node=1, numa_nodes=(1, 0))
    assert placement_attributes(facts, list_types=True) == {"resource.kubernetes.io/numaNode": {"ints": [1, 0]}}


def test_rdma() -> None:
    """Every device says whether it has RDMA; if so which, and the state of its port."""
    assert plain(rdma_attributes(None)) == {"rdma": False}
    facts = RdmaFacts(name="mlx5_0", link_layer="Ethernet", port_state="ACTIVE", port_guid="0002:c903:00a1:2b3c")
    assert plain(rdma_attributes(facts)) == {
        "rdma": True,
        "rdmaDevice": "mlx5_0",
        "rdmaLinkLayer": "Ethernet",
        "rdmaPortState": "ACTIVE",
        "rdmaPortGUID": "0002:c903:00a1:2b3c",
    }
    assert plain(rdma_attributes(RdmaFacts(name="rxe0"))) == {"rdma": True, "rdmaDevice": "rxe0"}


def test_the_reference_for_users_is_whole() -> None:
    """``docs/user/devices.md`` has every attribute that can be published, with its type, and no other."""
    link = Link(index=2, name="eth1", phys_port_name="p0", phys_switch_id="0a0b")
    addresses = [address("10.71.0.2/24"), address("fd71::2/64")]
    facts = SysfsFacts(sriov_total_vfs=8, sriov_num_vfs=2, is_vf=True, speed=1000)
    everything = {
        **interface_attributes(link, addresses, facts, Programs(filters=("f",), tcx=("t",))),
        **pci_attributes(
            FunctionFacts(
                address="0000:8a:00.1",
                driver="d",
                vendor="v",
                device="d",
                subsystem="0008",
                pcie_root="pci0000:80",
                numa_node=1,
                several_nodes=True,
                physical_function="0000:8a:00.0",
                vf_index=0,
            )
        ),
        **rdma_attributes(RdmaFacts(name="r", link_layer="Ethernet", port_state="ACTIVE", port_guid="1")),
    }
    published = {name.removeprefix("dra.net/"): next(iter(value)) for name, value in everything.items()}
    page = (Path(__file__).resolve().parents[3] / "docs" / "user" / "devices.md").read_text(encoding="utf-8")
    section = page.partition("## Attributes")[2].partition("## ")[0]
    rows = re.findall(r"^\| (`[^|]+) \| (\w+) \|", section, re.MULTILINE)
    told = {name: kind for names, kind in rows for name in re.findall("`([^`]+)`", names)}
    assert told == published
    assert REFERENCE | {name for name in told if name not in REFERENCE} == told.keys()


def test_long_text_goes() -> None:
    """A text of 64 bytes stays, of 65 goes; bytes count, not characters; what is no UTF-8 goes."""
    kept, dropped = within_limits(
        {
            "dra.net/a": {"string": "x" * 64},
            "dra.net/b": {"string": "x" * 65},
            "dra.net/c": {"string": "ä" * 33},
            "dra.net/d": {"string": "\udcff"},
            "dra.net/e": {"int": 1 << 64},
            "dra.net/f": {"string": "ä" * 32},
        }
    )
    assert list(kept) == ["dra.net/a", "dra.net/f"]
    assert dropped == ("dra.net/b", "dra.net/c", "dra.net/d", "dra.net/e")


def test_too_many_go_in_order() -> None:
    """Of too many attributes ours go first, then the reference's, the standard ones last."""
    reference = [f"dra.net/{name}" for name in REFERENCE]
    standard = [f"resource.kubernetes.io/{name}" for name in ("pciBusID", "pcieRoot", "numaNode")]
    ours = [f"dra.net/zz{number:02d}" for number in range(20)]
    foreign = ["gce.dra.net/block"]
    kept, dropped = within_limits({name: {"bool": True} for name in (*ours, *foreign, *reference, *standard)})
    assert len(kept) == MAX_ATTRIBUTES
    assert {*reference, *standard} <= kept.keys()
    assert set(dropped) <= {*ours, *foreign}
    kept, dropped = within_limits(
        {name: {"bool": True} for name in (*(f"{s}{n}" for s in standard for n in range(12)),)}
    )
    assert len(kept) == MAX_ATTRIBUTES
    assert len(dropped) == 4


@given(
    st.dictionaries(
        st.from_regex(r"dra\.net/[a-z]{1,8}", fullmatch=True),
        st.one_of(
            st.fixed_dictionaries({"string": st.text(st.characters(), max_size=80)}),
            st.fixed_dictionaries({"int": st.integers()}),
            st.fixed_dictionaries({"bool": st.booleans()}),
        ),
        max_size=50,
    )
)
def test_whatever_comes_is_valid(attributes: dict[str, dict[str, Any]]) -> None:
    """What is kept always fits the API: count, bytes, 64-bit numbers, and text that JSON can carry."""
    kept, dropped = within_limits(attributes)
    assert kept.keys() | set(dropped) == attributes.keys()
    assert not kept.keys() & set(dropped)
    assert len(kept) <= MAX_ATTRIBUTES
    assert list(kept) == sorted(kept)
    for value in kept.values():
        assert len(str(value.get("string", "")).encode()) <= 64
        assert -(1 << 63) <= value.get("int", 0) < 1 << 63
    json.dumps(kept, ensure_ascii=False).encode()
