"""A real Kubernetes cluster on one machine, without a container engine and without a registry.

etcd, API server, controller manager, scheduler, and on each host containerd, kubelet, runc and a bridge for pods. All
of it is in namespaces (:mod:`hack.cluster.host`) and below one folder, and goes on when the command that started it
ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hack import images, parts
from hack.cluster import files, sysctls
from hack.cluster.host import LAYERED, ClusterError, Host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# What a component, or the first node, is given to serve.
START = 90.0

# Of this process's variables, what would tell programs inside of another cluster or of systemd.
_FOREIGN = ("KUBERNETES_", "KUBECONFIG", "NOTIFY_SOCKET", "LISTEN_")

_PROBE = """import ssl, sys, urllib.request
context = ssl._create_unverified_context()
handlers = urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
try:
    sys.exit(urllib.request.build_opener(*handlers).open(sys.argv[1], timeout=2).status != 200)
except OSError as error:
    sys.exit(str(error))
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Versions:
    """What a cluster is made of.

    Attributes:
        kubernetes: The Kubernetes part.
        containerd: The containerd part.
    """

    kubernetes: parts.Part = parts.KUBERNETES_NEW
    containerd: parts.Part = parts.CONTAINERD_2

    @classmethod
    def named(cls, kubernetes: str, containerd: str) -> Versions:
        """Return the versions by their numbers or the beginning of them.

        Args:
            kubernetes: E.g. "1.34" or "1.34.4".
            containerd: E.g. "1.7".

        Raises:
            ClusterError: There is no such version; the message says which there are.
        """
        return cls(
            _pick("Kubernetes", kubernetes, (parts.KUBERNETES_NEW, parts.KUBERNETES_OLD)),
            _pick("containerd", containerd, (parts.CONTAINERD_2, parts.CONTAINERD_1)),
        )

    @property
    def parts(self) -> tuple[parts.Part, ...]:
        """All parts of a cluster of these versions."""
        return (parts.ETCD, self.kubernetes, self.containerd, parts.RUNC, parts.CNI, parts.HELM)


def _pick(name: str, wanted: str, there: tuple[parts.Part, ...]) -> parts.Part:
    for part in there:
        if f"{part.version}.".startswith(f"{wanted}."):
            return part
    raise ClusterError(f"{name} {wanted}: there are {' and '.join(part.version for part in there)}")


