"""A program: files on both sides of trio-asyncio. Run as ``python -m tests.support.two_sides CASE PATH``.

In a process of its own, because importing trio-asyncio puts functions of its own into asyncio.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import trio
import trio_asyncio

from trio_aio import AsyncFile, current_context, open_aio, read_bytes
from trio_aio._backends._asyncio import AsyncioBackend
from trio_aio._backends._trio import TrioBackend

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BLOCK = 4096


def _evict(file: AsyncFile) -> None:
    os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


async def _use(path: str, backend: type) -> None:
    assert type(current_context()._core.backend) is backend
    for direct in (False, True):
        async with open_aio(path, "r+b", direct=direct) as file:
            data = await file.pread(BLOCK, 0)
            for _ in range(20):
                _evict(file)
                assert await file.pread(BLOCK, 0) == data
                await file.pwrite(data, 0)
            await file.fsync()
            assert b"".join([chunk async for chunk in file.chunks(BLOCK)]) == await read_bytes(path)


def _on_asyncio(function: Callable[..., Awaitable[Any]]) -> Any:
    return trio_asyncio.aio_as_trio(function)


async def only_asyncio(path: str) -> None:
    async with trio_asyncio.open_loop():
        await _on_asyncio(_use)(path, AsyncioBackend)


async def both_at_once(path: str) -> None:
    # A file for each: a block that one context writes directly and another through the page cache at one time makes fsync fail (EIO).
    paths = [shutil.copy(path, f"{path}.{number}") for number in range(3)]
    async with trio_asyncio.open_loop(), trio.open_nursery() as nursery:
        nursery.start_soon(_use, paths[0], TrioBackend)
        nursery.start_soon(_on_asyncio(_use), paths[1], AsyncioBackend)
        nursery.start_soon(_on_asyncio(_use), paths[2], AsyncioBackend)


async def trio_inside_of_asyncio(path: str) -> None:
    async def outer() -> None:
        await trio_asyncio.trio_as_aio(_use)(path, TrioBackend)
        await _use(path, AsyncioBackend)

    async with trio_asyncio.open_loop():
        await _on_asyncio(outer)()


async def two_loops(path: str) -> None:
    async with trio_asyncio.open_loop():
        await _on_asyncio(_use)(path, AsyncioBackend)
    async with trio_asyncio.open_loop():
        await _on_asyncio(_use)(path, AsyncioBackend)
    await _use(path, TrioBackend)


async def cancelled_by_asyncio(path: str) -> None:
    async def main() -> None:
        async with open_aio(path) as file, open_aio(path, direct=True) as direct:
            for opened in (file, direct):
                for _ in range(20):
                    _evict(opened)
                    task = asyncio.ensure_future(opened.pread(BLOCK, 0))
                    await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                assert len(await opened.pread(BLOCK, 0)) == BLOCK

    async with trio_asyncio.open_loop():
        await _on_asyncio(main)()


async def cancelled_by_trio(path: str) -> None:
    async def read(file: AsyncFile) -> None:
        _evict(file)
        await file.pread(BLOCK, 0)

    async def opened() -> AsyncFile:
        return await open_aio(path, direct=True)

    async def close(file: AsyncFile) -> None:
        assert len(await file.pread(BLOCK, 0)) == BLOCK
        await file.aclose()

    async with trio_asyncio.open_loop():
        file = await _on_asyncio(opened)()
        for _ in range(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_on_asyncio(read), file)
                await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        await _on_asyncio(close)(file)


async def _refused(file: AsyncFile) -> None:
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "pread": lambda: file.pread(BLOCK, 0),
        "preadinto": lambda: file.preadinto(bytearray(BLOCK), 0),
        "read": lambda: file.read(10),
        "pwrite": lambda: file.pwrite(b"x", 0),
        "fsync": lambda: file.fsync(),
        "chunks": lambda: file.chunks().__anext__(),
        "aclose": lambda: file.aclose(),
        "context.aclose": lambda: file.context.aclose(),
    }
    for name, call in calls.items():
        try:
            await call()
        except RuntimeError:
            assert not file.closed
        else:
            raise AssertionError(f"{name} worked on the other side")


async def file_of_trio(path: str) -> None:
    async with trio_asyncio.open_loop():
        for direct in (False, True):
            async with open_aio(path, "r+b", direct=direct) as file:
                data = await file.pread(BLOCK, 0)
                await _on_asyncio(_refused)(file)
                _evict(file)
                assert await file.pread(BLOCK, 0) == data


async def file_of_asyncio(path: str) -> None:
    async def main() -> None:
        for direct in (False, True):
            async with open_aio(path, "r+b", direct=direct) as file:
                data = await file.pread(BLOCK, 0)
                await trio_asyncio.trio_as_aio(_refused)(file)
                _evict(file)
                assert await file.pread(BLOCK, 0) == data

    async with trio_asyncio.open_loop():
        await _on_asyncio(main)()


CASES = {
    case.__name__: case
    for case in (
        *(only_asyncio, both_at_once, trio_inside_of_asyncio, two_loops, cancelled_by_asyncio, cancelled_by_trio),
        *(file_of_trio, file_of_asyncio),
    )
}

if __name__ == "__main__":
    trio.run(CASES[sys.argv[1]], sys.argv[2])
