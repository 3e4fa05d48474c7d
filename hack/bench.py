"""The numbers: memory, start, prepare, hook, status, stop, inventory. Real kernel and protocols, stand-ins else.

    make bench                       all, as a table (root, or a kernel with user namespaces)
    make bench ARGS="--rounds 50 --json FILE"
    make bench ARGS="--only inventory"

Own time in the hook is what it spends outside its netlink system calls: those are timed one by one and taken off. The
kernel's move of an interface takes ten times as long and varies by more than our own time, so the whole hook is printed
beside it and not judged. Everything else is quoted beside a raw request of the same kind in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT: Final = Path(__file__).resolve().parent.parent
_INSIDE: Final = "NRI_DRANET_BENCH_INSIDE"
CONFIG: Final[dict[str, Any]] = {
    "interface": {"name": "net1", "addresses": ["10.77.0.5/24"]},
    "routes": [
        {"destination": "10.99.0.0/16", "gateway": "10.77.0.1"},
        {"destination": "10.98.0.0/16", "gateway": "10.77.0.1"},
    ],
}


@dataclass
class Table:
    """What was measured: name → figures."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, values: Sequence[float], unit: str = "ms", note: str = "") -> None:
        """Add a row of samples."""
        ordered = sorted(values)
        self.rows[name] = {
            "unit": unit,
            "p50": statistics.median(ordered),
            "p90": _quantile(ordered, 0.9),
            "p99": _quantile(ordered, 0.99),
            "n": len(ordered),
            "note": note,
        }

    def show(self) -> None:
        """Print the table."""
        print(f"\n{'':58} {'p50':>9} {'p90':>9} {'p99':>9}  unit      n")
        for name, row in self.rows.items():
            figures = " ".join(f"{row[key]:9.3f}" for key in ("p50", "p90", "p99"))
            print(f"{name:58} {figures}  {row['unit']:6} {row['n']:4}  {row['note']}")


def main() -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="pods that are attached and given back")
    parser.add_argument("--links", type=int, default=0, help="other links on the node")
    parser.add_argument("--only", choices=sorted(PARTS), action="append", help="a part; may be given again")
    parser.add_argument("--json", default="", metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    if os.environ.get(_INSIDE) != "1":
        command = [str(ROOT / "hack" / "private"), sys.executable, *sys.argv]
        return subprocess.run(command, check=False, env={**os.environ, _INSIDE: "1"}).returncode
    sys.path.insert(0, str(ROOT))
    table = Table()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"
    )
    _ip("link", "add", "bench0", "type", "veth", "peer", "name", "bench0p")
    for name in ("bench0", "bench0p"):
        _ip("link", "set", name, "up")
    for number in range(args.links):
        _ip("link", "add", f"other{number}", "type", "bridge")
    for name, part in PARTS.items():
        if not args.only or name in args.only:
            part(table, args.rounds)
    table.show()
    if args.json:
        Path(args.json).write_text(json.dumps(table.rows, indent=1), encoding="utf-8")
    return 0


# ---- memory and start


def memory(table: Table, rounds: int) -> None:
    """Measure the memory that the daemon's imports take, once."""
    del rounds
    code = "import nri_dranet.driver, kubernetes.config, resource; print(open('/proc/self/statm').read().split()[1])"
    pages = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    table.add("memory after imports (RSS)", [int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6], "MB")


# ---- own time in the hook


class Clock:
    """Adds up the time that is spent in netlink system calls."""

    def __init__(self) -> None:
        self.spent = 0.0
        self.sends = 0

    def timed(self, call: Callable[..., Any], *, send: bool = False) -> Callable[..., Any]:
        """Return ``call`` with its time added up."""

        def run(*args: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args)
            finally:
                self.spent += time.perf_counter() - began
                self.sends += send

        return run


