"""Make the container images of the runtime tests by hand: an OCI archive from Debian's static busybox.

No registry and no container engine has a part in it. The same busybox gives the same bytes.

    python -m hack.images           make the archive in the user's cache, print its path
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hack.parts import PartError, cache, prebuilt

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

BUSYBOX = "localhost/busybox:1"
PAUSE = "localhost/pause:1"
# What `image: busybox` means, for the manifests of examples/.
PUBLIC_BUSYBOX = "docker.io/library/busybox:latest"

# The commands that tests run in containers; each is a link to busybox.
APPLETS = ("sh", "sleep", "true", "false", "cat", "ls", "ip", "test", "echo", "stat", "mknod")

MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_OCI = "application/vnd.oci.image"


@dataclass(frozen=True, slots=True)
class Image:
    """One image of one layer.

    Attributes:
        reference: Its full name, host and tag included.
        command: What a container runs that names no command of its own.
        files: Path to content, for files beside busybox.
    """

    reference: str
    command: tuple[str, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)


_USERS = {"etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n", "etc/group": b"root:x:0:\n"}

IMAGES = (
    Image(PAUSE, ("/bin/sleep", "2147483647")),
    Image(BUSYBOX, ("/bin/sh",), _USERS),
    Image(PUBLIC_BUSYBOX, ("/bin/sh",), _USERS),
)


def archive() -> Path:
    """Return the path of an OCI archive with all images; make it when it is not there.

    Raises:
        PartError: busybox cannot be had.
    """
    if (folder := prebuilt()) is not None:
        return folder / "images.tar"
    busybox = fetch_busybox().read_bytes()
    digest = hashlib.sha256(busybox + Path(__file__).read_bytes()).hexdigest()[:12]
    target = cache() / "images" / f"images-{digest}.tar"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as scratch:
            scratch.write(build(busybox, IMAGES, MACHINES.get(os.uname().machine, os.uname().machine)))
        Path(scratch.name).rename(target)
    return target


def fetch_busybox() -> Path:
    """Return a statically linked busybox: of Debian's package, unpacked into the cache and not installed.

    Raises:
        PartError: The package cannot be fetched; the message has what apt-get said.
    """
    target = cache() / "busybox"
    if target.exists():
        return target
    if shutil.which("apt-get") is None:
        raise PartError(f"put a statically linked busybox at {target}: there is no apt-get here to fetch Debian's with")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        scratch = Path(folder)
        with contextlib.suppress(PartError):  # old package lists may do; the download says when they do not
            _run(("apt-get", "update", "-qq"), scratch)
        _run(("apt-get", "download", "-qq", "busybox-static"), scratch)
        package = next(scratch.glob("busybox-static_*.deb"))
        _run(("dpkg-deb", "--extract", str(package), "unpacked"), scratch)
        found = next((path for path in scratch.glob("unpacked/**/bin/busybox") if not path.is_symlink()), None)
        if found is None:
            raise PartError(f"{package.name} has no bin/busybox")
        found.rename(target)
    return target


def _run(command: tuple[str, ...], cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PartError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-500:]}")


def build(busybox: bytes, images: tuple[Image, ...], machine: str) -> bytes:
    """Return an OCI image layout, as one tar archive.

    Args:
        busybox: The program.
        images: What to make.
        machine: The architecture in OCI's words, e.g. "amd64".
    """
    made = []
    for image in images:
        config = {"Cmd": image.command, "Env": ["PATH=/bin"]}
        made.append((image.reference, config, _layer(busybox, image.files)))
    return layout(made, machine)


def layout(images: Iterable[tuple[str, Mapping[str, object], bytes]], machine: str) -> bytes:
    """Return an OCI image layout, as one tar archive.

    Args:
        images: Of each image its full name, what a container of it runs (``config`` of the OCI image configuration) and
            its layer, a tar archive.
        machine: The architecture in OCI's words, e.g. "amd64".
    """
    blobs: dict[str, bytes] = {}

    def keep(content: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[digest] = content
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    manifests = []
    for reference, runs, layer in images:
        config = {
            "architecture": machine,
            "os": "linux",
            "config": runs,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{_OCI}.manifest.v1+json",
            "config": keep(_json(config), f"{_OCI}.config.v1+json"),
            "layers": [keep(gzip.compress(layer, mtime=0), f"{_OCI}.layer.v1.tar+gzip")],
        }
        # containerd names an imported image by its own annotation, other tools by OCI's.
        names = {"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": reference}
        manifests.append({**keep(_json(manifest), f"{_OCI}.manifest.v1+json"), "annotations": names})
    index = {"schemaVersion": 2, "mediaType": f"{_OCI}.index.v1+json", "manifests": manifests}
    files = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": _json(index)}
    return _tar({**files, **{f"blobs/sha256/{digest}": content for digest, content in blobs.items()}})


def _layer(busybox: bytes, files: Mapping[str, bytes]) -> bytes:
    links = {f"bin/{name}": "busybox" for name in APPLETS}
    return _tar({"bin/busybox": busybox, **files}, links, mode=0o755)


def _json(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _tar(files: Mapping[str, bytes], links: Mapping[str, str] | None = None, mode: int = 0o644) -> bytes:
    """Pack files and symbolic links with their folders, owned by root, without times."""
    links = links or {}
    folders = {str(parent) for name in [*files, *links] for parent in Path(name).parents} - {"."}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(folders):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
        for name, target in sorted(links.items()):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return buffer.getvalue()


if __name__ == "__main__":
    try:
        print(archive())
    except PartError as error:
        sys.exit(f"hack.images: {error}")
