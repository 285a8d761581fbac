"""`PositionalFile`: an open file, its calls at an offset, and its close. `AsyncFile` adds a cursor to it.

preadv2(2) and io_submit(2) take an offset with each call, so any number of tasks may read and write one file at once. Each call here checks
its arguments, passes a request to the core of the file's context, and waits for it.

A cancelled task must not leave while the kernel writes to its memory. So a request that has started is waited for, and only one that has
not started is withdrawn. After close(2) an fd number may name another file, so close waits for the file's other requests. A file that is
dropped without `aclose` is closed by the engine: `__del__` may run in any thread, and must not block.

`pread` is the call that programs make most, and a page-cache hit takes about a microsecond. So it has two short ways: copy from the page
cache on the event loop's thread, and submit a plain direct read at once. `pwrite` has one: give a plain direct overwrite to the submitter.
"""

from __future__ import annotations

import os
import stat
import warnings
from functools import partial
from mmap import mmap
from threading import get_ident
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from trio_aio._arguments import NO_FLAGS, checked_flags, checked_offset, checked_size
from trio_aio._backends import Deferred, async_resource, raise_if_cancelled, shielded_checkpoint
from trio_aio._bulk.chunks import Chunks
from trio_aio._bulk.many import read_blocks, read_ranges, write_ranges
from trio_aio._bulk.writer import Writer
from trio_aio._files.blocking import end_views
from trio_aio._files.opened import OpenedFile
from trio_aio._lanes.inline import INLINE_LIMIT
from trio_aio._lanes.protocols import State
from trio_aio._memory.mappings import is_anonymous
from trio_aio._memory.slabs import LARGEST_SLAB
from trio_aio._requests.cold import ColdRead
from trio_aio._requests.direct import WidenedRead
from trio_aio._requests.metadata import Allocate, Seek, Stat
from trio_aio._requests.opening import Close
from trio_aio._requests.overwrites import LARGEST_OVERWRITE, Overwrite
from trio_aio._requests.sync import Sync

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from _typeshed import ReadableBuffer, WriteableBuffer
    from typing_extensions import Self

    from trio_aio._backends import Backend
    from trio_aio._context.core import Core
    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._engine.engine import Engine

__all__ = ("PositionalFile",)


# Sizes and offsets below it are valid, and so is the sum of two. Larger ones take the slower checks.
_PLAIN = 1 << 62
# Bytes. A direct read up to this size, widened to whole blocks, fits one slab of aligned memory. It selects a path in the code, the short
# way of `WidenedRead.start_short`, and no lane: larger reads take the kernel lane too, by the general way.
_SHORT_WAY_LIMIT = LARGEST_SLAB // 2


