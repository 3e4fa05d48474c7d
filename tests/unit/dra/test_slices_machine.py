"""Any history of a node's devices, against the stand-in for the API server: the pool is valid at each moment.

Slices are small here, so that few devices make many of them.
"""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nri_dranet.dra import slices as publishing
from nri_dranet.dra.slices import SlicePublisher
from nri_dranet.kube.client import KubeClient
from nri_dranet.testing.apiserver import ApiServerStandIn

SLICES = "/apis/resource.k8s.io/v1/resourceslices"
LIMIT = 3

numbers = st.integers(0, 15)


def until(condition: Any, seconds: float = 20.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.002)


class Watcher(KubeClient):
    """A client that looks at the pool after each write, as a scheduler may."""

    looks: list[list[dict[str, Any]]]
    server_objects: Any

    def _look(self) -> None:
        self.looks.append(self.server_objects())

    def create(self, *words: Any, **more: Any) -> Any:
        """Create, and look."""
        try:
            return super().create(*words, **more)
        finally:
            self._look()

    def replace(self, *words: Any, **more: Any) -> Any:
        """Replace, and look."""
        try:
            return super().replace(*words, **more)
        finally:
            self._look()

    def delete(self, *words: Any, **more: Any) -> Any:
        """Delete, and look."""
        try:
            return super().delete(*words, **more)
        finally:
            self._look()


