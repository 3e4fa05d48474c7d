"""``nri-dranet explain``: what would happen with a claim on this node, without touching anything.

The claim comes from the cluster or from files; what the devices are is looked at on this node. Of a claim that is not
allocated yet, ``--device`` says which device a request shall have.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.cli.options import DEFAULT_DRIVER, driver_name
from nri_dranet.cli.status import kubeconfig_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

    from nri_dranet.claims.allocation import Claim

MAX_FILE: Final = 4 * 1024 * 1024
"""Bytes of a file that is read."""

_SCAN_SECONDS: Final = 10.0
_REFUSED: Final = 1
_WRONG: Final = 2
_INTEGER: Final = re.compile(r"[-+]?(?:0b[01]+|0x[0-9a-fA-F]+|0o?[0-7]+|[1-9][0-9]*|0)\Z")


class InputError(Exception):
    """What shall be explained cannot be read; the text says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the command."""
    parser.add_argument("claim", nargs="?", default="", metavar="[NAMESPACE/]CLAIM", help="a claim of the cluster")
    parser.add_argument(
        "-f",
        "--filename",
        action="append",
        default=[],
        metavar="FILE",
        help="YAML or JSON with a ResourceClaim or ResourceClaimTemplate, and the DeviceClasses that it names; - is "
        "standard input; may be repeated",
    )
    parser.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="REQUEST=DEVICE",
        help="give a request of a claim that is not allocated this device; may be repeated",
    )
    parser.add_argument("--offline", action="store_true", help="look at the configuration alone, not at this node")
    parser.add_argument("--share", default="", help="CEL expression, as for run: which devices are shared")
    parser.add_argument("-o", "--output", choices=("text", "json", "yaml"), default="text", help="(default 'text')")
    parser.add_argument(
        "--kubeconfig", default="", help="default: $KUBECONFIG, ~/.kube/config, or the pod's service account"
    )
    parser.add_argument("--driver-name", type=driver_name, default=DEFAULT_DRIVER, help="as for run")
    parser.add_argument("--sysfs", default="/sys", help="where sysfs is mounted (default '/sys')")


def run(args: argparse.Namespace) -> int:
    """Explain and print.

    Returns:
        0 when the claim would be prepared; 1 when it would be refused, or cannot be read; 2 for wrong arguments.
    """
    from nri_dranet.dra.explain import as_text  # noqa: PLC0415 - the help text needs none of it

    if bool(args.claim) == bool(args.filename):
        print("nri-dranet explain: name a claim of the cluster, or files with -f", file=sys.stderr)
        return _WRONG
    try:
        chosen = dict(_pair(text) for text in args.device)
        found = _explained(args, chosen)
    except InputError as error:
        print(f"nri-dranet explain: {error}", file=sys.stderr)
        return _REFUSED
    except ValueError as error:
        print(f"nri-dranet explain: {error}", file=sys.stderr)
        return _WRONG
    if args.output == "json":
        print(json.dumps(found, indent=2))
    elif args.output == "yaml":
        import yaml  # noqa: PLC0415 - only for printing

        print(yaml.safe_dump(found, sort_keys=False, default_flow_style=False), end="")
    else:
        print(as_text(found), end="")
    return _REFUSED if found["errors"] else 0


def _pair(text: str) -> tuple[str, str]:
    request, equals, device = text.partition("=")
    if not (request and equals and device):
        raise ValueError(f"--device {text!r} is not REQUEST=DEVICE")
    return request, device


def _explained(args: argparse.Namespace, chosen: Mapping[str, str]) -> dict[str, Any]:
    from nri_dranet.claims.allocation import ClaimError, parse_claim  # noqa: PLC0415 - the help text needs none of it
    from nri_dranet.dra.explain import UNKNOWN, explain  # noqa: PLC0415 - the same
    from nri_dranet.dra.sharing import compiled  # noqa: PLC0415 - the same

    compiled(args.share, args.driver_name)
    raw, classes = _from_files(args.filename) if args.filename else _from_cluster(args)
    notes: list[str] = []
    planned = not args.offline
    if not ((raw.get("status") or {}).get("allocation")):
        raw = allocated(raw, classes, args.driver_name, chosen)
        missing = [each["request"] for each in _results(raw) if not each["device"]]
        if missing and planned:
            planned = False
            notes.append(
                f"the claim is not allocated: --device REQUEST=DEVICE (requests: {', '.join(missing)}) shows the plan"
            )
        for each in _results(raw):
            each["device"] = each["device"] or UNKNOWN
    elif chosen:
        raise ValueError("--device is for claims that are not allocated; this one is")
    try:
        claim = parse_claim(raw)
    except ClaimError as error:
        raise InputError(str(error)) from error
    if not claim.results_of(args.driver_name):
        notes.append(f"the claim has no device of driver {args.driver_name}")
    devices, hosts, node = _node(args, claim) if planned else ({}, {}, None)
    found = explain(claim, args.driver_name, devices, hosts, node=node, plans=planned)
    return {**found, **({"notes": notes} if notes else {})}


def _results(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = raw["status"]["allocation"]["devices"]["results"]
    return found


# ---- the claim


def _from_cluster(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    from nri_dranet.api.document import keep_repeated  # noqa: PLC0415 - the help text needs none of it
    from nri_dranet.kube.client import ApiError, ConfigurationError, KubeClient  # noqa: PLC0415 - the same
    from nri_dranet.kube.resources import RESOURCE_API, claim_path  # noqa: PLC0415 - the same

    namespace, _, name = args.claim.rpartition("/")
    try:
        client = KubeClient.load(kubeconfig_of(args.kubeconfig, os.environ, Path.home()))
        with contextlib.closing(client):
            raw = client.get(claim_path(namespace or "default", name), members=keep_repeated)
            classes = {}
            if not (raw.get("status") or {}).get("allocation"):
                for asked in sorted(filter(None, _class_names(raw))):
                    classes[asked] = client.get(f"{RESOURCE_API}/deviceclasses/{asked}", members=keep_repeated)
    except (ApiError, ConfigurationError) as error:
        raise InputError(str(error)) from error
    return raw, classes


def _from_files(names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    claims: list[dict[str, Any]] = []
    classes: dict[str, Any] = {}
    for name in names:
        for document in _documents(name):
            kind, meta = document.get("kind"), document.get("metadata") or {}
            if kind == "ResourceClaim":
                claims.append(document)
            elif kind == "ResourceClaimTemplate":
                claims.append({"metadata": meta, "spec": (document.get("spec") or {}).get("spec") or {}})
            elif kind == "DeviceClass":
                classes[str(meta.get("name", ""))] = document
    if len(claims) != 1:
        raise InputError(f"the files have {len(claims)} claims and claim templates; one can be explained at a time")
    meta = dict(claims[0].get("metadata") or {})
    meta.setdefault("name", str(meta.get("generateName", "claim")))
    meta.setdefault("namespace", "default")
    meta.setdefault("uid", "00000000-0000-0000-0000-000000000000")
    return {**claims[0], "metadata": meta}, classes


def _documents(name: str) -> Iterator[dict[str, Any]]:
    import yaml  # noqa: PLC0415 - claims of the cluster need none

    try:
        data = sys.stdin.buffer.read(MAX_FILE + 1) if name == "-" else _read(Path(name))
        if len(data) > MAX_FILE:
            raise InputError(f"{name} has more than {MAX_FILE} bytes")
        loaded = list(yaml.load_all(data.decode(), Loader=_loader()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{name} cannot be read: {error}") from error
    for document in loaded:
        if isinstance(document, dict):
            items = document.get("items") if document.get("kind") == "List" else None
            yield from [item for item in items if isinstance(item, dict)] if isinstance(items, list) else [document]


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_FILE + 1)


def _loader() -> Any:
    """Return a YAML loader that reads what kubectl reads: no dates, no numbers to base 60; repeated fields are kept."""
    import yaml  # noqa: PLC0415 - claims of the cluster need none

    from nri_dranet.api.document import keep_repeated  # noqa: PLC0415 - the same

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            del deep
            self.flatten_mapping(node)
            pairs = [(self.construct_object(k, deep=True), self.construct_object(v, deep=True)) for k, v in node.value]
            if any(not isinstance(key, str) for key, _ in pairs):
                raise yaml.constructor.ConstructorError(None, None, "a field's name is no text", node.start_mark)
            return keep_repeated(pairs)

        def whole(self, node: Any) -> Any:
            data = keep_repeated([])
            yield data
            made = self.construct_mapping(node)
            data.update(made)
            data.repeated = getattr(made, "repeated", ())  # type: ignore[attr-defined]

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if tag.rpartition(":")[2] not in {"timestamp", "int"}]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INTEGER, list("-+0123456789"))
    Loader.add_constructor("tag:yaml.org,2002:map", Loader.whole)
    return Loader


def _requests(raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Give the requests of a claim and their device classes; the alternatives of a request as ``req/sub``."""
    for request in ((raw.get("spec") or {}).get("devices") or {}).get("requests") or []:
        name = str(request.get("name", ""))
        alternatives = request.get("firstAvailable") or []
        if not alternatives:
            yield name, str((request.get("exactly") or {}).get("deviceClassName", ""))
        for each in alternatives:
            yield f"{name}/{each.get('name', '')}", str(each.get("deviceClassName", ""))


