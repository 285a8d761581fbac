"""Direct I/O at any offset, of any length, from and to any memory.

How the kernel works. O_DIRECT takes offsets, lengths and addresses that are multiples of what ``statx(2)`` says (STATX_DIOALIGN), and
answers EINVAL to others. It cannot write part of a block.

What we do about it. A read is widened to the blocks around it, in aligned memory, and the bytes that were asked for are copied out. A
write whose memory alone is not aligned is copied into aligned memory. A write whose offset or length is not aligned, and an append, goes
through the page cache, by a second descriptor. The kernel then reads what it needs of the blocks at the edges, keeps the size right, and
orders the write with others. Doing this ourselves would take several steps, and a crash or another process could interrupt them.

The life of aligned memory, a `Slab`:

- taken: `start_short`, or `can_submit` when the request is dispatched, takes it from the pool. Without memory the request fails: ENOMEM.
- warm: a worker has touched its huge page. Until then the request is held (`new_memory`), and is dispatched again afterwards.
- in flight: its address is in an iocb or in a worker's slot, so the device may write to it. The request owns it.
- copied out: `settle` makes `bytes` of it, or fills the caller's buffer.
- returned: `complete_kernel` returns it to the pool in the usual case, and `release_memory` in all others. It is used again at once.
- kept: a `KeptRead` that has completed keeps it, uncopied, until its bytes were taken: `let_go` returns it.
- abandoned: no task waits any more, so nothing is copied out. The slab stays with the request, and returns when the completion is taken.
- withdrawn: the request never ran; the slab returns at once.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from trio_aio._arguments import LARGEST_OFFSET
from trio_aio._engine.mending import keep_cause, mend
from trio_aio._engine.new_memory import stop_waiting, wait_for_memory
from trio_aio._lanes.protocols import State
from trio_aio._lanes.short_ways import DUE, GATHERED, LOOK, NO_SLOT, SETS_TIME
from trio_aio._memory.slabs import LARGEST_SLAB
from trio_aio._native import lib
from trio_aio._requests.transfer import DIRECT_LIMIT, Append, Read, Transfer, Write, WriteVector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._engine.host import Host
    from trio_aio._memory.exports import Export, Vector
    from trio_aio._memory.slabs import Slab

__all__ = (
    *("SlabWrite", "BufferedAppend", "BufferedWrite", "BufferedWriteVector", "KeptRead", "WidenedRead"),
    *("fits_slab", "is_block_write", "is_read_aligned", "is_write_aligned", "read_worker_path", "widened", "write_worker_path"),
)

_ENOMEM = -errno.ENOMEM
_WITHDRAWN, _COMPLETED = State.WITHDRAWN, State.COMPLETED


def widened(before: int, size: int, unit: int) -> int:
    """Return the length of the whole blocks around `size` bytes that start `before` bytes behind a block's start."""
    return (before + size + unit - 1) // unit * unit


def is_read_aligned(descriptor: Descriptor, offset: int, size: int, exports: Sequence[Export]) -> bool:
    """Return whether a read can go to the device as it is. Always true for a buffered file."""
    unit = descriptor.read_unit
    return not (offset % unit or size % unit) and _is_memory_aligned(descriptor, exports, unit)


def is_block_write(descriptor: Descriptor, offset: int, size: int, flags: int) -> bool:
    """Return whether O_DIRECT can do a write, given aligned memory. Always true for a buffered file.

    Never true for an append: btrfs leaves the descriptor's position as if no other write had been appended meanwhile.
    """
    unit = descriptor.alignment.offset
    return not descriptor.o_direct or not (offset % unit or size % unit or descriptor.append or flags & lib.RWF_APPEND)


def is_write_aligned(descriptor: Descriptor, exports: Sequence[Export]) -> bool:
    """Return whether a write of whole blocks can go to the device from the memory that it is in."""
    return _is_memory_aligned(descriptor, exports, descriptor.alignment.offset)


def _is_memory_aligned(descriptor: Descriptor, exports: Sequence[Export], unit: int) -> bool:
    memory = descriptor.alignment.memory
    return memory == 1 or not any(export.address % memory or export.length % unit for export in exports)


def fits_slab(descriptor: Descriptor, offset: int, size: int) -> bool:
    """Return whether a read is small enough for memory of the pool, and its blocks end below the largest offset. A worker takes others."""
    unit = descriptor.read_unit
    return size + offset % unit <= LARGEST_SLAB and offset + size <= LARGEST_OFFSET - unit


def read_worker_path(descriptor: Descriptor, memory: Export | Vector) -> int:
    """Return how a worker reads through its own aligned memory into a caller's; 0 where that is not needed. native.h, TAIO_READ."""
    worker_path = descriptor.read_worker_path
    return worker_path | lib.TAIO_MAPPED if worker_path and memory.mapped else worker_path


def write_worker_path(descriptor: Descriptor, memory: Export | Vector) -> int:
    """Return how a worker writes whole blocks through its own aligned memory; 0 where that is not needed. native.h, TAIO_READ."""
    worker_path = descriptor.write_worker_path
    return worker_path | lib.TAIO_MAPPED if worker_path and memory.mapped and not worker_path & lib.TAIO_BUFFERED_FD else worker_path


