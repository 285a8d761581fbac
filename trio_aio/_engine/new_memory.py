"""New memory for direct I/O: a worker touches it first, and the requests that were given a part of it wait for that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_aio._lanes.protocols import State
from trio_aio._lanes.workers import Population
from trio_aio._memory.slabs import HUGE_PAGE

if TYPE_CHECKING:
    from trio_aio._engine.protocols import Host, Request
    from trio_aio._memory.slabs import HugePage

__all__ = ("populate", "wait_for_memory")


def populate(engine: Host, page: HugePage) -> None:
    """Let a worker touch a huge page, and dispatch the requests that wait for it afterwards."""

    def done() -> None:
        page.warm = True
        waiting, page.waiting = page.waiting, []
        engine.outstanding -= 1
        for request in waiting:
            engine.dispatch(request)

    population = Population(page.address, HUGE_PAGE, done)
    engine.outstanding += 1
    engine.workers.accept(population)


def wait_for_memory(page: HugePage, request: Request) -> None:
    """Hold a request until its memory has been touched by a worker."""
    request.state = State.HELD
    page.waiting.append(request)
