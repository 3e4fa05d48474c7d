"""The claims that this node holds, each watched by name.

The watch is needed twice. The status writer learns from it when its entries were altered. And kubelet calls no
Prepare for the next pod of a claim that it still counts as prepared: only ``reservedFor`` names that pod, before
kubelet knows it.

Claims have no node selector, so that each is watched by ``metadata.name`` on a connection of its own: as many as the
node has claims in use.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.api.document import keep_repeated
from nri_dranet.claims.model import ClaimRef
from nri_dranet.kube.listwatch import DELETED, SYNC, Closer, Turnstile, watch
from nri_dranet.kube.resources import claims_path
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from nri_dranet.kube.client import KubeClient

LOG = logging.getLogger(__name__)

REQUESTS_A_SECOND: Final = 100
"""What all watches together ask at most, at the start and when the API server comes back."""

PERIOD: Final = 30.0
"""Seconds between two tellings of a claim that is gone and still held."""

OnClaim = Callable[[ClaimRef, Mapping[str, Any] | None], None]
"""Told the claim as it is now; None: it is gone, or a claim of another UID has its name."""


@dataclass(slots=True)
class _Watch:
    ref: ClaimRef
    closer: Closer = field(default_factory=Closer)
    lock: threading.Lock = field(default_factory=threading.Lock)
    thread: threading.Thread | None = None
    gone: bool = False


class HeldClaims:
    """Keeps one watch a held claim."""

    def __init__(self, client: KubeClient, held: Callable[[], Iterable[ClaimRef]], on_claim: OnClaim) -> None:
        """Prepare to watch.

        Args:
            client: the API server.
            held: the claims that are held now.
            on_claim: called from the watches' threads, one call at a time for a claim.
        """
        self._client = client
        self._held = held
        self._on_claim = on_claim
        self._watches: dict[str, _Watch] = {}
        self._turnstile = Turnstile(1 / REQUESTS_A_SECOND)
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="held-claims", daemon=True)

    def start(self) -> None:
        """Begin to watch what is held."""
        self._wake.set()
        self._thread.start()

    def stop(self) -> None:
        """End all watches."""
        self._stop.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        for each in self._watches.values():
            each.closer.close()

    def refresh(self) -> None:
        """Look again which claims are held. Never blocks."""
        self._wake.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(PERIOD)
            self._wake.clear()
            if self._stop.is_set():
                return
            try:
                self._match()
            except Exception:  # the thread must live: it is tried again after PERIOD
                LOG.exception("the held claims cannot be followed now")

    def _match(self) -> None:
        held = {ref.uid: ref for ref in self._held()}
        for uid in self._watches.keys() - held.keys():
            self._watches.pop(uid).closer.close()
        for uid, ref in held.items():
            known = self._watches.get(uid)
            # A thread that has died, of whatever, is begun anew.
            if known is None or known.thread is None or not known.thread.is_alive():
                each = self._watches[uid] = _Watch(ref)
                name = f"claim-{ref.name}"[:15]
                each.thread = threading.Thread(target=self._follow, args=(each,), name=name, daemon=True)
                each.thread.start()
        for each in self._watches.values():
            # The claim went while its pod still ran, or before the runtime had listed its sandboxes.
            if each.gone:
                self._tell(each, None)

    def _follow(self, each: _Watch) -> None:
        ref = each.ref
        path = claims_path(ref.namespace)
        named = f"metadata.name={ref.name}"
        events = watch(
            self._client,
            path,
            field_selector=named,
            closer=each.closer,
            members=keep_repeated,
            turnstile=self._turnstile,
        )
        for event in events:
            if each.closer.stop.is_set():
                return
            if event.type == SYNC:
                claim = event.objects[0] if event.objects else None
            else:
                claim = event.object if event.type != DELETED else None
            if claim is not None and claim.get("metadata", {}).get("uid") != ref.uid:
                claim = None
            self._tell(each, claim)

    def _tell(self, each: _Watch, claim: Mapping[str, Any] | None) -> None:
        with each.lock:
            each.gone = claim is None
            try:
                self._on_claim(each.ref, claim)
            except Exception:  # the claim's watch must live on: the next change may be taken in
                LOG.exception("a change of a held claim was not taken in", extra=fields(claim=each.ref.uid))
