"""The fault table, row by row: the fault is made, and the right outcome is what the test's docstring says."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.testing.runtime import RuntimeRefusedError
from nri_dranet.testing.stage import RESOURCE_API, Stage
from tests.node.driver.acts import CONFIG, error_of, events, home, prepared, restarted, running

if TYPE_CHECKING:
    from nri_dranet.testing.stage import StagedPod

MakeStage = Callable[..., Stage]
HostState = Callable[[str], Any]


def ip(*arguments: str) -> None:
    """Run ``ip`` on the host."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def journal_of(stage: Stage) -> Path:
    """Return the journal's file."""
    (found,) = stage.folder.rglob("journal.db")
    return found


def edit_journal(stage: Stage, statement: str, *values: object) -> None:
    """Change the journal's file while the daemon is down."""
    with sqlite3.connect(journal_of(stage)) as raw:
        raw.execute(statement, values)
    raw.close()


CLAIMS = "/apis/resource.k8s.io/v1/resourceclaims"


@pytest.fixture
def second() -> Iterator[str]:
    """Make another interface of the node."""
    ip("link", "add", "nictest1", "type", "veth", "peer", "name", "nictest1p")
    for each in ("nictest1p", "nictest1"):
        ip("link", "set", each, "addrgenmode", "none", "up")
    yield "nictest1"
    subprocess.run(["ip", "link", "del", "nictest1p"], check=False, capture_output=True)


def test_f01_killed_between_prepare_and_run(stage: Stage, nic: str) -> None:
    """No container of the pod starts without the device while the daemon is dead; afterwards it is attached."""
    pod = prepared(stage, nic)
    (answer,) = stage.prepare(pod).values()
    identities = [identity for device in answer["devices"] for identity in device["cdi"]]
    stage.stop_daemon(signal.SIGKILL)
    stage.runtime.run_pod(pod.sandbox)
    with pytest.raises(RuntimeRefusedError, match=f"unresolvable CDI devices .*{nic}"):
        stage.runtime.create_container(pod.sandbox, "app", identities)
    stage.start_daemon()
    stage.wait_condition("c", "Ready", "True")
    stage.runtime.create_container(pod.sandbox, "app", identities)
    assert "eth99" in pod.run("ip", "link")


def test_f06_claim_recreated_with_the_same_name(stage: Stage, nic: str) -> None:
    """The new claim's status is its own: nothing of the former claim is written to it."""
    pod = running(stage, nic)
    stage.end_pod(pod)
    stage.api.pause()
    assert error_of(stage.kubelet.unprepare([stage._reference("c")])) == ""
    stage.api.resume()
    stage.api.release("default", "c", uid=pod.uid)
    stage.api.delete(f"{RESOURCE_API}/namespaces/default/resourceclaims/c")
    stage.claim("c", [CONFIG])
    stage.wait_for(lambda: not events(stage, "StatusNotWritten"), "no complaint")
    assert not stage.get_claim("c").get("status", {}).get("devices")


def test_f08_interface_vanishes_before_prepare(stage: Stage, nic: str) -> None:
    """Prepare fails fast and names the device; Unprepare succeeds."""
    stage.claim("c", [CONFIG])
    stage.allocate("c", nic)
    pod = stage.pod("pod-c", "c")
    ip("link", "del", nic)
    assert nic in error_of(stage.prepare(pod))
    assert error_of(stage.unprepare(pod)) == ""


def test_f08_interface_vanishes_between_prepare_and_run(stage: Stage, nic: str) -> None:
    """The sandbox is refused with the device named, the status says so; Unprepare succeeds."""
    pod = prepared(stage, nic)
    ip("link", "del", nic)
    with pytest.raises(RuntimeRefusedError, match=nic):
        stage.runtime.run_pod(pod.sandbox)
    stage.wait_condition("c", "Ready", "False")
    assert error_of(stage.unprepare(pod)) == ""


