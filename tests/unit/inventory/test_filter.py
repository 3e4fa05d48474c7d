"""The filter: both dialects, its errors, and what it costs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from nri_dranet.inventory.filter import DEFAULT, DeviceFilter

ETH: dict[str, Any] = {
    "dra.net/type": {"string": "device"},
    "dra.net/mtu": {"int": 9000},
    "dra.net/rdma": {"bool": True},
    "dra.net/release": {"version": "1.2.3"},
    "resource.kubernetes.io/pcieRoot": {"string": "pci0000:00"},
}
VETH: dict[str, Any] = {"dra.net/type": {"string": "veth"}, "dra.net/mtu": {"int": 1500}}


@pytest.mark.parametrize(
    ("expression", "eth", "veth"),
    [
        ("", True, True),
        ("true", True, True),
        ("false", False, False),
        (DEFAULT, True, False),
        ('attributes["dra.net/type"].StringValue != "veth"', True, False),
        ('attributes["dra.net/mtu"].IntValue > 1500', True, False),
        ('"dra.net/rdma" in attributes && attributes["dra.net/rdma"].BoolValue', True, False),
        ('attributes["dra.net/release"].VersionValue == "1.2.3"', True, True),
        ('device.attributes["dra.net"].type == "device"', True, False),
        ('has(device.attributes["dra.net"].rdma)', True, False),
        ('device.attributes["resource.kubernetes.io"].pcieRoot == "pci0000:00"', True, True),
        ('has(device.attributes["resource.kubernetes.io"].pcieRoot)', True, False),
        ('device.driver == "dra.net" && name.startsWith("e")', True, False),
        ('device.name == "veth0"', False, True),
        ("size(capacity) == 0 && size(device.capacity) == 0", True, True),
        ('attributes.exists(k, k == "dra.net/rdma")', True, False),
        ("type(name) == string", True, True),
    ],
)
def test_expressions(expression: str, eth: bool, veth: bool) -> None:
    """Both dialects work, and an error of evaluation keeps the device."""
    found = DeviceFilter(expression, "dra.net")
    for _ in range(2):
        assert found.keeps("eth1", ETH) is eth
        assert found.keeps("veth0", VETH) is veth


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("attributes[", "1:12"),
        ('attributes["x"] ==', "1:19"),
        ('true &&\n atributes["x"].StringValue == "y"', "line 2, column 2: unknown variable 'atributes'"),
        ("nosuch(name)", "nosuch"),
        ("device.attributes.all(k, j == k)", "unknown variable 'j'"),
    ],
)
def test_what_does_not_compile(expression: str, words: str) -> None:
    """An expression that is none, or that asks for what there is not, stops the start with its place."""
    with pytest.raises(ValueError, match="--filter") as caught:
        DeviceFilter(expression, "dra.net")
    assert words in str(caught.value)


def test_error_keeps_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """A device on which the expression fails is kept; one line tells it, not one a device."""
    found = DeviceFilter('attributes["none"].StringValue == "x"', "dra.net")
    assert all(found.keeps(f"eth{number}", ETH) for number in range(5))
    assert len([record for record in caplog.records if "fails on a device" in record.message]) == 1


def test_another_flag_is_named_and_may_leave_out(caplog: pytest.LogCaptureFixture) -> None:
    """An expression that fails shares nothing: a device is given whole then, as without the flag."""
    found = DeviceFilter('attributes["none"].StringValue == "x"', "dra.net", flag="--share", on_error=False)
    assert not found.keeps("eth0", ETH)
    assert "--share fails on a device, which is left out" in caplog.records[0].message
    with pytest.raises(ValueError, match="--share: "):
        DeviceFilter("nothing", "dra.net", flag="--share")


def test_no_boolean_leaves_out(caplog: pytest.LogCaptureFixture) -> None:
    """An expression that gives something else than a boolean keeps nothing, and that is told once."""
    found = DeviceFilter("name", "dra.net")
    assert not any(found.keeps(f"eth{number}", ETH) for number in range(5))
    assert len([record for record in caplog.records if "no boolean" in record.message]) == 1


def test_verdict_follows_attributes() -> None:
    """A verdict is kept for as long as the attributes are the same, also among very many devices."""
    found = DeviceFilter('attributes["dra.net/mtu"].IntValue > 1500', "dra.net")
    assert found.keeps("a", ETH)
    assert not found.keeps("a", {"dra.net/mtu": {"int": 1400}})
    for number in range(4100):
        found._cache[f"x{number}"] = (ETH, True)
    assert found.keeps("b", ETH)
    assert len(found._cache) < 10


def test_usual_expressions_need_no_library() -> None:
    """The default and constant expressions do not import CEL; another one imports it without its command line."""
    program = """
import sys
from nri_dranet.inventory.filter import DEFAULT, DeviceFilter
for expression in ("", "true", "false", DEFAULT):
    DeviceFilter(expression, "dra.net").keeps("a", {})
assert "cel" not in sys.modules
DeviceFilter("name == 'a'", "dra.net")
assert "cel" in sys.modules
assert not {"cel.cli", "typer", "prompt_toolkit", "rich"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
