"""How an instance that works gives its work to the next one, while pods start and end.

The next instance reaches the one that works over a Unix socket beside the journal. Each asks and answers in one line of
JSON: ``{"ask": WORD}``, answered by ``{"to": WORD, "error": TEXT}`` with an empty text when it is done.

===========  ========================================================================================================
hello        who works has seen that somebody waits; ``version`` must be the same on both sides
drain        it leaves kubelet, finishes what kubelet has asked for, and ends its work in the background. Hooks go on
release      no hook begins any more, none runs; the journal is closed and its lock is free. ``by``: until when
             (CLOCK_MONOTONIC) the runtime waits with its list; done later, the next one was dropped by the runtime:
             pods that need a device are refused then until ``active``
active       the next one works and gets the runtime's events: the former one leaves the runtime and its HTTP port
===========  ========================================================================================================

On a connection of its own ``{"ask": "namespaces"}`` is answered by descriptors (``descriptors.pass_on``): a namespace
whose pod is dead lives only by them, with the devices that are stuck in it.

A question has a ``number``, which the answer repeats: one that comes too late is not taken for the next one's.

Beside that who works may say ``{"say": "offer"}``: it ends, and an instance that stands by should ask now.
A connection that ends after ``drain`` and before ``active`` means that the next instance is dead: who has drained
begins anew. A connection that ends otherwise means nothing; the lock alone says who works.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from nri_dranet.instance.descriptors import pass_on, receive
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

LOG = logging.getLogger(__name__)

VERSION: Final = 1
"""Of this protocol. Instances of different versions wait for the lock."""

HELLO: Final = "hello"
DRAIN: Final = "drain"
RELEASE: Final = "release"
ACTIVE: Final = "active"
NAMESPACES: Final = "namespaces"

_HELLO_SECONDS: Final = 2.0
# What the end is put off for an instance that is about to take over. The chart's grace period is 30.
_SUCCESSOR_SECONDS: Final = 15.0


class HandoverError(Exception):
    """The other instance does not do what it was asked for; the text says why."""


class Incumbent(Protocol):
    """The instance that works. Each method may raise ``HandoverError``: the next instance may then ask again."""

    async def drain(self) -> None:
        """Leave kubelet and end the work in the background."""
        ...

    async def release(self) -> None:
        """Let no hook run any more, close the journal and free its lock."""
        ...

    def namespaces(self) -> Mapping[str, int]:
        """Return descriptors of the namespaces that hold devices, by sandbox ID."""
        ...

    async def leave(self) -> None:
        """Leave the runtime and the HTTP port."""
        ...


def path_beside(journal: Path) -> Path:
    """Return where the socket of a journal is."""
    return journal.with_name(f"{journal.name}.sock")


class HandoverServer:
    """The socket of the instance that works. Belongs to the event loop, but for ``successor_lives``."""

    def __init__(self, path: Path, incumbent: Incumbent) -> None:
        """Prepare to serve.

        Args:
            path: the socket.
            incumbent: carries out what the next instance asks for.
        """
        self._path = path
        self._steps = {HELLO: _nothing, DRAIN: incumbent.drain, RELEASE: incumbent.release, ACTIVE: incumbent.leave}
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._peer: asyncio.StreamWriter | None = None
        self._peer_socket: Any = None
        self._incumbent = incumbent
        self._offered = False
        self._release_by = self._released_at = float("inf")
        self._tasks: set[asyncio.Task[None]] = set()
        self.handed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """True when the next instance works; False when it died after ``drain``."""

    async def start(self) -> None:
        """Serve. Where no socket can be made the next instance waits for the lock, which is told in the log."""
        made = self._path.with_name(f".{os.getpid()}.sock")
        try:
            made.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(self._accept, made)
            made.chmod(0o600)
            self._inode = made.stat().st_ino
            made.rename(self._path)
        except (OSError, ValueError) as error:  # ValueError: the path is too long
            LOG.warning(
                "no socket for the next instance: it will wait for this one to end",
                extra=fields(path=self._path, error=error),
            )

    async def stop(self) -> None:
        """Serve no more; the file goes unless the next instance has put its own there."""
        if self._server is not None:
            self._server.close()
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        if self._peer is not None:
            self._peer.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def work(self, stopping: asyncio.Event, watching: asyncio.Task[None] | None) -> bool:
        """Wait until this instance shall end, or another one has taken over or died in that; tell whether it has.

        One that waits is given the time to take over before this one ends.

        Args:
            stopping: set when this instance shall end.
            watching: work of this instance whose failure ends it; None: there is none.

        Raises:
            Exception: what ``watching`` ended by.
        """
        stop = asyncio.create_task(stopping.wait(), name="stop")
        ends: list[asyncio.Future[Any]] = [stop, self.handed]
        try:
            await asyncio.wait([*ends, watching] if watching else ends, return_when=asyncio.FIRST_COMPLETED)
            if watching is not None and watching.done() and not watching.cancelled():
                watching.result()
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not self.handed.done() and self._peer is not None:
                LOG.info("another instance waits; this one stays until that works")
                self.offer()
                await asyncio.wait({self.handed}, timeout=_SUCCESSOR_SECONDS)
            return self.handed.done() and self.handed.result()
        finally:
            stop.cancel()

    @property
    def successor(self) -> bool:
        """Whether another instance is connected."""
        return self._peer is not None

    def offer(self) -> None:
        """Say to an instance that stands by that this one ends; to one that only just comes, after its greeting."""
        self._offered = True
        if self._peer is not None:
            self._peer.write(_line({"say": "offer"}))

    def successor_lives(self) -> bool:
        """Tell whether the next instance holds its end of the connection, and took the work in time. For any thread."""
        peer = self._peer_socket
        if peer is None or min(self._released_at, time.monotonic()) >= self._release_by:
            return False
        try:
            with contextlib.closing(socket.socket(fileno=os.dup(peer.fileno()))) as copy:
                return bool(copy.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer), name="handover")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        drained = False
        try:
            while line := await reader.readline():
                asked = _read(line)
                word = str(asked.get("ask", ""))
                answer = {"to": word, "number": asked.get("number"), "version": VERSION}
                if word == NAMESPACES:
                    pass_on(writer.get_extra_info("socket").fileno(), self._incumbent.namespaces())
                    return
                if self._peer not in {None, writer}:
                    writer.write(_line({**answer, "error": "another instance waits already"}))
                    await writer.drain()
                    return
                self._peer, self._peer_socket = writer, writer.get_extra_info("socket")
                drained = drained or word == DRAIN
                writer.write(_line({**answer, "error": await self._answer(word, _time(asked.get("by")))}))
                if word == HELLO and self._offered:
                    self.offer()
                await writer.drain()
                if word == ACTIVE and not self.handed.done():
                    self.handed.set_result(True)
        except OSError as error:
            LOG.warning("the next instance is lost", extra=fields(error=error))
        finally:
            if self._peer is writer:
                self._peer = self._peer_socket = None
                if drained and not self.handed.done():
                    self.handed.set_result(False)
            writer.close()

    async def _answer(self, word: str, by: float) -> str:
        step = self._steps.get(word)
        if step is None:
            return f"{word!r} is not known here"
        LOG.info("the next instance asks", extra=fields(ask=word))
        if word == RELEASE:
            self._release_by, self._released_at = by, float("inf")
        try:
            await step()
        except HandoverError as error:
            return str(error) or "refused"
        except Exception as error:  # the next instance is owed an answer; it goes on with the lock
            LOG.exception("a step of the handover failed", extra=fields(ask=word))
            return f"{type(error).__name__}: {error}"
        if word == RELEASE:
            self._released_at = time.monotonic()
        return ""


class Predecessor:
    """The instance that works, as the next one sees it. Belongs to the event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._number = 0

    @classmethod
    async def reach(cls, path: Path) -> Predecessor:
        """Connect and greet.

        Raises:
            HandoverError: nobody is there, another instance waits already, or the protocol is another.
        """
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                reader, writer = await asyncio.open_unix_connection(path)
        except (OSError, ValueError) as error:
            raise HandoverError(f"no instance can be reached by {path}: {error}") from error
        found = cls(reader, writer)
        try:
            version = (await found._ask(HELLO, _HELLO_SECONDS)).get("version")
        except BaseException:
            found.close()
            raise
        if version != VERSION:
            found.close()
            raise HandoverError(f"the instance that works speaks version {version}, this one {VERSION}")
        return found

    @property
    def lost(self) -> bool:
        """Whether the connection has ended."""
        return self._reader.at_eof() or self._writer.is_closing()

    async def ask(self, word: str, timeout: float, **more: float) -> None:  # noqa: ASYNC109 - a bound that belongs to each word
        """Ask for a step and wait until it is done; ``more`` goes with the question.

        Raises:
            HandoverError: it was refused, not done within ``timeout`` seconds, or the other instance is gone.
        """
        await self._ask(word, timeout, **more)

    async def offered(self) -> bool:
        """Wait until the instance that works says that it ends: True; or is gone: False."""
        try:
            while line := await self._reader.readline():
                if _read(line).get("say") == "offer":
                    return True
        except OSError:
            pass
        return False

    @staticmethod
    def namespaces(path: Path) -> dict[str, int]:
        """Return descriptors of the namespaces that the instance holds, by sandbox ID; the caller closes them. Blocks.

        Raises:
            OSError: it cannot be reached, or does not answer.
        """
        return receive(path, _line({"ask": NAMESPACES}))

    def close(self) -> None:
        """End the connection."""
        self._writer.close()

    async def _ask(self, word: str, seconds: float, **more: float) -> dict[str, Any]:
        self._number += 1
        number = self._number
        try:
            async with asyncio.timeout(seconds):
                self._writer.write(_line({"ask": word, "number": number, **more}))
                await self._writer.drain()
                while line := await self._reader.readline():
                    answer = _read(line)
                    if answer.get("to") == word and answer.get("number") == number:
                        break
                else:
                    raise HandoverError(f"the instance that works is gone ({word})")
        except TimeoutError as error:
            raise HandoverError(f"the instance that works did not {word} within {seconds:g} s") from error
        except OSError as error:
            raise HandoverError(f"the instance that works is gone ({word}): {error}") from error
        if answer.get("error"):
            raise HandoverError(f"the instance that works refused to {word}: {answer['error']}")
        return answer


async def _nothing() -> None:
    """Carry out the step that has nothing to do."""


def _time(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _read(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
