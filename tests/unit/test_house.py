"""The house's own rules: layout, licence, sizes, homes of dependencies, documents that hold together."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import nri_dranet
from hack import parts

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "nri_dranet"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "pb")
TEST_MODULES = sorted((ROOT / "tests").rglob("test_*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# Each dependency has one home, so that it can be replaced there.
HOMES = {
    "grpc": ("dra", "testing"),
    "kubernetes": ("kube",),
    "sqlite3": ("store",),
    "pyroute2": (),
    "pydantic": ("api",),
    "prometheus_client": ("telemetry",),
    "cel": ("inventory/filter.py",),
}

# Bytes in, values out: what does no I/O can be tested to the last branch.
PURE = (
    "api",
    "claims",
    "dhcp/dialogue.py",
    "dhcp/frames.py",
    "dhcp/lease.py",
    "dhcp/message.py",
    "dhcp/options.py",
    "netlink/codec.py",
    "netlink/links.py",
    "netlink/model.py",
    "netlink/ports.py",
    "netlink/routing.py",
    "netlink/rtnl.py",
    "netlink/traffic.py",
    "status/conditions.py",
    "ttrpc/frames.py",
    "ttrpc/mux.py",
)
IMPURE = {"asyncio", "socket", "threading", "sqlite3", "subprocess"}


def imports(path: Path) -> set[str]:
    """Return the top-level names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def within(path: Path, places: tuple[str, ...]) -> bool:
    """Say whether a module lies in one of the rooms or is one of the modules."""
    return any(path.is_relative_to(PACKAGE / place) for place in places)


def name(path: Path) -> str:
    """Return a path as it is written in the project."""
    return str(path.relative_to(ROOT))


def test_the_licence_is_apache_2() -> None:
    """The project file names the licence whose text is in LICENSE."""
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text


def test_the_changelog_speaks_of_this_version() -> None:
    """The changelog has a section for what is not released, or for the version that the package has."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[(Unreleased|{re.escape(nri_dranet.__version__)})\]", text, re.MULTILINE)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_is_small_and_says_what_it_is(path: Path) -> None:
    """Each module has a docstring and at most 700 lines."""
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert len(text.splitlines()) <= 700


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_dependency_is_used_in_its_home_only(path: Path) -> None:
    """A third-party package, or SQLite, is imported by its own room only."""
    strangers = {package for package in imports(path) & HOMES.keys() if not within(path, HOMES[package])}
    assert not strangers


@pytest.mark.parametrize("path", [path for path in MODULES if within(path, PURE)], ids=name)
def test_a_pure_module_does_no_io(path: Path) -> None:
    """Protocol codecs and data models import nothing that could wait."""
    assert not imports(path) & IMPURE


@pytest.mark.parametrize("path", TEST_MODULES, ids=name)
def test_each_test_states_the_behaviour(path: Path) -> None:
    """Each test has a docstring."""
    silent = [function.name for function in functions(path) if not ast.get_docstring(function)]
    assert not silent


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return the test functions of a file, in classes too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node


@pytest.mark.parametrize("suite", ["unit", "node"])
def test_the_tests_mirror_the_rooms(suite: str) -> None:
    """Each folder of tests is named after a room, or after a module at the top."""
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
    folders = {path.name for path in (ROOT / "tests" / suite).iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= rooms | {"hack"}


def test_each_proto_has_its_stubs() -> None:
    """Stubs and protos belong together, and each stub loads with the protobuf that is installed."""
    protos = {path.stem for path in (ROOT / "protos").glob("*.proto")}
    for suffix in ("_pb2.py", "_pb2.pyi"):
        assert {path.name.removesuffix(suffix) for path in (PACKAGE / "pb").glob(f"*{suffix}")} == protos
    for proto in protos:
        importlib.import_module(f"nri_dranet.pb.{proto}_pb2")


@pytest.mark.parametrize("part", parts.PARTS, ids=lambda part: f"{part.name}-{part.version}")
def test_a_part_of_the_runtime_is_pinned(part: parts.Part) -> None:
    """The Go module of a part names its programs as tools, and requires the version that its folder says."""
    module = (part.module / "go.mod").read_text(encoding="utf-8")
    assert (part.module / "go.sum").exists()
    for package in part.packages:
        assert re.search(rf"^(tool |\t){re.escape(package)}$", module, re.MULTILINE)
    required = dict(re.findall(r"^\t(\S+) v(\S+)", module, re.MULTILINE))
    required |= dict(re.findall(r"^require (\S+) v(\S+)", module, re.MULTILINE))
    owner = max((path for path in required if part.packages[0].startswith(path)), key=len)
    assert required[owner] == part.version


DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "charts/**/*.md", "hack/**/*.md") for path in ROOT.glob(pattern)
)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_the_links_of_a_document_lead_somewhere(path: Path) -> None:
    """A relative link in a document names a file or folder that is there."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert not [target for target in targets if target and not (path.parent / target).exists()]


def test_each_make_target_that_the_readme_names_exists() -> None:
    """The README names only targets that the Makefile has."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|^    )make ([a-z]+)", readme, re.MULTILINE))
    assert named <= targets
