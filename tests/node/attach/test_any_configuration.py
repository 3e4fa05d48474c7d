"""Whatever a claim says: it is refused when it is planned, or its pod works and the host is as before afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from tests.node.attach.documents import carry_out, documents


@pytest.mark.parametrize("shared", [False, True])
def test_a_plan_that_was_made_can_be_carried_out(world: Any, shared: bool) -> None:
    """The kernel refuses nothing of it, every address is there, and the host has everything back."""
    world.veth("n0", "10.71.0.2/24", "fd71::2/64")
    world.host("route", "add", "10.88.0.0/16", "via", "10.71.0.1", "dev", "n0", "metric", "7")
    before = world.state()
    assert carry_out(world, documents(), shared=shared, examples=80) > 5
    assert not world.changes(before)
