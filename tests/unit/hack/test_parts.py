"""The parts of the real runtime: where they lie, and what is said when they cannot be built."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hack import parts

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> parts.Part:
    """Return a part whose module is in a temporary folder, with a cache of its own and no go command."""
    monkeypatch.setattr(parts, "MODULES", tmp_path)
    monkeypatch.setattr(parts, "ROOT", tmp_path)
    monkeypatch.setattr(parts, "go_version", lambda: "go1.26.0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    part = parts.Part("thing", "1.0.0", ("example.com/thing/cmd/thing",))
    part.module.mkdir()
    (part.module / "go.mod").write_text("module thing\n", encoding="utf-8")
    (part.module / "go.sum").write_text("", encoding="utf-8")
    return part


def test_other_pins_are_another_place(module: parts.Part) -> None:
    """A part is built anew when a checksum changes, and not otherwise."""
    before = parts.place(module)
    assert parts.place(module) == before
    (module.module / "go.sum").write_text("example.com/thing v1.0.1 h1:x\n", encoding="utf-8")
    assert parts.place(module) != before


def test_a_built_part_is_not_built_again(module: parts.Part, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in the cache is used as it is."""
    parts.place(module).mkdir(parents=True)
    monkeypatch.setattr(parts, "_go", lambda *_: pytest.fail("built again"))
    assert parts.build(module) == parts.place(module)


def test_a_failed_build_leaves_nothing(module: parts.Part, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failure the cache has no half of a part."""

    def fail(*_: object) -> str:
        raise parts.PartError("go build in thing-1.0.0 failed: no compiler")

    monkeypatch.setattr(parts, "_go", fail)
    with pytest.raises(parts.PartError, match="no compiler"):
        parts.build(module)
    assert list(parts.place(module).parent.iterdir()) == []


def test_a_part_without_a_module_is_named(module: parts.Part) -> None:
    """A version that nobody pinned is an error that says which file is missing."""
    (module.module / "go.sum").unlink()
    with pytest.raises(parts.PartError, match=r"thing-1\.0\.0/go\.sum is missing"):
        parts.place(module)


def test_a_missing_go_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the go command the error says what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(parts.PartError, match=r"install Go 1\.26"):
        parts.go_version()
