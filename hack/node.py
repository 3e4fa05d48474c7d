"""A node for tests: a real containerd with NRI, in network, mount and process namespaces of its own.

Default paths work inside unchanged (``/run/nri/nri.sock``, ``/run/netns``, ``/run/cdi``) and nothing of the machine is
touched but a cgroup named after the node. The first process of the process namespace ends with the test run, however
that ends, and takes everything in the node with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from hack import cgroups, containerd_config, cri, images, parts
from nri_dranet.testing.patience import patience

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# The pods' own network, seen in the node alone.
POD_NETWORK = "10.233.0.0/16"

NRI_SOCKET = containerd_config.NRI_SOCKET
CDI_DIR = containerd_config.CDI_DIR

# What containerd is given to start, e.g. with its images' database made for the first time.
START = patience(30.0)
# What a process is given between SIGTERM and SIGKILL.
STOP = patience(15.0)

_CGROUPS = Path("/sys/fs/cgroup")
_PREFIX = "nri-dranet-test-"
_FOLDER = "nd-"
# Short: the path of a socket has 107 bytes at most.
_TEMPORARY = Path("/tmp")  # noqa: S108 - the names below it are made by mkdtemp
_NODES = itertools.count(1)

_CLONE_NEWNET = 0x40000000

# /sys: the machine's cgroups stay reachable below a fresh sysfs of this network namespace. /var/lib: CNI writes there.
# SIGCHLD ignored: what loses its parent in here is reaped by the kernel.
_FIRST_PROCESS = """set -e
mkdir "$1/cgroup"
mount --rbind /sys/fs/cgroup "$1/cgroup"
mount -t sysfs sysfs /sys
mount --move "$1/cgroup" /sys/fs/cgroup
for each in /run /var/lib; do mount -t tmpfs -o mode=755 tmpfs "$each"; done
mkdir -p /run/netns /run/lock /run/cdi
ip link set lo up
cd /
trap '' CHLD
echo ready
exec sleep 2147483647
"""


class NodeError(Exception):
    """The node, or a program in it, does not do what it must; the message has the end of its log."""


class Program:
    """A program that runs in the node.

    Attributes:
        name: Its name, for messages.
        log: The file with what it prints.
        pid: Its process id, as the machine sees it.
    """

    def __init__(self, name: str, log: Path, entered: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.log = log
        self._entered = entered
        self.pid = _child(entered)

    def running(self) -> bool:
        """Return whether it runs."""
        return self._entered.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens when it has ended.

        Args:
            number: E.g. ``signal.SIGSTOP``.
        """
        if self.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
            if number in (signal.SIGCONT, signal.SIGKILL):
                self._entered.send_signal(signal.SIGCONT)  # nsenter stops with its child, and would not see its end

    def kill(self) -> None:
        """End it at once and wait for that."""
        self.signal(signal.SIGKILL)
        self._entered.wait(STOP)

    def stop(self) -> int:
        """Ask it to end and wait; kill it when it does not.

        Returns:
            Its exit code; minus the number of the signal that ended it.

        Raises:
            NodeError: It had to be killed.
        """
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            return self._entered.wait(STOP)
        except subprocess.TimeoutExpired:
            self.kill()
            raise NodeError(f"{self.name} does not end after SIGTERM:\n{self.tail()}") from None

    def tail(self, lines: int = 60) -> str:
        """Return the end of its log.

        Args:
            lines: How many lines.
        """
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return "the log has gone with its node"
        return "\n".join(text.splitlines()[-lines:])


