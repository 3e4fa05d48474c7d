"""Make the container image of the daemon without a container engine: an OCI archive that containerd imports.

The image holds what the daemon runs on and nothing more: the Python that runs this script, its standard library, the
installed distributions that nri-dranet depends on, the shared libraries that these link to, and nri_dranet itself.
There is no shell in it. The same files give the same bytes: sorted entries, no times, everything owned by root. It is
of the machine's own architecture; images of others are made with the Dockerfile.

    python -m hack.image            make build/nri-dranet-VERSION-ARCH.tar and the SBOM beside it, print the paths
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

import nri_dranet
from hack.images import MACHINES, layout
from hack.parts import PartError

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "localhost/nri-dranet"
NOBODY = "65532:65532"

_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
_PREFIX = "usr/local"
_SBOM = f"{_PREFIX}/share/nri-dranet/sbom.cdx.json"
# Of the standard library, what no daemon needs: tests, windows, tools to build with.
_LEFT_OUT = frozenset(
    ("test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "pydoc_data", "distutils", "venv")
)
_SCRIPT = """#!/usr/local/bin/python3 -I
import sys

from nri_dranet.cli import main

sys.exit(main())
"""
_ETC = {
    "etc/passwd": "root:x:0:0:root:/:/nonexistent\nnonroot:x:65532:65532:nonroot:/:/nonexistent\n",
    "etc/group": "root:x:0:\nnonroot:x:65532:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


def distributions(root: str = "nri-dranet") -> list[importlib.metadata.Distribution]:
    """Return the installed distributions that a distribution needs, itself included, sorted by name.

    Args:
        root: Its name.

    Raises:
        PartError: One is not installed.
    """
    found: dict[str, importlib.metadata.Distribution] = {}
    wanted = [root]
    while wanted:
        name = _normal(wanted.pop())
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            raise PartError(f"{name} is not installed: run `make setup`") from None
        wanted += [_requirement(text) for text in found[name].requires or () if _needed(text)]
    return [found[name] for name in sorted(found)]


def _needed(requirement: str) -> bool:
    # Extras were not asked for; of what else has a condition, what is installed is what the installer found needed.
    condition = requirement.partition(";")[2]
    if "extra" in condition:
        return False
    if not condition:
        return True
    try:
        importlib.metadata.distribution(_normal(_requirement(requirement)))
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _requirement(text: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", text)
    return match.group() if match else text


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def sbom(parts: list[importlib.metadata.Distribution]) -> dict[str, object]:
    """Return the bill of materials in CycloneDX 1.6 JSON: Python and each distribution, by package URL.

    Args:
        parts: The distributions of the image.
    """
    python = ".".join(str(number) for number in sys.version_info[:3])
    components = [
        {
            "type": "platform",
            "name": "cpython",
            "version": python,
            "bom-ref": f"pkg:generic/cpython@{python}",
            "purl": f"pkg:generic/cpython@{python}",
        }
    ]
    for part in parts:
        name, url = _normal(part.name), f"pkg:pypi/{_normal(part.name)}@{part.version}"
        if name != "nri-dranet":
            entry = {"type": "library", "name": name, "version": part.version, "bom-ref": url, "purl": url}
            components.append(entry)
    version = nri_dranet.__version__
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {"type": "application", "name": "nri-dranet", "version": version, "bom-ref": "nri-dranet"}
        },
        "components": components,
    }


def stage(target: Path) -> None:
    """Lay out the image's files.

    Args:
        target: An empty folder.

    Raises:
        PartError: Something is missing, see the message.
    """
    library = target / _PREFIX / "lib" / _PYTHON
    packages = library / "site-packages"
    shutil.copytree(sysconfig.get_path("stdlib"), library, ignore=_leave_out, symlinks=True)
    packages.mkdir(exist_ok=True)
    parts = distributions()
    for part in parts:
        if _normal(part.name) != "nri-dranet":
            _copy_distribution(part, packages)
    shutil.copytree(ROOT / "nri_dranet", packages / "nri_dranet", ignore=shutil.ignore_patterns("__pycache__"))
    binaries = target / _PREFIX / "bin"
    binaries.mkdir(parents=True)
    python = Path(sys.executable).resolve()
    shutil.copy2(python, binaries / _PYTHON)
    (binaries / "python3").symlink_to(_PYTHON)
    (binaries / "nri-dranet").write_text(_SCRIPT, encoding="ascii")
    (binaries / "nri-dranet").chmod(0o755)
    _copy_libraries(target, [python, *target.rglob("*.so")])
    for name, text in {**_ETC, _SBOM: json.dumps(sbom(parts), indent=2) + "\n"}.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    # The root is read-only in a pod: what is not compiled now is compiled at every start.
    compiling = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    done = subprocess.run(
        [*compiling, "-s", str(target), str(library)],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PartError(f"compiling failed: {done.stdout[-500:]}")


def _leave_out(folder: str, names: list[str]) -> list[str]:
    here = Path(folder)
    top = here == Path(sysconfig.get_path("stdlib"))
    left = [name for name in names if name == "__pycache__" or name.startswith(("config-", "_test"))]
    left += [name for name in names if name in _LEFT_OUT]
    return left + (["site-packages"] if top else [])


def _copy_distribution(part: importlib.metadata.Distribution, packages: Path) -> None:
    for file in part.files or ():
        if ".." in file.parts or "__pycache__" in file.parts or file.suffix == ".pyi":
            continue  # scripts, bytecode of other paths, and what only type checkers read
        if file.name in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json"):
            continue  # of this installation, not of the distribution
        to = packages / str(file)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(part.locate_file(file)), to)


def _copy_libraries(target: Path, programs: list[Path]) -> None:
    inside = {path.name for path in target.rglob("*.so*")}
    folder = target / "usr" / "lib"
    folder.mkdir(parents=True, exist_ok=True)
    for program in programs:
        done = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
        for name, path in re.findall(r"^\s*(\S+)(?: => (/\S+))? \(0x", done.stdout, re.MULTILINE):
            if name.startswith("/"):  # the loader, which the kernel looks for by this very path
                to = target / name.lstrip("/")
            elif path and name not in inside:
                to = folder / name
            else:
                continue
            if not to.exists():
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path or name, to)
                to.chmod(0o755)


def pack(folder: Path) -> bytes:
    """Return a folder as a tar archive that depends on names, contents, links and the x bit alone.

    Args:
        folder: What becomes the root.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            entry = tarfile.TarInfo(str(path.relative_to(folder)))
            if path.is_symlink():
                entry.type, entry.linkname = tarfile.SYMTYPE, str(path.readlink())
                tar.addfile(entry)
            elif path.is_dir():
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
            else:
                content = path.read_bytes()
                entry.size, entry.mode = len(content), 0o755 if path.stat().st_mode & 0o100 else 0o644
                tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def build(folder: Path) -> tuple[Path, Path]:
    """Make the image and its SBOM in a folder; return their paths.

    Args:
        folder: Where; it is made.

    Raises:
        PartError: See :func:`stage`; or the image of this machine's architecture is not supported.
    """
    machine = MACHINES.get(os.uname().machine)
    if machine is None:
        raise PartError(f"images are made for amd64 and arm64, this machine is {os.uname().machine}")
    version = nri_dranet.__version__
    config = {
        "Entrypoint": [f"/{_PREFIX}/bin/nri-dranet"],
        "Cmd": ["run"],
        "Env": [f"PATH=/{_PREFIX}/bin"],
        "User": NOBODY,
        "Labels": {"org.opencontainers.image.title": "nri-dranet", "org.opencontainers.image.version": version},
    }
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="image-") as scratch:
        root = Path(scratch)
        stage(root)
        image = folder / f"nri-dranet-{version}-{machine}.tar"
        image.write_bytes(layout([(f"{REPOSITORY}:{version}", config, pack(root))], machine))
        bill = folder / f"nri-dranet-{version}-{machine}.cdx.json"
        shutil.copyfile(root / _SBOM, bill)
    return image, bill


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; those of the process when not given.

    Returns:
        The exit code: 1 when the image cannot be made (the reason is on stderr).
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=ROOT / "build", help="folder to write to (default: build)")
    parser.add_argument("--platform", default="", help="refused unless it is this machine's, e.g. linux/amd64")
    args = parser.parse_args(argv)
    own = f"linux/{MACHINES.get(os.uname().machine, os.uname().machine)}"
    if args.platform not in ("", own):
        parser.error(f"images of {own} alone are made here; for {args.platform} use the Dockerfile")
    try:
        for path in build(args.to):
            print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    except PartError as error:
        print(f"hack.image: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
