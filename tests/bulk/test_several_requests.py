"""Calls of several requests: whose file or context is closed meanwhile, that are given up or left while others are at it, and what they
do on the event loop's own thread.
"""

from __future__ import annotations

import gc
import mmap
import os
import select
import tracemalloc
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trio_aio import AIOContext, open_aio
from trio_aio._context.copying import COPY_STEP
from trio_aio._context.group import RequestGroup
from trio_aio._engine.descriptor import Alignment, Descriptor
from trio_aio._memory.exports import export_buffer
from trio_aio._requests.base import Request, State
from trio_aio._requests.direct import BufferedWrite
from trio_aio._requests.pieces import Pieces, PiecesRead, PiecesWrite
from trio_aio._requests.poll import Poll
from trio_aio._requests.sync import Sync
from trio_aio.testing import FaultyContext

from ..support.engine_loop import Loop, loop
from ..support.files import BLOCK, is_open, make_file, opened
from ..support.page_cache import attempts, evict, pinned
from ..support.pipes import empty_pipe, full_pipe
from ..support.tasks import busy, until_idle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from trio_aio import AIOStatistics, AsyncFile


# ---- the descriptor's number after the close


@pytest.mark.trio
async def test_writer_left_after_close_writes_to_no_other_file(disk: Path) -> None:
    path, _ = make_file(disk, BLOCK)
    other, kept = make_file(disk, BLOCK, "other")
    file = await open_aio(path, "r+b")
    number = file.fileno()
    with pytest.raises(ValueError, match="closed file"):  # noqa: PT012 - it is the leaving that raises
        async with file.writer() as writer:
            await writer.write(b"tail")
            await file.aclose()
            stranger = os.open(other, os.O_RDWR)
    os.close(stranger)
    assert stranger == number
    assert other.read_bytes() == kept


@pytest.mark.trio
async def test_writer_of_file_closed_meanwhile_writes_to_no_other_file(disk: Path) -> None:
    path, _ = make_file(disk, BLOCK)
    other, kept = make_file(disk, BLOCK, "other")
    strangers: list[AsyncFile] = []

    async def write() -> None:
        with pytest.raises(ValueError, match="closed file"):
            async with file.writer(size=BLOCK, depth=1) as writer:
                await writer.write(bytes(2 * BLOCK))

    async def open_other() -> None:
        strangers.append(await open_aio(other, "r+b", context=context))

    async with AIOContext(8, max_workers=1) as context:
        file = await open_aio(path, "r+b", context=context)
        number = file.fileno()
        async with busy(context) as pipe, trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(file.aclose)  # waits for the first block
            await trio.testing.wait_all_tasks_blocked()
            pipe.release()
            while is_open(number):
                await trio.lowlevel.checkpoint()
            nursery.start_soon(open_other)
        assert strangers[0].fileno() == number
        await strangers[0].aclose()
    assert path.read_bytes() == bytes(BLOCK)  # what was on its way when it was closed
    assert other.read_bytes() == kept


@pytest.mark.trio
@pytest.mark.parametrize("turns", range(1, 8))
async def test_read_blocks_never_reads_a_file_that_took_the_fd_number(disk: Path, turns: int) -> None:
    path, data = make_file(disk, 4 << 20)
    other = disk / "other"
    other.write_bytes(bytes(4 << 20))
    found = []

    async def read() -> None:
        found.append(await file.read_blocks(range(0, 4 << 20, BLOCK), BLOCK))

    async with AIOContext(8, max_workers=1) as context:
        file = await open_aio(path, context=context)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            nursery.start_soon(file.aclose)  # waits for the whole call
            await trio.lowlevel.checkpoint()
            stranger = await open_aio(other, context=context)
        await stranger.aclose()
    assert found == [data]


