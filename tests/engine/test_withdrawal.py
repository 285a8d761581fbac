"""Requests that are cancelled, abandoned, or drained with their engine."""

from __future__ import annotations

import errno
import gc
import os
import select
import sys
import threading
import weakref
from typing import TYPE_CHECKING, cast

import pytest

from trio_aio._context.leasing import Lease
from trio_aio._engine.drain import drain
from trio_aio._engine.withdrawal import abandon, cancel_polls, cancel_together
from trio_aio._memory.exports import export_buffer
from trio_aio._requests.base import Request, State
from trio_aio._requests.direct import BufferedWrite
from trio_aio._requests.opening import Close
from trio_aio._requests.poll import Poll
from trio_aio._requests.sync import Sync
from trio_aio._requests.transfer import Read

from ..support.engine_loop import Loop, loop
from ..support.files import BLOCK, make_file, opened
from ..support.pipes import empty_pipe, full_pipe
from ..support.requests import DIRECT, direct_read, direct_write, poll, read, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trio_aio._backends import Backend
    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._engine.engine import Engine


def cancelled(engine: Engine, request: Request) -> bool:
    assert engine.cancel(request)
    return request.state is State.WITHDRAWN and engine.cancelled == 1


def test_cancel_of_request_queued_for_a_worker_withdraws_it(file: tuple[Path, bytes]) -> None:
    path, data = file
    for slots, state in ((1, State.WORKER_QUEUED), (8, State.WORKER_IN_FLIGHT)):
        with loop(slots, 1) as made, opened(path, os.O_RDWR) as fd, full_pipe() as pipe:
            descriptor = made.descriptor(fd)
            busy = pipe.request()
            made.submit(busy)
            request = write(descriptor, b"never", 0)
            made.submit(request)
            assert request.state is state
            assert cancelled(made.engine, request)
            assert descriptor.order.leases == 0
            pipe.release()
            made.settle()
            while made.engine.occupied:  # the slot comes back with the completion
                made.turn()
        assert path.read_bytes() == data


def test_cancel_of_held_sync_withdraws_it(file: tuple[Path, bytes]) -> None:
    with loop(8, 1) as made, opened(file[0], os.O_RDWR) as fd, full_pipe() as pipe:
        descriptor = made.descriptor(fd)
        made.submit(pipe.request())
        first, sync = write(descriptor, b"1", 0), Sync(descriptor, data_only=False)
        made.submit(first, sync)
        assert cancelled(made.engine, sync)
        pipe.release()
        made.settle()


def test_cancel_of_request_waiting_for_slot_or_flush_withdraws_it(file: tuple[Path, bytes]) -> None:
    with loop(2, gather=True) as made, opened(file[0], DIRECT) as fd, empty_pipe() as (reader, writer):
        descriptor = made.descriptor(fd)
        watch = poll(reader)
        made.submit(watch)
        prepared, queued = (direct_read(made, descriptor, BLOCK, 0) for _ in range(2))
        made.submit(prepared, queued)
        assert (prepared.state, queued.state) == (State.KERNEL_PREPARED, State.KERNEL_QUEUED)
        assert made.engine.cancel(prepared)
        assert queued.state is State.KERNEL_PREPARED  # it moved up
        made.wait_for(queued)
        again, last = (direct_read(made, descriptor, BLOCK, 0) for _ in range(2))
        made.submit(again, last)
        assert made.engine.cancel(last)
        made.wait_for(again)
        os.write(writer, b"x")
        made.wait_for(watch)


def test_cancel_of_poll_is_accepted_and_its_completion_frees_the_slot(engine_loop: Loop) -> None:
    with empty_pipe() as (reader, _):
        request = poll(reader)
        engine_loop.submit(request)
        assert not engine_loop.engine.cancel(request)
        assert request.cancel_accepted
        assert not engine_loop.engine.cancel(request)  # once more: too late, and no harm
        engine_loop.wait_for(request)
        assert request.took_no_effect
        assert engine_loop.engine.occupied == 0
        assert engine_loop.engine.cancelled == 1


def test_cancel_of_disk_read_in_flight_is_refused_and_its_result_kept(file: tuple[Path, bytes]) -> None:
    path, _ = file
    with loop(gather=True) as made, opened(path, DIRECT) as fd:
        descriptor = made.descriptor(fd)
        requests = [direct_read(made, descriptor, BLOCK, i * BLOCK) for i in range(8)]
        made.submit(*requests)
        made.flush()
        in_flight = [request for request in requests if request.state is State.KERNEL_IN_FLIGHT]
        for request in in_flight:
            assert not made.engine.cancel(request)
            assert not request.cancel_accepted
        made.wait_for(*requests)
        assert [request.result for request in requests] == [BLOCK] * 8


