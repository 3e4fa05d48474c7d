"""Prepare: what is refused before anything is planned, and what a changed claim means."""

from __future__ import annotations

import contextlib
import errno
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.claims import codec
from nri_dranet.claims.facts import ClaimFacts, DeviceFacts, Phase
from nri_dranet.claims.lifecycle import State
from nri_dranet.claims.model import ClaimRef, PodRef
from nri_dranet.claims.plan import DevicePlan, HostState
from nri_dranet.claims.record import Holder
from nri_dranet.dhcp.client import now
from nri_dranet.dhcp.errors import DhcpError
from nri_dranet.dhcp.lease import Lease, LeaseRoute
from nri_dranet.dra import plan_lease
from nri_dranet.dra.handler import PrepareError, SlowClaimError
from nri_dranet.dra.leasing import Leasing, wanting
from nri_dranet.dra.plan_model import DeviceFactsIn, NodeFacts
from nri_dranet.dra.prepare import PodUse, Preparer, Reports
from nri_dranet.dra.turns import Turns
from nri_dranet.kube.client import ApiError
from nri_dranet.netlink.model import Link
from nri_dranet.receipt.receipts import Receipts
from nri_dranet.reconcile.hooktypes import HookError
from nri_dranet.reconcile.keeper import Keeper
from nri_dranet.reconcile.ports import Inlets, Outlets
from nri_dranet.reconcile.sandboxes import SandboxRef
from nri_dranet.store.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from nri_dranet.claims.plan import ClaimPlan
    from nri_dranet.claims.record import ClaimRecord

REF = ClaimRef("default", "c", "u1")


def claim(
    uid: str = "u1", *, device: str = "eth1", pool: str = "node", pods: Sequence[str] = ("p1",)
) -> dict[str, Any]:
    """Return an allocated claim as the API server sends it."""
    return {
        "metadata": {"namespace": "default", "name": "c", "uid": uid},
        "status": {
            "allocation": {
                "devices": {"results": [{"request": "nic", "driver": "dra.net", "pool": pool, "device": device}]}
            },
            "reservedFor": [{"resource": "pods", "name": f"pod-{pod}", "uid": pod} for pod in pods],
        },
    }


class NoEngine:
    """Stands for the attach engine: nothing is attached here."""

    def attach(self, plans: Sequence[DevicePlan], netns: object, *, deadline: float) -> tuple[DeviceFacts, ...]:
        """Not asked for."""
        raise AssertionError(plans, netns, deadline)

    def detach(self, plans: Sequence[DevicePlan], netns: object, *, hints: Mapping[Any, Any]) -> tuple[Any, ...]:
        """Everything is home already."""
        del plans, netns, hints
        return ()

    def look(self, plans: Sequence[DevicePlan], netns: object, hints: Mapping[Any, Any]) -> tuple[DeviceFacts, ...]:
        """Not asked for."""
        raise AssertionError(plans, netns, hints)


class NoObserver:
    """Stands for the observer."""

    watched: frozenset[str] = frozenset()

    def watch(self, uid: str, plans: Sequence[DevicePlan], netns: object, facts: Sequence[DeviceFacts]) -> None:
        """Nothing to see."""

    def forget(self, uid: str) -> None:
        """Nothing to see."""


@dataclass
class World:
    """All around the preparer."""

    preparer: Preparer
    keeper: Keeper
    objects: dict[str, dict[str, Any]]
    uses: dict[str, PodUse]
    devices: dict[str, DeviceFactsIn]
    facts: list[ClaimFacts] = field(default_factory=list)
    events: list[tuple[str, str, str]] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)

    # the API server, the pods and the inventory of the preparer

    def get(self, path: str, *, members: Any = None) -> dict[str, Any]:
        """Return an object of the API, parsed as asked."""
        name = path.rpartition("/")[2]
        if name in self.texts:
            found: dict[str, Any] = json.loads(self.texts[name], object_pairs_hook=members)
            return found
        if name not in self.objects:
            raise ApiError(404, "NotFound", f"{name} not found")
        return self.objects[name]

    def use_of(self, pod: PodRef, claim_name: str) -> PodUse | None:
        """Return how a pod uses a claim."""
        del claim_name
        return self.uses.get(pod.uid)

    def read(self, _claim: object, results: Sequence[Any]) -> tuple[dict[str, DeviceFactsIn], dict[str, HostState]]:
        """Return what is known of devices."""
        found = {result.device: self.devices[result.device] for result in results if result.device in self.devices}
        return found, {name: HostState(link=device.link) for name, device in found.items() if device.link}

    def any_interface(self, results: Sequence[Any]) -> bool:
        """Tell whether a device is an interface."""
        return any(result.device in self.devices for result in results)

    def node(self) -> NodeFacts:
        """Return the node's facts."""
        return NodeFacts()

    def change(self, raw: dict[str, Any]) -> None:
        """Let the API server have the claim like this, and the watch tell of it."""
        self.objects["c"] = raw
        self.preparer.claim_changed(REF, raw)

    def hold(self, uid: str = "u1", pod: str = "p1") -> None:
        """Let a sandbox hold a claim."""
        holder = Holder(pod=PodRef("default", f"pod-{pod}", pod), sandbox_id="s1", netns_path="/x")
        self.keeper.journal.update([uid], state=State.ATTACHING, holder=holder)
        self.keeper.journal.update([uid], state=State.ATTACHED, holder=holder)
        self.keeper.sandboxes.replace([SandboxRef(holder.pod, "s1", "/x")])


