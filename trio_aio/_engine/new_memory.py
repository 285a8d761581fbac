"""New memory for direct I/O: a worker touches it first, and the requests that were given a part of it wait for that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_aio._engine.mending import mend
from trio_aio._lanes.protocols import State
from trio_aio._lanes.workers import Population
from trio_aio._memory.slabs import HUGE_PAGE

if TYPE_CHECKING:
    from trio_aio._engine.host import Host
    from trio_aio._engine.protocols import Request
    from trio_aio._memory.slabs import HugePage

__all__ = ("populate", "stop_waiting", "wait_for_memory")


def populate(engine: Host, page: HugePage) -> None:
    """Let a worker touch a huge page, and dispatch the requests that wait for it afterwards."""

    population = Population(page.address, HUGE_PAGE, lambda: _dispatch(engine, page))
    try:
        page.asked, engine.outstanding, population.counted = True, engine.outstanding + 1, True
        engine.workers.accept(population)
    except BaseException as error:
        mend(engine, error, population)
        raise


def _dispatch(engine: Host, page: HugePage) -> None:
    """Dispatch the requests that have waited for a page. It may be called again if that has failed."""
    page.warm = True
    waiting = page.waiting
    while waiting:  # each stays in the list until its turn: what is dispatched before may let another be withdrawn
        request = None
        try:
            request = waiting.pop(0)
            engine.dispatch(request)
        except BaseException as error:
            if request is not None:
                mend(engine, error, request)
            raise


def wait_for_memory(page: HugePage, request: Request) -> None:
    """Hold a request until its memory has been touched by a worker."""
    request.state = State.HELD
    page.waiting.append(request)


def stop_waiting(page: HugePage, request: Request) -> bool:
    """Undo `wait_for_memory`. Return whether the request waited for this memory."""
    if request not in page.waiting:
        return False
    page.waiting.remove(request)
    return True
