"""What `open_aio(...)` returns: a coroutine, and an async context manager, for one file."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import sys
import warnings
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
import trio

from trio_aio import AsyncFile, open_aio

from ..support.files import make_file

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from trio_aio import FileOpener


@pytest.fixture
def path(disk: Path) -> Iterator[Path]:
    path, _ = make_file(disk)
    yield path
    gc.collect()
    assert _open_descriptors(path) == 0


def _open_descriptors(path: Path) -> int:
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # that of the listing itself
            continue
    return links.count(str(path))


async def _by_create_task(path: Path) -> AsyncFile:
    return await asyncio.create_task(open_aio(path))


async def _by_ensure_future(path: Path) -> AsyncFile:
    return await asyncio.ensure_future(open_aio(path))


async def _by_gather(path: Path) -> AsyncFile:
    return (await asyncio.gather(open_aio(path)))[0]


async def _by_wait_for(path: Path) -> AsyncFile:
    return await asyncio.wait_for(open_aio(path), 30)


async def _by_task_group(path: Path) -> AsyncFile:
    async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined, unused-ignore]  # Python 3.11
        task = group.create_task(open_aio(path))
    return task.result()  # type: ignore[no-any-return, unused-ignore]


async def _from_a_thread(path: Path) -> AsyncFile:
    loop = asyncio.get_running_loop()
    return await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(open_aio(path), loop).result(30))


@pytest.mark.parametrize(
    "call",
    [
        *(_by_create_task, _by_ensure_future, _by_gather, _by_wait_for, _from_a_thread),
        pytest.param(_by_task_group, marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio has no TaskGroup")),
    ],
)
def test_asyncio_takes_it_as_a_coroutine(path: Path, call: Callable[[Path], Awaitable[AsyncFile]]) -> None:
    async def main() -> None:
        async with await call(path) as file:
            assert file.name == str(path)

    asyncio.run(main())


def test_asyncio_run_takes_it(path: Path) -> None:
    file: AsyncFile = asyncio.run(open_aio(path))
    with pytest.warns(ResourceWarning, match="unclosed file"):
        del file


@pytest.mark.backends("trio")
@pytest.mark.anyio
async def test_start_soon_takes_the_function(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # its result is lost
        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_aio, path)
        gc.collect()


@pytest.mark.anyio
async def test_from_thread_takes_the_function(path: Path) -> None:
    file = await anyio.to_thread.run_sync(lambda: anyio.from_thread.run(open_aio, path))
    await file.aclose()


@pytest.mark.anyio
async def test_anyio_task_group_takes_the_function(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        async with anyio.create_task_group() as group:
            group.start_soon(open_aio, path)
        gc.collect()


@pytest.mark.backends("trio")
@pytest.mark.anyio
async def test_trio_from_thread_takes_the_function(path: Path) -> None:
    file = await trio.to_thread.run_sync(partial(trio.from_thread.run, open_aio, path))
    await file.aclose()


async def _await(opener: FileOpener[AsyncFile]) -> None:
    await (await opener).aclose()


async def _enter(opener: FileOpener[AsyncFile]) -> None:
    async with opener:
        pass


async def _send(opener: FileOpener[AsyncFile]) -> None:
    opener.send(None)


@pytest.mark.anyio
@pytest.mark.parametrize("second", [_await, _enter, _send])
@pytest.mark.parametrize("first", [_await, _enter])
async def test_second_use_raises(path: Path, first: Callable[[Any], Awaitable[None]], second: Callable[[Any], Awaitable[None]]) -> None:
    opener = open_aio(path)
    await first(opener)
    with pytest.raises(RuntimeError, match="call open_aio again"):
        await second(opener)
    async with open_aio(path) as file:
        opened = _open_descriptors(path)
        with pytest.raises(RuntimeError, match="call open_aio again"):
            await second(opener)
        assert _open_descriptors(path) == opened
        await file.pread(1, 0)


@pytest.mark.anyio
@pytest.mark.parametrize("second", [_await, _enter, _send])
async def test_use_inside_its_own_body_raises(path: Path, second: Callable[[Any], Awaitable[None]]) -> None:
    opener = open_aio(path)
    async with opener as file:
        with pytest.raises(RuntimeError, match="call open_aio again"):
            await second(opener)
        assert await file.pread(1, 0)
        assert _open_descriptors(path) == 1
    assert file.closed


@pytest.mark.anyio
async def test_use_by_two_tasks_at_once_raises_in_one(path: Path) -> None:
    opener = open_aio(path)
    entered, errors = [], []

    async def enter() -> None:
        try:
            async with opener as file:
                entered.append(file)
                await anyio.wait_all_tasks_blocked()
        except RuntimeError as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(enter)
        group.start_soon(enter)
    assert (len(entered), len(errors)) == (1, 1)


def test_task_driven_twice_raises(path: Path) -> None:
    async def main() -> None:
        opener = open_aio(path)
        file = await asyncio.create_task(opener)
        with pytest.raises(RuntimeError):
            await asyncio.create_task(opener)
        await file.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("mode", ["rb", "r", "r+b"])
def test_never_awaited_warns(path: Path, mode: str) -> None:
    opener: Any = open_aio(path, mode)
    with pytest.warns(RuntimeWarning, match="coroutine 'open_aio' was never awaited"):
        del opener


@pytest.mark.anyio
async def test_closed_before_use_opens_nothing(path: Path) -> None:
    opener = open_aio(path)
    opener.close()
    with pytest.raises(RuntimeError, match="call open_aio again"):
        await opener


def test_it_tells_its_state_as_a_coroutine(path: Path) -> None:
    async def main() -> None:
        opener = open_aio(path)
        assert isinstance(opener, Coroutine)
        assert asyncio.iscoroutine(opener)
        assert inspect.isawaitable(opener)
        assert inspect.getcoroutinestate(opener) == inspect.CORO_CREATED  # type: ignore[arg-type]
        task = asyncio.create_task(opener)
        assert "open_aio" in repr(task)
        await asyncio.sleep(0)
        assert inspect.getcoroutinestate(opener) == inspect.CORO_SUSPENDED  # type: ignore[arg-type]
        file = await task
        assert inspect.getcoroutinestate(opener) == inspect.CORO_CLOSED  # type: ignore[arg-type]
        await file.aclose()

    asyncio.run(main())


def test_error_thrown_into_it_comes_out(path: Path) -> None:
    opener = open_aio(path)
    with pytest.raises(KeyError):
        opener.throw(KeyError("thrown"))


@pytest.mark.backends("asyncio")
@pytest.mark.anyio
async def test_cancelled_task_that_opens_leaves_nothing_open(path: Path) -> None:
    task = asyncio.ensure_future(open_aio(path))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with open_aio(path):  # its close comes after the other's
        pass


@pytest.mark.backends("asyncio")
@pytest.mark.anyio
async def test_task_that_opens_can_be_cancelled_by_a_scope(path: Path) -> None:
    async def opening() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await open_aio(path)
        assert scope.cancelled_caught

    await opening()
