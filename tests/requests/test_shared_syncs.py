"""Syncs that several tasks share, and tasks that leave them: the last one withdraws the call, or waits for it, or abandons it."""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio import CancelScope, create_task_group
from anyio.lowlevel import checkpoint

from trio_aio import AIOContext, open_aio
from trio_aio.testing import FaultyContext

from ..support.files import BLOCK, is_open, make_file
from ..support.tasks import busy, until_blocked, until_closed, until_idle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from trio_aio import AsyncFile
    from trio_aio.testing import Hang

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio", "asyncio+uvloop")]

DIRECT = pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
NAME = pytest.mark.parametrize("name", ["fsync", "fdatasync"])
LEAVING = pytest.mark.parametrize("leaving", [(0, 1, 2), (1, 2, 0), (2, 0, 1)], ids=lambda order: "".join(map(str, order)))


class Sharers:
    """Three tasks that share one sync, the first of which has asked for it."""

    def __init__(self, context: FaultyContext) -> None:
        self.write: Hang = context.hang(operation="write", times=1)
        self.sync: Hang = context.hang(operation="sync")
        self.results: list[object] = [None, None, None]
        self._scopes: list[CancelScope] = [CancelScope() for _ in self.results]

    async def share(self, sync: Callable[[], Awaitable[Any]], index: int) -> None:
        with self._scopes[index] as scope:
            try:
                await sync()
                self.results[index] = "returned"
            except OSError as error:
                self.results[index] = error.errno
        if scope.cancelled_caught:
            self.results[index] = "left"

    async def start(self) -> None:
        """Let the sync start, and hang."""
        self.write.release()
        while not self.sync.held:
            await checkpoint()

    async def leave(self, index: int) -> object:
        """Cancel a task. Return what became of it by the time that every task waits."""
        self._scopes[index].cancel()
        await until_blocked()
        return self.results[index]


@asynccontextmanager
async def sharing(
    context: FaultyContext, write: Callable[[], Awaitable[Any]], sync: Callable[[], Awaitable[Any]]
) -> AsyncIterator[Sharers]:
    """Let three tasks share one sync, which waits behind a write that hangs."""
    sharers = Sharers(context)
    async with create_task_group() as tasks:
        try:
            tasks.start_soon(write)
            while not sharers.write.held:
                await checkpoint()
            for index in range(3):
                tasks.start_soon(sharers.share, sync, index)
                await until_blocked()
            yield sharers
        finally:
            sharers.write.release()
            sharers.sync.release()


def sharing_of(context: FaultyContext, file: AsyncFile, name: str = "fsync") -> AbstractAsyncContextManager[Sharers]:
    return sharing(context, lambda: file.pwrite(bytes(BLOCK), 0), getattr(file, name))


@DIRECT
@NAME
@LEAVING
@pytest.mark.parametrize("error", [0, errno.EIO])
async def test_last_task_that_leaves_waits_for_a_sync_in_flight(
    disk: Path, direct: bool, name: str, leaving: tuple[int, int, int], error: int
) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context, open_aio(path, "r+b", direct=direct, context=context) as file:
        async with sharing_of(context, file, name) as sharers:
            await sharers.start()
            before = context.statistics()
            assert await sharers.leave(leaving[0]) == "left"
            assert await sharers.leave(leaving[1]) == "left"
            assert await sharers.leave(leaving[2]) is None
            sharers.sync.release(error or None)
        after = context.statistics()
        assert sharers.results[leaving[2]] == (error or "returned")
        assert (after.cancelled, after.completed, after.in_flight) == (before.cancelled + 2, before.completed + 1, 0)
        assert not file._descriptor.order.leases


@DIRECT
@NAME
@LEAVING
async def test_last_task_that_leaves_withdraws_a_sync_that_has_not_started(
    disk: Path, direct: bool, name: str, leaving: tuple[int, int, int]
) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context, open_aio(path, "r+b", direct=direct, context=context) as file:
        async with sharing_of(context, file, name) as sharers:
            before = context.statistics()
            for index in leaving:
                assert await sharers.leave(index) == "left"
            assert file._descriptor.order.leases == 1  # the write's
            sharers.write.release()
            await until_idle(context)
            await until_blocked()
            assert not sharers.sync.held
        assert context.statistics().cancelled == before.cancelled + 3
        await file.fsync()


@DIRECT
@NAME
@LEAVING
async def test_last_task_that_leaves_abandons_a_sync_in_flight_and_the_file_closes(
    disk: Path, direct: bool, name: str, leaving: tuple[int, int, int]
) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context:
        file = await open_aio(path, "r+b", direct=direct, abandon_on_cancel=True, context=context)
        fd, order = file._descriptor.fd, file._descriptor.order
        with anyio.fail_after(60):
            async with sharing_of(context, file, name) as sharers:
                await sharers.start()
                before = context.statistics()
                for index in leaving:
                    assert await sharers.leave(index) == "left"
                left = context.statistics()
                assert (left.cancelled, left.abandoned) == (before.cancelled + 2, before.abandoned + 1)
                await file.aclose()
                assert sharers.sync.held == 1
                assert is_open(fd)
            await until_closed(fd)
            await until_idle(context)
        after, engine = context.statistics(), context._core.engine
        assert engine is not None
        assert (engine.outstanding, engine.abandoned, order.leases, order.abandoned) == (0, 0, 0, 0)
        assert (after.cancelled, after.completed) == (before.cancelled + 2, before.completed)
        assert after.abandoned == before.abandoned + 2  # the close was abandoned too