def test_f08_interface_vanishes_in_use(stage: Stage, nic: str) -> None:
    """The status turns False, no further container starts, and Stop and Unprepare succeed."""
    pod = running(stage, nic)
    pod.run("ip", "link", "del", "eth99")
    stage.wait_condition("c", "Ready", "False")
    with pytest.raises(RuntimeRefusedError, match="not in the pod any more"):
        stage.runtime.create_container(pod.sandbox, "app")
    stage.end_pod(pod)
    assert error_of(stage.unprepare(pod)) == ""


def test_f09_force_deleted_pod(stage: Stage, nic: str) -> None:
    """The next pod waits for the device of one that still ends, and gets it as soon as that has ended."""
    first = running(stage, nic)
    stage.api.delete(f"/api/v1/namespaces/default/pods/{first.name}")
    stage.api.release("default", "c", uid=first.uid)
    second = stage.pod("second", "c")
    with pytest.raises(RuntimeRefusedError, match=r"pod-c|not known to be reserved"):
        stage.runtime.run_pod(second.sandbox)
    stage.end_pod(first)
    stage.wait_for(lambda: _runs(stage, second), "the second pod runs")
    assert "eth99" in second.run("ip", "link")


def _runs(stage: Stage, pod: StagedPod) -> bool:
    try:
        stage.runtime.run_pod(pod.sandbox)
    except RuntimeRefusedError:
        return False
    return True


def test_f10_duplicate_run(stage: Stage, nic: str) -> None:
    """The same sandbox twice: nothing changes."""
    pod = running(stage, nic)
    before = pod.run("ip", "-d", "addr")
    stage.runtime.run_pod(pod.sandbox)
    assert pod.run("ip", "-d", "addr") == before


def test_f10_sandbox_made_anew(stage: Stage, nic: str, host_state: HostState) -> None:
    """A new sandbox of the same pod gets the device out of the old one's namespace."""
    before = host_state(nic)
    pod = running(stage, nic)
    old = pod.sandbox
    fresh = stage.pod("fresh")
    new = type(old)(id="again", name=pod.name, namespace="default", uid=pod.uid, netns_path=fresh.netns_path)
    stage.runtime.run_pod(new)
    assert "eth99" in fresh.run("ip", "link")
    assert "eth99" not in pod.run("ip", "link")
    stage.runtime.stop_pod(old)
    assert "eth99" in fresh.run("ip", "link")
    stage.runtime.stop_pod(new)
    assert host_state(nic) == before


@pytest.mark.parametrize("how", ["twice", "without-netns", "netns-gone", "never"])
def test_f11_stop(stage: Stage, nic: str, host_state: HostState, how: str) -> None:
    """Stop twice, without a namespace, after the namespace's path is gone, or never: the device is home as it was."""
    before = host_state(nic)
    pod = running(stage, nic)
    if how == "twice":
        stage.runtime.stop_pod(pod.sandbox)
        stage.runtime.stop_pod(pod.sandbox)
    elif how == "without-netns":
        stage.runtime.stop_pod(pod.sandbox, with_netns=False)
    elif how == "netns-gone":
        # The daemon holds the namespace open, so that the virtual interface outlives the pod's processes.
        pod.process.kill()
        pod.process.wait()
        stage.runtime.stop_pod(pod.sandbox, with_netns=False)
    else:
        pod.process.kill()
        pod.process.wait()
        assert error_of(stage.unprepare(pod)) == ""
    assert host_state(nic) == before
    assert error_of(stage.unprepare(pod)) == ""
    assert _foreign_namespaces(stage) == 0


def _foreign_namespaces(stage: Stage) -> int:
    """Count the network namespaces that the daemon holds open besides its own."""
    own = Path(f"/proc/{stage.daemon_pid()}/ns/net").readlink()
    found = set()
    for descriptor in Path(f"/proc/{stage.daemon_pid()}/fd").iterdir():
        try:
            target = descriptor.readlink()
        except FileNotFoundError:
            continue
        if target.name.startswith("net:[") and target != own:
            found.add(target)
    return len(found)


