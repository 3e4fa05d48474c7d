"""Open files that go from one process to another, with their names, over a Unix socket (``SCM_RIGHTS``)."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# The kernel takes 253 at once (SCM_MAX_FD), and of names as many fit into one read.
_AT_ONCE: Final = 200
_READ: Final = 1 << 16
_SECONDS: Final = 5.0


def pass_on(connection: int, files: Mapping[str, int]) -> None:
    """Send descriptors with their names: a JSON list of names with each message.

    Args:
        connection: descriptor of the connected socket.
        files: descriptors by name.

    Raises:
        OSError: the peer is gone, or does not read.
    """
    names = sorted(files)
    with contextlib.closing(socket.socket(fileno=os.dup(connection))) as peer:
        for first in range(0, len(names), _AT_ONCE):
            part = names[first : first + _AT_ONCE]
            socket.send_fds(peer, [json.dumps(part).encode()], [files[name] for name in part])


def receive(path: Path, question: bytes) -> dict[str, int]:
    """Ask on a connection of its own and return what is passed on; the caller closes the descriptors.

    Args:
        path: the socket that is asked.
        question: what is sent first.

    Raises:
        OSError: it cannot be reached, or does not answer.
    """
    found: dict[str, int] = {}
    with socket.socket(socket.AF_UNIX) as asked, contextlib.ExitStack() as undo:
        undo.callback(_close, found)
        asked.settimeout(_SECONDS)
        asked.connect(str(path))
        asked.sendall(question)
        while True:
            data, descriptors, _, _ = socket.recv_fds(asked, _READ, _AT_ONCE)
            if not data:
                undo.pop_all()
                return found
            found.update(zip(_names(data), descriptors, strict=False))


def _close(files: Mapping[str, int]) -> None:
    for each in files.values():
        os.close(each)


def _names(data: bytes) -> list[str]:
    with contextlib.suppress(ValueError):
        if isinstance(names := json.loads(data), list):
            return [str(name) for name in names]
    return []
