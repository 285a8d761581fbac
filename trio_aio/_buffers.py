"""Aligned memory, and the addresses of what callers hand in.

Direct I/O wants page-aligned memory. An anonymous shared mapping is that, it is zero-filled only where it is touched, and with
MADV_DONTFORK a child of fork does not get a copy of pages that a device still writes to in the parent.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from trio_aio._native import ffi

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import ReadableBuffer

    from trio_aio._native._ext import CData

__all__ = ("PAGE", "BufferPool", "Export", "Slab", "Vector", "export_buffer", "export_vector", "round_up")

PAGE = mmap.PAGESIZE


def round_up(number: int, unit: int) -> int:
    """Give the least multiple of `unit` that is no less than `number`."""
    return -(-number // unit) * unit


class Export:
    """Bytes of a caller's object, held: while this lives they stay where they are (and a bytearray cannot be resized)."""

    __slots__ = ("address", "held", "length")

    def __init__(self, held: object, address: int, length: int) -> None:
        self.held: object = held
        self.address: int = address
        self.length: int = length  # bytes


class Vector:
    """An iovec array over several buffers, held likewise."""

    __slots__ = ("address", "held", "length", "parts")

    def __init__(self, held: object, address: int, parts: int, length: int) -> None:
        self.held: object = held
        self.address: int = address
        self.parts: int = parts
        self.length: int = length  # bytes in all


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
    held = [_hold(buffer, writable) for buffer in buffers]
    vector = ffi.new("struct iovec[]", [(part, len(part)) for part in held])
    return Vector((vector, held), int(ffi.cast("uintptr_t", vector)), len(held), sum(len(part) for part in held))


class Slab:
    """A piece of page-aligned memory."""

    __slots__ = ("address", "capacity", "held", "memory")

    def __init__(self, capacity: int) -> None:
        self.capacity: int = capacity  # bytes
        self.memory: mmap.mmap = mmap.mmap(-1, capacity)  # shared and anonymous
        self.memory.madvise(mmap.MADV_DONTFORK)
        self.held: CData = ffi.from_buffer("char[]", self.memory)  # the mapping cannot be closed while this lives
        self.address: int = int(ffi.cast("uintptr_t", self.held))

    def release(self) -> None:
        """Give the memory back to the kernel."""
        ffi.release(self.held)
        self.memory.close()


class BufferPool:
    """Slabs that were used and wait to be used again, by size class: a power of two, or a multiple of 1 MiB above that."""

    def __init__(self, limit: int) -> None:
        self._limit: int = limit  # bytes kept
        self._kept: int = 0
        self._slabs: dict[int, list[Slab]] = {}

    def take(self, size: int) -> Slab:
        """Give a slab of at least `size` bytes, with whatever is in it."""
        capacity = PAGE
        if size > 1 << 20:
            capacity = round_up(size, 1 << 20)
        elif size > PAGE:
            capacity = 1 << (size - 1).bit_length()
        free = self._slabs.get(capacity)
        if free:
            self._kept -= capacity
            return free.pop()
        return Slab(capacity)

    def give_back(self, slab: Slab) -> None:
        """Keep a slab for the next taker, if there is room. Nothing may use it any more."""
        if self._kept + slab.capacity > self._limit:
            slab.release()
            return
        self._kept += slab.capacity
        self._slabs.setdefault(slab.capacity, []).append(slab)

    def clear(self) -> None:
        """Give all that is kept back to the kernel."""
        for free in self._slabs.values():
            for slab in free:
                slab.release()
        self._slabs.clear()
        self._kept = 0
