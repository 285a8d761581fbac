"""Callers' buffers, held while the kernel may use them, and new memory for the bytes that callers get."""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import TYPE_CHECKING, Any

from trio_aio._errors import refuse_objects
from trio_aio._memory.mappings import is_anonymous, look_up, owner_of
from trio_aio._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import ReadableBuffer

    from trio_aio._memory.mappings import Question
    from trio_aio._native import CData

__all__ = (
    *("Export", "MappedExport", "Vector", "byte_count", "bytes_of", "copy_to", "export_buffer", "export_vector"),
    *("hold", "new_bytearray", "new_bytes", "private_memory", "wipe_on_fork"),
)


class Export:
    """Bytes of a caller's object, held: while this lives they stay where they are, and a bytearray cannot be resized."""

    __slots__ = ("address", "held", "length")

    # Whether the memory may belong to a mapped file. Then only workers touch it: see `mappings`.
    mapped: bool = False

    def __init__(self, held: CData, address: int, length: int) -> None:
        self.held: CData = held
        self.address: int = address
        self.length: int = length  # bytes

    def part(self, start: int, length: int) -> Export:
        """Return some of the bytes, as an export of its own."""
        return _Part(self, start, length)

    def fill(self, data: bytes) -> None:
        """Copy `data`, no more than it holds, to its start."""
        ffi.memmove(self.held, data, len(data))

    def view(self) -> memoryview:
        """Return its bytes, whatever the format of the caller's buffer is."""
        return memoryview(ffi.buffer(self.held))


class _Part(Export):
    """Some of the bytes of an export."""

    __slots__ = ("mapped", "whole")

    def __init__(self, whole: Export, start: int, length: int) -> None:
        super().__init__(whole.held + start, whole.address + start, length)
        self.mapped: bool = whole.mapped
        self.whole: Export = whole  # owns the memory


class MappedExport(Export):
    """Bytes that may belong to a mapped file."""

    __slots__ = ("question",)

    mapped = True

    def __init__(self, held: CData, address: int, length: int, question: Question | None) -> None:
        super().__init__(held, address, length)
        # What a worker can find out about the memory. None: it is known to belong to a file, or cannot be found out.
        self.question: Question | None = question


class Vector:
    """An iovec array over several buffers, held in the same way."""

    __slots__ = ("address", "exports", "held", "length", "mapped")

    def __init__(self, exports: list[Export]) -> None:
        self.exports: list[Export] = exports
        self.held: CData = ffi.new("struct iovec[]", [(export.held, export.length) for export in exports])
        self.address: int = int(ffi.cast("uintptr_t", self.held))
        self.length: int = sum(export.length for export in exports)  # bytes in all
        self.mapped: bool = any(export.mapped for export in exports)


def _check(buffer: ReadableBuffer, writable: bool) -> None:
    """Raise TypeError or BufferError for what cannot be held."""
    try:
        view = memoryview(buffer)
    except TypeError:
        if isinstance(buffer, str):
            raise TypeError("a bytes-like object is required, not 'str'") from None
        raise
    except ValueError:
        # NumPy describes no dates (datetime64, timedelta64), but their bytes can be had all the same, as `open()` does.
        dtype = getattr(buffer, "dtype", None)
        if dtype is None:
            raise
        flags: Any = buffer.flags  # type: ignore[attr-defined]
        readonly, contiguous, layout = not flags.writeable, flags.c_contiguous, "O" if dtype.hasobject else ""
    else:
        with view:
            readonly, contiguous, layout = view.readonly, view.c_contiguous, view.format
    if not contiguous:
        raise BufferError("the buffer must be contiguous, in C order")
    refuse_objects(buffer, layout)
    if writable and readonly:
        raise TypeError(f"a read needs a writable bytes-like object, not {type(buffer).__name__!r}")


