"""A call of several requests, which one task waits for."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from trio_aio._engine.withdrawal import abandon, cancel_together
from trio_aio._lanes.protocols import State
from trio_aio._requests.base import Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from trio_aio._engine.engine import Engine

__all__ = ("RequestGroup",)

RequestT = TypeVar("RequestT", bound=Request)


class RequestGroup(Generic[RequestT]):
    """Requests, `depth` of them in flight at once. It is finished when all have ended. After the first that failed no more are started.

    Reads are cancelled one by one: those that have not started never run, and the others are waited for. Writes are cancelled together
    or not at all. Once the kernel has one, or a worker has started one, all of them run to completion.
    """

    def __init__(self, engine: Engine, requests: Iterable[RequestT], depth: int, *, writing: bool = False) -> None:
        self.waiter: Any = None
        self.took_no_effect: bool = False  # it was cancelled, and something was left undone
        self._engine: Engine = engine
        self._coming: Iterator[RequestT] = iter(requests)
        self._depth: int = depth
        self._writing: bool = writing
        self._effective: bool = False  # a request has ended as it was meant to
        self._in_flight: deque[RequestT] = deque()
        self.failed: list[RequestT] = []
        self.transferred: int = 0  # bytes, by requests that are over
        self._stopped: bool = False
        self._starting: bool = False
        self._resting: bool = False

    @property
    def finished(self) -> bool:
        """Whether nothing is in flight and nothing will be."""
        return self._stopped and not self._in_flight

    def start(self) -> None:
        """Submit requests until `depth` are in flight, or one was complete when its submission returned."""
        if self._resting:
            return
        self._starting = True  # a request may be complete when its submit returns
        while not self._stopped and len(self._in_flight) < self._depth:
            request = next(self._coming, None)
            if request is None:
                self._stopped = True
                break
            request.group = self
            self._in_flight.append(request)
            self._engine.submit(request)
            if request.finished and not self._stopped:
                self._resting = True  # other tasks run first
                self._engine.completions.rest(self)
                break
        self._starting = False

    def resume(self) -> None:
        """Start again after other tasks have run; for the engine."""
        self._resting = False
        self._continue()

    def ended(self, request: RequestT) -> None:
        """Note that a request has ended; for the engine."""
        self._in_flight.remove(request)
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

    def _continue(self) -> None:
        self.start()
        if self.finished and self.waiter is not None:
            self._engine.wake(self)

    def cancel(self) -> bool:
        """Cancel the requests. True: nothing happened, and no task is woken."""
        if self._writing:
            return not self._effective and self._withdraw_writes()
        waiter, self.waiter = self.waiter, None  # it must not be woken by the requests that end within
        if not self._stopped and next(self._coming, None) is not None:
            self.took_no_effect = True
        self._stopped = True
        for request in list(self._in_flight):
            self._engine.cancel(request)
        if self.finished and self.took_no_effect:
            return True
        self.waiter = waiter
        return False

    def abandon(self) -> None:
        """Let what is in flight run on with no task waiting."""
        self.waiter = None
        for request in self._in_flight:
            request.group = None
            abandon(self._engine, request)
        self._in_flight.clear()

    def _withdraw_writes(self) -> bool:
        """Withdraw all of them, or none."""
        waiter, self.waiter = self.waiter, None  # it must not be woken by the requests that end within
        coming, self._coming = self._coming, iter(())
        if cancel_together(self._engine, self._in_flight):
            return True
        self.waiter, self._coming = waiter, coming
        return False
