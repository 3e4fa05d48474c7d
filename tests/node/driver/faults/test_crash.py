"""SIGKILL before and after all that outlives the process of an attach and of a detach, for one and for three devices.

A child process runs the keeper over the real kernel, journal and receipts, and kills itself after the n-th step. A
fresh keeper over the same files then ends with the pod attached, or with the host exactly as before.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.attach import sysctl
from nri_dranet.attach.engine import Engine
from nri_dranet.attach.snapshot import take_snapshot
from nri_dranet.claims.lifecycle import State
from nri_dranet.claims.model import ClaimRef, DeviceKey, PodRef
from nri_dranet.claims.plan import ClaimPlan, DeviceKind, DevicePlan, PodState
from nri_dranet.netlink.model import Address, Neighbour, Route, Rule
from nri_dranet.netlink.namespaces import NetNs
from nri_dranet.netlink.sockets import RtnlSocket
from nri_dranet.netlink.transport import Answer, KernelSocket
from nri_dranet.receipt.metadata import MetadataFiles
from nri_dranet.receipt.receipts import Receipts
from nri_dranet.reconcile.keeper import Keeper
from nri_dranet.reconcile.ports import Inlets, Outlets
from nri_dranet.reconcile.reconciler import Reconciler
from nri_dranet.reconcile.sandboxes import SandboxRef
from nri_dranet.store.copies import Copies
from nri_dranet.store.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nri_dranet.netlink.codec import Request

# The child runs the keeper alone and ends by a signal; it shares nothing with threads that other tests may have left.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

POD = PodRef("default", "pod", "p1")
NAMES = ("crash0", "crash1", "crash2")


class Deaf:
    """Stands for the observer: nothing is watched."""

    watched: frozenset[str] = frozenset()

    def watch(self, uid: str, plans: object, netns: object, facts: object) -> None:
        """Nothing to see."""

    def forget(self, uid: str) -> None:
        """Nothing to see."""


class Bomb:
    """Counts what this process leaves behind for the next one, and kills it after one of these steps.

    Steps are: every write of the journal and of its copies, every netlink message that changes something, every sysctl,
    and everything that happens to the files of receipts and metadata. Before the first nothing has happened; between
    two of them nothing does that would outlive the process, so that after one is before the next.
    """

    def __init__(self, at: int) -> None:
        self._left = at

    def step(self, room: int = 1) -> int:
        """Count up to ``room`` steps; tell how many may be made before it is over."""
        made = min(room, self._left)
        self._left -= made
        return made

    def die(self) -> None:
        """End as by ``kill -9``."""
        os.kill(os.getpid(), signal.SIGKILL)

    def after(self, owner: Any, name: str) -> None:
        """Count a step with each call."""
        real = getattr(owner, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            if not self.step():
                self.die()
            return real(*arguments, **options)

        setattr(owner, name, wrapped)

    def messages(self) -> None:
        """Count each netlink message of all sockets; of a batch, those before the end are sent."""
        real = KernelSocket.exchange

        def exchange(this: KernelSocket, requests: Sequence[Request], **options: Any) -> list[Answer]:
            changing = [place for place, request in enumerate(requests) if not _reads(request)]
            made = self.step(len(changing))
            if made < len(changing):
                real(this, requests[: changing[made]], **options)
                self.die()
            return real(this, requests, **options)

        KernelSocket.exchange = exchange  # type: ignore[method-assign, assignment]

    def arm(self) -> None:
        """Count from now on."""
        for name in ("put", "update", "set_facts", "remove"):
            self.after(Journal, name)
        for name in ("write", "remove"):
            self.after(Copies, name)
        for name in ("rename", "unlink"):
            self.after(Path, name)
        for name in ("pwrite", "ftruncate"):
            self.after(os, name)
        self.after(sysctl, "_write")
        self.messages()


def _reads(request: Request) -> bool:
    """Tell whether a message changes nothing: the types of rtnetlink come in fours, of which the third one asks."""
    return request.type < 128 and request.type % 4 == 2


@dataclass
class Node:
    """A node with interfaces, and a pod's network namespace."""

    folder: Path
    sandbox: SandboxRef
    plan: ClaimPlan

    @contextlib.contextmanager
    def life(self) -> Iterator[tuple[Keeper, Reconciler]]:
        """Live once as the daemon's middle, over the same files and the same kernel."""
        journal = Journal(self.folder / "journal.db", "boot")
        with NetNs.current() as host:
            engine = Engine(host_netns=host)
            receipts = Receipts(self.folder / "cdi", "dra.net", MetadataFiles(self.folder / "metadata", "dra.net"))
            outlets = Outlets(
                facts=lambda _: None,
                event=lambda *_: None,
                held=lambda: None,
                compare=lambda: None,
                refresh=lambda _: None,
            )
            keeper = Keeper(
                driver="dra.net",
                journal=journal,
                engine=engine,
                observer=Deaf(),
                receipts=receipts,
                outlets=outlets,
                inlets=Inlets(uplink=lambda _: "", claims_of_pod=lambda _: ()),
            )
            yield keeper, Reconciler(keeper, engine, receipts, outlets)
            keeper.namespaces.close()
            engine.close()
        journal.close()

    def receipts(self) -> list[Path]:
        """Return the receipts and the metadata files, hidden ones too."""
        folders = [folder for folder in (self.folder / "cdi", self.folder / "metadata") if folder.exists()]
        return sorted(path for folder in folders for path in folder.iterdir())

    def in_pod(self) -> str:
        """Return the pod's interfaces."""
        command = ["nsenter", f"--net={self.sandbox.netns_path}", "ip", "-o", "addr"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def wipe(self) -> None:
        """Forget all files."""
        for path in [*self.folder.glob("journal*/*"), *self.folder.glob("journal*"), *self.receipts()]:
            if path.is_file():
                path.unlink()


def sysctls(name: str) -> dict[str, str]:
    """Return all sysctls of an interface of the host that can be read."""
    found = {}
    for family in ("ipv4", "ipv6"):
        for path in Path(f"/proc/sys/net/{family}/conf/{name}").iterdir():
            with contextlib.suppress(OSError):
                found[f"{family}/{path.name}"] = path.read_text()
    return found


def dies(call: Callable[[], None]) -> bool:
    """Run a call in a child process; tell whether it killed itself."""
    child = os.fork()
    if child == 0:
        try:
            call()
        except BaseException:  # noqa: BLE001 - the child must not go on with the parent's tests
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[[int], Node]]:
    """Return a factory of nodes with so many interfaces."""

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    pod = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], stdin=subprocess.DEVNULL)
    own = Path("/proc/self/ns/net").stat().st_ino
    end = time.monotonic() + 10
    while Path(f"/proc/{pod.pid}/ns/net").stat().st_ino == own and time.monotonic() < end:
        time.sleep(0.01)

    def device(index: int) -> DevicePlan:
        name = NAMES[index]
        ip("link", "add", name, "type", "veth", "peer", "name", f"{name}p")
        for each in (f"{name}p", name):
            ip("link", "set", each, "addrgenmode", "none", "up")
        ip("addr", "add", f"192.0.2.{index * 16 + 1}/28", "dev", name)
        ip("route", "add", f"198.51.{index}.0/24", "via", f"192.0.2.{index * 16 + 2}", "dev", name)
        with RtnlSocket() as host:
            link = host.link(name=name)
            assert link is not None
            state = take_snapshot(host, link.index)
        address = Address(index=0, family=2, address=f"10.9.{index}.1", prefix_length=24)
        return DevicePlan(
            key=DeviceKey("node", name),
            request=f"r{index}",
            kind=DeviceKind.INTERFACE,
            host=state,
            pod=PodState(
                name=f"net{index}",
                mtu=1400,
                hardware_address=f"02:00:00:00:77:0{index}",
                addresses=(address,),
                routes=(Route(family=2, destination=f"10.10{index}.0.0/16", gateway=f"10.9.{index}.2", scope=0),),
                rules=(Rule(family=2, source=f"10.9.{index}.0/24", table=201, priority=501 + index),),
                neighbours=(Neighbour(family=2, address=f"10.9.{index}.9", hardware_address="02:00:00:00:78:09"),),
                sysctls={"ipv4/conf/arp_ignore": "2", "ipv4/conf/forwarding": "1"},
            ),
            receipt_id=f"dra.net/device={name}",
        )

    def make(count: int) -> Node:
        devices = tuple(device(index) for index in range(count))
        plan = ClaimPlan(ref=ClaimRef("default", "c", "u1"), allocation_hash="h", devices=devices, pods=(POD,))
        folder = tmp_path / "state"
        folder.mkdir()
        return Node(folder, SandboxRef(POD, "s1", f"/proc/{pod.pid}/ns/net"), plan)

    yield make
    for name in NAMES:
        subprocess.run(["ip", "link", "del", f"{name}p"], check=False, capture_output=True)
    pod.kill()
    pod.wait()


