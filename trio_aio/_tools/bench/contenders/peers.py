"""The libraries that trio_aio is compared with: threads of trio and anyio, aiofiles, caio and aiofile."""

from __future__ import annotations

import mmap
import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from trio_aio._tools.bench.contenders.contender import Contender, imported, opened, scratch_path, small_file
from trio_aio._tools.bench.contenders.cursors import cursor_file, lines_of, reads_with_cursor
from trio_aio._tools.bench.measure import Unavailable, drive

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_aio._tools.bench.contenders.cursors import Opener
    from trio_aio._tools.bench.measure import Phase, Work

__all__ = (
    "AIOFILE",
    "CAIO_APPEND",
    "CAIO_PREAD",
    "CAIO_PWRITE",
    "THREAD_APPEND",
    "THREAD_CLOSE",
    "THREAD_OVERWRITE",
    "THREAD_PREAD",
    "THREAD_PWRITE",
    "THREAD_WHOLE",
    "cursor_files",
    "line_readers",
)


# ---- files with a cursor: each call is one hop to a thread


def _trio_open_file() -> Opener:
    opener: Opener = imported("trio").open_file
    return opener


def _anyio_open_file() -> Opener:
    return anyio.open_file


def _aiofiles_open() -> Opener:
    opener: Opener = imported("aiofiles").open
    return opener


def cursor_files(*, buffering: int = 0) -> tuple[Contender, ...]:
    """Return readers with a cursor."""
    return (
        Contender("trio.open_file", reads_with_cursor(_trio_open_file, buffering=buffering), "trio"),
        Contender("anyio.open_file", reads_with_cursor(_anyio_open_file, buffering=buffering), "trio"),
        Contender("anyio.open_file (asyncio)", reads_with_cursor(_anyio_open_file, buffering=buffering), "asyncio"),
        Contender("aiofiles", reads_with_cursor(_aiofiles_open, buffering=buffering), "asyncio"),
    )


def line_readers(mode: str) -> tuple[Contender, ...]:
    """Return readers of lines."""
    return (
        Contender("trio.open_file", lines_of(_trio_open_file, mode, look=True), "trio"),
        Contender("anyio.open_file", lines_of(_anyio_open_file, mode, look=True), "trio"),
        Contender("anyio.open_file (asyncio)", lines_of(_anyio_open_file, mode, look=True), "asyncio"),
        Contender("aiofiles", lines_of(_aiofiles_open, mode, look=True), "asyncio"),
    )


# ---- one call in a thread


def _run_sync() -> Callable[..., Awaitable[Any]]:
    """Return the loop's own way to a thread: trio's, without a detour through anyio."""
    if find_spec("trio") is not None and imported("trio").lowlevel.in_trio_run():
        run: Callable[..., Awaitable[Any]] = imported("trio").to_thread.run_sync
        return run
    return anyio.to_thread.run_sync


async def _thread_pread(work: Work) -> None:
    """`os.pread` by `to_thread.run_sync`: what a positional read costs with a hop."""
    run = _run_sync()
    with opened(work.load.path, os.O_RDONLY | (os.O_DIRECT if work.load.direct else 0)) as fd:
        size = work.load.piece

        async def task(phase: Phase) -> None:
            if work.load.direct:
                buffers = [mmap.mmap(-1, size)]
                for offset in phase.offsets():
                    await run(os.preadv, fd, buffers, offset)
            else:
                for offset in phase.offsets():
                    await run(os.pread, fd, size, offset)

        await drive(work, task)


async def _thread_append(work: Work) -> None:
    """`os.write` and `os.fdatasync` in one hop."""
    run = _run_sync()
    block = os.urandom(work.load.piece)
    with scratch_path(work) as path, opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as fd:

        def append() -> None:
            os.write(fd, block)
            os.fdatasync(fd)

        async def task(phase: Phase) -> None:
            for _ in phase.offsets():
                await run(append)

        await drive(work, task)


async def _thread_pwrite(work: Work) -> None:
    """`os.pwrite` into a new file by `to_thread.run_sync`."""
    run = _run_sync()
    block = os.urandom(work.load.piece)
    with scratch_path(work) as path, opened(path, os.O_WRONLY | os.O_CREAT) as fd:

        async def task(phase: Phase) -> None:
            for offset in phase.offsets():
                await run(os.pwrite, fd, block, offset)

        await drive(work, task)


