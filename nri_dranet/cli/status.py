"""``nri-dranet status``, also ``kubectl dranet status``: one line for each device of this driver in a ResourceClaim.

It reads ResourceClaims and nothing else: whoever may list those can use it, on any machine. Devices that are allocated
and of which no node has spoken yet are listed too.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.cli.options import DEFAULT_DRIVER, driver_name

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping, Sequence

    from nri_dranet.kube.client import ApiError

_ORDER: Final = ("Ready", "NetworkReady", "RDMALinkReady")
_NONE: Final = "-"
_GAP: Final = "   "
_INTERRUPTED: Final = 130
_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404

COLUMNS: Final = ("NODE", "NAMESPACE", "POD", "CLAIM", "DEVICE", "INTERFACE", "ADDRESSES", "CONDITIONS")
WIDE_COLUMNS: Final = (*COLUMNS[:5], "REQUEST", *COLUMNS[5:7], "HARDWARE ADDRESS", COLUMNS[7], "MESSAGE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A condition of a device; ``since`` is the API's text of its last transition."""

    type: str
    status: str
    reason: str
    message: str
    since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A device of a claim. ``reported`` is False where its node has not written a status."""

    node: str
    namespace: str
    claim: str
    device: str
    share_id: str
    pods: tuple[str, ...]
    requests: tuple[str, ...]
    interface: str
    hardware_address: str
    addresses: tuple[str, ...]
    conditions: tuple[Condition, ...]
    reported: bool

    @property
    def key(self) -> tuple[str, ...]:
        """What tells the row from all others."""
        return (self.node, self.namespace, self.claim, self.device, self.share_id)

    @property
    def place(self) -> tuple[Any, ...]:
        """Where it stands in the table."""
        return (self.node, self.namespace, self.pods, self.claim, self.device, self.share_id)


# ---- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the command."""
    parser.add_argument("-n", "--namespace", default="", help="only this namespace (default: all)")
    parser.add_argument("-A", "--all-namespaces", action="store_true", help="all namespaces, which is the default")
    parser.add_argument(
        "-o", "--output", choices=("wide", "json", "yaml"), default="", help="more columns, or data for programs"
    )
    parser.add_argument("-w", "--watch", action="store_true", help="go on, and show each device that changes")
    parser.add_argument(
        "--kubeconfig", default="", help="default: $KUBECONFIG, ~/.kube/config, or the pod's service account"
    )
    parser.add_argument(
        "--driver-name", type=driver_name, default=DEFAULT_DRIVER, help=f"the driver (default {DEFAULT_DRIVER!r})"
    )


