"""A claim in the stand-in of the API server, facts about it, and a store in memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.claims.facts import ClaimFacts, DeviceFacts, ObservedInterface, Phase
from nri_dranet.claims.model import ClaimRef, DeviceKey, PodRef
from nri_dranet.kube.client import KubeClient
from nri_dranet.status.wire import StatusWire
from nri_dranet.status.writer import StatusWriter
from nri_dranet.telemetry import metrics
from nri_dranet.testing.apiserver import ApiServerStandIn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

DRIVER = "dra.net"
NODE = "n1"
CLAIMS = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims"


@pytest.fixture
def api() -> Iterator[ApiServerStandIn]:
    """Run the stand-in of the API server."""
    with ApiServerStandIn() as server:
        yield server


@pytest.fixture
def client(api: ApiServerStandIn, tmp_path: Path) -> Iterator[KubeClient]:
    """Give a client of it."""
    made = KubeClient.load(str(api.write_kubeconfig(tmp_path / "kubeconfig")))
    yield made
    made.close()


@dataclass
class Claims:
    """Makes claims and reads them."""

    api: ApiServerStandIn
    before: int = field(default_factory=lambda: _patches())  # noqa: PLW0108 - defined below

    def make(
        self, name: str = "c1", devices: Sequence[tuple[str, str]] = ((DRIVER, "eth1"),), *, allocate: bool = True
    ) -> ClaimRef:
        """Make a claim, allocated on this node to devices (driver, device)."""
        requests = [
            {"name": f"r{i}", "exactly": {"deviceClassName": "class"}} for i, _ in enumerate(devices or [("", "")])
        ]
        made = self.api.create(CLAIMS, {"metadata": {"name": name}, "spec": {"devices": {"requests": requests}}})
        if allocate:
            self.allocate(name, devices)
        return ClaimRef("default", name, made["metadata"]["uid"])

    def allocate(self, name: str = "c1", devices: Sequence[tuple[str, str]] = ((DRIVER, "eth1"),)) -> None:
        """Allocate devices to a claim."""
        results = [
            {"request": f"r{i}", "driver": driver, "pool": NODE, "device": device}
            for i, (driver, device) in enumerate(devices)
        ]
        self.api.allocate("default", name, results=results, node=NODE)

    def read(self, name: str = "c1") -> dict[str, Any]:
        """Return a claim."""
        return self.api.get(f"{CLAIMS}/{name}")

    def entries(self, name: str = "c1") -> list[dict[str, Any]]:
        """Return its ``status.devices``."""
        found: list[dict[str, Any]] = (self.read(name).get("status") or {}).get("devices") or []
        return found

    def condition(self, kind: str = "Ready", name: str = "c1") -> dict[str, Any]:
        """Return a condition of its first entry; empty where there is none."""
        for entry in self.entries(name)[:1]:
            for item in entry["conditions"]:
                if item["type"] == kind:
                    return dict(item)
        return {}

    def alter(self, patch: Any, name: str = "c1", manager: str = "somebody") -> None:
        """Change its status by a merge patch."""
        self.api.merge(f"{CLAIMS}/{name}/status", {"status": patch}, manager)

    def writes(self) -> int:
        """Return how many patches have been answered since the test began."""
        return _patches() - self.before


def _patches() -> int:
    """Return how many patches have been answered in this process."""
    return sum(
        int(sample.value)
        for family in metrics.API_REQUESTS.collect()
        for sample in family.samples
        if sample.name.endswith("_total") and sample.labels["verb"] == "PATCH" and sample.labels["code"] != "0"
    )


@pytest.fixture
def claims(api: ApiServerStandIn) -> Claims:
    """Give the claims of the stand-in."""
    return Claims(api)


def device(phase: Phase = Phase.ATTACHED, name: str = "eth1", **more: Any) -> DeviceFacts:
    """Return facts of a device; in its pod with one address unless told otherwise."""
    shown = ObservedInterface(name="eth99", hardware_address="86:d7:86:e6:f3:dd", addresses=("169.254.169.13/32",))
    more.setdefault("interface", shown if phase is Phase.ATTACHED else None)
    return DeviceFacts(key=DeviceKey(NODE, name), request="r0", phase=phase, **more)


@pytest.fixture
def facts() -> Callable[..., ClaimFacts]:
    """Make facts of a claim with one device."""

    def make(ref: ClaimRef, phase: Phase = Phase.ATTACHED, **more: Any) -> ClaimFacts:
        return ClaimFacts(ref=ref, devices=(device(phase, **more),))

    return make


@pytest.fixture
def make_device() -> Callable[..., DeviceFacts]:
    """Make facts of a device."""
    return device


@dataclass
class Memory:
    """A store in memory, which may refuse."""

    rows: dict[str, ClaimFacts] = field(default_factory=dict)
    broken: bool = False

    def put_status(self, facts: ClaimFacts) -> None:
        """Keep."""
        if self.broken:
            raise OSError("disk full")
        self.rows[facts.ref.uid] = facts

    def status_written(self, uid: str) -> None:
        """Forget."""
        if self.broken:
            raise OSError("disk full")
        self.rows.pop(uid, None)

    def pending_statuses(self) -> list[ClaimFacts]:
        """Return all."""
        return list(self.rows.values())


@pytest.fixture
def store() -> Memory:
    """Give a store."""
    return Memory()


@dataclass
class Told:
    """The Events that were told."""

    events: list[tuple[PodRef | ClaimRef, str, str, bool]] = field(default_factory=list)

    def __call__(self, subject: PodRef | ClaimRef, reason: str, message: str, warning: bool) -> None:
        """Take one."""
        self.events.append((subject, reason, message, warning))


@pytest.fixture
def told() -> Told:
    """Give the Events that were told."""
    return Told()


@pytest.fixture
def make_writer(client: KubeClient, store: Memory, told: Told) -> Iterator[Callable[..., StatusWriter]]:
    """Make writers, which end with the test."""
    writers: list[StatusWriter] = []

    def make(*, start: bool = True, **more: Any) -> StatusWriter:
        more.setdefault("prepared_delay", 0.0)
        writer = StatusWriter(StatusWire(client, DRIVER, NODE), DRIVER, store, event=told, **more)
        if start:
            writer.start()
            writers.append(writer)
        return writer

    yield make
    for writer in writers:
        writer.stop()


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], None]:
    """Wait until something holds."""

    def wait(condition: Callable[[], Any]) -> None:
        end = time.monotonic() + 15
        while not condition():
            assert time.monotonic() < end, "it did not come true"
            time.sleep(0.005)

    return wait
