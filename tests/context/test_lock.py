"""The fair lock of a file's cursor: tasks take turns in the order in which they came."""

from __future__ import annotations

import asyncio

import pytest
from anyio import Event, create_task_group

from trio_aio._backends import current_backend
from trio_aio._context.lock import FairLock

from ..support.tasks import until_blocked


@pytest.mark.anyio
async def test_lock_is_exclusive_and_fair() -> None:
    turns = FairLock(current_backend(), lambda: None)
    log: list[str] = []

    async def take(name: str) -> None:
        async with turns:
            log.append(f"{name} begins")
            await until_blocked()
            log.append(f"{name} ends")

    async with create_task_group() as group, turns:
        for name in "abc":
            group.start_soon(take, name)
            await until_blocked()
    assert log == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]


def test_lock_granted_with_a_native_cancel_is_passed_on() -> None:
    async def main() -> None:
        turns = FairLock(current_backend(), lambda: None)
        log: list[str] = []

        async def take(name: str) -> None:
            async with turns:
                log.append(name)

        async with turns:
            tasks = [asyncio.ensure_future(take(name)) for name in "ab"]
            await asyncio.sleep(0)
        tasks[0].cancel()  # it has the turn and has not run yet
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        await tasks[1]
        assert log == ["b"]
        async with turns:
            pass

    asyncio.run(asyncio.wait_for(main(), 10))


@pytest.mark.anyio
@pytest.mark.parametrize("ended", [False, True], ids=["same task", "ended task"])
async def test_lock_that_its_task_did_not_release_can_be_acquired(ended: bool) -> None:
    lock = FairLock(current_backend(), lambda: None)

    async def acquire() -> None:
        assert lock.acquire()  # an exception comes in front of the `try`

    async with create_task_group() as group:
        if ended:
            group.start_soon(acquire)
        else:
            await acquire()
    assert lock.acquire()
    lock.release()
    assert lock.free


@pytest.mark.anyio
async def test_lock_of_a_living_task_is_not_taken_over() -> None:
    lock, end = FairLock(current_backend(), lambda: None), Event()

    async def hold() -> None:
        async with lock:
            await end.wait()

    async with create_task_group() as group:
        group.start_soon(hold)
        await until_blocked()
        assert not lock.acquire()
        end.set()