async def _thread_overwrite(work: Work) -> None:
    """`os.pwrite` from aligned memory into a file that has its full length, by `to_thread.run_sync`."""
    run = _run_sync()
    block = mmap.mmap(-1, work.load.piece)
    block.write(os.urandom(work.load.piece))
    with opened(work.load.path, os.O_WRONLY | (os.O_DIRECT if work.load.direct else 0)) as fd:

        async def task(phase: Phase) -> None:
            for offset in phase.offsets():
                await run(os.pwrite, fd, block, offset)

        await drive(work, task)


async def _thread_whole(work: Work) -> None:
    """`Path.read_bytes` in one hop."""
    run = _run_sync()
    with small_file(work) as path:

        async def task(phase: Phase) -> None:
            while not (phase.over and phase.operations):
                await run(Path(path).read_bytes)
                phase.operations += 1

        await drive(work, task)


async def _thread_close(work: Work) -> None:
    """What `ours.close` does, with `trio.open_file`."""
    opener = _trio_open_file()

    async def task(phase: Phase) -> None:
        for offset in phase.offsets():
            async with cursor_file(opener, work.load.path, "rb", 0) as file, anyio.create_task_group() as group:
                await file.seek(offset)
                for _ in range(16):
                    group.start_soon(file.read, work.load.piece)

    await drive(work, task)


# ---- caio and aiofile, on asyncio


def _caio_context(implementation: str, tasks: int) -> Any:
    caio = imported("caio")
    adapter = getattr(caio, f"{implementation}_asyncio", None)
    if adapter is None:
        raise Unavailable(f"caio has no {implementation} here")
    try:
        return adapter.AsyncioContext(max_requests=max(tasks, 128))
    except OSError as error:
        raise Unavailable(f"caio's {implementation} cannot be had here: {error}") from None


async def _caio_pread(implementation: str, work: Work) -> None:
    size = work.load.piece
    with opened(work.load.path, os.O_RDONLY) as fd:
        async with _caio_context(implementation, work.load.tasks) as context:

            async def task(phase: Phase) -> None:
                read = context.read
                for offset in phase.offsets():
                    await read(size, fd, offset)

            await drive(work, task)


async def _caio_append(implementation: str, work: Work) -> None:
    block = os.urandom(work.load.piece)
    with scratch_path(work) as path, opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        end = 0
        async with _caio_context(implementation, work.load.tasks) as context:

            async def task(phase: Phase) -> None:
                nonlocal end
                for _ in phase.offsets():
                    start, end = end, end + len(block)
                    await context.write(block, fd, start)
                    await context.fdsync(fd)

            await drive(work, task)


async def _caio_pwrite(implementation: str, work: Work) -> None:
    block = os.urandom(work.load.piece)
    with scratch_path(work) as path, opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        async with _caio_context(implementation, work.load.tasks) as context:

            async def task(phase: Phase) -> None:
                for offset in phase.offsets():
                    await context.write(block, fd, offset)

            await drive(work, task)


async def _aiofile_pread(work: Work) -> None:
    """`AIOFile.read_bytes`, all tasks on one file."""
    size = work.load.piece
    async with imported("aiofile").AIOFile(work.load.path, "rb") as file:

        async def task(phase: Phase) -> None:
            for offset in phase.offsets():
                await file.read_bytes(size, offset)

        await drive(work, task)


# ---- as rows list them


def _caio(function: Callable[[str, Work], Any]) -> tuple[Contender, ...]:
    names = ("linux_uring", "linux_aio", "thread_aio")
    return tuple(Contender(f"caio {name}", partial(function, name), "asyncio") for name in names)


CAIO_PREAD = _caio(_caio_pread)
CAIO_APPEND = _caio(_caio_append)
CAIO_PWRITE = _caio(_caio_pwrite)
AIOFILE = Contender("aiofile", _aiofile_pread, "asyncio")
THREAD_PREAD = Contender("trio.to_thread os.pread", _thread_pread, "trio")
THREAD_PWRITE = Contender("trio.to_thread os.pwrite", _thread_pwrite, "trio")
THREAD_OVERWRITE = Contender("trio.to_thread os.pwrite", _thread_overwrite, "trio")
THREAD_APPEND = (
    Contender("trio.to_thread", _thread_append, "trio"),
    Contender("anyio.to_thread (asyncio)", _thread_append, "asyncio"),
)
THREAD_WHOLE = (
    Contender("trio.to_thread Path.read_bytes", _thread_whole, "trio"),
    Contender("anyio.to_thread Path.read_bytes (asyncio)", _thread_whole, "asyncio"),
)
THREAD_CLOSE = Contender("trio.open_file", _thread_close, "trio")
