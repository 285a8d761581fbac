"""Whole files: `read_bytes`, `write_bytes`, `read_text`, `write_text`.

A file takes three system calls: open, read and close. Any of them may sleep, and the hop to a worker costs more than all three do for a
small file. So a worker makes all of them in one request (`ReadWhole`, `WriteWhole`). A small file that the kernel has in memory needs no
worker (`cached`).

The memory must be there before the request, so its size must be known. `cached_size` asks the kernel, which answers only if it has the
inode in memory. If it has not, there is room for a small file, and a longer one stays open and is read like any other. The first touch of
large memory makes the kernel clear it, so the worker touches it, not the event loop's thread.

A request that a worker has started cannot be stopped. So only the first part of a file above 32 MiB is read so, and the rest by several
requests, which can be cancelled. Users call these functions.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Union, overload

from trio_aio._arguments import checked_integer, checked_offset
from trio_aio._context.context import core_of
from trio_aio._context.copying import joined, shortened
from trio_aio._context.group import RequestGroup
from trio_aio._context.shared import usable_core
from trio_aio._engine.descriptor import Descriptor, cached_size
from trio_aio._engine.mending import torn
from trio_aio._files.binary import AsyncFile
from trio_aio._files.cached import probe_mount, read_cached
from trio_aio._files.coding import decoded, encoded, joined_text
from trio_aio._files.open import drop_unclaimed, is_file, learn, unsupported
from trio_aio._files.parts import read_into, read_part, write_flags, write_specially
from trio_aio._files.text import text_format
from trio_aio._lanes.inline import INLINE_LIMIT
from trio_aio._memory.exports import Export, export_buffer, hold, private_memory
from trio_aio._requests.opening import AT_FDCWD, CREATION_MODE
from trio_aio._requests.transfer import Read
from trio_aio._requests.whole import ReadWhole, WriteWhole

if TYPE_CHECKING:
    import mmap

    from _typeshed import ReadableBuffer, WriteableBuffer

    from trio_aio._context.context import AIOContext
    from trio_aio._context.core import Core

__all__ = ("read_bytes", "read_text", "write_bytes", "write_text")

# Bytes. A file up to this size is copied on the event loop's thread.
SCRATCH_SIZE = INLINE_LIMIT
# Bytes. A longer file is read in parts, so that a cancelled call does not have to wait for all of it.
LARGEST_REQUEST = 32 << 20
# Bytes of each part.
PART = 8 << 20
# Parts in flight at once.
DEPTH = 2

_Path = Union[str, bytes, "os.PathLike[str]", "os.PathLike[bytes]"]


class _Scratch:
    """Memory for a small file, or for one whose size is not known. It is used again by other calls."""

    def __init__(self) -> None:
        self.view: mmap.mmap = private_memory(SCRATCH_SIZE)
        self.export: Export = hold(self.view)


# Scratches that no call uses. Event loops in several threads share them, and need no lock: each step is one call of the list's.
_scratches: list[_Scratch] = []
_MOST_KEPT = 8
# In a child of fork, a worker of the parent may have been writing to them.
os.register_at_fork(after_in_child=_scratches.clear)


def _take_scratch() -> _Scratch:
    """Return a scratch from the list, or a new one."""
    try:
        return _scratches.pop()
    except IndexError:
        return _Scratch()


def _release_scratch(scratch: _Scratch) -> None:
    """Return a scratch to the list, unless that has 8 already. No request may use it any more."""
    if len(_scratches) < _MOST_KEPT:
        _scratches.append(scratch)


@overload
async def read_bytes(path: _Path, *, offset: int = 0, size: int = -1, into: None = None, context: AIOContext | None = None) -> bytes: ...
@overload
async def read_bytes(path: _Path, *, offset: int = 0, size: int = -1, into: WriteableBuffer, context: AIOContext | None = None) -> int: ...
async def read_bytes(
    path: _Path, *, offset: int = 0, size: int = -1, into: WriteableBuffer | None = None, context: AIOContext | None = None
) -> bytes | int:
    """Return the bytes of a file, or with `into` their number. open(2), read(2), close(2).

    offset, size: bytes; fewer than `size` only at the end of the file; -1: to the end. into: a writable buffer, filled at most.
    Cancelled before the read has started: no effect. Later: the bytes of a file up to 32 MiB are returned, and Cancelled is raised at the
    next checkpoint; for a longer file Cancelled is raised after the parts in flight.
    OSError with errno and file name; ``io.UnsupportedOperation`` if it is neither a regular file nor a block device; ValueError for a null
    byte in the path, and for a negative offset, or size other than -1.
    """
    if into is None and type(offset) is int is type(size) and offset == 0 and size == -1:
        return await _read_whole(_core_of(context), path)
    offset, size = checked_offset(offset), checked_integer(size, "size")
    if size < -1:
        raise ValueError(f"size must be -1 or not negative, not {size}")
    used = _core_of(context)
    if into is not None:
        return await read_into(used, AT_FDCWD, _encoded(path), path, offset, size, into)
    if offset or size >= 0:
        return await read_part(used, AT_FDCWD, _encoded(path), path, offset, size)
    return await _read_whole(used, path)


async def _read_whole(core: Core, path: _Path) -> bytes:
    """Return the bytes of a file. `_core_of` has checked the core."""
    encoded = _encoded(path)
    backend = core.backend
    assert backend is not None
    await backend.checkpoint_if_cancelled()
    read = read_cached(core, AT_FDCWD, encoded)
    if read is not None:
        await backend.cancel_shielded_checkpoint()
        return read
    await probe_mount(core, AT_FDCWD, encoded, path)
    descriptor = Descriptor(AT_FDCWD, os.fspath(path))
    size = cached_size(encoded + b"\0")
    if size <= SCRATCH_SIZE:
        scratch = _take_scratch()
        request = ReadWhole(descriptor, encoded, scratch.export, SCRATCH_SIZE)
        n = await _submit_and_wait(core, request)
        data = scratch.view[:n]
        _release_scratch(scratch)
    else:
        made = await core.new_memory(size)
        assert isinstance(made, bytes)
        data = made
        request = ReadWhole(descriptor, encoded, hold(data), size if size <= LARGEST_REQUEST else PART)
        n = await _submit_and_wait(core, request)
        if request.record.fd < 0 and n < size:
            return await shortened(core.backend, memoryview(data)[:n])
    if request.record.fd < 0:
        return data
    learn(core, descriptor, request.record.description)
    file = AsyncFile(core, descriptor, "rb", n, readable=True, writable=False, abandon_on_cancel=False)
    file._claim()
    try:
        if 0 < n < len(data):
            n = await _fill(core, descriptor, data, n)
            if n < len(data):
                return await shortened(core.backend, memoryview(data)[:n])
            await file.seek(n)
        # The file is longer than its size said.
        rest = await file.readall()
        return await joined(core.backend, (memoryview(data)[:n], rest)) if rest else data[:n]
    finally:
        # What was read is returned, also in a scope that is cancelled by now.
        await file._close()


async def _fill(core: Core, descriptor: Descriptor, memory: bytes, start: int) -> int:
    """Fill `memory` from the index `start` on with the file's bytes, in parts. Return the size of the file, at most that of `memory`."""
    export = hold(memory)
    requests = [Read(descriptor, export.address + at, min(PART, len(memory) - at), at, 0, export) for at in range(start, len(memory), PART)]
    lengths = [request.nbytes for request in requests]
    group = RequestGroup(core.check(), requests, DEPTH)
    assert core.backend is not None
    await core.backend.perform(RequestGroup.start, group, RequestGroup.cancel)
    if group.error is not None:
        raise torn(group.error)
    for failed in group.failed:
        raise failed.error()
    for index, (request, length) in enumerate(zip(requests, lengths, strict=True)):
        if request.result < length:
            return start + index * PART + request.result
    return len(memory)


