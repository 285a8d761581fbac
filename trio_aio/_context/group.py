"""`RequestGroup`: several requests that one task waits for, with a limit on how many are in flight.

A call of many ranges, or of one long file, needs several requests. Submitting all of them at once would fill the kernel's queue, and other
tasks would wait behind them. So `depth` are in flight at once, and each that ends lets the next one start.

Cancellation must keep its promise for the whole call. A read may stop halfway: its memory is dropped. Of writes, either none takes effect,
or all of them run. A request may also be complete when its submission returns, from the page cache. Then other tasks run before the
next one is submitted, so that a long call does not keep the event loop busy.

The engine reports each request that ends (`ended`). `many.py`, `whole.py` and the context's operations make these groups.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from trio_aio._engine.mending import mend
from trio_aio._engine.withdrawal import abandon, cancel_together
from trio_aio._lanes.protocols import State
from trio_aio._requests.base import Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from trio_aio._engine.engine import Engine

__all__ = ("RequestGroup",)

RequestT = TypeVar("RequestT", bound=Request)


class RequestGroup(Generic[RequestT]):
    """Requests, `depth` of them in flight at once. It is finished when all have ended. After the first failure no more are started.

    Reads are cancelled one by one: those that have not started never run, and the others are waited for. Writes are cancelled together
    or not at all. Once the kernel has one, or a worker has started one, all of them run to completion.
    """

    def __init__(self, engine: Engine, requests: Iterable[RequestT], depth: int, *, writing: bool = False) -> None:
        self.waiter: Any = None
        # Whether it was cancelled, and a part of it never ran.
        self.took_no_effect: bool = False
        self._engine: Engine = engine
        self._unsubmitted: Iterator[RequestT] = iter(requests)
        self._depth: int = depth
        self._writing: bool = writing
        # Whether a request has ended without being cancelled.
        self._effective: bool = False
        self._in_flight: deque[RequestT] = deque()
        self.failed: list[RequestT] = []
        # What has torn a step of it, if anything: the call raises that.
        self.error: BaseException | None = None
        # Bytes, by requests that have ended.
        self.transferred: int = 0
        # Whether no more requests are submitted.
        self._stopped: bool = False
        # Whether `start` is running. A request that ends meanwhile must not call it again.
        self._starting: bool = False
        # Whether other tasks run before the next request is submitted.
        self._resting: bool = False

    @property
    def finished(self) -> bool:
        """Whether nothing is in flight and nothing will be."""
        return self._stopped and not self._in_flight

    def start(self) -> None:
        """Submit requests until `depth` are in flight, or one was complete when its submission returned."""
        if self._resting:
            return
        try:
            # A request may be complete when its submission returns, and `ended` is then called from here.
            self._starting = True
            while not self._stopped and len(self._in_flight) < self._depth:
                request = next(self._unsubmitted, None)
                if request is None:
                    self._stopped = True
                    break
                request.group = self
                self._in_flight.append(request)
                self._engine.submit(request)
                if request.finished and not self._stopped:
                    # It cost time on this thread: let other tasks run first.
                    self._resting = True
                    self._engine.completions.rest(self)
                    break
            self._starting = False
        except BaseException as error:
            self.tear(error)
            raise

    def resume(self) -> None:
        """Submit more requests, after other tasks have run. The engine calls this."""
        self._resting = False
        self._continue()

    def ended(self, request: RequestT) -> None:
        """Note that a request has ended, and submit the next one. The engine calls this."""
        try:
            if request in self._in_flight:
                self._in_flight.remove(request)
            # A reference cycle would keep callers' buffers until the collector comes, and 3.10's crashes at a memoryview in one.
            request.group = None
            if request.state is State.WITHDRAWN or request.took_no_effect:
                self.took_no_effect = True
            else:
                self._effective = True
                self.transferred += request.transferred
                if request.failed:
                    self._stopped = True
                    self.failed.append(request)
            if not self._starting:
                self._continue()
        except BaseException as error:
            self.tear(error)
            raise

    def tear(self, error: BaseException) -> None:
        """Start no more requests, because an exception came in the middle of a step. The call raises it when those in flight have ended."""
        self.error, self._stopped = error, True
        self._starting = self._resting = False
        for request in list(self._in_flight):
            if request.finished or not request.outstanding:
                self._in_flight.remove(request)
                request.group = None
        if self.finished and self.waiter is not None:
            self._engine.wake(self)

    def _continue(self) -> None:
        """Submit more requests. Wake the task if there are none left and none is in flight."""
        self.start()
        if self.finished and self.waiter is not None:
            self._engine.wake(self)

    def cancel(self) -> bool:
        """Cancel the requests. True: the call had no effect, and its task may leave at once. False: it is woken when all have ended."""
        if self._writing:
            return not self._effective and self._withdraw_writes()
        # The requests that end during this call must not wake the task.
        waiter, self.waiter = self.waiter, None
        if not self._stopped and next(self._unsubmitted, None) is not None:
            self.took_no_effect = True
        self._stopped = True
        for request in list(self._in_flight):
            self._engine.cancel(request)
        if self.finished and self.took_no_effect:
            return True
        self.waiter = waiter
        return False

    def abandon(self) -> None:
        """Leave the requests in flight to the engine. No task waits for them any more."""
        self.waiter = None
        for request in self._in_flight:
            request.group = None
            abandon(self._engine, request)
        self._in_flight.clear()

    def drop_unsubmitted(self) -> None:
        """Forget the requests that were never submitted, which releases their memory. Nothing if the engine will still submit them.

        The engine does so if the task is dropped meanwhile: then the group continues without it.
        """
        if not self._in_flight and not self._resting:
            self._unsubmitted = iter(())

    def _withdraw_writes(self) -> bool:
        """Withdraw all writes, or none. Return whether all were withdrawn."""
        # The requests that end during this call must not wake the task.
        waiter, self.waiter = self.waiter, None
        unsubmitted, self._unsubmitted = self._unsubmitted, iter(())
        try:
            if cancel_together(self._engine, self._in_flight):
                return True
        except BaseException as error:
            self.waiter = waiter
            mend(self._engine, error, *self._in_flight)
            self.tear(error)
            raise
        self.waiter, self._unsubmitted = waiter, unsubmitted
        return False
