"""Options: golden bytes of what servers send, and what cannot be read is refused in words."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nri_dranet.dhcp import options
from nri_dranet.dhcp.errors import DecodeError


def test_parts_of_an_option_are_joined_in_the_order_of_rfc_3396() -> None:
    """First the options field, then file, then sname; what stands between does not matter."""
    data = bytes.fromhex("3401 037902 01610c01 787901 00ff7902 dead")
    file = bytes.fromhex("7903 01620300ff")
    sname = bytes.fromhex("7903 636465ff")
    found = options.decode(data, file=file, sname=sname)
    assert found == {121: bytes.fromhex("016100 016203 636465"), 12: b"x"}


@pytest.mark.parametrize(
    ("overload", "expected"), [("01", {1: b"f"}), ("02", {1: b"s"}), ("03", {1: b"fs"})], ids=["file", "sname", "both"]
)
def test_overload_says_which_fields_have_options(overload: str, expected: dict[int, bytes]) -> None:
    """Only the fields that option 52 names are read."""
    data = bytes.fromhex(f"3401{overload}ff")
    assert options.decode(data, file=b"\1\1f\xff", sname=b"\1\1s\xff") == expected


def test_without_overload_the_fields_are_names() -> None:
    """A boot file's name is not read as options."""
    assert options.decode(b"\x0c\1x\xff", file=b"pxelinux.0", sname=b"\xff") == {12: b"x"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("0104ffff", "option 1 runs over the end of the options field"),
        ("33", "option 51 runs over"),
        ("34020101", "overload"),
        ("340104", "overload"),
        ("3401010000ff", "option 9 runs over the end of the file field"),
    ],
)
def test_a_field_that_breaks_off_is_refused(data: str, words: str) -> None:
    """The text names the option and the field."""
    with pytest.raises(DecodeError, match=words):
        options.decode(bytes.fromhex(data), file=b"\x09\x09x")


def test_a_field_without_its_end_mark_is_read() -> None:
    """Some servers forget it; the field ends then."""
    assert options.decode(b"\x0c\1x") == {12: b"x"}


@given(st.dictionaries(st.integers(1, 254).filter(lambda code: code != options.OVERLOAD), st.binary(max_size=700)))
def test_what_was_written_is_read(given_options: dict[int, bytes]) -> None:
    """Options of any length come back, those over 255 bytes from several parts."""
    assert options.decode(options.encode(given_options)) == given_options


@given(st.binary(max_size=600), st.binary(max_size=128), st.binary(max_size=64))
def test_hostile_options_are_read_or_refused(data: bytes, file: bytes, sname: bytes) -> None:
    """No bytes make anything else than values or a refusal, and no more bytes come out than went in."""
    try:
        found = options.decode(data, file=file, sname=sname)
    except DecodeError:
        return
    assert sum(map(len, found.values())) <= len(data) + len(file) + len(sname)


@given(st.binary(max_size=1400))
def test_hostile_values_are_read_or_refused(value: bytes) -> None:
    """Every reader gives a bounded value or a refusal."""
    for read, limit in (
        (options.addresses, options.MAX_SERVERS),
        (options.classless_routes, options.MAX_ROUTES),
        (options.static_routes, options.MAX_ROUTES),
        (options.search_domains, options.MAX_DOMAINS),
    ):
        try:
            assert len(read(value)) <= limit
        except DecodeError:
            continue
    assert len(options.domain(value)) < 255
    assert options.text(value).isprintable()


@pytest.mark.parametrize(
    ("mask", "length"), [("ffffff00", 24), ("ffffffff", 32), ("80000000", 1), ("fffffffe", 31)], ids=str
)
def test_a_mask_is_a_prefix_length(mask: str, length: int) -> None:
    """The masks that servers send."""
    assert options.prefix_length(bytes.fromhex(mask)) == length


@pytest.mark.parametrize("mask", ["00000000", "ff00ff00", "00ffffff", "ffff", ""])
def test_a_mask_with_holes_is_refused(mask: str) -> None:
    """Neither holes, nor zero, nor another length."""
    with pytest.raises(DecodeError):
        options.prefix_length(bytes.fromhex(mask))


@pytest.mark.parametrize(("ip", "length"), [("10.0.0.1", 8), ("127.0.0.1", 8), ("172.16.0.1", 16), ("192.168.0.1", 24)])
def test_an_address_has_a_class(ip: str, length: int) -> None:
    """RFC 791: the first bits decide."""
    assert options.class_prefix_length(ip) == length


