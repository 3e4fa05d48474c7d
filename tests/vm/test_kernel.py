"""What the guest's kernel has, so that no test of it passes for want of the thing that it tests."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.vm


def test_a_dummy_device_can_be_made() -> None:
    """The guest's kernel makes the link that the machine's own kernel may lack."""
    assert os.getpid() != 1
    subprocess.run(["ip", "link", "add", "d0", "type", "dummy"], check=True)
    assert Path("/sys/class/net/d0").exists()
    subprocess.run(["ip", "link", "del", "d0"], check=True)
