"""Where the kernel has a file's map of blocks in memory.

How the kernel works. A direct read needs to know where on the disk its bytes are. A filesystem reads that from the disk when it is first
asked: xfs for the whole file, ext4 a block of it for some hundreds of extents. io_submit waits for that, RWF_NOWAIT or not: seconds, on a
slow disk. Afterwards it is in memory, for as long as the kernel likes.

What we do about it. A file is divided into at most 1024 regions of at least 1 MiB. The first read in each region is submitted by a
submitter, and so are all that come before it has completed. A region counts as known when one of its reads has completed. That is a rule of
thumb: of a file in tiny pieces one block of ext4's map covers 1.3 MiB; of a large one, 1024 regions see few of them. What the rule
misses is seen by the watch on io_submit (`_lanes.devices`). All descriptors of a file share this, until the last is closed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_aio._native import ffi, lib

if TYPE_CHECKING:
    from trio_aio._native import CData

__all__ = ("BlockMap",)

REGIONS = 1024
SMALLEST_SHIFT = 20  # a region of 1 MiB; no direct read is longer, so each is in two regions at most


class BlockMap:
    """The regions of one file that were read."""

    __slots__ = ("_end", "_left", "_regions", "_shift", "whole")

    def __init__(self, size: int) -> None:
        self._shift: int = SMALLEST_SHIFT
        while size > REGIONS << self._shift:
            self._shift += 1
        self._end: int = REGIONS << self._shift
        self._regions: bytearray = bytearray(REGIONS)
        self._left: int = -(-size >> self._shift)  # regions of the file that were not read
        self.whole: bool = False  # all of the file was read, as large as it was when it was opened

    def has(self, offset: int, size: int) -> bool:
        """Return whether the kernel should have its map of a range in memory."""
        last = offset + size - 1
        if last >= self._end:
            return False
        regions, shift = self._regions, self._shift
        return bool(regions[offset >> shift] and regions[last >> shift])

    def add(self, offset: int, size: int) -> None:
        """Note that a range was read."""
        last = offset + size - 1
        while last >= self._end:  # the file has grown
            self._shift += 1
            self._end *= 2
            pairs = zip(self._regions[::2], self._regions[1::2], strict=True)
            self._regions = bytearray([first & second for first, second in pairs]) + bytes(REGIONS // 2)
        self._regions[offset >> self._shift] = self._regions[last >> self._shift] = 1
        self._note_whole()

    def has_pieces(self, pieces: CData) -> bool:
        """Return the same for all pieces of a struct taio_pieces."""
        return self.whole or bool(lib.taio_pieces_are_known(pieces, ffi.from_buffer("uint8_t[]", self._regions), self._shift, REGIONS))

    def add_pieces(self, pieces: CData) -> None:
        """Note which pieces of a struct taio_pieces were read."""
        lib.taio_pieces_note_known(pieces, ffi.from_buffer("uint8_t[]", self._regions, True), self._shift, REGIONS)
        self._note_whole()

    def _note_whole(self) -> None:
        if not self.whole:
            self.whole = 0 < self._left <= self._regions.count(1)
