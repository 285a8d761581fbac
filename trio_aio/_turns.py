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
    """A lock whose ``async with`` waits its turn; no checkpoint where nobody is before it."""

    def __init__(self, backend: Backend, check: Callable[[], object]) -> None:
        self._backend: Backend = backend
        self._check: Callable[[], object] = check  # raises RuntimeError for whoever may not use what is shared
        self._taken: bool = False
        self._waiting: OrderedDict[_Ticket, None] = OrderedDict()

    async def __aenter__(self) -> None:
        self._check()
        if not self._taken:
            self._taken = True
            return
        ticket = _Ticket()
        self._waiting[ticket] = None

        def leave() -> bool:
            del self._waiting[ticket]
            return True

        await self._backend.wait(ticket, leave)

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        if not self._waiting:
            self._taken = False
            return
        ticket, _ = self._waiting.popitem(last=False)
        ticket.finished = True
        self._backend.wake(ticket)
