"""The inline lane: reads of cached pages on the event loop's own thread, by ``preadv2(RWF_NOWAIT)`` where that works.

How the kernel works. A page that is in the page cache costs a memory copy. For one that is not, the kernel answers EAGAIN, but first it
starts the read-ahead, and for that the filesystem may read the map of the file's blocks, and sleep. So it does for a page that carries the
mark of the read-ahead, although that page is cached. A short count has two meanings (only a part is cached, or the file ends), so a second
call asks for the rest; 0 means the end. tmpfs and overlayfs do not know RWF_NOWAIT.

What we do about it. The loop asks first, with ``cachestat(2)``, and a worker starts what is missing (`taio_pread_cached`). So it does
where a read would set the time of access (`access_time.c`). Some calls are watched. Where one slept all the same, the next reads of the
device go to the workers. A miss is not free: after many in a row the next requests go to the workers directly, and then one tries again.
Without RWF_NOWAIT a plain read follows the question, and is always watched: the kernel may drop a page in between
(`DeviceRecord.residency`). A read with any flag goes to a worker without a try: `Operations._suits_inline`.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Protocol

from trio_aio._lanes.devices import Backoff
from trio_aio._memory.exports import private_memory
from trio_aio._native import ffi, lib

if TYPE_CHECKING:
    import mmap

    from trio_aio._lanes.devices import DeviceRecord
    from trio_aio._lanes.workers import WorkerLane
    from trio_aio._native import CData

__all__ = ("INLINE_LIMIT", "InlineLane")

INLINE_LIMIT = 128 << 10  # bytes: a larger copy would keep the loop from its other tasks for too long

MISSES = 16  # in a row, before requests go to the workers directly
BACKOFF = 16  # requests that go to the workers directly before one tries again

_pread_cached = lib.taio_pread_cached
_SLEPT: int = lib.TAIO_SLEPT
_BY_CACHESTAT: int = lib.TAIO_BY_CACHESTAT
_NOT_TOLD = (-errno.ERANGE, -errno.EPERM, -errno.ENOMEM)


class InlineDescriptor(Protocol):
    """What the inline lane asks of a descriptor."""

    fd: int
    read_device: DeviceRecord
    residency: CData
    asks_left: int

    def release_residency(self) -> None: ...


class InlineLane:
    """Reads from the page cache, through one buffer that lives as long as the engine."""

    def __init__(self, workers: WorkerLane) -> None:
        self._workers: WorkerLane = workers
        self.hits: int = 0
        self.misses: int = 0
        self.bytes_read: int = 0
        self.hits_by_cachestat: int = 0  # of those without RWF_NOWAIT
        self.hits_by_mincore: int = 0
        self.slept: int = 0  # reads that slept all the same, of those that are watched
        self._backoff: Backoff = Backoff(MISSES, BACKOFF)  # after misses in a row
        self._hits_before: int = 0  # hits at the last miss
        self._has_slept: bool = False  # a call, on some device
        self.guarded: bool = False  # some requests may have to go to the workers directly: ask `should_skip`
        self._view: mmap.mmap = private_memory(INLINE_LIMIT)
        self._memory: CData = ffi.from_buffer("char[]", self._view)

    def read(self, descriptor: InlineDescriptor, size: int, offset: int) -> bytes | None:
        """Return `size` bytes, at most INLINE_LIMIT, fewer only at the end of the file. None: another lane must do it."""
        return None if self.guarded and self.should_skip(descriptor) else self.read_unguarded(descriptor, size, offset)

    def read_unguarded(self, descriptor: InlineDescriptor, size: int, offset: int) -> bytes | None:
        """Do what `read` does. The caller has looked at `guarded`, and asked `should_skip`."""
        residency = descriptor.residency
        n = _pread_cached(descriptor.fd, residency, self._memory, size, offset)
        if n != size:
            n = self._rest(descriptor, self._memory, n, size, offset)
            if n < 0:
                return None
        self.hits += 1
        if residency:
            self._count_way(residency)
        self.bytes_read += n
        return self._view[:n]

    def read_into(self, descriptor: InlineDescriptor, address: int, size: int, offset: int) -> int:
        """Read into memory, and return how many bytes were read. -1: another lane must do it; -2: the same, after a part was read."""
        if self.guarded and self.should_skip(descriptor):
            return -1
        memory = ffi.cast("char *", address)
        residency = descriptor.residency
        n = _pread_cached(descriptor.fd, residency, memory, size, offset)
        if n != size:
            first, n = n, self._rest(descriptor, memory, n, size, offset)
            if n < 0:
                return -1 if first < 0 else -2
        self.hits += 1
        if residency:
            self._count_way(residency)
        self.bytes_read += n
        return n

    def count_pieces(self, descriptor: InlineDescriptor, pieces: int, nbytes: int, answer: int) -> None:
        """Count what `taio_pieces_inline` did, and learn from its answer."""
        self.hits += pieces
        self.bytes_read += nbytes
        if answer < 0:
            self.misses += 1
            self._learn(descriptor, answer)

    def _count_way(self, residency: CData) -> None:
        if residency.way == _BY_CACHESTAT:
            self.hits_by_cachestat += 1
        else:
            self.hits_by_mincore += 1

    @staticmethod
    def _learn(descriptor: InlineDescriptor, answer: int) -> None:
        if answer == -errno.EOPNOTSUPP and descriptor.read_device is not None:
            descriptor.read_device.note_no_nowait()
        elif answer in _NOT_TOLD and descriptor.residency:
            descriptor.release_residency()
            if answer != -errno.ERANGE:  # behind the end of the mapping, the next reads may ask for another one
                descriptor.asks_left = 0

    def should_skip(self, descriptor: InlineDescriptor) -> bool:
        """Return whether a read should go to the workers directly. Counts that read."""
        device, backoff, workers = descriptor.read_device, self._backoff, self._workers
        if device.skips_left and not device.should_try():
            return True
        left = backoff.skips_left
        self.guarded = left > 0 or self._has_slept
        if not left or len(workers.free) == workers.slots:  # with no worker busy, trying inline is faster
            return False
        backoff.skips_left = left - 1
        return True

    def _rest(self, descriptor: InlineDescriptor, memory: CData, n: int, size: int, offset: int) -> int:
        n = self._without_sleep(descriptor, n)
        while 0 < n < size:
            more = self._without_sleep(descriptor, _pread_cached(descriptor.fd, descriptor.residency, memory + n, size - n, offset + n))
            if more == 0:
                return n
            n = n + more if more > 0 else more
        if n >= 0:
            return n
        self._learn(descriptor, n)
        self.misses += 1
        if self.hits != self._hits_before:
            self._hits_before = self.hits
            self._backoff.note_fast()
        self._backoff.note_slow()
        self.guarded = self._has_slept or self._backoff.skips_left > 0
        return -1  # if it is an error, the worker meets it too, and reports it

    def _without_sleep(self, descriptor: InlineDescriptor, n: int) -> int:
        """Return a count as it is without TAIO_SLEPT, and learn from that."""
        if n < _SLEPT:
            return n
        descriptor.read_device.leave_inline()
        self.slept += 1
        self._has_slept = self.guarded = True
        return n - _SLEPT

    def close(self) -> None:
        """Unmap the buffer."""
        ffi.release(self._memory)
        self._view.close()