class Pool(RuleBasedStateMachine):
    """A publisher, and what a node, kubelet and others do."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(publishing, "_FIRST_PAUSE", 0.01)
        self.server = self.stack.enter_context(ApiServerStandIn())
        self.server.create("/api/v1/nodes", {"metadata": {"name": "n1"}})
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.client = Watcher.load(str(self.server.write_kubeconfig(folder / "kubeconfig")))
        self.client.looks = []
        self.client.server_objects = self.slices
        self.wanted: dict[str, int] = {}
        self.refused: set[str] = set()
        self.states: list[dict[str, str]] = []
        self.places: dict[str, str] = {}
        self.generation = 0
        self.disturbed = False
        self.publisher: SlicePublisher | None = None

    def teardown(self) -> None:
        """End everything."""
        if self.publisher is not None:
            self.publisher.stop()
        self.client.close()
        self.stack.close()

    # ---- what is there

    def settled(self) -> bool:
        """Tell whether nothing is left to be written."""
        return self.publisher is not None and self.publisher.settled

    def slices(self) -> list[dict[str, Any]]:
        """Return the slices of the server by name."""
        return sorted(self.server.objects(SLICES), key=lambda item: str(item["metadata"]["name"]))

    def collect(self) -> list[dict[str, Any]]:
        """Return what the node has; a device that is refused has a text that is too long."""
        found = []
        for name, mtu in sorted(self.wanted.items()):
            attributes: dict[str, Any] = {"dra.net/mtu": {"int": mtu}}
            if name in self.refused:
                attributes["dra.net/alias"] = {"string": "x" * 65}
            found.append({"name": name, "attributes": attributes})
        return found

    def accepted(self) -> dict[str, str]:
        """Return what can be published, in a form to compare."""
        return {each["name"]: text(each) for each in self.collect() if each["name"] not in self.refused}

    def settle(self) -> list[str]:
        """Have everything published; returns the requests that changed something."""
        assert self.publisher is not None
        self.states.append(self.accepted())
        self.server.requests.clear()
        self.publisher.refresh()
        until(
            lambda: (
                self.publisher is not None and self.publisher.settled and published(self.slices()) == self.accepted()
            )
        )
        return [request.method for request in self.server.requests if request.method != "GET"]

    def expect(self, writes: list[str] | None) -> None:
        """Have everything published by these requests; None: by any."""
        found = self.settle()
        # A device that was refused is tried again when it changes.
        assert writes is None or self.refused or found == writes, found

    # ---- what happens

    @initialize(names=st.sets(numbers, max_size=10))
    def start(self, names: set[int]) -> None:
        """The daemon starts on a node with some devices."""
        self.wanted = {f"d{number:02d}": 0 for number in names}
        self.states.append(self.accepted())
        self.begin()
        until(self.settled)

    def begin(self) -> None:
        """Make a publisher and start it."""
        self.publisher = SlicePublisher(
            self.client, "dra.net", "n1", interval=0.0, limit=LIMIT, collect=self.collect, event=lambda *_: None
        )
        self.publisher.start()

    @rule(number=numbers)
    def one_device_changes(self, number: int) -> None:
        """One changed device is one write."""
        name = f"d{number:02d}"
        if name not in self.wanted:
            return
        self.wanted[name] += 1
        self.expect(["PUT"])

    @rule()
    def nothing_changes(self) -> None:
        """A look that finds nothing new writes nothing."""
        self.expect([])

    @rule(names=st.sets(numbers, min_size=1, max_size=6))
    def devices_come(self, names: set[int]) -> None:
        """The node grows; one device more is one write while its slice has room."""
        new = {f"d{number:02d}" for number in names} - self.wanted.keys()
        sizes = [len(item["spec"].get("devices") or []) for item in self.slices()]
        self.wanted |= dict.fromkeys(new, 0)
        self.expect(["PUT"] if len(new) == 1 and min(sizes) < LIMIT else None)

    @rule(names=st.sets(numbers, min_size=1, max_size=6))
    def devices_go(self, names: set[int]) -> None:
        """The node shrinks; one device less is one write while its slice keeps others."""
        gone = {f"d{number:02d}" for number in names} & self.wanted.keys()
        alone = {each for item in self.slices() for each in of(item) if len(of(item)) == 1 and len(self.slices()) > 1}
        self.wanted = {name: mtu for name, mtu in self.wanted.items() if name not in gone}
        told = gone - self.refused
        self.refused -= gone
        self.expect(["PUT"] if len(told) == 1 and not told & alone else None)

    @rule(number=numbers, other=numbers)
    def a_device_gets_another_name(self, number: int, other: int) -> None:
        """One write: what is new comes where something went."""
        old, new = f"d{number:02d}", f"d{other:02d}"
        if old not in self.wanted or new in self.wanted or old in self.refused:
            return
        del self.wanted[old]
        self.wanted[new] = 0
        self.expect(["PUT"])

    @rule(number=numbers)
    def one_device_flaps(self, number: int) -> None:
        """It goes and comes back at once: what is published in the end is what there is."""
        mtu = self.wanted.pop(f"d{number:02d}", None)
        if mtu is None:
            return
        assert self.publisher is not None
        self.states.append(self.accepted())
        self.publisher.refresh()
        self.wanted[f"d{number:02d}"] = mtu
        self.settle()

    @rule(number=numbers)
    def the_server_refuses_a_device(self, number: int) -> None:
        """The others stay published without it."""
        name = f"d{number:02d}"
        if name in self.wanted:
            self.refused.add(name)
            self.wanted[name] += 1
            self.disturbed = True
            self.settle()

    @rule(which=st.sets(st.integers(0, 5), min_size=1))
    def kubelet_deletes_slices(self, which: set[int]) -> None:
        """They are written again, in a new generation."""
        found = self.slices()
        gone = [found[number] for number in which if number < len(found)]
        for item in gone:
            self.server.delete(f"{SLICES}/{item['metadata']['name']}")
        self.disturbed = bool(gone)
        self.settle()

    @rule(count=st.integers(1, 2), status=st.sampled_from([409, 503]), created=st.booleans())
    def writes_fail(self, count: int, status: int, created: bool) -> None:
        """The next writes are refused; what is wanted is there in the end all the same."""
        accepted = self.accepted()
        if created:
            self.server.fail_next(count, status, where="resourceslices", method="POST")
            for item in self.slices():
                self.server.delete(f"{SLICES}/{item['metadata']['name']}")
        elif accepted:
            self.server.fail_next(count, status, where="resourceslices", method="PUT")
            self.wanted[min(accepted)] += 1
        self.disturbed = True
        self.settle()

    @rule()
    def somebody_edits_a_slice(self) -> None:
        """It is set right."""
        name = self.slices()[0]["metadata"]["name"]
        self.server.merge(f"{SLICES}/{name}", {"spec": {"devices": [{"name": "evil"}]}})
        self.disturbed = True
        self.settle()

    @rule()
    def the_daemon_starts_anew(self) -> None:
        """It finds everything as it should be and writes nothing; a device that was refused is tried once."""
        assert self.publisher is not None
        self.publisher.stop()
        self.server.requests.clear()
        self.begin()
        until(self.settled)
        if not self.refused:
            assert [request.method for request in self.server.requests if request.method != "GET"] == []

    # ---- what always holds

    @precondition(lambda self: self.publisher is not None)
    @invariant()
    def the_pool_is_whole(self) -> None:
        """Each device once, no slice over the limit, one generation that never falls, the right count, kept places."""
        found = self.slices()
        assert published(found) == self.accepted()
        assert all(len(of(item)) <= LIMIT for item in found)
        pools = [item["spec"]["pool"] for item in found]
        assert {pool["resourceSliceCount"] for pool in pools} == {len(found)}
        (generation,) = {pool["generation"] for pool in pools}
        assert generation >= self.generation
        places = {name: item["metadata"]["name"] for item in found for name in of(item)}
        if len(found) >= len(set(self.places.values())) and not self.disturbed:
            moved = {name for name in places.keys() & self.places.keys() if places[name] != self.places[name]}
            assert not moved
        self.places, self.generation, self.disturbed = places, generation, False

    @invariant()
    def nobody_has_seen_a_mixture(self) -> None:
        """After each single write a reader saw an incomplete pool or one that was wanted as a whole."""
        for look in self.client.looks:
            newest = max((item["spec"]["pool"]["generation"] for item in look), default=0)
            current = [item for item in look if item["spec"]["pool"]["generation"] == newest]
            if current and len(current) == current[0]["spec"]["pool"]["resourceSliceCount"]:
                assert published(current) in self.states or "evil" in str(look)
        self.client.looks.clear()


def of(item: dict[str, Any]) -> list[str]:
    """Return the names of a slice's devices."""
    return [each["name"] for each in item["spec"].get("devices") or []]


def published(slices: list[dict[str, Any]]) -> dict[str, str]:
    """Return all devices, each of which stands once, in a form to compare."""
    devices = [each for item in slices for each in item["spec"].get("devices") or []]
    found = {each["name"]: text(each) for each in devices}
    assert len(found) == len(devices)
    return found


def text(device: dict[str, Any]) -> str:
    """Return a device in a form to compare."""
    return json.dumps(device, sort_keys=True)


TestPool = Pool.TestCase
TestPool.settings = settings(
    max_examples=12, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
