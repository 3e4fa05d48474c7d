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
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from nri_dranet.claims.facts import DeviceFacts
    from nri_dranet.claims.plan import CharDevice, ClaimPlan, DevicePlan

LOG = logging.getLogger(__name__)

CDI_VERSION = "0.5.0"
_NAMED_DEVICES = 3
_NOT_NAME = re.compile(r"[^A-Za-z0-9_.:-]")
_NOT_VARIABLE = re.compile(r"[^A-Z0-9_]")


class ReceiptError(Exception):
    """A receipt cannot be written or removed; the text names the file and the cause."""


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
    """The receipts in the CDI folder. Touches no file that is not this driver's."""

    def __init__(self, folder: Path, driver: str) -> None:
        """Use a folder that the runtime reads CDI files from (``/var/run/cdi``, ``/etc/cdi``).

        Args:
            folder: made when it is not there at the first receipt.
            driver: the driver's name; it begins the file names.
        """
        self._folder = folder
        self._prefix = f"{driver}-receipt-"

    def write(
        self, plan: ClaimPlan, facts: Iterable[DeviceFacts], char_devices: Iterable[tuple[str, CharDevice]] = ()
    ) -> None:
        """Write the receipts of a claim whose devices are attached.

        Each file appears whole, by a rename. A receipt that is there already with the same content is left alone.

        Args:
            plan: the claim.
            facts: what is known of its devices now.
            char_devices: receipt ID and character device, for each that its containers get.

        Raises:
            ReceiptError: a file cannot be written.
        """
        names = {(fact.key, fact.request): fact for fact in facts}
        nodes: dict[str, list[CharDevice]] = {}
        for owner, node in char_devices:
            nodes.setdefault(owner, []).append(node)
        for identity, devices in by_request(plan).items():
            shown = [_shown(device, names.get((device.key, device.request))) for device in devices]
            content = _content(identity, devices[0].main_request, shown, nodes.get(identity, ()))
            self._write(self._path(identity), content)

    def remove(self, plan: ClaimPlan) -> None:
        """Remove the receipts of a claim, before its devices leave the pod.

        Raises:
            ReceiptError: a file is there and cannot be removed.
        """
        for identity in by_request(plan):
            path = self._path(identity)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise ReceiptError(f"the receipt {path} cannot be removed: {error.strerror}") from error

    def sweep(self, attached: Callable[[], Iterable[ClaimPlan]]) -> list[str]:
        """Remove the receipts of claims that are not attached, and files that were never finished.

        Args:
            attached: gives the claims whose receipts stay. Asked after the files are listed: a claim is recorded before
                its receipt is written, so that none is missed.

        Returns:
            The names of the files that were removed.
        """
        try:
            present = sorted(self._folder.iterdir())
        except FileNotFoundError:
            return []
        keep = {self._path(identity).name for plan in attached() for identity in by_request(plan)}
        keep |= {f".{name}.new" for name in keep}
        removed = []
        for path in present:
            if path.name.startswith((self._prefix, f".{self._prefix}")) and path.name not in keep:
                with contextlib.suppress(OSError):
                    path.unlink()
                    removed.append(path.name)
        return removed

    def missing(self, plan: ClaimPlan) -> bool:
        """Tell whether a receipt of the claim is not there."""
        return any(not self._path(identity).exists() for identity in by_request(plan))

    def _path(self, identity: str) -> Path:
        return self._folder / f"{self._prefix}{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"

    def _write(self, path: Path, content: str) -> None:
        temporary = path.with_name(f".{path.name}.new")
        try:
            with contextlib.suppress(OSError):
                if path.read_text(encoding="utf-8") == content:
                    return
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(content)
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


def _content(identity: str, request: str, shown: Sequence[str], nodes: Iterable[CharDevice]) -> str:
    kind, _, name = identity.partition("=")
    variable = _NOT_VARIABLE.sub("_", request.upper())
    edits: dict[str, Any] = {"env": [f"DRA_NET_{variable}={','.join(shown)}"]}
    unique = {node.path: node for node in nodes}
    if unique:
        edits["deviceNodes"] = [_node(unique[path]) for path in sorted(unique)]
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
