"""Build the real programs that the tests use (container runtime, helm) from their pinned Go modules, into the cache.

Each part is a folder of ``hack/modules``: a Go module whose ``tool`` lines name the programs, with every version and
checksum fixed in its ``go.mod`` and ``go.sum``. A part is built once for its pins, its recipe and the Go release, and
appears in the cache whole or not at all.

    python -m hack.parts            build what is missing
    python -m hack.parts helm       the same of the parts that are named
    python -m hack.parts --where    print where the parts lie, build nothing

A new version: copy a folder, `go get -tool PACKAGE@VERSION` in it, and name it in PARTS.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = ROOT / "hack" / "modules"

# Kubernetes 1.37's own parts need it; the runtime is built with the same one.
GO_RELEASE = "go1.26"


class PartError(Exception):
    """A part cannot be built; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Part:
    """One component in one version.

    Attributes:
        name: What it is, e.g. "containerd".
        version: Its release, without a "v".
        packages: The Go packages of its programs; the last part of the path is the program's name.
        stamp: The Go variable that holds the version which the program reports, "" for none.
        tags: Go build tags.
        cgo: Whether it needs a C compiler.
    """

    name: str
    version: str
    packages: tuple[str, ...]
    stamp: str = ""
    tags: str = ""
    cgo: bool = False

    @property
    def module(self) -> Path:
        """The folder of its Go module."""
        return MODULES / f"{self.name}-{self.version}"

    @property
    def variables(self) -> dict[str, str]:
        """What the linker writes into Go variables."""
        return {self.stamp: self.version} if self.stamp else {}

    def program(self, package: str) -> str:
        """Return the name of a package's program.

        Args:
            package: One of the packages.
        """
        return package.rpartition("/")[2]


class Kubernetes(Part):
    """Kubernetes: clients compare its version with their own, so it must say the right one."""

    @property
    def variables(self) -> dict[str, str]:
        """What the linker writes into Go variables."""
        path, (major, minor, _) = "k8s.io/component-base/version", self.version.split(".")
        numbers = {f"{path}.gitMajor": major, f"{path}.gitMinor": minor}
        return {f"{path}.gitVersion": f"v{self.version}", **numbers, f"{path}.gitTreeState": "clean"}


class Etcd(Part):
    """etcd, whose package is named after its major version."""

    def program(self, package: str) -> str:
        """Return the name of its only program.

        Args:
            package: Its package.
        """
        return "etcd" if package == self.packages[0] else super().program(package)


def _containerd(version: str, path: str) -> Part:
    programs = ("containerd", "containerd-shim-runc-v2", "ctr")
    packages = tuple(f"{path}/cmd/{program}" for program in programs)
    return Part("containerd", version, packages, stamp=f"{path}/version.Version")


CONTAINERD_2 = _containerd("2.4.2", "github.com/containerd/containerd/v2")
CONTAINERD_1 = _containerd("1.7.35", "github.com/containerd/containerd")
# Without seccomp runc refuses every container that has a profile, and kubelet gives each sandbox one.
RUNC = Part("runc", "1.5.2", ("github.com/opencontainers/runc",), stamp="main.version", tags="seccomp", cgo=True)
CNI = Part(
    "cni",
    "1.9.1",
    tuple(
        f"github.com/containernetworking/plugins/plugins/{plugin}"
        for plugin in ("main/bridge", "main/loopback", "ipam/host-local")
    ),
)
HELM = Part("helm", "4.3.1", ("helm.sh/helm/v4/cmd/helm",), stamp="helm.sh/helm/v4/internal/version.version")
_KUBERNETES = tuple(
    f"k8s.io/kubernetes/cmd/{program}"
    for program in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl")
)
KUBERNETES_NEW = Kubernetes("kubernetes", "1.37.2", _KUBERNETES)
KUBERNETES_OLD = Kubernetes("kubernetes", "1.34.4", _KUBERNETES)
ETCD = Etcd("etcd", "3.7.3", ("go.etcd.io/etcd/server/v3",))
PARTS = (CONTAINERD_2, CONTAINERD_1, RUNC, CNI, HELM)
# What a cluster is made of beside them: built by `python -m hack.cluster build`.
CLUSTER_PARTS = (ETCD, KUBERNETES_NEW, KUBERNETES_OLD)


