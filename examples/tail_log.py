"""Print the lines of a log as they are written, as `tail -F` does. The log may be truncated, or replaced by a new file.

python examples/tail_log.py LOG [--interval SECONDS] [--from-start]
"""

from __future__ import annotations

import argparse
import functools
import os
from typing import TYPE_CHECKING

import trio

import trio_aio
from trio_aio import AsyncFile, open_aio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PART = 64 << 10  # bytes of a read
LONGEST = 1 << 20  # bytes of a line; a longer one is handed over in parts


class Tail:
    """Follows a log by its path. Memory: a part and the longest line, however large the log is."""

    def __init__(self, path: str, handle: Callable[[bytes], Awaitable[None]], *, interval: float = 0.5) -> None:
        """`handle` is called with each line. It looks for new bytes every `interval` seconds, and no more often once there are none."""
        self._path: str = path
        self._handle: Callable[[bytes], Awaitable[None]] = handle
        self._interval: float = interval
        self._position: int = 0
        self._rest: bytes = b""  # the beginning of a line whose end is not there yet

    async def run(self, *, from_start: bool = False) -> None:
        """Follow the log until it is cancelled, or `handle` raises. It need not exist yet.

        from_start: hand over what is in the first file already.
        """
        while True:
            try:
                file = await open_aio(self._path)
            except FileNotFoundError:
                from_start = True  # all that will be in it is new
                await trio.sleep(self._interval)
                continue
            async with file:
                self._position = 0 if from_start else await file.size()
                await self._follow(file)
            from_start = True

    async def _follow(self, file: AsyncFile) -> None:
        """Follow one file until another one has its name, and that has been written to."""
        while True:
            await self._read(file)
            if await self._is_replaced(file):
                # The old file may have got its last lines after it was read, but before the new one got its first.
                await self._read(file)
                await self._end_line()
                return
            await trio.sleep(self._interval)

    async def _read(self, file: AsyncFile) -> None:
        """Read to the end of the file, and hand over the lines."""
        if await file.size() < self._position:  # truncated, so what is in it now is new
            await self._end_line()
            self._position = 0
        while part := await file.pread(PART, self._position):
            self._position += len(part)
            *lines, self._rest = (self._rest + part).split(b"\n")
            for line in lines:
                await self._handle(line)
            if len(self._rest) > LONGEST:
                await self._end_line()

    async def _end_line(self) -> None:
        """Hand over a line that will not get its end."""
        if self._rest:
            line, self._rest = self._rest, b""
            await self._handle(line)

    async def _is_replaced(self, file: AsyncFile) -> bool:
        """Return whether the path leads to another file, which is not empty. While it is empty, its writer may still use the old one."""
        try:
            named = await trio_aio.os.stat(self._path)
        except FileNotFoundError:
            return False  # between two steps of a rotation
        return named.st_size > 0 and not os.path.samestat(named, await file.stat())


async def write_line(line: bytes) -> None:
    """Print a line."""
    print(line.decode(errors="replace"), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log")
    parser.add_argument("--interval", type=float, default=0.5, help="how often to look for new lines (0.5)")
    parser.add_argument("--from-start", action="store_true", help="print the lines that are there already, too")
    arguments = parser.parse_args()
    tail = Tail(arguments.log, write_line, interval=arguments.interval)
    trio.run(functools.partial(tail.run, from_start=arguments.from_start))