def test_f11_stop_while_the_daemon_is_down(stage: Stage, nic: str, host_state: HostState) -> None:
    """The interface came home under its pod name without the daemon: it is found and made what it was."""
    before = host_state(nic)
    pod = running(stage, nic)
    stage.stop_daemon(signal.SIGKILL)
    pod.run("ip", "link", "set", "eth99", "netns", str(os.getpid()))
    stage.end_pod(pod)
    restarted(stage)
    home(stage, nic, host_state, before)


def test_f12_name_taken_in_the_pod(stage: Stage, nic: str, host_state: HostState) -> None:
    """The sandbox is refused with the name, the host is as before, and the next try succeeds when the name is free."""
    before = host_state(nic)
    pod = prepared(stage, nic)
    pod.run("ip", "link", "add", "eth99", "type", "bridge")
    with pytest.raises(RuntimeRefusedError, match="eth99"):
        stage.runtime.run_pod(pod.sandbox)
    assert host_state(nic) == before
    pod.run("ip", "link", "del", "eth99")
    stage.runtime.run_pod(pod.sandbox)


def test_f12_name_taken_on_the_host(stage: Stage, nic: str) -> None:
    """Somebody has the name when the device comes home: it comes home under another, and an Event says so."""
    pod = running(stage, nic)
    ip("link", "add", nic, "type", "veth", "peer", "name", "stranger")
    try:
        stage.end_pod(pod)
        stage.wait_for(lambda: events(stage, "DeviceNotRestored"), "an Event that says so")
        names = subprocess.run(["ip", "-o", "link"], check=True, capture_output=True, text=True).stdout
        assert "nictest0p@" in names
        assert "nictest0p@if" not in names
    finally:
        ip("link", "del", "stranger")


