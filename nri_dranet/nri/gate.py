"""The door between the runtime's session and the hooks, while one instance gives its work to the next.

An instance that waits for its turn joins the runtime beside the one that works. The runtime lists its sandboxes to it
under a lock that lets no event through: in that moment, and in no other, the work goes over. So there is no event that
both carry out, and none that nobody does. From then on the runtime sends each event to both, and the former one
answers that it has nothing to do with it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Protocol

from nri_dranet.reconcile.hooktypes import HookError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nri_dranet.nri.listing import Listing
    from nri_dranet.nri.session import HookService


class Shut(Protocol):
    """The hooks, as far as they can still tell something when their work has gone (``nri.hooks.Hooks``)."""

    def concerns(self, method: str, payload: bytes) -> bool:
        """Tell whether a call would attach a device or needs one that is attached."""
        ...


class HookGate:
    """Hooks that can be opened and closed. Thread-safe."""

    def __init__(self, take_over: Callable[[], None]) -> None:
        """Begin closed.

        Args:
            take_over: called while closed when the runtime has listed its sandboxes: opens this gate, or raises
                ``HookError``, and the runtime drops this plugin, which tries again.
        """
        self._take_over = take_over
        self._changed = threading.Condition()
        self._hooks: HookService | None = None
        self._former: Shut | None = None
        self._lives: Callable[[], bool] = lambda: False
        self._running = 0

    @property
    def opened(self) -> bool:
        """Whether calls are let through."""
        return self._hooks is not None

    def open(self, hooks: HookService) -> None:
        """Let calls through to ``hooks``."""
        with self._changed:
            self._hooks = hooks

    def close(self, former: Shut, lives: Callable[[], bool], seconds: float) -> bool:
        """Let no call through any more; False when one still runs after ``seconds``: then it is open as before.

        Args:
            former: asked whether a call is one that a pod depends on.
            lives: asked whether the next instance lives, that carries such a call out; else it is refused.
            seconds: how long calls that run are waited for.
        """
        end = time.monotonic() + seconds
        with self._changed:
            hooks, self._hooks = self._hooks, None
            while self._running:
                if not self._changed.wait(max(0.0, end - time.monotonic())) and time.monotonic() >= end:
                    self._hooks = hooks
                    return False
            self._former, self._lives = former, lives
            return True

    # ---- what the session calls (``nri.session.HookService``)

    def call(self, method: str, payload: bytes, deadline: float) -> bytes | None:
        """Carry a call out, or leave it to the instance that works.

        Raises:
            HookError: it is refused.
        """
        with self._through() as hooks:
            if hooks is not None:
                return hooks.call(method, payload, deadline)
        former = self._former
        if former is None:
            raise HookError("this instance does not work yet; try again")
        if not self._lives() and former.concerns(method, payload):
            raise HookError("the instance that took over is gone, and this one begins anew; try again")
        return b""

    def overdue(self, method: str, payload: bytes) -> str | None:
        """Return the error for a call that did not end in time; None: answer it as a success."""
        hooks = self._hooks
        return hooks.overdue(method, payload) if hooks is not None else f"{method} did not end in time"

    def late(self, method: str, payload: bytes) -> None:
        """Take back a call that succeeded too late; where the work has gone, the next instance finds it."""
        with self._through() as hooks:
            if hooks is not None:
                hooks.late(method, payload)

    def synchronize(self, listing: Listing) -> None:
        """Take the list of sandboxes; while closed, take the work over first.

        Raises:
            HookError: the work cannot be had now.
        """
        if self._hooks is None:
            if self._former is not None:
                return
            self._take_over()
        with self._through() as hooks:
            if hooks is not None:
                hooks.synchronize(listing)

    @contextlib.contextmanager
    def _through(self) -> Iterator[HookService | None]:
        with self._changed:
            hooks = self._hooks
            self._running += hooks is not None
        try:
            yield hooks
        finally:
            if hooks is not None:
                with self._changed:
                    self._running -= 1
                    self._changed.notify_all()
