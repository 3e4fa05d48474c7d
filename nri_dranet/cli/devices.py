"""``nri-dranet devices``: what this node would publish, and why each other interface is not.

It looks at the node itself, with the flags of the daemon that runs there. The daemon's journal says which devices are
in pods, the Node object which address is the node's own and whether the node has a filter of its own; what of these
cannot be read is said with the answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.cli.daemon_flags import with_daemons
from nri_dranet.cli.options import add_run_arguments, journal_of, node_name_of
from nri_dranet.cli.records import read

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping, Sequence

    from nri_dranet.dra.sharing import Sharing
    from nri_dranet.inventory.device import Device
    from nri_dranet.inventory.override import NodeFilter
    from nri_dranet.kube.node import NodeInfo
    from nri_dranet.offers import Held, Offers

FORMATS: Final = ("table", "json", "yaml")

FLAGS: Final = frozenset(
    [
        "allow-interfaces",
        "db-path",
        "deny-interfaces",
        "device-taints",
        "driver-name",
        "feature-gates",
        "filter",
        "hostname-override",
        "kubeconfig",
        "kubelet-root-dir",
        "move-ib-interfaces",
        "share",
        "state-dir",
    ]
)
"""Flags of ``run`` that say what is published."""

_SCAN_SECONDS: Final = 10.0
_API_SECONDS: Final = 3.0
_FILTERED: Final = "the filter leaves it out"


@dataclass(slots=True)
class Answer:
    """What is told: one row a device, and what of it may be wrong because something could not be read."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the command."""
    parser.add_argument("-o", "--output", choices=FORMATS, default="table", help="format (default 'table')")
    parser.add_argument("--sysfs", default="/sys", help="where sysfs is mounted (default '/sys')")
    parser.add_argument("--offline", action="store_true", help="do not ask the API server for the Node")
    group = parser.add_argument_group("flags of run", "Those of the running daemon count where none is given.")
    add_run_arguments(group, FLAGS)


