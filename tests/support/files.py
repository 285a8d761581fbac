"""Files of known content, and their descriptors."""

from __future__ import annotations

import functools
import os
import random
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLOCK = 4096
HOUR = 3600 * 10**9  # nanoseconds
COARSE = 6  # CLOCK_MONOTONIC_COARSE, linux/time.h


@functools.lru_cache(maxsize=4)  # most tests want the same bytes
def content(size: int, seed: int = 0) -> bytes:
    """Return `size` bytes that are different everywhere."""
    return random.Random(seed).randbytes(size)


def make_file(folder: Path, size: int = 64 * BLOCK, name: str = "file") -> tuple[Path, bytes]:
    """Make a file that is on the disk, and in the page cache, and whose reads set no time. Return its path and what is in it."""
    path = folder / name
    data = content(size)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    set_no_access_time(path)
    return path, data


def set_no_access_time(file: Path | int) -> None:
    """Let the next reads of a file, and those behind its next changes, leave its time of access as it is, an hour ahead."""
    now = time.time_ns()
    os.utime(file, ns=(now + HOUR, now))


def next_moment() -> None:
    """Return when the coarse clock has moved on: then no answer of before holds about the time of access (access_time.c)."""
    start = time.clock_gettime_ns(COARSE) >> 22
    while time.clock_gettime_ns(COARSE) >> 22 == start:
        pass


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def opened_paths() -> list[str]:
    """Return what the descriptors of this process lead to. A thread may close some meanwhile."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return found


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)
