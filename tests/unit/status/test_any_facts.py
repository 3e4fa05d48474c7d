"""Whatever is known of a device, what is written of it is taken by the API server, on either way, and is read back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nri_dranet.claims.facts import ClaimFacts, DeviceFacts
from nri_dranet.claims.model import DeviceKey
from nri_dranet.status.desired import desired_status
from nri_dranet.status.wire import StatusWire
from tests.unit.status.any_facts import facts as any_facts

if TYPE_CHECKING:
    from nri_dranet.kube.client import KubeClient

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize("second_way", [False, True])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(one=any_facts(DeviceKey("n1", "eth1")), two=any_facts(DeviceKey("n1", "eth2")), again=st.booleans())
def test_nothing_that_can_be_written_is_refused(  # noqa: PLR0917 - one example
    claims: Any, client: KubeClient, second_way: bool, one: DeviceFacts, two: DeviceFacts, again: bool
) -> None:
    """Over what was written of other facts before; afterwards the claim says what was to be written."""
    if not hasattr(claims, "ref"):
        claims.ref = claims.make(devices=(("dra.net", "eth1"), ("dra.net", "eth2")))
        claims.wire = StatusWire(client, "dra.net", "n1")
        if second_way:
            claims.wire._remember(claims.ref)
    claim = claims.read()
    desired = desired_status(ClaimFacts(ref=claims.ref, devices=(one, two)), claim, "dra.net", NOW)
    if desired.differs or again:
        claims.wire.write(claims.ref, desired, claim)
    assert not desired.altered(claims.read())
