"""Each file of examples/ is what it says: whole, of one name, and with a configuration that is accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nri_dranet.api.resolve import ConfigSource, resolve
from nri_dranet.cli.options import DEFAULT_DRIVER

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
CLASS = "dra.net"


def documents(path: Path) -> list[dict[str, Any]]:
    """Read a file of several documents."""
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def of_kind(path: Path, kind: str) -> dict[str, Any]:
    """Return the one document of a kind."""
    (found,) = (document for document in documents(path) if document["kind"] == kind)
    return found


def test_the_device_class_selects_the_drivers_devices() -> None:
    """It is the one that the others name."""
    (device_class,) = documents(ROOT / "examples/device-class.yaml")
    assert device_class["metadata"]["name"] == CLASS
    (selector,) = device_class["spec"]["selectors"]
    assert selector["cel"]["expression"] == f'device.driver == "{DEFAULT_DRIVER}"'


@pytest.mark.parametrize("path", [p for p in EXAMPLES if p.name != "device-class.yaml"], ids=lambda path: path.name)
def test_the_configuration_of_an_example_is_accepted(path: Path) -> None:
    """For each request: names are those of requests, and all that applies to it is valid, alone and merged."""
    devices = of_kind(path, "ResourceClaimTemplate")["spec"]["spec"]["devices"]
    requests = {request["name"]: request["exactly"] for request in devices["requests"]}
    assert {request["deviceClassName"] for request in requests.values()} == {CLASS}
    configs = devices.get("config", [])
    assert {name for config in configs for name in config["requests"]} <= set(requests)
    assert all(config["opaque"]["driver"] == DEFAULT_DRIVER for config in configs)
    for name in requests:
        mine = [config["opaque"]["parameters"] for config in configs if name in config["requests"]]
        resolve([ConfigSource(f"{path.name}, {name}", parameters) for parameters in mine])


@pytest.mark.parametrize("path", [p for p in EXAMPLES if p.name != "device-class.yaml"], ids=lambda path: path.name)
def test_the_pod_of_an_example_lists_its_claim(path: Path) -> None:
    """The pod names the template of the file, and its container the claim, but where that is what the example shows."""
    template, pod = of_kind(path, "ResourceClaimTemplate"), of_kind(path, "Pod")
    (claim,) = pod["spec"]["resourceClaims"]
    assert claim["resourceClaimTemplateName"] == template["metadata"]["name"]
    (container,) = pod["spec"]["containers"]
    listed = [] if path.name == "pod-level-claim.yaml" else [{"name": claim["name"]}]
    assert container.get("resources", {}).get("claims", []) == listed
