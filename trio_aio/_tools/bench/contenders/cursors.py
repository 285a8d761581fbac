"""Loads that all files with a cursor share: `trio.open_file`, `anyio.open_file`, `aiofiles.open` and ours.

All these files have the same shape: an awaitable that opens, `read`, `seek`, `async for` over lines, and a close. So a load is written
once, and a contender names the function that opens. That function is looked up when the contender starts, because its library may not
be installed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from trio_aio._tools.bench.measure import drive

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_aio._tools.bench.measure import Phase, Work

__all__ = ("Opener", "cursor_file", "lines_of", "reads_with_cursor")

Opener = Callable[..., Awaitable[Any]]


def reads_with_cursor(find: Callable[[], Opener], *, buffering: int = 0) -> Callable[[Work], Any]:
    """Return a contender's function: reads with a cursor, each task with a file of its own."""
    return partial(_read_with_cursor, find, buffering)


def lines_of(find: Callable[[], Opener], mode: str, *, look: bool) -> Callable[[Work], Any]:
    """Return a contender's function: one task reads a file by lines.

    look: check at each line whether the phase is over. Slow contenders need it, because they take seconds for the file. For fast ones
    the check would be much of a line's cost.
    """
    return partial(_read_lines, find, mode, look)


@asynccontextmanager
async def cursor_file(opener: Opener, path: str, mode: str, buffering: int) -> AsyncIterator[Any]:
    """Provide an open file until the end of the block."""
    file = await opener(path, mode, buffering)
    try:
        yield file
    finally:
        await (file.aclose if hasattr(file, "aclose") else file.close)()


async def _read_with_cursor(find: Callable[[], Opener], buffering: int, work: Work) -> None:
    # A cached file is read from one end to the other: a seek would be a second hop, and makes no difference to the page cache.
    size, seek = work.load.piece, work.load.cold
    opener = find()

    async def task(phase: Phase) -> None:
        async with cursor_file(opener, work.load.path, "rb", buffering) as file:
            for offset in phase.offsets():
                if seek:
                    await file.seek(offset)
                if not await file.read(size):
                    await file.seek(0)

    await drive(work, task)


async def _read_lines(find: Callable[[], Opener], mode: str, look: bool, work: Work) -> None:
    opener = find()

    async def task(phase: Phase) -> None:
        while not (phase.over and phase.operations):
            async with cursor_file(opener, work.load.path, mode, -1) as file:
                count = 0
                async for _ in file:
                    count += 1
                    if look and phase.over:
                        break
                phase.operations += count

    await drive(work, task, 1)
