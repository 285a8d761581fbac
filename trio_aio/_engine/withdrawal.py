"""How requests leave their lane before they have run: one alone, the writes of a call together, all polls, what a full ring holds up.

The cancellation of one request starts in `Request.cancel` (_requests/base.py), which calls these. Closes and syncs have their own.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, Any

from trio_aio._engine.mending import mend, start_ready
from trio_aio._lanes.protocols import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trio_aio._engine.host import Host
    from trio_aio._engine.order import Order
    from trio_aio._engine.protocols import Request
    from trio_aio._lanes.kernel import KernelLane

__all__ = (
    *("abandon", "cancel_again", "cancel_or_abandon", "cancel_polls", "cancel_together", "empty_full_ring", "end_withdrawn"),
    *(
        "end_abandoned",
        "leave_close",
        "leave_submitters",
        "resume_close",
        "submit_prepared",
        "take_dropped",
        "withdraw_prepared",
        "withdraw_without_slot",
    ),
)

_logger: logging.Logger = logging.getLogger("trio_aio")
_NOT_IN_SLOT = (State.HELD, State.KERNEL_QUEUED, State.WORKER_QUEUED)  # it has no slot: neither the kernel nor a worker has it


def cancel_together(engine: Host, requests: Iterable[Request]) -> bool:
    """Cancel writes of one file, all or none of them."""
    requests = [*requests]
    doubtful = [request for request in requests if request.state is State.WORKER_IN_FLIGHT]
    started = any(request.has_moved_bytes or request.state not in (*_NOT_IN_SLOT, State.WORKER_IN_FLIGHT) for request in requests)
    if started or len(doubtful) > 1:
        return False
    if doubtful and not engine.workers.withdraw(doubtful[0]):
        return False
    for request in requests:
        if request not in doubtful:
            withdraw_without_slot(engine, request)
    # Withdraw all before ending any. Ending one frees its slot, and a request of this group could start in it.
    for request in requests:
        end_withdrawn(engine, request)
    return True


def submit_prepared(engine: Host, lane: KernelLane) -> None:
    """Call io_submit for what is prepared. Complete what it refuses, and take what is complete already."""
    tried, refused = lane.submit(engine.completions.unserved)
    if refused:
        engine.completions.serve()
        engine.start_queued()  # their slots are free, and perhaps no completion follows that would do it
        engine.wake_loop()
    elif lane.is_stuck:
        empty_full_ring(engine)
        tried = []
    lane.has_event = False
    engine.reap(drain=False)
    for request in tried:
        if not request.probing:
            request.note_submitted(engine, engine.completions.result_of(request))  # type: ignore[attr-defined]


def empty_full_ring(engine: Host) -> None:
    """Let what is prepared leave the kernel lane: io_submit answers EAGAIN, and only polls are in flight.

    The kernel is out of memory, say. No completion would ever make us try again.
    """
    lane = engine.kernel
    assert lane is not None
    for request in dict.fromkeys(lane.requests()):
        if request.state is State.KERNEL_HANDED_OVER or (request.kernel_can_cancel and request.state is State.KERNEL_IN_FLIGHT):
            continue
        _leave_kernel(engine, request)
    lane.start_queued()


def cancel_polls(engine: Host) -> None:
    """End the requests that may never end by themselves; they fail with ECANCELED. For closing."""
    lane = engine.kernel
    if lane is None:
        return
    polls: list[Any] = [request for request in (*lane.requests(), *lane.waiting()) if request.kernel_can_cancel]
    for request in polls:
        if request.state is State.KERNEL_QUEUED:
            lane.withdraw_queued(request)
        elif request.state is State.KERNEL_IN_FLIGHT or not withdraw_prepared(engine, request):
            request.cancel_accepted = request.cancel_accepted or lane.cancel(request)
            continue
        request.cancel_accepted = True
        engine.finish(request, -errno.ECANCELED)
    engine.start_queued()


def withdraw_without_slot(engine: Host, request: Request) -> None:
    """Withdraw a request that has no slot: neither the kernel nor a worker has it."""
    if request.state is State.HELD:
        request.withdraw_held()
    elif request.state is State.WORKER_QUEUED:
        engine.workers.withdraw_queued(request)
    else:
        assert engine.kernel is not None
        engine.kernel.withdraw_queued(request)


def withdraw_prepared(engine: Host, request: Request) -> bool:
    """Withdraw a request that the kernel lane has and io_submit has not seen. Return whether that was possible.

    It always is, except for one that was handed over to a submitter.
    """
    lane = engine.kernel
    assert lane is not None
    if engine.hook is not None and engine.hook.withdraws(request):
        lane.vacate(lane.slot_of(request))
        return True
    return lane.withdraw_prepared(request)


def _leave_kernel(engine: Host, request: Any) -> None:
    try:
        request.leave_kernel(engine, -errno.EAGAIN)
    except BaseException as error:
        mend(engine, error, request)
        raise


def leave_submitters(engine: Host, lane: KernelLane) -> None:
    """Let the requests leave the kernel lane for which no thread can be had that submits them."""
    while lane.left:
        request = next(iter(lane.left))
        if request.state is State.KERNEL_HANDED_OVER:
            _leave_kernel(engine, request)
        del lane.left[request]
        engine.wake_loop()  # the workers' requests are handed over in another tick


def cancel_again(engine: Host, lane: KernelLane) -> None:
    """Try again to cancel the polls that were being submitted when that was asked for."""
    withdrawn = lane.cancel_again()
    for request in withdrawn:
        try:
            request.complete_kernel(engine, request.token, 0)  # type: ignore[attr-defined]
        except BaseException as error:
            mend(engine, error, request)
            raise
    if withdrawn:
        engine.start_queued()  # their slots are free, and perhaps no completion follows that would do it


def end_withdrawn(engine: Host, request: Request) -> None:
    """End a request that was withdrawn from its lane."""
    request.cancel_requested = True
    if not request.counted:
        engine.cancelled += request.count
    request.waiter = None
    request.state = State.WITHDRAWN
    engine.end_request(request)
    _wake_closing(engine)


def _wake_closing(engine: Host) -> None:
    """Wake the reaper if no task waits for a request any more: a closing context has waited for that, and no completion may come."""
    if engine.outstanding == engine.abandoned:
        engine.wake_loop()


def abandon(engine: Host, request: Request) -> None:
    """Let a request that cannot be cancelled run on with no task waiting. It keeps its memory until its completion."""
    request.note_abandoned(engine)
    order = request.descriptor.order
    request.waiter, leases = None, order.abandoned + (not request.closes)
    engine.abandoned, order.abandoned, request.abandoned = engine.abandoned + 1, leases, True
    if not request.counted:
        engine.ever_abandoned += request.count
    if not request.closes:
        leave_close(engine, order)
    _wake_closing(engine)


def end_abandoned(engine: Host, request: Request) -> None:
    """End the lease of an abandoned request."""
    order = request.descriptor.order
    leases, of_it, abandoned = order.leases - (not request.ordered), order.abandoned - (not request.closes), engine.abandoned - 1
    outstanding = engine.outstanding - 1
    order.leases, order.abandoned, engine.abandoned, engine.outstanding, request.outstanding = leases, of_it, abandoned, outstanding, False


def leave_close(engine: Host, order: Order) -> None:
    """Abandon a close that waits for abandoned requests only: they may hang. It happens when they have completed."""
    close = order.left_close
    if close is None:
        return
    if close.waiter is not None:
        engine.wake(close)
    if not close.abandoned:
        abandon(engine, close)


def resume_close(engine: Host, order: Order) -> None:
    """Start the close of a descriptor, if it waits and no lease is left. Otherwise its task may leave."""
    try:
        order.close_if_idle(engine.ready)
        start_ready(engine)
        leave_close(engine, order)
        _wake_closing(engine)  # a close that needs no worker has no completion
    except BaseException as error:
        order.close_if_idle(engine.ready)
        mend(engine, error)
        raise


def cancel_or_abandon(engine: Host, request: Request) -> None:
    """Cancel a request, or let it run on with no task waiting. If it has ended, nobody takes what it has read."""
    if request.finished:
        request.let_go(engine)
    elif not engine.cancel(request):
        abandon(engine, request)


def take_dropped(engine: Host) -> None:
    """Do what finalizers and other threads have left to the engine."""
    engine.drops.forget_changed()
    engine.drops.end_leases()
    while (taken := engine.drops.oldest) is not None:
        descriptor, request = taken
        try:
            if descriptor is None:
                cancel_or_abandon(engine, request)
            elif request.state is State.CREATED and not request.outstanding:  # otherwise this is repeated, after an exception
                request.may_be_left = True
                engine.submit(request)
                leave_close(engine, descriptor.order)
        except MemoryError:
            raise  # it is repeated
        except Exception:  # a bug: repeated, it would fail again, and end the whole run
            _logger.critical("an error in trio_aio: %r, which was dropped, may stay open or in flight", request, exc_info=True)
        engine.drops.remove_oldest()
