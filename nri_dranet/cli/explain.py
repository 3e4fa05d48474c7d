"""``nri-dranet explain``: what would happen with claims on this node, without touching anything.

The claims come from the cluster or from files; what the devices are is looked at on this node, and the daemon's
journal says which of them are in pods. Of a claim that is not allocated yet, ``--device`` says which device a request
shall have.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.cli.daemon_flags import with_daemons
from nri_dranet.cli.explain_input import InputError, allocated, choices, from_cluster, from_files
from nri_dranet.cli.options import add_run_arguments, journal_of
from nri_dranet.cli.records import Records, read

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from nri_dranet.claims.allocation import Claim
    from nri_dranet.dra.explain import Node

FLAGS: Final = frozenset(["db-path", "driver-name", "kubeconfig", "kubelet-root-dir", "share", "state-dir"])
"""Flags of ``run`` that say what is planned, and where the journal is."""

_SCAN_SECONDS: Final = 10.0
_REFUSED: Final = 1
_WRONG: Final = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the command."""
    parser.add_argument(
        "claim",
        nargs="*",
        default=[],
        metavar="[NAMESPACE/]CLAIM",
        help="a claim of the cluster; several are taken as those of one pod",
    )
    parser.add_argument("--pod", default="", metavar="[NAMESPACE/]POD", help="all claims of a pod of the cluster")
    parser.add_argument(
        "-f",
        "--filename",
        action="append",
        default=[],
        metavar="FILE",
        help="YAML or JSON with ResourceClaims or ResourceClaimTemplates, the DeviceClasses that they name, and the "
        "pod that uses them if there is one; - is standard input; may be repeated",
    )
    parser.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="[CLAIM:]REQUEST=DEVICE",
        help="give a request of a claim that is not allocated this device; may be repeated",
    )
    parser.add_argument("--offline", action="store_true", help="look at the configuration alone, not at this node")
    parser.add_argument("-o", "--output", choices=("text", "json", "yaml"), default="text", help="(default 'text')")
    parser.add_argument("--sysfs", default="/sys", help="where sysfs is mounted (default '/sys')")
    group = parser.add_argument_group("flags of run", "Those of the running daemon count where none is given.")
    add_run_arguments(group, FLAGS)


def run(args: argparse.Namespace) -> int:
    """Explain and print.

    Returns:
        0 when the claims would be prepared; 1 when one would be refused, or cannot be read; 2 for wrong arguments.
    """
    from nri_dranet.dra.explain import as_text  # noqa: PLC0415 - the help text needs none of it

    if sum(map(bool, (args.claim, args.pod, args.filename))) != 1:
        print("nri-dranet explain: name claims of the cluster, or a pod (--pod), or files (-f)", file=sys.stderr)
        return _WRONG
    try:
        found = _explained(args)
    except InputError as error:
        print(f"nri-dranet explain: {error}", file=sys.stderr)
        return _REFUSED
    except ValueError as error:
        print(f"nri-dranet explain: {error}", file=sys.stderr)
        return _WRONG
    data = found[0] if len(found) == 1 else {"claims": found}
    if args.output == "json":
        print(json.dumps(data, indent=2))
    elif args.output == "yaml":
        import yaml  # noqa: PLC0415 - only for printing

        print(yaml.safe_dump(data, sort_keys=False, default_flow_style=False), end="")
    else:
        print("\n".join(map(as_text, found)), end="")
    return _REFUSED if any(each["errors"] for each in found) else 0


