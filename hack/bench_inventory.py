"""What the inventory costs: a scan, an event, and nothing at all, on a node with few and with many links.

Scans are measured in this process by the CPU time of their thread. Events and idleness are measured on the whole
daemon, by the CPU time of all its threads, as the scheduler of the kernel counts it: what an event sets off in the
publisher counts too.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.inventory.inventory import Inventory
from nri_dranet.netlink.codec import NLM_F_DUMP
from nri_dranet.sysfs import Sysfs
from nri_dranet.testing.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nri_dranet.netlink.codec import Request

FEW: Final = 10
MANY: Final = 1000

_GROUP: Final = "7707"
_APART: Final = 0.1
"""Seconds between two events: more than a burst is given to end, so that each is one of its own."""


def inventory(table: Any, rounds: int) -> None:
    """Measure on both nodes."""
    made = 0
    for count in (FEW, MANY):
        _make(range(made, count))
        made = count
        scans(table, count, rounds=max(3, rounds // 10))
        events(table, count, rounds=min(rounds, 50))
    subprocess.run(["ip", "link", "del", "group", _GROUP], check=True)


def scans(table: Any, links: int, *, rounds: int) -> None:
    """Measure the scan of a new inventory, and the periodic one."""
    first, again, dumps = [], [], 0
    for _ in range(rounds):
        found = Inventory(Sysfs())
        ask = found._socket.exchange  # noqa: SLF001 - a bench looks inside
        asked: list[Request] = []

        def counting(requests: Sequence[Request], *, ask: Any = ask, asked: list[Request] = asked, **more: Any) -> Any:
            asked.extend(requests)
            return ask(requests, **more)

        found._socket.exchange = counting  # type: ignore[method-assign] # noqa: SLF001 - the same
        first.append(_scan(found))
        dumps = sum(bool(request.flags & NLM_F_DUMP) for request in asked)
        _scan(found)
        again.append(_scan(found))
        found.stop()
    table.add(f"inventory, first scan, {links} links", first, "ms CPU")
    note = f"{dumps} dumps" + (", bar: <= 50" if links == MANY else "")
    table.add(f"inventory, periodic scan, {links} links", again, "ms CPU", note)


def _scan(found: Inventory) -> float:
    began = time.thread_time()
    found._scan_now("bench")  # noqa: SLF001 - the same
    return (time.thread_time() - began) * 1000


def events(table: Any, links: int, *, rounds: int) -> None:
    """Measure an event that changes nothing published, one that does, and idleness."""
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as folder:
        stage = Stage(Path(folder), flags=["--inventory-min-poll-interval=0s"])
        try:
            stage.start()
            stage.start_daemon()
            stage.wait_for(lambda: len(stage.devices()) >= links, "published")
            stage.wait_ready()
            pid = stage.daemon_pid()
            _idle(pid, 1)
            table.add(f"idle, {links} links", [_idle(pid, 5) / 50], "%", "of a core, over 5 s; bar: <= 0.5")
            unseen = [_event(pid, "txqueuelen", 500 + number) for number in range(rounds)]
            table.add(f"link event, nothing published, {links} links", unseen, "ms CPU", "bar: <= 2")
            seen = [_event(pid, "mtu", 1000 + number) for number in range(rounds)]
            table.add(f"link event, one slice written, {links} links", seen, "ms CPU", "most of it the slice")
        finally:
            stage.close()


def _event(pid: int, what: str, value: int) -> float:
    before = _cpu(pid)
    subprocess.run(["ip", "link", "set", "inv0", what, str(value)], check=True)
    time.sleep(_APART)
    return _cpu(pid) - before


def _idle(pid: int, seconds: float) -> float:
    before = _cpu(pid)
    time.sleep(seconds)
    return _cpu(pid) - before


def _cpu(pid: int) -> float:
    """Return the CPU time of all threads, in milliseconds."""
    times = [
        int((task / "schedstat").read_text(encoding="ascii").split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()
    ]
    return sum(times) / 1e6


def _make(numbers: range) -> None:
    lines = [
        line
        for number in numbers
        for line in (f"tuntap add dev inv{number} mode tap", f"link set dev inv{number} group {_GROUP}")
    ]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), encoding="ascii", check=True)
