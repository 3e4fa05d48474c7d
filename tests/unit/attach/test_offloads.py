"""Features and private flags: only what differs is changed, and what cannot be is told."""

from __future__ import annotations

import errno
from typing import Any, cast

from nri_dranet.attach import offloads
from nri_dranet.netlink.codec import NetlinkError
from nri_dranet.netlink.ethtool import Feature, UnknownNameError


class Device:
    """An interface with two features and a private flag, one of which cannot be changed."""

    def __init__(self) -> None:
        self.have = {"rx-gro": True, "tx-lockless": False}
        self.flags = {"disable-fw-lldp": False}
        self.changes: list[dict[str, bool]] = []

    def features(self, index: int) -> dict[str, Feature]:
        """Give the features."""
        assert index == 7
        return {
            name: Feature(name, changeable=name == "rx-gro", wanted=on, active=on) for name, on in self.have.items()
        }

    def set_features(self, index: int, wanted: dict[str, bool]) -> tuple[str, ...]:
        """Change features; unknown names are refused, those that cannot be changed missed."""
        assert index == 7
        self.changes.append(wanted)
        for name in wanted:
            if name not in self.have:
                raise UnknownNameError("feature", name, self.have)
        return tuple(name for name in wanted if name != "rx-gro")

    def private_flags(self, index: int) -> dict[str, bool]:
        """Give the flags."""
        assert index == 7
        return self.flags

    def set_private_flags(self, index: int, wanted: dict[str, bool]) -> tuple[str, ...]:
        """Refuse every change."""
        assert index == 7
        return tuple(wanted)


def test_read() -> None:
    """Only features that can be changed are read, as they are wanted."""
    assert offloads.read(cast("Any", Device()), 7) == ({"rx-gro": True}, {"disable-fw-lldp": False})


def test_apply() -> None:
    """What is so already is not asked for; what could not be changed is told, each in its words."""
    device = Device()
    given = cast("Any", device)
    assert offloads.apply(given, 7, {"rx-gro": True}, {}) == []
    assert device.changes == [{}]
    assert offloads.apply(given, 7, {"rx-gro": False}, {"disable-fw-lldp": False}) == []
    problems = offloads.apply(given, 7, {"tx-lockless": True}, {"disable-fw-lldp": True})
    assert problems == [
        "the feature tx-lockless cannot be switched on on this device",
        "the private flag disable-fw-lldp cannot be switched on on this device",
    ]
    assert "known are" in offloads.apply(given, 7, {"nonsense": True}, {})[0]


def test_kernel_that_refuses() -> None:
    """The kernel's refusal is a problem, not an exception."""

    class Refusing(Device):
        def features(self, index: int) -> dict[str, Feature]:
            raise NetlinkError(errno.ENOENT, f"read features of link {index}")

    assert "read features of link 7" in offloads.apply(cast("Any", Refusing()), 7, {"rx-gro": True}, {})[0]
