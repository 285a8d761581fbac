"""Runs: many pieces of one file in one request, which C takes through a lane without a Python object for each (run.c).

A run is read or written in any order, and is whole when all its pieces are. It goes through the lanes as any request does: what the
inline or the kernel lane could not do without sleeping is left open for a worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_aio._native import ffi, lib

if TYPE_CHECKING:
    from trio_aio._buffers import Export, Slab
    from trio_aio._descriptor import Descriptor
    from trio_aio._native._ext import CData

__all__ = ("Run",)


class Run:
    """The pieces, and the memory that they are in."""

    __slots__ = (
        *("address", "aligned", "begun", "count", "end", "first", "largest"),
        *("most", "native", "owned", "pieces", "places", "slab", "slots"),
    )

    def __init__(self, descriptor: Descriptor, count: int, owned: object, *, writing: bool, through_cache: bool = False) -> None:
        self.native: CData = ffi.new("struct taio_run *")
        self.pieces: CData = ffi.new("struct taio_piece[]", count)
        self.owned: Any = owned
        self.address: int = int(ffi.cast("uintptr_t", self.native))
        self.count: int = count
        self.aligned: bool = False  # the kernel lane takes the pieces as they are
        self.largest: int = 0  # bytes of the largest piece
        self.end: int = 0  # of the piece that is furthest behind in the file
        self.begun: bool = False  # the kernel lane has had it
        self.slots: int = 0  # of the kernel lane that it has
        self.most: int = 0  # that it may have
        self.first: int = 0  # that it began with
        self.slab: Slab | None = None  # aligned memory for the kernel lane, a place of it for each slot
        self.places: list[int] = []  # free
        native = self.native
        native.pieces = self.pieces
        native.count = count
        native.fd = descriptor.fd
        native.writing = writing
        if through_cache:
            native.unit = native.memory_unit = 1
        else:
            native.unit = descriptor.alignment.offset if writing else descriptor.read_unit
            native.memory_unit = descriptor.alignment.memory

    def part(self, descriptor: Descriptor, first: int, count: int) -> Run:
        """Give a run of some of its pieces; they stay where they are."""
        run = Run(descriptor, 0, self, writing=bool(self.native.writing))
        run.native.pieces = run.pieces = self.pieces + first
        run.native.count = run.count = count
        run.largest, run.aligned = self.largest, self.aligned
        return run

    @classmethod
    def blocks(cls, descriptor: Descriptor, offsets: CData, size: int, into: Export) -> Run:
        """Read blocks of `size` bytes at `offsets` (int64_t) into `into`, side by side. ValueError: a negative offset."""
        run = cls(descriptor, len(offsets), into, writing=False)
        bad = ffi.new("uint64_t *")
        if lib.taio_run_blocks(run.native, offsets, size, into.address, bad) < 0:
            raise ValueError(f"negative offset: {offsets[bad[0]]}")
        run.largest = size
        run._judge()
        return run

    @classmethod
    def ranges(cls, descriptor: Descriptor, parts: list[tuple[int, Export]], *, writing: bool, through_cache: bool = False) -> Run:
        """Read or write each export at its offset; `through_cache`: writes of a direct file by a descriptor that is not."""
        run = cls(descriptor, len(parts), parts, writing=writing, through_cache=through_cache)
        bits = memory_bits = 0
        for i, (offset, export) in enumerate(parts):
            length = export.length
            run.pieces[i] = (offset, export.address, length, lib.TAIO_UNTRIED)
            run.largest = max(run.largest, length)
            run.end = max(run.end, offset + length)
            bits |= offset | length
            memory_bits |= export.address
        run.native.bits, run.native.memory_bits = bits, memory_bits
        run._judge()
        return run

    def _judge(self) -> None:
        native = self.native
        self.aligned = not (native.bits % native.unit or native.memory_bits % native.memory_unit)

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
        """Give offset and errno of the piece that stopped it."""
        piece = self.native.failed
        return (piece.offset, -piece.result) if piece else None

    @property
    def moved(self) -> int:
        """Bytes read or written, in all."""
        moved: int = lib.taio_run_moved(self.native)
        return moved