@pytest.mark.trio
async def test_chunks_step_of_file_closed_meanwhile_reads_nothing_ahead(disk: Path) -> None:
    path, data = make_file(disk)
    steps = []

    async def step() -> None:
        steps.append(await anext_of(chunks))

    async with AIOContext(4, max_workers=1) as context:
        file = await open_aio(path, context=context)
        chunks = file.chunks(BLOCK, depth=1)
        async with busy(context) as pipe, trio.open_nursery() as nursery:
            nursery.start_soon(step)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(file.aclose)
            await trio.testing.wait_all_tasks_blocked()
            pipe.release()
        assert steps == [data[:BLOCK]]
        assert not chunks._ahead
        with pytest.raises(ValueError, match="closed file"):
            await anext_of(chunks)


async def anext_of(chunks: Any) -> Any:
    return await chunks.__anext__()


@pytest.mark.trio
@pytest.mark.parametrize("call", [lambda file: file.read_blocks([0], 1), lambda file: file.write_ranges([(0, b"x")])])
async def test_call_after_close_has_started_is_refused(disk: Path, call: Callable[[AsyncFile], Awaitable[Any]]) -> None:
    path, data = make_file(disk, BLOCK)
    async with AIOContext(4, max_workers=1) as context:
        file = await open_aio(path, "r+b", context=context)
        file._descriptor.order.closing = True  # by somebody who was quicker, between the check and the call
        before = context.statistics()
        with pytest.raises(ValueError, match="closed file"):
            await call(file)
        with pytest.raises(ValueError, match="closed file"):
            await file.stat()
        assert context.statistics() == before
        file._descriptor.order.closing = False
        await file.aclose()
    assert path.read_bytes() == data


# ---- errors


@pytest.mark.trio
async def test_write_with_stricter_memory_alignment_keeps_neighbouring_bytes(disk: Path) -> None:
    path, data = make_file(disk)
    async with open_aio(path, "r+b", direct=True) as file:
        unit = file.alignment.offset
        file._descriptor.alignment = Alignment(unit, BLOCK)  # a device with sectors of 512 bytes and dma_alignment of a page
        memory = mmap.mmap(-1, 2 * BLOCK)
        memory[unit : 2 * unit] = b"x" * unit
        await file.write_ranges([(unit, memoryview(memory)[unit : 2 * unit])])
        await file.pwrite(memoryview(memory)[unit : 2 * unit], 3 * unit)
        large = memoryview(bytearray((4 << 20) + unit + 1))[1:]
        await file.pwrite(large, 0)
        expected = bytes(large)
        await file.pwrite(data, 0)
        await file.write_ranges([(unit, memoryview(memory)[unit : 2 * unit])])
        assert await file.preadinto(memoryview(memory)[unit : 2 * unit], 2 * unit) == unit
        assert memory[unit : 2 * unit] == data[2 * unit : 3 * unit]
        assert await file.read_blocks([unit], unit, into=memoryview(memory)[3 * unit : 4 * unit]) == b"x" * unit
    assert path.read_bytes() == data[:unit] + b"x" * unit + data[2 * unit :] + expected[len(data) :]


# ---- pipelines that are left while others are at it


@pytest.mark.trio
async def test_writer_exit_after_context_close_waits_for_writes_in_flight(disk: Path) -> None:
    path, _ = make_file(disk, BLOCK)

    async def write() -> None:
        with pytest.raises(RuntimeError, match="this AIOContext is clos"):
            async with file.writer(size=BLOCK, depth=1) as writer:
                await writer.write(b"a" * BLOCK + b"b" * 2 * BLOCK)

    context = AIOContext(4, max_workers=1)
    async with trio.open_nursery() as nursery:
        await context.__aenter__()
        file = await open_aio(path, "r+b", context=context)
        async with busy(context):
            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(context.aclose)
            await trio.testing.wait_all_tasks_blocked()
    await file.aclose()
    assert path.read_bytes() == b"a" * BLOCK


