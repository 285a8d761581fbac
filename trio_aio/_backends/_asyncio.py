"""asyncio, with anyio's cancel scopes where the program uses them.

How asyncio works. ``Task.cancel`` calls ``cancel`` of the future that the task waits for. If that returns True, the task does nothing more
about the cancellation. So a future of our own decides what becomes of it, as ``abort`` does for trio. There are two kinds:

- A cancel scope of anyio's, recognized by its message. anyio repeats it in every tick until the task has left the scope or entered a
  shielded one. So a task waits in a shielded scope for a request that cannot be cancelled.
- A native one, sent once. It must be raised by the call that it interrupts: otherwise ``asyncio.timeout`` would take the call for a
  success. So we raise it as soon as the request has completed.

The end. ``asyncio.run`` cancels all tasks, and their ``finally`` blocks may still use files. So the reaper is not a task but a reader
callback, which works until the loop is closed. The loop drops its callbacks in ``close``; when ours is freed, we end.

Interrupts. The function of a signal handler may raise between any two bytecodes. So each step closes the gate of `interrupts`, and what was
held is raised after the step. A task that was interrupted while it waits cancels its request. Outside the steps an exception may come
between any two lines, so no change of state takes two lines there: see `_ticks`, and the ends of `perform` and `wait`.

Ticks. A tick of the loop runs the callbacks that were ready when it started. ``call_soon`` puts a callback into the next tick, behind all
tasks that were woken together.
"""

from __future__ import annotations

import asyncio
import os
import select
import sys
import time
import types
import weakref
from asyncio import CancelledError
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from trio_aio._backends import Waiter, forget_scope
from trio_aio._backends.flushes import call_last
from trio_aio._backends.interrupts import CLOSED, GUARD_AGAIN, WAITING, deliver, deliver_late, guard, open_gate
from trio_aio._backends.library import is_inside, sniffed
from trio_aio._backends.scopes import find_scopes, sent_by_scope, shielded

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, MutableSequence

    from trio_aio._backends import Performable, Waitable

__all__ = ("AsyncioBackend", "current")

_T = TypeVar("_T", bound="Performable")

PATIENCE = 0.05  # seconds that a freed loop waits for requests in flight


class _Wait(asyncio.Future[bool]):
    """The future that a task awaits. True: it was woken. False: its scope was cancelled, and the request was not."""

    def __init__(self, give_up: Callable[[], bool], backend: AsyncioBackend) -> None:
        super().__init__(loop=backend.loop)
        self._gate: MutableSequence[int] = backend.gate
        self.give_up: Callable[[], bool] = give_up
        self.native: CancelledError | None = None  # to be raised when the request has completed
        self.of_scope: CancelledError | None = None  # was refused; anyio will repeat it

    def cancel(self, msg: Any | None = None) -> bool:
        gate = self._gate
        try:
            gate[CLOSED] = 1
            return self._cancel(msg)
        finally:
            gate[CLOSED] = 0
            if gate[WAITING]:
                deliver()

    def _cancel(self, msg: Any | None) -> bool:
        if self.done() and self.of_scope is None:
            return False  # woken already: asyncio then cancels the task when it runs, which is soon
        if not self.done() and self.give_up():
            return super().cancel(msg)
        error = CancelledError() if msg is None else CancelledError(msg)
        if not sent_by_scope(error):
            self.native = error
        elif not self.done():
            self.of_scope = error
            self.set_result(False)
        return True


def _set(future: asyncio.Future[bool], value: bool) -> None:
    if not future.done():
        future.set_result(value)


def _leave(request: Performable, cancel: Callable[[Any], bool]) -> None:
    """Cancel a request whose task has gone."""
    cancel(request)
    request.waiter = None


def _ticks(gate: MutableSequence[int], flushes: list[Callable[[], None]]) -> Generator[None]:
    """Flush at each step. It is inside its `try` before it runs: in a function's first line an interrupt would lose the flush."""
    while True:
        error: BaseException | None = None
        try:
            yield
            gate[CLOSED] = 1
        except GeneratorExit:
            raise
        except BaseException as interrupt:
            gate[CLOSED] = 1
            error = interrupt
        try:
            while flushes:
                call_last(flushes)
        except BaseException:
            while flushes:  # once more, or no later tick would flush
                flushes.pop()()
            raise
        finally:
            gate[CLOSED] = 0
            if gate[WAITING]:
                deliver()
        if error is not None:
            raise error


class _Watch:
    """The reaper. Only the event loop holds a reference to it."""

    def __init__(
        self, backend: AsyncioBackend, fd: int, reap: Callable[[], bool], drained: Callable[[], bool], end: Callable[[], None]
    ) -> None:
        self._backend: AsyncioBackend = backend
        self._fd: int = fd
        self._reap: Callable[[], bool] = reap
        self._ending: _Ending = _Ending(backend, fd, reap, drained, end)
        self._gate: MutableSequence[int] = backend.gate
        self._guard_at: float = 0.0

    def readable(self) -> None:
        gate = self._gate
        try:
            gate[CLOSED] = 1
            self._serve()
        finally:
            gate[CLOSED] = 0
            if gate[WAITING]:
                deliver()

    def _serve(self) -> None:
        if self._ending.over:
            return
        if isinstance(self._gate, memoryview) and (now := time.monotonic()) >= self._guard_at:
            guard()
            self._guard_at = now + GUARD_AGAIN
        if self._reap():
            self._ending.over = True
            self._backend.loop.remove_reader(self._fd)

    def __del__(self) -> None:
        self._ending.finish()


