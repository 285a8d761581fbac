"""What the tests with an event loop share: workers kept busy, and cancellation when every task waits, on trio and on asyncio."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from anyio import CancelScope, create_task_group
from anyio.lowlevel import checkpoint

from .files import is_open
from .pipes import FullPipe, full_pipe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from trio_aio import AIOContext


class Noting:
    """A task that makes a call and notes the cancellation that the call raises: up to Python 3.10, awaiting the task raises another."""

    def __init__(self, call: Callable[[], Awaitable[Any]]) -> None:
        self._call: Callable[[], Awaitable[Any]] = call
        self._error: asyncio.CancelledError | None = None
        self.task: asyncio.Future[Any] = asyncio.ensure_future(self._run())

    async def _run(self) -> Any:
        try:
            return await self._call()
        except asyncio.CancelledError as error:
            self._error = error
            raise

    async def cancellation(self) -> asyncio.CancelledError:
        """Wait for the end of the task, which is a cancellation, and return that."""
        with pytest.raises(asyncio.CancelledError):
            await self.task
        assert self._error is not None
        return self._error


async def until_blocked() -> None:
    """Wait until every other task waits for something."""
    if trio.lowlevel.in_trio_task():
        await trio.testing.wait_all_tasks_blocked()
        return
    await checkpoint()
    while not all(_is_blocked(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()):
        await checkpoint()


def _is_blocked(task: asyncio.Task[Any]) -> bool:
    waiter = task._fut_waiter  # type: ignore[attr-defined]
    return waiter is not None and not waiter.done()


async def write_to(context: AIOContext, pipe: FullPipe) -> None:
    """Keep a worker busy until the pipe is released."""
    with pytest.raises(OSError, match="Illegal seek"):  # written, and a pipe has no position
        await context._core.submit_and_wait(pipe.request())


@asynccontextmanager
async def busy(context: AIOContext) -> AsyncIterator[FullPipe]:
    """Keep the only worker of `context` busy, until `release` or the end."""
    with full_pipe() as pipe:
        async with create_task_group() as group:
            group.start_soon(write_to, context, pipe)
            while not pipe.begun:
                await checkpoint()
            try:
                yield pipe
            finally:
                pipe.release()


async def cancel_when_blocked(scope: CancelScope) -> None:
    await until_blocked()
    scope.cancel()


async def cancelled_while_blocked(call: Callable[[], Awaitable[Any]]) -> bool:
    """Start a call, cancel it once every task waits, and say whether it raised Cancelled."""
    raised = True
    with CancelScope() as scope:
        async with create_task_group() as group:
            group.start_soon(cancel_when_blocked, scope)
            await call()
            raised = False
    return raised


async def abandon(call: Callable[[], Awaitable[Any]], hang: Any, *, requests: int = 1) -> None:
    """Start a call, and abandon it when it hangs. hang: of a `FaultyContext`. requests: how many of the call hang then."""
    before = hang.held
    with CancelScope() as scope:
        async with create_task_group() as tasks:
            tasks.start_soon(call)
            while hang.held == before:
                await checkpoint()
            await until_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    assert hang.held == before + requests


def idle(context: AIOContext) -> bool:
    """Whether all slots are back."""
    now = context.statistics()
    return (now.in_flight, now.queued) == (0, 0)


async def until_idle(context: AIOContext) -> None:
    while not idle(context):
        await checkpoint()


async def until_closed(fd: int) -> None:
    while is_open(fd):
        await checkpoint()


class _Ticks(trio.abc.Instrument):
    def __init__(self, scope: CancelScope, ticks: int, awake: bool) -> None:
        self._scope: CancelScope = scope
        self._ticks: int = ticks
        self._awake: bool = awake

    def before_io_wait(self, timeout: float) -> None:
        if self.count():
            trio.lowlevel.current_trio_token().run_sync_soon(lambda: None)

    def count(self) -> bool:
        """Count one tick, and return whether the loop must not sleep now."""
        self._ticks -= 1
        if self._ticks == 0:
            self._scope.cancel()
        return self._ticks == 0 or self._awake


@contextmanager
def cancel_at_tick(scope: CancelScope, ticks: int, *, awake: bool = False) -> Iterator[None]:
    """Cancel a scope when the event loop is about to wait for I/O for the n-th time from here; `awake`: it never sleeps."""
    counter = _Ticks(scope, ticks, awake)
    if trio.lowlevel.in_trio_task():
        trio.lowlevel.add_instrument(counter)
        try:
            yield
        finally:
            trio.lowlevel.remove_instrument(counter)
        return
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    select = selector.select
    selector.select = lambda timeout: select(0 if counter.count() else timeout)
    try:
        yield
    finally:
        del selector.select


def run_with_guest(host_main: Callable[[], Awaitable[Any]], guest_main: Callable[[], Awaitable[Any]]) -> None:
    """Run a function of asyncio, and one of trio as its guest, in one thread."""

    async def host() -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            guest_main,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=done.set_result,
            host_uses_signal_set_wakeup_fd=True,
        )
        await host_main()
        (await done).unwrap()

    asyncio.run(host())
