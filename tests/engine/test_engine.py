"""The engine with a plain loop: no event library is imported here."""

from __future__ import annotations

import array
import errno
import gc
import itertools
import mmap
import os
import random
import select
import subprocess
import sys
import textwrap
import threading
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from trio_aio._context.group import RequestGroup
from trio_aio._engine import completions
from trio_aio._engine.descriptor import Descriptor, describe
from trio_aio._engine.drain import drain
from trio_aio._engine.engine import Engine
from trio_aio._engine.withdrawal import abandon, cancel_polls, cancel_together
from trio_aio._errors import setup_error
from trio_aio._lanes import kernel
from trio_aio._lanes import kernel_context as _kernel_context
from trio_aio._lanes.devices import BACKOFF, SLOW_LIMIT
from trio_aio._lanes.kernel import KernelLane
from trio_aio._lanes.workers import Population
from trio_aio._memory.exports import export_buffer, export_vector
from trio_aio._memory.slabs import HUGE_PAGE, LARGEST_SLAB, Slab
from trio_aio._native import lib
from trio_aio._requests.base import Request, State
from trio_aio._requests.direct import BouncedWrite, BufferedWrite, WidenedRead
from trio_aio._requests.metadata import Allocate, Seek, Stat, Truncate
from trio_aio._requests.opening import Close, Open
from trio_aio._requests.pieces import Pieces, PiecesRead
from trio_aio._requests.poll import Poll
from trio_aio._requests.sync import Sync
from trio_aio._requests.transfer import DIRECT_LIMIT, Append, Read, ReadVector, Write

from ..support.engine_loop import Loop, loop
from ..support.files import BLOCK, make_file, opened
from ..support.page_cache import attempts, evict, pinned
from ..support.pipes import empty_pipe, full_pipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DIRECT = os.O_RDWR | os.O_DIRECT


def read(descriptor: Descriptor, size: int, offset: int, flags: int = 0) -> Read:
    memory = bytearray(size)
    export = export_buffer(memory, writable=True)
    request = Read(descriptor, export.address, size, offset, flags, export)
    request.waiter = memory
    return request


def write(descriptor: Descriptor, data: bytes, offset: int) -> Write:
    export = export_buffer(data, writable=False)
    return Write(descriptor, export.address, len(data), offset, 0, export)


def warm_slab(loop: Loop, size: int) -> Slab:
    slab = loop.engine.buffers.take(size)
    while not slab.page.warm and slab.capacity <= LARGEST_SLAB:
        loop.turn()
    return slab


def direct_read(loop: Loop, descriptor: Descriptor, size: int, offset: int) -> Read:
    """A read into memory that is aligned and there."""
    slab = warm_slab(loop, size)
    return Read(descriptor, slab.address, size, offset, 0, slab)


def direct_write(loop: Loop, descriptor: Descriptor, data: bytes, offset: int) -> Write:
    slab = warm_slab(loop, len(data))
    slab.gather([export_buffer(data, writable=False)])
    return Write(descriptor, slab.address, len(data), offset, 0, slab)


def poll(fd: int) -> Poll:
    return Poll(Descriptor(fd, fd), select.POLLIN)


def closed_like(descriptor: Descriptor) -> Descriptor:
    """Give a descriptor that io_submit refuses (EBADF), on the same device."""
    gone = Descriptor(os.dup(descriptor.fd), "gone")
    gone.direct, gone.size = True, descriptor.size
    gone.read_device, gone.write_device = descriptor.read_device, descriptor.write_device
    os.close(gone.fd)
    return gone


@pytest.fixture
def engine_loop() -> Iterator[Loop]:
    with loop() as made:
        yield made


@pytest.fixture
def file(disk: Path) -> tuple[Path, bytes]:
    return make_file(disk)


# ---- what each lane does


