"""Pipelines: `Chunks` reads ahead of who consumes, `Writer` writes behind who produces. Memory is bounded by depth times size."""

from __future__ import annotations

import errno
import mmap
import operator
from collections import deque
from typing import TYPE_CHECKING, Any

from trio_aio._arguments import LARGEST_OFFSET, checked_offset, checked_size
from trio_aio._backends import Deferred
from trio_aio._buffers import export_buffer, new_bytes, private_memory
from trio_aio._copying import PIECE, shortened
from trio_aio._direct import Bounced, fits_slab, is_block_write
from trio_aio._errors import os_error
from trio_aio._request import Operation, Request
from trio_aio._turns import Turns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from _typeshed import ReadableBuffer

    from trio_aio._backends import Backend
    from trio_aio._context import AIOContext
    from trio_aio._descriptor import Descriptor

__all__ = ("Chunks", "Writer")


def _checked_depth(depth: int) -> int:
    depth = operator.index(depth)
    if depth < 1:
        raise ValueError(f"depth must be at least 1, not {depth}")
    return depth


async def _wait(backend: Backend, request: Request) -> None:
    """Wait for a request that is out. Cancelled: it goes on, and can be waited for again."""

    def leave() -> bool:
        request.waiter = None
        return True

    await backend.wait(request, leave)


async def _wait_shielded(backend: Backend, request: Request) -> None:
    await backend.wait(request, lambda: False)


class _Ahead:
    """One read ahead."""

    def __init__(self, context: AIOContext, descriptor: Descriptor, size: int, offset: int) -> None:
        engine = context._check()
        self.size: int = size
        self._bounced: Bounced | None = None
        self._memory: bytes | bytearray = b""
        if descriptor.direct and fits_slab(descriptor, offset, size):
            self._bounced = Bounced(engine, Operation.READ, descriptor, size, offset, 0)
            self.request: Request = self._bounced.request
        else:
            self._memory = new_bytes(size, for_worker=True)
            export = export_buffer(self._memory, writable=False)
            self.request = Request(Operation.READ, descriptor, export.address, size, offset, 0, export, extra=descriptor.read_bounce)
        engine.submit(self.request)

    async def take(self, context: AIOContext) -> bytes:
        """Give what was read; OSError. Never Cancelled."""
        request = self.request
        if self._bounced is not None:
            with self._bounced:
                if request.result < 0:
                    raise os_error(request.result, request.descriptor.name)
                return self._bounced.read(request.result)
        if request.result < 0:
            raise os_error(request.result, request.descriptor.name)
        memory, n = self._memory, request.result
        return memory if n == self.size and isinstance(memory, bytes) else await shortened(context._backend, memoryview(memory)[:n])


class Chunks:
    """The bytes of a file in order, read ahead; made by `AsyncFile.chunks`.

    Each step is a checkpoint. A cancelled one loses nothing: the next step gives the chunk that it waited for. After an error, and
    after the end, nothing is read any more. Leaving the loop early stops the reads that have not begun; used as
    ``async with file.chunks() as chunks``, leaving waits for those that have.
    """

    def __init__(
        self,
        context: AIOContext,
        descriptor: Descriptor,
        check: Callable[[], None],
        size: int,
        start: int,
        stop: int | None,
        depth: int,
    ) -> None:
        self._context: AIOContext = context
        self._ahead: deque[_Ahead] = deque()  # before anything that may raise: `__del__` looks at it
        self._engine: Any = context._check()
        self._descriptor: Descriptor = descriptor
        self._check: Callable[[], None] = check  # that the file is open
        self._size: int = checked_size(size)
        if not self._size:
            raise ValueError("size must be at least 1")
        self._next: int = checked_offset(start)
        self._stop: int | None = None if stop is None else checked_offset(stop)
        self._depth: int = _checked_depth(depth)
        self._ended: bool = False
        self._waited_for: bool = False

    def __aiter__(self) -> Chunks:
        return self

    async def __anext__(self) -> bytes:
        """Give the next chunk: `size` bytes, fewer only at the end."""
        context = self._context
        backend = context._backend
        context._check()
        assert backend is not None
        if self._waited_for:
            raise RuntimeError("another task is waiting for the next chunk")
        await backend.checkpoint_if_cancelled()
        self._check()
        self._read_ahead()
        if not self._ahead:
            await backend.cancel_shielded_checkpoint()
            raise StopAsyncIteration
        oldest = self._ahead[0]
        self._waited_for = True
        try:
            await _wait(backend, oldest.request)
            data = await oldest.take(context)  # natively cancelled: it stays, and the next step takes it
        except OSError:
            self._ahead.popleft()
            self._end()
            raise
        finally:
            self._waited_for = False
        self._ahead.popleft()
        if len(data) < oldest.size:
            self._end()
            if not data:
                raise StopAsyncIteration
        elif self._descriptor.order.closing:  # it was closed while we waited: the next step says so
            self._end()
        else:
            self._read_ahead()
        return data

    def _read_ahead(self) -> None:
        while not self._ended and len(self._ahead) < self._depth:
            size = self._size if self._stop is None else min(self._size, self._stop - self._next)
            if size <= 0 or self._next > LARGEST_OFFSET:
                self._ended = True
                return
            self._ahead.append(_Ahead(self._context, self._descriptor, size, self._next))
            self._next += size

    def _end(self) -> None:
        self._ended = True
        while self._ahead:
            self._engine.give_up(self._ahead.popleft().request)

    async def aclose(self) -> None:
        """Read no more, and wait until nothing is in flight. Not cancellable. RuntimeError while another task waits for a chunk."""
        context = self._context
        context._check()
        if self._waited_for:
            raise RuntimeError("another task is waiting for the next chunk")
        self._ended = True
        backend = context._backend
        assert backend is not None
        for ahead in self._ahead:
            self._engine.cancel(ahead.request)
        deferred = Deferred(backend)
        while self._ahead:
            with deferred:
                await _wait_shielded(backend, self._ahead[0].request)
            self._engine.give_up(self._ahead.popleft().request)
        deferred.deliver()
        await backend.cancel_shielded_checkpoint()

    async def __aenter__(self) -> Chunks:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if self._context._state != "forked":  # else they are the parent's
            for ahead in self._ahead:
                self._engine.drop(ahead.request)


