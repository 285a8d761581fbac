"""What of one file waits for what: the gate between two kinds of writes, syncs that are shared, the close."""

from __future__ import annotations

from typing import Any

import pytest

from trio_aio._engine.descriptor import Descriptor
from trio_aio._engine.durability import Durability
from trio_aio._engine.order import Order
from trio_aio._engine.shared_file import Gate
from trio_aio._requests.direct import BufferedWrite
from trio_aio._requests.metadata import Truncate
from trio_aio._requests.opening import Close
from trio_aio._requests.sync import Sync
from trio_aio._requests.transfer import Write

DESCRIPTOR, BUFFERED = Descriptor(-1), Descriptor(-1)
DESCRIPTOR.o_direct = True


def writes(kinds: str) -> list[Write]:
    """Return direct writes ("d") and writes through the page cache ("b")."""
    return [(BufferedWrite if kind == "b" else Write)(DESCRIPTOR, 0, 1, 0, 0, None) for kind in kinds]


def syncs(count: int, *, data_only: bool = False) -> list[Sync]:
    return [Sync(DESCRIPTOR, data_only=data_only) for _ in range(count)]


def started(gate: Gate) -> list[Any]:
    ready: list[Any] = []
    gate.start_ready(ready)
    return ready


def test_writes_of_a_buffered_file_wait_for_direct_writes_of_the_same_file() -> None:
    direct, buffered = Order(), Order()
    direct.gate = buffered.gate = Gate()
    first, second = writes("db")
    plain = Write(BUFFERED, 0, 1, 0, 0, None)
    assert (direct.enter(first), buffered.enter(plain), direct.enter(second)) == (True, False, False)
    assert direct.leave(first) == [plain, second]  # both go through the page cache
    assert buffered.leave(plain) == direct.leave(second) == []


def test_truncate_waits_for_direct_writes_and_they_for_it() -> None:
    order = Order()
    order.gate = Gate()
    (direct, later), truncate = writes("dd"), Truncate(DESCRIPTOR, 10)
    assert [order.enter(request) for request in (direct, truncate, later)] == [True, False, False]
    assert order.leave(direct) == [truncate]
    assert order.leave(truncate) == [later]
    assert order.leave(later) == []
    assert order.leases == 0


def test_one_kind_of_write_passes_the_gate_at_a_time_in_order() -> None:
    gate = Gate()
    one, two, three, four, five = writes("ddbbd")
    assert [gate.enter(request) for request in (one, two, three, four, five)] == [True, True, False, False, False]
    gate.leave(one)
    gate.leave(one)  # again, as after an exception
    assert started(gate) == []
    gate.leave(two)
    assert started(gate) == [three, four]  # the fifth came later, and does not overtake them
    gate.withdraw(five)
    (six,) = writes("b")
    assert gate.enter(six)


def test_withdrawn_write_opens_the_gate_for_those_behind_it() -> None:
    gate = Gate()
    one, two, three = writes("dbd")
    assert [gate.enter(request) for request in (one, two, three)] == [True, False, False]
    gate.withdraw(two)
    assert started(gate) == [three]


def test_close_is_held_until_all_leases_have_ended() -> None:
    order = Order()
    close = Close(DESCRIPTOR)
    order.lease()
    order.lease()
    assert not order.enter(close)
    assert not order.end_lease()
    assert list(order.end_lease()) == [close]
    assert Order().enter(close)


def test_syncs_submitted_while_one_is_in_flight_share_the_next() -> None:
    order = Order()
    first, second, third, fourth = syncs(4, data_only=True)
    assert order.enter(first)
    assert not order.enter(second)
    third.data_only = False
    assert not order.enter(third)
    assert (second.followers, third.leader) == ([third], second)
    assert not second.data_only  # for both
    assert order.leave(first) == [second]
    assert not order.enter(fourth)  # the second has started: too early for the fourth
    assert fourth.leader is None
    order.leave(third)
    assert order.leave(second) == [fourth]


def test_sync_waits_for_earlier_writes_and_for_those_of_followers() -> None:
    order = Order()
    one, two, three = writes("ddd")
    first, second, third, fourth = syncs(4)
    assert order.enter(one)
    assert not order.enter(first)
    assert not order.enter(second)  # waits for no more than the first does
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


def test_waiting_requests_can_be_withdrawn() -> None:
    order = Order()
    order.gate = Gate()
    write, buffered = writes("db")
    leader, follower = syncs(2)
    assert order.enter(write)
    assert not order.enter(buffered)
    assert not order.enter(leader)
    assert not order.enter(follower)
    for waiting in (follower, leader, buffered):
        order.withdraw(waiting)
        assert order.leave(waiting) == []
    assert leader.followers == []
    assert order.leave(write) == []
    assert (order.leases, order.writes) == (0, set())


class NoMemory(list[Any]):
    """A list that has no memory for what is appended, the first time."""

    failed: bool = False

    def append(self, item: Any) -> None:
        if not self.failed:
            self.failed = True
            raise MemoryError
        super().append(item)


def test_request_that_may_start_is_not_lost_where_there_is_no_memory_to_note_that() -> None:
    order, ready = Order(), NoMemory()
    first, second = syncs(2)
    assert (order.enter(first), order.enter(second)) == (True, False)
    for _ in range(2):
        try:
            order.leave(first, ready)
        except MemoryError:
            assert order.holds(second)
    assert (ready, ready.failed) == ([second], True)

    gate, ready = Gate(), NoMemory()
    direct, buffered = writes("db")
    assert (gate.enter(direct), gate.enter(buffered)) == (True, False)
    gate.leave(direct)
    with pytest.raises(MemoryError):
        gate.start_ready(ready)
    assert gate.holds(buffered)
    gate.start_ready(ready)
    assert ready == [buffered]

    durability, ready = Durability({}, (0, 0, 0)), NoMemory()
    assert (durability.enter(first), durability.enter(second)) == (True, False)
    with pytest.raises(MemoryError):
        durability.leave(first, ready)
    assert durability.holds(second)
    durability.leave(first, ready)
    assert ready == [second]
