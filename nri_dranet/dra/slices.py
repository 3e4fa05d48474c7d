"""The publisher of ResourceSlices: keeps the node's pool in the API as the inventory says.

It watches its own slices: kubelet deletes them all at its start, and they are written again at once. Nothing is
written while nothing changes. A node whose interfaces flap writes at most as often as its bucket allows, but a device
is withdrawn at once.

Source of the rules: ``k8s.io/dynamic-resource-allocation/resourceslice`` and the API's validation.
"""

from __future__ import annotations

import hashlib
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.dra.slice_layout import MAX_DEVICES, Layout, Slice
from nri_dranet.kube.client import ApiError
from nri_dranet.kube.listwatch import DELETED, SYNC, Closer, watch
from nri_dranet.kube.resources import node_path, slice_path, slices_path
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from nri_dranet.kube.client import KubeClient

LOG = logging.getLogger(__name__)

Entry = Mapping[str, Any]

_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 30.0
_NOT_FOUND: Final = 404
_CONFLICT: Final = 409
_INVALID: Final = 422
_MAX_NAME: Final = 253
_DEVICE_IN_ERROR: Final = re.compile(r"spec\.devices\[([0-9]+)\]")


class Bucket:
    """A token bucket: ``burst`` writes at once, then one in each ``interval`` seconds."""

    def __init__(self, interval: float, burst: int) -> None:
        self._interval = max(interval, 0.0)
        self._burst = max(burst, 1)
        self._tokens = float(self._burst)
        self._at = time.monotonic()

    def wait_seconds(self) -> float:
        """Return how long the next token takes; 0: there is one."""
        now = time.monotonic()
        if self._interval:
            self._tokens = min(self._burst, self._tokens + (now - self._at) / self._interval)
        else:
            self._tokens = float(self._burst)
        self._at = now
        return 0.0 if self._tokens >= 1 else (1 - self._tokens) * self._interval

    def take(self) -> None:
        """Use a token up, also one that is not there."""
        self._tokens = max(0.0, self._tokens - 1)


