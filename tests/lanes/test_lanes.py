"""Slots, tokens and the queue, on a lane that starts nothing; then what workers do with theirs."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from trio_aio._engine.descriptor import Descriptor
from trio_aio._lanes import inline as _inline_lane
from trio_aio._lanes.devices import BACKOFF, SLOW_LIMIT, DeviceRecord, DeviceRecords
from trio_aio._lanes.slots import _GENERATION, _MAX_TOKEN, SLOT_MASK, Lane
from trio_aio._lanes.workers import GATHER, WorkerLane
from trio_aio._memory.exports import export_buffer
from trio_aio._native import lib
from trio_aio._requests.base import Request, State
from trio_aio._requests.direct import BufferedWrite
from trio_aio._requests.metadata import Seek, Stat
from trio_aio._requests.transfer import Read, Write

from ..support.engine_loop import loop
from ..support.files import BLOCK, make_file, opened
from ..support.page_cache import attempts, evict, pinned
from ..support.pipes import empty_pipe, full_pipe

if TYPE_CHECKING:
    from pathlib import Path

FIRST = 100


class Sized(Request):
    """A request that moves a number of bytes."""

    __slots__ = ("nbytes",)

    def __init__(self, nbytes: int) -> None:
        super().__init__(Descriptor(-1))
        self.nbytes: int = nbytes


class StillLane(Lane[Sized]):
    """A lane whose requests are complete when the test says so."""

    queued_state = State.WORKER_QUEUED

    def __init__(self, slots: int) -> None:
        super().__init__(FIRST, slots)
        self.started: list[Sized] = []

    def start_in_slot(self, request: Sized, slot: int) -> None:
        request.state = State.WORKER_IN_FLIGHT
        self.started.append(request)


def accepted(lane: StillLane, *sizes: int) -> list[Sized]:
    requests = [Sized(size) for size in sizes]
    for request in requests:
        lane.accept(request)
    return requests


def test_requests_start_in_the_order_they_came() -> None:
    lane = StillLane(2)
    requests = accepted(lane, *[1] * 5)
    assert (lane.started, lane.in_flight, lane.queued) == (requests[:2], 2, 3)
    assert list(lane.waiting()) == requests[2:]
    for i in (1, 0, 2, 3, 4):  # whichever is complete first
        assert lane.take(requests[i].token) is requests[i]
        lane.start_queued()
    assert (lane.started, lane.in_flight, lane.queued) == (requests, 0, 0)


def test_a_newcomer_does_not_overtake_the_queue() -> None:
    lane = StillLane(1)
    first, second = accepted(lane, 1, 1)
    lane.take(first.token)
    [late] = accepted(lane, 1)  # there is a slot, but `second` was here before
    lane.start_queued()
    assert (lane.started, late.state) == ([first, second], State.WORKER_QUEUED)


def test_any_request_may_leave_the_queue() -> None:
    lane = StillLane(1)
    requests = accepted(lane, *[1] * 4)
    lane.withdraw_queued(requests[2])
    for i in (0, 1, 3):
        lane.take(requests[i].token)
        lane.start_queued()
    assert lane.started == [requests[0], requests[1], requests[3]]


def test_a_token_is_good_for_one_completion() -> None:
    lane = StillLane(1)
    [first] = accepted(lane, 1)
    lane.take(first.token)
    [second] = accepted(lane, 1)
    assert second.token == first.token + _GENERATION
    assert second.token & SLOT_MASK == first.token & SLOT_MASK == FIRST
    with pytest.raises(RuntimeError, match="belongs to no request"):
        lane.take(first.token)
    assert lane.holders == [second]
    assert lane.take(second.token) is second
    with pytest.raises(RuntimeError, match="belongs to no request"):
        lane.take(second.token)


def test_generations_start_again_before_a_token_would_be_negative() -> None:
    lane = StillLane(1)
    lane.tokens[0] = _MAX_TOKEN & ~SLOT_MASK | FIRST
    [last] = accepted(lane, 1)
    assert last.token <= _MAX_TOKEN < last.token + _GENERATION
    lane.take(last.token)
    assert accepted(lane, 1)[0].token == FIRST


def test_bytes_are_bounded_unless_it_is_one_request_alone() -> None:
    lane = StillLane(4)
    lane.byte_limit = 10
    requests = accepted(lane, 6, 5, 1, 20)
    assert lane.started == requests[:1]  # the third would fit, and waits its turn
    for request in requests:
        request.nbytes -= 1  # a lane may have moved a part of it: the lane subtracts what it added
        lane.take(request.token)
        lane.start_queued()
    assert (lane.started, lane.bytes_in_flight) == (requests, 0)


def test_a_withdrawn_workers_slot_comes_free_with_its_completion() -> None:
    with loop(2, 1) as made, full_pipe() as pipe:
        busy = pipe.request()
        made.submit(busy)
        requests = [Stat(Descriptor(-1)) for _ in range(2)]
        made.submit(*requests)
        assert made.engine.cancel(requests[0])
        assert (made.engine.workers.in_flight, requests[1].state) == (2, State.WORKER_QUEUED)
        assert not made.engine.cancel(requests[0])  # once more: nothing happens
        pipe.release()
        made.wait_for(busy, requests[1])
        assert made.woken == [busy, requests[1]]
        assert made.engine.cancelled == 1


def test_what_a_worker_has_begun_is_not_withdrawn() -> None:
    with loop(2, 1) as made, full_pipe() as pipe:
        busy = pipe.request()
        made.submit(busy)
        while not pipe.begun:
            pass
        assert not made.engine.cancel(busy)
        pipe.release()
        made.wait_for(busy)
        assert busy.transferred == busy.nbytes


@pytest.mark.parametrize("hired", [0, 1])
def test_without_more_threads_those_there_are_do_it(monkeypatch: pytest.MonkeyPatch, hired: int) -> None:
    hire, calls = WorkerLane._hire, []

    def refuse(lane: WorkerLane) -> None:
        calls.append(lane)
        if len(calls) > hired:
            raise RuntimeError("can't start new thread")
        hire(lane)

    monkeypatch.setattr(WorkerLane, "_hire", refuse)
    if not hired:
        with pytest.raises(RuntimeError, match="new thread"), loop(4, 4):
            pass
        return
    with loop(4, 4) as made, full_pipe() as pipe, empty_pipe() as (reader, _):
        made.submit(pipe.request())
        requests = [Seek(Descriptor(reader), 0, 0) for _ in range(6)]
        made.submit(*requests)
        pipe.release()
        made.wait_for(*requests)
        assert (len(made.engine.workers.threads), made.engine.workers.max_workers) == (1, 1)


def test_device_is_left_alone_after_slow_requests_in_a_row_and_tried_again() -> None:
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


def test_where_nothing_is_in_the_page_cache_many_times_in_a_row_requests_go_to_the_workers_unasked(disk: Path) -> None:
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
                assert inline.read(descriptor, BLOCK, 0) == data[:BLOCK]  # no worker is at work: asking costs nobody anything
                lp.submit(pipe.request())
                for _ in range(_inline_lane.BACKOFF):
                    assert inline.read(descriptor, BLOCK, 0) is None
                assert inline.misses == _inline_lane.MISSES  # they were not asked
                assert inline.read(descriptor, BLOCK, 0) == data[:BLOCK]
            pipe.release()
            lp.settle()
            break


# ---- chains


def missed(descriptor: Descriptor, number: int) -> tuple[Read, bytearray]:
    """Give a read of a block that the inline lane has left, and its memory."""
    memory = bytearray(BLOCK)
    export = export_buffer(memory, writable=True)
    request = Read(descriptor, export.address, BLOCK, number * BLOCK, 0, export)
    request.missed = True
    return request, memory


def test_reads_that_missed_are_gathered_and_handed_over_together_while_others_are_out(disk: Path) -> None:
    path, data = make_file(disk, 64 * BLOCK)
    evict(path)
    with path.open("rb", buffering=0) as file, full_pipe() as pipe, loop(64, 1, gather=True) as lp:
        workers = lp.engine.workers
        descriptor = lp.descriptor(file.fileno())
        lp.submit(pipe.request())
        reads = [missed(descriptor, number) for number in range(lib.TAIO_CHAIN + 6)]
        gathered = []
        for request, _ in reads:
            lp.submit(request)
            gathered.append(sum(chain.length for chain in workers.gathered.values()))
        alone = GATHER - 1
        assert gathered == [0] * alone + [*range(1, lib.TAIO_CHAIN), 0, *range(1, 7 - alone)]  # a chain that is full goes at once
        assert lp.engine.cancel(reads[-1][0])
        lp.flush()
        assert not workers.gathered
        assert lp.engine.cancel(reads[-2][0])  # no worker has begun it
        pipe.release()
        lp.settle()
        for number, (request, memory) in enumerate(reads[:-2]):
            assert (request.result, memory) == (BLOCK, data[number * BLOCK : (number + 1) * BLOCK])
        assert not any(reads[-1][1] + reads[-2][1])
        while workers.in_flight:  # the slots of those that were withdrawn come back too
            lp.turn()


def test_reads_of_two_devices_share_no_chain(disk: Path) -> None:
    path, data = make_file(disk, 64 * BLOCK)
    with path.open("rb", buffering=0) as file, full_pipe() as pipe, loop(64, 1, gather=True) as lp:
        one, other = lp.descriptor(file.fileno()), lp.descriptor(file.fileno())
        other.read_device = DeviceRecord()
        lp.submit(pipe.request())
        reads = [missed(descriptor, number) for number, descriptor in enumerate((one, one, one, other, other, one))]
        gathered = []
        for request, _ in reads:
            lp.submit(request)
            gathered.append([chain.length for chain in lp.engine.workers.gathered.values()])
        assert gathered == [[], [1], [2], [2, 1], [2, 2], [3, 2]]
        pipe.release()
        lp.settle()
        assert b"".join(memory for _, memory in reads) == data[: len(reads) * BLOCK]


def test_the_end_of_the_file_and_an_error_are_found_in_a_chain_too(disk: Path) -> None:
    path, data = make_file(disk, BLOCK + 100)
    evict(path)
    with path.open("rb", buffering=0) as file, full_pipe() as pipe, loop(64, 1, gather=True) as lp:
        descriptor, gone = lp.descriptor(file.fileno()), Descriptor(os.dup(file.fileno()), "gone")
        gone.read_device = descriptor.read_device
        os.close(gone.fd)
        lp.submit(pipe.request())
        reads = [missed(of, number) for of, number in ((descriptor, 0), (descriptor, 1), (gone, 0), (descriptor, 2), (descriptor, 0))]
        lp.submit(*(request for request, _ in reads))
        pipe.release()
        lp.settle()
        assert [request.result for request, _ in reads] == [BLOCK, 100, -errno.EBADF, 0, BLOCK]
        assert reads[1][1][:100] == data[BLOCK:]


@pytest.mark.parametrize("direct", [False, True])
def test_writes_of_one_file_are_gathered_if_they_go_through_the_page_cache(disk: Path, direct: bool) -> None:
    path, data = make_file(disk, 64 * BLOCK)
    with opened(path, os.O_RDWR | (os.O_DIRECT if direct else 0)) as fd, full_pipe() as pipe, loop(64, 1, gather=True) as lp:
        descriptor = lp.descriptor(fd)
        descriptor.size = 0  # so that all go to the workers
        lp.submit(pipe.request())
        writes = []
        for number in range(5):
            export = export_buffer(b"%d" % number, writable=False)
            request = (BufferedWrite if direct else Write)(descriptor, export.address, 1, number, 0, export)
            writes.append(request)
            lp.submit(request)
        assert [chain.length for chain in lp.engine.workers.gathered.values()] == [4]
        assert lp.engine.cancel(writes[3])
        pipe.release()
        lp.settle()
        assert path.read_bytes()[:6] == b"012" + data[3:4] + b"4" + data[5:6]
        while lp.engine.workers.in_flight:
            lp.turn()
