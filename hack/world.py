"""A node with a real containerd, the real daemon, and stand-ins of the API server and of kubelet: for tests."""

from __future__ import annotations

import itertools
import signal
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hack import images
from hack.audit import audit_at_rest
from hack.node import CDI_DIR, NRI_SOCKET, Node, NodeError, Program
from nri_dranet.testing.apiserver import ApiServerStandIn
from nri_dranet.testing.kubelet import KubeletStandIn
from nri_dranet.testing.patience import patience

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from hack.cri import CriClient, Pod

DRIVER = "dra.net"
NODE_NAME = "node"
NAMESPACE = "default"
CLAIMS = f"/apis/resource.k8s.io/v1/namespaces/{NAMESPACE}/resourceclaims"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
SLICES = "/apis/resource.k8s.io/v1/resourceslices"

SLEEP = ("sleep", "3600")

# A device is published some hundred milliseconds after it came; a status is written within some ten.
PATIENCE = patience(20.0)

_ENDPOINT = "127.0.0.1:9177"


@dataclass(frozen=True, slots=True)
class Claimed:
    """A pod with its claims.

    Attributes:
        cri: What its sandbox is made from.
        claims: The names of its claims.
    """

    cri: Pod
    claims: tuple[str, ...]


class World:
    """The daemon on a node. A context manager.

    Attributes:
        node: The node.
        api: The API server.
        kubelet: The kubelet.
        client: A CRI client of the node's runtime.
        daemon: The daemon, None before its first start.
        former: The daemon before, while it runs beside the one that was started after it.
    """

    def __init__(self, node: Node, client: CriClient) -> None:
        """Start the stand-ins on a node.

        Args:
            node: The node; it outlives this object.
            client: A client of its runtime.
        """
        self.node = node
        self.client = client
        self.daemon: Program | None = None
        self.former: Program | None = None
        self._numbers = itertools.count(1)
        registry = node.work / "kubelet" / "plugins_registry"
        registry.mkdir(parents=True)
        with node.network():  # the daemon reaches the API server on the node's loopback
            self.api = ApiServerStandIn()
            self.api.start()
        self.api.write_kubeconfig(node.work / "kubeconfig")
        self.api.create("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE_NAME}})
        self.kubelet = KubeletStandIn(registry, driver=DRIVER)
        self.kubelet.start()

    def __enter__(self) -> World:  # noqa: PYI034 - not for subclasses
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the daemon and the stand-ins."""
        for daemon in (self.former, self.daemon):
            if daemon is not None:
                daemon.kill()
        self.kubelet.stop()
        self.api.stop()

    # the daemon

    def start_daemon(self, *flags: str, wait: bool = True) -> None:
        """Start the daemon.

        Args:
            flags: Flags beside those that name the node's places.
            wait: Until it has joined kubelet and the runtime, and has published.

        Raises:
            NodeError: It ended, or it did not join.
        """
        self.daemon = self.node.start(
            "nri-dranet",
            sys.executable,
            "-m",
            "nri_dranet",
            "run",
            f"--kubeconfig={self.node.work / 'kubeconfig'}",
            f"--hostname-override={NODE_NAME}",
            f"--kubelet-root-dir={self.node.work / 'kubelet'}",
            f"--state-dir={self.node.work / 'state'}",
            f"--nri-socket={NRI_SOCKET}",
            f"--cdi-dir={CDI_DIR}",
            f"--bind-address={_ENDPOINT}",
            "--filter=true",
            "--v=4",
            *flags,
        )
        if wait:
            self.wait_ready()

    def start_successor(self, *flags: str) -> None:
        """Start another daemon beside the one that runs; wait until it is ready.

        Args:
            flags: As for :meth:`start_daemon`.

        Raises:
            NodeError: It ended, or it did not take over.
        """
        times = self.said("this one stands by")
        self.former = self.daemon
        self.start_daemon(*flags, wait=False)
        self.wait_for(lambda: self.said("this one stands by") > times, "the former daemon stands by")
        self.wait_ready()

    def stop_former(self) -> int:
        """End the former daemon and return its exit code.

        Raises:
            NodeError: It does not end.
        """
        former, self.former = self.former, None
        return former.stop() if former is not None else 0

    def said(self, text: str) -> int:
        """Return how often the daemons have logged a text.

        Args:
            text: The text.
        """
        log = self.daemon.log.read_text(encoding="utf-8", errors="replace") if self.daemon is not None else ""
        return log.count(text)

    def kill_daemon(self) -> None:
        """End the daemon as a crash does."""
        if self.daemon is not None:
            self.daemon.kill()

    def restart_daemon(self, number: signal.Signals) -> None:
        """End the daemon with a signal and start it again.

        Args:
            number: SIGTERM or SIGKILL.

        Raises:
            NodeError: It did not end well, or did not come back.
        """
        if self.daemon is not None and number is signal.SIGKILL:
            self.daemon.kill()
        elif self.daemon is not None and (code := self.daemon.stop()):
            raise NodeError(f"nri-dranet ended with exit code {code}:\n{self.daemon.tail()}")
        self.start_daemon()

    def ready(self) -> bool:
        """Return whether the daemon says that it is ready."""
        with self.node.network():
            try:
                with urllib.request.urlopen(f"http://{_ENDPOINT}/readyz", timeout=patience(2)) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

    def wait_ready(self, *, ready: bool = True) -> None:
        """Wait until the daemon says that it is ready, or that it is not.

        Args:
            ready: Which of both.

        Raises:
            NodeError: It does not say so in time.
        """
        self.wait_for(lambda: self.ready() is ready, f"/readyz says ready={ready}")

    def wait_for(self, true: Callable[[], Any], words: str) -> Any:
        """Wait until something is true, while the daemon runs; return its first true answer.

        Args:
            true: Called again and again.
            words: What is waited for.

        Raises:
            NodeError: It does not become true, or the daemon ended.
        """
        return self.node.wait_for(true, words, self.daemon, PATIENCE)

    # the node's interfaces

    def nic(self, name: str, *, address: str = "", mtu: int = 1500) -> dict[str, Any]:
        """Make an interface with a carrier.

        Args:
            name: Its name; that of its peer has a "p" behind it.
            address: An address in CIDR form.
            mtu: Its MTU in bytes.

        Returns:
            Its state, as :meth:`state` does.
        """
        number = next(self._numbers)
        mac = f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"
        run = self.node.ip
        run("link", "add", name, "mtu", str(mtu), "address", mac, "type", "veth", "peer", f"{name}p", "mtu", str(mtu))
        run("link", "property", "add", "dev", name, "altname", f"{name}-known-as-well")
        run("link", "set", f"{name}p", "up")
        run("link", "set", name, "up")
        if address:
            run("address", "add", address, "dev", name)
        return self.state(name)

    def state(self, name: str, *, netns: str = "") -> dict[str, Any]:
        """Return what a user sees of an interface: link settings, addresses and routes; empty when it is not there.

        Args:
            name: Its name.
            netns: A network namespace, by its path in the node; the node's own when not given.
        """
        found = [link for link in self.node.ip("address", "show", netns=netns) if link["ifname"] == name]
        if not found:
            return {}
        link = found[0]
        # A link-local address is made by the kernel, a while after the link came up.
        addresses = [
            f"{item['local']}/{item['prefixlen']} {item['scope']}"
            for item in link["addr_info"]
            if item["scope"] != "link"
        ]
        routes = [
            {key: route.get(key, "") for key in ("dst", "gateway", "scope", "protocol", "prefsrc", "metric")}
            for route in self.node.ip("-4", "route", "show", "table", "all", "dev", name, netns=netns)
        ]
        settings = {key: link.get(key, "") for key in ("mtu", "address", "txqlen", "group", "altnames", "ifalias")}
        return {"up": "UP" in link["flags"], **settings, "addresses": sorted(addresses), "routes": routes}

    def device(self, name: str) -> dict[str, Any] | None:
        """Return the published device with an interface or RDMA device of this name.

        Args:
            name: The interface's or RDMA device's name.
        """
        for item in self.api.list(SLICES):
            for device in item["spec"].get("devices") or []:
                shown = device.get("attributes", {})
                names = {shown.get(f"{DRIVER}/{each}", {}).get("string") for each in ("ifName", "rdmaDevice")}
                if name in names:
                    return dict(device)
        return None

    def published(self, name: str) -> dict[str, Any]:
        """Wait until an interface is published and return its device.

        Args:
            name: The interface's name.

        Raises:
            NodeError: It was not published in time.
        """
        found: dict[str, Any] = self.wait_for(lambda: self.device(name), f"{name} is published")
        return found

    # what users and the cluster do

    def claim(self, name: str, *interfaces: str, config: Mapping[str, Any] | None = None) -> str:
        """Create a claim and allocate published devices to it, one a request.

        Args:
            name: The claim's name.
            interfaces: The names of the devices' interfaces.
            config: Opaque parameters for all requests.

        Returns:
            The claim's name.

        Raises:
            NodeError: An interface is not published.
        """
        devices = [self.published(each) for each in interfaces]
        requests = [f"nic{number}" for number in range(len(interfaces))]
        opaque = [{"opaque": {"driver": DRIVER, "parameters": dict(config)}}] if config else []
        spec = {
            "devices": {
                "requests": [{"name": request, "exactly": {"deviceClassName": DRIVER}} for request in requests],
                "config": opaque,
            }
        }
        body = {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceClaim",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": spec,
        }
        self.api.create(CLAIMS, body)
        results = [
            {"request": request, "driver": DRIVER, "pool": NODE_NAME, "device": device["name"]}
            for request, device in zip(requests, devices, strict=True)
        ]
        configs = [{**each, "source": "FromClaim"} for each in opaque]
        self.api.allocate(NAMESPACE, name, results=results, config=configs, node=NODE_NAME)
        return name

    def pod(
        self, name: str, *claims: str, listed: bool = True, annotations: Mapping[str, str] | None = None
    ) -> Claimed:
        """Create a pod with claims, reserved for it.

        Args:
            name: The pod's name.
            claims: The names of the claims.
            listed: Whether its container ``main`` lists them; else they are the pod's alone.
            annotations: Its annotations.
        """
        cri = self.node.pod(name, annotations=dict(annotations or {}))
        references = [{"name": claim, "resourceClaimName": claim} for claim in claims]
        container = {"name": "main", "resources": {"claims": [{"name": each} for each in claims if listed]}}
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE, "uid": cri.uid},
            "spec": {"nodeName": NODE_NAME, "resourceClaims": references, "containers": [container]},
        }
        self.api.create(PODS, body)
        for claim in claims:
            self.api.reserve(NAMESPACE, claim, pod=name, uid=cri.uid)
        return Claimed(cri, claims)

    def prepare(self, pod: Claimed) -> tuple[str, ...]:
        """Let kubelet prepare a pod's claims.

        Returns:
            The CDI device IDs that the pod's container gets.

        Raises:
            NodeError: A claim was refused; the message is the driver's.
        """
        answers = self.kubelet.prepare(self._references(pod))
        self._judge(answers)
        found = [cdi for answer in answers.values() for device in answer["devices"] for cdi in device["cdi"]]
        return tuple(dict.fromkeys(found))

    def unprepare(self, pod: Claimed) -> None:
        """Let kubelet unprepare a pod's claims.

        Raises:
            NodeError: A claim was refused; the message is the driver's.
        """
        self._judge(self.kubelet.unprepare(self._references(pod)))

    def _references(self, pod: Claimed) -> list[tuple[str, str, str]]:
        claims = [self.api.get(f"{CLAIMS}/{name}")["metadata"] for name in pod.claims]
        return [(meta["namespace"], meta["name"], meta["uid"]) for meta in claims]

    @staticmethod
    def _judge(answers: Mapping[str, Mapping[str, Any]]) -> None:
        if errors := [answer["error"] for answer in answers.values() if answer["error"]]:
            raise NodeError("; ".join(errors))

    def container(self, sandbox: str, pod: Claimed, cdi: Sequence[str], name: str = "main") -> str:
        """Create and start a container of a pod.

        Args:
            sandbox: The pod's sandbox.
            pod: The pod.
            cdi: The CDI device IDs that Prepare answered.
            name: The container's name.

        Returns:
            The container's id.

        Raises:
            hack.cri.CriError: The runtime refused.
        """
        container = self.client.create_container(sandbox, pod.cri, name, SLEEP, image=images.BUSYBOX, cdi=tuple(cdi))
        self.client.start_container(container)
        return container

    def end(self, sandbox: str) -> None:
        """Stop and remove a sandbox.

        Raises:
            hack.cri.CriError: The runtime refused.
        """
        self.client.stop_sandbox(sandbox)
        self.client.remove_sandbox(sandbox)

    def status(self, claim: str) -> list[dict[str, Any]]:
        """Return a claim's ``status.devices``.

        Args:
            claim: Its name.
        """
        found = self.api.get(f"{CLAIMS}/{claim}").get("status", {}).get("devices") or []
        return [dict(entry) for entry in found]

    def condition(self, claim: str, kind: str, status: str) -> dict[str, Any]:
        """Wait for a condition of a claim's first device.

        Args:
            claim: The claim's name.
            kind: The condition's type, e.g. "Ready".
            status: The status that is waited for, e.g. "True".

        Returns:
            The condition.

        Raises:
            NodeError: It does not come.
        """

        def look() -> dict[str, Any] | None:
            for entry in self.status(claim):
                for condition in entry.get("conditions") or []:
                    if condition["type"] == kind and condition["status"] == status:
                        return dict(condition)
            return None

        found: dict[str, Any] = self.wait_for(look, f"{kind} of claim {claim} is {status}")
        return found

    def audit(self) -> list[str]:
        """Return what is wrong with the claims' statuses, compared with what ``ip`` shows in the pods."""
        paths = [self.client.netns(sandbox) for sandbox, ready in self.client.sandboxes().items() if ready]
        pods = [self.node.ip("address", "show", netns=path) for path in paths if path]
        return audit_at_rest(self.api.list(CLAIMS), pods)

    def receipts(self) -> list[str]:
        """Return the names of the files in the CDI folder."""
        return sorted(path.name for path in self.node.path(CDI_DIR).iterdir())

    def namespaces(self) -> list[str]:
        """Return the names of the pods' network namespaces."""
        return sorted(path.name for path in self.node.path("/run/netns").iterdir())
