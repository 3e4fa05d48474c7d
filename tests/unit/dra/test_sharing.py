"""Which devices are shared: the flag decides, but never against what claims have already."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.claims.plan import DeviceKind
from nri_dranet.dra.sharing import Sharing
from nri_dranet.netlink.model import Link

if TYPE_CHECKING:
    from nri_dranet.dra.sharing import Shareable

ETHERNET = Link(index=7, name="eth1", type=1)


def device(name: str = "eth1", link: Link | None = ETHERNET) -> Shareable:
    """Return a device of the inventory."""
    attributes: dict[str, dict[str, Any]] = {"dra.net/ifName": {"string": name}}
    return SimpleNamespace(name=name, link=link, attributes=attributes)


def sharing(expression: str, *kinds: DeviceKind) -> Sharing:
    """Return the decision of a flag on a node where claims have eth1 as these kinds."""
    devices = tuple(SimpleNamespace(key=SimpleNamespace(device="eth1"), kind=kind) for kind in kinds)
    records = (SimpleNamespace(plan=SimpleNamespace(devices=devices)),)
    return Sharing(expression, "dra.net", SimpleNamespace(records=lambda: records))


def test_the_flag_decides() -> None:
    """Both dialects of the filter; without an expression nothing is shared."""
    assert not sharing("").shares(device())
    assert sharing('attributes["dra.net/ifName"].StringValue == "eth1"').shares(device())
    found = sharing('device.attributes["dra.net"].ifName == "eth1"')
    assert found.shares(device(), found.claimed())
    assert not found.shares(device("eth2"))


def test_an_expression_that_is_none_stops_the_start() -> None:
    """The flag is named."""
    with pytest.raises(ValueError, match="--share: "):
        sharing("nothing")


def test_a_device_in_pods_stays_what_it_is() -> None:
    """A parent of children stays shared, a whole device whole, until the claims have ended."""
    assert sharing("", DeviceKind.CHILD).shares(device())
    assert not sharing("true", DeviceKind.INTERFACE).shares(device())
    assert sharing("true", DeviceKind.ADMIN).shares(device())
    assert not sharing("true").shares(device(link=None))


def test_what_is_no_ethernet_is_not_shared_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """No child can be made on it."""
    found = sharing("true")
    for _ in range(2):
        assert not found.shares(device(link=Link(index=7, name="ib0", type=32)))
    (record,) = caplog.records
    assert "only Ethernet devices" in record.message
