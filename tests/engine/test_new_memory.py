"""Direct requests into memory that no worker has populated yet: they wait for it, and nothing else does."""

from __future__ import annotations

import array
import errno
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from trio_aio._engine.descriptor import Descriptor, describe
from trio_aio._engine.drain import drain
from trio_aio._engine.engine import Engine
from trio_aio._engine.withdrawal import abandon, cancel_together
from trio_aio._lanes import kernel, short_ways
from trio_aio._lanes.workers import Population
from trio_aio._memory.exports import export_buffer
from trio_aio._memory.slabs import HUGE_PAGE, Slab
from trio_aio._requests.base import Request, State
from trio_aio._requests.direct import BufferedWrite, SlabWrite, WidenedRead
from trio_aio._requests.opening import Close
from trio_aio._requests.pieces import Pieces, PiecesRead
from trio_aio._requests.sync import Sync

from ..support.engine_loop import Loop, loop
from ..support.files import BLOCK, make_file, opened
from ..support.pipes import full_pipe
from ..support.requests import DIRECT, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_direct_read_into_new_memory_waits_for_it_and_then_takes_the_kernel_lane(disk: Path) -> None:
    path, data = make_file(disk)
    with loop(max_workers=1) as made, opened(path, DIRECT) as fd, full_pipe() as pipe:
        made.submit(pipe.request())  # the only worker is busy, so no worker touches the memory
        descriptor = Descriptor(fd, fd)
        descriptor.direct, descriptor.size = True, len(data)
        request = WidenedRead(descriptor, BLOCK, 0, 0)
        made.submit(request)
        assert request.slab is not None
        page = request.slab.page
        assert (request.state, page.warm, page.waiting) == (State.HELD, False, [request])
        pipe.release()
        made.wait_for(request)
        assert page.warm
        assert (request.data, made.engine.submitted_kernel) == (data[:BLOCK], 1)
        assert page.in_use == 0


def test_cancel_of_direct_read_waiting_for_new_memory_withdraws_it(disk: Path) -> None:
    path, data = make_file(disk)
    with loop(max_workers=1) as made, opened(path, DIRECT) as fd, full_pipe() as pipe:
        made.submit(pipe.request())
        descriptor = Descriptor(fd, fd)
        descriptor.direct, descriptor.size = True, len(data)
        requests = [WidenedRead(descriptor, BLOCK, i * BLOCK, 0) for i in range(3)]
        made.submit(*requests)
        assert requests[1].slab is not None
        page = requests[1].slab.page
        assert made.engine.cancel(requests[1])
        assert (requests[1].state, page.waiting, page.in_use) == (State.WITHDRAWN, [requests[0], requests[2]], 2)
        pipe.release()
        made.wait_for(requests[0], requests[2])
        assert [request.data for request in requests] == [data[:BLOCK], b"", data[2 * BLOCK : 3 * BLOCK]]
        assert (made.engine.submitted_kernel, made.engine.cancelled) == (2, 1)


def test_first_burst_of_direct_reads_takes_the_kernel_lane(disk: Path) -> None:
    path, data = make_file(disk)
    with loop(64) as made, opened(path, DIRECT) as fd:
        descriptor = Descriptor(fd, fd)
        descriptor.direct, descriptor.size = True, len(data)
        requests = [WidenedRead(descriptor, BLOCK, i % 64 * BLOCK, 0) for i in range(500)]
        made.submit(*requests)
        made.wait_for(*requests)
        assert all(request.data == data[i % 64 * BLOCK :][:BLOCK] for i, request in enumerate(requests))
        assert (made.engine.submitted_kernel, made.engine.submitted_workers) == (500, 0)


def direct_descriptor(fd: int, size: int) -> Descriptor:
    """Return a direct descriptor without the memory that `Engine.learn` has made."""
    descriptor = Descriptor(fd, fd)
    descriptor.load(describe(fd).value)
    assert (descriptor.direct, descriptor.size) == (True, size)
    return descriptor


def record_populations(made: Loop) -> list[int]:
    """Return a list to which each address that a worker is asked to touch will be added."""
    addresses = []
    accept = made.engine.workers.accept

    def accept_and_note(request: Any) -> None:
        if isinstance(request, Population):
            addresses.append(request._address)
        accept(request)

    made.engine.workers.accept = accept_and_note  # type: ignore[method-assign]
    return addresses


