"""What the tests under trio share: workers kept busy, and cancellation when every task waits."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ._support import FullPipe, full_pipe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio_aio import AIOContext


async def write_to(context: AIOContext, pipe: FullPipe) -> None:
    """Keep a worker busy until the pipe is released."""
    with pytest.raises(OSError, match="Illegal seek"):  # written, and a pipe has no position
        await context._perform(pipe.request())


@asynccontextmanager
async def busy(context: AIOContext) -> AsyncIterator[FullPipe]:
    """Keep the only worker of `context` busy, until `release` or the end."""
    with full_pipe() as pipe:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_to, context, pipe)
            while not pipe.begun:
                await trio.lowlevel.checkpoint()
            try:
                yield pipe
            finally:
                pipe.release()


async def cancel_when_blocked(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def cancelled_while_blocked(call: Callable[[], Awaitable[Any]]) -> bool:
    """Start a call, cancel it once every task waits, and say whether it raised Cancelled."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when_blocked, scope)
            await call()
    return scope.cancelled_caught


def idle(context: AIOContext) -> bool:
    """Whether all slots are back."""
    now = context.statistics()
    return (now.in_flight, now.queued) == (0, 0)


async def until_idle(context: AIOContext) -> None:
    while not idle(context):
        await trio.lowlevel.checkpoint()
