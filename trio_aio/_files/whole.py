"""Whole files: `read_bytes`, `write_bytes`, `read_text`, `write_text`.

A worker opens, reads and closes a file in one request: the hop to a worker costs more than the work on a small file, and large memory is
better touched first by a worker, in huge pages. For that the size must be known before. If the kernel has it in memory, we ask. Otherwise
there is room for a small file, and a longer one is left open and read as any other.
"""

from __future__ import annotations

import errno
import io
import os
import threading
from typing import TYPE_CHECKING, Union

from trio_aio._context.copying import joined, shortened
from trio_aio._context.group import RequestGroup
from trio_aio._context.shared import current_context
from trio_aio._engine.descriptor import Descriptor, cached_size
from trio_aio._errors import os_error
from trio_aio._files.binary import AsyncFile
from trio_aio._files.open import drop_unclaimed, is_file, learn, unsupported
from trio_aio._lanes.inline import INLINE_LIMIT
from trio_aio._memory.exports import Export, export_buffer, new_bytes, private_memory
from trio_aio._requests.opening import AT_FDCWD
from trio_aio._requests.transfer import Read
from trio_aio._requests.whole import ReadWhole, WriteWhole

if TYPE_CHECKING:
    import mmap

    from _typeshed import ReadableBuffer

    from trio_aio._context.context import AIOContext

__all__ = ("read_bytes", "read_text", "write_bytes", "write_text")

SMALL = INLINE_LIMIT  # bytes: copied on the event loop's thread
LARGE = 32 << 20  # bytes: from here on in pieces, so that the reading can be cancelled
PIECE = 8 << 20  # bytes
DEPTH = 2  # pieces in flight at once

_Path = Union[str, bytes, "os.PathLike[str]", "os.PathLike[bytes]"]


class _Scratch:
    """Memory for a file whose size is not known, used again and again."""

    def __init__(self) -> None:
        self.view: mmap.mmap = private_memory(SMALL)
        self.export: Export = export_buffer(self.view, writable=True)


class _Scratches:
    """The scratches that no call uses. Event loops in several threads share them, so a lock guards the list."""

    _kept = 8

    def __init__(self) -> None:
        self._lock: threading.Lock = threading.Lock()
        self._free: list[_Scratch] = []

    def take(self) -> _Scratch:
        with self._lock:
            return self._free.pop() if self._free else _Scratch()

    def release(self, scratch: _Scratch) -> None:
        with self._lock:
            if len(self._free) < self._kept:
                self._free.append(scratch)

    def renew(self) -> None:
        """In a child of fork: a worker of the parent may be writing to them, and another thread may have held the lock."""
        self.__init__()  # type: ignore[misc]


_scratches = _Scratches()
os.register_at_fork(after_in_child=_scratches.renew)


async def read_bytes(path: _Path) -> bytes:
    """Give all that is in a file.

    OSError as open(2) and read(2), with the file's name; ``io.UnsupportedOperation`` for what is neither a regular file nor a block
    device.
    """
    context = current_context()
    descriptor = Descriptor(AT_FDCWD, os.fspath(path))
    encoded = _encoded(path)
    size = cached_size(encoded + b"\0")
    if size <= SMALL:
        scratch = _scratches.take()
        request = ReadWhole(descriptor, encoded, scratch.export, SMALL)
        n = await _submit_and_wait(context, request)
        data = scratch.view[:n]
        _scratches.release(scratch)
    else:
        made = new_bytes(size, for_worker=True)
        assert isinstance(made, bytes)
        data = made
        request = ReadWhole(descriptor, encoded, export_buffer(data, writable=False), size if size <= LARGE else PIECE)
        n = await _submit_and_wait(context, request)
        if request.record.fd < 0 and n < size:
            return await shortened(context._backend, memoryview(data)[:n])
    if request.record.fd < 0:
        return data
    learn(context, descriptor, request.record.description)
    async with AsyncFile(context, descriptor, "rb", n, readable=True, writable=False, abandon_on_cancel=False) as file:
        if 0 < n < len(data):
            n = await _fill(context, descriptor, data, n)
            if n < len(data):
                return await shortened(context._backend, memoryview(data)[:n])
            await file.seek(n)
        rest = await file.readall()  # it is longer than it said
        return await joined(context._backend, (memoryview(data)[:n], rest)) if rest else data[:n]


async def _fill(context: AIOContext, descriptor: Descriptor, memory: bytes, start: int) -> int:
    """Read what is behind `start` into memory, in pieces. Return where the file ends, or the length of the memory."""
    export = export_buffer(memory, writable=False)
    requests = [
        Read(descriptor, export.address + at, min(PIECE, len(memory) - at), at, 0, export) for at in range(start, len(memory), PIECE)
    ]
    lengths = [request.nbytes for request in requests]
    group = RequestGroup(context._check(), requests, DEPTH)
    assert context._backend is not None
    await context._backend.perform(RequestGroup.start, group, RequestGroup.cancel)
    for failed in group.failed:
        raise os_error(failed.result, descriptor.name)
    for index, (request, length) in enumerate(zip(requests, lengths, strict=True)):
        if request.result < length:
            return start + index * PIECE + request.result
    return len(memory)


async def write_bytes(path: _Path, data: ReadableBuffer) -> int:
    """Write a file, anew or over what was there, and give the number of bytes.

    Cancelled: it was neither made nor emptied; once begun it goes on to its end. OSError as open(2), with the file's name, or as write(2):
    ``characters_written`` then says how much was written.
    """
    memory = export_buffer(data, writable=False)
    request = WriteWhole(Descriptor(AT_FDCWD, os.fspath(path)), _encoded(path), memory, 0)
    context = current_context()
    try:
        return await _submit_and_wait(context, request)
    finally:
        if context._engine is not None:
            description = request.record.description
            context._engine.files.note_change(description.device, description.inode)


async def read_text(path: _Path, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
    """Give all that is in a text file.

    `encoding`, `errors` and `newline` are those of ``open()``. OSError as `read_bytes`; UnicodeDecodeError; LookupError and ValueError for
    arguments that are wrong, before anything has happened.
    """
    io.TextIOWrapper(io.BytesIO(), encoding, errors, newline)
    return io.TextIOWrapper(io.BytesIO(await read_bytes(path)), encoding, errors, newline).read()


async def write_text(path: _Path, data: str, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> int:
    """Write a text file, anew or over what was there, and give the number of characters.

    Else as `write_bytes` and `read_text`; UnicodeEncodeError before anything has happened.
    """
    if not isinstance(data, str):
        raise TypeError(f"data must be str, not {type(data).__name__}")
    encoded = io.BytesIO()
    text = io.TextIOWrapper(encoded, encoding, errors, newline)
    text.write(data)
    text.flush()
    await write_bytes(path, encoded.getvalue())
    return len(data)


def _encoded(path: _Path) -> bytes:
    encoded = os.fsencode(path)
    if 0 in encoded:
        raise ValueError("embedded null byte")
    return encoded


async def _submit_and_wait(context: AIOContext, request: ReadWhole | WriteWhole) -> int:
    try:
        return await context._submit_and_wait(request)
    except OSError as error:
        mode = request.record.description.mode
        if error.errno == errno.EOPNOTSUPP and mode and not is_file(mode):
            raise unsupported(mode, request.descriptor.name) from None
        raise
    except BaseException:
        if context._engine is not None:
            drop_unclaimed(context._engine, request.descriptor)  # natively cancelled
        raise
