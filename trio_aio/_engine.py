"""The engine: takes requests, finds each its lane, takes completions and says whose they are. It never awaits and knows no event loop.

How the kernel works. Nothing orders the requests that are out: a sync may overtake a write, and close(2) takes the descriptor from under
requests that have not been handed over. Some requests that look asynchronous are not, depending on the file and the moment.

What we do about it. A request goes to the kernel lane if it is of a kind that its device was found to do asynchronously, else to
the workers; one that the kernel lane could not serve without sleeping goes on to the workers. Each leases its descriptor. A sync is held
until the writes before it are done, a close until all requests are. Both lanes signal one eventfd; whoever waits for that calls `reap`.

All methods are for one thread, the event loop's.
"""

from __future__ import annotations

import errno
import os
import select
import threading
from collections import deque
from os import EFD_CLOEXEC, EFD_NONBLOCK, eventfd, eventfd_write
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from trio_aio import _kernel_context
from trio_aio._buffers import CHUNK, LARGEST_SLAB, BufferPool, Chunk, Slab
from trio_aio._descriptor import Descriptor
from trio_aio._inline_lane import InlineLane
from trio_aio._inode import Inode
from trio_aio._kernel_lane import KernelLane
from trio_aio._lane import SLOT_MASK
from trio_aio._native import ffi, lib
from trio_aio._order import CHANGES, SYNCS
from trio_aio._request import Operation, Request, State
from trio_aio._routing import Routes
from trio_aio._worker_lane import WorkerLane

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from trio_aio._batch import Batch
    from trio_aio._native._ext import CData
    from trio_aio._routing import Route
    from trio_aio._run import Run

__all__ = ("DIRECT_LIMIT", "TURN", "Engine")

DIRECT_LIMIT = 1 << 20  # bytes: io_submit pins every page on the event loop's thread, 60 us for 1 MiB and 300 us for 8 MiB
TURN = 16  # completions
_LARGEST_PROBE = 16 << 10  # bytes: what is in the page cache after all is copied by io_submit, on the event loop's thread
_POOLED = 16 << 20  # bytes of aligned memory kept for the next direct read or write

_READ_LIKE = tuple(o in (Operation.READ, Operation.READV, Operation.READ_RUN, Operation.READ_FILE) for o in Operation)
_TRANSFERS = tuple(o in (Operation.READ, Operation.READV, Operation.WRITE, Operation.WRITEV) for o in Operation)
_OPENS = tuple(o in (Operation.OPEN, Operation.READ_FILE) for o in Operation)
_VECTORS = tuple(o in (Operation.READV, Operation.WRITEV) for o in Operation)

_WITH_US = (State.HELD, State.KERNEL_QUEUED, State.WORKER_QUEUED)  # neither the kernel nor a worker has it

_NO_FILE = Descriptor(-1)
_EAGAIN, _EOPNOTSUPP, _ECANCELED, _EINTR, _EIO = -errno.EAGAIN, -errno.EOPNOTSUPP, -errno.ECANCELED, -errno.EINTR, -errno.EIO
_IOV_MAX, _APPEND, _NOWAIT = lib.IOV_MAX, lib.RWF_APPEND, lib.RWF_NOWAIT
_reap = lib.taio_reap
_unpack = ffi.unpack


