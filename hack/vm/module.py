"""Build the test-only kernel module of ``tests/vm/module`` against the guest kernel's headers, once for its source."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hack.parts import ROOT, cache
from hack.vm.packages import run

if TYPE_CHECKING:
    from hack.vm.packages import Packages

SOURCE = ROOT / "tests" / "vm" / "module"
FILE = "dranet_test.ko"


def build(packages: Packages) -> Path:
    """Return the module's file; build it when it is not there.

    Raises:
        PartError: The compiler or make failed; the message has the end of what they said.
    """
    digest = hashlib.sha256(packages.release.encode())
    sources = sorted(SOURCE.iterdir())
    for source in sources:
        digest.update(source.read_bytes())
    target = cache() / "guest" / f"module-{digest.hexdigest()[:12]}.ko"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        folder = Path(scratch)
        for source in sources:
            shutil.copy(source, folder / source.name)
        headers = _headers(packages)
        flags = ("CONFIG_DEBUG_INFO_BTF_MODULES=", "CONFIG_MODULE_SIG=")
        run(("make", "-C", str(headers), f"M={folder}", *flags, "modules"), folder)
        run(("strip", "--strip-debug", FILE), folder)
        (folder / FILE).rename(target)
    for old in target.parent.glob("module-*.ko"):
        if old != target:
            old.unlink()
    return target


def _headers(packages: Packages) -> Path:
    """Let the headers' Makefile find its other half, which is named by the path that it has when installed."""
    makefile = packages.headers / "Makefile"
    text = makefile.read_text()
    common = packages.headers.with_name(packages.headers.name.replace("-amd64", "-common"))
    here = f"include {common}/Makefile\n"
    if here not in text:
        makefile.write_text(here)
    return packages.headers