def attach(node: Node, bomb: Bomb | None = None) -> None:
    """Attach, in a life that may end at once."""
    with node.life() as (keeper, _):
        if bomb is not None:
            bomb.arm()
        keeper.run_sandbox(node.sandbox, time.monotonic() + 30)


def detach(node: Node, bomb: Bomb) -> None:
    """Detach what a former life has attached, in a life that may end at once."""
    with node.life() as (keeper, _):
        keeper.synchronize([node.sandbox])
        bomb.arm()
        keeper.stop_sandbox(node.sandbox, time.monotonic() + 30)


def prepare(node: Node) -> None:
    """Record the claim."""
    with node.life() as (keeper, _):
        keeper.prepare(node.plan)


def next_life(node: Node, sandboxes: Sequence[SandboxRef]) -> State:
    """Live again with what the runtime lists, and compare once; return the claim's state."""
    with node.life() as (keeper, reconciler):
        keeper.synchronize(sandboxes)
        reconciler.sweep()
        (record,) = keeper.journal.records()
        return record.state


@pytest.mark.parametrize("count", [1, 3])
def test_f02_killed_at_every_step_of_an_attach(
    make_node: Callable[[int], Node], host_state: Callable[[str], Any], count: int
) -> None:
    """The sandbox runs: attached, with its receipts. It does not: the host is exactly as before, no receipt is left."""
    node = make_node(count)
    before = {name: (host_state(name), sysctls(name)) for name in NAMES[:count]}
    at, died = 0, True
    while died:
        for runs in (True, False):
            node.wipe()
            prepare(node)
            died = dies(partial(attach, node, Bomb(at)))
            if runs:
                assert next_life(node, [node.sandbox]) is State.ATTACHED
                shown = node.in_pod()
                assert all(f"net{i} " in shown and f"10.9.{i}.1/24" in shown for i in range(count))
                assert len(node.receipts()) == 2 * count
            assert next_life(node, []) is State.PREPARED
            assert {name: (host_state(name), sysctls(name)) for name in before} == before
            assert node.receipts() == []
        at += 1
    # Two rows, and a device's nine messages, its sysctl and the three steps of its two files.
    assert at > 2 + 13 * count