class Engine:
    """The lanes, and the requests in them.

    `wake` is called with each finished request that has a waiter, `plug` when `flush` should be called at the end of the event
    loop's tick. `insist` makes the kernel lane now and raises OSError where there is none.
    """

    _kernel_type: type[KernelLane] = KernelLane
    _worker_type: type[WorkerLane] = WorkerLane

    def __init__(
        self,
        max_in_flight: int,
        max_workers: int,
        *,
        use_kernel: bool,
        insist: bool,
        wake: Callable[[Any], None],
        plug: Callable[[], None],
    ) -> None:
        self.max_in_flight: int = max_in_flight
        self.setup_error: OSError | None = None  # why there is no kernel lane
        self.completed: int = 0
        self.cancelled: int = 0
        self.retried: int = 0
        self.submitted_kernel: int = 0
        self.submitted_workers: int = 0
        self._submit_calls: int = 0  # of a kernel lane that is closed
        self.bytes_read: int = 0
        self.bytes_written: int = 0
        self.outstanding: int = 0  # requests that were submitted and have not finished
        self.abandoned: int = 0  # those of them that nobody waits for
        self.closed: bool = False
        self.routes: Routes = Routes()
        self._inodes: WeakValueDictionary[tuple[int, int], Inode] = WeakValueDictionary()
        self.kernel: KernelLane | None = None
        self._may_use_kernel: bool = use_kernel
        self.wake: Callable[[Any], None] = wake  # with what has a waiter and is finished
        self._plug: Callable[[], None] = plug
        self._plugged: bool = False
        self._stopping: bool = False
        self._orphaned: bool = False  # nobody takes a result any more
        self._dropped: deque[Descriptor | Request] = deque()
        self._unserved: list[int] = []  # completions that wait for the next turn
        self._resting: deque[Batch] = deque()  # have had enough of this turn of the event loop
        # Finalizers drop descriptors from any thread, perhaps while `close` runs; reentrant, because the collector may run in here.
        self._drop_lock: threading.RLock = threading.RLock()
        self.event_fd: int = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        try:
            if insist:
                self._set_up_kernel()
            self.workers: WorkerLane = self._worker_type(max_in_flight, max_in_flight, max_workers, self.event_fd)
        except BaseException:
            self._tear_down_kernel()
            os.close(self.event_fd)
            raise
        self.inline: InlineLane = InlineLane(self.workers)
        self.buffers: BufferPool = BufferPool(_POOLED, self._populate)
        self._room: int = 2 * max_in_flight
        self._out: CData = ffi.new("struct taio_completion[]", self._room)
        self._flat: CData = ffi.cast("int64_t *", self._out)

    # ---- what is out

    @property
    def in_flight(self) -> int:
        """Requests that the kernel or a worker has, or will be given at the end of this tick."""
        return self.workers.in_flight + (self.kernel.in_flight if self.kernel is not None else 0)

    @property
    def queued(self) -> int:
        """Requests that wait for a slot."""
        return self.workers.queued + (self.kernel.queued if self.kernel is not None else 0)

    @property
    def submit_calls(self) -> int:
        """How many times ``io_submit`` was called."""
        return self.kernel.submit_calls if self.kernel is not None else self._submit_calls

    def has_kernel_lane(self) -> bool:
        """Whether native AIO is to be had; calls ``io_setup`` to find out."""
        if self.kernel is None and self._may_use_kernel:
            try:
                self._set_up_kernel()
            except OSError as error:
                self._may_use_kernel = False
                self.setup_error = error
        return self.kernel is not None

    # ---- a request's way in

    def learn(self, descriptor: Descriptor) -> None:
        """Connect a descriptor with what is known of its device, and with all others of its file."""
        find = self.routes.find
        descriptor.read_route = find(descriptor.device, direct=descriptor.direct, writing=False)
        descriptor.write_route = find(descriptor.device, direct=descriptor.direct, writing=True)
        key = descriptor.device, descriptor.inode_number
        inode = self._inodes.get(key)
        if inode is None:
            inode = self._inodes[key] = Inode()
        descriptor.inode = inode
        if descriptor.direct:
            self.buffers.prepare()
            descriptor.order.gate = inode.gate

    def note_change(self, device: int, inode_number: int) -> None:
        """Say that a file has been changed by a request that had no descriptor of it."""
        inode = self._inodes.get((device, inode_number))
        if inode is not None:
            inode.changed()

    def submit(self, request: Request) -> None:
        """Start a request. It may have finished when this returns; if not, its waiter will be woken.

        ValueError if its descriptor's close has begun, unless it belongs to a call that had begun before and has a lease.
        """
        descriptor = request.descriptor
        if descriptor.order.closing and request.batch is None:
            descriptor.order.check()
        self.outstanding += 1
        if request.operation is Operation.TRUNCATE and request.offset < descriptor.size:
            descriptor.size = request.offset
        if descriptor.inode is not None and CHANGES[request.operation]:
            descriptor.inode.changed()
        if descriptor.order.enter(request):
            self._route(request)
        else:
            request.state = State.HELD

    def end_lease(self, descriptor: Descriptor) -> None:
        """End what ``descriptor.order.lease()`` began."""
        for waiting in descriptor.order.end_lease():
            self._route(waiting)

    def _route(self, request: Request) -> None:
        if request.operation is Operation.CLOSE and request.descriptor.borrowed and not request.extra:
            self._finish(request, 0)  # a borrowed descriptor is not ours to close
        elif self._suits_kernel(request) and self.has_kernel_lane() and (request.run is None or self._provide_slab(request.run)):
            kernel = self.kernel
            assert kernel is not None
            self.submitted_kernel += request.pieces
            kernel.accept(request)
            if request.state is State.KERNEL_PREPARED:
                if kernel.is_due or request.run is not None:  # a run is a batch by itself
                    self.flush()
                elif not self._plugged:
                    self._ask_for_flush()
        else:
            self._to_workers(request)

    def _populate(self, chunk: Chunk) -> None:
        request = Request(Operation.POPULATE, _NO_FILE, chunk.address, CHUNK, owned=chunk, nbytes=0)
        self.outstanding += 1
        _NO_FILE.order.enter(request)
        self.workers.accept(request)

    def _to_workers(self, request: Request) -> None:
        self.submitted_workers += request.pieces
        if request.run is not None:
            request.run.native.next = 0
            request.run.native.flags = request.flags
        self.workers.accept(request)
        if self.workers.gathered:
            self._ask_for_flush()

    def _suits_kernel(self, request: Request) -> bool:
        operation = request.operation
        if operation is Operation.POLL:
            return True
        descriptor = request.descriptor
        if not self._may_use_kernel or not (descriptor.direct or operation is Operation.READ_RUN):
            return False
        if SYNCS[operation]:
            return True
        if not (_TRANSFERS[operation] or request.run) or not 0 < request.nbytes <= DIRECT_LIMIT or request.cold or request.extra:
            return False
        if _VECTORS[operation] and request.length > _IOV_MAX:
            return False
        if not _READ_LIKE[operation] and (
            descriptor.append or request.flags & _APPEND or request.offset + request.nbytes > descriptor.size
        ):
            return False  # it makes the file longer: synchronous nearly everywhere
        route = self._route_of(request)
        if not descriptor.direct:  # a run that starts the read-ahead of cold pages, or has no business here
            request.probing = route.nowait
            return route.nowait and request.nbytes <= _LARGEST_PROBE
        if not route.is_open():
            return False
        request.probing = route.nowait and not request.flags & _NOWAIT
        return True

    def _provide_slab(self, run: Run) -> bool:
        """Give a run of a direct file that is not aligned aligned memory; False where that is not to be had on the loop's thread."""
        if run.aligned:
            return True
        unit, memory_unit = run.native.unit, run.native.memory_unit
        widened = (run.largest + 2 * unit - 2) // unit * unit
        stride = (widened + memory_unit - 1) // memory_unit * memory_unit
        places = min(run.native.count, self.max_in_flight, LARGEST_SLAB // stride)
        if not places:
            return False
        run.slab = self.buffers.take(places * stride)
        run.native.stride = stride
        return not run.slab.cold

    def _route_of(self, request: Request) -> Route:
        descriptor = request.descriptor
        if descriptor.read_route is None or descriptor.write_route is None:
            self.learn(descriptor)
        route = descriptor.read_route if _READ_LIKE[request.operation] else descriptor.write_route
        assert route is not None
        return route

    def _ask_for_flush(self) -> None:
        if not self._plugged:
            self._plugged = True
            self._plug()

    def flush(self) -> None:
        """Hand over what is gathered for the workers, submit what is prepared for the kernel, and take what is complete already."""
        self._plugged = False
        self.workers.hand_over()
        lane = self.kernel
        if lane is None or not lane.prepared:
            return
        tried, refused = lane.submit()
        if refused:
            self._serve(refused)
            self._pump()  # their slots are free, and no completion may follow that would see to it
            eventfd_write(self.event_fd, 1)  # the loop may be about to sleep, with these tasks just made ready
        elif lane.is_stuck:
            self._give_up_on_full_ring(lane)
            tried = []
        self.reap(drain=False)
        waiting = dict(zip(self._unserved[::3], self._unserved[1::3], strict=True))  # results by token
        for request in tried:
            if request.probing:
                continue
            if request.run is not None:
                if lane.was_synchronous(request.run):
                    self._route_of(request).strike()
                    lane.dismiss(request.run)
                continue
            if not _TRANSFERS[request.operation]:
                continue
            result = request.result if request.state is State.COMPLETED else waiting.get(request.token)
            if result is None:
                self._route_of(request).clear()
            elif result >= 0:  # an error says nothing of the device
                self._route_of(request).strike()  # done when io_submit returned: the loop's thread paid for it

    def _give_up_on_full_ring(self, lane: KernelLane) -> None:
        """EAGAIN with nothing in flight but polls (the kernel is out of memory, say): no completion would ever make us try again."""
        for request in dict.fromkeys(lane.requests()):
            if request.operation is Operation.POLL and request.state is State.KERNEL_IN_FLIGHT:
                continue
            if request.run is not None:
                lane.withdraw_run(request)
                self._to_workers(request)
                continue
            lane.withdraw_prepared(request)
            if request.operation is Operation.POLL:
                self._finish(request, _EAGAIN)
                eventfd_write(self.event_fd, 1)  # the loop may be about to sleep, with this task just made ready
            else:
                request.probing = False
                self._to_workers(request)
        lane.pump()

    # ---- a completion's way out

    def reap(self, *, drain: bool) -> None:
        """Take all completions and wake who waits for them; `drain`: the eventfd was readable, empty it first.

        Devices tell of many at once, and 64 tasks that read 4 KiB each keep the event loop for 1.2 ms. So no more than `TURN` are served
        at once, and who comes behind them waits for the loop's next turn, which `drain` begins.
        """
        lane = self.kernel
        ring = lane.ring if lane is not None else ffi.NULL
        n = _reap(ring, self.workers.pool, self.event_fd if drain else -1, self._out, self._room)
        taken = _unpack(self._flat, 3 * n) if n else []  # before anything that may come back here
        if self._unserved:
            self._unserved += taken
            if not drain:
                return
            taken, self._unserved = self._unserved, []
        if len(taken) > 3 * TURN:
            self._unserved = taken[3 * TURN :]
            del taken[3 * TURN :]
            eventfd_write(self.event_fd, 1)
        self._serve(taken, drain=drain)
        if taken or drain:
            self._pump()
        elif lane is not None and lane.is_stuck:  # else a completion is to come, and asks
            self._ask_for_flush()

    def _serve(self, taken: list[int], *, drain: bool = False) -> None:
        completions = iter(taken)
        try:
            while self._dropped and not self._stopping:  # else they are for `close`: the workers may have left
                dropped = self._dropped.popleft()
                if isinstance(dropped, Request):
                    self.give_up(dropped)
                else:
                    self.submit(close_request(dropped))
            if drain:
                self._go_on_with_batches()
            for token, result, transferred in zip(completions, completions, completions, strict=True):
                self._complete(token, result, transferred)
        except BaseException:  # a bug, or no memory: what is not done is for the next turn, and not lost
            self._unserved[:0] = completions
            eventfd_write(self.event_fd, 1)
            raise

    def rest(self, batch: Batch) -> None:
        """Have a batch started again in the next turn of the event loop."""
        self.outstanding += 1  # nobody closes meanwhile
        self._resting.append(batch)
        eventfd_write(self.event_fd, 1)

    def _go_on_with_batches(self) -> None:
        for _ in range(len(self._resting)):  # those that rest again meanwhile have had this turn
            self.outstanding -= 1
            self._resting.popleft().go_on()

    def _pump(self) -> None:
        self.workers.pump()
        if self.workers.gathered:
            self._ask_for_flush()
        lane = self.kernel
        if lane is not None:
            lane.pump()
            if lane.prepared:
                self._ask_for_flush()

    def _complete(self, token: int, result: int, transferred: int) -> None:
        if token & SLOT_MASK >= self.max_in_flight:
            request = self.workers.take(token)
            if request is not None:  # else it was withdrawn
                request.transferred += transferred
                if request.run is not None:
                    self._finish_run(request, request.run, min(result, 0))
                    return
                if result >= 0 and _TRANSFERS[request.operation]:
                    result = request.transferred
                self._finish(request, result)
            return
        assert self.kernel is not None
        request = self.kernel.take(token)
        assert request is not None  # the kernel gives nothing back that it was given
        if request.run is not None:
            if self.kernel.take_back(request, token):
                self._leave_kernel_lane(request, request.run)
        elif result == _EINTR and request.operation is not Operation.POLL:
            self._to_workers(request)  # who make it again until it is done, as Python does: PEP 475
        elif _TRANSFERS[request.operation]:
            self._complete_transfer(request, result)
        else:
            if request.cancel_accepted and result == 0 and not request.cancel_requested:
                result = _ECANCELED  # `cancel_polls` asked for it, not its task
            self._finish(request, result)

    def _leave_kernel_lane(self, request: Request, run: Run) -> None:
        """A run has no more slots there: it is whole, was stopped, or is left to a worker."""
        if run.native.stop or run.whole:
            if request.probing and request.descriptor.direct and run.whole:
                self._route_of(request).clear()
            self._finish_run(request, run)
            return
        result = run.pieces[run.first_open].result
        if request.probing and result == _EOPNOTSUPP:
            self._route_of(request).nowait = False
        elif request.probing and result == _EAGAIN and request.descriptor.direct:
            self._route_of(request).strike()
        self.retried += 1
        self._to_workers(request)

    def _finish_run(self, request: Request, run: Run, error: int = 0) -> None:
        request.transferred = run.moved
        if request.operation is Operation.READ_RUN:
            if request.cancel_requested and not run.whole:
                request.cancel_accepted = True
        elif not error and not run.native.stop and not run.whole:
            error = _EIO  # a write that moved less and says nothing of why
        self._finish(request, error)

    def _complete_transfer(self, request: Request, result: int) -> None:
        """Take what the kernel lane did of a read or write; what is left over goes on to the workers."""
        if result < 0:
            if request.probing and (result in (_EAGAIN, _EOPNOTSUPP) or (result == _EIO and _READ_LIKE[request.operation])):
                route = self._route_of(request)
                if result == _EAGAIN:
                    route.strike()
                elif result == _EOPNOTSUPP:
                    route.nowait = False
                # else a worker finds out what it means: transfer.c, call
                if request.cancel_requested:  # it did nothing, and nobody wants it any more
                    request.cancel_accepted = True
                    self._finish(request, 0)
                    return
                self.retried += 1
                self._to_workers(request)
            else:
                self._finish(request, result)
            return
        if request.probing:
            self._route_of(request).clear()
        request.transferred = result
        if result == request.nbytes:
            self._finish(request, result)
        elif _READ_LIKE[request.operation] and (result == 0 or result % request.descriptor.read_unit):
            self._finish(request, result)  # the end of the file
        elif result == 0:
            self._finish(request, _EIO)  # a write of nothing is an error, not a loop
        else:
            _skip(request, result)
            self._to_workers(request)

    def _finish(self, request: Request, result: int) -> None:
        request.result = result
        request.advance(State.COMPLETED)
        if request.operation is Operation.POPULATE:
            request.owned.warm = True
            self._let_go(request)
            return
        if not request.counted:
            if request.cancel_accepted and result in (0, _ECANCELED):
                self.cancelled += request.pieces
            else:
                self.completed += request.pieces
        operation = request.operation
        if _OPENS[operation] and result >= 0:
            fd = result if operation is Operation.OPEN else request.owned[1].value.fd
            if fd >= 0:
                request.descriptor.own(fd)
                if self._orphaned:
                    request.descriptor.close_unclaimed()
        if _READ_LIKE[operation]:
            self.bytes_read += request.transferred
        elif CHANGES[operation]:
            self.bytes_written += request.transferred
            if result >= 0:
                self._note_size(request)
        for sync in request.followers:
            self._finish(sync, result)
        self._let_go(request)

    @staticmethod
    def _note_size(request: Request) -> None:
        """Learn from a change that is done how long the file is at least."""
        descriptor = request.descriptor
        if request.operation is Operation.TRUNCATE:
            descriptor.size = min(descriptor.size, request.offset)
        elif not (descriptor.append or request.flags & _APPEND):  # else it went nobody knows where
            if request.run is not None:
                if request.run.whole:
                    descriptor.size = max(descriptor.size, request.run.end)
            elif _TRANSFERS[request.operation]:
                descriptor.size = max(descriptor.size, request.offset + request.nbytes)

    def _let_go(self, request: Request) -> None:
        """End the lease, start who waited for that, and wake the request's own waiter."""
        self.outstanding -= 1
        if request.abandoned:
            self.abandoned -= 1
            if isinstance(request.owned, Slab):
                self.buffers.give_back(request.owned)
        if request.run is not None and request.run.slab is not None:
            self.buffers.give_back(request.run.slab)
            request.run.slab = None
        inode = request.descriptor.inode
        if inode is not None and CHANGES[request.operation]:
            inode.changed()
        ready = request.descriptor.order.leave(request) if request.operation is not Operation.CLOSE else ()
        if request.waiter is not None:
            self.wake(request)
        elif request.batch is not None:
            request.batch.ended(request)
        for waiting in ready:  # last: `_route` may reap what others wait for, and come back here
            self._route(waiting)

    # ---- giving up

    def cancel(self, request: Request) -> bool:
        """Try to stop a request. True: it never ran and never will, and nobody is woken. False: its completion comes."""
        request.cancel_requested = True
        state = request.state
        lane = self.kernel
        if request.operation is Operation.CLOSE:
            return False  # it happens whatever becomes of its task
        if request.operation is not Operation.READ_RUN and _has_begun(request):
            return False  # the first part is written, or in the caller's memory
        if request.run is not None and request.operation is Operation.READ_RUN:
            request.run.stop()
        if request.followers:  # others wait for this sync, and it goes on for them
            request.waiter = None
            request.counted = True
            self.cancelled += 1
            return True
        if state in _WITH_US:
            self._take_back(request)
        elif request.run is not None and state in (State.KERNEL_PREPARED, State.KERNEL_IN_FLIGHT):
            assert lane is not None
            if not lane.withdraw_run(request):
                return False
            self._pump()
        elif state is State.KERNEL_PREPARED:
            assert lane is not None
            lane.withdraw_prepared(request)
            self._pump()
        elif state is State.WORKER_IN_FLIGHT:
            if not self.workers.withdraw(request):
                return False
        else:
            if state is State.KERNEL_IN_FLIGHT and not request.cancel_accepted:
                assert lane is not None
                request.cancel_accepted = lane.cancel(request)
            return False
        self._withdrawn(request)
        return True

    def cancel_together(self, requests: Iterable[Request]) -> bool:
        """Try to stop writes of one file, all or none of them."""
        requests = [*requests]
        doubtful = [request for request in requests if request.state is State.WORKER_IN_FLIGHT]
        begun = any(_has_begun(request) or request.state not in (*_WITH_US, State.WORKER_IN_FLIGHT) for request in requests)
        if begun or len(doubtful) > 1:
            return False
        if doubtful and not self.workers.withdraw(doubtful[0]):
            return False
        for request in requests:
            if request not in doubtful:
                self._take_back(request)
        for request in requests:  # now that all are: what starts instead may end some, and others would start in their slots
            self._withdrawn(request)
        return True

    def _take_back(self, request: Request) -> None:
        if request.state is State.HELD:
            request.descriptor.order.withdraw(request)
        elif request.state is State.WORKER_QUEUED:
            self.workers.withdraw_queued(request)
        else:
            assert self.kernel is not None
            self.kernel.withdraw_queued(request)

    def _withdrawn(self, request: Request) -> None:
        request.cancel_requested = True
        self.cancelled += request.pieces
        request.waiter = None
        request.advance(State.WITHDRAWN)
        self._let_go(request)

    def abandon(self, request: Request) -> None:
        """Let a request that cannot be stopped go on with nobody waiting; it keeps its memory until its completion."""
        request.abandoned = request.counted = True
        request.waiter = None
        self.abandoned += 1
        self.cancelled += request.pieces

    def cancel_polls(self) -> None:
        """End the requests that may otherwise never end; they fail with ECANCELED. For closing."""
        lane = self.kernel
        if lane is None:
            return
        for request in [*lane.requests(), *lane.waiting()]:
            if request.operation is not Operation.POLL:
                continue
            if request.state is State.KERNEL_IN_FLIGHT:
                request.cancel_accepted = request.cancel_accepted or lane.cancel(request)
                continue
            if request.state is State.KERNEL_QUEUED:
                lane.withdraw_queued(request)
            else:
                lane.withdraw_prepared(request)
            request.cancel_accepted = True
            self._finish(request, _ECANCELED)
        self._pump()

    # ---- the end

    def drop(self, dropped: Descriptor | Request) -> None:
        """Close a descriptor once nothing of it is in flight; stop a read, or let it go on with nobody waiting.

        For finalizers: callable at any moment, from any thread.
        """
        with self._drop_lock:
            if not self.closed:
                self._dropped.append(dropped)
                eventfd_write(self.event_fd, 1)
                return
        if isinstance(dropped, Descriptor) and not dropped.order.requests:
            dropped.close_now()

    def drop_unclaimed(self, descriptor: Descriptor) -> None:
        """Have closed what a request has opened, if nobody has taken it over."""
        if descriptor.take_unclaimed():
            self.drop(descriptor)

    def give_up(self, request: Request) -> None:
        """Stop a read, or let it go on with nobody waiting. Its slab goes back to the pool once the read is over."""
        if request.finished:
            if isinstance(request.owned, Slab):
                self.buffers.give_back(request.owned)
        elif not self.cancel(request):
            self.abandon(request)
        elif isinstance(request.owned, Slab):
            self.buffers.give_back(request.owned)

    def drain(self) -> None:
        """Wait, blocking, until nothing is out, and close. For a thread that took the engine over from its event loop."""
        self._plug = _no_plug
        self._orphaned = True
        self.flush()
        readable = select.poll()
        readable.register(self.event_fd, select.POLLIN)
        while self.outstanding or self._dropped:
            if self._plugged:
                self.flush()  # from here, since `flush` inside `flush` would recurse once for each queued request
            else:
                readable.poll()
                self.reap(drain=True)
        self.stop()
        self.close()

    def stop(self) -> None:
        """Send the workers home. Nothing is outstanding. `close` will not wait once `workers.stopped`."""
        self._stopping = True
        self.workers.stop()

    def close(self) -> None:
        """Give everything back. Nothing is outstanding and the workers have been told to stop."""
        self.workers.close()
        with self._drop_lock:
            self.closed = True
        for dropped in self._dropped:
            if isinstance(dropped, Descriptor):
                dropped.close_now()
        self._tear_down_kernel()
        self.inline.close()
        self.buffers.clear()
        os.close(self.event_fd)

    def _set_up_kernel(self) -> None:
        context = _kernel_context.acquire(self.max_in_flight)
        self.kernel = self._kernel_type(0, self.max_in_flight, context, self.event_fd)

    def _tear_down_kernel(self) -> None:
        if self.kernel is not None:
            self._submit_calls = self.kernel.submit_calls
            self.kernel.close()
            _kernel_context.release(self.kernel.context)
            self.kernel = None


def close_request(descriptor: Descriptor) -> Request:
    """Make the request that ends a descriptor."""
    return Request(Operation.CLOSE, descriptor, flags=int(descriptor.borrowed), extra=descriptor.second_address)


def _has_begun(request: Request) -> bool:
    """Whether a lane may have done a part of what now waits for the next lane."""
    return request.begun or request.transferred > 0 or (request.run is not None and request.run.begun)


def _no_plug() -> None:
    """Let `drain` look at `_plugged` itself."""


def _skip(request: Request, count: int) -> None:
    """Advance a read or write past its first `count` bytes."""
    request.offset += count
    request.nbytes -= count
    if not _VECTORS[request.operation]:
        request.address += count
        request.length -= count
        return
    part = ffi.cast("struct iovec *", request.address)
    while count >= part.iov_len:
        count -= part.iov_len
        part += 1
        request.length -= 1
    part.iov_base = ffi.cast("char *", part.iov_base) + count
    part.iov_len -= count
    request.address = int(ffi.cast("uintptr_t", part))
