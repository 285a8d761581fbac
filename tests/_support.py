"""What the tests share: content, the page cache, requests that wait until they are released, and engines without an event loop.

The page cache belongs to the whole machine. Reclaim may drop a page at any moment, and read-ahead may bring one. So no test trusts that a
page is cached because it was just read, or uncached because it was just evicted. A test that needs cached pages pins them (`pinned`).
A test that needs uncached pages evicts them, sees by the result whether they were still uncached, and repeats the whole attempt if not
(`attempts`).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import select
import sys
import termios
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from trio_aio._engine.descriptor import Descriptor, describe
from trio_aio._engine.engine import Engine
from trio_aio._memory.exports import export_buffer
from trio_aio._requests.transfer import Append

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trio_aio._requests.base import Request

BLOCK = 4096


def content(size: int, seed: int = 0) -> bytes:
    """Give `size` bytes that are different everywhere."""
    return random.Random(seed).randbytes(size)


def make_file(folder: Path, size: int = 64 * BLOCK, name: str = "file") -> tuple[Path, bytes]:
    """Make a file that is on the disk, and in the page cache; give its path and what is in it."""
    path = folder / name
    data = content(size)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return path, data


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.munmap.argtypes = _libc.mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
_PROT_READ, _MAP_SHARED, _MADV_RANDOM = 1, 1, 1  # linux/mman.h; not MAP_POPULATE: a look must bring no page


def _checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextmanager
def _mapped(path: Path, offset: int, size: int | None) -> Iterator[tuple[int, int]]:
    """Map a range of a file from a multiple of the page size on, to its end for None; yield address and length in bytes."""
    with opened(path, os.O_RDONLY) as fd:
        length = os.fstat(fd).st_size - offset if size is None else size
        address = _libc.mmap(None, length, _PROT_READ, _MAP_SHARED, fd, offset)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    try:
        yield address, length
    finally:
        _checked(_libc.munmap(address, length))


def cached_pages(path: Path, offset: int = 0, size: int | None = None) -> int:
    """Return how many pages of a range are in the page cache and up to date. mincore(2)."""
    with _mapped(path, offset, size) as (address, length):
        found = ctypes.create_string_buffer(-(-length // BLOCK))
        _checked(_libc.mincore(address, length, found))
        return sum(byte & 1 for byte in found.raw)


@contextmanager
def pinned(path: Path, offset: int = 0, size: int | None = None) -> Iterator[None]:
    """Keep a range of a file in the page cache until the end of the block. mlock(2): neither reclaim nor drop_caches takes it."""
    with _mapped(path, offset, size) as (address, length):
        _checked(_libc.madvise(address, length, _MADV_RANDOM))  # bring no page beside those asked for
        _checked(_libc.mlock(address, length))
        pages = -(-length // BLOCK)
        assert cached_pages(path, offset, length) == pages
        yield
        assert cached_pages(path, offset, length) == pages


def evict(path: Path, offset: int = 0, size: int = 0) -> None:
    """Drop a range of a file from the page cache, to its end for size 0, as far as the kernel does. `attempts` is for what needs more."""
    with opened(path, os.O_RDONLY) as fd:
        os.fsync(fd)
        os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)


def attempts(situation: str, most: int = 200) -> Iterator[int]:
    """Yield the number of each attempt to bring about a situation; the test leaves the loop when it sees the situation.

    Fails after the last attempt: chance spoils one attempt or two, a bug spoils all.
    """
    yield from range(most)
    pytest.fail(f"in {most} attempts there never was {situation}")


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


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
        """Give a request that keeps a worker busy."""
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
    """Give a pipe (reader, writer) with nothing in it: a poll for POLLIN does not end by itself."""
    reader, writer = os.pipe()
    try:
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


class Loop:
    """An engine and the plainest of event loops."""

    def __init__(self, max_in_flight: int = 8, max_workers: int = 4, *, use_kernel: bool = True, gather: bool = False) -> None:
        self.gather: bool = gather  # leave it to `turn` to submit what was prepared
        self.woken: list[Request] = []
        self.engine: Engine = Engine(
            max_in_flight, max_workers, use_kernel=use_kernel, insist=False, wake=self.woken.append, plug=self._plug
        )
        self._wants_flush: bool = False

    def _plug(self) -> None:
        self._wants_flush = True

    def submit(self, *requests: Request) -> None:
        for request in requests:
            request.waiter = self
            self.engine.submit(request)
        if not self.gather:
            self.flush()

    def flush(self) -> None:
        if self._wants_flush:
            self._wants_flush = False
            self.engine.flush()

    def turn(self, timeout: float = 60) -> None:
        """Wait for the eventfd and take what is complete."""
        self.flush()
        poll = select.poll()
        poll.register(self.engine.event_fd, select.POLLIN)
        assert poll.poll(timeout * 1000), "nothing came: a wake-up was missed"
        self.engine.reap(drain=True)
        self.flush()

    def run(self, *requests: Request) -> list[int]:
        """Submit requests, wait for all, and give their results."""
        self.submit(*requests)
        self.wait_for(*requests)
        return [request.result for request in requests]

    def wait_for(self, *requests: Request) -> None:
        self.flush()
        for request in requests:
            while not request.finished:
                self.turn()

    def settle(self) -> None:
        """Wait until nothing is outstanding."""
        while self.engine.outstanding:
            self.turn()

    def warm(self) -> None:
        """Have the memory for direct I/O made."""
        self.engine.buffers.prepare()
        self.settle()

    def descriptor(self, fd: int) -> Descriptor:
        descriptor = Descriptor(fd, fd)
        descriptor.load(describe(fd).value)
        self.engine.learn(descriptor)
        self.settle()
        return descriptor

    def close(self) -> None:
        self.settle()
        self.engine.stop()
        self.engine.close()


def fail_once(engine: Engine, error: Exception) -> None:
    """Let an engine raise an error, as a bug of ours would, behind the next completion that it takes."""
    complete, errors = engine.complete, iter([error])

    def complete_and_fail(token: int, result: int, transferred: int) -> None:
        complete(token, result, transferred)
        for each in errors:
            raise each

    engine.complete = complete_and_fail  # type: ignore[method-assign]


@contextmanager
def loop(*arguments: Any, **options: Any) -> Iterator[Loop]:
    made = Loop(*arguments, **options)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)
