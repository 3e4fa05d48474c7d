"""What the tests of the gRPC side share: an event loop on a thread, and the plugin's servers on it."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from pathlib import Path


class Loop:
    """An event loop on a thread of its own, as the daemon's main thread has one."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._stops: list[Any] = []

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine there and return what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    def begin(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Begin a coroutine there; its future can be cancelled."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def serve(self, plugin: Any) -> Any:
        """Start a plugin's servers; they are stopped at the end."""
        self.run(plugin.start())
        self._stops.append(plugin)
        return plugin

    def close(self) -> None:
        """Stop what was started, and the loop."""
        for plugin in self._stops:
            self.run(plugin.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    """Give an event loop on a thread."""
    running = Loop()
    yield running
    running.close()


@pytest.fixture
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder for kubelet's sockets whose path is short enough for them."""
    return tmp_path_factory.mktemp("k")
