"""The first read after a change sets the time of access, and the filesystem may wait: the event loop's thread makes no such read."""

from __future__ import annotations

import array
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

import trio_aio
from trio_aio import AIOContext, open_aio
from trio_aio._memory.exports import export_buffer
from trio_aio._requests.direct import WidenedRead
from trio_aio._requests.pieces import Pieces, PiecesRead

from ..support.engine_loop import Loop, loop
from ..support.files import BLOCK, make_file, opened, set_no_access_time
from ..support.page_cache import attempts, pinned
from ..support.pipes import empty_pipe
from ..support.reading import READS
from ..support.requests import direct_read, poll

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trio_aio import AsyncFile
    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._requests.base import Request

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]

SIZE = 16 * BLOCK
TIME = 10**18  # nanoseconds
COARSE = 6  # CLOCK_MONOTONIC_COARSE, linux/time.h


def make_fresh_file(folder: Path) -> Path:
    """Make a file whose times are now."""
    path, _ = make_file(folder, SIZE)
    os.utime(path)
    return path


async def read_inline(file: AsyncFile, context: AIOContext) -> None:
    """Read until a read needs no worker: then the time of access is set, and the device known."""
    for _ in attempts("a read without a worker", 20_000):  # the first are too early: the time has a grain of milliseconds
        before = context.statistics()
        await file.pread(BLOCK, 0)
        if context.statistics().submitted_inline > before.submitted_inline:
            return


async def reads_by_others(file: AsyncFile, context: AIOContext, call: Callable[[AsyncFile], Any]) -> bool:
    """Make a read. Return whether it set the time; the loop's thread never does."""
    before, accessed = context.statistics(), os.stat(file.fileno()).st_atime_ns
    await call(file)
    after = context.statistics()
    others = after.submitted_workers + after.submitted_kernel - before.submitted_workers - before.submitted_kernel
    is_set = os.stat(file.fileno()).st_atime_ns != accessed
    assert others or not is_set
    return is_set


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "overlay"])
@pytest.mark.parametrize("name", READS)
async def test_read_that_sets_the_time_is_left_to_others(on_filesystem: Callable[[str], Path], kind: str, name: str) -> None:
    path = make_fresh_file(on_filesystem(kind))
    with pinned(path):
        async with AIOContext() as context, open_aio(path, "r+b", context=context) as file:
            for _ in range(5):
                await read_inline(file, context)
                await file.seek(0)
                await trio_aio.os.utime(path, ns=(TIME, TIME), context=context)
                assert await reads_by_others(file, context, READS[name])


CHANGES: dict[str, Callable[[AsyncFile], Any]] = {
    "pwrite": lambda file: file.pwrite(b"x", 0),
    "pwritev": lambda file: file.pwritev([b"x", b"y"], 0),
    "write_ranges": lambda file: file.write_ranges([(0, b"x"), (BLOCK, b"y")]),
    "write": lambda file: file.write(b"x"),
    "truncate": lambda file: file.truncate(SIZE + BLOCK),
    "fallocate": lambda file: file.fallocate(0, 2 * SIZE),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_read_behind_a_change_is_left_to_others(disk: Path, name: str) -> None:
    path = make_fresh_file(disk)
    with pinned(path):
        seen = 0  # not each time: the kernel's clock for times has a grain of some milliseconds
        async with AIOContext() as context, open_aio(path, "r+b", context=context) as file:
            for _ in range(20):
                await read_inline(file, context)
                await CHANGES[name](file)
                await file.flush()
                seen += await reads_by_others(file, context, READS["pread"])
        assert seen


def direct_reads(made: Loop, descriptor: Descriptor) -> dict[str, tuple[Request, Callable[[], None]]]:
    """Return a request of each kind that a direct file is read by, and how it is started."""
    into = export_buffer(bytearray(2 * BLOCK), writable=True)
    blocks = PiecesRead(descriptor, Pieces.blocks(descriptor, array.array("q", [0, 4 * BLOCK]), BLOCK, into))
    plain, widened, short = (
        direct_read(made, descriptor, BLOCK, 0),
        WidenedRead(descriptor, 100, 50, 0),
        WidenedRead(descriptor, 100, 50, 0),
    )
    return {
        "aligned": (plain, lambda: made.submit(plain)),
        "widened": (widened, lambda: made.submit(widened)),
        "by the short way": (short, lambda: short.start_short(made.engine)),
        "many": (blocks, lambda: made.submit(blocks)),
    }


@pytest.mark.parametrize("name", ["aligned", "widened", "by the short way", "many"])
@pytest.mark.parametrize("others", [0, 3])
def test_direct_read_that_sets_the_time_is_left_to_a_submitter(disk: Path, name: str, others: int) -> None:
    path, _ = make_file(disk, SIZE)
    with loop(8) as made, opened(path, os.O_RDWR | os.O_DIRECT) as fd, empty_pipe() as (reader, writer):
        descriptor = made.descriptor(fd)
        made.warm()
        watches = [poll(reader) for _ in range(others)]
        made.submit(*watches)
        for due in (True, False):
            request, start = direct_reads(made, descriptor)[name]
            if due:
                next_moment()
                os.utime(fd, ns=(TIME, TIME))
                next_moment()
            else:
                set_no_access_time(fd)
            accessed = os.stat(path).st_atime_ns
            start()
            made.wait_for(request)
            assert request.offload is due
            assert request.result >= 0
            assert (os.stat(path).st_atime_ns != accessed) == due
        os.write(writer, b"x")
        made.wait_for(*watches)


def next_moment() -> None:
    """Return when the coarse clock has moved on: then no answer of before holds."""
    start = time.clock_gettime_ns(COARSE) >> 22
    while time.clock_gettime_ns(COARSE) >> 22 == start:
        pass


async def test_change_by_somebody_else_is_seen_a_moment_later(disk: Path) -> None:
    path = make_fresh_file(disk)
    with pinned(path), opened(path, os.O_WRONLY) as theirs:
        seen = 0
        async with AIOContext() as context, open_aio(path, context=context) as file:
            for _ in range(20):
                await read_inline(file, context)
                os.pwrite(theirs, b"x", 0)
                next_moment()
                seen += await reads_by_others(file, context, READS["pread"])
        assert seen


async def test_file_without_the_time_is_read_inline_after_a_change(disk: Path) -> None:
    path = make_fresh_file(disk)
    with pinned(path), opened(path, os.O_RDWR | os.O_NOATIME) as fd:
        async with AIOContext() as context, open_aio(fd, "r+b", closefd=False, context=context) as file:
            await read_inline(file, context)
            for _ in attempts("a read without a worker behind a change"):
                await trio_aio.os.utime(path, ns=(TIME, TIME), context=context)
                before = context.statistics()
                await file.pread(BLOCK, 0)
                after = context.statistics()
                if after.submitted_inline > before.submitted_inline:
                    break
        assert os.stat(path).st_atime_ns == TIME