class _Block:
    """Memory that is filled, written, and filled again."""

    def __init__(self, size: int) -> None:
        # Page-aligned, for direct files; a device may still read it when a child of fork has gone its way.
        self.memory: mmap.mmap = private_memory(size)
        self.memory.madvise(mmap.MADV_DONTFORK)
        self.export: Any = export_buffer(self.memory, writable=False)
        self.offset: int = 0
        self.request: Request | None = None


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
        self._depth: int = 1 if descriptor.append else _checked_depth(depth)
        self._filled: int = 0
        self._blocks: deque[_Block] = deque()  # those that were handed over, the oldest first
        self._block: _Block | None = None  # that is being filled
        self._error: OSError | None = None
        self._open: bool = False
        self._turns: Turns | None = None  # whose `write` it is

    async def __aenter__(self) -> Writer:
        if self._open:
            raise RuntimeError("this writer is in use")
        backend = self._context._backend
        self._context._check()
        assert backend is not None
        self._turns = Turns(backend, lambda: None)
        self._open = True
        return self

    async def write(self, data: ReadableBuffer) -> int:
        """Take all of `data`, and give its length in bytes; waits while `depth` blocks are in flight.

        OSError of a block that was written before: the same one from then on. Cancelled: none of `data` was taken. Once some of it has
        been, the call goes on to its end.
        """
        export = export_buffer(data, writable=False)
        turns = self._turns
        if not self._open or turns is None:
            raise RuntimeError("a writer is used in `async with`")
        backend = self._context._backend
        self._context._check()
        if not turns.take():
            raise RuntimeError("another task is writing with this writer")
        assert backend is not None
        deferred = Deferred(backend)
        try:
            await backend.checkpoint_if_cancelled()
            self._check()
            if self._block is None and export.length:
                await self._next_block(_wait)
            with memoryview(data).cast("B") as view:
                taken = copied = 0
                while taken < export.length:
                    if self._block is None:
                        with deferred:
                            await self._next_block(_wait_shielded)
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
            turns.pass_on()
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
            self._block = _Block(self._size)
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
        if descriptor.append:
            request = Request(Operation.APPEND, descriptor, address, size, owned=block)
        else:
            request = Request(Operation.WRITE, descriptor, address, size, offset, 0, block)
        if not is_block_write(descriptor, offset, size, 0):
            request.buffered = True
            request.extra = descriptor.through_cache
        self._context._check().submit(request)  # RuntimeError and ValueError: it is as if we had not been here
        block.request, block.offset = request, offset
        self._blocks.append(block)
        self._block = None
        self._offset += size

    def _note(self, block: _Block) -> None:
        request = block.request
        assert request is not None
        if request.result < 0 and self._error is None:
            self._error = os_error(request.result, self._descriptor.name, f"writing at offset {block.offset}")
            self._error.characters_written = request.transferred  # type: ignore[attr-defined]

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        backend, turns = self._context._backend, self._turns
        if backend is None:
            raise self._context._refusal()
        assert turns is not None
        deferred = Deferred(backend)
        while not turns.take():  # another task is writing
            with deferred, backend.shielded():
                await turns.wait()
                break
        self._open = False
        try:
            if kind is None and self._filled and self._block is not None and self._error is None:
                self._hand_over()
        finally:
            for block in self._blocks:
                assert block.request is not None
                with deferred:
                    await _wait_shielded(backend, block.request)
                self._note(block)
            self._blocks.clear()
            self._block = None
            turns.pass_on()
        if self._error is not None and value is not self._error:
            if value is None:
                raise self._error
            value.__context__ = value.__context__ or self._error
        deferred.deliver()
        await backend.cancel_shielded_checkpoint()