def run(args: argparse.Namespace) -> int:
    """Look at the node once and print.

    Returns:
        0; 1 when the node cannot be read; 2 for a filter that is none.
    """
    names = {name.replace("-", "_") for name in FLAGS}
    flags, note = with_daemons({name: value for name, value in vars(args).items() if name in names})
    answer = Answer(notes=[note] if note else [])
    try:
        _look(answer, flags, sysfs=args.sysfs, offline=args.offline)
    except ValueError as error:
        print(f"nri-dranet devices: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"nri-dranet devices: the node's interfaces cannot be read: {error}", file=sys.stderr)
        return 1
    print(render(answer, args.output), end="")
    return 0


def _look(answer: Answer, flags: argparse.Namespace, *, sysfs: str, offline: bool) -> None:
    """Find all rows.

    Raises:
        ValueError: an expression is none.
        OSError: the node cannot be read.
    """
    from nri_dranet.dra.sharing import Sharing  # noqa: PLC0415 - the help text needs none of it
    from nri_dranet.inventory.inventory import Inventory  # noqa: PLC0415 - the same
    from nri_dranet.inventory.override import NodeFilter, annotation  # noqa: PLC0415 - the same
    from nri_dranet.inventory.state import Policy  # noqa: PLC0415 - the same
    from nri_dranet.offers import Offers, held_devices, published_of  # noqa: PLC0415 - the same
    from nri_dranet.sysfs import Sysfs  # noqa: PLC0415 - the same

    driver = flags.driver_name
    decide = NodeFilter(flags.filter, driver)
    records = read(journal_of(flags), answer.notes)
    sharing = Sharing(flags.share, driver, records)
    held = held_devices(records.found)
    policy = Policy(
        allow=flags.allow_interfaces,
        deny=flags.deny_interfaces,
        move_ib_interfaces=flags.move_ib_interfaces,
        list_types=flags.feature_gates.get("DRAListTypeAttributes", False),
    )
    with contextlib.ExitStack() as stack:
        inventory = Inventory(Sysfs(sysfs), policy=policy)
        stack.callback(inventory.stop)
        inventory.set_held(published_of(held))
        node = None if offline else _node(answer, flags)
        if offline:
            answer.notes.append("the Node was not asked for: its address protects no interface here")
        if node is not None:
            inventory.set_node_addresses(node.addresses)
            decide.override(node.annotations.get(annotation(driver)))
            if decide.problem:
                answer.notes.append(f"the Node's filter is refused, that of the flag counts: {decide.problem}")
        inventory.start()
        if not inventory.wait(_SCAN_SECONDS):
            raise TimeoutError(f"the node was not read within {_SCAN_SECONDS:g} s")
        found = inventory.devices()
    answer.rows += describe(found, held, decide, sharing, Offers(driver=driver, taints=flags.device_taints))


def _node(answer: Answer, flags: argparse.Namespace) -> NodeInfo | None:
    from nri_dranet.cli.status import kubeconfig_of  # noqa: PLC0415 - the help text needs none of it
    from nri_dranet.kube.client import ApiError, ConfigurationError, KubeClient  # noqa: PLC0415 - the same
    from nri_dranet.kube.node import parse_node  # noqa: PLC0415 - the same
    from nri_dranet.kube.resources import node_path  # noqa: PLC0415 - the same

    name = node_name_of(flags, socket.gethostname())
    try:
        client = KubeClient.load(kubeconfig_of(flags.kubeconfig, os.environ, Path.home()))
        with contextlib.closing(client):
            return parse_node(client.get(node_path(name), timeout=_API_SECONDS))
    except (ApiError, ConfigurationError) as error:
        answer.notes.append(f"the Node {name} cannot be read: its address protects no interface here: {error}")
        return None


def describe(
    devices: Iterable[Device], held: Mapping[str, Held], decide: NodeFilter, sharing: Sharing, offers: Offers
) -> list[dict[str, Any]]:
    """Return each device as data: its entry in a ResourceSlice, whether it is published, and if not why.

    One that is in a pod has that pod and its claim beside it.
    """
    rows: dict[str, dict[str, Any]] = {}
    claimed = sharing.claimed()
    for device in devices:
        why = device.refused or ("" if decide.keeps(device.name, device.attributes) else _FILTERED)
        entry = device.entry() if why else offers.on_host(device, shared=sharing.shares(device, claimed))
        rows[device.name] = _told(entry, why)
    for name, each in held.items():
        home = name in rows and rows[name]["published"]
        published = offers.in_pod(each, home=home)
        if published is not None:
            rows[name] = _told(published, "") | _whose(each)
        elif not home:
            rows[name] = _told(each.plan.published, "it is neither in its pod nor on the node any more") | _whose(each)
    return [rows[name] for name in sorted(rows)]


def _told(entry: Mapping[str, Any], why: str) -> dict[str, Any]:
    return {**entry, "published": not why, **({"reason": why} if why else {})}


def _whose(held: Held) -> dict[str, str]:
    ref, holder = held.record.ref, held.record.holder
    claim = {"claim": f"{ref.namespace}/{ref.name}"}
    return {**claim, "pod": f"{holder.pod.namespace}/{holder.pod.name}"} if holder is not None else claim


def render(answer: Answer, output: str) -> str:
    """Return the devices as text in one of ``FORMATS``."""
    data = {"devices": answer.rows, **({"notes": answer.notes} if answer.notes else {})}
    if output == "json":
        return json.dumps(data, indent=2, sort_keys=True) + "\n"
    if output == "yaml":
        import yaml  # noqa: PLC0415 - only for printing; the kubernetes package brings it

        class Plain(yaml.SafeDumper):
            """Writes equal values out each time: references between devices help no reader."""

            def ignore_aliases(self, data: Any) -> bool:
                """Make no references."""
                del data
                return True

        text: str = yaml.dump(data, Dumper=Plain, sort_keys=True, default_flow_style=False)
        return text
    return _table(answer)


def _table(answer: Answer) -> str:
    published = [row for row in answer.rows if row["published"]]
    others = [row for row in answer.rows if not row["published"]]
    lines = []
    if published:
        head = ("DEVICE", "INTERFACE", "TYPE", "STATE", "MTU", "MAC", "ADDRESSES", "PCI", "RDMA", "POD")
        lines += _columns([head, *(_row(row) for row in published)])
    else:
        lines.append("No device would be published.")
    if others:
        lines += ["", "Not published:"]
        lines += _columns([(f"  {row['name']}", _value(row, "ifName") or "-", str(row["reason"])) for row in others])
    if answer.notes:
        lines += ["", *(f"Note: {note}" for note in answer.notes)]
    return "\n".join(lines) + "\n"


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    addresses = ",".join(filter(None, (_value(row, "ipv4"), _value(row, "ipv6"))))
    kind = (_value(row, "type") or "-") + (", shared" if row.get("allowMultipleAllocations") else "")
    return (
        str(row["name"]),
        _value(row, "ifName") or "-",
        kind,
        *(_value(row, name) or "-" for name in ("state", "mtu", "mac")),
        addresses or "-",
        _value(row, "pciAddress") or "-",
        _value(row, "rdmaDevice") or "-",
        str(row.get("pod") or ("unknown" if "claim" in row else "-")),
    )


def _value(row: dict[str, Any], name: str) -> str:
    value = row["attributes"].get(f"dra.net/{name}") or {}
    return str(next(iter(value.values()), ""))


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
