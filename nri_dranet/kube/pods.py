"""The pods of this node, reduced to how they use claims. Kept current by one watch, so that a hook can ask it."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nri_dranet.kube.client import ApiError
from nri_dranet.kube.listwatch import DELETED, SYNC, Closer, watch
from nri_dranet.kube.resources import pod_path, pods_path
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nri_dranet.kube.client import KubeClient

LOG = logging.getLogger(__name__)

_FETCH_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class PodInfo:
    """What is kept of a pod.

    Attributes:
        namespace: The pod's.
        name: The pod's.
        uid: The pod's.
        host_network: Whether it is on the host's network.
        claims: Name of a claim in the pod → name of the ResourceClaim.
        containers: Name of a container, init containers too → (name of a claim in the pod, request) that it lists; the
            request "" stands for the whole claim.
        complete: Whether the ResourceClaim of every claim in the pod is known. That of a template is known only when
            the controller has made it and has noted it in the pod's status.
    """

    namespace: str
    name: str
    uid: str
    host_network: bool
    claims: Mapping[str, str]
    containers: Mapping[str, tuple[tuple[str, str], ...]]
    complete: bool = True

    def requests_of(self, claim_name: str) -> dict[str, tuple[str, ...]]:
        """Return which containers list which requests of a ResourceClaim."""
        refs = {ref for ref, name in self.claims.items() if name == claim_name}
        found = {}
        for container, listed in self.containers.items():
            requests = tuple(request for ref, request in listed if ref in refs)
            if requests:
                found[container] = requests
        return found


def parse_pod(raw: Mapping[str, Any], known: PodInfo | None = None) -> PodInfo:
    """Reduce a pod of the API. Missing parts count as empty: a pod that cannot be understood must not stop anything.

    Args:
        raw: the pod.
        known: what was known of it. A claim that was generated stays the pod's when its name vanishes from the status
            (another controller was seen to clear the list every few seconds).
    """
    meta, spec, status = (_object(raw, part) for part in ("metadata", "spec", "status"))
    generated = {item.get("name"): item.get("resourceClaimName") for item in _items(status, "resourceClaimStatuses")}
    claims: dict[str, str] = {}
    complete = True
    for item in _items(spec, "resourceClaims"):
        ref = str(item.get("name"))
        name = item.get("resourceClaimName") or generated.get(ref) or (known.claims.get(ref) if known else None)
        if name:
            claims[ref] = str(name)
        # A name that is null in the status says that no claim is needed.
        complete = complete and (bool(name) or ref in generated)
    containers: dict[str, tuple[tuple[str, str], ...]] = {}
    for item in [*_items(spec, "initContainers"), *_items(spec, "containers")]:
        listed = _items(_object(item, "resources"), "claims")
        if listed:
            containers[str(item.get("name"))] = tuple(
                (str(each.get("name")), str(each.get("request") or "")) for each in listed
            )
    _extended(_object(status, "extendedResourceClaimStatus"), claims, containers)
    return PodInfo(
        namespace=str(meta.get("namespace") or ""),
        name=str(meta.get("name") or ""),
        uid=str(meta.get("uid") or ""),
        host_network=spec.get("hostNetwork") is True,
        claims=claims,
        containers=containers,
        complete=complete,
    )


def _extended(
    status: Mapping[str, Any], claims: dict[str, str], containers: dict[str, tuple[tuple[str, str], ...]]
) -> None:
    """Add the claim that the scheduler made for extended resources (KEP-5004), whose requests name their container."""
    name = str(status.get("resourceClaimName") or "")
    if not name:
        return
    ref = f"extended-resources/{name}"
    claims[ref] = name
    for item in _items(status, "requestMappings"):
        container = str(item.get("containerName"))
        containers[container] = (*containers.get(container, ()), (ref, str(item.get("requestName") or "")))


def _object(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = parent.get(name)
    return found if isinstance(found, dict) else {}


def _items(parent: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = parent.get(name)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


class PodCache:
    """The pods of one node by UID. Thread-safe."""

    def __init__(self, client: KubeClient, node: str) -> None:
        """Prepare to watch the pods of ``node``."""
        self._client = client
        self._node = node
        self._lock = threading.Lock()
        self._pods: dict[str, PodInfo] = {}
        self._listed = False
        self._closer = Closer()
        self._thread = threading.Thread(target=self._run, name="pods", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End the watch."""
        self._closer.close()
        if self._thread.ident is not None:
            self._thread.join(timeout=5)

    @property
    def listed(self) -> bool:
        """Tell whether the API server has listed the node's pods at least once."""
        return self._listed

    def all(self) -> tuple[PodInfo, ...]:
        """Return all pods from memory."""
        with self._lock:
            return tuple(self._pods.values())

    def get(self, uid: str) -> PodInfo | None:
        """Return a pod from memory."""
        with self._lock:
            return self._pods.get(uid)

    def fetch(self, namespace: str, name: str, uid: str) -> PodInfo | None:
        """Return a pod from memory, else from the API server; None when it cannot be read. Never raises.

        The server is asked also when memory does not know all claims of the pod yet: kubelet may be ahead of the watch.
        """
        known = self.get(uid)
        if known is not None and known.complete:
            return known
        try:
            found = parse_pod(self._client.get(pod_path(namespace, name), timeout=_FETCH_SECONDS), known)
        except ApiError as error:
            LOG.info("pod cannot be read", extra=fields(pod=f"{namespace}/{name}", error=error))
            return known
        return found if found.uid == uid else known

    def _run(self) -> None:
        selector = f"spec.nodeName={self._node}"
        for event in watch(self._client, pods_path(), field_selector=selector, closer=self._closer, keep=_trimmed):
            with self._lock:
                if event.type == SYNC:
                    pods = [parse_pod(raw, self._pods.get(_uid(raw))) for raw in event.objects]
                    self._pods = {pod.uid: pod for pod in pods}
                    self._listed = True
                elif event.type == DELETED:
                    self._pods.pop(_uid(event.object), None)
                else:
                    uid = _uid(event.object)
                    self._pods[uid] = parse_pod(event.object, self._pods.get(uid))


def _trimmed(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a pod with nothing but what ``parse_pod`` reads."""
    meta, spec, status = (_object(raw, part) for part in ("metadata", "spec", "status"))

    def containers(name: str) -> list[Mapping[str, Any]]:
        found = ((item.get("name"), _object(item, "resources").get("claims")) for item in _items(spec, name))
        return [{"name": container, "resources": {"claims": claims}} for container, claims in found if claims]

    return {
        "metadata": {part: meta.get(part) for part in ("namespace", "name", "uid")},
        "spec": {
            "hostNetwork": spec.get("hostNetwork"),
            "resourceClaims": spec.get("resourceClaims"),
            "initContainers": containers("initContainers"),
            "containers": containers("containers"),
        },
        "status": {part: status.get(part) for part in ("resourceClaimStatuses", "extendedResourceClaimStatus")},
    }


def _uid(raw: Mapping[str, Any]) -> str:
    return str(_object(raw, "metadata").get("uid", ""))
