"""What a container finds of its devices (KEP-5304), from the attach to the pod's end, with the daemon as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from nri_dranet.testing.stage import Stage

CONFIG = {"interface": {"name": "eth99", "addresses": ["169.254.169.13/32"]}}


def mount(stage: Stage) -> dict[str, Any]:
    """Return the one mount of the one receipt."""
    (receipt,) = stage.cdi.glob("*.json")
    (device,) = json.loads(receipt.read_text())["devices"]
    (found,) = device["containerEdits"]["mounts"]
    return dict(found)


def newest(file: Path) -> Any:
    """Return the object of the newest version, which comes first."""
    return json.loads(file.read_text().splitlines()[0])


def test_the_file_follows_the_interface_from_attach_to_the_end(
    stage: Stage, nic: str, host_state: Callable[[str], Any]
) -> None:
    """The receipt binds it in; it has name, MAC, addresses, attributes; the same file changes; it goes with the pod."""
    mac = host_state(nic)["link"]["address"]
    published = stage.devices()[nic]["attributes"]
    stage.claim("c", [CONFIG])
    stage.allocate("c", nic)
    pod = stage.pod("pod-c", "c")
    stage.prepare(pod)
    assert list(stage.kubelet_root.rglob("dra-device-metadata/*")) == []

    stage.runtime.run_pod(pod.sandbox)
    bound = mount(stage)
    root = "/var/run/kubernetes.io/dra-device-attributes"
    assert bound["containerPath"] == f"{root}/resourceclaims/c/nic/dra.net-metadata.json"
    assert bound["options"] == ["ro", "bind"]
    file = Path(bound["hostPath"])
    inode = file.stat().st_ino
    claim = stage.get_claim("c")["metadata"]
    assert newest(file) == {
        "apiVersion": "metadata.resource.k8s.io/v1beta1",
        "kind": "DeviceMetadata",
        "metadata": {"name": "c", "namespace": "default", "uid": claim["uid"], "generation": 1},
        "requests": [
            {
                "name": "nic",
                "devices": [
                    {
                        "driver": "dra.net",
                        "pool": "node",
                        "name": nic,
                        "attributes": published,
                        "networkData": {
                            "interfaceName": "eth99",
                            "ips": ["169.254.169.13/32"],
                            "hardwareAddress": mac,
                        },
                    }
                ],
            }
        ],
    }

    pod.run("ip", "addr", "add", "192.0.2.99/24", "dev", "eth99")
    stage.wait_for(lambda: "192.0.2.99/24" in file.read_text(), "the address in the file")
    changed = newest(file)
    assert changed["metadata"]["generation"] == 2
    network = changed["requests"][0]["devices"][0]["networkData"]
    assert network["ips"] == ["169.254.169.13/32", "192.0.2.99/24"]
    assert file.stat().st_ino == inode

    stage.end_pod(pod)
    assert not file.exists()
    assert list(stage.cdi.glob("*.json")) == []


def test_a_change_while_the_daemon_is_dead_is_in_the_file_after_its_start(stage: Stage, nic: str) -> None:
    """The restarted daemon looks, and brings the same file up to date."""
    stage.claim("c", [CONFIG])
    stage.allocate("c", nic)
    pod = stage.pod("pod-c", "c")
    stage.prepare(pod)
    stage.runtime.run_pod(pod.sandbox)
    file = Path(mount(stage)["hostPath"])
    inode = file.stat().st_ino
    stage.stop_daemon()
    pod.run("ip", "addr", "add", "192.0.2.99/24", "dev", "eth99")
    stage.start_daemon()
    stage.wait_for(lambda: "192.0.2.99/24" in file.read_text(), "the address in the file")
    assert file.stat().st_ino == inode
    stage.end_pod(pod)
    assert not file.exists()
