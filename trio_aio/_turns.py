"""Turns: one task at a time, in the order in which they asked. For what tasks share, such as a file's cursor."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from trio_aio._backends import Backend

__all__ = ("Turns",)


class _Ticket:
    waiter: Any = None
    finished: bool = False


class Turns:
    """A lock; no checkpoint where nobody is before us. Use it as ``async with turns:``, or, to save two coroutines::

    if not turns.take():
        await turns.wait()
    try: ...
    finally: turns.pass_on()
    """

    def __init__(self, backend: Backend, check: Callable[[], object]) -> None:
        self._backend: Backend = backend
        self._check: Callable[[], object] = check  # raises RuntimeError for whoever may not use what is shared
        self._taken: bool = False
        self._waiting: OrderedDict[_Ticket, None] = OrderedDict()

    @property
    def free(self) -> bool:
        """Whether nobody has the turn."""
        return not self._taken

    def take(self) -> bool:
        """Take the turn if nobody has it; give whether it is ours."""
        self._check()
        if self._taken:
            return False
        self._taken = True
        return True

    async def wait(self) -> None:
        """Wait until it is our turn. Cancelled: it is not."""
        ticket = _Ticket()
        self._waiting[ticket] = None

        def leave() -> bool:
            del self._waiting[ticket]
            return True

        try:
            await self._backend.wait(ticket, leave)
        except BaseException:
            if ticket.finished:  # asyncio's native cancellation, when the turn had come
                self.pass_on()
            raise

    def pass_on(self) -> None:
        """End our turn: it is the next one's."""
        if not self._waiting:
            self._taken = False
            return
        ticket, _ = self._waiting.popitem(last=False)
        ticket.finished = True
        self._backend.wake(ticket)

    async def __aenter__(self) -> None:
        if not self.take():
            await self.wait()

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.pass_on()
