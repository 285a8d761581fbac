"""trio.

How trio works. A task sleeps in ``wait_task_rescheduled(abort)``. When it is cancelled trio calls ``abort``, which either says SUCCEEDED
(Cancelled is raised at once) or FAILED (the sleep goes on until somebody reschedules the task, and the cancellation stays due). That
is the very shape of ``io_cancel``, so a request's event is the sleeping task itself; ``trio.Event.wait`` always gives in to
cancellation, and would need a second, shielded wait behind each refused one.

Ticks. trio runs all tasks that are ready, then waits for I/O. An instrument hears when it is about to wait: that is the end of the tick.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import trio
from trio.lowlevel import (
    Abort,
    RunVar,
    add_instrument,
    cancel_shielded_checkpoint,
    checkpoint_if_cancelled,
    current_task,
    current_trio_token,
    enable_ki_protection,
    notify_closing,
    reschedule,
    spawn_system_task,
    wait_readable,
    wait_task_rescheduled,
)

from trio_aio._backends import protected, resources

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_aio._backends import Performable, Waitable

__all__ = ("TrioBackend", "current")

_T = TypeVar("_T", bound="Performable")
_logger: logging.Logger = logging.getLogger("trio_aio")

_backend: RunVar[TrioBackend] = RunVar("trio_aio backend")
_shared: RunVar[Any] = RunVar("trio_aio shared context")

for _resource in resources:
    trio.abc.AsyncResource.register(_resource)
for _function in protected:
    enable_ki_protection(_function)


class _EndOfTick(trio.abc.Instrument):
    """Calls what it was asked to call, once, when trio is about to wait for I/O."""

    def __init__(self) -> None:
        self.asked: list[Callable[[], None]] = []

    def before_io_wait(self, timeout: float) -> None:
        if self.asked:
            asked, self.asked = self.asked, []
            for flush in asked:
                flush()


class TrioBackend:
    """One ``trio.run``."""

    native_cancellation: tuple[type[BaseException], ...] = ()

    def __init__(self) -> None:
        self.identity: object = current_trio_token()
        self._end_of_tick: _EndOfTick | None = None
        self._refused: dict[object, Callable[[], Any]] = {}  # cancellations that a request did not take, until it completes

    current = staticmethod(current_trio_token)
    checkpoint_if_cancelled = staticmethod(checkpoint_if_cancelled)
    cancel_shielded_checkpoint = staticmethod(cancel_shielded_checkpoint)
    notify_closing = staticmethod(notify_closing)

    # A KeyboardInterrupt between submit and wait would leave a request that no task waits for.
    @enable_ki_protection
    async def perform(self, submit: Callable[[_T], None], request: _T, cancel: Callable[[_T], bool]) -> None:
        await checkpoint_if_cancelled()
        submit(request)
        if request.finished:
            await cancel_shielded_checkpoint()
            return
        request.waiter = current_task()
        await wait_task_rescheduled(partial(self._abort, cancel, request))
        if self._refused:
            deliver = self._refused.pop(request, None)
            if deliver is not None and request.took_no_effect:
                deliver()

    def _abort(self, cancel: Callable[[_T], bool], request: _T, raise_cancel: Callable[[], Any]) -> Abort:
        if cancel(request):
            return Abort.SUCCEEDED
        self._refused[request] = raise_cancel
        return Abort.FAILED

    @enable_ki_protection
    async def wait(self, waitable: Waitable, cancel: Callable[[], bool], start: Callable[[], None] | None = None) -> None:
        if start is not None:
            start()
        if waitable.finished:
            await cancel_shielded_checkpoint()
            return

        def abort(_: object) -> Abort:
            return Abort.SUCCEEDED if cancel() else Abort.FAILED

        assert waitable.waiter is None, "two tasks wait for one thing"
        waitable.waiter = current_task()
        await wait_task_rescheduled(abort)

    async def wait_readable(self, fd: int) -> bool:
        try:
            await wait_readable(fd)
        except trio.ClosedResourceError:
            return False
        return True

    def wake(self, waitable: Waitable) -> None:
        waiter, waitable.waiter = waitable.waiter, None
        reschedule(waiter)

    def start_reaper(self, fd: int, reap: Callable[[], bool], drained: Callable[[], bool], end: Callable[[], None]) -> None:
        spawn_system_task(self._reap, fd, reap, drained, end, name="trio_aio reaper")

    @staticmethod
    async def _reap(fd: int, reap: Callable[[], bool], drained: Callable[[], bool], end: Callable[[], None]) -> None:
        try:
            while True:
                await wait_readable(fd)
                if reap():
                    return
        except trio.Cancelled:
            # The run is over. Tasks that wait (other system tasks) must be served first.
            with trio.CancelScope(shield=True):
                while not drained():
                    await wait_readable(fd)
                    if reap():
                        return
            end()
            raise
        except BaseException:
            # A bug, or no memory. The run ends with it, as TrioInternalError; but first there are tasks to be served, and if it is one of
            # theirs that was lost, this is all that anybody hears of it.
            _logger.critical("an error in trio_aio's reaper", exc_info=True)
            spawn_system_task(TrioBackend._reap, fd, reap, drained, end, name="trio_aio reaper")
            raise

    def at_end_of_tick(self, flush: Callable[[], None]) -> None:
        end = self._end_of_tick
        if end is None:  # a run that never uses the kernel lane does not pay for it
            end = self._end_of_tick = _EndOfTick()
            add_instrument(end)
        end.asked.append(flush)

    def shielded(self) -> trio.CancelScope:
        return trio.CancelScope(shield=True)

    async def run_in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await trio.to_thread.run_sync(function, *args)

    def run_local(self, make: Callable[[Any], Any]) -> Any:
        try:
            return _shared.get()
        except LookupError:
            made = make(self)
            _shared.set(made)
            return made


def current() -> TrioBackend:
    """Give this run's backend."""
    try:
        return _backend.get()
    except LookupError:
        backend = TrioBackend()
        _backend.set(backend)
        return backend