def test_abandoned_request_keeps_its_memory_until_completion(file: tuple[Path, bytes]) -> None:
    class Memory(bytearray):
        pass

    with loop(8, 1) as made, opened(file[0], os.O_RDONLY) as fd, full_pipe() as pipe:
        descriptor = made.descriptor(fd)
        busy = pipe.request()
        made.submit(busy)
        memory = Memory(BLOCK)
        export = export_buffer(memory, writable=True)
        request = Read(descriptor, export.address, BLOCK, 0, 0, (export, memory))
        watch = weakref.ref(memory)
        made.submit(request)
        abandon(made.engine, request)
        del memory, export, request
        gc.collect()
        assert watch() is not None
        assert made.engine.outstanding - made.engine.abandoned == 1
        pipe.release()
        made.settle()
        gc.collect()
        assert watch() is None


def test_drain_in_a_thread_completes_all_requests(file: tuple[Path, bytes]) -> None:
    made = Loop(8, 1)
    with full_pipe() as pipe:
        descriptor = made.descriptor(os.open(file[0], os.O_RDONLY))
        made.submit(pipe.request())
        closing = [read(descriptor, 10, 0), Close(descriptor)]
        made.submit(*closing)
        thread = threading.Thread(target=drain, args=(made.engine,))
        for request in closing:
            request.waiter = None
        thread.start()
        pipe.release()
        thread.join()
    assert made.engine.drops.closed
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor.fd)


def test_lease_that_ends_while_a_thread_drains_is_left_to_that_thread(file: tuple[Path, bytes]) -> None:
    made = Loop(8, 1)
    inside, go_on = threading.Event(), threading.Event()
    with full_pipe() as pipe:
        descriptor = made.descriptor(os.open(file[0], os.O_RDONLY))
        lease = Lease(cast("Backend", None), made.engine, descriptor)  # it needs none: the run has ended
        lease._take()
        waiting, close = pipe.request(), Close(descriptor)
        made.submit(waiting, close)
        reap = made.engine.reap

        def stay(*, drain: bool) -> None:
            inside.set()
            go_on.wait()
            reap(drain=drain)

        made.engine.reap = stay  # type: ignore[method-assign]
        for request in (waiting, close):
            request.waiter = None
        draining = threading.Thread(target=drain, args=(made.engine,))
        draining.start()
        pipe.release()
        inside.wait()
        lease.end()  # it does not wait for the thread, which may sleep
        assert descriptor.order.leases == 1
        go_on.set()
        draining.join()
    assert descriptor.order.leases == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor.fd)


def test_lease_that_the_collector_ends_in_the_middle_of_a_step_tears_nothing(file: tuple[Path, bytes]) -> None:
    made = Loop(8, 1)
    with full_pipe() as pipe:
        descriptor = made.descriptor(os.open(file[0], os.O_RDONLY))
        lease = Lease(cast("Backend", None), made.engine, descriptor)
        lease._take()
        waiting, close = pipe.request(), Close(descriptor)
        made.submit(waiting, close)

        class Free(list[int]):
            """The free slots; a coroutine of the run dies while one is added."""

            def append(self, slot: int) -> None:
                super().append(slot)
                lease.end()

        made.engine.workers.free = Free(made.engine.workers.free)
        for request in (waiting, close):
            request.waiter = None
        pipe.release()
        drain(made.engine)
    assert (waiting.finished, close.state) == (True, State.COMPLETED)
    assert made.engine.outstanding == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor.fd)


def leased(path: Path) -> tuple[Loop, Descriptor, Lease]:
    """Return an engine, a descriptor of a file, and a lease of it that was taken."""
    made = Loop(8, 1)
    descriptor = made.descriptor(os.open(path, os.O_RDONLY))
    lease = Lease(cast("Backend", None), made.engine, descriptor)
    lease._take()
    return made, descriptor, lease


def test_lease_that_ends_after_the_drain_is_counted(file: tuple[Path, bytes]) -> None:
    made, descriptor, lease = leased(file[0])
    drain(made.engine)
    lease.end()
    assert descriptor.order.leases == 0
    made.engine.drops.add(descriptor, Close(descriptor))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor.fd)


def test_second_end_of_a_lease_after_the_drain_leaves_the_closed_engine_alone(file: tuple[Path, bytes]) -> None:
    made, descriptor, lease = leased(file[0])
    close = Close(descriptor)
    made.submit(close)
    close.waiter = None
    made.engine.orphaned = True
    lease.end()
    drain(made.engine)
    assert close.finished
    with opened(file[0], os.O_RDWR) as fd:
        made.engine.event_fd = fd  # its number belongs to another file by now
        lease.end()  # each call ends its lease twice
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0