def _class_names(raw: Mapping[str, Any]) -> set[str]:
    return {device_class for _, device_class in _requests(raw)}


def allocated(
    raw: Mapping[str, Any], classes: Mapping[str, Any], driver: str, chosen: Mapping[str, str]
) -> dict[str, Any]:
    """Return a claim as it would be allocated: these devices, the configuration of its classes and its own.

    Args:
        raw: the claim.
        classes: its device classes, by name.
        driver: the driver of all devices.
        chosen: request → device; a request that has none gets "".

    Raises:
        ValueError: there is no such request.
        InputError: a device class is not among ``classes``.
    """
    requests = dict(_requests(raw))
    unknown = sorted(chosen.keys() - requests.keys())
    if unknown:
        raise ValueError(f"the claim has no request {unknown[0]!r}; it has {', '.join(requests) or 'none'}")
    configs = []
    for request, name in requests.items():
        if name and name not in classes:
            raise InputError(f"device class {name} of request {request} is not among the files (-f)")
        found = (classes[name].get("spec") or {}).get("config") or [] if name else []
        configs += [{**each, "source": "FromClass", "requests": [request]} for each in found]
    own = ((raw.get("spec") or {}).get("devices") or {}).get("config") or []
    configs += [{**each, "source": "FromClaim"} for each in own]
    results = [
        {"request": request, "driver": driver, "pool": "node", "device": chosen.get(request, "")}
        for request in (chosen or requests)
    ]
    allocation = {"devices": {"results": results, "config": configs}}
    return {**raw, "status": {**(raw.get("status") or {}), "allocation": allocation}}


