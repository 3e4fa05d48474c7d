"""What it is worth that the steps of a device go to the kernel in batches: the same attach, message by message.

The transaction is the real one both times; only the socket differs. The longest call of each attach has the move in it,
for which the kernel takes equally long either way: it is left out of the time, and CPU time has no waiting in it.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nri_dranet.attach.engine import Engine
from nri_dranet.attach.snapshot import take_snapshot
from nri_dranet.claims.allocation import AllocatedConfig, AllocationResult, Claim
from nri_dranet.claims.model import ClaimRef
from nri_dranet.dra.plan_model import DeviceFactsIn
from nri_dranet.dra.planner import plan_claim
from nri_dranet.netlink.namespaces import NetNs
from nri_dranet.netlink.sockets import RtnlSocket

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack

    from nri_dranet.claims.plan import DevicePlan
    from nri_dranet.netlink.codec import Request
    from nri_dranet.netlink.transport import Answer

CONFIG: dict[str, Any] = {
    "interface": {
        "name": "net1",
        "mtu": 1400,
        "hardwareAddr": "02:00:00:00:77:01",
        "addresses": [f"10.77.0.{number}/24" for number in range(5, 9)],
    },
    "routes": [{"destination": f"10.{number}.0.0/16", "gateway": "10.77.0.1"} for number in range(100, 116)],
    "rules": [{"priority": number, "source": f"10.77.0.{number}/32", "table": 100} for number in range(5, 9)],
    "neighbors": [
        {"destination": f"10.77.0.{number}", "hardwareAddr": f"02:00:00:00:00:{number}"} for number in range(20, 24)
    ],
}


_WAYS = {"in batches": False, "one by one": True}


@dataclass
class Count:
    """The calls of one attach."""

    messages: int = 0
    seconds: list[float] = field(default_factory=list)


def socket_class(count: Count, *, one_by_one: bool) -> type[RtnlSocket]:
    """Return a socket class that counts, and sends requests together or one after the other."""

    class Counted(RtnlSocket):
        def exchange(self, requests: Sequence[Request], *, timeout: float = 10.0) -> list[Answer]:
            parts = [[request] for request in requests] if one_by_one else [requests]
            answers: list[Answer] = []
            for part in parts:
                began = time.perf_counter()
                answers += super().exchange(part, timeout=timeout)
                count.seconds.append(time.perf_counter() - began)
            count.messages += len(requests)
            return answers

    return Counted


def _plan() -> DevicePlan:
    with RtnlSocket() as host:
        link = host.link(name="bench0")
        if link is None:
            raise RuntimeError("bench0 is not on the host")
        state = take_snapshot(host, link.index)
    claim = Claim(
        ref=ClaimRef("default", "c", "u"),
        allocated=True,
        results=(AllocationResult("nic", "dra.net", "node", "bench0"),),
        configs=(AllocatedConfig(0, "FromClaim", (), "dra.net", CONFIG),),
        pods=(),
        other_consumers=(),
        node_name=None,
        pod_claim_name=None,
    )
    return plan_claim(claim, "dra.net", {"bench0": DeviceFactsIn(name="bench0", link=link)}, {"bench0": state}).devices[
        0
    ]


def batching(
    table: Any, rounds: int, namespace: Callable[[ExitStack], subprocess.Popen[bytes]], stack: ExitStack
) -> None:
    """Measure both ways, in turns, and add them to a table.

    Args:
        table: gets the rows.
        rounds: how often each way is gone.
        namespace: starts a process in a network namespace of its own.
        stack: ends what is left.
    """
    calls: dict[str, list[float]] = {way: [] for way in _WAYS}
    wall: dict[str, list[float]] = {way: [] for way in _WAYS}
    cpu: dict[str, list[float]] = {way: [] for way in _WAYS}
    messages = 0
    for _ in range(rounds):
        for way, one_by_one in _WAYS.items():
            count = Count()
            pod = namespace(stack)
            with NetNs.current() as host, NetNs.of_pid(pod.pid) as netns:
                engine = Engine(host_netns=host, connect=socket_class(count, one_by_one=one_by_one))
                plan = _plan()
                began, used = time.perf_counter(), time.thread_time()
                engine.attach([plan], netns, deadline=time.monotonic() + 10)
                cpu[way].append((time.thread_time() - used) * 1000)
                wall[way].append((time.perf_counter() - began - max(count.seconds)) * 1000)
                calls[way].append(float(len(count.seconds)))
                messages = count.messages
                engine.detach([plan], netns, hints={})
                engine.close()
            pod.kill()
            pod.wait()
    for way in _WAYS:
        table.add(f"attach of {messages} messages {way}: calls", calls[way], "calls")
        table.add(f"attach of {messages} messages {way}: all but the move", wall[way])
        table.add(f"attach of {messages} messages {way}: CPU", cpu[way])
    for name, found in (("all but the move", wall), ("CPU", cpu)):
        batch, single = (statistics.median(found[way]) for way in _WAYS)
        table.add(f"one by one, times what batches take: {name}", [single / batch], "times")
