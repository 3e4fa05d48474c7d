"""The cluster as tests see it: kubectl, Helm, the node's links, and what pods have."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hack import audit, image, images
from hack.cluster.cluster import wait
from hack.cluster.host import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from hack.cluster.cluster import Cluster
    from hack.cluster.host import Host

ROOT: Final = Path(__file__).parents[2]
RELEASE: Final = "nri-dranet"
SYSTEM: Final = "kube-system"
CLASS: Final = "dra.net"

# The interfaces that the tests give to pods; those of examples/ among them. An ifb stands for a NIC: it is an Ethernet
# interface that every kernel with containers can have more than one of.
LINKS: Final = ("ens5", "ens6", "dummy2")


class Bed:
    """A cluster with what tests need in it.

    Attributes:
        cluster: The cluster.
        node: The name of its first node.
        starts: Seconds from apply to Ready of each pod that was measured.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.node = cluster.first.name
        self.starts: list[float] = []
        self._values: dict[str, Any] | None = None

    # the node

    def ip(self, *arguments: str, netns: str = "", host: Host | None = None) -> Any:
        """Run ``ip`` on a node, or in one of its named network namespaces, and return its answer, parsed."""
        inside = ("-n", netns) if netns else ()
        printed = self.cluster.run("ip", *inside, "-details", "-json", *arguments, host=host)
        return json.loads(printed) if printed.strip() else []

    def make_links(self) -> None:
        """Make the interfaces on every node, up and without addresses."""
        for host in self.cluster.hosts:
            for name in LINKS:
                self.cluster.run("ip", "link", "add", name, "type", "ifb", host=host)
                self.cluster.run("ip", "link", "set", name, "up", host=host)

    def home(self) -> dict[str, tuple[str, ...]]:
        """Return each of the interfaces that is on its node, with its flags."""
        return {
            f"{host.name}/{link['ifname']}": tuple(sorted(link["flags"]))
            for host in self.cluster.hosts
            for link in self.ip("link", "show", host=host)
            if link["ifname"] in LINKS
        }

    @property
    def all_links(self) -> set[str]:
        """The interfaces of all nodes, as :meth:`home` and :meth:`published` name them."""
        return {f"{host.name}/{name}" for host in self.cluster.hosts for name in LINKS}

    # the API

    def get(self, kind: str, name: str = "", namespace: str = "default", *options: str) -> Any:
        """Return an object, or the list of all of a kind."""
        words = [kind, *([name] if name else []), *options]
        return json.loads(self.cluster.kubectl("get", *words, "--namespace", namespace, "--output=json"))

    def apply(self, documents: str | Iterable[dict[str, Any]], namespace: str) -> None:
        """Apply manifests."""
        if not isinstance(documents, str):
            documents = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(documents)})
        self.cluster.kubectl("apply", "--namespace", namespace, "--filename=-", stdin=documents)

    def delete_pod(self, name: str, namespace: str) -> None:
        """Delete a pod and wait until it is gone."""
        self.cluster.kubectl("delete", "pod", name, "--namespace", namespace, "--grace-period=1")

    def wait_ready(self, pod: str, namespace: str, timeout: float = 120) -> None:
        """Wait until a pod is ready."""
        try:
            words = ("--for=condition=Ready", f"pod/{pod}", f"--timeout={timeout:.0f}s")
            self.cluster.kubectl("wait", *words, "--namespace", namespace)
        except ClusterError as error:
            described = self.cluster.kubectl("describe", "pod", pod, "--namespace", namespace)
            raise ClusterError(f"{error}\n{described}\n{self.driver_log()}") from None

    def start(self, documents: str | Iterable[dict[str, Any]], pod: str, namespace: str) -> float:
        """Apply manifests with a pod, wait until it is ready, return the seconds that it took."""
        start = time.monotonic()
        self.apply(documents, namespace)
        self.wait_ready(pod, namespace)
        self.starts.append(time.monotonic() - start)
        return self.starts[-1]

    def events(self, name: str, namespace: str) -> str:
        """Return the messages of the events of an object."""
        items = self.get("events", "", namespace, f"--field-selector=involvedObject.name={name}")["items"]
        return "\n".join(f"{item['reason']}: {item['message']}" for item in items)

    # pods

    def links(self, pod: str, namespace: str) -> list[dict[str, Any]]:
        """Return what ``ip -j -d addr`` shows in a pod."""
        found = self.get("pod", pod, namespace)
        address = found["status"]["podIP"]
        host = next(host for host in self.cluster.hosts if host.name == found["spec"]["nodeName"])
        for shown in self._pods(host):
            if any(entry.get("local") == address for link in shown for entry in link["addr_info"]):
                return shown
        raise AssertionError(f"no network namespace has the address {address} of {pod}")

    def _pods(self, host: Host) -> Iterator[list[dict[str, Any]]]:
        """Yield what ``ip -j -d addr`` shows in each pod of a node."""
        for netns in self.ip("netns", "list", host=host):
            with contextlib.suppress(ClusterError):  # it ended meanwhile
                yield self.ip("address", "show", netns=netns["name"], host=host)

    def link(self, name: str, pod: str, namespace: str) -> dict[str, Any]:
        """Return one interface of a pod."""
        shown = self.links(pod, namespace)
        found = [link for link in shown if link["ifname"] == name]
        assert found, f"{pod} has {[link['ifname'] for link in shown]} and no {name}"
        return found[0]

    def claims(self, pod: str, namespace: str) -> list[dict[str, Any]]:
        """Return the claims of a pod."""
        found = self.get("pod", pod, namespace)
        made = {
            item["name"]: item.get("resourceClaimName") for item in found["status"].get("resourceClaimStatuses", [])
        }
        names = [item.get("resourceClaimName") or made[item["name"]] for item in found["spec"]["resourceClaims"]]
        return [self.get("resourceclaim", str(name), namespace) for name in names]

    def wrong(self, pod: str, namespace: str) -> list[str]:
        """Return what is wrong with the statuses of a pod's claims, by what its namespace shows."""
        links = self.links(pod, namespace)
        claims = self.claims(pod, namespace)
        mine = [link for link in links if link["ifname"] not in ("lo", "eth0")]
        return audit.audit_all(claims, mine, driver=CLASS)

    def wait_true_status(self, pod: str, namespace: str) -> None:
        """Wait until the statuses of a pod's claims say what its namespace shows."""
        wait(lambda: not self.wrong(pod, namespace), f"the statuses of {pod} are right", 60)

    def wait_true(self, namespace: str) -> None:
        """Wait until the status of every claim in a namespace says what there is in the node's pods."""

        def wrong() -> list[str]:
            pods = [links for host in self.cluster.hosts for links in self._pods(host)]
            return audit.audit_at_rest(self.get("resourceclaims", "", namespace)["items"], pods)

        try:
            wait(lambda: not wrong(), f"the statuses in {namespace} are right", 60)
        except ClusterError as error:
            raise ClusterError(f"{error}: {wrong()}") from None

    def wait_home(self, was: dict[str, tuple[str, ...]]) -> None:
        """Wait until every interface is on the node as it was."""
        wait(lambda: self.home() == was, f"the node has {was} again; it has {self.home()}", 60)

    # the driver

    def install(self, **values: Any) -> None:
        """Install the chart, or bring what is installed to these values; wait until the driver is ready."""
        if self._values == values:
            return
        self.begin_install(values, "--wait", "--timeout=180s")
        self._values = values
        self.wait_devices()

    def begin_install(self, values: dict[str, Any], *options: str) -> None:
        """Install the chart with these values, and do not wait for the driver."""
        self._values = None
        chart = ROOT / "charts" / "nri-dranet"
        command = ["helm", "upgrade", "--install", RELEASE, str(chart), "--namespace", SYSTEM, "--values=-", *options]
        # Without it no values mean those of before.
        command.append("--reset-values")
        self.cluster.run(*command, stdin=json.dumps(values))

    def uninstall(self) -> None:
        """Remove the chart and wait until its pods are gone."""
        self._values = None
        with contextlib.suppress(ClusterError):
            self.cluster.run("helm", "uninstall", RELEASE, "--namespace", SYSTEM, "--wait", "--timeout=180s")
        wait(lambda: not self.driver_pods(), "the driver's pods are gone", 120)

    def driver_pods(self) -> list[dict[str, Any]]:
        """Return the driver's pods."""
        items: list[dict[str, Any]] = self.get(
            "pods", "", SYSTEM, "--selector=app.kubernetes.io/name=nri-dranet,app.kubernetes.io/instance=nri-dranet"
        )["items"]
        return items

    def driver_log(self) -> str:
        """Return the end of the log of each of the driver's pods."""
        found = []
        for pod in self.driver_pods():
            with contextlib.suppress(ClusterError):
                name = pod["metadata"]["name"]
                found.append(f"{name}:\n{self.cluster.kubectl('logs', name, '--namespace', SYSTEM, '--tail=60')}")
        return "\n".join(found) or "the driver has no pod"

    def published(self) -> set[str]:
        """Return the names of the devices in the driver's ResourceSlices, each with its node."""
        items = self.get("resourceslices", "", "default", f"--field-selector=spec.driver={CLASS}")["items"]
        return {
            f"{item['spec']['nodeName']}/{device['name']}"
            for item in items
            for device in item["spec"].get("devices", [])
        }

    def taints(self) -> dict[str, list[tuple[str, str]]]:
        """Return key and effect of each taint, by the device that has it."""
        items = self.get("resourceslices", "", "default", f"--field-selector=spec.driver={CLASS}")["items"]
        return {
            device["name"]: [(taint["key"], taint["effect"]) for taint in device["taints"]]
            for item in items
            for device in item["spec"].get("devices", [])
            if device.get("taints")
        }

    def wait_devices(self) -> None:
        """Wait until every interface is published and the driver is ready."""
        wait(lambda: self.published() >= self.all_links, f"{', '.join(sorted(self.all_links))} are published", 120)
        rollout = ("rollout", "status", f"daemonset/{RELEASE}", "--timeout=120s")
        self.cluster.kubectl(*rollout, "--namespace", SYSTEM)

    def driver_pid(self) -> str:
        """Return the driver's process id, as the node sees it."""
        for process in self.cluster.first.path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes().split(b"\0")
                if b"run" in words and any(word.startswith(b"--hostname-override=") for word in words):
                    return process.name
        raise AssertionError("the driver does not run")


def claim(name: str, *devices: str, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a claim of interfaces of the node, a request each."""
    requests = [
        {
            "name": f"req-{device}",
            "exactly": {
                "deviceClassName": CLASS,
                "selectors": [{"cel": {"expression": f'device.attributes["dra.net"].ifName == "{device}"'}}],
            },
        }
        for device in devices
    ]
    spec: dict[str, Any] = {"devices": {"requests": requests}}
    if config:
        spec["devices"]["config"] = [{"opaque": {"driver": CLASS, "parameters": config}}]
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": name},
        "spec": spec,
    }


def pod(name: str, *claims: str, listed: bool = True) -> dict[str, Any]:
    """Return a pod that has claims; its container lists them, or they are named at pod level only."""
    container: dict[str, Any] = {
        "name": "main",
        "image": images.BUSYBOX,
        "imagePullPolicy": "Never",
        "command": ["sleep", "2147483647"],
    }
    if listed:
        container["resources"] = {"claims": [{"name": each} for each in claims]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            "resourceClaims": [{"name": each, "resourceClaimName": each} for each in claims],
        },
    }


def image_archive(folder: Path) -> Path:
    """Return the archive of the driver's image, of the project as it is."""
    return image.build(folder)[0]
