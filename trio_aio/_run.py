"""Runs: many pieces of one file in one request, which C takes through a lane without a Python object for each (run.c).

A run is read or written in any order, and is whole when all its pieces are. It goes through the lanes as any request does: what the
inline or the kernel lane could not do without sleeping is left open for a worker.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from trio_aio._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trio_aio._buffers import Export, Slab
    from trio_aio._descriptor import Descriptor
    from trio_aio._native._ext import CData

__all__ = ("Run",)


class Run:
    """The pieces, and the memory that they are in."""

    __slots__ = (
        *("address", "aligned", "begun", "count", "end", "largest", "most"),
        *("native", "owned", "pieces", "places", "slab", "slots", "total"),
    )

    def __init__(self, descriptor: Descriptor, count: int, owned: object, *, writing: bool, unit: int) -> None:
        self.native: CData = ffi.new("struct taio_run *")
        self.pieces: CData = ffi.new("struct taio_piece[]", count)
        self.owned: Any = owned
        self.address: int = int(ffi.cast("uintptr_t", self.native))
        self.count: int = count
        self.aligned: bool = unit == 1  # the kernel lane takes the pieces as they are
        self.largest: int = 0  # bytes of the largest piece
        self.total: int = 0  # bytes of all
        self.end: int = 0  # of the piece that is furthest behind in the file
        self.begun: bool = False  # the kernel lane has had it
        self.slots: int = 0  # of the kernel lane that it has
        self.most: int = 0  # that it may have
        self.slab: Slab | None = None  # aligned memory for the kernel lane, a place of it for each slot
        self.places: list[int] = []  # free
        native = self.native
        native.pieces = self.pieces
        native.count = count
        native.fd = descriptor.fd
        native.writing = writing
        native.unit = unit

    @classmethod
    def blocks(cls, descriptor: Descriptor, offsets: CData, size: int, into: Export, first: int, count: int, unit: int) -> Run:
        """Read blocks `first` to `first + count - 1` of `offsets` (int64_t) to where they belong in `into`.

        ValueError: a negative offset.
        """
        run = cls(descriptor, count, into, writing=False, unit=unit)
        bad = ffi.new("uint64_t *")
        if lib.taio_run_blocks(run.native, offsets + first, size, into.address + first * size, bad) < 0:
            raise ValueError(f"negative offset: {offsets[first + bad[0]]}")
        run.largest, run.total = size, count * size
        return run

    @classmethod
    def parts(cls, descriptor: Descriptor, parts: Iterable[tuple[int, Export]], *, writing: bool, unit: int) -> Run:
        """Read or write each export at its offset."""
        parts = list(parts)
        run = cls(descriptor, len(parts), parts, writing=writing, unit=unit)
        for i, (offset, export) in enumerate(parts):
            length = export.length
            run.pieces[i] = (offset, export.address, length, lib.TAIO_UNTRIED)
            run.largest = max(run.largest, length)
            run.total += length
            run.end = max(run.end, offset + length)
        return run

    @property
    def whole(self) -> bool:
        """Whether each piece is read or written to its last byte."""
        return self.first_open == self.count

    @property
    def first_open(self) -> int:
        """The first piece that is not whole; their number if there is none."""
        index: int = lib.taio_run_check(self.native)
        return index

    def stop(self) -> None:
        """Begin no more pieces."""
        self.native.stop = 1

    def failure(self) -> tuple[int, int] | None:
        """Give offset and errno of the first piece that failed; 0 for the end of the file. None: it is whole, or was only stopped."""
        if self.whole:
            return None
        for piece in self.pieces:
            result = piece.result
            if result == lib.TAIO_UNTRIED or result in (-errno.EAGAIN, -errno.EOPNOTSUPP) or result == piece.length:
                continue
            return piece.offset, max(-result, 0)
        return None

    @property
    def moved(self) -> int:
        """Bytes read or written, in all."""
        return self.total if self.whole else sum(max(piece.result, 0) for piece in self.pieces)