async def write_bytes(
    path: _Path,
    data: ReadableBuffer,
    *,
    offset: int | None = None,
    append: bool = False,
    exclusive: bool = False,
    atomic: bool = False,
    durable: bool = False,
    mode: int = CREATION_MODE,
    context: AIOContext | None = None,
) -> int:
    """Write a file, and return the number of bytes. By default an old file is overwritten. open(2), write(2), close(2).

    data: bytes-like, contiguous. Do not change it until the call has ended. mode: of a new file.
    - `offset`: written there; the file is made if it is missing, and not emptied. `append`: written at the end, by one write(2).
    - `exclusive`: FileExistsError if the name exists.
    - `atomic`: readers see the old contents or the new, never a part. The new file gets mode and, where permitted, owner of the old one. A
      link is resolved, and its target replaced. No temporary name remains after an error or a cancellation.
    - `durable`: on return data and name are on the disk. An error of fdatasync(2), or of fsync(2) of the directory, is raised.
    ``atomic`` with `offset` or `append`, and ``append`` with `offset`: ValueError.
    Cancelled before it has started: the file was neither created nor emptied. Later: all of it is written, and Cancelled is raised at the
    next checkpoint. OSError with errno and file name; after a failed write ``characters_written`` is the number of bytes that were written.
    ValueError for a null byte in the path.
    """
    flags = write_flags(at_offset=offset is not None, append=append, exclusive=exclusive, atomic=atomic, durable=durable)
    at = 0 if offset is None else checked_offset(offset)
    core = _core_of(context)
    descriptor, encoded = Descriptor(AT_FDCWD, os.fspath(path)), _encoded(path)
    if flags or mode != CREATION_MODE:
        return await write_specially(core, AT_FDCWD, encoded, path, data, at, flags, mode)
    request = WriteWhole(descriptor, encoded, export_buffer(data, writable=False), 0)
    try:
        return await _submit_and_wait(core, request)
    finally:
        if core.engine is not None:
            description = request.record.description
            core.engine.files.note_change(description.device, description.inode, 0, request.transferred, cut=0)


