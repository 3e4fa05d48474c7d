"""What an instance does that has given its work away: wait until it is needed again, or ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from nri_dranet.instance.handover import HandoverError, Predecessor, path_beside
from nri_dranet.instance.lock import InstanceLock

if TYPE_CHECKING:
    from pathlib import Path

LOG = logging.getLogger(__name__)

_LOOK: Final = 0.2


async def stand_by(journal: Path, stopping: asyncio.Event) -> None:
    """Wait until the instance that works is gone or offers its work, or until ``stopping`` is set.

    Raises:
        OSError: the lock's file cannot be opened.
    """
    LOG.info("another instance works now; this one stands by")
    waits = asyncio.create_task(_needed(journal), name="stand by")
    stopped = asyncio.create_task(stopping.wait(), name="stop")
    await asyncio.wait({waits, stopped}, return_when=asyncio.FIRST_COMPLETED)
    for task in (waits, stopped):
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waits


async def _needed(journal: Path) -> None:
    while True:
        with contextlib.closing(InstanceLock(journal)) as lock:
            if lock.take():
                return
        try:
            peer = await Predecessor.reach(path_beside(journal))
        except HandoverError:
            await asyncio.sleep(_LOOK)
            continue
        try:
            await peer.offered()
        finally:
            peer.close()
        return
