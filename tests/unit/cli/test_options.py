"""The flags of the daemon: the reference's by name and default, in its spelling, and our own."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import pytest

from nri_dranet.cli import main
from nri_dranet.cli.options import (
    add_run_arguments,
    boolean,
    driver_name,
    duration,
    gates,
    names,
    plugin_index,
    taint_effect,
)

if TYPE_CHECKING:
    from pathlib import Path


def parse(*words: str) -> argparse.Namespace:
    """Parse flags of ``run``."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_run_arguments(parser)
    return parser.parse_args(words)


def test_the_references_flags_have_its_defaults() -> None:
    """Without a flag everything is as the reference's users know it."""
    args = parse()
    assert args.bind_address == ":9177"
    assert args.kubelet_root_dir == "/var/lib/kubelet"
    assert args.inventory_min_poll_interval == 2
    assert args.inventory_max_poll_interval == 60
    assert args.inventory_poll_burst == 5
    assert args.nri_plugin_name == ""
    assert args.move_ib_interfaces is True
    assert args.profile_provider == "cloud"
    assert "veth" in args.filter


def test_go_spelling_is_taken() -> None:
    """One dash or two, an equals sign or a space, a bare boolean."""
    args = parse("-kubeconfig", "/k", "--bind-address=:1", "-move-ib-interfaces=false", "--filter=", "--v=4")
    assert (args.kubeconfig, args.bind_address, args.filter, args.v) == ("/k", ":1", "", 4)
    assert args.move_ib_interfaces is False
    assert parse("--move-ib-interfaces").move_ib_interfaces is True


@pytest.mark.parametrize(
    ("text", "seconds"), [("2s", 2), ("1m30s", 90), ("500ms", 0.5), ("1.5h", 5400), ("10us", 1e-5), ("0s", 0)]
)
def test_durations_are_gos(text: str, seconds: float) -> None:
    """Compound and fractional durations are read."""
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "2", "s", "1d", "1m 30s", "-1s"])
def test_other_durations_are_refused(text: str) -> None:
    """The refusal shows an example."""
    with pytest.raises(argparse.ArgumentTypeError, match="no duration"):
        duration(text)


def test_booleans_are_gos() -> None:
    """Go's spellings and no others."""
    assert boolean("T")
    assert not boolean("0")
    with pytest.raises(argparse.ArgumentTypeError, match="neither true nor false"):
        boolean("yes")


def test_feature_gates_are_read_and_checked() -> None:
    """Known gates are taken, unknown ones refused by name."""
    assert gates("AllAlpha=true, DRAListTypeAttributes=false,") == {"AllAlpha": True, "DRAListTypeAttributes": False}
    with pytest.raises(argparse.ArgumentTypeError, match="unknown feature gate 'Nope'"):
        gates("Nope=true")


def test_driver_name_and_index_are_checked() -> None:
    """A driver name is a DNS subdomain of 63 characters, an index has two digits."""
    assert driver_name("dra.net") == "dra.net"
    assert plugin_index("07") == "07"
    for bad in ("Dra.net", "a" * 64, ""):
        with pytest.raises(argparse.ArgumentTypeError):
            driver_name(bad)
    with pytest.raises(argparse.ArgumentTypeError, match="two digits"):
        plugin_index("7")


def test_taint_effects_and_lists_of_names_are_read() -> None:
    """A bare flag means NoSchedule; names are separated by commas."""
    assert parse("--device-taints").device_taints == "NoSchedule"
    assert parse("--device-taints=none").device_taints == ""
    assert taint_effect("NoExecute") == "NoExecute"
    with pytest.raises(argparse.ArgumentTypeError, match="NoSchedule, NoExecute"):
        taint_effect("PreferNoSchedule")
    assert names("eth1, ens*,") == {"eth1", "ens*"}


def test_an_unknown_flag_ends_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    """The usage names it."""
    with pytest.raises(SystemExit) as stopped:
        main(["run", "--no-such-flag"])
    assert stopped.value.code == 2
    assert "no-such-flag" in capsys.readouterr().err


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """The help says what each command is for."""
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "node daemon" in capsys.readouterr().out


def test_a_wrong_value_is_told_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bind address that cannot be read ends with code 2 and the flag's words."""
    assert main(["run", "--bind-address=nowhere", f"--state-dir={tmp_path}"]) == 2
    assert "bind address" in capsys.readouterr().err
