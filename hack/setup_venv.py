"""Set up the virtual environment ``.venv`` for work on the project: its dependencies, the dev group and itself.

Run by ``make`` with the machine's own Python, so it uses the standard library only. Which package index is asked is
pip's own matter: its configuration and environment variables are left alone.

    python3 hack/setup_venv.py      does nothing when .venv is already right
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "nri-dranet.stamp"


def main() -> int:
    """Run the command.

    Returns:
        The exit code: 0 when the environment is ready, 1 when it could not be made (the reason is on stderr).
    """
    wanted = stamp()
    if STAMP.exists() and STAMP.read_text(encoding="utf-8") == wanted:
        return 0
    try:
        create()
        install()
    except (subprocess.CalledProcessError, RuntimeError) as error:
        print(f"setting up .venv failed: {error}", file=sys.stderr)
        return 1
    STAMP.write_text(wanted, encoding="utf-8")
    return 0


def stamp() -> str:
    """Return what the environment depends on: the project file, this recipe, the interpreter and the place."""
    digest = hashlib.sha256()
    for path in (ROOT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    return f"{digest.hexdigest()} {sys.version_info[:2]} {VENV}\n"


def requirements() -> list[str]:
    """Return the project's dependencies and those of its dev group, as pip takes them.

    Raises:
        KeyError: ``pyproject.toml`` has no dependencies or no dev group.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    optional = [line for group in project["project"].get("optional-dependencies", {}).values() for line in group]
    return [*project["project"]["dependencies"], *optional, *project["dependency-groups"]["dev"]]


def create() -> None:
    """Make the environment, with pip in it.

    Debian ships Python without the parts that a virtual environment needs; as root they are installed.

    Raises:
        RuntimeError: They are missing and cannot be installed.
        subprocess.CalledProcessError: A command failed. It has said why on stderr.
    """
    made = [sys.executable, "-m", "venv", str(VENV)]
    if subprocess.run(made, check=False, capture_output=True).returncode == 0:
        return
    if os.geteuid() or shutil.which("apt-get") is None:
        raise RuntimeError("python -m venv does not work here: install your system's package for it (python3-venv)")
    subprocess.run([str(ROOT / "hack" / "packages"), "python3-venv"], check=True)
    subprocess.run(made, check=True)


def install() -> None:
    """Install the requirements and the project itself, editable.

    Raises:
        subprocess.CalledProcessError: pip failed. It has said why on stderr.
    """
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *requirements()], check=True)
    subprocess.run([*pip, "--no-deps", "--editable", str(ROOT)], check=True)


if __name__ == "__main__":
    sys.exit(main())
