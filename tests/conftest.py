"""What all suites share: the kernel suites need root, and no test leaves anything in the kernel."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).parent
KERNEL_SUITES = ("node", "runtime", "cluster")

# No timed assertions: machines are noisy.
settings.register_profile("project", deadline=None)
settings.load_profile("project")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for test runs in namespaces of their own, where nobody else makes links."""
    parser.addoption(
        "--check-leftovers",
        action="store_true",
        help="fail a node test that leaves a link, a network namespace or a descriptor of one",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse to run a suite that needs root without it: a skip would say that nothing is wrong."""
    suites = {suite(item.path) for item in items} & set(KERNEL_SUITES)
    if suites and os.geteuid():
        names = " and ".join(sorted(suites))
        raise pytest.UsageError(
            f"the {names} tests need root: run them by `make test`, `make runtime` or `make cluster`"
        )


def suite(path: Path) -> str:
    """Return the suite that a test file belongs to, e.g. "node"."""
    return path.relative_to(TESTS).parts[0] if path.is_relative_to(TESTS) else ""


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compare what is in the kernel before and after a node test."""
    if not request.config.getoption("--check-leftovers") or suite(request.path) != "node":
        yield
        return
    before = in_kernel()
    yield
    if left := in_kernel() - before:
        gc.collect()  # what nobody refers to any more is not left over
        left &= in_kernel()
    if left:
        pytest.fail(f"left behind: {', '.join(sorted(left))}")


def in_kernel() -> set[str]:
    """Return names of what exists now: links here, named namespaces, and namespaces that this process holds open."""
    names = {f"link {path.name}" for path in Path("/sys/class/net").iterdir() if path.is_dir()}
    if (named := Path("/run/netns")).is_dir():
        names |= {f"namespace {path.name}" for path in named.iterdir()}
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except OSError:  # the descriptor of this very listing
            continue
        if target.startswith("net:"):
            names.add(f"descriptor {descriptor.name} of {target}")
    return names