class InSlab(Transfer):
    """A transfer from or to a slab, taken when the request is dispatched. While it is new, the request waits for a worker to touch it.

    By then the request has its lease, and may have waited for others: without memory it ends with ENOMEM, and no exception is raised.
    """

    __slots__ = ()

    slab: Slab | None
    exports: Sequence[Export] | None  # callers' memory, held until the request has ended

    def can_submit(self, engine: Host) -> bool | None:
        slab = self.slab
        if slab is None:
            try:
                self.slab = slab = engine.buffers.take(self.nbytes)
            except (MemoryError, OSError) as error:
                if isinstance(error, MemoryError):
                    keep_cause(self, error)
                engine.finish(self, _ENOMEM)
                return None
            self.address = slab.address
        if not slab.page.warm:
            wait_for_memory(slab.page, self)
            return None
        return super().can_submit(engine)

    def withdraw_held(self) -> None:
        if self.slab is None or not stop_waiting(self.slab.page, self):
            super().withdraw_held()

    def release_memory(self, engine: Host) -> None:
        if self.slab is not None:
            engine.buffers.return_slab(self.slab)
            self.slab = None
        if self.exports is not None:
            self.exports = ()


class WidenedRead(InSlab, Read):
    """The blocks around a range, into a slab. When it completes, the bytes that were asked for are copied out."""

    __slots__ = ("before", "data", "exports", "no_memory", "size", "slab")

    # The same for all of them: one store less for each request.
    owned: Any = None
    worker_path: int = 0
    may_chain: bool = False
    partly_read: bool = False

    def __init__(self, descriptor: Descriptor, size: int, offset: int, flags: int, exports: Sequence[Export] | None = None) -> None:
        unit = descriptor.read_unit
        before = offset % unit
        # As the constructors of the base classes, in one function: this is the most frequent request of a direct file.
        self.descriptor = descriptor
        self.state = State.CREATED
        self.token = -1
        self.result = self.transferred = 0
        self.waiter = self.group = None
        self.cancel_requested = self.cancel_accepted = self.abandoned = self.outstanding = False
        self.address = 0
        self.nbytes = (before + size + unit - 1) // unit * unit
        self.offset = offset - before
        self.flags = flags
        self.probing = self.offload = False
        self.slab: Slab | None = None
        self.size: int = size
        self.before: int = before  # bytes in front of what was asked for
        self.exports = exports  # where the bytes go; None: to `data`
        self.data: bytes = b""
        self.no_memory: MemoryError | None = None  # for `data`

    def start_short(self, engine: Host) -> bool:
        """Start: `Engine.submit` and what it calls, in one function, for the usual case. All others go the usual way.

        Return True only if the request has not ended.
        """
        try:
            descriptor, lane = self.descriptor, engine.kernel
            order, device = descriptor.order, descriptor.read_device
            if (
                lane is None
                or engine.hook is not None
                or order.closing
                or device.skips_left
                or device.offload
                or self.nbytes > DIRECT_LIMIT
            ):
                return engine.submit(self)
            block_map = descriptor.block_map
            if not block_map.whole and not block_map.has(self.offset, self.nbytes):
                return engine.submit(self)
            self.slab = slab = engine.buffers.take(self.nbytes)
            self.address = slab.address
            if not slab.page.warm or lane.queue or not lane.free:
                return engine.submit(self)
            self.probing = True
            engine.submitted_kernel += 1
            order.leases, engine.outstanding, self.outstanding = order.leases + 1, engine.outstanding + 1, True
            answer = lane.start_short(self, descriptor.fd, slab.address, self.nbytes, self.offset)
            if answer == SETS_TIME:  # a submitter calls io_submit, which may sleep
                self.offload = True
                lane.accept(self)
                answer = DUE if lane.is_due else GATHERED
            if answer == NO_SLOT:
                lane.accept(self)  # too many bytes are in flight: it waits
            elif answer == GATHERED:
                if not engine.plugged:
                    engine.ask_for_flush()
            elif answer == DUE:
                engine.flush()
            elif answer == LOOK:
                engine.reap(drain=False)
            return self.state < _WITHDRAWN
        except BaseException as error:
            mend(engine, error, self)
            raise

    def complete_kernel(self, engine: Host, token: int, result: int) -> None:
        """Take the completion: what the base classes and `Engine.finish` do, in one function, for the usual case."""
        order = self.descriptor.order
        if (
            result != self.nbytes
            or self.cancel_accepted
            or self.abandoned
            or self.offload
            or order.closing
            or engine.hook is not None
            or self.group is not None
        ):
            super().complete_kernel(engine, token, result)
            return
        self.descriptor.read_device.slow = 0
        self.transferred = self.result = result
        engine.completed += 1
        engine.bytes_read += result
        slab = self.slab
        assert slab is not None
        if self.exports is None and self.size == result:  # as `_take_data`, for whole blocks
            try:
                self.data = slab.memory[slab.start : slab.start + result]
            except MemoryError as error:  # the caller's, not the reaper's
                self.result, self.no_memory = _ENOMEM, error
        else:
            self._take_data(engine, slab, result)
        engine.buffers.return_slab(slab)
        self.slab, self.state = None, _COMPLETED
        order.leases, engine.outstanding, self.outstanding = order.leases - 1, engine.outstanding - 1, False
        if self.waiter is not None:
            engine.wake(self)

    def error(self) -> BaseException:
        return self.no_memory or super().error()

    def settle(self, engine: Host) -> None:
        engine.bytes_read += self.transferred
        if self.result >= 0 and not self.abandoned and not self.cancel_accepted:
            assert self.slab is not None
            self._take_data(engine, self.slab, self.result)

    def _take_count(self, engine: Host, result: int) -> int:
        """Make the length of what was asked for, and was read, the result, and return it."""
        count = result - self.before
        if count > self.size:
            count = self.size
        elif count < 0:
            count = 0
        self.result = count
        if self.exports is not None or self.size != self.nbytes:
            engine.bounced_bytes += count
        return count

    def _take_data(self, engine: Host, slab: Slab, result: int) -> None:
        """Copy out what was asked for, and make its length the result."""
        count = self._take_count(engine, result)
        if self.exports is None:
            start = slab.start + self.before
            try:
                self.data = slab.memory[start : start + count]
            except MemoryError as error:  # the caller's, not the reaper's
                self.result, self.no_memory = _ENOMEM, error
        else:
            slab.scatter(self.exports, count, self.before)
            self.exports = ()


