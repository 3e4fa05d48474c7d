"""Every field does in the pod what it says, and everything is as before afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from tests.node.attach.fields import CASES, Case, show


@pytest.mark.parametrize("case", [case for case in CASES if not case.guest], ids=str)
def test_a_field_does_what_it_says_and_leaves_nothing_behind(world: Any, case: Case) -> None:
    """Links, addresses, routes of all tables, rules, neighbours, sysctls, features, queueing: one by one as before."""
    show(case, world)
