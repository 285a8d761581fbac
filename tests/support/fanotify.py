"""A permission listener, as a virus scanner is one: opens and reads of a filesystem wait for its answer. See fanotify(7).

    python -m tests.support.fanotify FOLDER PID TICKS

It answers the process PID only when that process's event loop has ticked since it asked: a number in the file TICKS has grown by 3. Where
the loop's own thread has asked, that cannot be, and it answers after a while all the same. It prints a line for each answer: "open" or
"read", and "running" or "asleep", for the loop meanwhile.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ("Listener", "listening")

_CLOEXEC, _CLASS_CONTENT = 1, 4
_ADD, _FILESYSTEM = 1, 0x100
_OPEN_PERM, _ACCESS_PERM = 0x10000, 0x20000
_ALLOW = 1
_AT_FDCWD = -100
_EVENT, _ANSWER = struct.Struct("=IBBHQii"), struct.Struct("=iI")
_TICKS = struct.Struct("=q")
PATIENCE = 30  # seconds


class Listener:
    """A listener in another process. Call `tick` in a task of the event loop, again and again."""

    def __init__(self, ticks: mmap.mmap, process: subprocess.Popen[str]) -> None:
        self._ticks: mmap.mmap = ticks
        self._count: int = 0
        self._process: subprocess.Popen[str] = process

    def tick(self) -> None:
        """Say that the loop runs."""
        self._count += 1
        self._ticks[:] = _TICKS.pack(self._count)

    def end(self) -> list[str]:
        """End it, and return what it has printed."""
        self._process.terminate()
        return self._process.communicate()[0].splitlines()


@contextmanager
def listening(folder: Path, ticks: Path) -> Iterator[Listener]:
    """Provide a listener for the filesystem of a folder, which asks about this process."""
    ticks.write_bytes(_TICKS.pack(0))
    with open(ticks, "r+b") as file, mmap.mmap(file.fileno(), _TICKS.size) as memory:
        command = [sys.executable, "-m", __name__, str(folder), str(os.getpid()), str(ticks)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                yield Listener(memory, process)
            finally:
                process.terminate()


def _listen(folder: str) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.fanotify_init(_CLASS_CONTENT | _CLOEXEC, os.O_RDONLY | getattr(os, "O_LARGEFILE", 0))
    libc.fanotify_mark.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p]
    if fd < 0 or libc.fanotify_mark(fd, _ADD | _FILESYSTEM, _OPEN_PERM | _ACCESS_PERM, _AT_FDCWD, folder.encode()) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fd


def main(folder: str, process: int, ticks: str) -> None:
    """Listen until SIGTERM."""
    with open(ticks, "rb") as file, mmap.mmap(file.fileno(), _TICKS.size, access=mmap.ACCESS_READ) as memory:
        fd = _listen(folder)
        print("ready", flush=True)
        while True:
            events = os.read(fd, 1 << 16)
            while events:
                length, _, _, _, mask, file_fd, asks = _EVENT.unpack_from(events)
                events = events[length:]
                if asks == process:
                    (first,), until = _TICKS.unpack(memory[:]), time.monotonic() + PATIENCE
                    while (runs := _TICKS.unpack(memory[:])[0] >= first + 3) is False and time.monotonic() < until:
                        time.sleep(0.0005)
                    print("open" if mask & _OPEN_PERM else "read", "running" if runs else "asleep", flush=True)
                os.write(fd, _ANSWER.pack(file_fd, _ALLOW))
                os.close(file_fd)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
