"""Aligned memory, and the addresses of what callers hand in.

Direct I/O wants page-aligned memory. The kernel pins each page of it, and the device gets a segment for each piece that is not
contiguous in physical memory, and both cost: 16 reads of 1 MiB are submitted in 0.3 ms and done in 8.4 ms where they lie in huge
pages, in 1.2 ms and 12 to 22 ms where they lie in small ones. Pages are made at the first touch, which may take longer than the read. So
memory comes in chunks of a huge page, touched first by a worker, and is used again. With MADV_DONTFORK a child of fork gets no copy of
what a device still writes to in the parent.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from trio_aio._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from _typeshed import ReadableBuffer

    from trio_aio._native._ext import CData

__all__ = (
    "CHUNK",
    "LARGEST_SLAB",
    "PAGE",
    "BufferPool",
    "Chunk",
    "Export",
    "Slab",
    "Vector",
    "export_buffer",
    "export_vector",
    "new_bytearray",
    "new_bytes",
    "private_memory",
)

PAGE = mmap.PAGESIZE
CHUNK = 2 << 20  # bytes: a huge page of x86-64 and of most others
LARGEST_SLAB = CHUNK // 2
ARENA = 64 << 20


class Export:
    """Bytes of a caller's object, held: while this lives they stay where they are (and a bytearray cannot be resized)."""

    __slots__ = ("address", "held", "length")

    def __init__(self, held: CData, address: int, length: int) -> None:
        self.held: CData = held
        self.address: int = address
        self.length: int = length  # bytes

    def fill(self, data: bytes) -> None:
        """Copy `data`, no more than it holds, to its beginning."""
        ffi.memmove(self.held, data, len(data))


class Vector:
    """An iovec array over several buffers, held likewise."""

    __slots__ = ("address", "exports", "held", "length")

    def __init__(self, exports: list[Export]) -> None:
        self.exports: list[Export] = exports
        self.held: CData = ffi.new("struct iovec[]", [(export.held, export.length) for export in exports])
        self.address: int = int(ffi.cast("uintptr_t", self.held))
        self.length: int = sum(export.length for export in exports)  # bytes in all


def _hold(buffer: ReadableBuffer, writable: bool) -> CData:
    try:
        with memoryview(buffer) as view:
            if writable and view.readonly:
                raise TypeError(f"a read needs a writable bytes-like object, not {type(buffer).__name__!r}")
            if not view.contiguous:
                raise BufferError("the buffer must be contiguous")
    except TypeError:
        if isinstance(buffer, str):
            raise TypeError("a bytes-like object is required, not 'str'") from None
        raise
    return ffi.from_buffer("char[]", buffer, writable)


def export_buffer(buffer: ReadableBuffer, *, writable: bool) -> Export:
    """Hold a bytes-like object for I/O.

    TypeError if it is none, or read-only and to be read into; BufferError if its bytes do not lie side by side.
    """
    held = _hold(buffer, writable)
    return Export(held, int(ffi.cast("uintptr_t", held)), len(held))


def export_vector(buffers: Sequence[ReadableBuffer], *, writable: bool) -> Vector:
    """Hold several bytes-like objects for I/O, as an iovec array; errors as `export_buffer`."""
    return Vector([export_buffer(buffer, writable=writable) for buffer in buffers])


_uninitialised = ctypes.pythonapi.PyByteArray_FromStringAndSize
_uninitialised.restype = ctypes.py_object
_uninitialised.argtypes = (ctypes.c_char_p, ctypes.c_ssize_t)


_HUGE = 2 << 20  # bytes

_uninitialised_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_uninitialised_bytes.restype = ctypes.py_object
_uninitialised_bytes.argtypes = (ctypes.c_char_p, ctypes.c_ssize_t)


def new_bytes(size: int, *, for_worker: bool = False) -> bytes | bytearray:
    """Give memory that becomes the bytes that a caller gets, with whatever is in it.

    Nobody else has seen the object, so it may be written to; bytes of one byte or none are shared by all of Python, and come as a
    bytearray. ``bytes(size)`` would write zeros first, on the event loop's thread, where malloc has used the memory before.

    What is large, and for a worker to touch first, is of huge pages where there are any: whoever lets go of 64 MiB in small ones, on the
    event loop's thread, needs 4 ms for it. The first touch may move other pages out of the way, and sleep.
    """
    if size < 2:
        return bytearray(size)
    if size > sys.maxsize:  # ctypes would take it modulo 2**64
        raise MemoryError
    made: bytes = _uninitialised_bytes(None, size)
    if for_worker and size >= _HUGE:
        lib.taio_use_huge_pages(int(ffi.cast("uintptr_t", ffi.from_buffer("char[]", made))), size)
    return made


def new_bytearray(size: int) -> bytearray:
    """Give a bytearray with whatever is in it: ``bytearray(size)`` would touch all its pages, on the event loop's thread."""
    if size > sys.maxsize:  # ctypes would take it modulo 2**64
        raise MemoryError
    made: bytearray = _uninitialised(None, size)
    return made