@pytest.mark.trio
async def test_writer_exit_waits_for_a_write_of_another_task(disk: Path) -> None:
    path, _ = make_file(disk, BLOCK)

    async def release() -> None:
        await trio.testing.wait_all_tasks_blocked()
        pipe.release()

    async with (
        AIOContext(4, max_workers=1) as context,
        open_aio(path, "r+b", context=context) as file,
        busy(context) as pipe,
        trio.open_nursery() as nursery,
    ):
        async with file.writer(size=BLOCK, depth=1) as writer:
            nursery.start_soon(writer.write, b"x" * (3 * BLOCK + 1))
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(release)
        assert path.read_bytes() == b"x" * (3 * BLOCK + 1)


@pytest.mark.trio
async def test_chunks_close_while_another_task_waits_is_refused(disk: Path) -> None:
    path, data = make_file(disk)
    got = []

    async def read() -> None:
        async for chunk in chunks:
            got.append(chunk)

    async with AIOContext(4, max_workers=1) as context, open_aio(path, context=context) as file:
        chunks = file.chunks(BLOCK)
        async with busy(context) as pipe, trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(RuntimeError, match="another task is waiting"):
                await chunks.aclose()
            pipe.release()
    assert b"".join(got) == data


@pytest.mark.trio
async def test_refused_chunks_leave_nothing_to_drop(disk: Path) -> None:
    path, _ = make_file(disk)
    async with AIOContext(4) as context:
        file = await open_aio(path, context=context)
    with pytest.raises(RuntimeError, match="this AIOContext is closed"):
        file.chunks()
    gc.collect()  # an exception in `__del__` fails the test
    await file.aclose()


@pytest.mark.trio
async def test_chunks_of_parent_dropped_in_child_are_left_alone(disk: Path) -> None:
    path, data = make_file(disk)
    async with AIOContext(4, max_workers=1) as context, open_aio(path, context=context) as file:
        chunks = file.chunks(BLOCK)
        async with busy(context) as pipe, trio.open_nursery() as nursery:
            nursery.start_soon(anext_of, chunks)
            await trio.testing.wait_all_tasks_blocked()
            before = wake_ups(context)
            child = os.fork()
            if child == 0:
                chunks.__del__()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0  # noqa: ASYNC222 - it ends at once
            assert wake_ups(context) == before
            pipe.release()
        assert b"".join([chunk async for chunk in chunks]) == data[BLOCK:]


def wake_ups(context: AIOContext) -> str:
    """Return what the eventfd of a context counts."""
    engine = context._core.engine
    assert engine is not None
    with open(f"/proc/self/fdinfo/{engine.event_fd}", encoding="ascii") as information:
        return next(line for line in information if line.startswith("eventfd-count"))


# ---- writes that are cancelled together


def two_writes(lp: Loop, descriptor: Descriptor, *, second_buffered: bool = False) -> tuple[RequestGroup[PiecesWrite], list[PiecesWrite]]:
    """Return a batch of two writes that has not been started: the first for the kernel lane, the second, beyond the end, for a worker."""
    requests = []
    for offset in (0, 1 << 30):
        pieces = Pieces.ranges(descriptor, [(offset, export_buffer(mmap.mmap(-1, BLOCK), writable=False))], writing=True)
        requests.append(PiecesWrite(descriptor, pieces, buffered=second_buffered and offset > 0))
    return RequestGroup(lp.engine, requests, 2, writing=True), requests


@contextmanager
def crowded(disk: Path) -> Iterator[tuple[Loop, Descriptor, Request]]:
    """Yield an engine whose kernel lane is full, with the poll that fills it."""
    path, _ = make_file(disk)
    with loop(1, 1, gather=True) as lp, opened(path, os.O_RDWR | os.O_DIRECT) as fd, empty_pipe() as (reader, _writer):
        lp.warm()
        descriptor = lp.descriptor(fd)
        watch = Poll(Descriptor(reader, reader), select.POLLIN)
        lp.submit(watch)
        lp.flush()
        try:
            yield lp, descriptor, watch
        finally:
            if not watch.finished:
                lp.engine.cancel(watch)
            lp.settle()


