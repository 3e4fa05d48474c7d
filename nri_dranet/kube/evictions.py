"""Ends pods through the Eviction API, so that their controllers make them anew and disruption budgets are kept.

Source: ``policy/v1`` Eviction, ``POST /api/v1/namespaces/NS/pods/NAME/eviction``: 201 when the pod will end, 404 when
there is none, 409 when the precondition (its UID) does not hold, 429 while a disruption budget does not allow it.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from nri_dranet.kube.client import ApiError
from nri_dranet.kube.resources import eviction_path
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from nri_dranet.kube.client import KubeClient
    from nri_dranet.kube.events import ObjectRef

LOG = logging.getLogger(__name__)

RETRY_SECONDS: Final = 10.0
"""Between two tries for a pod that could not be evicted yet."""

_REMEMBERED: Final = 1024
_GONE: Final = frozenset({404, 409})


class Evictor:
    """Evicts pods, one after another. ``end`` never blocks and never raises."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._waiting: dict[str, tuple[ObjectRef, float]] = {}
        self._ended: dict[str, None] = {}
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="evictions", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; pods that still wait are judged anew by the next life."""
        self._stop.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def end(self, pod: ObjectRef) -> None:
        """Evict a pod, as soon as that is allowed. Saying it again changes nothing."""
        with self._lock:
            if pod.uid in self._ended:
                return
            self._waiting.setdefault(pod.uid, (pod, 0.0))
        self._wake.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(RETRY_SECONDS if self._waiting else None)
            self._wake.clear()
            for pod in self._due():
                if self._stop.is_set():
                    return
                try:
                    done = self._evict(pod)
                except Exception:  # one pod that cannot be evicted must not keep the others from it
                    LOG.exception("a pod cannot be evicted", extra=fields(namespace=pod.namespace, pod=pod.name))
                    done = False
                self._note(pod, done=done)

    def _due(self) -> list[ObjectRef]:
        now = time.monotonic()
        with self._lock:
            return [pod for pod, at in self._waiting.values() if at <= now]

    def _note(self, pod: ObjectRef, *, done: bool) -> None:
        with self._lock:
            if done:
                self._waiting.pop(pod.uid, None)
                self._ended[pod.uid] = None
                while len(self._ended) > _REMEMBERED:
                    del self._ended[next(iter(self._ended))]
            elif pod.uid in self._waiting:
                self._waiting[pod.uid] = pod, time.monotonic() + RETRY_SECONDS

    def _evict(self, pod: ObjectRef) -> bool:
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod.name, "namespace": pod.namespace},
            "deleteOptions": {"preconditions": {"uid": pod.uid}},
        }
        try:
            self._client.create(eviction_path(pod.namespace, pod.name), body)
        except ApiError as error:
            if error.status in _GONE:
                return True
            metrics.EVICTIONS.labels("refused").inc()
            LOG.warning("a pod cannot be evicted yet", extra=fields(pod=pod.name, error=error))
            return False
        metrics.EVICTIONS.labels("evicted").inc()
        LOG.warning(
            "a pod that ran without its device was evicted", extra=fields(namespace=pod.namespace, pod=pod.name)
        )
        return True
