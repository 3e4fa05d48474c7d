"""The images of the runtime suite: whole, and the same bytes for the same content."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from typing import Any

from hack.images import APPLETS, BUSYBOX, IMAGES, PAUSE, PUBLIC_BUSYBOX, build


def unpack(archive: bytes) -> dict[str, bytes]:
    """Return the regular files of a tar archive by path."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        return {name: file.read() for name, file in files.items() if file is not None}


def blob(files: dict[str, bytes], descriptor: dict[str, Any]) -> bytes:
    """Return what a descriptor stands for, its size and digest checked."""
    content = files["blobs/" + descriptor["digest"].replace(":", "/")]
    assert len(content) == descriptor["size"]
    assert f"sha256:{hashlib.sha256(content).hexdigest()}" == descriptor["digest"]
    return content


def test_an_archive_is_a_whole_image_layout() -> None:
    """From the index to the files of the layer each blob is there, with its size and its digest."""
    files = unpack(build(b"program", IMAGES, "amd64"))
    index = json.loads(files["index.json"])
    names = [entry["annotations"]["io.containerd.image.name"] for entry in index["manifests"]]
    assert names == [PAUSE, BUSYBOX, PUBLIC_BUSYBOX]
    for entry in index["manifests"]:
        manifest = json.loads(blob(files, entry))
        config = json.loads(blob(files, manifest["config"]))
        layer = gzip.decompress(blob(files, manifest["layers"][0]))
        assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
        assert config["architecture"] == "amd64"
        with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
            assert {f"bin/{name}" for name in APPLETS} <= set(tar.getnames())
            assert tar.getmember("bin/busybox").mode == 0o755
            assert {(member.uid, member.gid, member.mtime) for member in tar.getmembers()} == {(0, 0, 0)}


def test_the_same_program_gives_the_same_bytes() -> None:
    """Nothing of the time or the place of the making is in an archive."""
    assert build(b"program", IMAGES, "arm64") == build(b"program", IMAGES, "arm64")
    assert build(b"program", IMAGES, "arm64") != build(b"another", IMAGES, "arm64")