@dataclass
class Servers:
    """Stands for the DHCP servers: gives a lease for each device that wants one."""

    error: DhcpError | None = None
    lifetime: int = 3600
    mac: str = ""
    asked: list[str] = field(default_factory=list)
    given_back: list[str] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None

    def acquire(self, plan: ClaimPlan, record: ClaimRecord | None) -> dict[Any, Lease]:
        """Give a lease for each device that wants one."""
        del record
        self.meanwhile()
        if self.error is not None:
            raise self.error
        found = {}
        for device in wanting(plan):
            self.asked.append(device.label)
            found[device.key, device.request] = Lease(
                address="10.9.0.5/24",
                server="10.9.0.1",
                obtained=now(),
                lifetime=self.lifetime,
                renewal=self.lifetime // 2,
                rebinding=self.lifetime,
                hardware_address=self.mac or plan_lease.hardware_address(device),
                client_id=plan_lease.client_id(plan.ref.uid, device).hex(),
                routes=(LeaseRoute(destination="0.0.0.0/0", gateway="10.9.0.1"),),
            )
        return found

    def give_back(self, plan: ClaimPlan, leases: dict[Any, Lease], record: ClaimRecord | None) -> None:
        """Note what comes back."""
        del plan, record
        self.given_back += [lease.ip for lease in leases.values()]


@pytest.fixture
def servers() -> Servers:
    """Return the DHCP servers."""
    return Servers()


@pytest.fixture
def world(tmp_path: Path, servers: Servers) -> Iterator[World]:
    """Return a preparer with a node that has eth1 and eth2."""
    journal = Journal(tmp_path / "journal.db", "boot")
    facts: list[ClaimFacts] = []
    events: list[tuple[str, str, str]] = []
    keeper = Keeper(
        driver="dra.net",
        journal=journal,
        engine=NoEngine(),
        observer=NoObserver(),
        receipts=Receipts(tmp_path / "cdi", "dra.net"),
        outlets=Outlets(
            facts=facts.append, event=lambda *_: None, held=lambda: None, compare=lambda: None, refresh=lambda _: None
        ),
        inlets=Inlets(uplink=lambda _: "", claims_of_pod=lambda _: ()),
    )
    devices = {name: DeviceFactsIn(name=name, link=Link(index=i, name=name)) for i, name in ((7, "eth1"), (8, "eth2"))}
    made = World(None, keeper, {"c": claim()}, {}, devices, facts, events)  # type: ignore[arg-type]
    reports = Reports(facts=facts.append, event=lambda ref, reason, text, _: events.append((ref.name, reason, text)))
    made.preparer = Preparer(
        driver="dra.net",
        node="node",
        api=made,
        keeper=keeper,
        inputs=made,  # type: ignore[arg-type]
        pods=made,
        reports=reports,
        turns=Turns(),
        leasing=servers,  # type: ignore[arg-type]
    )
    yield made
    journal.close()


def test_a_prepared_claim_answers_with_its_devices(world: World) -> None:
    """Request, pool, device and the receipt's ID."""
    (device,) = world.preparer.prepare(REF)
    assert (device.request_names, device.pool, device.device) == (("nic",), "node", "eth1")
    assert device.cdi_ids == ("dra.net/device=eth1_nic_u1",)
    assert world.preparer.prepare(REF) == [device]


def test_a_field_that_is_given_twice_is_refused(world: World) -> None:
    """The API server keeps opaque parameters as they were written; a plain parser would swallow the first value."""
    opaque = {"driver": "dra.net", "parameters": {"interface": {"mtu": 1400}}}
    asked = claim()
    asked["status"]["allocation"]["devices"]["config"] = [{"source": "FromClaim", "opaque": opaque}]
    world.texts["c"] = json.dumps(asked).replace('"mtu": 1400', '"mtu": 1400, "mtu": 1500')
    with pytest.raises(PrepareError, match=r"interface\.mtu: .*must be given once"):
        world.preparer.prepare(REF)


