"""A namespace as a host: network, mount and process namespaces of its own, in which a node's programs run.

Default paths work inside unchanged (``/run/nri/nri.sock``, ``/var/lib/kubelet``), and nothing of the machine is
written: ``/run`` is empty at first, ``/var/lib``, ``/var/log``, ``/etc`` and ``/opt`` are the machine's under a layer
of the host's own. The first process of the process namespace is the host: when it ends, all in it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hack import cgroups

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Writes below these stay with the host.
LAYERED = ("/var/lib", "/var/log", "/etc", "/opt")

# What a process is given between SIGTERM and SIGKILL.
STOP = 20.0

_CGROUPS = Path("/sys/fs/cgroup")
_NAME = "nri-dranet-cluster"

# /sys: the machine's cgroups stay reachable below a fresh sysfs of this network namespace. rshared: kubelet and the
# runtime pass mounts on to pods. SIGCHLD ignored: what loses its parent in here is reaped by the kernel.
_FIRST_PROCESS = """set -e
folder=$1; shift
mount --rbind /sys/fs/cgroup "$folder/cgroup"
mount -t sysfs sysfs /sys
mount --move "$folder/cgroup" /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf 2>/dev/null || true
mount --make-rshared /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/lock /run/cdi
for each; do
  layer="$folder/layers$each"
  mkdir -p "$layer/upper" "$layer/work"
  mount -t overlay -o "lowerdir=$each,upperdir=$layer/upper,workdir=$layer/work" overlay "$each"
done
# Containers' own overlays cannot lie on one.
for each in kubelet containerd; do
  mkdir -p "/var/lib/$each"
  mount --bind "$folder/$each" "/var/lib/$each"
