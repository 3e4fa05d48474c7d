"""The words between the instance that works and the next one."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

import pytest

from nri_dranet.instance import handover
from nri_dranet.instance.handover import ACTIVE, DRAIN, RELEASE, HandoverError, HandoverServer, Predecessor, path_beside
from nri_dranet.instance.lock import InstanceLock
from nri_dranet.instance.standby import stand_by
from nri_dranet.instance.succession import NotAloneError, Succession

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


class Works:
    """An instance that works: it has the lock, and remembers what it was asked."""

    def __init__(self, journal: Path) -> None:
        self.lock = InstanceLock(journal)
        self.asked: list[str] = []
        self.refusal = ""
        self.held: dict[str, int] = {}
        self.failure: Exception | None = None
        assert self.lock.take()

    async def drain(self) -> None:
        """Remember it."""
        self.asked.append(DRAIN)

    async def release(self) -> None:
        """Free the lock, unless told otherwise."""
        self.asked.append(RELEASE)
        if self.refusal:
            raise HandoverError(self.refusal)
        if self.failure is not None:
            raise self.failure
        self.lock.close()

    def namespaces(self) -> dict[str, int]:
        """Hold what the test has put there."""
        return self.held

    async def leave(self) -> None:
        """Remember it."""
        self.asked.append(ACTIVE)


@contextlib.asynccontextmanager
async def serving(journal: Path) -> AsyncIterator[tuple[Works, HandoverServer]]:
    """Serve as an instance that works."""
    works = Works(journal)
    server = HandoverServer(path_beside(journal), works)
    await server.start()
    try:
        yield works, server
    finally:
        await server.stop()
        with contextlib.suppress(OSError):
            works.lock.close()


async def until(true: Callable[[], bool]) -> None:
    """Let everything else run until something is true."""
    for _ in range(100_000):
        if true():
            return
        await asyncio.sleep(0)
    raise AssertionError("it does not become true")


def in_list(succession: Succession) -> Callable[[], None]:
    """Return a runtime to join: it lists its sandboxes on a thread of its own."""

    def join() -> None:
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, succession.take_over)

    return join


async def test_the_work_goes_over_step_by_step(tmp_path: Path) -> None:
    """Drain, the runtime's list, release, begin; the former one leaves last, and its socket is gone."""
    journal = tmp_path / "journal.db"
    begun: list[bool] = []
    async with serving(journal) as (works, server):
        succession = Succession(journal, lambda: begun.append(True), asyncio.Event())
        assert not succession.try_now()
        await succession.wait(in_list(succession))
        assert begun == [True]
        assert works.asked == [DRAIN, RELEASE]
        assert server.successor_lives()
        await succession.confirm()
        assert works.asked == [DRAIN, RELEASE, ACTIVE]
        assert await server.handed
        succession.close()
    assert not path_beside(journal).exists()


async def test_a_lock_that_is_found_free_before_the_answer_is_here_begins_once(tmp_path: Path) -> None:
    """The lock is free a moment before the former one says so, and is looked at all the time."""
    journal = tmp_path / "journal.db"
    begun: list[bool] = []
    async with serving(journal) as (works, server):
        succession = Succession(journal, lambda: begun.append(True), asyncio.Event())

        async def release() -> None:
            works.lock.close()
            await until(lambda: bool(begun))

        server._steps[RELEASE] = release
        with contextlib.closing(succession):
            taking: list[asyncio.Future[None]] = []

            def join() -> None:
                taking.append(asyncio.get_running_loop().run_in_executor(None, succession.take_over))

            await succession.wait(join)
            await taking[0]
    assert begun == [True]


@pytest.mark.parametrize("listed", [True, False])
async def test_a_next_instance_without_the_runtime_s_list_is_not_relied_on(tmp_path: Path, listed: bool) -> None:
    """A pod could start that neither instance has attached: what needs a device is refused until the next one works."""
    journal = tmp_path / "journal.db"
    async with serving(journal) as (_, server):
        succession = Succession(journal, lambda: None, asyncio.Event())
        with contextlib.closing(succession):
            succession._peer = await Predecessor.reach(path_beside(journal))
            assert server.successor_lives()
            if listed:
                await asyncio.to_thread(succession.take_over)
            else:
                await succession._seize(0.0)
            assert server.successor_lives() is listed


@pytest.mark.parametrize("late", [True, False])
async def test_a_release_that_came_too_late_is_not_relied_on_either(tmp_path: Path, late: bool) -> None:
    """The runtime has dropped the next instance by then."""
    journal = tmp_path / "journal.db"
    async with serving(journal) as (_, server):
        with contextlib.closing(await Predecessor.reach(path_beside(journal))) as peer:
            await peer.ask(RELEASE, 5, by=asyncio.get_running_loop().time() + (0 if late else 60))
            assert server.successor_lives() is not late