def test_workers_read_and_write_like_the_system_calls(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    path, data = file
    with opened(path, os.O_RDWR) as fd:
        descriptor = engine_loop.descriptor(fd)
        memory = bytearray(5000)
        export = export_buffer(memory, writable=True)
        request = Read(descriptor, export.address, 5000, 100, 0, export)
        assert engine_loop.run(request) == [5000]
        assert memory == data[100:5100]
        assert engine_loop.run(write(descriptor, b"abc", 7)) == [3]
        assert path.read_bytes()[7:10] == b"abc"
        parts = [bytearray(3), bytearray(0), bytearray(4)]
        vector = export_vector(parts, writable=True)
        request = ReadVector(descriptor, vector, 6, 0)
        assert engine_loop.run(request) == [7]
        assert b"".join(parts) == data[6:7] + b"abc" + data[10:13]


def test_workers_do_what_else_a_file_needs(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    path, data = file
    with opened(path, os.O_RDWR | os.O_APPEND) as fd:
        descriptor = engine_loop.descriptor(fd)
        export = export_buffer(b"end", writable=False)
        assert engine_loop.run(Append(descriptor, export.address, 3, export)) == [len(data) + 3]
        stat = Stat(descriptor)
        assert engine_loop.run(stat) == [0]
        assert stat.status().st_size == len(data) + 3
        assert engine_loop.run(Truncate(descriptor, 10)) == [0]
        assert path.stat().st_size == 10
        assert engine_loop.run(Allocate(descriptor, 0, BLOCK)) == [0]
        assert engine_loop.run(Seek(descriptor, -1, os.SEEK_END)) == [BLOCK - 1]
        assert engine_loop.run(Sync(descriptor, data_only=False), Sync(descriptor, data_only=True)) == [0, 0]


def test_workers_open_and_close(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    path, data = file
    request = Open(Descriptor(-1), os.fsencode(path), os.O_RDONLY | os.O_CLOEXEC)
    record = request.record
    [fd] = engine_loop.run(request)
    assert os.fstat(fd).st_size == record.value.size == len(data)
    assert (request.descriptor.fd, request.descriptor.unclaimed) == (fd, True)  # until somebody takes it over
    request.descriptor.unclaimed = False
    assert engine_loop.run(Close(Descriptor(fd))) == [0]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_one_eventfd_tells_of_both_lanes_and_each_request_is_counted_once(file: tuple[Path, bytes]) -> None:
    path, _ = file
    with loop(gather=True) as made, opened(path, DIRECT) as fd, opened(path, os.O_RDWR) as plain:
        descriptor, buffered, engine = made.descriptor(fd), made.descriptor(plain), made.engine
        requests = [direct_read(made, descriptor, BLOCK, 0), read(buffered, 100, 0), write(buffered, b"12", 8 * BLOCK)]
        assert made.run(*requests) == [BLOCK, 100, 2]
        assert sorted(map(id, made.woken)) == sorted(map(id, requests))
        assert (engine.submitted_kernel, engine.submitted_workers, engine.completed) == (1, 2, 3)
        assert (engine.bytes_read, engine.bytes_written) == (BLOCK + 100, 2)
        assert (engine.outstanding, engine.in_flight, engine.queued, engine.cancelled, engine.retried) == (0, 0, 0, 0, 0)


def test_the_kernel_lane_reads_and_overwrites_direct_files(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    path, data = file
    with opened(path, DIRECT) as fd:
        descriptor = engine_loop.descriptor(fd)
        request = direct_read(engine_loop, descriptor, BLOCK, BLOCK)
        assert engine_loop.run(request) == [BLOCK]
        assert request.owned.read(BLOCK) == data[BLOCK : 2 * BLOCK]
        assert engine_loop.run(direct_write(engine_loop, descriptor, data[:BLOCK], 2 * BLOCK)) == [BLOCK]
        assert engine_loop.run(Sync(descriptor, data_only=True)) == [0]
        assert engine_loop.engine.submitted_kernel == 3
        assert path.read_bytes()[2 * BLOCK : 3 * BLOCK] == data[:BLOCK]


def test_a_direct_read_over_the_end_is_short_and_asks_no_worker(engine_loop: Loop, disk: Path) -> None:
    path, data = make_file(disk, BLOCK + 300)
    with opened(path, DIRECT) as fd:
        descriptor = engine_loop.descriptor(fd)
        request = direct_read(engine_loop, descriptor, 2 * BLOCK, 0)
        assert engine_loop.run(request) == [BLOCK + 300]
        assert request.owned.read(BLOCK + 300) == data
        assert engine_loop.engine.submitted_workers == 0


def test_what_the_kernel_read_of_a_request_is_kept_when_a_worker_reads_the_rest(engine_loop: Loop, disk: Path) -> None:
    path, data = make_file(disk, 2 * BLOCK)
    with opened(path, DIRECT) as fd:
        descriptor = engine_loop.descriptor(fd)
        # An aligned short count may be the end of the file or not: a worker looks.
        request = direct_read(engine_loop, descriptor, 4 * BLOCK, 0)
        assert engine_loop.run(request) == [2 * BLOCK]
        assert request.owned.read(2 * BLOCK) == data
        assert (engine_loop.engine.submitted_kernel, engine_loop.engine.submitted_workers) == (1, 1)


def test_appends_and_large_requests_of_direct_files_go_to_the_workers(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    path, data = file
    with opened(path, DIRECT) as fd:
        descriptor = engine_loop.descriptor(fd)
        assert engine_loop.run(direct_write(engine_loop, descriptor, data[:BLOCK], len(data))) == [BLOCK]
        assert engine_loop.run(direct_read(engine_loop, descriptor, 2 * DIRECT_LIMIT, 0)) == [len(data) + BLOCK]
        assert engine_loop.engine.submitted_kernel == 0
        # What was an append is an overwrite now.
        assert engine_loop.run(direct_write(engine_loop, descriptor, data[:BLOCK], len(data))) == [BLOCK]
        assert engine_loop.engine.submitted_kernel == 1


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


def test_cancel_of_a_direct_read_that_waits_for_new_memory(disk: Path) -> None:
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
        made.engine.buffers.release(slabs.pop())
        made.submit(second)
        made.wait_for(second)
        assert (second.data, first.state) == (data[BLOCK : 2 * BLOCK], State.HELD)
        pipe.release()
        made.wait_for(first)
        assert first.data == data[:BLOCK]
        for slab in slabs:
            made.engine.buffers.release(slab)


def test_sync_and_close_wait_for_a_write_that_waits_for_new_memory(disk: Path) -> None:
    path, data = make_file(disk)
    with loop(max_workers=1) as made, full_pipe() as pipe:
        made.submit(pipe.request())
        descriptor = direct_descriptor(os.open(path, DIRECT), len(data))
        new = data[1 : 1 + BLOCK]
        writing = BouncedWrite(descriptor, [export_buffer(new, writable=False)], BLOCK, BLOCK, 0)
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
        writes = [BouncedWrite(descriptor, [new], BLOCK, i * BLOCK, 0) for i in range(3)]
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


def test_new_memory_serves_later_reads_though_all_that_waited_were_cancelled(disk: Path) -> None:
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


def test_read_that_is_cancelled_while_those_before_it_are_dispatched_never_runs(disk: Path) -> None:
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


def test_error_while_one_read_is_dispatched_takes_no_other_with_it(disk: Path) -> None:
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
            *(WidenedRead(descriptor, 10, 5, 0), BouncedWrite(descriptor, [new], BLOCK, 0, 0), PiecesRead(descriptor, pieces)),
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
            for request in requests:
                with pytest.raises(MemoryError):
                    start(made.engine, request)
        assert {(request.state, request.slab) for request in requests} == {(State.WITHDRAWN, None)}
        assert (made.engine.outstanding, made.engine.in_flight, descriptor.order.leases) == (0, 0, 0)
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
        before = made.engine.outstanding, made.engine.in_flight
        with monkeypatch.context() as patch:
            patch.setattr(made.engine.workers, "prepare", _no_memory)
            with pytest.raises(MemoryError):
                made.submit(write(descriptor, b"no", 0))
        assert (made.engine.outstanding, made.engine.in_flight, descriptor.order.leases) == (*before, 0)
        requests = [write(descriptor, b"yes", 3 * i) for i in range(2)]
        made.submit(*requests)
        pipe.release()
        made.wait_for(*requests, *waiting)
    assert path.read_bytes()[:6] == b"yesyes"


def _no_memory(*_: object, **__: object) -> None:
    raise MemoryError


def test_held_direct_write_that_finds_no_memory_later_fails_and_the_write_before_it_does_not(disk: Path) -> None:
    path, data = make_file(disk)
    with loop(8, 1) as made, full_pipe() as pipe, opened(path, DIRECT) as fd:
        descriptor = made.descriptor(fd)
        descriptor.keep_buffered_fd()
        made.submit(pipe.request())
        export = export_buffer(b"x", writable=False)
        before = BufferedWrite(descriptor, export.address, 1, 0, 0, export)
        held = BouncedWrite(descriptor, [export_buffer(bytes(BLOCK), writable=False)], BLOCK, BLOCK, 0)
        made.submit(before, held)
        assert held.state is State.HELD

        def no_memory(size: int) -> Slab:
            raise MemoryError

        made.engine.buffers.take = no_memory  # type: ignore[method-assign]
        pipe.release()
        made.wait_for(before, held)
        assert (before.result, held.result) == (1, -errno.ENOMEM)
        assert (made.engine.outstanding, descriptor.order.leases, descriptor.order.writes) == (0, 0, set())
        os.close(descriptor.buffered_fd.fd)
    assert path.read_bytes() == b"x" + data[1:]


# ---- the inline lane


def test_inline_reads_hit_the_page_cache_and_miss_what_is_not_there(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    path, data = file
    inline = engine_loop.engine.inline
    with opened(path, os.O_RDONLY) as fd:
        descriptor = engine_loop.descriptor(fd)
        with pinned(path):
            assert inline.read(descriptor, 5000, 100) == data[100:5100]
            assert inline.read(descriptor, 5000, len(data) - 10) == data[-10:]
            assert inline.read(descriptor, 5000, len(data)) == b""
            memory = bytearray(100)
            export = export_buffer(memory, writable=True)
            assert inline.read_into(descriptor, export.address, 100, 50) == 100
            assert memory == data[50:150]
            assert (inline.hits, inline.misses) == (4, 0)
        still_cached = 0
        for _ in attempts("a read of a page that was not cached"):
            evict(path)
            found = inline.read(descriptor, BLOCK, 32 * BLOCK)
            if found is None:
                break
            assert found == data[32 * BLOCK : 33 * BLOCK]
            still_cached += 1
        assert (inline.hits, inline.misses) == (4 + still_cached, 1)


@pytest.mark.parametrize("kind", ["tmpfs", "overlay"])
def test_a_device_that_does_not_know_nowait_is_not_asked_again(engine_loop: Loop, on_filesystem: Callable[[str], Path], kind: str) -> None:
    path, _ = make_file(on_filesystem(kind))
    with opened(path, os.O_RDONLY) as fd:
        descriptor = engine_loop.descriptor(fd)
        assert engine_loop.engine.inline.read(descriptor, BLOCK, 0) is None
        assert descriptor.read_device is not None
        assert not descriptor.read_device.nowait
    with opened(path, os.O_RDONLY) as fd:
        other = engine_loop.descriptor(fd)
        assert other.read_device is descriptor.read_device


# ---- completions


@pytest.mark.parametrize("by_call", [False, True])
def test_completions_are_taken_from_the_ring_or_by_io_getevents(engine_loop: Loop, file: tuple[Path, bytes], by_call: bool) -> None:
    path, data = file
    assert engine_loop.engine.has_kernel_lane()
    assert engine_loop.engine.kernel is not None
    ring = engine_loop.engine.kernel.ring
    assert lib.taio_ring_is_mapped(ring)
    if by_call:
        lib.taio_ring_use_getevents(ring)
    with opened(path, DIRECT) as fd:
        descriptor = engine_loop.descriptor(fd)
        requests = [direct_read(engine_loop, descriptor, BLOCK, i * BLOCK) for i in range(20)]
        assert engine_loop.run(*requests) == [BLOCK] * 20
        for i, request in enumerate(requests):
            assert request.owned.read(BLOCK) == data[i * BLOCK :][:BLOCK]


def test_a_completion_with_an_old_token_is_nobodys(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    with opened(file[0], os.O_RDONLY) as fd:
        descriptor = engine_loop.descriptor(fd)
        request = read(descriptor, 10, 0)
        engine_loop.run(request)
        with pytest.raises(RuntimeError, match="belongs to no request"):
            engine_loop.engine.complete(request.token, 10, 10)
        again = read(descriptor, 10, 0)
        engine_loop.run(again)
        assert again.token != request.token


@pytest.mark.parametrize("slots", [1, 2, 7, 128])
@pytest.mark.parametrize("count", [lambda n: n - 1, lambda n: n, lambda n: n + 1, lambda n: 2 * n, lambda n: 4 * n])
@pytest.mark.parametrize("direct", [False, True])
def test_any_number_of_requests_completes_first_come_first_served(
    file: tuple[Path, bytes], slots: int, count: Callable[[int], int], direct: bool
) -> None:
    path, _ = file
    with loop(slots, 1, gather=True) as made, opened(path, DIRECT if direct else os.O_RDONLY) as fd:
        descriptor = made.descriptor(fd)
        make = (lambda i: direct_read(made, descriptor, BLOCK, i)) if direct else (lambda i: read(descriptor, BLOCK, i))
        requests = [make(i % 64 * BLOCK) for i in range(count(slots))]
        for i, request in enumerate(requests):
            made.submit(request)
            assert made.engine.in_flight <= slots
            if not direct:  # a direct read may be complete already
                assert request.state is (State.WORKER_IN_FLIGHT if i < slots else State.WORKER_QUEUED)
        made.wait_for(*requests)
        assert [request.result for request in requests] == [BLOCK] * len(requests)
        if not direct:  # one worker: in order
            assert made.woken == requests
        assert (made.engine.in_flight, made.engine.queued) == (0, 0)


def test_a_bad_request_in_the_middle_of_a_batch_fails_alone(file: tuple[Path, bytes]) -> None:
    path, _ = file
    with empty_pipe() as (reader, writer), loop(16, gather=True) as made, opened(path, DIRECT) as fd:
        descriptor = made.descriptor(fd)
        watch = poll(reader)
        made.submit(watch)  # something is in flight: what follows is gathered
        assert made.engine.kernel is not None
        made.engine.kernel.few = 8
        requests = [direct_read(made, descriptor, BLOCK, i * BLOCK) for i in range(7)]
        gone = closed_like(descriptor)
        bad = (0, 3, 4, 6)
        for i in bad:
            requests[i].descriptor = gone
        made.submit(*requests)
        assert all(request.state is State.KERNEL_PREPARED for request in requests)
        made.wait_for(*requests)
        assert [request.result for request in requests] == [-errno.EBADF if i in bad else BLOCK for i in range(7)]
        os.write(writer, b"x")
        made.wait_for(watch)


def test_the_slot_of_a_refused_request_goes_to_the_next_though_nothing_completes(file: tuple[Path, bytes]) -> None:
    with empty_pipe() as (reader, writer), loop(2, gather=True) as made, opened(file[0], DIRECT) as fd:
        descriptor = made.descriptor(fd)
        watch = poll(reader)
        bad, good = direct_read(made, closed_like(descriptor), BLOCK, 0), direct_read(made, descriptor, BLOCK, 0)
        made.submit(watch, bad, good)
        assert (bad.state, good.state) == (State.KERNEL_PREPARED, State.KERNEL_QUEUED)
        made.flush()
        assert bad.result == -errno.EBADF
        queued = good.state is State.KERNEL_QUEUED
        os.write(writer, b"x")
        made.wait_for(watch, good)
        assert not queued


@pytest.mark.parametrize("few", [1, 3, 4])
def test_lone_request_is_submitted_at_once_and_others_in_batches(file: tuple[Path, bytes], few: int) -> None:
    with empty_pipe() as (reader, writer), loop(16, gather=True) as made, opened(file[0], DIRECT) as fd:
        descriptor = made.descriptor(fd)
        requests = [direct_read(made, descriptor, BLOCK, i * BLOCK) for i in range(2 * few + few - 1)]
        watch = poll(reader)
        made.submit(watch)
        assert (watch.state, made.engine.submit_calls) == (State.KERNEL_IN_FLIGHT, 1)
        assert made.engine.kernel is not None
        made.engine.kernel.few = few
        made.submit(*requests)
        assert made.engine.submit_calls == 1 + 2
        assert {request.state for request in requests[2 * few :]} == ({State.KERNEL_PREPARED} if few > 1 else set())
        made.wait_for(*requests)
        assert made.engine.submit_calls == 1 + 2 + (few > 1)
        os.write(writer, b"x")
        made.wait_for(watch)


@pytest.mark.parametrize(
    ("fixed", "in_flight", "few"),
    [
        (-1, 64, 8),  # not known: another size is tried
        (-1, 8, 4),
        (0, 64, 4),
        (1, 64, 4),
        (2, 64, 8),
        (4, 64, 16),
        (4, 16, 8),  # never more than half of the requests between two turns
        (4, 3, 1),
        (4, 1, 1),
        (100, 64, 32),
    ],
)
def test_batch_size_is_learned_from_what_calls_cost(monkeypatch: pytest.MonkeyPatch, fixed: float, in_flight: int, few: int) -> None:
    with loop(64) as made:
        assert made.engine.has_kernel_lane()
        lane = made.engine.kernel
        assert lane is not None
        assert lane.fixed_cost < 0  # no call yet
        with monkeypatch.context() as patch:
            patch.setattr(type(lane), "fixed_cost", fixed)
            patch.setattr(lane, "_crowd", in_flight)
            lane.learn_few()
        assert lane.few == few


def test_batch_size_is_learned_from_the_calls_and_one_call_takes_as_many(file: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KernelLane, "fixed_cost", 4)  # sixteen together
    with empty_pipe() as (reader, writer), loop(64, gather=True) as made, opened(file[0], DIRECT) as fd:
        descriptor = made.descriptor(fd)
        watches = [poll(reader) for _ in range(32)]  # in flight all the time
        made.submit(watches[0])
        lane = made.engine.kernel
        assert lane is not None
        lane.few = 1
        made.submit(*watches[1:])
        assert made.engine.submit_calls == 32
        made.engine.reap(drain=True)  # the next turn
        lane.learn_few()
        assert lane.few == 16  # half of the requests of the turn before
        before = made.engine.submit_calls
        requests = [direct_read(made, descriptor, BLOCK, i * BLOCK) for i in range(31)]
        made.submit(*requests)
        assert made.engine.submit_calls == before + 1  # sixteen in one
        assert all(request.state is State.KERNEL_PREPARED for request in requests[16:])
        assert not any(request.state is State.KERNEL_PREPARED for request in requests[:16])
        made.wait_for(*requests)
        assert made.engine.submit_calls == before + 2
        os.write(writer, b"x")
        made.wait_for(*watches)


def test_refused_lone_request_completes_at_once_and_wakes_the_loop(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    with opened(file[0], DIRECT) as fd:
        bad = direct_read(engine_loop, closed_like(engine_loop.descriptor(fd)), BLOCK, 0)
        engine_loop.submit(bad)
        assert (bad.result, engine_loop.woken[-1]) == (-errno.EBADF, bad)
        assert engine_loop.engine.in_flight == 0
        engine_loop.turn()  # the eventfd is readable


def test_a_run_goes_on_as_its_completions_are_taken(file: tuple[Path, bytes]) -> None:
    path, data = file
    blocks = len(data) // BLOCK
    with loop(4) as made, opened(path, DIRECT) as fd:
        into = mmap.mmap(-1, len(data))
        descriptor = made.descriptor(fd)
        offsets = array.array("q", [i * BLOCK for i in range(blocks)])
        request = PiecesRead(descriptor, Pieces.blocks(descriptor, offsets, BLOCK, export_buffer(into, writable=True)))
        made.submit(request)
        watch = select.poll()
        watch.register(made.engine.event_fd, select.POLLIN)
        while not request.finished:
            assert watch.poll(60_000), "nothing was submitted"  # nobody calls `flush`
            made.engine.reap(drain=True)
        assert (request.result, made.engine.submitted_workers, into[:]) == (0, 0, data)
        assert made.engine.submit_calls >= blocks // lib.TAIO_TOGETHER


class LargePoll(Poll):
    nbytes = BLOCK


def test_the_bytes_in_the_kernel_lane_are_bounded() -> None:
    with loop(64, gather=True) as made:
        assert made.engine.has_kernel_lane()
        lane = made.engine.kernel
        assert lane is not None
        lane.byte_limit = 3 * BLOCK
        with empty_pipe() as (reader, writer):
            requests = [LargePoll(Descriptor(reader, reader), select.POLLIN) for _ in range(5)]
            made.submit(*requests)
            assert [request.state is State.KERNEL_QUEUED for request in requests] == [False, False, False, True, True]
            os.write(writer, b"x")
            made.wait_for(*requests)


@pytest.mark.slow
@pytest.mark.parametrize("direct", [False, True])
def test_no_wake_up_is_missed_one_request_at_a_time(file: tuple[Path, bytes], direct: bool) -> None:
    with loop(8, 3) as made, opened(file[0], DIRECT if direct else os.O_RDONLY) as fd:
        descriptor = made.descriptor(fd)
        slab = made.engine.buffers.take(BLOCK)
        made.settle()
        for i in range(20_000 if direct else 100_000):
            request = Read(descriptor, slab.address, BLOCK, i % 64 * BLOCK, 0, None)
            made.submit(request)
            while not request.finished:
                made.turn()
            assert request.result == BLOCK


def test_no_wake_up_is_missed_at_any_depth(file: tuple[Path, bytes]) -> None:
    chance = random.Random(1)
    with loop(8, 3) as made, opened(file[0], os.O_RDONLY) as fd:
        descriptor = made.descriptor(fd)
        slab = made.engine.buffers.take(BLOCK)
        for _ in range(3000):
            made.run(*[Read(descriptor, slab.address, 8, 0, 0, None) for _ in range(chance.randrange(1, 20))])


def test_there_are_never_more_workers_than_allowed(file: tuple[Path, bytes]) -> None:
    with loop(64, 3) as made, opened(file[0], os.O_RDONLY) as fd:
        descriptor = made.descriptor(fd)
        made.run(*[read(descriptor, BLOCK, 0) for _ in range(200)])
        assert 1 <= len(made.engine.workers.threads) <= 3


def test_a_vector_is_advanced_over_its_parts() -> None:
    parts = [bytearray(3), bytearray(5), bytearray(0), bytearray(4)]
    for done in range(12):
        vector = export_vector(parts, writable=True)
        request = ReadVector(Descriptor(0), vector, 100, 0)
        request.skip(done)
        assert (request.offset, request.nbytes) == (100 + done, 12 - done)
        assert request.parts == sum(1 for end in itertools.accumulate([3, 5, 0, 4]) if end > done)


# ---- what a device was found to do


def answer(engine: Engine, request: Request, result: int) -> None:
    """Have the kernel lane answer a request without asking the kernel."""
    assert engine.has_kernel_lane()
    assert engine.kernel is not None
    engine.outstanding += 1
    order = request.descriptor.order
    if request.ordered:
        order.enter(request)
    else:
        order.leases += 1
    engine.kernel.occupy(request)
    request.state = State.KERNEL_IN_FLIGHT
    if isinstance(request, (Read, Write)):
        request.probing = True
    engine.complete(request.token, result, 0)


def test_a_request_that_would_have_slept_goes_on_to_a_worker(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    path, data = file
    engine = engine_loop.engine
    with opened(path, DIRECT) as fd:
        descriptor = engine_loop.descriptor(fd)
        for strikes in range(1, SLOW_LIMIT + 1):
            request = direct_read(engine_loop, descriptor, BLOCK, 0)
            answer(engine, request, -errno.EAGAIN)
            assert request.state is State.WORKER_IN_FLIGHT
            assert engine.retried == strikes
            engine_loop.wait_for(request)
            assert request.owned.read(BLOCK) == data[:BLOCK]
        for tried in attempts("a read that the device did not answer with EAGAIN"):
            for _ in range(BACKOFF):
                engine_loop.run(direct_read(engine_loop, descriptor, BLOCK, 0))
            assert engine.submitted_kernel == tried
            engine_loop.run(direct_read(engine_loop, descriptor, BLOCK, 0))
            assert engine.submitted_kernel == tried + 1
            if engine.retried == SLOW_LIMIT + tried:
                break
        assert descriptor.read_device is not None
        assert descriptor.read_device.slow == 0  # it was asynchronous: all is forgiven


def test_a_request_that_was_interrupted_is_made_again_by_a_worker(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    path, data = file
    with opened(path, DIRECT) as fd:
        descriptor = engine_loop.descriptor(fd)
        request = direct_read(engine_loop, descriptor, BLOCK, 0)
        sync = Sync(descriptor, data_only=False)
        for interrupted in (request, sync):
            answer(engine_loop.engine, interrupted, -errno.EINTR)
        engine_loop.wait_for(request, sync)
        assert (request.result, sync.result) == (BLOCK, 0)
        assert request.owned.read(BLOCK) == data[:BLOCK]
        assert engine_loop.engine.retried == 0  # it says nothing of the device


def test_a_write_of_nothing_is_an_error_and_a_short_one_is_finished_by_a_worker(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    path, data = file
    with opened(path, DIRECT) as fd:
        descriptor = engine_loop.descriptor(fd)
        nothing = direct_write(engine_loop, descriptor, data[:BLOCK], 0)
        answer(engine_loop.engine, nothing, 0)
        assert (nothing.state, nothing.result) == (State.COMPLETED, -errno.EIO)
        short = direct_write(engine_loop, descriptor, data[: 4 * BLOCK], 8 * BLOCK)
        answer(engine_loop.engine, short, BLOCK)  # says that it wrote a block, and did not
        engine_loop.wait_for(short)
        assert short.result == 4 * BLOCK
    assert path.read_bytes() == data[: 9 * BLOCK] + data[BLOCK : 4 * BLOCK] + data[12 * BLOCK :]


def test_a_direct_file_without_nowait_is_tried_without_it_and_found_synchronous(
    engine_loop: Loop, on_filesystem: Callable[[str], Path]
) -> None:
    path, data = make_file(on_filesystem("tmpfs"))
    with opened(path, DIRECT) as fd:
        descriptor = engine_loop.descriptor(fd)
        route = descriptor.read_device
        assert route is not None
        for kernel, workers in ((1, 1), (2, 1), (2, 2)):  # NOWAIT refused; synchronous; a detour
            request = direct_read(engine_loop, descriptor, BLOCK, 0)
            assert engine_loop.run(request) == [BLOCK]
            assert request.owned.read(BLOCK) == data[:BLOCK]
            assert (engine_loop.engine.submitted_kernel, engine_loop.engine.submitted_workers) == (kernel, workers)
        assert not route.nowait
        assert route.left == BACKOFF - 1


def test_a_request_that_was_refused_says_nothing_of_the_device(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    with opened(file[0], DIRECT) as fd:
        descriptor = engine_loop.descriptor(fd)
        route = descriptor.read_device
        assert route is not None
        route.nowait = False  # from here on one strike is enough
        assert engine_loop.run(direct_read(engine_loop, closed_like(descriptor), BLOCK, 0)) == [-errno.EBADF]
        assert (route.slow, route.left) == (0, 0)


def test_what_would_have_slept_is_not_tried_again_for_nobody(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    with opened(file[0], DIRECT) as fd:
        engine, request = engine_loop.engine, direct_read(engine_loop, engine_loop.descriptor(fd), BLOCK, 0)

        class Late(type(request)):  # type: ignore[misc]
            __slots__ = ()

            def complete_kernel(self, engine: Engine, token: int, result: int) -> None:
                self.cancel_requested = True  # io_cancel refuses, as for all disk I/O
                super().complete_kernel(engine, token, -errno.EAGAIN)

        request.__class__ = Late
        before = engine.submitted_workers
        engine_loop.run(request)
        assert request.took_no_effect
        assert (engine.submitted_workers, engine.retried, engine.cancelled) == (before, 0, 1)


# ---- order


def test_a_sync_waits_for_the_writes_before_it_and_not_for_later_ones(file: tuple[Path, bytes]) -> None:
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


def test_a_sync_that_starts_may_find_the_write_that_the_next_one_waits_for_done(file: tuple[Path, bytes]) -> None:
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


def test_a_close_waits_for_all_requests_of_its_descriptor(file: tuple[Path, bytes]) -> None:
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


def test_a_borrowed_descriptor_is_not_closed(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    with opened(file[0], os.O_RDONLY) as fd:
        descriptor = engine_loop.descriptor(fd)
        descriptor.borrowed = True
        assert engine_loop.run(Close(descriptor)) == [0]
        os.fstat(fd)


def test_a_dropped_descriptor_is_closed_by_a_worker_whoever_drops_it(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    descriptor = engine_loop.descriptor(os.open(file[0], os.O_RDONLY))
    thread = threading.Thread(target=engine_loop.engine.drops.add, args=(descriptor, Close(descriptor)))
    thread.start()
    thread.join()
    engine_loop.turn()
    engine_loop.settle()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor.fd)


def test_a_descriptor_dropped_after_the_end_is_closed_at_once(file: tuple[Path, bytes]) -> None:
    with loop() as made:
        descriptor = made.descriptor(os.open(file[0], os.O_RDONLY))
    made.engine.drops.add(descriptor, Close(descriptor))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor.fd)


# ---- cancel


def cancelled(engine: Engine, request: Request) -> bool:
    assert engine.cancel(request)
    return request.state is State.WITHDRAWN and engine.cancelled == 1


def test_cancel_of_a_request_in_a_workers_queue_or_before_it(file: tuple[Path, bytes]) -> None:
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
            while made.engine.in_flight:  # the slot comes back with the completion
                made.turn()
        assert path.read_bytes() == data


def test_cancel_of_a_held_sync(file: tuple[Path, bytes]) -> None:
    with loop(8, 1) as made, opened(file[0], os.O_RDWR) as fd, full_pipe() as pipe:
        descriptor = made.descriptor(fd)
        made.submit(pipe.request())
        first, sync = write(descriptor, b"1", 0), Sync(descriptor, data_only=False)
        made.submit(first, sync)
        assert cancelled(made.engine, sync)
        pipe.release()
        made.settle()


def test_cancel_of_a_request_that_waits_for_a_slot_or_for_the_end_of_the_tick(file: tuple[Path, bytes]) -> None:
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


def test_cancel_of_a_poll_is_accepted_and_its_completion_gives_the_slot_back(engine_loop: Loop) -> None:
    with empty_pipe() as (reader, _):
        request = poll(reader)
        engine_loop.submit(request)
        assert not engine_loop.engine.cancel(request)
        assert request.cancel_accepted
        assert not engine_loop.engine.cancel(request)  # once more: too late, and no harm
        engine_loop.wait_for(request)
        assert request.took_no_effect
        assert engine_loop.engine.in_flight == 0
        assert engine_loop.engine.cancelled == 1


def test_cancel_of_a_disk_read_is_refused_and_its_result_kept(file: tuple[Path, bytes]) -> None:
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


def test_an_abandoned_request_keeps_its_memory_until_it_is_over(file: tuple[Path, bytes]) -> None:
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


def test_an_engine_can_be_drained_by_a_thread(file: tuple[Path, bytes]) -> None:
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


def test_draining_a_long_queue_does_not_recurse(on_filesystem: Callable[[str], Path]) -> None:
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


def test_closing_ends_polls_with_an_error_wherever_they_are() -> None:
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


def test_a_poll_that_its_task_cancelled_stays_so_when_the_context_closes(engine_loop: Loop) -> None:
    with empty_pipe() as (reader, _):
        request = poll(reader)
        engine_loop.submit(request)
        assert not engine_loop.engine.cancel(request)
        cancel_polls(engine_loop.engine)
        engine_loop.wait_for(request)
        assert request.took_no_effect


# ---- without native AIO, and its contexts


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM, errno.EAGAIN, errno.EINVAL, errno.ENOMEM])
def test_without_native_aio_the_workers_do_everything(monkeypatch: pytest.MonkeyPatch, file: tuple[Path, bytes], code: int) -> None:
    def refuse(_: int) -> None:
        raise setup_error(code)

    monkeypatch.setattr(_kernel_context, "acquire", refuse)
    with loop() as made, opened(file[0], DIRECT) as fd:
        descriptor = made.descriptor(fd)
        assert made.run(direct_read(made, descriptor, BLOCK, 0)) == [BLOCK]
        assert made.engine.submitted_kernel == 0
        assert made.engine.setup_error is not None
        assert made.engine.setup_error.errno == code
    with pytest.raises(OSError, match=r"io_setup|aio") as caught:
        Engine(8, 1, use_kernel=True, insist=True, wake=print, plug=print)
    assert caught.value.errno == code


def test_writes_that_are_cancelled_together_do_not_start_in_each_others_place(file: tuple[Path, bytes]) -> None:
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


@contextmanager
def writes_done(path: Path, count: int) -> Iterator[tuple[Loop, list[Request]]]:
    """Give writes that are done, and whose completions nobody has taken yet."""
    with loop(64, 1) as made, opened(path, os.O_RDWR) as fd, full_pipe() as pipe:
        descriptor = made.descriptor(fd)
        writes = [write(descriptor, b"x", i) for i in range(count)]
        made.submit(*writes)
        made.submit(pipe.request())
        while not pipe.begun:  # by the only worker
            os.sched_yield()
        try:
            yield made, writes
        finally:
            pipe.release()
            made.settle()


def test_a_completion_that_fails_takes_no_other_with_it(file: tuple[Path, bytes]) -> None:
    with writes_done(file[0], 4) as (made, writes):
        wake, failures = made.engine.wake, iter([MemoryError(), ValueError()])

        def fail_twice(request: Any) -> None:
            wake(request)
            for error in failures:
                raise error

        made.engine.wake = fail_twice
        for expected in (MemoryError, ValueError):
            with pytest.raises(expected):
                made.turn()
        made.turn()
        assert [request.state for request in writes] == [State.COMPLETED] * 4
        assert made.woken == writes


def test_what_else_fails_in_a_turn_takes_no_completion_with_it(file: tuple[Path, bytes]) -> None:
    with writes_done(file[0], 4) as (made, writes):

        def no_memory() -> Iterator[Request]:
            raise MemoryError
            yield

        batches = [RequestGroup(made.engine, no_memory(), 1) for _ in range(2)]
        for batch in batches:
            made.engine.completions.rest(batch)
        for _ in batches:
            with pytest.raises(MemoryError):
                made.turn()
        made.turn()
        assert made.woken == writes


def test_turn_of_the_reaper_is_bounded_in_time(file: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    count, looks = 53, completions.LOOKS
    clock = iter(i * 0.75 * completions.TURN for i in itertools.count())  # each look is three quarters of a turn after the last
    monkeypatch.setattr(completions, "perf_counter", clock.__next__)
    with writes_done(file[0], count) as (made, writes):
        for done in (3 * looks, 6 * looks, count):  # the first look starts the clock, the third comes too late
            made.turn()
            for _ in range(2):
                made.engine.reap(drain=False)  # as `flush` does within a turn
            assert made.woken == writes[:done]


def test_a_drained_kernel_context_serves_the_next_engine() -> None:
    used = set()
    for _ in range(5):
        with loop() as made:
            assert made.engine.has_kernel_lane()
            assert made.engine.kernel is not None
            used.add(made.engine.kernel.context.id)
    assert len(used) == 1


def test_a_larger_kernel_context_replaces_the_spare() -> None:
    spare = _kernel_context._spare  # of a test before: perhaps a large one
    room = 1000 + (0 if spare is None else spare.nr_events)
    small, large = _kernel_context.acquire(4), _kernel_context.acquire(room)
    _kernel_context.release(small)
    _kernel_context.release(large)
    acquired = _kernel_context.acquire(room - 500)
    _kernel_context.release(acquired)
    assert acquired is large


def test_a_smaller_spare_is_not_used_and_the_spare_is_not_the_childs() -> None:
    program = """
    import os
    from trio_aio._lanes import kernel_context as contexts
    spare = contexts.acquire(4)
    contexts.release(spare)
    pid = os.fork()
    if not pid:
        os._exit(contexts._spare is not None)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert contexts.acquire(4) is spare
    contexts.release(spare)
    larger = contexts.acquire(1000)
    assert larger is not spare and larger.nr_events == 1000
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
