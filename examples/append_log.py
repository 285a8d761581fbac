"""A log that many tasks append to. When a call returns, its record is on the disk; the tasks share the syncs.

python examples/append_log.py LOG [--tasks N] [--records N]
"""

from __future__ import annotations

import argparse
import errno
import struct
import time
import zlib
from pathlib import Path

import trio

import trio_aio
from trio_aio import AsyncFile, open_aio

_HEADER = struct.Struct("<II")  # length and checksum of the record that follows


class Log:
    """Records in a file that only grows. Each has a checksum, so that a reader recognizes a record that a crash cut off."""

    def __init__(self, file: AsyncFile) -> None:
        self._file: AsyncFile = file
        self._failed: bool = False

    async def append(self, record: bytes) -> None:
        """Append a record. It is durable when this returns. After an OSError each call raises one: open the log again."""
        if not self._failed:
            try:
                # The file is open for appending, so the record goes to the end. `write` would also move the cursor, and tasks would wait
                # for it.
                await self._file.pwrite(_HEADER.pack(len(record), zlib.crc32(record)) + record, 0)
                # A call that arrives while a sync is in flight waits for the next sync, which serves all calls that arrived meanwhile.
                await self._file.fdatasync()
            except OSError:
                self._failed = True
                raise
        # A sync waits for the writes before it. If one of them failed, a part of its record may be in the file, and hide this one.
        if self._failed:
            raise OSError(errno.EIO, "an earlier append failed: open the log again")


async def open_log(path: Path) -> AsyncFile:
    """Open a log, or make one. What a crash has cut off is removed, since no record behind it would be found."""
    file = await open_aio(path, "ab")
    try:
        _, end = parsed(await trio_aio.read_bytes(path))
        await file.truncate(end)
        # The name of a new file has to be durable too.
        await trio_aio.os.sync_directory(path.parent)
    except BaseException:
        await file.aclose()
        raise
    return file


def records(path: Path) -> list[bytes]:
    """Return the records of a log, up to the first that is not whole."""
    return parsed(path.read_bytes())[0]


def parsed(data: bytes) -> tuple[list[bytes], int]:
    """Return the records up to the first that is not whole, and where the last of them ends."""
    found = []
    at = 0
    while at + _HEADER.size <= len(data):
        length, checksum = _HEADER.unpack_from(data, at)
        record = data[at + _HEADER.size : at + _HEADER.size + length]
        if len(record) < length or zlib.crc32(record) != checksum:
            break
        found.append(record)
        at += _HEADER.size + length
    return found, at


async def run(path: Path, tasks: int, count: int) -> float:
    """Append with many tasks at once. Return the number of records per second."""
    start = time.perf_counter()
    async with await open_log(path) as file:
        log = Log(file)

        async def append(task: int) -> None:
            for number in range(count):
                await log.append(f"{task}:{number}".encode())

        async with trio.open_nursery() as nursery:
            for task in range(tasks):
                nursery.start_soon(append, task)
    return tasks * count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--records", type=int, default=100, help="for each task")
    arguments = parser.parse_args()
    rate = trio.run(run, arguments.log, arguments.tasks, arguments.records)
    print(f"{rate:,.0f} durable records a second; the log has {len(records(arguments.log)):,}")


if __name__ == "__main__":
    main()
