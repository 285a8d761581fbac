"""Calls other than reads that are abandoned while they hang: questions, syncs, opens. The task is free at once; what hangs ends later."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio import CancelScope, create_task_group
from anyio.lowlevel import checkpoint

from trio_aio import open_aio
from trio_aio.testing import FaultyContext

from ..support.files import BLOCK, is_open, make_file
from ..support.tasks import abandon, cancelled_while_blocked, until_blocked, until_closed, until_idle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from trio_aio import AsyncFile

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio", "asyncio+uvloop")]

DIRECT = pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])

CALLS: dict[str, tuple[str, Callable[[AsyncFile], Awaitable[Any]]]] = {
    "fsync": ("sync", lambda file: file.fsync()),
    "fdatasync": ("sync", lambda file: file.fdatasync()),
    "stat": ("stat", lambda file: file.stat()),
    "size": ("stat", lambda file: file.size()),
    "end": ("stat", lambda file: file.seek(0, os.SEEK_END)),
    "data": ("seek", lambda file: file.seek(0, os.SEEK_DATA)),
    "hole": ("seek", lambda file: file.seek(0, os.SEEK_HOLE)),
}


def opened(path: Path) -> int:
    """Return how many descriptors of this process are those of a file."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found += os.path.samefile(f"/proc/self/fd/{fd}", path)
    return found


@DIRECT
@pytest.mark.parametrize("name", CALLS)
async def test_call_that_hangs_is_abandoned_and_the_file_is_left_at_once(disk: Path, direct: bool, name: str) -> None:
    path, data = make_file(disk)
    operation, call = CALLS[name]
    async with FaultyContext() as context:
        with anyio.fail_after(60):
            async with open_aio(path, "r+b", direct=direct, abandon_on_cancel=True, context=context) as file:
                fd = file._descriptor.fd
                await file.seek(100)
                before = context.statistics()
                with context.hang(operation=operation) as hang:
                    await abandon(partial(call, file), hang)
                    assert await file.tell() == 100
                    assert await file.pread(BLOCK, 0) == data[:BLOCK]
                    after = context.statistics()
                    assert (after.abandoned, after.cancelled, after.in_flight) == (1, before.cancelled, 1)
                    await file.aclose()
                    assert hang.held
                    assert is_open(fd)
            await until_closed(fd)
            await until_idle(context)
            last = context.statistics()
            # The close was abandoned too. What has ended then is not counted again.
            assert (last.abandoned, last.cancelled, last.completed) == (2, before.cancelled, after.completed)


@DIRECT
@pytest.mark.parametrize("name", CALLS)
async def test_call_without_abandon_on_cancel_waits_and_returns(disk: Path, direct: bool, name: str) -> None:
    path, _ = make_file(disk)
    operation, call = CALLS[name]
    async with FaultyContext() as context, open_aio(path, "r+b", direct=direct, context=context) as file:
        ended: list[object] = []
        with context.hang(operation=operation) as hang:
            async with create_task_group() as tasks:

                async def caller() -> None:
                    ended.append(await call(file))

                tasks.start_soon(caller)
                while not hang.held:
                    await checkpoint()
                tasks.cancel_scope.cancel()
                with CancelScope(shield=True):
                    await until_blocked()
                assert not ended
                hang.release()
        assert len(ended) == 1


async def test_seek_to_the_end_of_a_shared_position_is_abandoned_before_it_moves(disk: Path) -> None:
    path, data = make_file(disk)
    async with FaultyContext() as context, open_aio(path, abandon_on_cancel=True, context=context) as file:
        await file.seek(100)
        fd = file.fileno()
        with context.hang(operation="stat") as hang, anyio.fail_after(60):
            await abandon(partial(file.seek, 0, os.SEEK_END), hang)
            assert os.lseek(fd, 0, os.SEEK_CUR) == 100
            hang.release()
        assert await file.seek(-1, os.SEEK_END) == len(data) - 1 == os.lseek(fd, 0, os.SEEK_CUR)
        with pytest.raises(OSError, match="Invalid argument"):
            await file.seek(-len(data) - 1, os.SEEK_END)
        assert await file.tell() == len(data) - 1


async def test_sync_that_was_abandoned_and_fails_is_remembered(disk: Path) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context, open_aio(path, "r+b", abandon_on_cancel=True, context=context) as file:
        await file.pwrite(b"x", 0)
        with context.hang(operation="sync") as hang, anyio.fail_after(60):
            await abandon(file.fsync, hang)
            hang.release(errno.EIO)
            await until_idle(context)
        with pytest.raises(OSError, match="Input/output error"):
            await file.fsync()
        await file.pwrite(b"x", 0)
        await file.fsync()


async def test_sync_behind_an_abandoned_one_can_be_cancelled_and_follows_it(disk: Path) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context, open_aio(path, "r+b", abandon_on_cancel=True, context=context) as file:
        await file.pwrite(b"x", 0)
        with context.hang(operation="sync", times=1) as hang, anyio.fail_after(60):
            await abandon(file.fsync, hang)
            assert await cancelled_while_blocked(file.fsync)
            async with create_task_group() as tasks:
                tasks.start_soon(file.fdatasync)
                await until_blocked()
                hang.release()