def test_a_claim_of_other_drivers_only_needs_nothing(world: World) -> None:
    """A claim without a device of this driver is prepared with no devices."""
    world.objects["c"]["status"]["allocation"]["devices"]["results"][0]["driver"] = "gpu.example.com"
    assert world.preparer.prepare(REF) == []
    assert world.keeper.journal.records() == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda c: c["metadata"].update(uid="other"),
            "was replaced: kubelet asks for UID u1, the API server has other",
        ),
        (lambda c: c["status"].pop("allocation"), "is not allocated"),
        (
            lambda c: c["status"]["reservedFor"].append(
                {"resource": "jobs", "apiGroup": "batch", "name": "j", "uid": "j"}
            ),
            "reserved for jobs j",
        ),
        (
            lambda c: c["status"]["allocation"].update(
                nodeSelector={
                    "nodeSelectorTerms": [
                        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["elsewhere"]}]}
                    ]
                }
            ),
            "on node elsewhere, this is node node",
        ),
        (lambda c: c["status"]["reservedFor"].append({"resource": "pods", "name": "p"}), r"reservedFor\[1\].uid"),
        (
            lambda c: c["status"]["allocation"]["devices"]["results"][0].update(pool="other"),
            "pool other, this node has",
        ),
        (lambda c: c["status"]["allocation"]["devices"]["results"][0].update(device="eth9"), "eth9.*not on this node"),
    ],
)
def test_a_claim_that_is_not_for_this_node_is_refused(
    world: World, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    """The refusal says what is wrong; nothing is recorded."""
    change(world.objects["c"])
    with pytest.raises(PrepareError, match=said):
        world.preparer.prepare(REF)
    assert world.keeper.journal.records() == ()


def test_a_claim_that_cannot_be_read_is_refused(world: World) -> None:
    """The API server's words are passed on; kubelet tries again."""
    world.objects.clear()
    with pytest.raises(PrepareError, match="c not found"):
        world.preparer.prepare(REF)


def test_a_refusal_is_a_fact_and_an_event(world: World) -> None:
    """The status gets the reason; the owners of claim and pod get an Event with the same one."""
    world.objects["c"] = claim(device="eth9")
    with pytest.raises(PrepareError):
        world.preparer.prepare(REF)
    assert world.facts[-1].devices[0].phase is Phase.PREPARE_FAILED
    assert [event[:2] for event in world.events] == [("c", "InvalidConfiguration"), ("pod-p1", "InvalidConfiguration")]
    assert {event[2] for event in world.events} == {world.facts[-1].devices[0].message}


def test_a_pod_on_the_host_network_is_refused(world: World) -> None:
    """An interface cannot be moved into it; pod and claim are told, each once."""
    world.uses["p1"] = PodUse(host_network=True)
    with pytest.raises(PrepareError, match="host network"):
        world.preparer.prepare(REF)
    assert [event[:2] for event in world.events] == [("c", "HostNetwork"), ("pod-p1", "HostNetwork")]


def test_who_lists_the_claim_is_recorded(world: World) -> None:
    """Container and request, as the pod has it."""
    world.uses["p1"] = PodUse(requests={"app": ("nic",)})
    world.preparer.prepare(REF)
    record = world.keeper.journal.get("u1")
    assert record is not None
    assert record.plan.listed_by == {"app": ("nic",)}


def test_a_claim_that_a_pod_holds_is_not_planned_again(world: World) -> None:
    """After a restart of kubelet Prepare is repeated while the pod runs: the same answer, nothing is read anew."""
    first = world.preparer.prepare(REF)
    world.hold()
    world.devices.clear()
    world.objects["c"] = claim(pods=("p1", "p2"))
    assert world.preparer.prepare(REF) == first
    record = world.keeper.journal.get("u1")
    assert record is not None
    assert [pod.uid for pod in record.plan.pods] == ["p1", "p2"]


def test_a_device_of_another_live_claim_is_refused(world: World) -> None:
    """Both claims are named."""
    world.preparer.prepare(REF)
    world.objects["d"] = {**claim("u2", pods=("p2",)), "metadata": {"namespace": "default", "name": "d", "uid": "u2"}}
    with pytest.raises(PrepareError, match=r"eth1 is prepared for claim default/c \(UID u1\)"):
        world.preparer.prepare(ClaimRef("default", "d", "u2"))


def test_a_claim_that_is_gone_makes_way(world: World) -> None:
    """Its Unprepare has not come yet, but the API server has it no more and no sandbox runs with it."""
    world.preparer.prepare(REF)
    world.keeper.sandboxes.replace([])
    del world.objects["c"]
    world.objects["d"] = {**claim("u2", pods=("p2",)), "metadata": {"namespace": "default", "name": "d", "uid": "u2"}}
    (device,) = world.preparer.prepare(ClaimRef("default", "d", "u2"))
    assert device.device == "eth1"
    assert world.keeper.journal.get("u1") is None


def test_unprepare_releases_and_forgets(world: World) -> None:
    """An unknown claim is no error."""
    world.preparer.prepare(REF)
    world.preparer.unprepare(REF)
    world.preparer.unprepare(REF)
    assert world.keeper.journal.records() == ()


def test_the_next_pod_of_a_held_claim_is_remembered(world: World) -> None:
    """The watch shows a reservation that kubelet will not prepare for."""
    world.preparer.prepare(REF)
    world.hold()
    world.change(claim(pods=("p2",)))
    record = world.keeper.journal.get("u1")
    assert record is not None
    assert [pod.uid for pod in record.plan.pods] == ["p2"]


def test_another_allocation_of_a_held_claim_is_planned_ahead(world: World) -> None:
    """The claim was deallocated and allocated to another device while the former pod still ends."""
    world.preparer.prepare(REF)
    world.hold()
    world.change(claim(device="eth2", pods=("p2",)))
    record = world.keeper.journal.get("u1")
    assert record is not None
    assert record.successor is not None
    assert record.successor.devices[0].key.device == "eth2"
    assert record.plan.devices[0].key.device == "eth1"


def test_an_allocation_that_cannot_be_planned_is_told_to_the_next_pod(world: World) -> None:
    """The next pod has no Prepare that could fail: it gets an Event, and so does the claim."""
    world.preparer.prepare(REF)
    world.hold()
    world.change(claim(device="eth9", pods=("p2",)))
    assert [event[:2] for event in world.events] == [("c", "InvalidConfiguration"), ("pod-p2", "InvalidConfiguration")]


def test_an_allocation_that_cannot_be_planned_is_told_once_and_tried_until_it_can_be(world: World) -> None:
    """The status says so meanwhile, and that it is over; nobody else would ask again before the pod starts."""
    world.preparer.prepare(REF)
    world.hold()
    raw = claim(device="eth9", pods=("p2",))
    world.change(raw)
    told = list(world.events)
    assert "it is tried again" in told[-1][2]
    fact = world.facts[-1].devices[0]
    assert (fact.key.device, fact.phase, fact.reason) == ("eth9", Phase.PREPARE_FAILED, "InvalidConfiguration")
    world.preparer.look_again(REF)
    assert world.events == told
    assert world.preparer.retries.drop("u1")
    world.preparer.retries.put(REF)
    world.devices["eth9"] = DeviceFactsIn(name="eth9", link=Link(index=9, name="eth9"))
    world.preparer.look_again(REF)
    assert not world.preparer.retries.drop("u1")
    fact = world.facts[-1].devices[0]
    assert (fact.key.device, fact.phase) == ("eth9", Phase.PREPARED)
    record = world.keeper.journal.get("u1")
    assert record is not None
    assert record.successor is not None
    assert record.successor.devices[0].key.device == "eth9"


def test_another_cause_is_told_anew(world: World) -> None:
    """The next pod of the claim is another, or something else stands against it."""
    world.preparer.prepare(REF)
    world.hold()
    world.change(claim(device="eth9", pods=("p2",)))
    world.change(claim(device="eth9", pods=("p3",)))
    world.uses["p3"] = PodUse(host_network=True)
    world.change(claim(device="eth2", pods=("p3",)))
    said = [(name, "host network" in text) for name, _, text in world.events if name != "c" and "next pod" in text]
    assert said == [("pod-p2", False), ("pod-p3", False), ("pod-p3", True)]
    assert world.facts[-1].devices[0].reason == "HostNetwork"


def test_a_claim_that_waits_is_left_when_it_is_gone(world: World) -> None:
    """It was deleted, or made anew under its name; a server that does not answer says nothing of that."""
    world.preparer.prepare(REF)
    world.hold()
    world.change(claim(device="eth9", pods=("p2",)))

    def away(path: str, *, members: Any = None) -> dict[str, Any]:
        raise ApiError(0, "Timeout", f"{path} {members}")

    known, world.get = world.get, away  # type: ignore[method-assign]
    world.preparer.look_again(REF)
    world.get = known  # type: ignore[method-assign]
    assert world.preparer.retries.drop("u1")
    world.preparer.retries.put(REF)
    world.objects["c"] = claim("u2")
    world.preparer.look_again(REF)
    assert not world.preparer.retries.drop("u1")
    world.preparer.retries.put(REF)
    del world.objects["c"]
    world.preparer.look_again(REF)
    assert not world.preparer.retries.drop("u1")
    assert world.keeper.journal.get("u1") is not None


def test_a_claim_of_a_wrong_shape_is_tried_again(world: World) -> None:
    """Whatever the watch shows, the claim's record stays and the watch lives on."""
    world.preparer.prepare(REF)
    world.hold()
    raw = claim(pods=("p2",))
    del raw["status"]["reservedFor"][0]["uid"]
    world.change(raw)
    assert world.preparer.retries.drop("u1")


def test_a_claim_that_nobody_uses_needs_no_plan(world: World) -> None:
    """Deallocated, or without a pod: there is nothing to try again."""
    world.preparer.prepare(REF)
    world.hold()
    world.change(claim(device="eth9", pods=("p2",)))
    world.change(claim(device="eth9", pods=()))
    assert not world.preparer.retries.drop("u1")


def test_an_allocation_that_differs_in_a_repeated_field_alone_is_refused_by_the_watch_too(world: World) -> None:
    """A parser that swallows the first of two values would take it for the former allocation."""
    opaque = {"driver": "dra.net", "parameters": {"interface": {"mtu": 1400}}}
    asked = claim()
    asked["status"]["allocation"]["devices"]["config"] = [{"source": "FromClaim", "opaque": opaque}]
    world.objects["c"] = asked
    world.preparer.prepare(REF)
    world.hold()
    asked["status"]["reservedFor"] = claim(pods=("p2",))["status"]["reservedFor"]
    world.texts["c"] = json.dumps(asked).replace('"mtu": 1400', '"mtu": 1500, "mtu": 1400')
    world.preparer.look_again(REF)
    assert world.events[-1][:2] == ("pod-p2", "InvalidConfiguration")
    assert "must be given once" in world.events[-1][2]


def test_a_deleted_claim_is_released_unless_a_sandbox_runs_with_it(world: World) -> None:
    """While the pod runs it keeps its device; afterwards the claim is forgotten."""
    world.preparer.prepare(REF)
    world.hold()
    world.preparer.claim_changed(REF, None)
    assert world.keeper.journal.get("u1") is not None
    world.keeper.sandboxes.stop("s1")
    world.preparer.claim_changed(REF, None)
    assert world.keeper.journal.get("u1") is None
    world.change(claim())


def other(world: World) -> ClaimRef:
    """Let another claim have eth1, and return it."""
    world.objects["d"] = {**claim("u2", pods=("p2",)), "metadata": {"namespace": "default", "name": "d", "uid": "u2"}}
    return ClaimRef("default", "d", "u2")


def test_a_claim_that_was_allocated_anew_makes_way_and_stays_known(world: World) -> None:
    """Its next pod gets no Prepare: forgotten, it would start without its device."""
    world.preparer.prepare(REF)
    world.keeper.sandboxes.replace([])
    world.objects["c"] = claim(device="eth2", pods=("p3",))
    assert [device.device for device in world.preparer.prepare(other(world))] == ["eth1"]
    record = world.keeper.journal.get("u1")
    assert record is not None
    assert [device.key.device for device in record.plan.devices] == ["eth2"]
    assert [pod.uid for pod in record.plan.pods] == ["p3"]


def test_a_claim_that_is_not_allocated_any_more_makes_way_and_stays_known(world: World) -> None:
    """It is held without a device, so that its next allocation is seen; until then its pods are refused."""
    world.preparer.prepare(REF)
    world.keeper.sandboxes.replace([])
    world.objects["c"] = {"metadata": {"namespace": "default", "name": "c", "uid": "u1"}, "status": {}}
    world.preparer.prepare(other(world))
    record = world.keeper.journal.get("u1")
    assert record is not None
    assert record.plan.devices == ()
    world.change(claim(device="eth2", pods=("p3",)))
    record = world.keeper.journal.get("u1")
    assert record is not None
    assert [device.key.device for device in record.plan.devices] == ["eth2"]


def test_a_claim_makes_no_way_while_its_pod_runs(world: World) -> None:
    """Whatever the API server says: the device is in a pod."""
    world.preparer.prepare(REF)
    world.hold()
    del world.objects["c"]
    with pytest.raises(PrepareError, match="eth1 is prepared for claim default/c"):
        world.preparer.prepare(other(world))


def test_a_third_pod_joins_the_next_allocation(world: World) -> None:
    """The pod for which the next allocation was made is gone, another has taken its place."""
    world.preparer.prepare(REF)
    world.hold()
    world.change(claim(device="eth2", pods=("p2",)))
    world.change(claim(device="eth2", pods=("p3",)))
    record = world.keeper.journal.get("u1")
    assert record is not None
    assert record.successor is not None
    assert [pod.uid for pod in record.successor.pods] == ["p3"]
    assert [pod.uid for pod in record.plan.pods] == ["p1"]


def two_claims_of_a_pod(world: World, first: Mapping[str, Any], second: Mapping[str, Any]) -> ClaimRef:
    """Let pod p1 have claim c on eth1 and claim d on eth2, each with a configuration; return d."""
    world.objects["d"] = {
        **claim("u2", device="eth2"),
        "metadata": {"namespace": "default", "name": "d", "uid": "u2"},
    }
    for name, parameters in (("c", first), ("d", second)):
        opaque = {"driver": "dra.net", "parameters": parameters}
        world.objects[name]["status"]["allocation"]["devices"]["config"] = [{"source": "FromClaim", "opaque": opaque}]
    return ClaimRef("default", "d", "u2")


def routed(address: str, gateway: str) -> dict[str, Any]:
    """Return a configuration with an address and a route to 10.9.0.0/16."""
    return {
        "interface": {"addresses": [address]},
        "routes": [{"destination": "10.9.0.0/16", "gateway": gateway}],
    }


def test_routes_of_two_claims_of_a_pod_to_one_place_are_refused(world: World) -> None:
    """In the pod the kernel would take only the first, in silence."""
    ref = two_claims_of_a_pod(world, routed("10.1.0.2/24", "10.1.0.1"), routed("10.2.0.2/24", "10.2.0.1"))
    world.preparer.prepare(REF)
    with pytest.raises(PrepareError, match=r"10\.9\.0\.0/16.*must not lead to where a route of device eth1.*claim c"):
        world.preparer.prepare(ref)


def test_claims_of_one_pod_are_planned_one_after_the_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubelet prepares them at once: planned beside each other, neither would see the other."""
    ref = two_claims_of_a_pod(world, {"interface": {"name": "net1"}}, {"interface": {"name": "net1"}})
    both = threading.Barrier(2)
    prepare = world.keeper.prepare

    def recording(plan: ClaimPlan) -> Any:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(timeout=0.2)
        return prepare(plan)

    monkeypatch.setattr(world.keeper, "prepare", recording)
    with ThreadPoolExecutor(2) as pool:
        begun = [pool.submit(world.preparer.prepare, each) for each in (REF, ref)]
    (refused,) = [each.exception() for each in begun if each.exception() is not None]
    assert "must differ from the name of device" in str(refused)


def test_a_claim_that_cannot_be_planned_anew_makes_no_way(world: World) -> None:
    """Its own trouble is told of it; the claim that waits for its device is told who has that, and it stays known."""
    world.preparer.prepare(REF)
    world.keeper.sandboxes.replace([])
    world.objects["c"] = claim(device="eth9", pods=("p3",))
    with pytest.raises(PrepareError, match="eth1 is prepared for claim default/c"):
        world.preparer.prepare(other(world))
    told = {subject: (reason, text) for subject, reason, text in world.events}
    assert {subject: reason for subject, (reason, _) in told.items()} == {
        "c": "InvalidConfiguration",
        "pod-p3": "InvalidConfiguration",
        "d": "DeviceInUse",
        "pod-p2": "DeviceInUse",
    }
    assert "eth9" in told["c"][1]
    assert "eth9" not in told["d"][1]
    record = world.keeper.journal.get("u1")
    assert record is not None
    assert [device.key.device for device in record.plan.devices] == ["eth1"]


def test_a_claim_whose_new_device_is_taken_makes_no_way(world: World) -> None:
    """The third claim that has the device is trouble of the claim that was allocated anew, not of the one that asks."""
    world.preparer.prepare(REF)
    world.objects["e"] = {
        **claim("u3", device="eth2"),
        "metadata": {"namespace": "default", "name": "e", "uid": "u3"},
    }
    world.preparer.prepare(ClaimRef("default", "e", "u3"))
    world.keeper.sandboxes.replace([])
    world.objects["c"] = claim(device="eth2", pods=("p3",))
    with pytest.raises(PrepareError, match="eth1 is prepared for claim default/c"):
        world.preparer.prepare(other(world))
    assert {event[:2] for event in world.events} >= {("c", "DeviceInUse"), ("d", "DeviceInUse")}
    assert "claim default/e" in world.events[0][2]


def test_a_claim_whose_new_devices_cannot_be_read_makes_no_way(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's word is told of the claim that it is about."""
    world.preparer.prepare(REF)
    world.keeper.sandboxes.replace([])
    world.objects["c"] = claim(device="eth2", pods=("p3",))
    read = world.read

    def failing(asked: Any, results: Sequence[Any]) -> Any:
        if asked.ref.name == "c":
            raise OSError(errno.EIO, "no answer")
        return read(asked, results)

    monkeypatch.setattr(world, "read", failing)
    with pytest.raises(PrepareError, match="eth1 is prepared for claim default/c"):
        world.preparer.prepare(other(world))
    assert "no answer" in world.events[0][2]


def test_a_field_that_is_given_twice_is_seen_wherever_a_claim_is_planned(world: World) -> None:
    """The watch parses plainly, and so the claim is read again; a claim that makes way is read as in Prepare."""
    world.preparer.prepare(REF)
    world.hold()
    asked = claim(device="eth2", pods=("p2",))
    opaque = {"driver": "dra.net", "parameters": {"interface": {"mtu": 1400}}}
    asked["status"]["allocation"]["devices"]["config"] = [{"source": "FromClaim", "opaque": opaque}]
    world.texts["c"] = json.dumps(asked).replace('"mtu": 1400', '"mtu": 1500, "mtu": 1400')
    world.preparer.claim_changed(REF, asked)
    assert [event[:2] for event in world.events] == [("c", "InvalidConfiguration"), ("pod-p2", "InvalidConfiguration")]
    assert "must be given once" in world.events[-1][2]
    world.events.clear()
    world.keeper.sandboxes.replace([])
    with pytest.raises(PrepareError, match="eth1 is prepared for claim default/c"):
        world.preparer.prepare(other(world))
    assert "must be given once" in next(text for subject, _, text in world.events if subject == "c")


def test_what_kubelet_is_refused_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Kubelet tells it in an Event that is soon gone."""
    world.objects.clear()
    with pytest.raises(PrepareError):
        world.preparer.prepare(REF)
    assert "c not found" in str(caplog.records[-1].__dict__["fields"]["error"])


def dhcp_claim(uid: str = "u1", **more: Any) -> dict[str, Any]:
    """Return an allocated claim that asks for DHCP."""
    made = claim(uid)
    opaque = {"driver": "dra.net", "parameters": {"interface": {"dhcp": True}, **more}}
    made["status"]["allocation"]["devices"]["config"] = [{"source": "FromClaim", "opaque": opaque}]
    return made


def lease_of(world: World) -> Lease:
    """Return the lease that is recorded."""
    (record,) = world.keeper.journal.records()
    pod = record.plan.devices[0].pod
    assert pod is not None
    assert pod.lease is not None
    return pod.lease


def test_a_lease_is_recorded_with_the_plan(world: World, servers: Servers) -> None:
    """Address and routes are the server's, and the lease survives the journal."""
    world.objects["c"] = dhcp_claim()
    world.preparer.prepare(REF)
    (record,) = world.keeper.journal.records()
    pod = record.plan.devices[0].pod
    assert pod is not None
    assert [each.cidr for each in pod.addresses] == ["10.9.0.5/24"]
    assert [(each.destination, each.gateway, each.metric) for each in pod.routes] == [("0.0.0.0/0", "10.9.0.1", 1024)]
    assert codec.loads(type(record.plan), codec.dumps(record.plan)) == record.plan
    assert servers.asked == ["eth1"]


def test_a_recorded_lease_is_not_asked_for_again(world: World, servers: Servers) -> None:
    """A retry of Prepare uses it; one that is due is asked for anew."""
    world.objects["c"] = dhcp_claim()
    world.preparer.prepare(REF)
    first = lease_of(world)
    world.preparer.prepare(REF)
    assert lease_of(world) == first
    assert servers.asked == ["eth1"]
    due = replace(first, obtained=first.obtained - first.renewal)
    (record,) = world.keeper.journal.records()
    plan = plan_lease.with_other_lease(record.plan, record.plan.devices[0].key, "nic", first, due)
    world.keeper.journal.put(replace(record, plan=plan))
    world.preparer.prepare(REF)
    assert servers.asked == ["eth1", "eth1"]


def test_a_lost_lease_is_not_used_again(world: World, servers: Servers) -> None:
    """What a server took back is asked for anew."""
    world.objects["c"] = dhcp_claim()
    world.preparer.prepare(REF)
    (record,) = world.keeper.journal.records()
    plan = plan_lease.with_other_lease(
        record.plan, record.plan.devices[0].key, "nic", lease_of(world), None, lost="the server said no"
    )
    world.keeper.journal.put(replace(record, plan=plan))
    world.preparer.prepare(REF)
    assert servers.asked == ["eth1", "eth1"]
    (record,) = world.keeper.journal.records()
    assert record.plan.devices[0].pod is not None
    assert not record.plan.devices[0].pod.lease_lost


def test_a_lease_that_was_prolonged_meanwhile_is_kept(world: World) -> None:
    """What was recorded between planning and recording is newer than what was planned with."""
    world.objects["c"] = dhcp_claim()
    world.preparer.prepare(REF)
    (record,) = world.keeper.journal.records()
    lease = lease_of(world)
    newer = replace(lease, obtained=lease.obtained + 5)
    plan = plan_lease.with_other_lease(record.plan, record.plan.devices[0].key, "nic", lease, newer)
    world.keeper.journal.put(replace(record, plan=plan))
    world.keeper.prepare(record.plan)
    assert lease_of(world) == newer


def test_no_lease_refuses_the_claim(world: World, servers: Servers) -> None:
    """The reason is in the documented list, the text says what was asked; nothing is recorded."""
    world.objects["c"] = dhcp_claim()
    servers.error = DhcpError("device eth1, request nic: no answer came")
    with pytest.raises(PrepareError, match="no answer came"):
        world.preparer.prepare(REF)
    assert world.keeper.journal.records() == ()
    (told,) = [fact for facts in world.facts for fact in facts.devices]
    assert told.reason == "LeaseNotObtained"


def test_a_lease_that_comes_to_nothing_is_given_back(world: World, servers: Servers) -> None:
    """What is wrong is often known only with the address: the lease goes back."""
    world.objects["c"] = dhcp_claim(routes=[{"destination": "10.77.0.0/16", "gateway": "192.0.2.1"}])
    with pytest.raises(PrepareError, match=r"192\.0\.2\.1"):
        world.preparer.prepare(REF)
    assert servers.given_back == ["10.9.0.5"]


def test_a_lease_whose_address_is_recorded_is_not_given_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server gives the same address to who asks again: what failed the second time may be in use since the first."""
    released: list[str] = []
    monkeypatch.setattr("nri_dranet.dra.leasing.release", lambda lease, _: released.append(lease.ip))
    world.objects["c"] = dhcp_claim()
    world.preparer.prepare(REF)
    (record,) = world.keeper.journal.records()
    leases = {(device.key, device.request): lease_of(world) for device in record.plan.devices}
    leasing = Leasing(world.keeper.namespaces, Turns())
    leasing.give_back(record.plan, leases, record)
    assert released == []
    leasing.give_back(record.plan, leases, None)
    assert released == ["10.9.0.5"]


def test_a_lease_for_what_has_changed_meanwhile_is_given_back(world: World, servers: Servers) -> None:
    """A device whose Ethernet address is another one by then needs another lease."""
    world.objects["c"] = dhcp_claim()
    servers.mac = "02:00:00:00:00:01"
    with pytest.raises(PrepareError, match="eth1 changed while its lease was asked for"):
        world.preparer.prepare(REF)
    assert servers.given_back == ["10.9.0.5"]


def test_no_lease_is_asked_for_a_device_of_another_claim(world: World, servers: Servers) -> None:
    """The conflict is found before anybody is asked."""
    world.preparer.prepare(REF)
    other = ClaimRef("default", "d", "u2")
    world.objects["d"] = dhcp_claim("u2")
    world.objects["d"]["metadata"]["name"] = "d"
    world.objects["d"]["status"]["reservedFor"] = [{"resource": "pods", "name": "pod-p2", "uid": "p2"}]
    with pytest.raises(PrepareError, match="is prepared for claim default/c"):
        world.preparer.prepare(other)
    assert servers.asked == []


def test_other_claims_of_the_pod_are_prepared_while_a_lease_is_awaited(world: World, servers: Servers) -> None:
    """Nobody's turn is held meanwhile."""
    world.objects["c"] = dhcp_claim()
    world.objects["d"] = claim("u2", device="eth2")
    world.objects["d"]["metadata"]["name"] = "d"
    servers.meanwhile = lambda: (world.preparer.prepare(ClaimRef("default", "d", "u2")), None)[1]
    world.preparer.prepare(REF)
    assert {record.uid for record in world.keeper.journal.records()} == {"u1", "u2"}


def test_a_sandbox_is_refused_without_a_valid_lease(world: World, servers: Servers) -> None:
    """An address whose time is over is not given to a pod."""
    servers.lifetime = 0
    world.objects["c"] = dhcp_claim()
    world.preparer.prepare(REF)
    sandbox = SandboxRef(PodRef("default", "pod-p1", "p1"), "s1", "/x")
    with pytest.raises(HookError, match=r"no valid DHCP lease.*10\.9\.0\.5 from DHCP server 10\.9\.0\.1 has expired"):
        world.keeper.run_sandbox(sandbox, time.monotonic() + 5)


def test_who_is_not_patient_waits_for_no_server(world: World, servers: Servers) -> None:
    """Nothing is asked and nothing recorded; a lease that is recorded needs no patience."""
    world.objects["c"] = dhcp_claim()
    with pytest.raises(SlowClaimError):
        world.preparer.prepare(REF, patient=False)
    assert (servers.asked, world.keeper.journal.records()) == ([], ())
    world.preparer.prepare(REF)
    assert world.preparer.prepare(REF, patient=False)
