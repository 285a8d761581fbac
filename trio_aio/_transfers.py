"""`Transfers`: what becomes of a read or a write of callers' memory: tried inline, handed over as it is, or by way of other memory."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from trio_aio._buffers import LARGEST_SLAB, export_buffer, export_vector, new_bytes
from trio_aio._copying import PIECE, joined, shortened
from trio_aio._descriptor import describe
from trio_aio._direct import Bounced, fits_slab, is_block_write, reading_fits, writing_fits
from trio_aio._errors import os_error
from trio_aio._inline_lane import INLINE_LIMIT
from trio_aio._request import Operation, Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import ReadableBuffer, WriteableBuffer

    from trio_aio._backends import Backend
    from trio_aio._buffers import Export
    from trio_aio._descriptor import Descriptor
    from trio_aio._engine import Engine

__all__ = ("Transfers",)


class Transfers:
    """The reads and writes of a context, which is the one subclass."""

    _backend: Backend | None

    def _check(self) -> Engine:
        """Give the engine; RuntimeError where it may not be used."""
        raise NotImplementedError

    async def _perform(self, request: Request, *, abandon: bool = False) -> int:
        """Submit a request and wait for it; give its result or raise its error."""
        raise NotImplementedError

    async def _checkpoint(self) -> None:
        """Do nothing but let others run."""
        raise NotImplementedError

    async def _pread(self, descriptor: Descriptor, size: int, offset: int, flags: int, abandon: bool) -> bytes:
        if size == 0:
            await self._checkpoint()
            return b""
        engine = self._check()
        assert self._backend is not None
        if descriptor.direct and fits_slab(descriptor, offset, size):
            with Bounced(engine, Operation.READ, descriptor, size, offset, flags) as bounced:
                if abandon:
                    return bounced.read(await self._perform(bounced.request, abandon=True))
                request = bounced.request
                await self._backend.perform(engine.submit, request, engine.cancel)
                if request.result < 0:
                    raise os_error(request.result, descriptor.name)
                return bounced.read(request.result)
        if self._suits_inline(descriptor, size, flags):
            await self._backend.checkpoint_if_cancelled()
            data = engine.inline.read(descriptor, size, offset)
            if data is not None:
                await self._backend.cancel_shielded_checkpoint()
                return data
        return await self._pread_by_worker(descriptor, size, offset, flags, abandon)

    @staticmethod
    def _suits_inline(descriptor: Descriptor, size: int, flags: int) -> bool:
        return (
            size <= INLINE_LIMIT and not flags and not descriptor.direct and (descriptor.read_route is None or descriptor.read_route.nowait)
        )

    async def _pread_by_worker(self, descriptor: Descriptor, size: int, offset: int, flags: int, abandon: bool) -> bytes:
        if size > PIECE:  # what is cut off is copied, so ask first; but a network filesystem's answer may be old
            left = describe(descriptor.fd).value.size - offset if stat.S_ISREG(descriptor.mode) else 0
            if 0 < left < size:
                data = await self._pread_by_worker(descriptor, left, offset, flags, abandon)
                if len(data) < left:
                    return data
                more = await self._pread(descriptor, min(size - left, INLINE_LIMIT), offset + left, flags, abandon)
                if not more:
                    return data
                left += len(more)
                return await joined(self._backend, (data, more, await self._pread(descriptor, size - left, offset + left, flags, abandon)))
        memory = new_bytes(size, for_worker=True)
        export = export_buffer(memory, writable=False)
        request = Request(Operation.READ, descriptor, export.address, size, offset, flags, export, extra=descriptor.read_bounce)
        request.missed = self._suits_inline(descriptor, size, flags)
        n = await self._perform(request, abandon=abandon)
        return memory if n == size and isinstance(memory, bytes) else await shortened(self._backend, memoryview(memory)[:n])

    async def _preadinto(self, descriptor: Descriptor, buffer: WriteableBuffer, offset: int, flags: int, abandon: bool) -> int:
        export = export_buffer(buffer, writable=True)
        size = export.length
        engine = self._check()
        assert self._backend is not None
        n = -1
        if size and self._suits_inline(descriptor, size, flags):
            await self._backend.checkpoint_if_cancelled()
            n = engine.inline.read_into(descriptor, export.address, size, offset)
            if n >= 0:
                await self._backend.cancel_shielded_checkpoint()
                return n
        request = Request(Operation.READ, descriptor, export.address, size, offset, flags, export)
        request.begun = n == -2
        request.missed = self._suits_inline(descriptor, size, flags)
        return await self._read(request, [export], size, abandon)

    async def _preadv(self, descriptor: Descriptor, buffers: Sequence[WriteableBuffer], offset: int, flags: int, abandon: bool) -> int:
        vector = export_vector(buffers, writable=True)
        size = vector.length
        request = Request(Operation.READV, descriptor, vector.address, len(vector.exports), offset, flags, vector, nbytes=size)
        return await self._read(request, vector.exports, size, abandon)

    async def _read(self, request: Request, exports: list[Export], size: int, abandon: bool) -> int:
        """Perform a read into callers' memory, which on a direct file may have to go through other memory."""
        descriptor, offset = request.descriptor, request.offset
        if not size:
            await self._checkpoint()
            return 0
        if not reading_fits(descriptor, offset, size, exports):
            if fits_slab(descriptor, offset, size):
                with Bounced(self._check(), Operation.READ, descriptor, size, offset, request.flags) as bounced:
                    return bounced.scatter(exports, await self._perform(bounced.request, abandon=abandon))
            request.extra = descriptor.read_bounce
        return await self._perform(request, abandon=abandon)

    async def _pwrite(self, descriptor: Descriptor, data: ReadableBuffer, offset: int, flags: int) -> int:
        export = export_buffer(data, writable=False)
        size = export.length
        return await self._write(Request(Operation.WRITE, descriptor, export.address, size, offset, flags, export), [export], size)

    async def _pwritev(self, descriptor: Descriptor, buffers: Sequence[ReadableBuffer], offset: int, flags: int) -> int:
        vector = export_vector(buffers, writable=False)
        size = vector.length
        request = Request(Operation.WRITEV, descriptor, vector.address, len(vector.exports), offset, flags, vector, nbytes=size)
        return await self._write(request, vector.exports, size)

    async def _append(self, descriptor: Descriptor, data: ReadableBuffer) -> tuple[int, int]:
        """Write to a descriptor with O_APPEND; give the position behind it and the number of bytes. Of nothing: the end of the file."""
        export = export_buffer(data, writable=False)
        size = export.length
        if not size:
            return await self._perform(Request(Operation.SEEK, descriptor, flags=os.SEEK_END)), 0
        return await self._write(Request(Operation.APPEND, descriptor, export.address, size, owned=export), [export], size), size

    async def _write(self, request: Request, exports: list[Export], size: int) -> int:
        """Perform a write from callers' memory, which on a direct file may have to go through other memory or the page cache."""
        descriptor, offset = request.descriptor, request.offset
        if not size:
            await self._checkpoint()
            return 0
        if not is_block_write(descriptor, offset, size, request.flags):
            request.buffered = True
            request.extra = descriptor.through_cache
        elif not writing_fits(descriptor, exports):
            if size <= LARGEST_SLAB:
                with Bounced(self._check(), Operation.WRITE, descriptor, size, offset, request.flags) as bounced:
                    bounced.slab.gather(exports)
                    return await self._perform(bounced.request)
            request.extra = descriptor.write_bounce
        return await self._perform(request)