@pytest.mark.parametrize(("count", "pages"), [(1, 1), (HUGE_PAGE // BLOCK, 1), (HUGE_PAGE // BLOCK + 1, 2)])
def test_each_huge_page_is_populated_once_before_its_first_use(disk: Path, count: int, pages: int) -> None:
    path, data = make_file(disk)
    with loop(64) as made, opened(path, DIRECT) as fd:
        addresses = record_populations(made)
        descriptor = direct_descriptor(fd, len(data))
        made.engine.learn(descriptor)
        assert len(addresses) == 1  # when the file is opened
        for _ in range(2):
            requests = [WidenedRead(descriptor, BLOCK, i % 64 * BLOCK, 0) for i in range(count)]
            made.submit(*requests)
            made.wait_for(*requests)
            assert all(request.data == data[i % 64 * BLOCK :][:BLOCK] for i, request in enumerate(requests))
        assert len(addresses) == len(set(addresses)) == pages
        assert made.engine.submitted_workers == 0


def test_only_the_read_into_new_memory_waits_for_it(disk: Path) -> None:
    path, data = make_file(disk)
    with loop(64, 1, gather=True) as made, opened(path, DIRECT) as fd, full_pipe() as pipe:
        descriptor = made.descriptor(fd)
        made.submit(pipe.request())
        slabs = [made.engine.buffers.take(BLOCK) for _ in range(HUGE_PAGE // BLOCK)]
        first, second = (WidenedRead(descriptor, BLOCK, i * BLOCK, 0) for i in range(2))
        made.submit(first)
        made.engine.buffers.return_slab(slabs.pop())
        made.submit(second)
        made.wait_for(second)
        assert (second.data, first.state) == (data[BLOCK : 2 * BLOCK], State.HELD)
        pipe.release()
        made.wait_for(first)
        assert first.data == data[:BLOCK]
        for slab in slabs:
            made.engine.buffers.return_slab(slab)


def test_sync_and_close_wait_for_a_write_that_waits_for_new_memory(disk: Path) -> None:
    path, data = make_file(disk)
    with loop(max_workers=1) as made, full_pipe() as pipe:
        made.submit(pipe.request())
        descriptor = direct_descriptor(os.open(path, DIRECT), len(data))
        new = data[1 : 1 + BLOCK]
        writing = SlabWrite(descriptor, [export_buffer(new, writable=False)], BLOCK, BLOCK, 0)
        sync, close = Sync(descriptor, data_only=True), Close(descriptor)
        made.submit(writing, sync, close)
        assert [request.state for request in (writing, sync, close)] == [State.HELD] * 3
        pipe.release()
        made.wait_for(writing, sync, close)
        assert [request.result for request in (writing, sync, close)] == [BLOCK, 0, 0]
        assert made.engine.submitted_kernel == 2
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor.fd)
    assert path.read_bytes() == data[:BLOCK] + new + data[2 * BLOCK :]


def test_writes_that_wait_for_new_memory_are_cancelled_together(disk: Path) -> None:
    path, data = make_file(disk)
    with loop(max_workers=1) as made, opened(path, DIRECT) as fd, full_pipe() as pipe:
        made.submit(pipe.request())
        descriptor = direct_descriptor(fd, len(data))
        new = export_buffer(bytes(BLOCK), writable=False)
        writes = [SlabWrite(descriptor, [new], BLOCK, i * BLOCK, 0) for i in range(3)]
        sync = Sync(descriptor, data_only=True)
        made.submit(*writes, sync)
        assert writes[0].slab is not None
        page = writes[0].slab.page
        assert page.waiting == writes
        assert cancel_together(made.engine, writes)
        assert [request.state for request in writes] == [State.WITHDRAWN] * 3
        assert (page.waiting, page.in_use, descriptor.order.writes) == ([], 0, set())
        made.wait_for(sync)  # nothing holds it any more
        pipe.release()
        assert (descriptor.order.leases, made.engine.cancelled) == (0, 3)
    assert path.read_bytes() == data


@pytest.mark.parametrize("cancel", [False, True])
def test_unaligned_pieces_wait_for_new_memory(disk: Path, cancel: bool) -> None:
    path, data = make_file(disk)
    with loop(max_workers=1) as made, opened(path, DIRECT) as fd, full_pipe() as pipe:
        made.submit(pipe.request())
        descriptor = direct_descriptor(fd, len(data))
        into = bytearray(20 * 100)
        offsets = array.array("q", [i * BLOCK + 7 for i in range(20)])
        request = PiecesRead(descriptor, Pieces.blocks(descriptor, offsets, 100, export_buffer(into, writable=True)))
        made.submit(request)
        assert request.slab is not None
        page = request.slab.page
        assert (request.state, page.waiting) == (State.HELD, [request])
        if cancel:
            assert made.engine.cancel(request)
            assert (request.state, page.waiting, page.in_use) == (State.WITHDRAWN, [], 0)
        pipe.release()
        made.wait_for(request)
        made.settle()
        assert into == (bytes(len(into)) if cancel else b"".join(data[i * BLOCK + 7 :][:100] for i in range(20)))
        assert (made.engine.submitted_kernel, made.engine.submitted_workers) == (0 if cancel else 20, 1)  # the pipe's
        assert descriptor.order.leases == page.in_use == 0


def test_new_memory_whose_readers_were_cancelled_serves_later_reads(disk: Path) -> None:
    path, data = make_file(disk)
    with loop(max_workers=1) as made, opened(path, DIRECT) as fd, full_pipe() as pipe:
        addresses = record_populations(made)
        made.submit(pipe.request())
        descriptor = direct_descriptor(fd, len(data))
        gone = [WidenedRead(descriptor, BLOCK, 0, 0) for _ in range(3)]
        made.submit(*gone)
        assert all(made.engine.cancel(request) for request in gone)
        later = WidenedRead(descriptor, BLOCK, BLOCK, 0)
        made.submit(later)
        assert later.state is State.HELD
        pipe.release()
        made.wait_for(later)
        assert (later.data, len(addresses)) == (data[BLOCK : 2 * BLOCK], 1)


def test_read_cancelled_while_earlier_reads_are_dispatched_never_runs(disk: Path) -> None:
    path, data = make_file(disk)
    with loop(max_workers=1) as made, opened(path, DIRECT) as fd, full_pipe() as pipe:
        made.submit(pipe.request())
        descriptor = direct_descriptor(fd, len(data))
        requests = [WidenedRead(descriptor, BLOCK, i * BLOCK, 0) for i in range(3)]
        made.submit(*requests)
        dispatch = made.engine.dispatch

        def dispatch_and_cancel_the_last(request: Any) -> None:
            dispatch(request)
            if request is requests[0]:  # as `reap` does with a read that a finalizer has left
                assert made.engine.cancel(requests[2])

        made.engine.dispatch = dispatch_and_cancel_the_last  # type: ignore[method-assign]
        pipe.release()
        made.wait_for(*requests)
        assert [request.state.name for request in requests] == ["COMPLETED", "COMPLETED", "WITHDRAWN"]
        assert (made.engine.submitted_kernel, made.engine.cancelled) == (2, 1)


def test_error_while_one_read_is_dispatched_fails_no_other(disk: Path) -> None:
    path, data = make_file(disk)
    with loop(max_workers=1) as made, opened(path, DIRECT) as fd, full_pipe() as pipe:
        made.submit(pipe.request())
        descriptor = direct_descriptor(fd, len(data))
        requests = [WidenedRead(descriptor, BLOCK, i * BLOCK, 0) for i in range(3)]
        made.submit(*requests)
        dispatch, failures = made.engine.dispatch, iter([MemoryError()])

        def dispatch_and_fail_once(request: Any) -> None:
            dispatch(request)
            for error in failures:
                raise error

        made.engine.dispatch = dispatch_and_fail_once  # type: ignore[method-assign]
        pipe.release()
        with pytest.raises(MemoryError):
            made.settle()
        made.wait_for(*requests)
        assert [request.data for request in requests] == [data[i * BLOCK :][:BLOCK] for i in range(3)]


def test_abandoned_read_that_waits_for_new_memory_ends_with_its_engine(disk: Path) -> None:
    path, data = make_file(disk)
    made = Loop(8, 1)
    with full_pipe() as pipe:
        made.submit(pipe.request())
        descriptor = direct_descriptor(os.open(path, DIRECT), len(data))
        reading, close = WidenedRead(descriptor, BLOCK, 0, 0), Close(descriptor)
        made.submit(reading, close)
        assert reading.state is close.state is State.HELD
        abandon(made.engine, reading)
        close.waiter = None
        thread = threading.Thread(target=drain, args=(made.engine,))
        thread.start()
        pipe.release()
        thread.join()
    assert (reading.result, reading.data, reading.slab) == (BLOCK, b"", None)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor.fd)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "no memory")])
