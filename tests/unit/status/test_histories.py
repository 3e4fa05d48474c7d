"""Any history of facts, outages, crashes, and others' hands ends with a status that says what is known."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from nri_dranet.claims.facts import ClaimFacts, DeviceFacts, ObservedInterface, Phase
from nri_dranet.claims.model import ClaimRef, DeviceKey
from nri_dranet.kube.client import KubeClient
from nri_dranet.status import writer as module
from nri_dranet.status.conditions import OWN_TYPES
from nri_dranet.status.wire import StatusWire
from nri_dranet.status.writer import StatusWriter
from nri_dranet.testing.apiserver import ApiServerStandIn
from tests.unit.status.quick import Memory, hurried, kill

CLAIMS = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims"
SPEC = {"devices": {"requests": [{"name": "r0", "exactly": {"deviceClassName": "class"}}]}}
RESULTS = [{"request": "r0", "driver": "dra.net", "pool": "n1", "device": "eth1"}]
PROBED = {
    "type": "Probed",
    "status": "True",
    "reason": "P",
    "message": "",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
}


class Histories(RuleBasedStateMachine):
    """One claim, one writer at a time, and everything that may happen to them."""

    def __init__(self) -> None:
        """Start the API server and a first writer."""
        super().__init__()
        self.hurry = hurried()
        self.api = ApiServerStandIn()
        self.api.start()
        self.folder = tempfile.TemporaryDirectory()
        path = self.api.write_kubeconfig(Path(self.folder.name) / "kubeconfig")
        self.client = KubeClient.load(str(path))
        self.store = Memory()
        self.writer = self.new_writer()
        self.away = False
        self.foreign = False
        self.last: ClaimFacts | None = None
        self.told = False

    @initialize()
    def make(self) -> None:
        """Make the claim."""
        made = self.api.create(CLAIMS, {"metadata": {"name": "c1"}, "spec": SPEC})
        self.ref = ClaimRef("default", "c1", made["metadata"]["uid"])
        self.api.allocate("default", "c1", results=RESULTS, node="n1")

    def new_writer(self) -> StatusWriter:
        """Start a writer, as a new life of the program does."""
        wire = StatusWire(self.client, "dra.net", "n1")
        writer = StatusWriter(wire, "dra.net", self.store, event=lambda *_: None, prepared_delay=0.01)
        writer.start()
        return writer

    @rule(phase=st.sampled_from(list(Phase)), up=st.booleans(), address=st.integers(1, 3))
    def happen(self, phase: Phase, up: bool, address: int) -> None:
        """Something happens to the device."""
        shown = ObservedInterface(
            name="net1", hardware_address="02:00:00:00:00:01", addresses=(f"10.0.0.{address}/24",), up=up
        )
        device = DeviceFacts(key=DeviceKey("n1", "eth1"), request="r0", phase=phase, interface=shown)
        self.last = ClaimFacts(ref=self.ref, devices=(device,))
        self.tell()

    def tell(self) -> None:
        """Tell the writer what is known."""
        if self.last is not None:
            self.writer.submit(self.last)
            self.told = True

    @precondition(lambda self: not self.away)
    @rule()
    def outage(self) -> None:
        """The API server goes away."""
        self.api.pause()
        self.away = True

    @precondition(lambda self: self.away)
    @rule()
    def back(self) -> None:
        """It comes back."""
        self.api.resume()
        self.away = False

    @rule(status=st.sampled_from([409, 429, 500, 503]))
    def refuse(self, status: int) -> None:
        """It refuses something."""
        self.api.fail_next(1, status)

    @rule()
    def crash(self) -> None:
        """The program dies without a word; the next one looks at the device and says what it is."""
        kill(self.writer)
        self.writer = self.new_writer()
        self.told = False
        if self.last is not None and self.last.devices[0].phase in module._PASSING:
            self.tell()

    @rule()
    def orderly_end(self) -> None:
        """The program is stopped and started again; it tells once in each life what it knows."""
        self.writer.stop()
        self.writer = self.new_writer()
        self.tell()

    @precondition(lambda self: self.told or self.last is None)
    @rule(how=st.sampled_from([None, [{**RESULTS[0], "request": None}]]))
    def somebody_alters(self, how: Any) -> None:
        """Somebody removes our entries, or empties one; the watch shows it."""
        entries = [{k: v for k, v in entry.items() if v is not None and k != "request"} for entry in how or []]
        self.api.merge(f"{CLAIMS}/c1/status", {"status": {"devices": entries or None}}, "somebody")
        self.foreign = False
        self.show()

    @rule(held=st.booleans())
    def forget(self, held: bool) -> None:
        """The node looks which claims it holds: this one, or it is released. What waits is written all the same."""
        self.writer.forget([self.ref.uid] if held else [])

    @rule()
    def somebody_adds(self) -> None:
        """Somebody puts a condition on our entry."""
        entries = (self.claim().get("status") or {}).get("devices") or []
        if not entries:
            return
        entries[0]["conditions"] = [
            *(item for item in entries[0].get("conditions") or [] if item["type"] != "Probed"),
            PROBED,
        ]
        self.api.merge(f"{CLAIMS}/c1/status", {"status": {"devices": entries}}, "prober")
        self.foreign = True
        self.show()

    @rule()
    def show(self) -> None:
        """The watch shows the claim as it is."""
        self.writer.observed(self.ref, self.claim())

    def claim(self) -> dict[str, Any]:
        """Return the claim."""
        return self.api.get(f"{CLAIMS}/c1")

    def teardown(self) -> None:
        """At rest the status says what is known, others' conditions are there, and nothing waits."""
        try:
            self.rest()
        finally:
            self.writer.stop()
            self.client.close()
            self.api.stop()
            self.folder.cleanup()
            self.hurry.close()

    def rest(self) -> None:
        """Wait until nothing waits any more, and compare."""
        if self.away:
            self.back()
        if self.last is None:
            return
        end = time.monotonic() + 15
        while not self.right() or self.store.rows:
            assert time.monotonic() < end, (self.claim().get("status"), self.store.rows)
            self.show()
            time.sleep(0.01)

    def right(self) -> bool:
        """Tell whether nothing waits and the claim says what is known."""
        if self.writer.pending or self.last is None:
            return False
        entries = (self.claim().get("status") or {}).get("devices") or []
        if not entries:
            return False
        device = self.last.devices[0]
        kinds = {item["type"]: item["status"] for item in entries[0].get("conditions") or []}
        network = kinds.get("NetworkReady")
        in_pod = device.phase is Phase.ATTACHED
        waiting = device.phase in (Phase.PREPARED, Phase.UNKNOWN)
        ready = "True" if in_pod else "Unknown" if waiting else "False"
        up = device.interface is not None and device.interface.up
        data = entries[0].get("networkData") or {}
        addresses = list(device.interface.addresses) if device.interface else []
        return (
            kinds.get("Ready") == ready
            and network == ("False" if in_pod and not up else ready)
            and data.get("ips", []) == (addresses if in_pod else [])
            and kinds.keys() - set(OWN_TYPES) == ({"Probed"} if self.foreign else set())
        )


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
