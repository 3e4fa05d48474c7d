"""Fixtures of the cluster suite: one cluster for the run, the driver installed by its chart, a namespace a test."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hack.cluster.cluster import Cluster, Versions
from hack.cluster.host import ClusterError
from tests.cluster.bed import Bed, image_archive

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

_PREFIX = "nri-dranet-cluster-"
_BED = pytest.StashKey[Bed]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what the cluster is made of."""
    group = parser.getgroup("cluster")
    group.addoption("--kubernetes", default="1.37", help="version of Kubernetes: 1.37 or 1.34")
    group.addoption("--containerd", default="2.4", help="version of containerd: 2.4 or 1.7")
    group.addoption("--cluster-dir", type=Path, help="use the running cluster in this folder, and leave it running")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything here: it needs a real cluster."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.cluster)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print how long pods took to start."""
    bed = config.stash.get(_BED, None)
    if bed and bed.starts:
        starts = sorted(bed.starts)
        terminalreporter.write_line(
            f"pod with claim, kubectl apply to Ready: median {statistics.median(starts):.2f} s, "
            f"{starts[0]:.2f} to {starts[-1]:.2f} s, {len(starts)} pods"
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the driver's and the components' logs with a test that failed."""
    report = yield
    bed = item.config.stash.get(_BED, None)
    if report.failed and bed is not None:
        # A server that is away must not hide why the test failed.
        with contextlib.suppress(ClusterError):
            report.sections.append(("the driver's log", bed.driver_log()))
        report.sections.extend((f"log of {name}", text) for name, text in bed.cluster.logs())
    return report


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Start the cluster, or take the one that runs."""
    given: Path | None = request.config.getoption("--cluster-dir")
    if given is not None:
        yield Cluster(given)
        return
    with started(request.config) as cluster:
        yield cluster


@contextlib.contextmanager
def started(config: pytest.Config, *, nodes: int = 1) -> Iterator[Cluster]:
    """Run a cluster of the versions that were asked for, as long as the context lasts."""
    _remove_stale()
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    cluster = Cluster(folder)
    try:
        cluster.up(
            Versions.named(config.getoption("--kubernetes"), config.getoption("--containerd")), nodes=nodes, tied=True
        )
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(folder)


def _remove_stale() -> None:
    """End clusters of test runs that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}[0-9]*-*"):
        owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if not Path("/proc", owner).exists():
            Cluster(folder).down()
            shutil.rmtree(folder)


@pytest.fixture(scope="session")
def driver_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the archive of the driver's image."""
    return image_archive(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="session")
def whole_bed(cluster: Cluster, request: pytest.FixtureRequest, driver_image: Path) -> Bed:
    """Put links and the driver's image on the node."""
    bed = Bed(cluster)
    request.config.stash[_BED] = bed
    cluster.load(driver_image)
    if not bed.home():
        bed.make_links()
    return bed


@pytest.fixture
def bed(whole_bed: Bed) -> Iterator[Bed]:
    """Return the cluster with the driver installed as the chart comes; afterwards every interface is home."""
    whole_bed.install()
    was = whole_bed.home()
    yield whole_bed
    whole_bed.wait_home(was)


@pytest.fixture
def namespace(bed: Bed, request: pytest.FixtureRequest) -> Iterator[str]:
    """Make a namespace, and remove it with everything in it; until then every claim's status must be true."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name.lower())[:60].strip("-")
    bed.cluster.kubectl("create", "namespace", name)
    try:
        yield name
        bed.wait_true(name)
    finally:
        bed.cluster.kubectl("delete", "pods", "--all", "--namespace", name, "--grace-period=1")
    bed.wait_true(name)
    bed.cluster.kubectl("delete", "namespace", name, "--wait=false")
