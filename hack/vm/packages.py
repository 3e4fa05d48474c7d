"""Fetch what the guest kernel's tests need from Debian's packages, once, into the user's cache; nothing is installed.

QEMU, the kernel with its modules, the headers that the test module is built against, and mksquashfs. The packages come
from the machine's own apt sources; on Debian 12 the suite of backports is added, in a configuration of our own, because
its own QEMU is too old for SR-IOV. What was fetched stays until this recipe changes or the cache is removed.

    python -m hack.vm.packages      fetch what is missing, print where it lies
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hack.parts import PartError, cache

KERNEL = "linux-image-6.12-amd64"
"""The package whose dependency is the newest kernel of the line that the tests are written for."""

TOOLS = ("qemu-system-x86", "squashfs-tools")
_CODENAME = "bookworm"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True, slots=True)
class Packages:
    """What was fetched.

    Attributes:
        tools: The root of the unpacked tools.
        kernel: The root of the unpacked kernel and its headers.
        release: The kernel's release, e.g. "6.12.117+deb12-amd64".
    """

    tools: Path
    kernel: Path
    release: str

    @property
    def image(self) -> Path:
        """The compressed kernel."""
        return self.kernel / "boot" / f"vmlinuz-{self.release}"

    @property
    def modules(self) -> Path:
        """The folder of the kernel's modules."""
        return self.kernel / "lib" / "modules" / self.release

    @property
    def headers(self) -> Path:
        """The folder that modules are built against."""
        return self.kernel / "usr" / "src" / f"linux-headers-{self.release}"

    def tool(self, name: str) -> tuple[list[str], dict[str, str]]:
        """Return how to run a program of the tools: the start of its command line, and its environment."""
        path = next(path for path in (self.tools / "usr" / "bin" / name, self.tools / "bin" / name) if path.exists())
        libraries = [
            str(folder) for folder in (self.tools / "usr/lib/x86_64-linux-gnu", self.tools / "lib/x86_64-linux-gnu")
        ]
        return [str(path)], {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)}


def fetch() -> Packages:
    """Return the packages; fetch and unpack them when they are not there.

    Raises:
        PartError: This is no Debian 12 on amd64, or apt-get failed; the message says which.
    """
    key = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    target = cache() / "guest" / f"packages-{key}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_machine()
        try:
            _fetch_to(target)
        except PartError as error:
            # A mirror that changes between its lists and its packages is whole again with the next lists.
            print(f"fetching the guest's packages once more: {error}", file=sys.stderr)
            _fetch_to(target)
        for old in target.parent.glob("packages-*"):
            if old != target:
                shutil.rmtree(old, ignore_errors=True)
    release = next(path.name.removeprefix("vmlinuz-") for path in (target / "kernel" / "boot").glob("vmlinuz-*"))
    return Packages(target / "tools", target / "kernel", release)


def _fetch_to(target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=target.parent) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        _fetch_into(made, Path(scratch))
        made.rename(target)


def _check_machine() -> None:
    release = Path("/etc/os-release")
    codename = re.search(r"^VERSION_CODENAME=(\S+)$", release.read_text() if release.exists() else "", re.MULTILINE)
    here = codename[1] if codename else "another system"
    if here != _CODENAME or os.uname().machine != "x86_64" or shutil.which("apt-get") is None:
        raise PartError(
            f"the guest is made of the packages of Debian 12 ({_CODENAME}) for amd64, and this is {here} on "
            f"{os.uname().machine}: run the guest's tests there"
        )


def _fetch_into(made: Path, scratch: Path) -> None:
    options = _apt_options(scratch)
    run(("apt-get", *options, "update", "-qq"), scratch)
    shown = run(("apt-cache", *options, "show", KERNEL), scratch)
    depends = re.search(r"^Depends: linux-image-(\S+)", shown, re.MULTILINE)
    if depends is None:
        raise PartError(f"apt-cache knows no {KERNEL}: are Debian's own sources, with security, in /etc/apt?")
    release = depends[1]
    base = release.removesuffix("-amd64")
    kernel = (f"linux-image-{release}", f"linux-headers-{release}", f"linux-headers-{base}-common")
    _unpack(scratch, (*kernel, f"linux-kbuild-{base}"), options, made / "kernel")
    # The tools and those of their libraries that this machine does not have.
    arguments = (*options, "install", "--print-uris", "-qq", "-y", "--no-install-recommends", "--reinstall")
    wanted = run(("apt-get", *arguments, "-t", f"{_CODENAME}-backports", *TOOLS), scratch)
    names = [
        f"{name}={version.replace('%3a', ':')}" for name, version in re.findall(r" (\S+?)_(\S+?)_\w+\.deb ", wanted)
    ]
    _unpack(scratch, tuple(names), options, made / "tools")
    (made / "versions").write_text("\n".join([f"kernel {release}", *sorted(names)]) + "\n")


def _apt_options(scratch: Path) -> tuple[str, ...]:
    """Make an apt configuration of our own: the machine's sources and the backports; no lock of the machine's."""
    for folder in ("sources", "lists/partial", "archives/partial"):
        (scratch / folder).mkdir(parents=True)
    for source in (Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")):
        # Debian's own alone: another archive's may need keys and time, and has nothing for us.
        if source.is_file() and source.suffix in {".list", ".sources"} and "/debian" in source.read_text():
            shutil.copy(source, scratch / "sources" / source.name)
    shown = run(("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"), scratch)
    mirror = next((line.split()[0] for line in shown.splitlines() if line.split()[1:] == [_CODENAME, "main"]), None)
    if mirror is None:
        raise PartError(f"no apt source of {_CODENAME} main is configured on this machine")
    backports = f"deb [signed-by={_KEYRING}] {mirror} {_CODENAME}-backports main\n"
    (scratch / "sources" / "backports.list").write_text(backports)
    settings = {
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": scratch / "sources",
        "Dir::State::lists": scratch / "lists",
        "Dir::Cache": scratch,
        "Dir::Cache::archives": scratch / "archives",
        "Debug::NoLocking": "true",
        "APT::Sandbox::User": "",
    }
    return tuple(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))


def _unpack(scratch: Path, names: tuple[str, ...], options: tuple[str, ...], target: Path) -> None:
    folder = scratch / target.name
    folder.mkdir()
    run(("apt-get", *options, "download", "-qq", *names), folder)
    for package in folder.glob("*.deb"):
        run(("dpkg-deb", "--extract", str(package), str(target)), folder)
        package.unlink()


def run(command: tuple[str, ...], cwd: Path, env: dict[str, str] | None = None) -> str:
    """Run a command and return what it printed.

    Raises:
        PartError: It failed; the message has the end of what it said.
    """
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PartError(f"{' '.join(command[:3])} … failed: {(done.stderr or done.stdout).strip()[-1500:]}")
    return done.stdout


if __name__ == "__main__":
    try:
        found = fetch()
    except PartError as error:
        sys.exit(f"hack.vm.packages: {error}")
    print((found.tools.parent / "versions").read_text(), end="")
    print(found.tools.parent)