def test_unstarted_writes_are_withdrawn_together(disk: Path) -> None:
    with crowded(disk) as (lp, descriptor, _watch), full_pipe() as pipe:
        lp.submit(pipe.request())
        batch, (first, second) = two_writes(lp, descriptor)
        batch.start()
        sync = Sync(descriptor, data_only=False)
        lp.submit(sync)
        assert (first.state, second.state, sync.state) == (State.KERNEL_QUEUED, State.WORKER_QUEUED, State.HELD)
        assert batch.cancel()
        assert {first.state, second.state} == {State.WITHDRAWN}
        lp.engine.flush()
        lp.engine.flush()  # a sync that becomes ready starts a tick later
        assert sync.state is State.KERNEL_QUEUED  # it waits for no other request
        pipe.release()


def test_cancelled_writes_with_one_started_all_run_to_completion(disk: Path) -> None:
    with crowded(disk) as (lp, descriptor, watch):
        batch, (first, second) = two_writes(lp, descriptor)
        batch.waiter = lp
        batch.start()
        while second.pieces.array[0].result < 0:  # a worker has it, its completion is not taken yet
            os.sched_yield()
        assert (first.state, second.state) == (State.KERNEL_QUEUED, State.WORKER_IN_FLIGHT)
        sync = Sync(descriptor, data_only=False)
        lp.submit(sync)
        assert not batch.cancel()
        assert (first.state, second.state) == (State.KERNEL_QUEUED, State.WORKER_IN_FLIGHT)
        assert sync.waits_for == {first, second}
        lp.engine.cancel(watch)
        lp.settle()
        assert batch.finished
        assert batch in lp.woken
        assert (first.state, second.state, sync.result) == (State.COMPLETED, State.COMPLETED, 0)


# ---- other tasks run meanwhile


@pytest.mark.trio
@pytest.mark.parametrize("slots", [1, 2, 4])
async def test_single_read_does_not_wait_for_a_whole_group(disk: Path, slots: int) -> None:
    """Counted in pieces submitted before the single read, not when its task woke: the machine may be busy."""
    path, _ = make_file(disk, 64 << 20)
    blocks = 64
    into = mmap.mmap(-1, 64 << 20)  # aligned
    async with AIOContext(slots) as context, open_aio(path, direct=True, context=context) as file:
        while not context.statistics().submitted_kernel:  # memory for a single read has to be made first
            await file.pread(BLOCK, 0)
        lane: Any = context._core.engine.kernel  # type: ignore[union-attr]
        accept, start, take_back = lane.accept, lane.begin, lane.take_slot_back
        for _ in attempts("a single read that came behind a run with most pieces to go"):
            before: list[int] = []  # pieces submitted when the single read came, and when it got its slot
            left: list[int] = []  # pieces submitted when the run left the lane: the rest is for a worker

            def note(request: Request, before: list[int] = before, left: list[int] = left) -> None:
                if not isinstance(request, PiecesRead):
                    before.append(lane.many[0].pieces.native.next if lane.many else left[0] if left else blocks)

            def note_accept(request: Request, note: Callable[[Request], None] = note) -> None:
                note(request)
                accept(request)

            def note_start(request: Request, slot: int, note: Callable[[Request], None] = note) -> None:
                note(request)
                start(request, slot)

            def note_leaving(request: PiecesRead, token: int, left: list[int] = left) -> bool:
                was_last: bool = take_back(request, token)
                if was_last:
                    left.append(request.pieces.native.next)
                return was_last

            lane.accept, lane.begin, lane.take_slot_back = note_accept, note_start, note_leaving
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(file.read_blocks, range(0, 64 << 20, 1 << 20), 1 << 20, into=into))
                await trio.lowlevel.checkpoint()
                await file.pread(BLOCK, 0)
            del lane.accept, lane.take_slot_back
            lane.begin = start
            if len(before) == 2 and before[0] < blocks // 2:  # otherwise a worker read it, or the run was too quick
                break
    came, started = before
    assert started - came <= slots, f"{started - came} pieces were submitted before a single read had its turn"


