"""Syncs of tasks that commit together: one of them serves all, and none waits for ever."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio
from anyio import create_task_group
from trio.testing import MockClock

from trio_aio import open_aio
from trio_aio._engine.sync_cost import SyncCost
from trio_aio._requests.base import State
from trio_aio._requests.sync import Sync

from ..support.engine_loop import loop
from ..support.files import BLOCK, make_file, opened
from ..support.pipes import full_pipe
from ..support.requests import DIRECT, write

if TYPE_CHECKING:
    from pathlib import Path

    from ..support.engine_loop import Loop


def syncs_made(lp: Loop) -> list[int]:
    """Count the syncs that are given to a lane from now on, in a list of one number."""
    counted = [0]
    dispatch = lp.engine.dispatch

    def count(request: object) -> None:
        counted[0] += isinstance(request, Sync)
        dispatch(request)  # type: ignore[arg-type]

    lp.engine.dispatch = count  # type: ignore[method-assign]
    return counted


@pytest.mark.parametrize("flags", [os.O_RDWR, DIRECT])
def test_syncs_of_one_tick_share_one_call(file: tuple[Path, bytes], flags: int) -> None:
    with loop(gather=True) as lp, opened(file[0], flags) as fd:
        descriptor = lp.descriptor(fd)
        made = syncs_made(lp)
        syncs = [Sync(descriptor, data_only=True) for _ in range(5)]
        lp.submit(*syncs)
        assert [sync.state for sync in syncs] == [State.HELD] * 5
        lp.wait_for(*syncs)
        assert [sync.result for sync in syncs] == [0] * 5
        assert made == [1]


def test_sync_that_is_ready_waits_once_for_small_writes_that_have_begun(file: tuple[Path, bytes]) -> None:
    with loop(8, 1, gather=True) as lp, opened(file[0], os.O_RDWR) as fd, full_pipe() as pipe:
        descriptor = lp.descriptor(fd)
        made = syncs_made(lp)
        first, joining = Sync(descriptor, data_only=True), Sync(descriptor, data_only=True)
        lp.submit(pipe.request())
        writes = [write(descriptor, b"1", 0), write(descriptor, b"2", 1)]
        lp.submit(first, *writes)
        lp.flush()
        assert first.state is State.HELD
        assert first.waits_for == set(writes)
        later = write(descriptor, b"3", 2)
        lp.submit(later)  # too late: the sync waits once
        assert first.waits_for == set(writes)
        pipe.release()
        lp.wait_for(*writes)
        lp.wait_for(first, later)
        lp.run(joining)
        assert made == [2]


@pytest.mark.parametrize("flags", [os.O_RDWR, DIRECT])
def test_sync_waits_for_no_large_write_and_for_no_direct_one(file: tuple[Path, bytes], flags: int) -> None:
    size = 1 << 20 if flags == os.O_RDWR else BLOCK
    with loop(8, 1, gather=True) as lp, opened(file[0], flags) as fd:
        descriptor = lp.descriptor(fd)
        sync, other = Sync(descriptor, data_only=True), write(descriptor, b"x" * size, 0)
        lp.submit(sync, other)
        lp.flush()
        assert not sync.waits_for
        lp.wait_for(sync, other)


def test_gathered_sync_can_be_cancelled_and_leaves_nothing(file: tuple[Path, bytes]) -> None:
    with loop(gather=True) as lp, opened(file[0], os.O_RDWR) as fd:
        descriptor = lp.descriptor(fd)
        made = syncs_made(lp)
        sync = Sync(descriptor, data_only=True)
        lp.submit(sync)
        assert lp.engine.cancel(sync)
        lp.flush()
        assert made == [0]
        assert not lp.engine.syncs.due
        assert descriptor.order.leases == 0
        lp.run(Sync(descriptor, data_only=True))
        assert made == [1]


def test_gathering_pays_where_a_sync_takes_longer_than_the_loop_needs_for_those_who_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("trio_aio._engine.sync_cost.perf_counter", lambda: now)

    def sync(seconds: float, sharers: int) -> None:
        nonlocal now
        cost.note_start(sharers)
        now += seconds
        cost.note_end()

    cost = SyncCost()
    assert cost.pays  # not known yet
    for _ in range(20):
        sync(0.005, 16)
    assert cost.pays
    for _ in range(20):
        sync(0.0002, 16)
    assert not cost.pays
    sync(0.005, 16)  # it waited for the event loop: once says nothing
    assert not cost.pays
    for _ in range(20):
        sync(0.005, 16)
    assert cost.pays
    for _ in range(20):
        sync(0.0002, 1)
    assert cost.pays


def test_syncs_start_at_once_where_gathering_does_not_pay(file: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    with loop(gather=True) as lp, opened(file[0], os.O_RDWR) as fd:
        descriptor = lp.descriptor(fd)
        made = syncs_made(lp)
        monkeypatch.setattr(SyncCost, "note_end", lambda cost: None)
        descriptor.order._cost = SyncCost()
        descriptor.order._cost.pays = False
        first, *others = syncs = [Sync(descriptor, data_only=True) for _ in range(5)]
        lp.submit(*syncs)
        assert first.state is not State.HELD
        assert made == [1]
        lp.wait_for(*syncs)
        assert [sync.result for sync in syncs] == [0] * 5
        assert made == [2]
        assert all(sync.leader is others[0] for sync in others[1:])


@pytest.mark.anyio
async def test_commits_of_many_tasks_are_durable_and_share_syncs(filesystem: Path) -> None:
    path, _ = make_file(filesystem, BLOCK)
    syncs = 0

    async with open_aio(path, "ab") as file:
        engine = file._engine
        dispatch = engine.dispatch

        def count(request: object) -> None:
            nonlocal syncs
            syncs += isinstance(request, Sync)
            dispatch(request)  # type: ignore[arg-type]

        engine.dispatch = count  # type: ignore[method-assign]

        async def commit(letter: bytes) -> None:
            for _ in range(10):
                await file.pwrite(letter * 100, 0)
                await file.fdatasync()

        async with create_task_group() as group:
            for i in range(16):
                group.start_soon(commit, bytes((97 + i,)))
        del engine.dispatch
    written = path.read_bytes()[BLOCK:]
    assert len(written) == 16 * 10 * 100
    assert all(written.count(bytes((97 + i,))) == 1000 for i in range(16))
    assert syncs < 160


def test_sync_without_other_tasks_needs_no_other_event(file: tuple[Path, bytes]) -> None:
    async def main() -> None:
        async with open_aio(file[0], "r+b") as aio:
            for i in range(20):
                await aio.pwrite(b"x", i)
                await aio.fsync()

    trio.run(main)


def test_mock_clock_stands_still_while_a_sync_waits_for_the_end_of_a_tick(file: tuple[Path, bytes]) -> None:
    clock = MockClock(autojump_threshold=0)

    async def main() -> None:
        async with open_aio(file[0], "r+b") as aio:
            with trio.fail_after(10):
                for i in range(20):
                    await aio.pwrite(b"x", i)
                    await aio.fdatasync()
        assert clock.current_time() == 0

    trio.run(main, clock=clock)