# ---- this node


class _NoClaims:
    """Stands for the journal: the claims of this node are the daemon's business."""

    def of_device(self, device: str) -> tuple[Any, ...]:
        """Nobody has a device."""
        del device
        return ()

    def records(self) -> tuple[Any, ...]:
        """There are no claims."""
        return ()


def _node(args: argparse.Namespace, claim: Claim) -> tuple[dict[str, Any], dict[str, Any], Any]:
    from nri_dranet.dra.hardware import Hardware  # noqa: PLC0415 - the help text needs none of it
    from nri_dranet.dra.plan_inputs import PlanInputs  # noqa: PLC0415 - the same
    from nri_dranet.dra.sharing import Sharing  # noqa: PLC0415 - the same
    from nri_dranet.inventory.inventory import Inventory  # noqa: PLC0415 - the same
    from nri_dranet.sysfs import Sysfs  # noqa: PLC0415 - the same

    sysfs = Sysfs(args.sysfs)
    nobody: Any = _NoClaims()
    try:
        inventory = Inventory(sysfs)
        inventory.start()
        with contextlib.ExitStack() as stack:
            stack.callback(inventory.stop)
            if not inventory.wait(_SCAN_SECONDS):
                raise InputError(f"the node was not read within {_SCAN_SECONDS:g} s")
            hardware = Hardware(sysfs, lambda: [one.link for one in inventory.devices() if one.link is not None])
            shares = Sharing(args.share, args.driver_name, nobody).shares
            inputs = PlanInputs(inventory, nobody, hardware, bpf_root="/sys/fs/bpf", shares=shares, probe=False)
            stack.callback(inputs.close)
            devices, hosts = inputs.read(claim, claim.results_of(args.driver_name))
            return devices, hosts, inputs.node()
    except OSError as error:
        raise InputError(f"the node cannot be read (--offline does without): {error}") from error