class Node:
    """A node with one containerd. A context manager.

    Attributes:
        containerd: Which containerd it has.
        work: Its folder on the machine's disk, short enough for sockets.
        pid: The first process in its namespaces.
    """

    def __init__(
        self,
        containerd: parts.Part,
        *,
        request_timeout: str = "2s",
        enable_cdi: bool = True,
        required: Sequence[str] | None = None,
    ) -> None:
        """Start it.

        Args:
            containerd: Which containerd it has.
            request_timeout: How long the runtime waits for a plugin's answer.
            enable_cdi: Whether the runtime looks at a container's CDI devices; containerd 2 always does.
            required: NRI plugins without which no container is created; None: there is no validator.

        Raises:
            NodeError: It does not start.
            hack.parts.PartError: A part of it cannot be built.
        """
        self.containerd = containerd
        self._request_timeout = request_timeout
        self._enable_cdi = enable_cdi
        self._required = required
        self._programs: list[Program] = []
        self._cgroup = f"{_PREFIX}{os.getpid()}-{next(_NODES)}"
        self._pods = itertools.count(1)
        self._bin = [parts.build(part) for part in (containerd, parts.RUNC)]
        self._cni = parts.build(parts.CNI)
        self._archive = images.archive()
        _remove_stale()
        self.work = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-", dir=_TEMPORARY))
        self._entered: subprocess.Popen[bytes] | None = None
        self.runtime: Program | None = None
        try:
            self.pid = self._start_namespaces()
            self._configure()
            self.start_containerd()
            self._import_images()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # namespaces

    def _start_namespaces(self) -> int:
        # --pdeathsig, --kill-child: the node ends also when the test run is killed.
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc"]
        script = ["--kill-child", "--propagation", "private", "sh", "-c", _FIRST_PROCESS, "sh", str(self.work)]
        log = self.work / "namespaces.log"
        with log.open("wb") as errors:
            self._entered = subprocess.Popen(
                [*command, *script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
            )
        if self._entered.stdout is None or self._entered.stdout.readline() != b"ready\n":
            raise NodeError(f"the node's namespaces cannot be made: {log.read_text(encoding='utf-8')}")
        return _child(self._entered)

    def start(self, name: str, *command: str | Path, environment: Mapping[str, str] | None = None) -> Program:
        """Start a program in the node.

        Args:
            name: Its name, for its log and for messages.
            command: The program and its arguments.
            environment: Variables to set.
        """
        log = self.work / f"{name}.log"
        with log.open("ab") as output:
            entered = subprocess.Popen(
                [*self._enter(), *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**self._environment(), **(environment or {})},
            )
        program = Program(name, log, entered)
        self._programs.append(program)
        return program

    def logs(self) -> dict[str, str]:
        """Return the end of each program's log, by its name."""
        return {program.name: program.tail() for program in self._programs}

    def run(self, *command: str | Path, netns: str = "") -> str:
        """Run a command in the node and return what it printed.

        Args:
            command: The command.
            netns: A network namespace, by its path in the node; the node's own when not given.

        Raises:
            NodeError: It failed; the message has what it said.
        """
        inner = ["nsenter", f"--net={netns}", "--"] if netns else []
        done = subprocess.run(
            [*self._enter(), *inner, *map(str, command)],
            capture_output=True,
            text=True,
            env=self._environment(),
            check=False,
            timeout=patience(60),
        )
        if done.returncode:
            raise NodeError(f"{' '.join(map(str, command))}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def ip(self, *arguments: str, netns: str = "") -> Any:
        """Run ``ip`` in the node and return its answer, parsed; an empty list when it gives none.

        Args:
            arguments: The arguments after ``ip``, e.g. "link", "show".
            netns: As for :meth:`run`.

        Raises:
            NodeError: It failed.
        """
        printed = self.run("ip", "-details", "-json", *arguments, netns=netns)
        return json.loads(printed) if printed.strip() else []

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Let this thread make sockets in the node's network namespace while the context lasts."""
        libc = ctypes.CDLL(None, use_errno=True)
        with self._netns(f"/proc/{self.pid}") as there, self._netns("/proc/thread-self") as here:
            _setns(libc, there.fileno())
            try:
                yield
            finally:
                _setns(libc, here.fileno())

    @staticmethod
    def _netns(process: str) -> BinaryIO:
        return Path(process, "ns", "net").open("rb")

    def path(self, inside: str) -> Path:
        """Return how the machine reaches a path of the node.

        Args:
            inside: The path in the node, e.g. "/run/cdi".
        """
        return Path(f"/proc/{self.pid}/root{inside}")

    def _enter(self) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--mount", "--net", "--pid", "--"]

    def _environment(self) -> dict[str, str]:
        path = ":".join([*map(str, self._bin), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"])
        return {**os.environ, "PATH": path}

    # containerd

    @property
    def socket(self) -> Path:
        """The socket of containerd, in a folder that the machine sees too."""
        return self.work / "containerd.sock"

    def client(self) -> cri.CriClient:
        """Return a new CRI client of this node."""
        return cri.CriClient(self.socket)

    def pod(self, name: str, *, uid: str = "", **fields: Any) -> cri.Pod:
        """Return what a sandbox of this node is made from.

        Args:
            name: The pod's name.
            uid: The pod's UID; made up when not given.
            fields: As in :class:`hack.cri.Pod`.
        """
        number = next(self._pods)
        return cri.Pod(name, uid or f"00000000-0000-4000-8000-{number:012}", f"/{self._cgroup}/pod{number}", **fields)

    def start_containerd(self) -> None:
        """Start containerd and wait until it serves CRI and NRI.

        Raises:
            NodeError: It does not, or it runs already.
        """
        if self.runtime is not None and self.runtime.running():
            raise NodeError("containerd runs already")
        nri = self.path(NRI_SOCKET)
        nri.unlink(missing_ok=True)
        self.runtime = self.start("containerd", "containerd", "--config", self.work / "containerd.toml")
        with self.client() as client:
            self.wait_for(lambda: nri.exists() and _serves(client), "containerd serves", self.runtime, START)

    def stop_containerd(self, *, kill: bool = False) -> None:
        """End containerd; its pods go on.

        Args:
            kill: By SIGKILL.
        """
        if self.runtime is not None:
            if kill:
                self.runtime.kill()
            else:
                self.runtime.stop()

    def _configure(self) -> None:
        containerd_config.write(
            self.work,
            self.containerd.version,
            root=self.work / "root",
            socket=self.socket,
            cni=self._cni,
            pods={"subnet": POD_NETWORK},
            timeout=self._request_timeout,
            enable_cdi=self._enable_cdi,
            required=self._required,
        )

    def _import_images(self) -> None:
        self.run("ctr", "--address", self.socket, "--namespace", "k8s.io", "images", "import", self._archive)

    def wait_for(
        self, true: Any, words: str, program: Program | None = None, timeout: float = START, pause: float = 0.02
    ) -> Any:
        """Wait until something is true.

        Args:
            true: Called again and again; its first true answer is returned.
            words: What is waited for, for the error.
            program: One that must go on running meanwhile.
            timeout: Seconds after which to give up.
            pause: Seconds between two calls.

        Raises:
            NodeError: It does not become true, or the program ended.
        """
        end = time.monotonic() + timeout
        while not (answer := true()):
            if program is not None and not program.running():
                raise NodeError(f"waiting until {words}: {program.name} ended:\n{program.tail()}")
            if time.monotonic() > end:
                log = f":\n{program.tail()}" if program else ""
                raise NodeError(f"waiting until {words}: not within {timeout:.0f} s{log}")
            time.sleep(pause)
        return answer

    # the end

    def close(self) -> None:
        """End everything in the node and remove what it leaves on the machine."""
        if self._entered is not None:
            self._entered.kill()  # its namespaces' first process dies with it, and everything in them with that
            self._entered.wait()
            if self._entered.stdout is not None:
                self._entered.stdout.close()
        try:
            for program in self._programs:
                program.kill()
        finally:
            _remove_cgroups(self._cgroup)
            shutil.rmtree(self.work, ignore_errors=True)


def _serves(client: cri.CriClient) -> bool:
    with contextlib.suppress(cri.CriError):
        return client.ready()
    return False


def _child(parent: subprocess.Popen[bytes]) -> int:
    """Return the process id of a process's only child, which is about to be made or there."""
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    end = time.monotonic() + STOP
    while time.monotonic() < end and parent.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            return int(children.read_text(encoding="ascii"))
        time.sleep(0.001)
    raise NodeError(f"a program could not be started in the node's namespaces (exit code {parent.poll()})")


def _setns(libc: ctypes.CDLL, descriptor: int) -> None:
    if libc.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns in thread {threading.current_thread().name}: {os.strerror(number)}")


def _remove_stale() -> None:
    """Remove what test runs left that were killed."""
    for top in _tops(f"{_PREFIX}*"):
        if _dead(top.name.removeprefix(_PREFIX)):
            _remove_cgroups(top.name)
    for folder in _TEMPORARY.glob(f"{_FOLDER}[0-9]*-*"):
        if _dead(folder.name.removeprefix(_FOLDER)):
            shutil.rmtree(folder, ignore_errors=True)


def _dead(name: str) -> bool:
    """Say whether the process whose id begins a name has ended."""
    return not Path("/proc", name.partition("-")[0]).exists()


def _remove_cgroups(name: str) -> None:
    for top in _tops(name):
        cgroups.remove(top)


def _tops(pattern: str) -> list[Path]:
    return [*_CGROUPS.glob(pattern), *_CGROUPS.glob(f"*/{pattern}")]
