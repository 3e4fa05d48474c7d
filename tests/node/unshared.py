"""Network namespaces without a name, for tests: they end with their descriptor."""

from __future__ import annotations

import ctypes
import os
import threading
from typing import Final

from nri_dranet.netlink.namespaces import NetNs

_CLONE_NEWNET: Final = 0x4000_0000
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def unshared() -> NetNs:
    """Make a namespace, by a thread that enters it and ends."""
    made: list[NetNs] = []

    def work() -> None:
        assert _LIBC.unshare(_CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        made.append(NetNs.current())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return made[0]
