"""ethtool over generic netlink: features (offloads) and private flags of an interface, by name.

Bit sets travel in their compact form: words of 32 bits, bit *n* named by string *n* of a string set. The names of the
features are the kernel's and asked for once; those of private flags are the driver's and asked for each time.

Source of the facts: ``linux/ethtool_netlink.h``, the kernel's ``Documentation/networking/ethtool-netlink.rst``,
``net/ethtool/features.c``.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nri_dranet.netlink import codec, genl
from nri_dranet.netlink.codec import DecodeError, Request
from nri_dranet.netlink.genl import GenlSocket

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType
    from typing import Self

    from nri_dranet.netlink.namespaces import NetNs
    from nri_dranet.netlink.transport import Answer

FAMILY: Final = "ethtool"
_VERSION: Final = 1

_MSG_STRSET_GET: Final = 1
_MSG_FEATURES_GET: Final = 11
_MSG_FEATURES_SET: Final = 12
_MSG_PRIVFLAGS_GET: Final = 13
_MSG_PRIVFLAGS_SET: Final = 14

_HEADER_DEV_INDEX: Final = 1
_HEADER_FLAGS: Final = 3
_FLAG_COMPACT_BITSETS: Final = 1

_BITSET_NOMASK: Final = 1
_BITSET_SIZE: Final = 2
_BITSET_VALUE: Final = 4
_BITSET_MASK: Final = 5

_STRSET_HEADER: Final = 1
_STRSET_STRINGSETS: Final = 2
_STRINGSETS_STRINGSET: Final = 1
_STRINGSET_ID: Final = 1
_STRINGSET_STRINGS: Final = 3
_STRINGS_STRING: Final = 1
_STRING_INDEX: Final = 1
_STRING_VALUE: Final = 2

_SS_PRIV_FLAGS: Final = 2
_SS_FEATURES: Final = 4

_FEATURES_HEADER: Final = 1
_FEATURES_HW: Final = 2
_FEATURES_WANTED: Final = 3
_FEATURES_ACTIVE: Final = 4
_FEATURES_NOCHANGE: Final = 5

_PRIVFLAGS_HEADER: Final = 1
_PRIVFLAGS_FLAGS: Final = 2


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature of an interface.

    ``changeable``: the driver lets it be switched (``hw_features``, without what the kernel never changes).
    ``wanted`` is what was asked for, ``active`` what is; they differ while another feature or the driver forbids it.
    """

    name: str
    changeable: bool
    wanted: bool
    active: bool
    never_changes: bool = False


