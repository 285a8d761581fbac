"""trio_aio, on trio and on asyncio, through its public interface only.

`bench --beside` runs these functions with another build of trio_aio too, so they may use nothing that only this one has.
"""

from __future__ import annotations

import errno
import mmap
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from trio_aio import AIOContext, open_aio, read_bytes
from trio_aio._tools.bench.contenders.contender import BATCH, DEPTH, Contender, scratch_path, small_file
from trio_aio._tools.bench.contenders.cursors import lines_of, reads_with_cursor
from trio_aio._tools.bench.measure import drive
from trio_aio.testing import FaultyContext

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_aio._tools.bench.contenders.cursors import Opener
    from trio_aio._tools.bench.measure import Phase, Work

__all__ = ("BESIDE_FAULTS", "line_readers", "on_both_loops", "sequential_readers")

# Worker threads of the contender half of whose workers hang.
WORKERS = 8


async def pread(work: Work) -> None:
    """`AsyncFile.pread`, all tasks on one file."""
    size = work.load.piece
    async with open_aio(work.load.path, direct=work.load.direct) as file:

        async def task(phase: Phase) -> None:
            read = file.pread
            for offset in phase.offsets():
                await read(size, offset)

        await drive(work, task)


async def preadinto(work: Work) -> None:
    """`AsyncFile.preadinto`, each task into memory of its own, again and again."""
    async with open_aio(work.load.path, direct=work.load.direct) as file:

        async def task(phase: Phase) -> None:
            buffer = mmap.mmap(-1, work.load.piece)
            for offset in phase.offsets():
                await file.preadinto(buffer, offset)

        await drive(work, task)


async def read_blocks(work: Work) -> None:
    """`AsyncFile.read_blocks` by one task, with as many blocks in flight as other contenders have tasks."""
    size = work.load.piece
    file: Any
    async with (
        AIOContext(work.load.tasks) as context,
        open_aio(work.load.path, direct=work.load.direct, context=context) as file,
    ):
        # Aligned, as memory for direct I/O should be.
        into = mmap.mmap(-1, BATCH * size)

        async def task(phase: Phase) -> None:
            for offsets in phase.batches(BATCH):
                await file.read_blocks(offsets, size, into=memoryview(into)[: len(offsets) * size])
                phase.operations += len(offsets)

        await drive(work, task, 1)


async def chunks(work: Work) -> None:
    """`AsyncFile.chunks`, from the start again until the time is over."""
    file: Any
    async with open_aio(work.load.path, direct=work.load.direct) as file:

        async def task(phase: Phase) -> None:
            while True:
                async for _ in file.chunks(work.load.piece, depth=DEPTH):
                    phase.operations += 1
                    if phase.over:
                        break
                if phase.over or work.load.whole:
                    return

        await drive(work, task, 1)


async def copy(work: Work) -> None:
    """`AsyncFile.chunks` into `AsyncFile.writer`."""
    with scratch_path(work) as path:
        file: Any
        copied: Any
        async with open_aio(work.load.path) as file, open_aio(path, "wb") as copied:

            async def task(phase: Phase) -> None:
                async with copied.writer(size=work.load.piece, depth=DEPTH) as writer:
                    async for chunk in file.chunks(work.load.piece, depth=DEPTH):
                        phase.operations += 1
                        await writer.write(chunk)

            await drive(work, task, 1)


async def append(work: Work) -> None:
    """`AsyncFile.pwrite` and `fdatasync` on one file that is open for appending. `write` would queue the tasks for the cursor."""
    block = os.urandom(work.load.piece)
    with scratch_path(work) as path:
        async with open_aio(path, "ab") as file:

            async def task(phase: Phase) -> None:
                for _ in phase.offsets():
                    await file.pwrite(block, 0)
                    await file.fdatasync()

            await drive(work, task)


async def pwrite(work: Work) -> None:
    """`AsyncFile.pwrite`, all tasks on one new file."""
    block = os.urandom(work.load.piece)
    with scratch_path(work) as path:
        async with open_aio(path, "wb") as file:

            async def task(phase: Phase) -> None:
                for offset in phase.offsets():
                    await file.pwrite(block, offset)

            await drive(work, task)


async def overwrite(work: Work) -> None:
    """`AsyncFile.pwrite` from aligned memory, all tasks on one file that has its full length."""
    block = mmap.mmap(-1, work.load.piece)
    block.write(os.urandom(work.load.piece))
    async with open_aio(work.load.path, "r+b", direct=work.load.direct) as file:

        async def task(phase: Phase) -> None:
            write = file.pwrite
            for offset in phase.offsets():
                await write(block, offset)

        await drive(work, task)


async def close(work: Work) -> None:
    """Open a context and a file for each operation, read sixteen times, and close both."""

    async def task(phase: Phase) -> None:
        for offset in phase.offsets():
            async with (
                AIOContext(16) as context,
                open_aio(work.load.path, direct=work.load.direct, context=context) as file,
                anyio.create_task_group() as group,
            ):
                for _ in range(16):
                    group.start_soon(file.pread, work.load.piece, offset)

    await drive(work, task)


async def whole(work: Work) -> None:
    """`read_bytes` of a file that has the size of one operation."""
    with small_file(work) as path:

        async def task(phase: Phase) -> None:
            while not (phase.over and phase.operations):
                await read_bytes(path)
                phase.operations += 1

        await drive(work, task)


async def _beside_hung(work: Work) -> None:
    """`AsyncFile.pread` of one file while half of the workers hang with another."""
    async with (
        FaultyContext(max_workers=WORKERS) as context,
        open_aio(work.load.path, context=context) as file,
        open_aio(work.load.path, context=context, abandon_on_cancel=True) as stuck,
        anyio.create_task_group() as group,
    ):
        with context.hang(file=stuck.fileno(), operation="read") as hang:
            for _ in range(WORKERS // 2):
                group.start_soon(stuck.pread, work.load.piece, 0)
            while hang.held < WORKERS // 2:
                await anyio.lowlevel.checkpoint()

            async def task(phase: Phase) -> None:
                for offset in phase.offsets():
                    await file.pread(work.load.piece, offset)

            await drive(work, task)
            group.cancel_scope.cancel()


async def _failing(work: Work) -> None:
    """`AsyncFile.pread`, where every read fails with EIO."""
    async with FaultyContext() as context, open_aio(work.load.path, context=context) as file:
        context.fail(errno.EIO, operation="read")

        async def task(phase: Phase) -> None:
            for offset in phase.offsets():
                with suppress(OSError):
                    await file.pread(work.load.piece, offset)

        await drive(work, task)


def _open_aio() -> Opener:
    return open_aio


def on_both_loops(function: Callable[[Work], Any], suffix: str = "") -> tuple[Contender, ...]:
    """Return trio_aio on trio and on asyncio."""
    return (
        Contender(f"trio_aio{suffix}", function, "trio", ours=True),
        Contender(f"trio_aio{suffix} (asyncio)", function, "asyncio", ours=True),
    )


def sequential_readers() -> tuple[Contender, ...]:
    """Return readers with a cursor, with the buffering that `open_aio` chooses."""
    return on_both_loops(reads_with_cursor(_open_aio, buffering=-1))


def line_readers(mode: str) -> tuple[Contender, ...]:
    """Return readers of lines."""
    return on_both_loops(lines_of(_open_aio, mode, look=False))


BESIDE_FAULTS = (
    Contender("trio_aio, half of the workers hang", _beside_hung, "trio", ours=True),
    Contender("trio_aio, every read fails", _failing, "trio", ours=True, same_work=False),
)
