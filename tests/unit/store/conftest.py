"""A claim's record as Prepare makes it, for tests of the journal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from nri_dranet.claims.facts import DeviceFacts, Phase
from nri_dranet.claims.model import ClaimRef, DeviceKey, PodRef
from nri_dranet.claims.plan import ClaimPlan, DeviceKind, DevicePlan, HostState, PodState
from nri_dranet.claims.record import ClaimRecord
from nri_dranet.netlink.model import Address, Link, Route
from nri_dranet.store.journal import Journal

if TYPE_CHECKING:
    from pathlib import Path

MakeRecord = Callable[..., ClaimRecord]


@pytest.fixture
def make_record() -> MakeRecord:
    """Return a factory of records: ``make_record(uid, device=…, pod=…)``."""

    def make(uid: str = "u1", *, device: str = "eth1", pod: str = "p1") -> ClaimRecord:
        link = Link(index=7, name=device, address="02:00:00:00:00:07", altnames=("enp7s0",), carrier=True)
        plan = DevicePlan(
            key=DeviceKey("node", device),
            request="nic",
            kind=DeviceKind.INTERFACE,
            host=HostState(
                link=link,
                addresses=(Address(family=2, address="10.1.0.2", prefix_length=24),),
                routes=(Route(family=2, destination="10.2.0.0/16", gateway="10.1.0.1", metrics={"mtu": 1400}),),
                sysctls={"ipv4/conf/arp_ignore": "1"},
            ),
            pod=PodState(name="net1", mtu=1400),
            published={"name": device, "attributes": {"dra.net/ifName": {"string": device}}},
        )
        ref = ClaimRef("default", f"claim-{uid}", uid)
        return ClaimRecord(
            plan=ClaimPlan(
                ref=ref, allocation_hash="h1", devices=(plan,), pods=(PodRef("default", f"pod-{pod}", pod),)
            ),
            facts=(DeviceFacts(key=plan.key, request="nic", phase=Phase.PREPARED),),
        )

    return make


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the journal is."""
    return tmp_path / "state" / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    """Open a new journal and close it after the test."""
    opened = Journal(path, "boot-1")
    yield opened
    opened.close()
