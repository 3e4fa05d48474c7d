"""The Node that the daemon runs on, reduced to its addresses and annotations. Kept current by one watch by name."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nri_dranet.kube.listwatch import DELETED, SYNC, Closer, watch
from nri_dranet.kube.resources import nodes_path

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nri_dranet.kube.client import KubeClient

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInfo:
    """What is kept of a Node. ``addresses`` are texts as kubelet wrote them, its names among them."""

    uid: str = ""
    version: int = 0
    addresses: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)


def parse_node(raw: Mapping[str, Any]) -> NodeInfo:
    """Reduce a Node of the API. Missing parts count as empty."""
    meta, status = _object(raw, "metadata"), _object(raw, "status")
    version = str(meta.get("resourceVersion", ""))
    addresses = status.get("addresses")
    return NodeInfo(
        uid=str(meta.get("uid") or ""),
        version=int(version) if version.isdecimal() else 0,
        addresses=tuple(
            str(item["address"])
            for item in (addresses if isinstance(addresses, list) else ())
            if isinstance(item, dict) and item.get("address")
        ),
        annotations={str(key): str(value) for key, value in _object(meta, "annotations").items()},
    )


class NodeWatch:
    """Tells the Node when it is another one than before. Thread-safe."""

    def __init__(self, client: KubeClient, name: str, on_node: Callable[[NodeInfo], None]) -> None:
        """Prepare to watch.

        Args:
            client: the API server.
            name: the Node's.
            on_node: told the Node, one call at a time, by the watch's thread or that of who calls ``note``.
        """
        self._client = client
        self._name = name
        self._on_node = on_node
        self._known = NodeInfo()
        self._lock = threading.Lock()
        self._closer = Closer()
        self._thread = threading.Thread(target=self._run, name="node", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End the watch."""
        self._closer.close()
        if self._thread.ident is not None:
            self._thread.join(timeout=5)

    def note(self, raw: Mapping[str, Any]) -> None:
        """Take in the Node as somebody has read it; an older one than what is known is passed over."""
        found = parse_node(raw)
        with self._lock:
            known = self._known
            if found.uid == known.uid and found.version < known.version:
                return
            if (found.addresses, found.annotations) != (known.addresses, known.annotations):
                self._on_node(found)
            self._known = found

    def _run(self) -> None:
        selector = f"metadata.name={self._name}"
        for event in watch(self._client, nodes_path(), field_selector=selector, closer=self._closer, keep=_trimmed):
            for raw in event.objects if event.type == SYNC else (event.object,):
                # What a Node said that is gone counts until the next one comes.
                if event.type != DELETED:
                    self._take_in(raw)

    def _take_in(self, raw: Mapping[str, Any]) -> None:
        try:
            self.note(raw)
        except Exception:  # the watch must live on: the next change may be taken in
            LOG.exception("a change of the Node was not taken in")


def _trimmed(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a Node without what makes it large: its images, conditions and managed fields."""
    meta = _object(raw, "metadata")
    return {
        "metadata": {part: meta.get(part) for part in ("uid", "resourceVersion", "annotations")},
        "status": {"addresses": _object(raw, "status").get("addresses")},
    }


def _object(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = parent.get(name)
    return found if isinstance(found, dict) else {}
