"""``nri-dranet devices`` on a real node."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from nri_dranet.cli.devices import add_arguments, describe, render, run
from nri_dranet.dra.sharing import compiled
from nri_dranet.inventory.device import Device
from nri_dranet.inventory.filter import DeviceFilter
from nri_dranet.netlink.model import Link

if TYPE_CHECKING:
    from collections.abc import Callable

COMMAND = (sys.executable, "-m", "nri_dranet", "devices")


@pytest.fixture
def node(make_node: Callable[..., Any]) -> Any:
    """A node with an interface to publish, one that the filter leaves out, and one that cannot be given away."""
    found = make_node()
    found.ip("tuntap add eth1 mode tap")
    found.ip("link add veth0 type veth peer name veth1")
    found.ip("link add br0 type bridge")
    return found


def test_table(node: Any) -> None:
    """The table shows what is published, and below it the rest with the reason of each."""
    head, _, tail = node.run(*COMMAND).partition("Not published:")
    assert "eth1" in head
    assert head.startswith("DEVICE")
    reasons = {line.split()[0]: line for line in tail.strip().splitlines()}
    assert "the filter leaves it out" in reasons["veth0"]
    assert "does not let a bridge leave" in reasons["br0"]
    assert "loopback" in reasons["lo"]


@pytest.mark.parametrize(("output", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_for_programs(node: Any, output: str, read: Callable[[str], Any]) -> None:
    """JSON and YAML hold each device as in a slice, whether it is published and why not."""
    text = node.run(*COMMAND, "-o", output, "--filter", "")
    found = {device["name"]: device for device in read(text)["devices"]}
    assert found["veth0"]["published"] is True
    assert found["veth0"]["attributes"]["dra.net/type"] == {"string": "veth"}
    assert found["br0"]["published"] is False
    assert "bridge" in found["br0"]["reason"]
    assert "&id" not in text


def test_wrong_filter(node: Any) -> None:
    """A filter that is none is told with its place, and exit code 2."""
    text = node.run("sh", "-c", '"$0" -m nri_dranet devices --filter "name ==" 2>&1; echo "code $?"', sys.executable)
    assert "1:8" in text
    assert text.endswith("code 2\n")


@pytest.mark.parametrize("output", ["table", "json", "yaml"])
def test_in_this_process(node: Any, capsys: pytest.CaptureFixture[str], output: str) -> None:
    """The command prints what it found and leaves no thread and no socket behind."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with node.netns.entered():
        assert run(parser.parse_args(["-o", output])) == 0
    assert "eth1" in capsys.readouterr().out
    assert "inventory" not in {thread.name for thread in threading.enumerate()}


def test_failures(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter that is none and a node that cannot be read end with a word and a code of their own."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args(["--filter", "name =="])) == 2

    def refuse(*_: object, **__: object) -> None:
        raise OSError(1, "on purpose")

    monkeypatch.setattr("nri_dranet.inventory.inventory.RtnlSocket", refuse)
    assert run(parser.parse_args([])) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_node_that_is_not_read_in_time(
    node: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan that does not end in time is told."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    monkeypatch.setattr("nri_dranet.inventory.inventory.Inventory.wait", lambda *_: False)
    with node.netns.entered():
        assert run(parser.parse_args([])) == 1
    assert "not read within" in capsys.readouterr().err


def test_nothing_to_publish() -> None:
    """Without any device the table says so."""
    device = Device(name="lo", refused="it is the loopback interface")
    text = render(describe([device], DeviceFilter("", "dra.net")), "table")
    assert text.startswith("No device would be published.\n\nNot published:\n  lo  -  it is the loopback interface")


def test_a_shared_device_is_shown_as_such() -> None:
    """With the flag of the daemon the command shows which devices would be shared."""
    device = Device(
        name="eth1", link=Link(index=7, name="eth1", type=1), attributes={"dra.net/type": {"string": "veth"}}
    )
    rows = describe([device], DeviceFilter("", "dra.net"), compiled('device.attributes["dra.net"].type == "veth"', "d"))
    assert rows[0]["allowMultipleAllocations"] is True
    assert "veth, shared" in render(rows, "table")
    assert "allowMultipleAllocations" not in describe([device], DeviceFilter("", "dra.net"), compiled("", "d"))[0]
