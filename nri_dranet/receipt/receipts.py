"""The receipt of a claim's request: a CDI file that exists only while all its devices are attached.

Prepare answers with the ID that the file defines. kubelet hands it to the containers that list the claim, and the
runtime refuses to create such a container while the ID cannot be resolved. So a container that claims a device cannot
run without it, even while this program is dead.

Format: CDI specification 0.5.0 (``cncf-tags/container-device-interface``, ``SPEC.md``): kind ``vendor/class``, a device
needs a name of ``[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?`` and at least one edit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from typing import TYPE_CHECKING, Any

from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from nri_dranet.claims.facts import DeviceFacts
    from nri_dranet.claims.plan import CharDevice, ClaimPlan, DevicePlan
    from nri_dranet.receipt.metadata import MetadataFiles

LOG = logging.getLogger(__name__)

CDI_VERSION = "0.5.0"
_NAMED_DEVICES = 3
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
_NOT_NAME = re.compile(r"[^A-Za-z0-9_.:-]")
_NOT_VARIABLE = re.compile(r"[^A-Z0-9_]")


class ReceiptError(Exception):
    """A receipt or its metadata cannot be written or removed; the text names each file and the cause."""


def receipt_id(driver: str, claim_uid: str, request: str, devices: Sequence[str]) -> str:
    """Return the CDI device ID of a claim's request.

    It names the devices, because users read it in the runtime's error when it cannot be resolved.

    Args:
        driver: the driver's name, which is the CDI vendor.
        claim_uid: the claim.
        request: the main request (KEP-4816), a DNS label.
        devices: the device names of the request, at least one.
    """
    named = ".".join(devices[:_NAMED_DEVICES])
    name = _NOT_NAME.sub("-", f"{named}_{request}_{claim_uid}")
    return f"{driver}/device={name}"


def by_request(plan: ClaimPlan) -> dict[str, list[DevicePlan]]:
    """Return the devices of a claim by the receipt that they stand behind, in the order of the allocation."""
    found: dict[str, list[DevicePlan]] = {}
    for device in plan.devices:
        if device.receipt_id:
            found.setdefault(device.receipt_id, []).append(device)
    return found


class Receipts:
    """The receipts in the CDI folder, and the metadata that they bring along. Touches no file but this driver's."""

    def __init__(self, folder: Path, driver: str, metadata: MetadataFiles | None = None) -> None:
        """Use a folder that the runtime reads CDI files from (``/var/run/cdi``, ``/etc/cdi``).

        Args:
            folder: made by ``make_folders``, else with the first receipt.
            driver: the driver's name; it begins the file names.
            metadata: the metadata files (KEP-5304); None: containers get none.
        """
        self._folder = folder
        self._prefix = f"{driver}-receipt-"
        self._metadata = metadata

    def make_folders(self) -> None:
        """Make the folders of receipts and metadata, so that no hook has to. What fails is tried again in the hook."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._metadata is not None:
                self._metadata.make_folder()
        except OSError as error:
            LOG.warning("the folder of receipts or metadata cannot be made", extra=fields(error=error))

    def write(
        self, plan: ClaimPlan, facts: Iterable[DeviceFacts], char_devices: Iterable[tuple[str, CharDevice]] = ()
    ) -> None:
        """Write the receipts of a claim whose devices are attached.

        Each file appears whole, by a rename. A receipt that is there already with the same content is left alone.
        The metadata that it binds into containers is there before it.

        Args:
            plan: the claim.
            facts: what is known of its devices now.
            char_devices: receipt ID and character device, for each that its containers get.

        Raises:
            ReceiptError: a file cannot be written.
        """
        facts = tuple(facts)
        names = {(fact.key, fact.request): fact for fact in facts}
        nodes: dict[str, list[CharDevice]] = {}
        for owner, node in char_devices:
            nodes.setdefault(owner, []).append(node)
        for identity, devices in by_request(plan).items():
            shown = [_shown(device, names.get((device.key, device.request))) for device in devices]
            mounts = self._write_metadata(plan, identity, devices, facts)
            content = _content(identity, devices[0].main_request, shown, nodes.get(identity, ()), mounts)
            self._write(self._path(identity), content)

    def refresh(self, current: Callable[[], tuple[ClaimPlan, Sequence[DeviceFacts]] | None]) -> None:
        """Bring the metadata of an attached claim up to date, in the files that its containers see.

        A file that cannot be written is told in the log: it is tried again with the next change.

        Args:
            current: gives the claim and what is known of its devices; None when it is not attached. Asked while no
                other metadata is written, so that older facts never follow newer ones.
        """
        if self._metadata is None:
            return
        with self._metadata.lock:
            found = current()
            if found is None:
                return
            plan, facts = found
            for identity, devices in by_request(plan).items():
                try:
                    changed = self._metadata.rewrite(plan, identity, devices, facts)
                except OSError as error:
                    LOG.warning(
                        "metadata not brought up to date",
                        extra=fields(claim=plan.ref.uid, path=self._metadata.path(identity), error=error),
                    )
                    continue
                if changed:
                    LOG.debug("metadata brought up to date", extra=fields(claim=plan.ref.uid, receipt=identity))

    def remove(self, plan: ClaimPlan) -> None:
        """Remove the receipts of a claim, before its devices leave the pod, and their metadata after them.

        What cannot be removed keeps nothing else from being removed.

        Raises:
            ReceiptError: files are there and cannot be removed; the text names all of them.
        """
        problems = []
        identities = list(by_request(plan))
        for identity in identities:
            path = self._path(identity)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                problems.append(f"the receipt {path} cannot be removed: {error.strerror}")
        if self._metadata is not None:
            for identity in identities:
                try:
                    self._metadata.remove(identity)
                except OSError as error:
                    path = self._metadata.path(identity)
                    problems.append(f"the metadata file {path} cannot be removed: {error.strerror}")
        if problems:
            raise ReceiptError("; ".join(problems))

    def sweep(self, attached: Callable[[], Iterable[ClaimPlan]]) -> list[str]:
        """Remove the receipts and metadata of claims that are not attached, and files that were never finished.

        Args:
            attached: gives the claims whose receipts stay. Asked after the files are listed: a claim is recorded before
                its receipt is written, so that none is missed.

        Returns:
            The names of the files that were removed.
        """
        try:
            present = sorted(self._folder.iterdir())
        except FileNotFoundError:
            present = []
        metadata = self._metadata.listing() if self._metadata is not None else []
        if not present and not metadata:
            return []
        identities = [identity for plan in attached() for identity in by_request(plan)]
        keep = {self._path(identity).name for identity in identities}
        keep |= {f".{name}.new" for name in keep}
        removed = []
        for path in present:
            if path.name.startswith((self._prefix, f".{self._prefix}")) and path.name not in keep:
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    LOG.warning(
                        "a receipt of no attached claim cannot be removed", extra=fields(path=path, error=error)
                    )
                    continue
                removed.append(path.name)
        if self._metadata is not None:
            removed += self._metadata.sweep(metadata, identities)
        return removed

    def missing(self, plan: ClaimPlan) -> bool:
        """Tell whether a receipt of the claim, or its metadata, is not there."""
        paths = [self._path(identity) for identity in by_request(plan)]
        if self._metadata is not None:
            paths += [self._metadata.path(identity) for identity in by_request(plan)]
        return any(not path.exists() for path in paths)

    def _write_metadata(
        self, plan: ClaimPlan, identity: str, devices: Sequence[DevicePlan], facts: Sequence[DeviceFacts]
    ) -> list[dict[str, Any]]:
        """Write the metadata of a receipt; return the mounts that bring it into containers."""
        if self._metadata is None:
            return []
        path = self._metadata.path(identity)
        try:
            mount = self._metadata.mount(plan, identity, devices[0].main_request)
            self._metadata.write(plan, identity, devices, facts)
        except (OSError, ValueError) as error:
            cause = error.strerror if isinstance(error, OSError) else error
            LOG.warning("metadata not written", extra=fields(claim=plan.ref.uid, path=path, error=error))
            raise ReceiptError(f"the metadata file {path} cannot be written: {cause}") from error
        return [mount]

    def _path(self, identity: str) -> Path:
        return self._folder / f"{self._prefix}{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"

    def _write(self, path: Path, content: str) -> None:
        temporary = path.with_name(f".{path.name}.new")
        try:
            with contextlib.suppress(OSError):
                # Asking first is cheaper than an error in a hook, where there is none as a rule.
                if path.exists() and path.read_bytes() == content.encode():
                    return
            try:
                descriptor = os.open(temporary, _NEW_FILE, 0o644)
            except FileNotFoundError:
                self._folder.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(temporary, _NEW_FILE, 0o644)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content.encode())
            temporary.rename(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            LOG.warning("receipt not written", extra=fields(path=path, error=error))
            raise ReceiptError(f"the receipt {path} cannot be written: {error.strerror}") from error


def _shown(device: DevicePlan, fact: DeviceFacts | None) -> str:
    """The device as the container finds it: interface name in the pod, else RDMA link, else device name."""
    if fact and fact.interface:
        return fact.interface.name
    return device.rdma.link if device.rdma else device.key.device


def _content(
    identity: str,
    request: str,
    shown: Sequence[str],
    nodes: Iterable[CharDevice],
    mounts: Sequence[Mapping[str, Any]] = (),
) -> str:
    kind, _, name = identity.partition("=")
    variable = _NOT_VARIABLE.sub("_", request.upper())
    edits: dict[str, Any] = {"env": [f"DRA_NET_{variable}={','.join(shown)}"]}
    unique = {node.path: node for node in nodes}
    if unique:
        edits["deviceNodes"] = [_node(unique[path]) for path in sorted(unique)]
    if mounts:
        edits["mounts"] = list(mounts)
    spec = {"cdiVersion": CDI_VERSION, "kind": kind, "devices": [{"name": name, "containerEdits": edits}]}
    return json.dumps(spec, separators=(",", ":")) + "\n"


def _node(device: CharDevice) -> dict[str, Any]:
    return {
        "path": device.path,
        "type": "c",
        "major": device.major,
        "minor": device.minor,
        "fileMode": device.mode,
        "uid": device.uid,
        "gid": device.gid,
        "permissions": "rw",
    }