@pytest.mark.parametrize("damage", ["garbage", "empty", "directory", "truncated"])
def test_f13_damaged_journal(stage: Stage, nic: str, damage: str, host_state: HostState) -> None:
    """The daemon moves what it cannot read aside with an Event; a pod keeps its device, and gives it back as it was."""
    stage.wait_for(lambda: nic in stage.devices(), "published")
    before = host_state(nic)
    pod = running(stage, nic)
    status = stage.api.objects(CLAIMS)[0]["status"]["devices"]
    stage.stop_daemon()
    path = journal_of(stage)
    for side in ("-wal", "-shm"):
        path.with_name(path.name + side).unlink(missing_ok=True)
    content = path.read_bytes()
    path.unlink()
    if damage == "directory":
        path.mkdir()
    else:
        path.write_bytes({"garbage": b"x" * 9000, "empty": b"", "truncated": content[: len(content) // 2]}[damage])
    restarted(stage)
    if damage != "empty":
        stage.wait_for(lambda: events(stage, "JournalDamaged"), "an Event that says so")
    stage.wait_for(lambda: _state_of(stage, "c") == "attached", "the claim is known again")
    assert "eth99" in pod.run("ip", "link")
    assert stage.api.objects(CLAIMS)[0]["status"]["devices"] == status
    stage.end_pod(pod)
    home(stage, nic, host_state, before)


def _state_of(stage: Stage, claim: str) -> str:
    with sqlite3.connect(f"file:{journal_of(stage)}?mode=ro", uri=True) as raw:
        found = raw.execute("SELECT state FROM claims WHERE name=?", (claim,)).fetchone()
    raw.close()
    return str(found[0]) if found else ""


def test_f13_deleted_journal_of_a_pod_that_ended_meanwhile(stage: Stage, nic: str, host_state: HostState) -> None:
    """The file is gone and so is the pod, whose device came home under the pod's name: it gets its state back."""
    stage.wait_for(lambda: nic in stage.devices(), "published")
    before = host_state(nic)
    pod = running(stage, nic)
    stage.stop_daemon(signal.SIGKILL)
    for path in journal_of(stage).parent.glob("*.db*"):
        if path.is_file():
            path.unlink()
    pod.run("ip", "link", "set", "eth99", "netns", str(os.getpid()))
    stage.runtime.stop_pod(pod.sandbox)
    stage.runtime.remove_pod(pod.sandbox)
    restarted(stage)
    home(stage, nic, host_state, before)


def test_f13_one_damaged_row(stage: Stage, nic: str, second: str, host_state: HostState) -> None:
    """One claim's row cannot be read: an Event says so, its pod is refused, the other claim's pod is served."""
    bad, good = prepared(stage, nic, claim="bad"), prepared(stage, second, claim="good")
    stage.stop_daemon(signal.SIGKILL)
    for path in journal_of(stage).parent.glob("*.copies/*"):
        path.unlink()
    edit_journal(stage, "UPDATE claims SET plan='{' WHERE name='bad'")
    restarted(stage)
    stage.wait_for(lambda: events(stage, "RecordQuarantined"), "an Event that says so")
    before = host_state(nic)
    stage.wait_for(lambda: _refused(stage, bad, "cannot be read"), "the pod is refused")
    assert host_state(nic) == before
    stage.runtime.run_pod(good.sandbox)
    assert "eth99" in good.run("ip", "link")
    assert error_of(stage.unprepare(bad)) == ""


def _refused(stage: Stage, pod: StagedPod, word: str) -> bool:
    try:
        stage.runtime.run_pod(pod.sandbox)
    except RuntimeRefusedError as error:
        return word in str(error)
    stage.runtime.stop_pod(pod.sandbox)
    stage.runtime.remove_pod(pod.sandbox)
    return False


@pytest.mark.usefixtures("journal_lost")
def test_f13_journal_of_a_newer_version(stage: Stage) -> None:
    """A downgrade is refused in words that say what to do; the file stays as it is."""
    stage.stop_daemon()
    edit_journal(stage, "PRAGMA user_version = 99")
    stage.start_daemon()
    stage.wait_for(lambda: "has version 99" in stage.log.read_text(), "the words")
    with sqlite3.connect(journal_of(stage)) as raw:
        assert raw.execute("PRAGMA user_version").fetchone() == (99,)
    raw.close()


def test_f14_disk_full(make_stage: MakeStage, nic: str, host_state: HostState) -> None:
    """Prepare fails in words with nothing applied; when there is room again the same call succeeds."""
    stage = make_stage()
    folder = stage.kubelet_root / "plugins"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], check=True)
    try:
        restarted(stage)
        stage.wait_for(lambda: nic in stage.devices(), "published")
        before = host_state(nic)
        stage.claim("c", [CONFIG])
        stage.allocate("c", nic)
        pod = stage.pod("pod-c", "c")
        filler = folder / "filler"
        subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4k"], check=False, capture_output=True)
        error = error_of(stage.prepare(pod))
        assert "journal" in error
        assert "full" in error or "No space left" in error
        assert host_state(nic) == before
        filler.unlink()
        assert error_of(stage.prepare(pod)) == ""
        stage.runtime.run_pod(pod.sandbox)
        assert "eth99" in pod.run("ip", "link")
        # Full again while the pod runs: the device comes home all the same.
        subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4k"], check=False, capture_output=True)
        stage.end_pod(pod)
        home(stage, nic, host_state, before)
        filler.unlink()
    finally:
        stage.stop_daemon()
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_f15_reboot_with_state_kept(stage: Stage, nic: str) -> None:
    """The boot ID differs: nothing is prepared or attached, nor said to be; no receipt is left; Prepare starts anew."""
    pod = running(stage, nic)
    stage.stop_daemon(signal.SIGKILL)
    pod.run("ip", "link", "set", "eth99", "netns", str(os.getpid()))
    ip("link", "set", "eth99", "name", nic)
    stage.end_pod(pod)
    edit_journal(stage, "UPDATE claims SET boot_id='an earlier one'")
    restarted(stage)
    assert list(stage.cdi.glob("*.json")) == []
    found = stage.wait_condition("c", "Ready", "False")
    assert "started anew" in found["conditions"][0]["message"]
    assert error_of(stage.prepare(pod)) == ""
    again = stage.pod("again", "c")
    assert error_of(stage.prepare(again)) == ""
    stage.runtime.run_pod(again.sandbox)
    assert "eth99" in again.run("ip", "link")


def test_f16_restart_with_a_running_pod(stage: Stage, nic: str, host_state: HostState) -> None:
    """An upgrade: the old pod can be deleted, and a new pod works."""
    before = host_state(nic)
    pod = running(stage, nic)
    assert stage.stop_daemon() == 0
    restarted(stage)
    stage.end_pod(pod)
    assert error_of(stage.unprepare(pod)) == ""
    assert host_state(nic) == before
    assert "eth99" in running(stage, nic, claim="d").run("ip", "link")


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"interface": {"name": "a/b"}}, "interface.name"),
        ({"interface": {"name": "eth%d"}}, "interface.name"),
        ({"interface": {"name": "all"}}, "interface.name"),
        ({"interface": {"name": "\u0665th"}}, "interface.name"),
        ({"interface": {"mtu": 2**31}}, "interface.mtu"),
        ({"interface": {"hardwareAddr": "00:00:00:00:00:00"}}, "interface.hardwareAddr"),
        ({"interface": {"addresses": ["224.0.0.1/24"]}}, "interface.addresses[0]"),
        ({"interface": {"gsoMaxSize": 2**32}}, "interface.gsoMaxSize"),
        ({"routes": [{"destination": "10.0.0.0/8", "table": 2**32}]}, "routes[0].table"),
    ],
)
def test_f17_malicious_configuration(
    stage: Stage, nic: str, host_state: HostState, config: dict[str, Any], path: str
) -> None:
    """Refused in Prepare with the field's path; nothing is touched."""
    before = host_state(nic)
    stage.claim("c", [config])
    stage.allocate("c", nic)
    assert path in error_of(stage.prepare(stage.pod("pod-c", "c")))
    assert host_state(nic) == before


