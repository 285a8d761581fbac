"""Syncs, closes and drops, by the requests of the file that they wait for."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from trio_aio._requests.base import State
from trio_aio._requests.opening import Close
from trio_aio._requests.sync import Sync

from ..support.engine_loop import Loop, loop
from ..support.files import opened
from ..support.pipes import full_pipe
from ..support.requests import DIRECT, read, write

if TYPE_CHECKING:
    from pathlib import Path


def test_sync_waits_for_earlier_writes_only(file: tuple[Path, bytes]) -> None:
    with loop(8, 1) as made, opened(file[0], os.O_RDWR) as fd, full_pipe() as pipe:
        descriptor = made.descriptor(fd)
        made.submit(pipe.request())
        first, second = write(descriptor, b"1", 0), write(descriptor, b"2", 1)
        sync, later = Sync(descriptor, data_only=False), write(descriptor, b"3", 2)
        made.submit(first, second, sync, later)
        assert sync.state is State.HELD
        pipe.release()
        made.wait_for(sync)
        assert made.woken.index(sync) > max(made.woken.index(first), made.woken.index(second))
        assert sync.result == 0


def test_sync_may_start_after_the_write_that_the_next_sync_awaits_has_completed(file: tuple[Path, bytes]) -> None:
    with loop(16, 1) as made, opened(file[0], DIRECT) as fd, full_pipe() as before, full_pipe() as after:
        descriptor = made.descriptor(fd)
        assert made.engine.has_kernel_lane()
        lane = made.engine.kernel
        assert lane is not None
        start = lane.start

        def start_when_the_second_write_is_done(*arguments: Any) -> None:
            before.release()
            while not after.begun:  # what the only worker did before is complete
                os.sched_yield()
            start(*arguments)

        lane.start = start_when_the_second_write_is_done  # type: ignore[method-assign]
        syncs = [Sync(descriptor, data_only=False) for _ in range(2)]
        first, second = write(descriptor, b"", 0), write(descriptor, b"", 0)
        made.submit(first, syncs[0], before.request(), second, syncs[1], after.request())
        assert [sync.state for sync in syncs] == [State.HELD] * 2
        try:
            made.wait_for(*syncs)
        finally:
            after.release()
        assert [sync.result for sync in syncs] == [0, 0]


def test_close_waits_for_all_requests_of_its_descriptor(file: tuple[Path, bytes]) -> None:
    with loop(8, 1) as made, full_pipe() as pipe:
        descriptor = made.descriptor(os.open(file[0], os.O_RDONLY))
        made.submit(pipe.request())
        request, closing = read(descriptor, 10, 0), Close(descriptor)
        made.submit(request, closing)
        assert closing.state is State.HELD
        assert not made.engine.cancel(closing)  # a close happens whatever becomes of its task
        os.fstat(descriptor.fd)
        pipe.release()
        made.wait_for(closing)
        assert request.result == 10
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor.fd)


def test_close_of_borrowed_descriptor_leaves_it_open(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    with opened(file[0], os.O_RDONLY) as fd:
        descriptor = engine_loop.descriptor(fd)
        descriptor.borrowed = True
        assert engine_loop.run(Close(descriptor)) == [0]
        os.fstat(fd)


def test_dropped_descriptor_is_closed_by_a_worker(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    descriptor = engine_loop.descriptor(os.open(file[0], os.O_RDONLY))
    thread = threading.Thread(target=engine_loop.engine.drops.add, args=(descriptor, Close(descriptor)))
    thread.start()
    thread.join()
    engine_loop.turn()
    engine_loop.settle()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor.fd)


def test_descriptor_dropped_just_before_eventfd_is_emptied_is_closed(
    engine_loop: Loop, file: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_loop.engine
    descriptor, take = engine_loop.descriptor(os.open(file[0], os.O_RDONLY)), engine.completions.take

    def take_after_drop(*, drain: bool) -> bool:
        monkeypatch.undo()
        engine.drops.add(descriptor, Close(descriptor))
        return take(drain=drain)

    monkeypatch.setattr(engine.completions, "take", take_after_drop)
    engine.wake_loop()
    engine_loop.turn()
    engine_loop.settle()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor.fd)


def test_drop_that_fails_is_reported_and_the_others_are_handled(
    engine_loop: Loop, file: tuple[Path, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    drops = engine_loop.engine.drops
    twice, once = (engine_loop.descriptor(os.open(file[0], os.O_RDONLY)) for _ in range(2))
    drops.add(twice, Close(twice))
    drops.add(twice, Close(twice))  # a bug: the second one is refused
    drops.add(once, Close(once))
    engine_loop.turn()
    engine_loop.settle()
    assert not drops
    assert "may stay open" in caplog.text
    for descriptor in (twice, once):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor.fd)


def test_descriptor_dropped_after_engine_stop_is_closed_at_once(file: tuple[Path, bytes]) -> None:
    with loop() as made:
        descriptor = made.descriptor(os.open(file[0], os.O_RDONLY))
    made.engine.drops.add(descriptor, Close(descriptor))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor.fd)
