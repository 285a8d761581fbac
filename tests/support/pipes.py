"""Requests that wait until the test releases them: a worker that writes to a full pipe, a poll of an empty one."""

from __future__ import annotations

import fcntl
import os
import sys
import termios
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from trio_aio._engine.descriptor import Descriptor
from trio_aio._memory.exports import export_buffer
from trio_aio._requests.transfer import Append

from .files import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator


class FullPipe:
    """A pipe with room for one page: a worker that writes two is busy until `release`, and can be seen to have begun."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        with suppress(BlockingIOError):
            while True:
                os.write(self.writer, bytes(1 << 16))
        os.set_blocking(self.writer, True)
        os.read(self.reader, BLOCK)
        self._before: int = self._unread()

    def _unread(self) -> int:
        return int.from_bytes(fcntl.ioctl(self.reader, termios.FIONREAD, bytes(4)), sys.byteorder)

    def request(self) -> Append:
        """Return a request that keeps a worker busy."""
        export = export_buffer(bytes(2 * BLOCK), writable=False)
        return Append(Descriptor(self.writer, "pipe"), export.address, export.length, export)

    @property
    def begun(self) -> bool:
        """Whether a worker is at it."""
        return self._unread() > self._before

    def release(self) -> None:
        """Let the worker go: its write succeeds."""
        os.read(self.reader, 1 << 16)

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


@contextmanager
def full_pipe() -> Iterator[FullPipe]:
    pipe = FullPipe()
    try:
        yield pipe
    finally:
        pipe.close()


@contextmanager
def empty_pipe() -> Iterator[tuple[int, int]]:
    """Yield a pipe (reader, writer) with nothing in it: a poll for POLLIN does not end by itself."""
    reader, writer = os.pipe()
    try:
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)