def test_f20_devices_of_other_drivers(stage: Stage, nic: str) -> None:
    """A claim with another driver's device: that one is ignored, ours is attached."""
    stage.claim("c", [CONFIG], requests=("nic", "gpu"))
    configs = [{"opaque": {"driver": "dra.net", "parameters": CONFIG}, "requests": ["nic"], "source": "FromClaim"}]
    results = [
        {"request": "nic", "driver": "dra.net", "pool": "node", "device": nic},
        {"request": "gpu", "driver": "gpu.example.com", "pool": "node", "device": "gpu0"},
    ]
    stage.api.allocate("default", "c", results=results, config=configs, node="node")
    pod = stage.pod("pod-c", "c")
    (answer,) = stage.prepare(pod).values()
    assert [device["device"] for device in answer["devices"]] == [nic]
    stage.runtime.run_pod(pod.sandbox)
    assert "eth99" in pod.run("ip", "link")


def test_f21_one_of_two_claims_unprepared_first(stage: Stage, nic: str, second: str, host_state: HostState) -> None:
    """The other claim's device stays in the pod and comes home as it was."""
    before = host_state(nic), host_state(second)
    for claim, device, name in (("a", nic, "eth98"), ("b", second, "eth99")):
        stage.claim(claim, [{"interface": {"name": name}}])
        stage.allocate(claim, device)
    pod = stage.pod("pod-ab", "a", "b")
    assert [answer["error"] for answer in stage.prepare(pod).values()] == ["", ""]
    stage.runtime.run_pod(pod.sandbox)
    assert error_of(stage.kubelet.unprepare([stage._reference("a")])) == ""
    assert host_state(nic) == before[0]
    assert "eth99" in pod.run("ip", "link")
    stage.end_pod(pod)
    assert host_state(second) == before[1]