@pytest.mark.parametrize("count", [1, 3])
def test_f02_killed_at_every_step_of_a_detach(
    make_node: Callable[[int], Node], host_state: Callable[[str], Any], count: int
) -> None:
    """The host is exactly as before, no receipt is left, and the claim can be attached again."""
    node = make_node(count)
    before = {name: (host_state(name), sysctls(name)) for name in NAMES[:count]}
    at, died = 0, True
    while died:
        node.wipe()
        prepare(node)
        attach(node)
        died = dies(partial(detach, node, Bomb(at)))
        assert next_life(node, []) is State.PREPARED
        assert {name: (host_state(name), sysctls(name)) for name in before} == before
        assert node.receipts() == []
        at += 1
    assert at > 2 + 10 * count


def test_f02_killed_between_the_rows_of_two_claims(
    make_node: Callable[[int], Node], host_state: Callable[[str], Any]
) -> None:
    """Two claims of one pod: whichever row was written last, both end attached, and both come home."""
    node = make_node(3)
    before = {name: (host_state(name), sysctls(name)) for name in NAMES}
    first = replace(node.plan, devices=node.plan.devices[:1])
    other = replace(node.plan, ref=ClaimRef("default", "d", "u2"), devices=node.plan.devices[1:])
    at, died = 0, True
    while died:
        node.wipe()
        with node.life() as (keeper, _):
            keeper.prepare(first)
            keeper.prepare(other)
        died = dies(partial(attach, node, Bomb(at)))
        for sandboxes, state in (([node.sandbox], State.ATTACHED), ([], State.PREPARED)):
            with node.life() as (keeper, reconciler):
                keeper.synchronize(sandboxes)
                reconciler.sweep()
                assert [record.state for record in keeper.journal.records()] == [state, state]
        assert {name: (host_state(name), sysctls(name)) for name in before} == before
        assert node.receipts() == []
        at += 4