# ---- what is done on the event loop's own thread

LARGE = 16 << 20


@pytest.fixture
def large(disk: Path) -> Path:
    path = disk / "large"
    path.write_bytes(bytes(LARGE))
    return path


class Turns(trio.abc.Instrument):
    """Counts the ticks of the event loop."""

    def __init__(self) -> None:
        self.count: int = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


@contextmanager
def counted_turns() -> Iterator[Turns]:
    turns = Turns()
    trio.lowlevel.add_instrument(turns)
    try:
        yield turns
    finally:
        trio.lowlevel.remove_instrument(turns)


@pytest.mark.trio
@pytest.mark.parametrize(
    "call",
    [
        lambda file: file.readall(),
        lambda file: file.pread(LARGE + 1, 0),
        lambda file: file.pread(4 * LARGE, 1),
        lambda file: file.read_blocks([0], LARGE),
        lambda file: file.read_ranges([(0, LARGE)]),
    ],
    ids=["readall", "beyond the end", "far beyond the end", "one block", "one range"],
)
@pytest.mark.parametrize("direct", [False, True])
async def test_large_read_goes_to_a_worker_and_is_not_copied(
    large: Path, call: Callable[[AsyncFile], Awaitable[Any]], direct: bool
) -> None:
    async with open_aio(large, direct=direct) as file:
        before = file.context.statistics()
        gc.collect()
        tracemalloc.start()
        try:
            found = await call(file)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        after = file.context.statistics()
    assert sum(map(len, found if isinstance(found, list) else [found])) in (LARGE, LARGE - 1)
    assert peak < LARGE + LARGE // 4
    assert after.submitted_workers + after.submitted_kernel > before.submitted_workers + before.submitted_kernel


