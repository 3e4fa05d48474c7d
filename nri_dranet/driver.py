"""The composition root: what exists, in which order it starts and stops. The only place where the halves meet."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from nri_dranet.attach.engine import Engine
from nri_dranet.attach.kept import KeptPrograms
from nri_dranet.claims.facts import Phase
from nri_dranet.claims.lifecycle import State
from nri_dranet.claims.model import ClaimRef, PodRef
from nri_dranet.dra import health as dra_health
from nri_dranet.dra import rebuild, retries, sharing
from nri_dranet.dra.hardware import Hardware
from nri_dranet.dra.held import HeldClaims
from nri_dranet.dra.leasekeeper import THREAD as LEASES
from nri_dranet.dra.leasekeeper import LeaseKeeper
from nri_dranet.dra.leasing import Leasing
from nri_dranet.dra.plan_inputs import PlanInputs
from nri_dranet.dra.prepare import PodUse, Preparer, Reports
from nri_dranet.dra.registration import PluginServer, SocketError
from nri_dranet.dra.servicer import VERSIONS, DraServicer
from nri_dranet.dra.slice_layout import MAX_DEVICES, MAX_DEVICES_GATED
from nri_dranet.dra.slices import SlicePublisher
from nri_dranet.dra.turns import Turns
from nri_dranet.instance.handover import HandoverError, HandoverServer, path_beside
from nri_dranet.instance.standby import stand_by
from nri_dranet.instance.succession import NotAloneError, Succession
from nri_dranet.inventory.inventory import Inventory
from nri_dranet.inventory.override import NodeFilter, annotation
from nri_dranet.inventory.state import Policy
from nri_dranet.kube.client import ConfigurationError, KubeClient
from nri_dranet.kube.events import EventRecorder, ObjectRef
from nri_dranet.kube.evictions import Evictor
from nri_dranet.kube.node import NodeWatch
from nri_dranet.kube.pods import PodCache
from nri_dranet.netlink.namespaces import NetNs
from nri_dranet.nri.gate import HookGate
from nri_dranet.nri.hooks import EVENTS, Hooks
from nri_dranet.nri.session import NriSession
from nri_dranet.observe.pods import PodObserver
from nri_dranet.offers import Offers, held_devices, published_of
from nri_dranet.receipt.metadata import FOLDER, MetadataFiles
from nri_dranet.receipt.receipts import Receipts
from nri_dranet.reconcile import words
from nri_dranet.reconcile.hooktypes import HookError
from nri_dranet.reconcile.keeper import Keeper
from nri_dranet.reconcile.ports import Inlets, Outlets
from nri_dranet.reconcile.reconciler import Reconciler
from nri_dranet.status.health_book import HealthBook
from nri_dranet.status.wire import StatusWire
from nri_dranet.status.writer import WORKERS, StatusWriter
from nri_dranet.store.database import JournalError, JournalTooNewError, check_version
from nri_dranet.store.journal import Journal
from nri_dranet.sysfs import Sysfs
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.http import BindAddress, HttpServer
from nri_dranet.telemetry.logs import fields
from nri_dranet.telemetry.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nri_dranet.claims.facts import ClaimFacts, DeviceFacts
    from nri_dranet.claims.plan import ClaimPlan, DevicePlan
    from nri_dranet.kube.node import NodeInfo
    from nri_dranet.settings import Options
    from nri_dranet.status.health import Health
    from nri_dranet.status.health_book import DeviceName

LOG = logging.getLogger(__name__)

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
BPF_ROOT: Final = "/sys/fs/bpf"

THREADS: Final = (
    "events",
    "inventory",
    "pod-observer",
    "node",
    "pods",
    "held-claims",
    retries.THREAD,
    rebuild.THREAD,
    *(f"status-{number}" for number in range(WORKERS)),
    "slices",
    "slices-watch",
    "evictions",
    "reconciler",
    LEASES,
    "nri",
    "nri-watchdog",
)
"""The threads that live as long as the daemon; readiness names one that has died."""

_FIRST_SCAN_SECONDS: Final = 10.0
_IN_FLIGHT_SECONDS: Final = 10.0
_IN_FLIGHT_LOOK: Final = 0.1
_LOOK: Final = 0.05
# What kubelet, the runtime and the former instance's HTTP port are waited for while another instance is followed.
_REGISTRATION_SECONDS: Final = 10.0
_JOIN_SECONDS: Final = 3.0
_PORT_SECONDS: Final = 10.0
_HOOK_SECONDS: Final = 0.5
_JOURNAL_SECONDS: Final = 2.0
_STALE_INVENTORY: Final = 3.0


class StartError(Exception):
    """The daemon cannot start; the text says why and what to do."""


class Part(Protocol):
    """What works in the background."""

    def start(self) -> None:
        """Begin."""
        ...

    def stop(self) -> None:
        """End."""
        ...


class Driver:
    """The daemon. ``run`` is all of its life."""

    _gate: HookGate
    _http: HttpServer | None
    _plugin: PluginServer
    _session: NriSession
    _watching: asyncio.Task[None] | None

    def __init__(self, options: Options) -> None:
        """Check what can be checked before anything starts.

        Raises:
            ValueError: an option has a value that is not allowed; the text names it.
        """
        self._options = options
        self._address = BindAddress.parse(options.bind_address)
        self._filter = NodeFilter(options.filter, options.driver_name, event=self._node_event)
        sharing.compiled(options.share, options.driver_name)
        self._offers = Offers(driver=options.driver_name, taints=options.device_taints)
        self._prepared_at: dict[str, float] = {}
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Run until SIGINT or SIGTERM, then stop in order.

        An instance that has given its work to the next one stands by and begins anew when that ends.

        Raises:
            StartError: the start failed; everything that was started is stopped again.
        """
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(sig, self._stopping.set)
        while not self._stopping.is_set():
            async with contextlib.AsyncExitStack() as stack:
                try:
                    await self._start(stack)
                except (ConfigurationError, JournalError, NotAloneError, SocketError, OSError) as error:
                    raise StartError(str(error)) from error
                handed = await self._handover.work(self._stopping, self._watching)
                LOG.info("stopping", extra=fields(handed_over=handed))
            gc.unfreeze()
            if handed:
                await stand_by(self._options.journal, self._stopping)

    # ---- start

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        """Start everything; what ``stack`` holds is stopped in the reverse order.

        Where another instance works, what needs no journal starts beside it; then its work is taken over.
        """
        options = self._options
        self._handed_over = False
        self._http = None
        self._unusable = ""
        self._threads = Threads(THREADS)
        self._client = KubeClient.load(options.kubeconfig)
        stack.callback(self._client.close)
        # Each of these is stopped alone when another instance takes over.
        self._held_open = await stack.enter_async_context(contextlib.AsyncExitStack())
        self._recording = await stack.enter_async_context(contextlib.AsyncExitStack())
        self._serving = await stack.enter_async_context(contextlib.AsyncExitStack())
        self._compose_outside()
        self._events.start()
        stack.callback(self._events.stop)
        first = await self._begin()
        if first:
            await self._serve_http()
        self._inventory.subscribe(self._slices.refresh)
        self._inventory.start()
        stack.callback(self._inventory.stop)
        if not await asyncio.to_thread(self._inventory.wait, _FIRST_SCAN_SECONDS):
            raise StartError(f"the node's interfaces could not be read within {_FIRST_SCAN_SECONDS:g} s")
        self._background = await stack.enter_async_context(contextlib.AsyncExitStack())
        # Joined last and left last: pods that were prepared must find their hook.
        self._joined = await stack.enter_async_context(contextlib.AsyncExitStack())
        self._joined.push_async_callback(asyncio.to_thread, self._session.stop)
        self._joined.push_async_callback(self._wait_for_pods_in_flight)
        self._kubelet = await stack.enter_async_context(contextlib.AsyncExitStack())
        self._kubelet.push_async_callback(asyncio.to_thread, self._servicer.close)
        self._start_background(self._node, self._pods)
        if not first:
            await self._succeed()
        self._start_background(
            self._preparer.retries,
            *(self._held, self._writer, self._rebuilder),
            self._slices,
            self._evictor,
            self._reconciler,
            self._leases,
        )
        self._session.start()
        await self._serve_kubelet()
        self._handover = HandoverServer(path_beside(options.journal), self)
        await self._handover.start()
        stack.push_async_callback(self._handover.stop)
        self._threads.take()
        # What the start has made lives as long as the process: a collection in a hook shall not walk it.
        gc.collect()
        gc.freeze()

    async def _begin(self) -> bool:
        """Begin to work if no other instance does; tell whether this one works.

        A journal that cannot be used, on a disk that is full or read-only, is tried until it can: a program that ends
        and is started again and again helps nobody.

        Raises:
            JournalTooNewError: it is of a newer version.
            StartError: this instance shall end first.
        """
        succession: Succession | None = None
        while True:
            try:
                if succession is None:
                    succession = Succession(self._options.journal, self._activate, self._stopping)
                    self._recording.callback(succession.close)
                    self._succession = succession
                return succession.try_now()
            except JournalTooNewError:
                raise
            except (JournalError, OSError) as error:
                problem = str(error)
            if problem != self._unusable:
                self._unusable = problem
                LOG.error("the journal cannot be used, trying on", extra=fields(error=problem))
                self._node_event(
                    "JournalUnusable", f"the node's driver waits, as its journal cannot be used: {problem}"
                )
                await self._serve_http()
            await self._look_for(self._stopping.is_set, _JOURNAL_SECONDS)
            if self._stopping.is_set():
                raise StartError(f"stopped before the journal could be used: {problem}")

    def _start_background(self, *parts: Part) -> None:
        for part in parts:
            part.start()
            self._background.push_async_callback(asyncio.to_thread, part.stop)

    async def _serve_http(self, patience: float = 0.0) -> None:
        """Serve HTTP; ``patience``: seconds for which another instance may still have the port.

        Raises:
            OSError: the address cannot be listened on.
        """
        if self._http is not None:
            return
        self._http = http = HttpServer(self._address, live={"loop": lambda: ""}, ready=self._readiness())
        await http.start(patience)
        self._serving.push_async_callback(http.stop)

    async def _serve_kubelet(self) -> None:
        """Serve on kubelet's sockets, unless that is done already.

        Raises:
            SocketError: a socket cannot be made.
        """
        if self._watching is not None:
            return
        self._kubelet.push_async_callback(self._stop_plugin)
        await self._plugin.start()
        self._watching = asyncio.create_task(self._plugin.watch(), name="registration")

    async def _succeed(self) -> None:
        """Take the work over from the instance that has it.

        Raises:
            NotAloneError, JournalError, SocketError, OSError: as what they are raised by says.
        """
        check_version(self._options.journal)  # before anybody gives up work that nobody else could do
        if self._options.pod_uid:
            # kubelet calls who registered last: its calls wait here until this instance works.
            await self._serve_kubelet()
            await self._look_for(lambda: self._plugin.registered, _REGISTRATION_SECONDS)
        await self._succession.wait(self._session.start)
        self._session.start()  # where the lock was found free nobody has begun to join
        self._keeper.hold_namespaces(await self._succession.namespaces())
        await self._look_for(lambda: not self._session.problem, _JOIN_SECONDS)
        await self._succession.confirm()
        await self._serve_http(_PORT_SECONDS)

    async def _look_for(self, what: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not what() and time.monotonic() < end:
            if self._stopping.is_set():
                return
            await asyncio.sleep(_LOOK)

    def _activate(self) -> None:
        """Begin to work: this instance has the lock.

        Raises:
            JournalError: the journal cannot be used.
            OSError: the boot ID cannot be read, or there is no descriptor left.
        """
        with contextlib.ExitStack() as opened:
            self._journal = Journal(self._options.journal, BOOT_ID.read_text(encoding="ascii").strip())
            opened.callback(self._journal.close)
            self._compose()
            opened.callback(self._observer.stop)
            self._observer.start()
            # What fails is tried again: then none of it stays open.
            self._recording.push(opened.pop_all())
        for changed in (self._preparer.retries.wake, self._reconciler.links_changed):
            self._inventory.subscribe(changed)
        self._tell_journal()
        self._health_book.note(*(words.of_record(record) for record in self._journal.records()))
        self._held_open.callback(self._keeper.namespaces.close)
        self._held_open.callback(self._engine.close)
        self._held_open.callback(self._kept.close)
        self._held_open.callback(self._inputs.close)
        self._gate.open(self._hooks)
        self._servicer.open(self._preparer)

    def _take_over(self) -> None:
        try:
            self._succession.take_over()
        except HandoverError as error:
            raise HookError(str(error)) from error

    def _compose_outside(self) -> None:
        """Make the parts that need no journal."""
        options, client = self._options, self._client
        driver, node = options.driver_name, options.node_name
        self._sysfs = Sysfs()
        self._events = EventRecorder(client, driver, node)
        self._pods = PodCache(client, node)
        self._node = NodeWatch(client, node, self._node_changed)
        list_types = options.feature_gates.get("DRAListTypeAttributes", False)
        policy = Policy(
            allow=options.allow,
            deny=options.deny,
            move_ib_interfaces=options.move_ib_interfaces,
            list_types=list_types,
        )
        self._inventory = Inventory(self._sysfs, policy=policy, max_interval=options.max_poll)
        self._health = dra_health.HealthService()
        self._evictor = Evictor(client)
        self._held = HeldClaims(client, self._held_claims, self._claim_seen)
        self._slices = SlicePublisher(
            client,
            driver,
            node,
            interval=options.min_poll,
            burst=options.poll_burst,
            limit=MAX_DEVICES_GATED if list_types or options.device_taints else MAX_DEVICES,
            collect=self._entries,
            on_node=self._node.note,
            event=self._node_event,
        )
        self._servicer = DraServicer()
        self._watching = None
        self._plugin = PluginServer(
            driver,
            options.kubelet_root_dir,
            [*self._servicer.handlers(), *self._health.handlers()],
            instance=options.pod_uid,
            versions=(*VERSIONS, *dra_health.VERSIONS),
        )
        self._gate = HookGate(self._take_over)
        self._session = NriSession(options.nri_socket, options.nri_name, options.nri_index, self._gate, events=EVENTS)

    def _compose(self) -> None:
        """Make the parts that need the journal, and bring all together."""
        options, client = self._options, self._client
        driver, node = options.driver_name, options.node_name
        self._kept = KeptPrograms(BPF_ROOT)
        self._engine = Engine(host_netns=NetNs.current(), kept=self._kept)
        self._observer = PodObserver(self._observed, self._engine.look)
        # Not in the state directory: the runtime must find it under the same path, as kubelet finds the socket.
        metadata = MetadataFiles(options.kubelet_root_dir / "plugins" / driver / FOLDER, driver)
        self._receipts = receipts = Receipts(options.cdi_dir, driver, metadata)
        receipts.make_folders()
        self._health_book = HealthBook(self._tell_health)
        self._writer = StatusWriter(StatusWire(client, driver, node), driver, self._journal, event=self._event)
        outlets = Outlets(
            facts=self._facts_changed,
            event=self._event,
            held=self._held_changed,
            compare=self._compare_soon,
            refresh=self._refresh_metadata,
        )
        self._keeper = Keeper(
            driver=driver,
            journal=self._journal,
            engine=self._engine,
            observer=self._observer,
            receipts=receipts,
            outlets=outlets,
            inlets=Inlets(uplink=self._uplink, claims_of_pod=self._claims_of_pod),
            lift_memlock=options.lift_memlock,
        )
        self._reconciler = Reconciler(self._keeper, self._engine, receipts, outlets, end=self._unattached)
        hardware = Hardware(
            self._sysfs, lambda: [device.link for device in self._inventory.devices() if device.link is not None]
        )
        self._sharing = sharing.Sharing(options.share, driver, self._journal)
        self._inputs = PlanInputs(
            self._inventory, self._journal, hardware, bpf_root=BPF_ROOT, shares=self._sharing.shares
        )
        turns = Turns()
        self._preparer = Preparer(
            driver=driver,
            node=node,
            api=client,
            keeper=self._keeper,
            inputs=self._inputs,
            pods=self,
            reports=Reports(facts=self._writer.submit, event=self._event),
            turns=turns,
            leasing=Leasing(self._keeper.namespaces, turns),
            keep=self._kept.keep,
        )
        self._leases = LeaseKeeper(self._keeper, turns)
        self._rebuilder = rebuild.Rebuilder(
            rebuild.Node(driver=driver, name=node, fresh=self._journal.begun),
            api=client,
            pods=self._pods,
            keeper=self._keeper,
            engine=self._engine,
            preparer=self._preparer,
            inputs=self._inputs,
            event=self._claim_event,
            compare=self._compare_soon,
        )
        self._hooks = Hooks(self._keeper)

    # ---- stop

    async def drain(self) -> None:
        """Leave kubelet and end the work in the background (``instance.handover.Incumbent``)."""
        await self._kubelet.aclose()
        await self._background.aclose()

    async def release(self) -> None:
        """Let no hook run any more and free the journal.

        Raises:
            HandoverError: a hook hangs.
        """
        lives = self._handover.successor_lives
        if not await asyncio.to_thread(self._gate.close, self._hooks, lives, _HOOK_SECONDS):
            raise HandoverError("a hook still runs")
        self._handed_over = True
        await self._recording.aclose()

    def namespaces(self) -> Mapping[str, int]:
        """Return the namespaces that hold devices."""
        return self._keeper.namespaces.descriptors()

    async def leave(self) -> None:
        """Leave the runtime and the HTTP port."""
        await self._joined.aclose()
        await self._serving.aclose()

    async def _stop_plugin(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        self._health.close()
        await self._plugin.stop()

    async def _wait_for_pods_in_flight(self) -> None:
        """Stay in the runtime's way until pods that were prepared a moment ago have got their devices."""
        if self._handed_over or not self._gate.opened:
            return
        end = time.monotonic() + _IN_FLIGHT_SECONDS
        while time.monotonic() < end:
            recent = [
                record
                for record in self._journal.records()
                if record.state is State.ATTACHING
                or (record.state is State.PREPARED and self._waits_for_its_sandbox(record.uid))
            ]
            if not recent:
                return
            await asyncio.sleep(_IN_FLIGHT_LOOK)

    def _waits_for_its_sandbox(self, uid: str) -> bool:
        record = self._journal.get(uid)
        fresh = any(fact.phase is Phase.PREPARED for fact in record.facts) if record else False
        return fresh and time.monotonic() - self._prepared_at.get(uid, time.monotonic()) < _IN_FLIGHT_SECONDS

    # ---- what the parts tell each other

    def _observed(self, uid: str, facts: Any) -> None:
        self._keeper.observed(uid, facts)
        self._slices.refresh()

    def _facts_changed(self, facts: ClaimFacts) -> None:
        """Something is known anew of a claim's devices. Hooks call this: it is quick."""
        self._writer.submit(facts)
        self._health_book.note(facts)

    def _refresh_metadata(self, uid: str) -> None:
        self._receipts.refresh(lambda: self._attached(uid))

    def _attached(self, uid: str) -> tuple[ClaimPlan, Sequence[DeviceFacts]] | None:
        record = self._journal.get(uid)
        return (record.plan, record.facts) if record is not None and record.state is State.ATTACHED else None

    def _tell_health(self, devices: Mapping[DeviceName, Health]) -> None:
        self._health.set(
            {
                name: dra_health.Health(dra_health.Status[health.status.name], health.message)
                for name, health in devices.items()
            }
        )

    def _held_changed(self) -> None:
        """A claim came, went, or its devices moved. Hooks call this: others do the work."""
        self._held.refresh()
        self._slices.refresh()
        self._preparer.retries.wake()
        self._leases.refresh()

    def _unattached(self, pod: PodRef) -> None:
        if self._options.end_unattached_pods:
            self._event(
                pod, "PodEvicted", "the pod runs without its device and could not get it late; it is evicted", True
            )
            self._evictor.end(_object(pod))

    def _compare_soon(self) -> None:
        self._reconciler.wake()
        self._rebuilder.wake()

    def _held_claims(self) -> list[ClaimRef]:
        """Return the claims to watch; called after each change, by a thread that has time."""
        records = self._journal.records()
        now = time.monotonic()
        self._prepared_at = {record.uid: self._prepared_at.get(record.uid, now) for record in records}
        self._writer.forget(record.uid for record in records)
        self._kept.prune(self._journal.devices)
        self._health_book.keep(lambda: [record.uid for record in self._journal.records()])
        for state in State:
            metrics.CLAIMS.labels(state.value).set(sum(record.state is state for record in records))
        return [record.ref for record in records]

    def _entries(self) -> list[Mapping[str, Any]]:
        """Return what to publish: offered devices as they are, and those in pods as they were."""
        held, claimed = held_devices(self._journal.records()), self._sharing.claimed()
        self._inventory.set_held(published_of(held))
        entries: dict[str, Mapping[str, Any]] = {
            device.name: self._offers.on_host(device, shared=self._sharing.shares(device, claimed))
            for device in self._inventory.devices()
            if not device.refused and self._filter.keeps(device.name, device.attributes)
        }
        for name, each in held.items():
            entry = self._offers.in_pod(each, home=name in entries)
            if entry is not None:
                entries[name] = entry
        former = self._rebuilder.former()
        absent = former.keys() - {device.name for device in self._inventory.devices()}
        entries.update((name, former[name]) for name in absent - entries.keys())
        return [entries[name] for name in sorted(entries)]

    def _claim_seen(self, ref: ClaimRef, claim: Mapping[str, Any] | None) -> None:
        self._writer.observed(ref, claim)
        self._preparer.claim_changed(ref, claim)

    def _event(self, subject: PodRef | ClaimRef, reason: str, message: str, warning: bool) -> None:
        self._events.event(_object(subject), reason, message, warning=warning)

    def _claim_event(self, ref: ClaimRef, reason: str, message: str) -> None:
        self._event(ref, reason, message, warning=True)

    def _uplink(self, plan: DevicePlan) -> str:
        return self._inventory.is_uplink(plan.host.link.index) if plan.host is not None else ""

    def _claims_of_pod(self, uid: str) -> tuple[tuple[str, str], ...]:
        pod = self._pods.get(uid)
        return tuple((pod.namespace, name) for name in pod.claims.values()) if pod is not None else ()

    def use_of(self, pod: PodRef, claim_name: str) -> PodUse | None:
        """Tell how a pod uses a claim (``dra.prepare.Pods``)."""
        found = self._pods.fetch(pod.namespace, pod.name, pod.uid)
        if found is None:
            return None
        return PodUse(host_network=found.host_network, requests=found.requests_of(claim_name))

    def _node_changed(self, node: NodeInfo) -> None:
        self._inventory.set_node_addresses(node.addresses)
        if self._filter.override(node.annotations.get(annotation(self._options.driver_name))):
            self._slices.refresh()

    def _node_event(self, reason: str, message: str) -> None:
        name = self._options.node_name
        self._events.event(ObjectRef("Node", "default", name, name, "v1"), reason, message)

    def _tell_journal(self) -> None:
        """Say what the journal had that could not be used."""
        for ref, reason, text in self._journal.losses():
            if ref is None:
                self._node_event(reason, text)
            else:
                self._claim_event(ref, reason, text)
        for record in self._journal.voided:
            self._writer.submit(words.of_earlier_boot(record))

    # ---- readiness

    def _readiness(self) -> dict[str, Any]:
        return {
            "nri": lambda: self._session.problem,
            "kubelet": lambda: self._plugin.problem,
            "inventory": self._inventory_problem,
            "slices": lambda: self._slices.problem,
            "journal": self._journal_problem,
            "threads": lambda: self._threads.problem,
        }

    def _inventory_problem(self) -> str:
        age = self._inventory.age
        return "" if age < self._options.max_poll * _STALE_INVENTORY else f"the last scan was {age:.0f} s ago"

    def _journal_problem(self) -> str:
        if not self._gate.opened:
            return self._unusable or "not opened yet"
        try:
            self._journal.check_writable()
        except JournalError as error:
            return str(error)
        return ""


def _object(subject: PodRef | ClaimRef) -> ObjectRef:
    is_pod = isinstance(subject, PodRef)
    return ObjectRef(
        kind="Pod" if is_pod else "ResourceClaim",
        namespace=subject.namespace,
        name=subject.name,
        uid=subject.uid,
        api_version="v1" if is_pod else "resource.k8s.io/v1",
    )
