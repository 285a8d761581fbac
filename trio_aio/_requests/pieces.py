"""Many ranges of one file in one request. C takes the pieces through a lane without a Python object for each (pieces.c).

The pieces are read or written in any order, and the request is whole when all of them are. Pieces that the inline or the kernel lane could
not move without sleeping stay open for a worker.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from trio_aio._engine.mending import LOST, keep_cause
from trio_aio._engine.new_memory import stop_waiting, wait_for_memory
from trio_aio._engine.withdrawal import end_withdrawn
from trio_aio._lanes.protocols import State
from trio_aio._memory.slabs import LARGEST_SLAB
from trio_aio._native import ffi, lib
from trio_aio._requests.base import Request
from trio_aio._requests.direct import widened
from trio_aio._requests.transfer import DIRECT_LIMIT
from trio_aio._requests.written import note_pieces

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._engine.host import Host
    from trio_aio._lanes.devices import DeviceRecord
    from trio_aio._lanes.kernel import KernelLane
    from trio_aio._lanes.submitter import Submitter
    from trio_aio._lanes.workers import WorkerLane
    from trio_aio._memory.exports import Export
    from trio_aio._memory.slabs import Slab
    from trio_aio._native import CData

__all__ = ("Pieces", "PiecesRead", "PiecesRequest", "PiecesWrite")

_LARGEST_PROBE = 16 << 10  # bytes of a piece: io_submit copies what is in the page cache after all, on the event loop's thread
_EAGAIN, _EOPNOTSUPP, _EIO, _ENOMEM = -errno.EAGAIN, -errno.EOPNOTSUPP, -errno.EIO, -errno.ENOMEM


class Pieces:
    """The pieces, and the memory that they are in."""

    __slots__ = (
        *("address", "aligned", "array", "count", "end", "largest", "mapped", "most", "native"),
        *("kernel_had_it", "owned", "parent", "places", "slab_address", "slab_capacity", "slots", "submitter"),
    )

    def __init__(self, descriptor: Descriptor, count: int, owned: object, *, writing: bool, through_cache: bool = False) -> None:
        self.native: CData = ffi.new("struct taio_pieces *")
        self.array: CData = ffi.new("struct taio_piece[]", count)
        self.owned: Any = owned  # callers' memory: kept alive until the request for the pieces has ended
        self.parent: Pieces | None = None  # what they are a part of, kept alive for its array
        self.address: int = int(ffi.cast("uintptr_t", self.native))
        self.count: int = count
        self.aligned: bool = False  # the kernel lane takes the pieces as they are
        self.largest: int = 0  # bytes of the largest piece
        self.end: int = 0  # of the piece that lies furthest behind in the file
        self.mapped: bool = False  # some of the memory may belong to a mapped file, so only workers touch it
        self.kernel_had_it: bool = False  # the kernel lane: it may have moved bytes
        self.slots: int = 0  # of the kernel lane that it has
        self.most: int = 0  # that it may have
        self.submitter: Submitter | None = None  # submits them in the kernel lane; None: the event loop does
        self.slab_address: int = 0  # aligned memory for the kernel lane, a place of it for each slot
        self.slab_capacity: int = 0
        self.places: list[int] = []  # free ones
        native = self.native
        native.pieces = self.array
        native.count = count
        native.fd = descriptor.fd
        native.writing = writing
        if through_cache:
            native.unit = native.memory_unit = 1
        else:
            native.unit = descriptor.alignment.offset if writing else descriptor.read_unit
            native.memory_unit = descriptor.alignment.memory

    def part(self, descriptor: Descriptor, owned: object, first: int, count: int) -> Pieces:
        """Return some of the pieces as an object of its own, which owns their memory; the pieces stay where they are."""
        part = Pieces(descriptor, 0, owned, writing=bool(self.native.writing))
        part.parent = self
        part.native.pieces = part.array = self.array + first
        part.native.count = part.count = count
        part.largest, part.aligned = self.largest, self.aligned
        part._set_mapped(self.mapped)
        return part

    @classmethod
    def blocks(cls, descriptor: Descriptor, numbers: ReadableBuffer, size: int, into: Export) -> Pieces:
        """Read blocks of `size` bytes at offsets, a buffer of int64, into `into`, side by side. ValueError: a negative offset."""
        offsets = ffi.from_buffer("int64_t[]", numbers)
        pieces = cls(descriptor, len(offsets), None, writing=False)
        bad = ffi.new("uint64_t *")
        try:
            if lib.taio_pieces_blocks(pieces.native, offsets, size, into.address, bad) < 0:
                raise ValueError(f"negative offset: {offsets[bad[0]]}")
            pieces.owned = into
            pieces._set_mapped(into.mapped)
        finally:
            del into, offsets, numbers
        pieces.largest = size
        pieces._check_alignment()
        return pieces

    @classmethod
    def ranges(cls, descriptor: Descriptor, parts: list[tuple[int, Export]], *, writing: bool, through_cache: bool = False) -> Pieces:
        """Read or write each export at its offset. `through_cache`: by the second descriptor of a direct file."""
        pieces = cls(descriptor, len(parts), parts, writing=writing, through_cache=through_cache)
        bits = memory_bits = 0
        for i, (offset, export) in enumerate(parts):
            length = export.length
            pieces.array[i] = (offset, export.address, length, lib.TAIO_UNTRIED)
            pieces.largest = max(pieces.largest, length)
            pieces.end = max(pieces.end, offset + length)
            bits |= offset | length
            memory_bits |= export.address
        pieces.native.bits, pieces.native.memory_bits = bits, memory_bits
        pieces._set_mapped(any(export.mapped for _, export in parts))
        pieces._check_alignment()
        return pieces

    def _set_mapped(self, mapped: bool) -> None:
        self.mapped = self.native.mapped = mapped

    def _check_alignment(self) -> None:
        native = self.native
        self.aligned = not (native.bits % native.unit or native.memory_bits % native.memory_unit)

    @property
    def whole(self) -> bool:
        """Whether each piece is read or written to its last byte."""
        return self.first_open == self.count

    @property
    def first_open(self) -> int:
        """The index of the first piece that is not whole; `count` if there is none."""
        index: int = lib.taio_pieces_first_open(self.native)
        return index

    def stop(self) -> None:
        """Start no more pieces."""
        self.native.stop = 1

    def fail(self, piece: CData, moved: int) -> None:
        """End with a piece that failed, of which `moved` bytes were moved."""
        lib.taio_pieces_fail(self.native, piece, moved)

    def read_inline(self, limit: int) -> int:
        """Read from the page cache: 0 when all is done, 1 after about `limit` bytes, -errno of the piece that is not cached."""
        return lib.taio_pieces_inline(self.native, limit)

    def failure(self) -> tuple[int, int] | None:
        """Return offset and errno of the piece that stopped the request."""
        piece = self.native.failed
        return (piece.offset, -piece.result) if piece else None

    @property
    def moved_inline(self) -> int:
        """Bytes of the pieces that the inline lane has read. Another lane reads the one that it stopped at, from its beginning."""
        native = self.native
        stopped_at = self.array[native.next].result if native.next < native.count else 0
        return self.moved - max(stopped_at, 0)

    @property
    def moved(self) -> int:
        """Bytes read or written, in all."""
        moved: int = lib.taio_pieces_moved(self.native)
        return moved


class PiecesRequest(Request):
    """Many pieces of one file. In the kernel lane it may have a slot for each piece in flight."""

    __slots__ = ("nbytes", "pieces", "probing", "slab")

    is_batch = True
    offload: Any = True  # a submitter calls io_submit, which may sleep
    reads: bool

    def __init__(self, descriptor: Descriptor, pieces: Pieces) -> None:
        Request.__init__(self, descriptor)
        self.pieces: Pieces = pieces
        self.nbytes: int = pieces.largest
        self.probing: bool = False  # submitted with an RWF_NOWAIT of ours
        self.slab: Slab | None = None

    @property
    def count(self) -> int:
        """The number of pieces: statistics count each."""
        return self.pieces.count

    @property
    def device(self) -> DeviceRecord:
        """What the device was found to do in this direction."""
        return self.descriptor.read_device if self.reads else self.descriptor.write_device

    @property
    def failed(self) -> bool:
        return self.result < 0 or self.pieces.failure() is not None

    @property
    def has_moved_bytes(self) -> bool:
        return self.pieces.kernel_had_it or self.transferred > 0

    def can_submit(self, engine: Host) -> bool | None:
        """Direct, of a size that io_submit starts quickly, with aligned memory."""
        if not engine.may_use_kernel or not 0 < self.nbytes <= DIRECT_LIMIT or self.pieces.mapped:
            return False
        device = self.device
        if self.slab is None and not device.should_try():
            return False
        self.probing = device.nowait
        return self.pieces.aligned or self._provide_slab(engine)

    def _provide_slab(self, engine: Host) -> bool | None:
        """Take aligned memory for pieces that are not aligned. None: they wait for it, or there is none."""
        pieces = self.pieces
        native = pieces.native
        if self.slab is None:
            stride = widened(0, widened(native.unit - 1, pieces.largest, native.unit), native.memory_unit)
            places = min(pieces.count, engine.max_in_flight, LARGEST_SLAB // stride)
            if not places:
                return False
            try:
                self.slab = engine.buffers.take(places * stride)
            except (MemoryError, OSError) as error:
                if isinstance(error, MemoryError):
                    keep_cause(self, error)
                self.finish(engine, _ENOMEM)
                return None
            pieces.slab_address, pieces.slab_capacity = self.slab.address, self.slab.capacity
            native.stride = stride
        if self.slab.page.warm:
            return True
        wait_for_memory(self.slab.page, self)
        return None

    def prepare(self, lane: KernelLane, slot: int) -> None:
        self.pieces.native.flags = lib.RWF_NOWAIT if self.probing else 0
        lane.start_pieces(self, slot, self.device if self.offload else None)

    def start_worker(self) -> None:
        self.pieces.native.next = 0
        self.pieces.native.flags = 0

    def fill_slot(self, lane: WorkerLane, slot: int, before: int) -> None:
        lane.prepare(slot, before, self.token, lib.TAIO_PIECES, self.descriptor.fd, self.pieces.address, extra=self.worker_path)

    @property
    def worker_path(self) -> int:
        """How a worker moves the bytes: native.h, TAIO_READ."""
        return 0

    def complete_kernel(self, engine: Host, token: int, result: int) -> None:
        """Take back a slot. After the last the request is whole, was stopped, or is left to a worker."""
        assert engine.kernel is not None
        if not engine.kernel.take_slot_back(self, token):
            return
        pieces, direct = self.pieces, self.descriptor.direct
        if pieces.native.slept:
            self.device.note_slept()
        if pieces.native.stop or pieces.whole:
            if self.probing and direct and pieces.whole:
                self.device.note_fast()
            self.finish(engine, 0)
            return
        first = pieces.array[pieces.first_open].result
        if self.probing and first == _EOPNOTSUPP:
            self.device.note_no_nowait()
        elif self.probing and first == _EAGAIN and direct:
            self.device.note_slow()
        engine.retried += 1
        engine.to_workers(self)

    def leave_kernel(self, engine: Host, result: int) -> None:
        assert engine.kernel is not None
        engine.kernel.withdraw_pieces(self)
        engine.to_workers(self)

    def complete_worker(self, engine: Host, result: int, transferred: int) -> None:
        self.finish(engine, min(result, 0))

    def finish(self, engine: Host, error: int) -> None:
        """End with what the pieces say."""
        if self.result == LOST:  # a step of it was torn
            error = LOST
        self.transferred: int = self.pieces.moved
        engine.finish(self, error)

    def release_memory(self, engine: Host) -> None:
        if self.slab is not None:
            engine.buffers.return_slab(self.slab)
            self.slab = None
        self.pieces.owned = None

    def withdraw(self, engine: Host) -> bool:
        if self.state in (State.KERNEL_PREPARED, State.KERNEL_HANDED_OVER, State.KERNEL_IN_FLIGHT):
            assert engine.kernel is not None
            if not engine.kernel.withdraw_pieces(self):
                return False
            engine.start_queued()
            return True
        return Request.withdraw(self, engine)

    def withdraw_held(self) -> None:
        if self.slab is None or not stop_waiting(self.slab.page, self):
            Request.withdraw_held(self)


class PiecesRead(PiecesRequest):
    """Read many ranges. Of a buffered file the kernel lane starts the read-ahead of cold pages, and a worker collects them."""

    __slots__ = ("offload",)

    fault_name = "read"
    reads = True

    def __init__(self, descriptor: Descriptor, pieces: Pieces) -> None:
        PiecesRequest.__init__(self, descriptor, pieces)
        self.offload: bool = False

    def can_submit(self, engine: Host) -> bool | None:
        """Direct reads as all requests of pieces; a submitter calls io_submit where it may sleep. Buffered ones: always a submitter."""
        descriptor = self.descriptor
        if descriptor.direct:
            can = PiecesRequest.can_submit(self, engine)
            if can:
                self.offload = descriptor.read_device.must_offload() or not descriptor.block_map.has_pieces(self.pieces.native)
            return can
        self.probing, self.offload = self.device.nowait, True
        return engine.may_use_kernel and self.probing and 0 < self.nbytes <= _LARGEST_PROBE and not self.pieces.mapped

    def prepare(self, lane: KernelLane, slot: int) -> None:
        if not self.offload:  # see `Read.prepare_length`
            self.offload = bool(lib.taio_sets_access_time(self.descriptor.fd))
        PiecesRequest.prepare(self, lane, slot)

    def settle(self, engine: Host) -> None:
        engine.bytes_read += self.transferred
        if self.descriptor.direct and not self.pieces.aligned:
            engine.bounced_bytes += self.transferred

    def finish(self, engine: Host, error: int) -> None:
        if self.offload and self.descriptor.direct:
            self.descriptor.block_map.add_pieces(self.pieces.native)
            if self.device.local is None and engine.kernel is not None:
                engine.kernel.learn(self.device)
        if self.cancel_requested and not self.pieces.whole:
            self.cancel_accepted = True
        PiecesRequest.finish(self, engine, error)

    def cancel(self, engine: Host) -> bool:
        """Start no more pieces, and withdraw those that no lane has started: read pieces lose nothing."""
        self.pieces.stop()
        if not self.withdraw(engine):
            return False
        end_withdrawn(engine, self)
        return True


class PiecesWrite(PiecesRequest):
    """Write many ranges. `buffered`: through the page cache of a direct file."""

    __slots__ = ("buffered", "passed_gate")

    changes = ordered = gated = True
    fault_name = "write"
    tells_written = True
    reads = False

    def __init__(self, descriptor: Descriptor, pieces: Pieces, *, buffered: bool = False) -> None:
        PiecesRequest.__init__(self, descriptor, pieces)
        self.buffered: bool = buffered
        self.passed_gate: bool = False

    @property
    def worker_path(self) -> int:
        return self.descriptor.through_cache if self.buffered else 0

    def can_submit(self, engine: Host) -> bool | None:
        """Overwrites of direct files only."""
        descriptor = self.descriptor
        if self.buffered or not descriptor.direct or descriptor.append or self.pieces.end > descriptor.size:
            return False
        return PiecesRequest.can_submit(self, engine)

    def settle(self, engine: Host) -> None:
        engine.bytes_written += self.transferred
        if self.descriptor.direct and not self.pieces.aligned and not self.buffered:
            engine.bounced_bytes += self.transferred
        if self.result >= 0 and not self.descriptor.append and self.pieces.whole:
            self.descriptor.size = max(self.descriptor.size, self.pieces.end)
        note_pieces(self)

    def finish(self, engine: Host, error: int) -> None:
        if not error and not self.pieces.native.stop and not self.pieces.whole:
            error = _EIO  # it moved less, and no piece says why
        PiecesRequest.finish(self, engine, error)
