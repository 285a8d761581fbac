"""`FairLock`: one task at a time, first come, first served. For what tasks share, such as a file's cursor."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from trio_aio._backends import Waiter

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from trio_aio._backends import Backend

__all__ = ("FairLock",)


class FairLock:
    """A lock. Acquiring it is no checkpoint while it is free. Use it as ``async with lock:`` or, without the two coroutines of that::

    if not lock.acquire():
        await lock.wait()
    try: ...
    finally: lock.release()
    """

    def __init__(self, backend: Backend, check: Callable[[], object]) -> None:
        self._backend: Backend = backend
        self._check: Callable[[], object] = check  # raises RuntimeError in a wrong run, thread or process
        self._taken: bool = False
        self._waiting: OrderedDict[Waiter, None] = OrderedDict()

    @property
    def free(self) -> bool:
        """Whether no task has it."""
        return not self._taken

    def acquire(self) -> bool:
        """Acquire the lock if it is free. Return whether it is ours."""
        self._check()
        if self._taken:
            return False
        self._taken = True
        return True

    async def wait(self) -> None:
        """Wait until the lock is ours. Cancelled: it is not."""
        ticket = Waiter()
        self._waiting[ticket] = None

        def leave() -> bool:
            del self._waiting[ticket]
            return True

        try:
            await self._backend.wait(ticket, leave)
        except BaseException:
            if ticket.finished:  # asyncio's native cancellation, when it was ours already
                self.release()
            raise

    def release(self) -> None:
        """Give the lock to the task that has waited longest."""
        if not self._waiting:
            self._taken = False
            return
        ticket, _ = self._waiting.popitem(last=False)
        ticket.finished = True
        self._backend.wake(ticket)

    async def __aenter__(self) -> None:
        if not self.acquire():
            await self.wait()

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.release()