async def test_context_closes_while_an_abandoned_shared_sync_hangs(disk: Path) -> None:
    path, _ = make_file(disk)
    context = FaultyContext()
    with anyio.fail_after(60):
        await context.__aenter__()
        file = await open_aio(path, "r+b", abandon_on_cancel=True, context=context)
        async with sharing_of(context, file) as sharers:
            await sharers.start()
            for index in range(3):
                assert await sharers.leave(index) == "left"
            await file.aclose()
            await context.aclose()
            assert is_open(file._descriptor.fd)
        await until_closed(file._descriptor.fd)


@NAME
@LEAVING
async def test_descriptor_of_a_call_by_fd_is_in_use_until_the_sync_has_ended(disk: Path, name: str, leaving: tuple[int, int, int]) -> None:
    path, _ = make_file(disk)
    fd = os.open(path, os.O_RDWR)
    async with FaultyContext() as context:
        async with sharing(context, lambda: context.pwrite(fd, bytes(BLOCK), 0), lambda: getattr(context, name)(fd)) as sharers:
            await sharers.start()
            for index in leaving:
                await sharers.leave(index)
            assert sharers.results.count("left") == 2
            assert fd in context._by_fd
        assert sharers.results[leaving[2]] == "returned"
        assert fd not in context._by_fd
    os.close(fd)


async def test_last_task_that_leaves_withdraws_a_sync_that_no_worker_has_started(disk: Path) -> None:
    path, _ = make_file(disk)
    async with AIOContext(max_workers=1, engine="workers") as context, open_aio(path, "r+b", context=context) as file:
        async with busy(context), create_task_group() as tasks:
            before = context.statistics()
            tasks.start_soon(file.fsync)
            tasks.start_soon(file.fdatasync)  # in the same tick: they share a call
            while context.statistics().in_flight == before.in_flight:
                await checkpoint()
            assert file._descriptor.order.leases == 2
            assert context.statistics().in_flight == before.in_flight + 1
            tasks.cancel_scope.cancel()
            with CancelScope(shield=True):
                await until_blocked()
            assert context.statistics().cancelled == before.cancelled + 2
            assert not file._descriptor.order.leases
        await file.fsync()


async def test_last_task_that_leaves_withdraws_a_sync_that_waits_for_that_of_another_descriptor(disk: Path) -> None:
    path, _ = make_file(disk)
    async with (
        FaultyContext() as context,
        open_aio(path, "r+b", context=context) as other,
        open_aio(path, "r+b", context=context) as file,
        create_task_group() as tasks,
    ):
        with context.hang(operation="sync", times=1) as hang:
            tasks.start_soon(other.fsync)
            while not hang.held:
                await checkpoint()
            async with create_task_group() as sharing_one:
                sharing_one.start_soon(file.fsync)
                sharing_one.start_soon(file.fsync)
                await until_blocked()
                assert file._descriptor.order.leases == 2
                sharing_one.cancel_scope.cancel()
            assert not file._descriptor.order.leases
            assert hang.held
            hang.release()
        await file.fsync()


async def test_sync_behind_one_that_its_last_task_waits_for_makes_a_call_of_its_own(disk: Path) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context, open_aio(path, "r+b", context=context) as file, create_task_group() as tasks:
        async with sharing_of(context, file) as sharers:
            await sharers.start()
            for index in range(3):
                await sharers.leave(index)
            before = context.statistics()
            tasks.start_soon(file.fsync)
            await until_blocked()
        assert sharers.results == ["left", "left", "returned"]
        while context.statistics().completed < before.completed + 2:
            await checkpoint()
        assert context.statistics().submitted_workers == before.submitted_workers + 1


@pytest.mark.backends("asyncio", "asyncio+uvloop")
@pytest.mark.parametrize("abandon", [False, True])
async def test_native_cancel_of_the_last_task_is_raised_when_the_sync_has_ended(disk: Path, abandon: bool) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context, open_aio(path, "r+b", abandon_on_cancel=abandon, context=context) as file:
        with context.hang(operation="sync", times=1) as hang, anyio.fail_after(60):
            tasks = [asyncio.ensure_future(file.fsync()) for _ in range(2)]
            while not hang.held:
                await checkpoint()
            for task in tasks:
                task.cancel()
                await until_blocked()
            assert [task.done() for task in tasks] == [True, abandon]
            hang.release()
            assert all(isinstance(result, asyncio.CancelledError) for result in await asyncio.gather(*tasks, return_exceptions=True))
            await until_idle(context)
