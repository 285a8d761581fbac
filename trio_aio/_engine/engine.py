"""The engine: takes requests, chooses a lane for each, and gives completions to their requests. It never awaits and knows no event loop.

How the kernel works. Nothing orders the requests in flight: a sync may overtake a write, and close(2) takes the descriptor away from
requests that were not submitted. Some requests that look asynchronous are not, depending on the file and the moment.

What we do about it. A request takes the kernel lane if it says that it can, otherwise the workers. What the kernel lane could not do
without sleeping continues with a worker. Each request leases its descriptor; changes, syncs and closes enter the order of their file
(`order`). Both lanes signal one eventfd, and the reaper then calls `reap`.

All methods are for one thread, the event loop's. Other threads use `drops` only.
"""

from __future__ import annotations

import errno
import os
from functools import partial
from os import EFD_CLOEXEC, EFD_NONBLOCK, eventfd, eventfd_write
from typing import TYPE_CHECKING, Any

from trio_aio._backends import protect_from_interrupts
from trio_aio._engine.completions import Completions
from trio_aio._engine.drops import Drops
from trio_aio._engine.gathered_syncs import GatheredSyncs
from trio_aio._engine.kernel_lane import set_up_kernel, tear_down_kernel
from trio_aio._engine.known_files import KnownFiles
from trio_aio._engine.mending import mend, start_ready
from trio_aio._engine.new_memory import populate
from trio_aio._engine.withdrawal import cancel_again, end_abandoned, leave_close, leave_submitters, submit_prepared, take_dropped
from trio_aio._lanes.inline import InlineLane
from trio_aio._lanes.protocols import SLOT_MASK, State
from trio_aio._lanes.workers import WorkerLane
from trio_aio._memory.slabs import BufferPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._engine.protocols import Hook, Request
    from trio_aio._lanes.kernel import KernelLane

__all__ = ("Engine",)

_POOLED = 16 << 20  # bytes of aligned memory kept for the next direct request
_ECANCELED, _WITHDRAWN, _COMPLETED = -errno.ECANCELED, State.WITHDRAWN, State.COMPLETED
_NOT_SUBMITTED = (State.KERNEL_PREPARED, State.KERNEL_HANDED_OVER)