class Cluster:
    """The cluster in a folder, whether it runs or not.

    Attributes:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        """Look at a folder; nothing is started.

        Args:
            folder: Everything of the cluster is below it.

        Raises:
            ClusterError: The folder is one that hosts do not see as the machine does.
        """
        self.folder = folder.resolve()
        for hidden in ("/run", "/proc", "/sys", "/dev", *LAYERED):
            if self.folder.is_relative_to(hidden):
                raise ClusterError(f"a cluster cannot be in {self.folder}: its hosts have a {hidden} of their own")
        self._mark = hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]
        record: dict[str, object] = {}
        with contextlib.suppress(FileNotFoundError):
            record = json.loads(self._record.read_text(encoding="utf-8"))
        self._bin: list[str] = list(record.get("bin", []))  # type: ignore[call-overload]
        self.hosts = [self._host(name) for name in record.get("hosts", [])]  # type: ignore[attr-defined]
        self.components = {
            name: files.Component(**component)
            for name, component in record.get("components", {}).items()  # type: ignore[attr-defined]
        }

    @property
    def _record(self) -> Path:
        return self.folder / "cluster.json"

    def _host(self, name: str) -> Host:
        return Host(name, self.folder / name, self._mark)

    def _save(self) -> None:
        record = {
            "bin": self._bin,
            "hosts": [host.name for host in self.hosts],
            "components": {name: dataclasses.asdict(component) for name, component in self.components.items()},
        }
        self._record.write_text(json.dumps(record, indent=1), encoding="utf-8")

    # up and down

    def up(
        self, versions: Versions, *, nodes: int = 1, gates: Mapping[str, bool] | None = None, tied: bool = False
    ) -> None:
        """Start the cluster and wait until pods can be made on each node.

        Args:
            versions: What it is made of.
            nodes: How many nodes, 1 or 2.
            gates: Feature gates, set in every component.
            tied: End everything when this process ends, however that ends. Cgroups, files and sysctls then stay until
                :meth:`down`.

        Raises:
            ClusterError: It runs already, or something in it does not start: then it is down again, and the logs stay.
            hack.parts.PartError: A part cannot be built.
        """
        if os.geteuid():
            raise ClusterError("a cluster needs root")
        if any(host.pid("host") for host in self.hosts):
            raise ClusterError(f"a cluster runs already in {self.folder}")
        if not 1 <= nodes <= 2:
            raise ClusterError(f"{nodes} nodes: a cluster has 1 or 2")
        self._bin = [str(parts.build(part)) for part in versions.parts]
        archive = images.archive()
        self.remove()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.hosts = [self._host(f"node-{number}") for number in range(1, nodes + 1)]
        self._save()
        sysctls.note(self.folder, _runs)
        try:
            self._up(versions, archive, dict(gates or {}), tied=tied)
        except BaseException:
            self.down()
            raise

    def _up(self, versions: Versions, archive: Path, gates: dict[str, bool], *, tied: bool) -> None:
        for host in self.hosts:
            shutil.rmtree(host.folder / "log", ignore_errors=True)
            host.up(tied=tied)
        self._connect()
        cni = parts.place(parts.CNI)
        layout = files.Layout(self.folder, versions.containerd.version, cni, gates)
        files.write(layout, self.hosts)
        self.components = layout.components
        self._save()
        runtimes = [name for name in self.components if name.endswith("containerd")]
        for name in ("etcd", *runtimes, "apiserver"):
            self.spawn(name)
        for name in runtimes:
            self.wait_ready(name)
        self.load(archive)
        self.wait_ready("apiserver")
        for name in self.components:
            if self._where(name).pid(name) is None:
                self.spawn(name)
        for host in self.hosts:
            self._wait_node(host.name)

    def _connect(self) -> None:
        """Give hosts their addresses and join them by a pair of links."""
        for number, host in enumerate(self.hosts, 1):
            self.run("ip", "link", "add", "pods0", "type", "bridge", host=host)
            self.run("ip", "address", "add", f"{files.address(number)}/24", "dev", "pods0", host=host)
            self.run("ip", "link", "set", "pods0", "up", host=host)
            self.run("sysctl", "-qw", "net.ipv4.ip_forward=1", host=host)
        first = self.hosts[0]
        self.run("ip", "address", "add", f"{files.SERVICE_ADDRESS}/32", "dev", "lo", host=first)
        for number, host in enumerate(self.hosts[1:], 2):
            here, there = f"wire{number}", "wire1"
            netns = str(host.first())
            self.run_outside(
                "ip",
                "link",
                "add",
                here,
                "netns",
                str(first.first()),
                "type",
                "veth",
                "peer",
                "name",
                there,
                "netns",
                netns,
            )
            for each, name, other, own in ((first, here, number, 1), (host, there, 1, 2)):
                self.run("ip", "address", "add", f"192.0.2.{4 * number + own}/30", "dev", name, host=each)
                self.run("ip", "link", "set", name, "up", host=each)
                gateway = f"192.0.2.{4 * number + 3 - own}"
                source = files.address(1 if each is first else number)
                self.run("ip", "route", "add", f"10.244.{other}.0/24", "via", gateway, "src", source, host=each)
            self.run(
                "ip",
                "route",
                "add",
                files.SERVICE_ADDRESS,
                "via",
                f"192.0.2.{4 * number + 1}",
                "src",
                files.address(number),
                host=host,
            )

    def down(self) -> None:
        """End everything and put the machine's sysctls back. Logs stay until the next start.

        Raises:
            ClusterError: A process cannot be ended.
        """
        for host in self.hosts:
            host.down()
        sysctls.restore(self.folder, _runs)
        self.remove()

    def remove(self) -> None:
        """Remove what a cluster that does not run has on disk, but for the logs.

        Raises:
            ClusterError: It runs.
        """
        for host in self.hosts:
            if host.pid("host"):
                raise ClusterError(f"{host.name} runs")
            for each in host.folder.iterdir() if host.folder.is_dir() else ():
                if each.name != "log":
                    shutil.rmtree(each)
        for name in ("pki", "etcd"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self._record.unlink(missing_ok=True)
        self.hosts, self.components = [], {}

    # components

    def _where(self, name: str) -> Host:
        component = self.components.get(name)
        if component is None:
            raise ClusterError(
                f"{name}: no such component; there are {', '.join(self.components) or 'none: it is down'}"
            )
        return next(host for host in self.hosts if host.name == component.host)

    def spawn(self, name: str) -> None:
        """Start a component and do not wait for it; nothing happens when it runs.

        Args:
            name: Its name.

        Raises:
            ClusterError: It cannot be started, or there is none of that name.
        """
        host = self._where(name)
        if host.pid(name) is None:
            if name.endswith("containerd"):
                host.path("/run/nri/nri.sock").unlink(missing_ok=True)  # an old one says nothing
            host.spawn(name, self.components[name].command, self.environment())

    def start(self, name: str) -> None:
        """Start a component and wait until it serves.

        Args:
            name: Its name.

        Raises:
            ClusterError: It does not serve, or there is none of that name.
        """
        self.spawn(name)
        self.wait_ready(name)

    def define(self, name: str, component: files.Component) -> None:
        """Add a component, to be started as the cluster's own are.

        Args:
            name: A name that no other has.
            component: What it is.

        Raises:
            ClusterError: The name is taken.
        """
        if name in self.components:
            raise ClusterError(f"{name} is there already")
        self.components[name] = component
        self._save()

    def wait_ready(self, name: str) -> None:
        """Wait until a component serves.

        Args:
            name: Its name.

        Raises:
            ClusterError: It ended, or it does not serve in time.
        """
        host = self._where(name)

        def serves() -> bool:
            if host.pid(name) is None:
                raise ClusterError(f"{name} ended:\n{host.tail(name)}")
            return self.ready(name)

        try:
            wait(serves, f"{name} serves")
        except ClusterError as error:
            raise ClusterError(f"{error}\n{host.tail(name)}") from None

    def ready(self, name: str) -> bool:
        """Return whether a component serves now.

        Args:
            name: Its name.

        Raises:
            ClusterError: There is none of that name.
        """
        host, url = self._where(name), self.components[name].ready
        if host.state(name) != "running":
            return False
        if url:
            command = [sys.executable, "-ISc", _PROBE, url]
        else:
            if not host.path("/run/nri/nri.sock").exists():
                return False
            command = ["ctr", "--connect-timeout", "1s", "version"]
        done = subprocess.run(
            [*host.enter(), *command], capture_output=True, env=self.environment(), check=False, timeout=30
        )
        return done.returncode == 0

    def end(self, name: str, *, kill: bool = False) -> None:
        """End a component and wait for that.

        Args:
            name: Its name.
            kill: By SIGKILL.

        Raises:
            ClusterError: It does not end, or there is none of that name.
        """
        self._where(name).end(name, signal.SIGKILL if kill else signal.SIGTERM)

    def restart(self, name: str, *, kill: bool = False) -> None:
        """End a component, start it, and wait until it serves.

        Args:
            name: Its name.
            kill: End it by SIGKILL.

        Raises:
            ClusterError: See :meth:`end` and :meth:`start`.
        """
        self.end(name, kill=kill)
        self.start(name)

    def pause(self, name: str) -> None:
        """Stop a component where it is; :meth:`resume` lets it go on.

        Args:
            name: Its name.

        Raises:
            ClusterError: There is none of that name.
        """
        self._where(name).send(name, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let a paused component go on.

        Args:
            name: Its name.

        Raises:
            ClusterError: There is none of that name.
        """
        self._where(name).send(name, signal.SIGCONT)

    def states(self) -> dict[str, str]:
        """Return each component's state: "down", "paused", "serving" or "not serving"."""
        found = {}
        for name in self.components:
            state = self._where(name).state(name)
            found[name] = state if state != "running" else "serving" if self.ready(name) else "not serving"
        return found

    def logs(self) -> Iterator[tuple[str, str]]:
        """Yield the end of each component's log, by its name."""
        for name in self.components:
            yield name, self._where(name).tail(name)

    # commands

    def environment(self) -> dict[str, str]:
        """Return the variables of commands in the cluster: its programs in PATH, its administrator in KUBECONFIG."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        path = ":".join([*self._bin, "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"])
        return {**kept, "PATH": path, "KUBECONFIG": str(self.folder / "pki" / "admin.conf")}

    def run(self, *command: str | Path, host: Host | None = None, stdin: str = "", timeout: float = 240) -> str:
        """Run a command in a host and return what it printed.

        Args:
            command: The command.
            host: Where; the first host when not given.
            stdin: What it reads.
            timeout: Seconds that it is given.

        Raises:
            ClusterError: It failed, the message has what it said; or the cluster is down.
        """
        return self.run_outside(*(host or self.first).enter(), *command, stdin=stdin, timeout=timeout)

    def run_outside(self, *command: str | Path, stdin: str = "", timeout: float = 240) -> str:
        """Run a command on the machine, with the cluster's programs in PATH.

        Args:
            command: The command.
            stdin: What it reads.
            timeout: Seconds that it is given.

        Raises:
            ClusterError: It failed; the message has what it said.
        """
        words = [str(word) for word in command]
        try:
            done = subprocess.run(
                words,
                input=stdin,
                capture_output=True,
                text=True,
                env=self.environment(),
                check=False,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"{' '.join(words)}: not within {timeout:.0f} s") from None
        if done.returncode:
            raise ClusterError(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    @property
    def first(self) -> Host:
        """The host of the control plane.

        Raises:
            ClusterError: The cluster is down.
        """
        if not self.hosts:
            raise ClusterError(f"no cluster runs in {self.folder}: `python -m hack.cluster up` starts one")
        return self.hosts[0]

    def kubectl(self, *arguments: str | Path, stdin: str = "", timeout: float = 240) -> str:
        """Run kubectl as the administrator and return what it printed.

        Args:
            arguments: Its arguments.
            stdin: What it reads.
            timeout: Seconds that it is given.

        Raises:
            ClusterError: It failed; the message has what it said.
        """
        return self.run("kubectl", *arguments, stdin=stdin, timeout=timeout)

    def load(self, archive: Path) -> None:
        """Load an archive of images on every host.

        Args:
            archive: Its path.

        Raises:
            ClusterError: A host refuses it.
        """
        for host in self.hosts:
            self.run("ctr", "--namespace", "k8s.io", "images", "import", archive, host=host)

    def _wait_node(self, name: str) -> None:
        path = '{.status.conditions[?(@.type=="Ready")].status}'

        def usable() -> bool:
            for component, state in ((each, self._where(each).state(each)) for each in self.components):
                if state == "down":
                    raise ClusterError(f"{component} ended:\n{self._where(component).tail(component)}")
            with contextlib.suppress(ClusterError):
                ready = self.kubectl("get", "node", name, "--output", f"jsonpath={path}")
                # Pods cannot be made without it.
                return ready == "True" and bool(self.kubectl("get", "serviceaccount", "default", "--output=name"))
            return False

        wait(usable, f"{name} is ready")


def _runs(folder: Path) -> bool:
    return any(host.pid("host") for host in Cluster(folder).hosts)


def default_folder() -> Path:
    """Return the folder of the cluster that commands mean when they name none."""
    return Path(os.environ.get("CLUSTER_DIR") or Path(tempfile.gettempdir()) / "nri-dranet-cluster")


def wait(true: Callable[[], bool], words: str, timeout: float = START, pause: float = 0.1) -> None:
    """Wait until something is true.

    Args:
        true: Called again and again.
        words: What is waited for, for the error.
        timeout: Seconds after which to give up.
        pause: Seconds between two calls.

    Raises:
        ClusterError: It does not become true.
    """
    end = time.monotonic() + timeout
    while not true():
        if time.monotonic() > end:
            raise ClusterError(f"waiting until {words}: not within {timeout:.0f} s")
        time.sleep(pause)
