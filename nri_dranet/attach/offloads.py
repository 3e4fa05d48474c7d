"""Offload features and private flags of an interface: read, and change only what differs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nri_dranet.netlink.codec import DecodeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nri_dranet.netlink.ethtool import Ethtool


def read(ethtool: Ethtool, index: int) -> tuple[dict[str, bool], dict[str, bool]]:
    """Read the features that can be changed, as they are wanted, and the private flags.

    Raises:
        NetlinkError: ENODEV if there is no such interface, or the kernel refuses.
        DecodeError: the answer cannot be read.
    """
    features = {one.name: one.wanted for one in ethtool.features(index).values() if one.changeable}
    return features, ethtool.private_flags(index)


def apply(ethtool: Ethtool, index: int, features: Mapping[str, bool], flags: Mapping[str, bool]) -> list[str]:
    """Make features and private flags what they shall be.

    Returns:
        What could not be changed, in words.
    """
    problems: list[str] = []
    try:
        if features:
            present = ethtool.features(index)
            changes = {name: on for name, on in features.items() if name not in present or present[name].wanted != on}
            problems += [_words("feature", name, on=changes[name]) for name in ethtool.set_features(index, changes)]
        if flags:
            have = ethtool.private_flags(index)
            changes = {name: on for name, on in flags.items() if have.get(name) != on}
            missed = ethtool.set_private_flags(index, changes)
            problems += [_words("private flag", name, on=changes[name]) for name in missed]
    except (OSError, ValueError, DecodeError) as error:
        problems.append(str(error))
    return problems


def _words(what: str, name: str, *, on: bool) -> str:
    return f"the {what} {name} cannot be switched {'on' if on else 'off'} on this device"
