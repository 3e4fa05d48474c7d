"""Settings of ports: what is built is read back, and what does not fit is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nri_dranet.netlink import codec, links, ports
from nri_dranet.netlink.codec import DecodeError, attribute, attribute_text, attributes, nest

SETTINGS = {
    "bridge": {"priority": 0xFFFF, "cost": 0xFFFF_FFFF, "hairpin": 1, "group_fwd_mask": 8, "backup_port": 7},
    "bond": {"queue_id": 3, "prio": -2},
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_are_read_back(kind: str) -> None:
    """What a request sets is what a link message with the same data says, and the request names link and master."""
    request = ports.set_port(4, kind, SETTINGS[kind])
    assert struct.unpack_from("=BxHiII", request.body) == (0, 0, 4, 0, 0)
    conf = links.parse_link_conf(request.body)
    assert conf.port == SETTINGS[kind]
    assert "bridge port" in request.label or "bond port" in request.label


def test_port_of_another_master() -> None:
    """A port of a VRF has no settings here, nor has an interface that is no port."""
    info = nest(18, attribute_text(4, "vrf"), nest(5, attribute(1, bytes(4))))
    assert links.parse_link_conf(bytes(16) + info).port == {}
    assert links.parse_link_conf(bytes(16)).port == {}


@pytest.mark.parametrize(
    ("kind", "settings", "word"),
    [("vrf", {"cost": 1}, "none"), ("bridge", {"weight": 1}, "cost"), ("bridge", {"hairpin": 300}, "does not fit")],
)
def test_unknown_settings_are_refused(kind: str, settings: dict[str, int], word: str) -> None:
    """A setting that the master does not have, or a value too large for it, is an error that says what there is."""
    with pytest.raises(ValueError, match=word):
        ports.set_port(4, kind, settings)


@given(st.sampled_from(["bridge", "bond"]), st.binary(max_size=60))
def test_hostile_bytes(kind: str, data: bytes) -> None:
    """Any bytes are read or refused with a DecodeError."""
    try:
        found = ports.parse_settings(kind, data)
    except DecodeError:
        return
    assert len(found) <= len(attributes(data))


def test_short_value() -> None:
    """A value that is shorter than its field is refused."""
    with pytest.raises(DecodeError, match="cost"):
        ports.parse_settings("bridge", codec.attribute_u16(3, 1))
