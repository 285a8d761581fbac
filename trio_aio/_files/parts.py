"""Parts of files by path, and files that are written otherwise than in place: `whole.py` calls these.

One worker opens the file, moves the bytes and closes it, in one request. An atomic write makes a new file and puts it in the place of the
old one (names_whole.c).
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from trio_aio._arguments import checked_mode
from trio_aio._engine.descriptor import Descriptor
from trio_aio._engine.durability import means_lost
from trio_aio._files.cached import read_cached
from trio_aio._files.open import is_file, open_aio, unsupported
from trio_aio._memory.exports import export_buffer, hold
from trio_aio._requests.contents import APPEND_TO, AT_OFFSET, ATOMIC, DURABLE, EXCLUSIVE, ReadName, WriteName

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from trio_aio._context.core import Core
    from trio_aio._files.binary import AsyncFile
    from trio_aio._memory.exports import Export

__all__ = ("LARGEST_PART", "read_into", "read_part", "write_flags", "write_specially")

# Bytes. A larger part is read through an open file, by requests that can be cancelled one by one.
LARGEST_PART = 1 << 20


def write_flags(*, at_offset: bool, append: bool, exclusive: bool, atomic: bool, durable: bool) -> int:
    """Return the flags of a write. ValueError for those that exclude each other."""
    if append and at_offset:
        raise ValueError("append and offset must not both be given")
    if atomic and (append or at_offset):
        raise ValueError(f"atomic writes the whole file: {'append' if append else 'offset'} must not be given with it")
    pairs = ((append, APPEND_TO), (at_offset, AT_OFFSET), (exclusive, EXCLUSIVE), (atomic, ATOMIC), (durable, DURABLE))
    return sum(flag for given, flag in pairs if given)


async def write_specially(
    core: Core,
    dir: int,
    path: bytes,
    shown: object,
    data: ReadableBuffer,
    offset: int,
    flags: int,
    mode: int,
    *,
    beneath: bool = False,
) -> int:
    """Write a file as `flags` say, and return the number of bytes. OSError."""
    descriptor, mode = Descriptor(dir, shown), checked_mode(mode)
    export = export_buffer(data, writable=False)
    request = WriteName(descriptor, path, export, number=offset, flags=flags, mode=mode, beneath=int(beneath))
    try:
        return await core.submit_and_wait(request)
    except OSError as error:
        raise _explained(error, request.record.stat.mode, shown) from None
    finally:
        changed, engine = request.record.stat, core.engine
        if engine is not None and changed.inode:
            # As struct taio_description has it.
            device = os.major(changed.device) << 32 | os.minor(changed.device)
            moved, in_place = request.record.moved, not flags & ATOMIC
            emptied = in_place and not flags & (APPEND_TO | AT_OFFSET)
            end, exact = (offset + moved if in_place else 0), not flags & APPEND_TO
            engine.files.note_change(device, changed.inode, offset if exact else 0, end, cut=0 if emptied else None, exact=exact)
            if flags & DURABLE and in_place and moved == request.record.capacity and means_lost(request.result):
                size = changed.size + moved if flags & APPEND_TO else max(changed.size, end)
                engine.files.note_failed_sync(device, changed.inode, -request.result, size)


async def read_part(
    core: Core, dir: int, path: bytes, shown: object, offset: int, size: int, resolve: int = 0, *, by_descriptor: bool = False
) -> bytes:
    """Return `size` bytes from `offset`, fewer only at the end; -1: all. OSError.

    by_descriptor: the path starts from `dir`, and of size -1 only a part may be returned.
    """
    core.check()
    backend = core.backend
    assert backend is not None
    await backend.checkpoint_if_cancelled()
    part = read_cached(core, dir, path, resolve, offset, size)
    if part is not None:
        await backend.cancel_shielded_checkpoint()
        return part
    if by_descriptor or 0 <= size <= LARGEST_PART:
        memory = bytearray(size if size >= 0 else LARGEST_PART)
        n = await _read(core, dir, path, shown, hold(memory), offset, resolve)
        return bytes(memoryview(memory)[:n])
    file: AsyncFile = await open_aio(shown, context=core.context)  # type: ignore[call-overload]
    try:
        if size >= 0:
            return await file.pread(size, offset)
        await file.seek(offset)
        return await file.readall()
    finally:
        # What was read is returned, also in a scope that is cancelled by now.
        await file._close()


async def read_into(
    core: Core, dir: int, path: bytes, shown: object, offset: int, size: int, into: WriteableBuffer, resolve: int = 0
) -> int:
    """Fill a buffer, with at most `size` bytes unless that is -1, and return the number of bytes. OSError."""
    core.check()
    backend = core.backend
    assert backend is not None
    export = export_buffer(into, writable=True)
    if 0 <= size < export.length:
        export = export.part(0, size)
    # Memory of a mapped file is touched by workers only.
    if not export.mapped:
        await backend.checkpoint_if_cancelled()
        part = read_cached(core, dir, path, resolve, offset, export.length)
        if part is not None:
            export.fill(part)
            await backend.cancel_shielded_checkpoint()
            return len(part)
    return await _read(core, dir, path, shown, export, offset, resolve)


async def _read(core: Core, dir: int, path: bytes, shown: object, export: Export, offset: int, resolve: int) -> int:
    request = ReadName(Descriptor(dir, shown), path, export, offset, beneath=int(resolve != 0))
    try:
        return await core.submit_and_wait(request)
    except OSError as error:
        raise _explained(error, request.record.stat.mode, shown) from None


def _explained(error: OSError, mode: int, shown: object) -> OSError:
    """Return the error of a file that is neither a regular file nor a block device as `open_aio` raises it."""
    if error.errno == errno.EOPNOTSUPP and mode and not is_file(mode):
        return unsupported(mode, shown)
    return error
