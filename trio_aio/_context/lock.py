"""`FairLock`: one task at a time, in the order of their calls. It guards what tasks share, such as a file's cursor.

Calls that use the cursor of a file must not interleave, and a program expects its writes in the order of its calls. `trio.Lock` and
`asyncio.Lock` each work under one event loop library. Acquiring a free `trio.Lock` is also a checkpoint, which these calls have already.

So acquiring a free lock here sets a flag, and runs no other task. A task that must wait uses the backend's `wait`, as requests do.
`release` passes the lock directly to the task that has waited longest, so no other task can take it in between.

An exception may come between `acquire` and the `try` behind it, or in front of `release`: MemoryError, or that of a signal handler. Then no
call will release the lock. So it knows the task that holds it. `acquire` takes it over if that task calls again, or has ended.

`AsyncFile`, `AsyncTextFile`, `Writer` and the streams use it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from trio_aio._backends import Waiter

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from trio_aio._backends import Backend

__all__ = ("FairLock",)


class FairLock:
    """A lock. Acquiring it is no checkpoint if it is free. Use it as ``async with lock:``, or without the two coroutines of that::

    if not lock.acquire():
        await lock.wait()
    try: ...
    finally: lock.release()
    """

    def __init__(self, backend: Backend, check: Callable[[], object]) -> None:
        self._backend: Backend = backend
        # Raises RuntimeError in another run, thread or process.
        self._check: Callable[[], object] = check
        self._taken: bool = False
        self._current_task: Callable[[], Any] = backend.current_task
        self._holder: Any = None  # the task that has acquired it; None while it is passed on
        self._waiting: OrderedDict[Waiter, None] = OrderedDict()

    @property
    def free(self) -> bool:
        """Whether no task holds it."""
        return not self._taken

    def acquire(self) -> bool:
        """Acquire the lock if it is free. Return whether this task holds it now; if not, call `wait`."""
        self._check()
        task = self._current_task()
        if self._taken and not self._is_lost(task):
            return False
        self._taken, self._holder = True, task
        return True

    def _is_lost(self, task: object) -> bool:
        holder = self._holder
        return holder is not None and (holder is task or self._backend.has_ended(holder))

    async def wait(self) -> None:
        """Wait until this task holds the lock. Cancelled: it does not."""
        waiter = Waiter()
        self._waiting[waiter] = None

        def leave() -> bool:
            del self._waiting[waiter]
            return True

        try:
            await self._backend.wait(waiter, leave)
            self._holder = self._current_task()
        except BaseException:
            # asyncio's own Task.cancel may come after `release` has passed the lock to this task.
            if waiter.finished:
                self.release()
            raise

    def release(self) -> None:
        """Pass the lock to the task that has waited longest, or free it."""
        if not self._waiting:
            self._taken, self._holder = False, None
            return
        self._holder = None
        waiter, _ = self._waiting.popitem(last=False)
        waiter.finished = True
        self._backend.wake(waiter)

    async def __aenter__(self) -> None:
        if not self.acquire():
            await self.wait()

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.release()
