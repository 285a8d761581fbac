"""`Chunks`: the bytes of a file in order, read ahead of the loop that consumes them. Made by `PositionalFile.chunks`.

The kernel reads ahead for a buffered file, but not for a direct one, and never as far as a fast disk needs. So `depth` reads are in flight
while the consumer works on a chunk. Memory is at most ``depth * size`` bytes.

Files in /proc and /sys are made up while they are read. In order that costs little. A read at another offset makes the kernel begin anew
and skip, so several reads at once cost as much as the whole file each. Their size is 0, or wrong, and they have no blocks. So reads go
ahead only up to a size that is known to be right, and behind it one at a time.

A read that is in flight cannot be stopped, and the kernel writes to its memory. So a cancelled step leaves its read in the queue, and the
next step returns it: no chunk is lost. When the loop is left early, reads that have not started are cancelled. `aclose` waits for the
others; without it the engine keeps their memory until they complete.
"""

from __future__ import annotations

import stat
from collections import deque
from typing import TYPE_CHECKING, Any

from trio_aio._arguments import LARGEST_OFFSET, checked_offset, checked_size
from trio_aio._backends import Deferred, shielded_checkpoint
from trio_aio._bulk.waiting import checked_depth, wait_for, wait_shielded
from trio_aio._context.copying import shortened
from trio_aio._engine.descriptor import describe
from trio_aio._engine.withdrawal import cancel_or_abandon
from trio_aio._errors import NotCopied
from trio_aio._memory.exports import hold, new_bytes
from trio_aio._requests.direct import KeptRead, fits_slab
from trio_aio._requests.transfer import Read

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from trio_aio._context.core import Core
    from trio_aio._engine.descriptor import Descriptor

__all__ = ("Chunks",)

_PAGE = 4096  # bytes


class PendingRead:
    """One read ahead of the consumer, with its memory."""

    __slots__ = ("memory", "request", "size")

    def __init__(self, descriptor: Descriptor, size: int, offset: int) -> None:
        self.size: int = size
        # None if the request has memory of its own.
        self.memory: bytes | bytearray | None = None
        if descriptor.direct and fits_slab(descriptor, offset, size):
            self.request: Read = KeptRead(descriptor, size, offset)
        else:
            self.memory = new_bytes(size, for_worker=True)
            export = hold(self.memory)
            self.request = Read(descriptor, export.address, size, offset, 0, export, descriptor.read_worker_path)

    async def take(self, core: Core) -> bytes:
        """Return the bytes of a completed read. OSError if it failed. Never raises Cancelled."""
        request, memory = self.request, self.memory
        n = request.result
        if n < 0:
            raise request.error()
        if memory is None:
            assert isinstance(request, KeptRead)
            return request.copy()
        return memory if n == self.size and isinstance(memory, bytes) else await shortened(core.backend, memoryview(memory)[:n])


