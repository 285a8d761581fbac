"""Direct I/O for requests that are not aligned as the file wants it.

O_DIRECT takes offsets, lengths and addresses that are multiples of what ``statx(2)`` says (STATX_DIOALIGN), and answers EINVAL to
others. A request that is not like that goes through a slab of the buffer pool: a read is widened to the blocks around it, and what was
asked for is copied out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_aio._request import Operation, Request, State

if TYPE_CHECKING:
    from trio_aio._buffers import Export, Slab
    from trio_aio._descriptor import Descriptor
    from trio_aio._engine import Engine

__all__ = ("Bounced", "check_alignment", "is_aligned")


def is_aligned(descriptor: Descriptor, offset: int, size: int, exports: list[Export]) -> bool:
    """Whether a request can go as it is: always on a buffered file."""
    unit, memory = descriptor.alignment.offset, descriptor.alignment.memory
    if offset % unit or size % unit:
        return False
    return memory == 1 or not any(export.address % memory or export.length % unit for export in exports)


def check_alignment(descriptor: Descriptor, offset: int, size: int) -> None:
    """Refuse what cannot be written; ValueError."""
    unit = descriptor.alignment.offset
    if offset % unit or size % unit:
        raise ValueError(f"direct writes of this file take offsets and sizes that are multiples of {unit} bytes, not {offset} and {size}")


class Bounced:
    """A request through a slab, which goes back to the pool afterwards unless the request was abandoned and still uses it."""

    def __init__(self, engine: Engine, operation: Operation, descriptor: Descriptor, size: int, offset: int, flags: int) -> None:
        unit = descriptor.alignment.offset
        self._engine: Engine = engine
        self._size: int = size
        self._start: int = offset % unit  # of what was asked for, in the slab
        widened = -(-(self._start + size) // unit) * unit
        self.slab: Slab = engine.buffers.take(widened)
        self.request: Request = Request(operation, descriptor, self.slab.address, widened, offset - self._start, flags, self.slab)
        self.request.cold = self.slab.cold

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
