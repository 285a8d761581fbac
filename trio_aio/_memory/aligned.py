"""`aligned_buffer`: memory that direct I/O reads into and writes from without copying."""

from __future__ import annotations

import mmap
import operator
from typing import TYPE_CHECKING

from trio_aio._arguments import checked_size
from trio_aio._memory.exports import hold, private_memory

if TYPE_CHECKING:
    from typing import SupportsIndex

__all__ = ("aligned_buffer",)


def aligned_buffer(size: SupportsIndex, alignment: SupportsIndex | None = None) -> memoryview:
    """Return new memory of `size` bytes at an aligned address: writable, zeroed, format "B". It is freed with its last view. mmap(2).

    For direct reads and writes of large amounts: other memory, such as a NumPy array, is rarely aligned, and is copied.
    ``numpy.frombuffer(aligned_buffer(size), dtype)`` is an array in it.

    size: bytes; 0 gives an empty one. alignment: a power of two; the address is a multiple of it, and of the size of a page.
    ValueError for a negative size, or another alignment; MemoryError.
    """
    size = checked_size(size)
    wanted = mmap.PAGESIZE if alignment is None else operator.index(alignment)
    if wanted < 1 or wanted & (wanted - 1):
        raise ValueError(f"alignment must be a power of two, not {wanted}")
    if not size:
        return memoryview(bytearray())
    surplus = max(wanted - mmap.PAGESIZE, 0)
    memory = private_memory(size + surplus)
    start = -hold(memory).address % max(wanted, mmap.PAGESIZE)
    return memoryview(memory)[start : start + size]
