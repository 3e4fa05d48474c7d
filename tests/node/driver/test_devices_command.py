"""``nri-dranet devices`` beside the daemon: it says what the slices say, with whose each device is."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from tests.node.driver.acts import running

if TYPE_CHECKING:
    from nri_dranet.testing.stage import Stage

NODE = "/api/v1/nodes/node"


def command(stage: Stage, *words: str) -> dict[str, Any]:
    """Run it with nothing but where kubelet's folder is, and return what it prints as data."""
    asked = [sys.executable, "-m", "nri_dranet", "devices", f"--kubelet-root-dir={stage.kubelet_root}", "-o", "json"]
    found: dict[str, Any] = json.loads(subprocess.run([*asked, *words], check=True, capture_output=True).stdout)
    return found


def published(told: dict[str, Any]) -> dict[str, Any]:
    """Return the entries that would be published, by name."""
    own = {"published", "reason", "claim", "pod"}
    return {
        row["name"]: {key: value for key, value in row.items() if key not in own}
        for row in told["devices"]
        if row["published"]
    }


def test_it_says_what_the_slices_say(stage: Stage, nic: str) -> None:
    """A device in a pod, the node's own address and the Node's filter: as the daemon knows them."""
    pod = running(stage, nic)
    told = command(stage)
    assert "notes" not in told
    assert published(told) == stage.devices()
    (row,) = [row for row in told["devices"] if row["name"] == nic]
    assert (row["pod"], row["claim"]) == ("default/pod-c", "default/c")
    stage.end_pod(pod)
    stage.wait_for(lambda: "pod" not in next(r for r in command(stage)["devices"] if r["name"] == nic), "home")
    stage.api.merge(f"{NODE}/status", {"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.10"}]}})
    stage.wait_for(lambda: nic not in stage.devices(), "withdrawn")
    (row,) = [row for row in command(stage)["devices"] if row["name"] == nic]
    assert row["reason"] == "it carries the node's address 192.0.2.10"
    stage.api.merge(NODE, {"metadata": {"annotations": {"dra.net/filter": "false"}}})
    stage.wait_for(lambda: not stage.devices(), "nothing published")
    assert published(command(stage)) == {}


def test_the_daemon_goes_on_undisturbed_and_flags_of_ones_own_count(make_stage: Any, nic: str) -> None:
    """The daemon's filter is known from its process; another one can be tried. No lock is taken from it."""
    stage = make_stage(filter_expression=f"name != '{nic}p'")
    stage.start_daemon()
    stage.wait_ready()
    stage.wait_for(lambda: nic in stage.devices(), "published")
    state = stage.kubelet_root / "plugins" / "dra.net"
    before = sorted(path.name for path in state.iterdir())
    assert published(command(stage)) == stage.devices()
    assert set(published(command(stage, "--filter="))) == {*stage.devices(), f"{nic}p"}
    assert sorted(path.name for path in state.iterdir()) == before
    running(stage, nic)


def test_what_cannot_be_asked_is_said(stage: Stage, nic: str) -> None:
    """Without the API server, or a daemon, the answer names what it does not know."""
    running(stage, nic)
    told = command(stage, "--offline")
    assert told["notes"] == ["the Node was not asked for: its address protects no interface here"]
    stage.stop_daemon()
    told = command(stage, f"--kubeconfig={stage.folder / 'kubeconfig'}", "--hostname-override=other", "--filter=")
    assert [note.partition(":")[0] for note in told["notes"]] == [
        f"no daemon is seen that works with {stage.kubelet_root}/plugins/dra.net/journal.db",
        "the Node other cannot be read",
    ]
    (row,) = [row for row in told["devices"] if row["name"] == nic]
    assert row["pod"] == "default/pod-c"