class Engine:
    """The lanes, and the requests in them.

    `wake` is called with each completed request that has a waiter, `plug` when `flush` should be called at the end of the event loop's
    tick. `insist`: make the kernel lane now, and raise OSError if that fails. `hook`: a test's faults.
    """

    def __init__(
        self,
        max_in_flight: int,
        max_workers: int,
        *,
        use_kernel: bool,
        insist: bool,
        wake: Callable[[Any], None],
        plug: Callable[[], None],
        hook: Hook | None = None,
    ) -> None:
        self.max_in_flight: int = max_in_flight
        self.setup_error: OSError | None = None  # why there is no kernel lane
        self.completed: int = 0
        self.cancelled: int = 0
        self.ever_abandoned: int = 0
        self.retried: int = 0
        self.submitted_kernel: int = 0
        self.submitted_workers: int = 0
        self.earlier_submit_calls: int = 0  # of a kernel lane that is closed
        self.bytes_read: int = 0
        self.bytes_written: int = 0
        self.bounced_bytes: int = 0
        self.outstanding: int = 0  # requests that were submitted and have not ended
        self.abandoned: int = 0  # those of them that no task waits for
        self.ready: list[Request] = []  # nothing holds them back any more: they start next
        self.syncs: GatheredSyncs = GatheredSyncs(self)
        self.files: KnownFiles = KnownFiles(self.syncs.add)
        self.kernel: KernelLane | None = None
        self.may_use_kernel: bool = use_kernel
        self.hook: Hook | None = hook
        self.wake: Callable[[Any], None] = wake
        self.plug: Callable[[], None] = plug
        self.plugged: bool = False
        self._stopping: bool = False
        self.orphaned: bool = False  # the event loop has ended: no task takes a result any more
        self.event_fd: int = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.drops: Drops = Drops(self.event_fd)
        try:
            if insist:
                set_up_kernel(self)
            self.workers: WorkerLane = WorkerLane(max_in_flight, max_in_flight, max_workers, self.event_fd)
        except BaseException:
            tear_down_kernel(self)
            os.close(self.event_fd)
            raise
        self.inline: InlineLane = InlineLane(self.workers)
        self.buffers: BufferPool = BufferPool(_POOLED, partial(populate, self))
        self.completions: Completions = Completions(self)
        if hook is not None:
            hook.install(self)

    @property
    def occupied(self) -> int:
        """How many slots are taken, by requests that the kernel or a worker has, or will get at the end of this tick."""
        return self.workers.occupied + (self.kernel.occupied if self.kernel is not None else 0)

    @property
    def queued(self) -> int:
        """Requests that wait for a slot."""
        return self.workers.queued + (self.kernel.queued if self.kernel is not None else 0)

    @property
    def submit_calls(self) -> int:
        """How many times ``io_submit`` was called."""
        return self.kernel.submit_calls if self.kernel is not None else self.earlier_submit_calls

    def has_kernel_lane(self) -> bool:
        """Return whether native AIO can be had. Calls ``io_setup`` to find out."""
        if self.kernel is None and self.may_use_kernel:
            try:
                set_up_kernel(self)
            except OSError as error:
                self.may_use_kernel = False
                self.setup_error = error
        return self.kernel is not None

    # ---- the way in

    @protect_from_interrupts
    def learn(self, descriptor: Descriptor) -> None:
        """Connect a descriptor with what is known of its device and its file. A direct one will need aligned memory."""
        self.files.connect(descriptor)
        if descriptor.direct:
            self.buffers.prepare()

    @protect_from_interrupts
    def submit(self, request: Request) -> bool:
        """Start a request. It may have completed when this returns; otherwise its waiter will be woken. Return whether it will.

        ValueError if a close of its descriptor was asked for, unless the request belongs to a group, which has a lease.
        """
        try:
            order = request.descriptor.order
            if order.closing and request.group is None:
                order.check()
            order.leases, self.outstanding, request.outstanding = order.leases + (not request.ordered), self.outstanding + 1, True
            if self.hook is not None:
                self.hook.submitted(request)
            if not request.ordered:
                self.dispatch(request)
            else:
                request.admit(self)
                if order.enter(request):
                    request.start(self)
                else:
                    request.state = State.HELD
            return request.state < _WITHDRAWN
        except BaseException as error:
            mend(self, error, request)
            raise

    def dispatch(self, request: Request) -> None:
        """Give a request to the lane that suits it."""
        can, hook = request.can_submit(self), self.hook
        if can is None:
            return
        if not can or (self.kernel is None and not self.has_kernel_lane()) or (hook is not None and not hook.allows_kernel(request)):
            self.to_workers(request)
            return
        kernel: Any = self.kernel
        self.submitted_kernel += request.count
        kernel.accept(request)
        if request.state in _NOT_SUBMITTED:
            if request.is_batch or kernel.is_due:
                self.flush()
            elif not self.plugged:
                self.ask_for_flush()
        elif kernel.has_event:
            kernel.has_event = False  # complete when io_submit returned
            self.reap(drain=False)
            request.note_submitted(self, self.completions.result_of(request))

    def to_workers(self, request: Request) -> None:
        """Give a request to the workers."""
        self.submitted_workers += request.count
        request.start_worker()
        self.workers.accept(request)
        if self.workers.gathered:
            self.ask_for_flush()

    def ask_for_flush(self) -> None:
        """Have `flush` called at the end of the tick."""
        if not self.plugged:
            self.plugged = True
            self.plug()

    def flush(self) -> None:
        """Hand over what is gathered for the workers, submit what is prepared for the kernel, and take what is complete already."""
        try:
            self.plugged = False
            self.syncs.release()
            if self.ready:
                start_ready(self)
            if self.workers.gathered:
                self.workers.hand_over()
            lane = self.kernel
            if lane is not None and (lane.gathered or lane.left):
                lane.hand_over()
                leave_submitters(self, lane)
            if lane is not None and lane.has_prepared:
                submit_prepared(self, lane)
        except BaseException as error:
            mend(self, error)
            raise

    def refuse(self, request: Any, result: int) -> None:
        """Complete a request that io_submit refused when it was submitted alone."""
        request.complete_kernel(self, request.token, result)
        self.wake_loop()

    def wake_loop(self) -> None:
        """Let the event loop call `reap` soon. It may be about to sleep, although a task was just woken."""
        eventfd_write(self.event_fd, 1)

    # ---- the way out

    def reap(self, *, drain: bool) -> None:
        """Take all completions, and wake their waiters. `drain`: the eventfd was readable, so empty it first."""
        try:
            if self.completions.take(drain=drain) or drain:
                self.start_queued()
            elif self.kernel is not None and self.kernel.is_stuck:  # otherwise a completion will follow, and ask for the flush
                self.ask_for_flush()
            if self.drops and not self._stopping:  # after the eventfd was emptied, because other threads add drops at any time
                take_dropped(self)
            if self.kernel is not None and self.kernel.to_cancel:
                cancel_again(self, self.kernel)
            if self.hook is not None:
                self.hook.reaped(self)
        except BaseException as error:
            mend(self, error)
            raise

    def complete(self, token: int, result: int, transferred: int) -> None:
        """Give a completion to the request that has its slot."""
        if self.hook is not None:
            changed = self.hook.completed(token, result, transferred)
            if changed is None:
                return
            result, transferred = changed
        if token & SLOT_MASK >= self.max_in_flight:
            request: Any = self.workers.take(token)
            if request is not None:  # otherwise it was withdrawn
                request.complete_worker(self, result, transferred)
            return
        kernel: Any = self.kernel
        kernel.take(token).complete_kernel(self, token, result)

    def finish(self, request: Request, result: int) -> None:
        """Complete a request with its final result."""
        assert request.state < _WITHDRAWN, f"completed twice: {request!r}"
        request.result = result
        if request.abandoned or request.counted:
            pass  # among the abandoned or the cancelled already
        elif request.cancel_accepted and result in (0, _ECANCELED):
            self.cancelled += request.count
        else:
            self.completed += request.count
        request.settle(self)
        request.state = _COMPLETED
        self.end_request(request)

    def end_request(self, request: Request) -> None:
        """Release what a request owns, start what waited for that, and wake its waiter. It may be called again if it has failed."""
        if self.hook is not None:
            self.hook.released(request)
        request.release_memory(self)
        order = request.descriptor.order
        if request.ordered and not request.closes:
            if request.changes and request.descriptor.shared_file is not None:
                request.descriptor.shared_file.note_change()
            order.leave(request, self.ready)
        if request.outstanding:
            if request.abandoned:
                end_abandoned(self, request)
            else:
                leases = order.leases - (not request.ordered)
                order.leases, self.outstanding, request.outstanding = leases, self.outstanding - 1, False
        if order.closing:
            order.close_if_idle(self.ready)
            leave_close(self, order)
        if request.waiter is not None:
            self.wake(request)
        elif request.group is not None:
            request.group.ended(request)
        if self.ready:  # last: this may reap what others wait for, and come back here
            start_ready(self)

    def start_queued(self) -> None:
        """Start queued requests: slots have become free."""
        if self.workers.queue:
            self.workers.start_queued()
        if self.workers.gathered:
            self.ask_for_flush()
        lane = self.kernel
        if lane is not None:
            lane.start_queued()
            if lane.has_prepared or lane.gathered:
                self.ask_for_flush()

    @protect_from_interrupts
    def cancel(self, request: Request) -> bool:
        """Cancel a request. True: it never ran and never will, and no task is woken. False: its completion comes."""
        try:
            request.cancel_requested = True
            return request.cancel(self)
        except BaseException as error:
            mend(self, error, request)
            raise

    # ---- the end

    def stop(self) -> None:
        """Tell all threads to leave. Nothing is outstanding. `close` will not wait once `stopped`."""
        self._stopping = True
        self.workers.stop()
        if self.kernel is not None:
            self.kernel.stop()

    @property
    def stopped(self) -> bool:
        """Whether all threads have left."""
        return self.workers.stopped and (self.kernel is None or self.kernel.stopped)

    def close(self) -> None:
        """Release everything. Nothing is outstanding and the threads have been told to leave."""
        if self.hook is not None:
            self.hook.close()
        self.workers.close()
        self.drops.close()
        tear_down_kernel(self)
        self.inline.close()
        self.buffers.clear()
        os.close(self.event_fd)