def private_memory(size: int) -> mmap.mmap:
    """Give page-aligned memory that a child of fork does not share: ``mmap.mmap(-1, size)`` alone would be."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class _Arena:
    """Address space for chunks, aligned for huge pages. What is never touched takes no memory."""

    def __init__(self, size: int) -> None:
        # One mapping for many chunks: mmap(2) waits for the page faults of other threads, and the event loop should not.
        self.memory: mmap.mmap = private_memory(size + CHUNK)
        self.memory.madvise(mmap.MADV_DONTFORK)
        with suppress(OSError):  # a kernel without transparent huge pages
            self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.held: CData = ffi.from_buffer("char[]", self.memory)  # the mapping cannot be closed while this lives
        address = int(ffi.cast("uintptr_t", self.held))
        self.start: int = -address % CHUNK  # of the aligned part
        self.address: int = address + self.start

    def release(self) -> None:
        ffi.release(self.held)
        self.memory.close()


class Chunk:
    """One huge page, or as many small pages where there are none to be had, cut into slabs of one size."""

    __slots__ = ("address", "arena", "in_use", "start", "warm")

    def __init__(self, arena: _Arena, start: int) -> None:
        self.arena: _Arena = arena
        self.start: int = arena.start + start
        self.address: int = arena.address + start
        self.warm: bool = False  # its pages are there
        self.in_use: int = 0

    def cool(self) -> None:
        """Give its pages back to the kernel."""
        self.arena.memory.madvise(mmap.MADV_DONTNEED, self.start, CHUNK)
        self.warm = False


class Slab:
    """A piece of page-aligned memory: a part of a chunk."""

    __slots__ = ("address", "capacity", "chunk", "memory", "start")

    def __init__(self, chunk: Chunk, start: int, capacity: int) -> None:
        self.chunk: Chunk = chunk
        self.memory: mmap.mmap = chunk.arena.memory
        self.start: int = chunk.start + start
        self.address: int = chunk.address + start
        self.capacity: int = capacity  # bytes

    @property
    def cold(self) -> bool:
        """Whether its pages may have to be made yet."""
        return not self.chunk.warm

    def read(self, size: int, start: int = 0) -> bytes:
        """Give a copy of `size` bytes."""
        start += self.start
        return self.memory[start : start + size]

    def gather(self, exports: list[Export]) -> None:
        """Copy callers' bytes to its beginning, one behind the other."""
        at = self.address
        for export in exports:
            ffi.memmove(ffi.cast("char *", at), export.held, export.length)
            at += export.length

    def scatter(self, exports: list[Export], size: int, start: int = 0) -> None:
        """Copy `size` bytes of it from `start` on into callers', in order."""
        at = self.address + start
        for export in exports:
            count = min(export.length, size)
            ffi.memmove(export.held, ffi.cast("char *", at), count)
            at += count
            size -= count


class BufferPool:
    """Slabs, cut from chunks: a power of two bytes from a page to `LARGEST_SLAB`.

    `populate` is called with each chunk that has no pages, to have them made off the event loop's thread.
    """

    def __init__(self, limit: int, populate: Callable[[Chunk], None]) -> None:
        self._limit: int = limit  # bytes kept while nobody uses them
        self._populate: Callable[[Chunk], None] = populate
        self._arenas: list[_Arena] = []
        self._uncut: list[Chunk] = []
        self._free: dict[int, list[Slab]] = {}
        self._cut: int = 0  # chunks

    def prepare(self) -> None:
        """See to it that there is memory for the first request."""
        if not self._arenas:
            self._reserve()
            self._populate(self._uncut[-1])

    def take(self, size: int) -> Slab:
        """Give a slab of at least `size` bytes, with whatever is in it. One of more than `LARGEST_SLAB` is not kept afterwards."""
        if size > LARGEST_SLAB:
            return Slab(Chunk(_Arena(size), 0), 0, size)
        capacity = PAGE if size <= PAGE else 1 << (size - 1).bit_length()
        free = self._free.setdefault(capacity, [])
        if not free:
            if not self._uncut:
                self._reserve()
            chunk = self._uncut.pop()
            if not chunk.warm:
                self._populate(chunk)
            free.extend(Slab(chunk, start, capacity) for start in range(CHUNK - capacity, -1, -capacity))
            self._cut += 1
        slab = free.pop()
        slab.chunk.in_use += 1
        return slab

    def give_back(self, slab: Slab) -> None:
        """Take a slab back. Nothing may use it any more."""
        chunk = slab.chunk
        if slab.capacity > LARGEST_SLAB:
            chunk.arena.release()
            return
        free = self._free.get(slab.capacity)
        if free is None:  # the pool was cleared: the loop has ended, and coroutines that it left are destroyed only now
            return
        chunk.in_use -= 1
        free.append(slab)
        if not chunk.in_use and self._cut * CHUNK > self._limit:
            self._free[slab.capacity] = [other for other in free if other.chunk is not chunk]
            self._cut -= 1
            if chunk.warm:  # else a worker is making its pages
                chunk.cool()
            self._uncut.insert(0, chunk)

    def _reserve(self) -> None:
        arena = _Arena(ARENA)
        self._arenas.append(arena)
        self._uncut = [Chunk(arena, start) for start in range(ARENA - CHUNK, -1, -CHUNK)]

    def clear(self) -> None:
        """Give the memory back to the kernel. Nothing may use any of it."""
        for arena in self._arenas:
            arena.release()
        self._arenas.clear()
        self._uncut.clear()
        self._free.clear()
