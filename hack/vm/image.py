"""Make what the guest boots: the kernel, a small first root, and two disks with the system and with the project.

The system is Python with the project's dependencies, the tools that tests call, busybox, a container runtime, and the
kernel modules that tests need; it is made again only when one of them changes. The project's disk is made for each run.
Both are squashfs without compression: a guest without hardware virtualisation reads faster than it unpacks.
"""

from __future__ import annotations

import compileall
import gzip
import hashlib
import importlib.metadata
import io
import lzma
import os
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from hack import cri, images, parts
from hack.images import fetch_busybox
from hack.parts import ROOT, PartError, cache
from hack.vm import module
from hack.vm.packages import Packages, fetch, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

INIT = Path(__file__).with_name("init.sh")

# What tests call, beside busybox's own.
TOOLS = ("ip", "rdma", "bridge", "tc", "unshare", "nsenter", "setpriv", "mount", "ss")
_TOOL_FOLDERS = ("/usr/sbin", "/sbin", "/usr/bin", "/bin")

# Folders below kernel/ whose modules tests use; the modules that those depend on come along.
MODULES = (
    "crypto/crc32_generic.ko",
    "drivers/block/virtio_blk.ko",
    "drivers/infiniband/core",
    "drivers/infiniband/sw/rxe",
    "drivers/infiniband/ulp/ipoib",
    "drivers/net/bonding",
    "drivers/net/dummy.ko",
    "drivers/net/ethernet/intel/igb",
    "drivers/net/ethernet/intel/igbvf",
    "drivers/net/ipvlan",
    "drivers/net/macvlan.ko",
    "drivers/net/macvtap.ko",
    "drivers/net/netkit.ko",
    "drivers/net/tun.ko",
    "drivers/net/veth.ko",
    "drivers/net/vrf.ko",
    "drivers/net/vxlan",
    "fs/overlayfs",
    "fs/squashfs",
    "net/8021q",
    "net/bridge/bridge.ko",
    "net/packet",
    "net/sched/cls_bpf.ko",
    "net/sched/sch_ingress.ko",
)
_FIRST_MODULES = ("virtio_blk", "squashfs", "overlay")

# What is built on the machine for the guest, by name and version below this folder of the guest's.
RUNTIME = "runtime"
_PARTS = (parts.CONTAINERD_2, parts.CONTAINERD_1, parts.RUNC, parts.CNI)

# Nothing of the standard library that a guest test could want.
_NOT_IN_GUEST = frozenset({"test", "idlelib", "tkinter", "lib2to3", "ensurepip", "turtledemo", "site-packages"})
_PROJECT = ("nri_dranet", "tests", "hack")


@dataclass(frozen=True, slots=True)
class Image:
    """What QEMU is given.

    Attributes:
        packages: Where QEMU comes from.
        kernel: The kernel, an ELF file that boots without its own unpacking.
        first_root: The initramfs.
        disks: The disks in order: system and project.
    """

    packages: Packages
    kernel: Path
    first_root: Path
    disks: tuple[Path, Path]


def make() -> Image:
    """Return the guest's image; what is in the cache and fits is taken from there.

    Raises:
        PartError: Something cannot be fetched or made.
    """
    packages = fetch()
    folder = cache() / "guest"
    system = _once(folder, "system", _system_key(packages), lambda target: _make_system(packages, target))
    project = _make_project(packages, folder)
    return Image(packages, system / "vmlinux", system / "first.cpio.gz", (system / "system.squashfs", project))


def _once(folder: Path, name: str, key: str, work: Callable[[Path], None]) -> Path:
    target = folder / f"{name}-{key}"
    if not target.is_dir():
        with tempfile.TemporaryDirectory(prefix=".making-", dir=folder) as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            work(made)
            try:
                made.rename(target)
            except OSError:  # another run was faster
                if not target.is_dir():
                    raise
        for old in folder.glob(f"{name}-*"):
            if old != target:
                shutil.rmtree(old, ignore_errors=True)
    return target


def _system_key(packages: Packages) -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    digest.update(packages.release.encode() + sys.version.encode() + sys.base_prefix.encode())
    for name in sorted(_distributions()):
        digest.update(f"{name} {importlib.metadata.version(name)}\n".encode())
    digest.update(INIT.read_bytes())
    for path in _built():
        digest.update(str(path).encode())
    return digest.hexdigest()[:12]


# the system