def test_direct_request_without_memory_fails_alone_and_leaves_nothing(disk: Path, error: Exception) -> None:
    path, data = make_file(disk)
    with loop() as made:
        descriptor = made.descriptor(os.open(path, DIRECT))
        take, failures = made.engine.buffers.take, iter([error] * 3)

        def take_or_fail(size: int) -> Slab:
            for failure in failures:
                raise failure
            return take(size)

        made.engine.buffers.take = take_or_fail  # type: ignore[method-assign]
        into, new = bytearray(200), export_buffer(data[1 : 1 + BLOCK], writable=False)
        pieces = Pieces.blocks(descriptor, array.array("q", [7, BLOCK]), 100, export_buffer(into, writable=True))
        requests = [
            *(WidenedRead(descriptor, 10, 5, 0), SlabWrite(descriptor, [new], BLOCK, 0, 0), PiecesRead(descriptor, pieces)),
            *(Sync(descriptor, data_only=True), WidenedRead(descriptor, 10, 5, 0)),
        ]
        assert made.run(*requests) == [-errno.ENOMEM, -errno.ENOMEM, -errno.ENOMEM, 0, 10]
        assert (made.engine.outstanding, descriptor.order.leases) == (0, 0)
        assert made.run(Close(descriptor)) == [0]
    assert (path.read_bytes(), into) == (data, bytes(200))