@pytest.mark.trio
async def test_large_copy_is_spread_over_many_ticks(large: Path) -> None:
    async with open_aio(large) as file:
        with counted_turns() as turns:
            found = await file.read_ranges([(LARGE // 2, LARGE)])
    assert found == [bytes(LARGE // 2)]
    assert turns.count >= LARGE // 2 // COPY_STEP


async def read_blocks_behind_a_cold_one(file: AsyncFile, path: Path, size: int) -> AIOStatistics:
    """Read a block that is not cached and then the second half of a file, which is cached; return the statistics from before."""
    with pinned(path, LARGE // 2):
        for _ in attempts("a block that was not cached"):
            evict(path, 0, LARGE // 2)
            before = file.context.statistics()
            assert await file.read_blocks([0, *range(LARGE // 2, LARGE, size)], size) == bytes(size + LARGE // 2)
            if file.context.statistics().submitted_workers > before.submitted_workers:
                break
    return before


@pytest.mark.trio
async def test_cached_blocks_after_an_uncached_one_are_not_copied_by_io_submit(large: Path) -> None:
    async with open_aio(large) as file:
        before = await read_blocks_behind_a_cold_one(file, large, 128 << 10)
        after = file.context.statistics()
    assert after.submitted_kernel == before.submitted_kernel


@pytest.mark.trio
async def test_small_cached_blocks_after_an_uncached_one_are_copied_over_several_ticks(large: Path) -> None:
    async with open_aio(large) as file:
        with counted_turns() as turns:
            await read_blocks_behind_a_cold_one(file, large, 16 << 10)
    # Two requests of 512 KiB are in flight. Where others have the processors, both are complete, and are followed by two more, in one tick.
    assert turns.count >= LARGE // 2 // (2 * (512 << 10))


@pytest.mark.trio
async def test_device_that_reads_in_io_submit_is_detected_with_any_number_of_tasks(on_filesystem: Callable[[str], Path]) -> None:
    path, data = make_file(on_filesystem("tmpfs"))
    tasks, times = 64, 50

    async def read(file: AsyncFile) -> None:
        for i in range(times):
            offset = i % (len(data) // BLOCK) * BLOCK
            assert await file.pread(BLOCK, offset) == data[offset : offset + BLOCK]

    async with AIOContext() as context, open_aio(path, direct=True, context=context) as file:
        if not file.direct:
            pytest.skip("this kernel's tmpfs takes no O_DIRECT")
        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(read, file)
        found = context.statistics()
        assert found.submitted_kernel + found.submitted_workers >= tasks * times
        assert found.submitted_kernel < tasks * times / 4


@pytest.mark.trio
async def test_direct_blocks_on_a_synchronous_device_go_to_a_worker(on_filesystem: Callable[[str], Path]) -> None:
    path = on_filesystem("tmpfs") / "file"
    path.write_bytes(bytes(LARGE))
    async with open_aio(path, direct=True) as file:
        offsets = range(0, LARGE, 32 << 10)
        for _ in attempts("a read that the workers made, as io_submit had made those before"):
            before = file.context.statistics()
            await file.read_blocks(offsets, 32 << 10)
            after = file.context.statistics()
            if after.submitted_workers - before.submitted_workers == len(offsets):
                break


@pytest.mark.trio
async def test_writer_copies_large_data_over_many_ticks(disk: Path) -> None:
    async with open_aio(disk / "new", "wb") as file, file.writer(size=LARGE) as writer:
        with counted_turns() as turns:
            await writer.write(bytes(LARGE))
    assert turns.count >= LARGE // COPY_STEP


@pytest.mark.trio
async def test_thousands_of_ranges_are_prepared_over_many_ticks(large: Path) -> None:
    async with open_aio(large) as file:
        with counted_turns() as turns:
            found = await file.read_ranges([(2 * i, 1) for i in range(4096)])
    assert found == [b"\0"] * 4096
    assert turns.count >= 2 * 4096 // 256


def test_cancel_of_writes_held_at_the_gate_starts_none_of_them(disk: Path) -> None:
    path, _ = make_file(disk)
    with loop(8, 4) as lp, opened(path, os.O_RDWR | os.O_DIRECT) as fd:
        lp.warm()
        descriptor = lp.descriptor(fd)
        gate = descriptor.order.gate
        assert gate is not None
        others = BufferedWrite(descriptor, 0, 0, 0, 0, None)
        assert gate.enter(others)
        batch, (first, second) = two_writes(lp, descriptor, second_buffered=True)
        batch.start()
        assert (first.state, second.state) == (State.HELD, State.HELD)
        before = lp.engine.submitted_workers
        assert batch.cancel()
        assert (first.state, second.state) == (State.WITHDRAWN, State.WITHDRAWN)
        assert lp.engine.submitted_workers == before
        gate.leave(others)


@pytest.mark.trio
@pytest.mark.parametrize("direct", [False, True])
async def test_read_blocks_of_size_0_succeeds_at_any_offset(on_filesystem: Callable[[str], Path], direct: bool) -> None:
    path = on_filesystem("tmpfs") / "empty blocks"
    path.write_bytes(bytes(2 * BLOCK))
    async with open_aio(path, direct=direct) as file:
        await file.read_blocks([0, BLOCK], BLOCK)
        await file.read_blocks([0, BLOCK], BLOCK)  # what the device does not know is known now
        route = file._descriptor.read_device
        assert route is not None
        for _ in range(3):
            route.skips_left = 0
            assert await file.read_blocks([0, BLOCK], 0) == b""
        assert await file.pread(BLOCK, 0) == bytes(BLOCK)


@pytest.mark.trio
@pytest.mark.parametrize("direct", [False, True])
async def test_abandoned_blocks_are_counted_once(disk: Path, direct: bool) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context, open_aio(path, direct=direct, abandon_on_cancel=True, context=context) as file:
        before = context.statistics()
        with context.hang(file=path, operation="read") as hang, trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(file.read_blocks, range(0, 10 * BLOCK, BLOCK), BLOCK)
                while not hang.held:
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        await until_idle(context)
        after = context.statistics()
    assert (after.abandoned - before.abandoned, after.cancelled, after.completed) == (10, before.cancelled, before.completed)
