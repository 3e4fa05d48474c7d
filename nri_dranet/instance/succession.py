"""How an instance comes to work: at once where nobody does, else from the one that works, as ``handover`` describes.

It is warm by then: what needs no journal has been started, kubelet knows it, and kubelet's calls wait. The moment in
which the work goes over is the runtime's list of sandboxes (``nri.gate``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final

from nri_dranet.instance.handover import ACTIVE, DRAIN, RELEASE, HandoverError, Predecessor, path_beside
from nri_dranet.instance.lock import InstanceLock
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOG = logging.getLogger(__name__)

PATIENCE: Final = 60.0
"""Seconds that an instance waits for its turn."""

# Of the two seconds that a runtime waits for an answer to its list, holding a lock of the whole node.
_SEIZE_SECONDS: Final = 1.0
_RELEASE_SECONDS: Final = 0.8
# What an answer may take to be read here.
_MARGIN: Final = 0.1
# What kubelet has asked for may take as long as kubelet waits.
_DRAIN_SECONDS: Final = 50.0
_LEAVE_SECONDS: Final = 10.0
# Where no runtime answers there is no event that could fall between two instances.
_RUNTIME_SECONDS: Final = 5.0
_LOOK: Final = 0.05


class NotAloneError(Exception):
    """Another instance works and does not end; the text says what to do."""


class Succession:
    """The right to work. Belongs to the event loop, but for ``take_over``."""

    def __init__(self, journal: Path, activate: Callable[[], None], stopping: asyncio.Event) -> None:
        """Prepare.

        Args:
            journal: the journal, beside which lock and socket are.
            activate: begins to work: opens the journal and all that depends on it. Called once, holding the lock.
            stopping: set when this instance shall end.

        Raises:
            OSError: the lock cannot be made.
        """
        self._journal = journal
        self._lock = InstanceLock(journal)
        self._path = path_beside(journal)
        self._activate = activate
        self._stopping = stopping
        self._loop = asyncio.get_running_loop()
        self._seizing = asyncio.Lock()
        self._turn = asyncio.Event()
        self._failure: Exception | None = None
        self._peer: Predecessor | None = None
        self._drained = 0.0

    def close(self) -> None:
        """Give the lock back."""
        self._lock.close()
        if self._peer is not None:
            self._peer.close()

    def try_now(self) -> bool:
        """Begin to work if nobody else does; tell whether this instance works. After an error it may be tried again.

        Raises:
            Exception: what ``activate`` raises.
        """
        if self._turn.is_set() or not self._lock.take():
            return self._turn.is_set()
        self._turn.set()
        try:
            self._activate()
        except BaseException:
            self._turn.clear()
            raise
        return True

    async def wait(self, join: Callable[[], None]) -> None:
        """Wait until this instance works.

        Args:
            join: begins to join the runtime, which calls ``take_over`` when it lists its sandboxes.

        Raises:
            NotAloneError: the other one does not end, or this one shall end first.
            Exception: what ``activate`` raises.
        """
        LOG.info("another instance works", extra=fields(process=self._lock.holder(), path=self._path))
        end = time.monotonic() + PATIENCE
        while not await self._step(join):
            if self._stopping.is_set():
                raise NotAloneError("stopped before another instance had ended")
            if time.monotonic() > end:
                raise NotAloneError(
                    f"another instance (process {self._lock.holder() or 'unknown'}) still works with the journal "
                    f"{self._journal}: end it, or give this one another --state-dir and --driver-name"
                )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self._turn.wait()
        if self._failure is not None:
            raise self._failure

    def take_over(self) -> None:
        """Take the work over now. For the thread that reads from the runtime, which waits for it.

        Raises:
            HandoverError: it cannot be had now.
        """
        until = time.monotonic() + _SEIZE_SECONDS
        future = asyncio.run_coroutine_threadsafe(self._seize(until), self._loop)
        try:
            future.result(_SEIZE_SECONDS)
        except TimeoutError as error:
            future.cancel()
            raise HandoverError(f"the other instance did not hand over within {_SEIZE_SECONDS:g} s") from error

    async def namespaces(self) -> dict[str, int]:
        """Return the namespaces that the former instance holds; none where there is no such instance any more."""
        if self._peer is None or self._peer.lost:
            return {}
        try:
            return await asyncio.to_thread(self._peer.namespaces, self._path)
        except OSError as error:
            LOG.warning("the former instance's namespaces are not known", extra=fields(error=error))
            return {}

    async def confirm(self) -> None:
        """Tell the former instance that it is not needed any more; it has left everything when this returns."""
        peer, self._peer = self._peer, None
        if peer is None:
            return
        try:
            await peer.ask(ACTIVE, _LEAVE_SECONDS)
        except HandoverError as error:
            LOG.warning("the former instance did not end well", extra=fields(error=error))
        finally:
            peer.close()

    # ---- inside

    async def _step(self, join: Callable[[], None]) -> bool:
        """Do what can be done now; True when this instance works."""
        if self.try_now():
            return True
        if self._peer is not None and self._peer.lost:
            self._peer.close()
            self._peer, self._drained = None, 0.0
        try:
            if self._peer is None:
                self._peer = await Predecessor.reach(self._path)
            if not self._drained:
                await self._peer.ask(DRAIN, _DRAIN_SECONDS)
                self._drained = time.monotonic()
                join()
            elif time.monotonic() > self._drained + _RUNTIME_SECONDS:
                await self._seize(0.0)
        except HandoverError as error:
            LOG.debug("not handed over yet", extra=fields(error=error))
        return self._turn.is_set()

    async def _seize(self, until: float) -> None:
        """Take the lock from the instance that works, and begin.

        Args:
            until: when the runtime has waited long enough for an answer to its list; 0: it has listed nothing.

        Raises:
            HandoverError: it cannot be had now.
        """
        async with self._seizing:
            if self._turn.is_set():
                return
            began = time.monotonic()
            if not self._lock.take():
                if self._peer is None:
                    raise HandoverError("the other instance cannot be asked")
                await self._peer.ask(RELEASE, _RELEASE_SECONDS, by=min(until, began + _RELEASE_SECONDS) - _MARGIN)
                if self._turn.is_set():
                    # Who looked at the lock meanwhile found it free before the answer was here.
                    return
                # Somebody else who waits for the lock may have it now.
                if not self._lock.take():
                    raise HandoverError("another instance took the lock")
            released = time.monotonic()
            self._turn.set()
            try:
                self._activate()
            except Exception as error:  # told by wait(), which ends this instance
                self._failure = error
                raise HandoverError(f"this instance cannot work: {error}") from error
            LOG.info(
                "took over from another instance",
                extra=fields(release_ms=(released - began) * 1000, begin_ms=(time.monotonic() - released) * 1000),
            )
