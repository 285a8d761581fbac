"""What of one file waits for what: the gate between two kinds of writes, syncs that are shared, the close."""

from __future__ import annotations

from trio_aio._descriptor import Descriptor
from trio_aio._order import Gate, Order
from trio_aio._request import Operation, Request

DESCRIPTOR = Descriptor(-1)


def request(operation: Operation, *, buffered: bool = False) -> Request:
    made = Request(operation, DESCRIPTOR)
    made.buffered = buffered
    return made


def _writes(kinds: str) -> list[Request]:
    return [request(Operation.WRITE, buffered=kind == "b") for kind in kinds]


def test_one_kind_of_write_passes_the_gate_at_a_time_in_order() -> None:
    gate = Gate()
    one, two, three, four, five = _writes("ddbbd")
    assert [gate.enter(request) for request in (one, two, three, four, five)] == [True, True, False, False, False]
    gate.leave()
    assert gate.ready() == []
    gate.leave()
    assert gate.ready() == [three, four]  # the fifth came later, and does not overtake them
    gate.withdraw(five)
    (six,) = _writes("b")
    assert gate.enter(six)


def test_a_withdrawn_write_opens_the_gate_for_those_behind_it() -> None:
    gate = Gate()
    one, two, three = _writes("dbd")
    assert [gate.enter(request) for request in (one, two, three)] == [True, False, False]
    gate.withdraw(two)
    assert gate.ready() == [three]


def test_a_close_is_held_until_all_others_are_over() -> None:
    order = Order()
    read, stat, close = request(Operation.READ), request(Operation.STAT), request(Operation.CLOSE)
    assert order.enter(read)
    assert order.enter(stat)
    assert not order.enter(close)
    assert not order.leave(read)
    assert list(order.leave(stat)) == [close]
    assert Order().enter(close)


def test_syncs_that_ask_while_one_is_out_share_the_next_which_has_not_begun() -> None:
    order = Order()
    first, second, third, fourth = (request(Operation.FDATASYNC) for _ in range(4))
    assert order.enter(first)
    assert not order.enter(second)
    third.operation = Operation.FSYNC
    assert not order.enter(third)
    assert (second.followers, third.leader) == ([third], second)
    assert second.operation is Operation.FSYNC  # for both
    assert order.leave(first) == [second]
    assert not order.enter(fourth)  # the second has begun: too early for the fourth
    assert fourth.leader is None
    order.leave(third)
    assert order.leave(second) == [fourth]


def test_a_sync_waits_for_the_writes_before_it_and_who_joins_brings_more() -> None:
    order = Order()
    one, two, three = _writes("ddd")
    first, second, third, fourth = (request(Operation.FSYNC) for _ in range(4))
    assert order.enter(one)
    assert not order.enter(first)
    assert not order.enter(second)  # asks for no more than the first does
    assert second.leader is first
    assert order.enter(two)
    assert not order.enter(third)  # would put the first off
    assert third.leader is None
    assert order.leave(one) == [first]
    assert order.enter(three)
    assert not order.enter(fourth)  # the third waits for the first anyway
    assert (fourth.leader, third.waits_for) == (third, {two, three})
    order.leave(second)
    assert order.leave(first) == []
    assert order.leave(two) == []
    assert order.leave(three) == [third]


def test_what_waits_can_be_withdrawn() -> None:
    order = Order()
    order.gate = Gate()
    write, buffered = _writes("db")
    leader, follower = request(Operation.FSYNC), request(Operation.FSYNC)
    assert order.enter(write)
    assert not order.enter(buffered)
    assert not order.enter(leader)
    assert not order.enter(follower)
    for waiting in (follower, leader, buffered):
        order.withdraw(waiting)
        assert order.leave(waiting) == []
    assert leader.followers == []
    assert order.leave(write) == []
    assert (order.requests, order.writes) == (0, set())
