"""The publisher of ResourceSlices: keeps the node's pool in the API as the inventory says.

It watches its own slices: kubelet deletes them all at its start, and they are written again at once. Nothing is
written while nothing changes. A node whose interfaces flap writes at most as often as its bucket allows, but a device
is withdrawn at once.

Source of the rules: ``k8s.io/dynamic-resource-allocation/resourceslice`` and the API's validation.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import re
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.dra.slice_layout import MAX_DEVICES, Encoded, Encoder, Entry, Layout, Slice, encode
from nri_dranet.inventory.pace import breathe
from nri_dranet.kube.client import ApiError
from nri_dranet.kube.listwatch import DELETED, SYNC, Closer, watch
from nri_dranet.kube.resources import node_path, slice_path, slices_path
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nri_dranet.kube.client import KubeClient

LOG = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 8.0
_SETTLE: Final = 0.05
"""Seconds after a slice was deleted by somebody: kubelet deletes all of them, one after the other."""

_HELD_BACK: Final = 0.2
"""Seconds between two looks at a flapping node while its bucket is empty."""

_WATCH_FIRST: Final = 1.0
"""Seconds that the watch is given to bring the list, before the writer asks for it itself."""

_NOT_FOUND: Final = 404
_CONFLICT: Final = 409
_INVALID: Final = 422
_MAX_NAME: Final = 253
_REFUSED_SECONDS: Final = 600.0
"""Seconds after which a device that the server refused is tried again: its gates may have changed."""

_GATES: Final = {"allowMultipleAllocations": "DRAConsumableCapacity", "taints": "DRADeviceTaints"}
"""Fields of a device that a server without the feature gate drops."""
_DEVICE_IN_ERROR: Final = re.compile(r"spec\.devices\[([0-9]+)\]")
_SLICE: Final = 32


class Bucket:
    """A token bucket: ``burst`` writes at once, then one in each ``interval`` seconds."""

    def __init__(self, interval: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = max(interval, 0.0)
        self._burst = max(burst, 1)
        self._tokens = float(self._burst)
        self._clock = clock
        self._at = clock()

    def wait_seconds(self) -> float:
        """Return how long the next token takes; 0: there is one."""
        now = self._clock()
        if self._interval:
            self._tokens = min(self._burst, self._tokens + (now - self._at) / self._interval)
        else:
            self._tokens = float(self._burst)
        self._at = now
        return 0.0 if self._tokens >= 1 else (1 - self._tokens) * self._interval

    def take(self) -> None:
        """Use a token up, also one that is not there."""
        self._tokens = max(0.0, self._tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """A slice of ours in the API, as far as it matters; the devices themselves would be megabytes."""

    name: str
    uid: str
    resource_version: str
    pool: str
    generation: int
    count: int
    owner_uid: str
    digests: Mapping[str, int]

    @property
    def version(self) -> int:
        """The resource version as a number (KEP-5504: it may be compared)."""
        return _number(self.resource_version)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Write:
    """One slice to write: what it holds, what the pool says of itself, and what is there now."""

    name: str
    content: Slice
    count: int
    generation: int
    present: Present | None


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
        event: Callable[[str, str], None] | None = None,
    ) -> None:
        """Prepare to publish.

        Args:
            client: the API server.
            driver: the driver's name.
            node: the node's name, which is the pool's.
            interval: seconds between two writes of a flapping node.
            burst: writes that may follow each other at once.
            limit: devices in a slice; fewer where a device has a gated feature.
            collect: gives what shall be published, entries of ``spec.devices``; called by the publisher's thread.
            on_node: told the Node object when it was read.
            event: told reason and text of what the server does not take, for an Event on the Node.
        """
        self._client = client
        self._driver = driver
        self._node = node
        self._bucket = Bucket(interval, burst)
        self._on_node = on_node
        self._event = event
        self._collect = collect
        self._layout = Layout(limit)
        self._encoder = Encoder()
        self._owner: dict[str, Any] | None = None
        self._generation = 0
        self._present: dict[str, Present] = {}
        self._listed = False
        self._refused: dict[str, int] = {}
        self._forgive_at = 0.0
        self._told_dropped: set[str] = set()
        self._not_before = 0.0
        self._clean = False
        self._busy = False
        self._problem = "nothing was published yet"
        self._changed = threading.Condition()
        self._stop = threading.Event()
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
        self._stop.set()
        with self._changed:
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
            return self._problem

    @property
    def settled(self) -> bool:
        """Tell whether everything that is known is published, and nothing is being written."""
        with self._changed:
            return self._clean and not self._busy and not self._problem

    # ---- the watch

    def _selector(self) -> str:
        return f"spec.driver={self._driver},spec.nodeName={self._node}"

    def _follow(self) -> None:
        for event in watch(self._client, slices_path(), field_selector=self._selector(), closer=self._closer):
            if event.type == SYNC:
                self._replace(event.objects)
            elif event.type == DELETED:
                self._deleted(event.object)
            else:
                self._note(event.object)
            if self._stop.is_set():
                return

    def _replace(self, items: Sequence[Mapping[str, Any]]) -> None:
        """Take in the whole list: what is not in it is not there."""
        names = {_name(item) for item in items}
        for item in items:
            self._note(item)
        with self._changed:
            for name in self._present.keys() - names:
                del self._present[name]
                self._clean = False
            self._clean = self._clean and self._listed
            self._listed = True
            self._changed.notify_all()

    def _deleted(self, item: Mapping[str, Any]) -> None:
        with self._changed:
            known = self._present.get(_name(item))
            if known is None or known.uid != str((item.get("metadata") or {}).get("uid", "")):
                # Of a slice that was replaced since, or by ourselves.
                return
            del self._present[known.name]
            # A Node of the same name may be another one now: slices of an owner that is gone are collected as garbage.
            self._owner = None
            self._not_before = time.monotonic() + _SETTLE
            self._clean = False
            self._changed.notify_all()

    def _note(self, item: Mapping[str, Any]) -> None:
        """Take in a slice as the server shows it, unless it is what we know or older: our own writes come back."""
        if not self._is_ours(item):
            return
        with self._changed:
            known = self._present.get(_name(item))
        version = str((item.get("metadata") or {}).get("resourceVersion", ""))
        if known is not None and (known.resource_version == version or known.version > _number(version)):
            return
        found = _present(item)
        with self._changed:
            known = self._present.get(found.name)
            if known is None or known.version < found.version:
                self._present[found.name] = found
                self._clean = False
                self._changed.notify_all()

    # ---- the writer

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while not self._stop.is_set():
            try:
                if not self._wait_for_list():
                    # The watch finds out later than a writer may that the server is back.
                    answer = self._client.get(slices_path(), {"fieldSelector": self._selector()})
                    self._replace(answer.get("items") or [])
                self._wait_for_change()
                if self._stop.is_set():
                    return
                self._write_all()
                pause = _FIRST_PAUSE
                continue
            except ApiError as error:
                self._failed(f"the API server does not take the slices: {error}", error)
                seconds = error.retry_after or pause * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
            except Exception as error:  # the publisher must live: it is tried again, and readiness tells of it
                LOG.exception("publishing failed unexpectedly")
                self._failed(f"publishing failed unexpectedly: {error!r}", None)
                seconds = pause
            # Not cut short by changes: a node that flaps must not press a server that is down.
            self._stop.wait(min(seconds, _LONGEST_PAUSE))
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _wait_for_list(self) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._listed or self._stop.is_set(), timeout=_WATCH_FIRST)

    def _wait_for_change(self) -> None:
        with self._changed:
            while not self._stop.is_set():
                if self._clean:
                    if not self._refused:
                        self._changed.wait()
                    elif not self._changed.wait(max(0.0, self._forgive_at - time.monotonic())):
                        self._clean = False
                    continue
                left = self._not_before - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(left)

    def _failed(self, problem: str, error: ApiError | None) -> None:
        with self._changed:
            again = self._problem == problem
            self._clean, self._busy, self._problem = False, False, problem
        if error is not None and not again:
            LOG.warning("ResourceSlices not written, trying on", extra=fields(error=error))

    def _write_all(self) -> None:
        """Bring the pool to what is wanted.

        Raises:
            ApiError: a request failed.
        """
        owner = self._read_owner()
        with self._changed:
            self._clean, self._busy = True, True
            present = dict(self._present)
        # Noted also when nothing is to be written: all slices may be gone the next time.
        self._generation = max(self._generation, *(item.generation for item in present.values()), 0)
        wanted = self._wanted()
        own = {item.name: item for item in present.values() if item.pool == self._node}
        for name, item in own.items():
            number = self._slice_number(name)
            if number is not None:
                self._layout.adopt(number, item.digests)
        slices = self._layout.lay_out(wanted)
        names = {self._slice_name(each.number): each for each in slices}
        surplus = [item for name, item in present.items() if name not in names or name not in own]
        changed = [
            name
            for name, each in names.items()
            if name not in own or self._differs(own[name], each, len(slices), str(owner["uid"]))
        ]
        torn = len({own[name].generation for name in names if name in own}) > 1
        if not changed and not surplus and not torn:
            self._done(wanted)
            return
        # A pool that is not whole is not used for new pods.
        broken = torn or not own or any(item.count != len(own) for item in own.values())
        if self._held_back(present, wanted, urgent=broken):
            return
        whole = torn or bool(surplus) or len(changed) > 1 or any(name not in own for name in changed)
        if whole:
            changed = list(names)
            self._generation += 1
        self._generation = max(self._generation, 1)
        for item in surplus:
            self._delete(item)
        for name in changed:
            self._write(
                _Write(
                    name=name,
                    content=names[name],
                    count=len(slices),
                    generation=self._generation,
                    present=own.get(name),
                ),
                owner,
            )
        self._done(wanted)

    def _wanted(self) -> list[Encoded]:
        found: list[Encoded] = []
        if time.monotonic() >= self._forgive_at:
            self._refused.clear()
        refused: dict[str, int] = {}
        for place, device in enumerate(self._encoder.encode(self._collect()), 1):
            if place % _SLICE == 0:
                breathe()
            if self._refused.get(device.name) == device.digest:
                refused[device.name] = device.digest
            else:
                found.append(device)
        self._refused = refused
        return found

    def _differs(self, present: Present, each: Slice, count: int, owner_uid: str) -> bool:
        return present.count != count or present.owner_uid != owner_uid or present.digests != each.digests

    def _done(self, wanted: Sequence[Encoded]) -> None:
        rdma = sum(1 for one in wanted if (one.entry.get("attributes") or {}).get("dra.net/rdma", {}).get("bool"))
        metrics.PUBLISHED_DEVICES.labels("total").set(len(wanted))
        metrics.PUBLISHED_DEVICES.labels("rdma").set(rdma)
        metrics.REFUSED_DEVICES.set(len(self._refused))
        with self._changed:
            self._problem, self._busy = "", False

    def _held_back(self, present: Mapping[str, Present], wanted: Sequence[Encoded], *, urgent: bool) -> bool:
        """Tell whether a write has to wait for the bucket; withdrawing a device or mending the pool never waits."""
        seconds = self._bucket.wait_seconds()
        if seconds and not urgent:
            published = {name for item in present.values() for name in item.digests}
            if not published - {device.name for device in wanted}:
                with self._changed:
                    self._clean, self._busy = False, False
                    # What is withdrawn meanwhile is seen at the next look.
                    self._not_before = time.monotonic() + min(seconds, _HELD_BACK)
                return True
        self._bucket.take()
        return False

    def _write(self, write: _Write, owner: Mapping[str, Any]) -> None:
        meta: dict[str, Any] = {"name": write.name, "ownerReferences": [owner]}
        verb = "create"
        try:
            if write.present is None:
                answer = self._client.create(slices_path(), self._body(meta, write))
            else:
                verb = "update"
                meta["resourceVersion"] = write.present.resource_version
                answer = self._client.replace(slice_path(write.name), self._body(meta, write))
        except ApiError as error:
            metrics.SLICE_WRITES.labels(verb, "failed").inc()
            self._learn_from(write, error)
            raise
        metrics.SLICE_WRITES.labels(verb, "written").inc()
        metrics.LAST_PUBLISHED.set_to_current_time()
        self._tell_dropped(write.content, answer)
        with self._changed:
            # What the server made of our devices is no difference: fields that it dropped would be written for ever.
            self._present[write.name] = _present(answer, write.content.digests)
        LOG.info(
            "ResourceSlice written",
            extra=fields(
                slice=write.name, devices=len(write.content.devices), generation=write.generation, of=write.count
            ),
        )

    def _body(self, meta: Mapping[str, Any], write: _Write) -> bytes:
        pool = {"name": self._node, "generation": write.generation, "resourceSliceCount": write.count}
        devices = b",".join([device.data for device in write.content.devices])
        rest = _json({"driver": self._driver, "nodeName": self._node, "pool": pool})
        return (
            b'{"apiVersion":"resource.k8s.io/v1","kind":"ResourceSlice","metadata":'
            + _json(meta)
            + b',"spec":{"devices":['
            + devices
            + b"],"
            + rest[1:]
            + b"}"
        )

    def _delete(self, item: Present) -> None:
        options = {"preconditions": {"uid": item.uid, "resourceVersion": item.resource_version}}
        try:
            self._client.delete(slice_path(item.name), options)
        except ApiError as error:
            if error.status != _NOT_FOUND:
                metrics.SLICE_WRITES.labels("delete", "failed").inc()
                self._look_again(item.name)
                raise
        metrics.SLICE_WRITES.labels("delete", "written").inc()
        LOG.info("ResourceSlice deleted", extra=fields(slice=item.name))
        with self._changed:
            self._present.pop(item.name, None)

    def _learn_from(self, write: _Write, error: ApiError) -> None:
        """After a refusal: forget a stale state, or leave out the device that the server does not take."""
        if error.status in (_CONFLICT, _NOT_FOUND):
            self._look_again(write.name)
        if error.status == _INVALID:
            for number in sorted({int(found) for found in _DEVICE_IN_ERROR.findall(str(error.message))}):
                if number < len(write.content.devices):
                    device = write.content.devices[number]
                    self._refused[device.name] = device.digest
                    self._forgive_at = time.monotonic() + _REFUSED_SECONDS
                    LOG.error(
                        "the API server refuses a device, the others are published without it",
                        extra=fields(device=device.name, error=error),
                    )
                    self._say(
                        "DeviceRefused", f"device {device.name} is not published, the API server refuses it: {error}"
                    )

    def _look_again(self, name: str) -> None:
        try:
            found = self._client.get(slice_path(name))
        except ApiError as error:
            if error.status == _NOT_FOUND:
                with self._changed:
                    self._present.pop(name, None)
            return
        with self._changed:
            if self._is_ours(found):
                self._present[name] = _present(found)

    def _tell_dropped(self, each: Slice, answer: Mapping[str, Any]) -> None:
        """Tell once which fields a server without their feature gate has dropped."""
        kept = {device.get("name"): device for device in (answer.get("spec") or {}).get("devices") or []}
        for device in each.devices:
            for name in _missing(device.entry, kept.get(device.name) or {}):
                if name in self._told_dropped:
                    continue
                self._told_dropped.add(name)
                metrics.SLICE_FIELDS_DROPPED.labels(name).inc()
                gate = _GATES.get(name, "")
                cure = f"switch on its feature gate {gate} (also of the scheduler), then restart this driver"
                LOG.error(
                    "the API server has dropped a field of the devices",
                    extra=fields(field=name, device=device.name, cure=cure if gate else None),
                )
                text = f"the API server drops the field {name} of device {device.name} and maybe of others"
                self._say("SliceFieldDropped", f"{text}: {cure}" if gate else text)

    def _say(self, reason: str, text: str) -> None:
        if self._event is not None:
            self._event(reason, text)

    def _read_owner(self) -> Mapping[str, Any]:
        owner = self._owner
        if owner is None:
            node = self._client.get(node_path(self._node))
            owner = {
                "apiVersion": "v1",
                "kind": "Node",
                "name": self._node,
                "uid": str((node.get("metadata") or {}).get("uid", "")),
                "controller": True,
            }
            self._owner = owner
            if self._on_node is not None:
                self._on_node(node)
        return owner

    # ---- names

    def _slice_name(self, number: int) -> str:
        base = f"{self._node}-{self._driver}"
        if len(base) > _MAX_NAME - 8:
            base = f"{base[:200]}-{hashlib.sha256(base.encode()).hexdigest()[:16]}"
        return f"{base}-{number}"

    def _slice_number(self, name: str) -> int | None:
        prefix = self._slice_name(0)[:-1]
        tail = name.removeprefix(prefix)
        return int(tail) if name.startswith(prefix) and tail.isdecimal() else None

    def _is_ours(self, item: Mapping[str, Any]) -> bool:
        spec = item.get("spec") or {}
        return spec.get("driver") == self._driver and spec.get("nodeName") == self._node


def _missing(entry: Mapping[str, Any], kept: Mapping[str, Any]) -> list[str]:
    """Return the fields of a device that the server has not kept; an attribute by its name."""
    found = [name for name in entry.keys() - kept.keys() if entry[name]]
    attributes, others = entry.get("attributes") or {}, kept.get("attributes") or {}
    if attributes != others and "attributes" not in found:
        found += [name for name, value in attributes.items() if value.keys() - (others.get(name) or {}).keys()]
    return found


def _present(item: Mapping[str, Any], digests: Mapping[str, int] | None = None) -> Present:
    meta, spec = item.get("metadata") or {}, item.get("spec") or {}
    pool = spec.get("pool") or {}
    owners = [ref for ref in meta.get("ownerReferences") or [] if ref.get("kind") == "Node"]
    if digests is None:
        devices = [encode(device) for device in spec.get("devices") or []]
        digests = {device.name: device.digest for device in devices}
    return Present(
        name=str(meta.get("name", "")),
        uid=str(meta.get("uid", "")),
        resource_version=str(meta.get("resourceVersion", "")),
        pool=str(pool.get("name", "")),
        generation=int(pool.get("generation", 0)),
        count=int(pool.get("resourceSliceCount", 0)),
        owner_uid=str(owners[0].get("uid", "")) if owners else "",
        digests=digests,
    )


def _name(item: Mapping[str, Any]) -> str:
    return str((item.get("metadata") or {}).get("name", ""))


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
