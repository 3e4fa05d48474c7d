"""Open namespaces: taken from somebody else by a descriptor, where nothing else leads to them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from nri_dranet.claims.model import PodRef
from nri_dranet.claims.record import Holder
from nri_dranet.reconcile.namespaces import Namespaces

OWN = "/proc/self/ns/net"
POD = PodRef("default", "web", "uid-1")


def holder(*, inode: int, path: str = "/proc/0/ns/net") -> Holder:
    """Return a holder whose namespace cannot be opened by its path any more."""
    return Holder(pod=POD, sandbox_id="s1", netns_path=path, netns_inode=inode)


def test_a_namespace_is_held_by_a_descriptor() -> None:
    """It is found by its sandbox from then on, and passed on in its turn."""
    inode = Path(OWN).stat().st_ino
    with contextlib.closing(Namespaces()) as namespaces:
        assert namespaces.of(holder(inode=inode)) is None
        descriptor = os.open(OWN, os.O_RDONLY)
        assert namespaces.adopt(holder(inode=inode), descriptor)
        found = namespaces.of(holder(inode=inode))
        assert found is not None
        assert found.fd == descriptor
        assert namespaces.descriptors() == {"s1": descriptor}
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_another_namespace_is_not_held() -> None:
    """The inode tells; the descriptor stays the caller's."""
    inode = Path(OWN).stat().st_ino
    with contextlib.closing(Namespaces()) as namespaces:
        descriptor = os.open(OWN, os.O_RDONLY)
        assert not namespaces.adopt(holder(inode=inode + 1), descriptor)
        assert namespaces.descriptors() == {}
        os.close(descriptor)


def test_one_that_is_held_already_stays() -> None:
    """It was opened by its path meanwhile."""
    inode = Path(OWN).stat().st_ino
    with contextlib.closing(Namespaces()) as namespaces:
        known = namespaces.of(holder(inode=inode, path=OWN))
        assert known is not None
        descriptor = os.open(OWN, os.O_RDONLY)
        assert not namespaces.adopt(holder(inode=inode), descriptor)
        assert namespaces.descriptors() == {"s1": known.fd}
        os.close(descriptor)
