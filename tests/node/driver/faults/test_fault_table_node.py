"""Rows of the fault table whose fault is in the node or in what others name: folders, devices, hostile names."""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nri_dranet import bpf
from nri_dranet.testing.stage import Stage
from tests.node.driver.acts import CONFIG, error_of, events, prepared

MakeStage = Callable[..., Stage]
HostState = Callable[[str], Any]

SLICES = "/apis/resource.k8s.io/v1/resourceslices"


@pytest.fixture
def folder(make_stage: MakeStage) -> Iterator[tuple[Stage, Path]]:
    """Return a stage that has not been started, and the folder of the driver's state, a file system of its own."""
    stage = make_stage()
    folder = stage.kubelet_root / "plugins"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], check=True)
    yield stage, folder
    stage.stop_daemon(signal.SIGKILL)
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("fault", ["read-only", "full"])
def test_f13_folder_that_cannot_be_written_at_the_start(folder: tuple[Stage, Path], nic: str, fault: str) -> None:
    """The daemon does not end: it says in readiness, log and an Event what is wrong, and begins when that is over."""
    stage, state = folder
    filler = state / "filler"
    if fault == "full":
        subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4k"], check=False, capture_output=True)
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(state)], check=True)
    stage.start_daemon()
    stage.wait_for(lambda: stage.http("/healthz")[0] == 200, "the daemon lives")
    status, text = stage.http("/readyz")
    assert status == 503
    assert "[-]journal: " in text
    assert ("Read-only file system" if fault == "read-only" else "full") in text or "No space left" in text
    stage.wait_for(lambda: events(stage, "JournalUnusable"), "an Event")
    assert stage.daemon_pid()
    if fault == "full":
        filler.unlink()
    else:
        subprocess.run(["mount", "-o", "remount,rw", str(state)], check=True)
    stage.wait_ready()
    stage.wait_for(lambda: nic in stage.devices(), "published")
    pod = prepared(stage, nic)
    stage.runtime.run_pod(pod.sandbox)
    assert "eth99" in pod.run("ip", "link")
    stage.end_pod(pod)
    assert stage.stop_daemon() == 0


@pytest.mark.parametrize(
    "name", ["../../../../tmp/evil", "/etc/passwd", "a b\n", "x" * 300, 'a"}[', "..", "évil"], ids=range(7)
)
def test_f18_hostile_names(stage: Stage, nic: str, host_state: HostState, name: str) -> None:
    """Of a device, a claim and a UID: refused in words or unknown; no file has such a name, no metric such a label."""
    before = host_state(nic)
    pod = prepared(stage, nic)
    seen = _files(stage)
    for reference in [("default", name, "u1"), ("default", "c", name), (name, "c", "u2"), (name, name, name)]:
        assert error_of(stage.kubelet.prepare([reference]))
        assert error_of(stage.kubelet.unprepare([reference])) == ""
    assert _files(stage) == seen
    assert name not in stage.http("/metrics")[1]
    assert host_state(nic) == before
    stage.runtime.run_pod(pod.sandbox)
    assert "eth99" in pod.run("ip", "link")
    stage.end_pod(pod)


@pytest.mark.parametrize("device", ["lo", "all", "default", "x" * 63])
def test_f18_foreign_device(stage: Stage, nic: str, host_state: HostState, device: str) -> None:
    """An allocation names a device that is not published here: Prepare says which, and touches nothing."""
    before = host_state(nic)
    stage.claim("c", [CONFIG])
    stage.allocate("c", device)
    seen = _files(stage)
    error = error_of(stage.prepare(stage.pod("pod-c", "c")))
    assert device in error
    assert _files(stage) == seen
    assert host_state(nic) == before


def _files(stage: Stage) -> set[str]:
    """Return the names of everything that the daemon may have made, on the stage and where hostile names point."""
    found = {str(path.relative_to(stage.folder)) for path in stage.folder.rglob("*") if "journal.db-" not in path.name}
    return found | {str(path) for path in Path("/tmp").glob("evil*")}


