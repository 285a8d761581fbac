"""What the engine does when an exception comes in the middle of a step: MemoryError may come at any line.

A step changes several things: slots, the order of a file, counts. Each of these changes is one statement, so none is made by half. But the
step ends between two of them, and its request may be in no place where the engine would find it again.

`mend` is called where a step has raised. It looks for such requests: those that the step was for, and those that have a slot that C does
not know. What C knows runs on, and its completion is served. A request that waits for others keeps waiting. Any other ends, and its call
raises MemoryError (RuntimeError after another exception): it has not run, or its result is lost. A close is started again, because it must
happen. `mend` raises nothing of its own, unless an exception comes again.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from trio_aio._lanes.protocols import State

__all__ = ("LOST", "cause_of", "keep_cause", "mend", "start_ready", "torn")

LOST = -(1 << 20)  # the result of a request that was lost: no errno

_causes: WeakKeyDictionary[Any, BaseException] = WeakKeyDictionary()


def torn(cause: BaseException | None) -> BaseException:
    """Return what a call raises whose step was torn by an exception."""
    kind = MemoryError if cause is None or isinstance(cause, MemoryError) else RuntimeError
    error = kind("an exception came while trio_aio started or ended this request: it did not run, or its result is lost")
    error.__cause__ = cause
    return error


def keep_cause(request: Any, cause: BaseException | None) -> None:
    """Note the exception because of which a request ends with an error, for `cause_of`."""
    if cause is not None:
        _causes[request] = cause


def cause_of(request: Any) -> BaseException | None:
    """Return the exception that came in the middle of a step of a request, if it was lost."""
    return _causes.get(request)


def mend(engine: Any, cause: BaseException, *requests: Any, result: int | None = None) -> None:
    """Bring the requests of a step that has raised to where they continue or end.

    requests: those that the step was for. result: of the completion that was being served, if it was one.
    """
    suspects = [*requests]
    if engine.hook is None:  # a hook has requests that no lane knows
        for lane in (engine.kernel, engine.workers):
            if lane is not None:
                suspects.extend(request for request in lane.torn(engine.completions.has) if request not in suspects)
    try:
        while suspects:
            request = suspects.pop(0)
            _mend_request(engine, cause, request, result if request in requests else None)
    except BaseException as error:  # again
        mend(engine, error, *suspects)
        raise
    # It is not known what the step would have done next.
    engine.plugged = False
    engine.ask_for_flush()
    engine.wake_loop()


def _mend_request(engine: Any, cause: BaseException, request: Any, result: int | None) -> None:
    if not hasattr(request, "descriptor"):
        request.mend(engine)
        return
    pieces, kernel = getattr(request, "pieces", None), engine.kernel
    if pieces is not None and kernel is not None and pieces.kernel_had_it and request.state < State.WORKER_QUEUED:
        kernel.stop_pieces(request)
        request.result = LOST  # when the last piece is complete
        _causes[request] = cause
    if request.state < State.WITHDRAWN:
        if _is_placed(engine, request):
            return
        if request.closes:
            _mend_close(engine, request, result)
            return
        if not request.outstanding:  # it was not submitted
            request.release_memory(engine)
            return
        _lose(engine, cause, request, result)
    _release_again(engine, cause, request)


def _is_placed(engine: Any, request: Any) -> bool:
    """Return whether a request is where its completion, or the end of others, will find it."""
    if (engine.kernel is not None and engine.kernel.holds(request)) or engine.workers.holds(request):
        return True
    slab, shared = getattr(request, "slab", None), request.descriptor.shared_file
    held = request.descriptor.order.holds(request) or (shared is not None and shared.durability.holds(request))
    if held or request in engine.ready or (slab is not None and request in slab.page.waiting):
        request.state = State.HELD
        return True
    return False


def _mend_close(engine: Any, request: Any, result: int | None) -> None:
    order = request.descriptor.order
    if not request.outstanding:
        if order.closing:
            return  # another close was asked for before
        engine.outstanding, request.outstanding = engine.outstanding + 1, True
    if result is None:
        request.state = State.HELD
        order.reenter_close(request, engine.ready)
    else:
        request.result, request.state = result, State.COMPLETED
        engine.end_request(request)


def _lose(engine: Any, cause: BaseException, request: Any, result: int | None) -> None:
    """End a request that was lost. What it has opened is owned by its descriptor, and those that follow it end with it."""
    _causes[request] = cause
    request.result = LOST if result is None else result
    request.settle(engine)
    request.result = LOST
    request.state = State.WITHDRAWN if result is None and request.waiter is None else State.COMPLETED


def _release_again(engine: Any, cause: BaseException, request: Any) -> None:
    """Continue `end_request`."""
    slab = getattr(request, "slab", None)
    if slab is not None and engine.buffers.has(slab):
        request.slab = None  # it was returned to the pool already
    if request.group is not None:
        request.group.tear(cause)
    engine.end_request(request)


def start_ready(engine: Any) -> None:
    """Start the requests that nothing holds back any more."""
    ready = engine.ready
    while ready:
        request = None
        try:
            request = ready.pop(0)
            request.start(engine)
        except BaseException as error:
            if request is not None:
                mend(engine, error, request)
            raise
