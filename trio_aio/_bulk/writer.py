"""`Writer`: writes behind the task that produces the data. Made by `PositionalFile.writer`.

A direct write takes as long as the disk does, and a disk is fast only if several writes are in flight. So `write` copies its data to a
block of memory, and returns. A full block is written while the next one is filled, and up to `depth` of them are in flight at once. Memory
is at most ``depth * size`` bytes.

O_DIRECT cannot write part of a block of the device. So each block of memory ends where one of the device does, wherever the first one
starts. Two appends to one file have no order unless one waits for the other, so a file opened for appending has one block in flight.

A write may fail long after `write` has accepted its data. The first error is kept, and raised by the next `write` or on leaving.
"""

from __future__ import annotations

import errno
from collections import deque
from typing import TYPE_CHECKING

from trio_aio._arguments import LARGEST_OFFSET, checked_offset, checked_size
from trio_aio._backends import Deferred, PutOff
from trio_aio._bulk.waiting import checked_depth, wait_for, wait_shielded
from trio_aio._context.copying import COPY_STEP
from trio_aio._context.lock import FairLock
from trio_aio._engine.callers_memory import inspect
from trio_aio._engine.mending import cause_of
from trio_aio._errors import NotCopied, os_error
from trio_aio._lanes.protocols import State
from trio_aio._memory.exports import export_buffer, hold, private_memory, wipe_on_fork
from trio_aio._requests.direct import BufferedAppend, BufferedWrite, is_block_write
from trio_aio._requests.gather import gather
from trio_aio._requests.transfer import Append, Write

if TYPE_CHECKING:
    import mmap
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from _typeshed import ReadableBuffer

    from trio_aio._backends import Backend
    from trio_aio._context.core import Core
    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._memory.exports import Export
    from trio_aio._requests.base import Request

__all__ = ("Writer",)


class PendingWrite:
    """Memory that is filled, written, and filled again."""

    def __init__(self, size: int) -> None:
        # Page-aligned, as direct files require.
        self.memory: mmap.mmap = private_memory(size)
        wipe_on_fork(self.memory)
        self.export: Export = hold(self.memory)
        self.offset: int = 0
        self.request: Write | None = None


def _with_count(error: BaseException, taken: int) -> BaseException:
    error.characters_written = taken  # type: ignore[attr-defined]
    return error