class SlicePublisher:
    """Publishes one pool, named after the node. Threads of its own; ``refresh`` may be called by any."""

    def __init__(
        self,
        client: KubeClient,
        driver: str,
        node: str,
        *,
        interval: float = 2.0,
        burst: int = 5,
        limit: int = MAX_DEVICES,
        collect: Callable[[], Sequence[Entry]],
        on_node: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        """Prepare to publish.

        Args:
            client: the API server.
            driver: the driver's name.
            node: the node's name, which is the pool's.
            interval: seconds between two writes of a flapping node.
            burst: writes that may follow each other at once.
            limit: devices in a slice.
            collect: gives what shall be published, entries of ``spec.devices``; called by the publisher's thread.
            on_node: told the Node object when it was read.
        """
        self._client = client
        self._driver = driver
        self._node = node
        self._bucket = Bucket(interval, burst)
        self._on_node = on_node
        self._collect = collect
        self._layout = Layout(limit)
        self._owner: dict[str, Any] | None = None
        self._present: dict[str, dict[str, Any]] = {}
        self._listed = False
        self._refused: dict[str, Entry] = {}
        self._told_dropped: set[str] = set()
        self._sent: dict[str, tuple[int, list[dict[str, Any]]]] = {}
        self._last_written = 0.0
        self._clean = False
        self._problem = "nothing was published yet"
        self._changed = threading.Condition()
        self._stopping = False
        self._closer = Closer()
        self._threads = [
            threading.Thread(target=self._run, name="slices", daemon=True),
            threading.Thread(target=self._follow, name="slices-watch", daemon=True),
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End; the slices stay."""
        self._closer.close()
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout=5)

    def refresh(self) -> None:
        """Tell that what shall be published may have changed. Never waits."""
        with self._changed:
            self._clean = False
            self._changed.notify_all()

    @property
    def problem(self) -> str:
        """Why the slices are not as they should be; empty when they are."""
        with self._changed:
            return "" if self._clean else self._problem

    # ---- the watch

    def _follow(self) -> None:
        selector = f"spec.driver={self._driver},spec.nodeName={self._node}"
        for event in watch(self._client, slices_path(), field_selector=selector, closer=self._closer):
            with self._changed:
                if event.type == SYNC:
                    self._present = {_name(item): dict(item) for item in event.objects}
                    self._listed = True
                elif event.type == DELETED:
                    self._present.pop(_name(event.object), None)
                else:
                    self._note(dict(event.object))
                self._clean = False
                self._changed.notify_all()

    def _note(self, item: dict[str, Any]) -> None:
        """Keep the newer of two states of a slice: a watch may show what was there before our last write."""
        known = self._present.get(_name(item))
        if known is None or _version(item) >= _version(known):
            self._present[_name(item)] = item

    # ---- the writer

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            with self._changed:
                while not self._stopping and (self._clean or not self._listed):
                    self._changed.wait()
                if self._stopping:
                    return
            try:
                self._write_all()
                pause = _FIRST_PAUSE
            except ApiError as error:
                self._failed(error)
                with self._changed:
                    self._changed.wait(error.retry_after or pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
                pause = min(pause * 2, _LONGEST_PAUSE)
            except Exception:
                LOG.exception("publishing failed unexpectedly")
                with self._changed:
                    self._changed.wait(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    def _failed(self, error: ApiError) -> None:
        LOG.warning("ResourceSlices not written, trying on", extra=fields(error=error))
        with self._changed:
            self._problem = f"the API server refuses the slices: {error}"

    def _write_all(self) -> None:
        """Bring the pool to what is wanted.

        Raises:
            ApiError: a request failed.
        """
        owner = self._read_owner()
        with self._changed:
            present = dict(self._present)
            self._clean = True
        wanted = [entry for entry in self._collect() if self._refused.get(str(entry["name"])) != entry]
        own = {name: item for name, item in present.items() if self._is_ours(item)}
        for name, item in own.items():
            number = self._number(name)
            if number is not None:
                self._layout.adopt(number, item["spec"].get("devices") or [])
        slices = self._layout.lay_out(wanted)
        names = [self._slice_name(each.number) for each in slices]
        surplus = [name for name in own if name not in names]
        changed = [
            (name, each)
            for name, each in zip(names, slices, strict=True)
            if name not in own or self._differs(own[name], each) or _count(own[name]) != len(slices)
        ]
        missing = [name for name in names if name not in own]
        generations = {_generation(own[name]) for name in names if name in own}
        torn = len(generations) > 1
        if not changed and not surplus and not torn:
            self._done(wanted)
            return
        self._wait_for_token(own, wanted)
        newest = max((_generation(item) for item in own.values()), default=0)
        whole = torn or bool(missing) or bool(surplus) or len(changed) > 1
        generation = newest + 1 if whole and own else max(newest, 1)
        if whole:
            changed = list(zip(names, slices, strict=True))
        for name in surplus:
            self._delete(name, own[name])
        for name, each in changed:
            self._write(name, each, len(slices), generation, own.get(name), owner)
        self._done(wanted)

    def _differs(self, present: Mapping[str, Any], each: Slice) -> bool:
        """Tell whether a slice has other devices; what the server made of our own last write is no difference."""
        devices = _plain(each.devices)
        if self._sent.get(_name(present)) == (_version(present), devices):
            return False
        return _devices(present) != devices

    def _done(self, wanted: Sequence[Entry]) -> None:
        rdma = sum(1 for entry in wanted if ((entry.get("attributes") or {}).get("dra.net/rdma") or {}).get("bool"))
        metrics.PUBLISHED_DEVICES.labels("total").set(len(wanted))
        metrics.PUBLISHED_DEVICES.labels("rdma").set(rdma)
        with self._changed:
            self._problem = ""

    def _wait_for_token(self, own: Mapping[str, Mapping[str, Any]], wanted: Sequence[Entry]) -> None:
        """Hold a write back while the bucket is empty; withdrawing a device never waits."""
        published = {str(device.get("name")) for item in own.values() for device in item["spec"].get("devices") or []}
        withdrawn = published - {str(entry["name"]) for entry in wanted}
        seconds = self._bucket.wait_seconds()
        if seconds and not withdrawn:
            with self._changed:
                self._clean = False
                self._changed.wait(seconds)
        self._bucket.take()

    def _write(  # noqa: PLR0917 - what a slice is made of
        self,
        name: str,
        each: Slice,
        count: int,
        generation: int,
        present: Mapping[str, Any] | None,
        owner: Mapping[str, Any],
    ) -> None:
        body: dict[str, Any] = {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceSlice",
            "metadata": {"name": name, "ownerReferences": [dict(owner)]},
            "spec": {
                "driver": self._driver,
                "nodeName": self._node,
                "pool": {"name": self._node, "generation": generation, "resourceSliceCount": count},
                "devices": _plain(each.devices),
            },
        }
        verb = "create"
        try:
            if present is None:
                answer = self._client.create(slices_path(), body)
            else:
                verb = "update"
                body["metadata"]["resourceVersion"] = present["metadata"].get("resourceVersion")
                answer = self._client.replace(slice_path(name), body)
        except ApiError as error:
            metrics.SLICE_WRITES.labels(verb, "failed").inc()
            self._learn_from(name, each, error)
            raise
        metrics.SLICE_WRITES.labels(verb, "written").inc()
        metrics.LAST_PUBLISHED.set_to_current_time()
        self._tell_dropped(each, answer)
        self._sent[name] = (_version(answer), body["spec"]["devices"])
        with self._changed:
            self._note(answer)
        LOG.info(
            "ResourceSlice written",
            extra=fields(slice=name, devices=len(each.devices), generation=generation, of=count),
        )

    def _delete(self, name: str, present: Mapping[str, Any]) -> None:
        meta = present["metadata"]
        options = {"preconditions": {"uid": meta.get("uid"), "resourceVersion": meta.get("resourceVersion")}}
        try:
            self._client.delete(slice_path(name), options)
        except ApiError as error:
            if error.status != _NOT_FOUND:
                metrics.SLICE_WRITES.labels("delete", "failed").inc()
                with self._changed:
                    self._clean = False
                raise
        metrics.SLICE_WRITES.labels("delete", "written").inc()
        with self._changed:
            self._present.pop(name, None)

    def _learn_from(self, name: str, each: Slice, error: ApiError) -> None:
        """After a refusal: forget a stale state, or leave out the device that the server does not take."""
        with self._changed:
            self._clean = False
        if error.status in (_CONFLICT, _NOT_FOUND):
            self._look_again(name)
        if error.status == _INVALID:
            for number in {int(found) for found in _DEVICE_IN_ERROR.findall(error.message)}:
                if number < len(each.devices):
                    entry = each.devices[number]
                    self._refused[str(entry["name"])] = entry
                    LOG.error(
                        "the API server refuses a device, the others are published without it",
                        extra=fields(device=entry["name"], error=error),
                    )

    def _look_again(self, name: str) -> None:
        try:
            found: dict[str, Any] | None = self._client.get(slice_path(name))
        except ApiError as error:
            if error.status != _NOT_FOUND:
                return
            found = None
        with self._changed:
            if found is None:
                self._present.pop(name, None)
            else:
                self._present[name] = found

    def _tell_dropped(self, each: Slice, answer: Mapping[str, Any]) -> None:
        """Tell once which fields a server without their feature gate has dropped."""
        kept = {device.get("name"): device for device in answer.get("spec", {}).get("devices") or []}
        for entry in each.devices:
            for name in entry.keys() - (kept.get(entry["name"]) or {}).keys():
                if name not in self._told_dropped and entry[name]:
                    self._told_dropped.add(name)
                    LOG.error("the API server has dropped a field of the devices", extra=fields(field=name))

    def _read_owner(self) -> Mapping[str, Any]:
        if self._owner is None:
            node = self._client.get(node_path(self._node))
            self._owner = {
                "apiVersion": "v1",
                "kind": "Node",
                "name": self._node,
                "uid": node["metadata"]["uid"],
                "controller": True,
            }
            if self._on_node is not None:
                self._on_node(node)
        return self._owner

    # ---- names

    def _slice_name(self, number: int) -> str:
        base = f"{self._node}-{self._driver}"
        if len(base) > _MAX_NAME - 8:
            base = f"{base[:200]}-{hashlib.sha256(base.encode()).hexdigest()[:16]}"
        return f"{base}-{number}"

    def _number(self, name: str) -> int | None:
        prefix = self._slice_name(0)[:-1]
        tail = name.removeprefix(prefix)
        return int(tail) if name.startswith(prefix) and tail.isdecimal() else None

    def _is_ours(self, item: Mapping[str, Any]) -> bool:
        spec = item.get("spec") or {}
        return spec.get("driver") == self._driver and spec.get("nodeName") == self._node


def _name(item: Mapping[str, Any]) -> str:
    return str((item.get("metadata") or {}).get("name", ""))


def _version(item: Mapping[str, Any]) -> int:
    text = str((item.get("metadata") or {}).get("resourceVersion", ""))
    return int(text) if text.isdecimal() else 0


def _generation(item: Mapping[str, Any]) -> int:
    return int(item["spec"]["pool"].get("generation", 0))


def _count(item: Mapping[str, Any]) -> int:
    return int(item["spec"]["pool"].get("resourceSliceCount", 0))


def _devices(item: Mapping[str, Any]) -> list[Any]:
    """The devices of a slice as we would write them: without what the server adds."""
    return [_without_times(device) for device in item["spec"].get("devices") or []]


def _without_times(device: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(device)
    if found.get("taints"):
        found["taints"] = [{k: v for k, v in taint.items() if k != "timeAdded"} for taint in found["taints"]]
    return found


def _plain(devices: Sequence[Entry]) -> list[dict[str, Any]]:
    return [dict(device) for device in devices]
