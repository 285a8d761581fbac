"""MemoryError before any line of submit, flush and reap: each request ends, and all that it had is given back."""

from __future__ import annotations

import array
import os
import select
from typing import TYPE_CHECKING, Any

import pytest

from trio_aio._engine.descriptor import Descriptor
from trio_aio._lanes.protocols import State
from trio_aio._memory.exports import export_buffer
from trio_aio._requests.direct import BufferedWrite, SlabWrite, WidenedRead
from trio_aio._requests.names import ReadLink, RealPath, StatName
from trio_aio._requests.opening import AT_FDCWD, Close
from trio_aio._requests.overwrites import Overwrite
from trio_aio._requests.pieces import Pieces, PiecesRead
from trio_aio._requests.sync import Sync

from ..support.engine_loop import Loop, loop
from ..support.files import BLOCK, make_file, next_moment, opened
from ..support.pipes import empty_pipe
from ..support.requests import DIRECT, direct_read, poll, read
from ..support.torn import error_before_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trio_aio._requests.base import Request

    Make = Callable[[Descriptor], list[Request]]


def short_reads(descriptor: Descriptor) -> list[Request]:
    return [WidenedRead(descriptor, BLOCK, BLOCK * i, 0) for i in range(6)]


def short_reads_that_set_the_time(descriptor: Descriptor) -> list[Request]:
    os.utime(descriptor.fd, ns=(10**18, 10**18))
    next_moment()
    return short_reads(descriptor)


def pieces(descriptor: Descriptor) -> list[Request]:
    into = export_buffer(bytearray(300), writable=True)
    return [PiecesRead(descriptor, Pieces.blocks(descriptor, array.array("q", [7, BLOCK, 3 * BLOCK]), 100, into)) for _ in range(2)]


def writes(descriptor: Descriptor) -> list[Request]:
    new = export_buffer(bytes(BLOCK), writable=False)
    return [
        SlabWrite(descriptor, [new], BLOCK, 0, 0),
        BufferedWrite(descriptor, new.address, 10, 5, 0, new),
        *(Sync(descriptor, data_only=True), Sync(descriptor, data_only=False)),
        SlabWrite(descriptor, [new], BLOCK, BLOCK, 0),
        Sync(descriptor, data_only=True),
    ]


def overwrites(descriptor: Descriptor) -> list[Request]:
    return [Overwrite(descriptor, bytes(BLOCK) if i % 2 else bytearray(BLOCK), BLOCK, BLOCK * i) for i in range(6)]


def ordered_overwrites(descriptor: Descriptor) -> list[Request]:
    new = export_buffer(bytes(BLOCK), writable=False)
    return [
        *(Overwrite(descriptor, bytearray(BLOCK), BLOCK, BLOCK * i) for i in range(2)),
        *(Sync(descriptor, data_only=True), BufferedWrite(descriptor, new.address, 10, 5, 0, new)),
        *(Overwrite(descriptor, bytes(BLOCK), BLOCK, BLOCK * i) for i in range(2)),
        Sync(descriptor, data_only=True),
    ]


def syncs(descriptor: Descriptor) -> list[Request]:
    new = export_buffer(bytes(BLOCK), writable=False)
    return [BufferedWrite(descriptor, new.address, 10, 5, 0, new), *(Sync(descriptor, data_only=True) for _ in range(4))]


def names(descriptor: Descriptor) -> list[Request]:
    there = os.fsencode(f"/proc/self/fd/{descriptor.fd}")
    return [
        StatName(Descriptor(AT_FDCWD, "there"), there),
        *(RealPath(Descriptor(AT_FDCWD, "there"), there, strict=False), ReadLink(Descriptor(AT_FDCWD, "there"), there)),
    ]


def worker_reads(descriptor: Descriptor) -> list[Request]:
    requests = [read(descriptor, 100, 100 * i) for i in range(5)]
    for request in requests:
        request.may_chain = True  # they are gathered
        request.worker_path = BLOCK
    return [*requests]


def use(made: Loop, requests: list[Request], start: Callable[[Request], None]) -> int:
    """Submit requests and wait for their end, whatever is raised. Return how many errors were raised."""
    errors, waiting, readable = 0, [*requests], select.poll()
    readable.register(made.engine.event_fd, select.POLLIN)
    while waiting or made.engine.outstanding:
        try:
            if waiting:
                waiting[0].waiter = made
                start(waiting.pop(0))
            else:
                made.flush()
                # In words, because the requests end before pytest shows them: the loop is closed first.
                assert readable.poll(10_000), f"nothing came: {requests}, {made.engine.outstanding} outstanding, {made._wants_flush=}"
                made.engine.reap(drain=True)
        except MemoryError:
            errors += 1
            made._wants_flush = True  # as backends do: a flush that has failed is repeated
    return errors


def free_slabs(made: Loop) -> list[int]:
    pool = made.engine.buffers
    return sorted(slab.address for slabs in pool._free.values() for slab in slabs)


def check_books(made: Loop, descriptor: Descriptor, slabs: list[int], where: str | None) -> None:
    """Assert that the engine has nothing left of its requests."""
    engine, order = made.engine, descriptor.order
    assert (engine.outstanding, engine.occupied, engine.queued, order.leases) == (0, 0, 0, 0), where
    assert (order.writes, order.syncs, engine.ready) == (set(), set(), []), where
    for lane in (engine.kernel, engine.workers):
        if lane is None:
            continue
        assert lane.bytes_in_flight == 0, where
        assert sorted(lane.free) == list(range(lane.slots)), where
    assert free_slabs(made) == slabs, where


