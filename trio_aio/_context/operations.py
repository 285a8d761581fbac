"""`Operations`: reads and writes of a descriptor. Each chooses the request's class and waits for it."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from trio_aio._context.copying import COPY_STEP, joined, shortened
from trio_aio._engine.callers_memory import inspect
from trio_aio._engine.descriptor import Descriptor, describe
from trio_aio._lanes.inline import INLINE_LIMIT
from trio_aio._memory.exports import export_buffer, export_vector, hold, new_bytes
from trio_aio._memory.slabs import LARGEST_SLAB
from trio_aio._requests.direct import (
    BufferedAppend,
    BufferedWrite,
    BufferedWriteVector,
    SlabWrite,
    WidenedRead,
    fits_slab,
    is_block_write,
    is_read_aligned,
    is_write_aligned,
    read_worker_path,
    write_worker_path,
)
from trio_aio._requests.gather import gather
from trio_aio._requests.metadata import Seek
from trio_aio._requests.transfer import Append, ReadVector, Write, WriteVector, read_for_worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import ReadableBuffer, WriteableBuffer

    from trio_aio._backends import Backend
    from trio_aio._context.lock import FairLock
    from trio_aio._engine.engine import Engine
    from trio_aio._memory.exports import Export
    from trio_aio._requests.base import Request

__all__ = ("Operations",)

# Bytes that one request reads: a worker that has started it cannot be stopped, and the kernel moves less than 2 GiB in one call.
LARGEST_READ = 1 << 30


class Operations:
    """Reads and writes of open files, for `Core`, which is the one subclass."""

    backend: Backend | None
    allocating: FairLock | None

    def check(self) -> Engine:
        """Return the engine. RuntimeError where it may not be used."""
        raise NotImplementedError

    async def submit_and_wait(self, request: Request, *, abandon: bool = False) -> int:
        """Submit a request and wait for it. Return its result or raise its error."""
        raise NotImplementedError

    async def checkpoint(self) -> None:
        """Let other tasks run, and do nothing else."""
        raise NotImplementedError

    async def new_memory(self, size: int) -> bytes | bytearray:
        """Return memory for a result, which a worker touches first. Large memory is made once in a tick.

        It comes from mmap(2), which waits while workers touch memory of theirs: up to milliseconds, on the event loop's thread.
        """
        if size <= COPY_STEP or self.allocating is None:
            return new_bytes(size, for_worker=True)
        assert self.backend is not None
        async with self.allocating:
            memory = new_bytes(size, for_worker=True)
            await self.backend.cancel_shielded_checkpoint()
        return memory

    # ---- reads

    async def pread(self, descriptor: Descriptor, size: int, offset: int, flags: int, abandon: bool) -> bytes:
        if size == 0:
            await self.checkpoint()
            return b""
        engine = self.check()
        backend = self.backend
        assert backend is not None
        if descriptor.direct and fits_slab(descriptor, offset, size):
            read = WidenedRead(descriptor, size, offset, flags)
            await self.submit_and_wait(read, abandon=abandon)
            return read.data
        if self._suits_inline(descriptor, size, flags):
            await backend.checkpoint_if_cancelled()
            data = engine.inline.read(descriptor, size, offset)
            if data is not None:
                await backend.cancel_shielded_checkpoint()
                return data
        return await self.pread_by_worker(descriptor, size, offset, flags, abandon)

    @staticmethod
    def _suits_inline(descriptor: Descriptor, size: int, flags: int) -> bool:
        return size <= INLINE_LIMIT and not flags and not descriptor.direct and bool(descriptor.read_device.nowait or descriptor.residency)

    async def pread_by_worker(self, descriptor: Descriptor, size: int, offset: int, flags: int, abandon: bool) -> bytes:
        # A short result has to be copied, so limit the read to the known file size. On a network filesystem that size may be old, so read
        # on after it.
        if size > COPY_STEP:
            left = max(describe(descriptor.fd).value.size - offset, 0) if stat.S_ISREG(descriptor.mode) else size
            if left < size:
                data = await self.pread(descriptor, left, offset, flags, abandon)
                if len(data) < left:
                    return data
                end, asked = offset + left, min(size - left, INLINE_LIMIT)
                more = await self.pread(descriptor, asked, end, flags, abandon)
                if len(more) < asked:
                    return await joined(self.backend, [part for part in (data, more) if part])
                rest = await self._pread_all(descriptor, size - left - asked, end + asked, flags, abandon)
                return await joined(self.backend, (data, more, rest))
        return await self._pread_all(descriptor, size, offset, flags, abandon)

    async def _pread_all(self, descriptor: Descriptor, size: int, offset: int, flags: int, abandon: bool) -> bytes:
        """Read by a worker, into memory for `size` bytes."""
        memory = await self.new_memory(size)
        export = hold(memory)
        n = 0
        while True:
            count = min(size - n, LARGEST_READ)
            request = read_for_worker(descriptor, export.address + n, count, offset + n, flags, export, descriptor.read_worker_path)
            request.may_chain = descriptor.read_device.nowait and self._suits_inline(descriptor, size, flags)
            n += await self.submit_and_wait(request, abandon=abandon)
            if n == size or request.result < count:
                break
        return memory if n == size and isinstance(memory, bytes) else await shortened(self.backend, memoryview(memory)[:n])

    # A frame in a traceback keeps its variables. So these functions delete the one that holds the caller's memory, and the request releases
    # it when it has ended: in an `except` clause the caller may resize a bytearray, or close a mapping.

    async def preadinto(self, descriptor: Descriptor, buffer: WriteableBuffer, offset: int, flags: int, abandon: bool) -> int:
        return await self.read_held(descriptor, export_buffer(buffer, writable=True), offset, flags, abandon)

    async def read_held(self, descriptor: Descriptor, export: Export, offset: int, flags: int, abandon: bool) -> int:
        try:
            size = export.length
            engine = self.check()
            if not size:
                await self.checkpoint()
                return 0
            backend = self.backend
            assert backend is not None
            n = -1
            suits_inline = not export.mapped and self._suits_inline(descriptor, size, flags)
            if export.mapped:
                inspect(engine, (export,))
            if suits_inline:
                await backend.checkpoint_if_cancelled()
                n = engine.inline.read_into(descriptor, export.address, size, offset)
                if n >= 0:
                    await backend.cancel_shielded_checkpoint()
                    return n
            worker_path = 0
            if not is_read_aligned(descriptor, offset, size, (export,)):
                if fits_slab(descriptor, offset, size) and not export.mapped:
                    return await self.submit_and_wait(WidenedRead(descriptor, size, offset, flags, (export,)), abandon=abandon)
                worker_path = read_worker_path(descriptor, export)
            request = read_for_worker(descriptor, export.address, size, offset, flags, export, worker_path)
            request.partly_read = n == -2
            request.may_chain = suits_inline and descriptor.read_device.nowait
            return await self.submit_and_wait(request, abandon=abandon)
        finally:
            del export

    async def preadv(self, descriptor: Descriptor, buffers: Sequence[WriteableBuffer], offset: int, flags: int, abandon: bool) -> int:
        vector = export_vector(buffers, writable=True)
        try:
            size = vector.length
            if not size:
                await self.checkpoint()
                return 0
            if vector.mapped:
                inspect(self.check(), vector.exports)
            worker_path = 0
            if not is_read_aligned(descriptor, offset, size, vector.exports):
                if fits_slab(descriptor, offset, size) and not vector.mapped:
                    read = WidenedRead(descriptor, size, offset, flags, vector.exports)
                    return await self.submit_and_wait(read, abandon=abandon)
                worker_path = read_worker_path(descriptor, vector)
            return await self.submit_and_wait(ReadVector(descriptor, vector, offset, flags, worker_path), abandon=abandon)
        finally:
            del vector

    # ---- writes

    async def gathered(self, descriptor: Descriptor, exports: list[Export]) -> bytes | bytearray:
        """Return the bytes of callers' memory that may belong to a mapped file, one after the other, copied by a worker.

        `descriptor` is that of the file that the bytes are for. The list is empty afterwards. OSError: EFAULT.
        """
        try:
            inspect(self.check(), exports)
            size = sum(export.length for export in exports)
            memory = new_bytes(size, for_worker=True)
            if size:
                await self.submit_and_wait(gather(descriptor, exports, hold(memory)))
            return memory
        finally:
            exports.clear()

    async def pwrite(self, descriptor: Descriptor, data: ReadableBuffer, offset: int, flags: int) -> int:
        export = export_buffer(data, writable=False)
        try:
            size = export.length
            if not size:
                await self.checkpoint()
                return 0
            if export.mapped:
                inspect(self.check(), (export,))
            if not descriptor.o_direct:  # then nothing has to be aligned
                return await self.submit_and_wait(Write(descriptor, export.address, size, offset, flags, export))
            if not is_block_write(descriptor, offset, size, flags):
                return await self.submit_and_wait(BufferedWrite(descriptor, export.address, size, offset, flags, export))
            worker_path = 0
            if not is_write_aligned(descriptor, (export,)):
                if size <= LARGEST_SLAB and not export.mapped:
                    return await self.submit_and_wait(SlabWrite(descriptor, (export,), size, offset, flags))
                worker_path = write_worker_path(descriptor, export)
            return await self.submit_and_wait(Write(descriptor, export.address, size, offset, flags, export, worker_path))
        finally:
            del export

    async def pwritev(self, descriptor: Descriptor, buffers: Sequence[ReadableBuffer], offset: int, flags: int) -> int:
        vector = export_vector(buffers, writable=False)
        try:
            size = vector.length
            if not size:
                await self.checkpoint()
                return 0
            if vector.mapped:
                inspect(self.check(), vector.exports)
            if not is_block_write(descriptor, offset, size, flags):
                return await self.submit_and_wait(BufferedWriteVector(descriptor, vector, offset, flags))
            worker_path = 0
            if not is_write_aligned(descriptor, vector.exports):
                if size <= LARGEST_SLAB and not vector.mapped:
                    return await self.submit_and_wait(SlabWrite(descriptor, vector.exports, size, offset, flags))
                worker_path = write_worker_path(descriptor, vector)
            return await self.submit_and_wait(WriteVector(descriptor, vector, offset, flags, worker_path))
        finally:
            del vector

    async def append(self, descriptor: Descriptor, data: ReadableBuffer) -> tuple[int, int]:
        """Write to a descriptor with O_APPEND. Return the position behind it and the number of bytes; of nothing: the end of the file."""
        export = export_buffer(data, writable=False)
        try:
            size = export.length
            if not size:
                return await self.submit_and_wait(Seek(descriptor, 0, os.SEEK_END)), 0
            kind = BufferedAppend if descriptor.o_direct else Append
            return await self.submit_and_wait(kind(descriptor, export.address, size, export)), size
        finally:
            del export