class Writer(NotCopied):
    """Writes data in order, behind the task that produces it; made by `AsyncFile.writer`, for ``async with``.

    `write` gathers its data into blocks of `size` bytes, and up to `depth` of them are in flight. Leaving the body writes the last block
    and waits for all of them. The error of a block is raised by the next `write`, or on leaving.

    If the body raises, Cancelled too, full blocks are written and waited for, and the data after them is dropped. The file then has a
    contiguous first part of the data, unless a write failed.

    Left in a cancelled scope by a body that did not raise: all is written, and then Cancelled is raised.

    Leaving also waits for a `write` that another task has started. ValueError if the file was closed before all blocks were submitted.
    """

    def __init__(self, core: Core, descriptor: Descriptor, check: Callable[[], None], offset: int, size: int, depth: int) -> None:
        self._core: Core = core
        self._descriptor: Descriptor = descriptor
        # Raises ValueError if the file is closed.
        self._check: Callable[[], None] = check
        # Offset in the file of the block that is being filled, bytes.
        self._offset: int = checked_offset(offset)
        self._size: int = checked_size(size)
        if not self._size:
            raise ValueError("size must be at least 1, not 0")
        # Appends must complete one after the other.
        self._depth: int = 1 if descriptor.append else checked_depth(depth)
        # Bytes in the block that is being filled.
        self._filled: int = 0
        # The blocks that were submitted, the oldest first.
        self._blocks: deque[PendingWrite] = deque()
        # The block that is being filled.
        self._block: PendingWrite | None = None
        self._error: BaseException | None = None
        self._open: bool = False
        # Held by a task in `write`.
        self._lock: FairLock | None = None

    async def __aenter__(self) -> Writer:
        if self._open:
            raise RuntimeError("this writer is already open: leave its `async with` first")
        backend = self._core.backend
        self._core.check()
        assert backend is not None
        self._lock = FairLock(backend, lambda: None)
        self._open = True
        return self

    async def write(self, data: ReadableBuffer) -> int:
        """Take all of `data`, and return its length in bytes. Waits while `depth` blocks are in flight.

        data: bytes-like, contiguous. It is copied, so it may be changed after the call. One task at a time: RuntimeError for another.
        Cancelled before any of `data` was taken: no effect. Later: all of it is taken, and Cancelled is raised at the next checkpoint.
        OSError: an earlier block failed. The same error is raised by each later call, and on leaving. EFAULT: `data` lies in a mapped file
        that was made shorter; ``characters_written`` is the number of bytes that were taken, and the writer can be used further.
        """
        return await self._take(export_buffer(data, writable=False))

    async def _take(self, export: Export) -> int:
        """Do what `write` does."""
        try:
            lock = self._lock
            if not self._open or lock is None:
                raise RuntimeError("this writer is not open: use it in `async with`")
            backend = self._core.backend
            self._core.check()
            if not lock.acquire():
                raise RuntimeError("another task is writing with this writer: write in one task, or put a lock around `write`")
            assert backend is not None
            try:
                with Deferred(backend) as put_off:
                    await backend.checkpoint_if_cancelled()
                    self._check()
                    if self._block is None and export.length:
                        await self._next_block(wait_for)
                    if export.mapped:
                        inspect(self._core.check(), (export,))
                    with export.view() as view:
                        taken = copied = 0
                        while taken < export.length:
                            if self._block is None:
                                with put_off:
                                    await self._next_block(wait_shielded)
                                # asyncio's own Task.cancel has ended the wait: it is put off, and we wait again.
                                if self._block is None:
                                    continue
                            block = self._block
                            assert block is not None
                            count = min(self._target_size() - self._filled, export.length - taken, COPY_STEP)
                            if export.mapped:
                                await self._gather(export.part(taken, count), block, taken, put_off)
                            else:
                                block.memory[self._filled : self._filled + count] = view[taken : taken + count]
                            self._filled += count
                            taken += count
                            copied += count
                            if self._filled == self._target_size():
                                backend.step(self._submit_block)
                            if copied >= COPY_STEP and taken < export.length:
                                copied = 0
                                with put_off:
                                    await backend.cancel_shielded_checkpoint()
                    self._raise_error()
                await backend.cancel_shielded_checkpoint()
            finally:
                lock.release()
            return export.length
        finally:
            # The frames in a traceback must not hold the caller's memory, and that of an error that is kept has this one.
            del export

    async def _gather(self, export: Export, block: PendingWrite, taken: int, put_off: PutOff) -> None:
        """Have a worker copy data, which may belong to a mapped file, to the block. OSError: EFAULT. Never Cancelled once data is taken."""
        core = self._core
        request = gather(self._descriptor, [export], block.export, self._filled)
        del export
        if not taken:
            await core.submit_and_wait(request)
            return
        backend, engine = core.backend, core.engine
        assert backend is not None
        assert engine is not None
        try:
            core.check().submit(request)
        except BaseException:
            if request.state is State.CREATED:
                request.release_memory(engine)  # it was not submitted
            raise
        while not request.finished:
            with put_off:
                await wait_shielded(backend, request)
        if request.result < 0:
            raise _with_count(request.error(), taken)

    def _target_size(self) -> int:
        """Return how many bytes fill the block: so many that it ends where a block of a direct file does."""
        unit = self._descriptor.alignment.offset
        aligned = (self._offset + self._size) // unit * unit - self._offset
        return aligned if aligned > 0 else self._size

    async def _next_block(self, wait: Callable[[Backend, Request], Awaitable[None]]) -> None:
        """Let `_block` be a new block, or the oldest one after its write has completed. OSError of that write."""
        if len(self._blocks) >= self._depth:
            oldest = self._blocks[0]
            backend = self._core.backend
            assert backend is not None
            assert oldest.request is not None
            if not oldest.request.finished:
                await wait(backend, oldest.request)
            self._note_error(self._blocks.popleft())
            self._raise_error()
            self._block = oldest
        else:
            self._block = PendingWrite(self._size)
        self._filled = 0

    def _submit_block(self) -> None:
        """Submit the write of the block that is being filled. RuntimeError and ValueError leave the block as it is."""
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
            request = (BufferedAppend if descriptor.o_direct else Append)(descriptor, address, size, block.export)
        else:
            kind = Write if is_block_write(descriptor, offset, size, 0) else BufferedWrite
            request = kind(descriptor, address, size, offset, 0, block.export)
        # This may raise RuntimeError or ValueError. Nothing has been changed until here.
        self._core.check().submit(request)
        block.request, block.offset = request, offset
        self._blocks.append(block)
        self._block = None
        self._offset += size

    def _note_error(self, block: PendingWrite) -> None:
        """Keep the error of a completed write, if it is the first."""
        request = block.request
        assert request is not None
        if cause_of(request) is not None and self._error is None:
            self._error = request.error()
        elif request.result < 0 and self._error is None:
            self._error = os_error(request.result, self._descriptor.name, f"writing at offset {block.offset}")
            self._error.characters_written = request.transferred  # type: ignore[attr-defined]

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        backend, lock = self._core.backend, self._lock
        if backend is None:
            raise self._core.refusal()
        assert lock is not None
        with Deferred(backend, value) as put_off:
            # Another task may be writing: wait for it.
            while not lock.acquire():
                with put_off, backend.shielded():
                    await lock.wait()
                    break
            self._open = False
            try:
                if kind is None and self._filled and self._block is not None and self._error is None:
                    backend.step(self._submit_block)
            finally:
                for block in self._blocks:
                    assert block.request is not None
                    with put_off:
                        await wait_shielded(backend, block.request)
                    self._note_error(block)
                self._blocks.clear()
                self._block = None
                lock.release()
            if value is None:
                self._raise_error()
            elif self._error is not None and value is not self._error:
                value.__context__ = value.__context__ or self._error
        await backend.cancel_shielded_checkpoint()
        if value is None:
            # All is written. The exception of a body leaves as it is instead.
            await backend.checkpoint_if_cancelled()