def woken_once(made: Loop) -> None:
    """Let the engine wake as a backend does: a request that was woken has no waiter."""

    def wake(request: Any) -> None:
        request.waiter = None

    made.engine.wake = wake


def sweep(made: Loop, descriptor: Descriptor, make: Make, start: Callable[[Request], None], stride: int) -> int:
    """Tear the steps of requests at many lines. Return at how many."""
    use(made, make(descriptor), start)
    slabs, number, torn = free_slabs(made), 1, 0
    while True:
        requests = make(descriptor)
        try:
            with error_before_line(number) as fault:
                errors = use(made, requests, start)
        except AssertionError as error:
            raise AssertionError(f"after an error at {fault.where}: {error}") from None
        if fault.where is None:
            return torn
        assert errors <= 1, fault.where
        assert all(request.finished or not request.outstanding for request in requests), fault.where
        raised = [request.error() for request in requests if request.result < 0]
        assert all(type(error) is MemoryError for error in raised), (fault.where, raised)
        check_books(made, descriptor, slabs, fault.where)
        use(made, again := make(descriptor), start)
        assert [request.result for request in again if request.result < 0] == [], fault.where
        check_books(made, descriptor, slabs, fault.where)
        torn += 1
        number += stride


def run_sweep(disk: Path, make: Make, short: bool, stride: int) -> int:
    path, _ = make_file(disk)
    with loop(4, 2, gather=True) as made:
        woken_once(made)
        descriptor = made.descriptor(os.open(path, DIRECT))

        def start(request: Any) -> None:
            if short and hasattr(request, "start_short"):
                request.start_short(made.engine)
            else:
                made.engine.submit(request)

        torn = sweep(made, descriptor, make, start, stride)
        use(made, [Close(descriptor)], made.engine.submit)
    return torn


KINDS = pytest.mark.parametrize(
    ("make", "short"),
    [
        (short_reads_that_set_the_time, True),
        *((short_reads, True), (pieces, False), (writes, False), (worker_reads, False), (syncs, False), (names, False)),
        *((overwrites, True), pytest.param(short_reads, False, marks=pytest.mark.slow)),
        pytest.param(ordered_overwrites, True, marks=pytest.mark.slow),
    ],
)


@KINDS
def test_memory_error_before_any_line_of_a_step_loses_nothing(disk: Path, make: Make, short: bool) -> None:
    assert run_sweep(disk, make, short, 7) > 10


def test_memory_error_before_any_line_of_a_close_closes_all_the_same(disk: Path) -> None:
    path, _ = make_file(disk)
    number = 1
    while True:
        with loop(4, 2, gather=True) as made:
            woken_once(made)
            fd = os.open(path, os.O_RDWR)
            descriptor = made.descriptor(fd)
            close = Close(descriptor)
            with error_before_line(number) as fault:
                use(made, [close], made.engine.submit)
            if fault.where is None:
                return
            if not descriptor.order.closing:  # it was not submitted
                use(made, [Close(descriptor)], made.engine.submit)
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)
        number += 1


def test_memory_error_before_any_line_of_leaving_a_shared_sync_loses_nothing(disk: Path) -> None:
    path, _ = make_file(disk)
    number = 1
    with loop(4, 2, gather=True) as made, opened(path, os.O_RDWR) as fd:
        woken_once(made)
        descriptor = made.descriptor(fd)
        slabs = free_slabs(made)
        while True:
            _, *sharing = requests = syncs(descriptor)
            for request in requests:
                request.waiter = made
                made.engine.submit(request)
            with error_before_line(number) as fault:
                for request in sharing:
                    try:
                        assert made.engine.cancel(request)
                    except MemoryError:
                        request.waiter = None  # as backends do: its task leaves
                use(made, [], made.engine.submit)
            if fault.where is None:
                break
            assert all(request.finished for request in requests), fault.where
            check_books(made, descriptor, slabs, fault.where)
            number += 1
    assert number > 10


def test_requests_that_complete_before_a_torn_flush_is_repeated_stay_complete(
    file: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise MemoryError

    with loop(gather=True) as made, opened(file[0], DIRECT) as fd, empty_pipe() as (reader, writer):
        descriptor = made.descriptor(fd)
        requests: list[Request] = [direct_read(made, descriptor, BLOCK, BLOCK * i) for i in range(3)]
        made.submit(poll(reader))  # so that the lane is not empty, and the reads wait for the end of the tick
        lane: Any = made.engine.kernel
        lane.few = 100
        made.submit(*requests)
        with monkeypatch.context() as patch:
            patch.setattr(lane, "_since_learned", 1 << 30)
            patch.setattr(lane, "learn_few", fail)  # which is called behind io_submit
            with pytest.raises(MemoryError):
                made.engine.flush()
        os.write(writer, b"x")
        readable = select.poll()
        readable.register(made.engine.event_fd, select.POLLIN)
        while made.engine.outstanding:
            assert readable.poll(60_000)
            made.engine.reap(drain=True)
        made.flush()
        assert [request.state for request in requests] == [State.COMPLETED] * 3
        assert (lane.prepared, made.engine.occupied) == ([], 0)
