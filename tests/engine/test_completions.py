"""How completions are taken, and how requests are submitted in batches."""

from __future__ import annotations

import array
import errno
import itertools
import mmap
import os
import random
import select
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from trio_aio._context.group import RequestGroup
from trio_aio._engine import completions
from trio_aio._engine.descriptor import Descriptor
from trio_aio._lanes.devices import DeviceRecord
from trio_aio._lanes.kernel import KernelLane
from trio_aio._memory.exports import export_buffer
from trio_aio._native import lib
from trio_aio._requests.base import Request, State
from trio_aio._requests.pieces import Pieces, PiecesRead
from trio_aio._requests.poll import Poll
from trio_aio._requests.transfer import Read

from ..support.engine_loop import Loop, loop
from ..support.files import BLOCK, opened
from ..support.page_cache import attempts
from ..support.pipes import empty_pipe, full_pipe
from ..support.requests import DIRECT, closed_like, direct_read, poll, read, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


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
            assert request.slab.copy_out(BLOCK) == data[i * BLOCK :][:BLOCK]


def test_stale_token_is_rejected(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
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
def test_requests_beyond_the_slots_complete_in_order(
    file: tuple[Path, bytes], slots: int, count: Callable[[int], int], direct: bool
) -> None:
    path, _ = file
    with loop(slots, 1, gather=True) as made, opened(path, DIRECT if direct else os.O_RDONLY) as fd:
        descriptor = made.descriptor(fd)
        make = (lambda i: direct_read(made, descriptor, BLOCK, i)) if direct else (lambda i: read(descriptor, BLOCK, i))
        requests = [make(i % 64 * BLOCK) for i in range(count(slots))]
        for i, request in enumerate(requests):
            made.submit(request)
            assert made.engine.occupied <= slots
            if not direct:  # a direct read may be complete already
                assert request.state is (State.WORKER_IN_FLIGHT if i < slots else State.WORKER_QUEUED)
        made.wait_for(*requests)
        assert [request.result for request in requests] == [BLOCK] * len(requests)
        if not direct:  # one worker: in order
            assert made.woken == requests
        assert (made.engine.occupied, made.engine.queued) == (0, 0)


def test_refused_request_in_a_batch_fails_alone(file: tuple[Path, bytes]) -> None:
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


def test_refused_request_frees_its_slot_for_the_next(file: tuple[Path, bytes]) -> None:
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
def test_lone_request_is_submitted_at_once_and_many_in_batches(file: tuple[Path, bytes], few: int) -> None:
    for _ in attempts("an io_submit that did not sleep"):
        with empty_pipe() as (reader, writer), loop(16, gather=True) as made, opened(file[0], DIRECT) as fd:
            descriptor = made.descriptor(fd)
            requests = [direct_read(made, descriptor, BLOCK, i * BLOCK) for i in range(2 * few + few - 1)]
            watch = poll(reader)
            made.submit(watch)
            assert (watch.state, made.engine.submit_calls) == (State.KERNEL_IN_FLIGHT, 1)
            assert made.engine.kernel is not None
            made.engine.kernel.few = few
            made.submit(*requests)
            calls, states = made.engine.submit_calls, {request.state for request in requests[2 * few :]}
            slept = any(request.state is State.KERNEL_HANDED_OVER for request in requests)  # the submitter takes what follows
            made.wait_for(*requests)
            calls_in_all = made.engine.submit_calls
            os.write(writer, b"x")
            made.wait_for(watch)
        if not slept:
            assert calls == 1 + 2
            assert states == ({State.KERNEL_PREPARED} if few > 1 else set())
            assert calls_in_all == 1 + 2 + (few > 1)
            return


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
def test_batch_size_follows_the_cost_of_calls(monkeypatch: pytest.MonkeyPatch, fixed: float, in_flight: int, few: int) -> None:
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


def test_batch_size_is_learned_and_limits_each_call(file: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KernelLane, "fixed_cost", 4)  # sixteen together
    for _ in attempts("a batch for which io_submit did not sleep"):
        if batches_are_limited(file[0]):
            break


def batches_are_limited(path: Path) -> bool:
    """Check that 31 reads are submitted by two calls. Return False if the first call slept: a submitter has then the other reads."""
    with (
        empty_pipe() as (reader, writer),
        loop(64, gather=True) as made,
        opened(path, DIRECT) as fd,
        ExitStack() as watched,
    ):
        descriptor = made.descriptor(fd)
        watched.callback(os.write, writer, b"x")  # in any case, because the loop waits for all requests at its end
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
        assert not any(request.state is State.KERNEL_PREPARED for request in requests[:16])
        slept = any(request.state is State.KERNEL_HANDED_OVER for request in requests[16:])
        assert slept or all(request.state is State.KERNEL_PREPARED for request in requests[16:])
        made.wait_for(*requests)
        assert slept or made.engine.submit_calls == before + 2
        watched.close()
        made.wait_for(*watches)
    return not slept


def test_refused_lone_request_completes_at_once_and_wakes_the_loop(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    with opened(file[0], DIRECT) as fd:
        bad = direct_read(engine_loop, closed_like(engine_loop.descriptor(fd)), BLOCK, 0)
        engine_loop.submit(bad)
        assert (bad.result, engine_loop.woken[-1]) == (-errno.EBADF, bad)
        assert engine_loop.engine.occupied == 0
        engine_loop.turn()  # the eventfd is readable


def test_pieces_continue_as_completions_are_taken(file: tuple[Path, bytes]) -> None:
    path, data = file
    blocks = len(data) // BLOCK
    offsets = array.array("q", [i * BLOCK for i in range(blocks)])
    for _ in attempts("a read for which io_submit did not sleep"):
        with loop(4) as made, opened(path, DIRECT) as fd:
            into = mmap.mmap(-1, len(data))
            descriptor = made.descriptor(fd)
            request = PiecesRead(descriptor, Pieces.blocks(descriptor, offsets, BLOCK, export_buffer(into, writable=True)))
            made.submit(request)
            watch = select.poll()
            watch.register(made.engine.event_fd, select.POLLIN)
            while not request.finished:
                assert watch.poll(60_000), "nothing was submitted"  # no other code calls `flush`
                made.engine.reap(drain=True)
            assert (request.result, into[:]) == (0, data)
            if made.engine.submitted_workers:  # a worker makes what is left when io_submit has slept
                continue
            assert made.engine.submit_calls >= blocks // lib.TAIO_TOGETHER
            break


class LargePoll(Poll):
    nbytes = BLOCK


def test_kernel_lane_limits_bytes_in_flight() -> None:
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


def test_requests_of_any_depth_miss_no_wake_up(file: tuple[Path, bytes]) -> None:
    chance = random.Random(1)
    with loop(8, 3) as made, opened(file[0], os.O_RDONLY) as fd:
        descriptor = made.descriptor(fd)
        slab = made.engine.buffers.take(BLOCK)
        for _ in range(3000):
            made.run(*[Read(descriptor, slab.address, 8, 0, 0, None) for _ in range(chance.randrange(1, 20))])


def test_worker_threads_stay_within_the_limit(file: tuple[Path, bytes]) -> None:
    with loop(64, 3) as made, opened(file[0], os.O_RDONLY) as fd:
        descriptor = made.descriptor(fd)
        made.run(*[read(descriptor, BLOCK, 0) for _ in range(200)])
        assert 1 <= len(made.engine.workers.threads) <= 3


# ---- errors of ours


@contextmanager
def writes_done(path: Path, count: int) -> Iterator[tuple[Loop, list[Request]]]:
    """Yield writes that are done, and whose completions were not taken yet."""
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


def test_error_in_one_completion_loses_no_other(file: tuple[Path, bytes]) -> None:
    with writes_done(file[0], 4) as (made, writes):
        wake, failures = made.engine.wake, iter([MemoryError(), ValueError()])

        def fail_twice(request: Any) -> None:
            wake(request)
            request.waiter = None  # as each backend does: a task is woken once
            for error in failures:
                raise error

        made.engine.wake = fail_twice
        for expected in (MemoryError, ValueError):
            with pytest.raises(expected):
                made.turn()
        made.turn()
        assert [request.state for request in writes] == [State.COMPLETED] * 4
        assert made.woken == writes


def test_error_elsewhere_in_a_tick_loses_no_completion(file: tuple[Path, bytes]) -> None:
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


@pytest.mark.parametrize(("seconds", "served"), [(1.0, completions.FEWEST), (1e-3, 32), (0.0, 36)], ids=["slow", "as known", "fast"])
def test_reaper_tick_is_bounded_by_what_the_loop_needs_for_it(
    file: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch, seconds: float, served: int
) -> None:
    clock = itertools.count(step=seconds / 2)  # from turn to turn
    monkeypatch.setattr(completions, "perf_counter", clock.__next__)
    with writes_done(file[0], 53) as (made, writes):
        made.engine.completions._cost, made.engine.completions._room = 1e-3 / 32, 16  # as for 16 in half a millisecond
        for done in (16, 16 + served):
            made.turn()
            for _ in range(2):
                made.engine.reap(drain=False)  # as `flush` does within a turn
            assert made.woken == writes[:done]
        while len(made.woken) < 53:
            made.turn()


def test_flush_of_a_late_tick_does_not_ask_for_itself_while_the_kernel_has_no_room(
    file: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeviceRecord, "note_slept", lambda _: None)  # a call may sleep on a busy machine, and the next go elsewhere
    with loop(gather=True) as made, opened(file[0], DIRECT) as fd:
        descriptor = made.descriptor(fd)
        late, request = (direct_read(made, descriptor, BLOCK, offset) for offset in (0, BLOCK))
        assert made.engine.has_kernel_lane()
        lane: Any = made.engine.kernel
        made.engine.completions._late = True
        made.submit(late, request)
        with monkeypatch.context() as patch:
            patch.setattr(lane, "submit", lambda _: ([], False))  # the kernel has no room
            made.flush()
        assert (late.finished, request.state) == (False, State.KERNEL_PREPARED)
        asked_again = made.engine.plugged
        made.wait_for(late, request)
        assert not asked_again