def _make_system(packages: Packages, target: Path) -> None:
    (target / "vmlinux").write_bytes(unpacked_kernel(packages.image.read_bytes()))
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        tree = Path(scratch)
        for folder in ("dev", "proc", "sys", "run", "tmp", "root", "etc", "project", "var/lib", "sys/fs/cgroup"):
            (tree / folder).mkdir(parents=True, exist_ok=True)
        (tree / "var/run").symlink_to("/run")
        (tree / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (tree / "etc/group").write_text("root:x:0:\n")
        (tree / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
        (tree / "etc/resolv.conf").touch()
        (tree / "etc/nsswitch.conf").write_text("hosts: files\n")
        _put_busybox(tree)
        _put_modules(packages, tree)
        _put_tools(tree)
        _put_python(tree)
        _put_runtime(tree)
        _put_libraries(tree)
        (target / "first.cpio.gz").write_bytes(gzip.compress(_first_root(packages, tree), 6, mtime=0))
        squash(packages, tree, target / "system.squashfs")


def unpacked_kernel(image: bytes) -> bytes:
    """Return the ELF kernel inside a bzImage (``Documentation/arch/x86/boot.rst``: payload_offset and _length).

    Raises:
        PartError: It is packed in a way that is not known here.
    """
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        done = subprocess.run(["zstd", "-dc"], input=payload, capture_output=True, check=False)
        # The four bytes that follow hold the size of the kernel, and are nothing to zstd.
        if done.stdout.startswith(b"\x7fELF"):
            return done.stdout
        raise PartError(f"zstd cannot unpack the kernel: {done.stderr.decode().strip()}")
    if payload.startswith(b"\xfd7zXZ"):
        return lzma.LZMADecompressor().decompress(payload)
    raise PartError(f"the kernel is packed in an unknown way ({payload[:6].hex()})")


def _put_busybox(tree: Path) -> None:
    busybox = fetch_busybox()
    (tree / "bin").mkdir()
    (tree / "sbin").mkdir()
    shutil.copy(busybox, tree / "bin/busybox")
    for applet in run((str(busybox), "--list"), tree).split():
        if applet != "busybox":
            (tree / "bin" / applet).symlink_to("busybox")
    (tree / "sbin/modprobe").symlink_to("../bin/busybox")
    shutil.copy(INIT, tree / "sbin/init")
    (tree / "sbin/init").chmod(0o755)


def _put_modules(packages: Packages, tree: Path) -> None:
    source = packages.modules / "kernel"
    target = tree / "lib/modules" / packages.release
    by_name = {_module_name(path): path for path in source.rglob("*.ko.xz")}
    wanted = [
        path
        for path in by_name.values()
        if any(str(path.relative_to(source)).removesuffix(".xz").startswith(place) for place in MODULES)
    ]
    done: set[str] = set()
    while wanted:
        path = wanted.pop()
        if (name := _module_name(path)) in done:
            continue
        done.add(name)
        content = lzma.decompress(path.read_bytes())
        place = target / "kernel" / path.relative_to(source).with_suffix("")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        needed = re.search(rb"\0depends=([^\0]*)\0", content)
        names = needed[1].decode().replace("-", "_").split(",") if needed else []
        wanted += [by_name[each] for each in names if each in by_name]
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copy(packages.modules / name, target / name)
    run((str(fetch_busybox()), "depmod", "-b", str(tree), packages.release), tree)


def _module_name(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")


def _put_tools(tree: Path) -> None:
    for name in TOOLS:
        found = next((path for folder in _TOOL_FOLDERS if (path := Path(folder) / name).exists()), None)
        if found is None:
            raise PartError(f"the {name} command is missing: install iproute2 and util-linux")
        (tree / "usr/sbin").mkdir(parents=True, exist_ok=True)
        shutil.copy(found.resolve(), tree / "usr/sbin" / name)


def _put_python(tree: Path) -> None:
    binary = Path(sys.executable).resolve()
    _copy(binary, tree)
    _copy_tree(Path(sysconfig.get_paths()["stdlib"]), tree, skip=_NOT_IN_GUEST)
    (tree / "usr/bin").mkdir(parents=True, exist_ok=True)
    (tree / "usr/bin/python3").symlink_to(binary)
    site = tree / "usr/lib/site"
    site.mkdir(parents=True)
    for name in _distributions():
        for file in importlib.metadata.files(name) or ():
            source = Path(str(file.locate()))
            if not str(file).startswith("..") and source.is_file() and file.suffix != ".pyc":
                target = site / str(file)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
    compile_tree(site, Path("/usr/lib/site"))
    library = tree / str(Path(sysconfig.get_paths()["stdlib"])).lstrip("/")
    compile_tree(library, Path(sysconfig.get_paths()["stdlib"]))


def _built() -> tuple[Path, ...]:
    """Return what the guest's container runtime is made of: programs, images, and the stubs of its client."""
    return (*(parts.build(part) for part in _PARTS), images.archive(), cri.stubs())


def _put_runtime(tree: Path) -> None:
    *programs, archive, stubs = _built()
    folder = tree / RUNTIME
    for part, path in zip(_PARTS, programs, strict=True):
        shutil.copytree(path, folder / f"{part.name}-{part.version}")
    shutil.copy(archive, folder / "images.tar")
    shutil.copy(stubs, folder / stubs.name)


def _distributions() -> set[str]:
    """Name everything that the project and pytest need to run, as installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted, found = [*project["dependencies"], "pytest", "hypothesis", "packaging"], set()
    while wanted:
        requirement = Requirement(wanted.pop())
        name = requirement.name.lower().replace("_", "-")
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        wanted += importlib.metadata.requires(name) or []
    return found


def compile_tree(folder: Path, place: Path) -> None:
    """Compile the Python files of a folder for the path that it will have; what is compiled already stays."""
    compileall.compile_dir(
        folder, quiet=2, stripdir=str(folder), prependdir=str(place), maxlevels=20, workers=os.cpu_count() or 1
    )


def _put_libraries(tree: Path) -> None:
    """Copy each shared library that a program or library of the tree needs."""
    search = os.pathsep.join([str(Path(sys.base_prefix) / "lib")])
    for path in list(_elf_files(tree)):
        done = subprocess.run(
            ["ldd", str(path)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LD_LIBRARY_PATH": search},
        )
        for found in re.findall(r"(/\S+) \(0x", done.stdout):
            if not (tree / found.lstrip("/")).exists():
                _copy(Path(found), tree)


def _elf_files(tree: Path) -> Iterator[Path]:
    for path in tree.rglob("*"):
        if path.is_symlink() or not path.is_file() or path.suffix == ".ko":
            continue
        with path.open("rb") as file:
            if file.read(4) == b"\x7fELF":
                yield path


def _copy(path: Path, tree: Path) -> None:
    target = tree / str(path).lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, target)


def _copy_tree(folder: Path, tree: Path, skip: frozenset[str]) -> None:
    def ignore(_: str, names: list[str]) -> list[str]:
        return [name for name in names if name in skip or name.startswith("config-") or name == "__pycache__"]

    shutil.copytree(folder, tree / str(folder).lstrip("/"), ignore=ignore, dirs_exist_ok=True)


def squash(packages: Packages, tree: Path, target: Path) -> None:
    """Make a squashfs of a folder, owned by root, without compression.

    Raises:
        PartError: mksquashfs failed.
    """
    command, environment = packages.tool("mksquashfs")
    options = ("-noappend", "-all-root", "-no-progress", "-noI", "-noD", "-noF", "-noX", "-quiet")
    run((*command, str(tree), str(target), *options), tree, environment)


# the first root


def _first_root(packages: Packages, tree: Path) -> bytes:
    modules = tree / "lib/modules" / packages.release
    files: dict[str, bytes] = {"bin/busybox": (tree / "bin/busybox").read_bytes()}
    order: list[str] = []
    dependencies = {
        _module_name(Path(line.partition(":")[0])): line.replace(":", " ").split()
        for line in (modules / "modules.dep").read_text().splitlines()
    }
    for name in _FIRST_MODULES:
        for path in reversed(dependencies[name]):
            relative = path.partition(f"{packages.release}/")[2] or path
            if (module_name := Path(relative).name) not in order:
                order.append(module_name)
                files[f"m/{module_name}"] = (modules / relative).read_bytes()
    loads = "\n".join(f"insmod /m/{name}" for name in order)
    files["init"] = _FIRST_INIT.format(loads=loads).encode()
    return cpio(files)


_FIRST_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
{loads}
mkdir -p /system /project /upper /new
mount -t squashfs -o ro /dev/vda /system && mount -t squashfs -o ro /dev/vdb /project &&
mount -t tmpfs tmpfs /upper && mkdir /upper/files /upper/work &&
mount -t overlay -o lowerdir=/project:/system,upperdir=/upper/files,workdir=/upper/work root /new || reboot -f
cp /run.json /new/run.json
umount /dev
exec switch_root /new /sbin/init
"""


def cpio(files: dict[str, bytes]) -> bytes:
    """Return an archive in the kernel's format for a first root (``driver-api/early-userspace/buffer-format.rst``)."""
    out = io.BytesIO()
    folders = {str(parent) for name in files for parent in Path(name).parents if str(parent) != "."} | {"dev", "bin"}
    entries: list[tuple[str, int, bytes]] = [(name, 0o040755, b"") for name in sorted(folders)]
    entries += [(name, 0o100755, content) for name, content in files.items()]
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        out.write(b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0")
        out.write(b"\0" * (-out.tell() % 4) + content)
        out.write(b"\0" * (-out.tell() % 4))
    return out.getvalue()


# the project


def _make_project(packages: Packages, folder: Path) -> Path:
    """Copy the project beside its former copy, so that what did not change stays compiled, and make its disk."""
    name = hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]
    tree = folder / f"project-{name}"
    place = tree / "project"
    place.mkdir(parents=True, exist_ok=True)
    wanted = {"pyproject.toml": ROOT / "pyproject.toml"}
    for part in _PROJECT:
        for path in (ROOT / part).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                wanted[str(path.relative_to(ROOT))] = path
    for old in list(place.rglob("*")):
        if old.is_file() and "__pycache__" not in old.parts and str(old.relative_to(place)) not in wanted:
            old.unlink()
    for relative, source in wanted.items():
        target = place / relative
        if not target.exists() or target.stat().st_mtime_ns != source.stat().st_mtime_ns:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    compile_tree(place, Path("/project"))
    (place / "modules").mkdir(exist_ok=True)
    shutil.copy2(module.build(packages), place / "modules" / module.FILE)
    disk = folder / f"project-{name}.squashfs"
    squash(packages, tree, disk)
    return disk
