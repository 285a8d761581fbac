"""Direct I/O at any offset, of any length, from and to any memory.

How the kernel works. O_DIRECT takes offsets, lengths and addresses that are multiples of what ``statx(2)`` says (STATX_DIOALIGN), and
answers EINVAL to others. A write that ends inside a block is none it could do: it has no half blocks.

What we do about it. A read is widened to the blocks around it, in aligned memory, and what was asked for is copied out. A write whose
memory alone is not aligned is copied into such memory. A write whose offset or length is not aligned, and an append, goes through the
page cache, by a second descriptor: the kernel then reads what it needs of the blocks at the edges, puts the size right, and orders it with
others' writes, all of which we could only do in steps that a crash or another process may come between. Writes of the two kinds
are kept apart (`_order.Gate`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_aio._buffers import LARGEST_SLAB
from trio_aio._native import lib
from trio_aio._request import Operation, Request, State

if TYPE_CHECKING:
    from trio_aio._buffers import Export, Slab
    from trio_aio._descriptor import Descriptor
    from trio_aio._engine import Engine

__all__ = ("Bounced", "fits_slab", "is_block_write", "reading_fits", "writing_fits")


def reading_fits(descriptor: Descriptor, offset: int, size: int, exports: list[Export]) -> bool:
    """Whether a read can go as it is: always on a buffered file."""
    unit = descriptor.read_unit
    return not (offset % unit or size % unit) and _memory_fits(descriptor, exports, unit)


def is_block_write(descriptor: Descriptor, offset: int, size: int, flags: int) -> bool:
    """Whether O_DIRECT can do a write, given aligned memory. Always on a buffered file.

    No appends, even where any offset will do: btrfs leaves the descriptor's position as if nobody else had appended meanwhile.
    """
    unit = descriptor.alignment.offset
    return not descriptor.o_direct or not (offset % unit or size % unit or descriptor.append or flags & lib.RWF_APPEND)


def writing_fits(descriptor: Descriptor, exports: list[Export]) -> bool:
    """Whether a write of whole blocks can go as it is."""
    return _memory_fits(descriptor, exports, descriptor.alignment.offset)


def _memory_fits(descriptor: Descriptor, exports: list[Export], unit: int) -> bool:
    memory = descriptor.alignment.memory
    return memory == 1 or not any(export.address % memory or export.length % unit for export in exports)


def fits_slab(descriptor: Descriptor, offset: int, size: int) -> bool:
    """Whether it is small enough for the pool's memory; a worker uses its own for what is larger."""
    return size + offset % descriptor.read_unit <= LARGEST_SLAB


class Bounced:
    """A request through a slab, which goes back to the pool afterwards unless the request was abandoned and still uses it."""

    __slots__ = ("_engine", "_size", "_start", "request", "slab")

    def __init__(self, engine: Engine, operation: Operation, descriptor: Descriptor, size: int, offset: int, flags: int) -> None:
        unit = descriptor.read_unit if operation is Operation.READ else descriptor.alignment.offset
        start = offset % unit
        widened = (start + size + unit - 1) // unit * unit
        slab = engine.buffers.take(widened)
        request = Request(operation, descriptor, slab.address, widened, offset - start, flags, slab)
        if not slab.chunk.warm:
            request.cold = True
        self._engine: Engine = engine
        self._size: int = size
        self._start: int = start  # of what was asked for, in the slab
        self.slab: Slab = slab
        self.request: Request = request

    def __enter__(self) -> Bounced:
        return self

    def __exit__(self, *_: object) -> None:
        request = self.request
        if not request.abandoned and (request.finished or request.state is State.CREATED):  # else the engine will do it
            self._engine.buffers.give_back(self.slab)

    def wanted(self, result: int) -> int:
        """Give how many bytes of what was asked for a read of `result` bytes has."""
        return max(0, min(result - self._start, self._size))

    def read(self, result: int) -> bytes:
        """Give what was asked for after a read of `result` bytes."""
        return self.slab.read(self.wanted(result), self._start)

    def scatter(self, exports: list[Export], result: int) -> int:
        """Copy what was asked for into callers' buffers, in order, and give the number of bytes."""
        count = self.wanted(result)
        self.slab.scatter(exports, count, self._start)
        return count
