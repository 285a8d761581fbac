"""The kernel lane: io_submit.

How the kernel works. ``io_submit`` is asynchronous only for what the filesystem can start without sleeping. RWF_NOWAIT makes it say
EAGAIN (in the event) where it would have slept, so every read and write of ours carries it where the filesystem knows it. Each call
costs a doorbell of the device, and all requests of one call share it; but the device gets none of them before the kernel has the last.
The call stops at a request that it refuses; ring.c goes on behind.

A block device takes so many pieces at a time (``nr_requests``, often 256; 1 MiB in scattered pages is several), and whoever comes with
more sleeps in the call, whatever RWF_NOWAIT says: 99 reads of 1 MiB kept the loop for 83 ms.

What we do about it. A request that finds the lane empty is submitted at once; others are prepared, and submitted together at
the end of the event loop's tick, when all tasks that were woken together have had their turn, a few in each call. The bytes in flight
are bounded. A run goes on in C: while completions are taken the pieces behind them are submitted, a few at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_aio._lane import SLOT_MASK, Lane
from trio_aio._native import ffi, lib
from trio_aio._request import Operation, Request, State

if TYPE_CHECKING:
    from trio_aio._kernel_context import KernelContext
    from trio_aio._native._ext import CData
    from trio_aio._run import Run

__all__ = ("KernelLane",)

_NAMES = {"READ": "PREAD", "WRITE": "PWRITE", "READV": "PREADV", "WRITEV": "PWRITEV", "FDATASYNC": "FDSYNC"}
_COMMANDS = tuple(getattr(lib, f"IOCB_CMD_{_NAMES.get(operation.name, operation.name)}", -1) for operation in Operation)
_NOWAIT = lib.RWF_NOWAIT
# How many requests go together before the end of the tick: the device should not be idle meanwhile. A thousand reads of 4 KiB by 16 and
# by 64 tasks: 30 and 28 ms where all waited for the end of the tick, 24 and 23 in eights, 33 and 19 in sixteens.
FEW, MANY = 8, 16
_BLIND, _BLIND_BYTES = 16, 512 << 10  # pieces and bytes of a run that io_submit is given where the device does not know NOWAIT
_prepare = lib.taio_ring_prepare


class KernelLane(Lane):
    """Requests that the kernel has, or will have at the end of this tick."""

    queued_state = State.KERNEL_QUEUED
    byte_limit = 16 << 20

    def __init__(self, first: int, slots: int, context: KernelContext, event_fd: int) -> None:
        super().__init__(first, slots)
        self.context: KernelContext = context
        self.ring: CData = lib.taio_ring_new(context.id, slots, event_fd)
        if not self.ring:
            raise MemoryError
        self._prepared: list[Request] = []
        self._crowd: int = 0  # requests that were in flight of late
        self._enough: int = FEW
        self._runs: list[Request] = []  # that have slots
        self._places: list[int] = [0] * slots  # of each slot of a run in its slab
        self._refused: CData = ffi.new("struct taio_completion[]", slots)

    @property
    def submit_calls(self) -> int:
        """How many times io_submit was called."""
        calls: int = lib.taio_ring_calls(self.ring)
        return calls

    @property
    def prepared(self) -> int:
        """How many requests, or pieces of runs, wait for `submit`."""
        return lib.taio_ring_prepared(self.ring)

    @property
    def is_due(self) -> bool:
        """Whether what is prepared should not wait for the end of the tick: it is all there is, or enough to share a doorbell."""
        prepared = len(self._prepared)
        return prepared >= self._enough or self.slots - len(self._free) == prepared == 1

    def _start(self, request: Request, slot: int) -> None:
        request.state = State.KERNEL_PREPARED
        if request.run is not None:
            self._start_run(request, request.run, slot)
            return
        flags = request.flags | _NOWAIT if request.probing else request.flags
        _prepare(
            self.ring,
            slot,
            request.token,
            _COMMANDS[request.operation],
            request.descriptor.fd,
            request.address,
            request.length,
            request.offset,
            flags,
        )
        self._prepared.append(request)

    # ---- runs: a run takes what slots nobody else wants

    def _start_run(self, request: Request, run: Run, slot: int) -> None:
        run.begun = True
        native = run.native
        blind = request.descriptor.direct and not request.probing  # nothing keeps io_submit from sleeping
        native.next = 0
        native.width = self.slots
        native.flags = request.flags | _NOWAIT if request.probing else request.flags
        run.most = self.slots
        if run.slab is not None:
            native.bounce = run.slab.address
            run.most = min(run.most, run.slab.capacity // native.stride)
            run.places = list(range(run.most))
        if blind:
            run.most = min(run.most, max(1, min(_BLIND, _BLIND_BYTES // run.largest)))
        self._prepared.append(request)
        self._runs.append(request)
        self._give_slot(request, run, slot)
        self._widen()
        run.first = run.slots

    def _give_slot(self, request: Request, run: Run, slot: int) -> bool:
        place = run.places.pop() if run.places else 0
        if not lib.taio_ring_prepare_run(self.ring, slot, request.token, run.native, place):
            if run.slab is not None:
                run.places.append(place)
            self._vacate(slot)
            run.most = run.slots  # it has no more pieces
            return False
        self._places[slot] = place
        run.slots += 1
        return True

    def _widen(self) -> None:
        for request in self._runs:
            run = request.run
            assert run is not None
            while self._free and not self._queue and run.slots < run.most and self._has_room(request):
                if not self._give_slot(request, run, self._occupy(request)):
                    break

    def _crowded(self) -> None:
        for request in self._runs:
            assert request.run is not None
            native = request.run.native
            if native.width:
                native.width = max(1, request.run.slots // 2) if self.slots > 1 else 0  # the only slot: a worker does the rest

    def pump(self) -> None:
        """Start queued requests as far as slots are free; runs get what is left."""
        super().pump()
        if self._runs and not self._queue:
            for request in self._runs:
                assert request.run is not None
                if request.run.native.width:  # else the kernel refused a piece, and it only waits for the others
                    request.run.native.width = self.slots
            self._widen()

    @staticmethod
    def was_synchronous(run: Run) -> bool:
        """Whether all that the first io_submit was given of a run had ended when it returned."""
        native = run.native
        ended: int = native.next - native.out
        return ended >= run.first and not native.stop

    @staticmethod
    def dismiss(run: Run) -> None:
        """Let a run leave the lane when what it has out is complete."""
        run.native.width = run.most = 0

    def take_back(self, request: Request, token: int) -> bool:
        """Note that a run gave a slot back; give whether that was its last."""
        run = request.run
        assert run is not None
        if run.slab is not None:
            run.places.append(self._places[(token & SLOT_MASK) - self.first])
        run.slots -= 1
        if run.slots:
            if not run.native.width:
                run.most = 0
            return False
        self._runs.remove(request)
        return True

    def withdraw_run(self, request: Request) -> bool:
        """Take back those pieces of a stopped run that io_submit has not seen; give whether nothing is left of it here."""
        run = request.run
        assert run is not None
        for slot, holder in enumerate(self.holders):
            if holder is request and lib.taio_ring_withdraw(self.ring, slot):
                self._vacate(slot)
                run.slots -= 1
        if run.slots:
            return False
        self._runs.remove(request)
        if request in self._prepared:
            self._prepared.remove(request)
        return True

    # ---- the call

    @property
    def is_stuck(self) -> bool:
        """Whether requests are prepared, and none but polls is in flight, whose completions may never come."""
        prepared = self.prepared
        if not prepared:
            return False
        polls = sum(request.operation is Operation.POLL and request.state is State.KERNEL_IN_FLIGHT for request in self.requests())
        return self.in_flight - polls == prepared

    def submit(self) -> tuple[list[Request], list[int]]:
        """Call io_submit for what is prepared. Give the requests that it was given, and completions of those it refused,
        three integers each.

        What the ring has no room for (it never should) stays prepared.
        """
        tried = self._prepared
        refused = lib.taio_ring_submit(self.ring, self._refused, self.slots)
        left = lib.taio_ring_prepared(self.ring)
        self._prepared = []
        taken = self.slots - len(self._free)
        self._crowd = max(taken, self._crowd * 7 // 8)
        self._enough = FEW if self._crowd <= MANY else MANY
        if left:
            kept = [request for request in tried if request.run is None and lib.taio_ring_is_prepared(self.ring, self._slot(request))]
            tried = [request for request in tried if request not in kept]
            self._prepared = kept
        for request in tried:
            request.state = State.KERNEL_IN_FLIGHT
        out = self._refused
        return tried, [number for i in range(refused) for number in (out[i].token, out[i].result, 0)]

    def withdraw_prepared(self, request: Request) -> None:
        """Take a request back that io_submit has not seen."""
        slot = self._slot(request)
        lib.taio_ring_withdraw(self.ring, slot)
        self._prepared.remove(request)
        self._vacate(slot)

    def cancel(self, request: Request) -> bool:
        """Ask io_cancel; give whether the kernel accepted."""
        return lib.taio_ring_cancel(self.ring, self._slot(request)) == 0

    def _slot(self, request: Request) -> int:
        return (request.token & SLOT_MASK) - self.first

    def close(self) -> None:
        """Free the ring's memory. Nothing is in flight; the kernel's context is somebody else's."""
        lib.taio_ring_free(self.ring)
        self.ring = ffi.NULL