done
mount --make-rshared /
ip link set lo up
cd /
trap '' CHLD
echo ready
exec sleep 2147483647
"""

_STARTED: list[subprocess.Popen[bytes]] = []


class ClusterError(Exception):
    """The cluster does not do what it must; the message says what, and has the end of a log where there is one."""


class Host:
    """One host.

    Attributes:
        name: Its name, which is the node's.
        folder: Everything of it on the machine's disk.
        cgroup: The path of its cgroup below each hierarchy, e.g. "/nri-dranet-cluster-12/node-1".
    """

    def __init__(self, name: str, folder: Path, cluster: str) -> None:
        """Name it; nothing is started.

        Args:
            name: Its name.
            folder: Where its files are.
            cluster: What tells its cluster's cgroups from another's.
        """
        self.name = name
        self.folder = folder
        self.cgroup = f"/{_NAME}-{cluster}/{name}"

    # processes: each is known by its id and its start time, so that an id given anew is never taken for it

    def pid(self, name: str) -> int | None:
        """Return the process id of a program, as the machine sees it; None when it does not run.

        Args:
            name: The program's name; "host" is the first process.
        """
        with contextlib.suppress(OSError, ValueError, KeyError):
            record = json.loads(self._record(name).read_text(encoding="ascii"))
            if record["born"] and _born(record["pid"]) == record["born"]:
                return int(record["pid"])
        return None

    def _record(self, name: str) -> Path:
        return self.folder / "pids" / f"{name.rpartition('/')[2]}.json"

    def _remember(self, name: str, entered: subprocess.Popen[bytes]) -> None:
        # They outlive this program, or are ended by their process ID; until then nobody else may reap them.
        _STARTED[:] = [*(each for each in _STARTED if each.poll() is None), entered]
        pid = _child(entered)
        record = {"pid": pid, "born": _born(pid), "parent": entered.pid, "parent_born": _born(entered.pid)}
        self._record(name).write_text(json.dumps(record), encoding="ascii")

    def first(self) -> int:
        """Return the first process.

        Raises:
            ClusterError: The host does not run.
        """
        pid = self.pid("host")
        if pid is None:
            raise ClusterError(f"{self.name} does not run (its folder: {self.folder})")
        return pid

    def enter(self) -> list[str]:
        """Return the words before a command that is to run in the host.

        Raises:
            ClusterError: The host does not run.
        """
        return ["nsenter", f"--target={self.first()}", "--mount", "--net", "--pid", "--"]

    def path(self, inside: str) -> Path:
        """Return how the machine reaches a path of the host.

        Args:
            inside: The path in the host.

        Raises:
            ClusterError: The host does not run.
        """
        return Path(f"/proc/{self.first()}/root{inside}")

    def up(self, *, tied: bool = False) -> None:
        """Make the namespaces.

        Args:
            tied: End the host when this process ends, however that ends.

        Raises:
            ClusterError: They cannot be made.
        """
        for name in ("pids", "log", "cgroup", "kubelet", "containerd", "etc"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for hierarchy in hierarchies():
            Path(f"{hierarchy}{self.cgroup}").mkdir(parents=True, exist_ok=True)
        log = self.folder / "log" / "host.log"
        command = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--propagation", "private"]
        if tied:
            command = ["setpriv", "--pdeathsig", "KILL", *command, "--kill-child"]
        layered = [each for each in LAYERED if Path(each).is_dir()]
        with log.open("wb") as errors:
            entered = subprocess.Popen(
                [*command, "sh", "-c", _FIRST_PROCESS, "sh", str(self.folder), *layered],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        with entered.stdout or contextlib.nullcontext() as output:
            if output is None or output.readline() != b"ready\n":
                entered.kill()
                entered.wait()
                raise ClusterError(f"the namespaces of {self.name} cannot be made: {log.read_text(encoding='utf-8')}")
        self._remember("host", entered)

    def spawn(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a program that goes on after this process.

        Args:
            name: Its name, for its log.
            command: The program and its arguments.
            environment: All its variables.

        Raises:
            ClusterError: It cannot be started.
        """
        with self.log(name).open("ab") as output:
            entered = subprocess.Popen(
                [*self.enter(), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        self._remember(name, entered)

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a program a signal; nothing happens when it does not run.

        Args:
            name: Its name.
            number: The signal.
        """
        pid = self.pid(name)
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        if number in (signal.SIGCONT, signal.SIGKILL):
            # nsenter stops with its child, and would not see its end
            record = json.loads(self._record(name).read_text(encoding="ascii"))
            if _born(record["parent"]) == record["parent_born"]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(record["parent"], signal.SIGCONT)

    def end(self, name: str, number: signal.Signals) -> None:
        """End a program and wait for that.

        Args:
            name: Its name.
            number: SIGTERM, or SIGKILL: then it may be stopped meanwhile.

        Raises:
            ClusterError: It does not end after SIGTERM, and was killed; or not even then.
        """
        if number != signal.SIGKILL:
            self.send(name, signal.SIGCONT)
        self.send(name, number)
        if self._ended(name):
            return
        self.send(name, signal.SIGKILL)
        if number != signal.SIGKILL and self._ended(name):
            raise ClusterError(f"{name} did not end within {STOP:.0f} s after {number.name} and was killed")
        raise ClusterError(f"{name} does not end after SIGKILL")

    def _ended(self, name: str) -> bool:
        end = time.monotonic() + STOP
        while self.pid(name) is not None:
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    def state(self, name: str) -> str:
        """Return how a program is: "down", "paused" or "running".

        Args:
            name: Its name.
        """
        pid = self.pid(name)
        if pid is None:
            return "down"
        return "paused" if _stat(pid)[:1] == ["T"] else "running"

    def log(self, name: str) -> Path:
        """Return where a program's log is.

        Args:
            name: Its name.
        """
        return self.folder / "log" / f"{name.rpartition('/')[2]}.log"

    def tail(self, name: str, lines: int = 40) -> str:
        """Return the end of a program's log.

        Args:
            name: Its name.
            lines: How many lines.
        """
        with contextlib.suppress(OSError):
            text = self.log(name).read_text(encoding="utf-8", errors="replace")
            return "\n".join(text.splitlines()[-lines:])
        return ""

    def down(self) -> None:
        """End everything in the host and remove its cgroups. Nothing happens to a host that does not run.

        Raises:
            ClusterError: A process cannot be ended.
        """
        with contextlib.suppress(ClusterError):
            self.end("host", signal.SIGKILL)
        if self.pid("host") is not None:
            raise ClusterError(f"the first process of {self.name}, {self.pid('host')}, does not end")
        for hierarchy in hierarchies():
            cgroups.remove(Path(f"{hierarchy}{self.cgroup}"))
            with contextlib.suppress(OSError):  # another host of the cluster is still there
                Path(f"{hierarchy}{self.cgroup}").parent.rmdir()


def hierarchies() -> list[Path]:
    """Return the roots of the machine's cgroup hierarchies: one for version 2, several for version 1."""
    if (_CGROUPS / "cgroup.procs").exists():
        return [_CGROUPS]
    return [each for each in _CGROUPS.iterdir() if (each / "cgroup.procs").exists() and not each.is_symlink()]


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; none for a process that has ended."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return [] if fields[:1] in (["Z"], ["X"]) else fields
    return []


def _born(pid: int) -> str:
    return (_stat(pid) or [""] * 20)[19]


def _child(parent: subprocess.Popen[bytes]) -> int:
    """Return the process id of a process's only child, which is about to be made or there."""
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    end = time.monotonic() + STOP
    while time.monotonic() < end and parent.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            return int(children.read_text(encoding="ascii"))
        time.sleep(0.001)
    raise ClusterError(f"a program could not be started in a host's namespaces (exit code {parent.poll()})")
