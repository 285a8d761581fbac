"""What a test knows of the page cache, and how it gets there.

The page cache belongs to the whole machine. Reclaim may drop a page at any moment, and read-ahead may bring one. So no test trusts that a
page is cached because it was just read, or uncached because it was just evicted. A test that needs cached pages pins them (`pinned`).
A test that needs uncached pages evicts them, sees by the result whether they were still uncached, and repeats the whole attempt if not
(`attempts`).
"""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from .files import BLOCK, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mlock2.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
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
    """Keep a range of a file in the page cache until the end of the block. mlock2(2): neither reclaim nor drop_caches takes it."""
    with _mapped(path, offset, size) as (address, length):
        _checked(_libc.madvise(address, length, _MADV_RANDOM))  # bring no page beside those asked for
        _checked(_libc.mlock2(address, length, 0))  # AddressSanitizer replaces mlock by a function that does nothing
        pages = -(-length // BLOCK)
        assert cached_pages(path, offset, length) == pages
        yield
        assert cached_pages(path, offset, length) == pages


def evict(path: Path, offset: int = 0, size: int = 0) -> None:
    """Drop a range of a file from the page cache, to its end for size 0, as far as the kernel does. `attempts` is for what needs more."""
    with opened(path, os.O_RDONLY) as fd:
        os.fsync(fd)
        os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)


def attempts(situation: str, most: int = 3000, seen: Callable[[], object] | None = None) -> Iterator[int]:
    """Yield the number of each attempt to bring about a situation; the test leaves the loop when it sees the situation.

    Fails after the last attempt, and shows what `seen` returns: chance spoils a few attempts, a bug spoils all. On a busy machine an inline
    read may sleep, and then its lane leaves the device for 1024 reads: that spoils as many.
    """
    yield from range(most)
    pytest.fail(f"in {most} attempts there never was {situation}" + (f": {seen()}" if seen is not None else ""))