@pytest.mark.parametrize("start", [Engine.submit, lambda engine, request: request.start_short(engine)], ids=["submit", "start_short"])
def test_direct_read_that_cannot_be_started_leaves_nothing(
    disk: Path, monkeypatch: pytest.MonkeyPatch, start: Callable[[Engine, Request], None]
) -> None:
    path, data = make_file(disk)
    with loop(2) as made, opened(path, DIRECT) as fd:
        descriptor = made.descriptor(fd)
        assert made.run(WidenedRead(descriptor, BLOCK, 0, 0)) == [BLOCK]
        requests = [WidenedRead(descriptor, BLOCK, 0, 0) for _ in range(3)]
        with monkeypatch.context() as patch:
            patch.setattr(kernel, "_start", _no_memory)
            patch.setattr(short_ways, "_start_read", _no_memory)
            for request in requests:
                with pytest.raises(MemoryError):
                    start(made.engine, request)
        assert {(request.state, request.slab) for request in requests} == {(State.WITHDRAWN, None)}
        assert (made.engine.outstanding, made.engine.occupied, descriptor.order.leases) == (0, 0, 0)
        request = WidenedRead(descriptor, BLOCK, BLOCK, 0)
        assert made.run(request) == [BLOCK]
        assert request.data == data[BLOCK : 2 * BLOCK]


@pytest.mark.parametrize("busy", [0, 2], ids=["alone", "gathered"])
def test_write_that_cannot_be_handed_to_the_workers_leaves_nothing(disk: Path, monkeypatch: pytest.MonkeyPatch, busy: int) -> None:
    path, _ = make_file(disk)
    with loop(8, 1) as made, opened(path, os.O_RDWR) as fd, full_pipe() as pipe:
        descriptor = made.descriptor(fd)
        waiting = [pipe.request() for _ in range(busy)]
        made.submit(*waiting)
        before = made.engine.outstanding, made.engine.occupied
        with monkeypatch.context() as patch:
            patch.setattr(made.engine.workers, "prepare", _no_memory)
            with pytest.raises(MemoryError):
                made.submit(write(descriptor, b"no", 0))
        assert (made.engine.outstanding, made.engine.occupied, descriptor.order.leases) == (*before, 0)
        requests = [write(descriptor, b"yes", 3 * i) for i in range(2)]
        made.submit(*requests)
        pipe.release()
        made.wait_for(*requests, *waiting)
    assert path.read_bytes()[:6] == b"yesyes"


def _no_memory(*_: object, **__: object) -> None:
    raise MemoryError


def test_held_direct_write_without_memory_fails_alone(disk: Path) -> None:
    path, data = make_file(disk)
    with loop(8, 1) as made, full_pipe() as pipe, opened(path, DIRECT) as fd:
        descriptor = made.descriptor(fd)
        made.submit(pipe.request())
        export = export_buffer(b"x", writable=False)
        before = BufferedWrite(descriptor, export.address, 1, 0, 0, export)
        held = SlabWrite(descriptor, [export_buffer(bytes(BLOCK), writable=False)], BLOCK, BLOCK, 0)
        made.submit(before, held)
        assert held.state is State.HELD

        def no_memory(size: int) -> Slab:
            raise MemoryError

        made.engine.buffers.take = no_memory  # type: ignore[method-assign]
        pipe.release()
        made.wait_for(before, held)
        assert (before.result, held.result) == (1, -errno.ENOMEM)
        assert (made.engine.outstanding, descriptor.order.leases, descriptor.order.writes) == (0, 0, set())
    assert path.read_bytes() == b"x" + data[1:]
