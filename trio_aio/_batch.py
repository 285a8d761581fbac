"""A call of several requests, which one task waits for."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from trio_aio._request import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from trio_aio._engine import Engine
    from trio_aio._request import Request

__all__ = ("Batch",)


class Batch:
    """Requests, `depth` of them out at once. It is finished when all are; after the first that failed no more are begun.

    Reads that are cancelled are given up as far as they have not begun, and what is out is waited for. Writes are given up
    while the kernel and the workers have none of them (or the only one there is can be taken back), and else go on to their end.
    """

    def __init__(self, engine: Engine, requests: Iterable[Request], depth: int, *, writing: bool = False) -> None:
        self.waiter: Any = None
        self.took_no_effect: bool = False  # it was cancelled, and something was left undone
        self._engine: Engine = engine
        self._coming: Iterator[Request] = iter(requests)
        self._depth: int = depth
        self._writing: bool = writing
        self._begun: bool = False  # a request has ended as it was meant to
        self._out: deque[Request] = deque()
        self.failed: list[Request] = []
        self.transferred: int = 0  # bytes, by requests that are over
        self._stopped: bool = False
        self._starting: bool = False
        self._resting: bool = False

    @property
    def finished(self) -> bool:
        """Whether nothing is out and nothing will be."""
        return self._stopped and not self._out

    def start(self) -> None:
        """Submit requests as far as `depth` goes, and as long as they are not done by this very thread."""
        if self._resting:
            return
        self._starting = True  # a request may be complete when its submit returns
        while not self._stopped and len(self._out) < self._depth:
            request = next(self._coming, None)
            if request is None:
                self._stopped = True
                break
            request.batch = self
            self._out.append(request)
            self._engine.submit(request)
            if request.finished and not self._stopped:
                self._resting = True  # other tasks have their turn first
                self._engine.rest(self)
                break
        self._starting = False

    def go_on(self) -> None:
        """Start again after a rest; for the engine."""
        self._resting = False
        self._go_on()

    def ended(self, request: Request) -> None:
        """Take note that a request is over; for the engine."""
        self._out.remove(request)
        if request.state is State.WITHDRAWN or request.took_no_effect:
            self.took_no_effect = True
        else:
            self._begun = True
            self.transferred += request.transferred
            if request.result < 0 or (request.run is not None and request.run.failure()):
                self._stopped = True
                self.failed.append(request)
        if not self._starting:
            self._go_on()

    def _go_on(self) -> None:
        self.start()
        if self.finished and self.waiter is not None:
            self._engine.wake(self)

    def cancel(self) -> bool:
        """Try to stop. True: nothing happened, nobody is woken."""
        if self._writing:
            return not self._begun and self._withdraw_writes()
        waiter, self.waiter = self.waiter, None  # `ended` is for the requests here
        if not self._stopped and next(self._coming, None) is not None:
            self.took_no_effect = True
        self._stopped = True
        for request in list(self._out):
            self._engine.cancel(request)
        if self.finished and self.took_no_effect:
            return True
        self.waiter = waiter
        return False

    def abandon(self) -> None:
        """Let what is out go on with nobody waiting."""
        self.waiter = None
        for request in self._out:
            request.batch = None
            self._engine.abandon(request)
        self._out.clear()

    def _withdraw_writes(self) -> bool:
        """All of them, or none."""
        waiter, self.waiter = self.waiter, None  # `ended` is for the requests here
        coming, self._coming = self._coming, iter(())
        if self._engine.cancel_together(self._out):
            return True
        self.waiter, self._coming = waiter, coming
        return False
