"""How requests leave their lane before they have run: one alone, the writes of a call together, all polls, what a full ring holds up."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

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
        "roll_back",
        "submit_prepared",
        "take_dropped",
        "withdraw_prepared",
        "withdraw_without_slot",
    ),
)

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


def roll_back(engine: Host, request: Request) -> None:
    """End a request whose start has raised an exception (no memory, say), unless a lane has it. No task waits for it."""
    if request.state < State.KERNEL_QUEUED:
        for lane in (engine.kernel, engine.workers):
            if lane is not None:
                lane.take_back(request)
        request.waiter = request.group = None
        request.state = State.WITHDRAWN
        engine.end_request(request)
    engine.plugged = False  # the exception may have come while the flush was asked for
    if engine.workers.gathered or (engine.kernel is not None and engine.kernel.has_prepared):
        engine.ask_for_flush()


def submit_prepared(engine: Host, lane: KernelLane) -> None:
    """Call io_submit for what is prepared. Complete what it refuses, and take what is complete already."""
    tried, refused = lane.submit()
    if refused:
        engine.completions.serve(refused)
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
        request.leave_kernel(engine, -errno.EAGAIN)
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


def leave_submitters(engine: Host, requests: Iterable[Any]) -> None:
    """Let requests leave the kernel lane, because no thread can be had that submits them."""
    for request in requests:
        request.leave_kernel(engine, -errno.EAGAIN)
        engine.wake_loop()  # the workers' requests are handed over in another tick


def cancel_again(engine: Host, lane: KernelLane) -> None:
    """Try again to cancel the polls that were being submitted when that was asked for."""
    for request in lane.cancel_again():
        request.complete_kernel(engine, request.token, 0)  # type: ignore[attr-defined]


def end_withdrawn(engine: Host, request: Request) -> None:
    """End a request that was withdrawn from its lane."""
    request.cancel_requested = True
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
    request.abandoned = True
    request.waiter = None
    engine.abandoned += 1
    engine.cancelled += request.count
    if not request.closes:
        request.descriptor.order.abandoned += 1
        leave_close(engine, request.descriptor.order)
    _wake_closing(engine)


def end_abandoned(engine: Host, request: Request) -> None:
    """Note that an abandoned request has ended."""
    engine.abandoned -= 1
    if not request.closes:
        request.descriptor.order.abandoned -= 1


def leave_close(engine: Host, order: Order) -> None:
    """Abandon a close that waits for abandoned requests only: they may hang. It happens when they have completed."""
    close = order.left_close
    if close is None:
        return
    if close.waiter is not None:
        engine.wake(close)
    abandon(engine, close)


def cancel_or_abandon(engine: Host, request: Request) -> None:
    """Cancel a request, or let it run on with no task waiting. Nothing if it has ended."""
    if not request.finished and not engine.cancel(request):
        abandon(engine, request)


def take_dropped(engine: Host) -> None:
    """Do what finalizers have left to the engine."""
    while (taken := engine.drops.take()) is not None:
        descriptor, request = taken
        if descriptor is None:
            cancel_or_abandon(engine, request)
        else:
            request.may_be_left = True
            engine.submit(request)
            leave_close(engine, descriptor.order)