def run(args: argparse.Namespace) -> int:
    """Print the devices.

    Returns:
        0 when they were printed, 1 when the API server could not be asked, 130 when a watch was interrupted.
    """
    from nri_dranet.kube.client import ApiError, ConfigurationError, KubeClient  # noqa: PLC0415 - the help needs none

    logging.basicConfig(level=logging.WARNING, format="nri-dranet status: %(message)s")
    namespace = "" if args.all_namespaces else args.namespace
    path = _path(namespace)
    try:
        client = KubeClient.load(kubeconfig_of(args.kubeconfig, os.environ, Path.home()))
        printer = Printer(args.output, watching=args.watch)
        claims = client.get(path).get("items") or []
        printer.first(rows(claims, args.driver_name))
        if args.watch:
            _follow(client, path, args.driver_name, printer)
    except ConfigurationError as error:
        print(f"nri-dranet status: {error}", file=sys.stderr)
        return 1
    except ApiError as error:
        print(f"nri-dranet status: {_explained(error, namespace)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read has seen enough; the interpreter must not stumble over it again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def kubeconfig_of(asked: str, environ: Mapping[str, str], home: Path) -> str:
    """Return the kubeconfig to use as kubectl would; ``""`` for the pod's service account.

    Args:
        asked: what ``--kubeconfig`` said.
        environ: the environment. Of several files in ``KUBECONFIG`` the first that is there is used; they are not
            merged.
        home: the user's folder.
    """
    listed = [path for path in environ.get("KUBECONFIG", "").split(os.pathsep) if path]
    if asked or listed:
        return asked or next((path for path in listed if Path(path).is_file()), listed[0])
    default = home / ".kube" / "config"
    return str(default) if default.is_file() else ""


def _path(namespace: str) -> str:
    from nri_dranet.kube.resources import RESOURCE_API, claims_path  # noqa: PLC0415 - the help needs none of it

    return claims_path(namespace) if namespace else f"{RESOURCE_API}/resourceclaims"


def _follow(client: Any, path: str, driver: str, printer: Printer) -> None:
    """Show what changes until the user has enough."""
    from nri_dranet.kube.listwatch import DELETED, SYNC, Closer, watch  # noqa: PLC0415 - the help needs none of it

    claims: dict[str, Mapping[str, Any]] = {}
    for event in watch(client, path, closer=Closer()):
        if event.type == SYNC:
            claims = {_claim_name(claim): claim for claim in event.objects}
        elif event.type == DELETED:
            claims.pop(_claim_name(event.object), None)
        else:
            claims[_claim_name(event.object)] = event.object
        printer.now(rows(claims.values(), driver))


def _explained(error: ApiError, namespace: str) -> str:
    if error.status == _FORBIDDEN:
        scope = f"in namespace {namespace}" if namespace else "in all namespaces (-n NAMESPACE asks for one)"
        return f"you may not list resourceclaims.resource.k8s.io {scope}: {error}"
    if error.status == _NOT_FOUND:
        return f"the cluster has no resource.k8s.io/v1, which Kubernetes has since 1.34: {error}"
    return str(error)


# ---- from claims to rows


def rows(claims: Iterable[Mapping[str, Any]], driver: str) -> list[Row]:
    """Return a row for each device of ``driver`` in the claims, in the order of the table."""
    found = [row for claim in claims for row in _rows_of(claim, driver)]
    return sorted(found, key=lambda row: row.place)


def _rows_of(claim: Mapping[str, Any], driver: str) -> list[Row]:
    status = claim.get("status") or {}
    allocated = ((status.get("allocation") or {}).get("devices") or {}).get("results") or []
    requests: dict[tuple[str, str, str], list[str]] = {}
    for result in allocated:
        if result.get("driver") == driver:
            requests.setdefault(_device_key(result), []).append(str(result.get("request", "")))
    entries = {_device_key(item): item for item in status.get("devices") or [] if item.get("driver") == driver}
    pods = tuple(sorted(_consumer(item) for item in status.get("reservedFor") or []))
    meta = claim.get("metadata") or {}
    return [
        _row(
            key,
            entries.get(key),
            str(meta.get("namespace", "")),
            str(meta.get("name", "")),
            pods,
            requests.get(key, ()),
        )
        for key in dict.fromkeys([*requests, *entries])
    ]


def _row(  # noqa: PLR0917 - one place where all parts of a row meet
    key: tuple[str, str, str],
    entry: Mapping[str, Any] | None,
    namespace: str,
    claim: str,
    pods: tuple[str, ...],
    requests: Sequence[str],
) -> Row:
    network = (entry or {}).get("networkData") or {}
    conditions = [
        Condition(
            type=str(item.get("type", "")),
            status=str(item.get("status", "")),
            reason=str(item.get("reason") or ""),
            message=str(item.get("message") or ""),
            since=str(item.get("lastTransitionTime") or ""),
        )
        for item in (entry or {}).get("conditions") or []
    ]
    return Row(
        node=key[0],
        namespace=namespace,
        claim=claim,
        device=key[1],
        share_id=key[2],
        pods=pods,
        requests=tuple(sorted(requests)),
        interface=str(network.get("interfaceName") or ""),
        hardware_address=str(network.get("hardwareAddress") or ""),
        addresses=tuple(str(address) for address in network.get("ips") or []),
        conditions=tuple(sorted(conditions, key=_condition_place)),
        reported=entry is not None,
    )


def _device_key(item: Mapping[str, Any]) -> tuple[str, str, str]:
    return str(item.get("pool", "")), str(item.get("device", "")), str(item.get("shareID") or "")


def _consumer(item: Mapping[str, Any]) -> str:
    name = str(item.get("name", ""))
    plain = item.get("resource") == "pods" and not item.get("apiGroup")
    return name if plain else f"{item.get('resource')}/{name}"


def _condition_place(condition: Condition) -> tuple[int, str]:
    known = condition.type in _ORDER
    return (_ORDER.index(condition.type) if known else len(_ORDER), condition.type)


def _claim_name(claim: Mapping[str, Any]) -> str:
    meta = claim.get("metadata") or {}
    return f"{meta.get('namespace')}/{meta.get('name')}"


# ---- printing


class Printer:
    """Prints rows in one of the forms; while watching, those that are new or changed."""

    def __init__(self, form: str, *, watching: bool) -> None:
        """Prepare to print.

        Args:
            form: ``""`` for the table, ``wide``, ``json`` or ``yaml``.
            watching: print JSON as one line and YAML as one document for each device.
        """
        self._form = form
        self._watching = watching
        self._widths: list[int] = []
        self._shown: dict[tuple[str, ...], Row] = {}

    def first(self, found: Sequence[Row]) -> None:
        """Print all rows."""
        self._shown = {row.key: row for row in found}
        if self._form in ("json", "yaml"):
            self._print_data(found, gone=False)
        elif found:
            self._print_table([WIDE_COLUMNS if self._form == "wide" else COLUMNS, *map(self._cells, found)])
        else:
            print("no device of this driver is allocated to a claim", file=sys.stderr)
        sys.stdout.flush()

    def now(self, found: Sequence[Row]) -> None:
        """Print the rows that differ from those that were shown last, and those that are gone."""
        changed = [row for row in found if self._shown.get(row.key) != row]
        keys = {row.key for row in found}
        gone = [row for key, row in self._shown.items() if key not in keys]
        self._shown = {row.key: row for row in found}
        if self._form in ("json", "yaml"):
            self._print_data(changed, gone=False)
            self._print_data(gone, gone=True)
        else:
            cells = [*map(self._cells, changed), *(self._cells(row, gone=True) for row in gone)]
            if cells and not self._widths:
                cells.insert(0, WIDE_COLUMNS if self._form == "wide" else COLUMNS)
            self._print_table(cells)
        sys.stdout.flush()

    def _print_table(self, lines: Sequence[Sequence[str]]) -> None:
        for line in lines:
            self._widths += [0] * (len(line) - len(self._widths))
            self._widths = [max(width, len(cell)) for width, cell in zip(self._widths, line, strict=True)]
        for line in lines:
            padded = (cell.ljust(width) for cell, width in zip(line, self._widths, strict=True))
            print(_GAP.join(padded).rstrip())

    def _cells(self, row: Row, *, gone: bool = False) -> tuple[str, ...]:
        now = datetime.now(UTC)
        told = ", ".join(
            f"{each.type}={each.status} ({', '.join(filter(None, (each.reason, age(each.since, now))))})"
            for each in row.conditions
        )
        messages = "; ".join(dict.fromkeys(each.message for each in row.conditions if each.message))
        if not row.reported:
            told = "not reported by the node yet"
        device = f"{row.device} ({row.share_id})" if row.share_id else row.device
        cells = [row.node, row.namespace, ",".join(row.pods), row.claim, device]
        if self._form == "wide":
            cells.append(",".join(row.requests))
        cells += [row.interface, ",".join(row.addresses)]
        if self._form == "wide":
            cells.append(row.hardware_address)
        cells.append("gone" if gone else told)
        if self._form == "wide":
            cells.append(messages)
        return tuple(_plain(cell) or _NONE for cell in cells)

    def _print_data(self, found: Sequence[Row], *, gone: bool) -> None:
        items = [data(row) for row in found]
        if self._watching:
            documents: list[Any] = [{**item, "gone": True} if gone else item for item in items]
        else:
            documents = [{"devices": items}]
        for document in documents:
            if self._form == "yaml":
                import yaml  # noqa: PLC0415 - the other forms need none of it

                print(("---\n" if self._watching else "") + yaml.safe_dump(document, sort_keys=False), end="")
            else:
                print(json.dumps(document, indent=None if self._watching else 2))


def data(row: Row) -> dict[str, Any]:
    """Return a row as data, with the field names of the API."""
    found: dict[str, Any] = {
        "node": row.node,
        "namespace": row.namespace,
        "claim": row.claim,
        "pods": list(row.pods),
        "device": row.device,
    }
    if row.share_id:
        found["shareID"] = row.share_id
    found["requests"] = list(row.requests)
    found["interfaceName"] = row.interface or None
    found["hardwareAddress"] = row.hardware_address or None
    found["ips"] = list(row.addresses)
    found["conditions"] = [
        {
            "type": each.type,
            "status": each.status,
            "reason": each.reason,
            "message": each.message,
            "lastTransitionTime": each.since,
        }
        for each in row.conditions
    ]
    return found


def age(since: str, now: datetime) -> str:
    """Return how long ago a time of the API was, in kubectl's short form; ``""`` for what is no time."""
    try:
        seconds = int((now - datetime.fromisoformat(since)).total_seconds())
    except (ValueError, TypeError):
        return ""
    seconds = max(0, seconds)
    for unit, length, until in (("s", 1, 120), ("m", 60, 120 * 60), ("h", 3600, 48 * 3600)):
        if seconds < until:
            return f"{seconds // length}{unit}"
    return f"{seconds // 86400}d"


def _plain(text: str) -> str:
    """Return a text without what a terminal would take for a command."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