class TimedSocket:
    """Stands before a socket and times what asks the kernel."""

    def __init__(self, sock: Any, clock: Clock) -> None:
        self._sock = sock
        self.send = clock.timed(sock.send, send=True)
        self.recv_into = clock.timed(sock.recv_into)
        self.recv = clock.timed(sock.recv)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def own_time(table: Table, rounds: int) -> None:
    """Measure RunPodSandbox and StopPodSandbox of the real keeper, without a runtime around it."""
    from nri_dranet.attach.engine import Engine  # noqa: PLC0415 - inside the namespaces only
    from nri_dranet.netlink import transport  # noqa: PLC0415 - the same
    from nri_dranet.netlink.namespaces import NetNs  # noqa: PLC0415 - the same
    from nri_dranet.netlink.sockets import RtnlSocket  # noqa: PLC0415 - the same
    from nri_dranet.nri.hooks import Hooks  # noqa: PLC0415 - the same
    from nri_dranet.pb import nri_pb2  # noqa: PLC0415 - the same

    clock = Clock()
    transport._recv_now = clock.timed(transport._recv_now)  # type: ignore[assignment] # noqa: SLF001 - a bench looks inside

    def connect(netns: NetNs) -> RtnlSocket:
        made = RtnlSocket(netns)
        made._socket = TimedSocket(made._socket, clock)  # type: ignore[assignment] # noqa: SLF001 - the same
        return made

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        keeper, plan = _keeper(Path(folder), Engine(host_netns=NetNs.current(), connect=connect), stack)
        hooks = Hooks(keeper)
        own, whole, sends, stops = [], [], [], []
        for number in range(rounds + 3):
            pod = _namespace(stack)
            record = keeper.prepare(plan(f"uid-{number}", f"pod-{number}"))
            message = nri_pb2.PodSandbox(id=f"sandbox-{number}", uid=f"pod-{number}", name="p", namespace="default")
            message.linux.namespaces.add(type="network", path=f"/proc/{pod.pid}/ns/net")
            payload = nri_pb2.RunPodSandboxRequest(pod=message).SerializeToString()
            clock.spent, clock.sends = 0.0, 0
            began = time.perf_counter()
            hooks.call("RunPodSandbox", payload, time.monotonic() + 2)
            took = time.perf_counter() - began
            whole.append(took * 1000)
            own.append((took - clock.spent) * 1000)
            sends.append(float(clock.sends))
            began = time.perf_counter()
            hooks.call("StopPodSandbox", payload, time.monotonic() + 2)
            stops.append((time.perf_counter() - began) * 1000)
            keeper.unprepare(record.ref)
            pod.kill()
            pod.wait()
    table.add("hook, own time: 1 device, 1 address, 2 routes", own[3:], note="bar: p50 <= 1.0, p99 <= 3")
    table.add("hook, send calls", sends[3:], "calls", "bar: <= 4")
    table.add("hook, whole", whole[3:], note="mostly the kernel's move")
    table.add("StopPodSandbox, host state restored", stops[3:])
    table.add("the kernel's own move there and back, two sends", _floor(rounds))


def _keeper(folder: Path, engine: Any, stack: ExitStack) -> tuple[Any, Callable[[str, str], Any]]:
    from nri_dranet.attach.snapshot import take_snapshot  # noqa: PLC0415 - inside the namespaces only
    from nri_dranet.claims.allocation import AllocatedConfig, AllocationResult, Claim  # noqa: PLC0415 - the same
    from nri_dranet.claims.model import ClaimRef, PodRef  # noqa: PLC0415 - the same
    from nri_dranet.claims.plan import ClaimPlan  # noqa: PLC0415, TC001 - the same
    from nri_dranet.dra.planner import DeviceFactsIn, plan_claim  # noqa: PLC0415 - the same
    from nri_dranet.netlink.sockets import RtnlSocket  # noqa: PLC0415 - the same
    from nri_dranet.observe.pods import PodObserver  # noqa: PLC0415 - the same
    from nri_dranet.receipt.receipts import Receipts  # noqa: PLC0415 - the same
    from nri_dranet.reconcile.keeper import Keeper  # noqa: PLC0415 - the same
    from nri_dranet.reconcile.ports import Inlets, Outlets  # noqa: PLC0415 - the same
    from nri_dranet.store.journal import Journal  # noqa: PLC0415 - the same

    observer = PodObserver(lambda *_: None, engine.look)
    observer.start()
    stack.callback(observer.stop)
    journal = Journal(folder / "journal.db", "bench")
    stack.callback(journal.close)
    keeper = Keeper(
        driver="dra.net",
        journal=journal,
        engine=engine,
        observer=observer,
        receipts=Receipts(Path("/run/cdi-bench"), "dra.net"),
        outlets=Outlets(
            facts=lambda _: None, event=lambda *_: None, held=lambda: None, compare=lambda: None, refresh=lambda _: None
        ),
        inlets=Inlets(uplink=lambda _: "", claims_of_pod=lambda _: ()),
    )
    host = stack.enter_context(RtnlSocket())
    result = AllocationResult("nic", "dra.net", "node", "bench0")

    def plan(claim: str, pod: str) -> ClaimPlan:
        link = host.link(name="bench0")
        if link is None:
            raise RuntimeError("bench0 is not on the host")
        state = take_snapshot(host, link.index)
        asked = Claim(
            ref=ClaimRef("default", "c", claim),
            allocated=True,
            results=(result,),
            configs=(AllocatedConfig(0, "FromClaim", (), "dra.net", CONFIG),),
            pods=(PodRef("default", "p", pod),),
            other_consumers=(),
            node_name=None,
            pod_claim_name=None,
        )
        return plan_claim(asked, "dra.net", {"bench0": DeviceFactsIn(name="bench0", link=link)}, {"bench0": state})

    return keeper, plan