def test_f22_one_device_in_two_claims(stage: Stage, nic: str) -> None:
    """The second Prepare is refused with both sides named; the first pod keeps the device."""
    pod = running(stage, nic)
    stage.claim("d", [CONFIG])
    stage.allocate("d", nic)
    text = error_of(stage.prepare(stage.pod("pod-d", "d")))
    assert "default/c" in text
    assert "default/pod-c" in text
    assert "eth99" in pod.run("ip", "link")


def test_f26_uplink(stage: Stage, nic: str, host_state: HostState) -> None:
    """The interface has become the node's uplink since Prepare: it is not moved, and the error says why."""
    pod = prepared(stage, nic)
    ip("route", "add", "default", "via", "192.0.2.1", "dev", nic)
    before = host_state(nic)
    stage.wait_for(lambda: nic not in stage.devices(), "no longer published")
    with pytest.raises(RuntimeRefusedError, match="needed by the node"):
        stage.runtime.run_pod(pod.sandbox)
    assert host_state(nic) == before


def test_f28_unprepare_without_the_api_server(stage: Stage, nic: str, host_state: HostState) -> None:
    """Local state is enough: whatever the pod's status says, and while nobody answers."""
    before = host_state(nic)
    pod = running(stage, nic)
    reference = stage._reference("c")
    stage.api.stop()
    try:
        stage.end_pod(pod)
        assert error_of(stage.kubelet.unprepare([reference])) == ""
        assert host_state(nic) == before
    finally:
        stage.api.start()


def test_f29_many_pods_at_once(make_stage: MakeStage) -> None:
    """Prepare of many claims at the same time: all succeed, all pods get their own device."""
    count = 12
    for i in range(count):
        ip("link", "add", f"many{i}", "type", "veth", "peer", "name", f"many{i}p")
    try:
        stage = make_stage()
        restarted(stage)
        stage.wait_for(lambda: {f"many{i}" for i in range(count)} <= stage.devices().keys(), "published")
        pods = []
        for i in range(count):
            stage.claim(f"c{i}", [{"interface": {"name": f"net{i}"}}])
            stage.allocate(f"c{i}", f"many{i}")
            pods.append(stage.pod(f"pod-{i}", f"c{i}"))
        errors: list[str] = []
        threads = [threading.Thread(target=lambda p=pod: errors.append(error_of(stage.prepare(p)))) for pod in pods]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == [""] * count
        for i, pod in enumerate(pods):
            stage.runtime.run_pod(pod.sandbox)
            assert f"net{i}" in pod.run("ip", "link")
        for pod in pods:
            stage.end_pod(pod)
        assert _foreign_namespaces(stage) == 0
    finally:
        for i in range(count):
            subprocess.run(["ip", "link", "del", f"many{i}p"], check=False, capture_output=True)


@pytest.mark.parametrize("connected", [True, False])
def test_f31_another_plugin_fails_after_ours(stage: Stage, nic: str, host_state: HostState, connected: bool) -> None:
    """With us connected Stop comes; without, the kernel brings the device home: the next attempt attaches it."""
    before = host_state(nic)
    pod = prepared(stage, nic)
    stage.runtime.run_pod(pod.sandbox)
    if connected:
        stage.runtime.stop_pod(pod.sandbox)
        stage.runtime.remove_pod(pod.sandbox)
    else:
        stage.stop_daemon(signal.SIGKILL)
        pod.run("ip", "link", "set", "eth99", "netns", str(os.getpid()))
        ip("link", "set", "eth99", "name", "dev7")
        stage.end_pod(pod)
        restarted(stage)
    fresh = stage.pod("fresh")
    again = type(pod.sandbox)(id="again", name=pod.name, namespace="default", uid=pod.uid, netns_path=fresh.netns_path)
    stage.runtime.run_pod(again)
    assert "eth99" in fresh.run("ip", "link")
    stage.runtime.stop_pod(again)
    assert host_state(nic) == before