async def test_sync_that_others_share_lets_its_own_task_leave(disk: Path) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context, open_aio(path, "r+b", abandon_on_cancel=True, context=context) as file:
        await file.pwrite(b"x", 0)
        left, followed = CancelScope(), False
        with context.hang(operation="sync", times=1) as hang, anyio.fail_after(60):

            async def lead() -> None:
                with left:
                    await file.fsync()

            async def follow() -> None:
                nonlocal followed
                await file.fsync()
                followed = True

            async with create_task_group() as tasks:
                tasks.start_soon(file.fsync)
                while not hang.held:
                    await checkpoint()
                tasks.start_soon(lead)
                await until_blocked()
                tasks.start_soon(follow)
                await until_blocked()
                left.cancel()
                await until_blocked()
                hang.release()
        assert left.cancelled_caught
        assert followed


# ---- opens


@contextmanager
def from_number(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("mode", "direct"), [("rb", False), ("rb", True), ("r+b", False), ("r+b", True), ("wb", False), ("ab", True), ("r", False)]
)
async def test_open_that_hangs_is_abandoned_and_closed_when_it_ends(disk: Path, mode: str, direct: bool) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context:
        with context.hang(operation="open") as hang, anyio.fail_after(60):

            async def open_it() -> None:
                await open_aio(path, mode, direct=direct, abandon_on_cancel=True, context=context)

            await abandon(open_it, hang)
            assert (context.statistics().abandoned, context.statistics().cancelled) == (1, 0)
            hang.release()
            await until_idle(context)
            while opened(path):
                await checkpoint()


async def test_open_that_hangs_without_abandon_on_cancel_is_waited_for(disk: Path) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context:
        files: list[AsyncFile] = []
        with context.hang(operation="open") as hang:
            async with create_task_group() as tasks:

                async def open_it() -> None:
                    files.append(await open_aio(path, context=context))

                tasks.start_soon(open_it)
                while not hang.held:
                    await checkpoint()
                tasks.cancel_scope.cancel()
                with CancelScope(shield=True):
                    await until_blocked()
                assert not files
                hang.release()
        await files[0].aclose()


async def test_open_that_was_abandoned_and_empties_the_file_is_known_to_others(disk: Path) -> None:
    path = disk / "file"
    path.write_bytes(b"line\n" * 1000)
    async with FaultyContext() as context, open_aio(path, context=context) as other:
        assert await other.readline() == b"line\n"
        with context.hang(operation="open") as hang, anyio.fail_after(60):

            async def empty() -> None:
                await open_aio(path, "wb", abandon_on_cancel=True, context=context)

            await abandon(empty, hang)
            hang.release()
            await until_idle(context)
        assert await other.readline() == b""


@pytest.mark.parametrize(
    ("mode", "flags"), [("rb", os.O_RDONLY), ("r+b", os.O_RDWR), ("r+b", os.O_RDWR | os.O_DIRECT), ("ab", os.O_RDWR | os.O_APPEND)]
)
@pytest.mark.parametrize("operation", ["open", "seek"])
async def test_adopting_that_hangs_is_abandoned_and_the_caller_keeps_the_descriptor(
    disk: Path, mode: str, flags: int, operation: str
) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context:
        with from_number(path, flags) as fd:
            with context.hang(operation=operation) as hang, anyio.fail_after(60):

                async def open_it() -> None:
                    await open_aio(fd, mode, direct=bool(flags & os.O_DIRECT), abandon_on_cancel=True, context=context)

                await abandon(open_it, hang)
                hang.release()
                await until_idle(context)
                while opened(path) > 1:
                    await checkpoint()
            assert is_open(fd)
        assert not opened(path)


@pytest.mark.parametrize(("mode", "direct"), [("rb", False), ("r+b", True)])
@pytest.mark.parametrize("operation", ["open", "seek"])
async def test_inspection_of_what_an_opener_opened_is_abandoned_and_it_is_closed(
    disk: Path, mode: str, direct: bool, operation: str
) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context:
        with context.hang(operation=operation) as hang, anyio.fail_after(60):

            async def open_it() -> None:
                await open_aio(path, mode, opener=os.open, direct=direct, abandon_on_cancel=True, context=context)

            await abandon(open_it, hang)
            hang.release()
            await until_idle(context)
            while opened(path):
                await checkpoint()


async def test_opener_that_hangs_is_abandoned_and_what_it_opens_is_closed(disk: Path) -> None:
    path, _ = make_file(disk)
    begun, go = threading.Event(), threading.Event()

    def opener(name: str, flags: int) -> int:
        fd = os.open(name, flags)
        begun.set()
        go.wait(60)
        return fd

    async def open_it() -> None:
        await open_aio(path, opener=opener, abandon_on_cancel=True, context=context)

    async with FaultyContext() as context:
        with anyio.fail_after(60):
            with CancelScope() as scope:
                async with create_task_group() as tasks:
                    tasks.start_soon(open_it)
                    while not begun.is_set():
                        await checkpoint()
                    await until_blocked()
                    scope.cancel()
            assert scope.cancelled_caught
            assert opened(path) == 1
            go.set()
            while opened(path):
                await checkpoint()


async def test_context_closes_while_an_abandoned_open_hangs(disk: Path) -> None:
    path, _ = make_file(disk)
    context = FaultyContext()
    hang = context.hang(operation="open")
    with anyio.fail_after(60):
        async with context:

            async def open_it() -> None:
                await open_aio(path, "r+b", direct=True, abandon_on_cancel=True, context=context)

            await abandon(open_it, hang)
        hang.release()
        while opened(path):
            await checkpoint()
