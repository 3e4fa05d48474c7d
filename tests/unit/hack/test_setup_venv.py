"""Setting up the developer's environment."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest

from hack import setup_venv

if TYPE_CHECKING:
    from pathlib import Path


def test_all_dependencies_and_the_dev_group_are_installed() -> None:
    """What the project needs at run time and for its development is asked of pip."""
    project = tomllib.loads((setup_venv.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = setup_venv.requirements()
    assert set(project["project"]["dependencies"]) <= set(wanted)
    assert set(project["dependency-groups"]["dev"]) <= set(wanted)


def test_an_environment_that_is_right_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the stamp of this project file, recipe and interpreter nothing is installed."""
    stamp = tmp_path / "stamp"
    stamp.write_text(setup_venv.stamp(), encoding="utf-8")
    monkeypatch.setattr(setup_venv, "STAMP", stamp)
    monkeypatch.setattr(setup_venv, "create", lambda: pytest.fail("set up again"))
    assert setup_venv.main() == 0


def test_a_failure_is_told_and_leaves_no_stamp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """When the environment cannot be made the reason is printed, and the next run tries again."""

    def create() -> None:
        raise RuntimeError("no venv here")

    monkeypatch.setattr(setup_venv, "STAMP", tmp_path / "stamp")
    monkeypatch.setattr(setup_venv, "create", create)
    assert setup_venv.main() == 1
    assert "no venv here" in capsys.readouterr().err
    assert not (tmp_path / "stamp").exists()