class Chunks(NotCopied):
    """Iterator over the bytes of a file in order, with reads ahead; made by `AsyncFile.chunks`.

    Each step is a checkpoint. A cancelled step loses no chunk: the next step returns it. After an error, or the end of the file, no more
    reads are started. Leaving the loop early cancels reads that have not started. With ``async with file.chunks() as chunks``, leaving also
    waits for those in flight. Only one task at a time may wait for a chunk: RuntimeError for another.
    """

    def __init__(
        self,
        core: Core,
        descriptor: Descriptor,
        check: Callable[[], None],
        size: int,
        start: int,
        stop: int | None,
        depth: int,
    ) -> None:
        self._core: Core = core
        # The reads ahead, the oldest first. Set before anything that may raise, because `__del__` uses it.
        self._ahead: deque[PendingRead] = deque()
        self._engine: Any = core.check()
        self._descriptor: Descriptor = descriptor
        # Raises ValueError if the file is closed.
        self._check: Callable[[], None] = check
        self._size: int = checked_size(size)
        if not self._size:
            raise ValueError("size must be at least 1, not 0")
        self._next: int = checked_offset(start)
        self._stop: int | None = None if stop is None else checked_offset(stop)
        self._depth: int = checked_depth(depth)
        self._ended: bool = False
        self._waited_for: bool = False
        # Bytes. Reads that start below it may be in flight together. None: not looked up yet.
        self._known_size: int | None = None

    def __aiter__(self) -> Chunks:
        return self

    async def __anext__(self) -> bytes:
        """Return the next chunk: `size` bytes, fewer only at the end. OSError ends the iteration; ValueError if the file is closed."""
        core = self._core
        backend = core.backend
        core.check()
        assert backend is not None
        if self._waited_for:
            raise RuntimeError("another task is waiting for the next chunk: iterate in one task, or call chunks() once for each")
        await backend.checkpoint_if_cancelled()
        self._check()
        backend.step(self._read_ahead)
        if not self._ahead:
            await backend.cancel_shielded_checkpoint()
            raise StopAsyncIteration
        oldest = self._ahead[0]
        try:  # twice: an interrupt may come in front of a `finally`
            try:
                self._waited_for = True
                await wait_for(backend, oldest.request)
                # If asyncio's own Task.cancel interrupts this, the read stays in the queue, and the next step returns it.
                data = await oldest.take(core)
            except (OSError, MemoryError):
                if oldest.request.result < 0:  # otherwise there was no memory for the copy, and the next step may have it
                    backend.step(self._end)
                raise
            finally:
                self._waited_for = False
        finally:
            self._waited_for = False
        backend.step(self._advance, len(data) < oldest.size)
        if not data:
            raise StopAsyncIteration
        return data

    def _advance(self, at_end: bool) -> None:
        """Start further reads, and remove the chunk that is about to be returned. If there is no memory for the reads, it stays."""
        # When the file or the context was closed while this step waited, the next step raises the error.
        if at_end or self._descriptor.order.closing or self._core.state != "open":
            self._end()
            return
        if len(self._ahead) == 1:
            self._look_up_size(confirmed=True)
        self._read_ahead(taken=1)
        self._ahead.popleft().request.let_go(self._engine)

    def _look_up_size(self, *, confirmed: bool) -> None:
        """Find out how far reads may go ahead. confirmed: a read has just returned all that was asked for."""
        if not stat.S_ISREG(self._descriptor.mode):
            self._known_size = LARGEST_OFFSET
            return
        description = describe(self._descriptor.fd).value
        # Files in /sys say that they have a page, whatever they have.
        is_right = description.blocks > 0 or (confirmed and _PAGE < description.size >= self._next)
        self._known_size = description.size if is_right else 0

    def _read_ahead(self, taken: int = 0) -> None:
        """Start reads until `depth` are in flight or complete, or the end is reached. Behind the known size: one at a time.

        taken: so many of them are as good as taken.
        """
        if self._known_size is None:
            self._look_up_size(confirmed=False)
        assert self._known_size is not None
        while not self._ended and (ahead := len(self._ahead) - taken) < self._depth and (not ahead or self._next < self._known_size):
            size = self._size if self._stop is None else min(self._size, self._stop - self._next)
            if size <= 0 or self._next > LARGEST_OFFSET:
                self._ended = True
                return
            self._start(PendingRead(self._descriptor, size, self._next), self._next + size)

    def _start(self, read: PendingRead, following: int) -> None:
        """Submit a read; the next one starts at `following`. An exception (no memory) may come when it has started: then it counts."""
        request = read.request
        self._ahead.append(read)
        try:
            self._engine.submit(request)
        finally:
            if request.outstanding or request.finished:
                self._next = following
            else:
                self._ahead.pop()

    def _end(self) -> None:
        """Start no more reads. Cancel those that have not started, and leave the others to the engine."""
        self._ended = True
        while self._ahead:
            cancel_or_abandon(self._engine, self._ahead.popleft().request)

    def _leave(self) -> None:
        """Leave all reads to the engine, unless a task waits for one. The file calls this when it is closed while reads may hang."""
        if not self._waited_for:
            self._end()

    async def aclose(self) -> None:
        """Read no more, and wait until nothing is in flight.

        Cancelled: it waits all the same, and Cancelled is raised at the next checkpoint. RuntimeError if another task waits for a chunk.
        """
        core = self._core
        if core.state == "closed":
            # The engine has what is in flight.
            self._ended = True
            self._ahead.clear()
            await shielded_checkpoint()
            return
        core.check()
        if self._waited_for:
            raise RuntimeError("another task is waiting for the next chunk, or in aclose(): cancel it before aclose()")
        self._ended = True
        backend = core.backend
        assert backend is not None
        for ahead in self._ahead:
            backend.step(self._engine.cancel, ahead.request)
        try:  # twice, as in `__anext__`
            try:
                self._waited_for = True  # a close of the file, meanwhile, leaves the reads to this call
                with Deferred(backend) as put_off:
                    while self._ahead:
                        with put_off:
                            await wait_shielded(backend, self._ahead[0].request)
                        backend.step(self._release_oldest)
            finally:
                self._waited_for = False
        finally:
            self._waited_for = False
        await backend.cancel_shielded_checkpoint()

    def _release_oldest(self) -> None:
        cancel_or_abandon(self._engine, self._ahead.popleft().request)

    async def __aenter__(self) -> Chunks:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # In a child of fork, the requests are the parent's.
        if self._core.state != "forked":
            for ahead in self._ahead:
                self._engine.drops.add(None, ahead.request)
