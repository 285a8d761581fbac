"""Aligned memory for direct I/O, from a bounded pool.

How the kernel works. Direct I/O wants page-aligned memory. The kernel pins each page of it, and the device gets a segment for each piece
that is not contiguous in physical memory. Both cost: 16 reads of 1 MiB are submitted in 0.3 ms and done in 8.4 ms where they lie in huge
pages, in 1.2 ms and 12 to 22 ms where they lie in small ones. Pages are made at the first touch, which may take longer than the read.

What we do about it. Memory comes in huge pages. A worker touches each page first. A request that gets part of an untouched page waits for
that. Then it is used again and again. A child of fork gets no copy of what a device still writes to in the parent.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from trio_aio._memory.exports import private_memory, wipe_on_fork
from trio_aio._native import ffi

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trio_aio._memory.exports import Export
    from trio_aio._native import CData

__all__ = ("HUGE_PAGE", "LARGEST_SLAB", "PAGE", "BufferPool", "HugePage", "Slab")

PAGE = mmap.PAGESIZE
HUGE_PAGE = 2 << 20  # bytes: a huge page of x86-64 and of most others
# Bytes, at most `DIRECT_LIMIT` of `_requests.transfer`. A request that needs more aligned memory goes to a worker, which has its own.
LARGEST_SLAB = HUGE_PAGE // 2
ARENA = 64 << 20  # bytes of address space in one mapping


class _Arena:
    """Address space for huge pages. What is never touched takes no memory."""

    def __init__(self, size: int) -> None:
        # One mapping for many pages: mmap(2) waits for the page faults of other threads, and the event loop must not.
        self.memory: mmap.mmap = private_memory(size + HUGE_PAGE)
        wipe_on_fork(self.memory)
        with suppress(OSError):  # a kernel without transparent huge pages
            self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.held: CData = ffi.from_buffer("char[]", self.memory)  # the mapping cannot be closed while this lives
        address = int(ffi.cast("uintptr_t", self.held))
        self.start: int = -address % HUGE_PAGE  # of the aligned part
        self.address: int = address + self.start

    def unmap(self) -> None:
        ffi.release(self.held)
        self.memory.close()


class HugePage:
    """One huge page, or as many small pages where the kernel has none, cut into slabs of one size."""

    __slots__ = ("address", "arena", "asked", "in_use", "start", "waiting", "warm")

    def __init__(self, arena: _Arena, start: int) -> None:
        self.arena: _Arena = arena
        self.start: int = arena.start + start
        self.address: int = arena.address + start
        self.asked: bool = False  # `populate` was called
        self.warm: bool = False  # its pages are there
        self.in_use: int = 0  # slabs
        self.waiting: list[Any] = []  # requests that wait until it is warm

    def cool(self) -> None:
        """Return its pages to the kernel."""
        self.asked = self.warm = False
        self.arena.memory.madvise(mmap.MADV_DONTNEED, self.start, HUGE_PAGE)


class Slab:
    """Page-aligned memory: a part of a huge page."""

    __slots__ = ("address", "capacity", "memory", "page", "start")

    def __init__(self, page: HugePage, start: int, capacity: int) -> None:
        self.page: HugePage = page
        self.memory: mmap.mmap = page.arena.memory
        self.start: int = page.start + start
        self.address: int = page.address + start
        self.capacity: int = capacity  # bytes

    def copy_out(self, size: int, start: int = 0) -> bytes:
        """Return a copy of `size` bytes."""
        start += self.start
        return self.memory[start : start + size]

    def gather(self, exports: Sequence[Export]) -> None:
        """Copy callers' bytes to its start, one after the other."""
        at = self.address
        for export in exports:
            ffi.memmove(ffi.cast("char *", at), export.held, export.length)
            at += export.length

    def scatter(self, exports: Sequence[Export], size: int, start: int = 0) -> None:
        """Copy `size` bytes of it, from `start` on, into callers' buffers, in order."""
        at = self.address + start
        for export in exports:
            count = min(export.length, size)
            ffi.memmove(export.held, ffi.cast("char *", at), count)
            at += count
            size -= count


class BufferPool:
    """Slabs, cut from huge pages: a power of two bytes, from a small page to `LARGEST_SLAB`.

    `populate` is called with each huge page before its first use. It lets a worker touch the memory, and then sets `warm`.
    """

    def __init__(self, limit: int, populate: Callable[[HugePage], None]) -> None:
        self._limit: int = limit  # bytes kept while no request uses them
        self._populate: Callable[[HugePage], None] = populate
        self._arenas: list[_Arena] = []
        self._uncut: list[HugePage] = []
        self._free: dict[int, list[Slab]] = {}
        self._cut: int = 0  # pages
        self.kept: int = 0  # slabs of completed reads whose bytes were not taken yet

    def prepare(self) -> None:
        """Have memory made for the first request."""
        if not self._arenas:
            self._reserve()
            self._ask_for(self._uncut[-1])

    def take(self, size: int) -> Slab:
        """Return a slab of at least `size` bytes, with whatever is in it. One of more than `LARGEST_SLAB` is not kept afterwards."""
        if size > LARGEST_SLAB:
            return Slab(HugePage(_Arena(size), 0), 0, size)
        capacity = PAGE if size <= PAGE else 1 << (size - 1).bit_length()
        free = self._free.get(capacity)
        if not free:
            if free is None:
                free = self._free[capacity] = []
            if not self._uncut:
                self._reserve()
            page = self._uncut[-1]
            self._ask_for(page)
            slabs = [Slab(page, start, capacity) for start in range(HUGE_PAGE - capacity, -1, -capacity)]
            self._cut, _, _ = self._cut + 1, free.extend(slabs), self._uncut.pop()
        free[-1].page.in_use += 1
        return free.pop()

    def return_slab(self, slab: Slab) -> None:
        """Return a slab to the pool. Nothing may use it any more."""
        page = slab.page
        if slab.capacity > LARGEST_SLAB:
            page.arena.unmap()
            return
        free = self._free.get(slab.capacity)
        if free is None:  # the pool was cleared
            return
        page.in_use, _ = page.in_use - 1, free.append(slab)  # one statement: an exception must not come between
        if not page.in_use and self._cut * HUGE_PAGE > self._limit:
            kept = [other for other in free if other.page is not page]
            self._free[slab.capacity], self._cut, _ = kept, self._cut - 1, self._uncut.insert(0, page)
            if page.warm:  # otherwise a worker is making its pages
                page.cool()

    def has(self, slab: Slab) -> bool:
        """Return whether a slab is in the pool: no request has it."""
        return slab in self._free.get(slab.capacity, ()) or slab.page in self._uncut

    def _ask_for(self, page: HugePage) -> None:
        if not page.asked:
            self._populate(page)
            page.asked = True

    def _reserve(self) -> None:
        arena = _Arena(ARENA)
        uncut = [HugePage(arena, start) for start in range(ARENA - HUGE_PAGE, -1, -HUGE_PAGE)]
        self._uncut, _ = uncut, self._arenas.append(arena)

    def clear(self) -> None:
        """Return all memory to the kernel. No request may use any of it. Slabs that are kept keep their arena until they are dropped."""
        if not self.kept:
            for arena in self._arenas:
                arena.unmap()
        self._arenas.clear()
        self._uncut.clear()
        self._free.clear()
