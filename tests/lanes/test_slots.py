"""Slots, tokens and the queue, on a lane that starts nothing; then what workers do with theirs."""

from __future__ import annotations

import pytest

from trio_aio._engine.descriptor import Descriptor
from trio_aio._lanes.protocols import SLOT_MASK
from trio_aio._lanes.slots import _GENERATION, _MAX_TOKEN, Lane
from trio_aio._requests.base import Request, State
from trio_aio._requests.metadata import Stat

from ..support.engine_loop import loop
from ..support.pipes import full_pipe

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


def test_requests_start_in_order_of_submission() -> None:
    lane = StillLane(2)
    requests = accepted(lane, *[1] * 5)
    assert (lane.started, lane.occupied, lane.queued) == (requests[:2], 2, 3)
    assert list(lane.waiting()) == requests[2:]
    for i in (1, 0, 2, 3, 4):  # whichever is complete first
        assert lane.take(requests[i].token) is requests[i]
        lane.start_queued()
    assert (lane.started, lane.occupied, lane.queued) == (requests, 0, 0)


def test_new_request_does_not_overtake_the_queue() -> None:
    lane = StillLane(1)
    first, second = accepted(lane, 1, 1)
    lane.take(first.token)
    [late] = accepted(lane, 1)  # there is a slot, but `second` was here before
    lane.start_queued()
    assert (lane.started, late.state) == ([first, second], State.WORKER_QUEUED)


def test_withdrawn_request_leaves_any_place_in_the_queue() -> None:
    lane = StillLane(1)
    requests = accepted(lane, *[1] * 4)
    lane.withdraw_queued(requests[2])
    for i in (0, 1, 3):
        lane.take(requests[i].token)
        lane.start_queued()
    assert lane.started == [requests[0], requests[1], requests[3]]


def test_token_is_valid_for_one_completion() -> None:
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


def test_generations_wrap_before_a_token_is_negative() -> None:
    lane = StillLane(1)
    lane.tokens[0] = _MAX_TOKEN & ~SLOT_MASK | FIRST
    [last] = accepted(lane, 1)
    assert last.token <= _MAX_TOKEN < last.token + _GENERATION
    lane.take(last.token)
    assert accepted(lane, 1)[0].token == FIRST


def test_bytes_in_flight_are_limited_except_for_a_lone_request() -> None:
    lane = StillLane(4)
    lane.byte_limit = 10
    requests = accepted(lane, 6, 5, 1, 20)
    assert lane.started == requests[:1]  # the third would fit, and waits its turn
    for request in requests:
        request.nbytes -= 1  # a lane may have moved a part of it: the lane subtracts what it added
        lane.take(request.token)
        lane.start_queued()
    assert (lane.started, lane.bytes_in_flight) == (requests, 0)


def test_slot_of_withdrawn_worker_request_is_freed_at_completion() -> None:
    with loop(2, 1) as made, full_pipe() as pipe:
        busy = pipe.request()
        made.submit(busy)
        requests = [Stat(Descriptor(-1)) for _ in range(2)]
        made.submit(*requests)
        assert made.engine.cancel(requests[0])
        assert (made.engine.workers.occupied, requests[1].state) == (2, State.WORKER_QUEUED)
        assert not made.engine.cancel(requests[0])  # once more: nothing happens
        pipe.release()
        made.wait_for(busy, requests[1])
        assert made.woken == [busy, requests[1]]
        assert made.engine.cancelled == 1


def test_request_started_by_a_worker_is_not_withdrawn() -> None:
    with loop(2, 1) as made, full_pipe() as pipe:
        busy = pipe.request()
        made.submit(busy)
        while not pipe.begun:
            pass
        assert not made.engine.cancel(busy)
        pipe.release()
        made.wait_for(busy)
        assert busy.transferred == busy.nbytes
