"""``nri-dranet demo``: one pod from its claim to its end, on this machine, without a cluster.

The daemon, the kernel and the protocols are the real ones; kubelet, container runtime and API server are stand-ins.
All of it lives in namespaces of its own (a user namespace when not root) and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from nri_dranet.testing.stage import Stage, StagedPod

_INSIDE: Final = "NRI_DRANET_DEMO_INSIDE"
_DEVICE: Final = "dummy2"
_CLAIM: Final = "dummy-interface-static-ip-route"
_CONFIG: Final[dict[str, Any]] = {
    "interface": {"name": "eth99", "addresses": ["169.254.169.13/32"]},
    "routes": [
        {"destination": "169.254.169.0/24", "gateway": "169.254.169.1"},
        {"destination": "169.254.169.1/32", "scope": 253},
    ],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the command."""
    parser.add_argument("--log", action="store_true", help="print the daemon's log at the end")


def run(args: argparse.Namespace) -> int:
    """Run the demo.

    Returns:
        0 when everything went as it should, else 1.
    """
    if os.environ.get(_INSIDE) != "1":
        return _enter_namespaces()
    from nri_dranet.testing.stage import Stage, StageError  # noqa: PLC0415 - only inside, and only here

    with tempfile.TemporaryDirectory(prefix="demo", ignore_cleanup_errors=True) as folder:
        stage = Stage(Path(folder))
        try:
            _play(stage)
        except (StageError, subprocess.CalledProcessError, OSError) as error:
            print(f"\nThe demo failed: {error}", file=sys.stderr)
            return 1
        finally:
            stage.close()
            if args.log and stage.log.exists():
                print("\n--- the daemon's log\n" + stage.log.read_text(encoding="utf-8", errors="replace"))
    print("\nAll ended; nothing is left.")
    return 0


# ---- the namespaces


def _enter_namespaces() -> int:
    """Run this command again in namespaces of its own."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    if user and subprocess.run(["unshare", *user, "--net", "true"], check=False, capture_output=True).returncode:
        print(
            "nri-dranet demo: this machine does not allow user namespaces: run it as root, "
            "or allow them (sysctl kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)",
            file=sys.stderr,
        )
        return 1
    # A sysfs of the new network namespace, so that the node's own interfaces are seen and no others.
    script = 'mount -t sysfs sysfs /sys && ip link set lo up && exec "$@"'
    again = [sys.executable, "-m", "nri_dranet", *sys.argv[1:]]
    command = ["unshare", *user, "--net", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *again]
    return subprocess.run(command, check=False, env={**os.environ, _INSIDE: "1"}).returncode


# ---- the play


def _play(stage: Stage) -> None:
    began = time.monotonic()
    print("A node with a few interfaces, in a network namespace of its own:")
    with _step("interfaces made"):
        kind = _make_interfaces()
    before = _ip("-br", "addr")
    print(_indent(before))
    with _step("stand-ins for API server, kubelet and container runtime started"):
        stage.start()
    with _step("daemon started: joined kubelet and runtime, ResourceSlice published"):
        stage.start_daemon()
        stage.wait_ready()
        stage.wait_for(lambda: _DEVICE in stage.devices(), f"device {_DEVICE} in a ResourceSlice")
    print(f"    published: {', '.join(sorted(stage.devices()))} (the interfaces are of kind {kind})")
    with _step("claim created and allocated (the scheduler's work)"):
        stage.claim(_CLAIM, [_CONFIG], requests=["req-dummy"])
        stage.allocate(_CLAIM, _DEVICE)
        pod = stage.pod("pod3", _CLAIM)
    _start(stage, pod)
    with _step("status written"):
        stage.wait_condition(_CLAIM, "NetworkReady", "True")
    print("\n$ kubectl get resourceclaim " + _CLAIM + " -o yaml")
    print(_yaml(_shown(stage.get_claim(_CLAIM))))
    print("$ ip addr    (in the pod)\n" + _indent(pod.run("ip", "addr")))
    print("$ ip route   (in the pod)\n" + _indent(pod.run("ip", "route")))
    _end(stage, pod)
    after = _ip("-br", "addr")
    print(_indent(after))
    if before != after:
        raise OSError("an interface is not as it was before")
    print(f"The interfaces are as they were. The whole took {time.monotonic() - began:.1f} s.")


def _start(stage: Stage, pod: StagedPod) -> None:
    with _step("NodePrepareResources"):
        answers = stage.prepare(pod)
    for answer in answers.values():
        if answer["error"]:
            raise OSError(answer["error"])
    receipts = [identity for answer in answers.values() for device in answer["devices"] for identity in device["cdi"]]
    with _step("RunPodSandbox: interface moved and configured"):
        stage.runtime.run_pod(pod.sandbox)
    with _step("CreateContainer: the receipt resolves"):
        stage.runtime.create_container(pod.sandbox, "app", receipts)


def _end(stage: Stage, pod: StagedPod) -> None:
    with _step("StopPodSandbox: interface given back and restored"):
        stage.end_pod(pod)
    with _step("NodeUnprepareResources"):
        stage.unprepare(pod)
    with _step("daemon stopped"):
        stage.stop_daemon()


def _make_interfaces() -> str:
    """Make dummy0 to dummy2 as dummies, or as veths where the kernel has no dummy; return the kind."""
    dummy = subprocess.run(["ip", "link", "add", "dummy0", "type", "dummy"], check=False, capture_output=True)
    kind = "dummy" if dummy.returncode == 0 else "veth"
    for number in range(3):
        name = f"dummy{number}"
        if kind == "veth":
            _ip("link", "add", name, "type", "veth", "peer", "name", f"{name}-peer")
            _ip("link", "set", f"{name}-peer", "up")
        elif number:
            _ip("link", "add", name, "type", "dummy")
        _ip("link", "set", name, "up")
    _ip("addr", "add", "192.0.2.1/24", "dev", "dummy1")
    _wait_for_link_local()
    return kind


def _wait_for_link_local() -> None:
    """Wait until duplicate address detection has ended, so that before and after can be compared."""
    end = time.monotonic() + 5
    while "tentative" in _ip("-6", "addr") and time.monotonic() < end:
        time.sleep(0.05)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


@contextlib.contextmanager
def _step(text: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"  {(time.monotonic() - began) * 1000:8.1f} ms  {text}")


# ---- showing


def _shown(claim: dict[str, Any]) -> dict[str, Any]:
    """The claim as kubectl prints it: without managedFields."""
    shown: dict[str, Any] = json.loads(json.dumps(claim))
    shown["metadata"].pop("managedFields", None)
    return shown


def _yaml(value: dict[str, Any]) -> str:
    import yaml  # noqa: PLC0415 - only for printing; the kubernetes package brings it

    class KubectlDumper(yaml.SafeDumper):
        """Quotes as kubectl does."""

    def text(dumper: Any, data: str) -> Any:
        plain = data != "" and dumper.resolve(yaml.ScalarNode, data, (True, False)) == "tag:yaml.org,2002:str"
        return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=None if plain else '"')

    KubectlDumper.add_representer(str, text)
    return yaml.dump(value, Dumper=KubectlDumper, sort_keys=True, default_flow_style=False)


def _indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
