"""An idle event loop in a process of its own, which ticks while a contender works in another.

A load takes processors, and perhaps disturbs the whole machine. So any loop is late beside it, in whichever process it runs. What the loop
of the contender's own process is late beyond that comes from the contender: it has kept the loop's thread, or the interpreter's lock.
"""

from __future__ import annotations

import multiprocessing
import signal
from contextlib import contextmanager
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING

import anyio

from trio_aio._tools.bench.measure import tick

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from trio_aio._tools.bench.contenders.contender import Loop

__all__ = ("Bystander", "bystanders")


class Bystander:
    """The process of an idle loop."""

    def __init__(self, loop: Loop) -> None:
        self._pipe, end = Pipe()
        self._ticking: bool = False
        self._process: Any = multiprocessing.get_context("forkserver").Process(target=_serve, args=(end, loop), daemon=True)
        self._process.start()
        end.close()

    def tick(self, ticking: bool) -> list[float]:
        """Begin to tick, or end. Return by how many seconds each tick was late since it began."""
        if ticking is self._ticking:
            return []
        self._ticking = ticking
        self._pipe.send(ticking)
        if ticking:
            return []
        late: list[float] = self._pipe.recv()
        return late

    def end(self) -> None:
        """End the process, whatever it does: an exception may have come in the middle of `tick`."""
        self._pipe.close()
        self._process.kill()
        self._process.join()
        self._process.close()


@contextmanager
def bystanders() -> Iterator[dict[Loop | None, Bystander]]:
    """Provide an idle loop of each kind, until the end of the block. A contender without a loop tells nothing, so any will do for it."""
    made: dict[Loop | None, Bystander] = {"trio": Bystander("trio"), "asyncio": Bystander("asyncio")}
    made[None] = made["asyncio"]
    try:
        yield made
    finally:
        made["trio"].end()
        made["asyncio"].end()


def _serve(pipe: Connection[Any, Any], loop: Loop) -> None:
    # Ctrl-C is for the parent, which ends this process by closing the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    anyio.run(_tick_when_told, pipe, backend=loop)


async def _tick_when_told(pipe: Connection[Any, Any]) -> None:
    while True:
        await anyio.wait_readable(pipe.fileno())
        late: list[float] = []
        try:
            pipe.recv()
            async with anyio.create_task_group() as group:
                await group.start(tick, late)
                await anyio.wait_readable(pipe.fileno())
                group.cancel_scope.cancel()
            pipe.recv()
            pipe.send(late)
        except (EOFError, ConnectionError):
            return
