"""The demo: what it prints is what happened, and nothing is left of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml


def test_the_demo_shows_the_users_status_and_cleans_up() -> None:
    """Exit code 0; the claim's YAML has the conditions and network data of the user's example; no link is left."""
    before = Path("/proc/net/dev").read_text(encoding="ascii").count("\n")
    done = subprocess.run(
        [sys.executable, "-m", "nri_dranet", "demo"], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = done.stdout.partition("-o yaml\n")[2].partition("\n$ ip addr")[0]
    claim = yaml.safe_load(text)
    (entry,) = claim["status"]["devices"]
    assert [(c["type"], c["status"], c["reason"]) for c in entry["conditions"]] == [
        ("Ready", "True", "NetworkDeviceReady"),
        ("NetworkReady", "True", "NetworkReady"),
    ]
    assert entry["networkData"]["interfaceName"] == "eth99"
    assert entry["networkData"]["ips"] == ["169.254.169.13/32"]
    assert "169.254.169.0/24 via 169.254.169.1 dev eth99" in done.stdout
    assert "The interfaces are as they were" in done.stdout
    assert Path("/proc/net/dev").read_text(encoding="ascii").count("\n") == before
