"""Names of devices."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from nri_dranet.inventory.names import interface_device_name, is_label, pci_device_name

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")

# What the kernel allows: 1 to 15 bytes, no white space, no slash, no colon, not "." and "..".
interface_names = st.text(
    st.characters(exclude_characters="/: \t\n\r\v\f\0\x85\xa0", codec="utf-8"), min_size=1, max_size=15
).filter(lambda name: len(name.encode()) <= 15 and name not in {".", ".."})


def test_reference_names() -> None:
    """Names are the reference's: the interface's own where it is a label, else base32; PCI by address."""
    assert interface_device_name("eth1") == "eth1"
    assert interface_device_name("eth1.100") == "net-mv2gqmjogeyda"
    assert interface_device_name("Eth_0") == "net-iv2gqxzq"
    assert interface_device_name("") == ""
    assert pci_device_name("0000:8A:00.0") == "pci-0000-8a-00-0"


def test_several_interfaces_of_a_function() -> None:
    """Interfaces of one PCI function are told apart by their port or name."""
    assert pci_device_name("0000:8a:00.0", "p1") == "pci-0000-8a-00-0-p1"
    assert pci_device_name("0000:8a:00.0", "eth.1") != pci_device_name("0000:8a:00.0", "eth-1")


@given(interface_names)
def test_interface_names_are_labels(name: str) -> None:
    """Whatever an interface is called, the device's name is a DNS label."""
    for found in (interface_device_name(name), pci_device_name("0000:8a:00.0", name)):
        assert LABEL.fullmatch(found)
        assert len(found) <= 63
        assert is_label(found)


@given(interface_names, interface_names)
def test_no_two_interfaces_share_a_name(one: str, other: str) -> None:
    """Two interfaces never get the same device name, nor does one take the name that another's encoding has."""
    if one != other:
        assert interface_device_name(one) != interface_device_name(other)
    assert interface_device_name(interface_device_name(one)) == interface_device_name(one) or (
        interface_device_name(one) != one
    )


def test_name_that_looks_encoded() -> None:
    """An interface called as another one would be encoded gets a name of its own."""
    odd = interface_device_name("A_b")
    assert odd.startswith("net-")
    assert interface_device_name(odd) != odd
    assert interface_device_name("net-eth") == "net-eth"


def test_long_qualifiers_stay_apart() -> None:
    """Qualifiers too long for a name are cut, and still differ."""
    names = {pci_device_name("0000:8a:00.0", "_" * 40 + end) for end in "ab"}
    assert len(names) == 2
    assert all(len(name) <= 63 and is_label(name) for name in names)
