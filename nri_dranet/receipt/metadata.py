"""The metadata of a claim's devices as its containers read it: a file a request, bound into them by the receipt.

KEP-5304 (device metadata): at a fixed path in the container stands a stream of ``DeviceMetadata`` objects, one for each
API version that is written. The path names the claim, or for a claim made from a template the name by which the pod
speaks of it, then the request and the driver. The first content has generation 1, each later one the next.

A bind mount holds on to the inode, so that a change is written into the file that is there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import threading
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.claims.facts import Phase, addresses_to_show
from nri_dranet.telemetry.logs import fields
from nri_dranet.text import clean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from nri_dranet.claims.facts import DeviceFacts
    from nri_dranet.claims.plan import ClaimPlan, DevicePlan

LOG = logging.getLogger(__name__)

FOLDER: Final = "dra-device-metadata"
"""Name of the folder in the plugin's data directory."""

CONTAINER_ROOT: Final = "/var/run/kubernetes.io/dra-device-attributes"
"""Where all drivers' files are in a container."""

API_VERSIONS: Final = ("metadata.resource.k8s.io/v1beta1", "metadata.resource.k8s.io/v1alpha1")
"""What is written, the newest first: readers take the first that they know. Kubernetes 1.37 requires the first and
documents the second for readers of 1.36, which know that alone. Both have the same fields."""

_RDMA_DEVICE: Final = "dra.net/rdmaDevice"
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_SUFFIX: Final = ".json"


def container_path(plan: ClaimPlan, request: str, driver: str) -> str:
    """Return where the containers of a pod find the metadata of a claim's request.

    Args:
        plan: the claim.
        request: the main request (KEP-4816).
        driver: the driver's name.

    Raises:
        ValueError: claim or request has a name that the API server would not take; the text names it.
    """
    for what, name, rule in (("claim", plan.ref.name, _SUBDOMAIN), ("request", request, _LABEL)):
        if not rule.fullmatch(name) or ".." in name:
            raise ValueError(f"the {what} name {name!r} is no name of the API")
    pod_claim = _pod_claim_name(plan)
    claim = f"resourceclaimtemplates/{pod_claim}" if pod_claim else f"resourceclaims/{plan.ref.name}"
    return f"{CONTAINER_ROOT}/{claim}/{request}/{driver}-metadata.json"