async def test_an_answer_that_comes_too_late_is_not_that_to_the_next_question(tmp_path: Path) -> None:
    """A refusal of the first question would be taken for one of the second, which was done."""
    journal = tmp_path / "journal.db"
    async with serving(journal) as (works, server):
        go_on = asyncio.Event()
        said = iter(["a hook still runs", ""])

        async def release() -> None:
            await go_on.wait()
            if text := next(said):
                raise HandoverError(text)

        server._steps[RELEASE] = release
        with contextlib.closing(await Predecessor.reach(path_beside(journal))) as peer:
            with pytest.raises(HandoverError, match="within 0 s"):
                await peer.ask(RELEASE, 0)
            go_on.set()
            await peer.ask(RELEASE, 5)
        assert works.asked == []


async def test_a_free_lock_is_taken_at_once(tmp_path: Path) -> None:
    """Nobody works: there is nothing to hand over and nobody to tell."""
    begun: list[bool] = []
    succession = Succession(tmp_path / "journal.db", lambda: begun.append(True), asyncio.Event())
    with contextlib.closing(succession):
        assert succession.try_now()
        assert succession.try_now()
        await succession.confirm()
    assert begun == [True]


async def test_an_instance_that_cannot_be_asked_is_waited_for(tmp_path: Path) -> None:
    """It is of a version without this socket: its end frees the lock."""
    journal = tmp_path / "journal.db"
    former = InstanceLock(journal)
    assert former.take()
    succession = Succession(journal, lambda: None, asyncio.Event())
    with contextlib.closing(succession):
        waiting = asyncio.create_task(succession.wait(lambda: None))
        await asyncio.sleep(0)
        former.close()
        await waiting
        assert succession.try_now()


async def test_one_that_does_not_end_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text says which process, and what to do; one that is to end itself says so."""
    journal = tmp_path / "journal.db"
    stopping = asyncio.Event()
    with contextlib.closing(InstanceLock(journal)) as former:
        assert former.take()
        monkeypatch.setattr("nri_dranet.instance.succession.PATIENCE", 0.0)
        with contextlib.closing(Succession(journal, lambda: None, stopping)) as succession:
            with pytest.raises(NotAloneError, match=r"process \d+.*--state-dir"):
                await succession.wait(lambda: None)
            stopping.set()
            with pytest.raises(NotAloneError, match="stopped before"):
                await succession.wait(lambda: None)


@pytest.mark.parametrize("failure", [None, RuntimeError("what nobody thought of")])
async def test_a_refusal_is_told_and_asked_again(tmp_path: Path, failure: Exception | None) -> None:
    """A hook hangs, or something unknown fails: the runtime drops the next instance, which tries again."""
    journal = tmp_path / "journal.db"
    async with serving(journal) as (works, _):
        works.refusal, works.failure = ("" if failure else "a hook still runs"), failure
        lists: list[str] = []

        def join() -> None:
            asyncio.get_running_loop().run_in_executor(None, listed)

        def listed() -> None:
            try:
                succession.take_over()
            except HandoverError as error:
                lists.append(str(error))
                works.refusal, works.failure = "", None
                succession.take_over()

        succession = Succession(journal, lambda: None, asyncio.Event())
        with contextlib.closing(succession):
            await succession.wait(join)
        (told,) = lists
        assert ("what nobody thought of" if failure else "a hook still runs") in told


async def test_what_keeps_the_next_instance_from_working_ends_it(tmp_path: Path) -> None:
    """The former one sees the connection end after drain, and begins anew."""
    journal = tmp_path / "journal.db"

    def fail() -> None:
        raise OSError("the journal is of a newer version")

    async with serving(journal) as (works, server):
        succession = Succession(journal, fail, asyncio.Event())
        with contextlib.closing(succession), pytest.raises(OSError, match="newer version"):
            await succession.wait(in_list(succession))
        assert works.asked == [DRAIN, RELEASE]
        assert not await server.handed
        assert not server.successor_lives()


@pytest.mark.parametrize("count", [0, 1, 450])
async def test_namespaces_are_passed_on(tmp_path: Path, count: int) -> None:
    """Open files go to the next instance, however many; it is no question of the one connection that may ask."""
    journal = tmp_path / "journal.db"
    async with serving(journal) as (works, _):
        succession = Succession(journal, lambda: None, asyncio.Event())
        with contextlib.closing(succession):
            assert await succession.namespaces() == {}, "nobody was reached yet"
            await succession.wait(in_list(succession))
            with (tmp_path / "file").open("w+b") as file:
                works.held = dict.fromkeys((f"sandbox{number}" for number in range(count)), file.fileno())
                found = await succession.namespaces()
                assert found.keys() == works.held.keys()
                for descriptor in found.values():
                    assert os.fstat(descriptor).st_ino == os.fstat(file.fileno()).st_ino
                    os.close(descriptor)


async def test_a_connection_that_ends_before_drain_means_nothing(tmp_path: Path) -> None:
    """Who works goes on."""
    journal = tmp_path / "journal.db"
    async with serving(journal) as (_, server):
        peer = await Predecessor.reach(path_beside(journal))
        assert server.successor, "it has greeted"
        peer.close()
        await until(lambda: not server.successor)
        assert not server.handed.done()


async def test_one_at_a_time_may_ask(tmp_path: Path) -> None:
    """A third instance waits for the lock."""
    path = path_beside(tmp_path / "journal.db")
    async with serving(tmp_path / "journal.db"):
        peer = await Predecessor.reach(path)
        with contextlib.closing(peer), pytest.raises(HandoverError, match="another instance waits"):
            await Predecessor.reach(path)


async def test_another_protocol_is_not_spoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instances of two versions of it wait for the lock."""
    path = path_beside(tmp_path / "journal.db")
    async with serving(tmp_path / "journal.db"):
        monkeypatch.setattr(handover, "_line", lambda message: _line({**message, "version": 2}))
        with pytest.raises(HandoverError, match="speaks version 2, this one 1"):
            await Predecessor.reach(path)


