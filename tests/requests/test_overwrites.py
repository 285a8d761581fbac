"""Small overwrites of direct files by their short way: the order of the file, cancellation, and what the caller's memory may do."""

from __future__ import annotations

import errno
import mmap
import os
from typing import TYPE_CHECKING, Any

import pytest

from trio_aio._memory.exports import export_buffer
from trio_aio._requests.base import State
from trio_aio._requests.direct import BufferedWrite
from trio_aio._requests.opening import Close
from trio_aio._requests.overwrites import Overwrite
from trio_aio._requests.sync import Sync

from ..support.engine_loop import Loop, loop
from ..support.files import BLOCK, make_file, opened
from ..support.requests import DIRECT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from trio_aio._engine.descriptor import Descriptor

NEW = b"n" * BLOCK


class Place:
    """A direct file whose overwrites take the short way, in an engine without an event loop."""

    def __init__(self, made: Loop, descriptor: Descriptor, path: Path, data: bytes) -> None:
        self.made: Loop = made
        self.descriptor: Descriptor = descriptor
        self.path: Path = path
        self.data: bytes = data

    def start(self, block: int, data: Any = NEW) -> Overwrite:
        """Start an overwrite of one block."""
        request = Overwrite(self.descriptor, data, len(data), block * BLOCK)
        request.waiter = self
        request.start_short(self.made.engine)
        return request

    @property
    def books(self) -> tuple[object, ...]:
        engine, order = self.made.engine, self.descriptor.order
        assert order.gate is not None
        return engine.outstanding, engine.occupied, order.leases, order.writes, order.gate._in_flight

    def block(self, number: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(number * BLOCK)
            return file.read(BLOCK)


IDLE = (0, 0, 0, set(), 0)


@pytest.fixture
def place(disk: Path) -> Iterator[Place]:
    path, data = make_file(disk)
    with loop(8, 2, gather=True) as made, opened(path, DIRECT) as fd:
        made.warm()
        found = Place(made, made.descriptor(fd), path, data)
        made.wait_for(found.start(63, data[63 * BLOCK :]))  # the general way: the submitter's thread starts
        yield found
        assert found.books == IDLE


def buffered_write(place: Place, data: bytes, offset: int) -> BufferedWrite:
    export = export_buffer(data, writable=False)
    return BufferedWrite(place.descriptor, export.address, len(data), offset, 0, export)


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_overwrite_takes_one_lane_and_is_whole(place: Place, kind: Callable[[bytes], Any]) -> None:
    submitted = place.made.engine.submitted_kernel
    first, second = place.start(1, kind(NEW)), place.start(3, kind(2 * NEW))
    place.made.wait_for(first, second)
    assert (first.result, second.result) == (BLOCK, 2 * BLOCK)
    assert place.made.engine.submitted_kernel == submitted + 2
    assert [place.block(i) == NEW for i in range(6)] == [False, True, False, True, True, False]


def test_overwrite_from_an_anonymous_mapping_is_whole(place: Place) -> None:
    with mmap.mmap(-1, BLOCK) as memory:
        memory[:] = NEW
        request = place.start(1, memory)
        memory[:] = bytes(BLOCK)  # it has been copied
        place.made.wait_for(request)
    assert (request.result, place.block(1)) == (BLOCK, NEW)


def test_more_overwrites_than_slots_all_run(place: Place) -> None:
    requests = [place.start(i) for i in range(20)]
    assert State.KERNEL_QUEUED in {request.state for request in requests}
    place.made.wait_for(*requests)
    assert [request.result for request in requests] == [BLOCK] * 20
    assert all(place.block(i) == NEW for i in range(20))


def test_sync_waits_for_the_overwrites_before_it(place: Place) -> None:
    first = [place.start(i) for i in range(2)]
    sync = Sync(place.descriptor, data_only=True)
    place.made.submit(sync)
    last = place.start(2)
    assert sync.state is State.HELD
    place.made.wait_for(*first)
    place.made.wait_for(sync, last)
    assert (sync.result, [request.result for request in (*first, last)]) == (0, [BLOCK] * 3)


def test_overwrite_waits_for_a_write_through_the_page_cache(place: Place) -> None:
    through_cache = buffered_write(place, b"old", BLOCK)
    place.made.submit(through_cache)
    memory = bytearray(NEW)
    request = place.start(1, memory)
    assert request.state is State.HELD
    place.made.wait_for(through_cache)
    place.made.wait_for(request)
    memory.clear()  # nothing holds it
    assert (request.result, place.block(1)) == (BLOCK, NEW)


def test_write_through_the_page_cache_waits_for_an_overwrite(place: Place) -> None:
    request = place.start(1)
    through_cache = buffered_write(place, b"new", BLOCK)
    place.made.submit(through_cache)
    assert through_cache.state is State.HELD
    behind = place.start(1, 2 * NEW)
    assert behind.state is State.HELD  # first come, first served
    place.made.wait_for(request, through_cache, behind)
    assert place.block(1) == place.block(2) == NEW


def test_close_waits_for_overwrites_and_refuses_later_ones(disk: Path) -> None:
    path, data = make_file(disk)
    with loop(8, 2, gather=True) as made:
        made.warm()
        descriptor = made.descriptor(os.open(path, DIRECT))
        place = Place(made, descriptor, path, data)
        made.wait_for(place.start(0))
        requests, close = [place.start(i) for i in range(1, 3)], Close(descriptor)
        made.submit(close)
        assert close.state is State.HELD
        memory = bytearray(BLOCK)
        with pytest.raises(ValueError, match="closed file"):
            place.start(3, memory)
        memory.clear()  # nothing holds it
        made.wait_for(close)
        assert ([request.result for request in requests], place.books) == ([BLOCK] * 2, IDLE)
    assert path.read_bytes()[3 * BLOCK :] == data[3 * BLOCK :]


def test_overwrite_that_was_not_handed_over_is_withdrawn(place: Place) -> None:
    other = place.start(0)  # it finds the lane empty, so it is handed over at once
    request = place.start(1)
    assert request.state is State.KERNEL_HANDED_OVER
    assert place.made.engine.cancel(request)
    assert (request.state, request.slab) == (State.WITHDRAWN, None)
    place.made.wait_for(other)
    assert place.block(1) == place.data[BLOCK : 2 * BLOCK]


def test_overwrite_that_waits_for_the_page_cache_is_withdrawn(place: Place) -> None:
    through_cache = buffered_write(place, b"old", 0)
    place.made.submit(through_cache)
    request = place.start(1)
    assert place.made.engine.cancel(request)
    assert (request.state, request.slab) == (State.WITHDRAWN, None)
    place.made.wait_for(through_cache)
    assert place.block(1) == place.data[BLOCK : 2 * BLOCK]


def test_write_behind_the_end_goes_to_the_workers(place: Place) -> None:
    submitted = place.made.engine.submitted_workers
    request = place.start(64)
    place.made.wait_for(request)
    assert (request.result, place.made.engine.submitted_workers) == (BLOCK, submitted + 1)
    assert (place.block(64), place.descriptor.size) == (NEW, 65 * BLOCK)
    place.made.wait_for(place.start(64, bytes(BLOCK)))
    assert (place.block(64), place.made.engine.submitted_workers) == (bytes(BLOCK), submitted + 1)


def test_copies_of_the_file_are_forgotten_when_it_starts_and_when_it_has_ended(place: Place) -> None:
    shared = place.descriptor.shared_file
    assert shared is not None
    version = shared.version
    request = place.start(1)
    assert shared.version == version + 1
    place.made.wait_for(request)
    assert shared.version == version + 2


def test_overwrites_are_lost_by_a_failed_sync_and_heal_when_written_again(place: Place) -> None:
    shared, known = place.descriptor.shared_file, place.descriptor.known_failures
    assert shared is not None
    durability = shared.durability
    place.made.wait_for(*[place.start(i) for i in (1, 2, 5)])
    durability.note_failed(errno.EIO, place.descriptor.size)

    def sync() -> int:
        request = Sync(place.descriptor, data_only=True)
        place.made.submit(request)
        place.made.wait_for(request)
        return request.result

    assert known < durability.failures
    assert sync() == -errno.EIO
    place.made.wait_for(*[place.start(i) for i in (1, 5, 63)])
    assert sync() == -errno.EIO
    place.made.wait_for(place.start(2))
    assert sync() == 0
