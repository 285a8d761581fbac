"""trio.

How trio works. A task sleeps in ``wait_task_rescheduled(abort)``. When the task is cancelled, trio calls ``abort``. If that returns
SUCCEEDED, trio raises Cancelled at once. If it returns FAILED, the task sleeps until it is rescheduled, and the cancellation stays due.

What we do about it. ``io_cancel`` succeeds or fails in the same way, so the task itself waits for its request. ``trio.Event.wait`` would
not do: it always ends when it is cancelled, and each request that cannot be cancelled would need a second, shielded wait.

Ticks. trio runs all tasks that are ready, then waits for I/O. It notifies an instrument just before it waits: the end of the tick.
"""

from __future__ import annotations

import logging
import math
from functools import partial
from os import eventfd_write
from sys import modules
from typing import TYPE_CHECKING, Any, TypeVar, cast

import trio
from trio.lowlevel import (
    Abort,
    RunVar,
    add_instrument,
    cancel_shielded_checkpoint,
    checkpoint_if_cancelled,
    current_clock,
    current_root_task,
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
from trio_aio._backends.flushes import call_last
from trio_aio._backends.library import asyncio_task, is_inside, sniffed
from trio_aio._backends.mock_clock import ClockHold

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

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


MAIN_TASK_CHECK = 0.02  # seconds between two looks at the main task of a run that has crashed


class _Woken:
    """The outcome of each wait: none, as the result lies in what was waited for. An `outcome.Value` can be used once, this one by all."""

    __slots__ = ()

    unwrap = bool  # trio calls it for what the wait returns, which nobody looks at. A call of C costs the least.


_woken: Any = _Woken()


def _main_task_lives() -> bool:
    """Return whether the run's main task has not ended. Called by a system task: the main task's nursery is then inside that of these."""
    root = current_root_task()
    return root is not None and root.child_nurseries[-1] is not current_task().parent_nursery


def _next_tick() -> None:
    """Do nothing. While it is queued, trio does not wait for I/O."""


class _EndOfTick(trio.abc.Instrument):
    """Calls each function in `flushes` once, when trio is about to wait for I/O.

    trio drops an instrument that raises, for the rest of the run. So its method is that of a generator, which waits inside a `try`.
    """

    before_io_wait: Any

    def __init__(self) -> None:
        self.flushes: list[Callable[[], None]] = []
        ticks = before_io_wait(self.flushes)
        next(ticks)
        self.before_io_wait = ticks.send


def before_io_wait(flushes: list[Callable[[], None]]) -> Generator[None, float]:
    """Flush at each step, and report errors. What has failed is tried again in the next tick, which comes at once."""
    while True:
        try:
            while True:  # inside: no line of the usual way is outside the `try`
                yield
                while flushes:
                    call_last(flushes)
        except GeneratorExit:
            raise
        except BaseException:
            _logger.critical("an error in trio_aio at the end of a tick: it is tried again in the next one", exc_info=True)
            current_trio_token().run_sync_soon(_next_tick)


class TrioBackend:
    """One ``trio.run``."""

    def __init__(self) -> None:
        self.identity: object = current_trio_token()
        self._end_of_tick: _EndOfTick | None = None
        # For a mock clock that jumps.
        self._clock_hold: ClockHold | None = None
        clock = current_clock()
        if hasattr(clock, "autojump_threshold"):
            self._clock_hold = ClockHold(clock)
            add_instrument(cast("trio.abc.Instrument", self._clock_hold))
        # For each request in flight that could not be cancelled: the function that raises the cancellation.
        self._refused: dict[object, Callable[[], Any]] = {}
        # The task of asyncio that has called ``trio.run``, once it has been seen.
        self._outer: Any = None
        # `side()` is `own_side` where a task of this run may be running, in this thread.
        self.side: Callable[[], object] = partial(getattr, sniffed, "name")
        self.own_side: object = "trio"
        self.turn: float = 1e-3

    checkpoint_if_cancelled = staticmethod(checkpoint_if_cancelled)
    cancel_shielded_checkpoint = staticmethod(cancel_shielded_checkpoint)
    notify_closing = staticmethod(notify_closing)
    current_task = staticmethod(current_task)

    def is_native(self, error: BaseException | None) -> bool:
        return False

    def has_ended(self, task: Any) -> bool:
        return task.coro.cr_frame is None

    def current(self) -> object:
        if sniffed.name != "trio":
            raise RuntimeError("no trio task runs here: this is a task or a callback of asyncio, or no task at all")
        task = current_task()  # RuntimeError outside a task: in an instrument, say
        other = asyncio_task() if "asyncio" in modules else None  # asked here: most programs of trio's spare the call
        if other is not None and other is not self._outer:
            if is_inside(other.get_coro(), task.coro):
                raise RuntimeError("an event loop of asyncio runs inside this trio task: open the file in a task of that loop")
            self._outer = other
        return current_trio_token()

    # A KeyboardInterrupt between submit and wait would leave a request that no task waits for.
    @enable_ki_protection
    async def perform(self, submit: Callable[[_T], bool | None], request: _T, cancel: Callable[[_T], bool]) -> None:
        await checkpoint_if_cancelled()
        try:
            if not submit(request) and request.finished:
                await cancel_shielded_checkpoint()
                return
            request.waiter = current_task()
            await wait_task_rescheduled(partial(self._abort, cancel, request))
        except BaseException:
            if request.waiter is not None:  # no Cancelled: an exception (no memory) came before the wait, and no task waits any more
                request.waiter = None
                cancel(request)
            raise
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
        task = current_task()
        if start is not None:
            start()
        if waitable.finished:
            await cancel_shielded_checkpoint()
            return

        def abort(_: object) -> Abort:
            return Abort.SUCCEEDED if cancel() else Abort.FAILED

        assert waitable.waiter is None, "two tasks wait for one thing"
        try:
            waitable.waiter = task
            await wait_task_rescheduled(abort)
        except BaseException:
            waitable.waiter = None
            raise

    @enable_ki_protection
    def step(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)

    async def wait_readable(self, fd: int) -> bool:
        try:
            await wait_readable(fd)
        except trio.ClosedResourceError:
            return False
        return True

    def wake(self, waitable: Waitable) -> None:
        waitable.waiter = reschedule(waitable.waiter, _woken)  # None, in one line: an exception must not come between

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
            # The run is ending. Other system tasks may still wait for requests, so reap until all have completed. After a crash the main
            # task also runs on, until its next checkpoint.
            with trio.CancelScope(shield=True):
                while not drained() or _main_task_lives():
                    with trio.move_on_after(MAIN_TASK_CHECK if _main_task_lives() else math.inf):
                        await wait_readable(fd)
                        if reap():
                            return
            end()
            raise
        except GeneratorExit:
            # trio throws the tasks of a crashed run away. That may be the end of the interpreter, so nothing can be waited for.
            raise
        except BaseException:
            # A bug, or no memory. The run will end with TrioInternalError. Until then tasks wait for completions, so another reaper takes
            # over. If the error lost a completion, its task waits for ever, and only the log says why.
            _logger.critical("an error in trio_aio's reaper", exc_info=True)
            eventfd_write(fd, 1)
            spawn_system_task(TrioBackend._reap, fd, reap, drained, end, name="trio_aio reaper")
            raise

    def at_end_of_tick(self, flush: Callable[[], None]) -> None:
        end = self._end_of_tick
        if end is None:  # made late: a run that never uses the kernel lane pays nothing
            end = _EndOfTick()
            add_instrument(end)
            self._end_of_tick = end  # last: an exception may come before any line
        end.flushes.append(flush)

    def shielded(self) -> trio.CancelScope:
        return trio.CancelScope(shield=True)

    def hold_clock(self, is_busy: Callable[[], bool]) -> None:
        if self._clock_hold is not None:
            self._clock_hold.watch(is_busy)

    async def run_in_thread(self, function: Callable[..., Any], *args: Any, abandon: bool = False) -> Any:
        hold = self._clock_hold
        if hold is None:
            return await trio.to_thread.run_sync(function, *args, abandon_on_cancel=abandon)
        try:
            hold.threads += 1
            return await trio.to_thread.run_sync(function, *args, abandon_on_cancel=abandon)
        finally:
            hold.threads -= 1

    def run_local(self, make: Callable[[Any], Any]) -> Any:
        try:
            return _shared.get()
        except LookupError:
            made = make(self)
            _shared.set(made)
            return made


def current() -> TrioBackend:
    """Return this run's backend."""
    try:
        return _backend.get()
    except LookupError:
        backend = TrioBackend()
        _backend.set(backend)
        return backend
