"""`PositionalFile`: an open file, its positional calls and its end. What has a cursor is built on it (`AsyncFile`).

A call is a request to the file's context, and waits for it.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any

from trio_aio._arguments import NO_FLAGS, checked_flags, checked_offset, checked_size
from trio_aio._backends import async_resource
from trio_aio._bulk.chunks import Chunks
from trio_aio._bulk.many import read_blocks, read_ranges, write_ranges
from trio_aio._bulk.writer import Writer
from trio_aio._lanes.inline import INLINE_LIMIT
from trio_aio._memory.slabs import LARGEST_SLAB
from trio_aio._requests.direct import WidenedRead
from trio_aio._requests.metadata import Allocate, Seek, Stat
from trio_aio._requests.opening import Close
from trio_aio._requests.sync import Sync

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType
    from typing import NoReturn, SupportsIndex

    from _typeshed import ReadableBuffer, WriteableBuffer
    from typing_extensions import Self

    from trio_aio._context.context import AIOContext
    from trio_aio._engine.descriptor import Alignment, Descriptor
    from trio_aio._engine.engine import Engine

__all__ = ("PositionalFile",)


_PLAIN = 1 << 62  # ints below it need no closer look
_SHORT = LARGEST_SLAB // 2  # bytes: so much fits a slab, widened to whole blocks


@async_resource
class PositionalFile:
    """An open file without a cursor.

    Every coroutine is a checkpoint. Where nothing else is said about cancellation: a call whose request has not begun never runs and
    raises Cancelled at once; one that has begun is waited for and gives its result, and the cancellation is delivered at the next
    checkpoint. So **a call that raises Cancelled had no effect**. With ``abandon_on_cancel`` a read does not wait.

    Errors: OSError with the kernel's errno and the file's name; ValueError for a closed file, a negative offset or size;
    ``io.UnsupportedOperation`` where the mode does not allow the call; TypeError; RuntimeError in another run, thread or process.
    """

    def __init__(
        self,
        context: AIOContext,
        descriptor: Descriptor,
        mode: str,
        *,
        readable: bool,
        writable: bool,
        abandon_on_cancel: bool,
    ) -> None:
        backend = context._backend
        assert backend is not None
        self._context: AIOContext = context
        self._descriptor: Descriptor = descriptor
        self._engine: Engine = context._check()
        self._mode: str = mode
        self._readable: bool = readable
        self._writable: bool = writable
        self._abandon: bool = abandon_on_cancel
        self._closed: bool
        if descriptor.o_direct and writable:
            descriptor.keep_buffered_fd()
        self._close_request: Close = Close(descriptor)  # made now, so that a finalizer needs no memory
        self._closed, descriptor.unclaimed = False, False  # at once: from here on `__del__` closes it
        # What the quick way of pread needs, at hand: None where there is no quick way (direct, write-only, closed).
        self._inline: Any = context._inline if readable and not descriptor.direct else None
        self._short_way: bool = readable and descriptor.direct and not abandon_on_cancel  # open, and direct reads need no closer look
        self._perform: Any = backend.perform
        self._start_read: Any = partial(WidenedRead.start_short, engine=self._engine)
        self._checkpoint_if_cancelled: Any = backend.checkpoint_if_cancelled
        self._cancel_shielded_checkpoint: Any = backend.cancel_shielded_checkpoint

    # ---- what it is

    @property
    def name(self) -> Any:
        """The path as it was given, or the descriptor."""
        return self._descriptor.name

    @property
    def mode(self) -> str:
        """The mode as ``open()`` shows it: "rb", "rb+", "wb", "xb", "ab" and so on."""
        return self._mode

    @property
    def closed(self) -> bool:
        """Whether `aclose` was called."""
        return self._closed

    @property
    def context(self) -> AIOContext:
        """The context that it belongs to."""
        return self._context

    @property
    def direct(self) -> bool:
        """Whether the descriptor has O_DIRECT."""
        return self._descriptor.direct

    @property
    def alignment(self) -> Alignment:
        """What direct I/O on it asks for: `offset` (and length) and `memory`, bytes; 1 and 1 if it is buffered."""
        return self._descriptor.alignment

    def fileno(self) -> int:
        """Give the descriptor. It belongs to the file: do not close it."""
        self._check_open()
        return self._descriptor.fd

    def readable(self) -> bool:
        """Whether it was opened for reading."""
        self._check_open()
        return self._readable

    def writable(self) -> bool:
        """Whether it was opened for writing."""
        self._check_open()
        return self._writable

    def seekable(self) -> bool:
        """Give True: regular files and block devices are."""
        self._check_open()
        return True

    def isatty(self) -> bool:
        """Give False."""
        self._check_open()
        return False

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return f"<trio_aio.{type(self).__name__} name={self.name!r} mode={self._mode!r}{state}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(f"cannot copy or pickle {type(self).__name__!r} object: it owns a descriptor")

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("I/O operation on closed file")

    def _check_readable(self) -> None:
        self._check_open()
        if not self._readable:
            raise io.UnsupportedOperation(f"the file is not open for reading: {self.name!r}, mode {self._mode!r}")

    def _check_writable(self) -> None:
        self._check_open()
        if not self._writable:
            raise io.UnsupportedOperation(f"the file is not open for writing: {self.name!r}, mode {self._mode!r}")

    # ---- positional

    async def pread(self, size: int, offset: int, *, flags: int = NO_FLAGS) -> bytes:
        """Return `size` bytes from `offset`, fewer only at the end of the file. preadv2(2).

        size, offset: bytes, 0 to 2**63 - 1. flags: `RWF`. Any number of tasks may call this at once; the cursor does not move.
        Cancelled before the read has started: no effect. Later: the result is returned, and Cancelled is raised at the next checkpoint.
        OSError with errno and file name; ValueError for a closed file or a negative number; UnsupportedOperation if not open for reading.
        """
        context, descriptor = self._context, self._descriptor
        if flags is NO_FLAGS and type(size) is int is type(offset) and 0 < size < _PLAIN and 0 <= offset < _PLAIN:
            inline = self._inline
            # The thread is enough of a check here: a hit has nothing to do with the run, and a miss is checked again.
            if inline is not None and size <= INLINE_LIMIT and get_ident() == context._thread and descriptor.read_device.nowait:
                await self._checkpoint_if_cancelled()
                data: bytes | None = inline.read(descriptor, size, offset)
                if data is not None:
                    await self._cancel_shielded_checkpoint()
                    return data
                return await context._pread_by_worker(descriptor, size, offset, 0, self._abandon)
            if self._short_way and size <= _SHORT:
                engine = context._check()
                read = WidenedRead(descriptor, size, offset, 0)
                await self._perform(self._start_read, read, engine.cancel)
                if read.result < 0:
                    raise read.error()
                return read.data
            flags = 0
        else:
            size, offset, flags = checked_size(size), checked_offset(offset), checked_flags(flags)
        self._check_readable()
        return await context._pread(descriptor, size, offset, flags, self._abandon)

    async def preadinto(self, buffer: WriteableBuffer, offset: int, *, flags: int = NO_FLAGS) -> int:
        """Read at `offset` into a writable buffer as much as it holds, fewer bytes only at the end of the file; give their number."""
        self._check_readable()
        return await self._context._preadinto(self._descriptor, buffer, checked_offset(offset), checked_flags(flags), self._abandon)

    async def preadv(self, buffers: Sequence[WriteableBuffer], offset: int, *, flags: int = NO_FLAGS) -> int:
        """Read at `offset` into buffers, filled in order, and give the number of bytes in all; fewer only at the end of the file."""
        self._check_readable()
        return await self._context._preadv(self._descriptor, buffers, checked_offset(offset), checked_flags(flags), self._abandon)

    async def pwrite(self, data: ReadableBuffer, offset: int, *, flags: int = NO_FLAGS) -> int:
        """Write all of `data` at `offset` and give its length in bytes. pwritev2(2); `flags`: `RWF`.

        On a file opened for appending Linux appends, whatever `offset` says. OSError: ``characters_written`` says how much was written.
        """
        self._check_writable()
        return await self._context._pwrite(self._descriptor, data, checked_offset(offset), checked_flags(flags))

    async def pwritev(self, buffers: Sequence[ReadableBuffer], offset: int, *, flags: int = NO_FLAGS) -> int:
        """Write buffers one behind the other at `offset`, and give the number of bytes in all; else as `pwrite`."""
        self._check_writable()
        return await self._context._pwritev(self._descriptor, buffers, checked_offset(offset), checked_flags(flags))

    async def read_ranges(self, ranges: Iterable[tuple[int, int]], *, max_gap: int = 0) -> list[bytes]:
        """Read many ranges, all in flight at once; give their bytes in the order of `ranges`.

        `ranges`: pairs (offset, size) in bytes; each gives `size` bytes, fewer only at the end of the file. Ranges that are no further
        apart than `max_gap` bytes share a request (up to 1 MiB), and the bytes between them are read too. OSError names the offset.
        Cancelled: what has not begun is given up, what is in flight is waited for.
        """
        self._check_readable()
        return await read_ranges(self._context, self._descriptor, ranges, max_gap, self._abandon)

    async def read_blocks(self, offsets: Sequence[int] | ReadableBuffer, size: int, *, into: Any = None) -> Any:
        """Read blocks of `size` bytes at `offsets`, all in flight at once, and give them side by side in one buffer.

        `offsets`: a sequence of ints or any one-dimensional buffer of integers (``array``, NumPy); int64 is taken as it is. `into`: a
        writable buffer of exactly ``len(offsets) * size`` bytes, which is also what is returned; if not given, a new bytearray.
        EOFError names the offset of a block that is not wholly in the file; OSError that of one that failed; what `into` holds is
        then undefined. Cancelled as `read_ranges`.
        """
        self._check_readable()
        return await read_blocks(self._context, self._descriptor, offsets, size, into, self._abandon)

    async def write_ranges(self, ranges: Iterable[tuple[int, ReadableBuffer]]) -> int:
        """Write pairs (offset, data), all in flight at once; give the number of bytes in all.

        Where ranges overlap, which of them wins is not said. OSError names the offset that failed; ``characters_written`` says how many
        bytes were written, which need not be the first. Cancelled: if none has begun it never runs; else all are written.
        """
        self._check_writable()
        return await write_ranges(self._context, self._descriptor, ranges)

    def chunks(self, size: int = 1 << 20, *, start: int = 0, stop: int | None = None, depth: int = 4) -> Chunks:
        """Give the bytes from `start` to `stop` (default: the end of the file) in order: ``async for chunk in file.chunks():``.

        Each chunk has `size` bytes, the last perhaps fewer. `depth` of them are read ahead, in memory of at most ``depth * size`` bytes.
        Cancelled while it waits: the next step gives the chunk that this one waited for. Leaving the loop early stops what has not begun.
        """
        self._check_readable()
        return Chunks(self._context, self._descriptor, self._check_open, size, start, stop, depth)

    def writer(self, offset: int = 0, *, size: int = 1 << 20, depth: int = 4) -> Writer:
        """Give a writer that writes behind, from `offset` on: ``async with file.writer() as writer: await writer.write(data)``.

        What it is given is gathered into blocks of `size` bytes, `depth` of which are in flight. An error of one surfaces at the next
        ``write`` or on leaving, which waits for all. See `Writer` for what a body that raises leaves behind.
        """
        self._check_writable()
        return Writer(self._context, self._descriptor, self._check_open, offset, size, depth)

    async def fsync(self) -> None:
        """Make the file durable: every write of this file that was started before. fsync(2)."""
        await self._sync(data_only=False)

    async def fdatasync(self) -> None:
        """Make the file's data durable: every write of this file that was started before. fdatasync(2)."""
        await self._sync(data_only=True)

    async def _sync(self, *, data_only: bool) -> None:
        self._check_open()
        await self._context._submit_and_wait(Sync(self._descriptor, data_only=data_only))

    async def fallocate(self, offset: int, size: int) -> None:
        """Allocate `size` bytes of disk at `offset`; the file grows if they go beyond its end. fallocate(2), mode 0.

        OSError: ENOSPC; EOPNOTSUPP where the filesystem has no such thing.
        """
        self._check_writable()
        await self._context._submit_and_wait(Allocate(self._descriptor, checked_offset(offset), checked_size(size)))

    async def stat(self) -> os.stat_result:
        """Give what ``os.fstat`` gives."""
        self._check_open()
        request = Stat(self._descriptor)
        await self._context._submit_and_wait(request)
        return request.status()

    async def size(self) -> int:
        """Give the size in bytes, as the kernel has it now. fstat(2); of a block device its capacity, lseek(2)."""
        if stat.S_ISBLK(self._descriptor.mode):
            return await self._lseek(0, os.SEEK_END)
        return (await self.stat()).st_size

    async def _lseek(self, offset: int, whence: int) -> int:
        self._check_open()
        return await self._context._submit_and_wait(Seek(self._descriptor, offset, whence))

    # ---- its end

    async def aclose(self) -> None:
        """Wait for the file's own requests and close it. Closes in a cancelled scope too.

        Cancellation does not stop it; with ``abandon_on_cancel`` it ends the wait for a request that hangs, and the descriptor is closed
        when that is over. A second call does nothing. OSError as close(2): the descriptor is gone all the same.
        """
        context = self._context
        if context._state == "forked":
            raise context._refusal()
        if self._closed:
            await self._cancel_shielded_checkpoint()
            return
        if context._state == "closing":
            await context._close()
        if context._state == "closed":
            if not self._closed:  # another task may have been quicker
                self._mark_closed()
                self._engine.drops.add(self._descriptor, self._close_request)
            await self._cancel_shielded_checkpoint()
            return
        await context._submit_close(self._close_request, self._mark_closed, abandon=self._abandon)

    def _mark_closed(self) -> None:
        self._closed = True
        self._inline = None
        self._short_way = False

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if getattr(self, "_closed", True):
            return
        descriptor = self._descriptor
        if descriptor.borrowed and not descriptor.buffered_fd:
            return
        self._closed = True
        if self._context._state == "forked":
            descriptor.close_now()  # this process's copies
            return
        self._engine.drops.add(descriptor, self._close_request)  # first: the warning may be made an error
        if descriptor.borrowed:
            return
        warnings.warn(f"unclosed file {self!r}", ResourceWarning, stacklevel=2, source=self)
