"""The values of a configuration: each function takes a user's spelling and returns the canonical one, or says why not.

All raise ``ValueError``, whose text tells what is allowed. Sources of the rules: ``dev_valid_name`` and ``IFNAMSIZ``
(``linux/if.h``), ``is_valid_ether_addr`` (``linux/etherdevice.h``), RFC 4291, RFC 5952, RFC 1122.
"""

from __future__ import annotations

import ipaddress
import re

IP = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_NAME = 15
"""Bytes of an interface name: ``IFNAMSIZ`` without the closing zero."""

RESERVED_NAMES = {
    "lo": "every pod has a loopback interface of this name",
    "all": "the kernel keeps settings of all interfaces under this name",
    "default": "the kernel keeps settings of future interfaces under this name",
    "eth0": "container runtimes give this name to the pod's own interface",
}
"""Names that an interface cannot have, with the reason."""

ETHERNET_BYTES = 6
IPOIB_BYTES = 20
_LINK_ADDRESS_BYTES = (ETHERNET_BYTES, 8, IPOIB_BYTES)

_PREFIX_LENGTH = re.compile(r"0|[1-9][0-9]{0,2}")
_PAIRS = re.compile(r"[0-9A-Fa-f]{2}(?:([:-])[0-9A-Fa-f]{2}(?:\1[0-9A-Fa-f]{2})*)?")
_DOTTED = re.compile(r"[0-9A-Fa-f]{4}(?:\.[0-9A-Fa-f]{4})+")


def interface_name(text: str) -> str:
    """Check the name of an interface by the kernel's rule, and that nothing else in a pod has it."""
    problem = _name_problem(text)
    if problem:
        raise ValueError(
            f"must be a name that the kernel takes: 1 to {MAX_NAME} printable ASCII characters without "
            f"'/', ':', '%' and spaces; {problem}"
        )
    if text in RESERVED_NAMES:
        raise ValueError(f"must be another name: {RESERVED_NAMES[text]}")
    return text


def _name_problem(text: str) -> str:
    size = len(text.encode("utf-8", "surrogatepass"))
    if not text:
        return "it is empty"
    if size > MAX_NAME:
        return f"it has {size} bytes"
    if text in {".", ".."}:
        return "'.' and '..' are names of directories"
    bad = next((char for char in text if not "!" <= char <= "~" or char in "/:%"), "")
    return f"it has {bad.encode('ascii', 'backslashreplace').decode()!r}" if bad else ""


def feature_name(text: str) -> str:
    """Check the name of an ethtool feature or private flag (``ETH_GSTRING_LEN`` is 32)."""
    if not 1 <= len(text) <= 31 or not all(" " <= char <= "~" for char in text):
        raise ValueError("must be a name of 1 to 31 printable ASCII characters")
    return text


def hardware_address(text: str, sizes: tuple[int, ...] = _LINK_ADDRESS_BYTES) -> str:
    """Return a hardware address as lower-case pairs with colons.

    Pairs with ``:`` or ``-`` and groups of four digits with ``.`` are read, in either case.
    """
    if not (_PAIRS.fullmatch(text) or _DOTTED.fullmatch(text)):
        raise ValueError(f"must be a hardware address such as 02:00:5e:10:00:01, of {_one_of(sizes)} bytes")
    digits = re.sub("[:.-]", "", text).lower()
    raw = bytes.fromhex(digits)
    if len(raw) not in sizes:
        raise ValueError(f"must be a hardware address of {_one_of(sizes)} bytes, has {len(raw)}")
    return raw.hex(":")


def interface_hardware_address(text: str) -> str:
    """Return the hardware address for an interface: 6 bytes, unicast, not zero; or the 20 bytes of IPoIB."""
    address = hardware_address(text, (ETHERNET_BYTES, IPOIB_BYTES))
    raw = bytes.fromhex(address.replace(":", ""))
    if len(raw) == ETHERNET_BYTES and raw[0] & 1:
        raise ValueError("must be a unicast address: the lowest bit of its first byte must be 0")
    if not any(raw[-8:]):
        raise ValueError("must not be zero")
    return address


def _one_of(sizes: tuple[int, ...]) -> str:
    *first, last = [str(size) for size in sizes]
    return f"{', '.join(first)} or {last}" if first else last


def ip_address(text: str) -> IP:
    """Read an IP address without zone; spellings that hide an IPv4 address in an IPv6 one are refused."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError("must be an IPv4 or IPv6 address") from None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise ValueError("must be an address without a zone")
        if address.ipv4_mapped is not None:
            raise ValueError(f"must be written as the IPv4 address {address.ipv4_mapped}")
    return address


def _split_prefix(text: str) -> tuple[IP, int]:
    address_text, slash, length_text = text.partition("/")
    if not slash or not _PREFIX_LENGTH.fullmatch(length_text):
        raise ValueError("must be an address with prefix length, such as 10.0.0.5/24 or fd00::5/64")
    address = ip_address(address_text)
    length = int(length_text)
    if length > address.max_prefixlen:
        raise ValueError(f"must have a prefix length of at most {address.max_prefixlen}")
    return address, length


def interface_address(text: str) -> str:
    """Return an address of an interface in canonical CIDR form.

    The address of the network itself is taken, as the kernel takes it; what can be no host's address is not.
    """
    address, length = _split_prefix(text)
    _refuse_no_host(address)
    if length == 0:
        raise ValueError("must have a prefix length of at least 1: with 0 every address would be on this network")
    if isinstance(address, ipaddress.IPv4Address) and length < 31:
        network = ipaddress.IPv4Network((address, length), strict=False)
        if address == network.broadcast_address:
            raise ValueError(f"must not be the broadcast address of {network}")
    return f"{address}/{length}"


def broadcast_address(cidr: str) -> str | None:
    """Return the broadcast address of the network of an interface's address; None where it has none."""
    interface = ipaddress.ip_interface(cidr)
    if interface.version == 6 or interface.network.prefixlen > 30:
        return None
    return str(interface.network.broadcast_address)


def host_address(text: str) -> str:
    """Return the canonical form of an address that one host has: a gateway, a route's source, a neighbour."""
    address = ip_address(text)
    _refuse_no_host(address)
    return str(address)


def _refuse_no_host(address: IP) -> None:
    if address.is_unspecified:
        raise ValueError("must not be the unspecified address")
    if address.is_multicast:
        raise ValueError("must not be a multicast address")
    if address.is_loopback:
        raise ValueError("must not be a loopback address")
    if address.version == 4 and int(address) == 0xFFFF_FFFF:
        raise ValueError("must not be the broadcast address")


def network(text: str) -> str:
    """Return a network in canonical CIDR form; bits of the host part are cleared."""
    address, length = _split_prefix(text)
    return str(ipaddress.ip_network((int(address) if address.version == 4 else address, length), strict=False))


def family_of(text: str) -> int | None:
    """Return 4 or 6 for the text of an address or network; None where it is neither."""
    try:
        return ipaddress.ip_address(text.partition("/")[0]).version
    except ValueError:
        return None
