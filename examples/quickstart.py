"""Write a file, read it back through each lane, compare checksums, cancel a request, and show which lanes were used and how fast.

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
BLOCK = MIB // 2  # bytes of a read for the kernel lane and the workers
SMALL = 1 << 16  # bytes of a read for the inline lane
TASKS = 16


async def write(path: Path, size: int) -> list[int]:
    """Write `size` random bytes and make them durable. Return the checksum of each block."""
    random = os.urandom(BLOCK)
    sums = []
    async with open_aio(path, "wb") as file:
        for number in range(size // BLOCK):
            block = number.to_bytes(8, "little") + random[8:]
            sums.append(zlib.crc32(block))
            await file.write(block)
        await file.fsync()
    return sums


async def checksums(path: Path, size: int, count: int, *, direct: bool = False) -> list[int]:
    """Read a file with many tasks and positional reads of `count` bytes. Return the checksum of each block."""
    sums = [0] * (size // BLOCK)
    numbers = iter(range(len(sums)))

    async with open_aio(path, direct=direct) as file:

        async def worker() -> None:
            for number in numbers:
                total = 0
                for offset in range(number * BLOCK, (number + 1) * BLOCK, count):
                    total = zlib.crc32(await file.pread(count, offset), total)
                sums[number] = total

        async with trio.open_nursery() as nursery:
            for _ in range(TASKS):
                nursery.start_soon(worker)
    return sums


async def checksums_of_trio(path: Path, size: int, count: int) -> list[int]:
    """Return the same checksums, read by trio.open_file. Each task opens the file, because reads are possible only at the cursor."""
    sums = [0] * (size // BLOCK)
    numbers = iter(range(len(sums)))

    async def worker() -> None:
        async with await trio.open_file(path, "rb", buffering=0) as file:
            for number in numbers:
                await file.seek(number * BLOCK)
                total = 0
                for _ in range(BLOCK // count):
                    total = zlib.crc32(await file.read(count), total)
                sums[number] = total

    async with trio.open_nursery() as nursery:
        for _ in range(TASKS):
            nursery.start_soon(worker)
    return sums


def forget(path: Path) -> None:
    """Drop the file from the page cache."""
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
    """Return how many requests each lane took, as text."""
    counts = {
        "inline": after.submitted_inline - before.submitted_inline,
        "kernel": after.submitted_kernel - before.submitted_kernel,
        "workers": after.submitted_workers - before.submitted_workers,
    }
    return ", ".join(f"{count:,} {lane}" for lane, count in counts.items() if count) or "none of ours"


async def show_cancellation() -> None:
    """Wait for a pipe that stays empty, then cancel: the kernel ends the request, and its slot is free again."""
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
    print(f"reading it back with {TASKS} tasks, each block's checksum compared:")

    forget(path)
    try:
        await timed("from the disk, direct", size, sums, lambda: checksums(path, size, BLOCK, direct=True))
    except OSError as error:
        print(f"from the disk, direct: not here, {error}")
    forget(path)
    await timed("from the disk, buffered", size, sums, lambda: checksums(path, size, BLOCK))
    await timed("from the page cache, 64 KiB a read", size, sums, lambda: checksums(path, size, SMALL))
    forget(path)
    await timed("trio.open_file, from the disk", size, sums, lambda: checksums_of_trio(path, size, BLOCK))
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
