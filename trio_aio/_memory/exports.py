"""Callers' buffers, held while the kernel may use them, and new memory for the bytes that callers get."""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import TYPE_CHECKING

from trio_aio._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import ReadableBuffer

    from trio_aio._native import CData

__all__ = ("Export", "Vector", "copy_to", "export_buffer", "export_vector", "new_bytearray", "new_bytes", "private_memory")


class Export:
    """Bytes of a caller's object, held: while this lives they stay where they are, and a bytearray cannot be resized."""

    __slots__ = ("address", "held", "length")

    def __init__(self, held: CData, address: int, length: int) -> None:
        self.held: CData = held
        self.address: int = address
        self.length: int = length  # bytes

    def fill(self, data: bytes) -> None:
        """Copy `data`, no more than it holds, to its start."""
        ffi.memmove(self.held, data, len(data))


class Vector:
    """An iovec array over several buffers, held in the same way."""

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

    TypeError if it is not one, or if it is read-only and `writable` is asked for. BufferError if its bytes are not contiguous.
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


def copy_to(address: int, data: memoryview) -> None:
    """Copy bytes to an address."""
    ffi.memmove(ffi.cast("char *", address), data, len(data))


def new_bytes(size: int, *, for_worker: bool = False) -> bytes | bytearray:
    """Return memory that becomes the bytes that a caller gets, with whatever is in it.

    No other code has seen the object, so it may be written to. Bytes of length 0 and 1 are shared by all of Python, so a bytearray is
    returned for them. ``bytes(size)`` would write zeros first, on the event loop's thread.

    `for_worker`: a worker touches it first. Large memory then comes in huge pages, where the kernel has them: freeing 64 MiB of small pages
    takes the event loop's thread 4 ms. The first touch may sleep, because the kernel may move other pages away.
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
    """Return a bytearray with whatever is in it. ``bytearray(size)`` would touch all its pages, on the event loop's thread."""
    if size > sys.maxsize:  # ctypes would take it modulo 2**64
        raise MemoryError
    made: bytearray = _uninitialised(None, size)
    return made


def private_memory(size: int) -> mmap.mmap:
    """Return page-aligned memory that a child of fork does not share, as it would share ``mmap.mmap(-1, size)``."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