def export_buffer(buffer: ReadableBuffer, *, writable: bool) -> Export:
    """Hold a bytes-like object for I/O.

    TypeError if it is not one, if it has Python objects, or if it is read-only and `writable` is asked for. BufferError if its bytes
    are not contiguous, in C order.
    """
    owner: Any = buffer
    if isinstance(buffer, memoryview):
        owner = buffer.obj
        plain = buffer.contiguous and not (writable and buffer.readonly)
    else:
        plain = not writable or type(buffer) is bytearray
    kind = type(owner)
    if plain and (kind is bytes or kind is bytearray or (kind is mmap.mmap and is_anonymous(owner))):  # most often: the short way
        held = ffi.from_buffer("char[]", buffer, writable)
        return Export(held, int(ffi.cast("uintptr_t", held)), len(held))
    _check(buffer, writable)
    held = ffi.from_buffer("char[]", buffer, writable)
    address, length = int(ffi.cast("uintptr_t", held)), len(held)
    owner = owner_of(buffer)
    if owner is None:
        return Export(held, address, length)
    mapped, question = look_up(owner, *((address, length) if type(owner) is mmap.mmap else _whole_range(owner, address, length)))
    if question is not None and (result := _query(question.address, question.length)) >= 0:
        question.answer(result)
        mapped, question = result == 1, None
    return MappedExport(held, address, length, question) if mapped else Export(held, address, length)


def _whole_range(owner: Any, address: int, length: int) -> tuple[int, int]:
    """Return address and length of all memory of an object; those of the range that was asked for if it has no buffer of its own."""
    try:
        with ffi.from_buffer("char[]", owner) as whole:
            return int(ffi.cast("uintptr_t", whole)), len(whole)
    except (BufferError, TypeError, ValueError):
        return address, length


def bytes_of(buffer: ReadableBuffer, *, writable: bool) -> memoryview:
    """Return the bytes of a bytes-like object, for a call that blocks; errors as `export_buffer`. It is held until no view is left."""
    _check(buffer, writable)
    return memoryview(ffi.buffer(ffi.from_buffer("char[]", buffer, writable)))


def hold(memory: bytes | bytearray | mmap.mmap) -> Export:
    """Hold memory that the package has made itself."""
    held = ffi.from_buffer("char[]", memory)
    return Export(held, int(ffi.cast("uintptr_t", held)), len(held))


def export_vector(buffers: Sequence[ReadableBuffer], *, writable: bool) -> Vector:
    """Hold several bytes-like objects for I/O, as an iovec array; errors as `export_buffer`."""
    return Vector([export_buffer(buffer, writable=writable) for buffer in buffers])


def byte_count(buffer: ReadableBuffer) -> int:
    """Return the number of bytes of a bytes-like object. TypeError if it is none."""
    try:
        return memoryview(buffer).nbytes
    except ValueError:  # NumPy cannot describe it
        return export_buffer(buffer, writable=False).length


_uninitialised = ctypes.pythonapi.PyByteArray_FromStringAndSize
_uninitialised.restype = ctypes.py_object
_uninitialised.argtypes = (ctypes.c_char_p, ctypes.c_ssize_t)


_query = lib.taio_memory_query
_HUGE = 2 << 20  # bytes
# Bytes in one object of Python: the header of the object, less than this, comes on top.
_LARGEST_OBJECT = sys.maxsize - 64

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
    if size > _LARGEST_OBJECT:
        raise MemoryError
    made: bytes = _uninitialised_bytes(None, size)
    if for_worker and size >= _HUGE:
        lib.taio_use_huge_pages(int(ffi.cast("uintptr_t", ffi.from_buffer("char[]", made))), size)
    return made


def new_bytearray(size: int) -> bytearray:
    """Return a bytearray with whatever is in it. ``bytearray(size)`` would touch all its pages, on the event loop's thread."""
    if size > _LARGEST_OBJECT:
        raise MemoryError
    made: bytearray = _uninitialised(None, size)
    return made


def private_memory(size: int) -> mmap.mmap:
    """Return page-aligned memory that a child of fork does not share, as it would share ``mmap.mmap(-1, size)``. MemoryError."""
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"no memory for {size} bytes") from error


_MADV_WIPEONFORK = 18  # mman.h; the module mmap does not name it


def wipe_on_fork(memory: mmap.mmap) -> None:
    """Let a child of fork have zeros instead of the memory, which a device may be using: it is not copied then. madvise(2), Linux 4.14.

    With MADV_DONTFORK the child would have nothing there, and perhaps something of its own soon, which `memory` would unmap as it ends.
    """
    memory.madvise(_MADV_WIPEONFORK)