def metadata(
    plan: ClaimPlan,
    devices: Sequence[DevicePlan],
    facts: Iterable[DeviceFacts],
    driver: str,
    previous: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the metadata of the devices of one main request, without ``apiVersion`` (KEP-5304, ``DeviceMetadata``).

    Requests stand under their full name (``request/subrequest``, KEP-4816). Attributes are those of the ResourceSlice
    at Prepare, with the name of the RDMA device that comes along and what a DHCP server told. ``networkData`` says what
    the kernel shows in the pod, and is not there for what is not.

    Args:
        plan: the claim.
        devices: its devices behind the main request.
        facts: what is known of them now.
        driver: the driver's name.
        previous: the metadata as it was; when nothing differs the generation stays.
    """
    known = {(fact.key, fact.request): fact for fact in facts}
    shown = _addresses_shown(previous)
    requests: dict[str, list[dict[str, Any]]] = {}
    for device in devices:
        entry: dict[str, Any] = {"driver": driver, "pool": device.key.pool, "name": device.key.device}
        attributes = dict(device.published.get("attributes") or {})
        if device.rdma is not None:
            attributes[_RDMA_DEVICE] = {"string": clean(device.rdma.link)}
        attributes |= _lease_data(device)
        if attributes:
            entry["attributes"] = attributes
        network = _network_data(
            known.get((device.key, device.request)), shown.get((device.request, device.key.pool, device.key.device), ())
        )
        if network:
            entry["networkData"] = network
        requests.setdefault(device.request, []).append(entry)
    found: dict[str, Any] = {
        "kind": "DeviceMetadata",
        "metadata": {
            "name": plan.ref.name,
            "namespace": plan.ref.namespace,
            "uid": plan.ref.uid,
            "generation": 1,
        },
    }
    pod_claim = _pod_claim_name(plan)
    if pod_claim:
        found["podClaimName"] = pod_claim
    found["requests"] = [{"name": name, "devices": entries} for name, entries in requests.items()]
    generation = _generation(previous)
    if generation:
        found["metadata"]["generation"] = generation
        if found != previous:
            found["metadata"]["generation"] = generation + 1
    return found


class MetadataFiles:
    """The files on the host. Thread-safe; touches nothing but its folder."""

    def __init__(self, folder: Path, driver: str) -> None:
        """Use a folder that has the same path for the container runtime.

        Args:
            folder: made by ``make_folder``, else with the first file.
            driver: the driver's name.
        """
        self._folder = folder
        self._driver = driver
        self.lock = threading.RLock()
        """Held while a file is written. Who writes what it read elsewhere holds it from the reading on."""

    def make_folder(self) -> None:
        """Make the folder, where it is not there.

        Raises:
            OSError: it cannot be made.
        """
        self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)

    def mount(self, plan: ClaimPlan, identity: str, request: str) -> dict[str, Any]:
        """Return the mount of a receipt's CDI file (CDI specification 0.5.0, ``mounts``).

        Raises:
            ValueError: claim or request has a name that the API server would not take.
        """
        return {
            "hostPath": str(self.path(identity)),
            "containerPath": container_path(plan, request, self._driver),
            "options": ["ro", "bind"],
        }

    def path(self, identity: str) -> Path:
        """Return the file that belongs to a receipt."""
        return self._folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}{_SUFFIX}"

    def write(
        self, plan: ClaimPlan, identity: str, devices: Sequence[DevicePlan], facts: Iterable[DeviceFacts]
    ) -> bool:
        """Write the metadata of a receipt, into the file that is there where there is one.

        Returns:
            Whether anything changed.

        Raises:
            OSError: it cannot be written.
        """
        try:
            return self._put(plan, identity, devices, facts, os.O_CREAT)
        except FileNotFoundError:
            self.make_folder()
            return self._put(plan, identity, devices, facts, os.O_CREAT)

    def rewrite(
        self, plan: ClaimPlan, identity: str, devices: Sequence[DevicePlan], facts: Iterable[DeviceFacts]
    ) -> bool:
        """Write the metadata of a receipt into its file; nothing happens when the file is not there.

        Returns:
            Whether anything changed.

        Raises:
            OSError: it cannot be written.
        """
        try:
            return self._put(plan, identity, devices, facts, 0)
        except FileNotFoundError:
            return False

    def remove(self, identity: str) -> None:
        """Remove the file of a receipt; it is no error when it is not there.

        Raises:
            OSError: it is there and cannot be removed.
        """
        self.path(identity).unlink(missing_ok=True)

    def listing(self) -> list[str]:
        """Return the names of the files that are there."""
        try:
            return sorted(path.name for path in self._folder.iterdir() if path.suffix == _SUFFIX)
        except FileNotFoundError:
            return []

    def sweep(self, present: Iterable[str], identities: Iterable[str]) -> list[str]:
        """Remove the files among ``present`` that belong to none of the receipts; return their names."""
        keep = {self.path(identity).name for identity in identities}
        removed = []
        for name in present:
            if name not in keep:
                try:
                    (self._folder / name).unlink(missing_ok=True)
                except OSError as error:
                    path = self._folder / name
                    LOG.warning("metadata of no attached claim cannot be removed", extra=fields(path=path, error=error))
                    continue
                removed.append(name)
        return removed

    def _put(
        self,
        plan: ClaimPlan,
        identity: str,
        devices: Sequence[DevicePlan],
        facts: Iterable[DeviceFacts],
        creating: int,
    ) -> bool:
        path = self.path(identity)
        with self.lock:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | creating, 0o644)
            try:
                size = os.fstat(descriptor).st_size
                before = os.pread(descriptor, size, 0) if size else b""
                previous = _read(before)
                wanted = metadata(plan, devices, facts, self._driver, previous)
                text = _stream(wanted)
                if text == before:
                    return False
                if not size:
                    # Whatever the umask: containers of every user read it.
                    os.fchmod(descriptor, 0o644)
                # One write that leaves nothing of a longer former content behind: a reader never finds half an object.
                _write_all(descriptor, text + b"\n" * (size - len(text)))
                os.ftruncate(descriptor, len(text))
            finally:
                os.close(descriptor)
        return True


def _write_all(descriptor: int, data: bytes) -> None:
    written = os.pwrite(descriptor, data, 0)
    if written != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _stream(content: Mapping[str, Any]) -> bytes:
    objects = ({"apiVersion": version, **content} for version in API_VERSIONS)
    return b"".join(json.dumps(each, separators=(",", ":")).encode() + b"\n" for each in objects)


def _read(data: bytes) -> dict[str, Any] | None:
    """Return the first object of a stream without its ``apiVersion``; None when that is none of ours."""
    try:
        found = json.loads(data.partition(b"\n")[0])
    except ValueError:
        return None
    if not isinstance(found, dict) or found.pop("apiVersion", None) not in API_VERSIONS:
        return None
    try:
        _addresses_shown(found)
        return found if _generation(found) else None
    except (AttributeError, KeyError, TypeError):
        return None


def _generation(previous: Mapping[str, Any] | None) -> int:
    generation = ((previous or {}).get("metadata") or {}).get("generation")
    return generation if isinstance(generation, int) and generation > 0 else 0


def _addresses_shown(previous: Mapping[str, Any] | None) -> dict[tuple[str, str, str], list[str]]:
    return {
        (request["name"], device["pool"], device["name"]): (device.get("networkData") or {}).get("ips") or []
        for request in (previous or {}).get("requests") or []
        for device in request["devices"]
    }


def _network_data(fact: DeviceFacts | None, shown: Iterable[str]) -> dict[str, Any]:
    """Say what the kernel shows, as the claim's status does: what is shown already keeps its order."""
    if fact is None or fact.phase is not Phase.ATTACHED or fact.interface is None or fact.rdma_only:
        return {}
    seen = fact.interface
    data: dict[str, Any] = {"interfaceName": clean(seen.name)}
    addresses = addresses_to_show(seen.addresses, seen.addresses[: seen.planned], shown)
    if addresses:
        data["ips"] = addresses
    if seen.hardware_address:
        data["hardwareAddress"] = seen.hardware_address
    return data


def _lease_data(device: DevicePlan) -> dict[str, Any]:
    """Return what a DHCP server told beside address and routes, for whoever wants to use it."""
    lease = device.pod.lease if device.pod is not None else None
    if lease is None:
        return {}
    texts = {
        "dhcpServer": lease.server,
        "dhcpDNSServers": ",".join(lease.dns_servers),
        "dhcpDomain": lease.domain,
        "dhcpSearchDomains": ",".join(lease.search_domains),
    }
    found: dict[str, Any] = {f"dra.net/{name}": {"string": text} for name, text in texts.items() if text}
    if lease.mtu is not None:
        found["dra.net/dhcpMTU"] = {"int": lease.mtu}
    return found


def _pod_claim_name(plan: ClaimPlan) -> str:
    """The name in the pod, for a claim made from a template; "" for others. It stands in an annotation: checked."""
    name = plan.pod_claim_name or ""
    return name if _LABEL.fullmatch(name) else ""