class KeptRead(WidenedRead):
    """A read of a direct file ahead of its consumer. The bytes stay in the slab until they are taken, one read at a time.

    A disk completes several at once. Copied as they complete, 1 MiB in 100 us, they would be late together, and the disk would stand
    still meanwhile: the next reads start when a task has run.
    """

    __slots__ = ("kept", "taken")

    def __init__(self, descriptor: Descriptor, size: int, offset: int) -> None:
        super().__init__(descriptor, size, offset, 0)
        self.kept: bool = False
        self.taken: bool = False  # or nobody will

    def complete_kernel(self, engine: Host, token: int, result: int) -> None:
        Read.complete_kernel(self, engine, token, result)

    def _take_data(self, engine: Host, slab: Slab, result: int) -> None:
        self._take_count(engine, result)

    def release_memory(self, engine: Host) -> None:
        if self.state is _COMPLETED and self.result > 0 and not (self.taken or self.abandoned or self.cancel_accepted):
            if not self.kept:
                self.kept, engine.buffers.kept = True, engine.buffers.kept + 1
        else:
            super().release_memory(engine)

    def copy(self) -> bytes:
        """Return the bytes of a completed read that has not failed. They can be copied again until `let_go`."""
        return self.slab.copy_out(self.result, self.before) if self.slab is not None else b""

    def let_go(self, engine: Host) -> None:
        if self.kept:
            self.kept, engine.buffers.kept, self.taken = False, engine.buffers.kept - 1, True
            try:
                super().release_memory(engine)
            except MemoryError as error:  # the caller has its bytes, or wants none
                mend(engine, error, self)


class SlabWrite(InSlab, Write):
    """Whole blocks from memory that is not aligned, copied into a slab first."""

    __slots__ = ("exports", "slab")

    def __init__(self, descriptor: Descriptor, exports: Sequence[Export], size: int, offset: int, flags: int) -> None:
        Write.__init__(self, descriptor, 0, size, offset, flags, None)
        self.exports = exports
        self.slab: Slab | None = None

    def can_submit(self, engine: Host) -> bool | None:
        can = super().can_submit(engine)
        if can is not None and self.exports is not None:
            assert self.slab is not None
            self.slab.gather(self.exports)
            engine.bounced_bytes += self.nbytes
            self.exports = None
        return can


class BufferedWrite(Write):
    """Bytes into a direct file through the page cache, by its second descriptor."""

    __slots__ = ()

    buffered = True

    def __init__(self, descriptor: Descriptor, address: int, nbytes: int, offset: int, flags: int, owned: object) -> None:
        Write.__init__(self, descriptor, address, nbytes, offset, flags, owned, descriptor.through_cache)


class BufferedWriteVector(WriteVector):
    """Several buffers into a direct file through the page cache."""

    __slots__ = ()

    buffered = True

    def __init__(self, descriptor: Descriptor, vector: Vector, offset: int, flags: int) -> None:
        WriteVector.__init__(self, descriptor, vector, offset, flags, descriptor.through_cache)


class BufferedAppend(Append):
    """Bytes to the end of a direct file through the page cache."""

    __slots__ = ()

    buffered = True

    def __init__(self, descriptor: Descriptor, address: int, nbytes: int, owned: object) -> None:
        Append.__init__(self, descriptor, address, nbytes, owned)
        self.worker_path = descriptor.through_cache