@async_resource
class PositionalFile(OpenedFile):
    """An open file without a cursor.

    Every coroutine is a checkpoint. Unless a call says otherwise: cancelled before its request has started, the request never runs, and
    Cancelled is raised at once. Later, the result is returned, and Cancelled is raised at the next checkpoint. So **a call that raises
    Cancelled had no effect**. With ``abandon_on_cancel`` a cancelled read, `stat`, `size`, `seek` or sync does not wait.

    Errors: OSError with the kernel's errno and the file's name; ValueError for a closed file, or a negative offset or size;
    ``io.UnsupportedOperation`` if the mode does not allow the call; TypeError; RuntimeError in another run, thread or process.
    """

    def __init__(
        self,
        core: Core,
        descriptor: Descriptor,
        mode: str,
        *,
        readable: bool,
        writable: bool,
        abandon_on_cancel: bool,
    ) -> None:
        backend = core.backend
        assert backend is not None
        self._core: Core = core
        self._backend: Backend = backend
        self._descriptor: Descriptor = descriptor
        self._engine: Engine = core.check()
        self._mode: str = mode
        self._readable: bool = readable
        self._writable: bool = writable
        self._abandon: bool = abandon_on_cancel
        # With `abandon_on_cancel`: what reads ahead. No task waits for that.
        self._iterators: WeakSet[Chunks] | None = WeakSet() if abandon_on_cancel else None
        # Made now, so that a finalizer needs no memory.
        self._close_request: Close = Close(descriptor)
        # Until `_claim` the descriptor belongs to the request that opened it.
        self._closed: bool = True
        # The inline lane, for the short way of `pread`. None if the file cannot use it: direct, write-only or closed.
        self._inline: Any = core.inline if readable and not descriptor.direct else None
        # Whether `pread` may submit a direct read without further checks. False after close.
        self._short_way: bool = readable and descriptor.direct and not abandon_on_cancel
        # The same for `pwrite` and a direct overwrite.
        self._short_write: bool = writable and descriptor.direct and not descriptor.append
        # Whether this run's library runs the code that calls: see `Backend`.
        self._side: Callable[[], object] = backend.side
        self._own_side: object = backend.own_side
        self._perform: Any = backend.perform
        self._start_cold: Any = partial(ColdRead.start_short, engine=self._engine)
        self._start_read: Any = partial(WidenedRead.start_short, engine=self._engine)
        self._start_write: Any = partial(Overwrite.start_short, engine=self._engine)
        self._checkpoint_if_cancelled: Any = backend.checkpoint_if_cancelled
        self._cancel_shielded_checkpoint: Any = backend.cancel_shielded_checkpoint

    def _claim(self) -> None:
        """Take over the descriptor, now that nothing else can fail."""
        # In one step: the engine does not close the descriptor any more, and `__del__` does.
        self._closed, self._descriptor.unclaimed = False, False

    # ---- positional

    async def pread(self, size: int, offset: int, *, flags: int = NO_FLAGS) -> bytes:
        """Return `size` bytes from `offset`, fewer only at the end of the file. preadv2(2).

        size, offset: bytes, 0 to 2**63 - 1. flags: `RWF`. Any number of tasks may call this at once; the cursor does not move.
        Cancelled before the read has started: no effect. Later: the result is returned, and Cancelled is raised at the next checkpoint.
        OSError with errno and file name; ValueError for a closed file or a negative number; UnsupportedOperation if not open for reading.
        """
        core, descriptor = self._core, self._descriptor
        if flags is NO_FLAGS and type(size) is int is type(offset) and 0 < size < _PLAIN and 0 <= offset < _PLAIN:
            inline = self._inline
            # Thread and side are enough for a hit: it uses nothing of the run, and the checkpoints check the rest.
            if (
                inline is not None
                and size <= INLINE_LIMIT
                and get_ident() == core.thread
                and self._side() == self._own_side
                and (descriptor.read_device.nowait or descriptor.residency)
            ):
                if not inline.guarded or not inline.should_skip(descriptor):
                    await self._checkpoint_if_cancelled()
                    data: bytes | None = inline.read_unguarded(descriptor, size, offset)
                    if data is not None:
                        await self._cancel_shielded_checkpoint()
                        return data
                if size > 1 and descriptor.read_device.nowait and not self._abandon:
                    engine = core.check()
                    cold = ColdRead(descriptor, size, offset)
                    await self._perform(self._start_cold, cold, engine.cancel)
                    return cold.take()
                return await core.pread_by_worker(descriptor, size, offset, 0, self._abandon)
            if self._short_way and size <= _SHORT_WAY_LIMIT:
                engine = core.check()
                read = WidenedRead(descriptor, size, offset, 0)
                await self._perform(self._start_read, read, engine.cancel)
                if read.result < 0:
                    raise read.error()
                return read.data
            flags = 0
        else:
            size, offset, flags = checked_size(size), checked_offset(offset), checked_flags(flags)
        self._check_readable()
        return await core.pread(descriptor, size, offset, flags, self._abandon)

    async def preadinto(self, buffer: WriteableBuffer, offset: int, *, flags: int = NO_FLAGS) -> int:
        """Fill a writable buffer from `offset`, and return the number of bytes: fewer than it holds only at the end of the file.

        buffer: bytes-like, contiguous, writable. Do not use it until the call has ended; with ``abandon_on_cancel``, not even after a
        cancelled one. Otherwise as `pread`. preadv2(2).
        """
        self._check_readable()
        return await self._core.preadinto(self._descriptor, buffer, checked_offset(offset), checked_flags(flags), self._abandon)

    async def preadv(self, buffers: Sequence[WriteableBuffer], offset: int, *, flags: int = NO_FLAGS) -> int:
        """Fill several writable buffers in order, from `offset`, and return the number of bytes. Otherwise as `preadinto`. preadv2(2)."""
        self._check_readable()
        return await self._core.preadv(self._descriptor, buffers, checked_offset(offset), checked_flags(flags), self._abandon)

    async def pwrite(self, data: ReadableBuffer, offset: int, *, flags: int = NO_FLAGS) -> int:
        """Write all of `data` at `offset`, and return its length in bytes. pwritev2(2).

        data: bytes-like, contiguous. Do not change it until the call has ended. offset: bytes, 0 to 2**63 - 1. Linux ignores it and appends
        if the file was opened for appending. flags: `RWF`. Any number of tasks may call this at once; the cursor does not move.
        Cancelled before the write has started: no effect. Later: the result is returned, and Cancelled is raised at the next checkpoint.
        OSError: ``characters_written`` is the number of bytes that were written. UnsupportedOperation if not open for writing.
        """
        plain: Any = data
        kind = type(plain)
        if (
            self._short_write
            and flags is NO_FLAGS
            and type(offset) is int
            and 0 <= offset < _PLAIN
            and (kind is bytes or kind is bytearray or (kind is mmap and is_anonymous(plain)))
        ):
            size, unit = len(plain), self._descriptor.alignment.offset
            if 0 < size <= LARGEST_OVERWRITE and not (offset % unit or size % unit):
                engine = self._core.check()
                write = Overwrite(self._descriptor, plain, size, offset)
                try:
                    await self._perform(self._start_write, write, engine.cancel)
                except BaseException:
                    if write.state is State.CREATED:  # it was not submitted: the traceback must not hold the caller's memory
                        write.release_memory(engine)
                    raise
                if write.result < 0:
                    raise write.error()
                return write.result
        self._check_writable()
        return await self._core.pwrite(self._descriptor, data, checked_offset(offset), checked_flags(flags))

    async def pwritev(self, buffers: Sequence[ReadableBuffer], offset: int, *, flags: int = NO_FLAGS) -> int:
        """Write several buffers one after the other at `offset`, and return the number of bytes. Otherwise as `pwrite`."""
        self._check_writable()
        return await self._core.pwritev(self._descriptor, buffers, checked_offset(offset), checked_flags(flags))

    async def read_ranges(self, ranges: Iterable[tuple[int, int]], *, max_gap: int = 0) -> list[bytes]:
        """Return the bytes of many ranges, in their order. All of them are in flight at once. preadv2(2).

        ranges: pairs (offset, size) in bytes. Each result has `size` bytes, fewer only at the end of the file. max_gap: bytes. Ranges that
        are at most so far apart share a request of up to 1 MiB, and the bytes between them are read too.
        Cancelled: reads that have not started never run, and those in flight are waited for. OSError names the offset that failed.
        """
        self._check_readable()
        return await read_ranges(self._core, self._descriptor, ranges, max_gap, self._abandon)

    async def read_blocks(self, offsets: Sequence[int] | ReadableBuffer, size: int, *, into: Any = None) -> Any:
        """Return blocks of `size` bytes at `offsets`, side by side in one buffer. All of them are in flight at once. preadv2(2).

        offsets: bytes; a sequence of ints, or any one-dimensional buffer of integers (``array``, NumPy). One of int64 is not copied.
        into: a writable buffer of exactly ``len(offsets) * size`` bytes, which is filled and returned; default: a new bytearray.
        Cancelled: as `read_ranges`. EOFError names the offset of a block that is not wholly in the file. OSError names the offset that
        failed. After an error, or Cancelled, the contents of `into` are undefined.
        """
        self._check_readable()
        return await read_blocks(self._core, self._descriptor, offsets, size, into, self._abandon)

    async def write_ranges(self, ranges: Iterable[tuple[int, ReadableBuffer]]) -> int:
        """Write many pairs (offset, data), and return the number of bytes. All of them are in flight at once. pwritev2(2).

        offset: bytes. If ranges overlap, any of them may be the one that remains. Do not change the data until the call has ended.
        Cancelled before any of them has started: no effect. Later: all are written, and Cancelled is raised at the next checkpoint.
        OSError names the offset that failed; ``characters_written`` is the number of bytes that were written, not necessarily the first.
        """
        self._check_writable()
        return await write_ranges(self._core, self._descriptor, ranges)

    def chunks(self, size: int = 1 << 20, *, start: int = 0, stop: int | None = None, depth: int = 4) -> Chunks:
        """Return an iterator over the bytes from `start` to `stop`, in order: ``async for chunk in file.chunks():``.

        start, stop: bytes; default: the whole file. size: bytes of each chunk, at least 1; the last may have fewer. depth: how many reads
        are in flight ahead of the loop, at least 1. They use at most ``depth * size`` bytes of memory.
        Cancelled during a step: the next step returns the chunk that this one waited for. Leaving the loop early stops reads that have not
        started. ValueError for a number out of range. See `Chunks`.
        """
        self._check_readable()
        chunks = Chunks(self._core, self._descriptor, self._check_open, size, start, stop, depth)
        if self._iterators is not None:
            self._iterators.add(chunks)
        return chunks

    def writer(self, offset: int = 0, *, size: int = 1 << 20, depth: int = 4) -> Writer:
        """Return a writer that writes behind, from `offset` on: ``async with file.writer() as writer: await writer.write(data)``.

        offset: bytes. size: bytes of each block that is written, at least 1. depth: how many blocks are in flight, at least 1.
        The error of a block is raised by the next ``write``, or on leaving, which waits for all. ValueError for a number out of range. See
        `Writer` for what the file has after a body that raises.
        """
        self._check_writable()
        return Writer(self._core, self._descriptor, self._check_open, offset, size, depth)

    async def fsync(self) -> None:
        """Make durable every write that was started before with this object. Calls at the same time share one fsync(2).

        Writes of the file through others (another object, another process) are made durable if they have ended.

        OSError: what was written before may be lost. Later calls raise it too, until it was written again or the file is opened anew.
        Cancelled: as every call; but if others still wait for the same sync, it runs on for them, and Cancelled is raised at once.
        """
        self._check_open()
        await self._core.submit_and_wait(Sync(self._descriptor, data_only=False), abandon=self._abandon)

    async def fdatasync(self) -> None:
        """Do what `fsync` does, without metadata that reading does not need. fdatasync(2)."""
        self._check_open()
        await self._core.submit_and_wait(Sync(self._descriptor, data_only=True), abandon=self._abandon)

    async def fallocate(self, offset: int, size: int) -> None:
        """Allocate `size` bytes of disk at `offset`; the file grows if they reach beyond its end. fallocate(2), mode 0.

        size, offset: bytes. OSError: ENOSPC; EOPNOTSUPP if the filesystem cannot. UnsupportedOperation if not open for writing.
        """
        self._check_writable()
        await self._core.submit_and_wait(Allocate(self._descriptor, checked_offset(offset), checked_size(size)))

    async def stat(self) -> os.stat_result:
        """Return what ``os.fstat`` returns. fstat(2)."""
        self._check_open()
        core = self._core
        if core.names.on:
            core.check()
            backend = core.backend
            assert backend is not None
            await backend.checkpoint_if_cancelled()
            if not self._descriptor.order.closing and core.names.stat_open(self._descriptor.fd):
                status = core.names.status()
                await backend.cancel_shielded_checkpoint()
                return status
        request = Stat(self._descriptor)
        await core.submit_and_wait(request, abandon=self._abandon)
        return request.status()

    async def size(self) -> int:
        """Return the size in bytes, as the kernel has it now; of a block device its capacity. fstat(2), lseek(2)."""
        if stat.S_ISBLK(self._descriptor.mode):
            return await self._lseek(0, os.SEEK_END)
        return (await self.stat()).st_size

    async def _lseek(self, offset: int, whence: int) -> int:
        self._check_open()
        return await self._core.submit_and_wait(Seek(self._descriptor, offset, whence), abandon=self._abandon)

    # ---- its end

    async def aclose(self) -> None:
        """Wait for the file's own requests, and close it, whatever the caller's scope says. close(2).

        New calls raise ValueError from now on. A second call is a checkpoint and no more. Cancelled: raised when the file is closed. With
        ``abandon_on_cancel``, it does not wait for requests that were abandoned, nor, cancelled, for any, not even for close(2): the engine
        closes the descriptor when they have completed.
        OSError: the descriptor is closed all the same. It is raised before Cancelled, which stays due.
        """
        await self._close()
        await raise_if_cancelled()

    async def _close(self) -> None:
        """Do what `aclose` does, and do not raise Cancelled."""
        core = self._core
        if core.state == "forked":
            raise core.refusal()
        if self._closed:
            await shielded_checkpoint()
            return
        await end_views(self)  # first: the context may be closed while this waits
        if self._closed:  # by another task, meanwhile
            return
        if core.state == "closing":
            await core.close()
            await end_views(self)  # those that were made while this waited
        if core.state == "closed":
            # Another task may have closed the file while this one waited.
            if not self._closed:
                self._mark_closed()
                self._engine.drops.add(self._descriptor, self._close_request)
            await shielded_checkpoint()
            return
        for chunks in list(self._iterators or ()):
            chunks._leave()
        await core.submit_close(self._close_request, self._mark_closed, abandon=self._abandon)

    def _mark_closed(self) -> None:
        self._closed = True
        self._inline = None
        self._short_way = self._short_write = False

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            # The exception of the body leaves as it is, also in a cancelled scope.
            with Deferred(self._backend, value):
                await (self.aclose() if value is None else self._close())
        except BaseException:
            if not self._closed and self._core.state != "forked":  # an exception came before the close was submitted (no memory, say)
                self._mark_closed()
                self._engine.drops.add(self._descriptor, self._close_request)
            raise

    def __del__(self) -> None:
        if getattr(self, "_closed", True):
            return
        descriptor = self._descriptor
        if descriptor.borrowed and descriptor.buffered_fd < 0:
            return
        self._closed = True
        if self._core.state == "forked":
            # Only this process's copies: the parent's descriptors stay open.
            descriptor.close_now()
            return
        # Before the warning, because a warning filter may raise it as an exception.
        self._engine.drops.add(descriptor, self._close_request)
        if descriptor.borrowed:
            return
        warnings.warn(f"unclosed file {self._shown()}", ResourceWarning, stacklevel=2, source=self)