def test_f24_more_devices_than_a_slice_holds(make_stage: MakeStage) -> None:
    """All are published, in slices that the API server takes; what is too long is left out of its device and told."""
    names = [f"many{number}" for number in range(140)]
    lines = [f"link add {name} type veth peer name {name}p" for name in names]
    lines.append(f"link set {names[7]} alias {'a' * 200}")
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
    try:
        stage = make_stage()
        stage.start_daemon()
        stage.wait_ready()
        stage.wait_for(lambda: set(names) <= stage.devices().keys(), "all devices are published")
        slices = stage.api.objects(SLICES)
        counts = [len(item["spec"]["devices"]) for item in slices]
        assert max(counts) <= 128
        assert sum(counts) == len({device["name"] for item in slices for device in item["spec"]["devices"]})
        assert {item["spec"]["pool"]["resourceSliceCount"] for item in slices} == {len(slices)}
        assert len({item["spec"]["pool"]["generation"] for item in slices}) == 1
        for device in stage.devices().values():
            assert len(device["attributes"]) <= 32
            for value in device["attributes"].values():
                assert len(str(value.get("string", ""))) <= 64
        assert "dra.net/alias" in stage.log.read_text()
        pod = prepared(stage, names[7])
        stage.runtime.run_pod(pod.sandbox)
        assert "eth99" in pod.run("ip", "link")
        stage.end_pod(pod)
    finally:
        lines = [f"link del {name}p" for name in names]
        subprocess.run(["ip", "-force", "-batch", "-"], input="\n".join(lines), text=True, check=False)


PINS = itertools.count()


@pytest.fixture
def pinned(nic: str) -> Iterator[Path]:
    """Pin a TCX link on the interface, as a cluster's network plugin does; return its path."""
    code = struct.pack("=BBhi", 0xB7, 0, 0, -1) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    instructions, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    addresses = ctypes.addressof(instructions), ctypes.addressof(licence)
    load = struct.pack("=IIQQIIQII16sII", 3, 2, *addresses, 0, 0, 0, 0, 0, b"pass", 0, 46)
    program = bpf._bpf(5, load)[0]
    index = int(Path(f"/sys/class/net/{nic}/ifindex").read_text())
    link = bpf._bpf(28, struct.pack("=IIII", program, index, 46, 0))[0]
    root = Path("/sys/fs/bpf")
    mounted = subprocess.run(["mountpoint", "-q", str(root)], check=False).returncode == 0
    if not mounted:
        subprocess.run(["mount", "-t", "bpf", "bpf", str(root)], check=True)
    path = root / f"fault27-{os.getpid()}-{next(PINS)}"
    name = ctypes.create_string_buffer(str(path).encode())
    bpf._bpf(6, struct.pack("=QII", ctypes.addressof(name), link, 0))
    for descriptor in (link, program):
        os.close(descriptor)
    yield path
    path.unlink(missing_ok=True)
    if not mounted:
        subprocess.run(["umount", "-l", str(root)], check=True)


@pytest.mark.parametrize("detach", [True, False])
def test_f27_pinned_program(stage: Stage, nic: str, pinned: Path, host_state: HostState, detach: bool) -> None:
    """The claim asks for it: the program is cut from the interface although its link is pinned. Else it stays on it."""
    assert pinned.exists()
    before = host_state(nic)
    index = int(Path(f"/sys/class/net/{nic}/ifindex").read_text())
    assert [one.hook for one in bpf.programs(index)] == ["TCX ingress"]
    pod = prepared(stage, nic, {"interface": {**CONFIG["interface"], "disableEbpfPrograms": detach}})
    stage.runtime.run_pod(pod.sandbox)
    (link,) = [one for one in bpf.links() if one.kind == "TCX"]
    assert bool(link.index) is not detach, "a link that was cut has no interface"
    stage.end_pod(pod)
    assert host_state(nic) == before
    assert [one.hook for one in bpf.programs(index)] == ([] if detach else ["TCX ingress"])
    if detach:
        stage.wait_for(
            lambda: [e for e in stage.api.objects("/api/v1/events") if e["reason"] == "DeviceNotRestored"],
            "an Event says that its owner must attach it anew",
        )
