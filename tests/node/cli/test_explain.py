"""``nri-dranet explain`` with a real interface and a claim of an API server: a plan, and nothing is touched."""

from __future__ import annotations

import argparse
import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.cli.explain import add_arguments, run
from nri_dranet.testing.apiserver import ApiServerStandIn
from nri_dranet.testing.stage import RESOURCE_API

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def ip(*words: str) -> str:
    """Run ``ip`` and return what it prints."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def nic() -> Iterator[str]:
    """Make a veth pair, up, with an address."""
    ip("link", "add", "explain0", "type", "veth", "peer", "name", "explain0p")
    for name in ("explain0", "explain0p"):
        ip("link", "set", name, "addrgenmode", "none", "up")
    ip("addr", "add", "192.0.2.10/24", "dev", "explain0")
    yield "explain0"
    ip("link", "del", "explain0")


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[tuple[ApiServerStandIn, str]]:
    """Start an API server and write a kubeconfig for it."""
    api = ApiServerStandIn()
    api.start()
    api.write_kubeconfig(tmp_path / "kubeconfig")
    yield api, str(tmp_path / "kubeconfig")
    api.stop()


def ran(*words: str) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(words))


def claim(api: ApiServerStandIn, parameters: dict[str, Any], name: str = "c") -> None:
    """Create a claim, and its device class with the first one."""
    if name == "c":
        api.create(
            f"{RESOURCE_API}/deviceclasses",
            {"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "dra.net"}, "spec": {}},
        )
    devices = {
        "requests": [{"name": "nic", "exactly": {"deviceClassName": "dra.net"}}],
        "config": [{"opaque": {"driver": "dra.net", "parameters": parameters}}],
    }
    api.create(
        f"{RESOURCE_API}/namespaces/default/resourceclaims",
        {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceClaim",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"devices": devices},
        },
    )


def test_a_claim_of_the_cluster_on_this_node(
    nic: str, kubeconfig: tuple[ApiServerStandIn, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The host's address is in the plan of a claim that is not allocated yet, and the interface is as before."""
    api, path = kubeconfig
    claim(api, {"interface": {"name": "net1", "mtu": 1400}})
    before = ip("-d", "addr", "show", "dev", nic)
    assert ran("c", "--kubeconfig", path, "--device", f"nic={nic}", "-o", "json") == 0
    (device,) = json.loads(capsys.readouterr().out)["devices"]
    assert device["steps"][0] == f"move {nic} into the pod as net1"
    assert any("192.0.2.10/24" in step for step in device["steps"])
    assert ip("-d", "addr", "show", "dev", nic) == before
    assert ran("default/c", "--kubeconfig", path, "--device", f"nic={nic}", "--share", "true", "-o", "json") == 0
    (device,) = json.loads(capsys.readouterr().out)["devices"]
    assert device["steps"][0] == f"make the macvlan net1 on {nic} in mode bridge"


def test_what_the_cluster_and_the_device_refuse(
    nic: str, kubeconfig: tuple[ApiServerStandIn, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A claim that is not there, and a value that the device does not take."""
    api, path = kubeconfig
    assert ran("c", "--kubeconfig", path) == 1
    claim(api, {"interface": {"subInterface": {"type": "macvlan"}}})
    assert ran("c", "--kubeconfig", path, "--device", f"nic={nic}") == 1
    printed = capsys.readouterr()
    assert "not found" in printed.err
    assert "the device is not shared, it moves whole" in printed.out


def test_the_claims_of_a_pod_of_the_cluster(
    nic: str, kubeconfig: tuple[ApiServerStandIn, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """All of them, in the pod's order, with what stands between them."""
    api, path = kubeconfig
    claim(api, {"interface": {"name": "net1"}})
    claim(api, {"interface": {"name": "net1"}}, "d")
    containers = [{"name": "app", "image": "x"}]
    named = [{"name": "one", "resourceClaimName": "d"}, {"name": "two", "resourceClaimName": "c"}]
    late = [{"name": "three", "resourceClaimTemplateName": "t"}]
    for name, claims in (("both", named), ("bare", []), ("late", late)):
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}}
        api.create(
            "/api/v1/namespaces/default/pods", {**body, "spec": {"containers": containers, "resourceClaims": claims}}
        )
    words = ("--kubeconfig", path, "--device", f"d:nic={nic}", "--device", f"c:nic={nic}p")
    assert ran("--pod", "both", *words, "-o", "json") == 1
    first, second = json.loads(capsys.readouterr().out)["claims"]
    assert (first["claim"]["name"], first["errors"]) == ("d", [])
    assert f"device {nic}, request nic, of claim d" in second["errors"][0]["message"]
    for name in ("bare", "late", "none"):
        assert ran("--pod", name, "--kubeconfig", path) == 1
    assert ran("--pod", "both", "c", "--kubeconfig", path) == 2
