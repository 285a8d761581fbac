"""Write a file, read it back through each lane, compare checksums, cancel a request, and show what went where and how fast.

python examples/quickstart.py [--size MIB] [--directory PATH]
"""

from __future__ import annotations

import argparse
import os
import select
import tempfile
import time
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from trio_aio import AIOStatistics, current_context, open_aio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MIB = 1 << 20
PIECE = MIB // 2  # a read of the kernel lane and of the workers
SMALL = 1 << 16  # a read of the inline lane
TASKS = 16


async def write(path: Path, size: int) -> list[int]:
    """Write `size` random bytes and make them durable; give the checksums of the pieces."""
    block = os.urandom(PIECE)
    sums = []
    async with open_aio(path, "wb") as file:
        for number in range(size // PIECE):
            piece = number.to_bytes(8, "little") + block[8:]
            sums.append(zlib.crc32(piece))
            await file.write(piece)
        await file.fsync()
    return sums


async def checksums(path: Path, size: int, piece: int, *, direct: bool = False) -> list[int]:
    """Read a file with many tasks, each with many positional reads; give the checksums of its pieces of PIECE bytes."""
    sums = [0] * (size // PIECE)
    numbers = iter(range(len(sums)))

    async with open_aio(path, direct=direct) as file:

        async def worker() -> None:
            for number in numbers:
                total = 0
                for offset in range(number * PIECE, (number + 1) * PIECE, piece):
                    total = zlib.crc32(await file.pread(piece, offset), total)
                sums[number] = total

        async with trio.open_nursery() as nursery:
            for _ in range(TASKS):
                nursery.start_soon(worker)
    return sums


async def checksums_of_trio(path: Path, size: int, piece: int) -> list[int]:
    """The same with trio.open_file: each task needs a file of its own, because the cursor is all there is."""
    sums = [0] * (size // PIECE)
    numbers = iter(range(len(sums)))

    async def worker() -> None:
        async with await trio.open_file(path, "rb", buffering=0) as file:
            for number in numbers:
                await file.seek(number * PIECE)
                total = 0
                for _ in range(PIECE // piece):
                    total = zlib.crc32(await file.read(piece), total)
                sums[number] = total

    async with trio.open_nursery() as nursery:
        for _ in range(TASKS):
            nursery.start_soon(worker)
    return sums


def forget(path: Path) -> None:
    """Put the file out of the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


async def timed(label: str, size: int, expected: list[int], read: Callable[[], Awaitable[list[int]]]) -> None:
    before = current_context().statistics()
    start = time.perf_counter()
    found = await read()
    seconds = time.perf_counter() - start
    assert found == expected, f"{label}: the checksums differ"
    print(f"{label:<42}{size / MIB / seconds:>9,.0f} MiB/s   {lanes(before, current_context().statistics())}")


def lanes(before: AIOStatistics, after: AIOStatistics) -> str:
    """Say how many requests went through which lane."""
    counts = {
        "inline": after.submitted_inline - before.submitted_inline,
        "kernel": after.submitted_kernel - before.submitted_kernel,
        "workers": after.submitted_workers - before.submitted_workers,
    }
    return ", ".join(f"{count:,} {lane}" for lane, count in counts.items() if count) or "none of ours"


async def show_cancellation() -> None:
    """Wait for a pipe that stays empty, and give up: the kernel stops the request, and its slot is free again."""
    context = current_context()
    with ExitStack() as stack:
        reader, writer = os.pipe()
        stack.callback(os.close, reader)
        stack.callback(os.close, writer)
        with trio.move_on_after(0.05) as scope:
            await context.poll(reader, select.POLLIN)
    statistics = context.statistics()
    print(f"poll of an empty pipe: cancelled={scope.cancelled_caught}, still in flight: {statistics.in_flight}")


async def show(directory: str, size: int) -> None:
    path = Path(directory, "quickstart.bin")
    start = time.perf_counter()
    sums = await write(path, size)
    print(f"wrote {size // MIB} MiB and synced it: {size / MIB / (time.perf_counter() - start):,.0f} MiB/s")
    print(f"reading it back with {TASKS} tasks, each piece's checksum compared:")

    forget(path)
    try:
        await timed("from the disk, direct", size, sums, lambda: checksums(path, size, PIECE, direct=True))
    except OSError as error:
        print(f"from the disk, direct: not here, {error}")
    forget(path)
    await timed("from the disk, buffered", size, sums, lambda: checksums(path, size, PIECE))
    await timed("from the page cache, 64 KiB a read", size, sums, lambda: checksums(path, size, SMALL))
    forget(path)
    await timed("trio.open_file, from the disk", size, sums, lambda: checksums_of_trio(path, size, PIECE))
    await timed("trio.open_file, from the cache, 64 KiB", size, sums, lambda: checksums_of_trio(path, size, SMALL))

    await show_cancellation()
    print(f"in all: {current_context().statistics()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, metavar="MIB", help="size of the file (default: %(default)s)")
    parser.add_argument("--directory", default=".", help="where to put it (default: here, since /tmp may not be a disk)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        trio.run(show, directory, arguments.size * MIB)


if __name__ == "__main__":
    main()