_line = handover._line


async def test_an_unknown_word_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    """Also what is no JSON at all."""
    path = path_beside(tmp_path / "journal.db")
    async with serving(tmp_path / "journal.db") as (works, _):
        with contextlib.closing(await Predecessor.reach(path)) as peer:
            with pytest.raises(HandoverError, match="'dance' is not known"):
                await peer.ask("dance", 5)
            peer._writer.write(b"{\xff[\n[]\n")
            await peer.ask(DRAIN, 5)
        assert works.asked == [DRAIN]


async def test_a_path_that_no_socket_can_have_leaves_the_lock(tmp_path: Path) -> None:
    """It is told in the log only; the next instance waits."""
    journal = tmp_path / ("x" * 120) / "journal.db"
    async with serving(journal) as (_, server):
        assert not server.successor
        with pytest.raises(HandoverError, match="no instance can be reached"):
            await Predecessor.reach(path_beside(journal))


@pytest.mark.parametrize("offered", [True, False])
async def test_standing_by_ends_when_the_work_is_offered_or_free(tmp_path: Path, offered: bool) -> None:
    """Or when this instance shall end."""
    journal = tmp_path / "journal.db"
    async with serving(journal) as (_, server):
        waiting = asyncio.create_task(stand_by(journal, asyncio.Event()))
        await until(lambda: server.successor)
        assert not waiting.done()
        if offered:
            server.offer()
            await waiting
    await waiting
    stopping = asyncio.Event()
    stopping.set()
    with contextlib.closing(InstanceLock(journal)) as lock:
        assert lock.take()
        await stand_by(journal, stopping)


async def test_a_begin_that_failed_can_be_tried_again(tmp_path: Path) -> None:
    """The journal's disk was full or read-only: the lock stays with this instance meanwhile."""
    problems = [OSError("read-only"), None]

    def activate() -> None:
        if problem := problems.pop(0):
            raise problem

    journal = tmp_path / "journal.db"
    with contextlib.closing(Succession(journal, activate, asyncio.Event())) as succession:
        with pytest.raises(OSError, match="read-only"):
            succession.try_now()
        with contextlib.closing(InstanceLock(journal)) as other:
            assert not other.take()
        assert succession.try_now()


@pytest.mark.parametrize("waits", [True, False])
async def test_an_instance_that_shall_end_stays_for_one_that_waits(tmp_path: Path, waits: bool) -> None:
    """Alone it ends at once; else the next one takes over first."""
    journal = tmp_path / "journal.db"
    stopping = asyncio.Event()
    async with serving(journal) as (works, server):
        working = asyncio.create_task(server.work(stopping, None))
        succession = Succession(journal, lambda: None, asyncio.Event())
        with contextlib.closing(succession):
            waiting = asyncio.create_task(succession.wait(in_list(succession))) if waits else None
            if waits:
                await until(lambda: server.successor)
            stopping.set()
            if waiting is not None:
                await waiting
                await succession.confirm()
            assert await working is waits
        assert works.asked == ([DRAIN, RELEASE, ACTIVE] if waits else [])


async def test_work_whose_part_fails_ends_by_that(tmp_path: Path) -> None:
    """The watch over kubelet's sockets must not die in silence."""

    async def fail() -> None:
        raise RuntimeError("what nobody thought of")

    async with serving(tmp_path / "journal.db") as (_, server):
        with pytest.raises(RuntimeError, match="nobody thought of"):
            await server.work(asyncio.Event(), asyncio.create_task(fail()))
