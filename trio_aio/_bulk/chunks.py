"""`Chunks`: the bytes of a file in order, read ahead of the consumer. Memory is bounded by depth times size."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from trio_aio._arguments import LARGEST_OFFSET, checked_offset, checked_size
from trio_aio._backends import Deferred
from trio_aio._bulk.waiting import checked_depth, wait_for, wait_shielded
from trio_aio._context.copying import shortened
from trio_aio._engine.withdrawal import cancel_or_abandon
from trio_aio._memory.exports import export_buffer, new_bytes
from trio_aio._requests.direct import WidenedRead, fits_slab
from trio_aio._requests.transfer import Read

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from trio_aio._context.context import AIOContext
    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._engine.engine import Engine

__all__ = ("Chunks",)


class PendingRead:
    """One read ahead of the consumer."""

    __slots__ = ("memory", "request", "size")

    def __init__(self, engine: Engine, descriptor: Descriptor, size: int, offset: int) -> None:
        self.size: int = size
        self.memory: bytes | bytearray | None = None  # None: the request keeps the bytes
        if descriptor.direct and fits_slab(descriptor, offset, size):
            self.request: Read = WidenedRead(descriptor, size, offset, 0)
        else:
            self.memory = new_bytes(size, for_worker=True)
            export = export_buffer(self.memory, writable=False)
            self.request = Read(descriptor, export.address, size, offset, 0, export, descriptor.read_bounce)
        engine.submit(self.request)

    async def take(self, context: AIOContext) -> bytes:
        """Return what was read; OSError. Never Cancelled."""
        request, memory = self.request, self.memory
        n = request.result
        if n < 0:
            raise request.error()
        if memory is None:
            assert isinstance(request, WidenedRead)
            return request.data
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
        self._ahead: deque[PendingRead] = deque()  # before anything that may raise: `__del__` looks at it
        self._engine: Any = context._check()
        self._descriptor: Descriptor = descriptor
        self._check: Callable[[], None] = check  # that the file is open
        self._size: int = checked_size(size)
        if not self._size:
            raise ValueError("size must be at least 1")
        self._next: int = checked_offset(start)
        self._stop: int | None = None if stop is None else checked_offset(stop)
        self._depth: int = checked_depth(depth)
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
            await wait_for(backend, oldest.request)
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
            self._ahead.append(PendingRead(self._engine, self._descriptor, size, self._next))
            self._next += size

    def _end(self) -> None:
        self._ended = True
        while self._ahead:
            cancel_or_abandon(self._engine, self._ahead.popleft().request)

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
                await wait_shielded(backend, self._ahead[0].request)
            cancel_or_abandon(self._engine, self._ahead.popleft().request)
        deferred.deliver()
        await backend.cancel_shielded_checkpoint()

    async def __aenter__(self) -> Chunks:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if self._context._state != "forked":  # otherwise they are the parent's
            for ahead in self._ahead:
                self._engine.drops.add(None, ahead.request)