def pack_bits(bits: Iterable[int], size: int) -> bytes:
    """Write bit numbers as words of 32 bits.

    Raises:
        ValueError: a number is not below ``size``.
    """
    words = [0] * ((size + 31) // 32)
    for bit in bits:
        if not 0 <= bit < size:
            raise ValueError(f"bit {bit} is not within {size}")
        words[bit // 32] |= 1 << bit % 32
    return struct.pack(f"={len(words)}I", *words)


def unpack_bits(data: bytes) -> int:
    """Read words of 32 bits as one number, bit *n* of which is bit *n* of the set."""
    number = 0
    for place, (word,) in enumerate(struct.iter_unpack("=I", data[: len(data) & ~3])):
        number |= word << 32 * place
    return number


def bitset(size: int, values: Iterable[int], mask: Iterable[int]) -> tuple[bytes, ...]:
    """Give the attributes of a compact bit set: of the bits in ``mask``, those in ``values`` are set."""
    return (
        codec.attribute_u32(_BITSET_SIZE, size),
        codec.attribute(_BITSET_VALUE, pack_bits(values, size)),
        codec.attribute(_BITSET_MASK, pack_bits(mask, size)),
    )


def parse_bitset(data: bytes) -> tuple[int, int]:
    """Read a compact bit set: its values and its mask (all of its size where it has none).

    Raises:
        DecodeError: it is truncated, or in the other form, with names.
    """
    found = codec.attributes(data)
    if _BITSET_SIZE not in found or _BITSET_VALUE not in found:
        raise DecodeError("ethtool bit set that is not compact")
    full = (1 << min(codec.u32(found[_BITSET_SIZE]), 1 << 16)) - 1
    mask = unpack_bits(found[_BITSET_MASK]) if _BITSET_MASK in found else full
    return unpack_bits(found[_BITSET_VALUE]), mask


def _header(kind: int, index: int) -> bytes:
    parts = [codec.attribute_u32(_HEADER_FLAGS, _FLAG_COMPACT_BITSETS)]
    if index:
        parts.insert(0, codec.attribute_u32(_HEADER_DEV_INDEX, index))
    return codec.nest(kind, *parts)


def get_strings(family: int, string_set: int, index: int = 0) -> Request:
    """Ask for the strings of a set: of an interface, or (``index`` 0) of the kernel."""
    wanted = codec.nest(_STRINGSETS_STRINGSET, codec.attribute_u32(_STRINGSET_ID, string_set))
    content = genl.body(
        _MSG_STRSET_GET, _VERSION, _header(_STRSET_HEADER, index), codec.nest(_STRSET_STRINGSETS, wanted)
    )
    return Request(family, 0, content, f"read ethtool string set {string_set}")


def parse_strings(data: bytes) -> dict[int, str]:
    """Read the answer to ``get_strings``: strings by number.

    Raises:
        DecodeError: it is truncated or malformed.
    """
    _, found = genl.parse_body(data)
    strings = {}
    for _, one_set in codec.attribute_list(found.get(_STRSET_STRINGSETS, b"")):
        for _, item in codec.attribute_list(codec.attributes(one_set).get(_STRINGSET_STRINGS, b"")):
            value = codec.attributes(item)
            if _STRING_INDEX in value and _STRING_VALUE in value:
                strings[codec.u32(value[_STRING_INDEX])] = codec.string(value[_STRING_VALUE])
    return strings


def get_features(family: int, index: int) -> Request:
    """Ask for the features of an interface."""
    content = genl.body(_MSG_FEATURES_GET, _VERSION, _header(_FEATURES_HEADER, index))
    return Request(family, 0, content, f"read features of link {index}")


def parse_features(data: bytes, names: Mapping[int, str]) -> dict[str, Feature]:
    """Read the answer to ``get_features``; numbers without a name are left out.

    Raises:
        DecodeError: it is truncated or malformed.
    """
    _, found = genl.parse_body(data)
    kinds = (_FEATURES_HW, _FEATURES_WANTED, _FEATURES_ACTIVE, _FEATURES_NOCHANGE)
    hardware, wanted, active, never = (parse_bitset(found[kind])[0] if kind in found else 0 for kind in kinds)
    features = {}
    for number, name in names.items():
        if name:
            bit = 1 << number
            features[name] = Feature(
                name,
                changeable=bool(hardware & ~never & bit),
                wanted=bool(wanted & bit),
                active=bool(active & bit),
                never_changes=bool(never & bit),
            )
    return features


def set_bits(family: int, command: int, index: int, numbers: Mapping[int, bool], size: int) -> Request:
    """Ask to change features (``_MSG_FEATURES_SET``) or private flags by number."""
    header, kind, words = (
        (_FEATURES_HEADER, _FEATURES_WANTED, "features")
        if command == _MSG_FEATURES_SET
        else (_PRIVFLAGS_HEADER, _PRIVFLAGS_FLAGS, "private flags")
    )
    parts = bitset(size, [number for number, on in numbers.items() if on], numbers)
    content = genl.body(command, _VERSION, _header(header, index), codec.nest(kind, *parts))
    return Request(family, 0, content, f"set {words} of link {index}")


def get_private_flags(family: int, index: int) -> Request:
    """Ask for the private flags of an interface."""
    content = genl.body(_MSG_PRIVFLAGS_GET, _VERSION, _header(_PRIVFLAGS_HEADER, index))
    return Request(family, 0, content, f"read private flags of link {index}")


def parse_private_flags(data: bytes, names: Mapping[int, str]) -> dict[str, bool]:
    """Read the answer to ``get_private_flags``.

    Raises:
        DecodeError: it is truncated or malformed.
    """
    _, found = genl.parse_body(data)
    if _PRIVFLAGS_FLAGS not in found:
        return {}
    values, _ = parse_bitset(found[_PRIVFLAGS_FLAGS])
    return {name: bool(values >> number & 1) for number, name in names.items() if name}


class UnknownNameError(ValueError):
    """The interface has no feature or private flag of a name; ``known`` lists those that it has."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(sorted(known))
        super().__init__(f"{what} {name!r} is unknown; known are: {', '.join(self.known) or 'none'}")


class Ethtool:
    """Features and private flags in one namespace. Threads may share it.

    Args:
        netns: the namespace; None: the one in which the calling thread is.

    Raises:
        OSError: the socket cannot be made.
    """

    _feature_names: Final[dict[int, str]] = {}

    def __init__(self, netns: NetNs | None = None) -> None:
        self._socket = GenlSocket(netns)

    def close(self) -> None:
        """Close the socket. A second call does nothing."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def send_calls(self) -> int:
        """How many calls to the kernel were made."""
        return self._socket.send_calls

    def _family(self) -> int:
        return self._socket.family(FAMILY).id

    def _ask(self, *requests: Request) -> list[Answer]:
        answers = self._socket.exchange(requests)
        for answer in answers:
            if answer.error:
                raise answer.error
        return answers

    def _names(self) -> dict[int, str]:
        if not self._feature_names:
            (answer,) = self._ask(get_strings(self._family(), _SS_FEATURES))
            self._feature_names.update(parse_strings(answer.messages[0].body))
        return self._feature_names

    def features(self, index: int) -> dict[str, Feature]:
        """Give the features of an interface by name.

        Raises:
            NetlinkError: ENODEV if there is no such interface, ENOENT if the kernel has no ethtool over netlink.
        """
        names = self._names()
        (answer,) = self._ask(get_features(self._family(), index))
        return parse_features(answer.messages[0].body, names)

    def set_features(self, index: int, wanted: Mapping[str, bool]) -> tuple[str, ...]:
        """Switch features; give the names of those that are not as asked afterwards.

        Args:
            index: the interface.
            wanted: the kernel's names (``rx-gro``, not ``gro``).

        Raises:
            UnknownNameError: a name is unknown to the kernel; nothing was changed.
            NetlinkError: the kernel refused (EINVAL for a feature that never changes).
        """
        if not wanted:
            return ()
        names = self._names()
        numbers = {name: number for number, name in names.items()}
        for name in wanted:
            if not name or name not in numbers:
                raise UnknownNameError("feature", name, (known for known in numbers if known))
        chosen = {numbers[name]: on for name, on in wanted.items()}
        (answer,) = self._ask(set_bits(self._family(), _MSG_FEATURES_SET, index, chosen, max(names) + 1))
        if not answer.messages:
            return ()
        _, found = genl.parse_body(answer.messages[0].body)
        # The reply's WANTED has in its mask the bits that were asked for and are not so now.
        missed = parse_bitset(found[_FEATURES_WANTED])[1] if _FEATURES_WANTED in found else 0
        return tuple(names[number] for number in sorted(chosen) if missed >> number & 1)

    def private_flags(self, index: int) -> dict[str, bool]:
        """Give the driver's private flags by name; empty where it has none.

        Raises:
            NetlinkError: ENODEV if there is no such interface.
        """
        names = self._flag_names(index)
        return self._read_flags(index, names) if names else {}

    def set_private_flags(self, index: int, wanted: Mapping[str, bool]) -> tuple[str, ...]:
        """Switch private flags; give the names of those that are not as asked afterwards.

        Raises:
            UnknownNameError: the driver has no flag of a name; nothing was changed.
            NetlinkError: the driver refused.
        """
        if not wanted:
            return ()
        names = self._flag_names(index)
        numbers = {name: number for number, name in names.items()}
        for name in wanted:
            if name not in numbers:
                raise UnknownNameError("private flag", name, numbers)
        chosen = {numbers[name]: on for name, on in wanted.items()}
        self._ask(set_bits(self._family(), _MSG_PRIVFLAGS_SET, index, chosen, max(names) + 1))
        after = self._read_flags(index, names)
        return tuple(name for name, on in wanted.items() if after.get(name) != on)

    def _flag_names(self, index: int) -> dict[int, str]:
        request = get_strings(self._family(), _SS_PRIV_FLAGS, index)
        answer = self._socket.exchange((request,))[0]
        if answer.error:
            if answer.error.errno == errno.EOPNOTSUPP:
                return {}
            raise answer.error
        return parse_strings(answer.messages[0].body) if answer.messages else {}

    def _read_flags(self, index: int, names: Mapping[int, str]) -> dict[str, bool]:
        (answer,) = self._ask(get_private_flags(self._family(), index))
        return parse_private_flags(answer.messages[0].body, names)
