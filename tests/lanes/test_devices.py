"""What each device was found to do, and which lane the next request takes."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from trio_aio._lanes import inline as _inline_lane
from trio_aio._lanes.devices import BACKOFF, SLOW_LIMIT, DeviceRecord, DeviceRecords
from trio_aio._requests.base import Request, State
from trio_aio._requests.sync import Sync
from trio_aio._requests.transfer import Read, Write

from ..support.engine_loop import Loop, loop
from ..support.files import BLOCK, make_file, opened
from ..support.page_cache import attempts, evict, pinned
from ..support.pipes import full_pipe
from ..support.requests import DIRECT, closed_like, direct_read, direct_write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trio_aio._engine.engine import Engine


def answer(engine: Engine, request: Request, result: int) -> None:
    """Have the kernel lane answer a request without asking the kernel."""
    assert engine.has_kernel_lane()
    assert engine.kernel is not None
    engine.outstanding, request.outstanding = engine.outstanding + 1, True
    order = request.descriptor.order
    if request.ordered:
        order.gather = None  # a sync starts at once, and not at the end of the tick
        order.enter(request)
    else:
        order.leases += 1
    engine.kernel.occupy(request)
    request.state = State.KERNEL_IN_FLIGHT
    if isinstance(request, (Read, Write)):
        request.probing = True
    engine.complete(request.token, result, 0)


def test_request_that_would_sleep_continues_on_a_worker(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
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
            assert request.slab.copy_out(BLOCK) == data[:BLOCK]
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


def test_interrupted_request_is_repeated_by_a_worker(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    path, data = file
    with opened(path, DIRECT) as fd:
        descriptor = engine_loop.descriptor(fd)
        request = direct_read(engine_loop, descriptor, BLOCK, 0)
        sync = Sync(descriptor, data_only=False)
        for interrupted in (request, sync):
            answer(engine_loop.engine, interrupted, -errno.EINTR)
        engine_loop.wait_for(request, sync)
        assert (request.result, sync.result) == (BLOCK, 0)
        assert request.slab.copy_out(BLOCK) == data[:BLOCK]
        assert engine_loop.engine.retried == 0  # it says nothing of the device


def test_write_of_0_bytes_fails_and_a_short_write_is_finished_by_a_worker(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
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


def test_direct_file_without_nowait_is_tried_without_it_and_found_synchronous(
    engine_loop: Loop, on_filesystem: Callable[[str], Path]
) -> None:
    path, data = make_file(on_filesystem("tmpfs"))
    with opened(path, DIRECT) as fd:
        descriptor = engine_loop.descriptor(fd)
        route = descriptor.read_device
        assert route is not None
        for _ in attempts("a device that performs each request in io_submit"):
            request = direct_read(engine_loop, descriptor, BLOCK, 0)
            assert engine_loop.run(request) == [BLOCK]
            assert request.slab.copy_out(BLOCK) == data[:BLOCK]
            assert engine_loop.engine.submitted_workers == 1  # RWF_NOWAIT was refused, once
            if route.skips_left:
                break
        assert not route.nowait
        assert engine_loop.engine.submitted_kernel > SLOW_LIMIT
        assert engine_loop.run(direct_read(engine_loop, descriptor, BLOCK, 0)) == [BLOCK]
        assert engine_loop.engine.submitted_workers == 2
        assert route.skips_left == BACKOFF - 1


def test_refused_request_leaves_the_device_record(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    with opened(file[0], DIRECT) as fd:
        descriptor = engine_loop.descriptor(fd)
        route = descriptor.read_device
        assert route is not None
        route.nowait = False  # from here on one strike is enough
        assert engine_loop.run(direct_read(engine_loop, closed_like(descriptor), BLOCK, 0)) == [-errno.EBADF]
        assert (route.slow, route.skips_left) == (0, 0)


def test_abandoned_request_that_would_sleep_is_not_repeated(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
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


def test_device_backs_off_after_slow_requests_and_is_tried_again() -> None:
    route = DeviceRecord()
    for _ in range(SLOW_LIMIT - 1):
        route.note_slow()
    route.note_fast()
    for _ in range(SLOW_LIMIT):
        assert route.should_try()
        route.note_slow()
    assert [route.should_try() for _ in range(BACKOFF + 1)] == [False] * BACKOFF + [True]
    route.note_slow()  # the one that tried again decides
    assert not route.should_try()


def test_device_records_differ_by_device_kind_and_direction() -> None:
    routes = DeviceRecords()
    kinds = [(device, direct, writing) for device in (1, 2) for direct in (False, True) for writing in (False, True)]
    found = {id(routes.find(device, direct=direct, writing=writing)) for device, direct, writing in kinds}
    assert len(found) == 8
    assert routes.find(1, direct=True, writing=False) is routes.find(1, direct=True, writing=False)


def test_repeated_cache_misses_send_requests_straight_to_the_workers(disk: Path) -> None:
    path, data = make_file(disk, (_inline_lane.MISSES + 2 * _inline_lane.BACKOFF) * BLOCK)
    for _ in attempts("as many misses in a row as it takes"):
        with path.open("rb", buffering=0) as file, full_pipe() as pipe, loop(4, 1) as lp:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # a miss reads its own page alone
            descriptor = lp.descriptor(file.fileno())
            inline = lp.engine.inline
            evict(path)
            found = [inline.read(descriptor, BLOCK, 2 * i * BLOCK) for i in range(_inline_lane.MISSES)]
            if any(found):  # a page had come back
                continue
            assert inline.misses == _inline_lane.MISSES
            with pinned(path, 0, BLOCK):
                assert inline.read(descriptor, BLOCK, 0) == data[:BLOCK]  # with no worker busy, trying costs nothing
                lp.submit(pipe.request())
                for _ in range(_inline_lane.BACKOFF):
                    assert inline.read(descriptor, BLOCK, 0) is None
                assert inline.misses == _inline_lane.MISSES  # they were not asked
                assert inline.read(descriptor, BLOCK, 0) == data[:BLOCK]
            pipe.release()
            lp.settle()
            break


def test_one_request_tries_a_slow_device_until_its_submitter_reports() -> None:
    device = DeviceRecord()
    device.back_off()
    for _ in range(3):
        assert [device.should_try() for _ in range(BACKOFF)] == [False] * (BACKOFF - 1) + [True]
        assert device.skips_left
    device.return_to()
    assert not device.skips_left