def test_classless_routes_are_those_of_rfc_3442() -> None:
    """The RFC's own examples of descriptors, a default route, one on the link, and bits beyond the prefix."""
    value = bytes.fromhex(
        "00 0a000001"  # the default route
        "080a 0a000002"  # 10/8
        "180a0000 0a000003"  # 10.0.0/24
        "100a11 0a000004"  # 10.17/16
        "180a1b81 0a000005"  # 10.27.129/24
        "190a e58000 0a000006"  # 10.229.0.128/25
        "200a c60245 00000000"  # a host on the link
        "0cac1f 0a000007"  # 172.31/12: the bits beyond are cut off
        "080a 0a000009"  # a repeat
    )
    assert options.classless_routes(value) == (
        ("0.0.0.0/0", "10.0.0.1"),
        ("10.0.0.0/8", "10.0.0.2"),
        ("10.0.0.0/24", "10.0.0.3"),
        ("10.17.0.0/16", "10.0.0.4"),
        ("10.27.129.0/24", "10.0.0.5"),
        ("10.229.128.0/25", "10.0.0.6"),
        ("10.198.2.69/32", None),
        ("172.16.0.0/12", "10.0.0.7"),
    )


@pytest.mark.parametrize("value", ["21 0a000001 0a000001", "18 0a00", "00 0a0000"])
def test_classless_routes_that_break_off_are_refused(value: str) -> None:
    """A prefix length over 32, a destination or gateway that is not whole."""
    with pytest.raises(DecodeError, match="option 121"):
        options.classless_routes(bytes.fromhex(value))


@given(
    st.dictionaries(
        st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
            lambda each: str(ipaddress.IPv4Network(each, strict=False))
        ),
        st.integers(1, 2**32 - 1).map(lambda each: str(ipaddress.IPv4Address(each))),
        max_size=40,
    )
)
def test_routes_that_were_written_are_read(routes: dict[str, str]) -> None:
    """Any destination and gateway."""
    assert dict(options.classless_routes(options.pack_routes(routes))) == routes


def test_static_routes_go_by_class() -> None:
    """A network of its class, a host where there are more bits; the default route is illegal there."""
    value = bytes.fromhex("0a000000 0a000001c0a80105 0a00000200000000 0a000003ac100000 0a000004")
    assert options.static_routes(value) == (
        ("10.0.0.0/8", "10.0.0.1"),
        ("192.168.1.5/32", "10.0.0.2"),
        ("172.16.0.0/16", "10.0.0.4"),
    )
    with pytest.raises(DecodeError, match="multiple of 8"):
        options.static_routes(b"\x0a\0\0\0")


def test_search_domains_may_be_compressed() -> None:
    """RFC 3397's example: a pointer leads back to an earlier name."""
    value = b"\3eng\5apple\3com\0\x09marketing\xc0\x04"
    assert options.search_domains(value) == ("eng.apple.com", "marketing.apple.com")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"\xc0\x00", "lead back"),
        (b"\1a\xc0\x00", "lead back"),
        (b"\1a\xc0\x09", "lead back"),
        (b"\1a\0\xc0", "within a pointer"),
        (b"\1a", "within a name"),
        (b"\x40a\0", "unknown kind"),
        (b"\5ab", "too long"),
        (b"\x3f" + b"a" * 63 + (b"\x3f" + b"a" * 63) * 4 + b"\0", "too long"),
    ],
)
def test_a_name_that_goes_wrong_is_refused(value: bytes, words: str) -> None:
    """Pointers that go round in circles, names that break off or are too long."""
    with pytest.raises(DecodeError, match=words):
        options.search_domains(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"Example.ORG.\0", "example.org"),
        (b"a b", ""),
        (b"x;rm -rf /", ""),
        ("bücher.example".encode(), ""),
        (b"", ""),
        (b"a..b", ""),
        (b"_dns.example", "_dns.example"),
        (b"a" * 64, ""),
    ],
)
def test_a_domain_is_a_name_or_nothing(value: bytes, expected: str) -> None:
    """What is no name of the DNS is left out: it may end up in somebody's resolv.conf."""
    assert options.domain(value) == expected


def test_text_of_a_server_is_printable() -> None:
    """Control characters and bytes that are no ASCII become question marks."""
    assert options.text(b"no\x1b[31m \xff!\0\0") == "no?[31m ?!"


def test_lists_of_addresses_have_each_once() -> None:
    """Order is kept, repeats go, wrong lengths are refused."""
    assert options.addresses(bytes.fromhex("0a000001 0a000002 0a000001")) == ("10.0.0.1", "10.0.0.2")
    for wrong in (b"", b"\x0a\0\0"):
        with pytest.raises(DecodeError):
            options.addresses(wrong)
    with pytest.raises(DecodeError):
        options.address(b"\x0a")
    with pytest.raises(DecodeError):
        options.number(b"\0", 2)