async def read_text(
    path: _Path,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *,
    context: AIOContext | None = None,
) -> str:
    """Return the text of a file.

    encoding, errors, newline: as for ``open()``; LookupError or ValueError for wrong ones, before the file is opened. UnicodeDecodeError.
    Cancellation and other errors as `read_bytes`.
    """
    format = text_format(encoding, errors, newline, readable=True, writable=False, stacklevel=3)
    core = _core_of(context)
    backend = core.backend
    assert backend is not None
    parts = await decoded(backend, format.decoder(), await _read_whole(core, path), format.encoding)
    with backend.shielded():
        return await joined_text(backend, parts)


async def write_text(
    path: _Path,
    data: str,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *,
    append: bool = False,
    exclusive: bool = False,
    atomic: bool = False,
    durable: bool = False,
    mode: int = CREATION_MODE,
    context: AIOContext | None = None,
) -> int:
    """Write a text file, and return the number of characters. By default an old file is overwritten.

    append, exclusive, atomic, durable, mode: as `write_bytes`.

    encoding, errors, newline: as for ``open()``; LookupError or ValueError for wrong ones, and UnicodeEncodeError, before the file is
    opened. Cancellation and other errors as `write_bytes`.
    """
    if not isinstance(data, str):
        raise TypeError(f"data must be str, not {type(data).__name__}: use write_bytes for bytes")
    format = text_format(encoding, errors, newline, readable=False, writable=True, stacklevel=3)
    write_flags(at_offset=False, append=append, exclusive=exclusive, atomic=atomic, durable=durable)
    core = _core_of(context)
    backend = core.backend
    assert backend is not None
    text = await encoded(backend, format.encoder(), [data], newline, format.encoding)
    await write_bytes(path, text, append=append, exclusive=exclusive, atomic=atomic, durable=durable, mode=mode, context=core.context)
    return len(data)


def _core_of(context: AIOContext | None) -> Core:
    """Return the core that serves a call: that of the context passed, or the run's. TypeError; RuntimeError if it cannot be used here."""
    if context is None:
        return usable_core()
    core = core_of(context)
    core.check()
    return core


def _encoded(path: _Path) -> bytes:
    """Return a path as the kernel takes it."""
    encoded = os.fsencode(path)
    if 0 in encoded:
        raise ValueError(f"path must not contain a null byte: {path!r}")
    return encoded


async def _submit_and_wait(core: Core, request: ReadWhole | WriteWhole) -> int:
    try:
        return await core.submit_and_wait(request)
    except OSError as error:
        mode = request.record.description.mode
        if error.errno == errno.EOPNOTSUPP and mode and not is_file(mode):
            raise unsupported(mode, request.descriptor.name) from None
        raise
    except BaseException:
        if core.engine is not None:
            # asyncio's own Task.cancel, after the worker had opened the file.
            drop_unclaimed(core.engine, request.descriptor)
        raise