def test_drain_of_long_queue_does_not_recurse(on_filesystem: Callable[[str], Path]) -> None:
    path, _ = make_file(on_filesystem("tmpfs"))  # where a read is complete when io_submit returns
    made = Loop(1, 1, gather=True)
    with opened(path, DIRECT) as fd, empty_pipe() as (reader, writer):
        descriptor = made.descriptor(fd)
        assert descriptor.read_device is not None
        descriptor.read_device.nowait = False
        requests = [poll(reader), *(direct_read(made, descriptor, BLOCK, 0) for _ in range(sys.getrecursionlimit()))]
        made.submit(*requests)
        for request in requests:
            request.waiter = None
        os.write(writer, b"x")
        drain(made.engine)
    assert {request.result for request in requests[1:]} == {BLOCK}


def test_cancelled_poll_that_its_submitter_gave_back_lets_the_next_request_start(
    file: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with loop(1, gather=True) as made:
        assert made.engine.has_kernel_lane()
        lane = made.engine.kernel
        assert lane is not None
        with opened(file[0], DIRECT) as fd:
            descriptor = made.descriptor(fd)
            waiting, queued = Poll(descriptor, select.POLLIN), direct_read(made, descriptor, BLOCK, 0)
            with monkeypatch.context() as patch:
                patch.setattr(lane, "hand_over", lambda: None)
                patch.setattr(lane, "withdraw_prepared", lambda _: False)  # its submitter has taken it
                made.submit(waiting, queued)
                assert not made.engine.cancel(waiting)
            made.engine.reap(drain=True)  # the kernel had no room for it, and the submitter has given it back
            still_queued = made.engine.queued
            made.engine.start_queued()  # a test that fails must end too
            made.wait_for(queued)
            assert (still_queued, waiting.took_no_effect) == (0, True)
            assert queued.result == BLOCK


def test_close_fails_polls_in_every_state() -> None:
    with loop(2, gather=True) as made, empty_pipe() as (reader, writer):
        requests = [poll(reader) for _ in range(4)]
        made.submit(*requests)
        assert [request.state.name for request in requests] == ["KERNEL_IN_FLIGHT", "KERNEL_PREPARED", "KERNEL_QUEUED", "KERNEL_QUEUED"]
        cancel_polls(made.engine)
        made.wait_for(requests[0])
        results = [request.result for request in requests]
        os.write(writer, b"x")  # for those that were forgotten
        made.settle()
        assert results == [-errno.ECANCELED] * 4
        assert not any(request.took_no_effect for request in requests)
        assert sorted(map(id, made.woken)) == sorted(map(id, requests))
        assert made.engine.cancelled == 4


def test_cancelled_poll_stays_cancelled_when_the_context_closes(engine_loop: Loop) -> None:
    with empty_pipe() as (reader, _):
        request = poll(reader)
        engine_loop.submit(request)
        assert not engine_loop.engine.cancel(request)
        cancel_polls(engine_loop.engine)
        engine_loop.wait_for(request)
        assert request.took_no_effect


def test_cancel_together_starts_no_write_of_the_group(file: tuple[Path, bytes]) -> None:
    with loop(1, 1) as made, opened(file[0], DIRECT) as fd, full_pipe() as pipe:
        descriptor = made.descriptor(fd)
        assert made.engine.has_kernel_lane()
        export = export_buffer(b"2", writable=False)
        queued = direct_write(made, descriptor, b"1" * BLOCK, 0)
        held = BufferedWrite(descriptor, export.address, 1, BLOCK, 0, export)
        behind = direct_write(made, descriptor, b"3" * BLOCK, 2 * BLOCK)
        descriptor.size = 0  # for the workers: they make the file longer, as far as the engine knows
        made.submit(pipe.request())
        made.submit(queued, held, behind)
        assert [request.state for request in (queued, held, behind)] == [State.WORKER_QUEUED, State.HELD, State.HELD]
        start_queued = made.engine.workers.start_queued

        def start_queued_until_it_is_begun() -> None:
            start_queued()
            while queued.state is State.WORKER_IN_FLIGHT and os.pread(fd_of_cache, 1, 0) != b"1":
                os.sched_yield()

        made.engine.workers.start_queued = start_queued_until_it_is_begun  # type: ignore[method-assign]
        watch = select.poll()
        watch.register(made.engine.event_fd, select.POLLIN)
        pipe.release()
        assert watch.poll(60_000)  # the slot will be free once somebody looks
        with opened(file[0], os.O_RDONLY) as fd_of_cache:
            assert cancel_together(made.engine, [queued, held])
            made.wait_for(behind)
    assert file[0].read_bytes() == file[1][: 2 * BLOCK] + b"3" * BLOCK + file[1][3 * BLOCK :]
