"""`Operations`: reads, writes, syncs and polls as a context makes them. Each chooses the request's class and waits for it."""

from __future__ import annotations

import errno
import operator
import os
import select
import stat
from typing import TYPE_CHECKING

from trio_aio._arguments import NO_FLAGS, checked_flags, checked_offset, checked_size
from trio_aio._context import polling
from trio_aio._context.copying import COPY_STEP, joined, shortened
from trio_aio._engine.callers_memory import inspect
from trio_aio._engine.descriptor import Descriptor, describe
from trio_aio._errors import os_error
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
from trio_aio._requests.poll import Poll
from trio_aio._requests.sync import Sync
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
    """The operations of a context, which is the one subclass."""

    _backend: Backend | None
    _state: str

    def __init__(self) -> None:
        self._by_fd: dict[int, Descriptor] = {}  # in use by calls with an fd: a sync must find the writes before it
        self._allocating: FairLock | None = None  # held while large memory is made
        self._watches: set[int] = set()  # what polls without native AIO wait for

    def _check(self) -> Engine:
        """Return the engine. RuntimeError where it may not be used."""
        raise NotImplementedError

    async def _submit_and_wait(self, request: Request, *, abandon: bool = False) -> int:
        """Submit a request and wait for it. Return its result or raise its error."""
        raise NotImplementedError

    async def _checkpoint(self) -> None:
        """Let other tasks run, and do nothing else."""
        raise NotImplementedError

    async def _new_memory(self, size: int) -> bytes | bytearray:
        """Return memory for a result, which a worker touches first. Large memory is made once in a tick.

        It comes from mmap(2), which waits while workers touch memory of theirs: up to milliseconds, on the event loop's thread.
        """
        if size <= COPY_STEP or self._allocating is None:
            return new_bytes(size, for_worker=True)
        assert self._backend is not None
        async with self._allocating:
            memory = new_bytes(size, for_worker=True)
            await self._backend.cancel_shielded_checkpoint()
        return memory

    # ---- by fd

    async def pread(self, fd: int, size: int, offset: int, *, flags: int = NO_FLAGS) -> bytes:
        """Return `size` bytes at `offset` of an open fd, fewer only at the end of the file. preadv2(2).

        size, offset: bytes, 0 to 2**63 - 1. flags: `RWF`. The caller keeps `fd` open meanwhile.
        Cancelled before a worker or the kernel has started it: it never runs. Later: the result is returned.
        OSError as pread(2); ValueError for a negative number.
        """
        size, offset, flags = checked_size(size), checked_offset(offset), checked_flags(flags)
        descriptor = self._use(fd)
        try:
            return await self._pread(descriptor, size, offset, flags, False)
        finally:
            self._end_use(descriptor)

    async def preadinto(self, fd: int, buffer: WriteableBuffer, offset: int, *, flags: int = NO_FLAGS) -> int:
        """Read into a writable buffer, and return the number of bytes, fewer than it holds only at the end of the file.

        Otherwise as `pread`.
        """
        offset, flags = checked_offset(offset), checked_flags(flags)
        descriptor = self._use(fd)
        try:
            return await self._preadinto(descriptor, buffer, offset, flags, False)
        finally:
            self._end_use(descriptor)

    async def pwrite(self, fd: int, data: ReadableBuffer, offset: int, *, flags: int = NO_FLAGS) -> int:
        """Write all of `data` at `offset` of an open fd, and return its length in bytes. pwritev2(2).

        offset: bytes, 0 to 2**63 - 1. flags: `RWF`. Do not change `data` until the call has ended.
        OSError as pwrite(2); its ``characters_written`` says how many bytes were written before. Cancelled: as `pread`.
        """
        offset, flags = checked_offset(offset), checked_flags(flags)
        descriptor = self._use(fd)
        try:
            return await self._pwrite(descriptor, data, offset, flags)
        finally:
            self._end_use(descriptor)

    async def fsync(self, fd: int) -> None:
        """Make durable every write that was started before by this number, through this context. fsync(2).

        Writes of the file through others (another number, another object, another process) are made durable if they have ended.
        OSError as fsync(2); after a failed sync later ones fail too: see `AsyncFile.fsync`. Cancelled before it has started: no effect.
        If other calls wait for the same sync, it runs on for them, and Cancelled is raised at once.
        """
        await self._sync(fd, data_only=False)

    async def fdatasync(self, fd: int) -> None:
        """As `fsync`, without metadata that is not needed to read the data back. fdatasync(2)."""
        await self._sync(fd, data_only=True)

    async def _sync(self, fd: int, *, data_only: bool) -> None:
        descriptor = self._use(fd)
        try:
            await self._submit_and_wait(Sync(descriptor, data_only=data_only))
        finally:
            self._end_use(descriptor)

    async def poll(self, fd: int, events: int) -> int:
        """Wait until one of `events` (a mask of ``select.POLLIN`` and so on) is ready on `fd`, and return those that are.

        ``IOCB_CMD_POLL``. Where there is no native AIO, and for a FIFO opened O_RDWR or a pty: a private epoll(7), and for files and
        directories a thread that calls poll(2). Regular files are always ready.
        Cancelled: raised when the kernel has confirmed the io_cancel; at once where the kernel does not have it (yet).
        OSError: EBADF; ECANCELED if the context is closed meanwhile; EAGAIN if the kernel has no memory for it.
        """
        events = operator.index(events)
        if not 0 <= events < 1 << 16:
            raise ValueError(f"events must be a mask of select.POLL* (16 bits), not {events:#x}")
        number = _checked_fd(fd)
        if self._check().has_kernel_lane():
            descriptor = Descriptor(number, fd)
            descriptor.load(describe(number).value)
            try:
                ready = await self._submit_and_wait(Poll(descriptor, events))
            except OSError as error:
                # The kernel's poll waits on one queue. A FIFO opened O_RDWR and a pty have two.
                if error.errno != errno.EINVAL:
                    raise
            else:
                return ready & (events | select.POLLERR | select.POLLHUP)  # the kernel adds related events: POLLRDNORM
        backend = self._backend
        assert backend is not None
        if self._state == "open":
            await self._checkpoint()
        if self._state != "open":  # it was closed meanwhile
            raise os_error(errno.ECANCELED, fd)
        return await polling.poll(backend, self._watches, number, describe(number).value.mode, events)

    def _use(self, fd: int) -> Descriptor:
        """Return the one `Descriptor` that all calls with this fd share while any of them is in progress."""
        number = _checked_fd(fd)
        engine = self._check()
        descriptor = self._by_fd.get(number)
        if descriptor is None:
            descriptor = Descriptor(number, number)
            descriptor.opened = False
            descriptor.load(describe(number).value)
            engine.learn(descriptor)
            self._by_fd[number] = descriptor
        descriptor.users += 1
        return descriptor

    def _end_use(self, descriptor: Descriptor) -> None:
        descriptor.users -= 1
        if not descriptor.users:
            del self._by_fd[descriptor.fd]

    # ---- reads

    async def _pread(self, descriptor: Descriptor, size: int, offset: int, flags: int, abandon: bool) -> bytes:
        if size == 0:
            await self._checkpoint()
            return b""
        engine = self._check()
        backend = self._backend
        assert backend is not None
        if descriptor.direct and fits_slab(descriptor, offset, size):
            read = WidenedRead(descriptor, size, offset, flags)
            await self._submit_and_wait(read, abandon=abandon)
            return read.data
        if self._suits_inline(descriptor, size, flags):
            await backend.checkpoint_if_cancelled()
            data = engine.inline.read(descriptor, size, offset)
            if data is not None:
                await backend.cancel_shielded_checkpoint()
                return data
        return await self._pread_by_worker(descriptor, size, offset, flags, abandon)

    @staticmethod
    def _suits_inline(descriptor: Descriptor, size: int, flags: int) -> bool:
        return size <= INLINE_LIMIT and not flags and not descriptor.direct and bool(descriptor.read_device.nowait or descriptor.residency)

    async def _pread_by_worker(self, descriptor: Descriptor, size: int, offset: int, flags: int, abandon: bool) -> bytes:
        # A short result has to be copied, so limit the read to the known file size. On a network filesystem that size may be old, so read
        # on after it.
        if size > COPY_STEP:
            left = max(describe(descriptor.fd).value.size - offset, 0) if stat.S_ISREG(descriptor.mode) else size
            if left < size:
                data = await self._pread(descriptor, left, offset, flags, abandon)
                if len(data) < left:
                    return data
                end, asked = offset + left, min(size - left, INLINE_LIMIT)
                more = await self._pread(descriptor, asked, end, flags, abandon)
                if len(more) < asked:
                    return await joined(self._backend, [part for part in (data, more) if part])
                rest = await self._pread_all(descriptor, size - left - asked, end + asked, flags, abandon)
                return await joined(self._backend, (data, more, rest))
        return await self._pread_all(descriptor, size, offset, flags, abandon)

    async def _pread_all(self, descriptor: Descriptor, size: int, offset: int, flags: int, abandon: bool) -> bytes:
        """Read by a worker, into memory for `size` bytes."""
        memory = await self._new_memory(size)
        export = hold(memory)
        n = 0
        while True:
            count = min(size - n, LARGEST_READ)
            request = read_for_worker(descriptor, export.address + n, count, offset + n, flags, export, descriptor.read_worker_path)
            request.may_chain = descriptor.read_device.nowait and self._suits_inline(descriptor, size, flags)
            n += await self._submit_and_wait(request, abandon=abandon)
            if n == size or request.result < count:
                break
        return memory if n == size and isinstance(memory, bytes) else await shortened(self._backend, memoryview(memory)[:n])

    # A frame in a traceback keeps its variables. So these functions delete the one that holds the caller's memory, and the request releases
    # it when it has ended: in an `except` clause the caller may resize a bytearray, or close a mapping.

    async def _preadinto(self, descriptor: Descriptor, buffer: WriteableBuffer, offset: int, flags: int, abandon: bool) -> int:
        return await self._read_held(descriptor, export_buffer(buffer, writable=True), offset, flags, abandon)

    async def _read_held(self, descriptor: Descriptor, export: Export, offset: int, flags: int, abandon: bool) -> int:
        try:
            size = export.length
            engine = self._check()
            if not size:
                await self._checkpoint()
                return 0
            backend = self._backend
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
                    return await self._submit_and_wait(WidenedRead(descriptor, size, offset, flags, (export,)), abandon=abandon)
                worker_path = read_worker_path(descriptor, export)
            request = read_for_worker(descriptor, export.address, size, offset, flags, export, worker_path)
            request.partly_read = n == -2
            request.may_chain = suits_inline and descriptor.read_device.nowait
            return await self._submit_and_wait(request, abandon=abandon)
        finally:
            del export

    async def _preadv(self, descriptor: Descriptor, buffers: Sequence[WriteableBuffer], offset: int, flags: int, abandon: bool) -> int:
        vector = export_vector(buffers, writable=True)
        try:
            size = vector.length
            if not size:
                await self._checkpoint()
                return 0
            if vector.mapped:
                inspect(self._check(), vector.exports)
            worker_path = 0
            if not is_read_aligned(descriptor, offset, size, vector.exports):
                if fits_slab(descriptor, offset, size) and not vector.mapped:
                    read = WidenedRead(descriptor, size, offset, flags, vector.exports)
                    return await self._submit_and_wait(read, abandon=abandon)
                worker_path = read_worker_path(descriptor, vector)
            return await self._submit_and_wait(ReadVector(descriptor, vector, offset, flags, worker_path), abandon=abandon)
        finally:
            del vector

    # ---- writes

    async def _gathered(self, descriptor: Descriptor, exports: list[Export]) -> bytes | bytearray:
        """Return the bytes of callers' memory that may belong to a mapped file, one after the other, copied by a worker.

        `descriptor` is that of the file that the bytes are for. The list is empty afterwards. OSError: EFAULT.
        """
        try:
            inspect(self._check(), exports)
            size = sum(export.length for export in exports)
            memory = new_bytes(size, for_worker=True)
            if size:
                await self._submit_and_wait(gather(descriptor, exports, hold(memory)))
            return memory
        finally:
            exports.clear()

    async def _pwrite(self, descriptor: Descriptor, data: ReadableBuffer, offset: int, flags: int) -> int:
        export = export_buffer(data, writable=False)
        try:
            size = export.length
            if not size:
                await self._checkpoint()
                return 0
            if export.mapped:
                inspect(self._check(), (export,))
            if not is_block_write(descriptor, offset, size, flags):
                return await self._submit_and_wait(BufferedWrite(descriptor, export.address, size, offset, flags, export))
            worker_path = 0
            if not is_write_aligned(descriptor, (export,)):
                if size <= LARGEST_SLAB and not export.mapped:
                    return await self._submit_and_wait(SlabWrite(descriptor, (export,), size, offset, flags))
                worker_path = write_worker_path(descriptor, export)
            return await self._submit_and_wait(Write(descriptor, export.address, size, offset, flags, export, worker_path))
        finally:
            del export

    async def _pwritev(self, descriptor: Descriptor, buffers: Sequence[ReadableBuffer], offset: int, flags: int) -> int:
        vector = export_vector(buffers, writable=False)
        try:
            size = vector.length
            if not size:
                await self._checkpoint()
                return 0
            if vector.mapped:
                inspect(self._check(), vector.exports)
            if not is_block_write(descriptor, offset, size, flags):
                return await self._submit_and_wait(BufferedWriteVector(descriptor, vector, offset, flags))
            worker_path = 0
            if not is_write_aligned(descriptor, vector.exports):
                if size <= LARGEST_SLAB and not vector.mapped:
                    return await self._submit_and_wait(SlabWrite(descriptor, vector.exports, size, offset, flags))
                worker_path = write_worker_path(descriptor, vector)
            return await self._submit_and_wait(WriteVector(descriptor, vector, offset, flags, worker_path))
        finally:
            del vector

    async def _append(self, descriptor: Descriptor, data: ReadableBuffer) -> tuple[int, int]:
        """Write to a descriptor with O_APPEND. Return the position behind it and the number of bytes; of nothing: the end of the file."""
        export = export_buffer(data, writable=False)
        try:
            size = export.length
            if not size:
                return await self._submit_and_wait(Seek(descriptor, 0, os.SEEK_END)), 0
            kind = BufferedAppend if descriptor.o_direct else Append
            return await self._submit_and_wait(kind(descriptor, export.address, size, export)), size
        finally:
            del export


def _checked_fd(fd: int) -> int:
    fd = operator.index(fd)
    if not 0 <= fd < 1 << 31:
        raise os_error(errno.EBADF, fd)
    return fd
