"""The kernel lane: io_submit.

How the kernel works. ``io_submit`` is asynchronous only for what the filesystem can start without sleeping. RWF_NOWAIT makes it answer
EAGAIN (in the event) where it would have slept, so our reads carry that flag where the filesystem knows it. Each call
rings the device's doorbell once, for all its requests, but the device gets none of them before the kernel has seen the last.
The call stops at a request that it refuses; ring.c continues behind it.

A block device takes a limited number of requests at a time (``nr_requests``, often 256; 1 MiB in scattered pages is several). A
further one sleeps in the call, RWF_NOWAIT or not: 99 reads of 1 MiB kept the event loop for 83 ms.

io_submit may also sleep: for a write on a frozen filesystem, on a filesystem with a server, on a file whose map of blocks is not in memory.

What we do about it. Requests whose io_submit may sleep are gathered for a submitter, a thread that makes the call (`gather`). All others
are submitted by the event loop's thread. A request that finds the lane empty is submitted at once. Others are gathered until a few are
prepared, or until the end of the tick, when all tasks that were woken together have run. How many are "a few" is learned from the measured
cost of the calls (`learn_few`). The bytes in flight are bounded. A request of many pieces continues in C: while completions are taken,
ring.c submits the next pieces, or hands them to the submitter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_aio._lanes import kernel_context
from trio_aio._lanes.many_slots import ManySlotsWays
from trio_aio._lanes.protocols import KernelRequest, State
from trio_aio._lanes.short_ways import ShortWays
from trio_aio._lanes.slots import Lane
from trio_aio._lanes.submitter import Submitter
from trio_aio._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_aio._lanes.kernel_context import KernelContext
    from trio_aio._lanes.many_slots import ManySlots
    from trio_aio._native import CData

__all__ = ("KernelLane",)

# The fixed part of an io_submit may cost each request this share of its own part. Measured on two processors: batches of 4 to 8 are the
# fastest, by up to 20 %. The best size varied by day, so it is learned.
FIXED_SHARE = 1 / 4
SMALLEST_BATCH, LARGEST_BATCH = 4, 64

_start = lib.taio_ring_start
_gather = lib.taio_ring_gather
_PREPARED, _SUBMITTED = lib.TAIO_PREPARED, lib.TAIO_SUBMITTED
_SUBMITTED_SLEPT = lib.TAIO_SUBMITTED_SLEPT
_KERNEL_PREPARED, _KERNEL_IN_FLIGHT, _HANDED_OVER = State.KERNEL_PREPARED, State.KERNEL_IN_FLIGHT, State.KERNEL_HANDED_OVER


class KernelLane(Lane[KernelRequest], ShortWays, ManySlotsWays):
    """Requests that the kernel has, or will have at the end of this tick."""

    queued_state = State.KERNEL_QUEUED
    byte_limit = 16 << 20
    bytes_in_flight: int

    def __init__(self, first: int, slots: int, context: KernelContext, event_fd: int, refuse: Callable[[KernelRequest, int], None]) -> None:
        super().__init__(first, slots)
        self.context: KernelContext = context
        self.ring: CData = lib.taio_ring_new(context.id, slots, event_fd)
        if not self.ring:
            raise MemoryError
        self.prepared: list[KernelRequest] = []  # in order; a request of many pieces comes once
        self.unlisted: bool = False  # something else may be prepared too: an exception came while a request was started
        self._answer: int | None = None  # of an io_submit that `submit` has not reported yet
        self.few: int = lib.TAIO_TOGETHER  # so many prepared requests are submitted before the end of the tick
        self.at_once: bool = True  # a lone request is submitted by `start`; otherwise, for a test's faults, by the flush that follows
        self.has_event: bool = False  # a request was complete when its io_submit returned, and `reap` has not been called since
        self._refuse: Callable[[KernelRequest, int], None] = refuse  # takes a request, its slot freed, that io_submit refused
        self.gathered: list[Submitter] = []  # those that have something to be handed over
        self.left: dict[KernelRequest, None] = {}  # no thread can be had that submits them
        self.submitters: dict[object, Submitter] = {}  # by device and direction
        self.to_cancel: dict[KernelRequest, None] = {}  # the kernel did not know them yet
        self.many: list[ManySlots] = []
        self.places: list[int] = [0] * slots
        self._refused: CData = ffi.new("struct taio_completion[]", slots)
        self._since_learned: int = 0
        self._started: int = 0  # requests started since the reaper last ran
        self._crowd: int = 0  # the recent maximum of `_started`, which falls by 1 each time the reaper runs

    @classmethod
    def open(cls, slots: int, event_fd: int, refuse: Callable[[Any, int], None]) -> KernelLane:
        """Return a lane with a kernel context of its own; OSError as ``io_setup``."""
        return cls(0, slots, kernel_context.acquire(slots), event_fd, refuse)

    @property
    def submit_calls(self) -> int:
        """How many times io_submit was called."""
        return lib.taio_ring_calls(self.ring)

    @property
    def has_prepared(self) -> bool:
        """Whether `submit` has something to do."""
        if self.prepared or self._answer is not None:
            return True
        return (bool(self.many) or self.unlisted) and lib.taio_ring_prepared(self.ring) > 0

    @property
    def is_due(self) -> bool:
        """Whether what is prepared or gathered should not wait for the end of the tick: the lane was empty, or there is enough of it."""
        if self.gathered and self.slots - len(self.free) == 1:
            return True
        prepared = len(self.prepared)
        return prepared >= self.few or self.slots - len(self.free) == prepared == 1

    def start_in_slot(self, request: KernelRequest, slot: int) -> None:
        """Let a request fill its iocb."""
        request.prepare(self, slot)

    def start(self, request: KernelRequest, slot: int, opcode: int, fd: int, memory: int, length: int, offset: int, flags: int) -> None:
        """Fill the iocb of a slot, and submit it at once if nothing else is in flight. Called by `KernelRequest.prepare`."""
        alone = self.at_once and len(self.free) == self.slots - 1 and not self.prepared
        self._started += 1
        answer = _start(self.ring, slot, request.token, opcode, fd, memory, length, offset, flags, alone)
        if answer == _PREPARED:
            request.state = _KERNEL_PREPARED
            self.prepared.append(request)
            return
        request.state = _KERNEL_IN_FLIGHT
        if answer < 0:
            self.vacate(slot)
            self._refuse(request, answer)
        elif answer != _SUBMITTED:
            self.has_event = True
            if answer == _SUBMITTED_SLEPT:
                request.note_slept()

    def gather(
        self, request: KernelRequest, slot: int, key: object, opcode: int, fd: int, memory: int, length: int, offset: int, flags: int
    ) -> None:
        """Fill the iocb of a slot, for the submitter of `key`, often a `DeviceRecord`. Called by `KernelRequest.prepare`."""
        submitter = self.submitter(key)
        self._started += 1
        _gather(self.ring, submitter.native, slot, request.token, opcode, fd, memory, length, offset, flags)
        request.state = _HANDED_OVER
        self.note_gathered(submitter, request)

    def submitter(self, key: object) -> Submitter:
        """Return the submitter of `key`, made when it is first needed."""
        submitter = self.submitters.get(key)
        if submitter is None:
            submitter = self.submitters[key] = Submitter(self.ring, key)
        return submitter

    def learn(self, device: object) -> None:
        """Take over what the submitter of a device has found out about it."""
        self.submitter(device).learn()

    def note_gathered(self, submitter: Submitter, request: KernelRequest) -> None:
        """Note that a submitter has something to be handed over."""
        submitter.gathered.append(request)
        if submitter not in self.gathered:
            self.gathered.append(submitter)

    def hand_over(self) -> None:
        """Hand over what is gathered. `left` has then the requests that no submitter can have, because there are no more threads."""
        while self.gathered:
            self.gathered[-1].hand_over(self.left)
            self.gathered.pop()

    def note_queued(self) -> None:
        self.narrow_all()

    def start_queued(self) -> None:
        """Start queued requests while slots are free. Requests of many pieces get what is left."""
        if self.queue:
            super().start_queued()
        if self.many and not self.queue:
            self.widen_all()

    # ---- the call

    @property
    def is_stuck(self) -> bool:
        """Whether requests are prepared, and only such are in flight as may never complete: polls."""
        prepared = lib.taio_ring_prepared(self.ring)
        if not prepared:
            return False
        polls = sum(request.kernel_can_cancel and request.state in (_KERNEL_IN_FLIGHT, _HANDED_OVER) for request in self.requests())
        return self.occupied - polls == prepared

    def submit(self, into: list[int]) -> tuple[list[KernelRequest], bool]:
        """Call io_submit for what is prepared.

        Return the requests that it was given, and whether it refused any. Their completions are added to `into`, three integers each. What
        the ring has no room for stays prepared.
        """
        tried, kept = self.prepared, []
        if self._answer is None:
            self._answer = lib.taio_ring_submit(self.ring, self._refused, self.slots)
        else:  # an exception came before it was reported, and some may have completed since
            tried = [request for request in tried if request.state is _KERNEL_PREPARED]
        answer = self._answer
        refused = answer & ~lib.TAIO_RING_SLEPT
        left = lib.taio_ring_prepared(self.ring)
        if left:
            kept = [
                request for request in tried if lib.taio_ring_is_prepared(self.ring, self.slot_of(request)) and not self.has_many(request)
            ]
            tried = [request for request in tried if request not in kept]
        for request in tried:
            request.state = _KERNEL_IN_FLIGHT
            if answer != refused:
                request.note_slept()
        self._since_learned += 1
        if self._since_learned >= 16:
            self.learn_few()
        out = self._refused
        completions = [number for i in range(refused) for number in (out[i].token, out[i].result, 0)]
        self.prepared, self.unlisted, self._answer, _ = kept, left > len(kept), None, into.extend(completions)
        return tried, refused > 0

    def note_turn(self) -> None:
        """Note that the reaper runs."""
        self._crowd = max(self._started, self._crowd - 1)
        self._started = 0

    @property
    def fixed_cost(self) -> float:
        """What the fixed part of an io_submit was measured to cost, in units of the part for each request. Negative: not known."""
        return lib.taio_ring_fixed_cost(self.ring)

    def learn_few(self) -> None:
        """Choose how many requests go together, from what io_submit was measured to cost.

        Enough that the fixed part of the call is a small share. Never more than half of the requests between two runs of the reaper, so
        that the device works on one half while the other is gathered. While the cost is not known, because all calls were of one size,
        other sizes are tried.
        """
        self._since_learned = 0
        most = min(LARGEST_BATCH, max(1, self._crowd // 2))
        fixed = self.fixed_cost
        if fixed >= 0:
            self.few = min(most, max(SMALLEST_BATCH, round(fixed / FIXED_SHARE)))
        else:
            self.few = min(most, 2 * self.few if self.few < most else SMALLEST_BATCH)
        lib.taio_ring_set_together(self.ring, max(SMALLEST_BATCH, self.few))

    def withdraw_prepared(self, request: KernelRequest) -> bool:
        """Withdraw a request that io_submit has not seen. Return whether that was possible: always, unless it was handed over."""
        slot = self.slot_of(request)
        if not lib.taio_ring_withdraw(self.ring, slot):
            return False
        if request.state is _HANDED_OVER:
            for submitter in self.gathered:
                submitter.forget(request)
        else:
            self.prepared.remove(request)
        self.vacate(slot)
        return True

    def cancel(self, request: KernelRequest) -> bool:
        """Call io_cancel. Return whether the kernel accepted.

        It does not know a poll that a submitter is submitting just now. `cancel_again` tries that again.
        """
        accepted = lib.taio_ring_cancel(self.ring, self.slot_of(request)) == 0
        if not accepted and request.kernel_can_cancel and request.state is _HANDED_OVER:
            self.to_cancel[request] = None
        return accepted

    def cancel_again(self) -> list[KernelRequest]:
        """Try again what `cancel` could not do. Return the requests that never ran: they have left the lane."""
        withdrawn = []
        for request in [*self.to_cancel]:
            del self.to_cancel[request]
            if request.state is not _HANDED_OVER:
                continue  # it has completed
            if self.withdraw_prepared(request):  # the kernel had no room for it, and gave it back
                withdrawn.append(request)
            request.cancel_accepted = request in withdrawn or self.cancel(request)
        return withdrawn

    # ---- after an exception

    def is_started(self, slot: int) -> bool:
        refused = 0 if self._answer is None else self._answer & ~lib.TAIO_RING_SLEPT
        return bool(lib.taio_ring_holds(self.ring, slot)) or any(self._refused[i].token == self.tokens[slot] for i in range(refused))

    def torn(self, is_completed: Callable[[int], bool]) -> list[KernelRequest]:
        """Free slots as all lanes do. What was not noted of requests that were started is done in the next flush."""
        torn = super().torn(is_completed)
        self.unlisted = True
        self.gathered = [*self.submitters.values()]
        for request in torn:
            if request in self.prepared:
                self.prepared.remove(request)
            for submitter in self.gathered:
                submitter.forget(request)
        for request in dict.fromkeys(self.requests()):
            if request.state < _KERNEL_PREPARED:
                request.state = _KERNEL_IN_FLIGHT
        return torn

    # ---- the end

    def stop(self) -> None:
        """Tell the submitters to leave. Nothing is outstanding. Each signals the eventfd as it leaves."""
        for submitter in self.submitters.values():
            submitter.stop()

    @property
    def stopped(self) -> bool:
        """Whether all submitters have left: `close` will not wait."""
        return all(submitter.stopped for submitter in self.submitters.values())

    def close(self) -> None:
        """Free the ring's memory and release the kernel's context. Nothing is in flight, and `stop` was called."""
        for submitter in self.submitters.values():
            submitter.close()
        lib.taio_ring_free(self.ring)
        self.ring = ffi.NULL
        kernel_context.release(self.context)