def _explained(args: argparse.Namespace) -> list[dict[str, Any]]:
    from nri_dranet.claims.allocation import ClaimError, parse_claim  # noqa: PLC0415 - the help text needs none of it
    from nri_dranet.dra.explain import explain_together  # noqa: PLC0415 - the same
    from nri_dranet.dra.sharing import compiled  # noqa: PLC0415 - the same

    given = {name.replace("-", "_") for name in FLAGS}
    flags, without = with_daemons({name: value for name, value in vars(args).items() if name in given})
    driver = flags.driver_name
    compiled(flags.share, driver)
    kubeconfig = getattr(args, "kubeconfig", "")
    found = from_files(args.filename) if args.filename else from_cluster(args.claim, args.pod, kubeconfig)
    claims: list[Claim] = []
    notes: list[list[str]] = []
    missing: list[str] = []
    for raw, chosen in zip(found.claims, choices(found.claims, args.device), strict=True):
        if not ((raw.get("status") or {}).get("allocation")):
            raw, unnamed = _allocated(raw, found.classes, driver, chosen)  # noqa: PLW2901 - the same claim
            missing += unnamed
        try:
            claims.append(parse_claim(raw))
        except ClaimError as error:
            raise InputError(str(error)) from error
        notes.append([] if claims[-1].results_of(driver) else [f"the claim has no device of driver {driver}"])
    planned = not (args.offline or missing)
    if missing and not args.offline:
        last = f"a claim is not allocated: --device REQUEST=DEVICE (requests: {', '.join(missing)}) shows the plan"
        notes[-1].append(last)
    node = _node(flags, args.sysfs, claims, notes[-1]) if planned else None
    if planned and without:
        notes[-1].append(without)
    explained = explain_together(claims, driver, node)
    return [{**each, **({"notes": said} if said else {})} for each, said in zip(explained, notes, strict=True)]


def _allocated(
    raw: Mapping[str, Any], classes: Mapping[str, Any], driver: str, chosen: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """Return a claim as it would be allocated, and its requests that have no device."""
    from nri_dranet.dra.explain import UNKNOWN  # noqa: PLC0415 - the help text needs none of it

    made = allocated(raw, classes, driver, chosen)
    missing = []
    for each in made["status"]["allocation"]["devices"]["results"]:
        if not each["device"]:
            missing.append(each["request"])
            each["device"] = UNKNOWN
    return made, missing


def _node(flags: argparse.Namespace, sysfs_path: str, claims: Sequence[Claim], notes: list[str]) -> Node:
    """Look at this node's devices and claims."""
    from nri_dranet.dra.explain import Node  # noqa: PLC0415 - the help text needs none of it
    from nri_dranet.dra.hardware import Hardware  # noqa: PLC0415 - the same
    from nri_dranet.dra.plan_inputs import PlanInputs  # noqa: PLC0415 - the same
    from nri_dranet.dra.sharing import Sharing  # noqa: PLC0415 - the same
    from nri_dranet.inventory.inventory import Inventory  # noqa: PLC0415 - the same
    from nri_dranet.offers import held_devices, published_of  # noqa: PLC0415 - the same
    from nri_dranet.sysfs import Sysfs  # noqa: PLC0415 - the same

    own = {claim.ref.uid for claim in claims}
    records = read(journal_of(flags), notes, "other claims and devices in pods")
    others = Records(tuple(record for record in records.found if record.uid not in own))
    sysfs = Sysfs(sysfs_path)
    try:
        inventory = Inventory(sysfs)
        inventory.set_held(published_of(held_devices(records.found)))
        inventory.start()
        with contextlib.ExitStack() as stack:
            stack.callback(inventory.stop)
            if not inventory.wait(_SCAN_SECONDS):
                raise InputError(f"the node was not read within {_SCAN_SECONDS:g} s")
            hardware = Hardware(sysfs, lambda: [one.link for one in inventory.devices() if one.link is not None])
            shares = Sharing(flags.share, flags.driver_name, records).shares
            inputs = PlanInputs(inventory, records, hardware, bpf_root="/sys/fs/bpf", shares=shares, probe=False)
            stack.callback(inputs.close)
            node = Node(facts=inputs.node(), records=others.found)
            for claim in claims:
                devices, hosts = inputs.read(claim, claim.results_of(flags.driver_name))
                node.devices.update(devices)
                node.hosts.update(hosts)
            return node
    except OSError as error:
        raise InputError(f"the node cannot be read (--offline does without): {error}") from error