def _floor(rounds: int) -> list[float]:
    """Measure what the kernel takes for the same move alone: there, and back."""
    from nri_dranet.netlink import rtnl  # noqa: PLC0415 - inside the namespaces only
    from nri_dranet.netlink.namespaces import NetNs  # noqa: PLC0415 - the same
    from nri_dranet.netlink.sockets import RtnlSocket  # noqa: PLC0415 - the same

    took = []
    with ExitStack() as stack, RtnlSocket() as host:
        own = stack.enter_context(NetNs.current())
        for _ in range(rounds):
            pod = _namespace(stack)
            netns = stack.enter_context(NetNs.of_pid(pod.pid))
            inside = stack.enter_context(RtnlSocket(netns))
            link = host.link(name="bench0")
            if link is None:
                raise RuntimeError("bench0 is not on the host")
            began = time.perf_counter()
            host.request(rtnl.set_link(link.index, netns_fd=netns.fd))
            there = time.perf_counter()
            inside.request(rtnl.set_link(link.index, netns_fd=own.fd))
            took += [(there - began) * 1000, (time.perf_counter() - there) * 1000]
            host.request(rtnl.set_link(link.index, up=True))
            pod.kill()
            pod.wait()
    return took


def batches(table: Table, rounds: int) -> None:
    """Measure what batches are worth."""
    from hack.bench_batch import batching  # noqa: PLC0415 - inside the namespaces only

    with ExitStack() as stack:
        batching(table, rounds, _namespace, stack)


def inventory(table: Table, rounds: int) -> None:
    """Measure what the inventory costs."""
    from hack import bench_inventory  # noqa: PLC0415 - inside the namespaces only

    bench_inventory.inventory(table, rounds)


# ---- the daemon


def end_to_end(table: Table, rounds: int) -> None:
    """Measure the daemon in its own process, as kubelet and runtime see it."""
    from nri_dranet.testing.stage import Stage  # noqa: PLC0415 - inside the namespaces only

    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as folder:
        stage = Stage(Path(folder))
        try:
            stage.start()
            began = time.monotonic()
            stage.start_daemon()
            stage.runtime.wait_for_plugin()
            table.add("from exec: joined the runtime", [time.monotonic() - began], "s")
            stage.kubelet.wait_registered()
            table.add("from exec: registered with kubelet", [time.monotonic() - began], "s", "kubelet looks each 50 ms")
            stage.wait_for(lambda: "bench0" in stage.devices(), "published")
            table.add("from exec: slices in the API", [time.monotonic() - began], "s")
            stage.wait_ready()
            table.add("memory after start (RSS)", [_rss(stage.daemon_pid())], "MB")
            _cycles(stage, table, rounds)
            table.add("memory after the pods (RSS)", [_rss(stage.daemon_pid())], "MB")
            before = _cpu(stage.daemon_pid())
            time.sleep(5)
            table.add("idle", [(_cpu(stage.daemon_pid()) - before) / 5 * 100], "%", "of a core, over 5 s")
        finally:
            stage.close()


def _cycles(stage: Any, table: Table, rounds: int) -> None:
    prepare, raw, hook, status, stop = [], [], [], [], []
    path = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims"
    from nri_dranet.kube.client import KubeClient  # noqa: PLC0415 - inside the namespaces only

    client = KubeClient.load(str(stage.folder / "kubeconfig"))
    for number in range(rounds):
        name = stage.claim(f"c{number}", [CONFIG])
        stage.allocate(name, "bench0")
        pod = stage.pod(f"p{number}", name)
        raw.append(_took(client.get, f"{path}/{name}"))
        prepare.append(_took(stage.prepare, pod))
        hook.append(_took(stage.runtime.run_pod, pod.sandbox))
        status.append(_took(stage.wait_condition, name, "NetworkReady", "True"))
        stop.append(_took(stage.end_pod, pod))
        stage.unprepare(pod)
        stage.api.delete(f"{path}/{name}")
    table.add("NodePrepareResources as kubelet sees it", prepare)
    table.add("raw GET of the claim", raw, note="the same run")
    table.add("RunPodSandbox as the runtime sees it", hook)
    table.add("status visible after the hook", status)
    table.add("StopPodSandbox and the end of the pod", stop)


def _took(call: Callable[..., Any], *arguments: Any) -> float:
    began = time.perf_counter()
    call(*arguments)
    return (time.perf_counter() - began) * 1000


def _namespace(stack: ExitStack) -> subprocess.Popen[bytes]:
    """Start a process in a network namespace of its own."""
    own = Path("/proc/self/ns/net").stat().st_ino
    process = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], stdin=subprocess.DEVNULL)
    stack.callback(process.kill)
    while (
        Path(f"/proc/{process.pid}/ns/net").stat().st_ino == own
        or Path(f"/proc/{process.pid}/comm").read_text(encoding="ascii") != "sleep\n"
    ):
        time.sleep(0.002)
    return process


def _rss(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _quantile(ordered: Sequence[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


PARTS: Final[dict[str, Callable[[Table, int], None]]] = {
    "memory": memory,
    "hook": own_time,
    "batches": batches,
    "inventory": inventory,
    "daemon": end_to_end,
}


if __name__ == "__main__":
    sys.exit(main())
