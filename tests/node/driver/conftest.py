"""The daemon between its stand-ins, with a veth pair as the node's interface, in the test run's network namespace."""

from __future__ import annotations

import functools
import json
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hack.audit import audit_at_rest
from nri_dranet.testing.stage import RESOURCE_API, Stage, StageError

MakeStage = Callable[..., Stage]


def ip(*arguments: str) -> str:
    """Run ``ip`` and return what it prints."""
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def _host_state(name: str) -> dict[str, Any]:
    """Return all of an interface that must come back, as ``ip`` shows it."""
    (link,) = json.loads(ip("-j", "-d", "addr", "show", "dev", name))
    volatile = {"stats64", "ifindex", "link_index", "link_netnsid"}
    for address in link["addr_info"]:
        address.pop("dynamic", None)
    return {
        "link": {key: value for key, value in link.items() if key not in volatile},
        "routes": ip("route", "show", "table", "all", "dev", name).splitlines(),
        "neighbours": ip("neigh", "show", "dev", name, "nud", "permanent").splitlines(),
    }


def _on_host(name: str) -> bool:
    """Tell whether an interface is on the host."""
    return subprocess.run(["ip", "link", "show", "dev", name], check=False, capture_output=True).returncode == 0


def _wrong(stage: Stage) -> list[str]:
    """Return what the auditor finds wrong."""
    pods = []
    for pod in stage._pods:
        try:
            if pod.process.poll() is None:
                pods.append(json.loads(pod.run("ip", "-j", "-d", "addr")))
        except subprocess.CalledProcessError:
            # Another thread ends the pod meanwhile; else this does not end well.
            pod.process.wait(5)
    return audit_at_rest(stage.api.list(f"{RESOURCE_API}/resourceclaims"), pods)


def _audit_after_each_step(stage: Stage) -> None:
    """Let what a scenario does end with an audit: the statuses become what there is before the next step.

    Steps of other threads are not followed by one, nor are those while the daemon is not ready or the API server is
    away: then nothing is said.
    """

    def following(step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(step)
        def done(*args: Any, **options: Any) -> Any:
            try:
                return step(*args, **options)
            finally:
                if threading.current_thread() is threading.main_thread() and _at_work(stage):
                    _wait_for_right(stage, f"{step.__name__}: the statuses")

        return done

    steps: Any
    for steps, names in (
        (stage, ("prepare", "unprepare", "end_pod", "wait_ready", "wait_condition")),
        (stage.runtime, ("run_pod", "stop_pod", "remove_pod", "create_container")),
    ):
        for name in names:
            setattr(steps, name, following(getattr(steps, name)))


def _wait_for_right(stage: Stage, what: str) -> None:
    try:
        stage.wait_for(lambda: not _wrong(stage) or not _at_work(stage), what)
    except StageError as error:
        raise StageError(f"{_wrong(stage)}\n{error}") from error


def _at_work(stage: Stage) -> bool:
    """Tell whether the daemon is ready and the API server answers."""
    return stage.api.serving and stage.http("/readyz")[0] == 200


def _audited(stage: Stage) -> None:
    """Wait until all statuses say what there is. Where the daemon does not run any more nothing will be said."""
    try:
        stage.daemon_pid()
    except StageError:
        return
    stage.api.resume()
    stage.runtime.wait_for_plugin()
    stage.wait_for(lambda: not _wrong(stage), "each claim's status says what its pod has")


@pytest.fixture
def host_state() -> Callable[[str], dict[str, Any]]:
    """Return how an interface is on the host: ``host_state(name)``."""
    return _host_state


@pytest.fixture
def on_host() -> Callable[[str], bool]:
    """Return whether an interface is on the host: ``on_host(name)``."""
    return _on_host


@pytest.fixture
def nic() -> Iterator[str]:
    """Make a veth pair; return the end that pods get, up, with an address, a route and a neighbour."""
    name, peer = "nictest0", "nictest0p"
    ip("link", "add", name, "type", "veth", "peer", "name", peer)
    for each in (peer, name):
        ip("link", "set", each, "addrgenmode", "none", "up")
    ip("addr", "add", "192.0.2.10/24", "dev", name)
    ip("route", "add", "198.51.100.0/24", "via", "192.0.2.1", "dev", name, "metric", "77")
    ip("neigh", "add", "192.0.2.77", "lladdr", "02:00:00:00:00:77", "dev", name, "nud", "permanent")
    yield name
    subprocess.run(["ip", "link", "del", peer], check=False, capture_output=True)


@pytest.fixture
def journal_lost() -> None:
    """Mark a test that takes the journal away: what was to be written of its claims is known to nobody any more."""


@pytest.fixture
def make_stage(request: pytest.FixtureRequest) -> Iterator[MakeStage]:
    """Return a factory of stages; all are closed after the test."""
    stages: list[Stage] = []
    folders: list[tempfile.TemporaryDirectory[str]] = []

    def make(**options: Any) -> Stage:
        folder = tempfile.TemporaryDirectory(prefix="nd", dir="/tmp")
        folders.append(folder)
        stage = Stage(Path(folder.name), **options)
        if "journal_lost" not in request.fixturenames:
            _audit_after_each_step(stage)
        stages.append(stage)
        stage.start()
        return stage

    yield make
    try:
        for stage in stages if "journal_lost" not in request.fixturenames else ():
            _audited(stage)
    finally:
        for stage in stages:
            stage.close()
        for folder in folders:
            folder.cleanup()


@pytest.fixture
def stage(make_stage: MakeStage, nic: str) -> Stage:
    """Return a stage whose daemon is ready and has published the interface."""
    made = make_stage()
    made.start_daemon()
    made.wait_ready()
    made.wait_for(lambda: nic in made.devices(), f"device {nic} published")
    return made
