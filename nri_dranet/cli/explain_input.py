"""The claims that ``nri-dranet explain`` shall explain, from the cluster or from files, and their device classes."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

MAX_FILE: Final = 4 * 1024 * 1024
"""Bytes of a file that is read."""

_INTEGER: Final = re.compile(r"[-+]?(?:0b[01]+|0x[0-9a-fA-F]+|0o?[0-7]+|[1-9][0-9]*|0)\Z")


class InputError(Exception):
    """What shall be explained cannot be read; the text says why."""


@dataclass(slots=True)
class Found:
    """Claims of one pod, in its order, and the device classes that they name."""

    claims: list[dict[str, Any]] = field(default_factory=list)
    classes: dict[str, Any] = field(default_factory=dict)


def from_cluster(names: Sequence[str], pod: str, kubeconfig: str) -> Found:
    """Read claims of the cluster, by their names or all of a pod; without a namespace of ``default``.

    Raises:
        InputError: one cannot be read, or the pod's claims are not all there.
    """
    from nri_dranet.api.document import keep_repeated  # noqa: PLC0415 - the help text needs none of it
    from nri_dranet.cli.status import kubeconfig_of  # noqa: PLC0415 - the same
    from nri_dranet.kube.client import ApiError, ConfigurationError, KubeClient  # noqa: PLC0415 - the same
    from nri_dranet.kube.resources import RESOURCE_API, claim_path  # noqa: PLC0415 - the same

    found = Found()
    try:
        client = KubeClient.load(kubeconfig_of(kubeconfig, os.environ, Path.home()))
        with contextlib.closing(client):
            wanted = [_named(name) for name in names] if names else _of_pod(client, *_named(pod))
            for namespace, name in wanted:
                raw = client.get(claim_path(namespace, name), members=keep_repeated)
                found.claims.append(raw)
                if (raw.get("status") or {}).get("allocation"):
                    continue
                for asked in sorted({name for _, name in requests_of(raw) if name} - found.classes.keys()):
                    path = f"{RESOURCE_API}/deviceclasses/{asked}"
                    found.classes[asked] = client.get(path, members=keep_repeated)
    except (ApiError, ConfigurationError) as error:
        raise InputError(str(error)) from error
    return found


def _named(text: str) -> tuple[str, str]:
    namespace, _, name = text.rpartition("/")
    return namespace or "default", name


def _of_pod(client: Any, namespace: str, name: str) -> list[tuple[str, str]]:
    from nri_dranet.kube.pods import parse_pod  # noqa: PLC0415 - the help text needs none of it
    from nri_dranet.kube.resources import pod_path  # noqa: PLC0415 - the same

    pod = parse_pod(client.get(pod_path(namespace, name)))
    if not pod.complete:
        raise InputError(
            f"not all claims of pod {namespace}/{name} have been made yet: try again, or use its files (-f)"
        )
    if not pod.claims:
        raise InputError(f"pod {namespace}/{name} has no claims")
    return [(namespace, claim) for claim in pod.claims.values()]


def from_files(names: Sequence[str]) -> Found:
    """Read claims of files: those of their pod, or all if they have none.

    Raises:
        InputError: a file cannot be read, or has not what it must have.
    """
    found = Found()
    pods: list[dict[str, Any]] = []
    claims: dict[tuple[str, str], dict[str, Any]] = {}
    for name in names:
        for document in documents(name):
            kind, meta = document.get("kind"), document.get("metadata") or {}
            named = str(meta.get("name") or meta.get("generateName") or "claim")
            if kind == "ResourceClaim":
                claims[kind, named] = document
            elif kind == "ResourceClaimTemplate":
                claims[kind, named] = {"metadata": meta, "spec": (document.get("spec") or {}).get("spec") or {}}
            elif kind == "DeviceClass":
                found.classes[named] = document
            elif kind == "Pod":
                pods.append(document)
    if len(pods) > 1:
        raise InputError(f"the files have {len(pods)} pods; the claims of one can be explained at a time")
    chosen = _chosen(pods[0], claims) if pods else [(name, raw) for (_, name), raw in claims.items()]
    if not chosen:
        raise InputError("the files have no claim and no claim template" + (" of the pod" if pods else ""))
    for number, (name, raw) in enumerate(chosen):
        meta = {"namespace": "default", "uid": f"00000000-0000-0000-0000-{number:012}", **(raw.get("metadata") or {})}
        found.claims.append({**raw, "metadata": {**meta, "name": name}})
    return found


def _chosen(
    pod: Mapping[str, Any], claims: Mapping[tuple[str, str], dict[str, Any]]
) -> list[tuple[str, dict[str, Any]]]:
    """Return the claims of a pod by the names that they have or will have."""
    own = str((pod.get("metadata") or {}).get("name") or "pod")
    found = []
    for entry in (pod.get("spec") or {}).get("resourceClaims") or []:
        kind = "ResourceClaim" if entry.get("resourceClaimName") else "ResourceClaimTemplate"
        name = str(entry.get("resourceClaimName") or entry.get("resourceClaimTemplateName"))
        if (kind, name) not in claims:
            raise InputError(f"{kind} {name} of pod {own} is not among the files (-f)")
        raw = claims[kind, name]
        if kind == "ResourceClaim":
            found.append((name, raw))
        else:
            # Each use of a template is a claim of its own.
            meta = {key: value for key, value in (raw.get("metadata") or {}).items() if key != "uid"}
            found.append((f"{own}-{entry.get('name')}", {**raw, "metadata": meta}))
    return found


def documents(name: str) -> Iterator[dict[str, Any]]:
    """Give the objects of a file; ``-`` is standard input.

    Raises:
        InputError: it cannot be read.
    """
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


def requests_of(raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Give the requests of a claim and their device classes; the alternatives of a request as ``req/sub``."""
    for request in ((raw.get("spec") or {}).get("devices") or {}).get("requests") or []:
        name = str(request.get("name", ""))
        alternatives = request.get("firstAvailable") or []
        if not alternatives:
            yield name, str((request.get("exactly") or {}).get("deviceClassName", ""))
        for each in alternatives:
            yield f"{name}/{each.get('name', '')}", str(each.get("deviceClassName", ""))


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
        InputError: a device class is not among ``classes``.
    """
    requests = dict(requests_of(raw))
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


def choices(claims: Iterable[Mapping[str, Any]], given: Iterable[str]) -> list[dict[str, str]]:
    """Return for each claim which device its requests shall have: ``REQUEST=DEVICE``, or ``CLAIM:REQUEST=DEVICE``.

    Raises:
        ValueError: that is none, there is no such request, or more claims than one have it.
    """
    open_claims = [None if (raw.get("status") or {}).get("allocation") else dict(requests_of(raw)) for raw in claims]
    names = [str(raw["metadata"]["name"]) for raw in claims]
    found: list[dict[str, str]] = [{} for _ in names]
    for text in given:
        request, equals, device = text.partition("=")
        if not (request and equals and device):
            raise ValueError(f"--device {text!r} is not REQUEST=DEVICE")
        claim, _, request = request.rpartition(":")
        fitting = [
            i for i, requests in enumerate(open_claims) if request in (requests or {}) and claim in {"", names[i]}
        ]
        if len(fitting) > 1:
            several = " and ".join(names[i] for i in fitting)
            raise ValueError(f"claims {several} have request {request}: write --device CLAIM:{request}={device}")
        if not fitting:
            raise ValueError(_no_request(request, claim, dict(zip(names, open_claims, strict=True))))
        found[fitting[0]][request] = device
    return found


def _no_request(request: str, claim: str, claims: Mapping[str, Mapping[str, str] | None]) -> str:
    asked = {name: requests for name, requests in claims.items() if claim in {"", name}}
    if not asked:
        return f"there is no claim {claim}; there are {', '.join(claims)}"
    if all(requests is None for requests in asked.values()):
        return "--device is for claims that are not allocated"
    known = [each for requests in asked.values() for each in requests or ()]
    return f"no claim without allocation has a request {request!r}; requests are {', '.join(known) or 'none'}"