class _Ending:
    """What the reaper does when the loop has freed it.

    A finalizer may be interrupted before its first line, and Python drops the exception. So the reaper's calls `finish`, and then ours.
    """

    def __init__(
        self, backend: AsyncioBackend, fd: int, reap: Callable[[], bool], drained: Callable[[], bool], end: Callable[[], None]
    ) -> None:
        self.over: bool = False
        self._backend: AsyncioBackend = backend
        self._fd: int = fd
        self._reap: Callable[[], bool] = reap
        self._drained: Callable[[], bool] = drained
        self._end: Callable[[], None] = end
        self._process: int = os.getpid()

    def finish(self) -> None:
        """Take what completes soon, and end."""
        gate = self._backend.gate
        before = gate[CLOSED]
        gate[CLOSED] = 1
        # When the process ends, waiting for the workers would never end, and what is in flight is kept. A forked child owns nothing.
        if not (self.over or sys.is_finalizing() or os.getpid() != self._process):
            self.over = True
            self._backend.ended = True
            try:
                if not self._settle():
                    self._end()
            finally:
                gate[CLOSED] = before
        gate[CLOSED] = before
        if gate[WAITING] and not before:
            deliver_late()

    def _settle(self) -> bool:
        """Wait up to PATIENCE for requests in flight, so that the next loop can use the kernel context. Return whether all completed."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        until = time.monotonic() + PATIENCE
        while not self._drained() and time.monotonic() < until:
            if poll.poll(1000 * PATIENCE) and self._reap():
                return True
        return False

    def __del__(self) -> None:
        self.finish()


class AsyncioBackend:
    """One event loop of asyncio or uvloop."""

    current_task = staticmethod(asyncio.current_task)

    def is_native(self, error: BaseException | None) -> bool:
        return isinstance(error, CancelledError) and not sent_by_scope(error)

    def has_ended(self, task: Any) -> bool:
        return bool(task.done())

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.identity: object = loop
        self.loop: asyncio.AbstractEventLoop = loop
        self.ended: bool = False
        # `side()` is `own_side` where a task of this run may be running. Bound now: trio-asyncio has functions of its own for its loops.
        self.side: Callable[[], object] = asyncio._get_running_loop
        self.own_side: object = loop
        self.turn: float = 0.5e-3  # less than on trio: a task that wakes up runs in the second or third tick
        self.gate: MutableSequence[int] = open_gate()
        self._shared: Any = None
        self._flushes: list[Callable[[], None]] = []
        self._tick: Any = None  # a generator
        self._readable: dict[int, asyncio.Future[bool]] = {}  # of `wait_readable`, by fd

    def current(self) -> object:
        self._current_task()
        return asyncio.get_running_loop()

    @staticmethod
    def _current_task() -> asyncio.Task[Any]:
        """Return the task that calls. RuntimeError in a callback, and in a trio run."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("no task of asyncio runs here: call this in a task, not in a callback of the event loop")
        if sniffed.name == "trio":
            _check_not_in_trio(task)
        return task

    async def checkpoint_if_cancelled(self) -> None:
        task = asyncio.current_task()
        if task is None or sniffed.name == "trio":
            task = self._current_task()
        scopes = find_scopes()
        if scopes is not None:
            await scopes.checkpoint_if_cancelled(task)

    @types.coroutine
    def cancel_shielded_checkpoint(self) -> Generator[None]:
        if self.ended:
            return  # the loop is closed, and its tasks will not run again
        try:
            yield
        except CancelledError as error:
            if not sent_by_scope(error):
                forget_scope(error)
                raise
            # anyio repeats it, so the task's next checkpoint raises it.

    async def perform(self, submit: Callable[[_T], bool | None], request: _T, cancel: Callable[[_T], bool]) -> None:
        await self.checkpoint_if_cancelled()
        if self._current_task()._must_cancel:  # type: ignore[attr-defined]
            await asyncio.sleep(0)
        gate = self.gate
        wait: _Wait | None = None
        try:
            try:
                gate[CLOSED] = 1
                if submit(request) or not request.finished:
                    request.waiter = wait = _Wait(partial(cancel, request), self)
            finally:
                gate[CLOSED] = 0
                if gate[WAITING]:
                    deliver()
            if wait is None:
                await self.cancel_shielded_checkpoint()
                return
            of_scope = await self._wait(request, wait)
        except GeneratorExit:
            raise
        except BaseException:
            if request.waiter is not None:  # an exception of a signal handler: no task waits any more
                self.step(_leave, request, cancel)
            raise
        if of_scope is not None and request.took_no_effect:
            try:
                raise of_scope
            finally:
                del of_scope

    async def wait(self, waitable: Waitable, cancel: Callable[[], bool], start: Callable[[], None] | None = None) -> None:
        self._current_task()
        gate = self.gate
        wait: _Wait | None = None
        try:
            try:
                gate[CLOSED] = 1
                if start is not None:
                    start()
                if not waitable.finished:
                    assert waitable.waiter is None, "two tasks wait for one thing"
                    waitable.waiter = wait = _Wait(cancel, self)
            finally:
                gate[CLOSED] = 0
                if gate[WAITING]:
                    deliver()
            if wait is None:
                await self.cancel_shielded_checkpoint()
            else:
                await self._wait(waitable, wait)
        except BaseException:
            if wait is not None and not waitable.finished:  # an exception of a signal handler: this task waits no more
                waitable.waiter = None
            raise

    async def _wait(self, waitable: Waitable, wait: _Wait) -> CancelledError | None:
        """Wait until `wake` is called. Return a scope's cancellation that was refused; raise a native one."""
        await wait
        native, of_scope, wait.native, wait.of_scope = wait.native, wait.of_scope, None, None
        if waitable.waiter is not None:
            with shielded():
                while waitable.waiter is not None:
                    waitable.waiter = wait = _Wait(wait.give_up, self)
                    await wait
                    native, wait.native = native or wait.native, None
        if native is not None:
            try:
                raise native
            finally:
                forget_scope(native)
                del native, of_scope  # the traceback holds this frame, which must not hold the exception: a cycle
        return of_scope

    def step(self, function: Callable[..., Any], *args: Any) -> Any:
        gate = self.gate
        before = gate[CLOSED]
        try:
            gate[CLOSED] = 1
            return function(*args)
        finally:
            gate[CLOSED] = before
            if gate[WAITING] and not before:
                deliver()

    async def wait_readable(self, fd: int) -> bool:
        future: asyncio.Future[bool] = self.loop.create_future()
        self._readable[fd] = future
        self.loop.add_reader(fd, _set, future, True)
        try:
            return await future
        finally:
            self.loop.remove_reader(fd)
            del self._readable[fd]

    def notify_closing(self, fd: int) -> None:
        future = self._readable.get(fd)
        if future is not None:
            _set(future, False)

    def wake(self, waitable: Waitable) -> None:
        waiter = waitable.waiter
        waitable.waiter = None if self.ended or waiter.done() else waiter.set_result(True)  # in one line, as on trio

    def start_reaper(self, fd: int, reap: Callable[[], bool], drained: Callable[[], bool], end: Callable[[], None]) -> None:
        watch = _Watch(self, fd, reap, drained, end)
        try:
            self.loop.add_reader(fd, watch.readable)
        except BaseException:
            watch._ending.over = True  # the loop has refused it, and has not ended
            raise

    def at_end_of_tick(self, flush: Callable[[], None]) -> None:
        if self.ended:
            return
        self._flushes.append(flush)
        if self._tick is None or self._tick.gi_frame is None:
            tick = _ticks(self.gate, self._flushes)
            self._tick, _ = tick, next(tick)  # one that has not begun would not flush
        self.loop.call_soon(self._tick.__next__)

    shielded = staticmethod(shielded)

    def hold_clock(self, is_busy: Callable[[], bool]) -> None:
        pass  # neither asyncio nor anyio has such a clock

    async def run_in_thread(self, function: Callable[..., Any], *args: Any, abandon: bool = False) -> Any:
        await self.checkpoint_if_cancelled()
        call = Waiter()
        future = self.loop.run_in_executor(None, copy_context().run, function, *args)

        def done(_: object) -> None:
            call.finished = True
            if call.waiter is not None:
                self.wake(call)

        future.add_done_callback(done)
        try:
            await self.wait(call, lambda: abandon)
        except CancelledError as error:
            if abandon:
                raise
            if (failure := future.exception()) is not None:
                raise error from failure
            # The caller must get the result, so raise the cancellation at the next checkpoint instead.
            task = self._current_task()
            if sys.version_info >= (3, 11):
                task.uncancel()
            task.cancel(*error.args)
        return future.result()

    def run_local(self, make: Callable[[Any], Any]) -> Any:
        if self._shared is None:
            self._shared = make(self)
        return self._shared


def _check_not_in_trio(task: asyncio.Task[Any]) -> None:
    """Raise RuntimeError if the task is waiting for a ``trio.run``, and trio's tasks run."""
    trio = sys.modules["trio"]
    if not trio.lowlevel.in_trio_task() or not is_inside(task.get_coro(), trio.lowlevel.current_task().coro):
        raise RuntimeError("a trio run is in progress inside this task of asyncio: open the file in a task of that run")


# By loop. A backend holds its loop, so a strong reference to it would keep the loop alive for ever. Open contexts hold the backend.
_backends: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[AsyncioBackend]] = weakref.WeakKeyDictionary()


def current() -> AsyncioBackend:
    """Return this loop's backend."""
    loop = asyncio.get_running_loop()
    known = _backends.get(loop)
    backend = None if known is None else known()
    if backend is None:
        backend = AsyncioBackend(loop)
        _backends[loop] = weakref.ref(backend)
    return backend
