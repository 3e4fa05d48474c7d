"""Facts of every kind that can occur, and worse, for tests that let the status be written from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st

from nri_dranet.claims.facts import DeviceFacts, ObservedInterface, ObservedRdma, Phase
from nri_dranet.status import reasons

if TYPE_CHECKING:
    from nri_dranet.claims.model import DeviceKey

TEXTS = st.one_of(
    st.just(""),
    st.text(max_size=300),
    st.binary(max_size=300).map(lambda data: data.decode("utf-8", "surrogateescape")),
    st.just("ä" * 33_000),
)
"""What the kernel or an error may say."""

ADDRESSES = st.one_of(
    st.ip_addresses(v=4).flatmap(lambda ip: st.integers(0, 32).map(lambda length: f"{ip}/{length}")),
    st.ip_addresses(v=6).flatmap(lambda ip: st.integers(0, 128).map(lambda length: f"{ip.exploded.upper()}/{length}")),
    st.ip_addresses(v=4).flatmap(lambda ip: st.integers(0, 128).map(lambda length: f"::ffff:{ip}/{length}")),
    st.text(max_size=20),
)
MACS = st.one_of(st.just("86:d7:86:e6:f3:dd"), st.just(":".join(["00"] * 20)), TEXTS)
REASONS = st.one_of(st.just(""), st.sampled_from(sorted(reasons.CONDITIONS)), st.text(max_size=40))

INTERFACES = st.builds(
    ObservedInterface,
    name=st.one_of(st.just("net1"), TEXTS),
    hardware_address=MACS,
    addresses=st.lists(ADDRESSES, max_size=40).map(tuple),
    up=st.booleans(),
    carrier=st.sampled_from([True, False, None]),
    missing_addresses=st.lists(ADDRESSES, max_size=3).map(tuple),
    planned=st.integers(0, 40),
)
LINKS = st.builds(
    ObservedRdma,
    link=st.one_of(st.just("mlx5_0"), TEXTS),
    in_pod=st.booleans(),
    port_state=st.sampled_from(["", "ACTIVE", "DOWN", "INIT", "?"]),
    physical_state=st.sampled_from(["", "LINK_UP", "POLLING"]),
)


def facts(key: DeviceKey) -> st.SearchStrategy[DeviceFacts]:
    """Give any facts of one device."""
    return st.builds(
        DeviceFacts,
        key=st.just(key),
        request=st.just("r0"),
        phase=st.sampled_from(list(Phase)),
        reason=REASONS,
        message=TEXTS,
        step=st.one_of(st.just(""), TEXTS),
        label=st.one_of(st.just("eth1"), TEXTS),
        rdma_only=st.booleans(),
        admin=st.booleans(),
        exclusive_rdma=st.booleans(),
        interface=st.one_of(st.none(), INTERFACES),
        rdma=st.one_of(st.none(), LINKS),
    )
