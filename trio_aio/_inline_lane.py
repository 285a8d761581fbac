"""The inline lane: ``preadv2(RWF_NOWAIT)`` on the event loop's own thread.

What lies in the page cache costs a memory copy and no hand-over. What does not is answered with EAGAIN, and read-ahead has then begun: the
worker that reads it next finds the I/O under way. A short count tells nothing by itself (part of the range cached, or the end of the
file), so we ask once more behind it; 0 is the end.

To ask for what is not there is no present: the loop's thread begins the reading, and the worker waits for it. Where nothing has been
there many times in a row the workers do better alone, so the next requests make a detour, until one is sent to ask again.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from trio_aio._buffers import private_memory
from trio_aio._native import ffi, lib
from trio_aio._routing import Detour

if TYPE_CHECKING:
    import mmap

    from trio_aio._descriptor import Descriptor
    from trio_aio._native._ext import CData
    from trio_aio._run import Run
    from trio_aio._worker_lane import WorkerLane

__all__ = ("INLINE_LIMIT", "InlineLane")

INLINE_LIMIT = 128 << 10  # bytes: copying more would keep the loop from its other tasks for too long

MISSES = 16  # in a row, before a detour
DETOUR = 16  # requests, before one asks again

_pread_nowait = lib.taio_pread_nowait


class InlineLane:
    """Reads from the page cache, through one buffer that lives as long as the engine."""

    def __init__(self, workers: WorkerLane) -> None:
        self._workers: WorkerLane = workers
        self.hits: int = 0
        self.misses: int = 0
        self.bytes_read: int = 0
        self._way: Detour = Detour(MISSES, DETOUR)  # left after misses in a row
        self._hits_before: int = 0  # the last miss
        self._view: mmap.mmap = private_memory(INLINE_LIMIT)
        self._memory: CData = ffi.from_buffer("char[]", self._view)

    def read(self, descriptor: Descriptor, size: int, offset: int) -> bytes | None:
        """Give `size` bytes, at most INLINE_LIMIT, fewer only at the end of the file. None: this is for another lane."""
        if self._way.detour and self._is_left():
            return None
        n = _pread_nowait(descriptor.fd, self._memory, size, offset)
        if n != size:
            n = self._rest(descriptor, self._memory, n, size, offset)
            if n < 0:
                return None
        self.hits += 1
        self.bytes_read += n
        return self._view[:n]

    def read_into(self, descriptor: Descriptor, address: int, size: int, offset: int) -> int:
        """Read into memory of `size` bytes, likewise; where `read` gives None -1, or -2 if a part is in the memory."""
        if self._way.detour and self._is_left():
            return -1
        memory = ffi.cast("char *", address)
        n = _pread_nowait(descriptor.fd, memory, size, offset)
        if n != size:
            first, n = n, self._rest(descriptor, memory, n, size, offset)
            if n < 0:
                return -1 if first < 0 else -2
        self.hits += 1
        self.bytes_read += n
        return n

    def count_run(self, run: Run, answer: int, descriptor: Descriptor) -> None:
        """Count what `taio_run_inline` did of a run, and learn from its answer."""
        done: int = run.native.next
        self.hits += done
        self.bytes_read += run.moved
        if answer < 0:
            self.misses += 1
            self._learn(descriptor, answer)

    @staticmethod
    def _learn(descriptor: Descriptor, answer: int) -> None:
        if answer == -errno.EOPNOTSUPP and descriptor.read_route is not None:
            descriptor.read_route.nowait = False

    def _is_left(self) -> bool:
        return self._workers.in_flight > 0 and not self._way.is_open()  # alone, a request is quicker if it asks

    def _rest(self, descriptor: Descriptor, memory: CData, n: int, size: int, offset: int) -> int:
        while 0 < n < size:
            more = _pread_nowait(descriptor.fd, memory + n, size - n, offset + n)
            if more == 0:
                return n
            n = n + more if more > 0 else more
        if n >= 0:
            return n
        self._learn(descriptor, n)
        self.misses += 1
        if self.hits != self._hits_before:
            self._hits_before = self.hits
            self._way.clear()
        self._way.strike()
        return -1  # a worker meets the same error, if it is one, and reports it

    def close(self) -> None:
        """Give the buffer back to the kernel."""
        ffi.release(self._memory)
        self._view.close()
