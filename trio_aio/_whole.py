"""Whole files: `read_bytes`, `write_bytes`, `read_text`, `write_text`.

A worker opens, reads and closes a file in one request: the way there and back costs more than the work on a small one, and memory that
is large is better touched first, in huge pages, by the worker. For that the size must be known beforehand: the kernel tells it from memory
if it can, else there is room for a small file, and a larger one is left open and read as any other.
"""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING, Any, Union

from trio_aio._batch import Batch
from trio_aio._buffers import Export, export_buffer, new_bytes, private_memory
from trio_aio._context import current_context
from trio_aio._copying import joined, shortened
from trio_aio._descriptor import Descriptor, WholeRecord, cached_size
from trio_aio._errors import os_error
from trio_aio._file import AsyncFile
from trio_aio._inline_lane import INLINE_LIMIT
from trio_aio._open import _AT_FDCWD, _CREATION_MODE, _is_file, _learn, _unsupported
from trio_aio._request import Operation, Request

if TYPE_CHECKING:
    import mmap

    from _typeshed import ReadableBuffer

    from trio_aio._context import AIOContext

__all__ = ("read_bytes", "read_text", "write_bytes", "write_text")

SMALL = INLINE_LIMIT  # bytes: copied on the event loop's thread
LARGE = 32 << 20  # bytes: in pieces from here on, so that the reading can be stopped
PIECE = 8 << 20  # bytes
DEPTH = 2  # pieces that are out at once

_Path = Union[str, bytes, "os.PathLike[str]", "os.PathLike[bytes]"]


class _Scratch:
    """Memory for a file whose size is not known, used again and again."""

    def __init__(self) -> None:
        self.view: mmap.mmap = private_memory(SMALL)
        self.export: Export = export_buffer(self.view, writable=True)


_scratches: list[_Scratch] = []
_KEPT = 8
os.register_at_fork(after_in_child=_scratches.clear)


async def read_bytes(path: _Path) -> bytes:
    """Give all that is in a file.

    OSError as open(2) and read(2), with the file's name; ``io.UnsupportedOperation`` for what is neither a regular file nor a block
    device.
    """
    context = current_context()
    descriptor = Descriptor(_AT_FDCWD, os.fspath(path))
    size = cached_size(_encoded(path))
    if size <= SMALL:
        try:
            scratch = _scratches.pop()
        except IndexError:
            scratch = _Scratch()
        record = WholeRecord(scratch.export, SMALL)
        n = await _perform(context, Operation.READ_FILE, descriptor, os.O_RDONLY, record)
        data = scratch.view[:n]
        if len(_scratches) < _KEPT:
            _scratches.append(scratch)
    else:
        made = new_bytes(size, for_worker=True)
        assert isinstance(made, bytes)
        data = made
        record = WholeRecord(export_buffer(data, writable=False), size if size <= LARGE else PIECE)
        n = await _perform(context, Operation.READ_FILE, descriptor, os.O_RDONLY, record)
        if record.value.fd < 0 and n < size:
            return await shortened(context._backend, memoryview(data)[:n])
    if record.value.fd < 0:
        return data
    _learn(context, descriptor, record)
    async with AsyncFile(context, descriptor, "rb", n, readable=True, writable=False, abandon_on_cancel=False) as file:
        if 0 < n < len(data):
            n = await _fill(context, descriptor, data, n)
            if n < len(data):
                return await shortened(context._backend, memoryview(data)[:n])
            await file.seek(n)
        rest = await file.readall()  # it is longer than it said
        return await joined(context._backend, (memoryview(data)[:n], rest)) if rest else data[:n]


async def _fill(context: AIOContext, descriptor: Descriptor, memory: bytes, start: int) -> int:
    """Read what is behind `start` into memory, in pieces; give where the file ends if not later than that."""
    export = export_buffer(memory, writable=False)
    requests = [
        Request(Operation.READ, descriptor, export.address + at, min(PIECE, len(memory) - at), at, owned=export)
        for at in range(start, len(memory), PIECE)
    ]
    batch = Batch(context._check(), requests, DEPTH)
    assert context._backend is not None
    await context._backend.perform(Batch.start, batch, Batch.cancel)
    for failed in batch.failed:
        raise os_error(failed.result, descriptor.name)
    return next((request.offset + request.result for request in requests if request.result < request.length), len(memory))


async def write_bytes(path: _Path, data: ReadableBuffer) -> int:
    """Write a file, anew or over what was there, and give the number of bytes.

    Cancelled: it was neither made nor emptied; once begun it goes on to its end. OSError as open(2), with the file's name, or as write(2):
    ``characters_written`` then says how much was written.
    """
    record = WholeRecord(export_buffer(data, writable=False), 0)
    descriptor = Descriptor(_AT_FDCWD, os.fspath(path))
    return await _perform(current_context(), Operation.WRITE_FILE, descriptor, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, record)


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
    return encoded + b"\0"


async def _perform(context: AIOContext, operation: Operation, descriptor: Descriptor, flags: int, record: WholeRecord) -> int:
    name: Any = descriptor.name
    encoded = export_buffer(_encoded(name), writable=False)
    request = Request(
        operation,
        descriptor,
        encoded.address,
        _CREATION_MODE,
        0,
        flags | os.O_CLOEXEC,
        (encoded, record),
        extra=record.address,
        nbytes=0,
    )
    try:
        return await context._perform(request)
    except OSError as error:
        mode = record.value.description.mode
        if error.errno == errno.EOPNOTSUPP and mode and not _is_file(mode):
            raise _unsupported(mode, name) from None
        raise
    except BaseException:
        if context._engine is not None:
            context._engine.drop_unclaimed(descriptor)  # natively cancelled
        raise
    finally:
        if operation is Operation.WRITE_FILE and context._engine is not None:
            context._engine.note_change(record.value.description.device, record.value.description.inode)
