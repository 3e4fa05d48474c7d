"""A node without a cluster: the real daemon between stand-ins of the API server, kubelet and container runtime.

The daemon is the installed command, in a process of its own, so that it can be killed like any other. Pods are
processes in network namespaces of their own. Everything is below one folder and ends with ``close``. It must run in a
network namespace that has been made for it: the daemon publishes the interfaces that are there.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from nri_dranet.testing.apiserver import ApiServerStandIn
from nri_dranet.testing.kubelet import KubeletStandIn
from nri_dranet.testing.patience import patience
from nri_dranet.testing.runtime import Pod, RuntimeStandIn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T")

NODE: Final = "node"
DRIVER: Final = "dra.net"
RESOURCE_API: Final = "/apis/resource.k8s.io/v1"

_PATIENCE: Final = patience(20.0)
_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.05


class StageError(Exception):
    """Something on the stage did not happen in time; the text says what, with the end of the daemon's log."""


@dataclass(slots=True)
class StagedPod:
    """A pod: its object, and the process that keeps its network namespace."""

    name: str
    uid: str
    claims: tuple[str, ...]
    process: subprocess.Popen[bytes]
    sandbox: Pod = field(init=False)
    sandboxes: int = 0

    @property
    def netns_path(self) -> str:
        """Where its network namespace is."""
        return f"/proc/{self.process.pid}/ns/net"

    def run(self, *command: str) -> str:
        """Run a command in the pod's network namespace and return what it printed.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        prefix = ["nsenter", "-t", str(self.process.pid), "-n", "--"]
        return subprocess.run([*prefix, *command], check=True, capture_output=True, text=True).stdout


class Stage:
    """The stand-ins and the daemon between them."""

    def __init__(
        self,
        folder: Path,
        *,
        filter_expression: str = "",
        flags: Sequence[str] = (),
        api: ApiServerStandIn | None = None,
        kubelet_versions: Sequence[str] = ("v1", "v1beta1"),
        dedicated_calls: bool = True,
    ) -> None:
        """Prepare a stage; ``start`` begins it.

        Args:
            folder: for sockets, state and logs; short, as a socket's path has 107 bytes at most.
            filter_expression: the daemon's ``--filter``.
            flags: more flags of the daemon.
            api: the API server, where an ordinary one does not serve.
            kubelet_versions: the DRA versions that kubelet knows.
            dedicated_calls: whether the runtime has NRI 0.12's calls.
        """
        self.folder = folder
        self.log = folder / "daemon.log"
        self.cdi = folder / "cdi"
        self.kubelet_root = folder / "kubelet"
        self.nri_socket = folder / "nri.sock"
        self._port = _free_port()
        self.api = api or ApiServerStandIn()
        registry = self.kubelet_root / "plugins_registry"
        self.kubelet = KubeletStandIn(registry, driver=DRIVER, versions=kubelet_versions)
        self.runtime = RuntimeStandIn(self.nri_socket, cdi_dir=self.cdi, dedicated_calls=dedicated_calls)
        self._filter = filter_expression
        self._flags = list(flags)
        self._daemon: subprocess.Popen[bytes] | None = None
        self._former: subprocess.Popen[bytes] | None = None
        self._uids = itertools.count(1)
        self._pods: list[StagedPod] = []

    # ---- the stage itself

    def start(self) -> None:
        """Start the stand-ins; the node's object is there when it returns."""
        (self.kubelet_root / "plugins_registry").mkdir(parents=True, exist_ok=True)
        self.api.start()
        self.api.write_kubeconfig(self.folder / "kubeconfig")
        self.create("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
        self.runtime.start()
        self.kubelet.start()

    def close(self) -> None:
        """End everything that was started."""
        for stop in (self.stop_former, self.stop_daemon):
            with contextlib.suppress(StageError):
                stop()
        for pod in self._pods:
            pod.process.kill()
            pod.process.wait()
        self.kubelet.stop()
        self.runtime.stop()
        self.api.stop()

    # ---- the daemon

    def start_successor(self, *flags: str) -> None:
        """Start another daemon beside the one that runs, which is the former one from now on.

        Args:
            flags: more flags of the new one.
        """
        self._former = self._daemon
        self.start_daemon(*flags)

    def start_daemon(self, *flags: str) -> None:
        """Start the daemon; it has not joined anybody yet when this returns.

        Args:
            flags: more flags, for this start alone.
        """
        command = [
            sys.executable,
            "-m",
            "nri_dranet",
            "run",
            f"--kubeconfig={self.folder / 'kubeconfig'}",
            f"--hostname-override={NODE}",
            f"--kubelet-root-dir={self.kubelet_root}",
            f"--nri-socket={self.nri_socket}",
            f"--cdi-dir={self.cdi}",
            f"--filter={self._filter}",
            f"--bind-address=127.0.0.1:{self._port}",
            "--v=4",
            *self._flags,
            *flags,
        ]
        with self.log.open("ab") as log:
            self._daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def daemon_pid(self) -> int:
        """Return the daemon's process ID.

        Raises:
            StageError: it does not run.
        """
        if self._daemon is None or self._daemon.poll() is not None:
            raise self._failure("the daemon does not run")
        return self._daemon.pid

    def wait_ready(self) -> None:
        """Wait until the daemon has joined kubelet and runtime and has published.

        Raises:
            StageError: it did not in time, or ended.
        """
        self.wait_for(lambda: self.daemon_pid() and self.http("/readyz")[0] == 200, "the daemon is not ready")

    def stop_daemon(self, sig: signal.Signals = signal.SIGTERM) -> int | None:
        """End the daemon with a signal and return its exit code; None when it did not run.

        Raises:
            StageError: it did not end; it is killed then.
        """
        daemon, self._daemon = self._daemon, None
        return self._end(daemon, sig)

    def stop_former(self, sig: signal.Signals = signal.SIGTERM) -> int | None:
        """End the former daemon, as ``stop_daemon`` does.

        Raises:
            StageError: it did not end; it is killed then.
        """
        daemon, self._former = self._former, None
        return self._end(daemon, sig)

    def _end(self, daemon: subprocess.Popen[bytes] | None, sig: signal.Signals) -> int | None:
        if daemon is None:
            return None
        daemon.send_signal(sig)
        try:
            return daemon.wait(_PATIENCE)
        except subprocess.TimeoutExpired as error:
            daemon.kill()
            daemon.wait()
            raise self._failure(f"the daemon did not end by {sig.name}") from error

    def http(self, path: str) -> tuple[int, str]:
        """Ask the daemon's HTTP endpoint; status 0 when nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=patience(2.0)) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    # ---- what a user and a cluster do

    def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object."""
        return self.api.create(path, dict(body))

    def claim(self, name: str, configs: Sequence[Mapping[str, Any]] = (), requests: Sequence[str] = ("nic",)) -> str:
        """Create a claim with one device a request and return its name."""
        self.create(
            f"{RESOURCE_API}/namespaces/default/resourceclaims",
            {
                "apiVersion": "resource.k8s.io/v1",
                "kind": "ResourceClaim",
                "metadata": {"name": name, "namespace": "default"},
                "spec": {
                    "devices": {
                        "requests": [{"name": each, "exactly": {"deviceClassName": DRIVER}} for each in requests],
                        "config": [{"opaque": {"driver": DRIVER, "parameters": dict(config)}} for config in configs],
                    }
                },
            },
        )
        return name

    def get_claim(self, name: str) -> dict[str, Any]:
        """Return a claim as it is now."""
        return self.api.get(f"{RESOURCE_API}/namespaces/default/resourceclaims/{name}")

    def devices(self) -> dict[str, dict[str, Any]]:
        """Return the published devices by name."""
        found: dict[str, dict[str, Any]] = {}
        for item in self.api.objects(f"{RESOURCE_API}/resourceslices"):
            found.update((device["name"], device) for device in item["spec"].get("devices") or [])
        return found

    def allocate(self, name: str, *devices: str) -> None:
        """Do what the scheduler does: give the claim these devices, one a request, in order."""
        claim = self.get_claim(name)
        spec = claim["spec"]["devices"]
        results = [
            {"request": request["name"], "driver": DRIVER, "pool": NODE, "device": device}
            for request, device in zip(spec["requests"], devices, strict=True)
        ]
        configs = [{**config, "source": "FromClaim"} for config in spec.get("config") or []]
        self.api.allocate("default", name, results=results, config=configs, node=NODE)

    def pod(self, name: str, *claims: str, host_network: bool = False) -> StagedPod:
        """Make a pod that uses claims; they are reserved for it. Its network namespace has ``lo``, up."""
        uid = f"00000000-0000-4000-8000-{next(self._uids):012d}"
        refs = [{"name": f"r{i}", "resourceClaimName": claim} for i, claim in enumerate(claims)]
        self.create(
            "/api/v1/namespaces/default/pods",
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": "default", "uid": uid},
                "spec": {
                    "nodeName": NODE,
                    "hostNetwork": host_network,
                    "resourceClaims": refs,
                    "containers": [
                        {"name": "app", "resources": {"claims": [{"name": ref["name"]} for ref in refs]}},
                    ],
                },
            },
        )
        for claim in claims:
            self.api.reserve("default", claim, pod=name, uid=uid)
        pod = StagedPod(name, uid, claims, _sleeper())
        self._pods.append(pod)
        self._settle(pod)
        return pod

    def new_sandbox(self, pod: StagedPod) -> None:
        """Give a pod another sandbox, as kubelet does when the former one failed; that one's namespace is left alone.

        Raises:
            StageError: its namespace cannot be made.
        """
        pod.process = _sleeper()
        self._settle(pod)

    def _settle(self, pod: StagedPod) -> None:
        process, own = pod.process, Path("/proc/self/ns/net").stat().st_ino
        self.wait_for(
            lambda: (
                Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n" and Path(pod.netns_path).stat().st_ino != own
            ),
            "the pod's namespace",
        )
        pod.run("ip", "link", "set", "lo", "up")
        pod.sandboxes += 1
        identity = f"sandbox-{pod.name}" + (f"-{pod.sandboxes}" if pod.sandboxes > 1 else "")
        pod.sandbox = Pod(id=identity, name=pod.name, namespace="default", uid=pod.uid, netns_path=pod.netns_path)

    def prepare(self, pod: StagedPod) -> dict[str, Any]:
        """Do what kubelet does first; return its answer by claim UID."""
        return self.kubelet.prepare([self._reference(name) for name in pod.claims])

    def unprepare(self, pod: StagedPod) -> dict[str, Any]:
        """Do what kubelet does last."""
        return self.kubelet.unprepare([self._reference(name) for name in pod.claims])

    def end_pod(self, pod: StagedPod) -> None:
        """Stop a pod's sandbox and end its processes."""
        self.runtime.stop_pod(pod.sandbox)
        pod.process.kill()
        pod.process.wait()
        self.runtime.remove_pod(pod.sandbox)

    # ---- waiting

    def wait_for(self, look: Callable[[], T], what: str, timeout: float = _PATIENCE) -> T:
        """Look until the answer is true and return it.

        Raises:
            StageError: it did not become true in time.
        """
        end = time.monotonic() + timeout
        pause = _FIRST_PAUSE
        while True:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if found := look():
                    return found
            if time.monotonic() > end:
                raise self._failure(f"waited {timeout:g} s in vain: {what}")
            time.sleep(pause)
            pause = min(pause * 1.2, _LONGEST_PAUSE)

    def wait_condition(self, name: str, kind: str, status: str) -> dict[str, Any]:
        """Wait for a condition of the claim's first device and return the device's entry.

        Raises:
            StageError: it did not come.
        """

        def look() -> dict[str, Any] | None:
            for entry in self.get_claim(name).get("status", {}).get("devices") or []:
                for condition in entry.get("conditions") or []:
                    if condition["type"] == kind and condition["status"] == status:
                        return dict(entry)
            return None

        entry = self.wait_for(look, f"condition {kind}={status} of claim {name}")
        assert entry is not None  # noqa: S101 - wait_for returns true values only
        return entry

    def _reference(self, name: str) -> tuple[str, str, str]:
        meta = self.get_claim(name)["metadata"]
        return meta["namespace"], meta["name"], meta["uid"]

    def _failure(self, text: str) -> StageError:
        lines = self.log.read_text(errors="replace").splitlines()[-15:] if self.log.exists() else []
        return StageError("\n".join([text, *lines]))


def _sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["unshare", "--net", "sleep", "infinity"], stdin=subprocess.DEVNULL)


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
