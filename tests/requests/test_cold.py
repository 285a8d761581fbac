"""Small reads of pages that are not cached: the short way to the workers does what the general one does."""

from __future__ import annotations

import errno
import os
import random
from typing import TYPE_CHECKING

import pytest
import trio

from trio_aio import AIOContext, open_aio
from trio_aio._lanes.inline import INLINE_LIMIT
from trio_aio._lanes.workers import GATHER
from trio_aio._native import lib
from trio_aio._requests.cold import ColdRead
from trio_aio._requests.metadata import Stat
from trio_aio.testing import FaultyContext

from ..support.engine_loop import loop
from ..support.files import BLOCK, make_file, opened
from ..support.page_cache import evict

if TYPE_CHECKING:
    from pathlib import Path

    from ..support.engine_loop import Loop


def test_cold_reads_of_many_tasks_return_the_bytes_of_the_file(filesystem: Path) -> None:
    path, data = make_file(filesystem, 300 * BLOCK + 123)
    rng = random.Random(1)
    ranges = [(rng.randrange(len(data)), rng.choice((1, 2, 100, BLOCK, 3 * BLOCK, INLINE_LIMIT))) for _ in range(200)]
    ranges += [(len(data), 10), (len(data) + BLOCK, 10), (len(data) - 1, 2)]
    waiting = iter(ranges)

    async def main() -> None:
        async def read() -> None:
            for offset, size in waiting:
                assert await file.pread(size, offset) == data[offset : offset + size]

        async with AIOContext() as context, await open_aio(path, context=context) as file:
            evict(path)
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(read)
            statistics = context.statistics()
        assert statistics.submitted_inline + statistics.submitted_workers >= len(ranges)
        assert statistics.bytes_read == sum(len(data[offset : offset + size]) for offset, size in ranges)
        assert (statistics.in_flight, statistics.queued) == (0, 0)

    trio.run(main)


def start(lp: Loop, *reads: ColdRead) -> None:
    for read in reads:
        read.waiter = lp
        read.start_short(lp.engine)


def test_half_of_the_cold_reads_in_flight_are_handed_over_before_the_end_of_the_tick(file: tuple[Path, bytes]) -> None:
    path, data = file
    with loop(max_in_flight=64) as lp, opened(path, os.O_RDONLY) as fd:
        descriptor = lp.descriptor(fd)
        reads = [ColdRead(descriptor, BLOCK, i * BLOCK) for i in range(12)]
        start(lp, *reads)
        gathered = lp.engine.workers.gathered
        assert [chain.length for chain in gathered.values()] == [4]  # two went alone, then two, then four
        lp.wait_for(*reads)
        assert [read.take() for read in reads] == [data[i * BLOCK : (i + 1) * BLOCK] for i in range(12)]
        assert len(lp.woken) == len(reads)
        assert lp.engine.completed == len(reads)
        assert lp.engine.bytes_read == len(reads) * BLOCK
        more = [ColdRead(descriptor, BLOCK, 0) for _ in range(lib.TAIO_CHAIN + GATHER)]
        start(lp, *more)
        assert [chain.length for chain in gathered.values()] == [2]  # two, two, four, and eight: no chain of reads is longer
        lp.wait_for(*more)


def test_cold_read_that_no_worker_has_started_is_cancelled(file: tuple[Path, bytes]) -> None:
    path, data = file
    with loop(max_in_flight=8) as lp, opened(path, os.O_RDONLY) as fd:
        descriptor = lp.descriptor(fd)
        reads = [ColdRead(descriptor, BLOCK, i * BLOCK) for i in range(GATHER + 1)]
        start(lp, *reads)
        assert lp.engine.cancel(reads[-1])
        lp.wait_for(*reads)
        lp.settle()
        assert [read.take() for read in reads[:-1]] == [data[i * BLOCK : (i + 1) * BLOCK] for i in range(GATHER)]
        assert (lp.engine.completed, lp.engine.cancelled) == (GATHER, 1)
        while len(lp.engine.workers.free) < 8:  # that of the cancelled one comes back by a worker
            lp.turn()


def test_cold_reads_without_a_free_slot_are_queued(file: tuple[Path, bytes]) -> None:
    path, data = file
    with loop(max_in_flight=4) as lp, opened(path, os.O_RDONLY) as fd:
        descriptor = lp.descriptor(fd)
        reads = [ColdRead(descriptor, 100, i * BLOCK) for i in range(10)]
        start(lp, *reads)
        assert lp.engine.workers.queued == 6
        lp.wait_for(*reads)
        assert [read.take() for read in reads] == [data[i * BLOCK : i * BLOCK + 100] for i in range(10)]


def test_cold_read_that_fails_raises_the_error_and_its_slot_is_free(file: tuple[Path, bytes]) -> None:
    path, _ = file
    with loop(max_in_flight=4) as lp, opened(path, os.O_WRONLY) as fd:
        read = ColdRead(lp.descriptor(fd), BLOCK, 0)
        start(lp, read)
        lp.wait_for(read)
        with pytest.raises(OSError, match="Bad file descriptor"):
            read.take()
        assert len(lp.engine.workers.free) == 4


def test_cold_read_after_a_close_is_refused(file: tuple[Path, bytes]) -> None:
    path, _ = file
    with loop() as lp, opened(path, os.O_RDONLY) as fd:
        descriptor = lp.descriptor(fd)
        descriptor.order.closing = True
        with pytest.raises(ValueError, match="closed file"):
            ColdRead(descriptor, BLOCK, 0).start_short(lp.engine)
        descriptor.order.closing = False
        assert lp.engine.outstanding == 0
        lp.run(Stat(descriptor))


def test_fault_meets_a_cold_read(file: tuple[Path, bytes]) -> None:
    path, data = file

    async def main() -> None:
        async with FaultyContext() as context, await open_aio(path, context=context) as aio:
            context.fail(errno.EIO, times=1)
            with pytest.raises(OSError, match="Input/output error"):
                await aio.pread(BLOCK, 0)
            assert await aio.pread(BLOCK, 0) == data[:BLOCK]

    trio.run(main)
