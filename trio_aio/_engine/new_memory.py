"""New memory for direct I/O: a worker touches it first, and the requests that were given a part of it wait for that."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

    def done() -> None:
        page.warm = True
        engine.outstanding -= 1
        waiting = page.waiting
        try:
            while waiting:  # each stays in the list until its turn: what is dispatched before may let another be withdrawn
                engine.dispatch(waiting.pop(0))
        except BaseException:
            if waiting:
                populate(engine, page)  # they are dispatched with its completion
            raise

    engine.workers.accept(Population(page.address, HUGE_PAGE, done))
    engine.outstanding += 1


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
