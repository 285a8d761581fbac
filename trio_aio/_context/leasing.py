"""`Lease`: keeps a descriptor open for a call that makes several requests.

Each request leases its descriptor by itself; a close must not come between two of them either. An interrupt may come between any two lines,
also in front of a ``finally``. So `end` may be called twice, and is::

    lease = Lease(backend, engine, descriptor)
    try:
        try:
            lease.take()
            ...
        finally:
            lease.end()
    finally:
        lease.end()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_aio._engine.withdrawal import resume_close

if TYPE_CHECKING:
    from trio_aio._backends import Backend
    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._engine.engine import Engine

__all__ = ("Lease",)


class Lease:
    """A lease of a descriptor, of one call."""

    __slots__ = ("_backend", "_descriptor", "_engine", "_taken")

    def __init__(self, backend: Backend, engine: Engine, descriptor: Descriptor) -> None:
        self._backend: Backend = backend
        self._engine: Engine = engine
        self._descriptor: Descriptor = descriptor
        self._taken: bool = False

    def take(self) -> None:
        """Let a close of the descriptor wait until `end`. ValueError if one was asked for."""
        self._backend.step(self._take)

    def _take(self) -> None:
        order = self._descriptor.order
        order.check()
        order.leases, self._taken = order.leases + 1, True

    def end(self) -> None:
        """Let a close start, if one waits. Nothing if it was not taken, or has ended."""
        if not self._engine.orphaned:
            self._backend.step(self._end)
        elif not self._engine.drops.end_lease(self._end):  # otherwise a thread drains it, and may be in the middle of a step
            self._end()

    def _end(self) -> None:
        order = self._descriptor.order
        if self._taken:
            order.leases, self._taken = order.leases - 1, False
        if order.closing and not self._engine.drops.closed:
            resume_close(self._engine, order)
