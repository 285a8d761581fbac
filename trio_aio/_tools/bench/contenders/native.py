"""Python without a library: a bare checkpoint, an idle loop, and plain blocking loops. They are measures, not peers."""

from __future__ import annotations

import os
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import anyio

from trio_aio._tools.bench.contenders.contender import BATCH, Contender, imported, opened
from trio_aio._tools.bench.measure import drive

if TYPE_CHECKING:
    from typing_extensions import Self

    from trio_aio._tools.bench.measure import Phase, Work

__all__ = ("BLOCKING_LOOP", "CHECKPOINT", "IDLE", "PREADV_LOOP", "PREAD_LOOP", "line_readers")


async def _checkpoint(work: Work) -> None:
    """A bare checkpoint of trio by one task, which no coroutine can beat."""
    step = imported("trio").lowlevel.checkpoint

    async def task(phase: Phase) -> None:
        for _ in phase.offsets():
            await step()

    await drive(work, task, 1)


async def _idle(work: Work) -> None:
    """Nothing: how late the ticks are by themselves, on this machine at this time."""

    async def task(phase: Phase) -> None:
        await anyio.sleep(work.load.seconds)

    await drive(work, task, 1)


def _pread_loop(work: Work) -> None:
    """`os.pread`, one after another."""
    size = work.load.piece
    with opened(work.load.path, os.O_RDONLY) as fd:
        for phase in work.phases():
            with phase:
                for offset in phase.offsets():
                    os.pread(fd, size, offset)


def _preadv_loop(work: Work) -> None:
    """`os.preadv` into the same memory again and again, which is less than `read_blocks` does."""
    preadv = os.preadv
    buffers = [bytearray(work.load.piece)]
    with opened(work.load.path, os.O_RDONLY) as fd:
        for phase in work.phases():
            with phase:
                for offsets in phase.batches(BATCH):
                    for offset in offsets:
                        preadv(fd, buffers, offset)
                    phase.operations += len(offsets)


def _readinto_loop(work: Work) -> None:
    """A plain blocking loop over a file, with one buffer."""
    buffer = bytearray(work.load.piece)
    for phase in work.phases():
        with phase, open(work.load.path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                phase.operations += 1


def _builtin_file(path: str, mode: str) -> IO[Any]:
    return open(path, mode)


def _builtin_lines(mode: str, work: Work) -> None:
    for phase in work.phases():
        with phase:
            while not (phase.over and phase.operations):
                with _builtin_file(work.load.path, mode) as file:
                    count = 0
                    for _ in file:
                        count += 1
                    phase.operations += count


class _AsyncLines:
    """The lines of a built-in file by `async for`, with as little around it as Python allows."""

    __slots__ = ("_file",)

    def __init__(self, file: IO[Any]) -> None:
        self._file: IO[Any] = file

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        for line in self._file:
            return line
        raise StopAsyncIteration


async def _builtin_lines_by_async_for(mode: str, work: Work) -> None:
    """How fast an asynchronous file can be at most."""

    async def task(phase: Phase) -> None:
        while not (phase.over and phase.operations):
            with _builtin_file(work.load.path, mode) as file:
                count = 0
                async for _ in _AsyncLines(file):
                    count += 1
                phase.operations += count

    await drive(work, task, 1)


def line_readers(mode: str) -> tuple[Contender, ...]:
    """Return readers of lines."""
    return (
        Contender("built-in open", partial(_builtin_lines, mode), same_work=False),
        Contender("built-in open by async for", partial(_builtin_lines_by_async_for, mode), "trio", same_work=False),
    )


CHECKPOINT = Contender("bare checkpoint", _checkpoint, "trio", same_work=False)
PREAD_LOOP = Contender("os.pread loop", _pread_loop, same_work=False)
PREADV_LOOP = Contender("os.preadv loop", _preadv_loop, same_work=False)
BLOCKING_LOOP = Contender("blocking loop", _readinto_loop, same_work=False)
IDLE = (
    Contender("an idle loop (trio)", _idle, "trio", same_work=False),
    Contender("an idle loop (asyncio)", _idle, "asyncio", same_work=False),
)
