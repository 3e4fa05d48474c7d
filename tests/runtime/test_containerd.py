"""What the driver relies on in a real containerd, shown without the driver."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hack import images
from hack.cri import CriClient, CriError
from hack.node import CDI_DIR, NRI_SOCKET, Node
from hack.plugin import CREATE, REMOVE, RUN, STOP, Plugin, RefusedError

if TYPE_CHECKING:
    from hack import parts

SLEEP = ("sleep", "3600")


def write_cdi(node: Node, kind: str, name: str) -> str:
    """Write a CDI file with one device that sets a variable; return the device's full name."""
    spec = {"cdiVersion": "0.5.0", "kind": kind, "devices": [{"name": name, "containerEdits": {"env": ["CDI=seen"]}}]}
    path = node.path(f"{CDI_DIR}/{name}.json")
    scratch = path.with_name(f".{name}")
    scratch.write_text(json.dumps(spec), encoding="utf-8")
    scratch.rename(path)
    return f"{kind}={name}"


def test_it_is_the_version_that_was_built(containerd: parts.Part, client: CriClient) -> None:
    """The runtime of a node reports the version that its part is pinned to."""
    assert client.version() == ("containerd", containerd.version)


def test_a_pod_has_a_network_namespace_and_an_address(node: Node, client: CriClient) -> None:
    """A sandbox has eth0 with an address of the pods' network, and a container runs in it."""
    pod = node.pod("plain")
    sandbox = client.run_sandbox(pod)
    links = {link["ifname"]: link for link in node.ip("address", netns=client.netns(sandbox))}
    assert links["eth0"]["addr_info"][0]["local"].startswith("10.233.")
    container = client.create_container(sandbox, pod, "main", SLEEP, image=images.BUSYBOX)
    client.start_container(container)
    assert client.containers() == {container: "CONTAINER_RUNNING"}
    assert "eth0" in client.exec(container, "ip", "link")
    client.stop_sandbox(sandbox)
    client.remove_sandbox(sandbox)
    assert client.sandboxes() == {}
    assert list(node.path("/run/netns").iterdir()) == []


def test_a_plugin_is_told_of_each_sandbox(containerd: parts.Part, node: Node, client: CriClient) -> None:
    """Run, create, stop and remove reach a plugin; containerd 1.7 sends those of sandboxes as state changes."""
    with Plugin(node.path(NRI_SOCKET)) as plugin:
        pod = node.pod("told")
        sandbox = client.run_sandbox(pod)
        client.create_container(sandbox, pod, "main", SLEEP, image=images.BUSYBOX)
        client.stop_sandbox(sandbox)
        client.remove_sandbox(sandbox)
    assert plugin.methods(pod.uid) == [RUN, CREATE, STOP, REMOVE]
    forms = {form for method, _, form in plugin.seen if method != CREATE}
    assert forms == {"state change" if containerd.version.startswith("1.") else "call"}
    _, event, _ = plugin.seen[0]
    assert (event.id, event.name, event.namespace) == (sandbox, "told", "default")
    paths = [item.path for item in event.linux.namespaces if item.type == "network"]
    assert len(paths) == 1
    assert Path(paths[0]).parent == Path("/var/run/netns")


def test_an_error_refuses_the_sandbox(node: Node, client: CriClient) -> None:
    """A plugin's error comes back to the caller of RunPodSandbox; the same pod can be tried again."""
    errors = ["no device for you"]

    def handler(method: str, _pod: Any) -> None:
        if method == RUN and errors:
            raise RefusedError(errors.pop())

    with Plugin(node.path(NRI_SOCKET), handler=handler) as plugin:
        pod = node.pod("refused")
        with pytest.raises(CriError, match="no device for you"):
            client.run_sandbox(pod)
        assert client.sandboxes() == {}
        assert list(node.path("/run/netns").iterdir()) == []
        assert plugin.methods(pod.uid) == [RUN, STOP, REMOVE]
        client.run_sandbox(pod)


def test_a_container_needs_its_cdi_device(node: Node, client: CriClient) -> None:
    """A container with a CDI device cannot be created while nothing describes the device, and then gets it."""
    pod = node.pod("cdi")
    sandbox = client.run_sandbox(pod)
    cdi = ("example.com/nic=one",)
    with pytest.raises(CriError, match=r"unresolvable CDI devices example\.com/nic=one"):
        client.create_container(sandbox, pod, "main", SLEEP, image=images.BUSYBOX, cdi=cdi)
    assert write_cdi(node, "example.com/nic", "one") == cdi[0]
    container = client.create_container(sandbox, pod, "main", SLEEP, image=images.BUSYBOX, cdi=cdi)
    client.start_container(container)
    assert client.exec(container, "sh", "-c", "echo $CDI").strip() == "seen"


def test_pods_outlive_containerd(node: Node, client: CriClient) -> None:
    """A killed containerd that starts again finds its pods, lists them to plugins, and stops them without a hook."""
    pod = node.pod("outlives")
    sandbox = client.run_sandbox(pod)
    container = client.create_container(sandbox, pod, "main", SLEEP, image=images.BUSYBOX)
    client.start_container(container)
    node.stop_containerd(kill=True)
    node.start_containerd()
    assert client.sandboxes() == {sandbox: True}
    assert client.containers() == {container: "CONTAINER_RUNNING"}
    with Plugin(node.path(NRI_SOCKET)) as plugin:
        assert [each.uid for each in plugin.synchronized] == [pod.uid]
        client.stop_sandbox(sandbox)
        client.remove_sandbox(sandbox)
    assert STOP not in plugin.methods(pod.uid)