def cache() -> Path:
    """Return the folder in the user's cache where everything that was built or fetched lies."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nri-dranet"


def prebuilt() -> Path | None:
    """Return the folder that has everything built, in a guest where nothing can be; else None."""
    folder = os.environ.get("NRI_DRANET_PREBUILT")
    return Path(folder) if folder else None


def go(*arguments: str, cwd: Path) -> str:
    """Run the go command and return what it printed.

    Args:
        arguments: Its arguments.
        cwd: The module that it works on.

    Raises:
        PartError: There is no go, or it failed; the message has the end of what it said.
    """
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOWORK": "off", "GOFLAGS": "-mod=readonly"}
    return _go(arguments, cwd, environment)


def _go(arguments: tuple[str, ...], cwd: Path, environment: dict[str, str]) -> str:
    try:
        done = subprocess.run(["go", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise PartError(f"the go command is missing: install Go {GO_RELEASE.removeprefix('go')}") from None
    if done.returncode:
        raise PartError(f"go {' '.join(arguments[:2])} in {cwd.name} failed: {done.stderr.strip()[-1500:]}")
    return done.stdout


def go_version() -> str:
    """Return the Go release at hand, e.g. "go1.26.8".

    Raises:
        PartError: There is none, or it is another one than the parts are built with.
    """
    version = go("env", "GOVERSION", cwd=ROOT).strip()
    if not (version + ".").startswith(GO_RELEASE + "."):
        raise PartError(f"the go command is {version}: the parts are built with {GO_RELEASE}, put it first in PATH")
    return version


def place(part: Part) -> Path:
    """Return the folder where the part's programs are or will be: another one for other pins, recipe or Go.

    Raises:
        PartError: See :func:`go_version`; or the part has no module.
    """
    if (folder := prebuilt()) is not None:
        return folder / f"{part.name}-{part.version}"
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum"):
        path = part.module / name
        if not path.exists():
            raise PartError(f"{path.relative_to(ROOT)} is missing: {part.name} {part.version} has no module")
        digest.update(path.read_bytes())
    digest.update(repr((part, go_version(), "trimpath")).encode())
    return cache() / "parts" / f"{part.name}-{part.version}-{digest.hexdigest()[:12]}"


def build(part: Part) -> Path:
    """Return the folder with the part's programs; build them when they are not there.

    Raises:
        PartError: The build failed, see :func:`go`.
    """
    target = place(part)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        "GOFLAGS": "-mod=readonly",
        "CGO_ENABLED": "1" if part.cgo else "0",
    }
    flags = " ".join(["-s -w", *(f"-X {name}={value}" for name, value in part.variables.items())])
    options = ("-trimpath", "-buildvcs=false", f"-tags={part.tags}", f"-ldflags={flags}")
    with tempfile.TemporaryDirectory(prefix=".building-", dir=target.parent) as scratch:
        made = Path(scratch) / "programs"
        made.mkdir()
        for package in part.packages:
            program = made / part.program(package)
            _go(("build", *options, "-o", str(program), package), part.module, environment)
        try:
            made.rename(target)
        except OSError:  # another build of the same was faster
            if not target.is_dir():
                raise
    return target


def module_folder(module: str, path: str) -> Path:
    """Return where the sources of a Go module lie, fetched and checked against go.sum when they are not there.

    Args:
        module: A folder of ``hack/modules``.
        path: The module path, e.g. "k8s.io/cri-api".

    Raises:
        PartError: It cannot be fetched.
    """
    answer = json.loads(go("mod", "download", "-json", path, cwd=MODULES / module))
    return Path(answer["Dir"])


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; those of the process when not given.

    Returns:
        The exit code: 1 when a part cannot be built (the reason is on stderr).
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--where", action="store_true", help="print where the parts lie, build nothing")
    parser.add_argument("name", nargs="*", help="only these parts: " + ", ".join(sorted({part.name for part in PARTS})))
    args = parser.parse_args(argv)
    where: bool = args.where
    names: list[str] = args.name
    if unknown := set(names) - {part.name for part in PARTS}:
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    try:
        for part in PARTS:
            if names and part.name not in names:
                continue
            start = time.monotonic()
            target, cached = place(part), place(part).is_dir()
            if not where and not cached:
                build(part)
            state = "cached" if cached else "missing" if where else f"built in {time.monotonic() - start:.0f} s"
            print(f"{part.name} {part.version}: {state}, {target}", flush=True)
    except PartError as error:
        print(f"hack.parts: {error}", file=sys.stderr)
        return 1
    if not where:
        _drop_old()
    return 0


def _drop_old() -> None:
    """Remove parts that no recipe names any more."""
    wanted = {place(part).name for part in (*PARTS, *CLUSTER_PARTS)}
    for old in (cache() / "parts").iterdir():
        if old.name not in wanted and not old.name.startswith("."):
            shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
