"""What the guest boots: the kernel out of its wrapping, and the first root's archive."""

from __future__ import annotations

import lzma
import shutil
import struct
import subprocess

import pytest

from hack.parts import PartError
from hack.vm.image import cpio, unpacked_kernel

KERNEL = b"\x7fELF" + bytes(1000)


def wrapped(payload: bytes) -> bytes:
    """Return a kernel file as boot loaders get it: one sector and one of set-up, the payload 64 bytes behind."""
    header = bytearray(1024)
    header[0x1F1] = 1
    struct.pack_into("<II", header, 0x248, 64, len(payload))
    return bytes(header) + bytes(64) + payload + b"what follows"


def test_a_kernel_packed_with_xz_is_unpacked() -> None:
    """The payload is found by the header's offset and length."""
    assert unpacked_kernel(wrapped(lzma.compress(KERNEL))) == KERNEL


@pytest.mark.skipif(shutil.which("zstd") is None, reason="no zstd command here")
def test_a_kernel_packed_with_zstd_is_unpacked() -> None:
    """The size that follows the packed kernel is no part of it."""
    packed = subprocess.run(["zstd", "-c"], input=KERNEL, capture_output=True, check=True).stdout
    assert unpacked_kernel(wrapped(packed + struct.pack("<I", len(KERNEL)))) == KERNEL


def test_a_kernel_packed_in_another_way_is_refused() -> None:
    """The error shows the first bytes."""
    with pytest.raises(PartError, match="02214c184c10"):
        unpacked_kernel(wrapped(bytes.fromhex("02214c184c10") + bytes(60)))


def test_an_archive_is_made_of_aligned_entries() -> None:
    """Each header and each content begins at a multiple of four, and the trailer ends it."""
    archive = cpio({"abc": b"12345"})
    assert len(archive) % 4 == 0
    assert archive.index(b"12345") % 4 == 0
    assert archive.count(b"070701") == 4
    assert archive.rstrip(b"\0").endswith(b"TRAILER!!!")
