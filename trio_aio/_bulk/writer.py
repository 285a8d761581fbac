"""`Writer`: writes behind the producer. Memory is bounded by depth times size."""

from __future__ import annotations

import errno
import mmap
from collections import deque
from typing import TYPE_CHECKING, Any

from trio_aio._arguments import LARGEST_OFFSET, checked_offset, checked_size
from trio_aio._backends import Deferred
from trio_aio._bulk.waiting import checked_depth, wait_for, wait_shielded
from trio_aio._context.copying import PIECE
from trio_aio._context.lock import FairLock
from trio_aio._errors import os_error
from trio_aio._memory.exports import export_buffer, private_memory
from trio_aio._requests.direct import BufferedAppend, BufferedWrite, is_block_write
from trio_aio._requests.transfer import Append, Write

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from _typeshed import ReadableBuffer

    from trio_aio._backends import Backend
    from trio_aio._context.context import AIOContext
    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._requests.base import Request

__all__ = ("Writer",)


class PendingWrite:
    """Memory that is filled, written, and filled again."""

    def __init__(self, size: int) -> None:
        # Page-aligned, for direct files; a device may still read it when a child of fork has gone its way.
        self.memory: mmap.mmap = private_memory(size)
        self.memory.madvise(mmap.MADV_DONTFORK)
        self.export: Any = export_buffer(self.memory, writable=False)
        self.offset: int = 0
        self.request: Write | None = None


class Writer:
    """Writes behind the one who produces; made by `AsyncFile.writer`, for ``async with``.

    What `write` is given is gathered into blocks of `size` bytes, and up to `depth` of them are in flight. When the body has ended the rest
    is written and all is waited for. An error surfaces at the next `write`, or on leaving. When the body raises (Cancelled
    too), blocks that are full are written and waited for, and what has been gathered behind them is dropped: the file then holds a
    contiguous beginning of what was given, unless a write failed.

    Leaving waits for a `write` that another task has begun. ValueError if the file was closed before all was handed over.
    """

    def __init__(self, context: AIOContext, descriptor: Descriptor, check: Callable[[], None], offset: int, size: int, depth: int) -> None:
        self._context: AIOContext = context
        self._descriptor: Descriptor = descriptor
        self._check: Callable[[], None] = check
        self._offset: int = checked_offset(offset)  # of the block that is being filled
        self._size: int = checked_size(size)
        if not self._size:
            raise ValueError("size must be at least 1")
        # Appends must come one after the other.
        self._depth: int = 1 if descriptor.append else checked_depth(depth)
        self._filled: int = 0
        self._blocks: deque[PendingWrite] = deque()  # those that were handed over, the oldest first
        self._block: PendingWrite | None = None  # that is being filled
        self._error: OSError | None = None
        self._open: bool = False
        self._lock: FairLock | None = None  # held by a task in `write`

    async def __aenter__(self) -> Writer:
        if self._open:
            raise RuntimeError("this writer is already open: leave its `async with` first")
        backend = self._context._backend
        self._context._check()
        assert backend is not None
        self._lock = FairLock(backend, lambda: None)
        self._open = True
        return self

    async def write(self, data: ReadableBuffer) -> int:
        """Take all of `data`, and give its length in bytes; waits while `depth` blocks are in flight.

        OSError of a block that was written before: the same one from then on. Cancelled: none of `data` was taken. Once some of it has
        been, the call goes on to its end.
        """
        export = export_buffer(data, writable=False)
        lock = self._lock
        if not self._open or lock is None:
            raise RuntimeError("a writer is used in `async with`")
        backend = self._context._backend
        self._context._check()
        if not lock.acquire():
            raise RuntimeError("another task is writing with this writer")
        assert backend is not None
        deferred = Deferred(backend)
        try:
            await backend.checkpoint_if_cancelled()
            self._check()
            if self._block is None and export.length:
                await self._next_block(wait_for)
            with memoryview(data).cast("B") as view:
                taken = copied = 0
                while taken < export.length:
                    if self._block is None:
                        with deferred:
                            await self._next_block(wait_shielded)
                        if self._block is None:  # the wait is over, and it was natively cancelled
                            continue
                    block = self._block
                    assert block is not None
                    count = min(self._goal() - self._filled, export.length - taken, PIECE)
                    block.memory[self._filled : self._filled + count] = view[taken : taken + count]
                    self._filled += count
                    taken += count
                    copied += count
                    if self._filled == self._goal():
                        self._hand_over()
                    if copied >= PIECE and taken < export.length:
                        copied = 0
                        with deferred:
                            await backend.cancel_shielded_checkpoint()
            self._raise_error()
            deferred.deliver()
            await backend.cancel_shielded_checkpoint()
        finally:
            lock.release()
        return export.length

    def _goal(self) -> int:
        """Give how many bytes fill the block: so many that it ends where a direct file's blocks do."""
        unit = self._descriptor.alignment.offset
        aligned = (self._offset + self._size) // unit * unit - self._offset
        return aligned if aligned > 0 else self._size

    async def _next_block(self, wait: Callable[[Backend, Request], Awaitable[None]]) -> None:
        if len(self._blocks) >= self._depth:
            oldest = self._blocks[0]
            backend = self._context._backend
            assert backend is not None
            assert oldest.request is not None
            if not oldest.request.finished:
                await wait(backend, oldest.request)
            self._note(self._blocks.popleft())
            self._raise_error()
            self._block = oldest
        else:
            self._block = PendingWrite(self._size)
        self._filled = 0

    def _hand_over(self) -> None:
        block, size = self._block, self._filled
        assert block is not None
        descriptor, offset = self._descriptor, self._offset
        address = block.export.address
        if offset > LARGEST_OFFSET and not descriptor.append:
            self._block = None
            if self._error is None:
                self._error = os_error(errno.EFBIG, descriptor.name, f"writing at offset {offset}")
                self._error.characters_written = 0  # type: ignore[attr-defined]
            return
        request: Write
        if descriptor.append:
            request = (BufferedAppend if descriptor.o_direct else Append)(descriptor, address, size, block)
        else:
            kind = Write if is_block_write(descriptor, offset, size, 0) else BufferedWrite
            request = kind(descriptor, address, size, offset, 0, block)
        self._context._check().submit(request)  # RuntimeError and ValueError: it is as if we had not been here
        block.request, block.offset = request, offset
        self._blocks.append(block)
        self._block = None
        self._offset += size

    def _note(self, block: PendingWrite) -> None:
        request = block.request
        assert request is not None
        if request.result < 0 and self._error is None:
            self._error = os_error(request.result, self._descriptor.name, f"writing at offset {block.offset}")
            self._error.characters_written = request.transferred  # type: ignore[attr-defined]

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        backend, lock = self._context._backend, self._lock
        if backend is None:
            raise self._context._refusal()
        assert lock is not None
        deferred = Deferred(backend)
        while not lock.acquire():  # another task is writing
            with deferred, backend.shielded():
                await lock.wait()
                break
        self._open = False
        try:
            if kind is None and self._filled and self._block is not None and self._error is None:
                self._hand_over()
        finally:
            for block in self._blocks:
                assert block.request is not None
                with deferred:
                    await wait_shielded(backend, block.request)
                self._note(block)
            self._blocks.clear()
            self._block = None
            lock.release()
        if self._error is not None and value is not self._error:
            if value is None:
                raise self._error
            value.__context__ = value.__context__ or self._error
        deferred.deliver()
        await backend.cancel_shielded_checkpoint()
