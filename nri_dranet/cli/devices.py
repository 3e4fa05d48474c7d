"""``nri-dranet devices``: what this node would publish, and why each other interface is not.

It looks at the node itself and asks no API server: the node's own address and devices that are in pods are not known
to it.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.cli.options import DEFAULT_DRIVER, DEFAULT_FILTER, boolean

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    from nri_dranet.inventory.device import Device
    from nri_dranet.inventory.filter import DeviceFilter

FORMATS: Final = ("table", "json", "yaml")

_SCAN_SECONDS: Final = 10.0
_FILTERED: Final = "the filter leaves it out"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the command."""
    parser.add_argument("-o", "--output", choices=FORMATS, default="table", help="format (default 'table')")
    parser.add_argument("--filter", default=DEFAULT_FILTER, help="CEL expression, as for run; empty: publish all")
    parser.add_argument("--share", default="", help="CEL expression, as for run; empty: share none")
    parser.add_argument("--driver-name", default=DEFAULT_DRIVER, help=f"as for run (default {DEFAULT_DRIVER!r})")
    parser.add_argument(
        "--move-ib-interfaces", type=boolean, nargs="?", const=True, default=True, help="as for run (default true)"
    )
    parser.add_argument("--sysfs", default="/sys", help="where sysfs is mounted (default '/sys')")


def run(args: argparse.Namespace) -> int:
    """Scan the node once and print.

    Returns:
        0; 1 when the node cannot be read; 2 for a filter that is none.
    """
    from nri_dranet.dra.sharing import compiled  # noqa: PLC0415 - the help text needs none of it
    from nri_dranet.inventory.filter import DeviceFilter  # noqa: PLC0415 - the same
    from nri_dranet.inventory.inventory import Inventory  # noqa: PLC0415 - the same
    from nri_dranet.inventory.state import Policy  # noqa: PLC0415 - the same
    from nri_dranet.sysfs import Sysfs  # noqa: PLC0415 - the same

    try:
        decide = DeviceFilter(args.filter, args.driver_name)
        share = compiled(args.share, args.driver_name)
    except ValueError as error:
        print(f"nri-dranet devices: {error}", file=sys.stderr)
        return 2
    try:
        inventory = Inventory(Sysfs(args.sysfs), policy=Policy(move_ib_interfaces=args.move_ib_interfaces))
    except OSError as error:
        print(f"nri-dranet devices: the node's interfaces cannot be read: {error}", file=sys.stderr)
        return 1
    inventory.start()
    try:
        if not inventory.wait(_SCAN_SECONDS):
            print(f"nri-dranet devices: the node was not read within {_SCAN_SECONDS:g} s", file=sys.stderr)
            return 1
        rows = describe(inventory.devices(), decide, share)
    finally:
        inventory.stop()
    print(render(rows, args.output), end="")
    return 0


def describe(
    devices: Iterable[Device], decide: DeviceFilter, share: DeviceFilter | None = None
) -> list[dict[str, Any]]:
    """Return each device as data: its entry in a ResourceSlice, whether it is published, and if not why."""
    from nri_dranet.dra.sharing import fits, shared_entry  # noqa: PLC0415 - the help text needs none of it

    rows = []
    for device in devices:
        why = device.refused or ("" if decide.keeps(device.name, device.attributes) else _FILTERED)
        entry = shared_entry(device.entry()) if not why and fits(share, device) else device.entry()
        rows.append({**entry, "published": not why, **({"reason": why} if why else {})})
    return rows


def render(rows: Sequence[dict[str, Any]], output: str) -> str:
    """Return the devices as text in one of ``FORMATS``."""
    if output == "json":
        return json.dumps({"devices": rows}, indent=2, sort_keys=True) + "\n"
    if output == "yaml":
        import yaml  # noqa: PLC0415 - only for printing; the kubernetes package brings it

        class Plain(yaml.SafeDumper):
            """Writes equal values out each time: references between devices help no reader."""

            def ignore_aliases(self, data: Any) -> bool:
                """Make no references."""
                del data
                return True

        text: str = yaml.dump({"devices": list(rows)}, Dumper=Plain, sort_keys=True, default_flow_style=False)
        return text
    return _table(rows)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    published = [row for row in rows if row["published"]]
    others = [row for row in rows if not row["published"]]
    lines = []
    if published:
        head = ("DEVICE", "INTERFACE", "TYPE", "STATE", "MTU", "MAC", "ADDRESSES", "PCI", "RDMA")
        lines += _columns([head, *(_row(row) for row in published)])
    else:
        lines.append("No device would be published.")
    if others:
        lines += ["", "Not published:"]
        lines += _columns([(f"  {row['name']}", _value(row, "ifName") or "-", str(row["reason"])) for row in others])
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
    )


def _value(row: dict[str, Any], name: str) -> str:
    value = row["attributes"].get(f"dra.net/{name}") or {}
    return str(next(iter(value.values()), ""))


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
