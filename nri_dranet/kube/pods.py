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
    """

    namespace: str
    name: str
    uid: str
    host_network: bool
    claims: Mapping[str, str]
    containers: Mapping[str, tuple[tuple[str, str], ...]]

    def requests_of(self, claim_name: str) -> dict[str, tuple[str, ...]]:
        """Return which containers list which requests of a ResourceClaim."""
        refs = {ref for ref, name in self.claims.items() if name == claim_name}
        found = {}
        for container, listed in self.containers.items():
            requests = tuple(request for ref, request in listed if ref in refs)
            if requests:
                found[container] = requests
        return found


def parse_pod(raw: Mapping[str, Any]) -> PodInfo:
    """Reduce a pod of the API. Missing parts count as empty: a pod that cannot be understood must not stop anything."""
    meta, spec, status = (raw.get(part) or {} for part in ("metadata", "spec", "status"))
    generated = {item.get("name"): item.get("resourceClaimName") for item in status.get("resourceClaimStatuses") or []}
    claims = {}
    for item in spec.get("resourceClaims") or []:
        ref = item.get("name")
        name = item.get("resourceClaimName") or generated.get(ref)
        if ref and name:
            claims[str(ref)] = str(name)
    containers = {}
    for item in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]:
        listed = (item.get("resources") or {}).get("claims") or []
        if listed:
            containers[str(item.get("name"))] = tuple(
                (str(each.get("name")), str(each.get("request") or "")) for each in listed
            )
    return PodInfo(
        namespace=str(meta.get("namespace", "")),
        name=str(meta.get("name", "")),
        uid=str(meta.get("uid", "")),
        host_network=spec.get("hostNetwork") is True,
        claims=claims,
        containers=containers,
    )


class PodCache:
    """The pods of one node by UID. Thread-safe."""

    def __init__(self, client: KubeClient, node: str) -> None:
        """Prepare to watch the pods of ``node``."""
        self._client = client
        self._node = node
        self._lock = threading.Lock()
        self._pods: dict[str, PodInfo] = {}
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

    def get(self, uid: str) -> PodInfo | None:
        """Return a pod from memory."""
        with self._lock:
            return self._pods.get(uid)

    def fetch(self, namespace: str, name: str, uid: str) -> PodInfo | None:
        """Return a pod from memory, else from the API server; None when it cannot be read. Never raises."""
        known = self.get(uid)
        if known is not None:
            return known
        try:
            found = parse_pod(self._client.get(pod_path(namespace, name), timeout=2.0))
        except ApiError as error:
            LOG.info("pod cannot be read", extra=fields(pod=f"{namespace}/{name}", error=error))
            return None
        return found if found.uid == uid else None

    def _run(self) -> None:
        selector = f"spec.nodeName={self._node}"
        for event in watch(self._client, pods_path(), field_selector=selector, closer=self._closer):
            with self._lock:
                if event.type == SYNC:
                    self._pods = {pod.uid: pod for pod in map(parse_pod, event.objects)}
                    continue
                pod = parse_pod(event.object)
                if event.type == DELETED:
                    self._pods.pop(pod.uid, None)
                else:
                    self._pods[pod.uid] = pod
