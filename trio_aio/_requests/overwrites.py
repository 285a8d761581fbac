"""Small overwrites of direct files, by a short way.

How the kernel works. A direct write of whole blocks below the end of the file is what databases do most, and the device needs less time for
it than Python does for the general way.

What we do about it. The caller's bytes are copied into aligned memory: 4 KiB are copied faster than their address is found out. Then what
`Engine.submit` and all that it calls would do is done in one function, for the plain case: no close, no fault of a test, the submitter's
thread runs, its memory was touched, and a slot is free. So is the completion, where no sync and no close waits. All else, the order of the
file included, is that of `SlabWrite`, and takes the general way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_aio._engine.mending import mend
from trio_aio._lanes.protocols import State
from trio_aio._lanes.short_ways import DUE, NO_SLOT
from trio_aio._memory.exports import export_buffer
from trio_aio._requests.direct import SlabWrite

if TYPE_CHECKING:
    from mmap import mmap

    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._engine.host import Host
    from trio_aio._memory.exports import Export
    from trio_aio._memory.slabs import Slab

__all__ = ("LARGEST_OVERWRITE", "Overwrite")

LARGEST_OVERWRITE = 16 << 10  # bytes: of more, a copy costs more than what it saves

_HELD, _WITHDRAWN, _COMPLETED = State.HELD, State.WITHDRAWN, State.COMPLETED


class Overwrite(SlabWrite):
    """A few whole blocks from memory that belongs to no mapped file. `data` is copied when the request starts, or held until it does."""

    __slots__ = ("data",)

    # The same for all of them: one store less for each request.
    owned: Any = None
    group: Any = None
    worker_path: int = 0

    def __init__(self, descriptor: Descriptor, data: bytes | bytearray | mmap, size: int, offset: int) -> None:
        # As the constructors of the base classes, in one function: this is the most frequent request of a database.
        self.descriptor = descriptor
        self.state = State.CREATED
        self.token = -1
        self.result = self.transferred = self.address = self.flags = 0
        self.waiter = None
        self.cancel_requested = self.cancel_accepted = self.abandoned = self.outstanding = False
        self.passed_gate = self.probing = False
        self.nbytes = size
        self.offset = offset
        self.slab: Slab | None = None
        self.exports: tuple[Export, ...] | None = None
        self.data: bytes | bytearray | mmap | None = data

    def start_short(self, engine: Host) -> bool:
        """Start: `Engine.submit` and what it calls, in one function, for the usual case. All others go the usual way.

        Return True only if the request has not ended.
        """
        try:
            descriptor, lane = self.descriptor, engine.kernel
            order, device, shared = descriptor.order, descriptor.write_device, descriptor.shared_file
            gate, size, offset = order.gate, self.nbytes, self.offset
            submitter = None if lane is None else lane.submitters.get(device)
            if (
                lane is None
                or submitter is None
                or not submitter.started
                or gate is None
                or shared is None
                or engine.hook is not None
                or order.closing
                or device.skips_left
                or lane.queue
                or not lane.free
                or offset + size > descriptor.size
            ):
                self._submit(engine)
                return False
            self.slab = slab = engine.buffers.take(size)
            self.address = slab.address
            if not slab.page.warm:
                self._submit(engine)
                return False
            start, data = slab.start, self.data
            slab.memory[start : start + size] = data  # type: ignore[assignment]
            self.data = None
            engine.outstanding, self.outstanding = engine.outstanding + 1, True
            shared.note_change()
            order.leases, _ = order.leases + 1, order.writes.add(self)
            if not gate.enter(self):
                self.state = _HELD
                return True
            engine.submitted_kernel += 1
            answer = lane.gather_short(self, submitter, descriptor.fd, slab.address, size, offset)
            if answer == NO_SLOT:
                lane.accept(self)  # too many bytes are in flight: it waits
            elif answer == DUE:
                lane.hand_over()  # the flush of this tick, if there is one, then has less to do
                if lane.left:  # of another submitter
                    engine.ask_for_flush()
            elif not engine.plugged:
                engine.ask_for_flush()
            return self.state < _WITHDRAWN
        except BaseException as error:
            mend(engine, error, self)
            raise

    def _submit(self, engine: Host) -> None:
        """Start it the general way: it may have to wait, so the caller's memory is held."""
        if self.data is not None:
            self.exports, self.data = (export_buffer(self.data, writable=False),), None
        engine.submit(self)

    def complete_kernel(self, engine: Host, token: int, result: int) -> None:
        """Take the completion: what the base classes and `Engine.finish` do, in one function, for the usual case."""
        descriptor = self.descriptor
        order, shared = descriptor.order, descriptor.shared_file
        gate = order.gate
        if (
            result != self.nbytes
            or self.abandoned
            or order.syncs
            or order.closing
            or engine.hook is not None
            or gate is None
            or gate.waiting
            or shared is None
        ):
            super().complete_kernel(engine, token, result)
            return
        self.transferred = self.result = result
        engine.completed += 1
        engine.bytes_written += result
        if self.offset + result > descriptor.size:
            descriptor.size = self.offset + result
        slab = self.slab
        assert slab is not None
        engine.buffers.return_slab(slab)
        self.slab, self.state = None, _COMPLETED
        shared.note_change()
        shared.durability.note_written(self.offset, self.offset + result, self, durable=descriptor.synchronous)
        gate.leave(self)
        order.leases, engine.outstanding, self.outstanding, _ = order.leases - 1, engine.outstanding - 1, False, order.writes.discard(self)
        if self.waiter is not None:
            engine.wake(self)

    def release_memory(self, engine: Host) -> None:
        self.data = None
        super().release_memory(engine)
